"""What stands on a page: every section for what the source has, and nothing for what it has not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline.cache.cache import Cache
from pipeline.cache.status import status
from pipeline.errors import BadInput
from pipeline.experiments.summary import SettingSummary, Summary
from pipeline.report import axis_plots, curves, plots, tables, token_maps, videos
from pipeline.report.page import Page, Plot
from pipeline.report.predictions import answers
from pipeline.report.provenance import commands, of_cache, of_runs
from pipeline.report.source import Subject, cache_of
from pipeline.report.style import FULL_INCHES, HALF_INCHES, save_png, svg
from pipeline.report.tables import number_text, p_text, scaled_text, seconds_text, signed_text
from pipeline.train.run import Run

STRIPS = "tokens"
"""The PNG file of all tokens over time."""
CLEAR = 0.05
"""Adjusted p below which a gain is called significant."""


def page_of_subject(subject: Subject, out: Path) -> Page:
    """The page of runs or a sweep; plots and videos are also written into `out`."""
    page = Page(
        title=_title(subject),
        kind=f"{'Sweep' if subject.path else 'Runs'} · {subject.summary.task} on split {subject.summary.split}",
        result=result(subject),
        caution=_caution(subject),
        figures=_figures(subject),
        scores=tables.scores(subject),
        runs=tables.runs(subject),
        commands=commands(subject),
        provenance=of_runs(subject),
    )
    costs = {f"score_over_{name}": figure for name, figure in plots.pareto(subject).items()}
    page.plots = {
        "scores": _placed(out, {"scores": plots.intervals(subject, FULL_INCHES)}),
        "costs": _placed(out, costs),
        "learning": _placed(out, curves.learning(subject)),
        "axes": _along(subject, out),
        "answers": _placed(out, answers(subject)),
    }
    (scores,) = page.plots["scores"]
    scores.narrow_svg = svg(plots.intervals(subject, HALF_INCHES), scores.title)
    if len(subject.ranked()) > plots.ROWS:
        scores.caption += (
            f" The best {plots.ROWS} of {len(subject.ranked())} and what they are compared with."
        )
    page.videos, page.no_videos = videos.videos(subject, out / "videos")
    page.films, page.no_films = token_maps.films_of_run(*_recurrent(subject), subject.summary.split)
    try:
        _add_cache(page, cache_of(subject.shown(subject.ranked()[0])[0]))
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
        provenance=of_cache(cache),
    )
    page.films, page.no_films = token_maps.films_of_cache(cache)
    _add_cache(page, cache)
    _save_films(page, out)
    return page


def result(subject: Subject) -> str:
    """The best setting's score with its interval, against the reference and the trivial answer, in
    two or three sentences.

    Where settings have other videos and other references, none is the best: how many are ahead, and
    by how much.
    """
    if not subject.is_one_question and _by_gain(subject):
        return _result_of_questions(subject)
    best, metric = subject.ranked()[0], subject.metric
    trivial = subject.trivial(best)
    found, alone = best.intervals[subject.form], len(subject.ranked()) == 1
    unit = f" {metric.unit}" if metric.unit else ""
    text = f"{best.name} has {'a' if alone else 'the best'} {subject.form} {metric.name} of {found.score:.3f}{unit}"
    text += f" (95 % interval {number_text(found.low)} .. {number_text(found.high)})."
    if comparison := best.comparisons.get(subject.form):
        gain = comparison.gain
        text += f" It is ahead of {best.reference} by {signed_text(gain.score)}"
        text += f" ({signed_text(gain.low)} .. {signed_text(gain.high)}, adjusted p {p_text(comparison.p_adjusted)})"
        text += "." if comparison.p_adjusted < CLEAR else ", which is not significant."
    elif not alone:
        text += " It is a reference: no other is better."
    sign = 1 if metric.higher_is_better else -1
    beaten = ", which is better" if sign * (trivial - found.score) > 0 else ""
    return f"{text} The trivial answer, which does not look at the video, scores {trivial:.3f}{beaten}."


def _result_of_questions(subject: Subject) -> str:
    scored, compared = subject.ranked(), _by_gain(subject)
    gains = [one.comparisons[subject.form] for one in compared]
    ahead, behind = (
        sum(way * each.gain.score > 0 and each.p_adjusted < CLEAR for each in gains)
        for way in (1, -1)
    )
    text = f"{ahead} of {len(gains)} settings are significantly better than the reference of each, {behind} worse."
    for which, one in zip(("largest", "least"), (compared[0], compared[-1]), strict=True):
        gain = one.comparisons[subject.form].gain
        span = f"{signed_text(gain.low)} .. {signed_text(gain.high)}"
        text += f" The {which} gain is {signed_text(gain.score)} ({span}), of {one.name}."
    sign = 1 if subject.metric.higher_is_better else -1
    beaten = sum(
        sign * (one.intervals[subject.form].score - subject.trivial(one)) > 0 for one in scored
    )
    return f"{text} {beaten} of {len(scored)} are better than the trivial answer, which does not look at the video."


def _by_gain(subject: Subject) -> list[SettingSummary]:
    """The settings that were compared with a reference, by their gain over it, largest first."""
    compared = [one for one in subject.ranked() if subject.form in one.comparisons]
    return sorted(compared, key=lambda one: -one.comparisons[subject.form].gain.score)


def _title(subject: Subject) -> str:
    if subject.path:
        return subject.summary.name
    runs = list(subject.runs)
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs of {subject.summary.task}"


def _caution(subject: Subject) -> str:
    ranked = len(subject.ranked())
    if ranked < 2 or not subject.is_one_question:
        return ""
    return f"The best of {ranked} was chosen on the clips that it is scored on, which flatters it: expect less on new videos."


def _figures(subject: Subject) -> list[tuple[str, str]]:
    best, form, settings = subject.ranked()[0], subject.form, subject.summary.settings
    evaluation = next(iter(subject.evaluations.values()))
    failed = sum(len(setting.failed) for setting in settings)
    many = [
        (f"{len(settings)}", "settings" if len(settings) != 1 else "setting"),
        (f"{len(subject.runs)}", "runs scored" + (f", {failed} stopped" if failed else "")),
        (f"{evaluation['clips_scored']:,}", f"clips of {evaluation['videos']:,} videos scored"),
    ]
    compared = _by_gain(subject)
    if subject.is_one_question or not compared:
        found = [(f"{best.intervals[form].score:.3f}", f"best {subject.metric.name}, {form}")]
        if form in best.comparisons:
            found.append((signed_text(best.comparisons[form].gain.score), f"over {best.reference}"))
        found += [(f"{subject.trivial(best):.3f}", "trivial answer"), *many]
        found.append((scaled_text(best.cost.parameters), "parameters of the best"))
    else:
        ends = zip(("largest", "least"), (compared[0], compared[-1]), strict=True)
        found = [
            (signed_text(one.comparisons[form].gain.score), f"{which} gain, of {one.name}")
            for which, one in ends
        ] + many
    trained = [
        setting.training_s * len(setting.runs)
        for setting in settings
        if setting.training_s is not None
    ]
    return found + ([(seconds_text(sum(trained)), "training in all")] if trained else [])


def _recurrent(subject: Subject) -> tuple[Run, str]:
    """The best run that remembers something, or else the best, and its checkpoint."""
    shown = [subject.shown(setting) for setting in subject.ranked()]
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


def _along(subject: Subject, out: Path) -> list[Plot]:
    """Axes that have the same lines side by side, all others one by one."""
    found = axis_plots.along(subject)
    alike = axis_plots.alike(found)
    wide = (
        _placed(out, {"factors": axis_plots.side_by_side(subject, alike, FULL_INCHES)})
        if alike
        else []
    )
    for plot in wide:
        plot.narrow_svg = svg(axis_plots.side_by_side(subject, alike, HALF_INCHES), plot.title)
    rest = {
        f"over_{axis}": axis_plots.over_axis(subject, axis, lines)
        for axis, lines in found.items()
        if axis not in alike
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
