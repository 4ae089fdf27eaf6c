"""The room of the built-in world: its truth agrees with itself and with the pixels, and every dial does what it says."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.config import plugins
from pipeline.datasets import world
from pipeline.datasets.synthetic import rays, room
from pipeline.datasets.synthetic.rays import Body
from pipeline.datasets.synthetic.room import LABELS, OBJECT_POINTS, Dials, RoomShot
from pipeline.errors import BadInput

FRAMES, FPS = 24, 12
TIME_S = np.arange(FRAMES) / FPS
HALF_PIXEL = 0.5 / 112
DIALS = {
    "rest": Dials(),
    "occlusion": Dials(occlusion=0.6),
    "deformation": Dials(deformation=1.0),
    "viewpoint": Dials(viewpoint=1.0),
    "speed": Dials(speed=1.0),
    "distractors": Dials(distractors=1.0),
    "all": Dials(
        objects=4, occlusion=0.5, deformation=1.0, viewpoint=1.0, speed=1.0, distractors=1.0
    ),
}
EVERY_DIAL = pytest.mark.parametrize("dials", DIALS.values(), ids=DIALS)


def shot(index: int = 0, dials: Dials = DIALS["rest"], label: str | None = None) -> RoomShot:
    return RoomShot(0, index, label or LABELS[index % len(LABELS)], dials, FRAMES / FPS)


def dataset(root: Path, **settings: Any) -> world.Dataset:
    return world.Dataset(root, world.Settings(scene="room", **settings))


def world_points(xy_P2: np.ndarray, depth_P: np.ndarray, pose_44: np.ndarray) -> np.ndarray:
    """(P, 3): written out once more, with the focal length that the docstring states."""
    camera_P3 = np.column_stack(
        [(xy_P2[:, 0] - 0.5) * depth_P, (xy_P2[:, 1] - 0.5) * depth_P, depth_P]
    )
    return camera_P3 @ pose_44[:3, :3].T + pose_44[:3, 3]


def in_frame(place_P3: np.ndarray, pose_44: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """xy (P, 2) and depth (P,) of places in the world."""
    camera_P3 = (place_P3 - pose_44[:3, 3]) @ pose_44[:3, :3]
    return camera_P3[:, :2] / camera_P3[:, 2:] + 0.5, camera_P3[:, 2]


def between_cells(depth_HW: np.ndarray, xy_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (P,) between the four nearest cells, and whether these lie on one surface. 1 / depth is linear on a plane."""
    place_P2 = (xy_P2 * len(depth_HW) - 0.5).clip(0, len(depth_HW) - 1.001)
    column_P, row_P = place_P2.astype(int).T
    right_P, down_P = (place_P2 % 1).T
    inverse_22P = np.array(
        [[1 / depth_HW[row_P + i, column_P + j] for j in (0, 1)] for i in (0, 1)]
    )
    upper_P, lower_P = inverse_22P[:, 0] * (1 - right_P) + inverse_22P[:, 1] * right_P
    smooth_P = inverse_22P.max((0, 1)) < 1.01 * inverse_22P.min((0, 1))
    return 1 / (upper_P * (1 - down_P) + lower_P * down_P), smooth_P


# Geometry


@pytest.mark.slow
@EVERY_DIAL
def test_depth_and_pose_carry_points_of_the_room_from_frame_to_frame(dials: Dials) -> None:
    carried = possible = 0
    for index in range(6):
        truth = shot(index, dials).truth(TIME_S, depth_px=8)
        depth_THW = shot(index, dials).truth(TIME_S[::8], depth_px=448)["depth_m"]
        still = slice(dials.objects * OBJECT_POINTS, None)
        points_QF2, visible_QF = truth["points"][still].astype(float), truth["visible"][still]
        for here, depth_HW in zip(range(0, FRAMES, 8), depth_THW, strict=True):
            depth_P, smooth_P = between_cells(depth_HW, points_QF2[:, here])
            place_P3 = world_points(points_QF2[:, here], depth_P, truth["pose"][here])
            for there in range(0, FRAMES, 5):
                seen_P = visible_QF[:, here] & visible_QF[:, there]
                found_P2, _ = in_frame(place_P3[seen_P & smooth_P], truth["pose"][there])
                assert (
                    np.abs(found_P2 - points_QF2[seen_P & smooth_P, there]).max(initial=0)
                    < HALF_PIXEL
                )
                carried, possible = carried + (seen_P & smooth_P).sum(), possible + seen_P.sum()
    assert carried > 0.8 * possible > 80


