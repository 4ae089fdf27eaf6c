"""A folder `pipeline/` of somebody else, in the working directory, is not taken for our code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from pipeline import child_python
from pipeline.errors import BadInput
from pipeline.extract.launchers import ray, slurm


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


@pytest.mark.slow
def test_processes_of_our_own_import_it_beside_another_pipeline(research):
    """The workers of an extraction, and the processes that decode for them."""
    world = ("clips_per_class=3", "frames=12", "val_fraction=0.34")
    sets = [word for setting in world for word in ("--set", setting)]
    made = python("-m", "stillframe", "manifest", "world", "--out", "data", *sets, cwd=research)
    assert made.returncode == 0, made.stderr
    words = ("extract", "demo", "data", "--device", "cpu", "--workers", "2", "--engine", "local")
    done = python("-m", "stillframe", *words, cwd=research)
    assert (done.returncode, "288 frames" in done.stdout) == (0, True), done


def test_paths_of_child_processes_have_others_of_our_name_last(research, monkeypatch):
    plain = research / "plain"
    monkeypatch.setattr(sys, "path", [str(research), str(plain), str(ROOT)])
    assert child_python.search_path() == f"{plain}:{ROOT}:{research}"
    assert child_python.others_of_our_name() == [str(research)]
    monkeypatch.setattr(sys, "path", ["", str(plain)])  # as where an import hook finds our package
    monkeypatch.chdir(research)
    assert child_python.search_path() == f"{plain}:{ROOT}:"
    monkeypatch.setattr(sys, "path", [str(plain)])
    assert child_python.search_path() == str(plain)
    assert child_python.others_of_our_name() == [str(research)]
    monkeypatch.chdir(ROOT)
    assert child_python.others_of_our_name() == []


def test_jobs_of_a_cluster_import_it_too_or_are_refused(research, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert slurm._path_lines() == []
    monkeypatch.chdir(research)
    monkeypatch.setattr(sys, "path", [str(ROOT), str(research)])
    assert slurm._path_lines() == [
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={ROOT}:{research}",
    ]
    with pytest.raises(BadInput) as refused:
        ray.Engine.start(object.__new__(ray.Engine), None, research)
    assert refused.value.message == (
        f"engine 'ray': {research} holds another package 'pipeline', which Ray's workers would "
        "take for this one"
    )
