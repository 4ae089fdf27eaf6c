"""Many runs from one cache: those that want the same windows train side by side, each as if it were
alone.

    sweeps/NAME/sweep.json        what is compared, and on which cache
    sweeps/NAME/runs/<member>/    a run as `train` makes it; failed.json beside it says why it was stopped
    sweeps/NAME/leases/           who is at which member, see `pipeline.cache.leases`
    sweeps/NAME/summary-<task>.json   scores, intervals and costs of all settings, see `pipeline.experiments.summary`

Any number of workers may be at work on a sweep. Each takes members that share windows and that
nobody else is at, trains them from one read, and scores them from one more. A worker that is lost
costs what came after the last checkpoints.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.leases import LOOK_S, Leases
from pipeline.cache.storage.local import write_atomically
from pipeline.cache.storage.open import open_storage
from pipeline.config.json_files import read_json, to_json
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.device import device_of_worker
from pipeline.errors import BadInput
from pipeline.experiments.summary import Outcome, ScoredPoint, Summary, summarise
from pipeline.experiments.sweep_spec import (
    SWEEP_FORMAT,
    GridPoint,
    SweepHeader,
    SweepSpec,
    axis_values,
    grid_points,
    read_header,
)
from pipeline.extract.launchers.contract import EnginePlugin, Job, run_until_done
from pipeline.models.profile import Cost, cost
from pipeline.models.video_model import VideoModel
from pipeline.train.compatibility import require_same, require_wanted, shared
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.evaluate import evaluate_together, read_evaluation
from pipeline.train.loop import train_together
from pipeline.train.run import Run
from pipeline.train.setup import make_task, open_windows
from pipeline.train.trainer import Diverged, OnProgress, Trainer

SWEEP_FILE = "sweep.json"
SUMMARIES = "summary-*.json"
"""One for each task."""
SPLIT = "val"
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says in a RuntimeError where the CPU, or a library on the GPU, has none left."""


