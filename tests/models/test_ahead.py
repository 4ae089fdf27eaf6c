"""A reader of what a forecaster tells: what it is then told of which frame, by models whose forecasts are
a copy, or right, or written down."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest.targets import collate
from pipeline.models.ahead import COPY, FORECAST, NOW, ORACLE, ReadAhead, answers_ahead
from pipeline.models.causality import Leak, first_leak
from pipeline.models.step_memory import example_truth
from pipeline.models.tasks.contract import TaskPlugin, make_task
from pipeline.models.tasks.forecasts.pairs import told_from
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, TokenShape

SHAPE = TokenShape(width=8, grid_hw=(2, 2), special_tokens=1, layers=(1, 3))
B, T, STEP_S = 2, 6, 0.25
LIKENESS = {"start": "likeness", "reads": "both"}
TASKS = [
    ("depth", {}),
    ("classify", {}),
    *((name, way) for name in ("boxes", "points") for way in ({}, LIKENESS)),
]
SIZES = {"readout_width": 8, "heads": 2, "hidden": 8, "size_px": 8, "horizons_s": [0.5]}
SEEN = STEP_S * np.arange(T)[None].repeat(B, 0)


def build(task: str, tokens: str = "all", temporal: str = "gru", **keys: object):
    fields = plugins.load("task", task).Settings.model_fields
    sizes = {name: size for name, size in SIZES.items() if name in fields}
    table = {
        "name": "test",
        "task": {"name": task, **sizes, **keys},
        "temporal": {"name": temporal},
        "windows": {"frames": T, "fps": 1 / STEP_S},
        "model": {"mixer": "last", "tokens": tokens},
        "training": {"steps": 1},
    }
    recipe = plugins.validate(Recipe, table, "test")
    torch.manual_seed(0)
    made = make_task(recipe, ("1", "2", "3"))
    return VideoModel(recipe, SHAPE, made).eval(), made


def windows(task: TaskPlugin) -> OnDevice:
    generator = torch.Generator().manual_seed(1)

    def draw(tokens: int) -> torch.Tensor:
        return torch.randn(B, T, tokens, SHAPE.width, generator=generator)

    one = {name: array[0] for name, array in example_truth(task, T).items()}
    truth = collate([one] * B)
    targets = {name: torch.from_numpy(array) for name, array in truth.items()}
    return OnDevice(draw(1), {3: draw(4)}, targets)


def told(seen_BT: np.ndarray, *ahead_s: float) -> np.ndarray:
    return np.stack([[told_from(seen_T, each_s) for seen_T in seen_BT] for each_s in ahead_s])


def disturbed(model: VideoModel) -> VideoModel:
    """A forecaster that no longer copies."""
    torch.nn.init.normal_(model.streaming.head.out.weight, std=0.3)
    return model


def test_a_frame_is_told_from_behind_the_first_quarter_and_none_is_told_twice():
    even = np.arange(8) / 4
    assert told_from(even, 0.5).tolist() == [-1, -1, -1, -1, 2, 3, 4, 5]
    assert told_from(even, 0.25).tolist() == [-1, -1, -1, 2, 3, 4, 5, 6]
    assert told_from(even, 1.5).tolist() == [-1] * 8
    short = np.minimum(even, 1.0)  # the clip is over after five frames
    assert told_from(short, 0.5).tolist() == [-1, -1, -1, -1, 2, -1, -1, -1]
    slow = np.repeat([0, 0.5, 1, 1.5], 2)  # every frame is shown twice
    assert told_from(slow, 0.5).tolist() == [-1, -1, -1, -1, 2, -1, 4, -1]


@pytest.mark.parametrize(("name", "way"), TASKS)
def test_before_training_a_forecast_is_a_copy_in_every_bit(name, way):
    reader, task = build(name, **way)
    forecaster, _ = build("forecast")
    from_KBT = told(SEEN, 0.25, 0.75)
    answers = answers_ahead(ReadAhead(reader, forecaster), task, windows(task), SEEN, from_KBT)
    changed = answers_ahead(
        ReadAhead(reader, disturbed(forecaster)), task, windows(task), SEEN, from_KBT
    )
    for number, from_BT in enumerate(from_KBT):
        is_told = from_BT >= 0
        forecast, copy = (answers[way][number][is_told] for way in (FORECAST, COPY))
        assert np.array_equal(forecast, copy)
        assert np.array_equal(changed[COPY][number][is_told], copy)
    differs = [
        not np.array_equal(one[told_BT >= 0], other[told_BT >= 0])
        for one, other, told_BT in zip(answers[FORECAST], changed[FORECAST], from_KBT, strict=True)
    ]
    assert any(differs)


class Right(torch.nn.Module):
    """What a head would say that knew the windows."""

    def __init__(self, patches_BTPD: torch.Tensor) -> None:
        super().__init__()
        self.patches_BTPD, self.asked = patches_BTPD, []

    def said(self, outputs, now_B1PD, from_BM, ahead_s_BM):
        self.asked.append(ahead_s_BM)
        is_now = (self.patches_BTPD == now_B1PD).flatten(2).all(-1)
        now = is_now.int().argmax(1, keepdim=True)
        later = now + (ahead_s_BM / STEP_S).round().long()
        return self.patches_BTPD[torch.arange(B)[:, None], later]


@pytest.mark.parametrize(("name", "way"), TASKS)
def test_what_reads_a_right_forecast_says_what_it_says_of_the_frames(name, way):
    """And that is what it says of a window, whatever is forecast."""
    reader, task = build(name, tokens="patches", **way)
    batch = windows(task)
    both = ReadAhead(reader, build("forecast")[0])
    both.head = Right(batch.patches[3])
    from_KBT = told(SEEN, 0.25, 0.75)
    answers = answers_ahead(both, task, batch, SEEN, from_KBT)
    for number, from_BT in enumerate(from_KBT):
        is_told = from_BT >= 0
        assert np.array_equal(answers[FORECAST][number][is_told], answers[ORACLE][number][is_told])
        assert not np.array_equal(answers[COPY][number][is_told], answers[ORACLE][number][is_told])
    whole = reader.answers(batch, task)["streaming"]
    if task.by_frame:
        np.testing.assert_allclose(answers[ORACLE][0], whole, atol=1e-4)
    else:
        np.testing.assert_allclose(answers[ORACLE][0][:, -1], whole, atol=1e-5)


def test_special_tokens_of_later_frames_are_those_of_the_present_one():
    reader, task = build("classify")
    batch = windows(task)
    both = ReadAhead(reader, build("forecast")[0])
    both.head = Right(batch.patches[3])
    from_KBT = told(SEEN, 0.5)
    forecast = answers_ahead(both, task, batch, SEEN, from_KBT)[FORECAST][0]
    state = reader.start(B)
    for time in range(4):  # frames 0 to 3, and then 4 and 5 with the special tokens of 3
        _, state = reader.step(batch.special_BTSD[:, time], [batch.patches[3][:, time]], state)
    for time in (4, 5):
        said, state = reader.step(batch.special_BTSD[:, 3], [batch.patches[3][:, time]], state)
    assert from_KBT[0, 0].tolist() == [-1, -1, -1, 1, 2, 3]
    np.testing.assert_array_equal(forecast[:, 5], said.detach().numpy())


def test_a_forecast_is_asked_for_every_frame_up_to_the_last_that_is_told():
    """In seconds as they are seen; what stays on screen is 0 s ahead, and is no forecast."""
    reader, task = build("classify", tokens="patches")
    batch = windows(task)
    both = ReadAhead(reader, disturbed(build("forecast")[0]))
    both.head = Right(batch.patches[3])
    answers_ahead(both, task, batch, SEEN, told(SEEN, 0.25, 0.5))
    assert [ahead[0].tolist() for ahead in both.head.asked] == [[0.25, 0.5]] * 3 + [[0.25]]
    slow = np.array([[0, 0, 0.5, 0.5, 1, 1]] * B)
    both = ReadAhead(reader, disturbed(build("forecast")[0]))
    _, present = both.step(batch.special_BTSD[:, 0], {3: batch.patches[3][:, 0]}, both.start(B, {}))
    (stays,) = both.told(present, torch.zeros(B, 1))
    (copy,) = both.copied(present, 1)
    (moves,) = both.told(present, torch.full((B, 1), 0.25))
    assert torch.equal(stays, copy) and not torch.equal(moves, copy)
    assert told(slow, 0.5)[0, 0].tolist() == [-1, -1, -1, -1, 2, -1]


def test_the_answer_of_now_is_that_to_the_frame_that_tells():
    reader, task = build("depth")
    from_KBT = told(SEEN, 0.5)
    answers = answers_ahead(
        ReadAhead(reader, build("forecast")[0]), task, windows(task), SEEN, from_KBT
    )
    assert np.array_equal(answers[NOW][0][:, 3:], answers[ORACLE][0][:, 1:4])


@pytest.mark.parametrize(("name", "way"), TASKS)
def test_what_is_not_told_changes_no_score(name, way):
    """Scores know of the frames alone that were told, and of a point from its own frame on."""
    _, task = build(name, **way)
    rng = np.random.default_rng(0)
    one = {name: array[0] for name, array in example_truth(task, T).items()}
    truth = collate([one] * B)
    if name == "points":
        truth["query_frame"][:, 1:] = 3
    if not task.by_frame:
        return
    answer = task.trivial(truth, task.statistics([truth])).astype(np.float64)
    answer += 0.1 * rng.random(answer.shape)
    nothing = task.of_frames(truth, np.full((B, T), -1))
    assert not task.weight(nothing).any()
    from_BT = told(SEEN, 0.5)[0]
    known = task.of_frames(truth, from_BT)
    wild = answer.copy()
    wild[from_BT < 0] = 7
    if name == "points":
        wild[:, 3:5, 1:] = 7  # told after frames 1 and 2, which know of the first point alone
    assert task.weight(known).all()
    for metric, scores in task.score(answer, known).items():
        assert np.array_equal(scores, task.score(wild, known)[metric])
    wild[:, 5] = 7
    metric = task.metrics[0].name
    assert not np.array_equal(task.score(answer, known)[metric], task.score(wild, known)[metric])


@pytest.mark.parametrize("name", ["pose", "forecast", "contrast"])
def test_some_tasks_say_nothing_of_a_frame(name):
    assert plugins.load("task", name).by_frame is None


@pytest.mark.parametrize(("name", "way"), TASKS)
def test_what_is_told_ahead_knows_no_later_frame(name, way):
    reader, task = build(name, **way)
    both = ReadAhead(reader, disturbed(build("forecast")[0]))
    assert first_leak(reader, task, windows(task), both) is None


def test_what_is_told_ahead_is_looked_at():
    """Answers that are drawn at random depend on nothing that was seen."""
    reader, task = build("classify")
    both = ReadAhead(reader, build("forecast")[0])
    both.told = lambda present, ahead_s_BJ: [torch.rand(B, 3) for _ in range(2)]
    assert first_leak(reader, task, windows(task), both) == Leak("answers told ahead", 0, 0)
