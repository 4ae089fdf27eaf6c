"""A process that has imported everything and starts no thread: what it forks is at work at once.

Reads one JSON request a line and answers each with one. Run by `harness.Server`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import zarr  # noqa: F401

from pipeline.cache.cache import Cache  # noqa: F401
from pipeline.cli.main import main
from pipeline.extract import worker
from pipeline.extract.launchers.contract import run_worker
from pipeline.models.encoders import address  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import faults


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Forks a process that runs a command or works at a job, under the faults that are asked for."""
    pid = os.fork()
    if pid == 0:
        os._exit(_run(request))
    return {"pid": pid}


def _run(request: dict[str, Any]) -> int:
    try:
        for handle, name in ((0, os.devnull), (1, os.devnull), (2, request["stderr"])):
            opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, handle)
            os.close(opened)
        torch.set_num_threads(1)
        faults.apply(request["faults"])
        code = (
            main(request["command"])
            if "command" in request
            else run_worker(worker.ExtractionJob.kind(), request["job"], request["index"])
        )
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        return 99
    return code


def signal_(request: dict[str, Any]) -> dict[str, Any]:
    os.kill(request["pid"], request["signal"])
    return {}


def wait(request: dict[str, Any]) -> dict[str, Any]:
    """Until a process has ended or is stopped. Status: exit code, minus the signal that killed it, or `stopped`; None: neither."""
    pid, status = os.waitpid(request["pid"], os.WUNTRACED | (0 if request["block"] else os.WNOHANG))
    if pid == 0:
        return {"status": None}
    return {"status": "stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)}


DOES = {"start": start, "signal": signal_, "wait": wait}

if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(DOES[asked["do"]](asked)) + "\n")
        sys.stdout.flush()
