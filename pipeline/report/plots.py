"""Plots of scores: with their intervals, and over what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

ROWS = 30
"""Settings in the interval plot."""
LETTER = 0.016
"""Width of a letter of a name, in widths of the plot."""
LABELS = 8
"""Names written into a Pareto plot."""
DENSE_FROM = 16
"""Settings from which rows of the interval plot are close."""
OFFSET = 0.18
"""Between the forms of one setting, in rows."""


def intervals(data: ReportData, width_inches: float) -> Figure:
    """Scores with their intervals, best first, against the reference and the trivial answer."""
    colours, ranked = colours_of(data), data.ranked()
    wanted = {point.reference for point in ranked[:ROWS]}
    shown = ranked[:ROWS] + [point for point in ranked[ROWS:] if point.name in wanted]
    many = len(data.references) > 1
    forms = list(dict.fromkeys(form for point in shown for form in point.intervals))
    row_inches = (0.2 if len(shown) < DENSE_FROM else 0.14) + (
        0.1 if len(shown) < DENSE_FROM else 0.06
    ) * len(forms)
    figure, axes = panel(width_inches, 0.9 + row_inches * len(shown))
    for row, point in enumerate(shown):
        for place, form in enumerate(forms):
            if form in point.intervals:
                found = point.intervals[form]
                y = row + OFFSET * (2 * place - len(forms) + 1)
                text = (
                    f"{point.name}, {form}: {found.score:.3f} ({found.low:.3f} .. {found.high:.3f})"
                )
                colour = colours[point.name]
                axes.plot([found.low, found.high], [y, y], color=colour, linewidth=4, alpha=0.3)
                face = colour if place == 0 else COLOURS["paper"]
                shape = "D" if many and point.name in data.references else "o"
                (dot,) = axes.plot(
                    found.score,
                    y,
                    shape,
                    markersize=6,
                    color=colour,
                    markerfacecolor=face,
                    markeredgewidth=1.5,
                )
                named(dot, text)
    for place, form in enumerate(forms if len(forms) > 1 else []):
        face = COLOURS["muted"] if place == 0 else COLOURS["paper"]
        axes.plot(
            [],
            [],
            "o",
            color=COLOURS["muted"],
            markerfacecolor=face,
            markeredgewidth=1.5,
            label=form,
        )
    if many:
        axes.plot([], [], "D", color=COLOURS["muted"], markeredgewidth=1.5, label="a reference")
    for referred in (
        point for point in shown if [point.name] == data.references and len(shown) > 1
    ):
        score = referred.intervals[data.form].score
        axes.axvline(
            score,
            color=COLOURS["muted"],
            linewidth=1,
            linestyle="--",
            label=f"reference, {data.form}",
        )
    trivial = {data.trivial(point) for point in shown}
    if len(trivial) == 1:  # else they were scored on other clips
        axes.axvline(
            *trivial, color=COLOURS["muted"], linewidth=1, linestyle=":", label="trivial answer"
        )
    axes.set_yticks(
        range(len(shown)),
        shortened([point.name for point in shown], int(4 * width_inches)),
        color=COLOURS["ink"],
    )
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(score_view(shown, forms, *trivial))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(score_label(data))
    legend(figure, axes)
    return figure


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
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = colours_of(data)
    prices = [x for _, x in points]
    scores = [point.intervals[data.form].score for point, _ in points]
    front = []
    for reference in data.references:
        places = [place for place, (point, _) in enumerate(points) if point.reference == reference]
        alike = [prices[place] for place in places], [scores[place] for place in places]
        front += [places[place] for place in front_of(*alike, data.metric.higher_is_better)]
    if (
        len(data.references) == 1
    ):  # what has other references was scored on other clips, or is another question
        corners = sorted((prices[place], scores[place]) for place in front)
        axes.step(
            *zip(*corners, strict=True),
            where="post",
            color=COLOURS["muted"],
            linewidth=1.2,
            zorder=1.5,
        )
    named_places = (front if len(points) > LABELS else list(range(len(points))))[:LABELS]
    if min(prices) > 0:
        axes.set_xscale("log")
    for place, (point, x) in enumerate(points):
        colour, found = colours[point.name], point.intervals[data.form]
        axes.plot([x, x], [found.low, found.high], color=colour, linewidth=1.2, alpha=0.45)
        face = colour if place in front else COLOURS["paper"]
        (dot,) = axes.plot(
            x,
            found.score,
            "o",
            color=colour,
            markersize=7,
            markerfacecolor=face,
            markeredgewidth=1.5,
        )
        named(dot, f"{point.name}: {found.score:.3f} at {scaled_text(x)}")
    axes.margins(x=0.12)
    axes.set_ylim(score_view([point for point, _ in points], [data.form]))
    _number_ticks(axes)
    _write_names(
        axes, [(points[place][0].name, prices[place], scores[place]) for place in named_places]
    )
    axes.set(xlabel=label, ylabel=f"{score_label(data)}, {data.form}")
    return figure


def _write_names(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """The name beside each point, unless another name is there already."""
    written: list[tuple[float, float, float]] = []
    for name, x, y in points:
        text = shortened([name], 26)[0]
        right, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        begin = right - LETTER * len(text) if right > 0.5 else right
        end = begin + LETTER * len(text)
        if all(
            begin > other_end or end < other or abs(up - height) > 0.06
            for other, other_end, height in written
        ):
            written.append((begin, end, up))
            where, side = ((-7, 6), "right") if right > 0.5 else ((7, 6), "left")
            axes.annotate(text, (x, y), where, textcoords="offset points", fontsize=8.5, ha=side)


def front_of(costs: Sequence[float], scores: Sequence[float], higher_is_better: bool) -> list[int]:
    """Places of the points than which no other is at least as cheap and as good, and one of both
    more; best score first."""
    gain = np.array(scores) * (1 if higher_is_better else -1)
    price = np.array(costs)
    beaten = (
        (price[:, None] >= price)
        & (gain[:, None] <= gain)
        & ((price[:, None] > price) | (gain[:, None] < gain))
    )
    free = np.flatnonzero(~beaten.any(axis=1))
    return sorted(free.tolist(), key=lambda place: -gain[place])


def score_view(
    points: Sequence[PointSummary], forms: Sequence[str], *others: float
) -> tuple[float, float]:
    found = [point.intervals[form] for point in points for form in forms if form in point.intervals]
    return view([*others, *(each.score for each in found)], found)


def _number_ticks(axes: Axes) -> None:
    """1.2 M instead of 1.2 x 10^6; on a narrow logarithmic range too, where the axis alone would
    name one number."""
    low, high = axes.get_xlim()
    if axes.get_xscale() == "log" and high / low < 30:
        steps = (1, 2, 5) if high / low > 5 else (1, 1.5, 2, 3, 4, 5, 7)
        ticks = [base * 10.0**power for power in range(-9, 16) for base in steps]
        axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(lambda value, _: scaled_text(value))
    axes.xaxis.set_minor_locator(NullLocator())


def score_label(data: ReportData) -> str:
    metric = data.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.name}{unit}" + ("" if metric.higher_is_better else ", lower is better")
