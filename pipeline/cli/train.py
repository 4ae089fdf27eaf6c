"""Stage two on the command line: train, evaluate, stream, report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import (
    Ahead,
    AllowMissing,
    AsJson,
    CacheFolder,
    Device,
    Forecaster,
    ManifestFolder,
    RecipeArgument,
    Sets,
    app,
    named_file,
    other_manifest,
    torch_device,
)
from pipeline.cli.show import show_ahead, show_scores
from pipeline.errors import BadInput, StillframeError, count_text

if TYPE_CHECKING:
    import torch

    from pipeline.train.run import Run
    from pipeline.train.setup import RunContext
    from pipeline.train.stream import Stream

NAME_ONE = "name a run that forecasts the tokens it reads: --forecaster RUN"
CAUSAL_WINDOWS = 4
"""Windows of which it is asked whether a model looks into their future."""


@app.command()
def train(
    recipe: RecipeArgument,
    cache: CacheFolder,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Begin with the weights of this run: init.run."),
    ] = None,
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events into the folder.")
    ] = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage two: train a temporal module and a readout from a cache. Run it again to go on after
    any stop.

    Example: stillframe train demo_gru caches/demo-0123456789ab
    """
    from contextlib import ExitStack

    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.config.recipe import load_recipe
    from pipeline.train import distributed
    from pipeline.train import loop as module
    from pipeline.train.run import Run
    from pipeline.train.setup import RunContext
    from pipeline.train.tensorboard import tensorboard as event_writer
    from pipeline.train.trainer import TrainProgress

    seconds = dict[str, float]()
    with ExitStack() as stack:
        ranks = stack.enter_context(distributed.init_process_group())
        begin_with = [f"init.run={json.dumps(str(init))}"] if init else []
        loaded_recipe = load_recipe(named_file("recipe", recipe), [*(sets or []), *begin_with])
        opened_cache, manifest = Cache(cache), other_manifest(manifest_folder)
        folder = out or Path("runs") / loaded_recipe.name
        if ranks.is_first:
            is_resumed = (folder / "run.json").is_file()
            for text in (opened_cache.unvouched, is_resumed and Run(folder).unvouched("last")):
                if text:
                    console.say(text)
        draw = stack.enter_context(event_writer(folder)) if tensorboard and ranks.is_first else None
        update = (
            stack.enter_context(console.progress(f"train {loaded_recipe.name}"))
            if ranks.is_first
            else None
        )

        def on_progress(state: TrainProgress) -> None:
            seconds.update(state.seconds)
            scores = "".join(f"  {form} {score:.3f}" for form, score in state.scores.items())
            eta, speed = console.duration_text(state.eta_s), f"{state.windows_per_s:.0f} windows/s"
            if update:
                note = f"steps  loss {state.loss:.4f}  ETA {eta}  {speed}{scores}"
                update(state.step, state.steps, note)
            if draw:
                draw(state.metrics)

        run = module.train(
            loaded_recipe,
            opened_cache,
            folder,
            manifest,
            torch_device(device),
            allow_missing,
            on_progress,
            ranks,
            console.say,
        )
    if ranks.is_first:
        context = RunContext.of(opened_cache, manifest, torch_device(device), allow_missing)
        _show_run(run, context, seconds, as_json)


