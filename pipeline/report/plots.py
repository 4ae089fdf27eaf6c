"""Plots of scores: with their intervals, over what they cost, and on the way through training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.experiments.summary import PointSummary
from pipeline.models.profile import Cost
from pipeline.report.source import ReportData
from pipeline.report.style import (
    COLOURS,
    HALF_INCHES,
    colours_of,
    legend,
    named,
    panel,
    shortened,
    view,
)
from pipeline.report.tables import scaled_text
from pipeline.train.evaluation import MetricFacts
from pipeline.train.run import read_metrics

ROWS = 30
"""Points of the grid in the interval plot, beside what they are compared with."""
DENSE_FROM = 16
"""Points from which rows of the interval plot are close."""
OFFSET = 0.18
"""Distance between the forms of one point, in rows."""
LETTER = 0.016
"""Width of a letter of a name, in widths of the plot."""
MAX_NAMES = 8
"""Names written into a Pareto plot."""
NAME_LETTERS = 26
"""Letters of such a name; longer ones are shortened."""
NAME_HEIGHT = 0.06
"""Distance from which two names do not touch, in heights of the plot."""
CURVE_STEPS = 120
"""Steps at which several curves are averaged."""
SMOOTHED_PARTS = 40
"""Parts of a run: the loss is averaged over the steps of each."""
PLACED = 6
"""Points in a plot over places."""
DASHES = ("-", "--", ":", "-.")
"""Lines of the first answers without training in such a plot; more are not drawn."""
THIN_FROM = 20
"""Points of the grid from which learning curves are thin."""

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values of one run."""


# Intervals


def intervals(data: ReportData, width_inches: float) -> Figure:
    """Scores with their intervals, best first, against the reference and the trivial answer."""
    ranked = data.ranked()
    references = {point.reference for point in ranked[:ROWS]}
    shown = ranked[:ROWS] + [point for point in ranked[ROWS:] if point.name in references]
    forms = list(dict.fromkeys(form for point in shown for form in point.intervals))
    is_dense = len(shown) >= DENSE_FROM
    row_inches = (0.14 if is_dense else 0.2) + (0.06 if is_dense else 0.1) * len(forms)
    figure, axes = panel(width_inches, 0.9 + row_inches * len(shown))
    for row, point in enumerate(shown):
        _draw_intervals(data, axes, row, point, forms)
    trivial = {data.trivial(point) for point in shown}
    _draw_interval_legend(data, axes, shown, forms, trivial)
    trackers = _trackers(data, shown)
    for name, score in trackers.items() if len(trackers) == 1 else ():
        axes.axvline(score, color=COLOURS["muted"], linewidth=1, linestyle="-.", label=name)
    axes.set_yticks(
        range(len(shown)),
        shortened([point.name for point in shown], int(4 * width_inches)),
        color=COLOURS["ink"],
    )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(score_view(shown, forms, *trivial, *trackers.values()))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(score_label(data))
    legend(figure, axes)
    return figure


def _trackers(data: ReportData, shown: Sequence[PointSummary]) -> dict[str, float]:
    """Name -> score of the best answer from tokens alone beside each point; several names or none
    where points have others."""
    return {
        name: point.baselines[name].interval.score
        for point in shown
        if (name := data.tracker(point)) is not None
    }


def _draw_intervals(
    data: ReportData, axes: Axes, row: int, point: PointSummary, forms: Sequence[str]
) -> None:
    """One row: a bar and a dot for each form in which the point was scored. The first form is
    filled, and a reference among several is a diamond."""
    colour = colours_of(data)[point.name]
    shape = "D" if len(data.references) > 1 and point.name in data.references else "o"
    for index, form in enumerate(forms):
        if form not in point.intervals:
            continue
        interval = point.intervals[form]
        y = row + OFFSET * (2 * index - len(forms) + 1)
        axes.plot(interval.ends, [y, y], color=colour, linewidth=4, alpha=0.3)
        (dot,) = axes.plot(
            interval.score,
            y,
            shape,
            markersize=6,
            color=colour,
            markerfacecolor=colour if index == 0 else COLOURS["paper"],
            markeredgewidth=1.5,
        )
        named(dot, f"{point.name}, {form}: {interval.score:.3f} ({interval.span()})")