class MemberFailure(Settings):
    """failed.json."""

    step: int
    reason: str


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    recipe: Recipe
    point: GridPoint
    path: Path

    @property
    def failure(self) -> MemberFailure | None:
        """Why it was stopped, if it was."""
        file = self.path / "failed.json"
        return (
            read_json(MemberFailure, file, f"remove {self.path}: it is trained again")
            if file.is_file()
            else None
        )

    @property
    def progress(self) -> tuple[int, int] | None:
        """Steps done and to do, as its last checkpoint says; None where there is none."""
        checkpoint = (
            Run(self.path).checkpoint("last") if (self.path / "run.json").is_file() else None
        )
        return (checkpoint.step, checkpoint.steps) if checkpoint else None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do: it was stopped for good, or trained to the end and scored
        there."""
        if self.failure is not None:
            return True
        progress, scored = self.progress, read_evaluation(self.path, SPLIT)
        if progress is None or scored is None:
            return False
        step, steps = progress
        return step == steps == scored.checkpoint.step


class Sweep:
    """A sweep on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / SWEEP_FILE
        if not file.is_file():
            raise BadInput(
                f"{path} is not a sweep: it has no {SWEEP_FILE}",
                "make one with: stillframe sweep SWEEP CACHE",
            )
        self.header = read_header(file)
        self._done: set[str] = set()
        self._costs: dict[str, Cost] = {}

    @classmethod
    def create(
        cls, path: Path, spec: SweepSpec, caches: dict[str, Cache], allow_missing: bool = False
    ) -> Sweep:
        """The sweep at `path`; one that is there already gets other members, and keeps those that
        stay.

        Raises BadInput for any member that cannot be trained, before anything is written.
        """
        if (path / SWEEP_FILE).is_file():
            cls(path)  # which refuses what this version cannot read
        header = SweepHeader(
            format_version=SWEEP_FORMAT,
            sweep=spec,
            caches={name: cache.storage.address for name, cache in caches.items()},
            fingerprints={name: cache.fingerprint for name, cache in caches.items()},
        )
        points = grid_points(spec)
        recipes = {
            name: (recipe, caches[one.cache])
            for one in points
            for name, recipe in one.members.items()
        }
        for name, (recipe, cache) in recipes.items():
            require_trainable(recipe, cache, path / "runs" / name)
        for group in groups_of(points):
            cache = recipes[group[0]][1]
            open_windows([recipes[name][0] for name in group], cache, cache.manifest, allow_missing)
        write_atomically(path / SWEEP_FILE, to_json(header))
        return cls(path)

    @property
    def spec(self) -> SweepSpec:
        return self.header.sweep

    @cached_property
    def points(self) -> list[GridPoint]:
        return grid_points(self.spec)

    @cached_property
    def members(self) -> list[Member]:
        return [
            Member(name, recipe, point, self.path / "runs" / name)
            for point in self.points
            for name, recipe in point.members.items()
        ]

    @cached_property
    def caches(self) -> dict[str, Cache]:
        return {name: Cache(place) for name, place in self.header.caches.items()}

    def groups(self) -> list[list[Member]]:
        """Members that share one read."""
        by_name = {member.name: member for member in self.members}
        return [[by_name[name] for name in group] for group in groups_of(self.points)]

    def is_done(self, member: Member) -> bool:
        """Whether nothing is left to do: asked again and again of all, and once done is done."""
        if member.name not in self._done and member.is_done:
            self._done.add(member.name)
        return member.name in self._done

    def left(self) -> list[Member]:
        return [member for member in self.members if not self.is_done(member)]

    @property
    def summaries(self) -> dict[str, Summary]:
        """task -> what the members said when all were done; none before."""
        found = [
            read_json(Summary, file, "run the same sweep again")
            for file in sorted(self.path.glob(SUMMARIES))
        ]
        return {summary.task: summary for summary in found}

    def sum_up(self) -> None:
        """Writes what the members say, for each task: scores of other tasks are in other
        metrics."""
        found: dict[str, list[GridPoint]] = {}
        for point in self.points:
            found.setdefault(next(iter(point.members.values())).task.name, []).append(point)
        axes = {key: axis_values(key, values) for key, values in self.spec.axes.items()}
        for task, points in found.items():
            summary = summarise(
                self.spec.name,
                axes,
                [self._scored_point(one) for one in points],
                points[0].reference,
            )
            write_atomically(self.path / f"summary-{task}.json", to_json(summary))

    def _scored_point(self, point: GridPoint) -> ScoredPoint:
        cache, outcomes = self.caches[point.cache], []
        for member in (member for member in self.members if member.point is point):
            failure, scored = member.failure, read_evaluation(member.path, SPLIT)
            checkpoint = Run(member.path).checkpoint("last") if scored else None
            outcomes.append(
                Outcome(
                    member=member.name,
                    seed=member.recipe.training.seed,
                    evaluation=None if failure else scored,
                    training_s=checkpoint.seconds if checkpoint else None,
                    failed=f"{failure.reason}, at step {failure.step}" if failure else None,
                )
            )
        recipe = next(iter(point.members.values()))
        other = self.spec.caches.get(point.cache)
        dials = other.data if other else {}
        return ScoredPoint(
            name=point.name,
            values=point.values | dials,
            cost=self._cost(recipe, cache),
            outcomes=tuple(outcomes),
            reference=point.reference,
        )

    def _cost(self, recipe: Recipe, cache: Cache) -> Cost:
        """The same for settings that differ in their training alone."""
        table = recipe.canonical()
        key = json.dumps(
            [
                table["task"],
                table["temporal"],
                table["model"],
                recipe.windows.frames,
                str(cache.shape),
            ]
        )
        if key not in self._costs:
            self._costs[key] = cost(recipe, cache.shape, cache.manifest.labels)
        return self._costs[key]


def groups_of(points: Sequence[GridPoint]) -> list[list[str]]:
    """Names of the members that share one read: those that want the same windows of the same
    cache."""
    found: dict[str, list[str]] = {}
    for point in points:
        for name, recipe in point.members.items():
            found.setdefault(json.dumps([point.cache, shared(recipe)], sort_keys=True), []).append(
                name
            )
    return list(found.values())


def require_trainable(recipe: Recipe, cache: Cache, path: Path) -> None:
    """Refuses, before any training, a member whose recipe does not fit its cache, or whose run
    folder is another's."""
    manifest = cache.manifest
    require_wanted(recipe, cache)
    require_same(path, recipe, cache, manifest)
    try:
        with torch.device("meta"):
            VideoModel(recipe, cache.shape, make_task(recipe, manifest))
    except BadInput as error:
        raise BadInput(f"member '{recipe.name}': {error.message}", error.hint) from error


class SweepJob(Job):
    """What every worker of a sweep is told."""

    sweep: str
    """Its folder."""
    workers: int = 1
    """How many there are: each takes at most its share of a group at a time."""
    allow_missing: bool = False

    def work(self, index: int) -> None:
        run_members(
            Sweep(Path(self.sweep)),
            device_of_worker(self.device, index),
            self.workers,
            self.allow_missing,
        )


