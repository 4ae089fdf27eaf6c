"""Settings of a sweep side by side: scores with intervals over seeds and videos, gains over a reference, and what they cost."""

from __future__ import annotations

from typing import Any

from pipeline.costs import Cost
from pipeline.evaluate import Interval, MetricFacts
from pipeline.plugins import Settings


class Comparison(Settings):
    """Against the reference setting, on the same clips."""

    gain: Interval
    """Paired; positive is better, whatever the metric's direction."""
    p: float
    """Two-sided."""
    p_adjusted: float
    """Holm over all settings that are compared."""
    wins: int
    """Clips."""
    ties: int
    losses: int


class SettingSummary(Settings):
    """One point of the grid with all its seeds."""

    name: str
    values: dict[str, Any]
    """axis -> value, seeds left out."""
    runs: tuple[str, ...]
    """Names of the members, by seed."""
    failed: dict[str, str]
    """Member -> why it was stopped."""
    scores: dict[str, tuple[float, ...]]
    """form -> score of the first metric of each seed that was scored; no forms where none was."""
    intervals: dict[str, Interval]
    """form -> mean and 95 % interval over seeds and videos."""
    comparisons: dict[str, Comparison]
    """form -> against the reference; empty for the reference itself and where either has no score."""
    metrics: dict[str, dict[str, float]]
    """form -> every metric's mean over seeds."""
    cost: Cost
    training_s: float | None
    """Own share of the time, mean over seeds; None where no seed finished."""
    pareto: dict[str, bool]
    """form -> whether no other setting is at least as good and cheaper in FLOPs."""


class Summary(Settings):
    """summary.json of a sweep."""

    name: str
    split: str
    task: str
    metric: MetricFacts
    """The first, which counts."""
    reference: str
    """Name of a setting."""
    trivial: float
    """What the trivial answer scores."""
    axes: dict[str, list[Any]]
    settings: tuple[SettingSummary, ...]
