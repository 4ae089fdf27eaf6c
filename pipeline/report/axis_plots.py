"""Scores along everything that the points of a sweep differ in by a number: its axes, and the
settings that its videos were rendered with.

A curve joins the points that differ along one axis alone. Axes that have the same curves are drawn
side by side on one scale, so that one sees at once along which of them scores fall. Such a sweep is
`motion_factors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput
from pipeline.experiments.summary import PointSummary
from pipeline.experiments.sweep_spec import CACHE, GIVEN, INIT, init_name
from pipeline.report.plots import score_label, score_view
from pipeline.report.source import ReportData, cache_of
from pipeline.report.style import (
    COLOURS,
    FULL_INCHES,
    HALF_INCHES,
    SERIES,
    legend,
    named,
    panel,
    view,
)
from pipeline.report.tables import signed_text, value_text
from pipeline.train.bootstrap import Interval

MAX_INTERVAL_CURVES = 6
"""Curves along an axis up to which their intervals are drawn."""
PANELS = 6, 2
"""Panels beside each other on a page and on a phone."""
SCORE_INCHES, GAIN_INCHES = 2.5, 1.9
"""Heights of panels."""
INTERVAL_GAP = 5
"""Distance, in points of 1/72 inch, between the intervals of two curves at one place of an axis."""
LOG_RATIO = 8
"""Ratio of the largest to the least tick from which an axis is logarithmic."""
MAX_TICKS = 10
"""Places along an axis up to which each has a tick of its own."""

CurvePoint = tuple[float, PointSummary]
"""Where along the axis, and what was scored there."""
Curves = dict[str, list[CurvePoint]]
"""Name of a curve -> its points along the axis, at least two at different places."""
CurveKey = tuple[tuple[str, Any], ...]
"""The values that all points of a curve have in common: (key, value) of all but the axis, by
key."""


# Which curves there are


def curves_by_axis(data: ReportData) -> dict[str, Curves]:
    """Axis -> its curves, one for each choice of all else."""
    rendered = _rendered_settings(data)
    scored = [point for point in data.summary.settings if data.form in point.intervals]
    values = {point.name: _flat_values(point, rendered.get(point.name, {})) for point in scored}
    axes = dict.fromkeys(
        key for flat in values.values() for key, value in flat.items() if _is_number(value)
    )
    by_axis: dict[str, Curves] = {}
    drawn: list[list[set[str]]] = []
    for axis in axes:
        curves = _curves_along(data, axis, values)
        members = [{point.name for _, point in curve} for curve in curves.values()]
        # Two keys that change together, as a rate and a number of frames, are one axis.
        if members and members not in drawn:
            drawn.append(members)
            by_axis[axis] = curves
    return by_axis


def comparable_axes(by_axis: Mapping[str, Curves]) -> dict[str, Curves]:
    """The largest group of axes that have the same curves, in their order; none where no two axes
    have, or where there are too many curves for their intervals to be told apart."""
    groups: dict[tuple[str, ...], dict[str, Curves]] = {}
    for axis, curves in by_axis.items():
        groups.setdefault(tuple(curves), {})[axis] = curves
    largest = max(groups.values(), key=len, default={})
    if len(largest) < 2:
        return {}
    curves = next(iter(largest.values()))
    return largest if len(curves) <= MAX_INTERVAL_CURVES else {}


def _rendered_settings(data: ReportData) -> dict[str, dict[str, Any]]:
    """Point -> the settings of the data set that the sweep varies, as its videos were rendered with
    them; without the points whose cache is no longer at hand, which curves then lack."""
    scored = data.ranked()
    varied = {
        key
        for point in scored
        for key in point.values
        if "." not in key and key not in {*Recipe.model_fields, CACHE}
    }
    of_cache: dict[str, dict[str, Any]] = {}
    rendered = {}
    for point in scored if varied else []:
        name = point.values.get(CACHE, GIVEN)
        if name not in of_cache:
            try:
                of_cache[name] = cache_of(data.shown(point)[0]).manifest.origin.settings
            except BadInput:
                continue  # another run may know where the cache is now
        rendered[point.name] = {
            key: value for key, value in of_cache[name].items() if key in varied
        }
    return rendered


def _flat_values(point: PointSummary, rendered: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of a point, the keys of a table one by one, as in "windows.fps".

    Where videos were rendered for the sweep, their settings stand in the place of the cache, whose
    name says no more.
    """
    flat: dict[str, Any] = {}
    for key, value in {**point.values, **rendered}.items():
        if key == INIT:
            flat[key] = init_name(value)
        elif isinstance(value, dict):
            flat |= {f"{key}.{inner}": part for inner, part in value.items()}
        else:
            flat[key] = value
    if rendered and (flat.get(CACHE) == GIVEN or rendered.keys() & point.values.keys()):
        flat.pop(CACHE, None)
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curves_along(data: ReportData, axis: str, values: Mapping[str, Mapping[str, Any]]) -> Curves:
    """The curves along one axis, in the order of the points. Numbers of one table that is no
    plug-in go together: frames a second and frames, where both change."""
    table = axis.rpartition(".")[0]
    curves: dict[CurveKey, list[CurvePoint]] = {}
    common_of: dict[CurveKey, dict[str, Any]] = {}
    for point in data.summary.settings:
        flat = values.get(point.name, {})
        if not _is_number(flat.get(axis)):
            continue
        goes_together = bool(table) and table in point.values and f"{table}.name" not in flat
        common = {
            key: value
            for key, value in flat.items()
            if key != axis and not (goes_together and key.startswith(f"{table}."))
        }
        key = tuple((name, _hashable(common[name])) for name in sorted(common))
        common_of[key] = common
        curves.setdefault(key, []).append((flat[axis], point))
    curves = {key: curve for key, curve in curves.items() if len({x for x, _ in curve}) > 1}
    names = _curve_names([common_of[key] for key in curves])
    return {
        name: sorted(curve, key=lambda curve_point: curve_point[0])
        for name, curve in zip(names, curves.values(), strict=True)
    }


