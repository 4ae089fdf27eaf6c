"""Box and point tracking: the published readouts, losses and scores by hand, what masks hide, what
is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.paths import GOLDEN
from torch import nn

from pipeline.config import plugins
from pipeline.datasets.manifest.targets import collate, map_boxes
from pipeline.errors import BadInput
from pipeline.models.tasks.boxes import (
    StreamingBoxes,
    WindowBoxes,
    generalised_iou,
    iou,
    to_cxcywh,
    to_xyxy,
)
from pipeline.models.tasks.contract import STREAMING, WINDOW, TaskPlugin
from pipeline.models.tasks.parts.canvas import SIDE_PX, WHITE, Canvas, colour, concat_width
from pipeline.models.tasks.parts.query_readout import DecoderLayer, FourierFeatures
from pipeline.models.tasks.parts.tapvid import FRAME_PX, frames_counted, tapvid
from pipeline.models.tasks.points import StreamingPoints, WindowPoints
from pipeline.records import TokenShape

PAPER = {"readout_width": 1024, "hidden": 512}
SIZE = {"readout_width": 16, "heads": 2, "hidden": 8}
B, T, N, D, Q = 3, 5, 7, 8, 6
OBJECTS = 4
SHAPE = TokenShape(D, (2, 3), 1, (1,))


def make(name: str, **keys: object) -> TaskPlugin:
    plugin = plugins.load("task", name)
    return plugin(plugins.validate(plugin.Settings, SIZE | keys, name), ())


def boxes(seed: int, *shape: int) -> np.ndarray:
    """xyxy with area, in the square."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (*shape, 2))
    return np.concatenate([low, low + rng.uniform(0.1, 0.4, (*shape, 2))], axis=-1).astype(
        np.float32
    )


def box_targets(seed: int = 0) -> dict[str, np.ndarray]:
    valid = np.random.default_rng(seed).random((B, T, OBJECTS)) < 0.7
    valid[:, 0, :2] = True
    return {
        "boxes": np.where(valid[..., None], boxes(seed, B, T, OBJECTS), 0).astype(np.float32),
        "boxes_valid": valid,
    }


def point_targets(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    valid = rng.random((B, T, Q)) < 0.8
    visible = valid & (rng.random((B, T, Q)) < 0.7)
    visible[:, 0, :2] = valid[:, 0, :2] = True
    points = rng.uniform(0, 1, (B, T, Q, 2)).astype(np.float32)
    return {
        "points": points,
        "points_valid": valid,
        "visible": visible,
        "query_frame": visible.argmax(1),
    }


TARGETS = {"boxes": box_targets, "points": point_targets}


def tensors(targets: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in targets.items()}


def load_golden(kind: str, readout: nn.Module) -> dict[str, torch.Tensor]:
    """Fills the readout with the published weights, whose names must be exactly its own."""
    golden = load_file(GOLDEN / f"readout_{kind}_streaming.safetensors")
    readout.load_state_dict(
        {key.removeprefix("weights/"): golden[key] for key in golden if key.startswith("weights/")}
    )
    readout.eval()
    return golden


# Readouts


@torch.no_grad()
def test_streaming_boxes_reproduce_the_published_readout():
    readout = StreamingBoxes(32, readout_width=64, heads=4, hidden=32)
    golden = load_golden("boxes", readout)
    x, boxes_BT4 = golden["in/tokens_BTND"], golden["out/boxes_BT4"]
    # Every frame is asked with the published box before it: the features of 2^15 pi x make a rounding error in a box visible.
    asked_BT4 = torch.cat([golden["in/init_box_cxcywh"][:, None], boxes_BT4[:, :-1]], dim=1)
    for t in range(x.shape[1]):
        for others in (0, 3):
            box = torch.cat([asked_BT4[:, None, t], torch.rand(2, others, 4)], dim=1)
            found, state = readout.step(x[:, t], {"box": box})
            assert found.shape == (2, 1 + others, 4) and torch.equal(state["box"], found)
            torch.testing.assert_close(found[:, 0], boxes_BT4[:, t], atol=1e-5, rtol=0)


@torch.no_grad()
def test_streaming_boxes_do_not_see_each_other():
    torch.manual_seed(0)
    readout = StreamingBoxes(D, **SIZE).double()
    x, state = (
        torch.randn(B, T, N, D, dtype=torch.float64),
        {"box": torch.rand(B, OBJECTS, 4, dtype=torch.float64)},
    )
    for t in range(T):
        alone = [
            readout.step(x[:, t], {"box": state["box"][:, [number]]})[0]
            for number in range(OBJECTS)
        ]
        together, state = readout.step(x[:, t], state)
        torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-10, rtol=0)
        assert together.std(dim=1).min() > 1e-5


