"""Many runs from one cache: those that want the same windows train side by side, each as if it were
alone.

    sweeps/NAME/sweep.json            what is compared, on which caches and which manifest
    sweeps/NAME/runs/<member>/        a run as `train` makes it; failed.json says why it was stopped
    sweeps/NAME/leases/               which worker holds which member, see `pipeline.cache.leases`
    sweeps/NAME/summary-<task>.json   scores, intervals and costs of all points, see
                                      `pipeline.experiments.summary`

Any number of workers may work on a sweep at once. Each takes members that share windows and that no
other worker holds, trains them from one read, and scores them from one more. A worker that is lost
costs what it did since the last checkpoints.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.leases import LOOK_S, Leases
from pipeline.cache.parts.chosen import open_cache
from pipeline.cache.storage.local import write_atomically
from pipeline.cache.storage.open import open_storage
from pipeline.config.json_files import read_json, to_json
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.device import device_of_worker, is_out_of_memory
from pipeline.errors import BadInput
from pipeline.experiments.summary import Outcome, ScoredPoint, Summary, summarise
from pipeline.experiments.sweep_caches import require_same_videos
from pipeline.experiments.sweep_spec import (
    SWEEP_FORMAT,
    GridPoint,
    SweepHeader,
    SweepSpec,
    axis_values,
    groups_of,
    read_header,
)
from pipeline.extract.launchers.contract import EnginePlugin, Job, log_line, run_until_done
from pipeline.models.profile import Cost, cost
from pipeline.models.tasks.contract import labels_of
from pipeline.train.compatibility import require_trainable, require_truth
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.evaluate import evaluate_together
from pipeline.train.evaluation import read_evaluation
from pipeline.train.loop import train_together
from pipeline.train.run import Run
from pipeline.train.setup import RunContext, open_windows
from pipeline.train.trackers.tracking import UNTRACKED, Tracking
from pipeline.train.trainer import Diverged, OnProgress, Trainer

SWEEP_FILE = "sweep.json"
SUMMARIES = "summary-*.json"
"""The summaries of a sweep, one for each task."""


class MemberFailure(Settings):
    """failed.json: why a member was stopped for good."""

    step: int
    reason: str


@dataclass(frozen=True)
class Member:
    """One run of a sweep, as it is on disk at this moment."""

    name: str
    recipe: Recipe
    point: GridPoint
    path: Path

    @property
    def failure(self) -> MemberFailure | None:
        """Why it was stopped, if it was."""
        file = self.path / "failed.json"
        if not file.is_file():
            return None
        return read_json(MemberFailure, file, f"remove {self.path}: it is trained again")

    @property
    def progress(self) -> tuple[int, int] | None:
        """Steps done and steps in all, as its last checkpoint says; None where there is none."""
        if not (self.path / "run.json").is_file():
            return None
        checkpoint = Run(self.path).checkpoint("last")
        return (checkpoint.step, checkpoint.steps) if checkpoint else None

    def is_done(self, split: str) -> bool:
        """Whether nothing is left to do: it was stopped for good, or it was trained to the end and
        scored there on `split`."""
        if self.failure is not None:
            return True
        progress, evaluation = self.progress, read_evaluation(self.path, split)
        if progress is None or evaluation is None:
            return False
        step, steps = progress
        return step == steps == evaluation.checkpoint.step


class Sweep:
    """A sweep on disk: its header, and the members that follow from it."""

    def __init__(
        self,
        path: Path,
        header: SweepHeader | None = None,
        caches: Mapping[str, Cache] | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        """Opens the sweep in folder `path`; `header`, `caches` and `manifest` where they are at
        hand, else they are read. Raises BadInput where there is no sweep."""
        file = path / SWEEP_FILE
        if header is None and not file.is_file():
            raise BadInput(
                f"{path} is not a sweep: it has no {SWEEP_FILE}",
                "make one with: stillframe sweep SWEEP CACHE",
            )
        self.path = path
        self.header = header or read_header(file)
        self._caches, self._manifest = caches, manifest
        self._done: set[str] = set()
        self._costs: dict[str, Cost] = {}

    @classmethod
    def planned(
        cls,
        path: Path,
        spec: SweepSpec,
        caches: Mapping[str, Cache],
        manifest: Manifest | None = None,
        split: str = "val",
    ) -> Sweep:
        """The sweep that `write_header` will make of folder `path`, scored on `split`. One that is
        there already gets other members, and keeps those that stay.

        `manifest`: other clips or labels over the videos of all caches; None: each cache's own.
        Raises BadInput where the sweep needs caches of other videos.
        """
        if manifest is not None:
            require_same_videos(spec, manifest.folder)
        if (path / SWEEP_FILE).is_file():
            read_header(path / SWEEP_FILE)  # refuses what this version cannot read
        header = SweepHeader(
            format_version=SWEEP_FORMAT,
            sweep=spec,
            caches={name: cache.storage.address for name, cache in caches.items()},
            fingerprints={name: cache.fingerprint for name, cache in caches.items()},
            manifest=None if manifest is None else str(manifest.folder.absolute()),
            split=split,
        )
        return cls(path, header, caches, manifest)

    def write_header(self) -> None:
        """Makes the folder a sweep: from now on any worker may open it. Raises BadInput where the
        folder of runs, or of one of them, is a link, which may lead anywhere."""
        for folder in (self.path / "runs", *(member.path for member in self.members)):
            if folder.is_symlink():
                raise BadInput(
                    f"{folder} is a symbolic link, and a sweep is trained in its own folder alone",
                    "put a real folder in place of the link",
                )
        write_atomically(self.path / SWEEP_FILE, to_json(self.header))

    @property
    def spec(self) -> SweepSpec:
        return self.header.sweep

    @property
    def split(self) -> str:
        return self.header.split

    @cached_property
    def members(self) -> list[Member]:
        """All runs, point by point, and by seed within a point."""
        return [
            Member(name, recipe, point, self.path / "runs" / name)
            for point in self.spec.grid_points
            for name, recipe in point.members.items()
        ]

    @cached_property
    def groups(self) -> list[list[Member]]:
        """Members that share one read of a cache."""
        member_of = {member.name: member for member in self.members}
        return [[member_of[name] for name in group] for group in groups_of(self.spec.grid_points)]

    @cached_property
    def caches(self) -> Mapping[str, Cache]:
        """Name in the sweep -> the cache."""
        if self._caches is not None:
            return self._caches
        return {name: open_cache(at, self.manifest) for name, at in self.header.caches.items()}

    def cache_of(self, member: Member) -> Cache:
        """The cache that a member is trained on."""
        return self.caches[member.point.cache]

    @cached_property
    def manifest(self) -> Manifest | None:
        """The one that takes the place of the caches' own, if one does. Raises BadInput if gone."""
        if self._manifest is not None or self.header.manifest is None:
            return self._manifest
        return Manifest.load(Path(self.header.manifest))

    def context_of(
        self,
        members: Sequence[Member],
        device: torch.device | None,
        allow_missing: bool,
        say: Callable[[str], object] = lambda _: None,
    ) -> RunContext:
        """What members that share one read are trained and scored on; `say` is told what is kept of
        what is made on the way."""
        cache = self.cache_of(members[0])
        return RunContext.of(cache, self.manifest, device, allow_missing, say=say)

    def require_trainable(self, allow_missing: bool) -> None:
        """Refuses, before any training, members whose recipe does not fit their cache, whose run
        folder is another's, or for which there are no windows. Members whose cache is not made yet
        are left out."""
        for member in self.members:
            if member.point.cache in self.caches:
                cache = self.cache_of(member)
                manifest = self.manifest or cache.manifest
                require_trainable(member.recipe, cache, manifest, member.path)
        for group in self.groups:
            if group[0].point.cache in self.caches:
                recipes = [member.recipe for member in group]
                context = self.context_of(group, None, allow_missing)
                tasks, windows, _ = open_windows(recipes, context)
                layers = windows.reader.layers
                require_truth(tasks[0], context.windows(self.split, recipes[0], tasks[0], layers))

    def is_done(self, member: Member) -> bool:
        """Whether nothing is left to do for a member. A member that is done stays done, so its
        files are read no more."""
        if member.name not in self._done and member.is_done(self.split):
            self._done.add(member.name)
        return member.name in self._done

    def left(self) -> list[Member]:
        """The members that are not done."""
        return [member for member in self.members if not self.is_done(member)]

    @property
    def summaries(self) -> dict[str, Summary]:
        """Task -> summary of its members; empty until all members are done."""
        summaries = [
            read_json(Summary, file, "run the same sweep again")
            for file in sorted(self.path.glob(SUMMARIES))
        ]
        return {summary.task: summary for summary in summaries}

    def write_summaries(self) -> None:
        """Writes a summary for each task: tasks are scored in metrics of their own."""
        by_task: dict[str, list[GridPoint]] = {}
        for point in self.spec.grid_points:
            by_task.setdefault(_any_recipe(point).task.name, []).append(point)
        axes = {key: axis_values(key, values) for key, values in self.spec.axes.items()}
        for task, points in by_task.items():
            summary = summarise(
                self.spec.name, axes, list(map(self._scored_point, points)), points[0].reference
            )
            write_atomically(self.path / f"summary-{task}.json", to_json(summary))

    def _scored_point(self, point: GridPoint) -> ScoredPoint:
        members = [member for member in self.members if member.point is point]
        # The settings that the videos of the point's own cache were rendered with are axes too.
        derived = self.spec.caches.get(point.cache)
        return ScoredPoint(
            name=point.name,
            values=point.values | (derived.data if derived else {}),
            cost=self._cost(_any_recipe(point), self.caches[point.cache]),
            outcomes=tuple(_outcome(member, self.split) for member in members),
            reference=point.reference,
            is_control=point.is_control,
        )

    def _cost(self, recipe: Recipe, cache: Cache) -> Cost:
        """The cost of the model, measured once for points that differ in their training alone."""
        table = recipe.canonical()
        architecture = [table["task"], table["temporal"], table["model"], table.get("init")]
        key = json.dumps([*architecture, recipe.windows.frames, str(cache.shape)])
        if key not in self._costs:
            manifest = self.manifest or cache.manifest
            self._costs[key] = cost(recipe, cache.shape, labels_of(recipe, manifest))
        return self._costs[key]


