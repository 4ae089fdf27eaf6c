"""Laws of every engine on disk, held on real processes, a real Slurm and a real Ray cluster; and what is particular to each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import digest
from support.launchers import make, queued
from support.material import Material, address_spec
from support.paths import ROOT
from support.slurm import ARRAY_SIZE

from pipeline.cache.cache import Cache
from pipeline.cache.leases import Leases, lease_of
from pipeline.child_python import search_path
from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.execution import Execution
from pipeline.extract.launchers.contract import EnginePlugin, Workers
from pipeline.extract.worker import ExtractionJob

GROUNDS = {"slurm": "slurm_user", "ray": "ray_cluster"}
"""The fixture that an engine runs on; others need none."""


@pytest.fixture(autouse=True)
def _package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(
    params=[
        pytest.param(engine, marks=pytest.mark.slow) if engine in GROUNDS else engine
        for engine in plugins.names("engine")
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    if request.param in GROUNDS:
        request.getfixturevalue(GROUNDS[request.param])
    return str(request.param)


@contextmanager
def started(engine: EnginePlugin, job: ExtractionJob, logs: Path) -> Iterator[EnginePlugin]:
    try:
        engine.start(job, logs)
        yield engine
    finally:
        engine.stop()


@pytest.fixture
def cache(material: Material, tmp_path: Path) -> Cache:
    """Laid out as that of `material`, with every store missing."""
    ((spec, encoder),) = extract.load_encoders([address_spec()], torch.device("cpu"))
    return extract.create_or_open(
        spec, material.manifest, tmp_path / "caches", encoder, Execution(torch.device("cpu"))
    )


def job_of(cache: Cache, device: str | None = None) -> ExtractionJob:
    return ExtractionJob(caches=(str(cache),), root=str(cache.manifest.root), device=device)


@contextmanager
def held_back(cache: Cache) -> Iterator[None]:
    """As long as it lasts one store is not to be had, so that no worker comes to an end."""
    with Leases(cache.storage) as leases:
        assert leases.claim(lease_of(max(cache.plan)))
        yield


def at_work(cache: Cache, logs: Path, workers: int) -> list[int]:
    """The processes of all workers, once they have done what there is but for the store that is held back."""
    until(lambda: len(cache.missing_stores()) == 1)
    return list(until(lambda: len(pids := processes(logs)) == workers and pids))


def processes(logs: Path) -> list[int]:
    """Workers that write to a log in `logs`, or are told of it; neither Slurm's own processes nor those that decode."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            output = str((entry / "fd/1").readlink())
            if (words[0] == sys.executable or words[0].startswith("ray::")) and str(
                logs
            ) in f"{output} {words}":
                found.append(int(entry.name))
    return found


def until(condition: Callable[[], Any]) -> Any:
    while not (value := condition()):
        time.sleep(0.05)
    return value


def finish(engine: EnginePlugin) -> list[str]:
    """Polls until no worker is left: why workers ended."""
    ended: list[str] = []
    while True:
        workers = engine.poll()
        ended += workers.ended
        if not workers.running + workers.waiting:
            return ended
        time.sleep(0.1)


def assert_same_bytes(cache: Cache, material: Material) -> None:
    assert cache.missing_stores() == []
    assert digest(cache.path / "stores") == digest(material.cache.path / "stores")


def test_workers_fill_the_cache_and_end_by_themselves(name, cache, material, tmp_path):
    with started(make(name, 2), job_of(cache), tmp_path / "logs") as engine:
        with held_back(cache):
            begun = engine.poll()
            assert (begun.running + begun.waiting, begun.ended) == (2, ())
            until(lambda: engine.poll().running == 2)
            until(lambda: len(cache.missing_stores()) == 1)
        assert finish(engine) == []
        assert engine.poll() == Workers(0, 0, ())
    assert_same_bytes(cache, material)


@pytest.mark.slow
def test_the_work_of_a_killed_worker_is_taken_over(name, cache, material, tmp_path):
    with started(make(name, 1), job_of(cache), tmp_path / "logs") as engine:
        with held_back(cache):
            (pid,) = at_work(cache, tmp_path / "logs", 1)
            os.kill(pid, signal.SIGKILL)
            (ended,) = until(lambda: engine.poll().ended)
            assert ended.startswith("worker 0: ") and "\n" not in ended
        with started(make(name, 1), job_of(cache), tmp_path / "more") as other:
            assert finish(other) == []
        assert finish(engine) == []
    assert_same_bytes(cache, material)


