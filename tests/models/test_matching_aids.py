"""Readouts that training of retrieve alone uses: masked words and pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.config import plugins
from pipeline.config.plugins import validate
from pipeline.datasets.manifest.targets import CAPTIONS, WORDS, collate
from pipeline.datasets.manifest.texts import FIRST_WORD, MASK, PADDING, UNKNOWN
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS
from pipeline.models.tasks.matching.losses import SAME
from pipeline.models.tasks.matching.masked_words import (
    ASKED_WORDS,
    MOST_WORDS,
    WORDS_LEFT,
    masked,
    word_loss,
)
from pipeline.models.tasks.matching.pairs import OWN_TEXT, drawn, pair_loss
from pipeline.models.tasks.retrieve import MASKED_WORDS, MATCHING, Task
from pipeline.records import TokenShape

SHAPE = TokenShape(width=6, grid_hw=(2, 2), special_tokens=1, layers=(1,))
B, T, N, D, E, V = 8, 3, 5, 8, 4, 12


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)


def make(**keys: object) -> Task:
    table = {"readout_width": 16, "heads": 2, "width": E, "vocabulary": V} | keys
    return Task(validate(Task.Settings, table, "test"), ())


def prepared(task: Task, words: list[list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Targets of a batch in training, of captions with these words and with vectors of their
    own."""
    rng, windows = np.random.default_rng(seed), []
    for said in words:
        text_E = rng.normal(size=E).astype(np.float32)
        truth = {CAPTIONS: text_E[None] / np.linalg.norm(text_E)}
        if WORDS in task.needs:
            truth[WORDS] = np.array(said, np.int64)
        windows.append(task.prepare(truth, np.random.default_rng(seed)))
    return {name: torch.from_numpy(array) for name, array in collate(windows).items()}


def video(seed: int = 0, batch: int = B) -> torch.Tensor:
    return torch.randn(batch, T, N, D, generator=torch.Generator().manual_seed(seed))


def test_both_are_off_by_default_and_add_nothing() -> None:
    task = make()
    assert task.aids == () and task.needs == (CAPTIONS,) and Task.needs == (CAPTIONS,)
    assert task.example_texts(T).keys() == {CAPTIONS, FRAME_EMBEDDINGS}
    truth = {CAPTIONS: np.ones((1, E), np.float32)}
    assert task.prepare(dict(truth), np.random.default_rng(0)).keys() == truth.keys()
    both = make(mask_words=1.0, match=0.5)
    assert both.aids == (MASKED_WORDS, MATCHING) and both.forms == task.forms
    assert set(both.needs) == {CAPTIONS, WORDS}
    assert dict(both.named_parameters()).keys() == dict(task.named_parameters()).keys()


def test_a_share_of_the_words_is_masked_and_one_at_least() -> None:
    words_L = np.arange(FIRST_WORD, FIRST_WORD + 20)
    counts = set()
    for seed in range(200):
        found = masked(words_L, np.random.default_rng(seed), (0.15, 0.5), 100)
        left_L, asked_L = found[WORDS_LEFT], found[ASKED_WORDS]
        is_asked_L = asked_L != PADDING
        assert (left_L[is_asked_L] == MASK).all() and (asked_L[is_asked_L] > MASK).all()
        assert np.array_equal(np.where(is_asked_L, asked_L, left_L), words_L)
        counts.add(int(is_asked_L.sum()))
    assert counts == set(range(3, 11))
    for seed in range(20):
        found = masked(words_L[:1], np.random.default_rng(seed), (0.15, 0.5), 100)
        assert found[WORDS_LEFT].tolist() == [MASK] and found[ASKED_WORDS].tolist() == [FIRST_WORD]


def test_what_is_no_known_word_is_never_asked() -> None:
    words_L = np.array([UNKNOWN, 3, 99, 4, 100])
    for seed in range(20):
        found = masked(words_L, np.random.default_rng(seed), (1.0, 1.0), 99)
        assert found[WORDS_LEFT].tolist() == [UNKNOWN, MASK, UNKNOWN, MASK, UNKNOWN]
        assert found[ASKED_WORDS].tolist() == [0, 3, 0, 4, 0]
    none = masked(np.zeros(0, np.int64), np.random.default_rng(0), (0.5, 0.5), 99)
    assert none[WORDS_LEFT].tolist() == none[ASKED_WORDS].tolist() == [PADDING]
    long = masked(np.full(MOST_WORDS + 9, 3), np.random.default_rng(0), (0.5, 0.5), 99)
    assert len(long[WORDS_LEFT]) == MOST_WORDS


