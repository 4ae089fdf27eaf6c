"""Folders of models as people have them: written by other versions and tools, cut short, wrapped
into larger models, or made to do harm. Each is read right, or refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.paths import ROOT, SHARED

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.encoders.tower.model_types import MODEL_TYPES
from pipeline.models.encoders.tower.weights import weights_digest

FOUND = SHARED / "found" / "inputs_public"
CPU = torch.device("cpu")
MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.25, 0.3]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 16,
    "image_size": 64,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
}


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)


def make(folder: Path, size_px: int = 64, **table: Any) -> Any:
    """The encoder of a folder, which records its last layer."""
    table = {"model": str(folder), "layers": [1]} | table
    settings = plugins.settings("encoder", "transformers", table, "[encoder] transformers")
    return plugins.load("encoder", "transformers")(settings, size_px, CPU)


def refusal(folder: Path, **table: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        make(folder, **table)
    assert "\n" not in caught.value.message and "\n" not in caught.value.hint
    assert "weights_only" not in caught.value.message
    return caught.value


def save(model_type: str, folder: Path, **config: Any) -> Path:
    """Writes a small model with random weights; types that `AutoModel` lacks are not asked for."""
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(model_type, **config)
    transformers.AutoModel.from_config(made).save_pretrained(folder)
    normal = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("vit", tmp_path_factory.mktemp("models") / "vit", **SIZES)


@pytest.fixture
def vit(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "vit"))


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def patches(encoder: Any, size_px: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, size_px, size_px), dtype=torch.uint8, generator=generator)
    tokens: torch.Tensor = encoder(pixels).patches_NPD[1]
    return tokens


def clip_processor() -> Any:
    tokenizer = transformers.CLIPTokenizer(
        vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[]
    )
    return transformers.CLIPProcessor(
        image_processor=transformers.CLIPImageProcessorPil(), tokenizer=tokenizer
    )


@pytest.mark.slow  # the import of tokenisers takes seconds
def test_a_processor_saved_by_transformers_5_says_how_pixels_are_normalised(tmp_path: Path) -> None:
    vision, text = dict(SIZES), dict(TEXT)
    folder = save("clip", tmp_path / "clip", vision_config=vision, text_config=text)
    (folder / "preprocessor_config.json").unlink()
    processor = clip_processor()
    processor.save_pretrained(folder)
    assert (folder / "processor_config.json").is_file()
    assert not (folder / "preprocessor_config.json").exists()
    pixels = make(folder).identity["pixels"]
    assert pixels["mean"] == list(processor.image_processor.image_mean)
    assert pixels["std"] == list(processor.image_processor.image_std)
    assert pixels["rescale"] == processor.image_processor.rescale_factor


@pytest.mark.skipif(not FOUND.is_dir(), reason="the reported folders are not here")
def test_the_reported_processor_is_read(vit: Path) -> None:
    shutil.copy(FOUND / "encoder_v5_processor" / "processor_config.json", vit)
    assert make(vit).identity["pixels"] == {
        "rescale": 0.00392156862745098,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }


def test_of_two_files_that_one_is_read_that_transformers_reads(vit: Path) -> None:
    """`image_processor` inside of processor_config.json comes first; one without it says nothing
    of pixels."""
    file = vit / "processor_config.json"
    for table in ({"processor_class": "ViTProcessor"}, {"image_processor": None}):
        file.write_text(json.dumps(table))
        assert make(vit).identity["pixels"]["mean"] == MEAN
    inner = {"image_mean": [0.1] * 3, "image_std": [0.9] * 3, "image_processor_type": "ViT"}
    file.write_text(json.dumps({"image_processor": inner}))
    assert make(vit).identity["pixels"]["mean"] == [0.1] * 3
    read, _ = transformers.ImageProcessingMixin.get_image_processor_dict(str(vit))
    assert read["image_mean"] == [0.1] * 3
    file.write_text(json.dumps({"image_processor": {"image_std": STD}}))
    assert "three numbers, the latter above 0, in its processor_config.json" in refusal(vit).message
    file.write_text(json.dumps({"image_processor": [1]}))
    assert "image_processor must be an object" in refusal(vit).message


def test_the_guide_lists_the_types_that_are_read() -> None:
    page = (ROOT / "docs" / "guide" / "extract.md").read_text()
    table = page.split("<!-- types:begin -->")[1].split("<!-- types:end -->")[0]
    rows = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert rows == [f"`{name}`" for name in sorted(MODEL_TYPES)]


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "gptq", "awq", "fp8", None])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantised_models_are_refused(method: str | None, key: str, vit: Path) -> None:
    table = {"load_in_8bit": True} | ({"quant_method": method} if method else {})
    change(vit / "config.json", **{key: table})
    error = refusal(vit)
    by = f" by {method}" if method else ""
    assert f"is quantised{by} ({key} in its config.json): quantised weights" in error.message
    assert "as it was before" in error.hint


def test_a_quantised_vision_half_is_refused(tmp_path: Path) -> None:
    folder = save("clip", tmp_path / "clip", vision_config=dict(SIZES), text_config=dict(TEXT))
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    quantised = {"quantization_config": {"quant_method": "bitsandbytes"}}
    change(folder / "config.json", vision_config=vision | quantised)
    assert "is quantised by bitsandbytes" in refusal(folder).message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_weights_that_are_quantised_and_do_not_say_so_are_refused(
    dtype: torch.dtype, vit: Path
) -> None:
    """Read as numbers, they would give a tower that runs and means nothing."""
    weights = load_file(vit / "model.safetensors")
    name = next(key for key in sorted(weights) if key.endswith("weight"))
    weights[name] = weights[name].to(dtype)
    save_file(weights, vit / "model.safetensors", metadata={"format": "pt"})
    short = str(dtype).removeprefix("torch.")
    assert f"1 quantised weights, the first is {name} ({short})" in refusal(vit).message


WIDE = [
    ("vit", {"image_size": (32, 96)}, 64),
    ("vit", {"image_size": (32, 128)}, 64),
    ("vit", {"image_size": (32, 128), "hidden_size": 48}, 32),
    ("dinov2", {"image_size": (28, 112), "patch_size": 14}, 56),
    ("dinov2_with_registers", {"image_size": (28, 112), "patch_size": 14}, 56),
    ("beit", {"image_size": (32, 96), "use_relative_position_bias": True}, 64),
    ("deit", {"image_size": (32, 128)}, 64),
    ("vit_mae", {"image_size": (32, 128)}, 64),
    ("siglip2_vision_model", {"num_patches": 15}, 64),
    ("vit", {"image_size": (0, 0)}, 64),
    ("vit", {"image_size": 8}, 64),
]


@pytest.mark.parametrize(("model_type", "config", "size_px"), WIDE)
def test_positions_of_another_grid_than_a_square_are_refused(
    model_type: str, config: dict[str, Any], size_px: int
) -> None:
    """A grid of 2 x 8 positions has as many as one of 4 x 4, and must not be taken for it."""
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"} | config
    if model_type == "siglip2_vision_model":
        del sizes["image_size"]
    table = {"config": {"model_type": model_type, **sizes}, "seed": 0, "layers": [1]}
    settings = plugins.settings("encoder", "transformers", table, "test")
    key = "num_patches" if "num_patches" in config else "image_size"
    found = str(config[key]).replace("(", r"[\(\[]").replace(")", r"[\)\]]")
    with pytest.raises(BadInput, match=rf"this encoder's {key} is {found}"):
        plugins.load("encoder", "transformers").shape(settings, size_px)


@pytest.mark.skipif(not FOUND.is_dir(), reason="the reported configurations are not here")
@pytest.mark.parametrize("size", ["32x96", "32x128"])
def test_the_reported_wide_models_are_refused(size: str, tmp_path: Path) -> None:
    table = json.loads((FOUND / "encoder_wide" / f"config_{size}.json").read_text())
    save("vit", tmp_path, **{key: value for key, value in table.items() if key != "model_type"})
    height, width = size.split("x")
    assert f"image_size is [{height}, {width}]" in refusal(tmp_path).message


def test_a_square_may_be_written_as_a_pair(tmp_path: Path) -> None:
    for model_type in ("vit", "clip_vision_model"):
        folder = save(model_type, tmp_path / model_type, **SIZES)
        own = patches(make(folder))
        change(folder / "config.json", image_size=[64, 64])
        assert torch.equal(patches(make(folder)), own)


def test_a_model_of_one_size_says_which(tmp_path: Path) -> None:
    folder = save("aimv2_vision_model", tmp_path / "aimv2", **SIZES)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        own = model((pixels / 255 - mean) / std).last_hidden_state
    torch.testing.assert_close(make(folder)(pixels).patches_NPD[1], own, rtol=1e-4, atol=1e-5)
    error = refusal(folder, size_px=96)
    assert "has positions for 4 x 4 patches alone" in error.message
    assert error.hint.startswith("size_px = 64")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 346345912\n"


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors"],
)
def test_what_git_lfs_leaves_in_the_place_of_a_file_is_recognised(name: str, vit: Path) -> None:
    (vit / name).write_text(POINTER)
    error = refusal(vit)
    assert error.message == f"{vit / name} is a Git LFS pointer: the file itself was not fetched"
    assert error.hint == f"git lfs pull, in {vit}"


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    """The model in several files, with an index."""
    folder = tmp_path / "shards"
    transformers.AutoModel.from_pretrained(whole).save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(whole / "preprocessor_config.json", folder)
    return folder


def rename(folder: Path, old: str, new: str) -> None:
    """Has the index call one of its files by another name."""
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(json.dumps(old), json.dumps(new)))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[0]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile_ran",)


@pytest.mark.parametrize("content", ["valid", "hostile"])
def test_an_index_that_names_pickled_weights_is_refused(
    content: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard, pickled = first_shard(shards), shards / "pytorch_model-00001.bin"
    torch.save(load_file(shard) if content == "valid" else Hostile(), pickled)
    rename(shards, shard.name, pickled.name)
    error = refusal(shards)
    assert "names 'pytorch_model-00001.bin', and only safetensors are read" in error.message
    assert not (tmp_path / "hostile_ran").exists()


@pytest.mark.parametrize(
    "path",
    ["../outside.safetensors", "{}/outside.safetensors", "sub/a.safetensors", "..", "", "\0"],
)
def test_an_index_that_names_a_path_is_refused(path: str, shards: Path, tmp_path: Path) -> None:
    shard = first_shard(shards)
    (shards / "sub").mkdir()
    shutil.copy(shard, tmp_path / "outside.safetensors")
    shutil.copy(shard, shards / "sub" / "a.safetensors")
    rename(shards, shard.name, path.format(tmp_path))
    message = refusal(shards).message
    assert "not the name of a file in its own folder" in message or "only safetensors" in message


def test_a_name_that_no_file_can_have_is_refused(shards: Path) -> None:
    rename(shards, first_shard(shards).name, "x" * 300 + ".safetensors")
    assert "lacks 1 of" in refusal(shards).message


def test_links_out_of_the_folder_are_refused_and_those_of_a_hub_cache_are_followed(
    shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = patches(make(shards))
    shard = first_shard(shards)
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to("../outside.safetensors")
    error = refusal(shards)
    assert f"{shard} is a link to {tmp_path / 'outside.safetensors'}, outside" in error.message
    shard.unlink()
    (tmp_path / "outside.safetensors").rename(shards / "kept_here")
    shard.symlink_to("kept_here")
    assert torch.equal(patches(make(shards)), own)

    repository = tmp_path / "hub" / "models--a--vit"
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(whole.iterdir())):
        shutil.copy(file, blobs / f"blob{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{number}")
    assert torch.equal(patches(make(snapshot)), patches(make(whole)))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert torch.equal(patches(make(Path("a/vit"))), patches(make(whole)))


def test_a_fifo_is_no_file(vit: Path) -> None:
    for name in ("preprocessor_config.json", "model.safetensors", "config.json"):
        (vit / name).unlink()
        os.mkfifo(vit / name)
        assert refusal(vit).message


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep JSON": (
        lambda vit: (vit / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
        "not valid JSON",
    ),
    "binary config": (lambda vit: (vit / "config.json").write_bytes(b"\xff\xfe\0{"), "not valid"),
    "list of types": (lambda vit: change(vit / "config.json", model_type=["vit"]), "config.json"),
    "no type": (lambda vit: change(vit / "config.json", model_type=None), "config.json"),
    "huge": (lambda vit: change(vit / "config.json", hidden_size=10**9), "hidden_size is 1000000"),
    "many layers": (
        lambda vit: change(vit / "config.json", num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000, more than",
    ),
    "many layers of another tower": (
        lambda vit: change(vit / "config.json", text_config={"a": {"num_hidden_layers": 10**9}}),
        "num_hidden_layers is 1000000000, more than",
    ),
    "layers of a type that lists them": (
        lambda vit: change(vit / "config.json", model_type="beit", num_hidden_layers=10**9),
        "num_hidden_layers is 1000000000, more than",
    ),
    "negative": (
        lambda vit: change(vit / "config.json", intermediate_size=-3),
        "config of vit: ",
    ),
    "null act": (lambda vit: change(vit / "config.json", hidden_act=None), "hidden_act"),
    "another width": (
        lambda vit: change(vit / "config.json", hidden_size=64),
        "weights do not fit its config.json, the first is ",
    ),
    "pickle by another name": (
        lambda vit: torch.save(Hostile(), vit / "model.safetensors"),
        "model.safetensors cannot be read",
    ),
    "empty weights": (lambda vit: (vit / "model.safetensors").write_bytes(b""), "cannot be read"),
    "zeros": (lambda vit: (vit / "model.safetensors").write_bytes(bytes(4096)), "cannot be read"),
    "header of exabytes": (
        lambda vit: (vit / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x0f" + bytes(99)),
        "cannot be read",
    ),
    "no tower": (
        lambda vit: save_file({"a": torch.zeros(3)}, vit / "model.safetensors"),
        "weights of the tower",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_malformed_folder_is_refused_in_one_line(
    damage: str, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, message = DAMAGES[damage]
    spoil(vit)
    assert message in refusal(vit).message
    assert not (tmp_path / "hostile_ran").exists()


def test_a_configuration_cannot_choose_files_code_or_kernels(
    vit: Path, whole: Path, tmp_path: Path
) -> None:
    """Keys by which a configuration has transformers open other files, or compute otherwise."""
    own = patches(make(vit))
    shutil.copy(whole / "model.safetensors", tmp_path / "outside.safetensors")
    change(
        vit / "config.json",
        transformers_weights="../outside.safetensors",
        fusion_config={"patch_embeddings": True},
        _attn_implementation="somebody/kernels",
        attn_implementation="somebody/kernels",
    )
    (vit / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "elsewhere"), "peft_type": "LORA"})
    )
    assert torch.equal(patches(make(vit)), own)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_a_vision_tower_inside_of_a_language_model_is_read_or_named(
    family: str, tmp_path: Path
) -> None:
    kind = "clip_vision_model" if family == "llava" else "siglip_vision_model"
    text = {"model_type": "llama" if family == "llava" else "gemma", **TEXT, "head_dim": 8}
    config = transformers.AutoConfig.for_model(
        family,
        vision_config={"model_type": kind, **SIZES},
        text_config=text | {"num_key_value_heads": 2},
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path / "whole")
    model.model.vision_tower.save_pretrained(tmp_path / "alone")
    normal = json.dumps({"image_mean": MEAN, "image_std": STD})
    for folder in (tmp_path / "whole", tmp_path / "alone"):
        (folder / "preprocessor_config.json").write_text(normal)
    whole, alone = make(tmp_path / "whole"), make(tmp_path / "alone")
    assert torch.equal(patches(whole), patches(alone))
    assert whole.identity["config"] == alone.identity["config"]

    file = tmp_path / "whole" / "model.safetensors"
    weights = {name: x for name, x in load_file(file).items() if "vision" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    error = refusal(tmp_path / "whole")
    assert f"is a whole {family} model, and its weights lack " in error.message
    assert f"of those of its vision tower ({kind})" in error.message
    assert "save_pretrained of its vision tower" in error.hint


@pytest.mark.parametrize("family", ["aimv2", "blip-2", "chinese_clip", "metaclip_2"])
def test_of_more_two_tower_models_the_vision_tower_is_read(family: str, tmp_path: Path) -> None:
    more = {"qformer_config": dict(TEXT)} if family == "blip-2" else {}
    config = transformers.AutoConfig.for_model(
        family, vision_config=dict(SIZES), text_config=dict(TEXT), **more
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    normal = {"image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(normal))
    model = transformers.AutoModel.from_pretrained(tmp_path).eval().vision_model
    encoder = make(tmp_path)
    tower = encoder._tower.state_dict()
    own = {name: x for name, x in model.state_dict().items() if name in tower}
    assert own and all(torch.equal(tower[name], x) for name, x in own.items())
    assert len(own) == len(tower)


@pytest.mark.parametrize("norm", [True, False])
def test_tokens_of_beit_pass_its_norm_where_it_has_one(norm: bool, tmp_path: Path) -> None:
    """With mean pooling, the norm is that of the pooled mean, and tokens are the blocks' own."""
    for model_type in ("beit", "data2vec-vision"):
        folder = save(model_type, tmp_path / model_type, use_mean_pooling=not norm, **SIZES)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        with torch.no_grad():
            own = model((pixels / 255 - mean) / std).last_hidden_state
        tokens = make(folder, 96)(pixels)
        torch.testing.assert_close(tokens.patches_NPD[1], own[:, 1:], rtol=1e-4, atol=1e-5)


