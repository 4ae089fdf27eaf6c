"""The laws of tasks: see `contract`, and docs/extending.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.config.laws import Laws, NotChecked, demand
from pipeline.config.plugins import validate
from pipeline.datasets.manifest.targets import TOKENS, Arrays, collate
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
"""Settings that keep a task small, where it has them."""
B, T, N, D = 6, 4, 5, 8
"""Windows, frames, tokens and width of what the laws are tried on."""
SHAPE = TokenShape(width=6, grid_hw=(2, 2), special_tokens=1, layers=(1,))
TEXT_WIDTH = 8
FIT_STEPS = 400


class SmallTasks:
    """Makes one task at small sizes, and truth for it."""

    def __init__(self, plugin: type[TaskPlugin], settings: Mapping[str, Any] | None = None) -> None:
        """`settings`: those of the user, which come before the small ones."""
        self.plugin, self.settings = plugin, dict(settings or {})

    def make(self, **keys: Any) -> TaskPlugin:
        """The task with `keys` where it has such settings."""
        fields = self.plugin.Settings.model_fields
        chosen = {key: value for key, value in (SMALL | keys).items() if key in fields}
        table = chosen | self.settings
        return self.plugin(validate(self.plugin.Settings, table, "settings"), LABELS)


def window_targets(task: TaskPlugin, seed: int) -> Arrays:
    """One window's truth as `pipeline.datasets.manifest.targets` samples it, of every kind that the
    task needs.

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
    known: dict[str, Arrays] = {
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
        "captions": {"captions": _unit_vectors(rng, 1 + seed % 2)},
        "question": {
            "question": _unit_vectors(rng, 2 + seed % 3),
            "question_valid": np.ones(2 + seed % 3, bool),
            "label": np.array(seed % len(LABELS), np.int64),
            "is_answered": np.array(True),
            "choices": _unit_vectors(rng, 3 + seed % 2),
            "choice": np.array(seed % 3, np.int64),
        },
    }
    if unknown := [name for name in task.needs if name not in known]:
        raise NotChecked(f"no example of {', '.join(unknown)} is made, only of {', '.join(known)}")
    truth = {key: array for name in task.needs for key, array in known[name].items()}
    if FRAME_EMBEDDINGS in task.example_texts(T):  # which the cache adds
        truth[FRAME_EMBEDDINGS] = _unit_vectors(rng, T)
    return truth


def _unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    drawn = rng.normal(size=(count, TEXT_WIDTH)).astype(np.float32)
    unit: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def example_targets(task: TaskPlugin) -> dict[str, torch.Tensor]:
    """Targets of B windows, as a batch holds them in evaluation."""
    prepared = collate([task.prepare(window_targets(task, seed), None) for seed in range(B)])
    targets = {name: torch.from_numpy(array) for name, array in prepared.items()}
    if TOKENS in task.needs:  # which the cache adds
        generator = torch.Generator().manual_seed(0)
        targets[TOKENS] = torch.randn(B, T, SHAPE.patch_tokens, SHAPE.width, generator=generator)
    return targets


def told_of_batch(task: TaskPlugin, targets: dict[str, torch.Tensor]) -> Query:
    """What a readout is told of a batch."""
    seen = {PATCHES: targets[TOKENS]} if task.sees_patches else {}
    return task.query(targets) | seen


def truth_arrays(targets: dict[str, torch.Tensor]) -> Arrays:
    """Targets as they are scored."""
    return {name: target.numpy() for name, target in targets.items()}


def small_readout(task: TaskPlugin, form: str) -> torch.nn.Module:
    """The readout of a form, the same weights at every call."""
    torch.manual_seed(0)
    return task.readout(form, D, T, SHAPE)


def fitted_prediction(
    task: TaskPlugin, form: str, targets: dict[str, torch.Tensor]
) -> torch.Tensor:
    """A prediction that minimises the loss itself, without any model."""
    readout = small_readout(task, form)
    shape = readout(torch.randn(B, T, N, D), told_of_batch(task, targets)).shape
    prediction = torch.zeros(shape).normal_(0, 0.1).requires_grad_()
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    for _ in range(FIT_STEPS):
        optimizer.zero_grad()
        task.loss(form, prediction, targets).backward()
        optimizer.step()
    return prediction.detach()