def _any_recipe(point: GridPoint) -> Recipe:
    """The recipe of the first seed: in all but the seed it is that of the others."""
    return next(iter(point.members.values()))


def _outcome(member: Member, split: str) -> Outcome:
    """The outcome of a member; neither a score nor a failure where it is not done."""
    failure, evaluation = member.failure, read_evaluation(member.path, split)
    checkpoint = Run(member.path).checkpoint("last") if evaluation else None
    return Outcome(
        member=member.name,
        seed=member.recipe.training.seed,
        evaluation=None if failure else evaluation,
        training_s=checkpoint.seconds if checkpoint else None,
        failed=f"{failure.reason}, at step {failure.step}" if failure else None,
    )


# Work


class SweepJob(Job):
    """The job that every worker of a sweep is given."""

    sweep: str
    """Folder of the sweep."""
    workers: int = 1
    """Number of workers: each takes at most its share of a group at a time."""
    allow_missing: bool = False
    track: tuple[str, ...] = ()
    """Trackers that every worker hands its members to."""

    def _work(self, index: int) -> None:
        device, sweep = device_of_worker(self.device, index), Sweep(Path(self.sweep))
        with Tracking(self.track, sweep.spec.name, log_line) as tracking:
            run_members(sweep, device, self.workers, self.allow_missing, None, log_line, tracking)


