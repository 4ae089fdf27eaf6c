"""Whether a model looks into the future: frames after one are changed, and what was said up to it
must not change in a single bit, what was told ahead included."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipeline.datasets.manifest.targets import TOKENS
from pipeline.models.ahead import ReadAhead
from pipeline.models.tasks.contract import STREAMING, Query, TaskPlugin
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice

AHEAD_S = (0.25, 0.5)
"""How far ahead it is asked what is told."""


class Leak(NamedTuple):
    """What a model said of a frame before it can have known."""

    what: str
    """The outputs of the temporal module, the streaming answers, or those that are told ahead."""
    frame: int
    """The frame of a window of which it was said, from 0 on."""
    known: int
    """Frames up to this one were left as they are."""


def first_leak(
    model: VideoModel, task: TaskPlugin, device_batch: OnDevice, both: ReadAhead | None = None
) -> Leak | None:
    """The first thing that changes although no frame up to it has, where all frames after one are
    replaced by others, for every frame of the windows but the last; None where nothing does.

    The window form sees a window as a whole, and is left out. `both`: the model as a reader of what
    another one forecasts.
    """
    said = _said(model, task, device_batch, both)
    frames = device_batch.special_BTSD.shape[1]
    for known in range(frames - 1):
        other = _said(model, task, _with_other_future(device_batch, known), both)
        for what, before in said.items():
            for frame in range(known + 1):
                if not torch.equal(before[:, frame], other[what][:, frame]):
                    return Leak(what, frame, known)
    return None


def _said(
    model: VideoModel, task: TaskPlugin, device_batch: OnDevice, both: ReadAhead | None
) -> dict[str, torch.Tensor]:
    """What the temporal module and the streaming readout say of every frame, and after it of later
    ones, (B, T, ...) each."""
    patches = [device_batch.patches[layer] for layer in model.layers]
    # A task that is asked for pairs of frames says of every frame what it would in a stream.
    query = {} if TOKENS in task.needs else task.query(device_batch.targets)
    with torch.inference_mode():
        said = {"temporal outputs": model.features(device_batch.special_BTSD, patches)}
        if STREAMING in model.readouts:
            answers = model(device_batch.special_BTSD, patches, query)[STREAMING]
            said["streaming answers"] = answers
        if both is not None:
            said["answers told ahead"] = _told_ahead(both, device_batch, query)
    return said


def _told_ahead(both: ReadAhead, device_batch: OnDevice, query: Query) -> torch.Tensor:
    """(B, T, AHEAD_S, ...): what is said after every frame of later ones."""
    batch, frames = device_batch.special_BTSD.shape[:2]
    ahead_s_BJ = torch.tensor(AHEAD_S, device=device_batch.special_BTSD.device).expand(batch, -1)
    told, states = [], both.start(batch, query)
    for time in range(frames):
        patches = {layer: of[:, time] for layer, of in device_batch.patches.items()}
        _, present = both.step(device_batch.special_BTSD[:, time], patches, states)
        told.append(torch.stack(list(both.told(present, ahead_s_BJ)), dim=1))
        states = present.states
    return torch.stack(told, dim=1)


def _with_other_future(device_batch: OnDevice, known: int) -> OnDevice:
    """The windows with frames after `known` that are those of the same window, backwards, scaled
    and turned around: tokens as large as any, and none where it was."""

    def changed(tokens_BTND: torch.Tensor) -> torch.Tensor:
        future = tokens_BTND[:, known + 1 :].flip(1, 2)
        return torch.cat([tokens_BTND[:, : known + 1], 1 - 2 * future], dim=1)

    return OnDevice(
        changed(device_batch.special_BTSD),
        {layer: changed(patches) for layer, patches in device_batch.patches.items()},
        device_batch.targets,
    )
