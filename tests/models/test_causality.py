"""Nothing that is said of a frame knows a later one: every temporal module and task found on disk, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import collate
from pipeline.models.causality import Leak, first_leak
from pipeline.models.step_memory import example_truth
from pipeline.models.tasks.contract import PATCHES, Query, StreamingReadout, make_task
from pipeline.models.temporal.contract import State, TemporalModule
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, TokenShape

SHAPE = TokenShape(width=8, grid_hw=(2, 2), special_tokens=1, layers=(1, 3))
B, T = 2, 5
SMALL = {"layers": 1, "heads": 2, "state": 3, "head_dim": 4}
TASK = {
    "readout_width": 8,
    "heads": 2,
    "hidden": 8,
    "size_px": 8,
    "min_m": 0.1,
    "max_m": 9.0,
    "horizons_s": [0.5],
}
WAYS = {
    "boxes": [{}, {"start": "still"}, {"start": "likeness", "reads": "both", "look": "updated"}],
    "points": [{}, {"start": "still"}, {"start": "likeness", "reads": "both", "look": "updated"}],
    "forecast": [{}, {"head": "mlp"}, {"target": "raw", "residual": False}],
    "contrast": [{}],
}
CASES = [(task, way) for task in plugins.names("task") for way in WAYS.get(task, [{}])]


def build(temporal: str, task: str, way: dict | None = None, mixer: str = "mlp"):
    def known(kind: str, name: str, table: dict) -> dict:
        fields = plugins.load(kind, name).Settings.model_fields
        return {"name": name} | {key: value for key, value in table.items() if key in fields}

    table = {
        "name": "test",
        "task": known("task", task, TASK) | (way or {}),
        "temporal": known("temporal", temporal, SMALL),
        "windows": {"frames": T, "fps": 4},
        "model": {"mixer": mixer},
        "training": {"steps": 1},
    }
    recipe = plugins.validate(Recipe, table, "test")
    torch.manual_seed(0)
    made = make_task(recipe, ("1", "2"))
    model = VideoModel(recipe, SHAPE, made)
    for parameter in model.parameters():  # what is zero before training says nothing
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval(), made


def windows(task) -> OnDevice:
    generator = torch.Generator().manual_seed(1)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(B, T, tokens, SHAPE.width, generator=generator)

    one = {name: array[0] for name, array in example_truth(task, T).items()}
    truth = collate([{name: np.array(array) for name, array in one.items()}] * B)
    targets = {name: torch.from_numpy(array) for name, array in truth.items()}
    return OnDevice(draw(1), {layer: draw(4) for layer in SHAPE.layers}, targets)


@pytest.mark.parametrize("temporal", plugins.names("temporal"))
def test_no_temporal_module_knows_the_future(temporal):
    model, task = build(temporal, "classify")
    assert first_leak(model, task, windows(task)) is None


@pytest.mark.parametrize(("task", "way"), CASES)
def test_no_task_says_what_only_the_future_knows(task, way):
    model, made = build("gru", task, way)
    assert first_leak(model, made, windows(made)) is None


@pytest.mark.parametrize("mixer", ["mlp", "last", "norm", "concat"])
def test_no_mixer_mixes_frames(mixer):
    model, task = build("identity", "classify", mixer=mixer)
    assert first_leak(model, task, windows(task)) is None


class Centred(TemporalModule):
    """Takes the mean over all frames away."""

    def _run(self, x_BTND: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        return x_BTND - x_BTND.mean(1, keepdim=True), ()

    def state_shapes(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        return ()

    def flops(self, frames: int, tokens: int) -> int:
        return 0


class Ahead(StreamingReadout):
    """Answers with the patches of the next frame."""

    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        raise NotImplementedError

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        return query[PATCHES].roll(-1, dims=1)


def test_what_looks_ahead_is_found():
    model, task = build("identity", "classify")
    model.temporal = Centred(SHAPE.width, None)
    assert first_leak(model, task, windows(task)) == Leak("temporal outputs", 0, 0)
    model, task = build("identity", "classify")
    model.readouts["streaming"], model.sees_patches = Ahead(), True
    assert first_leak(model, task, windows(task)) == Leak("streaming answers", 0, 0)
