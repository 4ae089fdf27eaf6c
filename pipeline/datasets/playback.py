"""Any folder of videos, without labels, as a task that only time can solve: how was this stretch
played?

Each video is cut into stretches. Each stretch gives one clip for every direction and speed, and the
label is how the clip is read: `forward x1`, `reverse x4`, ... All clips of a stretch hold the same
frames and every stretch gives every label equally often, so the frames themselves say nothing. A
video, with all its stretches, lies in one split.

After "Learning and Using the Arrow of Time" (Wei et al., CVPR 2018) and "SpeedNet" (Benaim et al.,
CVPR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import probe_all
from pipeline.datasets.formats.folders import find_media
from pipeline.datasets.formats.known_groups import with_known_groups
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.records import Clip
from pipeline.video.probe import Probe

DRAWN = 0.2
"""Share of the videos that goes to `val`, where no setting says otherwise."""


class Settings(SplitSettings):
    """These settings say how videos are cut, and how the stretches are read."""

    speeds: tuple[float, ...] = (1.0, 4.0)
    """Seconds of the video that pass in one second of a window."""
    directions: tuple[Literal["forward", "reverse"], ...] = ("forward", "reverse")
    """In which direction of time a window reads the video."""
    label: Literal["speed", "direction", "both"] = "speed"
    """The label of a clip names the speed (`x2`), the direction (`reverse`) or both
    (`reverse x2`). The one that it does not name varies all the same."""
    stretch_s: float = Field(default=8.0, gt=0)
    """Length of a stretch. The longer it is, the more windows can be drawn from it."""
    min_s: float = Field(default=2.5, gt=0)
    """A video shorter than `stretch_s` is one stretch if it is at least this long. 8 frames at 12
    per second read at speed 4 need (8 - 1) / 12 * 4 = 2.34 s; a window that does not fit is padded
    with repeated frames, which gives the speed away."""
    min_fps: float = Field(default=11.9, ge=0)
    """Videos of fewer frames per second are left out: read slowly, their frames repeat, which gives
    the speed away too."""
    max_stretches: int = Field(default=16, ge=1)
    """Stretches of a video at most; where there are more, these are spread evenly."""
    image_fps: float = Field(default=25.0, gt=0, le=1000)
    """Frame rate of image folders."""

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        for name, values in (("speeds", self.speeds), ("directions", self.directions)):
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{name} must be different from one another and at least one, found "
                    f"{list(values)}"
                )
        if not all(0 < speed < float("inf") for speed in self.speeds):
            raise ValueError(f"speeds must be above 0, found {list(self.speeds)}")
        if (
            len(
                {
                    self.name(direction, speed)
                    for direction in self.directions
                    for speed in self.speeds
                }
            )
            < 2
        ):
            raise ValueError(
                f"label '{self.label}' has one value only: give more speeds or directions"
            )
        if self.min_s > self.stretch_s:
            raise ValueError(
                f"min_s must be at most stretch_s, found {self.min_s:g} and {self.stretch_s:g}"
            )
        return self

    def name(self, direction: str, speed: float) -> str:
        """The label of a clip that is read in this way."""
        return {"both": f"{direction} x{speed:g}", "speed": f"x{speed:g}", "direction": direction}[
            self.label
        ]


class Dataset(DatasetPlugin):
    """One clip per stretch, direction and speed."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Sorted by path, then by time. Raises BadInput if there are no videos."""
        facts = probe_all(self, find_media(self), self.settings.image_fps)
        for source in [
            source for source in facts if (facts[source].fps or math.inf) < self.settings.min_fps
        ]:
            fps = facts.pop(source).fps
            wanted = f"wanted at least {self.settings.min_fps:g} (min_fps)"
            self.note(source, f"too few frames ({fps:g} per second), {wanted}")
        stretches = {source: self._stretches(facts[source]) for source in facts}
        for source in [source for source in facts if not stretches[source]]:
            del stretches[source]
            wanted = f"wanted at least {self.settings.min_s:g} s (min_s)"
            if facts[source].duration_s is None:
                self.reject(source, f"length unknown, {wanted}")
            else:
                self.note(source, f"too short ({facts[source].duration_s:.2f} s), {wanted}")
        # A stretch gives every label, so videos are drawn without regard to labels.
        videos = [Clip(source, source, source, "train") for source in stretches]
        if not self.settings.group:
            videos = with_known_groups(videos, self.notes)
        for video in split_dataset(self, videos, DRAWN):
            yield from self._clips_of(video, stretches[video.source])

    def _clips_of(
        self, video: Clip, stretches: list[tuple[int, float, float | None]]
    ) -> Iterator[Clip]:
        """The clips of a video's stretches, in its split and group."""
        image_fps = self.settings.image_fps if (self.root / video.source).is_dir() else None
        for number, start_s, stop_s in stretches:
            for direction in self.settings.directions:
                for speed in self.settings.speeds:
                    yield replace(
                        video,
                        clip_id=f"{video.source}#{number:03d} {direction} x{speed:g}",
                        start_s=start_s,
                        stop_s=stop_s,
                        label=self.settings.name(direction, speed),
                        reverse=direction == "reverse",
                        speed=speed,
                        image_fps=image_fps,
                    )

    def _stretches(self, facts: Probe) -> list[tuple[int, float, float | None]]:
        """(number in the video, start_s, stop_s) of the stretches that are used."""
        length_s, limit = self.settings.stretch_s, self.settings.max_stretches
        duration_s = facts.duration_s or 0.0
        count = int(duration_s / length_s + 1e-6)  # 1e-6: a video of 8 s may call itself 7.999999
        if count == 0:
            return [(0, 0.0, None)] if duration_s >= self.settings.min_s else []
        numbers = (
            range(count)
            if count <= limit
            else [int((part + 0.5) * count / limit) for part in range(limit)]
        )
        return [(number, number * length_s, (number + 1) * length_s) for number in numbers]
