"""Targets of the Makefile hand on what they are given, word by word."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

MORE = """--set training.steps=10 --axis 'temporal=["gru", "identity"]'"""
MORE_WORDS = ["--set", "training.steps=10", "--axis", 'temporal=["gru", "identity"]']
TARGETS = {
    "demo": ([], ["demo", "--out", "demo"]),
    "extract": (["SPEC=my.toml", "DATA=data"], ["extract", "my.toml", "data", "--out", "caches"]),
    "train": (["RECIPE=demo_gru", "CACHE=caches/a"], ["train", "demo_gru", "caches/a"]),
    "pretrain": (["CACHE=caches/a"], ["train", "pretrain_forecast", "caches/a"]),
    "ablate": (["CACHE=caches/a"], ["sweep", "temporal_modules", "caches/a"]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout whose environment is ready, and whose command says what it is given."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.ready").touch()
    program = tmp_path / "says"
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    return tmp_path


def make(folder: Path, *words: str) -> list[str]:
    command = ["make", "-s", *words, f"STILLFRAME={folder / 'says'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_passes_args_on(folder, target):
    given, wanted = TARGETS[target]
    assert make(folder, target, *given) == wanted
    assert make(folder, target, *given, f"ARGS={MORE}") == [*wanted, *MORE_WORDS]


@pytest.mark.parametrize("target", ["extract", "train", "pretrain"])
def test_what_is_missing_is_said_in_one_line(folder, target):
    done = subprocess.run(
        ["make", "-s", target, f"STILLFRAME={folder / 'says'}", f"ARGS={MORE}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"make {target}: set ")
