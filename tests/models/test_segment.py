"""Scores of temporal segmentation and online action detection, beside small implementations of the official formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import STREAMING, WINDOW
from pipeline.models.tasks.segment import Settings, Task
from pipeline.models.tasks.segments.precision import precision_at
from pipeline.models.tasks.segments.segments import edit_score, found, segments_of
from pipeline.records import TokenShape

NAMES = ("background", "crack", "fry", "pour")
SHAPE = TokenShape(width=6, grid_hw=(2, 2), special_tokens=1, layers=(1,))


def make(labels: tuple[str, ...] = NAMES, **keys: object) -> Task:
    table = {"readout_width": 8, "heads": 2, "layers": 2, **keys}
    return Task(plugins.validate(Settings, table, "segment"), labels)


def truth_of(*videos: str) -> dict[str, np.ndarray]:
    """Videos as letters, one a frame: b, c, f, p are classes, + is both c and f, ? is unknown, . is past the end."""
    frames = max(map(len, videos))
    classes = np.zeros((len(videos), frames, len(NAMES)), bool)
    valid = np.zeros((len(videos), frames), bool)
    for video, letters in enumerate(videos):
        for frame, letter in enumerate(letters):
            valid[video, frame] = letter not in "?."
            for one in "cf" if letter == "+" else letter:
                if one in "bcfp":
                    classes[video, frame, "bcfp".index(one)] = True
    return {"classes": classes, "classes_valid": valid}


def answer_of(*videos: str) -> np.ndarray:
    """Logarithms of probabilities: nearly all of it on the class of the letter."""
    frames = max(map(len, videos))
    share = np.full((len(videos), frames, len(NAMES)), 0.02)
    for video, letters in enumerate(videos):
        for frame, letter in enumerate(letters):
            share[video, frame, "bcfp".index(letter)] = 0.94
    return np.log(share)


def mean(task: Task, answer: np.ndarray, targets: dict[str, np.ndarray]) -> dict[str, float]:
    """Every metric over all windows, as an evaluation has it."""
    weights = task.metric_weights(targets) | task.answer_weights(answer, targets)
    scores = task.score(answer, targets)
    return {
        name: float((values * weights[name]).sum() / weights[name].sum())
        for name, values in scores.items()
    }


# The official formulas, written down once more in the plainest way


def plain_runs(letters: str) -> list[tuple[str, int, int]]:
    runs, place = [], 0
    for letter, group in itertools.groupby(letters):
        length = len(list(group))
        if letter != "b":
            runs.append((letter, place, place + length))
        place += length
    return runs


def plain_edit(said: str, truth: str) -> float:
    def distance(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        if one[0] == other[0]:
            return distance(one[1:], other[1:])
        return 1 + min(
            distance(one[1:], other), distance(one, other[1:]), distance(one[1:], other[1:])
        )

    orders = ["".join(letter for letter, _, _ in plain_runs(text)) for text in (said, truth)]
    longest = max(map(len, orders))
    return 1 - distance(*orders) / longest if longest else 1.0


def plain_counts(said: str, truth: str, overlap: float) -> tuple[int, int, int]:
    """True positives, false positives, false negatives of one video."""
    hits, true = set(), plain_runs(truth)
    tp = fp = 0
    for letter, start, stop in plain_runs(said):
        frames = set(range(start, stop))
        ious = []
        for other, other_start, other_stop in true:
            others = set(range(other_start, other_stop))
            # The official union is the stretch from the first to the last frame of both.
            union = max(stop, other_stop) - min(start, other_start)
            ious.append(len(frames & others) / union if letter == other else 0.0)
        best = ious.index(max(ious)) if ious else None
        if best is not None and ious[best] >= overlap and best not in hits:
            hits.add(best)
            tp += 1
        else:
            fp += 1
    return tp, fp, len(true) - len(hits)


def plain_precision(scores: list[float], truth: list[bool], calibrated: bool) -> float:
    """Mean over the true frames of the precision at the threshold of each."""
    positives = sum(truth)
    ratio = (len(truth) - positives) / positives if calibrated else 1.0
    precisions = []
    for score, is_true in zip(scores, truth, strict=True):
        if is_true:
            seen = [one for other, one in zip(scores, truth, strict=True) if other >= score]
            tp, fp = sum(seen), len(seen) - sum(seen)
            precisions.append(tp / (tp + fp / ratio) if fp else 1.0)
    return sum(precisions) / positives


def drawn(rng: np.random.Generator, frames: int) -> str:
    """A video of some runs."""
    letters = ""
    while len(letters) < frames:
        letters += str(rng.choice(list("bcfp"))) * int(rng.integers(1, 5))
    return letters[:frames]


@pytest.mark.parametrize("seed", range(20))
def test_segmental_scores_are_those_of_the_official_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 14, 3)
    true = [drawn(rng, length) for length in lengths]
    said = [drawn(rng, length) for length in lengths]
    pad = max(lengths)
    targets = truth_of(*(text.ljust(pad, ".") for text in true))
    scores = mean(make(), answer_of(*(text.ljust(pad, "p") for text in said)), targets)
    pairs = list(zip(said, true, strict=True))
    right = sum(one == other for pair in pairs for one, other in zip(*pair, strict=True))
    assert scores["accuracy"] == pytest.approx(right / sum(lengths))
    assert scores["edit"] == pytest.approx(np.mean([plain_edit(*pair) for pair in pairs]))
    for name, overlap in (("F1@10", 0.1), ("F1@25", 0.25), ("F1@50", 0.5)):
        tp, fp, fn = np.sum([plain_counts(*pair, overlap) for pair in pairs], axis=0)
        precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
        wanted = 2 * precision * recall / (precision + recall) if tp else 0.0
        assert scores[name] == pytest.approx(wanted), name


@pytest.mark.parametrize("seed", range(10))
def test_average_precisions_are_those_of_the_official_formulas(seed: int) -> None:
    """Also where frames share a score, as a tenth of them do here."""
    rng = np.random.default_rng(seed)
    answer = np.log(rng.dirichlet(np.ones(4), (3, 15)).round(1).clip(0.01))
    targets = truth_of(*("".join(rng.choice(list("bcfp+?"), 15)) for _ in range(3)))
    known = targets["classes_valid"]
    scores = mean(make(classes="several"), answer, targets)
    assert list(scores) == ["mAP", "mcAP"]
    for name, calibrated in (("mAP", False), ("mcAP", True)):
        of_classes = [
            plain_precision(
                answer[known][:, number].tolist(),
                targets["classes"][known][:, number].tolist(),
                calibrated,
            )
            for number in (1, 2, 3)
        ]
        assert scores[name] == pytest.approx(np.mean(of_classes)), name


def test_average_precision_by_hand() -> None:
    scores, true = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, False, True, False, False])
    assert precision_at(scores, true, calibrated=False)[true].tolist() == [1.0, 2 / 3]
    # Three false frames to two true ones: a false one counts two thirds.
    assert precision_at(scores, true, calibrated=True)[true].tolist() == pytest.approx(
        [1, 2 / (2 + 2 / 3)]
    )
    chance = precision_at(np.zeros(5), true, calibrated=True)
    assert (
        chance.tolist() == [0.5] * 5 and precision_at(np.zeros(5), true, calibrated=False)[0] == 0.4
    )
    assert precision_at(scores, np.ones(5, bool), calibrated=True).tolist() == [1.0] * 5


def test_segments_by_hand() -> None:
    truth = segments_of(np.array([0, 1, 1, 1, 1, 0, 2, 2]), {0})
    assert truth == [(1, 1, 5), (2, 6, 8)]
    said = segments_of(np.array([1, 1, 1, 2, 1, 1, 1, 1]), {0})
    assert [found(said, truth, least) for least in (0.1, 0.25, 0.5)] == [
        1,
        1,
        0,
    ]  # 2 of 5, then 1 of 7
    assert edit_score(said, truth) == pytest.approx(2 / 3)  # one of three is too many
    assert segments_of(np.array([], int), set()) == [] and edit_score([], []) == 1
    assert edit_score(said, []) == 0 == edit_score([], truth) and found(said, [], 0.1) == 0


def test_several_classes_of_a_frame_and_frames_that_nobody_knows() -> None:
    task, targets = make(), truth_of("b+?p")
    answers = {
        text: task.score(answer_of(text), targets)["accuracy"].tolist()
        for text in ("bccp", "bffp", "bpbb")
    }
    assert answers == {"bccp": [1], "bffp": [1], "bpbb": [1 / 3]}
    # Of two, the first is the segment; what is unknown is not there.
    assert task._true(targets).tolist() == [[0, 1, -1, 3]]
    assert task.score(answer_of("bcfp"), targets)["edit"].tolist() == [1]
    assert task.metric_weights(targets)["F1@10"].tolist() == [2]


def test_background_is_known_by_its_name_and_left_out_of_segments() -> None:
    assert make().background == [0] and make(("Background", "a")).events == [1]
    assert make(("SIL", "a"), background=["sil"]).background == [0]
    assert make(("a", "b")).background == []
    with pytest.raises(BadInput, match="the manifest has no classes of segments$"):
        make(())
    with pytest.raises(BadInput, match="no classes of segments but background: background"):
        make(("background",))
    still = truth_of("bbbb", "bbcc")
    scores = make().score(answer_of("bbbb", "bbbb"), still)
    assert scores["edit"].tolist() == [1, 0] and scores["accuracy"].tolist() == [1, 0.5]
    assert make().metric_weights(still)["F1@50"].tolist() == [0, 1]


def test_the_trivial_answer_and_its_loss() -> None:
    task, targets = make(), truth_of("bbbc", "bb+p")
    known = task.statistics(iter([targets]))
    assert known["frames"] == 8 and known["counts"].tolist() == [5, 1.5, 0.5, 1]
    scores = mean(task, task.trivial(targets, known), targets)
    assert scores["accuracy"] == 5 / 8 and scores["mcAP"] == pytest.approx(0.5)
    assert scores["mAP"] == pytest.approx((2 / 8 + 1 / 8 + 1 / 8) / 3)
    logits = torch.from_numpy(task.trivial(targets, known))
    of_torch = {name: torch.from_numpy(array) for name, array in targets.items()}
    loss = float(task.loss(STREAMING, logits, of_torch))
    assert task.trivial_loss(known) == pytest.approx(2 * loss, rel=1e-5)
    several = make(classes="several")
    known = several.statistics(iter([targets]))
    share = torch.from_numpy(known["counts"] / 8).float()
    loss = float(several.loss(STREAMING, share.logit().expand(2, 4, -1), of_torch))
    assert several.trivial_loss(known) == pytest.approx(2 * loss, rel=1e-5)


@torch.no_grad()
def test_the_window_form_sees_both_sides_and_any_length_and_streaming_no_later_frame() -> None:
    torch.manual_seed(0)
    task, x = make(), torch.randn(1, 9, 5, 6)
    later = x.clone()
    later[:, 5:] += 1
    for form, is_same in ((STREAMING, True), (WINDOW, False)):
        readout = task.readout(form, 6, 4, SHAPE).eval()
        before, after = readout(x, {})[:, :5], readout(later, {})[:, :5]
        assert before.shape == (1, 5, 4) and torch.equal(before, after) is is_same
    # Two layers see three frames to either side.
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2:], after[:, 2:])


def test_an_answer_in_words_and_drawn() -> None:
    task, targets = make(), truth_of("bbccp")
    answer = answer_of("bcccp")[0].astype(np.float32)
    assert task.plain(answer[1:2], np.eye(2, 3)) == {"class": "crack", "probability": 0.94}
    several = make(classes="several")
    both = np.log(np.array([[0.1, 0.6, 0.7, 0.2]]))
    assert several.plain(both, np.eye(2, 3)) == {"classes": {"fry": 0.7, "crack": 0.6}}
    pixels = np.full((5, 64, 64, 3), 90, np.uint8)
    one = {name: array[0] for name, array in targets.items()}
    drawn = task.draw(pixels, answer, one)
    assert drawn.shape == (5, 384 + 6 + 2 * 32, 384, 3) and drawn.dtype == np.uint8
    truth, said = drawn[0, 384 + 30], drawn[0, 384 + 62]
    assert (truth[100] == truth[60]).all() and (said[100] != said[60]).any(), (
        "the answer is wrong in frame 1"
    )
    assert task.draw(pixels[:1], answer[:1], {}).shape == (1, 384 + 6 + 32, 384, 3)
