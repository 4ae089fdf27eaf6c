"""What is in effect, and what there is: show and list, by values and by what they refuse."""

from __future__ import annotations

import re

import pytest
from support.commands import assert_refused, call, fine
from support.paths import ROOT

from pipeline.cli import console
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
AVERAGE = re.findall(r"`[\w/]+/moving_average\.py`:\n\n```python\n(.*?)```", PAGE, re.S)[0]


def keys(*arguments: object) -> dict[str, dict]:
    return {row["key"]: row for row in fine("show", *arguments, "--json").json["keys"]}


def test_show_has_value_type_default_meaning_and_who_set_it(place):
    found = keys("recipe", place.recipe, "--set", "training.learning_rate=1e-3")
    assert found["training.steps"] == {
        "key": "training.steps",
        "value": 3,
        "type": "whole number ≥ 0",
        "default": None,
        "required": False,
        "meaning": "Optimiser steps; exactly one of steps and epochs is given. 0: the model as it "
        "begins, which is zero-shot for tasks that begin with an image-text model.",
        "set_by": "file",
    }
    rate, epochs, name = (found[f"training.{key}"] for key in ("learning_rate", "epochs", "betas"))
    assert (rate["value"], rate["default"], rate["set_by"]) == (1e-3, 3e-4, "--set")
    assert (epochs["value"], epochs["set_by"]) == (None, None)
    assert (name["value"], name["default"], name["set_by"]) == ([0.9, 0.999], [0.9, 0.999], None)
    module = found["temporal.name"]
    assert (module["value"], module["required"], module["set_by"]) == ("identity", True, "file")
    assert (found["name"]["value"], found["name"]["set_by"]) == ("tiny", None)
    assert found["windows.frames"]["value"] == 4 and found["windows.seed"]["value"] == 0


def leaves(table: dict, path: str = "") -> dict[str, object]:
    """A canonical table with dotted keys; tables that are values stay whole."""
    found: dict[str, object] = {}
    for key, value in table.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict) and where not in ("encoder.config", "task.text"):
            found |= leaves(value, where)
        else:
            found[where] = value
    return found


@pytest.mark.parametrize("name", shipped("recipe"))
def test_show_recipe_misses_no_key_of_what_training_reads(name):
    path = shipped("recipe")[name]
    found = keys("recipe", name)
    for key, value in leaves(load_recipe(path).canonical()).items():
        if key != "task.text":  # a table of its own, or left out
            assert found[key]["value"] == value, key
    assert all(row["meaning"] and row["type"] for row in found.values())


@pytest.mark.parametrize("name", shipped("spec"))
def test_show_spec_misses_no_key_of_what_extraction_reads(name):
    found = keys("spec", name)
    wanted = leaves(load_spec(shipped("spec")[name]).canonical())
    views = wanted.pop("views", [])
    assert {key: found[key]["value"] for key in wanted} == wanted
    assert [view["name"] for view in found["views"]["value"]] == [view["name"] for view in views]
    assert found["frames.uneven"]["value"] == "warn"


def test_a_codec_that_no_file_names_is_a_default(place):
    row = keys("spec", place.spec)["codec.name"]
    assert (row["value"], row["default"], row["set_by"]) == ("float16", "float16", None)
    row = keys("spec", place.spec, "--set", "codec.name=int8")["codec.name"]
    assert (row["value"], row["default"], row["set_by"]) == ("int8", "float16", "--set")


def test_a_text_tower_is_a_table_of_its_own(tmp_path):
    sets = ("--set", 'task.text={name="sentence", model="tower"}')
    found = keys("recipe", "demo_retrieve", *sets)
    assert found["task.text.name"]["value"] == "sentence"
    assert (found["task.text.model"]["value"], found["task.text.model"]["set_by"]) == (
        "tower",
        "--set",
    )
    assert found["task.name"]["set_by"] == "file"


@pytest.mark.parametrize("of_run", ["", "run.json"])
def test_show_takes_a_run_where_a_recipe_is_wanted(place, of_run):
    shown = fine("show", "recipe", place.run / of_run, "--json").json
    assert (shown["name"], shown["file"]) == ("tiny", str(place.run / "run.json"))
    found = {row["key"]: row for row in shown["keys"]}
    assert (found["training.steps"]["value"], found["training.steps"]["set_by"]) == (3, "run")
    assert found["training.epochs"]["set_by"] is None


def test_a_module_of_ones_own_says_which_it_is(place, tmp_path):
    (tmp_path / "moving_average.py").write_text(AVERAGE)
    sets = ("--set", f"temporal.name={tmp_path}/moving_average.py")
    found = keys("recipe", place.recipe, *sets)
    assert found["temporal.name"]["value"] == "moving_average"
    assert found["temporal.from"]["value"]["file"] == "moving_average.py"
    assert found["temporal.half_life"]["default"] == 4.0


