"""What a training talks to: every tracker that the user has named, for every run that trains.

A tracker that does not take a run is said before the training begins, as an error. One that fails
later is said once and left out, and the training goes on: what it trains is worth more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from pipeline.errors import unknown_name
from pipeline.train.evaluation import Evaluation
from pipeline.train.run import Run, read_metrics
from pipeline.train.trackers.contract import Outcome, TrackedRun, Tracker, one_line, scalars
from pipeline.train.trackers.mlflow import MLflow
from pipeline.train.trackers.tensorboard import TensorBoard
from pipeline.train.trackers.wandb import WeightsAndBiases
from pipeline.train.trainer import OnProgress, TrainProgress

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class Tracking:
    """The trackers of a command. Leaving it as a context ends those of runs that have not come to
    their end."""

    def __init__(
        self,
        names: Sequence[str] = (),
        group: str | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`names`: keys of `TRACKERS`. `group`: name of the sweep. `say` is told where a run can be
        seen, and what has failed. Raises BadInput for a tracker that there is not, or whose package
        is not installed."""
        self.names = tuple(dict.fromkeys(names))
        self._group, self._say = group, say
        for name in self.names:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
            TRACKERS[name].require(name)
        self._open: dict[str, dict[str, Tracker]] = {}
        """Name of a run -> its trackers that have not failed."""
        self._steps: dict[str, int] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outcome: Outcome = "finished"
        if kind is not None:
            outcome = "failed" if issubclass(kind, Exception) else "stopped"
        for run in list(self._open):
            self._close(run, outcome, {})

    @property
    def takes_scores(self) -> bool:
        """Whether any of them keeps scores with intervals."""
        return any(TRACKERS[name].takes_scores for name in self.names)

    def begin(self, run: Run) -> None:
        """Opens all trackers for a run, unless they are open, and logs the steps up to its last
        checkpoint that they do not have. Raises BadInput where one does not take it."""
        name = run.path.name
        if not self.names or name in self._open:
            return
        header = run.header
        config: dict[str, Any] = {
            "recipe": header.recipe,
            "cache": header.cache.model_dump(mode="json"),
            "stillframe": header.versions.get("stillframe", "unknown"),
        }
        seen = TrackedRun(run.path, config, self._group)
        checkpoint = run.checkpoint("last")
        self._steps[name] = checkpoint.step if checkpoint else 0
        self._open[name] = trackers = {}
        for tracker_name in self.names:
            trackers[tracker_name] = tracker = TRACKERS[tracker_name](seen)
            if tracker.where and self._group is None:
                self._say(f"{tracker.title}: {tracker.where}")
        missing = [
            (each, tracker.last_step)
            for each, tracker in trackers.items()
            if tracker.last_step is not None and tracker.last_step < self._steps[name]
        ]
        for line in read_metrics(run.path) if missing else ():
            for each, last_step in missing:
                if last_step < line["step"] <= self._steps[name] and each in trackers:
                    with self._guarded(name, each):
                        trackers[each].log(line["step"], scalars(line))

    def log(self, progress: TrainProgress) -> None:
        """Takes a step of a run that has begun; nothing of one that has not."""
        trackers, line = self._open.get(progress.run, {}), progress.metrics
        if not line:  # a training of no step
            return
        self._steps[progress.run] = step = line["step"]
        for name, tracker in list(trackers.items()):
            if tracker.last_step is None or step > tracker.last_step:
                with self._guarded(progress.run, name):
                    tracker.log(step, scalars(line))

    def before(self, on_progress: OnProgress | None) -> OnProgress:
        """What a training calls after every step: `log`, then `on_progress` if there is one."""

        def after_step(progress: TrainProgress) -> None:
            self.log(progress)
            if on_progress:
                on_progress(progress)

        return after_step

    def finish(self, run: Run, evaluation: Evaluation | None, outcome: Outcome) -> None:
        """Ends the trackers of a run, with its scores if there are any."""
        self._close(run.path.name, outcome, scores_of(evaluation) if evaluation else {})

    def _close(self, run: str, outcome: Outcome, scores: dict[str, float]) -> None:
        trackers = self._open.get(run, {})
        for name, tracker in list(trackers.items()):
            with self._guarded(run, name):
                tracker.close(outcome, self._steps[run], scores)
        self._open.pop(run, None)

    @contextmanager
    def _guarded(self, run: str, name: str) -> Iterator[None]:
        """Leaves out a tracker that fails inside, and says so once."""
        try:
            yield
        except Exception as error:  # of somebody else's: it may be any
            del self._open[run][name]
            if name not in self._told:
                self._told.add(name)
                self._say(
                    f"{TRACKERS[name].title} has failed, and run {run} goes on without it: "
                    f"{one_line(error)}; next: the same command once more logs what is missing"
                )


UNTRACKED = Tracking()
"""Takes everything, and does nothing with it."""


def scores_of(evaluation: Evaluation) -> dict[str, float]:
    """The scores of an evaluation by name: `evaluation/val/streaming/top-1`, and the ends of its
    interval below that, `.../low` and `.../high`."""
    found: dict[str, float] = {}
    for form, metrics in evaluation.forms.items():
        for metric, interval in metrics.items():
            name = f"evaluation/{evaluation.split}/{form}/{metric}"
            ends = {
                name: interval.score,
                f"{name}/low": interval.low,
                f"{name}/high": interval.high,
            }
            found |= {key: value for key, value in ends.items() if value is not None}
    return found
