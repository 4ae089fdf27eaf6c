"""Windows of T frames out of a cache, read by threads straight into a batch.

The order is a pure function of (seed, step, rank, world size), and its seed is `windows.seed`,
whatever draws the weights. Sample number g of the endless stream is the clip at place g mod n of
the permutation of epoch g div n, and a batch is the next B samples. So no clip is dropped, every
rank has the same number of steps, and going on in mid-epoch needs one integer. In which of the
cache's views a sample is seen is drawn alike.

A window's frames are asked for in seconds and the nearest cached frame of the clip is taken, so
that variable frame rate, rounding of timestamps and a cache of a higher rate all read right. What
lies past the end of a short clip repeats its last frame (as the paper does); the times in the
batch, and the truth, are always those of the frames that were read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from pipeline.cache.cache import Cache, Location
from pipeline.cache.layout import AFFINE, TIMES, in_view, layer_name, stored_name, tokens_by_array
from pipeline.cache.shard import aligned_empty
from pipeline.config.cache_spec import BASE
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import Arrays, Targets, Wanted, collate
from pipeline.errors import BadInput, unknown_name
from pipeline.records import Batch, Clip, OnDevice

READERS = 2
"""Threads that read ahead; never processes: a forked reader can inherit locks that nobody will
release."""
BATCHES_AHEAD = 3
TIE_S = 1e-6
"""Distances this close count as equal: a window in the middle of a clip often falls half way
between frames, and rounding must not decide frame by frame which neighbour is taken."""


@dataclass(frozen=True)
class ClipRows:
    """One clip as rows of a store: consecutive cached frames and their times."""

    store: int
    first_row: int
    time_s: np.ndarray


class WindowRef(NamedTuple):
    """One window to read."""

    clip: int
    position: float
    """Of the window in the clip: 0 first, 1 last."""
    number: int | None = None
    """Of the sample in the training stream; None in evaluation, where nothing is drawn at
    random."""
    view: str = BASE


def window_times(
    start_s: float, frames: int, fps: float, speed: float, reverse: bool
) -> np.ndarray:
    """(T,) source times of a window whose earliest frame is at `start_s`, in the order they are
    read."""
    time_s = start_s + np.arange(frames) * (speed / fps)
    return time_s[::-1] if reverse else time_s


def nearest_frames(time_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Index into ascending `time_s` of the frame nearest to each wanted time; the earlier one of
    two equally near."""
    after = np.clip(np.searchsorted(time_s, wanted_s), 1, max(1, len(time_s) - 1))
    before = after - 1
    if len(time_s) == 1:
        return np.zeros(len(wanted_s), np.int64)
    return np.where(wanted_s - time_s[before] <= time_s[after] - wanted_s + TIE_S, before, after)