def _show_run(run: Run, context: RunContext, seconds: dict[str, float], as_json: bool) -> None:
    """What a training has come to, beside the trivial answer to the same clips."""
    from pipeline.cli import console
    from pipeline.train.evaluate import Scoring
    from pipeline.train.run import read_metrics

    notes = {
        "skipped": "were left out: the cache does not cover them",
        "padded": "are shorter than a window: their last frame repeats",
        "slower": "have fewer frames per second than a window: their frames repeat",
    }
    for kind, note in notes.items():
        if count := run.header.clips[kind]:
            console.say(f"{count} clips of split 'train' {note}")
    if windows := run.header.clips.get("windows"):
        console.say(f"clips count by length: {windows:,} windows in an epoch of split 'train'")
    last = run.checkpoint("last")
    assert last is not None
    scores: dict[str, float] = next(
        (line["val"] for line in reversed(read_metrics(run.path)) if "val" in line), {}
    )
    scoring = Scoring((run,), context, "val", "last")
    metric = scoring.loaded[0][1].metrics[0]
    facts = {
        "run": str(run.path),
        "steps": last.step,
        "parameters": run.header.parameters,
        "metric": metric.name,
        "val": scores,
        "trivial": scoring.trivial_score(),
        "seconds": seconds,
    }
    if as_json:
        console.show_json(facts)
    else:
        parameters = sum(run.header.parameters.values())
        console.show(
            f"{run.path}: {count_text(last.step, 'step')}, {parameters:,} trained parameters"
        )
        if seconds:
            shares = ", ".join(
                f"{step} {spent / sum(seconds.values()):.1%}" for step, spent in seconds.items()
            )
            console.show(f"time: {shares}")
        name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
        better = "higher" if metric.higher_is_better else "lower"
        console.show(
            f"val {name}, {better} is better: "
            + ", ".join(f"{form} {score:.3f}" for form, score in scores.items())
            + f"; trivial answer {facts['trivial']:.3f}"
        )
        console.show(f"next: stillframe evaluate {shlex.quote(str(run.path))}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    cache: Annotated[
        str | None, typer.Option(help="The cache, if it is no longer where it was at training.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    draw: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Also draw the answers over N clips, as .mp4 and a sheet."
        ),
    ] = 0,
    check_causal: Annotated[
        bool,
        typer.Option(
            "--check-causal",
            help="Also replace the frames after each one: nothing said up to it may change.",
        ),
    ] = False,
    forecaster: Forecaster = None,
    ahead: Ahead = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on a split, streaming and window-wide, with 95 % intervals; with --forecaster
    instead what it says of frames to come.

    Example: stillframe evaluate runs/demo_gru
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.errors import unknown_name

    if checkpoint not in ("last", "best"):
        raise unknown_name("checkpoint", checkpoint, ("last", "best"))
    if ahead and forecaster is None:
        raise BadInput("--ahead is for answers told ahead, and nobody forecasts", NAME_ONE)
    if draw and forecaster is not None:
        raise BadInput(
            "--draw draws the answers to the frames that are there, not those told ahead",
            "leave it out; stillframe stream RUN VIDEO --forecaster RUN --draw FILE.mp4 draws them",
        )
    from pipeline.train.run import Run
    from pipeline.train.setup import RunContext

    opened, told_by = Run(run), None if forecaster is None else Run(forecaster)
    if text := opened.unvouched(checkpoint):
        console.say(text)
    cache_path = cache or opened.cache_path
    if cache_path is None:
        raise BadInput(
            f"run {run} was imported without a cache",
            "name one with its encoder and layers: --cache CACHE",
        )
    folder = manifest_folder or (Path(path) if (path := opened.header.manifest_path) else None)
    context = RunContext.of(
        Cache(cache_path), other_manifest(folder), torch_device(device), allow_missing
    )
    if context.cache.unvouched:
        console.say(context.cache.unvouched)
    _score(opened, told_by, ahead or (), context, split, checkpoint, as_json)
    if check_causal:
        found = _causality(opened, context, split, checkpoint, told_by)
        (console.say if as_json else console.show)(found)
    if draw:
        from pipeline.train.visualize import draw as draw_clips

        with console.progress("draw") as update:

            def on_progress(done: int, total: int) -> None:
                update(done, total, "clips")

            sheet = draw_clips(opened, context, draw, split, checkpoint, on_progress, console.say)
        console.say(f"drawn: {sheet} and the videos in {sheet.with_suffix('')}")


def _score(
    run: Run,
    forecaster: Run | None,
    ahead_s: Sequence[float],
    context: RunContext,
    split: str,
    checkpoint: str,
    as_json: bool,
) -> None:
    """Scores a run, or what it says ahead after a forecaster, and shows what came out."""
    from pipeline.cli import console
    from pipeline.train.ahead.scores import evaluate_ahead
    from pipeline.train.evaluate import evaluate_together

    if forecaster is not None:
        told = evaluate_ahead(run, forecaster, context, ahead_s, split, checkpoint)
        console.show_json(told.model_dump()) if as_json else show_ahead(told)
        return
    (result,) = evaluate_together([run], context, split, checkpoint)
    if result.videos_seen:
        init = run.header.init
        began_with = f", or by {init.run}, with which it began" if init else ""
        console.say(
            f"{result.videos_seen} of {count_text(result.videos, 'video')} were seen in training "
            f"by {run.path}{began_with}: these scores do not tell what it is worth on others"
        )
    console.show_json(result.model_dump()) if as_json else show_scores([result])


def _causality(
    run: Run, context: RunContext, split: str, checkpoint: str, forecaster: Run | None
) -> str:
    """What is to be said of a run that does not look into the future, nor does what it says ahead
    after a forecaster, on a few windows of a split. Raises StillframeError where it does."""
    from pipeline.models.ahead import ReadAhead
    from pipeline.models.causality import first_leak
    from pipeline.train.run import load_model

    model, task = load_model(run, context.cache.shape, checkpoint, context.device)
    layers, both = set(model.layers), None
    if forecaster is not None:
        tells, _ = load_model(forecaster, context.cache.shape, device=context.device)
        both = ReadAhead(model, tells)
        layers |= {*tells.layers}
    windows = context.windows(split, run.recipe, task, sorted(layers))
    batch = next(windows.evaluation(CAUSAL_WINDOWS))
    leak = first_leak(model, task, windows.on_device(batch, context.device), both)
    if leak is not None:
        raise StillframeError(
            f"run {run.path} looks into the future: {leak.what} of frame {leak.frame} change "
            f"where frames after {leak.known} are replaced",
            "mend the temporal module or the readout that the recipe names",
        )
    frames = batch.time_s_BT.shape[1]
    return (
        f"causal: in {count_text(len(batch), 'window')} nothing that is said of a frame changes, "
        f"in any bit, where those after it are replaced, after each of {frames - 1} frames"
    )


