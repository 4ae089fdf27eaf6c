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
from pipeline.experiments.summary import SettingSummary
from pipeline.experiments.sweep_spec import CACHE, GIVEN
from pipeline.report.plots import score_label, score_view
from pipeline.report.source import Subject, cache_of
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

BANDS = 6
"""Lines along an axis up to which their intervals are drawn."""
PANELS = 6, 2
"""Beside each other on a page and on a phone."""
SCORE_INCHES, GAIN_INCHES = 2.5, 1.9
"""Heights of panels."""
APART = 5
"""Points between the intervals of two lines at one place of an axis."""

Point = tuple[float, SettingSummary]
"""Of a curve: where along the axis, and what was scored there."""
Lines = dict[str, list[Point]]
"""Name of a line -> its points in their order: settings that differ along the axis alone. Two at
least on each line."""


def along(subject: Subject) -> dict[str, Lines]:
    """Axis -> its lines, one for each choice of all else."""
    dials = _dials(subject)
    scored = [setting for setting in subject.summary.settings if subject.form in setting.intervals]
    values = {setting.name: _flat(setting, dials.get(setting.name, {})) for setting in scored}
    found: dict[str, Lines] = {}
    seen: list[list[set[str]]] = []
    for axis in dict.fromkeys(
        key for flat in values.values() for key, value in flat.items() if _is_number(value)
    ):
        lines = _lines(subject, axis, values)
        drawn = [{setting.name for _, setting in points} for points in lines.values()]
        if (
            drawn and drawn not in seen
        ):  # rate and number of frames that change together are one curve
            seen.append(drawn)
            found[axis] = lines
    return found


def alike(found: Mapping[str, Lines]) -> dict[str, Lines]:
    """Those axes that have the same lines as most others, if there are two at least and few
    lines."""
    groups: dict[tuple[str, ...], dict[str, Lines]] = {}
    for axis, lines in found.items():
        groups.setdefault(tuple(lines), {})[axis] = lines
    shared = max(groups.values(), key=len, default={})
    return shared if len(shared) > 1 and len(next(iter(shared.values()))) <= BANDS else {}


def _dials(subject: Subject) -> dict[str, dict[str, Any]]:
    """Setting -> the settings of the data set that the sweep turns, as its videos were rendered
    with them."""
    scored = subject.ranked()
    turned = {
        key
        for one in scored
        for key in one.values
        if "." not in key and key not in {*Recipe.model_fields, CACHE}
    }
    origins: dict[str, dict[str, Any]] = {}
    found = {}
    for setting in scored if turned else []:
        name = setting.values.get(CACHE, GIVEN)
        try:
            origin = (
                origins.get(name) or cache_of(subject.shown(setting)[0]).manifest.origin.settings
            )
        except BadInput:
            continue  # the cache is no longer at hand: its points are missing in the curves
        origins[name] = origin
        found[setting.name] = {key: value for key, value in origin.items() if key in turned}
    return found