class Windows:
    """The windows of one split of a manifest over a cache, with the truth that `wanted` (a task)
    asks for.

    Raises BadInput: unknown split, a rate that the cache does not hold, targets that the manifest
    lacks, and clips that the cache does not cover, unless `allow_missing`, which leaves them out
    and lists them in `skipped`.
    """

    def __init__(
        self,
        cache: Cache,
        manifest: Manifest,
        split: str,
        settings: WindowSettings,
        wanted: Wanted | None = None,
        layers: Sequence[int] | None = None,
        allow_missing: bool = False,
    ) -> None:
        self.cache, self.manifest, self.split, self.settings = cache, manifest, split, settings
        self.num_frames = (
            settings.frames if split == "train" else settings.eval_frames or settings.frames
        )
        """T."""
        self.layers = tuple(cache.shape.layers if layers is None else layers)
        self.keys = tuple(cache.codec.layout(cache.shape.width))
        tokens = tokens_by_array(self.layers, cache.shape.special_tokens, cache.shape.patch_tokens)
        self.names = [stored_name(name, key) for name in tokens for key in self.keys]
        clips = clips_of(manifest, split, settings)
        require_rate(settings, [clip for _, clip in clips], cache.fps, f"cache {cache}")
        self._targets = None if wanted is None else Targets(manifest, wanted)
        if self._targets:
            self._targets.check([clip for _, clip in clips], split)
        found = [(place, clip, cache.hole(clip) or self._stretch(clip)) for place, clip in clips]
        self.skipped = {clip.clip_id: hole for _, clip, hole in found if isinstance(hole, str)}
        """clip_id -> why it is left out."""
        if self.skipped and not allow_missing:
            clip_id, reason = next(iter(self.skipped.items()))
            raise BadInput(
                f"cache {cache} has holes: {len(self.skipped)} of {len(clips)} clips of split '{split}' are not covered, "
                f"the first is {clip_id}: {reason}",
                f"finish extraction, or see them with: stillframe status {cache}; --allow-missing goes on without them",
            )
        usable = [(place, stretch) for place, _, stretch in found if isinstance(stretch, ClipRows)]
        if not usable:
            raise BadInput(
                f"split '{split}' of {manifest.folder} has no clip that {cache} covers",
                "extract its videos first",
            )
        self.clips = [place for place, _ in usable]
        """Places of the usable clips in `manifest.clips`; `Batch.clip_index` counts in this
        list."""
        self.clip_rows = [stretch for _, stretch in usable]
        if self.slower == len(self):
            raise BadInput(
                f"windows want {settings.fps:g} frames per second, every video of split '{split}' has fewer in {cache}",
                "lower windows.fps",
            )

    def __len__(self) -> int:
        return len(self.clips)

    @cached_property
    def padded(self) -> int:
        """How many clips are shorter than their window, so that their last frame is repeated."""
        return sum(self._room_s(place) < 0 for place in range(len(self)))

    @cached_property
    def slower(self) -> int:
        """How many clips have fewer frames per second than their window asks for, so that frames
        are repeated."""
        return sum(self._is_slower(place) for place in range(len(self)))

    def clip(self, index: int) -> Clip:
        """The clip that `Batch.clip_index` means."""
        return self.manifest.clips[self.clips[index]]

    def require_views(self, task: str, mirrorable: bool) -> None:
        """Refuses to train where the cache lacks a view, or has one of which the truth of `task`
        would be wrong."""
        for name in self.settings.views:
            if name not in self.cache.views:
                raise unknown_name(
                    "view", name, self.cache.views, f"windows.views: cache {self.cache}"
                )
            view = self.cache.views[name]
            if view is not None and view.flip and not mirrorable:
                raise BadInput(
                    f"view '{name}' is mirrored, and the truth of task '{task}' does not hold in a mirror",
                    f"leave '{name}' out of windows.views",
                )

    # Order

    def sample(self, number: int) -> WindowRef:
        """Sample `number` of the endless training stream."""
        epoch, place = divmod(number, len(self))
        order, places, views = _epoch(self.settings.seed, epoch, len(self))
        clip, names = int(order[place]), self.settings.views
        return WindowRef(clip, float(places[clip]), number, names[int(views[clip] * len(names))])

    def train(
        self, batch_size: int, steps: Sequence[int], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """(step, this rank's part of its batch) for each of `steps`. Ranks must divide
        `batch_size`."""
        jobs = (
            [
                self.sample(number)
                for number in range(step * batch_size + rank, (step + 1) * batch_size, world_size)
            ]
            for step in steps
        )
        yield from zip(steps, self._read_ahead(jobs), strict=True)

    def evaluation(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Every clip in order, `eval_windows` windows of each spread evenly over it; of these, this
        rank's share."""
        samples = islice(self.evaluation_samples(), rank, None, world_size)
        jobs = iter(lambda: list(islice(samples, batch_size)), [])
        yield from self._read_ahead(jobs)

    def evaluation_samples(self) -> Iterator[WindowRef]:
        count = self.settings.eval_windows
        places = [0.5] if count == 1 else np.linspace(0, 1, count).tolist()
        return (WindowRef(clip, place) for clip in range(len(self)) for place in places)

    # Reading

    def read(self, samples: Sequence[WindowRef]) -> Batch:
        """The windows of `samples`, with their truth."""
        frames = self.num_frames
        rows = [self._rows(sample) for sample in samples]
        arrays = {}
        for name in self.names:
            shape, dtype = self.cache.arrays[name]
            arrays[name] = aligned_empty((len(samples), frames, *shape), dtype)
            for window, sample in enumerate(samples):
                stretch = self.clip_rows[sample.clip]
                stored = in_view(sample.view, name)
                self.cache.reader(stretch.store).read_into(
                    stored, stretch.first_row + rows[window], arrays[name][window]
                )
        time_s_BT = np.stack(
            [
                self.clip_rows[sample.clip].time_s[rows[window]]
                for window, sample in enumerate(samples)
            ]
        )
        index = np.array([sample.clip for sample in samples], np.int64)
        return Batch(arrays, time_s_BT, index, self.truth(samples))

    def truth(self, samples: Sequence[WindowRef]) -> Arrays:
        """The targets of `samples` alone, without their tokens; see
        `pipeline.datasets.manifest.targets`."""
        return collate([self._truth(sample) for sample in samples]) if self._targets else {}

    def _truth(self, sample: WindowRef) -> Arrays:
        assert self._targets is not None
        clip, stretch, rows = (
            self.clip(sample.clip),
            self.clip_rows[sample.clip],
            self._rows(sample),
        )
        affine_T23 = self.cache.small_array(stretch.store, in_view(sample.view, AFFINE))[
            stretch.first_row + rows
        ]
        # A pure function of seed and sample number, like the order.
        rng = (
            None
            if sample.number is None
            else np.random.default_rng([self.settings.seed, sample.number])
        )
        return self._targets.window(
            clip, stretch.time_s[rows], affine_T23, clip.speed / self.settings.fps, rng
        )

    def tokens(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """special (B, T, S, D) and patches (B, T, P, D) per layer, decoded on the device after the
        transfer."""
        moved = {
            name: torch.from_numpy(array).to(device, non_blocking=True)
            for name, array in batch.arrays.items()
        }

        def decode(name: str) -> torch.Tensor:
            return self.cache.codecs[name].decode(
                {key: moved[stored_name(name, key)] for key in self.keys}
            )

        patches = [decode(layer_name(layer)) for layer in self.layers]
        if self.cache.shape.special_tokens:
            return decode("special"), patches
        return patches[0][:, :, :0], patches

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """The tokens decoded on the device after the transfer, and the truth beside them."""
        special_BTSD, patches = self.tokens(batch, device)
        targets = {
            name: torch.from_numpy(array).to(device) for name, array in batch.targets.items()
        }
        return OnDevice(special_BTSD, dict(zip(self.layers, patches, strict=True)), targets)

    def _read_ahead(self, jobs: Iterator[list[WindowRef]]) -> Iterator[Batch]:
        with ThreadPoolExecutor(READERS, "read") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for job in jobs:
                    waiting.append(pool.submit(self.read, job))
                    if len(waiting) > BATCHES_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _rows(self, sample: WindowRef) -> np.ndarray:
        """Rows of one window, counted from the clip's first."""
        how, stretch = self.clip(sample.clip), self.clip_rows[sample.clip]
        start_s = float(stretch.time_s[0]) + sample.position * max(0.0, self._room_s(sample.clip))
        wanted_s = window_times(start_s, self.num_frames, self.settings.fps, how.speed, how.reverse)
        return nearest_frames(stretch.time_s, wanted_s)

    def _room_s(self, clip: int) -> float:
        """By how much the clip is longer than a window; negative if it is shorter."""
        time_s = self.clip_rows[clip].time_s
        return (
            float(time_s[-1] - time_s[0])
            - (self.num_frames - 1) * self.clip(clip).speed / self.settings.fps
        )

    def _is_slower(self, clip: int) -> bool:
        time_s = self.clip_rows[clip].time_s
        step_s = self.clip(clip).speed / self.settings.fps
        return len(time_s) > 1 and float(np.median(np.diff(time_s))) > 1.5 * step_s

    # Building

    def _stretch(self, clip: Clip) -> ClipRows | str:
        """Where the frames of a covered clip lie, or why there are none."""
        location = self.cache.locations[clip.video_id]
        time_s = self._video_times(location)
        first = int(np.searchsorted(time_s, clip.start_s))
        stop = len(time_s) if clip.stop_s is None else int(np.searchsorted(time_s, clip.stop_s))
        if stop <= first:
            end = "its end" if clip.stop_s is None else f"{clip.stop_s:g}"
            cached = f"its video is cached from {time_s[0]:.3f} to {time_s[-1]:.3f} s"
            return f"no cached frame in [{clip.start_s:g}, {end}) s; {cached}"
        return ClipRows(location.store, location.start + first, time_s[first:stop])

    def _video_times(self, location: Location) -> np.ndarray:
        return self.cache.small_array(location.store, TIMES)[location.start : location.stop]


def require_rate(
    settings: WindowSettings, clips: Sequence[Clip], fps: float | None, where: str
) -> None:
    """Refuses windows of a higher rate than the `fps` frames per second that `where` holds (None:
    every frame)."""
    wanted = settings.fps / min((clip.speed for clip in clips), default=1.0)
    if fps is not None and wanted > fps * (1 + 1e-6):
        raise BadInput(
            f"windows want {wanted:g} frames per second, {where} holds {fps:g}",
            f"set windows.fps to at most {fps * settings.fps / wanted:g}, or extract with a higher frames.fps",
        )


def clips_of(manifest: Manifest, split: str, settings: WindowSettings) -> list[tuple[int, Clip]]:
    """Places in `manifest.clips`, and clips, of a split: of the training split, those of the share
    that is used."""
    clips = [(place, manifest.clips[place]) for place in manifest.split(split)]
    if split != "train" or settings.train_fraction == 1:
        return clips
    kept = share_of_videos([clip for _, clip in clips], settings.train_fraction, settings.seed)
    return [(place, clip) for place, clip in clips if clip.video_id in kept]


def share_of_videos(clips: Sequence[Clip], fraction: float, seed: int) -> set[str]:
    """ids of the videos in a share of a split: of every label alike, at least one, and nested for
    one seed."""
    label_of = {
        clip.video_id: clip.label or "" for clip in reversed(clips)
    }  # a video counts with its first label
    by_label: dict[str, list[str]] = {}
    for video_id in sorted(label_of):
        by_label.setdefault(label_of[video_id], []).append(video_id)
    kept: set[str] = set()
    for label, videos in by_label.items():
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(videos))
        kept |= {videos[place] for place in order[: math.ceil(fraction * len(videos) - 1e-9)]}
    return kept


@lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, clips: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the clips in an epoch, where in each clip its window lies, and where among the views
    the one it is seen in."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return rng.permutation(clips), rng.random(clips), rng.random(clips)
