"""What several commands print: scores, and how far a cache is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import count_text

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache
    from pipeline.cache.parts.summary import PartedStatus
    from pipeline.cache.status import Status
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.experiments.baselines import BaselineEvaluation
    from pipeline.train.ahead.scores import AheadEvaluation
    from pipeline.train.bootstrap import Interval
    from pipeline.train.evaluation import Evaluation, MetricFacts

EXAMPLES = re.compile(r"; first |: ")
"""What stands between a remark of a data set and its examples."""


def show_scores(results: Sequence[Evaluation]) -> None:
    """One table for each task: its metrics in every form, and what answers score that need no
    training. Below it, how far each run is ahead of the best of them."""
    from pipeline.cli import console
    from pipeline.train.run import UNDER_TRAINED

    for task in dict.fromkeys(result.task for result in results):
        of_task = [result for result in results if result.task == task]
        metrics = [(metric.name, metric.unit) for metric in of_task[0].metrics if not metric.at]
        rows = [
            (
                result.run,
                result.temporal,
                form,
                *_score_cells([scores[name] for name, _ in metrics]),
            )
            for result in of_task
            for form, scores in result.forms.items()
        ]
        first = of_task[0]
        baselines = {
            name: scores for result in of_task for name, scores in result.baselines.items()
        }
        for name, scores in baselines.items():
            cells = _score_cells([scores.metrics[metric] for metric, _ in metrics])
            rows.append((name, "", "", *cells))
        ceilings = {name: scores for result in of_task for name, scores in result.ceilings.items()}
        for name, ceiling in ceilings.items():
            cells = _score_cells([ceiling[metric] for metric, _ in metrics])
            rows.append((name, "", "", *cells))
        if not baselines:  # of an earlier version
            (main, *rest) = [f"{first.trivial[name]:.3f}" for name, _ in metrics]
            rows.append(("trivial", "", "", main, "", *rest))
        # What all of them end with is said once.
        (how, *others) = {name.partition(", ")[2] for name, _ in metrics}
        of_all = f", {how}" if how and not others else ""
        names = [(name.removesuffix(of_all), unit) for name, unit in metrics]
        (main, *rest) = [f"{name} ({unit})" if unit else name for name, unit in names]
        title = f"{task} on split {first.split}{of_all}: {count_text(first.clips_scored, 'clip')}"
        columns = ("run", "temporal", "form", main, "95 % interval", *rest)
        keys = 3 if any(len(result.forms) > 1 for result in of_task) else 1
        letters = "lllrl" + "r" * len(rest)
        console.show_table(title, columns, rows, justify=letters, keys=keys, cut=5)
        _show_places(
            first.metrics,
            {
                f"{result.run}, {form}" if len(result.forms) > 1 else result.run: scores
                for result in of_task
                for form, scores in result.forms.items()
            }
            | {name: scores.metrics for name, scores in baselines.items()}
            | ceilings,
        )
        for result in of_task:
            _show_gains(result)
            _show_kinds(result)
    for result in results:
        if result.loss_fall is not None and result.loss_fall < UNDER_TRAINED:
            console.say(
                f"{result.run}: under-trained: its training loss has hardly moved, by "
                f"{result.loss_fall:.0%}"
            )
        if result.clips_skipped:
            console.say(
                f"{result.run}: {count_text(result.clips_skipped, 'clip')} left out: "
                "the cache does not cover them"
            )
        if result.clips_without_truth:
            console.say(
                f"{result.run}: {count_text(result.clips_without_truth, 'clip')} left out: "
                "they have nothing to score"
            )


def show_ahead(result: AheadEvaluation) -> None:
    """One table of what a run says of frames to come, horizon by horizon, in the first metric of
    its task."""
    from pipeline.cli import console

    metric = result.metrics[0]
    name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
    better = "higher" if metric.higher_is_better else "lower"
    signed, answers = "{:+.3f}".format, ("oracle", "forecast", "copy", "trivial")
    rows = []
    for at in result.horizons:
        gain = at.gains["copy"]
        scores = [f"{at.answers[answer][metric.name].score:.3f}" for answer in answers]
        rows.append((f"{at.ahead_s:.3g} s", *scores, signed(gain.score), gain.span(signed)))
    console.show_table(
        f"{result.task} told ahead on split {result.split}: {name}, {better} is better, "
        f"{count_text(result.clips, 'clip')}",
        ("ahead", *answers, "gain", "95 % interval"),
        rows,
        justify="l" + "r" * len(answers) + "rl",
    )
    for at in result.horizons:
        over, now = at.gains["now"], at.answers["now"][metric.name].score
        console.show(
            f"{at.ahead_s:.3g} s: {signed(over.score)} ({over.span(signed)}) over the answer of "
            f"now, {now:.3f}"
        )
    console.say(
        f"gain: by forecasts of {result.forecaster.run} over a copy of the present tokens; --json "
        "has all intervals"
    )
    for note in result.notes:
        console.say(note)


def _show_places(
    metrics: Sequence[MetricFacts], scores: Mapping[str, Mapping[str, Interval]]
) -> None:
    """Metrics that are measured in several places of an axis, such as the skill of a forecast over
    its horizons: a table for each, with a row for each of `scores`."""
    from pipeline.cli import console

    places: dict[str, dict[str, str]] = {}
    for metric in metrics:
        if metric.at:
            places.setdefault(metric.base, {})[metric.at] = metric.name
    for base, names in places.items():
        rows = [
            (answer, *(f"{of_answer[name].score:.3f}" for name in names.values()))
            for answer, of_answer in scores.items()
        ]
        console.show_table(base, ("answer", *names), rows, justify="l" + "r" * len(names))


def _show_kinds(result: Evaluation) -> None:
    """A table of the questions of a run, kind by kind, in the first metric."""
    from pipeline.cli import console

    if not result.kinds:
        return
    answers = list(next(iter(result.kinds.values())).scores)
    rows = [
        (kind, of_kind.clips, *(f"{of_kind.scores[answer].score:.3f}" for answer in answers))
        for kind, of_kind in result.kinds.items()
    ]
    title = f"{result.run}: {result.metrics[0].name} by kind of question"
    console.show_table(title, ("kind", "clips", *answers), rows, justify="lr" + "r" * len(answers))


def _show_gains(result: Evaluation) -> None:
    """A line for each form of a run whose task has more than the trivial answer to be better
    than."""
    from pipeline.cli import console
    from pipeline.models.video_model import TRIVIAL

    metric = result.metrics[0]
    sign = 1 if metric.higher_is_better else -1
    scores = {
        name: sign * baseline.metrics[metric.name].score
        for name, baseline in result.baselines.items()
    }
    best = max(scores, key=lambda name: scores[name], default=None)
    if best is None or best == TRIVIAL:
        return
    for form, gain in result.baselines[best].run_gains.items():
        console.show(
            f"{result.run}, {form}: {gain.score:+.3f} ({gain.span('{:+.3f}'.format)}) over {best}, "
            "which learns nothing"
        )


def _score_cells(scores: Sequence[Interval]) -> list[str]:
    """The first score and its interval, then the others."""
    first, *rest = scores
    return [f"{first.score:.3f}", first.span(), *(f"{score.score:.3f}" for score in rest)]


def show_notes(notes: Mapping[str, str]) -> None:
    """The notes of a manifest (source -> remark), those that differ in names and numbers alone as
    one, with their count."""
    from pipeline.cache.status import group_failures
    from pipeline.cli import console

    kinds = {source: EXAMPLES.split(remark)[0] for source, remark in notes.items()}
    rows = []
    for group in group_failures(kinds, {}):
        is_one = len(group.videos) == 1
        remark = notes[group.videos[0]] if is_one else group.reason
        rows.append((len(group.videos), console.few_text(group.videos, 2), remark))
    if rows:
        title = count_text(len(notes), "note")
        console.show_table(title, ("notes", "on", "remark"), rows)


def show_baselines(results: Sequence[BaselineEvaluation]) -> None:
    """One table of what needs no training over several caches, the trivial answer first in
    each."""
    from pipeline.cli import console

    first = results[0]
    metrics = [metric for metric in first.metrics if not metric.at]
    (main, *rest) = [
        f"{metric.name} ({metric.unit})" if metric.unit else metric.name for metric in metrics
    ]
    name_of_main = metrics[0].name
    # A skill is a gain as it is: over a trivial answer that scores 0.
    has_gains = any(
        scores.over_trivial and scores.over_trivial.score != scores.metrics[name_of_main].score
        for result in results
        for scores in result.baselines.values()
    )
    rows = []
    for result in results:
        answers = {name: scores.metrics for name, scores in result.baselines.items()}
        for name, of_answer in (answers | result.ceilings).items():
            score, span, *others = _score_cells([of_answer[metric.name] for metric in metrics])
            baseline = result.baselines.get(name)
            gain = baseline.over_trivial if baseline else None
            gains = (f"{gain.score:+.3f}", gain.span("{:+.3f}".format)) if gain else ("", "")
            rows.append((result.cache.name, name, score, span, *gains[: 2 * has_gains], *others))
    gain_columns = ("over trivial", "95 % interval")[: 2 * has_gains]
    columns = ("cache", "answer", main, "95 % interval", *gain_columns, *rest)
    clips, videos = count_text(first.clips_scored, "clip"), count_text(first.videos, "video")
    title = f"{first.task} on split {first.split}, without training: {clips} of {videos}"
    letters = "llrl" + "rl"[: 2 * has_gains] + "r" * len(rest)
    console.show_table(title, columns, rows, justify=letters, keys=2, cut=4)
    for result in results:
        named = {name: scores.metrics for name, scores in result.baselines.items()}
        _show_places(first.metrics, named | result.ceilings)
    for result in results:
        if result.clips_skipped:
            console.say(
                f"{result.cache.name}: {count_text(result.clips_skipped, 'clip')} left out: "
                "the cache does not cover them"
            )


def show_status(cache: Cache, as_json: bool, manifest: Manifest | None = None) -> None:
    """How far a cache is: stores, videos, splits, who is at work, and which videos failed why. The
    splits are those of `manifest`, if one is given, and what to do with it is said."""
    from pipeline.cache.status import status
    from pipeline.cli import console

    state = status(cache, manifest)
    if as_json:
        console.show_json(state.model_dump())
        return
    stores, videos = state.stores, state.videos
    per_frame = f" ({state.bytes_per_frame:,} bytes per frame)" if state.frames else ""
    console.show(
        f"{state.cache}: {stores.done} of {stores.planned} stores, {state.frames} frames, "
        f"{console.bytes_text(state.store_bytes)}{per_frame}, codec {state.codec}"
    )
    console.show(f"videos: {videos.stored} of {videos.planned} whole, {videos.failed} failed")
    if state.manifest:
        console.show(f"clips of manifest {state.manifest}:")
    for split, counts in state.splits.items():
        console.show(
            f"split {split}: {counts.covered} of {counts.clips} clips, "
            f"{counts.whole} of {counts.videos} videos, "
            f"{counts.frames} of about {counts.expected} frames"
        )
        if hole := counts.first_hole:
            console.show(
                f"split {split}, first clip that is not covered: {hole.clip}: {hole.reason}"
            )
    if state.seconds:
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in state.seconds.items())
        console.show(f"work: {steps}")
    _show_progress(state)
    if cache.unvouched:
        console.say(cache.unvouched)
    if state.reasons:
        rows = [
            (len(group.videos), console.few_text(group.videos), group.reason)
            for group in state.reasons
        ]
        title = f"{count_text(videos.failed, 'video')} failed"
        console.show_table(title, ("videos", "which", "reason"), rows)
    if others := len(state.damaged.keys() - state.failures.keys()):
        console.show(
            "damaged frames that are kept, or that the rate does not ask for, in "
            f"{count_text(others, 'video')}: --json says which"
        )
    _show_lengths(state)
    if state.manifest:
        _show_next(state)


def show_parted_status(state: PartedStatus, as_json: bool) -> None:
    """How far a cache in parts is: parts, videos, splits, speed, and which parts hold failures."""
    from pipeline.cli import console

    if as_json:
        console.show_json(state.model_dump())
        return
    parts = state.parts
    console.show(
        f"{state.cache}: {parts.done} of {parts.planned} parts, {parts.begun - parts.done} begun, "
        f"{count_text(state.stores, 'store')}, {count_text(state.frames, 'frame')}, "
        f"{console.bytes_text(state.store_bytes)}"
    )
    console.show(f"videos: {state.stored} of {state.videos} whole, {state.failed} failed")
    for split, counts in state.splits.items():
        console.show(f"split {split}: {counts.covered} of {counts.clips} clips")
    if state.seconds:
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in state.seconds.items())
        console.show(f"work: {steps}")
    if state.lost:
        console.show(
            f"{count_text(len(state.lost), 'finished part')} gone: {console.few_text(state.lost)}; "
            f"next: put back what was there, or remove the marks in {state.cache}/done and run "
            "extract again"
        )
    if state.failed_in:
        first = shlex.join(["stillframe", "status", f"{state.cache}/{state.failed_in[0]}"])
        where = f"{count_text(len(state.failed_in), 'part')} with failed videos"
        console.show(f"{where}; next: {first}")
    if state.eta_s is not None:
        eta = console.duration_text(state.eta_s)
        console.show(f"now: {state.frames_per_s:.1f} frames/s, ETA {eta}")
    elif parts.done < parts.planned:
        console.show(
            f"{count_text(parts.planned - parts.done, 'part')} left and nobody is at work: run "
            "extract again"
        )


def _show_lengths(state: Status) -> None:
    """Videos that hold another number of frames than their header promises."""
    from pipeline.cli import console

    if state.other_length:
        lengths = [
            (video, content.decoded, content.header)
            for video, content in state.other_length.items()
        ]
        where = count_text(len(lengths), "video")
        console.show(f"another number of frames than the header says, in {where}:")
        console.show_table("", ("video", "frames", "header"), lengths[:10])
        if len(lengths) > 10:
            console.show(f"and {len(lengths) - 10} more, all of them with --json")


def _show_next(state: Status) -> None:
    """The command that trains with the manifest that was asked for; nothing while clips of it wait
    for an extraction, of which is told already."""
    from pipeline.cli import console

    assert state.manifest is not None
    holes = sum(counts.clips - counts.covered for counts in state.splits.values())
    if holes and state.stores.done < state.stores.planned:
        return
    command = ["stillframe", "train", "RECIPE", state.cache, "--manifest", state.manifest]
    left_out = f"{count_text(holes, 'clip')} would be left out; " if holes else ""
    console.show(f"{left_out}next: {shlex.join(command + ['--allow-missing'] * bool(holes))}")


def _show_progress(state: Status) -> None:
    """Who is at work, when it will be done, and what to do where nobody is."""
    from pipeline.cli import console

    left = state.stores.planned - state.stores.done
    step = "derive" if state.derived_from else "extract"
    at_work: dict[tuple[Any, ...], list[int]] = {}
    for worker in state.workers:
        machine = "this machine" if worker.is_here else f"machine {worker.machine}"
        activity = {True: "at work", False: "gone", None: "at work when it last wrote"}[
            worker.alive
        ]
        stores = at_work.setdefault((worker.pid, machine, activity), [])
        stores += [int(worker.lease)] if worker.lease.isdigit() else []
    for (pid, machine, activity), stores in at_work.items():
        on = f"store {spans_text(stores)}" if stores else "the plan"
        console.show(f"process {pid} of {machine}: {on}, {activity}")
    if not left:
        return
    if state.eta_s is not None:
        speed, eta = state.frames_per_s, console.duration_text(state.eta_s)
        console.show(f"now: {speed:.1f} frames/s, {state.frames_left} frames left, ETA {eta}")
    elif not state.is_worked_on:
        console.show(
            f"{left} stores, about {state.frames_left} frames, are left and nobody is at work: "
            f"run {step} again"
        )


def spans_text(numbers: list[int]) -> str:
    """1, 4..9: ascending numbers, neighbours as one span, eight spans at most."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [str(first) if first == last else f"{first}..{last}" for first, last in spans]
    many = f" ({len(numbers)} stores)" if len(numbers) > 2 else ""
    return ", ".join(texts[:8]) + (" ..." if len(texts) > 8 else "") + many
