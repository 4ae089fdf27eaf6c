"""Learning curves: the loss of every setting over its steps, and the scores measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from pipeline.experiments.summary import PointSummary
from pipeline.report.source import ReportData
from pipeline.report.style import COLOURS, HALF_INCHES, colours_of, legend, named, panel
from pipeline.train.run import read_metrics

POINTS = 120
"""Of a curve."""
SMOOTHED = 40
"""Parts of a run: the loss is averaged over the steps of each."""
SMALL_FROM = 20
"""Settings from which lines are thin."""

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""


def learning(data: ReportData) -> dict[str, Figure]:
    """`loss` and `validation`; nothing where no run has metrics."""
    losses: dict[str, list[Curve]] = {}
    scores: dict[str, list[Curve]] = {}
    for point in data.summary.settings:
        for name in data.scored_runs(point):
            lines = read_metrics(data.runs[name].path)
            if len(lines) > 1:
                losses.setdefault(point.name, []).append(
                    _smooth([(line["step"], line["loss"]) for line in lines])
                )
            scored = [
                (line["step"], line["val"][data.form])
                for line in lines
                if data.form in line.get("val", ())
            ]
            if scored:
                steps, values = zip(*scored, strict=True)
                scores.setdefault(point.name, []).append((np.array(steps), np.array(values)))
    figures = {}
    if losses:
        figures["loss"] = _drawn(data, losses, "training loss", marker="")
    if scores:
        label = f"{data.metric.name} on val, {data.form}"
        figures["validation"] = _drawn(data, scores, label, marker="o")
    return figures


def _smooth(points: Sequence[tuple[int, float]]) -> Curve:
    steps, values = np.array(points, float).T
    wide = max(1, len(values) // SMOOTHED)
    return steps[wide - 1 :], np.convolve(values, np.ones(wide) / wide, "valid")


def mean_and_band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all curves cover, the mean over curves there, and their smallest and largest
    value."""
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    known = np.unique(np.concatenate([steps for steps, _ in curves]))
    known = known[(known >= first) & (known <= last)]
    if len(known) > POINTS:
        known = np.linspace(first, last, POINTS)
    values = np.stack([np.interp(known, steps, found) for steps, found in curves])
    return known, values.mean(0), values.min(0), values.max(0)


def _drawn(data: ReportData, curves: Mapping[str, list[Curve]], label: str, marker: str) -> Figure:
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = colours_of(data)
    thin = len(curves) > SMALL_FROM

    def grey_first(point: PointSummary) -> bool:
        return colours[point.name] != COLOURS["rest"]

    for point in sorted(data.summary.settings, key=grey_first):
        if point.name not in curves:
            continue
        colour = colours[point.name]
        is_grey = colour == COLOURS["rest"]
        steps, mean, low, high = mean_and_band(curves[point.name])
        name = None if is_grey else point.name
        width = 0.7 if is_grey else 1.3 if thin else 1.8
        (line,) = axes.plot(
            steps, mean, marker=marker, markersize=3, color=colour, linewidth=width, label=name
        )
        named(line, point.name)
        if len(curves[point.name]) > 1 and not is_grey:
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    if any(colours[name] == COLOURS["rest"] for name in curves):
        axes.plot([], [], color=COLOURS["rest"], label="all others")
    axes.set(xlabel="step", ylabel=label)
    legend(figure, axes)
    return figure