def test_show_sweep_shows_what_differs_from_run_to_run(tmp_path, place):
    file = tmp_path / "rates.toml"
    file.write_text(
        f'recipe = "{place.recipe}"\nseeds = [3, 4]\n[changes]\n"windows.frames" = 2\n'
        '[axes]\ntemporal = ["identity", "gru"]\n"training.learning_rate" = [0.1, 0.2]\n'
    )
    shown = fine("show", "sweep", file, "--set", "training.steps=7", "--json").json
    assert (shown["runs"], shown["run"]) == (8, "identity-learning_rate=0.1-seed3")
    own = {row["key"]: row for row in shown["keys"]}
    assert (own["seeds"]["value"], own["seeds"]["default"]) == ([3, 4], [0])
    assert own["changes"]["value"] == {"windows.frames": 2, "training.steps": 7}
    assert own["changes"]["set_by"] == "--set" and own["controls"]["set_by"] is None
    recipe = {row["key"]: (row["value"], row["set_by"]) for row in shown["recipe"]}
    assert recipe["windows.frames"] == (2, "sweep")
    assert recipe["training.steps"] == (7, "--set")
    assert recipe["training.seed"] == (3, "axis")
    assert recipe["training.learning_rate"] == (0.1, "axis")
    assert recipe["temporal.name"] == ("identity", "axis")
    assert recipe["training.batch_size"] == (2, "recipe")
    assert recipe["training.clip_norm"] == (1.0, None)
    assert recipe["cache"] == (None, None)


@pytest.mark.parametrize("name", shipped("sweep"))
def test_every_shipped_sweep_is_shown(name):
    shown = fine("show", "sweep", name, "--json").json
    assert shown["runs"] >= 2 and len(shown["recipe"]) > 30
    assert f"the first of {shown['runs']} runs" in re.sub(
        r"\s+", " ", fine("show", "sweep", name).out
    )


def test_the_text_fits_80_columns_and_marks_what_is_set(place, monkeypatch):
    monkeypatch.setattr(console.out, "width", 80)
    text = fine("show", "recipe", place.recipe, "--set", "windows.seed=5").out
    assert max(map(len, text.splitlines())) <= max(80, len(f"recipe tiny: {place.recipe}"))
    assert "\nsteps = 3  # file\n" in text
    assert "\nseed = 5  # --set\n" in text
    assert "\nepochs: left out\n" in text
    assert "\nclip_norm = 1.0\n      (number > 0, default 1.0) Norm of all gradients" in text
    assert [line for line in text.splitlines() if line.startswith("[")] == [
        "[task]",
        "[temporal]",
        "[windows]",
        "[model]",
        "[training]",
    ]


def test_show_refuses_what_it_does_not_know(place, tmp_path):
    assert_refused(call("show", "recipes", "demo_gru"), "no kind called 'recipes'", "'recipe'?")
    assert_refused(call("show", "recipe", "demo_gro"), "no recipe called 'demo_gro'", "'demo_gru'?")
    assert_refused(call("show", "recipe"), "'name'", "next: stillframe show --help")
    assert_refused(call("show", "spec", place.cache), f"spec {place.cache} is a folder")
    assert_refused(call("show", "recipe", place.cache), f"recipe {place.cache} is a folder")
    assert_refused(
        call("show", "recipe", place.recipe, "--set", "training.step=3"),
        "unknown key 'training.step' (did you mean 'steps'?)",
    )
    assert_refused(call("show", "spec", place.spec, "--set", "frames"), "--set wants key=value")
    assert_refused(
        call("show", "sweep", "codec", "--set", "training.steps=some"), "key 'training.steps'"
    )
    (tmp_path / "run.json").write_text('{"recipe": 3}')
    assert_refused(call("show", "recipe", tmp_path), "holds no recipe")
    (tmp_path / "a.toml").write_text("[task")
    assert_refused(call("show", "recipe", tmp_path / "a.toml"), "is not valid TOML")


def test_names_are_whole_and_settings_stand_with_one_kind(monkeypatch):
    monkeypatch.setattr(console.out, "width", 80)
    of_all, of_one = fine("list").out, fine("list", "temporal").out
    for text in (of_all, of_one):
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(r"^ temporal +gated_transformer +\w", text, re.MULTILINE)
    words = re.sub(r"\s+", " ", of_one)
    assert "sharing weights (GRU, arXiv 1406.1078). Settings: layers=1." in words
    assert "Settings:" not in of_all and " from " not in of_one.splitlines()[1]


def test_list_says_what_is_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(console.out, "width", 400)
    file = tmp_path / "moving_average.py"
    file.write_text(AVERAGE)
    text = fine("--plugins", file, "list", "temporal").out
    assert re.search(rf"moving_average .*half_life=4.0\. +{re.escape(str(file))} *$", text, re.M)
    assert re.search(r" gru .* stillframe *$", text, re.MULTILINE)
    assert_refused(call("list", "temporals"), "no kind called 'temporals'")
