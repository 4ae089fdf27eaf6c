"""Manifests that are made from manifests hold the clips, truth and facts that they should, and say where these come from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import plugins
from pipeline.datasets.formats.splits import SplitSettings
from pipeline.datasets.manifest.edit import resplit, select
from pipeline.datasets.manifest.manifest import Manifest, build
from pipeline.errors import BadInput


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    settings = {"clips_per_class": 3, "frames": 3, "size_px": 32, "val_fraction": 0.34}
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
    folds = [
        split_as(world, tmp_path / str(number), val_fold=f"{number}/3") for number in (1, 2, 3)
    ]
    held_out = [folds[n].clips[place].clip_id for n in range(3) for place in folds[n].split("val")]
    assert sorted(held_out) == sorted(clip.clip_id for clip in world.clips)
    for fold in folds:
        assert_same_truth(fold, world)
        assert {fold.clips[place].label for place in fold.split("val")} == set(world.labels)
    edit = folds[0].origin.made_by
    assert edit and (edit.command, edit.options) == ("split", {"val_fold": "1/3"})
    assert edit.sources[0].folder == str(world.folder)
    assert edit.sources[0].digest == world.digest
    assert (folds[0].origin.dataset, folds[0].origin.settings) == ("world", world.origin.settings)
    before = files(tmp_path / "1")
    split_as(world, tmp_path / "1", val_fold="1/3")
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
    assert "has all of this" in refused(labels=[label], clips=[clip.clip_id])
    with pytest.raises(BadInput, match="nothing says how to split"):
        split_as(world, tmp_path / "out")
    with pytest.raises(BadInput, match="val_fold: 24 groups or videos do not make 25 parts"):
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
