"""Many runs on the command line: sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    FINISHED_WITH_FAILURES,
    AllowMissing,
    AsJson,
    CacheFolder,
    Device,
    DryRun,
    EngineName,
    EngineSets,
    Logs,
    ManifestFolder,
    Tensorboard,
    Track,
    Workers,
    app,
    make_engine,
    named_file,
    other_manifest,
    require_one_master,
    torch_device,
    tracker_names,
)
from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch

    from pipeline.cache.cache import Cache
    from pipeline.cli.console import Update
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.experiments.summary import PointSummary, Summary
    from pipeline.experiments.sweep import Sweep
    from pipeline.experiments.sweep_spec import SweepSpec
    from pipeline.extract.launchers.contract import EnginePlugin
    from pipeline.train.distributed import Ranks
    from pipeline.train.trainer import TrainProgress


OtherRecipe = Annotated[
    str | None, typer.Option(help="The recipe of all members, in the place of the sweep's own.")
]
ScoredSplit = Annotated[
    str | None,
    typer.Option(
        help="Split that members are scored on once they are trained. Default: val, or that of a "
        "sweep that goes on."
    ),
]


@app.command()
def sweep(
    sweep: Annotated[
        str,
        typer.Argument(
            help="What to compare: a .toml file, the name of a shipped sweep, or a sweep.json."
        ),
    ],
    cache: CacheFolder,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sweep. Default: sweeps/<its name>.")
    ] = None,
    recipe: OtherRecipe = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the recipe, for all members."),
    ] = None,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis", metavar="KEY=[...]", help="Other values of an axis, or one more axis."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Train every setting with the seeds 0, 1, ... below this."),
    ] = None,
    manifest_folder: ManifestFolder = None,
    split: ScoredSplit = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    engine: EngineName = None,
    workers: Workers = 1,
    engine_sets: EngineSets = None,
    logs: Logs = Path("logs"),
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Train members again that were stopped.")
    ] = False,
    dry_run: DryRun = False,
    track: Track = None,
    tensorboard: Tensorboard = False,
    as_json: AsJson = False,
) -> None:
    """Train and compare many runs from one read of a cache. A page is made of them. Run it again to
    go on, or with more members.

    Example: stillframe sweep temporal_modules caches/demo-0123456789ab
    """
    from pipeline.cache.parts.chosen import open_cache
    from pipeline.train import distributed

    with distributed.init_process_group() as ranks:
        spec = _spec(sweep, recipe, sets or [], axes or [], seeds)
        folder = out or Path("sweeps") / spec.name
        kept, kept_split = _kept(folder, sweep)
        manifest = other_manifest(manifest_folder or kept)
        request = SweepRequest(
            spec,
            open_cache(cache, manifest),
            manifest,
            split or kept_split,
            folder,
            torch_device(device),
            allow_missing,
            make_engine(engine, workers, engine_sets or []),
            workers,
            logs,
            tracker_names(track, tensorboard),
            ranks,
        )
        if request.engine is not None:
            require_one_master(ranks)
        if dry_run:
            _show_plan(request, as_json)
            return
        for file in folder.glob("runs/*/failed.json") if retry_failed and ranks.is_first else ():
            file.unlink()
        ranks.barrier()
        trained = _train(request)
    if ranks.is_first:
        _show(trained, as_json)


@dataclass(frozen=True)
class SweepRequest:
    """What the flags of `sweep` ask for."""

    spec: SweepSpec
    cache: Cache
    manifest: Manifest | None
    """Other clips or labels over the videos of the cache."""
    split: str
    folder: Path
    device: torch.device | None
    allow_missing: bool
    engine: EnginePlugin | None
    workers: int
    logs: Path
    trackers: list[str]
    ranks: Ranks


def _train(request: SweepRequest) -> Sweep:
    """Makes the caches of a sweep and trains its members; the first rank shows how far it is
    itself."""
    from pipeline.cli import console
    from pipeline.cli.talk import log_file
    from pipeline.experiments import sweep as module
    from pipeline.experiments.sweep_caches import prepare, require_same_videos
    from pipeline.train.trackers.tracking import Tracking

    spec, ranks = request.spec, request.ranks
    tracking = Tracking(request.trackers, spec.name, console.say)
    if request.manifest is not None:
        require_same_videos(spec, request.manifest.folder)  # before any video is rendered

    def bar(step: str) -> AbstractContextManager[Update]:
        return (
            console.progress(f"{step} {spec.name}")
            if ranks.is_first
            else nullcontext(lambda *_: None)
        )

    with bar("prepare") as update:
        caches = prepare(
            spec,
            request.cache,
            request.folder,
            ranks.device(request.device),
            lambda step, done, total: update(done, total, step),
        )
    with bar("sweep") as update, tracking:
        steps: dict[str, tuple[int, int]] = {}
        runs = sum(len(point.members) for point in spec.grid_points)

        def on_progress(state: TrainProgress) -> None:
            if ranks.is_first:
                log_file.keep_log(request.folder / log_file.RUN_LOG)
            steps[state.run] = state.step, state.steps
            done, total = (sum(column) for column in zip(*steps.values(), strict=True))
            update(
                done,
                total,
                f"steps of {len(steps)} of {runs} runs  {state.run} loss {state.loss:.4f}",
            )

        return module.sweep(
            spec,
            caches,
            request.folder,
            request.device,
            request.allow_missing,
            on_progress,
            request.engine,
            request.logs,
            console.say,
            ranks,
            request.manifest,
            request.split,
            tracking,
        )


def _show(trained: Sweep, as_json: bool) -> None:
    """The tables and the pages of a finished sweep; exit code 3 where members were stopped."""
    from pipeline.cli import console
    from pipeline.report.report import report

    summaries = trained.summaries
    pages = [str(page) for page in report(trained.path, trained.path / "report", trained.split)]
    if as_json:
        plain = {task: summary.model_dump() for task, summary in summaries.items()}
        console.show_json({"sweep": str(trained.path), "pages": pages, "summaries": plain})
    else:
        for summary in summaries.values():
            _show_summary(summary)
        console.show("\n".join(pages))
    if any(point.failed for summary in summaries.values() for point in summary.settings):
        console.say("to train those again that were stopped: the same command with --retry-failed")
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _spec(
    name: str, recipe: str | None, sets: list[str], axes: list[str], seeds: int | None
) -> SweepSpec:
    """The sweep of that name or file, with the recipe, keys and axes of the command line laid over
    it. Raises BadInput where an axis is no list."""
    from pipeline.config.toml_tables import assignment
    from pipeline.experiments.sweep_spec import load_sweep

    axis_values = dict(map(assignment, axes))
    for key, value in axis_values.items():
        if value != "*" and not isinstance(value, list):
            example = json.dumps(value.strip("[]") if isinstance(value, str) else value)
            raise BadInput(
                f"--axis {key} wants a list, found {value!r}",
                f"for example --axis '{key}=[{example}]'",
            )
    changes = dict(map(assignment, sets))
    other_recipe = named_file("recipe", recipe) if recipe is not None else None
    return load_sweep(named_file("sweep", name), changes, axis_values, seeds, other_recipe)


def _kept(folder: Path, name: str) -> tuple[Path | None, str]:
    """Manifest and split that a sweep was started with, and that need not be named again: those of
    the sweep in `folder`, which goes on, or else of the sweep.json that `name` may be."""
    from pipeline.experiments.sweep import SWEEP_FILE
    from pipeline.experiments.sweep_spec import read_header

    files = [folder / SWEEP_FILE, *([Path(name)] if name.endswith(".json") else [])]
    headers = [read_header(file) for file in files if file.is_file()]
    manifest = next((Path(header.manifest) for header in headers if header.manifest), None)
    return manifest, headers[0].split if headers else "val"


def _require_trainable(request: SweepRequest) -> None:
    """Refuses what the sweep itself would refuse, as far as that can be told before its other
    caches are made."""
    from pipeline.experiments.sweep import Sweep
    from pipeline.experiments.sweep_caches import require_makeable
    from pipeline.experiments.sweep_spec import GIVEN

    require_makeable(request.spec, request.cache)
    caches = {GIVEN: request.cache}
    sweep = Sweep.planned(request.folder, request.spec, caches, request.manifest, request.split)
    sweep.require_trainable(request.allow_missing)


def _show_plan(request: SweepRequest, as_json: bool) -> None:
    """What would be trained, and the script of its engine. Raises BadInput for what cannot be."""
    from pipeline.cli import console
    from pipeline.experiments import sweep as module

    _require_trainable(request)
    if request.ranks.is_first:
        _show_members(request.spec, as_json)
    if request.engine:
        job = module.make_sweep_job(
            request.folder, request.device, request.workers, request.allow_missing
        )
        if script := request.engine.script(job):
            console.say(script)


def _show_members(spec: SweepSpec, as_json: bool) -> None:
    """Every member of a sweep, and which of them are trained from one read."""
    from pipeline.cli import console
    from pipeline.experiments.sweep_spec import groups_of

    points = spec.grid_points
    group_of = {
        name: number for number, group in enumerate(groups_of(points), start=1) for name in group
    }
    if as_json:
        members = [
            {
                "member": name,
                "setting": point.name,
                "cache": point.cache,
                "group": group_of[name],
                "recipe": recipe.canonical(),
            }
            for point in points
            for name, recipe in point.members.items()
        ]
        console.show_json({"sweep": spec.name, "members": members})
        return
    rows = [
        (
            point.name,
            ", ".join(str(recipe.training.seed) for recipe in point.members.values()),
            point.cache,
            point.reference,
            ", ".join(
                str(group) for group in dict.fromkeys(group_of[name] for name in point.members)
            ),
        )
        for point in points
    ]
    reads = len(set(group_of.values()))
    title = (
        f"{len(group_of)} members of {spec.name}, trained from {reads} "
        f"read{'s' if reads != 1 else ''}"
    )
    console.show_table(title, ("setting", "seeds", "cache", "compared with", "group"), rows)


def _show_summary(summary: Summary) -> None:
    """What each setting scored in each form, and what it costs."""
    from pipeline.cli import console

    references = {point.reference for point in summary.settings}
    unit = f" ({summary.metric.unit})" if summary.metric.unit else ""
    over = summary.reference if len(references) == 1 else "the reference of each"
    title = (
        f"{summary.task} on split {summary.split}, gain over {over}, "
        f"trivial answer {summary.trivial:.3f}"
    )
    sign = 1 if summary.metric.higher_is_better else -1
    trackers = {
        name: baseline.interval.score
        for point in summary.settings
        for name, baseline in point.baselines.items()
        if baseline.layer is not None
    }
    if trackers:
        best = max(trackers, key=lambda name: sign * trackers[name])
        title += f", without training at best {trackers[best]:.3f} ({best})"
    columns = (
        "setting",
        "form",
        f"{summary.metric.name}{unit}",
        "95 % interval",
        "gain",
        "95 % interval",
        "p",
        "win / tie / loss",
    )
    scores = [row for point in summary.settings for row in _score_rows(point)]
    console.show_table(title, columns, scores, justify="llrlrlrl", keys=2, cut=4)
    controlled = [row for point in summary.settings for row in _control_rows(point)]
    if controlled:
        _show_controls(controlled)
    cost_columns = (
        "setting",
        "parameters",
        "GFLOP of a window",
        "training s",
        "loss fell by",
        "ms of a streaming step",
        "state of a stream",
    )
    costs = [
        (
            point.name,
            f"{point.cost.parameters:,}",
            f"{point.cost.flops / 1e9:.3g}",
            "" if point.training_s is None else f"{point.training_s:.1f}",
            _fall_text(point),
            "" if point.cost.latency_ms is None else f"{point.cost.latency_ms:.2f}",
            console.bytes_text(point.cost.state_bytes),
        )
        for point in summary.settings
    ]
    console.show_table("", cost_columns, costs, justify="lrrrrrr")
    if slow := [member for point in summary.settings for member in point.under_trained]:
        console.say(
            f"under-trained, since their loss has hardly moved: {console.few_text(slow)}; their "
            "scores say little, unless what they see says nothing"
        )


def _fall_text(point: PointSummary) -> str:
    """The share by which the training loss fell, mean over seeds, and whether it hardly moved with
    any of them."""
    falls = list(point.loss_falls.values())
    if not falls:
        return ""
    return f"{sum(falls) / len(falls):.0%}" + (" (under-trained)" if point.under_trained else "")


def _show_controls(rows: list[tuple[str, ...]]) -> None:
    """What each setting gains over the controls, which see less than there is."""
    from pipeline.cli import console

    title = "the least gain over a control; beaten are those over which its interval is above 0"
    columns = ("setting", "form", "beaten", "least gain", "95 % interval", "p", "over")
    console.show_table(title, columns, rows, justify="lllrlrl", keys=2, cut=6)


def _control_rows(point: PointSummary) -> Iterator[tuple[str, ...]]:
    """A row for each form in which a setting is compared with controls."""
    from pipeline.experiments.summary import least_gain

    for form, over in point.controls.items():
        name, least = least_gain(over)
        beaten = sum(each.gain.ends[0] > 0 for each in over.values())
        yield (
            point.name,
            form,
            f"{beaten} of {len(over)}",
            f"{least.gain.score:+.3f}",
            least.gain.span("{:+.3f}".format),
            f"{least.p_adjusted:.3f}",
            name,
        )


def _score_rows(point: PointSummary) -> Iterator[tuple[str, ...]]:
    """A row for each form that a setting is scored in, then one for each member that stopped."""
    for form, score in point.intervals.items():
        cells = (point.name, form, f"{score.score:.3f}", score.span())
        comparison = point.comparisons.get(form)
        if comparison is None:
            yield (*cells, "", "", "", "")
            continue
        gain = comparison.gain
        yield (
            *cells,
            f"{gain.score:+.3f}",
            gain.span("{:+.3f}".format),
            f"{comparison.p_adjusted:.3f}",
            f"{comparison.wins} / {comparison.ties} / {comparison.losses}",
        )
    for member, reason in point.failed.items():
        yield (member, "", "stopped", reason, "", "", "", "")
