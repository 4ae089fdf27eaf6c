"""Masks as boxes and points: the layouts of YouTube-VOS, MOSE, LVOS and VOST, and real DAVIS masks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import assert_refused, call
from support.paths import SHARED

from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.masks.mask_points import depth_of, points_of

GT = Path(os.environ.get("STILLFRAME_GT", SHARED / "gt"))
HEIGHT, WIDTH = 48, 64
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [64] * (252 * 3)


def build(root: Path, out: Path, name: str = "vos", **settings: Any) -> Manifest:
    manifest.build(name, root, out, settings)
    return Manifest.load(out)


def drawn(boxes: Mapping[int, tuple[int, int, int, int]]) -> np.ndarray:
    """Objects as filled rectangles x0, y0, x1, y1 in pixel edges."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, (x0, y0, x1, y1) in boxes.items():
        mask[y0:y1, x0:x1] = number
    return mask


def video(
    folder: Path, name: str, frames: range, masks: Mapping[int, np.ndarray], images: str = ""
) -> None:
    """Images of these frame numbers, and masks of some of them with a palette."""
    pictures = (Path(images) if images else folder / "JPEGImages") / name
    pictures.mkdir(parents=True, exist_ok=True)
    for number in frames:
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(pictures / f"{number:05d}.jpg")
    (folder / "Annotations" / name).mkdir(parents=True, exist_ok=True)
    for number, mask in masks.items():
        image = Image.fromarray(mask)
        image.putpalette(PALETTE)
        image.save(folder / "Annotations" / name / f"{number:05d}.png")


@pytest.fixture
def youtube(tmp_path: Path) -> Path:
    """train: every fifth frame, of which one has no mask, and an object that appears later and goes; valid: first
    masks alone; and all frames of train beside them."""
    root = tmp_path / "YouTubeVOS"
    first = drawn({1: (4, 4, 14, 24)})
    second = drawn({1: (6, 4, 16, 24), 2: (40, 10, 50, 20)})
    third = drawn({2: (44, 10, 54, 20)})
    for name in ("003234408d", "0043f083b5"):
        masks = {0: first, 5: second, 15: third}
        video(root / "train", name, range(0, 20, 5), masks)
        everything = str(root / "train_all_frames/JPEGImages")
        video(root / "train", name, range(20), masks, images=everything)
    later = {0: first, 10: drawn({2: (40, 10, 50, 20)})}
    video(root / "valid", "0062f687f1", range(0, 20, 5), later)
    (root / "train" / "meta.json").write_text("{}")
    return root


def test_masks_of_some_frames_give_boxes_at_their_times(youtube: Path, tmp_path: Path) -> None:
    built = build(youtube, tmp_path / "out")
    assert {clip.clip_id for clip in built.clips} == {
        "train/003234408d",
        "train/0043f083b5",
        "valid/0062f687f1",
    }
    assert sorted(clip.split for clip in built.clips) == ["test", "train", "val"]
    assert {clip.image_fps for clip in built.clips} == {6.0}
    truth = built.targets("train/003234408d")
    np.testing.assert_allclose(truth["boxes_time_s"], [0, 5 / 30, 15 / 30])
    scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    expected = np.full((2, 3, 4), np.nan)
    expected[0, 0], expected[0, 1] = [4, 4, 14, 24], [6, 4, 16, 24]
    expected[1, 1], expected[1, 2] = [40, 10, 50, 20], [44, 10, 54, 20]
    np.testing.assert_allclose(truth["boxes"], expected / scale, atol=1e-6)
    assert "points" not in truth
    assert "show each object once: they are test" in built.origin.notes["splits"]
    assert "there is no val: it is 0.2 of train" in built.origin.notes["splits"]
    assert built.rejected == {}


def test_all_frames_keep_the_times_of_the_masks(youtube: Path, tmp_path: Path) -> None:
    built = build(youtube, tmp_path / "out", all_frames=True, val_fraction=0)
    clip = next(clip for clip in built.clips if "003234408d" in clip.clip_id)
    assert clip.source == "train_all_frames/JPEGImages/003234408d" and clip.image_fps == 30.0
    truth = built.targets(clip.clip_id)
    np.testing.assert_allclose(truth["boxes_time_s"], [0, 5 / 30, 15 / 30])
    assert {clip.split for clip in built.clips} == {"train", "test"}


def test_lists_and_folders_of_other_names_say_the_split(tmp_path: Path) -> None:
    root = tmp_path / "VOST"
    moving = {n: drawn({1: (n, 4, n + 10, 24)}) for n in range(4)}
    for name in ("1_cut", "2_cut", "3_cut"):
        video(root, name, range(4), moving)
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("1_cut\n2_cut\n")
    (root / "ImageSets/val.txt").write_text("3_cut\n")
    assert {c.clip_id: c.split for c in build(root, tmp_path / "a", video_fps=5).clips} == {
        "1_cut": "train",
        "2_cut": "train",
        "3_cut": "val",
    }
    (root / "JPEGImages").rename(root / "frames")
    (root / "Annotations").rename(root / "masks")
    built = build(root, tmp_path / "b", images="frames", annotations="masks", val_sequences="1_cut")
    assert {c.clip_id: c.split for c in built.clips} == {
        "1_cut": "val",
        "2_cut": "train",
        "3_cut": "train",
    }


