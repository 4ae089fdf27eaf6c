"""Processes on this machine, one per device. They end with the process that started them.

A worker that was killed by a signal (by hand, or for want of memory) is started again at the next
look; one that ended by itself with an error is not, since it would end so again.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.child_python import module_command, search_path
from pipeline.config import plugins
from pipeline.config.json_files import to_json
from pipeline.device import cores
from pipeline.extract.launchers import _die_with_parent
from pipeline.extract.launchers.contract import EnginePlugin, Job, Workers, last_line


class Engine(EnginePlugin):
    """Without CUDA, or beside it, the cores are shared out: OMP_NUM_THREADS is cores over workers
    unless it is set."""

    class Settings(plugins.Settings):
        """Empty."""

    def __init__(self, settings: Any, workers: int) -> None:
        super().__init__(settings, workers)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, job: Job, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._job, self._logs = job, logs
        self._processes = {index: self._start(index) for index in range(self.workers)}

    def poll(self) -> Workers:
        ended = []
        for index, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            self._end(self._processes.pop(index))
            if code:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                ended.append(f"worker {index}: {how}: {last_line(self._log(index))}")
            if code < 0:
                self._processes[index] = self._start(index)
        return Workers(len(self._processes), 0, tuple(ended))

    def stop(self) -> None:
        while self._processes:
            self._end(self._processes.popitem()[1])

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        worker = [self._job.kind(), to_json(self._job).decode(), str(index)]
        command = [*module_command(_die_with_parent.__name__), *worker]
        with self._log(index).open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": str(max(1, cores() // self.workers))}
        return threads | os.environ | {"PYTHONPATH": search_path()}

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends the worker and its group, which may outlive a worker killed alone; what decodes for
        it ends by itself."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin
        process.stdin.close()

    def _log(self, index: int) -> Path:
        return self._logs / f"{index}.log"
