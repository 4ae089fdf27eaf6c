"""All that a task asks for in words: embeddings of its texts, and of the frames that they are
compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import WantedTexts
from pipeline.models.text.contract import TextPlugin, make_text
from pipeline.timing import spoken_progress
from pipeline.train.language.frame_embeddings import require_same_model
from pipeline.train.language.frame_index import FrameIndex, open_index
from pipeline.train.language.kept_texts import FOLDER, KeptTexts, TextPlaces
from pipeline.train.language.places import folder_of, places
from pipeline.train.language.tower import text_tower_of

Say = Callable[[str], object]
PLAIN_NAME = "texts"
"""Of what is kept for a manifest in a folder without a name."""


@dataclass(frozen=True)
class Language:
    """What a task is told in words about the clips of a manifest."""

    texts: KeptTexts
    own_ND: np.ndarray
    """float32: embeddings of the task's own texts, in their order."""
    frames: FrameIndex | None
    """Embeddings of all frames of the cache, where the task compares with them."""


def open_language(
    wanted: WantedTexts,
    cache: Cache,
    manifest: Manifest,
    device: torch.device,
    say: Say,
    known: dict[str, Any] | None = None,
) -> Language:
    """Opens what a task asks for, and makes what is not there yet; `say` is told where it lies.
    `known`: identity of the tower that a run was trained with, which is not needed where texts by
    it are kept.

    Raises BadInput where the tower is none that the task can read, or another than that of the
    cache where the two are compared as they are.
    """
    _require_said(wanted, manifest)
    if cache.is_its_own(manifest):
        beside, name = folder_of(cache), cache.name
    else:
        beside, name = manifest.folder, manifest.folder.name
    questions = list(dict.fromkeys(_questions_of(manifest))) if wanted.tokens else []
    where = TextPlaces(
        texts=tuple(dict.fromkeys([*questions, *wanted.own, *_texts_of(manifest, wanted)])),
        folders=places(beside, FOLDER),
        name=name.strip(".") or PLAIN_NAME,
        with_tokens=len(questions),
    )
    kept = None if known is None else where.find(known)
    if kept is None:
        tower = _tower(wanted, cache, device)
        _require_width(wanted, tower)
        kept = where.find(tower.identity) or where.make(tower, say)
    on_frames = spoken_progress(say, "frames embedded")
    frames = open_index(cache, wanted.model, device, on_frames, say) if wanted.frames else None
    return Language(kept, kept.pooled(wanted.own), frames)


def _require_said(wanted: WantedTexts, manifest: Manifest) -> None:
    """Refuses a manifest whose clips say nothing, or whose questions lack choices that are read.
    Raises BadInput."""
    if wanted.manifest and not manifest.texts:
        raise BadInput(
            f"the task reads texts, and manifest {manifest.folder} has neither captions nor "
            "questions",
            "build the manifest from a data set that knows some (see: stillframe list dataset)",
        )
    if wanted.choices and not any(texts.choices for texts in manifest.texts.values()):
        raise BadInput(
            f"no question of manifest {manifest.folder} has choices, and task.answers is 'choices'",
            'task.answers = "open"',
        )


def _require_width(wanted: WantedTexts, tower: TextPlugin) -> None:
    """Refuses a tower whose embeddings are not as wide as the task says. Raises BadInput."""
    widths = (
        ("width", "texts", wanted.width, tower.width),
        ("text_width", "their tokens", wanted.text_width, tower.token_width),
    )
    for key, what, asked, found in widths:
        if asked is not None and asked != found:
            raise BadInput(
                f"task.{key} is {asked}, and embeddings of {what} are {found} wide",
                f"task.{key} = {found}",
            )


def _tower(wanted: WantedTexts, cache: Cache, device: torch.device) -> TextPlugin:
    """The text tower of a task."""
    if wanted.tower is None:
        return text_tower_of(cache, wanted.model, device)
    tower = make_text(wanted.tower, device)
    if wanted.frames:
        model = getattr(wanted.tower.settings, "model", wanted.tower.name)
        require_same_model(cache, tower.identity["weights"], model)
    return tower


def _texts_of(manifest: Manifest, wanted: WantedTexts) -> list[str]:
    """Captions and choices of a manifest, in the order of its clips; none for a task that reads
    none."""
    texts = _said(manifest) if wanted.manifest else []
    return [text for said in texts for text in (*said.captions, *said.choices)]


def _questions_of(manifest: Manifest) -> list[str]:
    """Its questions, in the order of its clips."""
    return [said.question for said in _said(manifest) if said.question is not None]


def _said(manifest: Manifest) -> list[ClipTexts]:
    texts = (manifest.texts.get(clip.clip_id) for clip in manifest.clips)
    return [said for said in texts if said]
