"""Every temporal module and every readout leaves as an ONNX file that says what the model says: a hundred frames, in a process
without PyTorch, in another batch, begun anew on the way."""

from __future__ import annotations

import pytest
from support.steps import READOUTS, SHAPE, made

from pipeline.config import plugins
from pipeline.exchange import parity
from pipeline.exchange.export import Stage, few_frames, opened, written
from pipeline.exchange.step import ModelStep

LIGHT = ("pose", "classify", "depth", "retrieve", "forecast", "contrast", "question", "segment")
"""Tasks whose readouts are small beside a temporal module: writing a file takes time by its operators."""


def pairs() -> list[tuple[str, str, dict[str, object]]]:
    """Every temporal module beside a small readout, every other readout beside the GRU."""
    small = [each for each in READOUTS if each[0] in LIGHT]
    modules = plugins.names("temporal")
    found = [(module, *small[place % len(small)]) for place, module in enumerate(modules)]
    done = [each[1:] for each in found]
    return found + [("gru", *each) for each in READOUTS if each not in done]


def test_the_pairs_leave_nothing_out():
    assert {module for module, _, _ in pairs()} == {*plugins.names("temporal")}
    assert all(readout in [each[1:] for each in pairs()] for readout in READOUTS)


@pytest.mark.slow
@pytest.mark.parametrize(("temporal", "task", "settings"), pairs())
def test_it_leaves_and_says_the_same(temporal, task, settings, tmp_path):
    model, plugin = made(temporal, task, **settings)
    step = ModelStep(model, plugin, SHAPE)
    states = [each.model_dump() for each in step.ports.states]
    stage = Stage("step", step, step.example(), {"stillframe": "0", "states": states})
    file = written(stage, tmp_path, "onnx")
    with opened(file, stage) as loaded:
        found = parity.compared_steps(
            step, parity.CheckFrames(step, few_frames(step, None)), loaded
        )
    found.require("the step")
    named = {port.name for port in step.outputs}
    assert {name.removesuffix(parity.AFTER) for name in found.worst} == named
    asks_by_place = task == "boxes" or settings.get("reads") == "both"
    assert asks_by_place or not found.notes()
    assert all(worst.is_within for worst in found.worst.values())
    strict = [worst for name, worst in found.worst.items() if not name.endswith(parity.AFTER)]
    assert max(worst.difference / worst.allowed for worst in strict) < (1 if found.notes() else 0.2)
