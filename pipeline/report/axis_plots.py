"""Scores along everything that the settings of a sweep differ in by a number: its axes, and the
dials of its videos.

Axes that have the same lines are drawn side by side on one scale, so that one sees at once along
which of them scores fall. Such a sweep is `motion_factors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput
from pipeline.experiments.summary import PointSummary
from pipeline.experiments.sweep_spec import CACHE, GIVEN
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
"""Lines along an axis up to which their intervals are drawn."""
PANELS = 6, 2
"""Beside each other on a page and on a phone."""
SCORE_INCHES, GAIN_INCHES = 2.5, 1.9
"""Heights of panels."""
APART = 5
"""Points between the intervals of two lines at one place of an axis."""

CurvePoint = tuple[float, PointSummary]
"""Of a curve: where along the axis, and what was scored there."""
Curves = dict[str, list[CurvePoint]]
"""Name of a line -> its points in their order: settings that differ along the axis alone. Two at
least on each line."""


def curves_by_axis(data: ReportData) -> dict[str, Curves]:
    """Axis -> its lines, one for each choice of all else."""
    dials = _rendered_settings(data)
    scored = [point for point in data.summary.settings if data.form in point.intervals]
    values = {point.name: _flat_values(point, dials.get(point.name, {})) for point in scored}
    found: dict[str, Curves] = {}
    seen: list[list[set[str]]] = []
    for axis in dict.fromkeys(
        key for flat in values.values() for key, value in flat.items() if _is_number(value)
    ):
        curves = _curves_along(data, axis, values)
        drawn = [{point.name for _, point in points} for points in curves.values()]
        if (
            drawn and drawn not in seen
        ):  # rate and number of frames that change together are one curve
            seen.append(drawn)
            found[axis] = curves
    return found


def comparable_axes(found: Mapping[str, Curves]) -> dict[str, Curves]:
    """Those axes that have the same lines as most others, if there are two at least and few
    lines."""
    groups: dict[tuple[str, ...], dict[str, Curves]] = {}
    for axis, curves in found.items():
        groups.setdefault(tuple(curves), {})[axis] = curves
    shared = max(groups.values(), key=len, default={})
    return (
        shared
        if len(shared) > 1 and len(next(iter(shared.values()))) <= MAX_INTERVAL_CURVES
        else {}
    )


def _rendered_settings(data: ReportData) -> dict[str, dict[str, Any]]:
    """Setting -> the settings of the data set that the sweep turns, as its videos were rendered
    with them."""
    scored = data.ranked()
    turned = {
        key
        for one in scored
        for key in one.values
        if "." not in key and key not in {*Recipe.model_fields, CACHE}
    }
    origins: dict[str, dict[str, Any]] = {}
    found = {}
    for point in scored if turned else []:
        name = point.values.get(CACHE, GIVEN)
        try:
            origin = origins.get(name) or cache_of(data.shown(point)[0]).manifest.origin.settings
        except BadInput:
            continue  # the cache is no longer at hand: its points are missing in the curves
        origins[name] = origin
        found[point.name] = {key: value for key, value in origin.items() if key in turned}
    return found


def _flat_values(point: PointSummary, dials: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value; a table's keys one by one, as in "windows.fps". Of videos rendered for the
    sweep the dials are all."""
    found: dict[str, Any] = {}
    for key, value in {**point.values, **dials}.items():
        found |= (
            {f"{key}.{inner}": part for inner, part in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    if dials and (found.get(CACHE) == GIVEN or dials.keys() & point.values.keys()):
        found.pop(CACHE, None)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curves_along(data: ReportData, axis: str, values: Mapping[str, Mapping[str, Any]]) -> Curves:
    """In the order of the settings. Numbers of one table that is no plug-in go together: frames a
    second and frames, where both change."""
    table = axis.rpartition(".")[0]
    found: Curves = {}
    keys: dict[str, dict[str, Any]] = {}
    for point in data.summary.settings:
        flat = values.get(point.name, {})
        if not _is_number(flat.get(axis)):
            continue
        together = table and table in point.values and f"{table}.name" not in flat
        same = {
            key: part
            for key, part in flat.items()
            if key != axis and not (together and key.startswith(f"{table}."))
        }
        line = json.dumps(same, sort_keys=True)
        keys[line] = same
        found.setdefault(line, []).append((flat[axis], point))
    found = {line: points for line, points in found.items() if len({x for x, _ in points}) > 1}
    differing = [
        key
        for key in dict.fromkeys(key for line in found for key in keys[line])
        if len({json.dumps(keys[line].get(key)) for line in found}) > 1
    ]
    names = {
        line: ", ".join(_named(key, keys[line][key]) for key in differing if key in keys[line])
        for line in found
    }
    return {
        names[line]: sorted(points, key=lambda point: point[0]) for line, points in found.items()
    }


def _named(key: str, value: Any) -> str:
    return (
        f"{key.rpartition('.')[2]} {value_text(value)}" if _is_number(value) else value_text(value)
    )


def axis_figure(data: ReportData, axis: str, curves: Curves) -> Figure:
    """One axis alone."""
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = _curve_colours(data, curves)
    for name, points in curves.items():
        x, members = zip(*points, strict=True)
        found = [point.intervals[data.form] for point in members]
        label = name if colours[name] != COLOURS["rest"] else None
        (line,) = axes.plot(
            x, [each.score for each in found], "-o", markersize=4, color=colours[name], label=label
        )
        named(line, name or axis)
        if len(curves) <= MAX_INTERVAL_CURVES:
            low, high = [each.low for each in found], [each.high for each in found]
            axes.fill_between(x, low, high, color=colours[name], alpha=0.13, linewidth=0)
    trivial = _trivial(data, axes, curves)
    _place_ticks(axes, curves)
    shown = [point for points in curves.values() for _, point in points]
    axes.set_ylim(score_view(shown, [data.form], *trivial))
    axes.set(xlabel=axis, ylabel=f"{score_label(data)}, {data.form}")
    legend(figure, axes)
    return figure


def axes_side_by_side(data: ReportData, found: Mapping[str, Curves], width_inches: float) -> Figure:
    """A panel for each axis: scores on one scale and, below, gains over the reference on
    another."""
    columns = min(len(found), PANELS[0] if width_inches == FULL_INCHES else PANELS[1])
    gains = _gains(data, found)
    heights = [SCORE_INCHES, GAIN_INCHES] if gains else [SCORE_INCHES]
    bands = math.ceil(len(found) / columns)
    figure = Figure(figsize=(width_inches, 0.3 + bands * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(heights) * bands, columns, height_ratios=heights * bands, squeeze=False
    )
    shown = [
        point for curves in found.values() for points in curves.values() for _, point in points
    ]
    score_limits = score_view(shown, [data.form], *(data.trivial(point) for point in shown))
    for number in range(bands * columns):
        band, column = divmod(number, columns)
        upper, *lower = (grid[len(heights) * band + row, column] for row in range(len(heights)))
        if number >= len(found):
            for axes in (upper, *lower):
                axes.remove()
            continue
        axis, curves = list(found.items())[number]
        _draw_panel(data, upper, curves, of_gains=False)
        upper.set(title=axis.rpartition(".")[2], ylim=score_limits)
        for axes in lower:
            _draw_panel(data, axes, curves, of_gains=True)
            axes.axhline(0, color=COLOURS["muted"], linewidth=1, linestyle="--")
            axes.set(
                xlim=upper.get_xlim(),
                ylim=view([0, *(end for gain in gains for end in (gain.low, gain.high))], gains),
            )
            upper.tick_params(labelbottom=False)
        names = f"{score_label(data)}, {data.form}", f"gain over {_referred(found)}"
        for axes, name in zip((upper, *lower), names, strict=False):
            axes.tick_params(labelleft=column == 0)
            axes.set_ylabel(name if column == 0 else "")
    legend(figure, grid[0, 0])
    return figure


def _draw_panel(data: ReportData, axes: Axes, curves: Curves, of_gains: bool) -> None:
    """Lines with an upright bar for each interval, those of different lines a little apart."""
    colours = _curve_colours(data, curves)
    for place, (name, points) in enumerate(curves.items()):
        apart = ScaledTranslation(
            APART * (place - (len(curves) - 1) / 2) / 72, 0, axes.figure.dpi_scale_trans
        )
        style: dict[str, Any] = {"color": colours[name], "transform": axes.transData + apart}
        drawn = []
        for x, point in points:
            compared = point.comparisons.get(data.form)
            interval = (
                (compared.gain if compared else None) if of_gains else point.intervals[data.form]
            )
            if interval is None:
                continue
            drawn.append((x, interval.score))
            axes.plot([x, x], [interval.low, interval.high], linewidth=3.2, alpha=0.3, **style)
            (dot,) = axes.plot(x, interval.score, "o", markersize=4.5, **style)
            score, low, high = map(
                signed_text if of_gains else "{:.3f}".format,
                (interval.score, interval.low, interval.high),
            )
            named(dot, f"{point.name}: {score} ({low} .. {high})")
        if drawn:
            axes.plot(*zip(*drawn, strict=True), label=name, **style)
    if not of_gains:
        _trivial(data, axes, curves)
    _place_ticks(axes, curves)
    axes.margins(x=0.2)


def _gains(data: ReportData, found: Mapping[str, Curves]) -> list[Interval]:
    scored = [
        point for curves in found.values() for points in curves.values() for _, point in points
    ]
    return [each.comparisons[data.form].gain for each in scored if data.form in each.comparisons]


def _referred(found: Mapping[str, Curves]) -> str:
    """What gains are over: the line that all others have for a reference, or else each its own."""
    curves = next(iter(found.values()))
    names = [
        name
        for name, points in curves.items()
        if all(one.name == one.reference for _, one in points)
    ]
    return names[0] if len(names) == 1 else "the reference"


def _trivial(data: ReportData, axes: Axes, curves: Curves) -> list[float]:
    """Draws the trivial answer, unless lines were scored on other clips; returns its scores."""
    found = sorted({(x, data.trivial(point)) for points in curves.values() for x, point in points})
    if len(dict(found)) == len(found):
        axes.plot(
            *zip(*found, strict=True),
            ":",
            color=COLOURS["muted"],
            linewidth=1,
            label="trivial answer",
        )
    return [score for _, score in found]


def _place_ticks(axes: Axes, curves: Curves) -> None:
    ticks = sorted({x for points in curves.values() for x, _ in points})
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= 10:
        axes.set_xticks(ticks, [value_text(tick) for tick in ticks])


def _curve_colours(data: ReportData, curves: Curves) -> dict[str, str]:
    """A line has the palette's next colour: its settings have several of their own. The worst lines
    are grey."""
    sign = -1 if data.metric.higher_is_better else 1
    score = {
        name: sign * np.mean([s.intervals[data.form].score for _, s in points])
        for name, points in curves.items()
    }
    kept = sorted(curves, key=lambda name: score[name])[: len(SERIES)]
    palette = iter(SERIES)
    return {name: next(palette) if name in kept else COLOURS["rest"] for name in curves}
