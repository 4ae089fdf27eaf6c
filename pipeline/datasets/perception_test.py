"""Perception Test: videos of staged scenes, with tracks of points in every frame, or of objects
once a second.

Written against the files of the 2023 challenge (github.com/google-deepmind/perception_test), as
they unpack:

    root/**/video_1234.mp4                                 train_videos.zip, valid_videos.zip, ...;
                                                           any folder below the root
    root/**/{point_tracking_,all_}{train,valid,test}.json  or
                                                           object_tracking_{valid,test}_subset.json,
                                                           sample.json

A file maps video ids to their annotations: `metadata` (video_id, split, frame_rate, num_frames,
resolution), `point_tracking` and `object_tracking`. A track has `frame_ids` and, of these frames,
either `points`, as a list of y and a list of x, or `bounding_boxes`, one [x1, y1, x2, y2] each; all
are fractions of the frame. The README gives the points' shape as (N, 2), the official notebooks
read (2, N), and so does this. A point has no annotation where it is not seen: there it is unknown.

Times are `frame_ids` over the frame rate in the video's own header, from its first frame on;
`metadata` must agree with it. The test split has the truth of one frame per track; the rest is held
back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import (
    few,
    field,
    find_file,
    load_json,
    normalised_boxes,
    numbers,
    present,
    probe_all,
    videos_by_name,
)
from pipeline.datasets.formats.folders import list_files
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.errors import BadInput
from pipeline.records import Clip
from pipeline.video.probe import Probe

SPLITS = {"train": "train", "valid": "val", "test": "test"}
"""Official name -> split."""
RATE_TOLERANCE = 0.02
"""A video whose frame rate is further than this share from that of its annotations is another
version of it."""


class Settings(SplitSettings):
    """These settings say which truth is read, and from which files."""

    task: Literal["point_tracking", "object_tracking"] = "point_tracking"
    """Task whose truth is read; videos without it are no clips."""
    annotations: tuple[str, ...] = ()
    """Annotation files, relative to the root. None named: for each split, the first that is there
    of those of the task, of its subset for the challenge and of all tasks; where there are none at
    all, sample.json."""


class Track(NamedTuple):
    """One point, or one object."""

    frame_ids: np.ndarray
    """(n,) int64, increasing."""
    values: np.ndarray
    """(n, 2) xy or (n, 4) xyxy, fractions of the frame."""


class Dataset(DatasetPlugin):
    """One clip per video that has tracks of the chosen kind."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Train, val, test, each in the order of its file. Raises BadInput where annotations are
        damaged or disagree."""
        yield from split_dataset(self, self._official_clips())

    def _official_clips(self) -> Iterator[Clip]:
        files = list_files(self)
        sources = videos_by_name(self.root, files, (".mp4",))
        split_of: dict[str, str] = {}
        metadata: dict[str, Any] = {}
        self._tracks: dict[str, list[Track]] = {}
        for path in self._annotation_files(files):
            videos = self._read(path)
            for video_id, (split, facts, tracks) in videos.items():
                if video_id in split_of:
                    raise BadInput(
                        f"{path}: video {video_id} is in another annotation file too",
                        "name one in annotations",
                    )
                split_of[video_id], metadata[video_id], self._tracks[video_id] = (
                    split,
                    facts,
                    tracks,
                )
            missing = [video_id for video_id in videos if video_id not in sources]
            if missing:
                reason = (
                    f"{len(missing)} of {len(videos)} videos with {self.settings.task} are not "
                    f"there: {few(missing)}"
                )
                self.note(path.relative_to(self.root).as_posix(), reason)
        found_ids = [video_id for video_id in split_of if video_id in sources]
        found_ids.sort(key=lambda video_id: list(SPLITS.values()).index(split_of[video_id]))
        probe_all(self, [sources[video_id] for video_id in found_ids])
        for video_id in found_ids:
            source = sources[video_id]
            if source in self.probed and self._fits(
                source, self.probed[source], metadata[video_id]
            ):
                self._check(source, video_id)
                yield Clip(video_id, video_id, source, split_of[video_id])

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Points and visibility, or boxes, at the frames that are annotated in any track."""
        tracks, probed = self._tracks[clip.clip_id], self.probed[clip.source]
        frame_ids = np.unique(np.concatenate([track.frame_ids for track in tracks]))
        time_s = frame_ids / (probed.fps or np.nan)
        values = np.full(
            (len(tracks), len(frame_ids), tracks[0].values.shape[1]), np.nan, np.float32
        )
        for row, track in enumerate(tracks):
            values[row, np.searchsorted(frame_ids, track.frame_ids)] = track.values
        if self.settings.task == "object_tracking":
            return {"boxes": normalised_boxes(values, 1, 1), "boxes_time_s": time_s}
        return {"points": values, "visible": present(values), "points_time_s": time_s}

    def _annotation_files(self, files: list[str]) -> list[Path]:
        named = [self.root / name for name in self.settings.annotations]
        if named:
            return named
        task = self.settings.task
        names_of_split = {
            split: [f"{task}_{split}.json", f"{task}_{split}_subset.json", f"all_{split}.json"]
            for split in SPLITS
        }
        paths = [
            path
            for names in names_of_split.values()
            if (path := find_file(self.root, files, names))
        ]
        sample = None if paths else find_file(self.root, files, ["sample.json"])
        if sample is None and not paths:
            looked = ", ".join(name for names in names_of_split.values() for name in names)
            hint = f"looked for {looked} and sample.json; name others in annotations"
            raise BadInput(f"{self.root} holds no annotations of the Perception Test", hint)
        return [sample] if sample else paths

    def _read(self, path: Path) -> dict[str, tuple[str, dict[str, Any], list[Track]]]:
        """Video id -> split, metadata and tracks of those videos that have tracks."""
        videos, task = {}, self.settings.task
        for video_id, record in load_json(path, dict).items():
            where = f"{path} {video_id}"
            metadata = field(record, "metadata", dict, where)
            split = field(metadata, "split", str, f"{where} metadata")
            if split not in SPLITS:
                raise BadInput(
                    f"{where}: no split called '{split}'; there are: {', '.join(SPLITS)}"
                )
            # A file of one task has no key for the others.
            tracks = field(record, task, list, where) if task in record else []
            if tracks:
                read = [
                    _read_track(track, task, f"{where} {task} {number}")
                    for number, track in enumerate(tracks)
                ]
                videos[video_id] = (SPLITS[split], metadata, read)
        if not videos:
            raise BadInput(f"{path} holds no {task} for any video", "choose another task or file")
        return videos

    def _fits(self, source: str, probed: Probe, metadata: dict[str, Any]) -> bool:
        """Whether the video is the one that was annotated; if not, it is rejected."""
        fps = field(metadata, "frame_rate", float, f"metadata of {source}")
        frames = field(metadata, "num_frames", int, f"metadata of {source}")
        if probed.fps is None or abs(probed.fps / fps - 1) > RATE_TOLERANCE:
            self.reject(
                source,
                f"has {probed.fps or 0:g} frames per second, its annotations are for {fps:g}",
            )
            return False
        if probed.frames_from_header is not None and abs(probed.frames_from_header - frames) > 1:
            self.reject(
                source,
                f"has {probed.frames_from_header} frames, its annotations are for {frames}",
            )
            return False
        return True

    def _check(self, source: str, video_id: str) -> None:
        """Notes boxes that will count as absent."""
        if self.settings.task == "object_tracking":
            boxes = normalised_boxes(
                np.concatenate([track.values for track in self._tracks[video_id]]), 1, 1
            )
            absent = int((~present(boxes)).sum())
            if absent:
                self.note(
                    source,
                    f"{absent} of {len(boxes)} boxes have no area inside the frame and count as "
                    "absent",
                )


def _read_track(track: object, task: str, where: str) -> Track:
    """Raises BadInput where frames and values do not agree."""
    frame_ids = numbers(
        field(track, "frame_ids", list, where), (None,), f"{where} frame_ids"
    ).astype(np.int64)
    if len(frame_ids) == 0 or frame_ids[0] < 0 or (np.diff(frame_ids) <= 0).any():
        raise BadInput(
            f"{where}: frame_ids must be increasing and at least one, found "
            f"{few(frame_ids.tolist())}"
        )
    if task == "point_tracking":
        values = numbers(field(track, "points", list, where), (2, None), f"{where} points").T[
            :, ::-1
        ]
    else:
        values = numbers(
            field(track, "bounding_boxes", list, where), (None, 4), f"{where} bounding_boxes"
        )
    if len(values) != len(frame_ids):
        raise BadInput(f"{where}: {len(frame_ids)} frame_ids for {len(values)} values")
    return Track(frame_ids, values)
