"""Laws of every task found on disk, and what is special to classification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.paths import GOLDEN

from pipeline.config import plugins
from pipeline.datasets.manifest.targets import TOKENS, collate
from pipeline.errors import BadInput
from pipeline.models.tasks.classify import FrameLogits, Settings, Task, WindowLogits
from pipeline.models.tasks.contract import (
    BY_FRAME,
    FRAME_EMBEDDINGS,
    PATCHES,
    STREAMING,
    WINDOW,
    Query,
    StreamingReadout,
    TaskPlugin,
)
from pipeline.records import TokenShape
from pipeline.train.evaluation import MetricFacts

NAMES = plugins.names("task")
LABELS = ("1", "2", "3", "5", "8")
"""Numbers, so that a task may read them as such."""
SMALL = {
    "readout_width": 16,
    "heads": 2,
    "hidden": 8,
    "size_px": 16,
    "horizons_s": (0.5,),
    "width": 8,
    "text_width": 8,
    "layers": 1,
}
B, T, N, D = 6, 4, 5, 8
SHAPE = TokenShape(width=6, grid_hw=(2, 2), special_tokens=1, layers=(1,))


def make(name: str, **keys: object) -> TaskPlugin:
    plugin = plugins.load("task", name)
    table = {
        key: value for key, value in SMALL.items() if key in plugin.Settings.model_fields
    } | keys
    return plugin(plugins.validate(plugin.Settings, table, name), LABELS)


def window_targets(task: TaskPlugin, seed: int) -> dict[str, np.ndarray]:
    """One window's truth as `pipeline.datasets.manifest.targets` samples it, of every kind that the task needs.

    Two objects, of which one leaves in some windows, and three points.
    """
    rng = np.random.default_rng(seed)
    corner = np.cumsum(
        np.concatenate([rng.uniform(0.1, 0.3, (1, 2, 2)), rng.uniform(-0.05, 0.05, (T - 1, 2, 2))]),
        axis=0,
    )
    turn = np.cumsum(rng.uniform(-0.1, 0.1, T))
    pose = np.tile(np.eye(4), (T, 1, 1))
    pose[:, 0, 0] = pose[:, 2, 2] = np.cos(turn)
    pose[:, 0, 2], pose[:, 2, 0] = np.sin(turn), -np.sin(turn)
    pose[:, :3, 3] = np.cumsum(rng.uniform(-0.2, 0.2, (T, 3)), axis=0)
    here = np.array([[True, seed % 3 == 0 or t < 2] for t in range(T)])
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.4, (1, 2, 2))], axis=-1)
    side = task.dense_px or 1
    known = {
        "label": {"label": np.array(seed % len(LABELS), np.int64)},
        "boxes": {
            "boxes": np.where(here[..., None], boxes.clip(0, 1), 0).astype(np.float32),
            "boxes_valid": here,
        },
        "points": {
            "points": rng.uniform(0.1, 0.9, (1, 3, 2)).astype(np.float32)
            + rng.uniform(-0.1, 0.1, (T, 3, 2)).astype(np.float32),
            "points_valid": np.ones((T, 3), bool),
            "visible": np.array([[True, True, t > 0] for t in range(T)]),
        },
        "depth_m": {"depth_m": rng.uniform(0.5, 5, (T, side, side)).astype(np.float32)},
        "pose": {"pose": pose, "pose_valid": np.ones(T, bool)},
        "classes": {
            "classes": np.eye(len(LABELS), dtype=bool)[(seed + (np.arange(T) > seed % T)) % 4],
            "classes_valid": np.arange(T) < T - seed % 2,
        },
        "tokens": {"seen_s": 0.25 * np.arange(T)},
        "captions": {"captions": vectors(rng, 1 + seed % 2)},
        "question": {
            "question": vectors(rng, 2 + seed % 3),
            "question_valid": np.ones(2 + seed % 3, bool),
            "label": np.array(seed % len(LABELS), np.int64),
            "is_answered": np.array(True),
            "choices": vectors(rng, 3 + seed % 2),
            "choice": np.array(seed % 3, np.int64),
        },
    }
    truth = {key: array for name in task.needs for key, array in known[name].items()}
    if FRAME_EMBEDDINGS in task.example_texts(T):  # which the cache adds
        truth[FRAME_EMBEDDINGS] = vectors(rng, T)
    return truth


def vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Some of unit length."""
    drawn = rng.normal(size=(count, SMALL["width"])).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def example(task: TaskPlugin) -> dict[str, torch.Tensor]:
    """Targets of B windows, as a batch holds them in evaluation."""
    prepared = collate([task.prepare(window_targets(task, seed), None) for seed in range(B)])
    targets = {name: torch.from_numpy(array) for name, array in prepared.items()}
    if TOKENS in task.needs:  # which the cache adds
        generator = torch.Generator().manual_seed(0)
        targets[TOKENS] = torch.randn(B, T, SHAPE.patch_tokens, SHAPE.width, generator=generator)
    return targets


