"""How far forecast tokens are from those that came, and what forecasts that learn little know.

Shape letters: B windows, T frames, M pairs of frames, P patches, D their width, K horizons.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.datasets.manifest.targets import TOKENS, Arrays
from pipeline.models.tasks.forecasts.heads import taken
from pipeline.models.tasks.forecasts.pairs import told

EPS = 1e-6
"""Added to variances, as in the norms of encoders."""
KINDS = ("", "cosine ", "raw ", "moving ")
"""Errors of which there is a skill, by what stands before its name: mean square of normalised
tokens, 1 minus their cosine, mean square of tokens as they are, and the first of these over the
quarter of a frame's patches that change most."""
BY_HORIZON = KINDS[:3]
"""Those that are told for every horizon alone, too."""
STILL = len(KINDS)
"""Place behind them of the first error over the quarter of the patches that change least."""


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Tokens (..., D), each with mean 0 and variance 1: few tokens of a large norm would make up
    most of an error otherwise."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def spread(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of tokens (..., D), (..., 1) each, by which `normalised` scales
    them."""
    var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return mean, (var + EPS).sqrt()


def with_normalised(targets: Arrays) -> Arrays:
    """The targets, and what the scores of all answers need of them alone: `z` (B, T, P, D), their
    tokens normalised, and `counted` (B, M) bool, the pairs that belong together."""
    z_BTPD = normalised(torch.from_numpy(targets[TOKENS]))
    frames = (torch.from_numpy(targets[name]) for name in ("from", "to"))
    counted_BM = targets["paired"] & told(z_BTPD, *frames).numpy()
    return targets | {"z": z_BTPD.numpy(), "counted": counted_BM}


def with_copies(targets: Arrays) -> Arrays:
    """What `with_normalised` gives, and beside it of the present tokens `mean` and `deviation`
    (B, M, P, 1), of the places of every pair `by_change` (B, M, P), from those that change most to
    those that change least, and the errors of `copies` (B, KINDS + 1, M) float64."""
    z_BTPD = torch.from_numpy(targets["z"])
    present, future = (taken(z_BTPD, torch.from_numpy(targets[name])) for name in ("from", "to"))
    change_BMP = (future - present).square().mean(-1)
    copies_BMPD = copied(targets)
    mean, deviation = spread(copies_BMPD)
    known = targets | {
        "mean": mean.numpy(),
        "deviation": deviation.numpy(),
        "by_change": change_BMP.argsort(-1, descending=True).numpy(),
    }
    return known | {"copies": errors(copies_BMPD, known)}


def errors(forecast_BMPD: torch.Tensor, targets: Arrays) -> np.ndarray:
    """(B, KINDS + 1, M) float64: the errors of forecast tokens; 0 for pairs that are none.

    The targets are those of `with_copies`. A forecast is normalised by the mean and the deviation
    of the present token in its place: as it was made, and not stretched to the length of a token,
    which one that is unsure of what comes does not have.
    """
    to_BM = torch.from_numpy(targets["to"])
    future, z_future = (taken(torch.from_numpy(targets[name]), to_BM) for name in (TOKENS, "z"))
    mean, deviation = (torch.from_numpy(targets[name]) for name in ("mean", "deviation"))
    z_forecast = (forecast_BMPD - mean) / deviation
    square_BMP = (z_forecast - z_future).square().mean(-1)
    apart_BMP = (1 - F.cosine_similarity(z_forecast, z_future, dim=-1)).clamp(min=0)
    raw_BM = (forecast_BMPD - future).square().mean((-2, -1))
    return _by_kind(square_BMP, apart_BMP, raw_BM, targets)


def of_rounding(noise_BTP: torch.Tensor, targets: Arrays) -> np.ndarray:
    """What `errors` is expected to give for tokens as they were before a codec rounded them by so
    much in the mean square.

    Two of a token's D directions are normalised away, its mean and its length; and a small angle
    makes 1 minus its cosine half of its square.
    """
    to_BM, tokens_BTPD = torch.from_numpy(targets["to"]), torch.from_numpy(targets[TOKENS])
    future, noise_BMP = taken(tokens_BTPD, to_BM), taken(noise_BTP, to_BM)
    _, deviation = spread(future)
    square_BMP = noise_BMP / deviation.squeeze(-1).square() * (1 - 2 / future.shape[-1])
    return _by_kind(square_BMP, square_BMP / 2, noise_BMP.mean(-1), targets)


def _by_kind(
    square_BMP: torch.Tensor, apart_BMP: torch.Tensor, raw_BM: torch.Tensor, targets: Arrays
) -> np.ndarray:
    """All kinds of errors, of the mean square of normalised tokens, 1 minus their cosine, and the
    mean square of tokens as they are."""
    by_change = torch.from_numpy(targets["by_change"])
    quarter = max(1, by_change.shape[-1] // 4)
    kinds = [
        square_BMP.mean(-1),
        apart_BMP.mean(-1),
        raw_BM,
        square_BMP.gather(-1, by_change[..., :quarter]).mean(-1),
        square_BMP.gather(-1, by_change[..., -quarter:]).mean(-1),
    ]
    counted_B1M = torch.from_numpy(targets["counted"]).unsqueeze(1)
    return torch.where(counted_B1M, torch.stack(kinds, dim=1).double(), 0).numpy()


def copied(targets: Arrays) -> torch.Tensor:
    """(B, M, P, D): the tokens of the frames that tell, a forecast that nothing moves."""
    return taken(torch.from_numpy(targets[TOKENS]), torch.from_numpy(targets["from"]))


def extrapolated(
    tokens_BTPD: torch.Tensor,
    from_BM: torch.Tensor,
    ahead_s_BM: torch.Tensor,
    step_s_B: torch.Tensor,
) -> torch.Tensor:
    """Every token goes on as it went from the frame before."""
    now, before = taken(tokens_BTPD, from_BM), taken(tokens_BTPD, (from_BM - 1).clamp(min=0))
    steps_BM = ahead_s_BM / step_s_B.clamp(min=1e-9).unsqueeze(1)
    return now + (now - before) * steps_BM[..., None, None]


def mean_so_far(tokens_BTPD: torch.Tensor, from_BM: torch.Tensor) -> torch.Tensor:
    """The mean of a place's tokens up to the frame that tells."""
    sums = tokens_BTPD.cumsum(1)
    return taken(sums, from_BM) / (from_BM + 1)[..., None, None]


