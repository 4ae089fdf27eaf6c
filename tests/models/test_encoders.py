"""Encoder 'transformers' against the models' own forward passes, for every family it knows."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.paths import SHARED
from support.towers import TOWERS, WIDE

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.encoders.tower.model_types import MODEL_TYPES
from pipeline.records import TokenShape

VIT_TINY = SHARED / "weights" / "vit_tiny_patch16_224"
CPU = torch.device("cpu")
MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
CLS_ALONE = (
    *("chinese_clip_vision_model", "clip_vision_model"),
    *("metaclip_2_vision_model", "mlcd_vision_model"),
)
"""Types whose own last hidden state has not passed their final norm, which they give to CLS."""


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)  # towers this small run slower on two


def make(size_px: int, **table: Any) -> Any:
    settings = plugins.settings("encoder", "transformers", table, "[encoder] transformers")
    return plugins.load("encoder", "transformers")(settings, size_px, CPU)


def shape(size_px: int, **table: Any) -> TokenShape:
    settings = plugins.settings("encoder", "transformers", table, "[encoder] transformers")
    made: TokenShape = plugins.load("encoder", "transformers").shape(settings, size_px)
    return made


def save(model: Any, folder: Path, seed: int = 0, **options: Any) -> Path:
    """Saves `model` with weights far enough from their start that each of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD})
    )
    return folder


@pytest.mark.parametrize("family", TOWERS)
def test_a_rehearsal_leaves_nothing_to_the_frames_after_it(family):
    """Some types keep indices of a grid from call to call: here of one that no other test has."""
    unread = MODEL_TYPES[family].unread
    config = {key: value for key, value in TOWERS[family].config.items() if key not in unread}
    made = make(40, layers=[3], seed=0, config={"model_type": family, **config})
    pixels = torch.randint(
        0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    first, again = made(pixels).patches_NPD[3], made(pixels).patches_NPD[3]
    assert first.isfinite().all() and torch.equal(first, again)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved model per family."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    towers = {
        name: transformers.AutoConfig.for_model(name, **tower.config)
        for name, tower in TOWERS.items()
    }
    return {
        name: save(model_class(name)._from_config(config), root / name)
        for name, config in towers.items()
    }


def model_class(name: str) -> Any:
    """The class of transformers for a type; `AutoModel` does not know all of those read here."""
    return getattr(transformers, MODEL_TYPES[name].model_class)


def frames(count: int, size_px: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (count, 3, size_px, size_px), dtype=torch.uint8, generator=generator
    )


