"""Stage two on the command line: train, evaluate, report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    Ahead,
    AllowMissing,
    AsJson,
    CacheFolder,
    Device,
    DryRun,
    EngineName,
    EngineSets,
    Forecaster,
    Logs,
    ManifestFolder,
    RecipeArgument,
    Sets,
    Tensorboard,
    Track,
    app,
    make_engine,
    named_file,
    other_manifest,
    require_one_master,
    torch_device,
    tracker_names,
)
from pipeline.cli.show import show_ahead, show_scores
from pipeline.cli.talk import log_file
from pipeline.errors import BadInput, StillframeError, count_text

if TYPE_CHECKING:
    import torch

    from pipeline.cache.cache import Cache
    from pipeline.config.recipe import Recipe
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.extract.launchers.contract import EnginePlugin
    from pipeline.train.distributed import Ranks
    from pipeline.train.run import Run
    from pipeline.train.setup import RunContext
    from pipeline.train.trainer import TrainProgress

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
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Begin while the cache is filled, and wait for the rest."),
    ] = False,
    track: Track = None,
    tensorboard: Tensorboard = False,
    device: Device = None,
    engine: EngineName = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes of the training, each with a device.")
    ] = 1,
    engine_sets: EngineSets = None,
    logs: Logs = Path("logs"),
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage two: train a temporal module and a readout. They learn from a cache. Run it again to go
    on after any stop.

    Example: stillframe train demo_gru caches/demo-0123456789ab
    """
    from pipeline.cache.parts.chosen import open_cache
    from pipeline.config.recipe import load_recipe
    from pipeline.train import distributed

    with distributed.init_process_group() as ranks:
        changes = [*(sets or []), *([f"init.run={json.dumps(str(init))}"] if init else [])]
        loaded_recipe = load_recipe(named_file("recipe", recipe), changes)
        manifest = other_manifest(manifest_folder)
        request = TrainRequest(
            loaded_recipe,
            cache,
            open_cache(cache, manifest),
            out or Path("runs") / loaded_recipe.name,
            manifest,
            torch_device(device),
            allow_missing,
            follow,
            tracker_names(track, tensorboard),
        )
        started = make_engine(engine, workers, engine_sets or [], together=True)
        if started is not None or dry_run:
            require_one_master(ranks)
            words = _words(recipe, request, changes)
            _on_engine(started, words, workers, request, logs, dry_run, as_json)
            return
        run, seconds = _train(request, ranks)
    if ranks.is_first:
        _show_run(run, request.context, seconds, as_json)


@dataclass(frozen=True)
class TrainRequest:
    """What the flags of `train` ask for."""

    recipe: Recipe
    address: str
    """Folder or URL of the cache."""
    cache: Cache
    """As it was when the command began."""
    folder: Path
    manifest: Manifest | None
    """Other clips or labels over the videos of the cache."""
    device: torch.device | None
    allow_missing: bool
    follow: bool
    trackers: list[str]

    @property
    def context(self) -> RunContext:
        """What the run is scored on, once it is trained: by then a cache that it has followed is
        whole."""
        from pipeline.cache.parts.chosen import open_cache
        from pipeline.cli import console
        from pipeline.train.setup import RunContext

        cache = open_cache(self.address, self.manifest)
        return RunContext.of(cache, self.manifest, self.device, self.allow_missing, say=console.say)


def _train(request: TrainRequest, ranks: Ranks) -> tuple[Run, dict[str, float]]:
    """Trains the run; the first rank shows how far it is, and hands it to the trackers. Returns
    the run, and the seconds that this process has spent on each of its stages."""
    from contextlib import ExitStack

    from pipeline.cli import console
    from pipeline.train import loop as module
    from pipeline.train.evaluate import evaluate_together
    from pipeline.train.run import Run
    from pipeline.train.trackers.tracking import Tracking

    seconds = dict[str, float]()
    with ExitStack() as stack:
        if ranks.is_first:
            is_resumed = (request.folder / "run.json").is_file()
            unvouched = is_resumed and Run(request.folder).unvouched("last")
            for text in (request.cache.unvouched, unvouched):
                if text:
                    console.say(text)
        names = request.trackers if ranks.is_first else []
        tracking = stack.enter_context(Tracking(names, say=console.say))
        shown = console.progress(f"train {request.recipe.name}")
        update = stack.enter_context(shown) if ranks.is_first else None

        def on_progress(state: TrainProgress) -> None:
            seconds.update(state.seconds)
            if update:
                log_file.keep_log(request.folder / log_file.RUN_LOG)
                update(state.step, state.steps, _progress_note(state))

        run = module.train(
            request.recipe,
            request.cache,
            request.folder,
            request.manifest,
            request.device,
            request.allow_missing,
            on_progress,
            ranks,
            console.say,
            request.follow,
            tracking,
        )
        if tracking.takes_scores:
            (evaluation,) = evaluate_together([run], request.context)
            tracking.finish(run, evaluation, "finished")
    return run, seconds


def _words(recipe: str, request: TrainRequest, changes: Sequence[str]) -> list[str]:
    """The command that trains what is asked for, without engine, from any folder."""
    file = Path(recipe)
    words = ["train", str(file.absolute()) if file.exists() else recipe]
    words += [request.cache.storage.address, "--out", str(request.folder.absolute())]
    if request.manifest is not None:
        words += ["--manifest", str(request.manifest.folder.absolute())]
    if request.device is not None:
        words += ["--device", request.device.type]
    words += ["--allow-missing"] * request.allow_missing + ["--follow"] * request.follow
    words += [word for name in request.trackers for word in ("--track", name)]
    return words + [word for change in changes for word in ("--set", change)]