def _draw_interval_legend(
    data: ReportData,
    axes: Axes,
    shown: Sequence[PointSummary],
    forms: Sequence[str],
    trivial: set[float],
) -> None:
    """Draws the legend of the signs, and upright lines at the score of the reference, if there is
    one, and at the trivial answer, if it is the same for all."""
    muted = COLOURS["muted"]
    for index, form in enumerate(forms if len(forms) > 1 else []):
        face = muted if index == 0 else COLOURS["paper"]
        axes.plot([], [], "o", color=muted, markerfacecolor=face, markeredgewidth=1.5, label=form)
    if len(data.references) > 1:
        axes.plot([], [], "D", color=muted, markeredgewidth=1.5, label="a reference")
    reference = next((point for point in shown if [point.name] == data.references), None)
    if reference is not None and len(shown) > 1:
        score = reference.intervals[data.form].score
        label = f"reference, {data.form}"
        axes.axvline(score, color=muted, linewidth=1, linestyle="--", label=label)
    if len(trivial) == 1:  # else they were scored on other clips
        axes.axvline(*trivial, color=muted, linewidth=1, linestyle=":", label="trivial answer")


# Costs


def pareto(data: ReportData) -> dict[str, Figure]:
    """Scores over costs, with the front: FLOPs and latency where they are known, else trained
    parameters."""
    costs: dict[str, tuple[str, Callable[[Cost], float | None]]] = {
        "FLOPs": ("FLOPs of one window, trained part", lambda cost: cost.flops),
        "latency": ("latency of a streaming step, ms", lambda cost: cost.latency_ms),
        "parameters": ("trained parameters", lambda cost: cost.parameters),
    }
    figures = {}
    for name in ("FLOPs", "latency") if data.has_costs else ("parameters",):
        label, cost = costs[name]
        points = [
            (point, price) for point in data.ranked() if (price := cost(point.cost)) is not None
        ]
        if len(points) > 1:
            figures[name] = _over_cost(data, label, points)
    return figures


def _over_cost(
    data: ReportData, label: str, points: Sequence[tuple[PointSummary, float]]
) -> Figure:
    """Scores of points over their prices, in which the points of the front are filled."""
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = colours_of(data)
    prices = [price for _, price in points]
    scores = [point.intervals[data.form].score for point, _ in points]
    front = _fronts(data, points)
    # Points of other references were scored on other clips, or answer another question: no line.
    if len(data.references) == 1:
        corners = sorted((prices[index], scores[index]) for index in front)
        axes.step(
            *zip(*corners, strict=True),
            where="post",
            color=COLOURS["muted"],
            linewidth=1.2,
            zorder=1.5,
        )
    if min(prices) > 0:
        axes.set_xscale("log")
    for index, (point, price) in enumerate(points):
        colour, interval = colours[point.name], point.intervals[data.form]
        axes.plot([price, price], interval.ends, color=colour, linewidth=1.2, alpha=0.45)
        (dot,) = axes.plot(
            price,
            interval.score,
            "o",
            color=colour,
            markersize=7,
            markerfacecolor=colour if index in front else COLOURS["paper"],
            markeredgewidth=1.5,
        )
        named(dot, f"{point.name}: {interval.score:.3f} at {scaled_text(price)}")
    axes.margins(x=0.12)
    axes.set_ylim(score_view([point for point, _ in points], [data.form]))
    _number_ticks(axes)
    to_name = (front if len(points) > MAX_NAMES else list(range(len(points))))[:MAX_NAMES]
    _write_names(axes, [(points[index][0].name, prices[index], scores[index]) for index in to_name])
    axes.set(xlabel=label, ylabel=f"{score_label(data)}, {data.form}")
    return figure