@app.command()
def stream(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    video: Annotated[Path, typer.Argument(help="A video file, or a folder of images.")],
    query: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='What to follow from the first frame on: {"boxes": [[x0, y0, x1, y1]]} in [0, 1].',
        ),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.mp4", help="Also write a video with the answers drawn."),
    ] = None,
    start_s: Annotated[
        float,
        typer.Option(
            "--from",
            metavar="SECONDS",
            min=0,
            help="Begin with the frame on screen so long after the first one.",
        ),
    ] = 0.0,
    image_fps: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1000, help="Frame rate of a folder of images. Default: as in training."
        ),
    ] = None,
    forecaster: Forecaster = None,
    ahead: Ahead = None,
    device: Device = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the encoder's table."),
    ] = None,
) -> None:
    """Follow one video frame by frame, as a camera would deliver it: one JSON line per answer on
    stdout, at the rate of the run's windows; with --forecaster also what the answers will be.

    Example: stillframe stream runs/demo_gru clip.mp4
    """
    import time
    from contextlib import nullcontext

    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.models.tasks.parts import fonts
    from pipeline.train.run import Run
    from pipeline.train.visualize import VideoFile

    asked = _query(query)
    opened = Run(run)
    rate = _rate_of_images(video, opened) if image_fps is None else image_fps
    if text := opened.unvouched("last"):
        console.say(text)
    keys = override({}, sets or [])
    follower = _follower(opened, forecaster, ahead or (), torch_device(device), keys)
    if draw and (missing := fonts.missing_letters(opened.header.labels)):
        console.say(missing)
    count, begin = 0, time.perf_counter()
    with VideoFile(draw, follower.fps_of(video, rate)) if draw else nullcontext() as drawing:
        for seen in follower.follow(video, asked, start_s, rate):
            count += 1
            line = {"time_s": round(seen.time_s, 6), **follower.plain(seen.answer, seen)}
            told = {at: follower.plain(answer, seen) for at, answer in seen.ahead.items()}
            console.show_line(line | ({"ahead": told} if told else {}))
            if drawing:
                drawing.append(follower.drawn(seen))
    if follower.damage:
        console.say(follower.damage)
    speed = count / (time.perf_counter() - begin)
    size = console.bytes_text(follower.state_bytes)
    console.say(f"{count_text(count, 'answer')}, {speed:.1f} a second, {size} of state")


def _follower(
    run: Run,
    forecaster: Path | None,
    ahead_s: Sequence[float],
    device: torch.device | None,
    encoder: Mapping[str, Any],
) -> Stream:
    """The stream of a run: of what it says ahead, too, where a forecaster is named."""
    from pipeline.cli import console
    from pipeline.train.ahead.pair import horizons_of
    from pipeline.train.ahead.stream import StreamAhead
    from pipeline.train.run import Run
    from pipeline.train.stream import Stream

    if forecaster is not None:
        both = StreamAhead(run, Run(forecaster), ahead_s, device, encoder)
        if both.note:
            console.say(both.note)
        return both
    alone = Stream(run, device, encoder)
    if ahead_s:
        alone.task.look_ahead(horizons_of(ahead_s, None))
    return alone


def _rate_of_images(video: Path, run: Run) -> float | None:
    """The frame rate for a folder of images that nobody gave one: that of the run's own data set,
    which is said. None for what knows its own times. Raises BadInput if there is no such path, or
    no rate is known."""
    from pipeline.cli import console
    from pipeline.train.stream import trained_image_fps
    from pipeline.video.probe import TIMESTAMPS

    if not video.exists():
        raise BadInput(f"video {video} does not exist", f"looked for {video.absolute()}")
    if not video.is_dir() or (video / TIMESTAMPS).is_file():
        return None
    rate = trained_image_fps(run)
    if rate is None:
        raise BadInput(
            f"{video}: its images have no times",
            "give their frame rate, for example --image-fps 25, or one time in seconds per line "
            f"in {video / TIMESTAMPS}",
        )
    console.say(f"{video}: {rate:g} images a second, as in training; --image-fps sets another")
    return rate


def _query(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        table = json.loads(text)
    except ValueError as error:
        raise BadInput(
            f"--query is not JSON: {error}",
            "for example --query '{\"boxes\": [[0.1, 0.2, 0.5, 0.6]]}'",
        ) from error
    if not isinstance(table, dict):
        raise BadInput(
            f"--query wants a JSON object, found {text}", 'for example {"points": [[0.5, 0.5]]}'
        )
    return table


@app.command()
def report(
    source: Annotated[
        list[str], typer.Argument(help="Run folders, one sweep, or one cache (its folder or URL).")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "--html",
            help="Folder for the page, its plots as PNG, and tables as CSV and JSON.",
        ),
    ] = Path("report"),
    split: Annotated[str, typer.Option(help="Split whose scores are shown.")] = "val",
) -> None:
    """One page about runs, a sweep or a cache: scores, costs, learning curves, videos, tokens over
    time, provenance.

    Example: stillframe report runs/* --out report
    """
    from pipeline.cli import console
    from pipeline.report import report as module
    from pipeline.report.source import find_source

    for page in module.report(find_source(source), out, split, console.say):
        console.show(str(page))
