"""The moments that queries find.

A frame's score is the cosine of its embedding and the query's, less the mean cosine with what is
not wanted; a moment's score is the mean over its frames. All frames are compared, exactly: a
million of 512 numbers takes less than a second, and the mean over a moment needs every one of its
frames, which an approximate index of nearest neighbours does not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.search.queries import ExampleFrame, Query
from pipeline.train.language.frame_index import SLACK_S, FrameIndex

BLOCK_FRAMES = 512
"""Frames that are compared at a time: as float32 they stay in a core's own memory."""
FIRST_CANDIDATES = 64
"""Moments that are looked at for each that is wanted: more, where they overlap."""


@dataclass(frozen=True)
class Moment:
    """A stretch of a video that was found. Seconds are after the first frame of the video."""

    video: str
    start_s: float
    stop_s: float
    best_s: float
    """When its best frame is."""
    score: float


def frame_scores(index: FrameIndex, queries: Sequence[Query]) -> np.ndarray:
    """(F, Q) float32: the score of every frame."""
    vectors_DQ = torch.stack([query.vector_D for query in queries], 1)
    frames, width = index.embeddings_FD.shape
    scores_FQ = torch.empty(frames, len(queries))
    block_BD = torch.empty(BLOCK_FRAMES, width)
    for start in range(0, frames, BLOCK_FRAMES):
        stored_BD = index.embeddings_FD[start : start + BLOCK_FRAMES]
        whole_BD = block_BD[: len(stored_BD)].copy_(stored_BD)
        torch.mm(whole_BD, vectors_DQ, out=scores_FQ[start : start + BLOCK_FRAMES])
    return scores_FQ.numpy()


@dataclass(frozen=True)
class MomentWindows:
    """A moment for each frame that one can begin with."""

    first_M: np.ndarray
    """int64: its first frame."""
    stop_M: np.ndarray
    """int64: the frame after its last one."""
    stop_s_M: np.ndarray
    """Seconds after the first frame of its video when it ends."""


def windows_of(index: FrameIndex, seconds: float) -> MomentWindows:
    """Every moment of that length that lies within its video; one moment of a video that is
    shorter."""
    starts_V, stops_V = index.starts_V[:-1], index.starts_V[1:]
    last_s_V = index.after_s_F[stops_V - 1]
    first_s_V = index.after_s_F[starts_V]
    shown_s_V = (last_s_V - first_s_V) / np.maximum(1, stops_V - starts_V - 1)
    end_s_V = last_s_V + (shown_s_V if index.frame_s is None else index.frame_s)
    # One axis for all videos, each of which has a stretch of its own.
    offset_F = index.video_of_frame * (float(end_s_V.max()) + seconds + 1)
    axis_F = index.after_s_F + offset_F
    stop_F = np.searchsorted(axis_F, axis_F + seconds - SLACK_S)
    end_s_F = end_s_V[index.video_of_frame]
    fits_F = index.after_s_F + seconds <= end_s_F + SLACK_S
    fits_F[starts_V] = True
    first_M = np.flatnonzero(fits_F)
    stop_s_M = np.minimum(index.after_s_F[first_M] + seconds, end_s_F[first_M])
    return MomentWindows(first_M, stop_F[first_M], stop_s_M)


def best_moments(
    index: FrameIndex, queries: Sequence[Query], seconds: float, top: int
) -> list[list[Moment]]:
    """The `top` best moments for each query, best first, of which no two overlap. `seconds` is how
    long a moment is."""
    windows, scores_FQ = windows_of(index, seconds), frame_scores(index, queries)
    found = []
    for number, query in enumerate(queries):
        score_F = np.ascontiguousarray(scores_FQ[:, number])
        sum_F = np.concatenate([[0.0], np.cumsum(score_F, dtype=np.float64)])
        length_M = windows.stop_M - windows.first_M
        score_M = (sum_F[windows.stop_M] - sum_F[windows.first_M]) / length_M
        found.append(
            [
                _moment(index, windows, score_F, float(score_M[place]), place)
                for place in _apart(index, windows, score_M, top, query.example)
            ]
        )
    return found


def _moment(
    index: FrameIndex, windows: MomentWindows, score_F: np.ndarray, score: float, place: int
) -> Moment:
    first, stop = int(windows.first_M[place]), int(windows.stop_M[place])
    best = first + int(score_F[first:stop].argmax())
    return Moment(
        index.videos[index.video_of_frame[first]],
        float(index.after_s_F[first]),
        float(windows.stop_s_M[place]),
        float(index.after_s_F[best]),
        score,
    )


def _apart(
    index: FrameIndex,
    windows: MomentWindows,
    score_M: np.ndarray,
    top: int,
    example: ExampleFrame | None,
) -> list[int]:
    """The best windows of which no two overlap, best first, and none holds the example."""
    count = min(len(score_M), FIRST_CANDIDATES * top)
    while True:
        best = np.argpartition(-score_M, count - 1)[:count]
        best = best[np.lexsort((best, -score_M[best]))]
        taken: dict[str, list[tuple[float, float]]] = {}
        if example is not None:
            taken[example.video] = [(example.after_s, example.after_s + SLACK_S)]
        places: list[int] = []
        for place in map(int, best):
            first = int(windows.first_M[place])
            video = index.videos[index.video_of_frame[first]]
            start_s, stop_s = float(index.after_s_F[first]), float(windows.stop_s_M[place])
            others = taken.setdefault(video, [])
            if any(start_s < stop and start < stop_s for start, stop in others):
                continue
            # A little shorter: one moment may begin where another ends.
            others.append((start_s + SLACK_S, stop_s - SLACK_S))
            places.append(place)
            if len(places) == top:
                return places
        if count == len(score_M):
            return places
        count = min(len(score_M), 4 * count)
