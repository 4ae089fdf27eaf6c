"""Which frames of a window tell of which: pairs of a frame and a later one, so many seconds ahead.

A frame that stands for what lies past the end of a clip, and one that repeats the frame before it,
is nobody's future. Nothing is said across a camera cut: there tokens jump, by much more than they
move in the rest of the window, and nearly as far as tokens are apart that have nothing to do with
each other.

Shape letters: B batch, T frames of a window, M pairs, P patches, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.datasets.manifest.targets import Arrays

CUT_STEPS = 4.0
"""How many times the window's median step a step over a cut has at least."""
CUT_SHARE = 0.5
"""Least part of the distance of unrelated tokens that a step over a cut has."""


def step_of(seen_s_T: np.ndarray) -> float:
    """Seconds from one frame to the next, as a rule; 0 where a window holds one frame alone."""
    steps_s = np.diff(seen_s_T)
    moved_s = steps_s[steps_s > 0]
    return float(np.median(moved_s)) if len(moved_s) else 0.0


def future_of(seen_s_T: np.ndarray, ahead_s: float) -> tuple[np.ndarray, np.ndarray]:
    """(T,) each: the frame nearest to `ahead_s` seconds after every frame, and whether there is
    one: later, first shown at its time, and no farther from it than half a step."""
    step_s, wanted_s_T = step_of(seen_s_T), seen_s_T + ahead_s
    later = np.searchsorted(seen_s_T, wanted_s_T).clip(1, max(1, len(seen_s_T) - 1))
    later = np.minimum(later, len(seen_s_T) - 1)
    before = np.maximum(later - 1, 0)
    is_before = wanted_s_T - seen_s_T[before] <= seen_s_T[later] - wanted_s_T
    to_T = np.where(is_before, before, later)
    near = np.abs(seen_s_T[to_T] - wanted_s_T) <= 0.5 * step_s + 1e-6
    is_new = np.diff(seen_s_T, prepend=-1.0) > 0
    to_T = np.maximum.accumulate(np.where(is_new, np.arange(len(seen_s_T)), 0))[to_T]
    return to_T, near & is_new & (seen_s_T[to_T] > seen_s_T)


def most_steps_ahead(frames: int) -> int:
    """The most frames that lie between one that tells and one that is told in a window of so many:
    nothing is scored that its first quarter tells, where a state knows little yet."""
    return frames - frames // 4 - 1


def scored_futures(seen_s_T: np.ndarray, ahead_s: float) -> tuple[np.ndarray, np.ndarray]:
    """As `future_of`, of the frames behind the first quarter of the window alone: before that a
    state knows little yet."""
    to_T, has_T = future_of(seen_s_T, ahead_s)
    has_T[: len(has_T) // 4] = False
    return to_T, has_T


def told_from(seen_s_T: np.ndarray, ahead_s: float) -> np.ndarray:
    """(T,) int64: the frame that tells of every frame, `ahead_s` seconds before it, as
    `scored_futures` pairs them; -1 where none does. Where two tell of one, the later one counts."""
    to_T, has_T = scored_futures(seen_s_T, ahead_s)
    from_T, frames = np.full(len(seen_s_T), -1, np.int64), np.flatnonzero(has_T)
    from_T[to_T[frames]] = frames
    return from_T


def scored_pairs(seen_s_T: np.ndarray, ahead_s_K: Sequence[float], each: int) -> Arrays:
    """`each` pairs of every one of the K horizons, spread evenly over `scored_futures`.

    `horizon` (M,) int64 is the place of a pair's horizon in `ahead_s_K`, of which 0 is the next
    frame; beside it `from` and `to` (M,) int64, `ahead_s` (M,) float32, and `paired` (M,) bool.
    """
    parts = []
    for number, ahead_s in enumerate(ahead_s_K):
        to_T, has_T = scored_futures(seen_s_T, ahead_s or step_of(seen_s_T))
        frames = np.flatnonzero(has_T)
        chosen = np.unique(np.linspace(0, len(frames) - 1, each).round().astype(np.int64))
        from_M = frames[chosen] if len(frames) else np.zeros(0, np.int64)
        parts.append(_pairs(seen_s_T, from_M, to_T[from_M], each, number))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def drawn_pairs(
    seen_s_T: np.ndarray, longest_s: float, horizons: int, each: int, rng: np.random.Generator
) -> Arrays:
    """`each` pairs of so many `horizons`, which are drawn evenly in their logarithm between a step
    and `longest_s`; see `scored_pairs`. Every pair that there is has the same chance."""
    parts, step_s = [], step_of(seen_s_T)
    for number in range(horizons):
        share = (number + rng.random()) / horizons
        ahead_s = step_s * (max(1.0, longest_s / step_s) ** share if step_s else 1.0)
        to_T, has_T = future_of(seen_s_T, ahead_s)
        frames = np.flatnonzero(has_T)
        from_M = rng.permutation(frames)[:each]
        parts.append(_pairs(seen_s_T, from_M, to_T[from_M], each, number))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pairs(
    seen_s_T: np.ndarray, from_M: np.ndarray, to_M: np.ndarray, each: int, horizon: int
) -> Arrays:
    """Pairs side by side, with such as are none behind them."""
    behind = (0, each - len(from_M))
    return {
        "from": np.pad(from_M, behind),
        "to": np.pad(to_M, behind),
        "ahead_s": np.pad(seen_s_T[to_M] - seen_s_T[from_M], behind).astype(np.float32),
        "paired": np.pad(np.ones(len(from_M), bool), behind),
        "horizon": np.full(each, horizon, np.int64),
    }


def told(z_BTPD: torch.Tensor, from_BM: torch.Tensor, to_BM: torch.Tensor) -> torch.Tensor:
    """(B, M) bool: whether the tokens of a pair belong together: no camera cut lies between its
    frames, and the later one is no copy of the frame before it. `z_BTPD` are normalised tokens."""
    steps_BTP = torch.zeros(z_BTPD.shape[:3], device=z_BTPD.device)
    for time in range(1, z_BTPD.shape[1]):  # one by one, so that no copy of all tokens is made
        steps_BTP[:, time] = (z_BTPD[:, time] - z_BTPD[:, time - 1]).square().mean(-1)
    # Of half of the patches: a large object alone is no cut.
    steps_BT = steps_BTP.median(-1).values
    unrelated_B1 = 2 * z_BTPD.var(dim=(1, 2), unbiased=False).mean(-1, keepdim=True)
    usual_B1 = steps_BT[:, 1:].median(1, keepdim=True).values
    is_cut_BT = (steps_BT > CUT_STEPS * usual_B1) & (steps_BT > CUT_SHARE * unrelated_B1)
    moved_BT = steps_BTP.any(-1)
    scene_BT = is_cut_BT.cumsum(1)
    one_scene_BM = scene_BT.gather(1, from_BM) == scene_BT.gather(1, to_BM)
    return one_scene_BM & moved_BT.gather(1, to_BM)