@pytest.mark.slow
@EVERY_DIAL
def test_visible_says_what_the_depth_map_says(dials: Dials) -> None:
    """A point is seen if the depth map around it holds its own depth, and covered if something nearer is there."""
    side, counts = 224, Counter[bool]()
    for index in range(3):
        one = shot(index, dials)
        truth, view = one.truth(TIME_S, depth_px=side), one.view(TIME_S)
        owners = [*view.bodies[: dials.objects], view.room]
        place_TQ3 = np.concatenate(
            [body.place(own) for body, own in zip(owners, one.points_QP3, strict=True)], axis=1
        )
        for frame in range(0, FRAMES, 3):
            xy_Q2, visible_Q = truth["points"][:, frame], truth["visible"][:, frame]
            inside_Q = ((xy_Q2 > 2 / side) & (xy_Q2 < 1 - 2 / side)).all(-1)
            assert not visible_Q[~((xy_Q2 >= 0) & (xy_Q2 <= 1)).all(-1)].any()
            column_Q, row_Q = np.floor(xy_Q2[inside_Q] * side).astype(int).T
            around_9Q = np.array(
                [
                    truth["depth_m"][frame, row_Q + i, column_Q + j]
                    for i in (-1, 0, 1)
                    for j in (-1, 0, 1)
                ]
            )
            depth_Q = place_TQ3[frame, inside_Q, 2]
            holds_Q = (around_9Q.min(0) < 1.02 * depth_Q) & (around_9Q.max(0) > 0.98 * depth_Q)
            nearer_Q = around_9Q.min(0) < depth_Q
            assert holds_Q[visible_Q[inside_Q]].all()
            assert nearer_Q[~visible_Q[inside_Q]].all()
            counts.update(visible_Q[inside_Q].tolist())
    assert min(counts[True], counts[False]) > 40


@EVERY_DIAL
def test_boxes_hold_an_objects_points_and_touch_the_outermost(dials: Dials) -> None:
    rng, boxed = np.random.default_rng(0), 0
    for index in range(4):
        one = shot(index, dials)
        truth, view = one.truth(TIME_S), one.view(TIME_S)
        for number, body in enumerate(view.bodies[: dials.objects]):
            own_P3 = rng.standard_normal((20000, 3))
            own_P3 /= np.linalg.norm(own_P3, axis=1, keepdims=True)
            if not body.round:
                own_P3 = np.sign(own_P3[:200])
            place_TP3 = body.place(own_P3)
            assert place_TP3[..., 2].min() > 0  # the paths keep every object in front of the camera
            xy_TP2 = place_TP3[..., :2] / place_TP3[..., 2:] + 0.5
            wanted_T4 = np.concatenate([xy_TP2.min(1), xy_TP2.max(1)], axis=-1).clip(0, 1)
            found_T4 = truth["boxes"][number]
            present = np.isfinite(found_T4).all(-1)
            assert np.abs(found_T4 - wanted_T4)[present].max(initial=0) < (
                2e-3 if body.round else 1e-6
            )
            sign = np.array([-1, -1, 1, 1])
            assert (sign * (found_T4 - wanted_T4))[present].min(initial=0) > -1e-6
            boxed += present.sum()
    assert boxed > 50


@EVERY_DIAL
def test_an_object_has_a_box_where_a_pixel_shows_it(dials: Dials) -> None:
    ray_3N, both = rays.rays(room.centres(168)), Counter[bool]()
    for index in range(3):
        one = shot(index, dials)
        truth, view = one.truth(TIME_S), one.view(TIME_S)
        _, which_TN = rays.first_hit(view.room, view.bodies, ray_3N)
        for number in range(dials.objects):
            shown_T = (which_TN == number).sum(1)
            present_T = np.isfinite(truth["boxes"][number]).all(-1)
            # A sliver may fall between the places at which either side looks.
            assert present_T[shown_T > 12].all()
            assert (shown_T[~present_T] <= 12).all()
            rows, columns = np.divmod(np.arange(168**2), 168)
            for frame in np.nonzero(shown_T > 12)[0]:
                pixels = which_TN[frame] == number
                x0, y0, x1, y1 = truth["boxes"][number, frame] * 168
                assert (
                    x0 - 0.5 <= columns[pixels].min() and columns[pixels].max() <= x1 - 0.5 + 1e-3
                )
                assert y0 - 0.5 <= rows[pixels].min() and rows[pixels].max() <= y1 - 0.5 + 1e-3
            both.update(present_T.tolist())
    assert both[True] > 30


