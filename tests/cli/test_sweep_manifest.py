"""A sweep over other clips or labels than the cache's own: kept for all who work on it, and refused where it does not fit."""

from __future__ import annotations

import pytest
import torch
from support.commands import assert_refused, call, fine
from support.training import assert_same, final

from pipeline.cache.cache import Cache
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.experiments.sweep import SWEEP_FILE, Sweep, make_sweep_job
from pipeline.experiments.sweep_spec import GIVEN
from pipeline.train.loop import train
from pipeline.train.run import Run

LABELS = ("even", "odd")
TWO = ["--axis", 'temporal=["identity", "gru"]']
THREE = ["--axis", 'temporal=["identity", "gru", "min_gru"]']


@pytest.fixture
def other(place, tmp_path):
    """A manifest of the cache's videos with other labels."""
    videos = sorted(place.videos.glob("*/*.mp4"))
    rows = [
        f"{path.relative_to(place.videos)},{LABELS[number % 2]}"
        for number, path in enumerate(videos)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    sets = ["--set", f"csv={tmp_path / 'labels.csv'}", "--set", "val_fraction=0.3"]
    fine("manifest", "folder", place.videos, "--out", tmp_path / "other", *sets)
    return tmp_path / "other"


@pytest.fixture
def spec(place, tmp_path):
    path = tmp_path / "modules.toml"
    path.write_text(
        f'recipe = "{place.recipe}"\n[axes]\ntemporal = ["identity"]\n'
        '[caches.int8]\nderive = ["codec.name=int8"]\n'
    )
    return path


def headers(folder):
    return {member.name: Run(member.path).header for member in Sweep(folder).members}


@pytest.mark.slow
def test_a_sweep_keeps_its_manifest_for_all_who_go_on_with_it(place, other, spec, tmp_path):
    made, again, shared = (tmp_path / name for name in ("made", "again", "shared"))
    fine("sweep", spec, place.cache, *TWO, "--manifest", other, "--out", made)
    assert Sweep(made).header.manifest == str(other)
    fine("sweep", spec, place.cache, *THREE, "--out", made)  # goes on, with a member more
    assert len(headers(made)) == 3
    for header in headers(made).values():
        assert header.labels == LABELS and header.manifest_path == str(other)
        assert header.manifest == Manifest.load(other).digest != Cache(place.cache).manifest.digest
    member = Sweep(made).members[1]
    alone = train(member.recipe, Cache(place.cache), tmp_path / "alone", Manifest.load(other))
    assert_same(final(Run(member.path)), final(alone))

    fine("sweep", made / SWEEP_FILE, place.cache, "--out", again)  # as the page says
    assert Sweep(again).header == Sweep(made).header
    assert headers(again)[member.name].labels == LABELS

    planned = Sweep.planned(
        shared, Sweep(made).spec, {GIVEN: Cache(place.cache)}, Manifest.load(other)
    )
    planned.write_header()
    make_sweep_job(shared, torch.device("cpu"), 1, False).work(0)  # a worker knows the folder alone
    assert not Sweep(shared).left()
    assert all(header.labels == LABELS for header in headers(shared).values())

    moved = other.rename(tmp_path / "moved")
    assert_refused(call("sweep", spec, place.cache, *THREE, "--out", made), other)
    fine("sweep", spec, place.cache, *THREE, "--out", made, "--manifest", moved)
    assert Sweep(made).header.manifest == str(moved)
    own = ["--manifest", place.data, "--out", made]
    assert_refused(call("sweep", spec, place.cache, *THREE, *own), "made from something else")
    assert Sweep(made).header.manifest == str(moved)


def test_a_manifest_of_a_sweep_fits_all_its_caches_or_is_refused(place, other, spec, tmp_path):
    out = tmp_path / "sweep"
    options = ["--manifest", other, "--out", out]
    assert_refused(
        call("sweep", "motion_factors", place.cache, *options),
        "of sweep 'motion_factors' is of other videos",
        f"manifest {other} knows nothing of",
    )
    assert not out.exists()
    fine("sweep", spec, place.cache, *options, "--axis", 'cache=["given", "int8"]')
    assert Sweep(out).header.manifest == str(other) and len(headers(out)) == 2
    for header in headers(out).values():
        assert header.labels == LABELS and header.manifest_path == str(other)
    other.rename(tmp_path / "moved")  # what goes on asks for the same, though nobody names it
    assert_refused(call("sweep", spec, place.cache, "--out", out, "--dry-run"), other)

    (tmp_path / "root" / "c").mkdir(parents=True)
    for path in (place.videos / "a").iterdir():
        (tmp_path / "root" / "c" / path.name).write_bytes(path.read_bytes())
    fine("manifest", "folder", tmp_path / "root", "--out", tmp_path / "strange")
    strange = ["--manifest", tmp_path / "strange", "--out", tmp_path / "none"]
    for more in ([], ["--dry-run"]):
        assert_refused(call("sweep", spec, place.cache, *strange, *more), "lacks", "strange")
    assert not (tmp_path / "none").exists()
