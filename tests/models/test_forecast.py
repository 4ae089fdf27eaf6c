"""Forecasting the cache: which frames tell of which, skills by hand, what state and velocity are worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.cache.codecs.contract import FittedCodec
from pipeline.config import plugins
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.datasets.manifest.targets import TOKENS, collate, seen_s
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import PATCHES, STREAMING, TaskPlugin
from pipeline.models.tasks.forecasts.errors import between, gathered, normalised, spread
from pipeline.models.tasks.forecasts.pairs import drawn_pairs, future_of, scored_pairs, told
from pipeline.models.video_model import VideoModel
from pipeline.records import OnDevice, TokenShape

SHAPE = TokenShape(width=8, grid_hw=(2, 3), special_tokens=1, layers=(3,))
SIZE = {"readout_width": 16, "heads": 2}


def make(**settings: object) -> TaskPlugin:
    plugin = plugins.load("task", "forecast")
    return plugin(plugins.validate(plugin.Settings, SIZE | settings, "test"), ())


def test_a_future_is_near_its_time_new_and_later():
    seen = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    to, has = future_of(seen, 0.2)
    assert to[has].tolist() == [2, 3, 4]
    assert has.tolist() == [True, True, True, False, False, False, False]
    assert not future_of(np.zeros(4), 0.2)[1].any()
    to, has = future_of(np.array([0, 0.1, 0.5, 0.6]), 0.1)
    assert (to[has].tolist(), np.flatnonzero(has).tolist()) == ([1, 3], [0, 2])


def test_scored_pairs_leave_out_the_first_quarter_and_what_is_not_there():
    pairs = scored_pairs(np.arange(12) / 10, (0.0, 0.5, 3.0), each=3)
    kept = pairs["paired"]
    assert pairs["horizon"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert kept.tolist() == [True] * 6 + [False] * 3
    assert pairs["from"][kept].tolist() == [3, 7, 10, 3, 5, 6]
    assert (pairs["to"] - pairs["from"])[kept].tolist() == [1, 1, 1, 5, 5, 5]
    np.testing.assert_allclose(pairs["ahead_s"][kept], [0.1] * 3 + [0.5] * 3, rtol=1e-6)


def test_drawn_pairs_cover_all_horizons_and_every_frame_alike():
    seen, rng = np.arange(16) / 8, np.random.default_rng(0)
    drawn = [drawn_pairs(seen, 1.0, 3, 2, rng) for _ in range(400)]
    steps = np.concatenate([(pairs["to"] - pairs["from"])[pairs["paired"]] for pairs in drawn])
    assert set(steps.tolist()) == set(range(1, 9))
    nearest = np.concatenate([pairs["from"][pairs["to"] - pairs["from"] == 1] for pairs in drawn])
    counts = np.bincount(nearest, minlength=15)[:15]
    assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize(
    ("times", "speed", "seen"),
    [
        ([4.0, 4.5, 5.0], 1.0, [0, 0.5, 1]),
        ([5.0, 4.5, 4.2], 1.0, [0, 0.5, 0.8]),
        ([4.0, 6.0, 8.0], 4.0, [0, 0.5, 1]),
        ([4.5, 5.0, 4.0], 1.0, [0, 0.5, 1]),
        ([4.0, 4.0, 4.0], 1.0, [0, 0, 0]),
    ],
)
def test_frames_are_seen_in_window_time_whichever_way_they_are_read(times, speed, seen):
    np.testing.assert_allclose(seen_s(np.array(times), speed), seen)


def test_nothing_is_told_across_a_cut_or_of_a_copy():
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randn(2, 6, 32, generator=generator)
    drift = 0.05 * torch.randn(8, 6, 32, generator=generator).cumsum(0)
    z_BTPD = (torch.stack([scenes[0]] * 4 + [scenes[1]] * 4) + drift).unsqueeze(0)
    z_BTPD[:, 2] = z_BTPD[:, 1]
    from_, to = torch.tensor([[0, 0, 0, 3, 4]]), torch.tensor([[1, 2, 3, 4, 7]])
    assert told(z_BTPD, from_, to).tolist() == [[True, False, True, False, True]]
    fast = torch.randn(1, 8, 6, 32, generator=generator)
    assert told(fast, from_, to).all(), "where every step is as far, none is a cut"


def window(task: TaskPlugin, tokens_BTPD: torch.Tensor, step_s: float = 0.25) -> dict:
    seen = step_s * np.arange(tokens_BTPD.shape[1])
    prepared = collate([task.prepare({"seen_s": seen}, None) for _ in tokens_BTPD])
    return prepared | {TOKENS: tokens_BTPD.numpy()}


def test_skills_by_hand():
    """Half of the way to what comes is a quarter of the squared error, everywhere."""
    task = make(horizons_s=[0.5])
    torch.manual_seed(0)
    z = torch.nn.functional.layer_norm(torch.randn(2, 8, 6, 8), (8,))
    targets = window(task, 3 * z + 1)
    batch = np.arange(2)[:, None]
    tokens = targets[TOKENS]
    now, later = tokens[batch, targets["from"]], tokens[batch, targets["to"]]
    scores = task.score(now + 0.5 * (later - now), targets)
    for name in ("skill", "raw skill", "moving skill", "skill, next frame", "raw skill, 0.5 s"):
        np.testing.assert_allclose(scores[name], 0.75, atol=2e-3)
    copied = task.score(task.trivial(targets, {}), targets)
    assert all((copied[f"{kind}skill"] == 0).all() for kind in ("", "cosine ", "raw ", "moving "))
    assert ((copied["still error"] > 0) & (copied["still error"] < 1)).all()
    weights = task.metric_weights(targets)
    np.testing.assert_allclose(
        weights["skill"], weights["skill, next frame"] + weights["skill, 0.5 s"], rtol=1e-12
    )


def test_the_errors_of_copies_are_found_once_for_all_answers():
    """With twice the errors of copies, every answer is half as far from them."""
    task = make(horizons_s=[0.5])
    torch.manual_seed(0)
    targets = task.for_scoring(window(task, torch.randn(2, 8, 6, 8)))
    answer = np.random.default_rng(0).normal(size=(2, 8, 6, 8)).astype(np.float32)
    scores, twice = (
        task.score(answer, targets | {"copies": factor * targets["copies"]}) for factor in (1, 2)
    )
    for name in ("skill", "cosine skill", "raw skill, 0.5 s"):
        np.testing.assert_allclose(1 - twice[name], (1 - scores[name]) / 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("codec", "settings"),
    [*((name, {}) for name in plugins.names("codec")), ("pca", {"components": 16})],
)
def test_a_ceiling_is_what_one_scores_who_cannot_foresee_the_rounding(codec, settings):
    """What comes is known as it was before it was rounded; what `pca` cuts off is in no target."""
    made = plugins.load("codec", codec)(plugins.settings("codec", codec, settings, "test"))
    generator = torch.Generator().manual_seed(0)
    true = 3 + torch.randn(4, 1, 20, 64, generator=generator)
    true = true + 0.3 * torch.randn(4, 8, 20, 64, generator=generator).cumsum(1)
    if isinstance(made, FittedCodec):
        learnt = made.fit(true.flatten(0, 2))
        made.load(learnt)
        mean, basis = (torch.from_numpy(learnt[name]) for name in ("mean", "basis"))
        true = (true - mean) @ basis @ basis.T + mean
    arrays = {
        key: torch.from_numpy(array).unflatten(0, (4, 8))
        for key, array in made.encode(true.flatten(0, 1)).items()
    }
    task, batch = make(horizons_s=[0.5]), np.arange(4)[:, None]
    targets = task.for_scoring(window(task, made.decode(arrays).float()))
    now, comes = (
        torch.from_numpy(targets[TOKENS])[batch, targets["from"]],
        true[batch, targets["to"]],
    )
    mean, deviation = spread(now)
    told_normed = task.score((mean + deviation * normalised(comes)).numpy(), targets)
    told_raw = task.score(comes.numpy(), targets)
    ceiling = task.ceiling(made.noise(arrays).numpy(), targets)
    assert ceiling.keys() == told_raw.keys()
    for name, weight in task.metric_weights(targets).items():
        scores = told_raw if name.startswith("raw") else told_normed
        score, highest = (np.average(each[name], weights=weight) for each in (scores, ceiling))
        lost, expected = (each if name == "still error" else 1 - each for each in (score, highest))
        if expected > 1e-5 or not name.startswith("cosine"):  # float32 has no smaller angles
            # Of 16 components more is normalised away, in share, than of 64 values.
            assert 0 < lost == pytest.approx(expected, rel=0.2 if settings else 0.1), name


def test_baselines_by_hand():
    """Tokens that go on by the same amount are extrapolated without error; the mean so far and the
    damped ones are what they are called."""
    task = make(horizons_s=[0.5])
    torch.manual_seed(0)
    start, step = torch.randn(1, 1, 6, 8), torch.randn(1, 1, 6, 8)
    tokens = start + torch.arange(8.0).view(1, -1, 1, 1) * step
    targets = window(task, tokens)
    query = {name: torch.from_numpy(targets[name]) for name in ("from", "ahead_s", "step_s")}
    on_grid = tokens.unflatten(2, (2, 3))
    linear = task.baselines["linear"](on_grid, query, {}).numpy()
    np.testing.assert_allclose(linear, tokens.numpy()[0, targets["to"]], atol=1e-4)
    mean = task.baselines["mean"](on_grid, query, {}).numpy()
    np.testing.assert_allclose(
        mean[0, 0], tokens[0, : targets["from"][0, 0] + 1].mean(0), atol=1e-5
    )


def test_what_is_kept_is_the_share_that_is_best_by_least_squares():
    task, generator = make(horizons_s=[0.5]), torch.Generator().manual_seed(0)
    mean = torch.randn(6, 32, generator=generator)
    noise = torch.randn(200, 8, 6, 32, generator=generator)
    for time in range(1, 8):  # each step keeps 0.8 of the way from the mean
        noise[:, time] = 0.8 * noise[:, time - 1] + 0.6 * noise[:, time]
    known = gathered([window(task, mean + noise)], 2)
    np.testing.assert_allclose(known["kept"], [0.8, 0.64], atol=0.03)
    np.testing.assert_allclose(known["ahead_s"], [0.25, 0.5], rtol=1e-6)
    assert known["mean"].shape == (6, 32) and known["change"].shape == (3, 2)
    assert (known["change"][:, 0] < known["change"][:, 1]).all()


def test_values_between_horizons_are_linear_in_the_logarithm_of_seconds():
    at, value = torch.tensor([0.1, 1.0]), torch.tensor([1.0, 3.0])
    seconds = torch.tensor([[0.05, 0.1, 10**-0.5], [1.0, 2.0, 0.1]])
    expected = [[1, 1, 2], [3, 3, 1]]
    torch.testing.assert_close(between(seconds, at, value), torch.tensor(expected).float())
    assert between(seconds, torch.zeros(2), value).tolist() == [[1] * 3] * 2


@pytest.mark.parametrize("target", ["normed", "raw", "standardised"])
@pytest.mark.parametrize("head", [{}, {"head": "mlp"}, {"memory": "all"}])
@torch.no_grad()
def test_training_begins_at_a_copy_in_every_space(target, head):
    task = make(target=target, horizons_s=[0.5], **head)
    readout = task.readout(task.forms[0], 4, 8, SHAPE)
    tokens = 5 * torch.randn(2, 8, 6, 8) + 3
    targets = {name: torch.from_numpy(array) for name, array in window(task, tokens).items()}
    task.fit(gathered([window(task, tokens)], 2))
    said = readout(torch.randn(2, 8, 7, 4), task.query(targets) | {PATCHES: tokens})
    batch = torch.arange(2)[:, None]
    torch.testing.assert_close(said, tokens[batch, targets["from"]])
    absolute = make(target=target, residual=False, horizons_s=[0.5], **head)
    assert absolute.readout(absolute.forms[0], 4, 8, SHAPE).residual is False
    assert 0.7 < task.loss(task.forms[0], said, targets).item() < 1


@torch.no_grad()
def test_places_that_are_asked_for_alone_are_answered_as_among_all():
    task = make(horizons_s=[0.5], places=2)
    readout = task.readout(STREAMING, 4, 8, SHAPE)
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, tokens = torch.randn(2, 8, 7, 4), torch.randn(2, 8, 6, 8)
    targets = {name: torch.from_numpy(array) for name, array in window(task, tokens).items()}
    whole = readout(x, task.query(targets) | {PATCHES: tokens})
    place = torch.tensor([5, 2]).expand(2, whole.shape[1], 2)
    some = readout(x, task.query(targets) | {PATCHES: tokens, "place": place})
    torch.testing.assert_close(some, whole[:, :, [5, 2]])
    stream = readout(x, {PATCHES: tokens})
    assert torch.equal(stream[:, :, 0], tokens)
    later = targets["horizon"][0] == 1
    torch.testing.assert_close(stream[:, targets["from"][0, later], 1], whole[:, later])


@torch.no_grad()
def test_all_outputs_up_to_a_frame_are_read_and_none_after_it():
    task = make(horizons_s=[0.5], memory="all")
    readout = task.readout("window", 4, 8, SHAPE)
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, tokens = torch.randn(1, 8, 7, 4), torch.randn(1, 8, 6, 8)
    query = {PATCHES: tokens, "from": torch.tensor([[3]]), "ahead_s": torch.tensor([[0.5]])}
    said = readout(x, query)
    for frame, changes in ((4, False), (7, False), (3, True), (0, True)):
        other = x.clone()
        other[:, frame] *= -1
        assert torch.equal(readout(other, query), said) != changes


@pytest.mark.parametrize(
    ("settings", "windows", "step_s", "said"),
    [
        ({"horizons_s": [0.25, 0.5]}, {"frames": 16, "fps": 4}, 0.25, "'next frame' and '0.25 s'"),
        ({"horizons_s": [0.5, 0.55]}, {"frames": 16, "fps": 4}, 0.25, "'0.5 s' and '0.55 s'"),
        ({"horizons_s": [2.0]}, {"frames": 8, "fps": 4}, 0.25, "windows.frames to at least 11"),
        ({}, {"frames": 64, "fps": 8, "still": 0.5}, 0.125, "nothing to forecast"),
    ],
)
def test_windows_that_cannot_hold_the_horizons_are_refused(settings, windows, step_s, said):
    with pytest.raises(BadInput) as refused:
        make(**settings).require_windows(WindowSettings(**windows), step_s)
    assert said in refused.value.with_hint


def turning(windows: int, generator: torch.Generator) -> torch.Tensor:
    """(B, T, P, D) tokens that turn one way or the other: no single frame tells which."""
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(5))).Q
    phase = 2 * math.pi * torch.rand(windows, 1, 6, generator=generator)
    way = torch.randint(0, 2, (windows, 1, 1), generator=generator) * 2 - 1
    angle = phase + way * 0.3 * torch.arange(8).view(1, -1, 1)
    # In the plane of two directions in which every token has mean 0.
    plane = torch.linalg.qr(basis[:, :2] - basis[:, :2].mean(0)).Q
    return torch.stack([angle.cos(), angle.sin()], -1) @ plane.T


@pytest.mark.parametrize(
    ("temporal", "least", "most"), [("gru", 0.6, 1.0), ("identity", -0.1, 0.1)]
)
def test_velocity_is_in_the_state_or_nowhere(temporal, least, most):
    table = {
        "name": "test",
        "task": {"name": "forecast", "horizons_s": [0.5], "places": 6} | SIZE,
        "temporal": {"name": temporal},
        "windows": {"frames": 8, "fps": 4},
        "model": {"mixer": "last", "width": 16, "tokens": "patches"},
        "training": {"steps": 1},
    }
    recipe = plugins.validate(Recipe, table, "test")
    torch.manual_seed(0)
    task = make(horizons_s=[0.5], places=6)
    model, generator = VideoModel(recipe, SHAPE, task), torch.Generator().manual_seed(1)

    def batch(windows: int, rng: np.random.Generator | None) -> OnDevice:
        tokens = turning(windows, generator)
        seen = {"seen_s": 0.25 * np.arange(8)}
        prepared = collate([task.prepare(seen, rng) for _ in range(windows)])
        targets = {name: torch.from_numpy(array) for name, array in prepared.items()}
        return OnDevice(torch.zeros(windows, 8, 1, 8), {3: tokens}, targets)

    known, rng = batch(64, None), np.random.default_rng(0)
    task.fit(task.statistics([window(task, known.patches[3])]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        windows = batch(8, rng)
        optimizer.zero_grad()
        prediction = model.predict(windows, task)[STREAMING]
        task.loss(STREAMING, prediction, model.truth(windows, task)).backward()
        optimizer.step()
    held_out = batch(64, None)
    with torch.no_grad():
        answer = model.eval().predict(held_out, task)[STREAMING].numpy()
    targets = {name: part.numpy() for name, part in model.truth(held_out, task).items()}
    weights = task.metric_weights(targets)["skill"]
    skill = (task.score(answer, targets)["skill"] * weights).sum() / weights.sum()
    assert least < skill <= most, skill


def contrast(**settings: object) -> TaskPlugin:
    plugin = plugins.load("task", "contrast")
    table = SIZE | {"horizons_s": [0.5]} | settings
    return plugin(plugins.validate(plugin.Settings, table, "test"), ())


def test_a_frame_is_found_by_what_is_most_like_it():
    task = contrast()
    torch.manual_seed(0)
    tokens = torch.randn(3, 8, 6, 8)
    tokens[2, 5] = tokens[2, 4]  # frame 5 is a copy, and nobody's future
    targets = window(task, tokens)
    right = tokens.numpy()[np.arange(3)[:, None], targets["to"]]
    scores = task.score(right, targets)
    assert all((of_metric == 1).all() for of_metric in scores.values())
    wrong = tokens.numpy()[np.arange(3)[:, None], (targets["to"] + 1) % 8]
    assert task.score(wrong, targets)["found"][:2].tolist() == [0, 0]
    weights = task.metric_weights(targets)
    assert weights["found"][:2].tolist() == [8, 8] and weights["found"][2] < 8
    np.testing.assert_allclose(
        weights["found"], weights["found, next frame"] + weights["found, 0.5 s"]
    )


def test_the_loss_of_contrast_by_hand():
    """Two places, one pair: cosines with the right one, with both places of the right frame but
    itself, and with the place at the present and at eight times of the window."""
    task = contrast(temperature=0.5)
    task.readout(STREAMING, 4, 8, SHAPE)
    torch.manual_seed(0)
    z = torch.nn.functional.layer_norm(torch.randn(1, 8, 2, 8), (8,))
    unit = torch.nn.functional.normalize(z, dim=-1)
    said = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    pair = {
        "from": torch.tensor([[2]]),
        "to": torch.tensor([[4]]),
        "paired": torch.tensor([[True]]),
    }
    losses = []
    for place in (0, 1):
        wrong = [unit[0, 4, 1 - place], unit[0, 2, place]]
        wrong += [unit[0, time, place] for time in range(8) if time != 4]
        logits = torch.stack([unit[0, 4, place], *wrong]) @ said[place] / 0.5
        losses.append(-logits.log_softmax(0)[0])
    prediction = said.view(1, 1, 2, 8)  # in units of the present token, whose mean is 0
    loss = task.loss(STREAMING, prediction, pair | {TOKENS: z})
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=0)


def test_tokens_that_were_told_are_drawn_beside_those_that_came():
    """In the colours that both share: a right forecast looks like the truth, black is told of nothing."""
    task = make(horizons_s=[0.5])
    task.readout(STREAMING, 4, 8, SHAPE)
    torch.manual_seed(0)
    tokens = torch.randn(1, 8, 6, 8)
    targets = {name: array[0] for name, array in window(task, tokens).items()}
    right = tokens.numpy()[0, targets["to"]]
    pixels = np.full((8, 112, 112, 3), 90, np.uint8)
    drawn = task.draw(pixels, right, targets)
    assert drawn.dtype == np.uint8 and drawn.shape[0] == 8 and drawn.shape[1] == 384
    # A grid of 2 by 3 patches is half as wide again as the frame; words stand in its upper part.
    truth, said = drawn[:, 200:, 388 : 388 + 576], drawn[:, 200:, 388 + 580 :]
    told_of = sorted(set(targets["to"][targets["paired"]].tolist()))
    assert all(np.array_equal(truth[time], said[time]) for time in told_of)
    assert said[0].max() == 0 and truth[0].max() > 0
    alone = task.draw(pixels[:1], tokens[:, :2].numpy(), {})
    assert alone.shape[:2] == (1, 384) and alone.shape[2] > 1000
