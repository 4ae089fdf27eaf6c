"""Depth and pose: published values and sizes, metrics by hand and by `evo`, masks, trivial answers,
drawings; classification's extras."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.paths import GOLDEN

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import STREAMING, WINDOW, TaskPlugin
from pipeline.models.tasks.parts.rotation import (
    angle,
    from_six,
    mean_rotation,
    part_of_turn,
    to_six,
)
from pipeline.records import TokenShape

SHAPE = TokenShape(8, (2, 3), 1, (1,))


def make(name: str, labels: tuple[str, ...] = (), **keys: object) -> TaskPlugin:
    plugin = plugins.load("task", name)
    return plugin(plugins.validate(plugin.Settings, keys, name), labels)


def depth_task(**keys: object) -> TaskPlugin:
    return make("depth", **({"readout_width": 16, "heads": 2, "size_px": 4, "patch_px": 2} | keys))


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, str]]:
    """Arrays, weights and sizes of one published readout."""
    with safe_open(GOLDEN / f"readout_{name}_streaming.safetensors", "pt") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        sizes = file.metadata()
    weights = {
        key.removeprefix("weights/"): arrays[key] for key in arrays if key.startswith("weights/")
    }
    return arrays, weights, sizes


# Published values and sizes


@torch.no_grad()
def test_depth_readout_reproduces_the_published_one():
    arrays, weights, sizes = golden("depth")
    task = make(
        "depth",
        readout_width=int(sizes["width"]),
        heads=int(sizes["heads"]),
        size_px=int(sizes["size_px"]),
    )
    readout = task.readout(
        STREAMING, arrays["in/tokens_BTND"].shape[-1], int(sizes["frames"]), SHAPE
    ).eval()
    readout.load_state_dict(weights)
    depth_BTHW = task.answer(STREAMING, readout(arrays["in/tokens_BTND"], {}))
    torch.testing.assert_close(depth_BTHW, arrays["out/depth_BTHW"], atol=1e-5, rtol=0)
    assert weights["readout.readout.temporal_posenc"].abs().min() > 0


@torch.no_grad()
def test_pose_readout_reproduces_the_published_one():
    arrays, weights, sizes = golden("pose")
    task = make("pose", readout_width=int(sizes["width"]), hidden=int(sizes["hidden"]))
    readout = task.readout(
        STREAMING, arrays["in/tokens_BTND"].shape[-1], int(sizes["frames"]), SHAPE
    ).eval()
    readout.load_state_dict(weights)
    motion_BT9 = task.answer(STREAMING, readout(arrays["in/tokens_BTND"], {}))
    torch.testing.assert_close(motion_BT9, arrays["out/pose_BT9"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "form", "millions"),
    [("depth", STREAMING, 12.42), ("depth", WINDOW, 18.12), ("pose", STREAMING, 0.53)],
)
def test_readouts_have_the_sizes_of_the_paper(name, form, millions):
    with torch.device("meta"):
        readout = make(name).readout(form, 1024, 16, SHAPE)
    assert round(parameters(readout) / 1e6, 2) == millions


def test_pose_projects_only_another_width():
    task = make("pose", readout_width=8, hidden=4)
    assert not any(
        name.startswith("proj_to_readout")
        for name in task.readout(STREAMING, 8, 2, SHAPE).state_dict()
    )
    assert "proj_to_readout.weight" in task.readout(STREAMING, 6, 2, SHAPE).state_dict()
    assert task.forms == (STREAMING,)


# Depth


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@torch.no_grad()
def test_every_query_answers_for_its_block_of_the_window(frames):
    """The pixel's place in its block comes from the last layer's bias, the number of the block from
    the query."""
    readout = depth_task(size_px=6).readout(WINDOW, 8, frames, SHAPE).eval()
    attention = readout.readout.readout
    for parameter in (
        attention.out_proj.weight,
        attention.out_proj.bias,
        attention.mlp_fc2.weight,
        attention.mlp_fc2.bias,
    ):
        parameter.zero_()
    attention.classifier.weight.zero_()[:, 0] = 100
    attention.classifier.bias.copy_(torch.arange(8))
    attention.query[:, 0, 0] = torch.arange(len(attention.query))
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(6), torch.arange(6), indexing="ij")
    block = (t // 2) * 9 + (y // 2) * 3 + x // 2
    expected = 100 * block + (t % 2) * 4 + (y % 2) * 2 + x % 2
    torch.testing.assert_close(
        readout(torch.randn(2, frames, 3, 8), {}), expected.expand(2, -1, -1, -1).float()
    )


def test_depth_scores_by_hand():
    task = depth_task()
    truth, found = np.zeros((2, 1, 4, 4), np.float32), np.full((2, 1, 4, 4), 77.0)
    truth[0, 0, 0], found[0, 0, 0] = [1, 2, 4, 8], [1.2, 2, 5, -3]  # the last is clipped to 0.001
    scores = task.score(found, {"depth_m": truth})
    errors = np.array([0.2, 0, 1, 7.999])
    assert scores["AbsRel"][0] == pytest.approx((errors / [1, 2, 4, 8]).mean())
    assert scores["delta_1"][0] == 0.5  # 5 / 4 is not below 1.25
    assert scores["RMSE"][0] == pytest.approx(math.sqrt((errors**2).mean()))
    scaled = np.array([1.2, 2, 5, -3]) * (3 / 1.6)
    errors = np.abs(np.clip(scaled, 0.001, 10) - [1, 2, 4, 8])
    assert scores["AbsRel, median-scaled"][0] == pytest.approx((errors / [1, 2, 4, 8]).mean())
    assert scores["RMSE, median-scaled"][0] == pytest.approx(math.sqrt((errors**2).mean()))
    assert task.weight({"depth_m": truth}).tolist() == [1, 0]
    assert all(np.isfinite(values).all() for values in scores.values())


def depth_example(seed: int = 0) -> dict[str, np.ndarray]:
    """Three windows of two frames with holes."""
    rng = np.random.default_rng(seed)
    depth_m = rng.uniform(0.5, 9, (3, 2, 4, 4)).astype(np.float32)
    depth_m[rng.random(depth_m.shape) < 0.3] = 0
    return {"depth_m": depth_m}


def test_a_perfect_depth_scores_perfect_and_its_scale_does_not_matter_once_scaled():
    task, targets = depth_task(), depth_example()
    for factor in (1, 0.01, 30):
        scores = task.score(targets["depth_m"] * factor, targets)
        for metric in task.metrics:
            if factor == 1 or "scaled" in metric.name:
                np.testing.assert_allclose(scores[metric.name], metric.perfect, atol=1e-6)
    assert (task.score(-targets["depth_m"], targets)["AbsRel, median-scaled"] > 0.9).all()


def test_what_lies_under_the_mask_or_outside_the_range_changes_nothing():
    task, targets = depth_task(min_m=1.0, max_m=8.0), depth_example()
    depth_m = targets["depth_m"]
    found = depth_m + 0.5
    hidden = (depth_m < 1) | (depth_m > 8)
    assert 0 < hidden.sum() < hidden.size
    wrong = np.random.default_rng(1).choice(np.float32([0, 0.5, 9, 1e30, np.nan]), hidden.shape)
    other = {"depth_m": np.where(hidden, wrong, depth_m)}
    garbage = np.where(hidden, np.nan, found)
    for metric, values in task.score(found, targets).items():
        assert np.array_equal(values, task.score(garbage, other)[metric]), metric
    losses = []
    for truth, predicted in (
        (depth_m, found),
        (other["depth_m"], np.where(hidden, np.float32(-1e6), found)),
    ):
        prediction = torch.from_numpy(predicted).requires_grad_()
        loss = task.loss(STREAMING, prediction, {"depth_m": torch.from_numpy(truth)})
        loss.backward()
        assert (
            torch.isfinite(prediction.grad).all()
            and not prediction.grad[torch.from_numpy(hidden)].any()
        )
        losses.append(loss.item())
    assert losses[0] == losses[1] > 0


def test_depth_losses_by_hand():
    truth = torch.zeros(1, 1, 4, 4)
    truth[0, 0, 0, :2] = torch.tensor([1.0, 4.0])
    raw = torch.full((1, 1, 4, 4), 2.0)
    targets = {"depth_m": truth}
    e2 = math.exp(2)
    expected = {
        ("metres", "l1"): (1 + 2) / 2,
        ("metres", "l2"): (1 + 4) / 2,
        ("log_metres", "l1"): (e2 - 1 + e2 - 4) / 2,
        ("log_metres", "log_l1"): (2 + 2 - math.log(4)) / 2,
    }
    for (output, loss), value in expected.items():
        task = depth_task(output=output, loss=loss)
        assert task.loss(STREAMING, raw, targets).item() == pytest.approx(value, rel=1e-5)
        assert task.answer(STREAMING, raw)[0, 0, 0, 0].item() == pytest.approx(
            2 if output == "metres" else e2
        )


def test_trivial_depth_is_the_median_of_the_training_truth():
    task, targets = depth_task(), depth_example()
    valid = targets["depth_m"][targets["depth_m"] > 0]
    parts = ({"depth_m": targets["depth_m"][place : place + 1]} for place in range(3))
    found = task.trivial(targets, task.statistics(parts))
    assert found.shape == targets["depth_m"].shape and len(np.unique(found)) == 1
    assert found.flat[0] == pytest.approx(np.sort(valid)[(len(valid) - 1) // 2], abs=0.0005)


def test_depth_refuses_what_does_not_fit_together():
    for keys, message in [
        ({"patch_px": 3}, "patch_px must divide size_px, found patches of 3 for 4"),
        ({"heads": 3}, "3 heads for width 16"),
        ({"min_m": 10.0}, "min_m must be less than max_m, found 10.0 and 10.0"),
        ({"loss": "log_l1"}, 'needs output = "log_metres"'),
        ({"forms": ["window", "window"]}, "names a form twice"),
    ]:
        with pytest.raises(BadInput, match=message):
            depth_task(**keys)


def test_depth_is_drawn_on_one_scale_with_unknown_black():
    task, targets = depth_task(), {name: array[0] for name, array in depth_example().items()}
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    drawn = task.draw(pixels, targets["depth_m"], targets)
    assert drawn.dtype == np.uint8 and drawn.shape == (2, 384 + 40, 3 * 384 + 2 * 4, 3)
    truth, found = drawn[0, 48:384, 388:772], drawn[0, 48:384, 776:1160]
    known = (targets["depth_m"][0] > 0).repeat(96, 0).repeat(96, 1)[48:]
    assert not truth[~known].any() and known.any() and not known.all()
    assert np.array_equal(truth[known], found[known])
    alone = task.draw(pixels[:1], targets["depth_m"][:1], {})
    assert alone.shape == (1, 384 + 40, 2 * 384 + 4, 3)
    assert task.plain(np.array([[[1.0, 2], [4, 9]]]), np.eye(2, 3)) == {
        "nearest_m": 1.0,
        "median_m": 3.0,
        "farthest_m": 9.0,
    }


# Rotations


def rotations(count: int, reach: float, seed: int = 0) -> torch.Tensor:
    """Rotation matrices (count, 3, 3), float64, by angles up to `reach`."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=generator), dim=-1
    )
    turn = axis * torch.rand(count, 1, dtype=torch.float64, generator=generator) * reach
    skew = torch.zeros(count, 3, 3, dtype=torch.float64)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -turn[:, 2], turn[:, 1], -turn[:, 0]
    return torch.linalg.matrix_exp(skew - skew.mT)


