"""The plug-ins of docs/extending.md work as they stand: in a copy, by its tests and a training."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S))
"""Path in the checkout -> the whole file."""
PLUGINS = [path for path in FILES if path.startswith("pipeline/")]
CONFORMANCE = (
    "test_architecture.py",
    "test_spans.py",
    "test_tasks.py",
    "test_temporal.py",
    "test_together.py",
)
TRAINING = """
import json, sys
from pathlib import Path
from pipeline.cli.main import main

room, out = Path("room"), Path("out")
short = ["training.steps=2", "training.batch_size=2", "windows.frames=3"]
average = ["temporal.name=moving_average", "temporal.half_life=8"]


def run(*arguments, sets=()):
    sets = [part for pair in sets for part in ("--set", pair)]
    assert main([*map(str, arguments), *sets]) == 0, arguments


def extract(data):
    run("extract", "cache_specs/demo.toml", data, "--out", out / data)
    return next(path for path in (out / data).iterdir() if (path / "cache.json").is_file())


run("manifest", "world", "--out", room, sets=["scene=room", "clips_per_class=2"])
spans = []
for clip in map(json.loads, (room / "manifest.jsonl").read_text().splitlines()):
    for start_s, label in ((0, "early"), (1, "late")):
        box = [[start_s + index / 12, 0.1, 0.1, 0.5, 0.5] for index in range(12)]
        span = {"start_s": start_s, "stop_s": start_s + 1, "label": label, "box": box}
        spans.append(span | {"video": clip["source"], "split": clip["split"]})
spans.append(spans[0] | {"video": "missing.mp4"})
(room / "spans.json").write_text(json.dumps(spans))
assert main(["manifest", "spans", "room", "--out", "spans"]) == 3  # one is missing, and listed
cache = extract("spans")
for recipe in ("demo_gru", "demo_boxes"):
    run("train", recipe, cache, "--out", out / recipe, sets=[*average, *short])
distance = ['task={ name = "distance" }', *short]
run("train", "demo_depth", extract("room"), "--out", out / "run", sets=distance)
run("evaluate", out / "run", "--json")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its tests with the plug-ins of the page in their places."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("pipeline", "tests", "cache_specs"):
        shutil.copytree(ROOT / name, folder / name)  # with what is compiled, which takes seconds
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, text in FILES.items():
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def python(copy: Path, *arguments: str) -> str:
    """What a Python of its own says that imports the copy; it must succeed."""
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("PYTEST_XDIST")
    }
    environment |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_three_whole_plugins():
    assert [Path(path).stem for path in PLUGINS] == ["moving_average", "distance", "spans"]
    assert all((ROOT / path).parent.is_dir() for path in PLUGINS)


def test_the_files_that_the_page_names_are_there():
    named = set(re.findall(r"`((?:pipeline|tests)/[\w/]+(?:\.py|/))`", PAGE)) - FILES.keys()
    named = {path for path in named if not path.endswith("/NAME.py")}
    assert len(named) > 8
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_plugins_keep_the_laws_of_their_kinds(copy):
    names = " or ".join(Path(path).stem for path in PLUGINS)
    files = [str(file) for name in CONFORMANCE for file in (copy / "tests").rglob(name)]
    assert len(files) == len(CONFORMANCE)
    said = python(
        copy, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-vv", *files, "-k", names
    )
    passed = re.findall(r"^(\S+::\S+).* PASSED", said, re.M)
    for path, least in zip(PLUGINS, (15, 10, 3), strict=True):
        assert sum(Path(path).stem in test for test in passed) >= least, said


def test_the_plugins_are_as_tidy_as_their_neighbours(copy):
    paths = [str(copy / path) for path in FILES]
    python(copy, "-m", "ruff", "check", *paths)
    python(copy, "-m", "ruff", "format", "--check", *paths)


@pytest.mark.slow
def test_the_plugins_train(copy):
    """Videos through the data set to a cache, and two steps with the module and with the task."""
    said = python(copy, "-c", TRAINING)
    assert re.search(r"spans: 24 clips of 12 videos .* 2 labels", said)
    assert len(re.findall(r"^out/\S+: 2 steps", said, re.M)) == 3
    assert '"AbsRel"' in said