def _flat(setting: SettingSummary, dials: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value; a table's keys one by one, as in "windows.fps". Of videos rendered for the
    sweep the dials are all."""
    found: dict[str, Any] = {}
    for key, value in {**setting.values, **dials}.items():
        found |= (
            {f"{key}.{inner}": part for inner, part in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    if dials and (found.get(CACHE) == GIVEN or dials.keys() & setting.values.keys()):
        found.pop(CACHE, None)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(subject: Subject, axis: str, values: Mapping[str, Mapping[str, Any]]) -> Lines:
    """In the order of the settings. Numbers of one table that is no plug-in go together: frames a
    second and frames, where both change."""
    table = axis.rpartition(".")[0]
    found: Lines = {}
    keys: dict[str, dict[str, Any]] = {}
    for setting in subject.summary.settings:
        flat = values.get(setting.name, {})
        if not _is_number(flat.get(axis)):
            continue
        together = table and table in setting.values and f"{table}.name" not in flat
        same = {
            key: part
            for key, part in flat.items()
            if key != axis and not (together and key.startswith(f"{table}."))
        }
        line = json.dumps(same, sort_keys=True)
        keys[line] = same
        found.setdefault(line, []).append((flat[axis], setting))
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


def over_axis(subject: Subject, axis: str, lines: Lines) -> Figure:
    """One axis alone."""
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = _line_colours(subject, lines)
    for name, points in lines.items():
        x, settings = zip(*points, strict=True)
        found = [setting.intervals[subject.form] for setting in settings]
        label = name if colours[name] != COLOURS["rest"] else None
        (line,) = axes.plot(
            x, [each.score for each in found], "-o", markersize=4, color=colours[name], label=label
        )
        named(line, name or axis)
        if len(lines) <= BANDS:
            low, high = [each.low for each in found], [each.high for each in found]
            axes.fill_between(x, low, high, color=colours[name], alpha=0.13, linewidth=0)
    trivial = _trivial(subject, axes, lines)
    _place_ticks(axes, lines)
    shown = [setting for points in lines.values() for _, setting in points]
    axes.set_ylim(score_view(shown, [subject.form], *trivial))
    axes.set(xlabel=axis, ylabel=f"{score_label(subject)}, {subject.form}")
    legend(figure, axes)
    return figure


def side_by_side(subject: Subject, found: Mapping[str, Lines], width_inches: float) -> Figure:
    """A panel for each axis: scores on one scale and, below, gains over the reference on
    another."""
    columns = min(len(found), PANELS[0] if width_inches == FULL_INCHES else PANELS[1])
    gains = _gains(subject, found)
    heights = [SCORE_INCHES, GAIN_INCHES] if gains else [SCORE_INCHES]
    bands = math.ceil(len(found) / columns)
    figure = Figure(figsize=(width_inches, 0.3 + bands * sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(heights) * bands, columns, height_ratios=heights * bands, squeeze=False
    )
    shown = [
        setting for lines in found.values() for points in lines.values() for _, setting in points
    ]
    score_limits = score_view(
        shown, [subject.form], *(subject.trivial(setting) for setting in shown)
    )
    for number in range(bands * columns):
        band, column = divmod(number, columns)
        upper, *lower = (grid[len(heights) * band + row, column] for row in range(len(heights)))
        if number >= len(found):
            for axes in (upper, *lower):
                axes.remove()
            continue
        axis, lines = list(found.items())[number]
        _draw_panel(subject, upper, lines, of_gains=False)
        upper.set(title=axis.rpartition(".")[2], ylim=score_limits)
        for axes in lower:
            _draw_panel(subject, axes, lines, of_gains=True)
            axes.axhline(0, color=COLOURS["muted"], linewidth=1, linestyle="--")
            axes.set(
                xlim=upper.get_xlim(),
                ylim=view([0, *(end for gain in gains for end in (gain.low, gain.high))], gains),
            )
            upper.tick_params(labelbottom=False)
        names = f"{score_label(subject)}, {subject.form}", f"gain over {_referred(found)}"
        for axes, name in zip((upper, *lower), names, strict=False):
            axes.tick_params(labelleft=column == 0)
            axes.set_ylabel(name if column == 0 else "")
    legend(figure, grid[0, 0])
    return figure


def _draw_panel(subject: Subject, axes: Axes, lines: Lines, of_gains: bool) -> None:
    """Lines with an upright bar for each interval, those of different lines a little apart."""
    colours = _line_colours(subject, lines)
    for place, (name, points) in enumerate(lines.items()):
        apart = ScaledTranslation(
            APART * (place - (len(lines) - 1) / 2) / 72, 0, axes.figure.dpi_scale_trans
        )
        style: dict[str, Any] = {"color": colours[name], "transform": axes.transData + apart}
        drawn = []
        for x, setting in points:
            compared = setting.comparisons.get(subject.form)
            interval = (
                (compared.gain if compared else None)
                if of_gains
                else setting.intervals[subject.form]
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
            named(dot, f"{setting.name}: {score} ({low} .. {high})")
        if drawn:
            axes.plot(*zip(*drawn, strict=True), label=name, **style)
    if not of_gains:
        _trivial(subject, axes, lines)
    _place_ticks(axes, lines)
    axes.margins(x=0.2)


def _gains(subject: Subject, found: Mapping[str, Lines]) -> list[Interval]:
    settings = [
        setting for lines in found.values() for points in lines.values() for _, setting in points
    ]
    return [
        each.comparisons[subject.form].gain for each in settings if subject.form in each.comparisons
    ]


def _referred(found: Mapping[str, Lines]) -> str:
    """What gains are over: the line that all others have for a reference, or else each its own."""
    lines = next(iter(found.values()))
    names = [
        name
        for name, points in lines.items()
        if all(one.name == one.reference for _, one in points)
    ]
    return names[0] if len(names) == 1 else "the reference"


def _trivial(subject: Subject, axes: Axes, lines: Lines) -> list[float]:
    """Draws the trivial answer, unless lines were scored on other clips; returns its scores."""
    found = sorted(
        {(x, subject.trivial(setting)) for points in lines.values() for x, setting in points}
    )
    if len(dict(found)) == len(found):
        axes.plot(
            *zip(*found, strict=True),
            ":",
            color=COLOURS["muted"],
            linewidth=1,
            label="trivial answer",
        )
    return [score for _, score in found]


def _place_ticks(axes: Axes, lines: Lines) -> None:
    ticks = sorted({x for points in lines.values() for x, _ in points})
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= 10:
        axes.set_xticks(ticks, [value_text(tick) for tick in ticks])


def _line_colours(subject: Subject, lines: Lines) -> dict[str, str]:
    """A line has the palette's next colour: its settings have several of their own. The worst lines
    are grey."""
    sign = -1 if subject.metric.higher_is_better else 1
    score = {
        name: sign * np.mean([s.intervals[subject.form].score for _, s in points])
        for name, points in lines.items()
    }
    kept = sorted(lines, key=lambda name: score[name])[: len(SERIES)]
    palette = iter(SERIES)
    return {name: next(palette) if name in kept else COLOURS["rest"] for name in lines}