@pytest.mark.parametrize("is_round", [True, False])
def test_extents_of_bodies_beside_and_behind_the_camera(is_round: bool) -> None:
    """Ahead, cut by the left edge, so close beside the camera that it is level with it, behind, out of the frame."""
    centre_T3 = np.array([[0, 0, 4.0], [-2.0, 0, 4], [0.7, 0.1, 0.45], [0, 0, -4], [4, 0, 4]])
    box_T4 = rays.extent(Body(is_round, np.tile(np.diag([0.5, 0.5, 0.5]), (5, 1, 1)), centre_T3))

    def tangent(x: float, z: float, side: int) -> float:
        return float(np.tan(np.arctan2(x, z) + side * np.arcsin(0.5 / np.hypot(x, z))))

    reach = tangent(0, 4, 1) if is_round else 0.5 / 3.5
    assert box_T4[0] == pytest.approx([0.5 - reach, 0.5 - reach, 0.5 + reach, 0.5 + reach])
    assert box_T4[1, [0, 2]] == pytest.approx(
        [0, 0.5 + (tangent(-2, 4, 1) if is_round else -1.5 / 4.5)]
    )
    assert box_T4[2] == pytest.approx(
        [0.5 + (tangent(0.7, 0.45, -1) if is_round else 0.2 / 0.95), 0, 1, 1]
    )
    assert np.isnan(box_T4[3:]).all()


# The dials


@pytest.mark.parametrize("index", range(3))
def test_what_each_dial_changes_and_what_it_leaves_alone(index: int) -> None:
    rest = shot(index).truth(TIME_S)
    of_objects, of_room = slice(2 * OBJECT_POINTS), slice(2 * OBJECT_POINTS, None)

    def same(truth: dict[str, np.ndarray], *names: str) -> None:
        for name in names:
            np.testing.assert_array_equal(truth[name], rest[name], err_msg=name)

    hidden = shot(index, DIALS["occlusion"]).truth(TIME_S)
    same(hidden, "pose", "points")
    both = np.isfinite(hidden["boxes"])
    assert np.array_equal(hidden["boxes"][both], rest["boxes"][both])
    assert not (hidden["visible"] & ~rest["visible"]).any()
    assert (hidden["depth_m"] <= rest["depth_m"]).all() and (
        hidden["depth_m"] < rest["depth_m"]
    ).mean() > 0.02
    soft = shot(index, DIALS["deformation"]).truth(TIME_S)
    same(soft, "pose")
    assert np.array_equal(soft["points"][of_room], rest["points"][of_room])
    assert np.abs(soft["points"][of_objects] - rest["points"][of_objects]).max() > 0.01
    turned = shot(index, DIALS["viewpoint"]).truth(TIME_S)
    assert 0.05 < np.abs(turned["pose"][:, :3, 3] - rest["pose"][:, :3, 3]).max() < 0.37

    fast = shot(index, DIALS["speed"]).truth(TIME_S[:8])
    slow = shot(index).truth(3 * TIME_S[:8])
    for name in ("pose", "boxes", "depth_m"):
        np.testing.assert_allclose(fast[name], slow[name], atol=1e-6, err_msg=name)

    crowded = shot(index, DIALS["distractors"]).truth(TIME_S)
    same(crowded, "pose", "points")
    both = np.isfinite(crowded["boxes"])
    assert np.array_equal(crowded["boxes"][both], rest["boxes"][both])
    assert (crowded["depth_m"] <= rest["depth_m"]).all() and (
        crowded["depth_m"] < rest["depth_m"]
    ).any()

    more = shot(index, Dials(objects=4)).truth(TIME_S)
    same(more, "pose")
    assert len(more["boxes"]) == 4 and len(more["points"]) == 4 * OBJECT_POINTS + room.ROOM_POINTS