def told(task: TaskPlugin, targets: dict[str, torch.Tensor]) -> Query:
    """What a readout is told of a window."""
    seen = {PATCHES: targets[TOKENS]} if task.sees_patches else {}
    return task.query(targets) | seen


def on_host(targets: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: target.numpy() for name, target in targets.items()}


def mean_score(task: TaskPlugin, answer: np.ndarray, targets: dict[str, np.ndarray]) -> float:
    """The first metric over all windows."""
    weights = task.weight(targets)
    return float(
        (task.score(answer, targets)[task.metrics[0].name] * weights).sum() / weights.sum()
    )


def fitted(task: TaskPlugin, form: str, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """A prediction that minimises the loss itself, without any model."""
    torch.manual_seed(0)
    shape = task.readout(form, D, T, SHAPE)(torch.randn(B, T, N, D), told(task, targets)).shape
    prediction = torch.zeros(shape).normal_(0, 0.1).requires_grad_()
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        task.loss(form, prediction, targets).backward()
        optimizer.step()
    return prediction.detach()


CASES = [(name, form) for name in NAMES for form in make(name).forms]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), CASES)
def test_what_minimises_the_loss_scores_best(name, form):
    task = make(name)
    targets = example(task)
    best = task.answer(form, fitted(task, form, targets)).numpy()
    scores = task.score(best, on_host(targets))
    assert list(scores) == [metric.name for metric in task.metrics]
    for metric in task.metrics:
        values = scores[metric.name]
        assert values.dtype == np.float64 and values.shape[: 1 if metric.is_median else None] == (
            B,
        )
    trivial = task.trivial(on_host(targets), task.statistics(iter([on_host(targets)])))
    assert trivial.shape == best.shape
    scored, of_trivial = (mean_score(task, answer, on_host(targets)) for answer in (best, trivial))
    said = f"what minimises the loss has {task.metrics[0].name} {scored}, the trivial answer {of_trivial}"
    assert (scored > of_trivial) == task.metrics[0].higher_is_better, said
    assert scored != of_trivial, said
    for metric in task.metrics:
        least, greatest = MetricFacts(**metric._asdict()).range
        for answer in (best, trivial):
            values = task.score(answer, on_host(targets))[metric.name]
            values = values[task.metric_weights(on_host(targets))[metric.name] > 0]
            assert np.all((least <= values) & (values <= greatest)), (metric.name, values)


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_answers_as_the_task_does_from_tokens_and_query_alone(name):
    task = make(name)
    targets, generator = example(task), torch.Generator().manual_seed(0)
    truth = on_host(targets)
    statistics = task.statistics(iter([truth]))
    trivial = task.trivial(truth, statistics)
    for key, baseline in task.baselines.items():
        assert key.isidentifier() and key != "trivial", "it is a word, shown beside the trivial one"
        tokens = torch.randn(B, T, 3, 4, D, generator=generator)
        if TOKENS in task.needs:
            tokens = targets[TOKENS].unflatten(2, (2, 2))
        answer = baseline(tokens, task.query(targets), statistics).numpy()
        assert len(answer) == B and np.isfinite(answer).all()
        if not task.scores_together:
            assert answer.shape == trivial.shape
        for metric, values in task.score(answer, truth).items():
            assert np.isfinite(values[task.metric_weights(truth)[metric] > 0]).all(), metric


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_no_number_is_never_right(name, wrong):
    """It has the worst score there is; an error, which has no worst, is no number itself."""
    task = make(name)
    targets = on_host(example(task))
    answer = task.trivial(targets, task.statistics(iter([targets]))).astype(np.float64)
    whole = task.score(answer, targets)
    answer[1] = wrong
    for metric in task.metrics:
        values = task.score(answer, targets)[metric.name]
        others = np.delete(values, 1, 0)
        assert np.array_equal(others, np.delete(whole[metric.name], 1, 0)) or (
            task.scores_together and np.isfinite(others).all()
        )
        if metric.worst is None and name != "depth":
            assert not np.isfinite(values[1]).any(), metric
        elif metric.worst is not None and (name != "depth" or np.isnan(wrong)):
            assert values[1] == metric.worst, metric
        elif np.isnan(wrong):
            assert np.isnan(values[1]), metric
        else:  # depths are brought into the valid range, from infinity too
            assert np.isfinite(values[1]), metric