def make_sweep_job(
    out: Path, device: torch.device | None, workers: int, allow_missing: bool
) -> SweepJob:
    """What the `workers` of an engine are told about the sweep in folder `out`."""
    on = None if device is None else str(device)
    return SweepJob(
        device=on, sweep=str(out.absolute()), workers=workers, allow_missing=allow_missing
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
) -> Sweep:
    """Trains and scores what is left of a sweep in folder `out`, and sums it up in
    `summary-<task>.json`.

    `caches`: those that `sweep_caches.prepare` has made, by their names in the sweep. Without an
    `engine` the work is done in this process and the other `ranks`, each a worker like any other;
    all return when no member is left, and the first one sums up. Raises BadInput for what cannot be
    trained, before anything is.
    """
    made = Sweep.create(out, spec, caches, allow_missing)
    if engine is None:
        run_members(made, ranks.device(device), ranks.size, allow_missing, on_progress, say)
    else:
        job = make_sweep_job(out, device, engine.workers, allow_missing)
        run_until_done(engine, job, logs, lambda: len(made.left()), "members")
    if ranks.is_first:
        made.sum_up()
    return made


def run_members(
    sweep: Sweep,
    device: torch.device,
    workers: int,
    allow_missing: bool,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Trains and scores the members that nobody else is at, until none is left; waits for those
    that others are at."""
    with Leases(open_storage(sweep.path)) as leases:
        for members in claim_members(sweep, leases, workers):
            try:
                train_group(
                    members,
                    sweep.caches[members[0].point.cache],
                    device,
                    allow_missing,
                    on_progress,
                    say,
                )
            finally:
                for member in members:
                    leases.release(member.name)


def claim_members(sweep: Sweep, leases: Leases, workers: int) -> Iterator[list[Member]]:
    """Members to train side by side: of one group, at most a worker's share of what is left of it.

    Waits for what others are at; ends when no member is left but such as were handed out here.
    """
    given: set[str] = set()
    while True:
        left, took = 0, False
        for group in sweep.groups():
            free = [
                member for member in group if member.name not in given and not sweep.is_done(member)
            ]
            mine: list[Member] = []
            for member in free:
                if len(mine) < math.ceil(len(free) / workers) and leases.claim(member.name):
                    mine.append(member)
            for member in [
                member for member in mine if sweep.is_done(member)
            ]:  # finished between the two looks
                leases.release(member.name)
                mine.remove(member)
            given |= {member.name for member in mine}
            if mine:
                took = True
                yield mine
            left += len(free) - len(mine)
        if not left:
            return
        if not took:
            time.sleep(LOOK_S)


def train_group(
    members: Sequence[Member],
    cache: Cache,
    device: torch.device,
    allow_missing: bool = False,
    on_progress: OnProgress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Trains members that share windows side by side, and scores them. Where memory runs out, half
    of them at a time."""

    def stopped(trainer: Trainer, error: Diverged) -> None:
        record_failure(trainer.run.path, error.step, error.reason)
        say(f"{trainer.run.path.name} is stopped at step {error.step}: {error.reason}")

    try:
        recipes = {member.path: member.recipe for member in members}
        train_together(recipes, cache, None, device, allow_missing, on_progress, stopped)
        whole = [Run(member.path) for member in members if member.failure is None]
        if whole:
            evaluate_together(whole, cache, SPLIT, device=device, allow_missing=allow_missing)
        return
    except (MemoryError, RuntimeError) as error:
        if not (
            isinstance(error, MemoryError | torch.OutOfMemoryError)
            or any(text in str(error) for text in NO_MEMORY)
        ):
            raise
    # Only here are the models gone that the error held; optimisers are part of cycles.
    gc.collect()
    torch.cuda.empty_cache()
    if len(members) == 1:
        progress = members[0].progress
        record_failure(
            members[0].path,
            progress[0] if progress else 0,
            f"does not fit into the memory of {device}",
        )
        say(f"{members[0].name} is stopped: it does not fit into the memory of {device}")
        return
    say(
        f"{len(members)} members do not fit into the memory of {device} together: half of them at a time"
    )
    half = math.ceil(len(members) / 2)
    for part in (members[:half], members[half:]):
        train_group(part, cache, device, allow_missing, on_progress, say)


def record_failure(path: Path, step: int, reason: str) -> None:
    write_atomically(path / "failed.json", to_json(MemberFailure(step=step, reason=reason)))