def untrained_answer(task: TaskPlugin, form: str) -> tuple[np.ndarray, Arrays]:
    """The answer of a readout before training, and the truth."""
    targets = example_targets(task)
    prediction = small_readout(task, form)(torch.randn(B, T, N, D), told_of_batch(task, targets))
    return task.answer(form, prediction).detach().numpy(), truth_arrays(targets)


TASK_LAWS: Laws[SmallTasks] = Laws()


@TASK_LAWS.add("it has at least one metric and one form, and settings of truth that it has")
def _whole(small: SmallTasks) -> None:
    task = small.make()
    demand(task.metrics, "it has no metrics")
    forms = tuple(task.forms)
    known = forms and set(forms) <= {STREAMING, WINDOW} and len(set(forms)) == len(forms)
    demand(known, f"forms are {forms}, wanted '{STREAMING}', '{WINDOW}' or both")
    strange = {*task.truth_settings} - {*small.plugin.Settings.model_fields}
    demand(not strange, f"truth_settings names {', '.join(strange)}, which is no setting of it")
    for form in forms:
        readout = small_readout(task, form)
        if form == STREAMING:
            demand(isinstance(readout, StreamingReadout), "its readout is no StreamingReadout")


@TASK_LAWS.add("scores are float64, one for each window, and no score is outside its range")
def _scores(small: SmallTasks) -> None:
    task = small.make()
    for form in task.forms:
        answer, truth = untrained_answer(task, form)
        require_scores(task, answer, truth)


def require_scores(task: TaskPlugin, answer: np.ndarray, truth: Arrays) -> None:
    """Raises BrokenLaw where scores lack a metric, or are of another shape or type, or lie outside
    of the range of their metric."""
    scores, names = task.score(answer, truth), [metric.name for metric in task.metrics]
    demand(list(scores) == names, f"score gives {', '.join(scores)}, metrics are {names}")
    weights = task.metric_weights(truth)
    for metric in task.metrics:
        values = scores[metric.name]
        shape = values.shape[:1] if metric.is_median else values.shape
        good = values.dtype == np.float64 and shape == (B,)
        found = f"{values.shape} {values.dtype}"
        demand(good, f"{metric.name} is {found} for {B} windows, wanted ({B},) float64")
        least, greatest = metric.range
        counted = values[weights[metric.name] > 0]
        inside = bool(np.all((least <= counted) & (counted <= greatest)))
        ends = f"{least:g} to {greatest:g}"
        demand(inside, f"{metric.name} has {counted}, its range is {ends}")


@TASK_LAWS.add("the trivial answer has the shape of an answer, and is scored like one")
def _trivial(small: SmallTasks) -> None:
    task = small.make()
    targets = truth_arrays(example_targets(task))
    trivial = task.trivial(targets, task.statistics(iter([targets])))
    for form in task.forms:
        answer, _ = untrained_answer(task, form)
        demand(
            trivial.shape == answer.shape,
            f"it is {trivial.shape}, and the answer of the form {form} {answer.shape}",
        )
    require_scores(task, trivial, targets)


@TASK_LAWS.add("the loss reaches every parameter of the readout, and is one finite number")
def _loss(small: SmallTasks) -> None:
    task = small.make()
    for form in task.forms:
        readout = small_readout(task, form)
        for parameter in readout.parameters():
            if not parameter.any():  # a last layer may be zero before training
                torch.nn.init.normal_(parameter, std=0.1)
        targets = example_targets(task)
        x_BTND = torch.randn(B, T, N, D, requires_grad=True)
        prediction = readout(x_BTND, told_of_batch(task, targets))
        demand(len(prediction) == B, f"{form}: {B} windows give {len(prediction)} predictions")
        # Tokens are asked for by pairs of frames.
        if form == STREAMING and TOKENS not in task.needs:
            shape = tuple(prediction.shape)
            demand(shape[1] == T, f"{form}: {T} frames of {B} windows give predictions {shape}")
        loss = task.loss(form, prediction, targets)
        scalar = loss.shape == () and bool(torch.isfinite(loss))
        demand(scalar, f"{form}: the loss is {loss.detach()}, wanted one finite number")
        loss.backward()
        reached = x_BTND.grad is not None and x_BTND.grad.abs().max() > 0
        demand(reached, f"{form}: the loss does not reach the tokens")
        for key, parameter in [*readout.named_parameters(), *task.named_parameters()]:
            finite = parameter.grad is not None and parameter.grad.isfinite().all()
            demand(finite, f"{form}: {key} gets no finite gradient")