def test_one_number_that_is_none_spoils_no_more_than_its_answer():
    """A box, a point or a rotation; the first label is not named where no label is."""
    task = make("pose")
    targets = on_host(example(task))
    still = np.tile(np.eye(3)[:, :2].T.ravel(), (B, T, 1))
    targets["motion"] = np.concatenate([np.zeros((B, T, 3)), still], axis=-1).astype(np.float32)
    answer = targets["motion"].copy()
    answer[0, 1, 3:] = np.nan
    answer[1, 1, 5] = np.nan
    answer[2, 2, 0] = np.nan
    scores = task.score(answer, targets)
    assert np.isnan(scores["RPE_rot"]).tolist() == [True, True, False, False, False, False]
    assert np.isnan(scores["RPE_tr"]).tolist() == [False, False, True, False, False, False]

    task = make("classify")
    logits, labels = np.zeros((4, len(LABELS))), {"label": np.array([0, 0, 1, 1])}
    logits[:, 1] = 1
    logits[0], logits[2, 0] = np.nan, np.nan
    assert task.score(logits, labels)["top-1"].tolist() == [0, 0, 0, 1]

    task = make("points")
    targets = on_host(example(task))
    answer = np.concatenate([targets["points"], targets["visible"][..., None]], -1)
    assert (task.score(answer, targets)["OA"] == 1).all()
    time, query = np.argwhere(task._counted(targets)[0])[0]
    answer[0, time, query, 2] = np.nan
    scores = task.score(answer, targets)
    assert (scores["OA"] < 1).tolist() == [True] + [False] * (B - 1)