def test_the_masked_word_is_not_seen() -> None:
    """Another word in its place changes what is asked and nothing that is told; another word beside
    it does."""
    task = make(mask_words=1.0, zero_shot=False)
    torch.manual_seed(0)
    readout = task.readout(MASKED_WORDS, D, T, SHAPE)
    said = [3, 4, 5, 6, 7]
    targets = prepared(task, [said])
    place = int(targets[ASKED_WORDS][0].argmax())
    logits = readout(video(batch=1), task.query(targets))
    assert logits.shape == (1, len(said), V)
    for number in range(len(said)):
        other = said.copy()
        other[number] = 9
        changed = prepared(task, [other])
        is_masked = bool(targets[ASKED_WORDS][0, number])
        again = readout(video(batch=1), task.query(changed))
        assert torch.equal(again, logits) == is_masked
        assert torch.equal(again[0, place], logits[0, place]) == is_masked
        assert torch.equal(changed[ASKED_WORDS], targets[ASKED_WORDS]) != is_masked
    seen = readout(video(seed=1, batch=1), task.query(targets))
    assert not torch.allclose(seen[0, place], logits[0, place])


def test_padding_changes_nothing_and_a_caption_without_words_is_finite() -> None:
    task = make(mask_words=1.0)
    torch.manual_seed(0)
    readout = task.readout(MASKED_WORDS, D, T, SHAPE)
    alone = readout(video(batch=2)[:1], task.query(prepared(task, [[3, 4]])))
    beside = prepared(task, [[3, 4], [3, 4, 5, 6, 7, 8]])
    torch.testing.assert_close(readout(video(batch=2), task.query(beside))[:1, :2], alone)
    nothing = prepared(task, [[], []])
    logits = readout(video(batch=2), task.query(nothing))
    loss = task.loss(MASKED_WORDS, logits, nothing)
    loss.backward()
    assert loss.item() == 0
    assert all(bool(part.grad.isfinite().all()) for part in readout.parameters())


@pytest.mark.parametrize("aid", [MASKED_WORDS, MATCHING])
def test_losses_of_parts_of_a_batch_add_up(aid: str) -> None:
    """With words of different number, and with pairs of which some are not there."""
    task = make(mask_words=0.7, match=0.3)
    said = [[3], [4, 5, 6, 7, 8, 9], [], [10, 3, 4, 5]]
    targets = prepared(task, said)
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(4, 6, V, generator=generator)
    if aid == MATCHING:
        counted = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1.0]])
        prediction = torch.stack([torch.randn(4, 3, generator=generator), counted], -1)
    whole = task.loss(aid, prediction, targets)
    parts = [
        task.loss(aid, prediction[rows], {name: part[rows] for name, part in targets.items()})
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)
    weight = 0.7 if aid == MASKED_WORDS else 0.3
    plain = word_loss(prediction, targets[ASKED_WORDS]) if weight > 0.5 else pair_loss(prediction)
    torch.testing.assert_close(whole, weight * plain)


