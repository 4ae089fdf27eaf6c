"""What ships is found by its name wherever the command runs, in an empty folder too."""

from __future__ import annotations

import pytest
import typer
from support.commands import assert_refused, call, fine

from pipeline.cli.main import app
from pipeline.cli.options import named_file
from pipeline.config.cache_spec import load_spec
from pipeline.config.shipped import KINDS, shipped
from pipeline.errors import BadInput


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def test_a_shipped_spec_is_extracted_and_compared(place, tmp_path):
    fine("extract", "demo", place.data, "--out", tmp_path / "caches", "--set", "frames.fps=2")
    (cache,) = (tmp_path / "caches").iterdir()
    assert cache.name.startswith("demo-")
    same = fine("diff", "demo", cache, "--set", "frames.fps=2", "--json").json
    assert same["verdict"] == "same"


def test_a_shipped_spec_is_planned():
    facts = fine("plan", "demo", "--frames", 100, "--probe-s", 0, "--json").json
    assert (
        facts
        == fine("plan", shipped("spec")["demo"], "--frames", 100, "--probe-s", 0, "--json").json
    )


def test_benches_find_the_spec_of_the_demo(monkeypatch):
    monkeypatch.setattr("pipeline.cli.bench.store.codecs.TIMED_BYTES", 100_000)
    fine("bench", "codecs", "--frames", 1, "--repeats", 1, "--json")


@pytest.mark.parametrize(
    "command", [("demo",), ("bench", "codecs"), ("bench", "plan"), ("bench", "epoch")]
)
def test_the_default_spec_ships(command):
    group = typer.main.get_command(app)
    for name in command:
        group = group.commands[name]
    (default,) = [option.default for option in group.params if option.name == "spec"]
    assert load_spec(named_file("spec", default)).name == "demo"


def test_a_checkpoint_is_imported_for_a_shipped_spec(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"no checkpoint")
    result = call("import-checkpoint", tmp_path / "x.ckpt", "demo_gru", "demo")
    assert_refused(result, "x.ckpt")


def test_list_names_the_specs():
    rows = fine("list", "spec", "--json").json
    assert [row["name"] for row in rows] == [
        "clip_vitb16",
        "clip_vitb32",
        "demo",
        "dinov2_small",
        "dinov3_vitl16",
        "dinov3_vitl16_published",
        "rvm_small",
        "siglip2_base",
    ]


def test_a_name_that_does_not_ship(place):
    result = call("extract", "dinov2_smal", place.data)
    assert_refused(result, "no spec called 'dinov2_smal'", "did you mean 'dinov2_small'?")


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_stays_a_path(kind, tmp_path):
    (tmp_path / "empty" / "mine").write_text("")
    assert str(named_file(kind, "mine")) == "mine"
    assert str(named_file(kind, "demo.toml")) == "demo.toml"
    assert str(named_file(kind, "x/demo")) == "x/demo"
    with pytest.raises(BadInput, match=f"no {kind} called 'yours'"):
        named_file(kind, "yours")