@TASK_LAWS.add("a streaming readout gives frame by frame what it gives for a window")
@torch.no_grad()
def _streaming(small: SmallTasks) -> None:
    task = small.make()
    if STREAMING not in task.forms:
        raise NotChecked("it has no streaming form")
    readout = small_readout(task, STREAMING).eval()
    assert isinstance(readout, StreamingReadout)
    x_BTND, targets = torch.randn(B, T, N, D), example_targets(task)
    query = {} if TOKENS in task.needs else task.query(targets)
    seen = {PATCHES: targets[TOKENS]} if task.sees_patches else {}
    seen |= {name: query.pop(name) for name in BY_FRAME if name in query}
    whole, state = readout(x_BTND, query | seen), readout.start(query)
    for t in range(T):
        now = {name: patches[:, t] for name, patches in seen.items()}
        prediction, state = readout.step(x_BTND[:, t], state | now)
        error = float((prediction - whole[:, t]).abs().max())
        demand(error <= 1e-5 + 1e-5, f"frame {t} differs by {error:.3g} from the window's")


@TASK_LAWS.add("scores of parts of a batch are the scores of the whole")
def _parts(small: SmallTasks) -> None:
    task = small.make()
    if task.scores_together:
        raise NotChecked("what is scored together has no scores of parts")
    for form in task.forms:
        answer, known = untrained_answer(task, form)
        whole, weight = task.score(answer, known), task.weight(known)
        for part in (slice(0, 2), slice(2, B)):
            some = {key: value[part] for key, value in known.items()}
            same = np.array_equal(task.weight(some), weight[part])
            demand(same, f"windows {part.start} to {part.stop} have other weights alone")
            for metric, values in task.score(answer[part], some).items():
                near = np.allclose(values, whole[metric][part], rtol=1e-12, atol=0, equal_nan=True)
                where = f"windows {part.start} to {part.stop}"
                demand(near, f"{metric} of {where} is {values} alone, {whole[metric][part]} there")


@TASK_LAWS.add("what is found once for all answers changes no score")
def _for_scoring(small: SmallTasks) -> None:
    task = small.make()
    for form in task.forms:
        answer, known = untrained_answer(task, form)
        once = task.for_scoring(known)
        lost = known.keys() - once.keys()
        demand(not lost, f"for_scoring drops {', '.join(sorted(lost))}")
        demand(task.for_scoring(once) is once, "for_scoring finds again what it has found")
        lengths = {len(array) for array in once.values()}
        demand(lengths == {B}, f"for_scoring gives arrays of {lengths} windows, there are {B}")
        for what, ours, theirs in (
            ("scores", task.score(answer, once), task.score(answer, known)),
            ("weights", task.metric_weights(once), task.metric_weights(known)),
            ("weight", {"": task.weight(once)}, {"": task.weight(known)}),
        ):
            same = list(ours) == list(theirs) and all(
                np.array_equal(ours[key], theirs[key], equal_nan=True) for key in ours
            )
            demand(same, f"{what} differ with what for_scoring has found")


@TASK_LAWS.add("an answer that is NaN is never right")
def _nan(small: SmallTasks) -> None:
    task = small.make()
    targets = truth_arrays(example_targets(task))
    answer = task.trivial(targets, task.statistics(iter([targets]))).astype(np.float64)
    whole = task.score(answer, targets)
    answer[1] = np.nan
    for metric in task.metrics:
        values = task.score(answer, targets)[metric.name]
        others = np.delete(values, 1, 0)
        same = np.array_equal(others, np.delete(whole[metric.name], 1, 0))
        together = task.scores_together and bool(np.isfinite(others).all())
        demand(same or together, f"{metric.name}: an answer that is NaN spoils that of others")
        if metric.worst is None:
            found = f"{metric.name} of an answer that is NaN is {values[1]}, wanted NaN"
            demand(not np.isfinite(values[1]).any(), found)
        else:
            found = f"{metric.name} of an answer that is NaN is {values[1]}, wanted {metric.worst}"
            demand(values[1] == metric.worst, found)