@torch.no_grad()
def test_streaming_points_reproduce_the_published_readout():
    readout = StreamingPoints(32, readout_width=64, heads=8, hidden=32)
    golden = load_golden("points", readout)
    query = {"point": golden["in/query_xy"], "frame": golden["in/query_frame"]}
    wanted = [
        golden["out/pred_points"],
        golden["out/pred_visibility"][..., None],
        golden["out/pred_uncertainty"][..., None],
    ]
    expected_BTQ4 = torch.cat(wanted, dim=-1).transpose(1, 2)
    torch.testing.assert_close(
        readout(golden["in/tokens_BTND"], query), expected_BTQ4, atol=1e-5, rtol=0
    )
    last = {name: target[:, 1:2] for name, target in query.items()}
    torch.testing.assert_close(
        readout(golden["in/tokens_BTND"], last), expected_BTQ4[:, :, 1:2], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("heads", "groups", "copies"), [(1, 1, 1), (2, 3, 1), (4, 2, 5)])
@torch.no_grad()
def test_decoder_layer_is_that_of_torch_for_every_group_alone(heads, groups, copies):
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(
        16, heads, 64, dropout=0.0, batch_first=True, norm_first=True
    )
    ours = DecoderLayer(16, heads)
    ours.load_state_dict(theirs.state_dict())
    x, tokens = torch.randn(B, groups, copies, 16), torch.randn(B, 9, 16)
    for layer in (theirs, ours):
        layer.eval()
    expected = torch.stack([theirs(x[:, group], tokens) for group in range(groups)], dim=1)
    torch.testing.assert_close(ours(x, tokens), expected, atol=1e-5, rtol=0)


def test_fourier_features_by_hand():
    features = FourierFeatures()(torch.tensor([[0.5, 0.25]])).view(2, 2, 16)
    for place, x in enumerate((0.5, 0.25)):
        for k in range(16):
            assert features[place, 0, k].item() == pytest.approx(np.sin(2**k * np.pi * x), abs=0.01)
            assert features[place, 1, k].item() == pytest.approx(np.cos(2**k * np.pi * x), abs=0.01)


@pytest.mark.parametrize(
    ("name", "form", "heads", "millions"),
    [
        ("boxes", STREAMING, 4, 18.71),
        ("boxes", WINDOW, 4, 18.77),
        ("points", STREAMING, 8, 18.15),
        ("points", WINDOW, 8, 18.16),
    ],
)
def test_sizes_are_those_of_the_paper(name, form, heads, millions):
    with torch.device("meta"):
        readout = make(name, **PAPER, heads=heads).readout(form, 1024, 16, SHAPE)
    assert round(sum(parameter.numel() for parameter in readout.parameters()) / 1e6, 2) == millions
    assert not any(key.startswith("proj_to_readout") for key in readout.state_dict())


def test_a_predicted_box_asks_for_the_next_and_carries_no_gradient():
    torch.manual_seed(0)
    readout = StreamingBoxes(D, **SIZE)
    x, query = torch.randn(1, 3, N, D, requires_grad=True), {"box": torch.rand(1, 2, 4)}
    readout(x, query)[:, 2].sum().backward()
    assert x.grad[:, 2].abs().max() > 0 and x.grad[:, :2].abs().max() == 0
    other = torch.cat([torch.randn(1, 1, N, D), x[:, 1:]], dim=1)
    assert (readout(other, query)[:, 2] - readout(x, query)[:, 2]).abs().max() > 1e-6


