"""Classes that are known by their names: a class is what the text half of an image-text model makes
of its name, so that videos are compared with it before anything is trained.

Shape letters: K classes, P prompts, E the width of the space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn

from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, WINDOW, Query, WantedTexts
from pipeline.models.tasks.matching.losses import GREATEST_SCALE
from pipeline.models.tasks.matching.readouts import FrameVectors, WindowVector, begin_at_zero
from pipeline.models.tasks.parts.attention_readout import AttentionSettings
from pipeline.models.text.contract import PLACE, TextChoice

BY_NAME = ("prompts", "text", "model", "width")
"""Settings that what is said of classes depends on."""


class PromptSettings(AttentionSettings):
    """Settings of a task whose classes may be known by their names."""

    prompts: tuple[str, ...] = ()
    """What classes are called in words, each with {} in the place of the name, as "a video of a
    person {}."; underscores of a name are read as blanks. Then a class is the mean embedding of all
    of them by the text half of the cache's own image-text model, and a video begins as the mean of
    its frames' embeddings: a run of zero steps is zero-shot classification. Empty: classes are
    learnt, and have no names."""
    width: int = Field(default=512, ge=1)
    """With prompts: width of the space in which videos and classes are compared, that of the
    tower's embeddings, 512 for CLIP ViT-B, 768 for SigLIP 2 base."""
    text: TextChoice | None = None
    """With prompts: the text tower, which must be the other half of the cache's own image-text
    model; None: it is looked for where the cache names it."""
    model: str | None = None
    """With prompts: where the cache's own image-text model is now, if it was moved."""
    temperature: float = Field(default=0.01, ge=0.01)
    """With prompts: what cosines are divided by at the first step; it is learned. CLIP's is 0.01
    and those of SigLIP 2 are near it."""

    @field_validator("prompts")
    @classmethod
    def _have_one_place(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            if prompt.count(PLACE) != 1:
                raise ValueError(f"wanted {{}} once, where the class's name goes, found '{prompt}'")
        return prompts


class NamedClasses(nn.Module):
    """Vectors of classes, kept with the weights, and how a video's is compared with them."""

    class_KE: torch.Tensor

    def __init__(self, settings: PromptSettings, labels: Sequence[str]) -> None:
        super().__init__()
        self._settings, self._labels = settings, labels
        self.register_buffer("class_KE", torch.zeros(len(labels), settings.width))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.temperature)))

    @property
    def wanted_texts(self) -> WantedTexts:
        """All prompts of the first class, then those of the next."""
        settings = self._settings
        names = [label.replace("_", " ") for label in self._labels]
        own = tuple(prompt.replace(PLACE, name) for name in names for prompt in settings.prompts)
        return WantedTexts(
            settings.text,
            settings.model,
            manifest=False,
            own=own,
            frames=True,
            width=settings.width,
        )

    def take(self, own_ND: np.ndarray) -> None:
        """Takes in the embeddings of `wanted_texts`."""
        said_KPE = torch.from_numpy(own_ND).unflatten(0, (len(self._labels), -1))
        self.class_KE.copy_(F.normalize(said_KPE.mean(1), dim=-1))

    def readout(self, form: str, width: int, frames: int) -> nn.Module:
        """What makes the vector of a video, and adds nothing to that of its frames at first."""
        settings = self._settings
        size = {"readout_width": settings.readout_width, "heads": settings.heads}
        made = (
            WindowVector(width, settings.width, frames=frames, **size)
            if form == WINDOW
            else FrameVectors(width, settings.width, **size)
        )
        begin_at_zero(made)
        return made

    def logits(self, video: torch.Tensor) -> torch.Tensor:
        """Vectors of videos (..., E) -> logits (..., K): scaled cosines."""
        scale = self.log_scale.exp().clamp(max=GREATEST_SCALE)
        return scale * F.normalize(video.float(), dim=-1) @ self.class_KE.T

    def mean_of_frames(self, query: Query) -> torch.Tensor:
        """(B, K): logits of a video that is the mean of its frames, and of no more."""
        return self.logits(query[FRAME_EMBEDDINGS].mean(1))
