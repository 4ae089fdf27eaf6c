"""Waymo Open Dataset: 20 s of driving per segment at 10 frames per second, with boxes in the images
of each camera.

Written against the Parquet release of the perception data (v2.0.0 and v2.0.1;
github.com/waymo-research/waymo-open-dataset, src/waymo_open_dataset/v2), of which it reads two
components, one file per segment:

    root/{training,validation}/camera_image/<segment>.parquet  key.*, [CameraImageComponent].image:
                                                               JPEG
    root/{training,validation}/camera_box/<segment>.parquet    key.*, .type,
                                                               [CameraBoxComponent].box.*.{x,y} of
                                                               center and size

No decoder finds a video in a Parquet file. So the images of the chosen camera are copied out once,
byte for byte, and the clips read those; folders that are there already are not written again:

    FRAMES_DIR/training/<segment>/FRONT/<frame_timestamp_micros>.jpg, timestamps.txt

FRAMES_DIR is the setting `frames_dir`, a folder beside the manifest; the release itself is only
read. Times are those of the release, in seconds from the segment's first frame.

The defaults follow the protocol of 4DS (arXiv 2412.15212) as rebuilt in arXiv 2512.01342, A.4: the
front camera, and no boxes below 0.5 % of the central square. Its windows of 16 frames, and the
objects that stay long enough in them, are not chosen here.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import (
    DAMAGED,
    few,
    normalised_boxes,
    present,
    probe_all,
)
from pipeline.datasets.formats.recordings import FRAMES_DIR
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.errors import BadInput, BadVideo, StillframeError
from pipeline.records import Clip
from pipeline.video.probe import TIMESTAMPS

SPLITS = {"training": "train", "validation": "val"}
"""Folder -> split. The folders `testing` and `testing_location` have no boxes."""
CAMERAS = {"FRONT": 1, "FRONT_LEFT": 2, "FRONT_RIGHT": 3, "SIDE_LEFT": 4, "SIDE_RIGHT": 5}
TYPES = {"vehicle": 1, "pedestrian": 2, "sign": 3, "cyclist": 4}
SEGMENT, TIME, CAMERA = "key.segment_context_name", "key.frame_timestamp_micros", "key.camera_name"
OBJECT, IMAGE = "key.camera_object_id", "[CameraImageComponent].image"
BOX = [f"[CameraBoxComponent].box.{part}" for part in ("center.x", "center.y", "size.x", "size.y")]
TYPE = "[CameraBoxComponent].type"
INTERVAL_MICROS = 100_000


class Settings(SplitSettings):
    """These settings say which boxes count and where the images go."""

    camera: Literal["FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"] = "FRONT"
    """Camera whose images and boxes are read."""
    types: tuple[Literal["vehicle", "pedestrian", "sign", "cyclist"], ...] = (
        "vehicle",
        "pedestrian",
        "cyclist",
    )
    """Kinds of objects; the release has no boxes of signs in images."""
    min_area: float = Field(default=0.005, ge=0, lt=1)
    """A box counts as absent where its part inside the central square covers less than this share
    of it; 0 keeps every box."""
    frames_dir: str = FRAMES_DIR
    """Folder for the images, relative to that of the manifest or absolute; several manifests of one
    release may share one."""


class Dataset(DatasetPlugin):
    """One clip per segment."""

    Settings = Settings

    def __init__(
        self, root: Path, settings: Any, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(root, settings, on_progress)
        self.official = root

    def write_beside(self, manifest_folder: Path) -> None:
        """Images go into the folder `frames_dir` of that of the manifest."""
        self.root = (manifest_folder / self.settings.frames_dir).resolve()

    def clips(self) -> Iterator[Clip]:
        """Train, then val, by segment. Copies the images that are not there yet. Raises BadInput if
        there are no segments."""
        yield from split_dataset(self, self._official_clips())

    def _official_clips(self) -> Iterator[Clip]:
        self._parquet = _load_parquet()
        segments = self._segments()
        sources: dict[str, tuple[str, str]] = {}
        for done, (segment, folder) in enumerate(segments.items(), start=1):
            source = f"{folder}/{segment}/{self.settings.camera}"
            try:
                self._copy_images(folder, segment, self.root / source)
                sources[source] = (folder, segment)
            except BadVideo as error:
                self.reject(f"{folder}/camera_image/{segment}.parquet", error.message)
            self.on_progress(done, len(segments))
        for source in probe_all(self, list(sources)):
            folder, segment = sources[source]
            boxes_source = f"{folder}/camera_box/{segment}.parquet"
            try:
                boxes, _, lost = self._boxes(source)
            except BadVideo as error:
                self.reject(boxes_source, error.message)
                continue
            if lost:
                self.note(
                    boxes_source,
                    f"{lost} boxes have no area inside the frame and count as absent",
                )
            if len(boxes):
                yield Clip(segment, segment, source, SPLITS[folder])
            else:
                self.note(boxes_source, "no box of the chosen camera, types and size")

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Boxes, in every frame, of the objects that are seen at least once; objects by id."""
        boxes, micros, _ = self._boxes(clip.source)
        return {"boxes": boxes, "boxes_time_s": _seconds(micros)}

    def _segments(self) -> dict[str, str]:
        """Segment -> folder of its split; those that have one of the two files alone are noted,
        with counts."""
        segments: dict[str, str] = {}
        for folder in SPLITS:
            parts = [self.official / folder / part for part in ("camera_image", "camera_box")]
            images, boxes = ({path.stem for path in part.glob("*.parquet")} for part in parts)
            for tell, part, missing, there in (
                (self.note, "camera_image", boxes - images, boxes),
                (self.reject, "camera_box", images - boxes, images),
            ):
                if missing:
                    count = f"{len(missing)} of {len(there)}"
                    reason = f"{count} segments are not there: {few(sorted(missing))}"
                    tell(f"{folder}/{part}", reason)
            for segment in sorted(images & boxes):
                if segment in segments:
                    raise BadInput(
                        f"{self.official}: segment {segment} is in {segments[segment]} and in "
                        f"{folder}"
                    )
                segments[segment] = folder
        if not segments and not self.rejected and not self.notes:
            layout = (
                f"wanted {' or '.join(SPLITS)} with folders camera_image and camera_box of "
                ".parquet files"
            )
            raise BadInput(
                f"{self.official} holds no segments of the Waymo Open Dataset v2", layout
            )
        return segments

    def _copy_images(self, folder: str, segment: str, target: Path) -> None:
        """Writes the folder of images aside and renames it. Raises BadVideo if the file of images
        cannot be used."""
        path = self.official / folder / "camera_image" / f"{segment}.parquet"
        table = self._read(path, [SEGMENT, TIME, CAMERA])
        if set(table[SEGMENT]) - {segment}:
            raise BadVideo(
                f"holds segment {few(sorted(set(table[SEGMENT])))}, its name says {segment}"
            )
        micros = np.sort(table[TIME][table[CAMERA] == CAMERAS[self.settings.camera]])
        if len(micros) == 0:
            raise BadVideo(f"holds no image of camera {self.settings.camera}")
        gaps = np.diff(micros)
        if (gaps == 0).any():
            raise BadVideo(
                f"holds two images of camera {self.settings.camera} at {micros[1:][gaps == 0][0]}"
            )
        uneven = int((np.abs(gaps - INTERVAL_MICROS) > INTERVAL_MICROS / 2).sum())
        if uneven:
            remark = (
                f"{uneven} of {len(gaps)} intervals are not 0.1 s; used with the times as they are"
            )
            self.note(path.relative_to(self.official).as_posix(), remark)
        times = "".join(f"{time_s!r}\n" for time_s in _seconds(micros).tolist())
        if target.is_dir():
            if (
                not (target / TIMESTAMPS).is_file()
                or (target / TIMESTAMPS).read_text(encoding="ascii") != times
            ):
                raise BadVideo(
                    f"{target} holds other images than this: delete it, and it is written again"
                )
            return
        aside = target.with_name(f".{target.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for time, image in self._images(path):
            (aside / f"{time}.jpg").write_bytes(image)
        (aside / TIMESTAMPS).write_text(times, encoding="ascii")
        aside.rename(target)

    def _images(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Time and JPEG of every image of the chosen camera, a few in memory at a time. Raises
        BadVideo."""
        camera = CAMERAS[self.settings.camera]
        try:
            with self._parquet.ParquetFile(path) as file:
                _check_columns(file, [IMAGE])
                for batch in file.iter_batches(batch_size=16, columns=[TIME, CAMERA, IMAGE]):
                    for row in batch.to_pylist():
                        if row[CAMERA] == camera:
                            if not row[IMAGE]:
                                raise BadVideo(f"holds no image at {row[TIME]}")
                            yield row[TIME], row[IMAGE]
        except (ValueError, OSError) as error:
            raise _unreadable(error) from error

    def _read(self, path: Path, columns: list[str]) -> dict[str, np.ndarray]:
        """Columns of a file. Raises BadVideo if it is damaged or lacks one."""
        try:
            with self._parquet.ParquetFile(path) as file:
                _check_columns(file, columns)
                table = file.read(columns=columns)
        except (ValueError, OSError) as error:
            raise _unreadable(error) from error
        return {name: table[name].to_numpy() for name in columns}

    def _boxes(self, source: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Boxes (O, F, 4), times (F,) in microseconds, and how many boxes lie outside the frame.

        Raises BadVideo if the file of boxes cannot be used.
        """
        folder, segment, camera = source.split("/")
        table = self._read(
            self.official / folder / "camera_box" / f"{segment}.parquet",
            [TIME, CAMERA, OBJECT, TYPE, *BOX],
        )
        kinds = [TYPES[name] for name in self.settings.types]
        own = (table[CAMERA] == CAMERAS[camera]) & np.isin(table[TYPE], kinds)
        time, objects, cx, cy, w, h = (table[name][own] for name in (TIME, OBJECT, *BOX))
        micros = np.array(sorted(int(path.stem) for path in (self.root / source).glob("*.jpg")))
        ids, row = np.unique(objects.astype(str), return_inverse=True)
        frame = np.searchsorted(micros, time).clip(max=len(micros) - 1)
        if strange := int((micros[frame] != time).sum()):
            raise BadVideo(f"{strange} of {len(time)} boxes are at times without an image")
        if len(np.unique(row * len(micros) + frame)) < len(frame):
            raise BadVideo("an object has two boxes in one frame")
        probed = self.probed[source]
        xyxy = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
        boxes = normalised_boxes(xyxy, probed.width, probed.height)
        lost = int((~present(boxes)).sum())
        boxes[_share_of_square(xyxy, probed.width, probed.height) < self.settings.min_area] = np.nan
        boxes_OF4 = np.full((len(ids), len(micros), 4), np.nan, np.float32)
        boxes_OF4[row, frame] = boxes
        return boxes_OF4[present(boxes_OF4).any(1)], micros, lost


def _load_parquet() -> Any:
    """pyarrow.parquet, which this data set alone needs: `stillframe list` works without it."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise StillframeError(
            "dataset 'waymo' needs the package 'pyarrow', which is not installed",
            "pip install pyarrow",
        ) from error


def _check_columns(file: Any, columns: list[str]) -> None:
    lacking = [name for name in columns if name not in file.schema_arrow.names]
    if lacking:
        raise BadVideo(f"lacks the column '{lacking[0]}'")


def _unreadable(error: Exception) -> BadVideo:
    return BadVideo(f"cannot be read: {str(error).splitlines()[0]}", DAMAGED)


def _seconds(micros: np.ndarray) -> np.ndarray:
    return (micros - micros[0]) / 1e6


def _share_of_square(xyxy_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """(N,) share of the central square of a frame that each box (N, 4) covers."""
    side = min(width, height)
    corner = np.array([width - side, height - side]) / 2
    inside = xyxy_px.reshape(-1, 2, 2).clip(corner, corner + side)
    return (inside[:, 1] - inside[:, 0]).prod(1) / side**2
