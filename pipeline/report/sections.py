"""The sections of a page are put together: a section for everything that the source has, and none
for what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline.cache.cache import Cache
from pipeline.cache.status import status
from pipeline.errors import BadInput, count_text
from pipeline.experiments.summary import PointSummary, Summary, least_gain
from pipeline.records import Stride
from pipeline.report import axis_plots, plots, tables
from pipeline.report.frames import token_maps, videos, words
from pipeline.report.page import Page, Plot
from pipeline.report.predictions import answers
from pipeline.report.provenance import cache_provenance, commands, runs_provenance
from pipeline.report.source import ReportData, cache_of
from pipeline.report.style import FULL_INCHES, HALF_INCHES, save_png, svg
from pipeline.report.tables import number_text, p_text, scaled_text, seconds_text, signed_text
from pipeline.train.bootstrap import Interval
from pipeline.train.run import Run

FOUND = "found"
"""Name of the PNG file of what words have found."""
STRIPS = "tokens"
"""Name of the PNG file of all tokens over time."""
NAMED = 3
"""Settings that a warning names."""
SIGNIFICANT_P = 0.05
"""Adjusted p below which a gain is called significant."""


def page_of_data(data: ReportData, out: Path) -> Page:
    """The page of runs or a sweep; plots and videos are also written into `out`."""
    summary = data.summary
    page = Page(
        title=_title(data),
        kind=f"{'Sweep' if data.path else 'Runs'} · {summary.task} on split {summary.split}",
        result=result(data),
        caution=_caution(data),
        figures=_figures(data),
        scores=tables.scores(data),
        controls=tables.controls(data),
        baselines=tables.baselines(data),
        runs=tables.runs(data),
        commands=commands(data),
        provenance=runs_provenance(data),
    )
    costs = {f"score_over_{name}": figure for name, figure in plots.pareto(data).items()}
    page.plots = {
        "scores": _saved(out, {"scores": plots.intervals(data, FULL_INCHES)}),
        "costs": _saved(out, costs),
        "places": _saved(out, plots.over_places(data)),
        "learning": _saved(out, plots.learning(data)),
        "axes": _axis_plots(data, out),
        "answers": _saved(out, answers(data)),
    }
    (scores,) = page.plots["scores"]
    scores.narrow_svg = svg(plots.intervals(data, HALF_INCHES), scores.title)
    num_ranked = len(data.ranked())
    if num_ranked > plots.ROWS:
        scores.caption += f" The best {plots.ROWS} of {num_ranked} and what they are compared with."
    page.videos, page.no_videos = videos.videos(data, out / "videos")
    best, checkpoint = data.shown(data.ranked()[0])
    evaluation = data.evaluations[data.scored_runs(data.ranked()[0])[0]]
    page.found, page.no_found = words.films_of_words(best, evaluation, checkpoint, data.form)
    page.films, page.no_films = token_maps.films_of_run(*_remembering_run(data), summary.split)
    try:
        _add_cache(page, cache_of(data.shown(data.ranked()[0])[0]))
    except BadInput as error:
        page.no_cache = f"The cache cannot be reached: {error.message}."
    _save_films(page, out)
    return page


def page_of_cache(cache: Cache, out: Path) -> Page:
    """The page of a cache alone."""
    state = status(cache)
    videos, stores, size = state.videos, state.stores, state.store_bytes
    page = Page(
        title=cache.name,
        kind="Cache",
        result=f"{videos.stored:,} of {videos.planned:,} videos are stored whole, "
        f"{state.frames:,} frames in {scaled_text(size, 'B')}; {videos.failed:,} failed.",
        figures=(
            (f"{state.frames:,}", "frames"),
            (scaled_text(size, "B"), "on disk"),
            (scaled_text(state.bytes_per_frame or 0, "B"), "per frame"),
            (f"{stores.done} of {stores.planned}", "stores finished"),
            (f"{videos.failed:,}", "videos failed"),
        ),
        commands=[f"stillframe report {cache}"],
        provenance=cache_provenance(cache),
    )
    page.films, page.no_films = token_maps.films_of_cache(cache)
    _add_cache(page, cache)
    _save_films(page, out)
    return page


# Sentences and numbers


def result(data: ReportData) -> str:
    """The best point's score with its interval, against the reference and the trivial answer, in
    two or three sentences.

    Where points have other videos and other references, none is the best: how many are ahead, and
    by how much.
    """
    if not data.is_one_question and _by_gain(data):
        return _result_of_questions(data)
    best, metric = data.ranked()[0], data.metric
    trivial = data.trivial(best)
    interval, is_alone = best.intervals[data.form], len(data.ranked()) == 1
    unit = f" {metric.unit}" if metric.unit else ""
    text = f"{best.name} has {'a' if is_alone else 'the best'} {data.form} {metric.name} of "
    text += f"{interval.score:.3f}{unit} (95 % interval {_span(interval, number_text)})."
    if comparison := best.comparisons.get(data.form):
        gain, p = comparison.gain, comparison.p_adjusted
        text += f" It is ahead of {best.reference} by {signed_text(gain.score)}"
        text += f" ({_span(gain, signed_text)}, adjusted p {p_text(p)})"
        text += "." if p < SIGNIFICANT_P else ", which is not significant."
    elif not is_alone:
        text += " It is a reference: no other is better."
    text += _over_controls(best, data.form)
    sign = 1 if metric.higher_is_better else -1
    beaten = ", which is better" if sign * (trivial - interval.score) > 0 else ""
    text += " The trivial answer, which does not look at the video, scores "
    text += f"{trivial:.3f}{beaten}."
    return text + _over_tracker(data, best)


def _over_tracker(data: ReportData, point: PointSummary) -> str:
    """A sentence on the best answer from tokens alone; empty where the task has none."""
    name = data.tracker(point)
    if name is None:
        return ""
    tracker = point.baselines[name]
    gain, score = tracker.gains[data.form], tracker.interval
    text = f" The best answer from tokens alone, without training ({name}), scores "
    text += f"{score.score:.3f} ({_span(score, number_text)}): {point.name} gains "
    return f"{text}{signed_text(gain.score)} over it ({_span(gain, signed_text)})."


def _over_controls(point: PointSummary, form: str) -> str:
    """A sentence on the control over which a point gains least; empty where there are none."""
    over = point.controls.get(form)
    if not over:
        return ""
    name, least = least_gain(over)
    text = f" Over each of {count_text(len(over), 'control')}, which see less than there is, it "
    text += f"gains {signed_text(least.gain.score)} or more"
    text += f" ({_span(least.gain, signed_text)}, adjusted p {p_text(least.p_adjusted)}"
    return f"{text}, over {name})."


def _result_of_questions(data: ReportData) -> str:
    """Says how many points are ahead of their own references, and the largest and the least
    gain."""
    scored, by_gain = data.ranked(), _by_gain(data)
    comparisons = [point.comparisons[data.form] for point in by_gain]
    better, worse = (
        sum(
            sign * comparison.gain.score > 0 and comparison.p_adjusted < SIGNIFICANT_P
            for comparison in comparisons
        )
        for sign in (1, -1)
    )
    text = f"{better} of {len(comparisons)} settings are significantly better than the reference "
    text += f"of each, {worse} worse."
    for which, point in zip(("largest", "least"), (by_gain[0], by_gain[-1]), strict=True):
        gain = point.comparisons[data.form].gain
        text += f" The {which} gain is {signed_text(gain.score)} ({_span(gain, signed_text)}), "
        text += f"of {point.name}."
    sign = 1 if data.metric.higher_is_better else -1
    num_better = sum(
        sign * (point.intervals[data.form].score - data.trivial(point)) > 0 for point in scored
    )
    text += f" {num_better} of {len(scored)} are better than the trivial answer, "
    return f"{text}which does not look at the video."


def _span(interval: Interval, show: Callable[[float], str]) -> str:
    return interval.span(show)


def _by_gain(data: ReportData) -> list[PointSummary]:
    """The points that were compared with a reference, by their gain over it, largest first."""
    compared = [point for point in data.ranked() if data.form in point.comparisons]
    return sorted(compared, key=lambda point: -point.comparisons[data.form].gain.score)


def _title(data: ReportData) -> str:
    if data.path:
        return data.summary.name
    runs = list(data.runs)
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs of {data.summary.task}"


def _caution(data: ReportData) -> str:
    """A warning where the best of several was chosen on the clips that it is scored on, and one
    where losses have hardly moved."""
    num_ranked, warnings = len(data.ranked()), []
    if num_ranked > 1 and data.is_one_question:
        warnings.append(
            f"The best of {num_ranked} was chosen on the clips that it is scored on, "
            "which flatters it: expect less on new videos."
        )
    if slow := [point.name for point in data.summary.settings if point.under_trained]:
        which = "; ".join(slow[:NAMED]) + (f" and {len(slow) - NAMED} more" * (len(slow) > NAMED))
        warnings.append(
            f"Under-trained: the training loss of {which} has hardly moved, so the score says "
            "little, unless what is seen says nothing."
        )
    return " ".join(warnings)


def _figures(data: ReportData) -> list[tuple[str, str]]:
    """Key numbers: (number, what it is)."""
    best, form, points = data.ranked()[0], data.form, data.summary.settings
    evaluation = next(iter(data.evaluations.values()))
    num_failed = sum(len(point.failed) for point in points)
    counts = [
        (f"{len(points)}", "settings" if len(points) != 1 else "setting"),
        (
            f"{len(data.runs)}",
            f"{'run' if len(data.runs) == 1 else 'runs'} scored"
            + (f", {num_failed} stopped" if num_failed else ""),
        ),
        (
            f"{evaluation.clips_scored:,}",
            f"{'clip' if evaluation.clips_scored == 1 else 'clips'} of "
            f"{count_text(evaluation.videos, 'video')} scored",
        ),
    ]
    by_gain = _by_gain(data)
    if data.is_one_question or not by_gain:
        figures = [(f"{best.intervals[form].score:.3f}", f"best {data.metric.name}, {form}")]
        if form in best.comparisons:
            gain = best.comparisons[form].gain
            figures.append((signed_text(gain.score), f"over {best.reference}"))
        figures.append((f"{data.trivial(best):.3f}", "trivial answer"))
        if tracker := data.tracker(best):
            figures.append((f"{best.baselines[tracker].interval.score:.3f}", tracker))
        figures += counts
        figures.append((scaled_text(best.cost.parameters), "parameters of the best"))
    else:
        ends = zip(("largest", "least"), (by_gain[0], by_gain[-1]), strict=True)
        figures = [
            (signed_text(point.comparisons[form].gain.score), f"{which} gain, of {point.name}")
            for which, point in ends
        ] + counts
    training_s = [
        point.training_s * len(point.runs) for point in points if point.training_s is not None
    ]
    if training_s:
        figures.append((seconds_text(sum(training_s)), "training in all"))
    return figures


def _remembering_run(data: ReportData) -> tuple[Run, str]:
    """The best run with a temporal module, or else the best run, and its checkpoint: tokens over
    time are shown with its state and gates."""
    shown = [data.shown(point) for point in data.ranked()]
    return next((pair for pair in shown if pair[0].recipe.temporal.name != "identity"), shown[0])


def _add_cache(page: Page, cache: Cache) -> None:
    """Adds what the cache holds, and which videos it lacks."""
    state, spec, shape = status(cache), cache.spec, cache.shape
    page.coverage, page.failures = tables.coverage(state.splits), tables.failures(state.reasons)
    encoder, (high, wide) = spec["encoder"], shape.grid_hw
    model_type = (encoder.get("config") or {}).get("model_type", "built in")
    derived = f", derived from {cache.header.derived_from}" if cache.header.derived_from else ""
    frames = cache.cache_spec.frames
    rate = "every frame" if frames.every == 1 else f"every {frames.every}. frame"
    if frames.rate is not None:
        by_stride = " by a stride" if isinstance(frames.kept, Stride) else ""
        rate = f"{frames.rate:g} frames a second{by_stride}"
    size, size_of_frame = (
        scaled_text(count, "B") for count in (state.store_bytes, state.bytes_per_frame or 0)
    )
    patches = f"{high} × {wide} patches, {shape.special_tokens} special"
    page.cache = {
        "cache": cache.name,
        "encoder": encoder.get("model") or f"{encoder['name']}, {model_type}",
        "codec": spec["codec"]["name"] + derived,
        "tokens of a frame": f"{patches}, {shape.width} wide",
        "layers": ", ".join(map(str, shape.layers)),
        "frames": f"{state.frames:,}, {rate}, {spec['frames']['size_px']} px",
        "bytes": f"{size}, {size_of_frame} a frame",
        "stores": f"{state.stores.done} of {state.stores.planned} finished",
    }


# Plots


CAPTIONS: Mapping[str, tuple[str, str]] = {
    "scores": (
        "Scores and their intervals",
        "Bars are 95 % intervals; point at a dot for its numbers.",
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


def _saved(out: Path, figures: Mapping[str, Figure]) -> list[Plot]:
    """Every figure as a PNG file in `out` and as a plot of the page."""
    saved = []
    for name, figure in figures.items():
        title, caption = CAPTIONS.get(name) or _other_caption(name)
        save_png(figure, out / f"{name}.png")
        saved.append(Plot(name, title, caption, svg(figure, title)))
    return saved


def _other_caption(name: str) -> tuple[str, str]:
    """Title and caption of a plot that is named after what it is over."""
    if name.startswith("places_"):
        return (
            name.removeprefix("places_").replace("_", " ").capitalize(),
            "Bands are 95 % intervals; grey lines are answers that need no training.",
        )
    return (
        f"Score over {name.removeprefix('over_')}",
        "One line for each choice of all else. Bands, where lines are few, are 95 % intervals.",
    )


def _axis_plots(data: ReportData, out: Path) -> list[Plot]:
    """Axes that have the same curves side by side, all others one by one."""
    by_axis = axis_plots.curves_by_axis(data)
    comparable = axis_plots.comparable_axes(by_axis)
    single_axes = {axis: curves for axis, curves in by_axis.items() if axis not in comparable}
    saved = []
    if comparable:
        figure = axis_plots.axes_side_by_side(data, comparable, FULL_INCHES)
        saved = _saved(out, {"factors": figure})
        narrow = axis_plots.axes_side_by_side(data, comparable, HALF_INCHES)
        saved[0].narrow_svg = svg(narrow, saved[0].title)
        saved[0].caption += not_beside(single_axes)
    return saved + _saved(
        out,
        {
            f"over_{axis}": axis_plots.axis_figure(data, axis, curves)
            for axis, curves in single_axes.items()
        },
    )


def not_beside(axes: Iterable[str]) -> str:
    """A sentence on the axes that do not stand beside those with the same curves; empty if there
    are none."""
    names = ", ".join(axes)
    return f" Other axes have other lines, and stand alone below: {names}." if names else ""


def _save_films(page: Page, out: Path) -> None:
    """All tokens over time as one PNG file."""
    if page.found:
        token_maps.sheet(list(page.found)).save(out / f"{FOUND}.png")
    if page.films:
        token_maps.sheet(list(page.films)).save(out / f"{STRIPS}.png")


def as_json(page: Page, summary: Summary | None) -> dict[str, Any]:
    """The page's numbers for scripts."""
    numbers: dict[str, Any] = {
        "title": page.title,
        "result": page.result,
        "provenance": page.provenance,
    }
    if summary is not None:
        numbers |= summary.model_dump(mode="json", exclude={"name", "settings"})
    return numbers | {table.name: table.rows for table in page.tables}