def test_an_error_of_a_worker_is_told_with_its_last_words(name, tmp_path):
    job = ExtractionJob(caches=(str(tmp_path / "nowhere"),), root=str(tmp_path))
    with started(make(name, 1), job, tmp_path / "logs") as engine:
        (ended,) = finish(engine)
    assert ended.startswith("worker 0: ")
    assert f"{tmp_path / 'nowhere'} is not a cache" in ended
    logs = [file for file in (tmp_path / "logs").iterdir() if file.suffix in (".log", ".out")]
    assert len(logs) == 1 and "is not a cache" in logs[0].read_text()


@pytest.mark.slow
def test_stop_ends_all_workers(name, cache, tmp_path):
    with started(make(name, 2), job_of(cache), tmp_path / "logs") as engine, held_back(cache):
        pids = families(at_work(cache, tmp_path / "logs", 2))
        assert engine.poll().running == 2
        engine.stop()
        until(lambda: not any(map(is_alive, pids)))
        assert engine.poll() == Workers(0, 0, ())
        engine.stop()


def families(pids: list[int]) -> list[int]:
    """Processes and their children, such as those that decode."""
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids]
    return [*pids, *(int(child) for family in children for child in family)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_local_starts_a_killed_worker_again(cache, material, tmp_path):
    with started(make("local", 1), job_of(cache), tmp_path / "logs") as engine:
        with held_back(cache):
            pids = families(at_work(cache, tmp_path / "logs", 1))
            os.kill(pids[0], signal.SIGKILL)
            (ended,) = until(lambda: engine.poll().ended)
            until(lambda: not any(map(is_alive, pids)))
        assert ended == f"worker 0: killed by SIGKILL: nothing in {tmp_path / 'logs' / '0.log'}"
        assert finish(engine) == []
    assert_same_bytes(cache, material)


@pytest.mark.parametrize(
    ("given", "workers", "threads"), [(None, 1, "all"), (None, 1000, "1"), ("7", 2, "7")]
)
def test_local_shares_out_the_cores(given, workers, threads, cache, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    engine = make("local", workers)
    environment = engine._environment()
    assert environment["OMP_NUM_THREADS"] == (
        str(len(os.sched_getaffinity(0))) if threads == "all" else threads
    )
    assert environment["PYTHONPATH"] == search_path()
    assert environment["PATH"] == os.environ["PATH"]


PARENT = """
import sys, time
from pathlib import Path
from pipeline.config import plugins
from pipeline.extract.worker import ExtractionJob
engine = plugins.load("engine", "local")(None, 2)
engine.start(ExtractionJob.model_validate_json(sys.argv[1]), Path("logs"))
time.sleep(600)
"""


@pytest.mark.slow
def test_local_workers_die_with_their_parent(cache, tmp_path):
    with held_back(cache):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, job_of(cache).model_dump_json()], cwd=tmp_path
        )
        try:
            pids = families(at_work(cache, tmp_path / "logs", 2))
        finally:
            parent.kill()
            parent.wait()
        until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_slurm_cancelled_task_is_told_and_another_takes_over(slurm_user, cache, material, tmp_path):
    with started(make("slurm", 2, cpus_per_task=1), job_of(cache), tmp_path / "logs") as engine:
        with held_back(cache):
            at_work(cache, tmp_path / "logs", 2)
            (submitted,) = (tmp_path / "logs").glob("*_submission.sh")
            array = submitted.name.partition("_")[0]
            subprocess.run(["scancel", f"{array}_1"], check=True)
            (ended,) = until(lambda: engine.poll().ended)
            assert ended.startswith(f"worker 1: job {array}_1 CANCELLED: ")
        with started(make("slurm", 1), job_of(cache), tmp_path / "more") as other:
            assert finish(other) + finish(engine) == []
    assert_same_bytes(cache, material)