def normalised(pixels_NCHW: torch.Tensor, mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    x = (pixels_NCHW.numpy().astype(np.float64) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(
        std, (3, 1, 1)
    )
    return torch.from_numpy(x).float()


def own_forward(model: Any, x_NCHW: torch.Tensor) -> Any:
    """The model's own forward pass, as its documentation has it called."""
    kind, patch = model.config.model_type, model.config.patch_size
    if kind == "siglip2_vision_model":
        side = x_NCHW.shape[-1] // patch
        cells = [cell for row in x_NCHW.split(patch, dim=2) for cell in row.split(patch, dim=3)]
        return model(
            torch.stack([cell.permute(0, 2, 3, 1).flatten(1) for cell in cells], dim=1),
            pixel_attention_mask=torch.ones(len(x_NCHW), side * side, dtype=torch.long),
            spatial_shapes=torch.full((len(x_NCHW), 2), side),
            output_hidden_states=True,
        )
    if kind == "vit_mae":  # which shows 1 in 4 patches in an order of its own, unless told not to
        model.config.mask_ratio = 0.0
        patches = (x_NCHW.shape[-1] // patch) ** 2
        order = torch.arange(patches, dtype=torch.float32).repeat(len(x_NCHW), 1)
        own = model(x_NCHW, noise=order, interpolate_pos_encoding=True, output_hidden_states=True)
        assert torch.equal(own.ids_restore, order.long()) and not own.mask.any()
        return own
    asked = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if asked else {}
    return model(x_NCHW, output_hidden_states=True, **options)


def test_every_type_that_is_read_is_tested() -> None:
    assert {*TOWERS} == {*MODEL_TYPES}


@pytest.mark.parametrize("size_px", [32, 48])
@pytest.mark.parametrize("name", TOWERS)
def test_tokens_are_the_models_own(name: str, size_px: int, folders: dict[str, Path]) -> None:
    """At the size trained at and at another one, for a tower cut short and for a whole one."""
    pixels_NCHW, specials, side = frames(3, size_px), TOWERS[name].specials, size_px // 8
    model = model_class(name).from_pretrained(folders[name]).eval()
    norm = getattr(model, TOWERS[name].norm or "", torch.nn.Identity())
    with torch.no_grad():
        own = own_forward(model, normalised(pixels_NCHW))
        normed = [norm(hidden) for hidden in own.hidden_states[1:]]
    for layers in [(0, 2), (1, 3)]:
        encoder = make(size_px, model=str(folders[name]), layers=layers)
        tokens = encoder(pixels_NCHW)
        assert shape(size_px, model=str(folders[name]), layers=layers) == TokenShape(
            32, (side, side), specials, layers
        )
        assert not tokens.special_NSD.requires_grad
        torch.testing.assert_close(
            tokens.special_NSD, normed[layers[-1]][:, :specials], rtol=1e-4, atol=1e-5
        )
        for layer in layers:
            torch.testing.assert_close(
                tokens.patches_NPD[layer], normed[layer][:, specials:], rtol=1e-4, atol=1e-5
            )
    if name not in CLS_ALONE:
        torch.testing.assert_close(
            tokens.patches_NPD[3], own.last_hidden_state[:, specials:], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(
        encoder(pixels_NCHW).patches_NPD[3], tokens.patches_NPD[3], rtol=0, atol=0
    )


@pytest.mark.parametrize("name", TOWERS)
def test_a_bright_square_lights_its_patch(name: str, folders: dict[str, Path]) -> None:
    encoder = make(48, model=str(folders[name]), layers=[0])
    grey = torch.full((1, 3, 48, 48), 90, dtype=torch.uint8)
    magenta = torch.tensor([255, 0, 255], dtype=torch.uint8).view(3, 1, 1)
    for row, column in [(0, 0), (0, 5), (5, 0), (5, 5), (2, 4)]:
        lit = grey.clone()
        lit[..., row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = magenta
        change = (encoder(lit).patches_NPD[0] - encoder(grey).patches_NPD[0]).norm(dim=-1)
        assert change.argmax().item() == row * 6 + column


@pytest.mark.parametrize("name", TOWERS)
def test_a_frame_does_not_see_its_batch(name: str, folders: dict[str, Path]) -> None:
    encoder, pixels_NCHW = make(32, model=str(folders[name]), layers=[1, 3]), frames(5, 32)
    together, order = encoder(pixels_NCHW), [3, 0, 4, 1, 2]
    shuffled, alone = encoder(pixels_NCHW[order]), encoder(pixels_NCHW[3:4])
    for other, rows in ((shuffled, order), (alone, [3])):
        torch.testing.assert_close(
            other.special_NSD, together.special_NSD[rows], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            other.patches_NPD[3], together.patches_NPD[3][rows], rtol=1e-4, atol=1e-5
        )


def test_identity_follows_the_weights_and_not_the_place(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    one = make(32, model=str(folders["vit"]), layers=[1]).identity
    assert json.loads(json.dumps(one)) == one
    own = {key: value for key, value in WIDE.items() if key != "patch_size"}
    assert make(32, config=own | {"model_type": "vit"}, seed=0, layers=[1]).identity[
        "config"
    ] == own | {
        "model_type": "vit",
        "pooler_output_size": 32,  # follows hidden_size
    }  # what is at its default is not in it, whether it was written out or not
    assert make(32, model=str(folders["vit"]), layers=[3]).identity == one
    moved = Path(shutil.copytree(folders["vit"], tmp_path / "elsewhere"))
    assert make(32, model=str(moved), layers=[1]).identity == one
    assert str(tmp_path) not in json.dumps(one) and str(folders["vit"]) not in json.dumps(one)

    table: dict[str, Any] = {"model": str(moved), "layers": [1]}
    assert make(32, **table, precision="bfloat16").identity != one
    assert make(32, **table, mean=MEAN, std=STD).identity == one
    assert make(32, **table, mean=[0.5] * 3, std=STD).identity != one

    weights = load_file(moved / "model.safetensors")
    weights["layernorm.bias"][0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    other = make(32, **table).identity
    assert other["weights"] != one["weights"] and other | {"weights": one["weights"]} == one

    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(
        json.dumps(config | {"transformers_version": "9", "architectures": None})
    )
    assert make(32, **table).identity == other
    (moved / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert make(32, **table).identity["config"] == one["config"] | {"layer_norm_eps": 1e-3}


def test_random_weights_follow_their_seed() -> None:
    config = TOWERS["dinov3_vit"].config | {"model_type": "dinov3_vit"}
    pixels_NCHW = frames(2, 32)
    before = torch.get_rng_state()
    first, again, other = (make(32, config=config, seed=seed, layers=[3]) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        first.identity == again.identity and first.identity["weights"] != other.identity["weights"]
    )
    assert torch.equal(first(pixels_NCHW).patches_NPD[3], again(pixels_NCHW).patches_NPD[3])
    assert (first(pixels_NCHW).patches_NPD[3] - other(pixels_NCHW).patches_NPD[3]).abs().max() > 0.1
    half = make(32, config=config, seed=7, mean=[0.5] * 3, std=[0.5] * 3, layers=[3])
    assert half.identity == first.identity


@pytest.mark.parametrize("name", TOWERS)
def test_half_precision_stays_near(name: str, folders: dict[str, Path]) -> None:
    pixels_NCHW, table = frames(2, 48), {"model": str(folders[name]), "layers": [3]}
    exact = make(48, **table)(pixels_NCHW).patches_NPD[3]
    for precision, most in (("bfloat16", 0.03), ("float16", 0.004)):
        half = make(48, **table, precision=precision)(pixels_NCHW).patches_NPD[3]
        assert half.dtype == getattr(torch, precision)
        error = (half.float() - exact).norm() / exact.norm()
        assert 0 < error < most, precision


TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
}


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_of_two_towers_the_vision_tower_is_read(family: str, tmp_path: Path) -> None:
    vision = TOWERS[f"{family}_vision_model"].config
    config = transformers.AutoConfig.for_model(family, vision_config=vision, text_config=TEXT)
    folder = save(transformers.AutoModel.from_config(config), tmp_path / family)
    model = transformers.AutoModel.from_pretrained(folder).eval().vision_model
    pixels_NCHW = frames(2, 32)
    with torch.no_grad():
        own = model.post_layernorm(own_forward(model, normalised(pixels_NCHW)).hidden_states[-1])
    tokens = make(32, model=str(folder), layers=[3])(pixels_NCHW)
    all_tokens = torch.cat([tokens.special_NSD, tokens.patches_NPD[3]], dim=1)
    torch.testing.assert_close(all_tokens, own, rtol=1e-4, atol=1e-5)


def test_weights_in_shards_are_read_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folders["dinov2"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shutil.copy(folders["dinov2"] / "preprocessor_config.json", tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    whole, split = (
        make(32, model=str(folder), layers=[3]) for folder in (folders["dinov2"], tmp_path)
    )
    assert torch.equal(whole(frames(1, 32)).patches_NPD[3], split(frames(1, 32)).patches_NPD[3])

    before = split.identity["weights"]
    weights = load_file(shards[-1])
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()},
        shards[-1],
        metadata={"format": "pt"},
    )
    assert make(32, model=str(tmp_path), layers=[3]).identity["weights"] != before
    index = tmp_path / "model.safetensors.index.json"
    whole_index = index.read_text()
    for text in ("{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(
            BadInput,
            match=r"model\.safetensors\.index\.json has no weight_map from weights to files$",
        ):
            make(32, model=str(tmp_path), layers=[3])
    index.write_text(whole_index)
    shards[1].unlink()
    with pytest.raises(
        BadInput, match=rf"lacks 1 of {len(shards)} weight files, the first is {shards[1].name}"
    ):
        make(32, model=str(tmp_path), layers=[3])


def test_incomplete_or_pickled_weights_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["vit"], tmp_path / "vit"))
    weights, file = load_file(folder / "model.safetensors"), folder / "model.safetensors"

    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(headless, file, metadata={"format": "pt"})
    tokens = make(32, model=str(folder), layers=[3])(frames(1, 32))
    assert torch.equal(
        tokens.patches_NPD[3],
        make(32, model=str(folders["vit"]), layers=[3])(frames(1, 32)).patches_NPD[3],
    )

    del headless["layernorm.bias"]
    save_file(headless, file, metadata={"format": "pt"})
    with pytest.raises(
        BadInput, match=r"lacks 1 weights of the tower, the first is layernorm\.bias"
    ):
        make(32, model=str(folder), layers=[3])

    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read"):
        make(32, model=str(folder), layers=[3])

    file.unlink()
    with pytest.raises(BadInput, match=r"has no model\.safetensors$"):
        make(32, model=str(folder), layers=[3])
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pickled weights \(\.bin\) are not read") as caught:
        make(32, model=str(folder), layers=[3])
    assert "save_pretrained" in caught.value.hint


def test_normalisation_is_read_as_data(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, pixels_NCHW = (
        Path(shutil.copytree(folders["dinov3_vit"], tmp_path / "model")),
        frames(1, 32),
    )
    file = folder / "preprocessor_config.json"

    def write(factor: float, **table: Any) -> None:
        scaled = {
            "image_mean": [factor * value for value in MEAN],
            "image_std": [factor * value for value in STD],
        }
        file.write_text(json.dumps(scaled | table))

    def patches(**table: Any) -> torch.Tensor:
        made: torch.Tensor = make(32, model=str(folder), layers=[3], **table)(
            pixels_NCHW
        ).patches_NPD[3]
        return made

    own = patches()
    write(1, do_normalize=False)
    torch.testing.assert_close(patches(), patches(mean=[0, 0, 0], std=[1, 1, 1]))
    write(255, do_rescale=False)
    torch.testing.assert_close(patches(), own)
    write(2, rescale_factor=1 / 127.5)
    torch.testing.assert_close(patches(), own)
    for bad in (
        {"image_mean": [0.5]},
        {"image_mean": ["0.5"] * 3},
        {"image_std": [0.5, 0, 0.5]},
        {"image_std": [True] * 3},
    ):
        write(1, **bad)
        with pytest.raises(
            BadInput, match="no image_mean and image_std of three numbers, the latter above 0"
        ):
            patches()
    write(1, rescale_factor="1/255")
    with pytest.raises(
        BadInput,
        match=r"preprocessor_config\.json: rescale_factor must be a number, found '1/255'$",
    ):
        patches()
    file.write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        patches()
    file.write_text("[]")
    with pytest.raises(
        BadInput, match=r"preprocessor_config\.json: wanted a JSON object, found \[\]$"
    ):
        patches()
    file.unlink()
    with pytest.raises(BadInput, match="no image_mean and image_std of three numbers") as caught:
        patches()
    assert "mean = " in caught.value.hint
    assert torch.equal(patches(mean=MEAN, std=STD), own)


TINY = {"model_type": "vit", **WIDE}
CLIP = {"model_type": "clip_vision_model", **WIDE}


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"layers": [12]}, r"layer 12 is not there: this encoder has 4 blocks, 0\.\.3", ""),
        ({"layers": [-1]}, r"layer -1 is not there", ""),
        ({"layers": [2, 1]}, r"ascending and different, found \[2, 1\]", ""),
        ({"layers": [1, 1]}, r"ascending and different", ""),
        ({"layers": []}, r"ascending and different", ""),
        (
            {"config": TINY | {"patch_size": 14}},
            r"size_px = 32 is not a whole number .* of 14 px",
            "near: 28, 42",
        ),
        ({"config": TINY | {"patch_size": 33}}, r"size_px = 32", "near: 33"),
        (
            {"config": TINY | {"hidden_siz": 3}},
            r"no key called 'hidden_siz'",
            "did you mean 'hidden_size'?",
        ),
        (
            {"config": TINY | {"hidden_size": "wide"}},
            r"config of vit: .*hidden_size.* expected int",
            "",
        ),
        ({"config": TINY | {"patch_size": [8, 8]}}, r"patch_size", ""),
        ({"config": TINY | {"patch_size": 0}}, r"patch_size is 0; wanted one whole number", ""),
        (
            {"config": TINY | {"num_attention_heads": 0}},
            r"num_attention_heads is 0; wanted one whole number of 1 or more",
            "",
        ),
        (
            {"config": TINY | {"num_attention_heads": 5}},
            r"hidden_size is 32, which its num_attention_heads, 5, do not div",
            "",
        ),
        ({"config": TINY | {"num_channels": 4}}, r"num_channels is 4; frames have 3", ""),
        (
            {"config": TINY | {"hidden_act": "gellu"}},
            r"config of vit: no hidden_act called 'gellu'",
            "did you mean 'gelu'?",
        ),
        ({"config": TINY | {"model_type": ["vit"]}}, r"no vision tower called '\['vit'\]'", ""),
        (
            {"config": CLIP | {"num_attention_heads": 5}},
            r"config of clip_vision_model: Class validation error .* not a mult",
            "",
        ),
        (
            {"seed": 2**63},
            r"key 'seed': Input should be less than or equal to 9223372036854775807",
            "",
        ),
        (
            {"model": "~nobody_of_this_name/x", "config": None, "seed": None},
            r"'~nobody_of_this_name/x' looks like a local",
            "",
        ),
        (
            {"config": {"model_type": "dinov3_vits"}},
            r"no vision tower called 'dinov3_vits'",
            "did you mean 'dinov3_vit'?",
        ),
        ({"config": {"hidden_size": 3}}, r"no vision tower called 'None'", ""),
        ({"config": None}, r"config and seed go together|exactly one of model and config", ""),
        ({"model": "facebook/dinov2-small"}, r"exactly one of model and config", ""),
        ({"seed": None}, r"config and seed go together", ""),
        ({"revision": "main"}, r"revision goes with model", ""),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean and std go together", ""),
        ({"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}, r"std must be above 0", ""),
        ({"precision": "int8"}, r"precision", ""),
    ],
)
def test_bad_settings_say_what_is_wrong(table: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        shape(32, **{"layers": [1], "config": TINY, "seed": 0} | table)
    assert hint in caught.value.hint


def test_a_model_that_is_not_there_says_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        BadInput, match="looks like a hub id; it is not in the local cache"
    ) as caught:
        shape(224, model="stillframe/is-not-there", layers=[1])
    assert "hf download stillframe/is-not-there" in caught.value.hint
    for missing in (str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(BadInput, match="looks like a local folder"):
            shape(224, model=missing, layers=[1])
    with pytest.raises(BadInput, match=r"has no config\.json"):
        shape(224, model=str(tmp_path), layers=[1])
    with pytest.raises(BadInput, match="has no revision"):
        shape(224, model=str(tmp_path), revision="main", layers=[1])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match="no vision tower called 'bert'"):
        shape(224, model=str(tmp_path), layers=[1])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadInput, match=r"config\.json: wanted a JSON object, found \[\]"):
        shape(224, model=str(tmp_path), layers=[1])
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"hidden_size": "wide"}))
    with pytest.raises(
        BadInput, match=r"its config\.json cannot be used: .*hidden_size.* expected int, got str"
    ):
        shape(32, model=str(tmp_path), layers=[1])
    (tmp_path / "config.json").write_text(
        '{"model_type": "secret", "auto_map": {"AutoConfig": "code.Config"}}'
    )
    (tmp_path / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(BadInput, match=r"config\.json cannot be used"):
        shape(224, model=str(tmp_path), layers=[1])


def test_loading_is_silent_and_leaves_the_volume_alone(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    make(32, model=str(folders["siglip_vision_model"]), layers=[0])
    assert capfd.readouterr() == ("", "")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


@pytest.mark.skipif(not VIT_TINY.is_dir(), reason="the real weights are not here")
def test_a_real_checkpoint_gives_its_own_last_hidden_state() -> None:
    """A classifier's folder: no pooling head in it, and a head that is not ours."""
    pixels_NCHW = frames(2, 224)
    pixels_NCHW[1, :, 100:150, 60:120] = 255
    model = transformers.ViTModel.from_pretrained(VIT_TINY, add_pooling_layer=False).eval()
    with torch.no_grad():
        own = model(normalised(pixels_NCHW, [0.5] * 3, [0.5] * 3)).last_hidden_state
    tokens = make(224, model=str(VIT_TINY), layers=[5, 11])(pixels_NCHW)
    assert (
        repr(tokens) == "Tokens(special (2, 1, 192), patches {5: (2, 196, 192), 11: (2, 196, 192)})"
    )
    torch.testing.assert_close(
        torch.cat([tokens.special_NSD, tokens.patches_NPD[11]], dim=1), own, rtol=1e-3, atol=1e-4
    )
