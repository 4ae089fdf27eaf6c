"""The whole trained part: mixing of layers, order of tokens, stream = window, optimiser groups,
learning what needs memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.paths import GOLDEN

from pipeline.config import plugins
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.config.shipped import shipped
from pipeline.errors import BadInput
from pipeline.models.mixers import LayerMixer, layer_mixer
from pipeline.models.profile import example_query
from pipeline.models.tasks.contract import PATCHES, Query, StreamingReadout
from pipeline.models.video_model import VideoModel, parameter_groups
from pipeline.records import TokenShape

SHIPPED = sorted((Path(plugins.__file__).parent / "recipes").glob("demo_*.toml"))
SHAPE = TokenShape(width=8, grid_hw=(2, 3), special_tokens=2, layers=(1, 3))
LABELS = ("first", "second", "third")
B, T = 3, 4
SMALL = {"layers": 1, "heads": 2, "state": 3}


def build(
    temporal: str = "gru",
    shape: TokenShape = SHAPE,
    task: dict | None = None,
    seed: int = 0,
    frames: int = T,
    **model: object,
) -> VideoModel:
    fields = plugins.load("temporal", temporal).Settings.model_fields
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 8, "heads": 2} | (task or {}),
        "temporal": {"name": temporal}
        | {key: value for key, value in SMALL.items() if key in fields},
        "windows": {"frames": frames, "fps": 8},
        "model": model,
        "training": {"steps": 1},
    }
    recipe = plugins.validate(Recipe, table, "test")
    torch.manual_seed(seed)
    return VideoModel(
        recipe, shape, plugins.load("task", "classify")(recipe.task.settings, LABELS)
    ).eval()


def inputs(
    frames: int = T, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(B, frames, tokens, 8, generator=generator).to(dtype)

    return draw(2), [draw(6), draw(6)]


@torch.no_grad()
def test_mixer_reproduces_the_published_module():
    golden = load_file(GOLDEN / "layer_mixer.safetensors")
    mixer = LayerMixer(32, 4).eval()
    mixer.load_state_dict(
        {key.removeprefix("weights/"): golden[key] for key in golden if key.startswith("weights/")}
    )
    torch.testing.assert_close(
        mixer(golden["in/layers_LFPD"].unbind()), golden["out/patches_FPD"], atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_mixer_normalises_over_all_tokens_of_the_batch_in_training():
    torch.manual_seed(0)
    mixer, (_, patches) = LayerMixer(8, 2).train(), inputs()
    expected = 0
    for layer, one in zip(mixer, patches, strict=True):
        rows = one.reshape(-1, 8)
        normed = (one - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
        expected = expected + (one + layer.mlp(normed)) / 2
    torch.testing.assert_close(mixer(patches), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_normed_layer_has_channels_of_one_size_in_training_and_afterwards():
    torch.manual_seed(0)
    size_D = torch.tensor([1.0, 100.0, 0.01, 1.0])
    patches = [torch.randn(3, 4, 5, 4), 7 + size_D * torch.randn(3, 4, 5, 4)]
    mixer = layer_mixer("norm", 4, 2).train()
    rows_MD = mixer(patches).reshape(-1, 4)
    torch.testing.assert_close(rows_MD.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        rows_MD.var(0, unbiased=False)[[0, 1, 3]], torch.ones(3), atol=1e-4, rtol=0
    )
    expected = (patches[1].reshape(-1, 4) - patches[1].reshape(-1, 4).mean(0))[:, 1]
    expected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(rows_MD[:, 1], expected, atol=1e-4, rtol=0)
    for _ in range(100):
        mixer(patches)
    alone = mixer.eval()([part[:1] for part in patches])  # by the running moments of all
    torch.testing.assert_close(alone[0, :, :, 1].flatten(), rows_MD[:20, 1], atol=0.02, rtol=0)


@torch.no_grad()
def test_tokens_are_the_specials_and_then_the_patches():
    special, patches = inputs()
    everything = build("identity", mixer="last").features(special, patches)
    torch.testing.assert_close(
        everything, F.layer_norm(torch.cat([special, patches[-1]], dim=2), (8,))
    )
    only = build("identity", mixer="last", tokens="patches")
    assert only.tokens_per_frame == 6
    torch.testing.assert_close(only.features(special, patches), everything[:, :, 2:])


@torch.no_grad()
def test_projection_sets_the_width():
    model = build("identity", mixer="last", width=5)
    special, patches = inputs()
    tokens = torch.cat([special, patches[-1]], dim=2)
    expected = F.layer_norm(tokens @ model.projection.weight.T + model.projection.bias, (5,))
    torch.testing.assert_close(model.features(special, patches), expected)


@pytest.mark.parametrize("temporal", plugins.names("temporal"))
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"width": 6, "tokens": "patches"},
        {"mixer": "last"},
        {"mixer": "norm"},
        {"mixer": "concat"},
    ],
)
@torch.no_grad()
def test_a_stream_gives_what_the_window_gives(temporal, keys):
    model = build(temporal, **keys)
    special, patches = inputs()
    whole = model(special, patches)
    assert whole["streaming"].shape == (B, T, 3) and whole["window"].shape == (B, 3)
    state = model.start(B)
    for t in range(T):
        logits, state = model.step(special[:, t], [one[:, t] for one in patches], state)
        torch.testing.assert_close(logits, whole["streaming"][:, t], atol=1e-5, rtol=0)


def test_step_says_that_it_wants_the_streaming_form():
    model = build(task={"forms": ["window"]})
    with pytest.raises(BadInput, match="only in the form window") as error:
        model.start(B)
    assert "streaming" in error.value.hint


@torch.no_grad()
def test_tokens_may_come_in_half_precision():
    model = build()
    half = model(*inputs(dtype=torch.float16))["streaming"]
    special, patches = inputs(dtype=torch.float16)
    assert half.dtype == torch.float32
    assert torch.equal(half, model(special.float(), [one.float() for one in patches])["streaming"])


def test_a_cache_without_special_tokens():
    shape = TokenShape(width=8, grid_hw=(2, 3), special_tokens=0, layers=(1, 3))
    special, patches = inputs()
    assert build(shape=shape)(special[:, :, :0], patches)["window"].shape == (B, 3)


@pytest.mark.parametrize("temporal", plugins.names("temporal"))
def test_optimiser_groups_hold_every_parameter_once(temporal):
    model = build(temporal)
    decayed, free = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        name: [names[parameter] for parameter in group["params"]]
        for name, group in (("decayed", decayed), ("free", free))
    }
    assert sorted(groups["decayed"] + groups["free"]) == sorted(names.values())
    assert {"mixer.0.mlp.0.weight", "readouts.window.key_proj.weight"} <= set(groups["decayed"])
    assert {
        "mixer.0.bn.weight",
        "mixer.0.mlp.0.bias",
        "readouts.window.query",
        "readouts.window.temporal_posenc",
    } <= set(groups["free"])
    assert not any(
        name.endswith(("bias", "A_log", ".D")) or "norm" in name for name in groups["decayed"]
    )


def test_parameter_counts_by_hand():
    counts = build("identity", width=6).parameter_counts()
    mixer = 2 * (2 * 8 + 8 * 16 + 16 + 16 * 8 + 8) + 8 * 6 + 6
    readout = (
        12 + 2 * (6 * 8 + 8) + 8 + (8 * 8 + 8) + 16 + (8 * 32 + 32) + (32 * 8 + 8) + (8 * 3 + 3)
    )
    assert counts == {"mixer": mixer, "temporal": 12, "readout": 2 * readout + T * 6}


def test_initial_weights_are_a_function_of_the_seed():
    first, again, other = (build("gated_mamba_mix", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["temporal.gates.0.weight"], other["temporal.gates.0.weight"])


@pytest.mark.parametrize("temporal", plugins.names("temporal"))
def test_trains_under_bfloat16_autocast(temporal):
    model = build(temporal).train()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = model(*inputs())
    sum(prediction.float().square().sum() for prediction in predictions.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, on tracing a Function
@pytest.mark.parametrize("temporal", plugins.names("temporal"))
def test_compiles_into_one_graph(temporal):
    """Traced as a whole, forward and backward, without a break; run by the plain back end, which
    needs no C++ compiler."""
    torch.compiler.reset()
    model = build(temporal, frames=2)
    special, patches = inputs(frames=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, found = model(special, patches), compiled(special, patches)

    def gradients(prediction: torch.Tensor) -> list[torch.Tensor]:
        return list(
            torch.autograd.grad(prediction.square().sum(), list(model.temporal.parameters()))
        )

    for form in expected:
        torch.testing.assert_close(found[form], expected[form], atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(expected["window"]), gradients(found["window"]), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temporal", "solved"), [("identity", False), ("gru", True), ("gated_mamba_mix", True)]
)
def test_only_a_module_with_memory_tells_what_came_first(temporal, solved):
    """Frame 0 shows class k, all later frames show noise; the last frame's streaming logits are
    asked for k."""
    model = build(
        temporal,
        task={"forms": ["streaming"], "supervise": "last"},
        mixer="last",
        tokens="patches",
        width=16,
    ).train()
    generator = torch.Generator().manual_seed(0)
    patterns = 2 * torch.randn(3, 1, 8, generator=generator)
    task = plugins.load("task", "classify")(
        plugins.load("task", "classify").Settings(supervise="last"), LABELS
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4), lr=5e-3)
    correct = []
    for _ in range(110):
        label = torch.randint(3, (16,), generator=generator)
        patches = 0.3 * torch.randn(16, T, 6, 8, generator=generator)
        patches[:, 0] += patterns[label]
        prediction = model(patches[:, :, :0], [patches, patches])["streaming"]
        optimizer.zero_grad()
        task.loss("streaming", prediction, {"label": label}).backward()
        optimizer.step()
        answer = task.answer("streaming", prediction).detach().numpy()
        correct.append(task.score(answer, {"label": label.numpy()})["top-1"].mean())
    accuracy = sum(correct[-15:]) / 15
    assert accuracy > 0.95 if solved else 0.2 < accuracy < 0.5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@torch.no_grad()
def test_demo_recipes_build_for_a_small_encoder(path):
    recipe = load_recipe(path)
    shape = TokenShape(width=96, grid_hw=(7, 7), special_tokens=5, layers=(2, 5, 8, 11))
    task = plugins.load("task", recipe.task.name)(recipe.task.settings, LABELS)
    model = VideoModel(recipe, shape, task).eval()
    frames = recipe.windows.frames
    places = {
        "boxes": {"box": torch.rand(1, 2, 4)},
        "points": {"point": torch.rand(1, 3, 2), "frame": torch.zeros(1, 3).long()},
    }
    told = example_query(task, frames) if task.wanted_texts else {}
    query = places.get(recipe.task.name, told)
    predictions = model(torch.zeros(1, frames, 5, 96), [torch.zeros(1, frames, 49, 96)] * 4, query)
    per_frame = {
        "classify": (3,),
        "boxes": (2, 4),
        "points": (3, 4),
        "depth": (56, 56),
        "pose": (9,),
        "forecast": (2, 49, 96),
        "contrast": (2, 49, 96),
        "retrieve": (384,),
        "question": (3,),
        "segment": (3,),
    }[recipe.task.name]
    assert predictions["streaming"].shape == (1, frames, *per_frame)
    of_window = (frames, *per_frame) if recipe.task.name == "segment" else per_frame
    assert "window" not in predictions or predictions["window"].shape == (1, *of_window)


def test_there_are_demo_recipes_with_and_without_memory():
    assert {"demo_gated_mamba_mix", "demo_gru", "demo_identity"} <= {path.stem for path in SHIPPED}


PUBLISHED = {
    "ssv2": 7.03,
    "waymo": 18.71,
    "kubric_points": 18.15,
    "scannet": 12.42,
    "nuscenes": 0.53,
}
"""recipe -> millions of parameters of its readout for DINOv3 ViT-L/16."""


@pytest.mark.parametrize(("name", "readout"), PUBLISHED.items())
def test_recipes_of_the_paper_have_its_sizes(name, readout):
    recipe = load_recipe(shipped("recipe")[name])
    large = TokenShape(width=1024, grid_hw=(14, 14), special_tokens=5, layers=(5, 11, 17, 23))
    labels = tuple(f"class {number}" for number in range(174))
    with torch.device("meta"):
        task = plugins.load("task", recipe.task.name)(recipe.task.settings, labels)
        counts = VideoModel(recipe, large, task).parameter_counts()
    millions = {part: round(count / 1e6, 2) for part, count in counts.items()}
    assert millions == {"mixer": 16.8, "temporal": 85.45, "readout": readout}
    assert (recipe.windows.frames, recipe.training.betas, recipe.training.weight_decay) == (
        16,
        (0.9, 0.999),
        1e-4,
    )


class OwnPatches(StreamingReadout):
    """Gives back what it sees of a frame: its first patch."""

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        return state[PATCHES][:, 0], state


@torch.no_grad()
def test_a_readout_may_see_the_cached_patches_of_the_last_layer_in_windows_and_streams():
    model = build(width=4, tokens="all")
    model.readouts["streaming"], model.sees_patches = OwnPatches(), True
    special_BTSD, patches = inputs()
    seen_BTD = model(special_BTSD, patches)["streaming"]
    assert torch.equal(seen_BTD, patches[-1][:, :, 0])
    state = model.start(B)
    for time in range(T):
        frame = [patches_BTPD[:, time] for patches_BTPD in patches]
        seen_BD, state = model.step(special_BTSD[:, time], frame, state)
        assert torch.equal(seen_BD, seen_BTD[:, time])
        assert PATCHES not in state.readout
