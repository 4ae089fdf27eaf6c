"""Moments of indexes that are made up, against loops that look at every window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.search.moments import Moment, best_moments, frame_scores
from pipeline.search.queries import ExampleFrame, Query, query_like
from pipeline.train.language.frame_index import FrameIndex

WIDTH = 16


def index_of(times: dict[str, np.ndarray], seed: int = 0) -> FrameIndex:
    """Random embeddings of frames at these seconds."""
    frames = sum(map(len, times.values()))
    drawn_FD = torch.randn(frames, WIDTH, generator=torch.Generator().manual_seed(seed))
    starts_V = np.cumsum([0, *map(len, times.values())])
    after_s_F = np.concatenate(list(times.values())).astype(np.float64)
    return FrameIndex(
        functional.normalize(drawn_FD, dim=1).half(), after_s_F, tuple(times), starts_V
    )


def uneven(seed: int = 0) -> FrameIndex:
    """Videos of different rates, one with gaps, one shorter than a moment, one of a single frame."""
    rng = np.random.default_rng(seed)
    return index_of(
        {
            "long.mp4": np.arange(400) / 12,
            "gaps.mp4": np.sort(rng.choice(np.arange(300), 90, replace=False)) / 10 - 0.0,
            "short.mp4": np.arange(7) / 5,
            "one.mp4": np.zeros(1),
            "slow.mp4": np.arange(30) / 1.0,
        },
        seed,
    )


def query(seed: int = 5, name: str = "q") -> Query:
    vector_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return Query(name, functional.normalize(vector_D, dim=0))


def looked_at_one_by_one(index: FrameIndex, asked: Query, seconds: float, top: int) -> list[Moment]:
    """Every window that lies within its video is scored by itself; the best are taken one after the other."""
    score_F = (index.embeddings_FD.double() @ asked.vector_D.double()).numpy()
    windows = []
    for number, video in enumerate(index.videos):
        start, stop = index.starts_V[number : number + 2]
        time_s, own = index.after_s_F[start:stop], score_F[start:stop]
        end_s = time_s[-1] + (time_s[-1] - time_s[0]) / max(1, len(time_s) - 1)
        for first, begin_s in enumerate(time_s):
            if first and begin_s + seconds > end_s + 1e-6:
                break
            inside = (time_s >= begin_s) & (time_s < begin_s + seconds - 1e-6)
            best_s = time_s[inside][own[inside].argmax()]
            until_s = min(begin_s + seconds, end_s)
            windows.append(Moment(video, begin_s, until_s, best_s, own[inside].mean()))
    found: list[Moment] = []
    for window in sorted(windows, key=lambda window: -window.score):
        apart = (
            window.video != other.video
            or window.start_s >= other.stop_s - 1e-6
            or window.stop_s <= other.start_s + 1e-6
            for other in found
        )
        if all(apart):
            found.append(window)
    return found[:top]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
def test_moments_are_the_best_windows_that_do_not_overlap(seconds: float) -> None:
    index, asked = uneven(), query()
    (found,) = best_moments(index, [asked], seconds, 12)
    expected = looked_at_one_by_one(index, asked, seconds, 12)
    assert [moment.video for moment in found] == [moment.video for moment in expected]
    for name in ("start_s", "stop_s", "best_s", "score"):
        ours, theirs = ([getattr(moment, name) for moment in side] for side in (found, expected))
        assert ours == pytest.approx(theirs, abs=2e-6), name


def test_all_moments_there_are_come_out_if_more_are_wanted() -> None:
    index, asked = uneven(), query()
    (found,) = best_moments(index, [asked], 4.0, 1000)
    expected = looked_at_one_by_one(index, asked, 4.0, 1000)
    assert [(one.video, one.start_s) for one in found] == [
        (one.video, one.start_s) for one in expected
    ]
    assert {"short.mp4", "one.mp4"} <= {moment.video for moment in found}


def test_queries_at_once_find_what_they_find_alone() -> None:
    index, asked = uneven(), [query(1, "a"), query(2, "b"), query(3, "c")]
    together = best_moments(index, asked, 2.0, 5)
    for one, found in zip(asked, together, strict=True):
        (alone,) = best_moments(index, [one], 2.0, 5)
        places = [[(moment.video, moment.start_s) for moment in side] for side in (found, alone)]
        assert places[0] == places[1] and len(places[0]) == 5
    expected = index.embeddings_FD.float() @ torch.stack([one.vector_D for one in asked], 1)
    np.testing.assert_allclose(frame_scores(index, asked), expected.numpy(), atol=1e-6)


def test_what_is_planted_is_found() -> None:
    index, asked = uneven(), query()
    place = index.frame_at("long.mp4", 10.0)
    index.embeddings_FD[place : place + 24] = asked.vector_D.half()
    (found,) = best_moments(index, [asked], 2.0, 3)
    assert (found[0].video, found[0].start_s) == ("long.mp4", pytest.approx(10.0, abs=1e-6))
    assert found[0].score == pytest.approx(1.0, abs=1e-3)
    assert found[1].score < 0.7


def test_an_example_finds_its_like_and_not_itself() -> None:
    index = uneven()
    own, twin = index.frame_at("slow.mp4", 12.4), index.frame_at("long.mp4", 20.0)
    assert index.after_s_F[own] == 12.0  # the frame that is on screen then
    index.embeddings_FD[twin : twin + 12] = index.embeddings_FD[own]
    (found,) = best_moments(
        index, [query_like(index, ExampleFrame("x", "slow.mp4", 12.0))], 1.0, 50
    )
    assert (found[0].video, found[0].start_s) == ("long.mp4", pytest.approx(20.0, abs=1e-6))
    assert found[0].score == pytest.approx(1.0, abs=1e-3)
    assert not any(
        moment.video == "slow.mp4" and moment.start_s <= 12.0 < moment.stop_s for moment in found
    )
    assert {"slow.mp4"} & {moment.video for moment in found}
