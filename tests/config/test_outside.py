"""Plug-ins of the user's own files: how they are named, what is kept of them, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from support.commands import assert_refused, call, fine
from support.paths import ROOT

import stillframe
from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.json_files import sealed
from pipeline.config.outside import named_paths, one_call
from pipeline.errors import BadInput

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
AVERAGE = re.findall(r"`[\w/]+/moving_average\.py`:\n\n```python\n(.*?)```", PAGE, re.S)[0]
CODEC = "from pipeline.cache.codecs.float16 import Codec\n"
ENCODER = "from pipeline.models.encoders.address import Encoder\n"
SPY = """from pathlib import Path

Path(__file__).with_suffix(".ran").touch()
from pipeline.{module} import {name}
"""
"""A plug-in whose running leaves a trace."""


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def average(tmp_path) -> Path:
    file = tmp_path / "mine" / "moving_average.py"
    file.parent.mkdir()
    file.write_text(AVERAGE)
    return file


@pytest.fixture
def recipe(place, tmp_path) -> Path:
    """A recipe that names a file beside it."""
    file = tmp_path / "mine.toml"
    text = place.recipe.read_text().replace('"identity"', '"./mine/moving_average.py"')
    file.write_text(text)
    return file


def test_python_names_plugins_as_the_command_does(place, average, tmp_path):
    with one_call():
        stillframe.add_plugins(average.parent)
        changes = ["temporal.name=moving_average"]
        run = stillframe.train(place.recipe, place.cache, tmp_path / "run", changes)
        assert run.recipe.temporal.name == "moving_average"
        with pytest.raises(BadInput, match="nothing"):
            stillframe.add_plugins(str(tmp_path / "nothing.py"))


def test_a_recipe_names_a_file_relative_to_itself_and_the_run_says_which(
    place, average, recipe, tmp_path
):
    run = tmp_path / "run"
    fine("train", recipe, place.cache, "--out", run)
    header = json.loads((run / "run.json").read_text())
    origin = {"file": "moving_average.py", "sha256": sha256(average)}
    assert header["recipe"]["temporal"] == {
        "name": "moving_average",
        "from": origin,
        "half_life": 4.0,
    }
    assert "from" not in header["recipe"]["task"] and "from" not in header["spec"]["codec"]
    assert named_paths() == ()  # what is named for one command is for that one alone

    fine("--plugins", average.parent, "evaluate", run)
    fine("--plugins", average, "train", run, place.cache, "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again/run.json").read_text())
    assert again["recipe"]["temporal"] == header["recipe"]["temporal"]
    text = fine("train", recipe, place.cache, "--out", run)  # is trained already
    assert "3 steps" in text.out


def test_a_run_needs_the_file_that_it_was_made_with(place, average, recipe, tmp_path):
    run, kept = tmp_path / "run", sha256(average)[:12]
    fine("train", recipe, place.cache, "--out", run)
    needs = f"{run}/run.json: needs the temporal plug-in moving_average.py (sha256 {kept})"
    hint = "next: stillframe --plugins DIR ..., where DIR has moving_average.py"
    for command in (["evaluate", run], ["stream", run, place.videos / "a/v0.mp4"]):
        assert_refused(call(*command), f"error: {needs}, which is not here; {hint}\n")
    average.write_text(average.read_text() + "# changed\n")
    changed = f"{needs}, found {average} (sha256 {sha256(average)[:12]}); {hint}, or make it anew\n"
    assert_refused(call("--plugins", average.parent, "evaluate", run), changed)
    assert_refused(call("train", recipe, place.cache, "--out", run), changed)


def test_set_names_a_file_relative_to_the_current_folder(place, average, tmp_path, monkeypatch):
    monkeypatch.chdir(average.parent)
    sets = ("--set", "temporal.name=./moving_average.py", "--set", "temporal.half_life=2")
    fine("train", place.recipe, place.cache, "--out", tmp_path / "run", *sets)
    table = ("--set", 'temporal={ name = "moving_average.py", half_life = 2 }')
    fine("train", place.recipe, place.cache, "--out", tmp_path / "other", *table)
    one, other = (
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "other")
    )
    assert one["recipe"]["temporal"] == other["recipe"]["temporal"]
    assert one["recipe"]["temporal"]["half_life"] == 2


def test_a_run_that_is_named_as_recipe_may_get_another_module(place, average, recipe, tmp_path):
    """Nothing of the module before is kept; without --set it would be needed."""
    fine("train", recipe, place.cache, "--out", tmp_path / "run")
    other = ("--out", tmp_path / "other")
    assert_refused(call("train", tmp_path / "run", place.cache, *other), "needs the temporal")
    sets = ("--set", "temporal={ name = 'identity' }")
    fine("train", tmp_path / "run", place.cache, *other, *sets)
    table = json.loads((tmp_path / "other/run.json").read_text())["recipe"]["temporal"]
    assert table == {"name": "identity"}


@pytest.mark.parametrize(
    ("kind", "text", "sets"),
    [
        ("codec", CODEC, ["codec.name={}"]),
        ("encoder", ENCODER, ["encoder.name={}"]),
    ],
)
def test_what_changes_tokens_is_in_the_fingerprint(place, tmp_path, kind, text, sets):
    file = tmp_path / "mine.py"
    caches, fingerprints = [], []
    for version in (text, text + "\n"):
        file.write_text(version)
        out = tmp_path / f"caches{len(caches)}"
        chosen = [part for each in sets for part in ("--set", each.format(file))]
        fine("extract", place.spec, place.data, "--out", out, *chosen)
        caches.append(next(out.iterdir()))
        header = json.loads((caches[-1] / "cache.json").read_text())
        assert header["spec"][kind]["from"] == {"file": "mine.py", "sha256": sha256(file)}
        fingerprints.append(header["fingerprint"])
    shipped = json.loads((place.cache / "cache.json").read_text())["fingerprint"]
    assert len({shipped, *fingerprints}) == 3

    out = ("--out", tmp_path / "run")
    needs = f"{caches[0]}/cache.json: needs the {kind} plug-in mine.py (sha256 "
    assert_refused(call("train", place.recipe, caches[0], *out), needs, "which is not here")
    refused = call("--plugins", file, "train", place.recipe, caches[0], *out)
    assert_refused(refused, needs, f"found {file} (sha256 {sha256(file)[:12]})")
    fine("--plugins", file, "verify", caches[1])
    fine("--plugins", file, "train", place.recipe, caches[1], *out)
    fine("status", caches[1])  # of which nothing is decoded


def test_a_cache_and_a_run_that_ship_are_not_read_with_a_file_of_that_name(
    place, run, tmp_path, monkeypatch
):
    """As where a later version no longer has a plug-in."""
    names = plugins.shipped_names
    file = tmp_path / "identity.py"
    file.write_text("from pipeline.models.temporal.identity import Temporal\n")
    monkeypatch.setattr(
        plugins, "shipped_names", lambda kind: [n for n in names(kind) if n != "identity"]
    )
    refused = call("--plugins", file, "evaluate", run)
    assert_refused(
        refused, f"made with the temporal 'identity' that came with stillframe, and {file}"
    )


def test_nothing_is_run_because_a_cache_or_a_run_names_it(place, cache, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, module, kind in (
        ("evil_codec.py", "cache.codecs.float16", "Codec"),
        ("evil.py", "models.temporal.identity", "Temporal"),
    ):
        (tmp_path / name).write_text(SPY.format(module=module, name=kind))
    header = json.loads((cache / "cache.json").read_text())
    for name in ("./evil_codec.py", f"{tmp_path}/evil_codec.py", "evil_codec"):
        origin = {"file": "evil_codec.py", "sha256": sha256(tmp_path / "evil_codec.py")}
        for table in ({"name": name}, {"name": name, "from": origin}):
            header["spec"]["codec"] = table
            write_sealed(cache / "cache.json", header)
            for command in (
                ["verify", cache],
                ["train", place.recipe, cache, "--out", "out"],
                ["derive", cache, "--out", "out", "--set", "store.shard_mb=1"],
            ):
                assert call(*command).code == 2
    header = json.loads((run / "run.json").read_text())
    for name in ("./evil.py", f"{tmp_path}/evil.py", "evil"):
        header["recipe"]["temporal"] = {"name": name}
        write_sealed(run / "run.json", header)
        for command in (["evaluate", run], ["train", run, place.cache, "--out", "out"]):
            assert_refused(call(*command), "no temporal called")
    assert list(tmp_path.glob("*.ran")) == []
    fine("train", place.recipe, place.cache, "--out", "named", "--set", "temporal.name=evil.py")
    assert [file.name for file in tmp_path.glob("*.ran")] == ["evil.ran"]
    assert not (tmp_path / "__pycache__").exists()


def write_sealed(file: Path, table: dict) -> None:
    table = {key: value for key, value in table.items() if key != "checksum"}
    file.write_bytes(sealed(json.dumps(table | {"checksum": "0" * 64}).encode()))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("bad.py", "x = 1\nclass Temporal(:\n", "{} does not import: line 2: SyntaxError: "),
        (
            "bad.py",
            "x = 1\nx.y\nclass Temporal: ...\n",
            "{} does not import: line 2: AttributeError: 'int' object has no attribute 'y'; "
            "next: mend the file\n",
        ),
        (
            "bad.py",
            "import no_such_thing\nclass Temporal: ...\n",
            "{} does not import: line 1: ModuleNotFoundError: No module named 'no_such_thing'; "
            "next: pip install no_such_thing\n",
        ),
        (
            "bad.py",
            "def exit(): raise SystemExit(3)\nexit()\nclass Temporal: ...\n",
            "{} does not import: line 1: SystemExit: 3",
        ),
        ("bad.py", "x = 1\n", "{} lacks its class: wanted class Temporal at its top; next: "),
        (
            "bad.py",
            "class Temporal: ...\n",
            "temporal plug-in 'bad' of {} breaks its contract: it is not below TemporalModule of "
            "pipeline.models.temporal.contract; next: see docs/extending.md, then: ",
        ),
        (
            "bad.py",
            "from pipeline.models.temporal.contract import TemporalModule\n"
            "class Temporal(TemporalModule): ...\n",
            "breaks its contract: it does not define _run, flops, state_shapes; next: ",
        ),
        (
            "bad.py",
            "from pipeline.models.temporal.identity import Temporal as T\n"
            "class Temporal(T):\n    Settings = dict\n",
            "it has no class Settings below that of pipeline.config.plugins",
        ),
        (
            "gru.py",
            "class Temporal: ...\n",
            "plug-in {}: 'gru' is the name of a temporal that ships with stillframe; next: rename ",
        ),
        ("my-gru.py", "class Temporal: ...\n", "'my-gru' is no name of a plug-in, wanted letters"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused_in_one_line(place, tmp_path, name, text, said):
    file = tmp_path / name
    file.write_text(text)
    sets = ("--set", f"temporal.name={file}")
    refused = call("train", place.recipe, place.cache, "--out", tmp_path / "run", *sets)
    assert_refused(refused, said.format(f"{file}"))
    assert not (tmp_path / "run").exists()


def test_a_file_that_imports_its_neighbour_is_told_to_be_a_package(place, tmp_path):
    (tmp_path / "bad.py").write_text("import helper_of_mine\nclass Temporal: ...\n")
    (tmp_path / "helper_of_mine.py").write_text("")
    sets = ("--set", f"temporal.name={tmp_path}/bad.py")
    refused = call("train", place.recipe, place.cache, "--out", tmp_path / "run", *sets)
    assert_refused(
        refused, "a plug-in is one whole file; of several, make a package: docs/template"
    )


def test_a_folder_is_one_of_plugins(place, average, tmp_path):
    folder = tmp_path / "several"
    folder.mkdir()
    (folder / "helper.py").write_text("x = 1\n")
    (folder / "_hidden.py").write_text("class Temporal: ...\n")
    assert_refused(
        call("--plugins", folder, "list"),
        f"folder {folder} has no plug-ins: of 1 .py files in it none defines class Dataset, ",
        "class Temporal or class Task; next: name the folder that holds the files themselves",
    )
    assert_refused(call("--plugins", folder / "no", "list"), f"plug-in {folder}/no does not exist")
    shutil.copy(average, folder)
    fine("--plugins", folder, "--plugins", average, "list", "temporal")  # the same file
    (folder / "moving_average.py").write_text(AVERAGE + "# another\n")
    assert_refused(
        call("--plugins", folder, "--plugins", average, "list"),
        f"two files bring a temporal plug-in 'moving_average': {folder}/moving_average.py and "
        f"{average}; next: rename one of them, or name one alone",
    )


def test_list_says_where_plugins_are_from(average):
    rows = fine("--plugins", average, "list", "temporal", "--json").json
    found = {row["name"]: row for row in rows}
    assert found["moving_average"] == {
        "kind": "temporal",
        "name": "moving_average",
        "what": "A moving average of every channel at every token position, with a learned half-life.",
        "settings": "half_life=4.0",
        "from": str(average),
    }
    assert found["gru"]["from"] == "stillframe"
    assert "moving_average" not in {row["name"] for row in fine("list", "temporal", "--json").json}
    average.write_text("class Temporal: ...\n")
    broken = call("--plugins", average, "list", "temporal", "--json")
    assert broken.code == 3
    (row,) = [row for row in broken.json if row["name"] == "moving_average"]
    assert row["what"].startswith("cannot be used: temporal plug-in 'moving_average' of ")


def test_a_sweep_names_files_on_its_axes(place, average, tmp_path):
    file = tmp_path / "modules.toml"
    file.write_text(
        f'recipe = "{place.recipe}"\n[axes]\ntemporal = ["identity", "./mine/moving_average.py"]\n'
        "[each]\nhalf_life = 3\n"
    )
    out = tmp_path / "sweep"
    fine("sweep", file, place.cache, "--out", out)
    (run,) = (out / "runs").glob("moving_average-*")
    table = json.loads((run / "run.json").read_text())["recipe"]["temporal"]
    assert table["from"]["sha256"] == sha256(average) and table["half_life"] == 3
    assert_refused(
        call("report", out, "--out", tmp_path / "page"),
        "needs the temporal plug-in moving_average.py",
    )
    fine("--plugins", average, "report", out, "--out", tmp_path / "page")


@pytest.mark.slow
def test_workers_know_what_their_command_was_told(place, average, tmp_path):
    codec = tmp_path / "mine.py"
    codec.write_text(CODEC)
    engine = ("--engine", "local", "--workers", 2, "--logs", tmp_path / "logs")
    out = tmp_path / "caches"
    sets = ("--set", f"codec.name={codec}")
    fine("extract", place.spec, place.data, "--out", out, *engine, *sets)
    (cache,) = out.iterdir()
    assert Cache(cache).missing_stores() == []
    file = tmp_path / "modules.toml"
    file.write_text(
        f'recipe = "{place.recipe}"\n[axes]\ntemporal = ["identity", "./mine/moving_average.py"]\n'
    )
    fine("--plugins", codec, "sweep", file, cache, "--out", tmp_path / "sweep", *engine)
    assert len(list((tmp_path / "sweep/runs").iterdir())) == 2


def test_a_data_set_and_an_engine_are_named_by_their_files(place, tmp_path, monkeypatch):
    data, engine = tmp_path / "mine.py", tmp_path / "here.py"
    data.write_text("from pipeline.datasets.folder import Dataset\n")
    engine.write_text("from pipeline.extract.launchers.local import Engine\n")
    monkeypatch.chdir(tmp_path)
    fine("manifest", "./mine.py", place.videos, "--out", "data", "--set", "val_fraction=0.3")
    origin = json.loads(Path("data/dataset.json").read_text())
    assert origin["dataset"] == "mine" and origin["plugin"]["sha256"] == sha256(data)
    assert "plugin" not in json.loads((place.data / "dataset.json").read_text())
    fine("extract", place.spec, "data", "--out", "caches", "--engine", "./here.py")


def test_a_spec_names_a_file_relative_to_itself(place, tmp_path):
    (tmp_path / "mine.py").write_text(CODEC)
    spec = tmp_path / "mine.toml"
    spec.write_text(place.spec.read_text() + '[codec]\nname = "mine.py"\n')
    with one_call():
        loaded = load_spec(spec)
    assert loaded.codec.name == "mine"
    assert loaded.canonical()["codec"]["from"]["file"] == "mine.py"


def test_the_option_behind_the_command_is_told_where_it_belongs(run, average):
    assert_refused(
        call("evaluate", run, "--plugins", average),
        "error: --plugins is no option of evaluate: it comes before the command; next: stillframe "
        "--plugins PATH evaluate ...\n",
    )