HEADED = {
    "BeitForMaskedImageModeling": "beit",
    "Data2VecVisionForImageClassification": "data2vec-vision",
    "DeiTForImageClassificationWithTeacher": "deit",
    "MetaClip2VisionModelWithProjection": "metaclip_2_vision_model",
    "ViTMAEForPreTraining": "vit_mae",
}


@pytest.mark.parametrize("name", HEADED)
def test_of_a_model_with_a_head_the_tower_is_read(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(HEADED[name], **SIZES)
    model = getattr(transformers, name)._from_config(config)
    model.save_pretrained(tmp_path)
    normal = {"image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(normal))
    tower = make(tmp_path)._tower.state_dict()
    own = model.state_dict()
    for key, tensor in tower.items():
        if not key.startswith(("pooler.", "embeddings.mask_token")):
            (match,) = [x for x in own if x == key or x.endswith("." + key)][:1]
            assert torch.equal(own[match], tensor), key


def test_weights_that_change_have_another_digest(tmp_path: Path) -> None:
    """A file is read once; one in its place, of the same size, is another."""
    files = [tmp_path / "a", tmp_path / "b"]
    for file, content in zip(files, (b"one", b"two"), strict=True):
        file.write_bytes(content)
    both = hashlib.sha256(b"onetwo").hexdigest()
    assert weights_digest(files) == weights_digest(files) == both
    (tmp_path / "new").write_bytes(b"six")
    (tmp_path / "new").replace(files[0])
    assert weights_digest(files) == hashlib.sha256(b"sixtwo").hexdigest()
