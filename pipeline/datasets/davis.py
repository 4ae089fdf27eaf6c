"""DAVIS: videos at 24 frames per second with a mask of every object in every frame, from which
boxes and, if asked for, points are taken.

Written against the archives of DAVIS 2016 (one object) and DAVIS 2017 (several; trainval and
test-dev), as they unpack:

    root/JPEGImages/480p/<sequence>/00000.jpg     or Full-Resolution (2017), 1080p (2016)
    root/Annotations/480p/<sequence>/00000.png    2016: grey, 0 and 255; 2017: a palette, whose
                                                  index is the object
    root/ImageSets/2017/{train,val,test-dev}.txt  names of sequences; 2016: ImageSets/480p/*.txt,
                                                  paths of frames

The masks are read as davis2017-evaluation reads them: 255 is void, unless it is the only value
beside 0. An object's box is the smallest one around its pixels; where it has none it is absent. The
truth has the times of the frames with masks: all of them, but in the test sets, which have a mask
of the first frame alone. YouTube-VOS and data sets like it are read by `vos`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, probe_all
from pipeline.datasets.formats.splits import SplitSettings, add_note, split_dataset
from pipeline.datasets.masks.mask_points import PointKinds
from pipeline.datasets.masks.mask_truth import MaskTruth, read_truth
from pipeline.errors import BadInput, BadVideo
from pipeline.records import Clip

SPLITS = {"train": "train", "val": "val", "test-dev": "test", "test-challenge": "test"}
"""Name of the list -> split."""
SETS = ("2017", "2016", "480p")
"""Folders of lists, the first that is there counts."""


class Settings(SplitSettings):
    """These settings say which of the folders are read."""

    resolution: str = "480p"
    """Folder of the images and masks."""
    annotations: str = "Annotations"
    """Folder of the masks: `Annotations_unsupervised` for those of the 2019 challenge."""
    sets: str | None = None
    """Folder in `ImageSets`; None: 2017, 2016 or 480p, the first that is there. Without any, every
    sequence is `val`."""
    image_fps: float = Field(default=24.0, gt=0, le=1000)
    """Frame rate of the image folders."""
    points: PointKinds = ()
    """Points of each mask that become tracks: `centroid`, `inside` (the same, kept inside of the
    object) or `extremes` (its topmost, rightmost, lowest and leftmost pixels). They follow the
    outline and are no points of the surface."""


class Dataset(DatasetPlugin):
    """One clip per sequence."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Clips in the order of the lists, or by name. Raises BadInput where the layout or a list
        is not that of DAVIS."""
        images = PurePosixPath("JPEGImages") / self.settings.resolution
        masks = PurePosixPath(self.settings.annotations) / self.settings.resolution
        for folder in (images, masks):
            if not (self.root / folder).is_dir():
                raise BadInput(
                    f"{self.root / folder} does not exist",
                    "the layout is that of the DAVIS archives",
                )
        on_disk = sorted(path.name for path in (self.root / images).iterdir() if path.is_dir())
        split_of = self._splits(on_disk)
        facts = probe_all(
            self,
            [f"{images}/{name}" for name in split_of if name in on_disk],
            self.settings.image_fps,
        )
        self._truth: dict[str, MaskTruth] = {}
        names = {PurePosixPath(source).name: source for source in facts}
        sequences = [
            Clip(name, name, source, split_of[name], image_fps=self.settings.image_fps)
            for name, source in names.items()
        ]
        for done, clip in enumerate(split_dataset(self, sequences), start=1):
            name, source = clip.clip_id, clip.source
            self.on_progress(done, len(facts))
            try:
                truth = read_truth(
                    self.root / source,
                    self.root / masks / name,
                    self.settings.image_fps,
                    facts[source],
                    self.settings.points,
                )
            except BadVideo as error:
                self.reject(f"{masks}/{name}", error.message)
                continue
            if truth.masks < truth.frames and split_of[name] != "test":
                text = f"{truth.masks} of {truth.frames} frames have masks"
                add_note(self.notes, f"{masks}/{name}", text)
            self._truth[name] = truth
            yield clip

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Boxes, and points where they are asked for, of every frame that has a mask."""
        return self._truth[clip.clip_id].targets

    def _splits(self, on_disk: list[str]) -> dict[str, str]:
        """Sequence -> split. Sequences that are in no list, or in one and not there, are noted
        under it."""
        sets = self.root / "ImageSets"
        folder = self.settings.sets or next((name for name in SETS if (sets / name).is_dir()), None)
        if folder is None:
            return dict.fromkeys(on_disk, "val")
        split_of: dict[str, str] = {}
        for name, split in SPLITS.items():
            path = sets / folder / f"{name}.txt"
            listed = _read_list(path) if path.is_file() else []
            twice = [sequence for sequence in listed if split_of.get(sequence, split) != split]
            if twice:
                raise BadInput(
                    f"{path}: sequence '{twice[0]}' is in split '{split_of[twice[0]]}' too"
                )
            missing = [sequence for sequence in listed if sequence not in on_disk]
            # The test archives are downloads of their own: none of them there is no fault.
            if missing and not (split == "test" and len(missing) == len(listed)):
                self.note(
                    f"ImageSets/{folder}/{name}.txt",
                    f"{len(missing)} of {len(listed)} are not there: {few(missing)}",
                )
            split_of |= dict.fromkeys(listed, split)
        if not split_of:
            raise BadInput(
                f"{sets / folder} holds no {', '.join(f'{name}.txt' for name in SPLITS)} with "
                "sequences"
            )
        unlisted = [sequence for sequence in on_disk if sequence not in split_of]
        if unlisted:
            self.note(
                f"ImageSets/{folder}",
                f"{len(unlisted)} of {len(on_disk)} sequences are in no list: {few(unlisted)}",
            )
        return split_of


def _read_list(path: Path) -> list[str]:
    """Sequences of a list, each once. A line names a sequence (2017) or an image and its mask
    (2016)."""
    names: dict[str, None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if words := line.split():
            parts = PurePosixPath(words[0]).parts
            names[parts[0] if len(parts) == 1 else parts[-2]] = None
    if not names:
        raise BadInput(f"{path} is empty")
    return list(names)
