"""Caches that earlier versions wrote open, verify, train and derive, and say what they cannot vouch
for."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from support.commands import call
from support.paths import GOLDEN
from support.training import recipe

from pipeline.cache.cache import Cache
from pipeline.cache.verify import verify_cache
from pipeline.config import cache_spec
from pipeline.config.cache_spec import FORMAT_VERSION
from pipeline.errors import BadInput
from pipeline.extract.derive import derive
from pipeline.extract.upkeep.diff import compare_spec
from pipeline.models.encoders import address
from pipeline.train import loop

FORMATS = [1, 2]


@pytest.fixture
def older(request, tmp_path) -> Cache:
    """A cache as a version of that time made it, of four videos that spell their addresses."""
    with zipfile.ZipFile(GOLDEN / f"cache_of_format_{request.param}.zip") as packed:
        packed.extractall(tmp_path / "caches")
    (folder,) = (tmp_path / "caches").iterdir()
    cache = Cache(folder)
    assert cache.header.format_version == request.param
    return cache


def tokens(cache: Cache) -> dict[str, np.ndarray]:
    """Video -> its stored patches of layer 5."""
    return {
        video: cache.stored_rows(place.store, "layer_5", np.arange(place.start, place.stop))[""]
        for video, place in cache.locations.items()
    }


@pytest.mark.parametrize("older", FORMATS, indirect=True)
def test_an_older_cache_is_read_verified_and_trained(older, tmp_path):
    assert verify_cache(older).is_valid
    for number, (video, rows) in enumerate(tokens(older).items()):
        assert video.endswith(f"v{number}.mp4")
        spelt = address.read(rows)
        assert (spelt.video == number).all() and (spelt.layer == 5).all()
        assert (spelt.frame == np.arange(len(rows))[:, None]).all()
    run = loop.train(recipe(training={"steps": 2}), older, tmp_path / "run")
    last = run.checkpoint("last")
    assert last is not None and last.step == 2


@pytest.mark.parametrize("older", FORMATS, indirect=True)
def test_what_an_older_cache_cannot_vouch_for_is_said(older, place, tmp_path):
    run = tmp_path / "run"
    for arguments in (
        ["status", older.path],
        ["verify", older.path],
        ["train", place.recipe, older.path, "--out", run],
        ["evaluate", run],
    ):
        result = call(*arguments)
        assert result.code == 0, result
        assert f"{older} has format {older.header.format_version}: " in result.err


@pytest.mark.parametrize("older", FORMATS, indirect=True)
def test_the_same_spec_is_derived_from_an_older_cache_in_the_format_of_today(older, tmp_path):
    derived = derive(older, [], tmp_path / "derived")
    assert derived.header.format_version == FORMAT_VERSION and not derived.unvouched
    assert verify_cache(derived).is_valid
    before, after = tokens(older), tokens(derived)
    assert before.keys() == after.keys()
    for video, rows in before.items():
        np.testing.assert_array_equal(after[video], rows)
    with pytest.raises(BadInput, match="nothing to derive"):
        derive(derived, [], tmp_path / "derived")


@pytest.mark.parametrize("older", FORMATS, indirect=True)
def test_a_spec_held_against_an_older_cache_differs_in_the_format_alone(older):
    differ = compare_spec(older.cache_spec, older)
    assert differ.differ == [("format_version", FORMAT_VERSION, older.header.format_version)]
    assert differ.verdict == "derivable" and differ.command
    assert differ.command.startswith(f"stillframe derive {older}")


@pytest.mark.parametrize("older", FORMATS, indirect=True)
def test_a_key_that_specs_got_since_then_changes_no_older_cache(older, monkeypatch):
    """It has the value that is implied, and its fingerprint is what it was."""
    monkeypatch.setitem(cache_spec.IMPLIED, "frames.resample", "bilinear")
    monkeypatch.setitem(cache_spec.IMPLIED, "store.compression", "zstd")
    written = older.header.spec
    again = Cache(older.storage)
    assert again.spec["frames"]["resample"] == "bicubic"  # as it was written
    assert again.spec["store"]["compression"] == written["store"].get("compression", "zstd")
    assert again.header.spec == written and verify_cache(older).is_valid


@pytest.mark.parametrize("older", FORMATS, indirect=True)
def test_an_older_cache_whose_spec_was_changed_is_named(older):
    file = older.path / "cache.json"
    file.write_text(file.read_text().replace('"bicubic"', '"bilinear"'))
    (problem,) = verify_cache(Cache(older.storage)).cache_problems.items()
    assert problem[0] == "cache.json" and f"says fingerprint {older.fingerprint}" in problem[1]
