"""A part in a process of its own, with a limit to its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.paths import ROOT

from gpu.outcomes import FILE
from gpu.parts import CACHE, Part

GRACE_S = 5.0
"""Time to end in, after the limit, before a part is killed."""
TAIL_LINES = 25


def run(
    part: Part, limit_s: float, scratch: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """How it ended, how long it took, and what it said."""
    outcomes, out, err = (scratch / name for name in ("outcomes.jsonl", "stdout", "stderr"))
    outcomes.unlink(missing_ok=True)
    arguments = [_filled(word, scratch) for word in part.arguments]
    begin = time.monotonic()
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**environment, FILE: str(outcomes)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # so that its own processes end with it
        )
        is_late = not _has_ended(process, limit_s)
        if is_late:
            _end(process)
    found: dict[str, Any] = {
        "part": part.name,
        "command": _readable(part),
        "rc": process.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "limit_s": round(limit_s, 1),
        "outcome": "out of time" if is_late else "failed" if process.returncode else "done",
    }
    said, complaints = (file.read_text(errors="replace") for file in (out, err))
    if part.says == "tests":
        found["tests"] = _outcomes(outcomes)
    if part.says == "json" and process.returncode == 0:
        with suppress(ValueError):
            found["figures"] = json.loads(said)
    if found["outcome"] != "done":
        found["tail"] = [*said.splitlines()[-TAIL_LINES:], *complaints.splitlines()[-TAIL_LINES:]]
    return found


def not_begun(part: Part) -> dict[str, Any]:
    return {
        "part": part.name,
        "command": _readable(part),
        "rc": None,
        "seconds": 0.0,
        "outcome": "not begun: no time was left",
    }


def _filled(word: str, scratch: Path) -> str:
    """An argument with the cache in its place; where none was made, the part says that there is none."""
    if word != CACHE:
        return word
    return str(next(iter(sorted((scratch / "caches").glob("*"))), scratch / "caches"))


def _readable(part: Part) -> str:
    words = part.arguments[1:] if part.arguments[0] == "-m" else part.arguments
    text = " ".join(words).replace("pipeline.cli", "stillframe", 1)
    return text.replace(f"{ROOT}/", "")


def _has_ended(process: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        if _has_ended(process, GRACE_S):
            return


def _outcomes(file: Path) -> dict[str, Any]:
    """Counts, the largest difference from the CPU, and every test that has something to say."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    differences = [line for line in lines if "difference" in line]
    worst = max(differences, key=lambda line: float(line["difference"]), default=None)
    return {
        "counts": dict(Counter(line["outcome"] for line in lines)),
        "worst": worst and {"test": worst["test"], "difference": worst["difference"]},
        "every": lines,
    }