@pytest.mark.parametrize("frames", [1, 4, 5])
@torch.no_grad()
def test_window_readouts_answer_for_every_frame_and_each_object_alone(frames):
    torch.manual_seed(0)
    x = torch.randn(B, frames, N, D)
    readout, box = WindowBoxes(D, frames=frames, **SIZE), torch.rand(B, OBJECTS, 4)
    whole = readout(x, {"box": box})
    assert whole.shape == (B, frames, OBJECTS, 4)
    torch.testing.assert_close(
        whole[:, :, 1:2], readout(x, {"box": box[:, 1:2]}), atol=1e-6, rtol=0
    )

    readout = WindowPoints(D, frames=frames, **SIZE)
    query = {"point": torch.rand(B, Q, 2), "frame": torch.zeros(B, Q, dtype=torch.int64)}
    whole = readout(x, query)
    assert (
        whole.shape == (B, frames, Q, 4) and whole[..., :2].min() >= 0 and whole[..., :2].max() <= 1
    )
    alone = readout(x, {name: target[:, 2:3] for name, target in query.items()})
    torch.testing.assert_close(whole[:, :, 2:3], alone, atol=1e-6, rtol=0)


@torch.no_grad()
def test_window_heads_number_frames_in_order():
    boxes_of_window = WindowBoxes(D, frames=3, **SIZE)
    boxes_of_window.bbox_head[2].weight.zero_()
    boxes_of_window.bbox_head[2].bias.copy_(torch.arange(12.0))
    found = boxes_of_window(torch.randn(1, 3, N, D), {"box": torch.rand(1, 2, 4)})
    assert (
        found[0, :, 0].tolist()
        == found[0, :, 1].tolist()
        == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    )

    points = WindowPoints(D, frames=5, **SIZE)
    assert points.point_query_encoder.temporal_embed.shape == (1, 3, 16)
    points.prediction_head[2].weight.zero_()
    points.prediction_head[2].bias.copy_(torch.arange(8.0))
    found = points(
        torch.randn(1, 5, N, D), {"point": torch.rand(1, 1, 2), "frame": torch.tensor([[9]])}
    )
    assert found[0, :, 0, 2:].tolist() == [[2, 3], [6, 7], [2, 3], [6, 7], [2, 3]]
    assert found[0, :2, 0, 1].tolist() == pytest.approx(
        [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-5))]
    )


@pytest.mark.parametrize("form", [STREAMING, WINDOW])
@torch.no_grad()
def test_what_is_told_is_said_again_in_its_frame_alone(form):
    torch.manual_seed(0)
    readout = make("points").readout(form, D, T, SHAPE)
    query = {
        "point": torch.rand(2, 4, 2),
        "frame": torch.tensor([[0, 2, T - 1, 2], [1, -1, T, 99]]),
    }
    found = readout(torch.randn(2, T, N, D), query)
    for b, q, frame in [(b, q, query["frame"][b, q].item()) for b in range(2) for q in range(4)]:
        told = (
            (found[b, :, q, 2] == 10)
            & (found[b, :, q, 3] == -10)
            & (found[b, :, q, :2] == query["point"][b, q]).all(-1)
        )
        assert told.nonzero().flatten().tolist() == ([frame] if 0 <= frame < T else [])


@torch.no_grad()
def test_places_stay_exact_under_autocast():
    torch.manual_seed(0)
    x = torch.randn(B, T, N, D)
    targets = tensors(point_targets()) | tensors(box_targets())
    for name in ("boxes", "points"):
        task = make(name)
        for form in task.forms:
            readout = task.readout(form, D, T, SHAPE)
            with torch.autocast("cpu", torch.bfloat16):
                found = readout(x, task.query(targets))
            assert found.dtype == torch.float32
            torch.testing.assert_close(
                found[:, 0], readout(x, task.query(targets))[:, 0], atol=0.03, rtol=0
            )


# What is chosen from the truth


def test_boxes_follow_what_the_first_frame_shows():
    truth = {
        "boxes": boxes(0, T, OBJECTS),
        "boxes_valid": np.arange(T * OBJECTS).reshape(T, OBJECTS) % 3 > 0,
    }
    truth["boxes_valid"][0] = [True, False, True, True]
    chosen = make("boxes").prepare(truth, None)
    np.testing.assert_array_equal(chosen["boxes"], truth["boxes"][:, [0, 2, 3]])
    np.testing.assert_array_equal(chosen["boxes_valid"], truth["boxes_valid"][:, [0, 2, 3]])
    drawn = [
        make("boxes", objects=2).prepare(truth, np.random.default_rng(seed))["boxes"]
        for seed in range(30)
    ]
    assert {box_TO4.shape for box_TO4 in drawn} == {(T, 2, 4)}
    pairs = {
        tuple(
            np.flatnonzero((truth["boxes"] == box_TO4[:, [place]]).all((0, 2)))[0]
            for place in (0, 1)
        )
        for box_TO4 in drawn
    }
    assert pairs == {(0, 2), (0, 3), (2, 3)}
    assert make("boxes", objects=1).prepare(truth, None)["boxes"].shape == (T, 3, 4)

    truth["boxes_valid"][0] = False
    nobody = make("boxes").prepare(truth, None)
    assert nobody["boxes"].shape == (T, 1, 4) and not nobody["boxes_valid"].any()


