"""OTB, the object tracking benchmark: 100 sequences of images with one box per frame.

Written against OTB-2015, which holds OTB-2013 (cvlab.hanyang.ac.kr/tracker_benchmark), as its
archives unpack:

    root/<sequence>/img/0001.jpg                numbered from 1, sometimes from elsewhere
    root/<sequence>/groundtruth_rect.txt        x,y,w,h of one image per line, split by commas, tabs
                                                or blanks
    root/<sequence>/groundtruth_rect.{1,2}.txt  two objects (Jogging, Skating2)

x and y are pixels counted from 1, so that a box begins at the pixel edge x - 1. A box without area
marks an absent object. Line k belongs to the k-th image, except in five sequences of which only a
part is annotated (`PARTS`). A clip covers the images that have a line and no others. There are no
splits and no frame rates in OTB: both are settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, normalised_boxes, note, present, probe_all
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.errors import BadInput
from pipeline.records import Clip
from pipeline.video.probe import Probe

PARTS = {
    "david": (300, 770),
    "diving": (1, 215),
    "football1": (1, 74),
    "freeman3": (1, 460),
    "freeman4": (1, 283),
}
"""Sequence -> first and last annotated image, counted from 1; got10k/datasets/otb.py has the
same."""


class Settings(SplitSettings):
    """These settings fix what OTB leaves open: frame rate and split."""

    image_fps: float = Field(default=30.0, gt=0, le=1000)
    """Frame rate of the image folders."""
    split: Literal["train", "val", "test"] = "val"
    """Split of all sequences, where no other setting names it."""


class Dataset(DatasetPlugin):
    """One clip per sequence, with the boxes of its one or two objects."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Sorted by sequence. Raises BadInput if there are no sequences."""
        yield from split_dataset(self, self._sequences())

    def _sequences(self) -> Iterator[Clip]:
        names = sorted(path.parent.name for path in self.root.glob("*/img") if path.is_dir())
        if not names:
            raise BadInput(
                f"{self.root} holds no OTB sequences", "wanted folders <sequence>/img of images"
            )
        facts = probe_all(self, [f"{name}/img" for name in names], self.settings.image_fps)
        self._boxes: dict[str, np.ndarray] = {}
        for source, probed in facts.items():
            name = source.removesuffix("/img")
            tables = self._tables(name)
            if not tables:
                note(self, source, "has no groundtruth_rect*.txt with boxes")
                continue
            images = probed.frames_from_header or 0
            first, last = PARTS.get(name.lower(), (1, images))
            if last > images:  # a copy that holds the annotated part alone
                first, last = 1, images
            boxes = self._cut(tables, probed, last - first + 1)
            if not present(boxes).any():
                note(self, source, "shows no object")
                continue
            self._boxes[name] = boxes
            fps = self.settings.image_fps
            start_s, stop_s = (first - 1) / fps, (first - 1 + boxes.shape[1]) / fps
            yield Clip(name, name, source, self.settings.split, start_s, stop_s, image_fps=fps)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Boxes of every annotated image."""
        boxes = self._boxes[clip.clip_id]
        before = round(clip.start_s * self.settings.image_fps)
        return {
            "boxes": boxes,
            "boxes_time_s": (before + np.arange(boxes.shape[1])) / self.settings.image_fps,
        }

    def _tables(self, name: str) -> dict[str, np.ndarray]:
        """Source -> xywh (F, 4) of each object's file; files without boxes are noted, damaged ones
        are an error."""
        tables = {}
        for path in sorted((self.root / name).glob("groundtruth_rect*.txt")):
            boxes = _read_boxes(path)
            if len(boxes):
                tables[f"{name}/{path.name}"] = boxes
            else:
                note(self, f"{name}/{path.name}", "is empty")
        return tables

    def _cut(self, tables: dict[str, np.ndarray], probed: Probe, images: int) -> np.ndarray:
        """Boxes (O, F, 4) of those of the `images` annotated images that have a line in some
        table."""
        frames = min(max(map(len, tables.values())), images)
        boxes = np.full((len(tables), frames, 4), np.nan, np.float32)
        for row, (source, xywh) in enumerate(tables.items()):
            corner = xywh[:, :2] - 1
            xyxy = np.concatenate([corner, corner + xywh[:, 2:]], axis=1)
            own = normalised_boxes(xyxy, probed.width, probed.height)[:frames]
            boxes[row, : len(own)] = own
            if len(xywh) != images:
                note(
                    self,
                    source,
                    f"{len(xywh)} boxes for {images} images: only what has both is used",
                )
            absent = np.flatnonzero(~present(own)) + 1
            if len(absent):
                count = f"{len(absent)} of {len(own)}"
                lost = f"{count} boxes have no area inside the frame and count as absent"
                note(self, source, f"{lost}: lines {few(absent.tolist())}")
        return boxes


def _read_boxes(path: Path) -> np.ndarray:
    """xywh (F, 4), in pixels as written. Raises BadInput with the line's number."""
    rows = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig", errors="replace").strip().splitlines(), start=1
    ):
        try:
            row = [float(word) for word in re.split(r"[,\s]+", line.strip())]
        except ValueError:
            row = []
        if len(row) != 4:
            raise BadInput(
                f"{path} line {number}: wanted x, y, width and height, found '{line.strip()[:40]}'"
            )
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 4)