def trained(task: Task, aid: str, example: Any, steps: int, learning_rate: float) -> float:
    """The mean loss of the last steps of a short training on batches that `example` makes."""
    torch.manual_seed(0)
    readout = task.readout(aid, D, T, SHAPE)
    optimizer = torch.optim.Adam(readout.parameters(), lr=learning_rate)
    losses = []
    for step in range(steps):
        x_BTND, targets = example(step)
        loss = task.loss(aid, readout(x_BTND, task.query(targets)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def test_words_are_learnt_from_the_video_that_tells_them() -> None:
    """One of four words, which the video tells, or does not: then all are as likely."""
    task = make(mask_words=1.0, zero_shot=False)
    code_WD = torch.randn(4, D, generator=torch.Generator().manual_seed(3))

    def example(step: int, tells: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        word_B = np.random.default_rng(step).integers(4, size=16)
        targets = prepared(task, [[FIRST_WORD + int(word)] for word in word_B])
        x_BTND = 0.1 * video(seed=step, batch=16)
        if tells:
            x_BTND = x_BTND + code_WD[torch.from_numpy(word_B)][:, None, None]
        return x_BTND, targets

    assert trained(task, MASKED_WORDS, lambda step: example(step, tells=True), 50, 0.02) < 0.1
    blind = trained(task, MASKED_WORDS, lambda step: example(step, tells=False), 50, 0.02)
    assert blind > 0.9 * math.log(4)


def test_pairs_are_learnt_from_the_video_that_tells_them() -> None:
    """Where the video does not tell the text, one yes of three is the best that can be known."""
    task = make(match=1.0, zero_shot=False)
    code_DE = 2 * torch.randn(D, E, generator=torch.Generator().manual_seed(3))

    def example(step: int, tells: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        targets = prepared(task, [[]] * 16, seed=step)
        x_BTND = 0.1 * video(seed=step, batch=16)
        if tells:
            x_BTND = x_BTND + (targets[OWN_TEXT] @ code_DE.T)[:, None, None]
        return x_BTND, targets

    chance = -(math.log(1 / 3) + 2 * math.log(2 / 3)) / 3
    assert (
        trained(task, MATCHING, lambda step: example(step, tells=True), 120, 0.005) < 0.7 * chance
    )
    blind = trained(task, MATCHING, lambda step: example(step, tells=False), 40, 0.01)
    assert blind == pytest.approx(chance, abs=0.05)


def test_what_is_wrong_is_drawn_the_likelier_the_more_alike_it_is() -> None:
    text_BE = F.normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.4, 0], [0, 0, 1], [1, 0, 0]]), dim=-1)
    video_BE = text_BE.clone()
    torch.manual_seed(0)
    draws = [drawn(video_BE, text_BE, 0.5) for _ in range(500)]
    texts = torch.stack([text for text, _, _ in draws])
    for row in range(4):
        wrong = text_BE @ text_BE[row] <= SAME  # neither itself nor its twin
        chance = (text_BE @ video_BE[row] / 0.5).masked_fill(~wrong, -torch.inf).softmax(0)
        share = torch.bincount(texts[:, row], minlength=4) / len(draws)
        torch.testing.assert_close(share, chance, rtol=0, atol=0.08)
        assert (share[~wrong] == 0).all()
    assert all(bool(there.all()) for _, _, there in draws)
    videos = torch.stack([drawn_video for _, drawn_video, _ in draws])
    assert not (videos == torch.arange(4)).any() and not (videos[:, 0] == 3).any()


def test_where_nothing_is_wrong_only_the_own_pair_counts() -> None:
    task = make(match=1.0)
    torch.manual_seed(0)
    readout = task.readout(MATCHING, D, T, SHAPE)
    same_BE = F.normalize(torch.ones(3, E), dim=-1)
    frames_BTE = F.normalize(torch.randn(3, T, E), dim=-1)
    for text_BE, expected in (
        (same_BE, [[1, 0, 0]] * 3),
        (same_BE * torch.tensor([[1.0], [0], [0]]), [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ):
        prediction = readout(video(batch=3), {OWN_TEXT: text_BE, FRAME_EMBEDDINGS: frames_BTE})
        assert prediction.shape == (3, 3, 2)
        assert prediction[..., 1].tolist() == expected
        assert bool(task.loss(MATCHING, prediction, {}).isfinite())


def test_wrong_videos_are_those_that_are_like_the_text() -> None:
    """Where frames have embeddings, these say what is alike, and not the texts."""
    task = make(match=1.0, temperature=0.01)
    torch.manual_seed(0)
    readout = task.readout(MATCHING, D, T, SHAPE)
    text_BE, x_BTND = torch.eye(E), video(batch=E)
    frames_BTE = text_BE.roll(1, 0)[:, None].expand(-1, T, -1)
    told = readout(x_BTND, {OWN_TEXT: text_BE, FRAME_EMBEDDINGS: frames_BTE})[..., 0]
    pairs = [  # text, video
        (range(E), range(E)),
        ([3, 0, 1, 2], range(E)),
        (range(E), [1, 2, 3, 0]),
    ]
    for column, (texts, videos) in enumerate(pairs):
        given = {OWN_TEXT: text_BE[list(texts)]}
        expected = readout(x_BTND[list(videos)], given)[:, 0, 0]
        torch.testing.assert_close(told[:, column], expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mask_share": [0.5, 0.2]}, "mask_share: wanted two shares above 0 and up to 1, ascend"),
        ({"mask_share": [0.0, 0.2]}, "mask_share: wanted two shares above 0 and up to 1, ascend"),
        ({"vocabulary": 3}, "'vocabulary': Input should be greater than 3"),
        ({"mask_words": -1}, "'mask_words': Input should be greater than or equal to 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plugins.validate(Task.Settings, table, "test")