def test_six_numbers_are_the_first_two_columns():
    turn = rotations(50, math.pi)
    assert torch.equal(to_six(turn), torch.cat([turn[:, :, 0], turn[:, :, 1]], dim=-1))
    torch.testing.assert_close(from_six(to_six(turn)), turn, atol=1e-12, rtol=0)


def test_gram_schmidt_by_its_definition():
    six = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = six[:, :3] / six[:, :3].norm(dim=1, keepdim=True)
    y = six[:, 3:] - (x * six[:, 3:]).sum(1, keepdim=True) * x
    y = y / y.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        from_six(six), torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(
    "six",
    [
        [0] * 6,
        [0, 0, 0, 0, 3, 0],
        [1, 2, 3, 0, 0, 0],
        [1, 2, 3, -2, -4, -6],
        [0, 0, 5, 0, 0, 5],
        [1e-30] * 6,
        [1e15, 1, 1, 1e15, 1, 2],
    ],
)
def test_numbers_without_a_direction_still_give_a_rotation_and_a_finite_gradient(six):
    six = torch.tensor(six, dtype=torch.float32).requires_grad_()
    turn = from_six(six)
    torch.testing.assert_close(turn.T @ turn, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.linalg.det(turn).item() == pytest.approx(1, abs=1e-5)
    (turn * torch.randn(3, 3)).sum().backward()
    assert torch.isfinite(six.grad).all() and six.grad.abs().max() < 1e5
    if not six.any():
        assert torch.equal(turn, torch.eye(3))


@pytest.mark.parametrize("radians", [0, 1e-9, 1e-4, 1.0, math.pi / 2, math.pi - 1e-9, math.pi])
def test_angle_is_exact_everywhere(radians):
    start = rotations(1, math.pi)[0]
    cosine, sine = math.cos(radians), math.sin(radians)
    turn = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    assert angle(start, start @ turn).item() == pytest.approx(radians, abs=1e-14)


def test_mean_rotation_is_the_nearest_to_all():
    turns = rotations(20, 0.5)
    mean = mean_rotation(turns.sum(0))
    torch.testing.assert_close(mean.T @ mean, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    spread = (turns - mean).square().sum()
    for nudge in rotations(30, 0.1, seed=1):
        assert (turns - mean @ nudge).square().sum() > spread
    torch.testing.assert_close(mean_rotation(torch.zeros(3, 3)), torch.eye(3))
    half_turns = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]))
    assert torch.linalg.det(mean_rotation(half_turns.sum(0))).item() == pytest.approx(
        1
    )  # the sum itself is a reflection


