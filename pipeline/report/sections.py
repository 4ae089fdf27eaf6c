"""What stands on a page: every section for what the source has, and nothing for what it has not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline.cache.cache import Cache
from pipeline.cache.status import status
from pipeline.errors import BadInput
from pipeline.experiments.summary import PointSummary, Summary
from pipeline.report import axis_plots, plots, tables, token_maps, videos
from pipeline.report.page import Page, Plot
from pipeline.report.predictions import answers
from pipeline.report.provenance import cache_provenance, commands, runs_provenance
from pipeline.report.source import ReportData, cache_of
from pipeline.report.style import FULL_INCHES, HALF_INCHES, save_png, svg
from pipeline.report.tables import number_text, p_text, scaled_text, seconds_text, signed_text
from pipeline.train.run import Run

STRIPS = "tokens"
"""The PNG file of all tokens over time."""
CLEAR = 0.05
"""Adjusted p below which a gain is called significant."""


def page_of_data(data: ReportData, out: Path) -> Page:
    """The page of runs or a sweep; plots and videos are also written into `out`."""
    page = Page(
        title=_title(data),
        kind=f"{'Sweep' if data.path else 'Runs'} · {data.summary.task} on split {data.summary.split}",
        result=result(data),
        caution=_caution(data),
        figures=_figures(data),
        scores=tables.scores(data),
        runs=tables.runs(data),
        commands=commands(data),
        provenance=runs_provenance(data),
    )
    costs = {f"score_over_{name}": figure for name, figure in plots.pareto(data).items()}
    page.plots = {
        "scores": _placed(out, {"scores": plots.intervals(data, FULL_INCHES)}),
        "costs": _placed(out, costs),
        "learning": _placed(out, plots.learning(data)),
        "axes": _axis_plots(data, out),
        "answers": _placed(out, answers(data)),
    }
    (scores,) = page.plots["scores"]
    scores.narrow_svg = svg(plots.intervals(data, HALF_INCHES), scores.title)
    if len(data.ranked()) > plots.ROWS:
        scores.caption += (
            f" The best {plots.ROWS} of {len(data.ranked())} and what they are compared with."
        )
    page.videos, page.no_videos = videos.videos(data, out / "videos")
    page.films, page.no_films = token_maps.films_of_run(*_recurrent(data), data.summary.split)
    try:
        _add_cache(page, cache_of(data.shown(data.ranked()[0])[0]))
    except BadInput as error:
        page.no_cache = f"The cache cannot be reached: {error.message}."
    _save_films(page, out)
    return page


def page_of_cache(cache: Cache, out: Path) -> Page:
    """The page of a cache alone."""
    counts = status(cache)
    videos = counts["videos"]
    page = Page(
        title=cache.name,
        kind="Cache",
        result=f"{videos['stored']:,} of {videos['planned']:,} videos are stored whole, {counts['frames']:,} frames in "
        f"{scaled_text(counts['store_bytes'], 'B')}; {videos['failed']:,} failed.",
        figures=(
            (f"{counts['frames']:,}", "frames"),
            (scaled_text(counts["store_bytes"], "B"), "on disk"),
            (scaled_text(counts["bytes_per_frame"] or 0, "B"), "per frame"),
            (f"{counts['stores']['done']} of {counts['stores']['planned']}", "stores finished"),
            (f"{videos['failed']:,}", "videos failed"),
        ),
        commands=[f"stillframe report {cache}"],
        provenance=cache_provenance(cache),
    )
    page.films, page.no_films = token_maps.films_of_cache(cache)
    _add_cache(page, cache)
    _save_films(page, out)
    return page


def result(data: ReportData) -> str:
    """The best setting's score with its interval, against the reference and the trivial answer, in
    two or three sentences.

    Where settings have other videos and other references, none is the best: how many are ahead, and
    by how much.
    """
    if not data.is_one_question and _by_gain(data):
        return _result_of_questions(data)
    best, metric = data.ranked()[0], data.metric
    trivial = data.trivial(best)
    found, alone = best.intervals[data.form], len(data.ranked()) == 1
    unit = f" {metric.unit}" if metric.unit else ""
    text = f"{best.name} has {'a' if alone else 'the best'} {data.form} {metric.name} of {found.score:.3f}{unit}"
    text += f" (95 % interval {number_text(found.low)} .. {number_text(found.high)})."
    if comparison := best.comparisons.get(data.form):
        gain = comparison.gain
        text += f" It is ahead of {best.reference} by {signed_text(gain.score)}"
        text += f" ({signed_text(gain.low)} .. {signed_text(gain.high)}, adjusted p {p_text(comparison.p_adjusted)})"
        text += "." if comparison.p_adjusted < CLEAR else ", which is not significant."
    elif not alone:
        text += " It is a reference: no other is better."
    sign = 1 if metric.higher_is_better else -1
    beaten = ", which is better" if sign * (trivial - found.score) > 0 else ""
    return f"{text} The trivial answer, which does not look at the video, scores {trivial:.3f}{beaten}."


def _result_of_questions(data: ReportData) -> str:
    scored, compared = data.ranked(), _by_gain(data)
    gains = [one.comparisons[data.form] for one in compared]
    ahead, behind = (
        sum(way * each.gain.score > 0 and each.p_adjusted < CLEAR for each in gains)
        for way in (1, -1)
    )
    text = f"{ahead} of {len(gains)} settings are significantly better than the reference of each, {behind} worse."
    for which, one in zip(("largest", "least"), (compared[0], compared[-1]), strict=True):
        gain = one.comparisons[data.form].gain
        span = f"{signed_text(gain.low)} .. {signed_text(gain.high)}"
        text += f" The {which} gain is {signed_text(gain.score)} ({span}), of {one.name}."
    sign = 1 if data.metric.higher_is_better else -1
    beaten = sum(sign * (one.intervals[data.form].score - data.trivial(one)) > 0 for one in scored)
    return f"{text} {beaten} of {len(scored)} are better than the trivial answer, which does not look at the video."


def _by_gain(data: ReportData) -> list[PointSummary]:
    """The settings that were compared with a reference, by their gain over it, largest first."""
    compared = [one for one in data.ranked() if data.form in one.comparisons]
    return sorted(compared, key=lambda one: -one.comparisons[data.form].gain.score)


def _title(data: ReportData) -> str:
    if data.path:
        return data.summary.name
    runs = list(data.runs)
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs of {data.summary.task}"


def _caution(data: ReportData) -> str:
    ranked = len(data.ranked())
    if ranked < 2 or not data.is_one_question:
        return ""
    return f"The best of {ranked} was chosen on the clips that it is scored on, which flatters it: expect less on new videos."


def _figures(data: ReportData) -> list[tuple[str, str]]:
    best, form, points = data.ranked()[0], data.form, data.summary.settings
    evaluation = next(iter(data.evaluations.values()))
    failed = sum(len(point.failed) for point in points)
    many = [
        (f"{len(points)}", "settings" if len(points) != 1 else "setting"),
        (f"{len(data.runs)}", "runs scored" + (f", {failed} stopped" if failed else "")),
        (f"{evaluation.clips_scored:,}", f"clips of {evaluation.videos:,} videos scored"),
    ]
    compared = _by_gain(data)
    if data.is_one_question or not compared:
        found = [(f"{best.intervals[form].score:.3f}", f"best {data.metric.name}, {form}")]
        if form in best.comparisons:
            found.append((signed_text(best.comparisons[form].gain.score), f"over {best.reference}"))
        found += [(f"{data.trivial(best):.3f}", "trivial answer"), *many]
        found.append((scaled_text(best.cost.parameters), "parameters of the best"))
    else:
        ends = zip(("largest", "least"), (compared[0], compared[-1]), strict=True)
        found = [
            (signed_text(one.comparisons[form].gain.score), f"{which} gain, of {one.name}")
            for which, one in ends
        ] + many
    trained = [
        point.training_s * len(point.runs) for point in points if point.training_s is not None
    ]
    return found + ([(seconds_text(sum(trained)), "training in all")] if trained else [])


def _recurrent(data: ReportData) -> tuple[Run, str]:
    """The best run that remembers something, or else the best, and its checkpoint."""
    shown = [data.shown(point) for point in data.ranked()]
    return next((each for each in shown if each[0].recipe.temporal.name != "identity"), shown[0])


def _add_cache(page: Page, cache: Cache) -> None:
    counts, spec, shape = status(cache), cache.spec, cache.shape
    page.coverage, page.failures = tables.coverage(counts), tables.failures(counts)
    encoder, (high, wide) = spec["encoder"], shape.grid_hw
    made_of = (
        encoder.get("model")
        or f"{encoder['name']}, {(encoder.get('config') or {}).get('model_type', 'built in')}"
    )
    derived = f", derived from {cache.header.derived_from}" if cache.header.derived_from else ""
    rate = "every frame" if cache.fps is None else f"{cache.fps:g} frames a second"
    page.cache = {
        "cache": cache.name,
        "encoder": made_of,
        "codec": spec["codec"]["name"] + derived,
        "tokens of a frame": f"{high} × {wide} patches, {shape.special_tokens} special, {shape.width} wide",
        "layers": ", ".join(map(str, shape.layers)),
        "frames": f"{counts['frames']:,}, {rate}, {spec['frames']['size_px']} px",
        "bytes": f"{scaled_text(counts['store_bytes'], 'B')}, {scaled_text(counts['bytes_per_frame'] or 0, 'B')} a frame",
        "stores": f"{counts['stores']['done']} of {counts['stores']['planned']} finished",
    }


CAPTIONS: Mapping[str, tuple[str, str]] = {
    "scores": (
        "Scores and their intervals",
        "Bars are 95 % intervals, cut at the border; point at a dot for its numbers.",
    ),
    "score_over_FLOPs": (
        "Score over computation",
        "Filled: no other with the same reference is cheaper and as good. Logarithmic axis.",
    ),
    "score_over_latency": (
        "Score over latency",
        "One step of one stream after the encoder, where it was measured. Logarithmic axis.",
    ),
    "score_over_parameters": (
        "Score over size",
        "Filled: no other with the same reference is smaller and as good. Logarithmic axis.",
    ),
    "factors": (
        "One factor at a time",
        "Above scores, below gains over the reference, on one scale each. Bars are 95 % intervals.",
    ),
    "loss": (
        "Training loss",
        "Running mean. Lines are means over seeds, bands reach from the least to the largest.",
    ),
    "validation": (
        "Score on the way",
        "On split val, while training. Lines are means over seeds, bands from least to largest.",
    ),
    "confusion": ("Best setting", "Rows are the truth and sum to one, columns the answers."),
    "confusion_reference": (
        "Its reference",
        "The same for the setting that the best is compared with.",
    ),
    "clips": (
        "Scores of single clips",
        "How many clips score how much, in the best setting and its reference.",
    ),
    "clip_by_clip": (
        "Clip by clip",
        "Each dot is a clip; on the dashed line the best setting and its reference are even.",
    ),
}


def _placed(out: Path, figures: Mapping[str, Figure]) -> list[Plot]:
    """Every figure as a PNG file in `out` and as a plot of the page."""
    placed = []
    for name, figure in figures.items():
        axis = name.removeprefix("over_")
        title, caption = CAPTIONS.get(name) or (
            f"Score over {axis}",
            "One line for each choice of all else. Bands, where lines are few, are 95 % intervals.",
        )
        save_png(figure, out / f"{name}.png")
        placed.append(Plot(name, title, caption, svg(figure, title)))
    return placed


def _axis_plots(data: ReportData, out: Path) -> list[Plot]:
    """Axes that have the same lines side by side, all others one by one."""
    found = axis_plots.curves_by_axis(data)
    comparable_axes = axis_plots.comparable_axes(found)
    wide = (
        _placed(out, {"factors": axis_plots.axes_side_by_side(data, comparable_axes, FULL_INCHES)})
        if comparable_axes
        else []
    )
    for plot in wide:
        plot.narrow_svg = svg(
            axis_plots.axes_side_by_side(data, comparable_axes, HALF_INCHES), plot.title
        )
    rest = {
        f"over_{axis}": axis_plots.axis_figure(data, axis, lines)
        for axis, lines in found.items()
        if axis not in comparable_axes
    }
    return wide + _placed(out, rest)


def _save_films(page: Page, out: Path) -> None:
    if page.films:
        token_maps.sheet(list(page.films)).save(out / f"{STRIPS}.png")


def as_json(page: Page, summary: Summary | None) -> dict[str, Any]:
    """The page's numbers for scripts."""
    found: dict[str, Any] = {
        "title": page.title,
        "result": page.result,
        "provenance": page.provenance,
    }
    if summary is not None:
        found |= summary.model_dump(mode="json", exclude={"name", "settings"})
    shown = [table for table in (page.scores, page.runs, page.coverage, page.failures) if table]
    return found | {table.name: table.rows for table in shown}