def make_sweep_job(
    out: Path,
    device: torch.device | None,
    workers: int,
    allow_missing: bool,
    track: tuple[str, ...] = (),
) -> SweepJob:
    """The job of the `workers` of an engine at the sweep in folder `out`."""
    return SweepJob(
        device=None if device is None else str(device),
        sweep=str(out.absolute()),
        workers=workers,
        allow_missing=allow_missing,
        track=track,
    )


def sweep(
    spec: SweepSpec,
    caches: dict[str, Cache],
    out: Path,
    device: torch.device | None = None,
    allow_missing: bool = False,
    on_progress: OnProgress | None = None,
    engine: EnginePlugin | None = None,
    logs: Path = Path("logs"),
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = ALONE,
    manifest: Manifest | None = None,
    split: str = "val",
    tracking: Tracking = UNTRACKED,
) -> Sweep:
    """Trains and scores what is left of a sweep in folder `out`, and writes its summaries.

    `caches`: those that `sweep_caches.prepare` has made, by their names in the sweep. `manifest`:
    other clips or labels over the videos of all of them; None: each cache's own. `split` is the one
    that members are scored on; while they train, it is always `val`. Without an
    `engine` the work is done in this process and the other `ranks`, each a worker like any other;
    all return when no member is left, and the first one writes the summaries. `tracking` takes
    steps and scores of members. Raises BadInput for what cannot be trained, before anything is.
    """
    running = Sweep.planned(out, spec, caches, manifest, split)
    running.require_trainable(allow_missing)
    running.write_header()
    if engine is None:
        own = ranks.device(device)
        run_members(running, own, ranks.size, allow_missing, on_progress, say, tracking)
    else:
        job = make_sweep_job(out, device, engine.workers, allow_missing, tracking.names)
        run_until_done(engine, job, logs, lambda: len(running.left()), "members")
    if ranks.is_first:
        running.write_summaries()
    return running


