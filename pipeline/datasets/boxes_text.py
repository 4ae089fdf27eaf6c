"""Videos or image folders with boxes in text files: any tracking data set of that shape, the
published ones by preset.

    root/<sequence>/img/0001.jpg           image folders or videos, where the setting `frames` says
    root/<sequence>/groundtruth.txt        a line for each frame, or with the number of its frame,
                                           where `truth` says; what stands in it is `columns`

`--set preset=lasot` takes the settings of a published data set, each of which may be replaced by
another `--set`. A sequence is one clip, with the boxes of all of its objects. Its split is that of
the data set's official list or of the folder `{split}`; of data without either, a fifth is drawn
for `val`. The settings of splits count before these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from pipeline.datasets.shapes.box_lists import GROUPS, OFFICIAL_TEST, SPANS, Span
from pipeline.datasets.shapes.box_presets import PRESETS
from pipeline.datasets.shapes.box_sequences import BoxDataset
from pipeline.datasets.shapes.box_settings import BoxSettings
from pipeline.datasets.shapes.patterns import find
from pipeline.errors import BadInput, unknown_name
from pipeline.video.probe import IMAGE_SUFFIXES

LOOKED_AT = 3
"""Sequences that a guess at the preset looks at."""


class Settings(BoxSettings):
    """Which data set it is, or where its files are and what stands in them."""

    preset: str | None = None
    """Published data set whose settings are taken where nothing else is said: got10k, lasot, mot,
    mot15, nfs30, nfs240, otb, tlp, trackingnet, uav123 or vot."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, table: Any) -> Any:
        name = table.get("preset") if isinstance(table, Mapping) else None
        if not isinstance(name, str):
            return table
        if name not in PRESETS:
            raise unknown_name("preset", name, PRESETS, "")
        replaced = {"fps_file": None} if "image_fps" in table else {}
        return PRESETS[name] | replaced | table


class Dataset(BoxDataset):
    """One clip per sequence."""

    Settings = Settings

    def own_split(self, sequence: str, fields: Mapping[str, str]) -> str | None:
        """The official list counts where there is one."""
        official = OFFICIAL_TEST.get(self.settings.preset or "")
        if official is not None:
            return "test" if sequence in official else "train"
        return super().own_split(sequence, fields)

    def group_of(self, sequence: str, video: str) -> str | None:
        """What is known of the preset counts first."""
        pattern = GROUPS.get(self.settings.preset or "")
        match = pattern.fullmatch(sequence) if pattern else None
        return match[1] if match else super().group_of(sequence, video)

    def nothing_found(self) -> BadInput:
        """Names the presets whose files are there."""
        there = [
            name
            for name, preset in PRESETS.items()
            if name != self.settings.preset and self._has(preset["frames"], preset["truth"])
        ]
        error = super().nothing_found()
        if there:
            said = " or ".join(f"--set preset={name}" for name in there)
            return BadInput(error.message, f"its files lie as those of {said}")
        return error

    def _has(self, frames: str, truth: str) -> bool:
        """Whether one of the first folders holds images, and has a truth."""
        places = [place for place in find(self.root, frames) if place.path.is_dir()][:LOOKED_AT]
        return any(
            any(file.suffix.lower() in IMAGE_SUFFIXES for file in place.path.iterdir())
            and find(self.root, truth, place.fields)
            for place in places
        )

    @property
    def known_spans(self) -> Mapping[str, Span]:
        """Those of the preset."""
        return SPANS.get(self.settings.preset or "", {})