def test_deformation_breathes_between_its_bounds() -> None:
    for index in range(3):
        soft, stiff = (shot(index, Dials(deformation=amount)) for amount in (1.0, 0.0))
        time_s = np.linspace(0, 10, 200)
        for changed, kept in zip(soft.view(time_s).bodies, stiff.view(time_s).bodies, strict=True):
            factor_T3 = np.linalg.norm(changed.axes_T33, axis=1) / np.linalg.norm(
                kept.axes_T33, axis=1
            )
            assert factor_T3.min() == pytest.approx(2 / 3, abs=2e-3)
            assert factor_T3.max() == pytest.approx(3 / 2, abs=2e-3)
            assert factor_T3.prod(1) == pytest.approx(np.ones(200))
            assert np.abs(np.diff(factor_T3, axis=0)).max() < 0.06  # a step of 0.05 s: smooth


def test_occlusion_hides_more_and_more() -> None:
    """Pointwise while each object has only its own board, and in the share of time that the dial names."""
    levels, time_s = (0.0, 0.25, 0.5, 0.75, 1.0), np.arange(0, 20, 0.2)
    boxed, seen = np.zeros(len(levels)), np.zeros(len(levels))
    for index in range(10):
        truths = [
            shot(index, Dials(objects=1, occlusion=level)).truth(time_s, depth_px=8)
            for level in levels
        ]
        for less, more in pairwise(truths):
            assert not (more["visible"][:OBJECT_POINTS] & ~less["visible"][:OBJECT_POINTS]).any()
        boxed += [np.isfinite(truth["boxes"][..., 0]).mean() for truth in truths]
        seen += [truth["visible"][:OBJECT_POINTS].mean() for truth in truths]
    hidden = 1 - boxed / boxed[0]
    assert (np.diff(hidden) > 0.1).all() and (np.diff(seen) < 0).all()
    # Never less than the dial says; more where an object is slimmer than the ball around it.
    assert (np.abs(hidden - 0.75 * np.array(levels) - 0.05) < 0.1).all()


def test_look_alikes_look_alike() -> None:
    one = shot(0, Dials(objects=3, distractors=1.0))
    assert len(one.view(TIME_S).bodies) == 3 + 4
    assert one.distractor_looks == [*one.looks, one.looks[0]]
    counts = [
        len(shot(0, Dials(distractors=amount)).distractor_motions) for amount in (0, 0.25, 0.5, 0.6)
    ]
    assert counts == [0, 1, 2, 2]


# The class