def run_members(
    sweep: Sweep,
    device: torch.device,
    workers: int,
    allow_missing: bool,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] = lambda _: None,
    tracking: Tracking = UNTRACKED,
) -> None:
    """Trains and scores members until none is left; waits for those that other workers hold."""
    with Leases(open_storage(sweep.path)) as leases:
        for members in claim_members(sweep, leases, workers):
            context = sweep.context_of(members, device, allow_missing, say)
            try:
                train_group(members, context, sweep.split, on_progress, say, tracking)
            finally:
                for member in members:
                    leases.release(member.name)


def claim_members(sweep: Sweep, leases: Leases, workers: int) -> Iterator[list[Member]]:
    """Members to train side by side: of one group, at most one worker's share of what is left.

    Waits for what other workers hold; ends when no member is left but those that were handed out
    here.
    """
    handed_out: set[str] = set()
    while True:
        num_left, is_idle = 0, True
        for group in sweep.groups:
            open_members = [
                member
                for member in group
                if member.name not in handed_out and not sweep.is_done(member)
            ]
            claimed = _claim_share(sweep, leases, open_members, workers)
            num_left += len(open_members) - len(claimed)
            if claimed:
                is_idle = False
                handed_out |= {member.name for member in claimed}
                yield claimed
        if not num_left:
            return
        if is_idle:
            time.sleep(LOOK_S)


def _claim_share(
    sweep: Sweep, leases: Leases, members: Sequence[Member], workers: int
) -> list[Member]:
    """The members that this worker may train now: those it got the leases of, at most a share."""
    share = math.ceil(len(members) / workers)
    claimed: list[Member] = []
    for member in members:
        is_done = partial(sweep.is_done, member)
        if len(claimed) < share and leases.claim_unless(member.name, is_done):
            claimed.append(member)
    return claimed


def train_group(
    members: Sequence[Member],
    context: RunContext,
    split: str,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] = lambda _: None,
    tracking: Tracking = UNTRACKED,
) -> None:
    """Trains members that share windows side by side, and scores them on `split`; half of them at a
    time where memory runs out. A member that diverges, or does not fit alone, is stopped."""

    def stop(trainer: Trainer, error: Diverged) -> None:
        record_failure(trainer.run.path, error.step, error.reason)
        tracking.finish(trainer.run, None, "failed")
        say(f"{trainer.run.path.name} is stopped at step {error.step}: {error.reason}")

    device = context.device
    try:
        recipes = {member.path: member.recipe for member in members}
        train_together(recipes, context, on_progress, stop, say, tracking)
        trained = [Run(member.path) for member in members if member.failure is None]
        evaluations = evaluate_together(trained, context, split) if trained else []
        for run, evaluation in zip(trained, evaluations, strict=True):
            tracking.finish(run, evaluation, "finished")
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here are the models gone that the error held; optimisers are part of cycles.
    gc.collect()
    torch.cuda.empty_cache()
    if len(members) == 1:
        progress = members[0].progress
        reason = f"does not fit into the memory of {device}"
        record_failure(members[0].path, progress[0] if progress else 0, reason)
        say(f"{members[0].name} is stopped: it {reason}")
        return
    say(f"{len(members)} members do not fit into the memory of {device}: half at a time")
    half = math.ceil(len(members) / 2)
    for part in (members[:half], members[half:]):
        train_group(part, context, split, on_progress, say, tracking)


def record_failure(path: Path, step: int, reason: str) -> None:
    """Stops the run in folder `path` for good."""
    write_atomically(path / "failed.json", to_json(MemberFailure(step=step, reason=reason)))