def untrained(name, form):
    """A task, the answer of its readout before training, and the truth, on the host."""
    task = make(name)
    targets = example(task)
    torch.manual_seed(0)
    prediction = task.readout(form, D, T, SHAPE)(torch.randn(B, T, N, D), told(task, targets))
    return task, task.answer(form, prediction).detach().numpy(), on_host(targets)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_scores_of_parts_are_the_scores_of_the_whole(name, form):
    task, answer, known = untrained(name, form)
    if task.scores_together:
        pytest.skip("what is scored together has no scores of parts")
    whole, weight = task.score(answer, known), task.weight(known)
    for part in (slice(0, 2), slice(2, B)):
        some = {key: value[part] for key, value in known.items()}
        assert np.array_equal(task.weight(some), weight[part])
        for metric, values in task.score(answer[part], some).items():
            np.testing.assert_allclose(values, whole[metric][part], rtol=1e-12)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_what_is_found_once_for_all_answers_changes_no_score(name, form):
    task, answer, known = untrained(name, form)
    once = task.for_scoring(known)
    assert known.keys() <= once.keys() and task.for_scoring(once) is once
    assert {len(array) for array in once.values()} == {B}, "windows come first in all of it"
    for ours, theirs in (
        (task.score(answer, once), task.score(answer, known)),
        (task.metric_weights(once), task.metric_weights(known)),
        ({"weight": task.weight(once)}, {"weight": task.weight(known)}),
    ):
        assert list(ours) == list(theirs)
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_loss_reaches_every_parameter_of_the_readout(name, form):
    task = make(name)
    torch.manual_seed(0)
    readout = task.readout(form, D, T, SHAPE)
    for parameter in readout.parameters():
        if not parameter.any():  # a last layer may be zero before training
            torch.nn.init.normal_(parameter, std=0.1)
    targets = example(task)
    x = torch.randn(B, T, N, D, requires_grad=True)
    prediction = readout(x, told(task, targets))
    assert len(prediction) == B
    if form == STREAMING and TOKENS not in task.needs:  # which are asked for by pairs of frames
        assert prediction.shape[1] == T
    loss = task.loss(form, prediction, targets)
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    assert x.grad.abs().max() > 0
    for key, parameter in [*readout.named_parameters(), *task.named_parameters()]:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", [name for name, form in CASES if form == STREAMING])
