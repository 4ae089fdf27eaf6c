"""Other manifests than the one a cache was extracted from: inside of it they are refused, beside it they are served."""

from __future__ import annotations

import shutil

import pytest
from support.commands import assert_refused, call, fine
from support.material import LENGTHS

from pipeline.cache.cache import Cache
from pipeline.cache.layout import receipt_name
from pipeline.cache.receipts import VideoFailure
from pipeline.config.json_files import sealed_json
from pipeline.datasets.manifest.manifest import Manifest


@pytest.mark.parametrize("other", ["videos", "labels"])
def test_a_manifest_of_others_in_a_cache_is_refused_in_one_line(place, cache, tmp_path, other):
    data = tmp_path / "other"
    if other == "videos":
        shutil.copytree(place.videos / "a", tmp_path / "root" / "c")
        fine("manifest", "folder", tmp_path / "root", "--out", data)
    else:
        rows = [f"{path.relative_to(place.videos)},new" for path in place.videos.glob("*/*.mp4")]
        (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
        csv = f"csv={tmp_path / 'labels.csv'}"
        fine("manifest", "folder", place.videos, "--out", data, "--set", csv)
    shutil.rmtree(cache / "manifest")
    shutil.copytree(data, cache / "manifest")
    for command in (
        ("status", cache),
        ("status", cache, "--json"),
        ("train", place.recipe, cache, "--out", tmp_path / "run"),
    ):
        assert_refused(call(*command), f"{cache}/manifest", "copy the manifest that it was")


@pytest.fixture
def fold(place, tmp_path):
    """Two of the cache's six videos, in one clip and two, under other labels, and all in `train`
    but the last."""
    first, last = sorted(place.videos.glob("*/*.mp4"))[:: len(LENGTHS) - 1]
    rows = [
        f"{first.relative_to(place.videos)},0,0.5,low,train",
        f"{first.relative_to(place.videos)},0.5,1,high,train",
        f"{last.relative_to(place.videos)},,,low,val",
    ]
    (tmp_path / "fold.csv").write_text("\n".join(["path,start_s,stop_s,label,split", *rows]))
    data = tmp_path / "fold"
    fine("manifest", "folder", place.videos, "--out", data, "--set", f"csv={tmp_path / 'fold.csv'}")
    return data


def test_status_counts_the_clips_of_another_manifest(place, cache, fold):
    first, last = [video.video_id for video in Manifest.load(fold).videos]
    facts = fine("status", place.cache, "--manifest", fold, "--json").json
    own = fine("status", place.cache, "--json").json
    assert (facts.pop("manifest"), own.pop("manifest")) == (str(fold), None)
    splits = facts.pop("splits")
    assert facts | {"splits": own["splits"]} == own  # what the cache holds is the same
    one = {"videos": 1, "whole": 1, "first_hole": None}
    frames = {video: LENGTHS[video] for video in (first, last)}
    assert splits == {
        "train": one
        | {"clips": 2, "covered": 2, "expected": frames[first], "frames": frames[first]},
        "val": one | {"clips": 1, "covered": 1, "expected": frames[last], "frames": frames[last]},
    }
    out = fine("status", place.cache, "--manifest", fold).out
    assert f"clips of manifest {fold}:\nsplit train: 2 of 2 clips, 1 of 1 videos, " in out
    assert out.endswith(f"next: stillframe train RECIPE {place.cache} --manifest {fold}\n")

    (store,) = [store for store, videos in Cache(cache).plan.items() if first in videos]
    (cache / receipt_name(store)).unlink()
    clip = next(clip.clip_id for clip in Manifest.load(fold).clips if clip.video_id == first)
    holes = fine("status", cache, "--manifest", fold, "--json").json["splits"]
    assert (holes["train"]["covered"], holes["train"]["whole"], holes["train"]["frames"]) == (
        0,
        0,
        0,
    )
    assert holes["train"]["first_hole"] == {"clip": clip, "reason": "not extracted yet"}
    out = fine("status", cache, "--manifest", fold).out
    assert f"split train, first clip that is not covered: {clip}: not extracted yet\n" in out
    assert "run extract again" in out and "train RECIPE" not in out


def test_status_says_what_training_would_leave_out(place, cache, fold):
    first = Manifest.load(fold).videos[0].video_id
    (store,) = [store for store, videos in Cache(cache).plan.items() if first in videos]
    failure = VideoFailure(reason="no such frame", frames_stored=7, stored_until_s=0.7)
    receipt = Cache(cache).receipt(store).model_copy(update={"failures": {first: failure}})
    (cache / receipt_name(store)).write_bytes(sealed_json(receipt))
    result = fine("status", cache, "--manifest", fold)
    assert "split train: 1 of 2 clips, 0 of 1 videos" in result.out
    command = f"stillframe train RECIPE {cache} --manifest {fold} --allow-missing"
    assert result.out.endswith(f"1 clip would be left out; next: {command}\n")


def test_plan_trains_on_the_clips_of_another_manifest(place, fold):
    ask = ["plan", place.spec, place.data, place.recipe, "--measure-s", 0, "--json"]
    own, other = fine(*ask).json, fine(*ask, "--manifest", fold).json
    alone = fine("plan", place.spec, fold, place.recipe, "--measure-s", 0, "--json").json
    assert (own["manifest"], other["manifest"]) == (None, str(fold))
    assert other["scale"] == own["scale"] != alone["scale"]  # the cache is that of DATA
    assert (own["training"]["windows"], other["training"]["windows"]) == (4, 2)
    assert (own["training"]["epochs"], other["training"]["epochs"]) == (1.5, 3.0)
    assert other["training"] == alone["training"]
    assert other["operations"]["extraction"] == own["operations"]["extraction"]
    said = f"trained on the clips of manifest {fold}:\n"
    assert said in fine(*ask[:-1], "--manifest", fold).out


def test_a_manifest_that_does_not_fit_is_refused_in_one_line(place, fold, tmp_path):
    shutil.copytree(place.videos / "a", tmp_path / "root" / "c")
    data = tmp_path / "strange"
    fine("manifest", "folder", tmp_path / "root", "--out", data)
    strange = len(Manifest.load(data).videos)
    plan = ("plan", place.spec, place.data, place.recipe, "--measure-s", 0)
    for command, where in ((("status", place.cache), "cache"), (plan, "manifest")):
        assert_refused(
            call(*command, "--manifest", data),
            where, f"lacks {strange} videos of manifest {data}, the first is c/",
            f"it has 0 of {strange}; next: ",
        )  # fmt: skip
        assert_refused(call(*command, "--manifest", tmp_path / "no"), tmp_path / "no")
    for command in (plan[:2], plan[:3]):
        assert_refused(
            call(*command, *plan[4:], "--manifest", fold), "it wants both; next: stillframe plan"
        )


def test_a_pattern_that_matches_two_caches_names_them(place, cache, tmp_path):
    """The shell makes two words of caches/address-* where two data sets share a folder."""
    root, out = tmp_path / "more", cache.parent
    shutil.copytree(place.videos / "b", root / "c")
    fine("manifest", "folder", root, "--out", tmp_path / "ucf")
    assert call("extract", place.spec, tmp_path / "ucf", "--out", out).code == 0
    first, second = sorted(out.glob("address-*"), key=lambda path: len(path.name))
    assert second.name.startswith("address-ucf-")
    both = f"{first} (6 videos of {place.videos}); {second} (3 videos of {root})"
    for command in ("train", "sweep", "evaluate", "status", "verify"):
        before = {"train": ["demo_gru"], "sweep": ["real_words"], "evaluate": ["run", "--cache"]}
        result = call(command, *before.get(command, []), first, second)
        assert_refused(result, f"{command} reads one cache, and 2 are given: {both}; next: write")
    assert_refused(call("status", first, "other"), "unexpected extra argument", "status --help")