def _hashable(value: Any) -> Any:
    """Equal for equal values of an axis, which may be lists and tables."""
    if isinstance(value, dict):
        return tuple((key, _hashable(value[key])) for key in sorted(value))
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _curve_names(commons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of curves by what they differ in; empty for one that is alone."""
    keys = dict.fromkeys(key for common in commons for key in common)
    differing = [key for key in keys if len({_hashable(common.get(key)) for common in commons}) > 1]
    return [
        ", ".join(_value_name(key, common[key]) for key in differing if key in common)
        for common in commons
    ]


def _value_name(key: str, value: Any) -> str:
    """A number with the last part of its key, "fps 4"; all else alone."""
    text = value_text(value)
    return f"{key.rpartition('.')[2]} {text}" if _is_number(value) else text


# How they are drawn


def axis_figure(data: ReportData, axis: str, curves: Curves) -> Figure:
    """One axis alone."""
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = _curve_colours(data, curves)
    for name, curve in curves.items():
        x = [position for position, _ in curve]
        intervals = [point.intervals[data.form] for _, point in curve]
        (line,) = axes.plot(
            x,
            [interval.score for interval in intervals],
            "-o",
            markersize=4,
            color=colours[name],
            label=name if colours[name] != COLOURS["rest"] else None,
        )
        named(line, name or axis)
        if len(curves) <= MAX_INTERVAL_CURVES:
            low, high = zip(*(interval.ends for interval in intervals), strict=True)
            axes.fill_between(x, low, high, color=colours[name], alpha=0.13, linewidth=0)
    trivial = _draw_trivial(data, axes, curves)
    _place_ticks(axes, curves)
    if len(curves) <= MAX_INTERVAL_CURVES:
        axes.set_ylim(score_view(_points_of([curves]), [data.form], *trivial))
    axes.set(xlabel=axis, ylabel=f"{score_label(data)}, {data.form}")
    legend(figure, axes)
    return figure


def axes_side_by_side(
    data: ReportData, by_axis: Mapping[str, Curves], width_inches: float
) -> Figure:
    """A panel for each axis: scores on one scale and, below, gains over the reference on
    another."""
    columns = min(len(by_axis), PANELS[0] if width_inches == FULL_INCHES else PANELS[1])
    points = _points_of(by_axis.values())
    gains = [
        point.comparisons[data.form].gain for point in points if data.form in point.comparisons
    ]
    heights = [SCORE_INCHES, GAIN_INCHES] if gains else [SCORE_INCHES]
    bands = math.ceil(len(by_axis) / columns)
    figure = Figure(figsize=(width_inches, 0.3 + bands * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(heights) * bands, columns, height_ratios=heights * bands, squeeze=False
    )
    score_limits = score_view(points, [data.form], *map(data.trivial, points))
    labels = f"{score_label(data)}, {data.form}", f"gain over {_reference_name(by_axis)}"
    axes_and_curves = list(by_axis.items())
    for number in range(bands * columns):
        band, column = divmod(number, columns)
        upper, *lower = (grid[len(heights) * band + row, column] for row in range(len(heights)))
        if number >= len(by_axis):
            for axes in (upper, *lower):
                axes.remove()
            continue
        axis, curves = axes_and_curves[number]
        _draw_panel(data, upper, curves, of_gains=False)
        upper.set(title=axis.rpartition(".")[2], ylim=score_limits)
        for axes in lower:
            _draw_panel(data, axes, curves, of_gains=True)
            axes.axhline(0, color=COLOURS["muted"], linewidth=1, linestyle="--")
            ends = [0, *(end for gain in gains for end in gain.ends)]
            axes.set(xlim=upper.get_xlim(), ylim=view(ends))
            upper.tick_params(labelbottom=False)
        for axes, label in zip((upper, *lower), labels, strict=False):
            axes.tick_params(labelleft=column == 0)
            axes.set_ylabel(label if column == 0 else "")
    legend(figure, grid[0, 0])
    return figure


def _draw_panel(data: ReportData, axes: Axes, curves: Curves, of_gains: bool) -> None:
    """Curves with an upright bar for each interval, those of different curves a little apart."""
    colours = _curve_colours(data, curves)
    for index, (name, curve) in enumerate(curves.items()):
        shift = INTERVAL_GAP * (index - (len(curves) - 1) / 2) / 72
        shifted = ScaledTranslation(shift, 0, axes.figure.dpi_scale_trans)
        style: dict[str, Any] = {"color": colours[name], "transform": axes.transData + shifted}
        drawn = []
        for x, point in curve:
            interval = _gain_of(point, data.form) if of_gains else point.intervals[data.form]
            if interval is None:
                continue
            drawn.append((x, interval.score))
            axes.plot([x, x], interval.ends, linewidth=3.2, alpha=0.3, **style)
            (dot,) = axes.plot(x, interval.score, "o", markersize=4.5, **style)
            text = signed_text if of_gains else "{:.3f}".format
            named(dot, f"{point.name}: {text(interval.score)} ({interval.span(text)})")
        if drawn:
            axes.plot(*zip(*drawn, strict=True), label=name, **style)
    if not of_gains:
        _draw_trivial(data, axes, curves)
    _place_ticks(axes, curves)
    axes.margins(x=0.2)


def _gain_of(point: PointSummary, form: str) -> Interval | None:
    comparison = point.comparisons.get(form)
    return comparison.gain if comparison else None


def _points_of(curves_of_axes: Iterable[Curves]) -> list[PointSummary]:
    """All points of all curves; one that is on several curves several times."""
    return [point for curves in curves_of_axes for curve in curves.values() for _, point in curve]


def _reference_name(by_axis: Mapping[str, Curves]) -> str:
    """The words for what gains are over: the curve that all others have for a reference, or else
    each its own."""
    curves = next(iter(by_axis.values()))
    names = [
        name
        for name, curve in curves.items()
        if all(point.name == point.reference for _, point in curve)
    ]
    return names[0] if len(names) == 1 else "the reference"


def _draw_trivial(data: ReportData, axes: Axes, curves: Curves) -> list[float]:
    """Draws the trivial answer, unless curves were scored on different clips; returns its
    scores."""
    corners = sorted({(x, data.trivial(point)) for curve in curves.values() for x, point in curve})
    if len(dict(corners)) == len(corners):
        axes.plot(
            *zip(*corners, strict=True),
            ":",
            color=COLOURS["muted"],
            linewidth=1,
            label="trivial answer",
        )
    return [score for _, score in corners]


def _place_ticks(axes: Axes, curves: Curves) -> None:
    """A tick at each place where there are points, on a logarithmic axis where they are far
    apart."""
    ticks = sorted({x for curve in curves.values() for x, _ in curve})
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= LOG_RATIO:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= MAX_TICKS:
        axes.set_xticks(ticks, [value_text(tick) for tick in ticks])


def _curve_colours(data: ReportData, curves: Curves) -> dict[str, str]:
    """Curve -> the palette's next colour: its points have several of their own. The worst curves
    are grey where there are more than colours."""
    sign = -1 if data.metric.higher_is_better else 1
    mean_score = {
        name: sign * np.mean([point.intervals[data.form].score for _, point in curve])
        for name, curve in curves.items()
    }
    best = sorted(curves, key=lambda name: mean_score[name])[: len(SERIES)]
    palette = iter(SERIES)
    return {name: next(palette) if name in best else COLOURS["rest"] for name in curves}
