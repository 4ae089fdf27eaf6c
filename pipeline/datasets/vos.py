"""Video object segmentation: folders of images with masks of some or all frames, several objects,
some of which appear later. Boxes and, if asked for, points are taken from the masks.

    root/{train,valid,test}/JPEGImages/<video>/00000.jpg    YouTube-VOS, MOSE, LVOS
    root/{train,valid,test}/Annotations/<video>/00000.png   palette or grey; a value is an object
    root/<split>_all_frames/JPEGImages/<video>/             YouTube-VOS: the frames between
    root/JPEGImages/<video>/, root/Annotations/<video>/     VOST, or your own, without splits
    root/ImageSets/{train,val,test}.txt                     names of videos, where they are there

Any pair of such folders below the root is read. Images and masks belong together by name, so masks
of every fifth frame, or of the first alone, are no fault: truth has the times of the frames with
masks. Images are called by the number of their frame: 00000, 00005, 00010 of a video of 30 frames
per second are 6 images a second.

The official `valid` sets of YouTube-VOS and MOSE show each object once, to say what to follow; such
a folder becomes the split `test`, as its truth is held back.

Images and masks are paired as dataset/vos_dataset.py of github.com/hkchengrex/XMem does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, probe_all
from pipeline.datasets.formats.folders import walk
from pipeline.datasets.formats.splits import (
    SPLITS_NOTE,
    SplitSettings,
    add_note,
    read_lines,
    split_dataset,
)
from pipeline.datasets.masks.mask_points import PointKinds
from pipeline.datasets.masks.mask_truth import MaskTruth, read_truth
from pipeline.errors import BadInput, BadVideo, count_text
from pipeline.records import Clip
from pipeline.video.probe import IMAGE_SUFFIXES

SPLITS = {"train": "train", "valid": "val", "val": "val", "test": "test"}
"""Name of a folder or list -> split."""
DRAWN = 0.2
"""Share of `train` that goes to `val`, where there is no other `val` and settings name none."""
ALL_FRAMES = "_all_frames"


class Settings(SplitSettings):
    """These settings say which folders are read, and what is taken from the masks."""

    images: str = "JPEGImages"
    """Name of the folders of images."""
    annotations: str = "Annotations"
    """Name of the folders of masks, which lie beside them."""
    all_frames: bool = False
    """Whether images are those of the folders that end in `_all_frames`, where there are such."""
    video_fps: float = Field(default=30.0, gt=0, le=1000)
    """Frame rate of the videos, by whose frames the images are numbered."""
    points: PointKinds = ()
    """Points of each mask that become tracks: `centroid`, `inside` (the same, kept inside of the
    object) or `extremes` (its topmost, rightmost, lowest and leftmost pixels). They follow the
    outline and are no points of the surface."""


class _Sequence(NamedTuple):
    images: Path
    masks: Path
    split: str | None


class Dataset(DatasetPlugin):
    """One clip per video that has masks."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Clips in the order of their paths. Raises BadInput where no folder of images has one of
        masks beside it."""
        found = {sequence.images: sequence for sequence in self._sequences()}
        sources = {path.relative_to(self.root).as_posix(): path for path in found}
        fps = {source: self._image_fps(source, path) for source, path in sources.items()}
        self._truth: dict[str, MaskTruth] = {}
        clips = []
        for done, source in enumerate(sources, start=1):
            self.on_progress(done, len(sources))
            sequence = found[sources[source]]
            facts = probe_all(self, [source], fps[source])
            if not facts:
                continue
            masks = sequence.masks.relative_to(self.root).as_posix()
            try:
                truth = read_truth(
                    sequence.images,
                    sequence.masks,
                    fps[source],
                    facts[source],
                    self.settings.points,
                )
            except BadVideo as error:
                self.reject(masks, error.message)
                continue
            self._truth[self._name(sequence)] = truth
            split = sequence.split or "train"
            name = self._name(sequence)
            clips.append(Clip(name, name, source, split, image_fps=fps[source]))
        has_splits = any(sequence.split for sequence in found.values())
        yield from self._split(self._held_back(clips), has_splits)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Boxes, and points where they are asked for, of every frame that has a mask."""
        return self._truth[clip.clip_id].targets

    def _name(self, sequence: _Sequence) -> str:
        """`train/<video>`: the path of its images without the folder that all have."""
        parts = sequence.images.relative_to(self.root).parts
        return "/".join([*parts[:-2], parts[-1]])

    def _split(self, clips: list[Clip], has_splits: bool) -> list[Clip]:
        splits = {clip.split for clip in clips}
        if not has_splits:
            return split_dataset(self, clips, DRAWN)
        if "val" in splits | self.settings.asked.keys() or "train" not in splits:
            return split_dataset(self, clips)
        add_note(
            self.notes,
            SPLITS_NOTE,
            f"there is no val: it is {DRAWN:g} of train (--set val_fraction=0 leaves them)",
        )
        self.settings = self.settings.model_copy(update={"val_fraction": DRAWN})
        return split_dataset(self, clips)

    def _held_back(self, clips: list[Clip]) -> list[Clip]:
        """The clips with `test` in place of `val` where no object of `val` is seen again."""
        val = [clip for clip in clips if clip.split == "val"]
        if not val or any(self._truth[clip.clip_id].seen_again for clip in val):
            return clips
        text = f"{count_text(len(val), 'video')} of valid show each object once: they are test"
        add_note(self.notes, SPLITS_NOTE, text)
        return [clip if clip.split != "val" else replace(clip, split="test") for clip in clips]

    def _sequences(self) -> list[_Sequence]:
        """All videos that have a folder of images and one of masks. Those that lack one of them
        are noted."""
        sequences = []
        for folder in self._folders():
            images, masks = self._images(folder), folder / self.settings.annotations
            listed = self._listed(folder)
            names = sorted(path.name for path in masks.iterdir() if path.is_dir())
            if names and all(next((masks / name).iterdir(), masks).is_dir() for name in names):
                raise self._no_sequences(f"folders in {masks / names[0]} where masks should be")
            without = [name for name in names if not (images / name).is_dir()]
            if without:
                where = masks.relative_to(self.root).as_posix()
                text = f"{len(without)} of {len(names)} videos have no images: {few(without)}"
                add_note(self.notes, where, text)
            split = SPLITS.get(folder.name) if folder != self.root else None
            sequences += [
                _Sequence(images / name, masks / name, listed.get(name, split))
                for name in names
                if name not in without
            ]
        if not sequences:
            raise self._no_sequences(
                f"no folder {self.settings.images} with a folder "
                f"{self.settings.annotations} beside it"
            )
        return sequences

    def _no_sequences(self, found: str) -> BadInput:
        images, masks = self.settings.images, self.settings.annotations
        return BadInput(
            f"{self.root} holds {found}",
            f"wanted {images}/<video>/*.jpg and {masks}/<video>/*.png; DAVIS is read by: "
            "stillframe manifest davis",
        )

    def _folders(self) -> Iterator[Path]:
        """Folders that hold masks of videos, in order."""
        for folder, folders, _ in walk(self.root, self.leave_out):
            if self.settings.annotations in folders and self._images(folder).is_dir():
                yield folder
            # The videos themselves hold nothing but images, of which there may be millions.
            own = {self.settings.images, self.settings.annotations}
            folders[:] = [name for name in folders if name not in own]

    def _images(self, folder: Path) -> Path:
        all_frames = folder.with_name(f"{folder.name}{ALL_FRAMES}") / self.settings.images
        if self.settings.all_frames and all_frames.is_dir():
            return all_frames
        return folder / self.settings.images

    def _listed(self, folder: Path) -> Mapping[str, str]:
        """Video -> split, of the lists in `ImageSets`. Raises BadInput where one is in two."""
        split_of: dict[str, str] = {}
        for name, split in SPLITS.items():
            path = folder / "ImageSets" / f"{name}.txt"
            for video in read_lines(path) if path.is_file() else []:
                if split_of.setdefault(video, split) != split:
                    raise BadInput(f"{path}: video '{video}' is in split '{split_of[video]}' too")
        return split_of

    def _image_fps(self, source: str, folder: Path) -> float:
        """Images a second, by the numbers that they are called; where these do not go in even
        steps, by the most frequent one, which is noted."""
        stems = sorted(
            int(path.stem)
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.isdecimal()
        )
        steps, counts = np.unique(np.diff(stems), return_counts=True)
        step = max(1, int(steps[counts.argmax()])) if len(steps) else 1
        if len(steps) > 1:
            text = f"its images are numbered in steps of {few(steps.tolist())}; read as even"
            add_note(self.notes, source, text)
        return self.settings.video_fps / step
