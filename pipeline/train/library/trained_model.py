"""A run as a module of PyTorch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.cache.cache import Cache
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import token_shape, without_network
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, TokenShape
from pipeline.train.library.window_dataset import WindowBatch
from pipeline.train.run import Run, load_model


class TrainedModel(nn.Module):
    """A trained run, in evaluation mode: layer mixer, temporal module and readouts as `model`, what
    its task makes of their predictions as `task`."""

    def __init__(self, run: Run, model: VideoModel, task: TaskPlugin) -> None:
        super().__init__()
        self.run, self.model, self.task = run, model, task

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose patches it reads, ascending."""
        return self.model.layers

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes of a task that has some."""
        return self.run.header.labels

    def forward(self, batch: WindowBatch | OnDevice) -> dict[str, torch.Tensor]:
        """Form of the task -> its prediction: (B, T, ...) for streaming, (B, ...) for window. They
        carry gradients: the module can be trained further."""
        return self.model.predict(_on_device(batch), self.task)

    def answers(self, batch: WindowBatch | OnDevice) -> dict[str, np.ndarray]:
        """Form -> answers as the task scores them, on the CPU: scores of classes before softmax,
        boxes, metres. Raises NotFinite where one holds NaN."""
        return self.model.answers(_on_device(batch), self.task)

    def features(self, batch: WindowBatch | OnDevice) -> torch.Tensor:
        """Outputs of the temporal module, (B, T, N, width), for a head of one's own."""
        patches = [batch.patches[layer] for layer in self.layers]
        return self.model.features(batch.special_BTSD, patches)

    def extra_repr(self) -> str:
        """The first line of its repr."""
        return f"{self.run!r}, layers {', '.join(map(str, self.layers))}"


def load_trained(
    path: Path | str, checkpoint: str = "last", device: torch.device | str = "cpu"
) -> TrainedModel:
    """The run in a folder, with the weights of its "last" or "best" checkpoint.

    Raises BadInput: no run, no such checkpoint, files that are damaged, and where neither the cache
    nor the encoder of the run is there to tell the shape of its tokens.
    """
    if checkpoint not in ("last", "best"):
        raise BadInput(f"a run has the checkpoints last and best, found '{checkpoint}'")
    run = Run(path)
    model, task = load_model(run, shape_of_tokens(run), checkpoint, torch.device(device))
    return TrainedModel(run, model, task).eval()


def shape_of_tokens(run: Run) -> TokenShape:
    """The shape of the tokens that a run was trained on: as it says itself, or else its cache, or
    the configuration of its encoder. Nothing is asked over a network. Raises BadInput where none of
    them tells."""
    if (tokens := run.header.tokens) is not None:
        return TokenShape(tokens.width, tokens.grid_hw, tokens.special_tokens, tokens.layers)
    with suppress(BadInput, OSError):
        if run.cache_path is not None:
            cache = Cache(run.cache_path)
            if cache.fingerprint == run.header.cache.fingerprint:
                return cache.shape
    with without_network():
        return token_shape(run.spec)


def _on_device(batch: WindowBatch | OnDevice) -> OnDevice:
    return OnDevice(batch.special_BTSD, batch.patches, batch.targets)
