"""No network makes tensors on another device than that of its input: tried without numbers, on torch's `meta` device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.modules import NAMES as TEMPORAL
from support.modules import make
from support.on_device import on
from support.one_device import META, elsewhere

from pipeline.cache.codecs._laws import ReadyCodecs
from pipeline.config import plugins
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.models.step_memory import example_truth
from pipeline.models.tasks.contract import make_task
from pipeline.models.temporal._laws import B, D, N
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, TokenShape

SHAPE = TokenShape(64, (7, 7), 1, (5, 11))
LABELS = tuple("abcdefgh")
BATCH = 2


def test_two_devices_show():
    with elsewhere(), pytest.raises(AssertionError, match="aten.mm"):
        torch.zeros(3, 3, device=META) @ torch.zeros(3, 3)
    with elsewhere():
        assert (torch.zeros(3, device=META) + torch.tensor(1.0)).device == META


@pytest.mark.parametrize("name", TEMPORAL)
def test_temporal_modules(name):
    module = make(name).to(META)
    with elsewhere():
        x_BTND = torch.zeros(B, 3, N, D, device=META, requires_grad=True)
        y_BTND, state = module(x_BTND)
        again, after = module(x_BTND, state)
        step, _ = module.step(x_BTND[:, 0], module.initial_state(B, N))
        (again.square().sum() + step.sum()).backward()
    for part in (y_BTND, *state, *after, x_BTND.grad, *(p.grad for p in module.parameters())):
        assert part.device == META


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith("demo_") else [pytest.mark.slow])
        for name in shipped("recipe")
    ],
)
def test_a_step_and_the_answers_of_a_shipped_recipe(name):
    recipe = load_recipe(shipped("recipe")[name])
    task, frames = make_task(recipe, LABELS), recipe.windows.frames
    truth = example_truth(task, frames)
    model = VideoModel(recipe, SHAPE, task).to(META)
    task.to(META)
    targets = {key: torch.from_numpy(np.repeat(part, BATCH, 0)) for key, part in truth.items()}
    size = BATCH, frames
    batch = OnDevice(
        torch.zeros(*size, SHAPE.special_tokens, SHAPE.width, device=META),
        {
            layer: torch.zeros(*size, SHAPE.patch_tokens, SHAPE.width, device=META)
            for layer in model.layers
        },
        on(META, targets),
    )
    with elsewhere():
        predictions = model.train().predict(batch, task)
        losses = [
            task.loss(form, prediction.float(), model.truth(batch, task))
            for form, prediction in predictions.items()
        ]
        assert {loss.device for loss in losses} == {META}
        if any(loss.requires_grad for loss in losses):
            torch.stack(losses).sum().backward()
        with torch.inference_mode():
            answers = {
                form: task.answer(form, prediction)
                for form, prediction in model.eval().predict(batch, task).items()
            }
    assert {answer.device for answer in answers.values()} == {META}


@pytest.mark.parametrize("name", plugins.names("codec"))
def test_codecs(name):
    codec = ReadyCodecs(plugins.load("codec", name), name).make(64)
    arrays = codec.encode(torch.randn(3, 5, 64))
    with elsewhere():
        moved = {key: torch.from_numpy(array).to(META) for key, array in arrays.items()}
        tokens_FND = codec.decode(moved)
        parts = [tokens_FND, codec.kept(tokens_FND), codec.max_error(tokens_FND)]
    assert {part.device for part in parts} == {META}
