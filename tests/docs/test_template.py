"""The package in docs/template, installed as its README says; and what else packages may bring."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import assert_refused, call, fine
from support.paths import ROOT

TEMPLATE = ROOT / "docs" / "template"
FROM = {"distribution": "stillframe-template", "version": "0.1.0"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which the package was installed, and nothing else."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copytree(TEMPLATE, folder / "source")  # a build writes beside its source
    command = [
        *PIP,
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        "packages",
        "./source",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "packages"


def package(folder: Path, name: str, group: str, points: dict[str, str], code: str = "") -> Path:
    """What an installation leaves of a package with these entry points."""
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (facts / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    (folder / f"{name}.py").write_text(code)
    return folder


def test_a_run_says_which_package_and_version_it_was_trained_with(
    place, installed, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    sets = ("--set", "training.steps=2", "--set", "temporal.name=fading_change")
    missing = call("train", place.recipe, place.cache, "--out", run, *sets)
    assert_refused(missing, "no temporal called 'fading_change'")
    with monkeypatch.context() as path:
        path.syspath_prepend(installed)
        rows = {row["name"]: row for row in fine("list", "temporal", "--json").json}
        assert rows["fading_change"]["from"] == "stillframe-template 0.1.0"
        fine("train", place.recipe, place.cache, "--out", run, *sets)
        fine("evaluate", run)
    table = json.loads((run / "run.json").read_text())["recipe"]["temporal"]
    assert table == {"name": "fading_change", "from": FROM, "keep": 0.8}
    needs = (
        f"{run}/run.json: needs the temporal plug-in 'fading_change' of stillframe-template 0.1.0"
    )
    advice = "next: pip install 'stillframe-template==0.1.0'"
    assert_refused(call("evaluate", run), f"error: {needs}, which is not here; {advice}\n")

    shutil.copytree(installed, tmp_path / "later")
    (facts,) = (tmp_path / "later").glob("*.dist-info/METADATA")
    facts.write_text(facts.read_text().replace("Version: 0.1.0", "Version: 0.2.0"))
    monkeypatch.syspath_prepend(tmp_path / "later")
    later = f"{needs}, found stillframe-template 0.2.0; {advice}, or make it anew\n"
    assert_refused(call("evaluate", run), later)
    assert_refused(call("train", place.recipe, place.cache, "--out", run, *sets), later)


@pytest.mark.slow
def test_the_tests_of_the_template_pass(installed, tmp_path):
    paths = os.pathsep.join([str(installed), str(ROOT)])
    variables = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    variables |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", TEMPLATE / "tests"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_template_is_a_module_of_forty_lines():
    text = (TEMPLATE / "stillframe_template/fading_change.py").read_text(encoding="utf-8")
    code = [line for line in text.splitlines() if line.strip()]
    assert 30 <= len(code) <= 45


def test_names_of_packages_must_be_new_and_lead_to_a_class(place, tmp_path, monkeypatch):
    points = {
        "gru": "brings:Temporal",
        "twice": "brings:Temporal",
        "whole": "brings",
        "gone": "brings:Nothing",
        "other": "brings:Temporal",
        "torn": "torn_module:Temporal",
    }
    code = "class Temporal: ...\n"
    folder = package(tmp_path / "one", "brings", "stillframe.temporal", points, code)
    (folder / "torn_module.py").write_text("x = 1\nimport no_such_thing\n")
    again = {"twice": "too:Temporal"}
    package(tmp_path / "two", "too", "stillframe.temporal", again, code)
    for name in ("one", "two"):
        monkeypatch.syspath_prepend(tmp_path / name)
    for name, said in (
        ("gru", "temporal 'gru' is brought by stillframe itself and by brings 1.0; next: rename "),
        ("twice", "temporal 'twice' is brought by too 1.0 and by brings 1.0"),
        (
            "whole",
            "plug-in 'whole' of brings 1.0 names no class: its entry point of the group "
            "stillframe.temporal is 'brings', wanted MODULE:CLASS; next: mend it, or pip uninstall ",
        ),
        ("gone", "plug-in 'gone' of brings 1.0 does not import: AttributeError: module 'brings'"),
        ("other", "temporal plug-in 'other' of brings 1.0 breaks its contract: it is not below "),
        (
            "torn",
            f"plug-in 'torn' of brings 1.0 does not import: {folder}/torn_module.py line 2: "
            "ModuleNotFoundError: No module named 'no_such_thing'",
        ),
    ):
        sets = ("--set", f"temporal.name={name}")
        refused = call("train", place.recipe, place.cache, "--out", tmp_path / "run", *sets)
        assert_refused(refused, said)
    listed = call("list", "temporal", "--json")
    assert listed.code == 3
    broken = {row["name"] for row in listed.json if row["what"].startswith("cannot be used: ")}
    assert broken == {*points}
    fine("train", place.recipe, place.cache, "--out", tmp_path / "run")  # which names none of them
