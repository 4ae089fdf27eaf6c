"""Truth of a window: sampled at its frames' times, mapped into its square, masked where it does not hold."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.material import address_spec
from support.views import Wants

from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.targets import (
    Targets,
    collate,
    map_boxes,
    map_depth,
    map_points,
    map_pose,
    map_xy,
    nearest_truth,
    unmap_xy,
)
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.records import Clip
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.windows import Windows

CROP = np.array([[2.0, 0.0, -0.5], [0.0, 1.0, 0.0]])
"""A frame twice as wide as high, cropped to the square in its middle: x in [0.25, 0.75] stays."""


def crops(frames: int) -> np.ndarray:
    return np.tile(CROP, (frames, 1, 1))


def test_nearest_truth_speaks_only_of_what_is_near():
    rows, found = nearest_truth(
        np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.04, 0.5, 0.97, 2.3]), step_s=0.1
    )
    assert rows.tolist() == [0, 0, 0, 1, 2]
    assert found.tolist() == [True, True, False, True, False]
    rows, found = nearest_truth(
        np.array([0.0, 0.1, 0.2]), np.array([0.0, 0.06, 0.14, 0.3]), step_s=1.0
    )
    assert rows.tolist() == [0, 1, 1, 2] and found.tolist() == [True, True, True, False]
    assert not nearest_truth(np.zeros(0), np.zeros(3), 0.1)[1].any()


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_nearest_truth_is_nearest(frames, seed):
    rng = np.random.default_rng(seed)
    time_s, wanted_s = np.cumsum(rng.uniform(0.01, 1, frames)), rng.uniform(-1, 8, 9)
    rows, _ = nearest_truth(time_s, wanted_s, 0.1)
    distance = np.abs(time_s[None] - wanted_s[:, None])
    np.testing.assert_array_equal(distance[np.arange(9), rows], distance.min(1))


def test_places_go_to_the_square_and_back():
    xy = np.random.default_rng(0).uniform(-1, 2, (3, 5, 2))
    affine = np.array([[[0.7, 0.1, 0.3], [-0.2, 1.4, -0.1]]] * 3)
    there = map_xy(xy, affine)
    np.testing.assert_allclose(there[1, 2], affine[1] @ [*xy[1, 2], 1])
    np.testing.assert_allclose(unmap_xy(there, affine[0]), xy)


def test_boxes_are_cropped_and_masked():
    nan = np.nan
    boxes = np.array(
        [[[0.3, 0.2, 0.5, 0.6]] * 3, [[0.1, 0.1, 0.5, 0.4], [nan] * 4, [0.0, 0.0, 0.2, 1.0]]],
        np.float32,
    )  # the second is cut, then absent, then outside of the crop
    mapped = map_boxes({"boxes": boxes}, np.arange(3), np.array([True, True, True]), crops(3))
    np.testing.assert_allclose(mapped["boxes"][:, 0], [[0.1, 0.2, 0.5, 0.6]] * 3, atol=1e-6)
    np.testing.assert_allclose(mapped["boxes"][0, 1], [0, 0.1, 0.5, 0.4], atol=1e-6)
    assert mapped["boxes_valid"].tolist() == [[True, True], [True, False], [True, False]]
    assert mapped["boxes"][1:, 1].tolist() == [[0] * 4] * 2
    unknown = map_boxes({"boxes": boxes}, np.arange(3), np.array([True, False, True]), crops(3))
    assert unknown["boxes_valid"].tolist() == [[True, True], [False, False], [True, False]]


def test_points_outside_the_square_are_known_but_not_visible():
    points = np.array([[[0.5, 0.5], [0.9, 0.5], [np.nan, 0.5]], [[0.3, 0.1]] * 3], np.float32)
    visible = np.array([[True, True, True], [True, False, True]])
    mapped = map_points(
        {"points": points, "visible": visible}, np.arange(3), np.ones(3, bool), crops(3)
    )
    np.testing.assert_allclose(mapped["points"][:, 0], [[0.5, 0.5], [1.3, 0.5], [0, 0]], atol=1e-6)
    assert mapped["points_valid"].tolist() == [[True, True], [True, True], [False, True]]
    assert mapped["visible"].tolist() == [[True, True], [False, False], [False, True]]


def test_depth_takes_the_pixel_under_each_cell():
    depth = np.arange(1.0, 33).reshape(1, 4, 8).astype(np.float16)
    depth[0, 2, 3] = 0  # unknown
    mapped = map_depth(depth, np.ones(1, bool), crops(1), 4)
    expected = depth[0, :, 2:6].astype(np.float32)
    assert np.array_equal(mapped[0], expected)
    assert not map_depth(depth, np.zeros(1, bool), crops(1), 4).any()
    wide = np.array(
        [[[0.5, 0, 0.25], [0, 1.0, 0]]]
    )  # the square is wider than the source: there is nothing beside it
    mapped = map_depth(depth, np.ones(1, bool), wide, 8)
    assert (
        not mapped[0, :, :2].any()
        and not mapped[0, :, 6:].any()
        and mapped[0, 0, 2] == depth[0, 0, 1]
    )


def test_poses_that_are_not_finite_are_masked():
    pose = np.tile(np.eye(4), (3, 1, 1))
    pose[1, 0, 3] = np.nan
    mapped = map_pose({"pose": pose}, np.array([0, 1, 2]), np.ones(3, bool), crops(3))
    assert (
        mapped["pose_valid"].tolist() == [True, False, True] and mapped["pose"].dtype == np.float64
    )
    assert np.array_equal(mapped["pose"][2], np.eye(4)) and not mapped["pose"][1].any()


def test_windows_with_fewer_objects_are_filled_up():
    batch = collate(
        [{"boxes": np.ones((3, n, 4)), "boxes_valid": np.ones((3, n), bool)} for n in (2, 0, 3)]
    )
    assert batch["boxes"].shape == (3, 3, 3, 4) and batch["boxes_valid"].dtype == bool
    assert batch["boxes_valid"].sum((1, 2)).tolist() == [6, 0, 9] and batch["boxes"].sum() == 15 * 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The built-in world with a cache whose tokens do not matter."""
    root = tmp_path_factory.mktemp("world")
    built = manifest.build(
        "world", None, root, {"clips_per_class": 2, "frames": 8, "size_px": 64, "val_fraction": 0.5}
    )
    spec = address_spec(frames={"size_px": 32, "fps": 12.0})
    return built, extract.extract(spec, built, tmp_path_factory.mktemp("cache"))