@TASK_LAWS.add("where nothing is valid, a window weighs nothing and costs nothing")
def _nothing_valid(small: SmallTasks) -> None:
    task = small.make()
    if task.needs == ("label",):
        raise NotChecked("a label is always there")
    targets = {key: torch.zeros_like(target) for key, target in example_targets(task).items()}
    weight = task.weight(truth_arrays(targets)).tolist()
    demand(
        weight == [0] * B,
        f"targets that are all zero weigh {weight}: see the contract's `weight`",
    )
    for form in task.forms:
        readout = small_readout(task, form)
        prediction = readout(torch.randn(B, T, N, D), told_of_batch(task, targets))
        loss = task.loss(form, prediction, targets)
        demand(torch.isfinite(loss), f"{form}: the loss is {loss.detach()}")
        loss.backward()
        for key, parameter in readout.named_parameters():
            finite = parameter.grad is None or parameter.grad.isfinite().all()
            demand(finite, f"{form}: the gradient of {key} is not finite")


@TASK_LAWS.add("a baseline answers as the task does, from tokens and query alone, without NaN")
def _baselines(small: SmallTasks) -> None:
    task = small.make()
    targets, generator = example_targets(task), torch.Generator().manual_seed(0)
    truth = truth_arrays(targets)
    statistics = task.statistics(iter([truth]))
    trivial = task.trivial(truth, statistics)
    for key, baseline in task.baselines.items():
        word = key.isidentifier() and key != "trivial"
        demand(word, f"'{key}' is no name of a baseline: it is a word, beside the trivial one")
        tokens_BThwD = torch.randn(B, T, 3, 4, D, generator=generator)
        if TOKENS in task.needs:
            tokens_BThwD = targets[TOKENS].unflatten(2, (2, 2))
        answer = baseline(tokens_BThwD, task.query(targets), statistics).numpy()
        finite = len(answer) == B and bool(np.isfinite(answer).all())
        demand(finite, f"'{key}' answers {answer.shape}, or with numbers that are not finite")
        if not task.scores_together:
            shapes = f"'{key}' answers {answer.shape}, the trivial answer is {trivial.shape}"
            demand(answer.shape == trivial.shape, shapes)
        for metric, values in task.score(answer, truth).items():
            counted = values[task.metric_weights(truth)[metric] > 0]
            demand(np.isfinite(counted).all(), f"{metric} of '{key}' is {counted}")


class _Watched:
    """Settings that know what was asked of them."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seen = inner, set[str]()

    def __getattr__(self, key: str) -> Any:
        self.seen.add(key)
        return getattr(self.inner, key)


@TASK_LAWS.add("the truth depends on the settings that truth_settings names, and on no others")
def _truth_settings(small: SmallTasks) -> None:
    for rng in (None, np.random.default_rng(0)):
        task = small.make()
        raw = window_targets(task, 0)
        task.settings = watched = _Watched(task.settings)
        task.prepare(raw, rng)
        side = task.dense_px
        demand(side is None or side > 0, f"dense_px is {side}")
        others = (watched.seen & {*small.plugin.Settings.model_fields}) - {*task.truth_settings}
        named = ", ".join(sorted(others))
        demand(not others, f"prepare and dense_px read {named}, which truth_settings does not name")


@TASK_LAWS.add(
    "the prediction that minimises the loss scores better than the trivial answer", is_slow=True
)
def _minimum(small: SmallTasks) -> None:
    task = small.make()
    targets = example_targets(task)
    truth = truth_arrays(targets)
    trivial = task.trivial(truth, task.statistics(iter([truth])))
    metric, weights = task.metrics[0], task.weight(truth)

    def mean(answer: np.ndarray) -> float:
        return float((task.score(answer, truth)[metric.name] * weights).sum() / weights.sum())

    for form in task.forms:
        best = task.answer(form, fitted_prediction(task, form, targets)).numpy()
        require_scores(task, best, truth)
        scored, of_trivial = mean(best), mean(trivial)
        better = scored > of_trivial if metric.higher_is_better else scored < of_trivial
        demand(
            better,
            f"{form}: what minimises the loss has {metric.name} {scored:.4g}, the trivial answer "
            f"{of_trivial:.4g}",
        )