def _fronts(data: ReportData, points: Sequence[tuple[PointSummary, float]]) -> list[int]:
    """Indices of the points on the front of those that have the same reference."""
    front = []
    for reference in data.references:
        indices = [i for i, (point, _) in enumerate(points) if point.reference == reference]
        prices = [points[i][1] for i in indices]
        scores = [points[i][0].intervals[data.form].score for i in indices]
        front += [indices[i] for i in front_of(prices, scores, data.metric.higher_is_better)]
    return front


def _write_names(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Writes the name beside each point, unless another name is there already."""
    written: list[tuple[float, float, float]] = []
    for name, x, y in points:
        text = shortened([name], NAME_LETTERS)[0]
        right, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        begin = right - LETTER * len(text) if right > 0.5 else right
        end = begin + LETTER * len(text)
        is_free = all(
            begin > other_end or end < other_begin or abs(up - other_up) > NAME_HEIGHT
            for other_begin, other_end, other_up in written
        )
        if is_free:
            written.append((begin, end, up))
            offset, side = ((-7, 6), "right") if right > 0.5 else ((7, 6), "left")
            axes.annotate(text, (x, y), offset, textcoords="offset points", fontsize=8.5, ha=side)


def front_of(costs: Sequence[float], scores: Sequence[float], higher_is_better: bool) -> list[int]:
    """Indices of the points than which no other is at least as cheap and as good, and cheaper or
    better; best score first."""
    gain_K = np.array(scores) * (1 if higher_is_better else -1)
    cost_K = np.array(costs)
    dominated_KK = (
        (cost_K[:, None] >= cost_K)
        & (gain_K[:, None] <= gain_K)
        & ((cost_K[:, None] > cost_K) | (gain_K[:, None] < gain_K))
    )
    front = np.flatnonzero(~dominated_KK.any(axis=1))
    return sorted(front.tolist(), key=lambda index: -gain_K[index])


def score_view(
    points: Sequence[PointSummary], forms: Sequence[str], *scores: float
) -> tuple[float, float]:
    """Limits of an axis of scores that shows the points with their whole intervals, and `scores`
    beside them: a bar whose end is cut off hides how little is known."""
    intervals = [
        point.intervals[form] for point in points for form in forms if form in point.intervals
    ]
    # A percentile interval need not hold its own score.
    ends = (end for each in intervals for end in (*each.ends, each.score))
    return view([*scores, *ends])


def _number_ticks(axes: Axes) -> None:
    """Labels ticks with 1.2 M instead of 1.2 x 10^6, and places more of them on a narrow
    logarithmic range, where the axis alone would label one."""
    low, high = axes.get_xlim()
    if axes.get_xscale() == "log" and high / low < 30:
        steps = (1, 2, 5) if high / low > 5 else (1, 1.5, 2, 3, 4, 5, 7)
        ticks = [base * 10.0**power for power in range(-9, 16) for base in steps]
        axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(lambda value, _: scaled_text(value))
    axes.xaxis.set_minor_locator(NullLocator())


def score_label(data: ReportData) -> str:
    """The name of the metric, its unit, and its direction where lower is better."""
    metric = data.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.name}{unit}" + ("" if metric.higher_is_better else ", lower is better")


# Places


def over_places(data: ReportData) -> dict[str, Figure]:
    """The metrics that are measured in several places of an axis, such as the skill of a forecast
    over its horizons: one plot for each, `places_<metric>`, of the best points and of the best
    answers without training; nothing where there are none."""
    best = data.ranked()[:PLACED]
    facts = data.evaluations[data.scored_runs(best[0])[0]].metrics
    bases: dict[str, list[MetricFacts]] = {}
    for metric in facts:
        if metric.at:
            bases.setdefault(metric.base, []).append(metric)
    return {
        f"places_{base.replace(' ', '_')}": _over_places(data, best, base, metrics)
        for base, metrics in bases.items()
    }


def _over_places(
    data: ReportData, points: Sequence[PointSummary], base: str, metrics: Sequence[MetricFacts]
) -> Figure:
    figure, axes = panel(HALF_INCHES, 3.7)
    colours, places = colours_of(data), list(range(len(metrics)))
    for point in points:
        scores = [data.evaluations[name].forms[data.form] for name in data.scored_runs(point)]
        ends = np.array([[each[metric.name].ends for metric in metrics] for each in scores])
        means = np.array([[each[metric.name].score for metric in metrics] for each in scores])
        colour = colours[point.name]
        (line,) = axes.plot(places, means.mean(0), color=colour, marker="o", label=point.name)
        named(line, point.name)
        axes.fill_between(places, *ends.mean(0).T, color=colour, alpha=0.15, linewidth=0)
    lowest = min(0.0, axes.get_ylim()[0])
    baselines = data.evaluations[data.scored_runs(points[0])[0]].baselines
    for dashes, (name, each) in zip(DASHES, baselines.items(), strict=False):
        values = [each.metrics[metric.name].score for metric in metrics]
        if max(values) >= lowest:  # one that is far below would leave no room for the others
            axes.plot(places, values, color=COLOURS["rest"], linestyle=dashes, label=name)
    axes.set_ylim(bottom=lowest - 0.05)
    axes.set_xticks(places, [metric.at for metric in metrics])
    axes.set(ylabel=f"{base}, {data.form}")
    legend(figure, axes)
    return figure


# Learning


def learning(data: ReportData) -> dict[str, Figure]:
    """`loss` and `validation` over the steps of training; nothing where no run has metrics."""
    losses: dict[str, list[Curve]] = {}
    scores: dict[str, list[Curve]] = {}
    for point in data.summary.settings:
        for name in data.scored_runs(point):
            lines = read_metrics(data.runs[name].path)
            if len(lines) > 1:
                loss = _running_mean([(line["step"], line["loss"]) for line in lines])
                losses.setdefault(point.name, []).append(loss)
            validations = [
                (line["step"], line["val"][data.form])
                for line in lines
                if data.form in line.get("val", ())
            ]
            if validations:
                steps, values = zip(*validations, strict=True)
                scores.setdefault(point.name, []).append((np.array(steps), np.array(values)))
    figures = {}
    if losses:
        figures["loss"] = _curve_figure(data, losses, "training loss", marker="")
    if scores:
        label = f"{data.metric.name} on val, {data.form}"
        figures["validation"] = _curve_figure(data, scores, label, marker="o")
    return figures


def _running_mean(points: Sequence[tuple[int, float]]) -> Curve:
    """Values averaged over a SMOOTHED_PARTS-th of the run, each at the last step of its window."""
    steps, values = np.array(points, float).T
    width = max(1, len(values) // SMOOTHED_PARTS)
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid")


def mean_and_band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps that all curves cover, the mean over curves there, and their smallest and largest
    value."""
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    if len(steps) > CURVE_STEPS:
        steps = np.linspace(first, last, CURVE_STEPS)
    values = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, values.mean(0), values.min(0), values.max(0)


def _curve_figure(
    data: ReportData, curves: Mapping[str, list[Curve]], label: str, marker: str
) -> Figure:
    """Point -> its curves, as a line of their mean and, where there are several, a band."""
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = colours_of(data)
    has_colour = {name: colours[name] != COLOURS["rest"] for name in curves}
    names = [point.name for point in data.summary.settings if point.name in curves]
    for name in sorted(names, key=lambda name: has_colour[name]):  # grey lines lie below
        steps, mean, low, high = mean_and_band(curves[name])
        width = 0.7 if not has_colour[name] else 1.3 if len(curves) > THIN_FROM else 1.8
        (line,) = axes.plot(
            steps,
            mean,
            marker=marker,
            markersize=3,
            color=colours[name],
            linewidth=width,
            label=name if has_colour[name] else None,
        )
        named(line, name)
        if len(curves[name]) > 1 and has_colour[name]:
            axes.fill_between(steps, low, high, color=colours[name], alpha=0.15, linewidth=0)
    if not all(has_colour.values()):
        axes.plot([], [], color=COLOURS["rest"], label="all others")
    axes.set(xlabel="step", ylabel=label)
    legend(figure, axes)
    return figure