def _on_engine(
    engine: EnginePlugin | None,
    words: Sequence[str],
    processes: int,
    request: TrainRequest,
    logs: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Has an engine train, and shows how far it is, and what it has come to."""
    from pipeline.cli import console
    from pipeline.experiments.launched import make_train_job, train_on

    context, folder = request.context, request.folder
    job = make_train_job(words, request.recipe, context, request.device, processes, folder, logs)
    if dry_run:
        console.show(f"stillframe {shlex.join(job.words)}")
        if engine is not None and (script := engine.script(job)):
            console.say(script)
        return
    assert engine is not None
    with console.progress(f"train {request.recipe.name}") as update:
        run = train_on(engine, job, logs, folder, lambda step, steps: update(step, steps, "steps"))
    _show_run(run, request.context, {}, as_json)


def _progress_note(state: TrainProgress) -> str:
    from pipeline.cli import console

    scores = "".join(f"  {form} {score:.3f}" for form, score in state.scores.items())
    eta, speed = console.duration_text(state.eta_s), f"{state.windows_per_s:.0f} windows/s"
    return f"steps  loss {state.loss:.4f}  ETA {eta}  {speed}{scores}"


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
    dual_softmax: Annotated[
        bool,
        typer.Option(
            "--dual-softmax",
            help="Score a run of retrieve by cosines times their softmax over the split.",
        ),
    ] = False,
    forecaster: Forecaster = None,
    ahead: Ahead = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on a split, with 95 % intervals. It is scored streaming and window-wide; with
    --forecaster instead what it says of frames to come.

    Example: stillframe evaluate runs/demo_gru
    """
    from pipeline.cli import console
    from pipeline.errors import unknown_name

    if checkpoint not in ("last", "best"):
        raise unknown_name("checkpoint", checkpoint, ("last", "best"))
    _require_one_question(ahead, forecaster, draw > 0, dual_softmax)
    from pipeline.train.ahead.scores import evaluate_ahead
    from pipeline.train.run import Run

    opened, told_by = Run(run), None if forecaster is None else Run(forecaster)
    if text := opened.unvouched(checkpoint):
        console.say(text)
    context = _context_of(opened, cache, manifest_folder, torch_device(device), allow_missing)
    if context.cache.unvouched:
        console.say(context.cache.unvouched)
    if told_by is None:
        _score(opened, context, split, checkpoint, dual_softmax, as_json)
    else:
        told = evaluate_ahead(opened, told_by, context, ahead or (), split, checkpoint)
        console.show_json(told.model_dump()) if as_json else show_ahead(told)
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


def _context_of(
    run: Run,
    cache: str | None,
    manifest_folder: Path | None,
    device: torch.device | None,
    allow_missing: bool,
) -> RunContext:
    """The data that a run was trained on, unless others are named."""
    from pipeline.cache.parts.chosen import open_cache
    from pipeline.cli import console
    from pipeline.train.setup import RunContext

    cache_path = cache or run.cache_path
    if cache_path is None:
        raise BadInput(
            f"run {run.path} knows no cache here: it was imported without one, or pulled",
            "name one with its encoder and layers: --cache CACHE",
        )
    manifest = other_manifest(manifest_folder or run.header.manifest_path)
    opened = open_cache(cache_path, manifest)
    return RunContext.of(opened, manifest, device, allow_missing, say=console.say)


def _require_one_question(
    ahead: Sequence[float] | None, forecaster: Path | None, draw: bool, dual_softmax: bool
) -> None:
    """Refuses what cannot be asked of a run at once."""
    if ahead and forecaster is None:
        raise BadInput("--ahead is for answers told ahead, and nobody forecasts", NAME_ONE)
    if dual_softmax and (draw or forecaster is not None):
        raise BadInput(
            "--dual-softmax is about the scores of a split, and not about what is drawn or told "
            "ahead",
            "ask for one at a time",
        )
    if draw and forecaster is not None:
        raise BadInput(
            "--draw draws the answers to the frames that are there, not those told ahead",
            "leave it out; stillframe stream RUN VIDEO --forecaster RUN --draw FILE.mp4 draws them",
        )


def _score(
    run: Run, context: RunContext, split: str, checkpoint: str, dual_softmax: bool, as_json: bool
) -> None:
    """Scores a run, and shows what came out."""
    from pipeline.cli import console
    from pipeline.train.evaluate import evaluate_together

    (result,) = evaluate_together([run], context, split, checkpoint, dual_softmax=dual_softmax)
    if dual_softmax:
        console.say(
            f"dual softmax: every score looks at the whole split '{split}', so that these are no "
            "scores of single queries; those are kept beside them"
        )
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
    """Make one page about runs, a sweep or a cache. It shows scores, costs, learning curves,
    videos, tokens over time and provenance.

    Example: stillframe report runs/* --out report
    """
    from pipeline.cli import console
    from pipeline.report import report as module
    from pipeline.report.source import find_source

    for page in module.report(find_source(source), out, split, console.say):
        console.show(str(page))