def gathered(windows: Iterable[Arrays], horizons: int) -> Arrays:
    """What a forecast without a model may know of the training videos, from windows with
    `scored_pairs`:

    mean (P, D): of normalised tokens, place by place; channel_mean and channel_std (D,): of tokens
    as they are; kept (K,): the share of the way from `mean` to the present token that is nearest to
    what comes, by least squares; change (3, K): mean absolute difference of present and coming
    tokens, normalised, as they are, and in units of channel_std; ahead_s (K,).
    """
    sums: dict[str, np.ndarray] = {}

    def add(name: str, value: torch.Tensor, at: int | None = None) -> None:
        array = value.double().numpy()
        shape = array.shape if at is None else (horizons, *array.shape)
        total = sums.setdefault(name, np.zeros(shape))
        total[... if at is None else at] += array

    for targets in windows:
        tokens_BTPD = torch.from_numpy(targets[TOKENS])
        z_BTPD = normalised(tokens_BTPD)
        add("frames", torch.tensor(tokens_BTPD.shape[0] * tokens_BTPD.shape[1]))
        add("mean", z_BTPD.sum((0, 1)))
        add("channel", tokens_BTPD.mean(2).sum((0, 1)))
        add("square", tokens_BTPD.square().mean(2).sum((0, 1)))
        from_BM, to_BM = (torch.from_numpy(targets[name]) for name in ("from", "to"))
        counted_BM = torch.from_numpy(targets["paired"]) & told(z_BTPD, from_BM, to_BM)
        horizon_BM = torch.from_numpy(targets["horizon"])
        for number in range(horizons):
            batch, pair = torch.nonzero(counted_BM & (horizon_BM == number), as_tuple=True)
            frames = from_BM[batch, pair], to_BM[batch, pair]
            a, b = (z_BTPD[batch, frame] for frame in frames)
            raw = tokens_BTPD[batch, frames[1]] - tokens_BTPD[batch, frames[0]]
            add("pairs", torch.tensor(len(pair)), number)
            add("ahead_s", torch.from_numpy(targets["ahead_s"])[batch, pair].sum(), number)
            add("aa", a.square().sum(), number)
            add("ab", (a * b).sum(), number)
            add("a", a.sum(0), number)
            add("b", b.sum(0), number)
            add("z_change", (b - a).abs().mean((1, 2)).sum(), number)
            add("raw_change", raw.abs().mean(1).sum(0), number)
    return _statistics(sums)


def _statistics(sums: Arrays) -> Arrays:
    """The statistics that the sums of `gathered` amount to."""
    count, pairs_K = max(1.0, float(sums["frames"])), np.maximum(1, sums["pairs"])
    mean_PD = sums["mean"] / count
    channel_mean = sums["channel"] / count
    channel_std = np.sqrt(np.maximum(sums["square"] / count - channel_mean**2, 0) + EPS)
    # Sums of (a - mean)(b - mean) and (a - mean)^2, of what was added up before the mean was known.
    square = sums["pairs"] * np.square(mean_PD).sum()
    a_mean, b_mean = ((sums[name] * mean_PD).sum((1, 2)) for name in ("a", "b"))
    both = sums["ab"] - a_mean - b_mean + square
    own = sums["aa"] - 2 * a_mean + square
    kept_K = np.divide(both, own, out=np.ones_like(own), where=own > 0)
    raw_change = sums["raw_change"] / pairs_K[:, None]
    statistics = {
        "mean": mean_PD,
        "channel_mean": channel_mean,
        "channel_std": channel_std,
        "kept": kept_K,
        "change": np.stack(
            [sums["z_change"] / pairs_K, raw_change.mean(1), (raw_change / channel_std).mean(1)]
        ),
        "ahead_s": sums["ahead_s"] / pairs_K,
    }
    return {name: array.astype(np.float32) for name, array in statistics.items()}


def between(ahead_s: torch.Tensor, ahead_s_K: torch.Tensor, value_K: torch.Tensor) -> torch.Tensor:
    """`value_K` between the horizons at which it is known, linear in the logarithm of the seconds;
    beyond them that of the nearest."""
    known = ahead_s_K > 0
    at_K, value_K = ahead_s_K[known].log(), value_K[known]
    if len(at_K) < 2:
        return torch.ones_like(ahead_s) * (value_K[0] if len(at_K) else 1.0)
    order = at_K.argsort()
    at_K, value_K = at_K[order], value_K[order]
    at = ahead_s.clamp(min=1e-9).log().clamp(at_K[0], at_K[-1])
    upper = torch.searchsorted(at_K, at.contiguous()).clamp(1, len(at_K) - 1)
    share = (at - at_K[upper - 1]) / (at_K[upper] - at_K[upper - 1]).clamp(min=1e-9)
    return value_K[upper - 1].lerp(value_K[upper], share)
