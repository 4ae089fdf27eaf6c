"""Objects that enter late: what is told in the first frame of a window must be there, and a refusal says how to find windows where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.commands import SPEC, assert_refused, call, fine

FRAMES, ABSENT = 30, 24
"""Frames of a sequence of 30 a second, and how many of them come before the object."""
SHORT = (
    *("training.steps=1", "training.batch_size=2", "windows.frames=3", "windows.fps=30"),
    *("model.width=8", "task.readout_width=8", "task.heads=2", "task.hidden=8"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Two sequences in the layout of LaSOT, in whose last frames an object stands."""
    folder = tmp_path_factory.mktemp("late")
    (folder / "address.toml").write_text(SPEC)
    for name in ("cat-2", "cat-4"):
        images = folder / f"LaSOT/cat/{name}/img"
        images.mkdir(parents=True)
        for number in range(1, FRAMES + 1):
            Image.new("RGB", (64, 64), (90, 120, 30)).save(images / f"{number:08d}.jpg")
        boxes = ["0,0,0,0"] * ABSENT + ["16,16,24,24"] * (FRAMES - ABSENT)
        (images.parent / "groundtruth.txt").write_text("\n".join(boxes) + "\n")
    sets = ["--set", "preset=lasot", "--set", 'val_sequences=["cat-4"]']
    fine("manifest", "boxes_text", folder / "LaSOT", "--out", folder / "data", *sets)
    fine("extract", folder / "address.toml", folder / "data", "--out", folder / "caches")
    (made,) = (folder / "caches").iterdir()
    return made


def test_a_refusal_says_how_many_windows_find_a_late_object(cache, tmp_path):
    sets = [word for setting in SHORT for word in ("--set", setting)]
    train = ["train", "demo_boxes", cache, "--out", tmp_path / "run", *sets]
    assert_refused(
        call(*train),
        "no window of split 'val' has anything to score: of boxes nothing is valid in any",
        "windows.eval_windows=2 looks at more places of a clip, where some have",
    )
    assert_refused(call("baselines", "demo_boxes", cache, *sets), "windows.eval_windows=2")
    result = call(*train, "--set", "windows.eval_windows=2", "--json")
    assert result.code == 0
    scored = fine("evaluate", tmp_path / "run", "--json").json
    assert (scored["clips_scored"], scored["clips_without_truth"]) == (1, 0)


def test_where_nothing_is_there_at_all_the_truth_is_to_be_looked_at(cache, tmp_path):
    """Windows as long as their clip begin where it begins, wherever one looks."""
    sets = [word for setting in SHORT for word in ("--set", setting)]
    result = call("baselines", "demo_boxes", cache, *sets, "--set", f"windows.frames={FRAMES}")
    assert_refused(result, "has anything to score", "look at the truth in targets.h5")
