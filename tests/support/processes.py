"""Trainings in several processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys

STUCK_S = 300
"""A start that lasts longer hangs."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(processes: int, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, str(processes), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the errors that the processes of the training report. torchrun adds a traceback of its own."""
    try:
        out, err = process.communicate(timeout=STUCK_S)
    finally:
        process.kill()
    assert err.count("Traceback (most recent") == err.count(".ChildFailedError: ") <= 1, err
    return (
        process.returncode,
        out,
        [line for line in err.splitlines() if line.startswith("error: ")],
    )