@torch.no_grad()
def test_streaming_readout_agrees_frame_by_frame(name):
    task = make(name)
    torch.manual_seed(0)
    readout = task.readout(STREAMING, D, T, SHAPE).eval()
    assert isinstance(readout, StreamingReadout)
    x, targets = torch.randn(B, T, N, D), example(task)
    query = {} if TOKENS in task.needs else task.query(targets)
    seen = {PATCHES: targets[TOKENS]} if task.sees_patches else {}
    seen |= {name: query.pop(name) for name in BY_FRAME if name in query}
    whole, state = readout(x, query | seen), readout.start(query)
    for t in range(T):
        seen_now = {name: patches[:, t] for name, patches in seen.items()}
        prediction, state = readout.step(x[:, t], state | seen_now)
        torch.testing.assert_close(prediction, whole[:, t], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_valid_counts_nothing_and_costs_nothing(name):
    task = make(name)
    if task.needs == ("label",):
        pytest.skip("a label is always there")
    targets = {key: torch.zeros_like(target) for key, target in example(task).items()}
    weight = task.weight(on_host(targets)).tolist()
    assert weight == [0] * B, (
        "targets that are all zero must weigh nothing: see the contract's `weight`"
    )
    for form in task.forms:
        torch.manual_seed(0)
        readout = task.readout(form, D, T, SHAPE)
        prediction = readout(torch.randn(B, T, N, D), told(task, targets))
        loss = task.loss(form, prediction, targets)
        assert torch.isfinite(loss)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in readout.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("file", "frames", "out"), [("streaming", None, "logits_BTK"), ("window", 6, "logits")]
)
@torch.no_grad()
def test_attention_readout_reproduces_the_published_module(file, frames, out):
    golden = load_file(GOLDEN / f"readout_attention_{file}.safetensors")
    readout = (WindowLogits if frames else FrameLogits)(
        32, 7, readout_width=48, heads=4, frames=frames
    ).eval()
    readout.load_state_dict(
        {key.removeprefix("weights/"): golden[key] for key in golden if key.startswith("weights/")}
    )
    torch.testing.assert_close(
        readout(golden["in/tokens_BTND"], {}), golden[f"out/{out}"], atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_temporal_embedding_is_resized_linearly():
    readout = WindowLogits(D, 3, readout_width=8, heads=2, frames=4)
    readout.temporal_posenc.copy_(torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 1, D))
    assert readout._embedding(4)[0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert readout._embedding(2)[0, :, 0, 0].tolist() == [0.5, 2.5]
    assert readout._embedding(8)[0, :, 0, 5].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert readout(torch.randn(2, 7, N, D), {}).shape == (2, 3)


@torch.no_grad()
def test_window_readout_knows_the_order_of_frames_and_streaming_does_not():
    torch.manual_seed(0)
    task, x = make("classify"), torch.randn(B, T, N, D)
    window, streaming = (task.readout(form, D, T, SHAPE).eval() for form in (WINDOW, STREAMING))
    window.temporal_posenc.normal_()
    assert (window(x, {}) - window(x.flip(1), {})).abs().max() > 1e-3
    torch.testing.assert_close(
        streaming(x.flip(1), {}), streaming(x, {}).flip(1), atol=1e-6, rtol=0
    )


TARGETS = {"label": torch.tensor([0, 1, 2, 3, 4, 0])}


def test_classify_scores_by_hand():
    task = make("classify")
    answer = np.array([[5, 1, 0, 0, 0], [0, 0, 9, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    assert task.score(answer, {"label": np.array([0, 1, 0])})["top-1"].tolist() == [1, 0, 1]
    assert (
        task.score(np.eye(5, dtype=np.float32), {"label": np.arange(5)})["top-1"].tolist()
        == [1] * 5
    )


def test_classify_trivial_answer_is_the_most_frequent_label():
    task = make("classify")
    known = task.statistics(iter([{"label": np.array([3, 1])}, {"label": np.array([3])}]))
    assert known["counts"].tolist() == [0, 1, 0, 2, 0]
    targets = {"label": np.array([3, 0, 3, 1])}
    assert task.score(task.trivial(targets, known), targets)["top-1"].tolist() == [1, 0, 1, 0]


def test_classify_loss_by_hand():
    torch.manual_seed(0)
    logits_BTK, label = torch.randn(B, T, 5), TARGETS["label"]
    frames = [F.cross_entropy(logits_BTK[:, t], label).item() for t in range(T)]
    assert make("classify").loss(STREAMING, logits_BTK, TARGETS).item() == pytest.approx(
        np.mean(frames), rel=1e-5
    )
    last = make("classify", supervise="last")
    assert last.loss(STREAMING, logits_BTK, TARGETS).item() == pytest.approx(frames[-1], rel=1e-5)
    assert last.loss(WINDOW, logits_BTK[:, 0], TARGETS).item() == pytest.approx(frames[0], rel=1e-5)
    assert torch.equal(last.answer(STREAMING, logits_BTK), logits_BTK[:, -1])

    smooth = make("classify", label_smoothing=0.1)
    log_p = logits_BTK[:, 0].log_softmax(-1)
    expected = -(0.9 * log_p[range(B), label] + 0.1 * log_p.mean(-1)).mean()
    assert smooth.loss(WINDOW, logits_BTK[:, 0], TARGETS).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_classify_loss_keeps_float64_and_leaves_bfloat16():
    logits = torch.zeros(B, 5, dtype=torch.float64)
    assert make("classify").loss(WINDOW, logits, TARGETS).dtype == torch.float64
    loss = make("classify").loss(WINDOW, logits.bfloat16(), TARGETS)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log(5))


def test_classify_refuses_what_it_cannot_use():
    with pytest.raises(BadInput, match="the manifest has no labels"):
        Task(Settings(), ())
    with pytest.raises(BadInput, match="3 heads for width 16"):
        make("classify", heads=3)
    with pytest.raises(BadInput, match="names a form twice"):
        make("classify", forms=["window", "window"])
    with pytest.raises(BadInput, match="forms"):
        make("classify", forms=[])
    assert make("classify", forms=["window"]).forms == (WINDOW,)


def test_a_task_that_draws_nothing_says_so():
    with pytest.raises(BadInput, match="task 'classify' does not draw its answers"):
        TaskPlugin.draw(make("classify"), np.zeros((T, 8, 8, 3), np.uint8), np.zeros(5), {})
