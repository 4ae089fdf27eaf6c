"""Ranks of videos and texts against a reference that sorts every list in all of its orders."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from pipeline.models.tasks.matching import ranks as module
from pipeline.models.tasks.matching.ranks import ranks

TOPS = (1, 2, 5)


def unit(rng: np.random.Generator, *shape: int, few: bool) -> np.ndarray:
    """Vectors of unit length; of a `few` kinds, so that many score the same."""
    drawn = rng.integers(-1, 2, shape).astype(float) if few else rng.normal(size=shape)
    drawn[(drawn == 0).all(-1), 0] = 1
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def score_of(text_E: np.ndarray, video: np.ndarray, query_scale: float) -> float:
    """Of one text and one video, whose frames are weighted where there are several."""
    if video.ndim == 1:
        return float(text_E @ video)
    weights_T = np.exp(query_scale * (video @ text_E))
    pooled_E = (weights_T[:, None] * video).sum(0)
    return float(text_E @ pooled_E / np.linalg.norm(pooled_E))


def place_of(right: list[float], wrong: list[float]) -> tuple[float, dict[int, float]]:
    """Rank and recalls of the first right one, each the mean over all orders of what scores the
    same as the best of them."""
    best = max(right)
    above = sum(score > best + 1e-6 for score in wrong)
    tied = [sum(abs(score - best) <= 1e-6 for score in scores) for scores in (right, wrong)]
    places = [above + min(chosen) for chosen in combinations(range(sum(tied)), tied[0])]
    recalls = {top: float(np.mean([place < top for place in places])) for top in TOPS}
    return float(np.mean([place + 1 for place in places])), recalls


def reference(
    text_VKE: np.ndarray, is_text_VK: np.ndarray, video: np.ndarray, dual: float | None
) -> tuple[dict[tuple[int, int], Any], dict[int, Any]]:
    """(video, its text) -> the place of the video; video -> the place of the best of its texts."""
    own = [(int(v), int(k)) for v, k in np.argwhere(is_text_VK)]
    videos = range(len(video))
    score = {
        (pair, v): score_of(text_VKE[pair], video[v], 10.0) for pair, v in product(own, videos)
    }
    for_videos, for_texts = dict(score), dict(score)
    if dual is not None:
        for v in videos:  # over all texts
            total = sum(np.exp(dual * score[pair, v]) for pair in own)
            for pair in own:
                for_videos[pair, v] = score[pair, v] * np.exp(dual * score[pair, v]) / total
        for pair in own:  # over all videos
            total = sum(np.exp(dual * score[pair, v]) for v in videos)
            for v in videos:
                for_texts[pair, v] = score[pair, v] * np.exp(dual * score[pair, v]) / total
    of_videos = {
        pair: place_of(
            [for_videos[pair, pair[0]]], [for_videos[pair, v] for v in videos if v != pair[0]]
        )
        for pair in own
    }
    of_texts = {
        v: place_of(
            [for_texts[pair, v] for pair in own if pair[0] == v],
            [for_texts[pair, v] for pair in own if pair[0] != v],
        )
        for v in videos
        if is_text_VK[v].any()
    }
    return of_videos, of_texts


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("dual", [None, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_sorted_lists(
    few: bool, frames: int | None, dual: float | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ties, several texts of a video and none, and blocks that end in the middle of them."""
    monkeypatch.setattr(module, "BLOCK_TEXTS", 4)
    rng = np.random.default_rng(seed)
    videos, width = 7, 2 if few else 5
    text_VKE = unit(rng, videos, 3, width, few=few)
    is_text_VK = rng.random((videos, 3)) < 0.6
    is_text_VK[0] = [False, False, False]
    is_text_VK[1] = [True, True, True]
    video = unit(rng, videos, *([] if frames is None else [frames]), width, few=few)
    video[2], text_VKE[2, 0] = video[1], text_VKE[1, 0]  # twins
    found = ranks(text_VKE, is_text_VK, video, dual_softmax=dual)
    of_videos, of_texts = reference(text_VKE, is_text_VK, video, dual)
    for pair, (rank, recalls) in of_videos.items():
        assert found.videos_VK.rank[pair] == pytest.approx(rank)
        assert {top: found.videos_VK.recall(top)[pair] for top in TOPS} == pytest.approx(recalls)
    for v, (rank, recalls) in of_texts.items():
        assert found.texts_V.rank[v] == pytest.approx(rank)
        assert {top: found.texts_V.recall(top)[v] for top in TOPS} == pytest.approx(recalls)


def test_vectors_that_are_all_the_same_are_at_chance() -> None:
    """Where ties counted as hits, they would be perfect."""
    text_VKE = np.tile(np.array([0.6, 0.8]), (10, 1, 1))
    found = ranks(text_VKE, np.ones((10, 1), bool), text_VKE[:, 0])
    for place in (found.videos_VK, found.texts_V):
        assert place.rank.ravel().tolist() == [5.5] * 10
        assert place.recall(1).ravel() == pytest.approx([0.1] * 10)
        assert place.recall(5).ravel() == pytest.approx([0.5] * 10)


def test_a_video_without_a_vector_is_never_found_and_is_in_nobodys_way() -> None:
    text_VKE = np.eye(4)[:, None]
    video = np.eye(4)
    video[2] = np.nan
    found = ranks(text_VKE, np.ones((4, 1), bool), video)
    assert np.isnan(found.videos_VK.rank[:, 0]).tolist() == [False, False, True, False]
    assert found.videos_VK.recall(5)[:, 0].tolist() == [1, 1, 0, 1]
    assert found.videos_VK.rank[[0, 1, 3], 0].tolist() == [1, 1, 1]
    assert found.texts_V.recall(5).tolist() == [1, 1, 0, 1]