def test_objects_beyond_the_crop_are_neither_followed_nor_scored():
    # The square is the middle half of the source: x from 0.25 to 0.75.
    affine = np.tile(np.array([[2, 0, -0.5], [0, 1, 0]]), (3, 1, 1))
    outside, inside, leaving = [0, 0.2, 0.2, 0.4], [0.3, 0.2, 0.5, 0.4], [0.6, 0.2, 0.7, 0.4]
    sliver = [0.75 - 1e-12, 0.2, 0.8, 0.4]
    moved = np.array(
        [[outside] * 3, [inside] * 3, [leaving, leaving, [0.8, 0.2, 0.9, 0.4]], [sliver] * 3]
    )
    truth = map_boxes({"boxes": moved}, np.arange(3), np.ones(3, bool), affine)
    task = make("boxes")
    targets = collate([task.prepare(truth, None)])
    assert targets["boxes_valid"][0].tolist() == [[True, True], [True, True], [True, False]]
    np.testing.assert_allclose(
        targets["boxes"][0, 0], [[0.1, 0.2, 0.5, 0.4], [0.7, 0.2, 0.9, 0.4]], atol=1e-6
    )
    assert task.weight(targets).tolist() == [3]


VISIBLE = np.array([[0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 1]], bool)


def point_truth(visible_TQ: np.ndarray) -> dict[str, np.ndarray]:
    frames, tracks = visible_TQ.shape
    points = (
        np.stack(np.meshgrid(np.arange(tracks), np.arange(frames)), axis=-1).astype(np.float32) / 10
    )
    return {"points": points, "points_valid": np.ones_like(visible_TQ), "visible": visible_TQ}


