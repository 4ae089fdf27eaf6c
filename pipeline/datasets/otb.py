"""OTB, the object tracking benchmark: 100 sequences of images with one box per frame.

Written against OTB-2015, which holds OTB-2013 (cvlab.hanyang.ac.kr/tracker_benchmark), as its
archives unpack:

    root/<sequence>/img/0001.jpg                numbered from 1, sometimes from elsewhere
    root/<sequence>/groundtruth_rect.txt        x,y,w,h of one image per line, split by commas, tabs
                                                or blanks
    root/<sequence>/groundtruth_rect.{1,2}.txt  two objects (Jogging, Skating2)

x and y are pixels counted from 1, so that a box begins at the pixel edge x - 1. A box without area
marks an absent object. Line k belongs to the k-th image, except in five sequences of which only a
part is annotated. A clip covers the images that have a line and no others. There are no splits and
no frame rates in OTB: both are settings. It is `boxes_text` with the preset `otb`, under the name
and with the split that it always had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from pipeline.datasets.formats.splits import SplitSettings
from pipeline.datasets.shapes.box_lists import SPANS, Span
from pipeline.datasets.shapes.box_presets import PRESETS
from pipeline.datasets.shapes.box_sequences import BoxDataset
from pipeline.datasets.shapes.box_settings import BoxSettings
from pipeline.errors import BadInput


class Settings(SplitSettings):
    """These settings fix what OTB leaves open: frame rate and split."""

    image_fps: float = Field(default=30.0, gt=0, le=1000)
    """Frame rate of the image folders."""
    split: Literal["train", "val", "test"] = "val"
    """Split of all sequences, where no other setting names it."""


class Dataset(BoxDataset):
    """One clip per sequence, with the boxes of its one or two objects."""

    Settings = Settings

    @property
    def layout(self) -> BoxSettings:
        """Where OTB's files are, and what stands in them."""
        return BoxSettings(**PRESETS["otb"], image_fps=self.settings.image_fps)

    @property
    def known_spans(self) -> Mapping[str, Span]:
        """The sequences of which a part is annotated."""
        return SPANS["otb"]

    def nothing_found(self) -> BadInput:
        """As it always was."""
        return BadInput(
            f"{self.root} holds no OTB sequences", "wanted folders <sequence>/img of images"
        )

    def own_split(self, sequence: str, fields: Mapping[str, str]) -> str | None:
        """The same for all."""
        split: str = self.settings.split
        return split
