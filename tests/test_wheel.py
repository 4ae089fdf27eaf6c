"""The wheel, installed where nothing of the checkout can be seen: everything that ships is in it,
and its command works from any folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.commands import fine
from support.paths import ROOT

PARTS = ("pyproject.toml", "README.md", "LICENSE", "cache_specs", "pipeline", "stillframe")
"""All that a build reads."""
TINY_WORLD = ("clips_per_class=3", "frames=12", "val_fraction=0.34")
TINY_TRAINING = ("training.steps=2", "training.batch_size=4", "windows.frames=4")

pytestmark = pytest.mark.slow


def ran(*command: object, cwd: Path, **options: object) -> str:
    """The stdout of a command, which must succeed."""
    process = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, **options
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with the wheel of this checkout in it, and beside it the packages that
    the tests run with, but not the checkout that is installed there for development."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # A copy: a build writes beside its source, and would ship what an earlier one has left there.
    for name in PARTS:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    build = ("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    ran(*pip, *build, cwd=source)
    (wheel,) = folder.glob("stillframe-*.whl")
    ran(sys.executable, "-m", "venv", "--without-pip", folder / "environment", cwd=folder)
    scheme = {"base": str(folder / "environment")}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    # Folders that a .pth file names are searched last, and .pth files in them, such as that of a
    # development install, are not read.
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "shared.pth").write_text("\n".join(shared))
    python = folder / "environment" / "bin" / "python"
    ran(*pip, "--python", python, "install", "--no-deps", wheel, cwd=folder)
    return folder / "environment"


@pytest.fixture
def variables() -> dict[str, str]:
    """The environment of a process that finds no checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture
def stillframe(environment, variables, tmp_path):
    """The command as the wheel installs it, run in an empty folder."""

    def call(*arguments: object) -> str:
        return ran(environment / "bin/stillframe", *arguments, cwd=tmp_path, env=variables)

    return call


def test_the_wheel_lists_what_the_checkout_lists(stillframe, environment, variables, tmp_path):
    code = "import pipeline; print(pipeline.__file__)"
    module = ran(environment / "bin/python", "-c", code, cwd=tmp_path, env=variables)
    assert Path(module.strip()).is_relative_to(environment)
    listed = fine("list", "--json").json
    assert json.loads(stillframe("list", "--json")) == listed
    (tmp_path / "pipeline").mkdir()  # of somebody else
    (tmp_path / "pipeline/__init__.py").write_text("raise SystemExit(1)")
    words = ("-m", "stillframe", "list", "--json")
    there = ran(environment / "bin/python", *words, cwd=tmp_path, env=variables)
    assert json.loads(there) == listed
    assert (Path(module.strip()).parents[1] / "stillframe/py.typed").is_file()


IN_TURN = """
import json, sys
from pathlib import Path
from pipeline.cli.main import main
for words in json.loads(sys.argv[1]):
    code = main([str(next(Path().glob(word))) if "*" in word else word for word in words])
    assert code == 0, words
    print(end="\\0")
"""
"""Commands one after the other: a process for each would import everything anew."""


def test_from_videos_to_a_page_outside_a_checkout(environment, variables, tmp_path):
    def settings(words: tuple[str, ...]) -> list[str]:
        return [word for setting in words for word in ("--set", setting)]

    commands = [
        ["manifest", "world", "--out", "data", *settings(TINY_WORLD)],
        ["extract", "demo", "data"],
        ["train", "demo_gru", "caches/demo-*", *settings(TINY_TRAINING)],
        ["evaluate", "runs/demo_gru"],
        ["report", "runs/demo_gru"],
    ]
    called = (environment / "bin/python", "-c", IN_TURN, json.dumps(commands))
    shown = ran(*called, cwd=tmp_path, env=variables).split("\0")
    assert re.match(r"runs/demo_gru: 2 steps", shown[2])
    assert "demo_gru" in shown[3]
    assert "<style>" in (tmp_path / "report/report.html").read_text(encoding="utf-8")
