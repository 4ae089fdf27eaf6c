"""A plug-in of pytest: writes down how each test ends as soon as it has, so that a test which takes its process with it
costs no other outcome."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FILE = "STILLFRAME_GPU_OUTCOMES"
"""Environment variable: the file that gets a line of JSON for every test."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    line: dict[str, Any] = {
        "test": report.nodeid.removeprefix("tests/"),
        "outcome": report.outcome,
        "seconds": round(report.duration, 3),
        **dict(report.user_properties),
    }
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        line["reason"] = report.longrepr[2].removeprefix("Skipped: ")
    if report.outcome == "failed":
        line["reason"] = report.longreprtext.strip().splitlines()[-1][:300]
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
