"""Laws of every task found on disk, and what is special to classification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import laws
from support.modules import LargestTensor
from support.paths import GOLDEN

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.tasks._laws import (
    LABELS,
    SHAPE,
    TASK_LAWS,
    B,
    D,
    N,
    SmallTasks,
    T,
)
from pipeline.models.tasks._laws import example_targets as example
from pipeline.models.tasks._laws import truth_arrays as on_host
from pipeline.models.tasks.classify import FrameLogits, Settings, Task, WindowLogits
from pipeline.models.tasks.contract import STREAMING, WINDOW, TaskPlugin
from pipeline.models.tasks.parts.attention_readout import AttentionReadout

NAMES = plugins.names("task")


def make(name: str, **keys: object) -> TaskPlugin:
    return SmallTasks(plugins.load("task", name)).make(**keys)


@pytest.mark.parametrize("law", laws.each(TASK_LAWS, "nan"))  # which is below
@pytest.mark.parametrize("name", NAMES)
def test_law(name, law):
    laws.holds(law, SmallTasks(plugins.load("task", name)))


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


@pytest.mark.parametrize("queries", [1, 4])
def test_few_queries_read_tokens_without_keys_and_values(queries):
    """What they read, and every gradient, is what they would read of keys and values; and these are not made."""
    torch.manual_seed(0)
    readout = AttentionReadout(10, 7, readout_width=24, heads=4, queries=queries).double()
    x = torch.randn(3, 200, 10, dtype=torch.float64, requires_grad=True)
    leaves = [
        x,
        *(
            part
            for name, part in readout.named_parameters()
            if part.shape[0] == 24 or name == "query"
        ),
    ]

    def gradients(read):
        return torch.autograd.grad(read.sin().sum(), leaves, allow_unused=True)

    ways = readout._attend_to_tokens(x), readout._attend(x)
    torch.testing.assert_close(*ways, atol=1e-12, rtol=1e-10)
    for ours, wanted in zip(*map(gradients, ways), strict=True):
        if wanted is not None:
            torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-10)
    with LargestTensor() as largest:
        readout.read(x.detach())
    assert largest.elements == (x.numel() if queries == 1 else 3 * 200 * 24)


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
