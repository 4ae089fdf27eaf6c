"""The windows of both splits of a cache that is being filled, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.parts.chosen import ChosenStores
from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import TaskPlugin, labels_of, make_task
from pipeline.models.video_model import layers_read
from pipeline.records import Batch, OnDevice
from pipeline.train.compatibility import check, require_truth
from pipeline.train.follow.arrivals import (
    AGAIN,
    FOLLOW_FILE,
    FOLLOW_FORMAT,
    Arrivals,
    Round,
    Rounds,
)
from pipeline.train.follow.pace import Pace, allowed_samples
from pipeline.train.setup import RunContext
from pipeline.train.trainer import steps_of
from pipeline.train.windows.index import WindowRef, clips_of, expected_windows_of
from pipeline.train.windows.reader import read_ahead
from pipeline.train.windows.windows import Windows

ROUNDS = 100
"""A training has about so many: at the beginning of each it looks for new stores."""

OpenSplit = Callable[[RunContext, str, Collection[str]], Windows]
"""The windows of a split, over those of its clips whose videos are named."""


class WindowPlace(NamedTuple):
    """Where a window of an epoch lies."""

    clip: int
    """Number of its clip in the training split."""
    part: int
    """Which of the parts of the clip."""
    parts: int


class Grown(NamedTuple):
    """The training windows over some stores."""

    stores: frozenset[int]
    windows: Windows
    index_of: dict[str, int]
    """clip_id -> place of the clip in `windows`."""


class BatchToRead(NamedTuple):
    """Windows to read, and the step and the round that they belong to."""

    step: int
    round: int
    windows: Windows
    refs: list[WindowRef]


class FollowedWindows:
    """The training windows. What is drawn is a function of the rounds, see `Arrivals`."""

    def __init__(
        self, run: Path, recipe: Recipe, context: RunContext, open_split: OpenSplit
    ) -> None:
        """`run`: the folder whose follow.json is gone on with, if it has one."""
        self.run, self.settings, self.training = run, recipe.windows, recipe.training
        self.context, self.open_split = context, open_split
        self.arrivals = Arrivals(context.cache, context.ranks, context.say)
        manifest, plan = context.manifest, context.cache.plan
        self.clips = clips_of(manifest, "train", self.settings)
        held_out = clips_of(manifest, "val", self.settings)
        self._number = {clip.clip_id: number for number, clip in enumerate(self.clips)}
        store_of = {video: store for store, videos in plan.items() for video in videos}
        spec = context.cache.cache_spec
        self._expected: dict[int, int] = {}
        for clip in self.clips:
            store = store_of[clip.video_id]
            windows = expected_windows_of(clip, manifest, self.settings, spec)
            self._expected[store] = self._expected.get(store, 0) + windows
        self.needed = {*self._expected, *(store_of[clip.video_id] for clip in held_out)}
        """Stores with clips of either split."""
        self.record = self._fitting(Rounds.read(run))
        self.there: set[int] = set()
        """Needed stores that have come, as far as was looked."""
        self.round = -1
        """The round of the batch that was handed over last."""
        self._entered = -1
        """The last round of which windows have been drawn."""
        self._places: list[WindowPlace] = []
        self._drawn_M, self._shares_3M = np.zeros(0, np.int64), np.zeros((3, 0))
        self._now: Grown | None = None

    # What has come

    @property
    def is_whole(self) -> bool:
        """Whether all has come that is trained and evaluated on."""
        return self.there == self.needed

    def look(self) -> None:
        """Takes in what has come."""
        self.there = self.arrivals.look() & self.needed

    def as_of(self, split: str, stores: Collection[int]) -> Windows:
        """The windows of a split over some of the stores that have come."""
        cache = self.arrivals.cache
        videos = {video for store in stores for video in cache.plan[store]}
        return self.open_split(replace(self.context, cache=cache), split, videos)

    @property
    def now(self) -> Grown:
        """The windows over all stores that have come."""
        if self._now is None or self._now.stores != self.there:
            windows = self.as_of("train", self.there)
            index_of = {clip.clip_id: index for index, clip in enumerate(windows.clips)}
            self._now = Grown(frozenset(self.there), windows, index_of)
        return self._now

    @property
    def there_and_all(self) -> tuple[int, int]:
        """Windows of an epoch over what has come, and over the whole cache as far as is known."""
        rest = sum(count for store, count in self._expected.items() if store not in self.there)
        there = self.now.windows.per_epoch
        return there, there + rest

    # What a training asks for

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch over the whole cache, as far as was known at the beginning."""
        return self.record.windows if self.record else self.there_and_all[1]

    @property
    def clip_counts(self) -> dict[str, int]:
        """As far as clips have come at the beginning."""
        return self.now.windows.clip_counts | {"train": len(self.clips)}

    @property
    def tower(self) -> dict[str, Any] | None:
        """As that of `Windows`."""
        return self.now.windows.tower

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return steps_of(self.training, self.per_epoch)

    @cached_property
    def pace(self) -> Pace:
        """What has been drawn of the rounds that were entered."""
        return Pace(self.steps * self.training.batch_size, self.settings.seed)

    def train(
        self, batch_size: int, steps: Sequence[int], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, Batch]]:
        """As that of `Windows`; waits where nothing more may be drawn yet, but not before all that
        may be drawn has been handed over."""
        left = deque(steps)
        while left:
            while not self._may_take(left[0]):
                self.arrivals.wait(f"training may not go beyond step {left[0]} of {self.steps} yet")
            for step, number, batch in read_ahead(
                _read,
                self._jobs(left, batch_size, rank, world_size),
                lambda: self.now.windows.is_quick(),
            ):
                self.round = number
                yield step, batch

    def _jobs(
        self, left: deque[int], batch_size: int, rank: int, world_size: int
    ) -> Iterator[BatchToRead]:
        """Those of the steps that are `left`, and are taken from there, up to one that must wait
        for more."""
        while left and self._may_take(left[0]):
            step = left.popleft()
            entered = self._known[self._entered]
            first = step * batch_size
            refs = [
                self._ref(number, number - entered.step * batch_size)
                for number in range(first + rank, first + batch_size, world_size)
            ]
            yield BatchToRead(step, self._entered, self.now.windows, refs)

    def _may_take(self, step: int) -> bool:
        """Whether a step can be drawn from what has come; then its round has been entered."""
        while self._entered < 0 or self._known[self._entered].stop <= step:
            if self._entered + 1 == len(self._known) and not self._write_round():
                return False
            self._enter(self._entered + 1)
        return True

    def _ref(self, number: int, place: int) -> WindowRef:
        window = self._places[self._drawn_M[place]]
        position, view, direction = self._shares_3M[:, place].tolist()
        views, both = self.settings.views, self.settings.both_directions
        return WindowRef(
            self.now.index_of[self.clips[window.clip].clip_id],
            (window.part + position) / window.parts,
            number,
            views[int(view * len(views))],
            both and direction < 0.5,
        )

    # Rounds

    def stores_until(self, number: int) -> frozenset[int]:
        """Those that had come in a round."""
        rounds = self._known[: number + 1]
        return frozenset(store for each in rounds for store in each.stores)

    def _fitting(self, record: Rounds | None) -> Rounds | None:
        """`record`, if its rounds can be those of this training. Raises BadInput."""
        if record is None or not record.rounds:
            return record
        stop, steps = record.rounds[-1].stop, steps_of(self.training, record.windows)
        strange = {store for each in record.rounds for store in each.stores} - self.needed
        wrong = f"its rounds end at step {stop} of {steps}" if stop > steps else ""
        if strange:
            wrong = f"store {min(strange)} holds no clip of the cache that is trained on"
        if wrong:
            raise BadInput(f"{self.run / FOLLOW_FILE} is damaged: {wrong}", AGAIN)
        return record

    @property
    def _known(self) -> tuple[Round, ...]:
        return self.record.rounds if self.record else ()

    def _enter(self, number: int) -> None:
        """Draws the windows of a round that is written down."""
        entered = self._known[number]
        stores = set(entered.stores)
        while not stores <= self.there:
            self.arrivals.wait("training has drawn from stores that are gone")
            self.look()
        if stores:
            counts = self.now.windows.order.counts
            videos = {video for store in stores for video in self.context.cache.plan[store]}
            for index, clip in enumerate(self.now.windows.clips):
                if clip.video_id in videos:
                    parts = 1 if counts is None else int(counts[index])
                    clip_number = self._number[clip.clip_id]
                    self._places += [WindowPlace(clip_number, part, parts) for part in range(parts)]
                    self.pace.add(parts)
        self._entered = number
        if not self._places:
            raise BadInput(
                f"{self.run / FOLLOW_FILE} is damaged: round {number} has no windows", AGAIN
            )
        count = entered.steps * self.training.batch_size
        self._drawn_M, self._shares_3M = self.pace.draw(number, count, entered.of)

    def _write_round(self) -> bool:
        """Writes the next round down, if what has come allows for one."""
        self.look()
        begin = self._known[-1].stop if self._known else 0
        steps = min(max(1, self.steps // ROUNDS), self.steps - begin)
        there, of = self.there_and_all
        if not self.is_whole and allowed_samples(self.steps, there, of) < begin + steps:
            return False
        before = {store for known in self._known for store in known.stores}
        new = tuple(sorted(self.there - before))
        found = Round(step=begin, steps=steps, stores=new, windows=there, of=of)
        record = self.record or Rounds(format_version=FOLLOW_FORMAT, windows=of)
        self.record = record.model_copy(update={"rounds": (*record.rounds, found)})
        if self.context.ranks.is_first:
            self.record.write(self.run)
        return True

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """As that of `Windows`."""
        return self.now.windows.on_device(batch, device)

    @property
    def difference_text(self) -> str:
        """How a training differs from one on a whole cache, in a sentence."""
        while self._entered < len(self._known) - 1:  # it was finished before
            self._enter(self._entered + 1)
        whole = next((each for each in self._known if each.windows == each.of), None)
        first, drawn_W = self._known[0], self.pace.drawn_W
        when = "was never whole" if whole is None else f"was whole from step {whole.step} on"
        return (
            f"training began with {first.windows / first.of:.0%} of its windows, and its cache "
            f"{when}: each window was drawn {drawn_W.min()} to {drawn_W.max()} times, as from a "
            "whole cache, but those that came first came earlier"
        )

    @property
    def progress_text(self) -> str:
        """How much of the cache has come, and how much of that has been drawn."""
        there, of = self.there_and_all
        return (
            f"{there / of:.0%} of the windows are there, {self.pace.seen / of:.0%} have been drawn"
        )


def _read(job: BatchToRead) -> tuple[int, int, Batch]:
    return job.step, job.round, job.windows.read(job.refs)


class FollowedHeldOut:
    """The evaluation windows: those that had come in the round of the last training batch."""

    def __init__(self, followed: FollowedWindows) -> None:
        self.followed = followed
        context = followed.context
        videos = {clip.video_id for clip in clips_of(context.manifest, "val", followed.settings)}
        plan = context.cache.plan
        self._clips_of = {store: len(videos & plan[store].keys()) for store in followed.needed}
        """Store -> how many of its videos are evaluated on."""
        self._opened: tuple[frozenset[int], Windows] | None = None

    @property
    def _stores(self) -> frozenset[int]:
        """Those that are evaluated on now."""
        followed = self.followed
        if followed.round < 0:  # nothing is trained
            return frozenset(followed.needed)
        return followed.stores_until(followed.round)

    @property
    def share(self) -> float:
        """Share of the videos of the split that have come."""
        come = sum(self._clips_of[store] for store in self._stores)
        return come / sum(self._clips_of.values())

    def evaluation(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """As that of `Windows`."""
        yield from self._windows.evaluation(batch_size, rank, world_size)

    def on_device(self, batch: Batch, device: torch.device) -> OnDevice:
        """As that of `Windows`."""
        return self._windows.on_device(batch, device)

    @property
    def _windows(self) -> Windows:
        stores = self._stores
        if self._opened is None or self._opened[0] != stores:
            self._opened = stores, self.followed.as_of("val", stores)
        return self._opened[1]


def open_followed(
    recipe: Recipe, run: Path, context: RunContext
) -> tuple[TaskPlugin, FollowedWindows, FollowedHeldOut]:
    """The task of a recipe, and the windows of both splits, over a cache that is being filled, as
    soon as enough of it has come: a batch of windows, and something to score. Raises BadInput for
    what cannot be trained."""
    cache, manifest = context.cache, context.manifest
    if isinstance(cache, ChosenStores):
        missing, stores = len(cache.missing_stores()), len(cache.plan)
        raise BadInput(
            f"{cache} is a cache in parts, which no training follows, and {missing} of the "
            f"{stores} stores with videos of {manifest.folder} are missing",
            "run extract again, and train when they are there",
        )
    check([recipe], cache, manifest)
    task = make_task(recipe, labels_of(recipe, manifest))
    layers = layers_read(recipe, cache.shape)
    texts = task.wanted_texts
    if texts is not None and texts.frames:
        raise BadInput(
            f"task '{recipe.task.name}' begins with the embeddings of all frames of its cache, "
            f"and {cache} is not whole yet",
            "train when it is",
        )

    def open_split(now: RunContext, split: str, videos: Collection[str]) -> Windows:
        return now.windows(split, recipe, task, layers, videos)

    followed = FollowedWindows(run, recipe, context, open_split)
    held_out = FollowedHeldOut(followed)
    while True:
        followed.look()
        reason = _lacking(followed, task)
        if not reason:
            break
        followed.arrivals.wait(reason)
    windows = followed.now.windows
    task.require_windows(recipe.windows, windows.step_s)
    windows.require_views(recipe.task.name, task.mirrorable)
    return task, followed, held_out


def _lacking(followed: FollowedWindows, task: TaskPlugin) -> str:
    """What a training cannot begin without, of what has not come; "" where all is there."""
    if followed.is_whole:
        require_truth(task, followed.as_of("val", followed.there))
        return ""
    covered = followed.arrivals.cache.locations.keys()
    for split in ("train", "val"):
        clips = clips_of(followed.context.manifest, split, followed.settings)
        if not any(clip.video_id in covered for clip in clips):
            return f"training begins when there are clips of split '{split}'"
    there, of = followed.there_and_all
    if there < min(followed.training.batch_size, of):
        return f"training begins with a batch of windows, and there are {there}"
    try:
        require_truth(task, followed.as_of("val", followed.there))
    except BadInput as error:  # raised where nothing more comes, see above
        return error.message
    return ""


def is_followed(run: Path, cache: Cache, asked: bool) -> bool:
    """Whether a training follows its cache: if it was begun so, or if it is begun now, is `asked`
    to, and the cache is not whole. A run that was begun on a whole cache goes on as it was."""
    if Rounds.read(run) is not None:
        return True
    return asked and not (run / "last.json").is_file() and bool(cache.missing_stores())
