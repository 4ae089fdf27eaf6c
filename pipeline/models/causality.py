"""Whether a model looks into the future: frames after one are changed, and what was said up to it
must not change in a single bit."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipeline.datasets.manifest.targets import TOKENS
from pipeline.models.tasks.contract import STREAMING, TaskPlugin
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice


class Leak(NamedTuple):
    """What a model said of a frame before it can have known."""

    what: str
    """The outputs of the temporal module, or the streaming answers."""
    frame: int
    """The frame of a window of which it was said, from 0 on."""
    known: int
    """Frames up to this one were left as they are."""


def first_leak(model: VideoModel, task: TaskPlugin, device_batch: OnDevice) -> Leak | None:
    """The first thing that changes although no frame up to it has, where all frames after one are
    replaced by others, for every frame of the windows but the last; None where nothing does.

    The window form sees a window as a whole, and is left out.
    """
    said = _said(model, task, device_batch)
    frames = device_batch.special_BTSD.shape[1]
    for known in range(frames - 1):
        other = _said(model, task, _with_other_future(device_batch, known))
        for what, before in said.items():
            for frame in range(known + 1):
                if not torch.equal(before[:, frame], other[what][:, frame]):
                    return Leak(what, frame, known)
    return None


def _said(model: VideoModel, task: TaskPlugin, device_batch: OnDevice) -> dict[str, torch.Tensor]:
    """What the temporal module and the streaming readout say of every frame, (B, T, ...) each."""
    patches = [device_batch.patches[layer] for layer in model.layers]
    # A task that is asked for pairs of frames says of every frame what it would in a stream.
    query = {} if TOKENS in task.needs else task.query(device_batch.targets)
    with torch.inference_mode():
        said = {"temporal outputs": model.features(device_batch.special_BTSD, patches)}
        if STREAMING in model.readouts:
            answers = model(device_batch.special_BTSD, patches, query)[STREAMING]
            said["streaming answers"] = answers
    return said


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
