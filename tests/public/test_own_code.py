"""A folder `pipeline/` of somebody else, in the working directory, is not taken for our code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT


@pytest.fixture
def research(tmp_path) -> Path:
    """A repository with a package `pipeline` of its own."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").write_text("raise SystemExit('another pipeline')\n")
    return tmp_path


def python(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python where this project lies on the path after the working directory."""
    command = [sys.executable, *map(str, words)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def test_the_module_is_the_command_beside_another_pipeline(research):
    done = python("-m", "stillframe", "list", "engine", cwd=research)
    assert (done.returncode, done.stderr) == (0, "") and " slurm " in done.stdout
    there = python("-c", "import pipeline", cwd=research)
    assert there.stderr == "another pipeline\n"  # which Python would take


def test_code_of_ones_own_imports_it_beside_another_pipeline(research):
    code = "import stillframe, pipeline; print(pipeline.__file__); print(stillframe.BadInput)"
    done = python("-c", code, cwd=research)
    own = f"{ROOT / 'pipeline/__init__.py'}\n<class 'pipeline.errors.BadInput'>\n"
    assert (done.stdout, done.stderr) == (own, "")


def test_another_pipeline_that_was_imported_first_is_named(research):
    (research / "pipeline/__init__.py").write_text("")
    done = python("-c", "import pipeline, stillframe", cwd=research)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: stillframe needs the name 'pipeline' for its own code, and "
        f"{research / 'pipeline/__init__.py'} has been imported under it; import stillframe before "
        "it, or give that package another name"
    )
