"""Manifests are joined, selected from, labelled and split anew by command, on the way from folders to a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import assert_refused, call, fine

from pipeline.datasets.manifest.manifest import Manifest


@pytest.fixture(scope="module")
def two(place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of folders named as UCF101 names its videos, and of the same videos under other names, elsewhere."""
    folder = tmp_path_factory.mktemp("two")
    source = sorted(place.videos.glob("a/*.mp4"))[0]
    for label in ("Jump", "Walk"):
        for group in (1, 2):
            for clip in (1, 2):
                names = (
                    f"ucf/{label}/v_{label}_g0{group}_c0{clip}.mp4",
                    f"own/{label}/{group}{clip}.mp4",
                )
                for name in names:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, folder / name)
    found = call("manifest", "folder", folder / "ucf", "--out", folder / "a")
    assert found.code == 0
    assert "8 names of UCF101 in 4 groups" in " ".join(found.out.split())
    fine("manifest", "folder", folder / "own", "--out", folder / "b")
    return folder / "a", folder / "b"


def test_from_two_folders_to_runs_with_groups_held_out(place, two, tmp_path) -> None:
    fine("manifest", "join", *two, "--out", tmp_path / "both")
    fine(
        "manifest",
        "select",
        tmp_path / "both",
        "--clip",
        "v_*",
        "--clip",
        "?1.mp4",
        "--out",
        tmp_path / "some",
    )
    for fold in (1, 2):
        fine(
            "manifest",
            "split",
            tmp_path / "some",
            f"--fold={fold}/2",
            "--out",
            tmp_path / f"fold{fold}",
        )
    fine("extract", place.spec, tmp_path / "fold1", "--out", tmp_path / "caches")
    (cache,) = (tmp_path / "caches").iterdir()
    held_out = []
    for fold in (1, 2):
        data = tmp_path / f"fold{fold}"
        steps = ("--set", "training.steps=1", "--set", "training.warmup_steps=0")
        fine(
            "train",
            place.recipe,
            cache,
            "--manifest",
            data,
            "--out",
            tmp_path / f"run{fold}",
            *steps,
        )
        loaded = Manifest.load(data)
        held_out.append({loaded.clips[at].group for at in loaded.split("val")} - {None})
    assert not held_out[0] & held_out[1]
    assert len(held_out[0] | held_out[1]) == 4


def test_new_labels_and_what_is_printed(two, tmp_path) -> None:
    (tmp_path / "labels.csv").write_text(
        "path,label,split\nJump/11.mp4,up,val\nWalk/11.mp4,flat,train\n"
    )
    printed = fine(
        "manifest", "relabel", two[1], tmp_path / "labels.csv", "--out", tmp_path / "c", "--json"
    )
    facts = json.loads(printed.out)
    assert facts["labels"] == ["Jump", "Walk", "flat", "up"]
    assert "6 of 8 clips are not in" in facts["notes"]["labels"]
    help_text = fine("manifest", "split", "--help").out
    assert help_text.startswith("Usage: stillframe manifest split [OPTIONS] {DATA}")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["join", "{a}"], ["join wants two different manifests or more"]),
        (["join", "{a}", "{a}/none"], ["is no manifest"]),
        (["select", "{a}", "--split", "vol"], ["no split called 'vol'"]),
        (["select", "{a}", "--split", "val", "--clip", "x_*"], ["no clip matches 'x_*'"]),
        (["select", "{a}", "--first", "0"], ["--first"]),
        (["split", "{a}"], ["nothing says how to split"]),
        (["split", "{a}", "--fold", "3/2"], ["key 'val_fold': wanted K/N"]),
        (["split", "{a}", "--set", "val_fraction=2"], ["val_fraction"]),
        (["split", "{a}", "--set", "val_sequence=x"], ["did you mean 'val_sequences'?"]),
        (["split", "{a}", "--set", "val_sequences=x"], ["no sequence called 'x'"]),
        (["split", "{a}", "--set", "group=("], ["is no regular expression"]),
        (["relabel", "{a}", "{a}/none.csv"], ["none.csv"]),
        (["relabel", "{a}", "{a}/dataset.json"], ["dataset.json line 1: no column called"]),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(two, tmp_path, words, parts) -> None:
    arguments = [word.format(a=two[0]) for word in words]
    assert_refused(call("manifest", *arguments, "--out", tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()
