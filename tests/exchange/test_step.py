"""One step as one function says what a stream says, whatever the temporal module and the readout."""

from __future__ import annotations

import pytest
import torch
from support.steps import READOUTS, SHAPE, made

from pipeline.config import plugins
from pipeline.exchange.step import OTHER_SIZES, SIZES, ModelStep
from pipeline.models.temporal.layers.scan_pytorch import scan_forward, scan_step
from pipeline.models.temporal.mamba2 import _dual_step, state_space_dual


def test_every_task_is_here():
    assert {name for name, _ in READOUTS} == {*plugins.names("task")}


@torch.no_grad()
def test_one_frame_of_mamba_in_plain_operators_is_that_of_the_scan_bit_for_bit():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, dt, A = draw(1, 6, 5), draw(1, 6, 5).exp(), -draw(3, 5).exp()
    B, C, state = draw(1, 6, 3), draw(1, 6, 3), draw(6, 3, 5)
    for one, other in zip(
        scan_step(x, dt, A, B, C, state), scan_forward(x, dt, A, B, C, state), strict=True
    ):
        assert torch.equal(one, other)


@torch.no_grad()
def test_one_frame_of_mamba2_as_a_recurrence_is_that_of_the_dual_form():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    inputs = draw(1, 6, 8), draw(1, 6, 2).exp(), -draw(2).exp(), draw(1, 6, 3), draw(1, 6, 3)
    state = draw(6, 3, 8)
    for one, other in zip(
        _dual_step(*inputs, state), state_space_dual(*inputs, state), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("task", "settings"), READOUTS)
def test_frame_by_frame_it_is_the_stream_of_the_model(task, settings):
    """Two streams in a batch; then the second begins anew, and says what a new stream would."""
    model, plugin = made("gru", task, **settings)
    step = ModelStep(model, plugin, SHAPE)
    inputs = step.example(OTHER_SIZES)
    told = {port.name: inputs[port.name] for port in step.ports.told}
    zeros = {each.input: torch.zeros_like(inputs[each.input]) for each in step.ports.states}
    states, stream = zeros, model.start(2, step.query(told))
    for time in range(4):
        frame = {port.name: step.example(OTHER_SIZES, time)[port.name] for port in step.frame}
        now = told | frame
        said = step(now | states | {"reset": torch.tensor([time == 0] * 2)})
        patches = [frame[f"layer_{layer}"] for layer in model.layers]
        embedding = frame.get("frame_embedding")
        seen = {} if embedding is None else {"frame_embeddings": embedding}
        prediction, stream = model.step(frame["special"], patches, stream, seen)
        answer = plugin.answer("streaming", prediction.unsqueeze(1))
        torch.testing.assert_close(said["answer"].flatten(), answer.flatten(), atol=1e-6, rtol=0)
        before, states = states, {each.input: said[each.output] for each in step.ports.states}
    again = step(now | before | {"reset": torch.tensor([False, True])})
    begun = step(now | zeros | {"reset": torch.tensor([True, True])})
    assert again.keys() == begun.keys() == said.keys()
    for name in said:
        torch.testing.assert_close(again[name][0], said[name][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(again[name][1], begun[name][1], atol=1e-6, rtol=0)


def test_names_shapes_and_what_is_remembered():
    model, plugin = made("gru", "boxes")
    ports = ModelStep(model, plugin, SHAPE).ports
    assert [(port.name, port.dtype, port.shape) for port in ports.inputs] == [
        ("special", "float32", ("B", 2, 8)),
        ("layer_1", "float32", ("B", 6, 8)),
        ("layer_3", "float32", ("B", 6, 8)),
        ("box", "float32", ("B", "Q", 4)),
        ("reset", "bool", ("B",)),
        ("state_0", "float32", ("B", 8, 8)),
        ("state_1", "float32", ("B", "Q", 4)),
    ]
    assert [(port.name, port.shape) for port in ports.all_outputs] == [
        ("answer", ("B", "Q", 4)),
        ("features", ("B", 8, 8)),
        ("next_state_0", ("B", 8, 8)),
        ("next_state_1", ("B", "Q", 4)),
    ]
    assert [each.of for each in ports.states] == [
        "the temporal module, part 0",
        "the readout, its 'box'",
    ]


def test_what_is_the_same_throughout_a_stream_is_no_state():
    """The place of a point is told, and encoded, at every frame; the number of the frame is kept."""
    model, plugin = made("identity", "points")
    ports = ModelStep(model, plugin, SHAPE).ports
    assert [(each.of, each.dtype, each.shape) for each in ports.states] == [
        ("the readout, its 'time'", "int64", ("B", 1))
    ]


def test_without_any_state_there_is_nothing_to_reset():
    model, plugin = made("identity", "classify")
    ports = ModelStep(model, plugin, SHAPE).ports
    assert [port.name for port in ports.inputs] == ["special", "layer_1", "layer_3"]
    assert ports.states == ()


def test_sizes_of_free_axes_are_told_apart():
    assert len({*SIZES.values(), *OTHER_SIZES.values()}) == 2 * len(SIZES) == 2 * len(OTHER_SIZES)
    assert min(*SIZES.values(), *OTHER_SIZES.values()) > 1
