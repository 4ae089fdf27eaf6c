"""Contract of a dataset: which clips there are, and what is true of each.

A dataset reads its official layout as users have it on disk. The manifest step calls `clips()`
once, then `targets()` for each clip. Coordinates are normalised to [0, 1] in the upright source
frame (x over its width, y over its height; a pixel's centre lies at (i + 0.5) / size); times are
seconds after the first frame of the source is shown, or, where `clock` says so, seconds of the
clock of its file.

Truth beyond the label has these names and shapes, F being the target's own frames. The times of
`boxes`, `points`, `depth_m` and `pose` stand beside them as `boxes_time_s` and so on, (F,) float64:

    boxes    (O, F, 4)  float32  xyxy of each object; NaN where it is absent
    points   (Q, F, 2)  float32  xy of each track; NaN where it is not known
    visible  (Q, F)     bool     whether the point is seen; only with points, and at their times
    depth_m  (F, H, W)  float16 or float32, distance along the optical axis in metres at any
                        resolution over the whole source frame; 0 where unknown
    pose     (F, 4, 4)  float64  camera to world, in metres; axes x right, y down, z forward; NaN
                        where unknown

What happens when has no frames of its own, but segments of time, S of them in any order, which may
overlap where several things happen at once. Of a clip without them nothing is known; of one with
them, what no segment covers is none of the classes:

    segments_s     (S, 2)  float64  [start, stop) of each
    segment_class  (S,)    int64    the place of its class in `classes`; -1 where it is not known
                                    what happens: such frames are neither trained on nor scored
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.records import Clip, Clock
from pipeline.video.probe import Probe


class DatasetPlugin(ABC):
    """Base of every `Dataset`."""

    Settings: ClassVar[type[Settings]]
    renders: ClassVar[bool] = False
    """True: the dataset makes its own videos under `root`. False: `root` is the user's folder, in
    which nothing is written; frames that make no video as they lie there are laid out beside the
    manifest, see `write_beside`."""

    clock: Clock = "first_frame"
    """What seconds count from, in clips and truth alike."""
    classes: tuple[str, ...] = ()
    """Names of the classes of `segment_class`, in the order of their numbers; known once `clips()`
    is through. Empty where no clip has segments."""

    def __init__(
        self, root: Path, settings: Any, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """`root` holds the videos; every `Clip.source` is relative to it. `on_progress(done,
        total)` may be called."""
        self.root = root
        self.given_root = root
        """The folder that the user named; `root` may be moved to a folder of frames."""
        self.settings = settings
        self.on_progress = on_progress or (lambda *_: None)
        self.rejected: dict[str, str] = {}
        """source -> reason, for media found under `root` that should be a clip and cannot; filled
        by `reject`, in `clips()`."""
        self.notes: dict[str, str] = {}
        """source -> remark that asks nobody to mend anything; filled by `note`, in `clips()`."""
        self.probed: dict[str, Probe] = {}
        """source -> what the header of a video says, for those that `clips()` looked at."""
        self.left_out: dict[str, list[str]] = {}
        """Kind -> paths under `root` that are none of the user's own or, like thumbnails, no
        videos, and were passed over without being listed one by one; filled by `clips()`."""
        self.ignored = 0
        """Files under `root` that make no video (other suffixes, single images); counted by
        `clips()`."""

    def reject(self, source: str, reason: str) -> None:
        """Says why media found under `root` became no clip though they should have: they are
        damaged, or do not go together. The command ends with exit code 3."""
        earlier = self.rejected.get(source)
        self.rejected[source] = f"{earlier}; {reason}" if earlier else reason

    def note(self, source: str, remark: str) -> None:
        """Says what is worth knowing of clips that are used all the same, or of what was never
        meant to be one: a list names videos that are not there, a list or a setting leaves some
        out. Examples come after "; first " or ": ", so that remarks of a kind can be counted."""
        earlier = self.notes.get(source)
        self.notes[source] = f"{earlier}; {remark}" if earlier else remark

    def write_beside(self, manifest_folder: Path) -> None:  # noqa: B027  most write nothing
        """Told before `clips()` where the manifest goes: what a dataset has to write, it writes
        there, and never under a `root` that is the user's."""

    def leave_out(self, kind: str, path: str) -> None:
        """Adds a path to those of a kind in `left_out`."""
        self.left_out.setdefault(kind, []).append(path)

    @abstractmethod
    def clips(self) -> Iterator[Clip]:
        """All clips of all splits, in a stable order. A video lies in one split only."""

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """Named truth of a clip beyond its label; a name ending in `_time_s` holds the times of the
        one it is named after."""
        return {}

    def texts(self, clip: Clip) -> ClipTexts:
        """What is said or asked about a clip: captions, or one question with its answer. Several
        questions about a video are several clips of it. Called after `clips()` is through."""
        return ClipTexts()