def test_no_single_frame_tells_the_class() -> None:
    """At time 0 all classes are one picture; later, a linear reader of pose and its squares guesses, and of motion it knows."""
    for frame, pictures in ((0, 1), (5, 6)):
        seen = {
            shot(5, label=label).render(TIME_S[frame : frame + 1], 32).tobytes() for label in LABELS
        }
        assert len(seen) == pictures

    count = 1000
    labels = np.arange(count) % 6
    pose_NT44 = np.stack([shot(index)._pose(np.array([1.0, 1.1, 1.2])) for index in range(count)])
    flat_NTV = pose_NT44[:, :, :3].reshape(count, 3, 12)
    flat_NTV = (flat_NTV - flat_NTV.mean((0, 1))) / flat_NTV.std((0, 1))
    place_NV, step_NV = flat_NTV[:, 1], flat_NTV[:, 2] - flat_NTV[:, 0]
    bend_NV = flat_NTV[:, 2] - 2 * flat_NTV[:, 1] + flat_NTV[:, 0]

    def accuracy(features_NV: np.ndarray) -> float:
        features_NV = np.column_stack([features_NV, np.ones(count)])
        train, test = features_NV[: count // 2], features_NV[count // 2 :]
        wanted = np.linalg.solve(
            train.T @ train + 1e-2 * np.eye(train.shape[1]),
            train.T @ np.eye(6)[labels[: count // 2]],
        )
        return float(((test @ wanted).argmax(1) == labels[count // 2 :]).mean())

    def products(a_NV: np.ndarray, b_NV: np.ndarray) -> np.ndarray:
        return (a_NV[:, :, None] * b_NV[:, None]).reshape(count, -1)

    assert abs(
        accuracy(np.column_stack([place_NV, products(place_NV, place_NV)])) - 1 / 6
    ) < 4 * np.sqrt(5 / 36 / (count / 2))
    # The way around a circle is the sign of step x bend.
    assert accuracy(products(step_NV, bend_NV)) > 0.8


def test_the_camera_moves_by_centimetres_and_a_few_pixels() -> None:
    moved_m, turned, flow_px = [], [], []
    for index in range(24):
        one = shot(index)
        truth = one.truth(TIME_S)
        step_m = np.linalg.norm(np.diff(truth["pose"][:, :3, 3], axis=0), axis=1)
        (turned if one.circle == "gaze" else moved_m).append(step_m.max())
        both = truth["visible"][:, 1:] & truth["visible"][:, :-1]
        flow_px.append(
            np.median(112 * np.linalg.norm(np.diff(truth["points"], axis=1), axis=-1)[both])
        )
        rotation_T33 = truth["pose"][:, :3, :3]
        assert np.abs(rotation_T33 @ rotation_T33.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
        assert np.linalg.det(rotation_T33) == pytest.approx(np.ones(FRAMES))
    assert min(moved_m) > 0.04 and max(moved_m) < 0.12
    assert max(turned) < 0.02
    assert 1 < np.median(flow_px) < 6


# Pixels and disk


def test_pixels_follow_points() -> None:
    """The colour under a point that stays visible changes less than the colour at the place where it was."""
    followed, stayed = [], []
    for index in range(6):
        one = shot(index)
        frames, truth = one.render(TIME_S[:8], 224).astype(float), one.truth(TIME_S[:8])
        always = truth["visible"].all(1)
        column, row = (
            np.floor(truth["points"][always] * 224).astype(int).transpose(2, 0, 1).clip(0, 223)
        )
        colour = frames[np.arange(8), row, column]
        still = frames[np.arange(8), row[:, :1], column[:, :1]]
        followed += np.abs(colour - colour[:, :1]).mean((1, 2)).tolist()
        stayed += np.abs(still - still[:, :1]).mean((1, 2)).tolist()
    assert np.median(followed) < 0.4 * np.median(stayed)
    assert np.median(stayed) > 8


def test_every_patch_shows_something() -> None:
    frames = np.concatenate([shot(index).render(TIME_S[:1], 112) for index in range(12)]).astype(
        float
    )
    patches = frames.reshape(12, 7, 16, 7, 16, 3).std((2, 4)).max(-1)
    assert np.percentile(patches, 10) > 6
    assert np.median(patches) > 20


def test_videos_show_the_truth_at_their_times(tmp_path: Path) -> None:
    data = dataset(tmp_path, clips_per_class=1, frames=10, fps=7, size_px=64, occlusion=0.5)
    clips = list(data.clips())
    assert [clip.label for clip in clips] == list(LABELS)
    for index, clip in enumerate(clips):
        targets = data.targets(clip)
        with av.open(tmp_path / clip.source) as container:
            decoded = [
                (frame.time, frame.to_ndarray(format="rgb24").astype(float))
                for frame in container.decode(video=0)
            ]
        for name in ("boxes", "points", "depth_m", "pose"):
            assert [time for time, _ in decoded] == pytest.approx(
                targets[f"{name}_time_s"].tolist(), abs=1e-4
            )
            assert targets[name].shape[0 if name in ("depth_m", "pose") else 1] == 10
        assert targets["visible"].shape == targets["points"].shape[:2]
        assert targets["visible"].dtype == bool and targets["pose"].dtype == np.float64
        assert targets["label"] == index
        wanted = RoomShot(0, index, clip.label or "", Dials(occlusion=0.5), 10 / 7)
        rendered = wanted.render(targets["pose_time_s"], 64).astype(float)
        error = np.array(
            [[((pixels - other) ** 2).mean() for other in rendered] for _, pixels in decoded]
        )
        assert np.array_equal(error.argmin(1), np.arange(10))
        for name, array in wanted.truth(targets["pose_time_s"]).items():
            np.testing.assert_array_equal(targets[name], array)


def test_a_room_is_balanced_and_the_same_every_time(tmp_path: Path) -> None:
    settings = {
        "clips_per_class": 3,
        "frames": 3,
        "size_px": 32,
        "val_fraction": 0.34,
        "distractors": 0.5,
    }
    clips = list(dataset(tmp_path / "a", **settings).clips())
    assert Counter((clip.label, clip.split) for clip in clips) == {
        (label, split): number for label in LABELS for split, number in (("train", 2), ("val", 1))
    }
    assert clips == list(dataset(tmp_path / "b", **settings).clips())
    list(dataset(tmp_path / "c", **settings, seed=1).clips())
    for clip in clips:
        ours, again, other = ((tmp_path / side / clip.source).read_bytes() for side in "abc")
        assert ours == again != other
    written = json.loads((tmp_path / "a" / "world.json").read_text())
    assert written == {
        "rendering": room.RENDERING, "clips_per_class": 3, "frames": 3, "fps": 12, "size_px": 32, "seed": 0, "scene": "room",
        "objects": 2, "rooms": 0, "occlusion": 0, "deformation": 0, "viewpoint": 0, "speed": 0, "distractors": 0.5,
    }  # fmt: skip
    with pytest.raises(BadInput, match="already holds another world .*: distractors: 0.0 / 0.5$"):
        list(dataset(tmp_path / "a", **{**settings, "distractors": 0.0}).clips())


def test_clips_may_share_rooms_and_objects_but_not_what_happens_in_them() -> None:
    def look(index: int, rooms: int) -> tuple[bytes, ...]:
        one = shot(index, Dials(rooms=rooms))
        return one.room_skin.half_3.tobytes(), *(each.skin.half_3.tobytes() for each in one.looks)

    looks = [look(index, 2) for index in range(4 * len(LABELS))]
    rounds = [
        set(looks[start : start + len(LABELS)]) for start in range(0, len(looks), len(LABELS))
    ]
    assert (
        all(len(found) == 1 for found in rounds)
        and rounds[0] == rounds[2] != rounds[1] == rounds[3]
    )
    assert len({look(index, 0) for index in range(12)}) == 12
    paths = [shot(index, Dials(rooms=1)).truth(TIME_S)["pose"] for index in (0, len(LABELS))]
    assert not np.allclose(*paths)
    free, shared = shot(3), shot(3, Dials(rooms=1))
    assert np.array_equal(free.truth(TIME_S)["pose"], shared.truth(TIME_S)["pose"])


def test_frames_in_blocks_are_the_frames_at_once() -> None:
    one = shot(2, DIALS["all"])
    whole, parts = (
        one.render(TIME_S, 32),
        [one.render(TIME_S[start : start + 5], 32) for start in range(0, FRAMES, 5)],
    )
    assert np.array_equal(whole, np.concatenate(parts))
    truth, single = (
        one.truth(TIME_S),
        [one.truth(TIME_S[frame : frame + 1]) for frame in range(FRAMES)],
    )
    np.testing.assert_allclose(
        truth["boxes"], np.concatenate([part["boxes"] for part in single], axis=1), rtol=1e-6
    )
    np.testing.assert_allclose(
        truth["depth_m"], np.concatenate([part["depth_m"] for part in single]), rtol=1e-6
    )


def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    peak_bytes = []
    for frames in (16, 160):
        data = dataset(tmp_path / str(frames), clips_per_class=1, frames=frames, size_px=64)
        (tmp_path / str(frames) / "videos").mkdir(parents=True)
        data._render("gaze_clockwise_0000")
        (tmp_path / str(frames) / "videos" / "gaze_clockwise_0000.mp4").unlink()
        tracemalloc.start()
        data._render("gaze_clockwise_0000")
        peak_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peak_bytes[1] < 1.2 * peak_bytes[0] < 60e6


def test_the_plane_has_no_dials() -> None:
    for table, message in (
        (
            {"speed": 0.5},
            "world: speed is a setting of scene 'room', found speed = 0.5 with scene 'plane'",
        ),
        (
            {"objects": 3, "scene": "plane"},
            "world: objects is a setting of scene 'room', found objects = 3 with scene 'plane'",
        ),
        (
            {"scene": "room", "speed": 1.5},
            "world: key 'speed': Input should be less than or equal to 1, found 1.5",
        ),
    ):
        with pytest.raises(BadInput) as caught:
            plugins.settings("dataset", "world", table, "world")
        assert caught.value.message == message
