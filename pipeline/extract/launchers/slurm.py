"""Job arrays of Slurm, one task per worker, through submitit.

A worker that comes to its time limit dies like any other: its leases lapse and others take over.
One that is preempted gives them back, and submitit puts its task into the queue again. What became
of a task is asked of `squeue`, which needs no accounting and remembers the ended for some minutes
(MinJobAge of the cluster).
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.child_python import others_of_our_name, search_path
from pipeline.config import plugins
from pipeline.errors import BadInput, StillframeError
from pipeline.extract.launchers.contract import (
    EnginePlugin,
    Job,
    Workers,
    last_line,
    require_package,
)

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@%+=/-]+$")]
"""A name of the cluster: it becomes part of a line of the batch script, and must not begin
another."""
Line = Annotated[str, Field(pattern=r"^[^\r\n]+$")]
PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
WAITING = {"PENDING", "CONFIGURING"}
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
UNSEEN = "left the queue unseen"
SLURM_ITSELF = ("srun:", "slurmstepd:")
"""Beginnings of the lines that Slurm adds to the log of a task."""


class Engine(EnginePlugin):
    """Workers outlive the process that submitted them, until `stop`. `logs` also holds what
    submitit hands over."""

    class Settings(plugins.Settings):
        """A setting that is not given is left to the cluster."""

        partition: Word | None = None
        """Partition that the tasks run in."""
        time_min: int = Field(default=240, ge=1)
        """Time limit of a worker, in minutes."""
        gpus_per_node: int | None = Field(default=None, ge=0)
        """GPUs of a worker; as many as it computes on where it is not given and the job's device is
        CUDA."""
        cpus_per_task: int | None = Field(default=None, ge=1)
        """Cores of a worker, and its threads."""
        mem_gb: float | None = Field(default=None, gt=0)
        """Memory of a worker, in gigabytes."""
        account: Word | None = None
        """Account that the time is charged to."""
        qos: Word | None = None
        """Quality of service that Slurm is asked for."""
        array_parallelism: int = Field(default=256, ge=1)
        """Tasks of one array that may run at the same time."""
        setup: tuple[Line, ...] = ()
        """Shell lines that come before the worker, such as `module load cuda`."""

    def __init__(self, settings: Any, workers: int) -> None:
        super().__init__(settings, workers)
        self._tasks: dict[str, tuple[int, Path]] = {}
        self._states: dict[str, str] = {}
        self._arrays: set[str] = set()

    def start(self, job: Job, logs: Path) -> None:
        executor = self._executor(job, logs)
        for indices in self._batches():
            try:
                tasks = executor.map_array(_work, [job] * len(indices), indices)
            except (RuntimeError, OSError) as error:  # submitit's own errors are RuntimeErrors
                self.stop()
                said = "; ".join(
                    line.removeprefix("sbatch: error: ") for line in str(error).splitlines()
                )
                raise BadInput(
                    f"engine 'slurm': not submitted: {said}", "compare with --dry-run"
                ) from error
            for index, task in zip(indices, tasks, strict=True):
                self._tasks[task.job_id] = index, task.paths.stdout
                self._states[task.job_id] = "PENDING"
                self._arrays.add(task.job_id.partition("_")[0])

    def poll(self) -> Workers:
        if not self._tasks:
            return Workers(0, 0, ())
        self._look()
        ended = []
        for task in list(self._tasks):
            state = self._states.get(task, UNSEEN)
            if state in ENDED or state == UNSEEN:
                index, log = self._tasks.pop(task)
                if state != "COMPLETED":
                    ended.append(
                        f"worker {index}: job {task} {state}: {last_line(log, SLURM_ITSELF)}"
                    )
        waiting = sum(self._states[task] in WAITING for task in self._tasks)
        return Workers(len(self._tasks) - waiting, waiting, tuple(ended))

    def stop(self) -> None:
        if self._arrays:
            done = _slurm("scancel", *self._arrays)
            if done.returncode and not _forgotten(done):
                raise StillframeError(
                    f"scancel: {done.stderr.strip()}", f"scancel {' '.join(sorted(self._arrays))}"
                )
        self._tasks, self._arrays = {}, set()

    def script(self, job: Job) -> str:
        """The sbatch file of every array, with the folder of the logs written as `logs` of the
        current one."""
        executor = self._executor(job, Path("logs"))._executor
        texts = []
        for indices in self._batches():
            if len(indices) > 1:
                executor.parameters["map_count"] = len(indices)
            else:
                executor.parameters.pop("map_count", None)
            texts.append(executor._make_submission_file_text(executor._submitit_command_str, ""))
        return "\n".join(texts)

    def _executor(self, job: Job, logs: Path) -> Any:
        submitit = require_package("submitit", "slurm")
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise BadInput(
                f"engine 'slurm': no {', '.join(missing)} on this machine",
                "start from a machine of the cluster",
            )
        asked = self.settings
        setup, srun_args = [*_path_lines(), *asked.setup], []
        if asked.cpus_per_task:
            setup.append(f"export OMP_NUM_THREADS={asked.cpus_per_task}")
            srun_args = [
                f"--cpus-per-task={asked.cpus_per_task}"
            ]  # since Slurm 22.05 a step does not inherit it
        gpus = (
            job.devices
            if asked.gpus_per_node is None and (job.device or "").startswith("cuda")
            else asked.gpus_per_node
        )
        parameters = {
            "name": "stillframe",
            "timeout_min": asked.time_min,
            "gpus_per_node": gpus,
            "cpus_per_task": asked.cpus_per_task,
            "mem_gb": asked.mem_gb,
            "slurm_partition": asked.partition,
            "slurm_account": asked.account,
            "slurm_qos": asked.qos,
            "slurm_array_parallelism": asked.array_parallelism,
            "slurm_setup": setup,
            "slurm_srun_args": srun_args,
            "slurm_stderr_to_stdout": True,
        }
        executor = submitit.AutoExecutor(logs, cluster="slurm")
        executor.update_parameters(
            **{name: value for name, value in parameters.items() if value is not None}
        )
        return executor

    def _batches(self) -> list[range]:
        """Numbers of the workers, in arrays no longer than the cluster takes."""
        config = _slurm("scontrol", "show", "config")
        if config.returncode:
            last = (config.stderr.strip().splitlines() or ["no answer"])[-1]
            raise StillframeError(f"Slurm does not answer: {last}", "is slurmctld running?")
        sizes = [
            int(line.partition("=")[2])
            for line in config.stdout.splitlines()
            if line.startswith("MaxArraySize")
        ]
        size = max([1, *sizes])  # 0: no arrays here
        return [
            range(first, min(first + size, self.workers)) for first in range(0, self.workers, size)
        ]

    def _look(self) -> None:
        """Asks for the state of every task. Where there is no answer, what was known stands until
        the next look."""
        done = _slurm(
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--jobs={','.join(self._arrays)}",
            "--format=%i|%T",
        )
        if done.returncode == 0 or _forgotten(done):
            self._states = dict(line.split("|") for line in done.stdout.split())


def _path_lines() -> list[str]:
    """Lines of the batch script by which a worker imports this package where another one of its
    name would come first, as in the working directory."""
    if not others_of_our_name():
        return []
    return ["export PYTHONSAFEPATH=1", f"export PYTHONPATH={shlex.quote(search_path())}"]


def _work(job: Job, index: int) -> None:
    job.work(index)


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _forgotten(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether Slurm complains of nothing but jobs that ended long ago."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return bool(lines) and all("Invalid job id" in line for line in lines)
