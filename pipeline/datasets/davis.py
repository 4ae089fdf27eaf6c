"""DAVIS: videos at 24 frames per second with a mask of every object in every frame, from which the
boxes are taken.

Written against the archives of DAVIS 2016 (one object) and DAVIS 2017 (several; trainval and
test-dev), as they unpack:

    root/JPEGImages/480p/<sequence>/00000.jpg     or Full-Resolution (2017), 1080p (2016)
    root/Annotations/480p/<sequence>/00000.png    2016: grey, 0 and 255; 2017: a palette, whose
                                                  index is the object
    root/ImageSets/2017/{train,val,test-dev}.txt  names of sequences; 2016: ImageSets/480p/*.txt,
                                                  paths of frames

The masks are read as davis2017-evaluation reads them: 255 is void, unless it is the only value
beside 0. An object's box is the smallest one around its pixels; where it has none it is absent. The
test sets have a mask of the first frame alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import av
import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, normalised_boxes, note, probe_all
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.errors import BadInput, BadVideo
from pipeline.records import Clip
from pipeline.video.probe import Probe, list_images, open_image

SPLITS = {"train": "train", "val": "val", "test-dev": "test", "test-challenge": "test"}
"""Name of the list -> split."""
SETS = ("2017", "2016", "480p")
"""Folders of lists, the first that is there counts."""
VOID = 255


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
        self._boxes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        names = {PurePosixPath(source).name: source for source in facts}
        sequences = [
            Clip(name, name, source, split_of[name], image_fps=self.settings.image_fps)
            for name, source in names.items()
        ]
        for done, clip in enumerate(split_dataset(self, sequences), start=1):
            name, source = clip.clip_id, clip.source
            self.on_progress(done, len(facts))
            try:
                self._boxes[name] = self._read_boxes(
                    source, f"{masks}/{name}", facts[source], split_of[name] == "test"
                )
            except BadVideo as error:
                note(self, f"{masks}/{name}", error.message)
                continue
            yield clip

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Boxes of every frame that has a mask."""
        boxes, time_s = self._boxes[clip.clip_id]
        return {"boxes": boxes, "boxes_time_s": time_s}

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
                note(
                    self,
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
            note(
                self,
                f"ImageSets/{folder}",
                f"{len(unlisted)} of {len(on_disk)} sequences are in no list: {few(unlisted)}",
            )
        return split_of

    def _read_boxes(
        self, images: str, masks: str, probed: Probe, is_test: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (O, F, 4) and their times (F,). Raises BadVideo where the masks cannot be those of
        the images."""
        frames, time_s, _ = list_images(self.root / images, self.settings.image_fps)
        frame_number = {frame.stem: number for number, frame in enumerate(frames)}
        paths = sorted((self.root / masks).glob("*.png"))
        strange = [path.name for path in paths if path.stem not in frame_number]
        if strange:
            raise BadVideo(f"{len(strange)} of {len(paths)} masks have no image: {few(strange)}")
        if len(paths) != len(frames) and not (is_test and paths):
            raise BadVideo(f"{len(paths)} masks for {len(frames)} images")
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
            boxes_of_frame = list(
                pool.map(lambda path: _boxes_of(path, probed.width, probed.height), paths)
            )
        objects = sorted(set().union(*boxes_of_frame))
        if objects != [VOID]:
            objects = [number for number in objects if number != VOID]
        if not objects:
            raise BadVideo(f"no object in {len(paths)} masks")
        nowhere = np.full(4, np.nan)
        boxes_OF4 = np.array(
            [[boxes.get(number, nowhere) for boxes in boxes_of_frame] for number in objects]
        )
        masked = [frame_number[path.stem] for path in paths]
        boxes_OF4 = normalised_boxes(boxes_OF4, probed.width, probed.height)
        return boxes_OF4, time_s[masked] - time_s[0]


def _boxes_of(path: Path, width: int, height: int) -> dict[int, np.ndarray]:
    """Object -> xyxy in pixel edges. Raises BadVideo."""
    mask = _read_mask(path)
    if mask.shape != (height, width):
        raise BadVideo(
            f"{path.name} is {mask.shape[1]}x{mask.shape[0]}, the images are {width}x{height}"
        )
    boxes = {}
    for number in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:]) + 1:
        own = mask == number
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        boxes[int(number)] = np.array(
            [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64
        )
    return boxes


def _read_mask(path: Path) -> np.ndarray:
    """uint8 (H, W): palette indices or grey levels, as they are stored. Raises BadVideo."""
    container, stream = open_image(path)
    with container:
        try:
            frame = next(container.decode(stream), None)
        except av.FFmpegError as error:
            raise BadVideo(f"{path.name} cannot be decoded: {error.strerror}") from error
        if frame is None:
            raise BadVideo(f"{path.name} holds no picture")
        if frame.format.name not in ("pal8", "gray"):
            raise BadVideo(
                f"{path.name} is a {frame.format.name} image, wanted a palette or 8-bit grey"
            )
        content = frame.to_ndarray()
        return content[0] if isinstance(content, tuple) else content


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
