"""Kubric MOVi-E and MOVi-F: rendered scenes with depth, poses, boxes and point tracks (Greff et
al., CVPR 2022).

    root/**/dataset_info.json  as TensorFlow Datasets writes them (movi_e/256x256/1.0.0)
    root/**/movi_e-{train,validation,test}.tfrecord-00000-of-01024

Read without TensorFlow. One clip `<folder>/<split>/<video_name>` per record, 12 frames per second;
`validation` becomes `val`. Frames are laid out with the PNG bytes of the record. Records of a
damaged or cut off file count up to the damage, which is listed, as are files that are missing and
files that do not hold as many records as dataset_info.json says.

    pose     Blender's camera (y up, looking along -z) turned to x right, y down, z forward
    depth_m  the record holds the distance from the camera's centre; here it is divided by the
             length of the pixel's ray
    boxes    2-D boxes of all instances; NaN in frames where an instance is not seen
    points   computed here, as records hold none, by the rules of kubric's own challenge: see
             `_tracks.py`

Written against challenges/movi/movi_e.py (version 1.0.0) of github.com/google-research/kubric and
example_serializer.py of github.com/tensorflow/datasets.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import Field

from pipeline.config import plugins
from pipeline.datasets.formats.kubric_tracks import Camera, RenderedScene, draw_tracks
from pipeline.datasets.formats.recordings import (
    DepthSettings,
    Recording,
    RecordingDataset,
    Stretch,
    motion,
    nearest_pixels,
    read_image,
)
from pipeline.datasets.formats.tfrecord import Example, read_records
from pipeline.errors import BadInput
from pipeline.records import Clip

FPS = 12
SHARD = re.compile(r"(?P<set>.+-(?P<split>[^-]+)\.tfrecord)-(?P<number>\d{5})-of-(?P<count>\d{5})")
SPLIT = {"validation": "val"}
"""Official name -> ours, where they differ."""
BLENDER_TO_OURS = np.diag([1.0, -1.0, -1.0, 1.0])
UINT16 = 65535


class Settings(DepthSettings):
    """Where frames are laid out, how finely depth is kept, and which points are tracked."""

    tracks: int = Field(default=256, ge=0)
    """Points that are tracked per clip, on objects before background; 0: none, which is much
    faster."""
    seed: plugins.Seed = 0
    """Draws the points, and the splits where they are drawn."""


class Dataset(RecordingDataset):
    """One clip per record."""

    Settings = Settings
    _records: dict[str, Stretch]

    def recordings(self) -> Iterator[Recording]:
        """Clips in the order of the files, all of which are read and checked."""
        self._records = {}
        for folder, _, files in self.walk():
            shards = [match for match in map(SHARD.fullmatch, files) if match]
            self._note_missing(folder, shards)
            promised = record_counts(folder / "dataset_info.json") if shards else {}
            for match in shards:
                yield from self._read(
                    folder, match, promised.get(match["split"], {}).get(int(match["number"]))
                )

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """`pose`, `depth_m`, `boxes`, `points` and `visible` of every frame. Raises BadInput at a
        damaged record."""
        stretch = self._records[clip.clip_id]
        truth = super().targets(clip)
        time_s = truth["pose_time_s"]
        example = Example(stretch.read_bytes(), self.where(stretch))
        camera = _camera(example, len(time_s))
        distance = _distance(example, len(time_s))
        maps = [
            nearest_pixels(depth, self.settings.depth_px)
            for depth in distance / camera.ray_length(*distance.shape[1:])
        ]
        truth |= {"depth_m": np.stack(maps).astype(np.float16), "depth_m_time_s": time_s}
        truth |= {"boxes": boxes(example, len(time_s)), "boxes_time_s": time_s}
        if self.settings.tracks:
            scene = _scene(example, camera, distance)
            points, visible = draw_tracks(
                scene, self.settings.tracks, f"{self.settings.seed} {clip.clip_id}"
            )
            truth |= {"points": points, "visible": visible, "points_time_s": time_s}
        return truth

    def _note_missing(self, folder: Path, shards: list[re.Match[str]]) -> None:
        there: dict[tuple[str, int], set[int]] = defaultdict(set)
        for match in shards:
            there[match["set"], int(match["count"])].add(int(match["number"]))
        for (name, count), numbers in there.items():
            missing = sorted(set(range(count)) - numbers)
            if missing:
                first = f"{name}-{missing[0]:05d}-of-{count:05d}"
                remark = f"{len(missing)} of {count} are missing; first {first}"
                self.note(f"{self.where(folder / name)}: files", remark)

    def _read(
        self, folder: Path, match: re.Match[str], promised: int | None
    ) -> Iterator[Recording]:
        path, whole = folder / match[0], 0
        parts = [] if folder == self.official else [folder.relative_to(self.official).as_posix()]
        try:
            for offset, data in read_records(path):
                example = Example(data, f"{path} record {whole + 1}")
                name = "/".join(
                    [
                        *parts,
                        match["split"],
                        *(text.decode() for text in example.blobs("metadata/video_name")),
                    ]
                )
                frames = [
                    Stretch(path, offset + start, stop - start, ".png")
                    for start, stop in example.spans("video")
                ]
                pose = _camera(example, len(frames)).pose_F44 @ BLENDER_TO_OURS
                self._records.setdefault(name, Stretch(path, offset, len(data), ".example"))
                yield Recording(
                    name,
                    SPLIT.get(match["split"], match["split"]),
                    frames,
                    np.arange(len(frames)) / FPS,
                    pose,
                )
                whole += 1
        except BadInput as error:
            self.rejected[self.where(path)] = (
                f"{error.message.removeprefix(f'{path} ')} (after {whole} whole records)"
            )
        else:
            if promised is not None and whole != promised:
                tell = self.reject if whole < promised else self.note
                tell(
                    self.where(path),
                    f"holds {whole} records, dataset_info.json says {promised}",
                )


def record_counts(path: Path) -> dict[str, dict[int, int]]:
    """Split -> number of the file -> its records; empty without a dataset_info.json. Raises
    BadInput if that is damaged."""
    if not path.is_file():
        return {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        return {
            split["name"]: dict(enumerate(map(int, split.get("shardLengths", ()))))
            for split in splits
        }
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} does not list splits as TensorFlow Datasets does: {error!r}"
        ) from error


def boxes(example: Example, frames: int) -> np.ndarray:
    """(O, F, 4) xyxy of a ragged list: row lengths, then y0 x0 y1 x1 and the frame of every box."""
    lengths = example.ints("instances/bboxes/ragged_row_lengths_0")
    yxyx = example.floats("instances/bboxes/ragged_flat_values", -1, 4)
    frame = example.ints("instances/bbox_frames/ragged_flat_values")
    if not (lengths.sum() == len(yxyx) == len(frame)) or (
        len(frame) and not 0 <= frame.min() <= frame.max() < frames
    ):
        raise BadInput(
            f"{example.where}: {len(yxyx)} boxes, {len(frame)} frames of them and rows "
            f"{lengths.tolist()} disagree"
        )
    xyxy = np.full((len(lengths), frames, 4), np.nan, np.float32)
    xyxy[np.repeat(np.arange(len(lengths)), lengths), frame] = yxyx[:, [1, 0, 3, 2]]
    return xyxy


def _camera(example: Example, frames: int) -> Camera:
    return Camera(
        pose_F44=motion(
            example.floats("camera/positions", frames, 3),
            example.floats("camera/quaternions", frames, 4),
        ),
        focal=float(
            example.floats("camera/focal_length", 1)[0]
            / example.floats("camera/sensor_width", 1)[0]
        ),
    )


def _images(example: Example, name: str, frames: int) -> np.ndarray:
    """(F, H, W) or (F, H, W, C)."""
    images = [read_image(data, f"{example.where}: '{name}'") for data in example.blobs(name)]
    if len(images) != frames or len({image.shape for image in images}) > 1:
        raise BadInput(
            f"{example.where}: '{name}' holds {len(images)} images, wanted {frames} of one size"
        )
    return np.stack(images)


def _distance(example: Example, frames: int) -> np.ndarray:
    """(F, H, W) from the camera's centre, in metres."""
    low, high = example.floats("metadata/depth_range", 2).astype(np.float64)
    distance: np.ndarray = low + _images(example, "depth", frames) * ((high - low) / UINT16)
    return distance


def _scene(example: Example, camera: Camera, distance_FHW: np.ndarray) -> RenderedScene:
    frames = len(distance_FHW)
    return RenderedScene(
        camera=camera,
        distance_FHW=distance_FHW,
        segment_FHW=_images(example, "segmentations", frames),
        in_box_FHW3=_images(example, "object_coordinates", frames),
        normal_FHW3=_images(example, "normal", frames),
        corners_OF83=example.floats("instances/bboxes_3d", -1, frames, 8, 3).astype(np.float64),
        wxyz_OF4=example.floats("instances/quaternions", -1, frames, 4).astype(np.float64),
    )