def windows(world, *needs: str, split: str = "train", seed: int = 0, **settings: object) -> Windows:
    built, cache = world
    return Windows(
        cache,
        built,
        split,
        WindowSettings(**({"frames": 4, "fps": 6, "seed": seed} | settings)),
        Wants(*needs),
    )


def test_a_window_holds_the_truth_of_its_own_frames(world):
    built, _ = world
    made = windows(world, "label", "boxes", "points", "depth_m", "pose")
    batch = made.read([WindowRef(3, 0.0), WindowRef(0, 1.0)])
    for row, clip in enumerate((3, 0)):
        truth = built.targets(made.clip(clip).clip_id)
        frames = np.round(batch.time_s_BT[row] * 12).astype(int)
        assert built.labels[batch.targets["label"][row]] == made.clip(clip).label
        np.testing.assert_allclose(
            batch.targets["boxes"][row], truth["boxes"][:, frames].transpose(1, 0, 2), atol=1e-6
        )
        np.testing.assert_allclose(
            batch.targets["points"][row], truth["points"][:, frames].transpose(1, 0, 2), atol=1e-6
        )
        assert np.array_equal(batch.targets["visible"][row], truth["visible"][:, frames].T)
        assert np.array_equal(batch.targets["pose"][row], truth["pose"][frames])
        cells = (np.arange(8) * 28 + 14) // 8
        assert np.array_equal(
            batch.targets["depth_m"][row], truth["depth_m"][frames][:, cells[:, None], cells]
        )
    assert (
        batch.targets["boxes_valid"].all()
        and batch.targets["points_valid"].all()
        and "drawn" not in batch.targets
    )
    assert np.array_equal(made.truth([WindowRef(3, 0.0)])["boxes"][0], batch.targets["boxes"][0])


def test_truth_follows_a_clip_that_is_read_backwards(world):
    built, cache = world
    backwards = replace(built, clips=tuple(replace(clip, reverse=True) for clip in built.clips))
    forwards = windows(world, "boxes").truth([WindowRef(1, 0.0)])["boxes"][0]
    turned = windows((backwards, cache), "boxes").truth([WindowRef(1, 0.0)])["boxes"][0]
    assert np.array_equal(turned, forwards[::-1])


def test_what_is_drawn_in_training_is_a_function_of_seed_and_sample(world):
    def drawn(seed: int, number: int) -> float:
        made = windows(world, "boxes", seed=seed)
        return float(made.truth([made.order.sample(number)])["drawn"][0])

    assert drawn(0, 5) == drawn(0, 5)
    assert len({drawn(seed, number) for seed in (0, 1) for number in (5, 6, 5 + 8)}) == 6


def test_missing_truth_is_counted_and_named(world, material):
    with pytest.raises(
        BadInput,
        match=r"needs the target 'boxes', \d of \d clips of split 'train' have none, first ",
    ):
        Windows(
            material.cache,
            material.manifest,
            "train",
            WindowSettings(frames=2, fps=10),
            Wants("boxes"),
        )
    built, cache = world
    clips = [replace(clip, label=None) for clip in built.clips]
    bare = replace(built, clips=tuple(clips))
    with pytest.raises(
        BadInput,
        match="needs a label, 8 of 8 clips of split 'val' have none, first approaching_0001",
    ):
        Windows(cache, bare, "val", WindowSettings(frames=2, fps=6), Wants("label"))


def test_a_damaged_targets_file_is_named(world, tmp_path):
    built, _ = world
    (tmp_path / "targets.h5").write_bytes(b"no hdf5")
    sha256 = hashlib.sha256(b"no hdf5").hexdigest()
    origin = built.origin.model_copy(update={"targets_sha256": sha256})
    moved = replace(built, folder=tmp_path, origin=origin)
    with pytest.raises(BadInput, match=r"targets.h5 cannot be read: .*signature"):
        Targets(moved, Wants("boxes")).check([Clip("a", "a", "a.mp4", "val")], "val")