def told(prepared: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """(track, frame) of every query, read off the places of `point_truth`."""
    frame = prepared["query_frame"]
    track = (prepared["points"][0, :, 0] * 10).round().astype(int)
    assert frame.dtype == np.int64 and prepared["visible"][frame, np.arange(len(frame))].all()
    return list(zip(track.tolist(), frame.tolist(), strict=True))


def test_points_are_told_as_in_tap_vid():
    first = make("points").prepare(point_truth(VISIBLE), None)
    assert told(first) == [(0, 1), (1, 0), (3, 2)]
    strided = make("points", queries="strided", stride=2).prepare(point_truth(VISIBLE), None)
    assert told(strided) == [(1, 0), (0, 2), (3, 2), (0, 4), (1, 4), (3, 4)]
    query = make("points").query(
        {name: torch.from_numpy(array)[None] for name, array in first.items()}
    )
    assert query["frame"].tolist() == [[1, 0, 2]]
    assert query["point"].flatten().tolist() == pytest.approx([0, 0.1, 0.1, 0, 0.3, 0.2])

    nobody = make("points").prepare(point_truth(np.zeros((T, 2), bool)), None)
    assert (
        nobody["points"].shape == (T, 1, 2)
        and not nobody["points_valid"].any()
        and nobody["query_frame"].tolist() == [0]
    )


def test_training_draws_tracks_and_their_frames():
    few = make("points", points=2)
    drawn = {
        tuple(told(few.prepare(point_truth(VISIBLE), np.random.default_rng(seed))))
        for seed in range(40)
    }
    assert drawn == {((0, 1), (1, 0)), ((0, 1), (3, 2)), ((1, 0), (3, 2))}
    anywhere = make("points", train_queries="random")
    drawn = {
        pair
        for seed in range(80)
        for pair in told(anywhere.prepare(point_truth(VISIBLE), np.random.default_rng(seed)))
    }
    assert drawn == {(track, frame) for frame, track in zip(*np.nonzero(VISIBLE), strict=True)}
    assert told(anywhere.prepare(point_truth(VISIBLE), None)) == [(0, 1), (1, 0), (3, 2)]


def test_an_unknown_place_is_nothing_or_an_occlusion():
    truth = point_truth(VISIBLE)
    truth["points_valid"] = VISIBLE.copy()
    ignored = make("points").prepare(truth, None)
    np.testing.assert_array_equal(ignored["points_valid"], VISIBLE[:, [0, 1, 3]])
    occluded = make("points", unknown="occluded").prepare(truth, None)
    assert occluded["points_valid"].all()
    np.testing.assert_array_equal(occluded["visible"], VISIBLE[:, [0, 1, 3]])
    nothing_known = truth | {"points_valid": VISIBLE & (np.arange(T) != 3)[:, None]}
    assert make("points", unknown="occluded").prepare(nothing_known, None)["points_valid"].all(
        1
    ).tolist() == [1, 1, 1, 0, 1]


# Losses


def test_generalised_iou_by_hand():
    truth = torch.tensor([0.0, 0.0, 0.2, 0.2])
    cases = {
        (0.0, 0.0, 0.2, 0.2): 1,
        (0.1, 0.0, 0.3, 0.2): 1 / 3,
        (0.4, 0.0, 0.6, 0.2): -1 / 3,
        (0.1, 0.1, 0.3, 0.3): 1 / 7 - 2 / 9,
        (0.2, 0.2, 0.0, 0.0): 0,
        (0.1, 0.1, 0.1, 0.1): 0,
    }
    predicted = torch.tensor(list(cases))
    assert generalised_iou(predicted, truth.expand(len(cases), 4)).tolist() == pytest.approx(
        list(cases.values()), abs=1e-6
    )


def test_box_loss_by_hand():
    truth = torch.tensor([[[[0.0, 0.0, 0.2, 0.2]], [[0.0, 0.0, 0.2, 0.2]]]])
    targets = {"boxes": truth, "boxes_valid": torch.tensor([[[True], [True]]])}
    prediction = to_cxcywh(torch.tensor([[[[0.1, 0.0, 0.3, 0.2]], [[0.0, 0.0, 0.2, 0.2]]]]))
    l1, giou = 0.1 / 4, 1 - 1 / 3
    assert make("boxes").loss(STREAMING, prediction, targets).item() == pytest.approx(
        (l1 + 0.5 * giou) / 2, rel=1e-5
    )
    smooth = make("boxes", l1_beta=1.0, l1_weight=2.0, giou_weight=0.0)
    assert smooth.loss(WINDOW, prediction, targets).item() == pytest.approx(
        2 * 0.1**2 / 2 / 4 / 2, rel=1e-5
    )


def test_point_loss_by_hand():
    # Frames: told, 3 px off, 8 px off, occluded and said so, unknown.
    truth = {
        "points": torch.full((1, 5, 1, 2), 0.5),
        "points_valid": torch.tensor([1, 1, 1, 1, 0]).bool().view(1, 5, 1),
        "visible": torch.tensor([1, 1, 1, 0, 0]).bool().view(1, 5, 1),
        "query_frame": torch.zeros(1, 1, dtype=torch.int64),
    }
    off_px = torch.tensor([50.0, 3, 8, 100, 100])
    prediction = torch.zeros(1, 5, 1, 4)
    prediction[0, :, 0, 0], prediction[..., 1] = 0.5 + off_px / FRAME_PX, 0.5
    prediction[0, :, 0, 2] = torch.tensor([9.0, 1, 1, -2, 9])
    prediction[0, :, 0, 3] = torch.tensor([9.0, -1, -1, 9, 9])
    log = np.logaddexp
    position, visibility, uncertainty = (
        3**2 / 2 + 4 * (8 - 2),
        2 * log(0, -1) + log(0, -2),
        log(0, -1) + log(0, 1),
    )
    found = make("points").loss(STREAMING, prediction, truth).item()
    assert found == pytest.approx((0.05 * position + visibility + uncertainty) / 3, rel=1e-5)
    weighted = make("points", position_weight=1.0, visibility_weight=0.0, uncertainty_weight=0.5)
    assert weighted.loss(WINDOW, prediction, truth).item() == pytest.approx(
        (position + 0.5 * uncertainty) / 3, rel=1e-5
    )
    truth["query_frame"][:] = 1
    assert make("points", queries="strided", visibility_weight=0.0, uncertainty_weight=0.0).loss(
        STREAMING, prediction, truth
    ).item() == pytest.approx(0.05 * (4 * (50 - 2) + 4 * (8 - 2)) / 3, rel=1e-5)


def test_a_perfect_place_has_a_finite_slope():
    targets = tensors(point_targets())
    prediction = torch.cat([targets["points"], torch.zeros(B, T, Q, 2)], dim=-1).requires_grad_()
    make("points").loss(STREAMING, prediction, targets).backward()
    assert torch.isfinite(prediction.grad).all() and (prediction.grad[..., :2] == 0).all()


def garbage(name: str, targets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same truth with anything at all where nothing holds."""
    spoilt = {key: array.copy() for key, array in targets.items()}
    if name == "boxes":
        spoilt["boxes"][~targets["boxes_valid"]] = np.nan
    else:
        spoilt["points"][~targets["visible"]] = np.nan
        spoilt["visible"] |= ~targets["points_valid"]
    return spoilt


@pytest.mark.parametrize("name", ["boxes", "points"])
def test_what_lies_under_a_mask_changes_nothing(name):
    task, targets = make(name), TARGETS[name]()
    spoilt = garbage(name, targets)
    torch.manual_seed(0)
    for form in task.forms:
        prediction = (
            task.readout(form, D, T, SHAPE)(torch.randn(B, T, N, D), task.query(tensors(targets)))
            .detach()
            .requires_grad_()
        )
        losses = [task.loss(form, prediction, tensors(truth)) for truth in (targets, spoilt)]
        slopes = [torch.autograd.grad(loss, prediction)[0] for loss in losses]
        assert (
            losses[0].item() == losses[1].item()
            and torch.equal(*slopes)
            and torch.isfinite(slopes[0]).all()
        )
        answer = task.answer(form, prediction).detach().numpy()
        for metric, values in task.score(answer, targets).items():
            np.testing.assert_array_equal(task.score(answer, spoilt)[metric], values)
        np.testing.assert_array_equal(task.weight(spoilt), task.weight(targets))


# Scores


def test_box_scores_by_hand():
    truth = np.tile(np.array([0.0, 0.0, 0.2, 0.2], np.float32), (1, 4, 2, 1))
    valid = np.ones((1, 4, 2), bool)
    valid[0, 3, 1] = False
    answer = truth.copy()
    answer[0, 0] = 5  # told, not asked
    answer[0, 1, 0] = [0, 0, 0.2, 0.1]
    answer[0, 1, 1] = [0, 0, 0.2, 0.15]
    answer[0, 2, 0] = [0.2, 0.2, 0, 0]
    answer[0, 2, 1] = [0.1, 0.1, 0.1, 0.1]
    targets = {"boxes": truth, "boxes_valid": valid}
    scores = make("boxes").score(answer, targets)
    assert scores["mIoU"][0] == pytest.approx((0.5 + 0.75 + 0 + 0 + 1) / 5, abs=1e-6)
    assert scores["success_0.5"][0] == 2 / 5 and make("boxes").weight(targets).tolist() == [5]
    assert iou(np.zeros(4), np.zeros(4)) == 0


@pytest.mark.parametrize("name", ["boxes", "points"])
def test_a_perfect_answer_scores_exactly_one(name):
    task, targets = make(name), TARGETS[name](3)
    if name == "boxes":
        answer = targets["boxes"]
    else:
        answer = np.concatenate([targets["points"], targets["visible"][..., None]], axis=-1)
    scores = task.score(answer, targets)
    assert (
        list(scores) == [metric.name for metric in task.metrics]
        and (task.weight(targets) > 0).all()
    )
    for metric in task.metrics:
        assert (
            scores[metric.name].tolist() == [metric.perfect] * B
            and scores[metric.name].dtype == np.float64
        )


def test_boxes_survive_the_way_to_an_answer():
    truth = torch.from_numpy(boxes(0, 50))
    torch.testing.assert_close(to_xyxy(to_cxcywh(truth)), truth, atol=1e-7, rtol=0)
    assert to_cxcywh(torch.tensor([0.1, 0.2, 0.5, 0.4])).tolist() == pytest.approx(
        [0.3, 0.3, 0.4, 0.2]
    )


@pytest.mark.parametrize("queries", ["first", "strided"])
def test_point_scores_are_those_of_tap_vid(queries):
    golden = np.load(GOLDEN / "tapvid_metrics.npz")
    truth, predicted = (
        golden[name].transpose(0, 2, 1, 3) / FRAME_PX for name in ("gt_xy", "pred_xy")
    )
    occluded, said_occluded = (
        golden[name].transpose(0, 2, 1) for name in ("gt_occluded", "pred_occluded")
    )
    query_frame = golden["query_tyx"][..., 0].round().astype(np.int64)
    targets = {
        "points": truth,
        "points_valid": np.ones_like(occluded),
        "visible": ~occluded,
        "query_frame": query_frame,
    }
    scores = make("points", queries=queries).score(
        np.concatenate([predicted, ~said_occluded[..., None]], axis=-1), targets
    )
    for ours, theirs in {
        "AJ": "average_jaccard",
        "delta_avg": "average_pts_within_thresh",
        "OA": "occlusion_accuracy",
    }.items():
        np.testing.assert_allclose(scores[ours], golden[f"{queries}/{theirs}"], atol=1e-6, rtol=0)


def test_a_window_without_a_visible_point_has_no_weight():
    targets = point_targets()
    targets["visible"][1] = False
    targets["visible"][1, 0] = True
    targets["query_frame"][1] = 0
    assert make("points").weight(targets).tolist() == [1, 0, 1]
    assert make("points").score(np.ones((B, T, Q, 3)), targets)["delta_avg"][1] == 0


def test_tap_vid_scores_by_hand():
    counted = frames_counted(np.array([[1]]), np.arange(4), "first")
    assert counted[0, :, 0].tolist() == [False, False, True, True]
    assert frames_counted(np.array([[1]]), np.arange(4), "strided")[0, :, 0].tolist() == [
        True,
        False,
        True,
        True,
    ]
    truth, visible = np.full((1, 4, 1, 2), 0.5), np.ones((1, 4, 1), bool)
    xy = truth + np.array([9, 9, 3, 0]).reshape(1, 4, 1, 1) * [1 / FRAME_PX, 0]
    scores = tapvid(xy, np.array([1, 1, 1, 0], bool).reshape(1, 4, 1), truth, visible, counted)
    # 3 px off and said visible: right within 4, 8, 16 px. Exact but said occluded: within all, never a true positive.
    assert scores["delta_avg"].tolist() == [pytest.approx((0.5 + 0.5 + 1 + 1 + 1) / 5)]
    assert scores["AJ"].tolist() == [pytest.approx((0 + 0 + 1 / 2 + 1 / 2 + 1 / 2) / 5)]
    assert scores["OA"].tolist() == [0.5]


def test_trivial_answers_stand_still():
    targets = box_targets()
    still = make("boxes").trivial(targets, {})
    assert all(np.array_equal(still[:, t], targets["boxes"][:, 0]) for t in range(T))
    targets = point_targets()
    still = make("points").trivial(targets, {})
    for b, q in np.ndindex(B, Q):
        assert (still[b, :, q, :2] == targets["points"][b, targets["query_frame"][b, q], q]).all()
    assert (still[..., 2] > 0.5).all()


def test_when_a_point_is_said_to_be_visible():
    prediction = torch.tensor(
        [[0.1, 0.2, 1.0, 3.0], [0.1, 0.2, 1.0, -3.0], [0.1, 0.2, -1.0, -3.0]]
    ).view(1, 1, 3, 4)
    assert (make("points").answer(STREAMING, prediction)[..., 2] > 0.5).flatten().tolist() == [
        True,
        True,
        False,
    ]
    careful = make("points", visible_if="visible and certain").answer(STREAMING, prediction)
    assert (careful[..., 2] > 0.5).flatten().tolist() == [False, True, False]
    assert torch.equal(careful[..., :2], prediction[..., :2])


# For people


def test_plain_answers_are_in_the_source_frame():
    affine = np.array([[2, 0, -0.5], [0, 1, 0]])
    answer = np.array([[[0.0, 0.2, 1.0, 0.4], [0.5, 0.5, 0.6, 0.6]]])
    assert make("boxes").plain(answer, affine) == {
        "boxes": [[0.25, 0.2, 0.75, 0.4], [0.5, 0.5, 0.55, 0.6]]
    }
    answer = np.array([[[0.0, 0.2, 0.9], [1.0, 0.5, 0.1]]])
    assert make("points").plain(answer, affine) == {
        "points": [[0.25, 0.2], [0.75, 0.5]],
        "visible": [True, False],
    }


GREY = np.full((2, 112, 112, 3), 90, np.uint8)


def shows(pixels_HWC: np.ndarray, x: float, y: float, ink: tuple[int, int, int]) -> bool:
    """Whether the colour is within 2 px of the place."""
    row, column = (int(place * size) for place, size in zip((y, x), pixels_HWC.shape, strict=False))
    around = pixels_HWC[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
    return bool((around == ink).all(-1).any())


def test_boxes_are_drawn_where_they_are():
    answer = np.array([[[0.2, 0.3, 0.6, 0.8], [0.7, 0.1, 0.9, 0.2]]] * 2)
    targets = {"boxes": answer + 0.05, "boxes_valid": np.array([[True, True], [True, False]])}
    drawn = make("boxes").draw(GREY, answer, targets)
    assert drawn.shape == (2, SIDE_PX, SIDE_PX, 3) and drawn.dtype == np.uint8
    for pixels in drawn:
        assert all(shows(pixels, 0.2, y, colour(0)) for y in (0.32, 0.5, 0.78))
        assert shows(pixels, 0.7, 0.15, colour(1)) and not shows(pixels, 0.4, 0.55, colour(0))
    # The dashed truth, corners included, and in the second frame of one object alone.
    assert shows(drawn[0], 0.25, 0.85, WHITE) and shows(drawn[0], 0.95, 0.25, WHITE)
    assert not shows(drawn[1], 0.95, 0.25, WHITE)
    side = [
        (drawn[0, int(y * SIDE_PX), int(0.65 * SIDE_PX)] == WHITE).all()
        for y in np.linspace(0.4, 0.84, 150)
    ]
    assert 0.3 < np.mean(side) < 0.7
    alone = make("boxes").draw(GREY[:1], answer[:1], {})
    assert shows(alone[0], 0.7, 0.15, colour(1)) and not shows(alone[0], 0.95, 0.25, WHITE)


def test_points_are_drawn_where_they_are():
    answer = np.array([[[0.2, 0.3, 0.9], [0.7, 0.4, 0.1]]] * 2)
    targets = {
        "points": answer[..., :2] + 0.1,
        "points_valid": np.ones((2, 2), bool),
        "visible": np.array([[True, False], [True, True]]),
        "query_frame": np.array([0, 1]),
    }
    drawn = make("points").draw(GREY, answer, targets)
    assert drawn.shape == (2, SIDE_PX, SIDE_PX, 3)
    assert shows(drawn[0], 0.2, 0.3, colour(0)) and shows(drawn[0], 0.3, 0.4, colour(0))
    assert not (drawn[0] == colour(1)).all(-1).any()
    assert (drawn[1] == colour(1)).all(-1).any() and not shows(
        drawn[1], 0.7, 0.4, colour(1)
    )  # a ring
    assert shows(drawn[1], 0.8, 0.5, colour(1))
    assert (
        (make("points", queries="strided").draw(GREY, answer, targets)[0] == colour(1))
        .all(-1)
        .any()
    )
    alone = make("points").draw(GREY[:1], answer[:1], {})
    assert shows(alone[0], 0.2, 0.3, colour(0)) and not shows(alone[0], 0.3, 0.4, colour(0))


@pytest.mark.parametrize(("side", "enlarged"), [(112, 384), (224, 384), (512, 512)])
def test_small_frames_are_enlarged_before_drawing(side, enlarged):
    canvas = Canvas(np.full((side, side, 3), 7, np.uint8))
    assert canvas.pixels.shape == (enlarged, enlarged, 3) and (canvas.pixels == 7).all()
    canvas.box(np.array([-1e9, np.nan, 1e9, 0.5]), colour(0))
    canvas.text((0.1, 0.1), "frame 0")
    assert not (canvas.pixels == 7).all()


def test_panels_stand_side_by_side():
    low, high = np.full((10, 20, 3), 50, np.uint8), np.full((30, 15, 3), 200, np.uint8)
    row = concat_width([low, high])
    assert row.shape == (30, 60 + 4 + 15, 3)
    assert (row[:, :60] == 50).all() and (row[:, 64:] == 200).all()


def test_tracking_tasks_refuse_what_they_cannot_use():
    with pytest.raises(BadInput, match="3 heads for width 16"):
        make("boxes", heads=3)
    with pytest.raises(BadInput, match="names a form twice"):
        make("points", forms=["window", "window"])
    with pytest.raises(BadInput, match="queries"):
        make("points", queries="last")