def test_what_is_missing_or_damaged_is_named(youtube: Path, tmp_path: Path) -> None:
    video(youtube / "train", "empty", range(0, 10, 5), {0: drawn({})})
    video(youtube / "train", "astray", range(0, 10, 5), {7: drawn({1: (1, 1, 5, 5)})})
    video(youtube / "train", "uneven", range(3), {0: drawn({1: (1, 1, 5, 5)})})
    Image.new("RGB", (WIDTH, HEIGHT)).save(youtube / "train/JPEGImages/uneven/00009.jpg")
    (youtube / "train/Annotations/gone").mkdir()
    built = build(youtube, tmp_path / "out")
    assert built.rejected == {
        "train/Annotations/empty": "no object in 1 masks",
        "train/Annotations/astray": "1 of 1 masks have no image: 00007.png",
    }
    assert built.origin.notes["train/Annotations"] == "1 of 6 videos have no images: gone"
    assert "numbered in steps of 1, 7" in built.origin.notes["train/JPEGImages/uneven"]
    (tmp_path / "none").mkdir()
    result = call("manifest", "vos", tmp_path / "none", "--out", tmp_path / "x")
    assert_refused(result, "holds no folder JPEGImages with a folder Annotations beside it")
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / "davis" / folder / "480p/bear").mkdir(parents=True)
    result = call("manifest", "vos", tmp_path / "davis", "--out", tmp_path / "x")
    assert_refused(result, "where masks should be", "stillframe manifest davis")


def test_points_follow_the_mask_by_one_rule() -> None:
    box = drawn({1: (10, 5, 21, 16)}) == 1
    centroid, inside, *extremes = points_of(box, ("centroid", "inside", "extremes"))
    assert centroid.tolist() == inside.tolist() == [15.5, 10.5]
    assert np.array(extremes).tolist() == [[15.5, 5.5], [20.5, 10.5], [15.5, 15.5], [10.5, 10.5]]
    ring = box.copy()
    ring[8:13, 13:18] = False
    (inside,) = points_of(ring, ("inside",))
    assert ring[int(inside[1]), int(inside[0])]
    assert not ring[10, 15]
    at_the_edge = drawn({1: (0, 5, 21, 16)}) == 1
    top, right, bottom, left = points_of(at_the_edge, ("extremes",))
    assert np.isnan(left).all() and np.isfinite([top, right, bottom]).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_point_inside_lies_on_its_object_whatever_its_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((8, 10)) < 0.4, np.ones((5, 5))) > 0
    mask[3, 3] = True
    (inside,) = points_of(mask, ("inside",))
    assert mask[int(inside[1]), int(inside[0])]
    depth = depth_of(mask)
    assert (depth > 0).tolist() == mask.tolist()
    for row, column in zip(*np.nonzero(mask), strict=True):  # by its definition
        runs = []
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            y, x, steps = row, column, 0
            while 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]:
                y, x, steps = y + down, x + right, steps + 1
            runs.append(steps)
        assert depth[row, column] == min(runs)


def test_points_are_tracks_that_are_visible_where_the_object_is(
    youtube: Path, tmp_path: Path
) -> None:
    built = build(youtube, tmp_path / "out", points=["inside", "extremes"])
    truth = built.targets("train/003234408d")
    assert truth["points"].shape == (10, 3, 2) and truth["points"].dtype == np.float32
    assert truth["visible"].tolist() == [[True, True, False]] * 5 + [[False, True, True]] * 5
    np.testing.assert_array_equal(np.isfinite(truth["points"]).all(-1), truth["visible"])
    np.testing.assert_allclose(truth["points"][0, 0] * [WIDTH, HEIGHT], [9, 14], atol=1e-4)
    np.testing.assert_allclose(truth["points_time_s"], truth["boxes_time_s"])


@pytest.mark.skipif(not (GT / "davis2016").is_dir(), reason="no real DAVIS sequences here")
def test_real_davis_masks_give_points_on_their_objects(tmp_path: Path) -> None:
    """One sequence with every fifth mask, each read again with another library."""
    source = GT / "davis2016"
    (name, *_) = sorted(path.name for path in (source / "JPEGImages/480p").iterdir())
    images, masks = (tmp_path / "d" / folder / "480p" for folder in ("JPEGImages", "Annotations"))
    images.mkdir(parents=True)
    (images / name).symlink_to(source / "JPEGImages/480p" / name)
    (masks / name).mkdir(parents=True)
    files = sorted((source / "Annotations/480p" / name).glob("*.png"))[::5]
    for file in files:
        (masks / name / file.name).symlink_to(file)
    built = build(tmp_path / "d", tmp_path / "out", "davis", points=["centroid", "inside"])
    truth = built.targets(name)
    np.testing.assert_allclose(truth["points_time_s"], np.arange(len(files)) * 5 / 24)
    assert truth["points"].shape == (2, len(files), 2)
    for frame, file in enumerate(files):
        with Image.open(file) as image:
            mask = np.asarray(image.convert("L")) > 0
        rows, columns = np.nonzero(mask)
        size = np.array(mask.shape[::-1])
        centroid, (x, y) = truth["points"][:, frame] * size
        np.testing.assert_allclose(centroid, [columns.mean() + 0.5, rows.mean() + 0.5], atol=1e-3)
        assert mask[int(y), int(x)]
