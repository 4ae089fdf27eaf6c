"""How well texts find their videos and videos their texts, among all of a split.

What scores the same cannot be told apart: the right one is then as likely to come first as any of
them. Its rank is 1, plus the number of others that score higher, plus half of those that score the
same; of a recall it counts the share of orders in which it is hit, so that vectors that are all the
same are at chance. A video has several texts in some data sets: each of them is asked for, and a
video finds its texts by the best of them (as in CLIP4Clip, arXiv 2104.08860).

Shape letters: V videos, K the most texts of one, E the width of the space, N all texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

TIE = 1e-6
"""Cosines that differ by less are the same: that of equal vectors depends on how a product of
matrices is cut."""
BLOCK_TEXTS = 2048
"""Texts that are compared with all videos at a time."""


class Place(NamedTuple):
    """Where the first right one comes, of all that there are; NaN where it has no score."""

    above: np.ndarray
    """How many wrong ones score higher."""
    same: np.ndarray
    """How many wrong ones score the same."""
    right: np.ndarray
    """How many right ones have that score, at least one."""

    @property
    def rank(self) -> np.ndarray:
        """From 1 on, on average over all orders of what scores the same."""
        rank: np.ndarray = 1 + self.above + self.same / (1 + self.right)
        return rank

    def recall(self, top: int) -> np.ndarray:
        """Share of all orders of what scores the same in which one is among the first `top`; 0
        where it has no score."""
        missed = np.ones(self.above.shape)
        for place in range(top):
            # Of those that score the same, none was right so far: the next one may be.
            before = place - self.above
            is_open = (before >= 0) & (before <= self.same)
            left = np.where(is_open, self.same - before, 0)
            missed = np.where(is_open, missed * left / np.maximum(left + self.right, 1), missed)
        return np.where(np.isnan(self.above), 0.0, 1 - missed)


class Places(NamedTuple):
    """What texts and videos have found."""

    videos_VK: Place
    """For each text, its video among all; of no meaning where there is no text."""
    texts_V: Place
    """For each video, the best of its texts among all that are not its own."""


class Scorer:
    """Scores of texts and videos, block by block."""

    def __init__(self, text_NE: np.ndarray, video: np.ndarray, query_scale: float) -> None:
        """`video`: vectors (V, E) of unit length; or those of their frames, (V, T, E), which are
        then weighted for every text by softmax(`query_scale` * cosine) over the frames (query
        scoring, arXiv 2205.08508)."""
        self._text_NE, self._video = text_NE.astype(np.float64), video.astype(np.float64)
        self._scale = query_scale

    def __call__(self, block: slice) -> np.ndarray:
        """(N of the block, V) cosines."""
        text_NE = self._text_NE[block]
        if self._video.ndim == 2:
            return np.asarray(text_NE @ self._video.T)
        scores_NV = np.empty((len(text_NE), len(self._video)))
        for number, frame_TE in enumerate(self._video):
            cosine_NT = text_NE @ frame_TE.T
            weight_NT = np.exp(self._scale * (cosine_NT - cosine_NT.max(1, keepdims=True)))
            weight_NT /= weight_NT.sum(1, keepdims=True)
            # The norm of the weighted mean of frames: a quadratic form of their products.
            norm_N = np.sqrt(
                np.einsum("nt,tu,nu->n", weight_NT, frame_TE @ frame_TE.T, weight_NT).clip(1e-24)
            )
            scores_NV[:, number] = (weight_NT * cosine_NT).sum(1) / norm_N
        return scores_NV


def ranks(
    text_VKE: np.ndarray,
    is_text_VK: np.ndarray,
    video: np.ndarray,
    query_scale: float = 10.0,
    dual_softmax: float | None = None,
    groups_N: np.ndarray | None = None,
) -> Places:
    """Places of all texts and videos; `video` (V, E), or (V, T, E) for query scoring, see `Scorer`.

    `dual_softmax`: the scale of a softmax over all texts that every score is multiplied by (arXiv
    2109.04290), for the ranks of videos; and over all videos for those of texts. It looks at the
    whole split, so that scores are no longer those of one query. `groups_N`: texts of one number
    are the same, and of videos that have it the first one counts; None: no two are.
    """
    of_video_N, text_NE = np.nonzero(is_text_VK)[0], text_VKE[is_text_VK]
    score, videos = Scorer(text_NE, video, query_scale), len(video)
    of_text_N = np.arange(len(text_NE)) if groups_N is None else groups_N

    def is_right(block: slice) -> np.ndarray:
        """(N of the block, V): which videos have a text."""
        numbers, rows = np.unique(of_text_N[block], return_inverse=True)
        has_it_N = np.isin(of_text_N, numbers)
        right_GV = np.zeros((len(numbers), videos), bool)
        right_GV[np.searchsorted(numbers, of_text_N[has_it_N]), of_video_N[has_it_N]] = True
        right_NV: np.ndarray = right_GV[rows]
        return right_NV

    best_own_V = np.full(videos, -np.inf)
    for block, _, for_texts_NV in _passes(score, len(text_NE), dual_softmax):
        own_NV = np.where(is_right(block), for_texts_NV, -np.inf)
        best_own_V = np.maximum(best_own_V, own_NV.max(0))
    of_videos_3N, of_texts_3V = np.zeros((3, len(text_NE))), np.zeros((3, videos))
    for block, for_videos_NV, for_texts_NV in _passes(score, len(text_NE), dual_softmax):
        is_right_NV = is_right(block)
        right_N1 = np.where(is_right_NV, for_videos_NV, -np.inf).max(1, keepdims=True)
        of_videos_3N[:, block] = _compared(for_videos_NV, right_N1, is_right_NV).sum(2)
        of_texts_3V += _compared(for_texts_NV, best_own_V, is_right_NV).sum(1)
    of_videos_3VK = np.zeros((3, *is_text_VK.shape))
    of_videos_3VK[:, is_text_VK] = of_videos_3N
    return Places(Place(*of_videos_3VK), Place(*of_texts_3V))


def _compared(scores_NV: np.ndarray, right: np.ndarray, is_right_NV: np.ndarray) -> np.ndarray:
    """(3, N, V): 1 where something wrong scores higher than what is right, where it scores the
    same, and where something right does; NaN where what is right has no score."""
    is_same_NV = np.abs(scores_NV - right) <= TIE
    counted_3NV = np.stack(
        [
            (scores_NV > right + TIE) & ~is_right_NV,
            is_same_NV & ~is_right_NV,
            is_same_NV & is_right_NV,
        ]
    )
    return np.where(np.isnan(right), np.nan, counted_3NV)


def _passes(
    score: Scorer, texts: int, dual_softmax: float | None
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks of texts with their scores (N, V), those that videos are ranked by, then those that
    texts are."""
    blocks = [slice(start, start + BLOCK_TEXTS) for start in range(0, texts, BLOCK_TEXTS)]
    if dual_softmax is None:
        for block in blocks:
            scores_NV = score(block)
            yield block, scores_NV, scores_NV
        return
    whole_NV = np.concatenate([score(block) for block in blocks])
    yield (
        slice(0, texts),
        _sharpened(whole_NV, dual_softmax, axis=0),
        _sharpened(whole_NV, dual_softmax, axis=1),
    )


def _sharpened(scores_NV: np.ndarray, scale: float, axis: int) -> np.ndarray:
    """Scores times their softmax over one axis."""
    prior_NV = np.exp(scale * (scores_NV - scores_NV.max(axis, keepdims=True)))
    sharpened: np.ndarray = scores_NV * prior_NV / prior_NV.sum(axis, keepdims=True)
    return sharpened
