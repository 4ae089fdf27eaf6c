"""The laws of engines: see `contract`, and docs/extending.md."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config.laws import BrokenLaw, Laws, demand
from pipeline.errors import StillframeError
from pipeline.extract.launchers.contract import EnginePlugin, Job, Workers

WORKERS = 2
PATIENCE_S = 300.0
"""How long is waited for workers that should come to something."""
SAID = "this worker was told to fail"


class Errand(Job):
    """A job that leaves a file for each worker, then ends, fails or stays."""

    folder: str
    then: str

    def _work(self, index: int) -> None:
        (Path(self.folder) / f"begun-{index}").touch()
        if self.then == "fail":
            raise StillframeError(SAID, "nothing to do")
        while self.then == "stay":
            (Path(self.folder) / f"alive-{index}").write_text(str(time.time()))
            time.sleep(0.1)


class NewEngines:
    """Makes engines of one kind and settings. Every one starts workers once."""

    def __init__(self, make: Callable[[int], EnginePlugin]) -> None:
        """`make` takes the number of workers."""
        self._make = make

    @contextmanager
    def at_work(self, then: str) -> Iterator[tuple[EnginePlugin, Path]]:
        """An engine whose workers were started on an errand, and the folder of their files."""
        engine = self._make(WORKERS)
        with tempfile.TemporaryDirectory(prefix="stillframe-") as folder:
            try:
                engine.start(Errand(folder=folder, then=then), Path(folder) / "logs")
                yield engine, Path(folder)
            finally:
                engine.stop()


def _watch(engine: EnginePlugin, until: Callable[[Workers], bool], what: str) -> list[str]:
    """Polls until something is so; the lines of workers that ended. Raises BrokenLaw where it never
    is."""
    ended, waited_s = list[str](), 0.0
    while True:
        workers = engine.poll()
        ended += workers.ended
        if until(workers):
            return ended
        demand(waited_s < PATIENCE_S, f"{what} after {PATIENCE_S:g} s: {workers}")
        time.sleep(0.1)
        waited_s += 0.1


def _all_gone(workers: Workers) -> bool:
    return workers.running + workers.waiting == 0


ENGINE_LAWS: Laws[NewEngines] = Laws()


@ENGINE_LAWS.add("workers do the job, each once, and end by themselves")
def _end(engines: NewEngines) -> None:
    with engines.at_work("end") as (engine, folder):
        ended = _watch(engine, _all_gone, "workers with nothing left to do are there")
        begun = sorted(file.name for file in folder.glob("begun-*"))
        demand(begun == ["begun-0", "begun-1"], f"of {WORKERS} workers there began {begun}")
        demand(not ended, f"poll says of workers that had nothing left to do: {ended}")


@ENGINE_LAWS.add("what the error of a worker says is told")
def _fail(engines: NewEngines) -> None:
    with engines.at_work("fail") as (engine, _):
        ended = _watch(engine, _all_gone, "workers that failed are there")
        demand(len(ended) == WORKERS, f"{WORKERS} workers failed, and poll told of {len(ended)}")
        untold = [line for line in ended if SAID not in line]
        if untold:
            raise BrokenLaw(f"poll says '{untold[0]}', and the worker said '{SAID}'")


@ENGINE_LAWS.add("stop leaves no worker behind")
def _stop(engines: NewEngines) -> None:
    with engines.at_work("stay") as (engine, folder):
        _watch(engine, lambda _: len([*folder.glob("alive-*")]) == WORKERS, "workers do not begin")
        engine.stop()
        demand(_all_gone(engine.poll()), f"after it poll says {engine.poll()}")
        time.sleep(1)
        before = [file.read_text() for file in sorted(folder.glob("alive-*"))]
        time.sleep(1)
        after = [file.read_text() for file in sorted(folder.glob("alive-*"))]
        demand(before == after, "workers go on after it")