# Pose


def drive(frames: int = 12, seed: int = 0, far_m: float = 0.0) -> np.ndarray:
    """Camera to world, (T, 4, 4): about a metre forward a step, gently turning."""
    pose = np.tile(np.eye(4), (frames, 1, 1))
    rng = np.random.default_rng(seed)
    pose[0, :3, :3], pose[0, :3, 3] = rotations(1, math.pi, seed)[0].numpy(), far_m
    for t, turn in enumerate(rotations(frames - 1, 0.2, seed + 1).numpy(), start=1):
        pose[t, :3, :3] = pose[t - 1, :3, :3] @ turn
        pose[t, :3, 3] = pose[t - 1, :3, 3] + pose[t - 1, :3, :3] @ rng.normal([0, 0, 1], 0.1)
    return pose


def motions(
    task: TaskPlugin, pose: np.ndarray, valid: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Prepared targets of one window, as a batch of one."""
    valid = np.ones(len(pose), bool) if valid is None else valid
    time_s = np.arange(len(pose)) / 5
    prepared = task.prepare({"pose": pose, "pose_valid": valid, "time_s": time_s}, None)
    return {name: array[None] for name, array in prepared.items()}


def steady(time_s: np.ndarray) -> np.ndarray:
    """Poses (T, 4, 4) of a camera that goes along a circle, 2 m and half a radian a second."""
    pose = np.tile(np.eye(4), (len(time_s), 1, 1))
    angle_T = 0.5 * time_s
    pose[:, 0, 0], pose[:, 0, 2] = np.cos(angle_T), np.sin(angle_T)
    pose[:, 2, 0], pose[:, 2, 2] = -np.sin(angle_T), np.cos(angle_T)
    pose[:, 0, 3], pose[:, 2, 3] = 4 * (1 - np.cos(angle_T)), 4 * np.sin(angle_T)
    return pose


def test_a_motion_of_so_many_seconds_is_the_same_over_short_and_long_steps():
    """On even steps of that length it is that of a step, to the digits of float32."""
    even_s, uneven_s = np.arange(6) / 10, np.array([0, 0.1, 0.1, 0.3, 0.4, 0.6])
    known = np.ones(6, bool)
    task = make("pose", per_s=0.1)
    even = {"pose": steady(even_s), "pose_valid": known, "time_s": even_s}
    of_steps = make("pose").prepare(even, None)
    scaled = task.prepare(even, None)
    np.testing.assert_allclose(scaled["motion"], of_steps["motion"], atol=2e-7)
    uneven = task.prepare({"pose": steady(uneven_s), "pose_valid": known, "time_s": uneven_s}, None)
    # The frame that comes twice has no motion.
    assert uneven["motion_valid"].tolist() == [False, True, False, True, True, True]
    np.testing.assert_allclose(uneven["step_s"], [0, 0.1, 0, 0.2, 0.1, 0.2], atol=1e-7)
    moved = uneven["motion"][uneven["motion_valid"]]
    # Turned alike; a longer arc is cut a little shorter by its chord.
    np.testing.assert_allclose(moved[:, 3:], np.tile(scaled["motion"][1, 3:], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(moved[:, 2], 0.2, rtol=2e-3)
    batch = {name: array[None] for name, array in uneven.items()}
    right = task.score(batch["motion"], batch)
    assert right["RPE_tr"][0] == 0 and right["RPE_rot"][0] == pytest.approx(0, abs=1e-5)
    # An answer that stands still is off by what the camera goes: 0.2, 0.4, 0.2 and 0.4 m.
    still = np.zeros_like(batch["motion"])
    assert task.score(still, batch)["RPE_tr"][0] == pytest.approx(300, rel=2e-3)
    assert task.plain(uneven["motion"][1:2], np.zeros((2, 3)))["per_s"] == 0.1
    assert task.draw(np.zeros((6, 32, 32, 3), np.uint8), uneven["motion"], uneven).shape[0] == 6


def test_a_turn_is_a_part_of_itself_and_its_parts_make_it():
    turn = rotations(50, 3.0, 3).double()
    share = torch.rand(50, dtype=torch.float64)
    whole = part_of_turn(turn, torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(whole, turn)
    parts = part_of_turn(turn, share) @ part_of_turn(turn, 1 - share)
    torch.testing.assert_close(parts, turn)
    torch.testing.assert_close(
        angle(torch.eye(3).double(), part_of_turn(turn, share)),
        share * angle(torch.eye(3).double(), turn),
    )
    still = torch.eye(3).double()
    assert torch.equal(part_of_turn(still, torch.tensor(0.3).double()), still)


def test_a_motion_is_the_pose_of_a_camera_in_the_frame_of_the_one_before():
    task = make("pose")
    right = math.radians(10)
    world = rotations(1, 3.0)[0].numpy()
    turned = np.array(
        [[math.cos(right), 0, math.sin(right)], [0, 1, 0], [-math.sin(right), 0, math.cos(right)]]
    )
    pose = np.tile(np.eye(4), (3, 1, 1))
    pose[0, :3, :3], pose[0, :3, 3] = world, [500_000, -4_000_000, 30]
    pose[1, :3, :3], pose[1, :3, 3] = world @ turned, pose[0, :3, 3] + world @ [0, 0, 1]
    pose[2, :3, :3], pose[2, :3, 3] = (
        pose[1, :3, :3],
        pose[1, :3, 3] + pose[1, :3, :3] @ [0.2, 0, 1],
    )
    targets = motions(task, pose)
    motion = targets["motion"][0]
    assert motion.dtype == np.float32 and targets["motion_valid"].tolist() == [[False, True, True]]
    np.testing.assert_allclose(motion[1], [0, 0, 1, *turned[:, 0], *turned[:, 1]], atol=1e-6)
    np.testing.assert_allclose(motion[2], [0.2, 0, 1, 1, 0, 0, 0, 1, 0], atol=1e-6)
    assert math.atan2(motion[2, 0], motion[2, 2]) > 0  # to the right
    step = np.linalg.inv(pose[0]) @ pose[1]
    np.testing.assert_allclose(motion[1, :3], step[:3, 3], atol=1e-6)
    assert not motion[0].any()


def test_a_motion_needs_both_poses():
    task, pose = make("pose"), drive(6)
    valid = np.array([True, True, False, True, True, False])
    garbage = np.where(valid[:, None, None], pose, 0)
    targets = motions(task, garbage, valid)
    assert targets["motion_valid"].tolist() == [[False, True, False, False, True, False]]
    assert task.weight(targets).tolist() == [2]
    assert not targets["motion"][~targets["motion_valid"]].any()


def noisy(targets: dict[str, np.ndarray], seed: int = 3) -> np.ndarray:
    """Predictions near the truth, with rotations that are not quite orthogonal."""
    return (
        targets["motion"] + np.random.default_rng(seed).normal(0, 0.05, targets["motion"].shape)
    ).astype(np.float32)


def test_pose_scores_by_hand():
    task = make("pose")
    targets = {
        "motion": np.zeros((2, 4, 9), np.float32),
        "motion_valid": np.array([[False, True, True, False], [False] * 4]),
    }
    targets["motion"][0, 1:3] = [0, 0, 1, 1, 0, 0, 0, 1, 0]
    found = np.full((2, 4, 9), 5.0)
    found[0, 1] = [0.3, 0, 1.4, 2, 0, 0, 0, 3, 0]  # half a metre off, not turned
    half = math.radians(30)
    found[0, 2] = [0, 0, 1, math.cos(half), math.sin(half), 0, -math.sin(half), math.cos(half), 0]
    scores = task.score(found, targets)
    assert scores["RPE_tr"][0] == pytest.approx(250) and scores["RPE_tr, RMSE"][0] == pytest.approx(
        500 / math.sqrt(2)
    )
    assert scores["RPE_rot"][0] == pytest.approx(15) and scores["RPE_rot, RMSE"][
        0
    ] == pytest.approx(30 / math.sqrt(2))
    assert task.weight(targets).tolist() == [2, 0]
    assert all(values[1] == 0 for values in scores.values())


def test_pose_scores_are_those_of_evo():
    metrics = pytest.importorskip("evo.core.metrics")
    from evo.core.trajectory import PosePath3D
    from evo.core.units import Unit

    task, pose = make("pose"), drive(20)
    targets = motions(task, pose)
    found = noisy(targets)
    steps = np.tile(np.eye(4), (len(pose), 1, 1))
    steps[:, :3, :3], steps[:, :3, 3] = (
        from_six(torch.from_numpy(found[0, :, 3:]).double()).numpy(),
        found[0, :, :3],
    )
    chained = [np.eye(4)]
    for step in steps[1:]:
        chained.append(chained[-1] @ step)
    scores = task.score(found, targets)
    relations = {
        "RPE_tr": (metrics.PoseRelation.translation_part, 1000),
        "RPE_rot": (metrics.PoseRelation.rotation_angle_deg, 1),
    }
    for name, (relation, units) in relations.items():
        rpe = metrics.RPE(relation, delta=1, delta_unit=Unit.frames, all_pairs=False)
        rpe.process_data((PosePath3D(poses_se3=list(pose)), PosePath3D(poses_se3=chained)))
        for metric, statistic in (
            (name, metrics.StatisticsType.mean),
            (f"{name}, RMSE", metrics.StatisticsType.rmse),
        ):
            assert scores[metric][0] == pytest.approx(
                units * rpe.get_statistic(statistic), rel=1e-5
            ), metric
            assert scores[metric][0] > 1


@pytest.mark.parametrize("keys", [{}, {"norm": "l1"}, {"balance": "fixed", "rotation_weight": 7.0}])
def test_a_perfect_motion_scores_perfect_and_has_no_error_to_balance(keys):
    task = make("pose", **keys)
    targets = motions(task, drive(far_m=1e5))
    for metric, values in task.score(targets["motion"], targets).items():
        assert values.tolist() == [0], metric
    prediction = torch.from_numpy(targets["motion"]).requires_grad_()
    loss = task.loss(
        STREAMING, prediction, {name: torch.from_numpy(array) for name, array in targets.items()}
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and torch.isfinite(prediction.grad).all()


def test_what_lies_under_the_mask_of_a_motion_changes_nothing():
    task = make("pose")
    targets = motions(task, drive(8), np.array([True, True, True, False, True, True, False, False]))
    valid = targets["motion_valid"]
    found = noisy(targets)
    garbage = np.where(valid[..., None], targets["motion"], np.nan).astype(np.float32)
    wild = np.where(valid[..., None], found, np.float32(1e6))
    for metric, values in task.score(found, targets).items():
        assert (
            np.array_equal(values, task.score(wild, targets | {"motion": garbage})[metric])
            and values > 0
        )
    losses = []
    for truth, predicted in ((targets["motion"], found), (garbage, wild)):
        prediction = torch.from_numpy(predicted).requires_grad_()
        on_device = {"motion": torch.from_numpy(truth), "motion_valid": torch.from_numpy(valid)}
        loss = task.loss(STREAMING, prediction, on_device)
        loss.backward()
        assert (
            not prediction.grad[~on_device["motion_valid"]].any()
            and torch.isfinite(prediction.grad).all()
        )
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_pose_loss_by_hand():
    targets = {
        "motion": torch.tensor([[[0.0] * 9, [0, 0, 1, 1, 0, 0, 0, 1, 0]]]),
        "motion_valid": torch.tensor([[False, True]]),
    }
    prediction = torch.tensor(
        [[[9.0] * 9, [3, 0, 5, 0, 2, 0, -1, 0, 0]]]
    )  # a quarter turn: 4 entries off by one
    means = {"l1": (7, 4), "l2": (5, 2)}
    for norm, (shift, turn) in means.items():
        fixed = make(
            "pose", norm=norm, balance="fixed", translation_weight=2.0, rotation_weight=0.5
        )
        assert not list(fixed.parameters()) and not fixed.state_dict()
        assert fixed.loss(STREAMING, prediction, targets).item() == pytest.approx(
            2 * shift + 0.5 * turn
        )
        learned = make("pose", norm=norm, translation_weight=2.0, rotation_weight=0.5)
        start = 2 * shift - math.log(2) + 0.5 * turn - math.log(0.5)
        assert learned.loss(STREAMING, prediction, targets).item() == pytest.approx(start, rel=1e-5)


def test_learned_balance_makes_both_errors_count_alike():
    """The loss is least where exp(s) is the error itself."""
    task, targets = make("pose"), motions(make("pose"), drive())
    prediction = torch.from_numpy(noisy(targets))
    on_device = {name: torch.from_numpy(array) for name, array in targets.items()}
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        task.loss(STREAMING, prediction, on_device).backward()
        optimizer.step()
    fixed = [
        make("pose", balance="fixed", translation_weight=a, rotation_weight=b)
        for a, b in ((1.0, 1e-9), (1e-9, 1.0))
    ]
    errors = [task.loss(STREAMING, prediction, on_device).item() for task in fixed]
    np.testing.assert_allclose(task.log_variance.detach().exp().numpy(), errors, rtol=1e-3)

    optimizer.zero_grad()
    nothing = on_device | {"motion_valid": torch.zeros_like(on_device["motion_valid"])}
    task.loss(STREAMING, prediction, nothing).backward()
    assert not task.log_variance.grad.any()


def test_trivial_pose_is_the_mean_motion():
    task = make("pose")
    batches = [motions(task, drive(seed=seed)) for seed in range(3)]
    known = np.concatenate([batch["motion"][batch["motion_valid"]] for batch in batches]).astype(
        np.float64
    )
    found = task.trivial(batches[0], task.statistics(iter(batches)))
    assert found.shape == batches[0]["motion"].shape and (found == found[0, 0]).all()
    np.testing.assert_allclose(found[0, 0, :3], known[:, :3].mean(0), atol=1e-12)
    expected = mean_rotation(from_six(torch.from_numpy(known[:, 3:])).sum(0))
    np.testing.assert_allclose(
        from_six(torch.from_numpy(found[0, 0, 3:])).numpy(), expected.numpy(), atol=1e-12
    )
    nothing = task.trivial(batches[0], task.statistics(iter([])))
    assert nothing[0, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_paths_are_drawn_from_above():
    from pipeline.models.tasks.pose import path

    task, pose = make("pose"), drive(5)
    targets = {name: array[0] for name, array in motions(task, pose).items()}
    seen = np.linalg.inv(pose[0]) @ pose
    np.testing.assert_allclose(path(targets["motion"])[1:], seen[:, [0, 2], 3], atol=1e-5)

    pixels = np.full((5, 8, 8, 3), 200, np.uint8)
    drawn = task.draw(pixels, targets["motion"] + 0.1, targets)
    assert drawn.dtype == np.uint8 and drawn.shape == (5, 384, 384 + 4 + 384, 3)
    assert (drawn[:, :, :384] == 200).all()
    panels = drawn[:, 60:320, 388:].reshape(5, -1, 3)
    for ink in ((255, 209, 70), (70, 190, 255)):
        marked = (panels == ink).all(-1).sum(1)
        assert marked[0] > 0 and marked[-1] > marked[1], "every step adds a mark"
    assert task.draw(pixels[:1], targets["motion"][:1] + 0.1, {}).shape == (1, 384, 772, 3)
    plain = task.plain(targets["motion"][1:2], np.eye(2, 3))
    np.testing.assert_allclose(plain["shift_m"], targets["motion"][1, :3], atol=1e-4)
    np.testing.assert_allclose(plain["rotation"], seen[1, :3, :3], atol=1e-5)


# Classification


def test_top_five_counts_where_there_are_more_than_five_labels():
    assert [metric.name for metric in make("classify", tuple("abcde")).metrics] == ["top-1"]
    task = make("classify", tuple("abcdefg"))
    assert [metric.name for metric in task.metrics] == ["top-1", "top-5"]
    answer = np.array(
        [[9, 8, 7, 6, 5, 4, 3], [9, 8, 7, 6, 5, 4, 3], [9, 8, 7, 6, 5, 4, 3], [0] * 7, [0] * 7],
        np.float32,
    )
    scores = task.score(answer, {"label": np.array([0, 4, 5, 4, 5])})
    assert scores["top-1"].tolist() == [1, 0, 0, 0, 0]
    assert scores["top-5"].tolist() == [1, 1, 0, 1, 0]


def test_answers_are_drawn_green_where_right():
    task = make("classify", ("push", "pull", "turn", "lift"))
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    answer = np.array([1.0, 3, 2, -9])

    green, red = (120, 230, 120), (255, 110, 110)

    def inks(drawn: np.ndarray) -> list[bool]:
        return [bool((drawn == ink).all(-1).any()) for ink in (green, red)]

    drawn = task.draw(pixels, answer, {"label": np.array(1)})
    assert drawn.shape == (2, 384, 384, 3) and drawn.dtype == np.uint8
    assert inks(drawn) == [True, False]  # what it says is right; the next likeliest say nothing
    assert inks(task.draw(pixels, answer, {"label": np.array(3)})) == [
        False,
        True,
    ]  # the fourth is not named
    alone = task.draw(pixels, answer, {})
    assert inks(alone) == [False, False] and alone.any()
