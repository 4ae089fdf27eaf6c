"""The module keeps the laws of temporal modules, and is found by its name."""

from __future__ import annotations

import json
import subprocess
import sys


def stillframe(*arguments: str) -> str:
    command = [sys.executable, "-m", "stillframe", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_keeps_the_laws():
    assert "laws hold" in stillframe("check-plugin", "fading_change")


def test_it_is_found():
    found = {
        row["name"]: row["from"] for row in json.loads(stillframe("list", "temporal", "--json"))
    }
    assert found["fading_change"] == "stillframe-template 0.1.0"
