"""LeRobot: episodes of robots, with cameras, states, actions, and the task in words.

Reads folders of the versions 2.0, 2.1 and 3 as they lie on disk or come from the hub:

    root/meta/info.json                                    version, rate, cameras and columns
    root/meta/episodes.jsonl                               v2: tasks of every episode
    root/data/chunk-000/episode_000000.parquet
    root/videos/chunk-000/CAMERA/episode_000000.mp4
    root/meta/episodes/chunk-000/file-000.parquet          v3: tasks, and where every episode lies
    root/data/chunk-000/file-000.parquet
    root/videos/CAMERA/chunk-000/file-000.mp4              several episodes, one after the other

The files of version 3 are cut into one for each episode, packet by packet, beside the manifest: an
episode is then a video of its own, which can be trained on while its neighbours are held out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, probe_all
from pipeline.datasets.formats.splits import Names, SplitSettings, split_dataset
from pipeline.datasets.manifest.clip_targets import MOST_ARRAYS, SHAPES
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.datasets.robots.cut import Cut, cut
from pipeline.datasets.robots.episodes import Episode, EpisodeVideo, RobotData, read_robot_data
from pipeline.datasets.robots.tables import as_rows, read_columns
from pipeline.errors import BadVideo, count_text, unknown_name
from pipeline.records import Clip

EPISODES, CUT_FILE = "episodes", "episodes.json"
DRAWN = 0.2
"""Share of the episodes that is drawn for `val` where info.json names no other split than train."""
MOST_COLUMNS = MOST_ARRAYS // 2
"""Columns that are kept as truth, each with its times."""


class Settings(SplitSettings):
    """These settings say what is taken of a folder."""

    cameras: Names = ()
    """Cameras, such as observation.images.top; none named: all. Each shows every episode in a clip
    of its own."""
    cut: bool = True
    """Cut files that hold several episodes; takes as many bytes as they have. false: episodes are
    stretches of the files as they lie, and all episodes of a file are in one split."""


class Dataset(DatasetPlugin):
    """One clip per episode and camera."""

    Settings = Settings

    def __init__(
        self, root: Path, settings: Any, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(root, settings, on_progress)
        self.official = root.resolve()
        """The user's folder; `root` is that of the episodes where files are cut."""
        self._episode_of: dict[str, tuple[Episode, float]] = {}

    @cached_property
    def _data(self) -> RobotData:
        return read_robot_data(self.official)

    @property
    def _cuts(self) -> bool:
        return bool(self.settings.cut) and self._data.shares_files

    def write_beside(self, manifest_folder: Path) -> None:
        """Episodes go into the folder `episodes` of that of the manifest."""
        if self._cuts:
            self.root = (manifest_folder / EPISODES).resolve()

    def clips(self) -> Iterator[Clip]:
        """Camera by camera, in the order of the episodes. Raises BadInput where meta/ is damaged,
        or has no such camera."""
        data = self._data
        for name in self.settings.cameras:
            if name not in data.cameras:
                raise unknown_name("camera", name, data.cameras, str(self.official))
        if data.left_out:
            self.note("cameras", f"depth is left out: {few(data.left_out)}")
        if len(self._kept) < len(data.columns):
            self.note("columns", f"are left out: {few(sorted({*data.columns} - {*self._kept}))}")
        cameras = self.settings.cameras or data.cameras
        there: list[tuple[str, Episode, EpisodeVideo]] = []
        missing: list[str] = []
        for camera in cameras:
            for episode in data.episodes:
                place = episode.places.get(camera)
                if place is None:
                    continue
                if (self.official / place.source).is_file():
                    there.append((camera, episode, place))
                else:
                    missing.append(f"{camera} of episode {episode.number}")
        if missing:
            text = f"{count_text(len(missing), 'video')} of episodes are not there: {few(missing)}"
            self.note("videos", text)
        if self._cuts:
            there = self._cut(there)
        readable = probe_all(self, list(dict.fromkeys(place.source for _, _, place in there)))
        clips = []
        for camera, episode, place in there:
            if place.source not in readable:
                continue
            clip_id = f"{camera}/episode_{episode.number:06d}"
            shares = data.shares_files and not self._cuts
            clips.append(
                Clip(
                    clip_id,
                    place.source if shares else clip_id,
                    place.source,
                    episode.split or "train",
                    place.start_s,
                    place.stop_s,
                    group=f"episode_{episode.number:06d}",
                )
            )
            self._episode_of[clip_id] = episode, place.start_s
        stated = any(episode.split is not None for episode in data.episodes)
        yield from split_dataset(self, clips, None if stated else DRAWN)

    def texts(self, clip: Clip) -> ClipTexts:
        """The tasks of the episode are its captions."""
        return ClipTexts(captions=self._episode_of[clip.clip_id][0].tasks)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """The columns of numbers, (F, C) float32 under their own names, such as observation.state
        and action, at the times of their rows."""
        episode, start_s = self._episode_of[clip.clip_id]
        path = self.official / episode.table
        columns = read_columns(path, ["timestamp", *self._kept], episode.number)
        times = as_rows(columns.pop("timestamp"), f"{path}: timestamp").ravel()
        time_s = start_s + times.astype(np.float64)
        targets = {name: as_rows(values, f"{path}: {name}") for name, values in columns.items()}
        return targets | {f"{name}_time_s": time_s for name in targets}

    @cached_property
    def _kept(self) -> tuple[str, ...]:
        """Columns that become truth: as many as a clip may have, and none with the name of another
        kind of truth."""
        names = [
            name
            for name in self._data.columns
            if name not in SHAPES and not name.endswith("_time_s") and "/" not in name
        ]
        return tuple(names[:MOST_COLUMNS])

    def _cut(
        self, there: list[tuple[str, Episode, EpisodeVideo]]
    ) -> list[tuple[str, Episode, EpisodeVideo]]:
        """The episodes in files of their own, which are made where they are not there yet."""
        stamp = self.root / CUT_FILE
        done = _read_stamp(stamp)
        moved, asked = [], dict[str, list[Any]]()
        by_file: dict[str, list[tuple[str, Cut]]] = defaultdict(list)
        for camera, episode, place in there:
            name = f"{camera}/episode_{episode.number:06d}.mp4"
            assert place.stop_s is not None
            moved.append((camera, episode, EpisodeVideo(name, 0.0, None)))
            size = (self.official / place.source).stat().st_size
            asked[name] = [place.source, size, place.start_s, place.stop_s]
            if done.get(name) != asked[name] or not (self.root / name).is_file():
                part = Cut(place.start_s, place.stop_s, self.root / name)
                by_file[place.source].append((name, part))
        lost: set[str] = set()
        for number, (source, wanted) in enumerate(by_file.items(), start=1):
            for _, part in wanted:
                part.target.unlink(missing_ok=True)
            try:
                problems = cut(self.official / source, [part for _, part in wanted], self._data.fps)
            except BadVideo as error:
                problems = dict.fromkeys([part.target for _, part in wanted], error.message)
            for name, part in wanted:
                if part.target in problems:
                    lost.add(name)
                    self.reject(name, problems[part.target])
                else:
                    done[name] = asked[name]
            self.root.mkdir(parents=True, exist_ok=True)
            aside = stamp.with_suffix(".partial")
            aside.write_text(json.dumps(done, indent=1) + "\n")
            aside.replace(stamp)
            self.on_progress(number, len(by_file))
        return [each for each in moved if each[2].source not in lost]


def _read_stamp(path: Path) -> dict[str, Any]:
    """Episode -> what it was cut from; empty where nothing tells."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
