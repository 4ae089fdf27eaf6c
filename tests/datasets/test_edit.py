"""Manifests that are made from manifests hold the clips, truth and facts that they should, and say where these come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paths import SHARED

from pipeline.config import plugins
from pipeline.datasets.formats.splits import SplitSettings
from pipeline.datasets.manifest.edit import relabel, resplit, select
from pipeline.datasets.manifest.join import join
from pipeline.datasets.manifest.manifest import Manifest, build
from pipeline.errors import BadInput


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    settings = {"clips_per_class": 2, "frames": 2, "size_px": 32, "val_fraction": 0.5}
    return build("world", None, tmp_path_factory.mktemp("world"), settings)


def split_as(source: Manifest, out: Path, with_test: bool = False, **settings: Any) -> Manifest:
    checked = plugins.validate(SplitSettings, settings, "split")
    return resplit(source, out, checked, with_test=with_test)


def assert_same_truth(edited: Manifest, source: Manifest) -> None:
    """What is written is what is loaded, and truth and facts are those of the source."""
    assert Manifest.load(edited.folder).clips == edited.clips
    assert edited.root == source.root
    for clip in edited.clips:
        truth, wanted = edited.targets(clip.clip_id), source.targets(clip.clip_id)
        assert truth.keys() == wanted.keys()
        for name, array in truth.items():
            np.testing.assert_array_equal(array, wanted[name])
            assert array.dtype == wanted[name].dtype
        assert edited.facts[clip.video_id] == source.facts[clip.video_id]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folds_hold_out_every_clip_once_and_keep_truth(world: Manifest, tmp_path: Path) -> None:
    folds = [split_as(world, tmp_path / str(number), val_fold=f"{number}/2") for number in (1, 2)]
    held_out = [folds[n].clips[place].clip_id for n in range(2) for place in folds[n].split("val")]
    assert sorted(held_out) == sorted(clip.clip_id for clip in world.clips)
    for fold in folds:
        assert_same_truth(fold, world)
        assert {fold.clips[place].label for place in fold.split("val")} == set(world.labels)
    edit = folds[0].origin.made_by
    assert edit and (edit.command, edit.options) == ("split", {"val_fold": "1/2"})
    assert edit.sources[0].folder == str(world.folder)
    assert edit.sources[0].digest == world.digest
    assert (folds[0].origin.dataset, folds[0].origin.settings) == ("world", world.origin.settings)
    before = files(tmp_path / "1")
    split_as(world, tmp_path / "1", val_fold="1/2")
    assert files(tmp_path / "1") == before
    again = split_as(folds[0], tmp_path / "again", val_fraction=0.34)
    assert again.origin.made_by and again.origin.made_by.sources[0].made_by == edit


def test_clips_are_selected_by_all_that_is_asked(world: Manifest, tmp_path: Path) -> None:
    label = world.labels[0]
    some = select(world, tmp_path / "a", splits=["val"], labels=[label], targets=["boxes"])
    assert [(clip.split, clip.label) for clip in some.clips] == [("val", label)]
    assert_same_truth(some, world)
    assert some.origin.made_by and some.origin.made_by.options == {
        "splits": ["val"],
        "labels": [label],
        "targets": ["boxes"],
    }
    first = select(world, tmp_path / "b", first=1)
    counts = [(clip.split, clip.label) for clip in first.clips]
    assert len(counts) == len(set(counts)) == 2 * len(world.labels)
    name = world.clips[5].clip_id
    assert [clip.clip_id for clip in select(world, tmp_path / "c", clips=[name]).clips] == [name]
    assert len(select(world, tmp_path / "d", clips=["*"]).clips) == len(world.clips)


def test_the_videos_need_not_be_there(world: Manifest, tmp_path: Path) -> None:
    away = Path(shutil.copytree(world.folder, tmp_path / "away"))
    shutil.rmtree(away / "videos")
    source = Manifest.load(away)
    assert split_as(source, tmp_path / "a", val_fold="1/2").facts == world.facts


def test_wrong_edits(world: Manifest, tmp_path: Path) -> None:
    def refused(**conditions: Any) -> str:
        with pytest.raises(BadInput) as caught:
            select(world, tmp_path / "out", **conditions)
        assert not (tmp_path / "out").exists()
        return caught.value.message

    assert "no split called 'test'; there are: train, val" in refused(splits=["test"])
    assert "no label called 'up'" in refused(labels=["up"])
    assert "no truth called 'box'; there are: " in refused(targets=["box"])
    assert "no clip matches 'x*'; the first is called " in refused(clips=["x*"])
    label = world.labels[0]
    clip = next(clip for clip in world.clips if clip.label != label)
    assert "and all of them by none: label " in refused(labels=[label], clips=[clip.clip_id])
    with pytest.raises(BadInput, match="nothing says how to split"):
        split_as(world, tmp_path / "out")
    with pytest.raises(BadInput, match="val_fold: 16 groups or videos do not make 25 parts"):
        split_as(world, tmp_path / "out", val_fold="1/25")
    for fold in ("0/2", "3/2", "1/1", "x"):
        with pytest.raises(BadInput, match="wanted K/N, as 2/5"):
            split_as(world, tmp_path / "out", val_fold=fold)
    with pytest.raises(BadInput, match="is the manifest that is edited"):
        split_as(world, world.folder, val_fold="1/2")


def test_clips_of_test_are_split_where_that_is_asked(world: Manifest, tmp_path: Path) -> None:
    names = [clip.video_id for clip in world.clips[:4]]
    tested = split_as(world, tmp_path / "a", test_sequences=names)
    assert [clip.clip_id for clip in tested.clips if clip.split == "test"] == names
    assert len(split_as(tested, tmp_path / "b", val_fold="1/2").split("test")) == 4
    assert "test" not in split_as(tested, tmp_path / "c", with_test=True, val_fold="1/2").splits


@pytest.mark.parametrize("column", ["clip_id", "path"])
def test_labels_splits_and_groups_come_from_a_csv_file(
    world: Manifest, tmp_path: Path, column: str
) -> None:
    names = [clip.clip_id if column == "clip_id" else clip.source for clip in world.clips]
    splits = ["val" if place % 3 else "train" for place in range(len(names))]
    rows = [f"{name};{place % 2};{splits[place]};g{place}" for place, name in enumerate(names)]
    csv = tmp_path / "labels.csv"
    csv.write_text("\n".join([f"{column};label;split;group", *rows, "other;1;val;g0"]))
    done = relabel(world, csv, tmp_path / "out")
    assert done.labels == ("0", "1")
    assert [clip.split for clip in done.clips] == splits
    assert [clip.group for clip in done.clips] == [f"g{place}" for place in range(len(names))]
    assert done.origin.notes == {str(csv): "1 of its clips are not in the manifest: other"}
    assert_same_truth(done, world)
    csv.write_text("\n".join([f"{column},label", f"{names[0]},new"]))
    done = relabel(world, csv, tmp_path / "few")
    assert done.clips[0].label == "new" and done.clips[1:] == world.clips[1:]
    assert "15 of 16 clips are not in" in done.origin.notes["labels"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nx,1\n", "names none of the clips of .*, such as "),
        ("path,clip_id,label\n", "wanted the columns clip_id or path, and label"),
        ("clip_id\n", "wanted the columns clip_id or path, and label; found: clip_id"),
        ("path,lable\n", "no column called 'lable'"),
        ("clip_id,label\n{0},\n", "line 2: label is empty"),
        ("clip_id,label,split\n{0},a,vol\n", "line 2: no split called 'vol'"),
        ("clip_id,label\n{0},a\n{0},b\n", "line 3 repeats line 2"),
        ("", "wanted the columns clip_id or path, and label; found: nothing"),
    ],
)
def test_wrong_labels(world: Manifest, tmp_path: Path, text: str, message: str) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(text.format(world.clips[0].clip_id))
    with pytest.raises(BadInput, match=message):
        relabel(world, csv, tmp_path / "out")


def test_manifests_are_joined_with_their_truth(world: Manifest, tmp_path: Path) -> None:
    settings = {"clips_per_class": 1, "frames": 2, "size_px": 32, "scene": "room", "seed": 3}
    room = build("world", None, tmp_path / "room", settings)
    grouped = split_as(room, tmp_path / "grouped", group=r"(\d)\.")
    both = join([world, grouped], tmp_path / "both")
    assert Manifest.load(both.folder).clips == both.clips
    assert both.origin.dataset == "world" and both.labels == tuple(
        sorted({*world.labels, *room.labels})
    )
    count = len(world.clips)
    for source, clips in ((world, both.clips[:count]), (grouped, both.clips[count:])):
        for clip, original in zip(clips, source.clips, strict=True):
            assert (both.root / clip.source).samefile(source.root / original.source)
            assert (clip.split, clip.label, clip.group) == (
                original.split,
                original.label,
                original.group,
            )
            truth, wanted = both.targets(clip.clip_id), source.targets(original.clip_id)
            assert truth.keys() == wanted.keys()
            assert all(np.array_equal(truth[name], wanted[name]) for name in truth)
            assert both.facts[clip.video_id] == source.facts[original.video_id]
    before = files(both.folder)
    join([world, grouped], tmp_path / "both")
    assert files(both.folder) == before


def test_a_video_of_two_manifests_is_one(world: Manifest, tmp_path: Path) -> None:
    some = select(world, tmp_path / "some", splits=["val"])
    both = join([some, world], tmp_path / "both")
    assert sorted(both.clips, key=lambda clip: clip.clip_id) == sorted(
        world.clips, key=lambda clip: clip.clip_id
    )
    assert both.origin.notes["clips"].startswith(f"{len(some.clips)} are in several and taken once")
    other = split_as(world, tmp_path / "other", val_fraction=0.34, seed=1)
    with pytest.raises(BadInput, match="is in split .* here and in .* before"):
        join([world, other], tmp_path / "out")


def test_what_does_not_go_together_is_not_joined(world: Manifest, tmp_path: Path) -> None:
    unlabelled = join([select(world, tmp_path / "a", first=1), world], tmp_path / "b", labels=False)
    assert unlabelled.labels == ()
    with pytest.raises(BadInput, match="has labels and .* has none") as caught:
        join([unlabelled, world], tmp_path / "out")
    assert "--no-labels" in caught.value.hint
    for few in ([world], [world, world]):
        with pytest.raises(BadInput, match="join wants two different manifests or more"):
            join(few, tmp_path / "out")
    old = tmp_path / "old"
    shutil.copytree(world.folder, old)
    table = json.loads((old / "dataset.json").read_text())
    (old / "dataset.json").write_text(json.dumps(table | {"clock": "file"}))
    with pytest.raises(BadInput, match="seconds are counted differently"):
        join([world, Manifest.load(old)], tmp_path / "out")


def test_davis_and_otb_are_joined_and_split_by_sequence(tmp_path: Path) -> None:
    if not (SHARED / "gt" / "otb").is_dir():
        pytest.skip("the shared sequences are not here")
    davis = build("davis", SHARED / "gt" / "davis2016", tmp_path / "davis", {})
    otb = build("otb", SHARED / "gt" / "otb", tmp_path / "otb", {})
    both = join([davis, otb], tmp_path / "both")
    assert both.origin.dataset == "davis+otb"
    assert both.root == (SHARED / "gt").resolve()
    assert len(both.clips) == len(davis.clips) + len(otb.clips)
    held_out: list[str] = []
    for fold in range(1, 6):
        part = split_as(both, tmp_path / "fold", val_fold=f"{fold}/5")
        held_out += [part.clips[place].clip_id for place in part.split("val")]
        for clip in (part.clips[0], part.clips[-1]):
            assert (part.root / clip.source).is_dir()
            assert np.isfinite(part.targets(clip.clip_id)["boxes"]).any()
    assert sorted(held_out) == sorted(clip.clip_id for clip in both.clips)