@pytest.mark.slow
def test_slurm_preempted_worker_goes_back_to_the_queue(slurm_user, cache, tmp_path):
    with started(make("slurm", 1), job_of(cache), tmp_path / "logs") as engine, held_back(cache):
        (pid,) = at_work(cache, tmp_path / "logs", 1)
        (submitted,) = (tmp_path / "logs").glob("*_submission.sh")
        subprocess.run(["scancel", "--signal=USR2", submitted.name.partition("_")[0]], check=True)
        until(lambda: not is_alive(pid))
        assert until(lambda: (now := engine.poll()).waiting and now) == Workers(0, 1, ())


@pytest.mark.slow
def test_slurm_splits_arrays_and_runs_what_the_script_says(slurm_user, cache, material, tmp_path):
    given = {
        "time_min": 7,
        "mem_gb": 0.2,
        "cpus_per_task": 1,
        "array_parallelism": 1,
        "setup": ["export GREETING=hello"],
    }
    engine, before = make("slurm", ARRAY_SIZE + 1, **given), queued()
    script = str(engine.script(job_of(cache)))
    assert re.findall(r"--array=(\S+)", script) == [f"0-{ARRAY_SIZE - 1}%1"]
    for line in (
        "#SBATCH --time=7",
        "#SBATCH --mem=204MB",
        "export GREETING=hello",
        "export OMP_NUM_THREADS=1",
    ):
        assert script.count(f"{line}\n") == 2
    assert "--gpus-per-node" not in script
    assert (
        str(engine.script(job_of(cache, device="cuda"))).count("#SBATCH --gpus-per-node=1\n") == 2
    )
    assert queued() <= before
    with started(engine, job_of(cache), tmp_path / "logs"):
        assert finish(engine) == []
    here = str(Path("logs").absolute())
    foretold = [
        f"#!/bin/bash{text}".replace(here, str(tmp_path / "logs"))
        for text in script.split("#!/bin/bash")[1:]
    ]
    submitted = [file.read_text() for file in (tmp_path / "logs").glob("*_submission.sh")]
    assert sorted(map(str.strip, submitted)) == sorted(map(str.strip, foretold))
    assert_same_bytes(cache, material)


@pytest.mark.slow
def test_slurm_refusal_is_told(slurm_user, cache, tmp_path):
    before = queued()
    with pytest.raises(
        BadInput,
        match="not submitted: invalid partition specified: nowhere; Batch job submission failed",
    ):
        make("slurm", 2, partition="nowhere").start(job_of(cache), tmp_path / "logs")
    assert queued() <= before


def test_slurm_is_missing(monkeypatch, cache, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        BadInput, match="no sbatch, srun, squeue, scancel, scontrol on this machine"
    ):
        make("slurm", 2).start(job_of(cache), tmp_path / "logs")


@pytest.mark.parametrize(("engine", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_told(engine, package, monkeypatch, cache, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        BadInput, match=f"engine '{engine}' needs the package '{package}'"
    ) as raised:
        make(engine, 1).start(job_of(cache), tmp_path / "logs")
    assert raised.value.hint == f"pip install 'stillframe[{engine}]'"


@pytest.mark.slow
def test_ray_worker_waits_for_a_core(ray_cluster, cache, material, tmp_path):
    with started(make("ray", 3), job_of(cache), tmp_path / "logs") as engine:
        with held_back(cache):
            until(lambda: engine.poll().running == 2)
            assert engine.poll() == Workers(2, 1, ())
        assert finish(engine) == []
    assert_same_bytes(cache, material)


REFUSED = """
import socket, sys
from pathlib import Path
from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.extract.worker import ExtractionJob
free = socket.socket()
free.bind(("127.0.0.1", 0))
address = f"127.0.0.1:{free.getsockname()[1]}"
engine = plugins.load("engine", "ray")(plugins.settings("engine", "ray", {"address": address}, "ray"), 1)
try:
    engine.start(ExtractionJob(caches=(), root="."), Path(sys.argv[1]))
except BadInput as error:
    assert f"no cluster at {address}: " in error.message, error.message
    print("told")
"""


def test_ray_address_where_nobody_answers_is_told(tmp_path):
    """In a process of its own: this one may have joined a cluster already."""
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "told\n"


def test_a_job_is_plain_data(cache):
    assert ExtractionJob.model_validate(json.loads(job_of(cache).model_dump_json())) == job_of(
        cache
    )
