"""Many runs on the command line: sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
    Workers,
    app,
    make_engine,
    named_file,
    torch_device,
)
from pipeline.errors import BadInput

if TYPE_CHECKING:
    import torch

    from pipeline.cache.cache import Cache
    from pipeline.cli.console import Update
    from pipeline.experiments.summary import Summary
    from pipeline.experiments.sweep import Sweep
    from pipeline.experiments.sweep_spec import SweepSpec
    from pipeline.extract.launchers.contract import EnginePlugin
    from pipeline.train.distributed import Ranks
    from pipeline.train.trainer import TrainProgress


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
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events of every run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train many runs from one read of a cache, compare them, and make a page. Run it again to go
    on, or with more members.

    Example: stillframe sweep temporal_modules caches/demo-0123456789ab
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.experiments import sweep as module
    from pipeline.train import distributed

    with distributed.init_process_group() as ours:
        spec = _spec(sweep, sets or [], axes or [], seeds)
        given, on = Cache(cache), torch_device(device)
        folder, crew = (
            out or Path("sweeps") / spec.name,
            make_engine(engine, workers, engine_sets or []),
        )
        if tensorboard and crew:
            raise BadInput(
                "--tensorboard draws what this process trains, and an engine's workers do it",
                "leave one out",
            )
        if crew and ours.size > 1:
            raise BadInput(
                f"an engine starts workers of its own, and torchrun has started {ours.size}",
                "leave one out",
            )
        if dry_run:
            _require_trainable(spec, given, folder)
            if ours.is_first:
                _show_plan(spec, as_json)
            if crew and (
                script := crew.script(module.make_sweep_job(folder, on, workers, allow_missing))
            ):
                console.say(script)
            return
        if retry_failed and ours.is_first:
            for file in folder.glob("runs/*/failed.json"):
                file.unlink()
        ours.barrier()
        made = _train(spec, given, folder, on, allow_missing, crew, logs, tensorboard, ours)
    if ours.is_first:
        _show(made, as_json)


def _train(
    spec: SweepSpec,
    given: Cache,
    folder: Path,
    device: torch.device | None,
    allow_missing: bool,
    engine: EnginePlugin | None,
    logs: Path,
    tensorboard: bool,
    ranks: Ranks,
) -> Sweep:
    """Makes the caches of a sweep and trains its members; the first rank shows how far it is
    itself."""
    from pipeline.cli import console
    from pipeline.experiments import sweep as module
    from pipeline.experiments.sweep_caches import prepare

    def bar(what: str) -> AbstractContextManager[Update]:
        return (
            console.progress(f"{what} {spec.name}")
            if ranks.is_first
            else nullcontext(lambda *_: None)
        )

    with bar("prepare") as update:
        on = ranks.device(device)
        caches = prepare(
            spec, given, folder, on, lambda what, done, total: update(done, total, what)
        )
    with bar("sweep") as update, _drawing(tensorboard, folder) as draw:
        steps: dict[str, tuple[int, int]] = {}
        runs = sum(len(point.members) for point in spec.grid_points)

        def on_progress(state: TrainProgress) -> None:
            steps[state.run] = state.step, state.steps
            done, total = (sum(column) for column in zip(*steps.values(), strict=True))
            update(
                done,
                total,
                f"steps of {len(steps)} of {runs} runs  {state.run} loss {state.loss:.4f}",
            )
            draw(state)

        return module.sweep(
            spec,
            caches,
            folder,
            device,
            allow_missing,
            on_progress,
            engine,
            logs,
            console.say,
            ranks,
        )


def _show(made: Sweep, as_json: bool) -> None:
    """The tables and the pages of a finished sweep; exit code 3 where members were stopped."""
    from pipeline.cli import console
    from pipeline.report.report import report

    summaries = made.summaries
    pages = [str(page) for page in report(made.path, made.path / "report")]
    if as_json:
        plain = {task: one.model_dump(mode="json") for task, one in summaries.items()}
        console.show_json({"sweep": str(made.path), "pages": pages, "summaries": plain})
    else:
        for summary in summaries.values():
            _show_summary(summary)
        console.show("\n".join(pages))
    if any(point.failed for summary in summaries.values() for point in summary.settings):
        console.say("to train those again that were stopped: the same command with --retry-failed")
        raise typer.Exit(FINISHED_WITH_FAILURES)


@contextmanager
def _drawing(wanted: bool, folder: Path) -> Iterator[Callable[[TrainProgress], None]]:
    """Draws the steps of every run for TensorBoard, into its own folder, if that is wanted."""
    from pipeline.train import tensorboard

    with ExitStack() as stack:
        draws: dict[str, tensorboard.LogLine] = {}

        def draw(state: TrainProgress) -> None:
            if state.run not in draws:
                draws[state.run] = stack.enter_context(
                    tensorboard.tensorboard(folder / "runs" / state.run)
                )
            draws[state.run](state.metrics)

        yield draw if wanted else lambda _: None


def _spec(name: str, sets: list[str], axes: list[str], seeds: int | None) -> SweepSpec:
    from pipeline.config.toml_tables import assignment
    from pipeline.experiments.sweep_spec import load_sweep

    found = dict(map(assignment, axes))
    for key, value in found.items():
        if value != "*" and not isinstance(value, list):
            example = json.dumps(value.strip("[]") if isinstance(value, str) else value)
            raise BadInput(
                f"--axis {key} wants a list, found {value!r}",
                f"for example --axis '{key}=[{example}]'",
            )
    changes = dict(map(assignment, sets))
    return load_sweep(named_file("sweep", name), changes, found, seeds)


def _require_trainable(spec: SweepSpec, given: Cache, folder: Path) -> None:
    """Refuses what the sweep itself would refuse, as far as that can be told before its other
    caches are made."""
    from pipeline.experiments.sweep import require_trainable
    from pipeline.experiments.sweep_caches import require_rendered
    from pipeline.experiments.sweep_spec import GIVEN

    for point in spec.grid_points:
        if point.cache != GIVEN and spec.caches[point.cache].data:
            require_rendered(point.cache, spec.caches[point.cache], given)
        for name, recipe in point.members.items() if point.cache == GIVEN else ():
            require_trainable(recipe, given, folder / "runs" / name)


def _show_plan(spec: SweepSpec, as_json: bool) -> None:
    """What would be trained, and which of it from one read."""
    from pipeline.cli import console
    from pipeline.experiments.sweep import groups_of

    points = spec.grid_points
    group_of = {
        name: number for number, group in enumerate(groups_of(points), start=1) for name in group
    }
    if as_json:
        members = [
            {
                "member": name,
                "setting": one.name,
                "cache": one.cache,
                "group": group_of[name],
                "recipe": recipe.canonical(),
            }
            for one in points
            for name, recipe in one.members.items()
        ]
        console.show_json({"sweep": spec.name, "members": members})
        return
    rows = [
        (
            one.name,
            ", ".join(str(recipe.training.seed) for recipe in one.members.values()),
            one.cache,
            one.reference,
            ", ".join(
                str(group) for group in dict.fromkeys(group_of[name] for name in one.members)
            ),
        )
        for one in points
    ]
    title = (
        f"{len(group_of)} members of {spec.name}, trained from {len(set(group_of.values()))} reads"
    )
    console.show_table(title, ("setting", "seeds", "cache", "compared with", "group"), rows)


def _show_summary(summary: Summary) -> None:
    """What each setting scored in each form, and what it costs."""
    from pipeline.cli import console

    scores, costs, references = [], [], {one.reference for one in summary.settings}
    for one in summary.settings:
        for form, found in one.intervals.items():
            gain = one.comparisons.get(form)
            shown = (one.name, form, f"{found.score:.3f}", f"{found.low:.3f} .. {found.high:.3f}")
            if gain:
                ahead = (
                    f"{gain.gain.score:+.3f}",
                    f"{gain.gain.low:+.3f} .. {gain.gain.high:+.3f}",
                    f"{gain.p_adjusted:.3f}",
                )
                scores.append((*shown, *ahead, f"{gain.wins} / {gain.ties} / {gain.losses}"))
            else:
                scores.append((*shown, "", "", "", ""))
        scores += [
            (member, "", "stopped", why, "", "", "", "") for member, why in one.failed.items()
        ]
        costs.append(
            (
                one.name,
                f"{one.cost.parameters:,}",
                f"{one.cost.flops / 1e9:.3g}",
                "" if one.training_s is None else f"{one.training_s:.1f}",
                "" if one.cost.latency_ms is None else f"{one.cost.latency_ms:.2f}",
                console.bytes_text(one.cost.state_bytes),
            )
        )
    unit = f" ({summary.metric.unit})" if summary.metric.unit else ""
    over = summary.reference if len(references) == 1 else "the reference of each"
    title = f"{summary.task} on split {summary.split}, gain over {over}, trivial answer {summary.trivial:.3f}"
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
    console.show_table(title, columns, scores)
    columns_of_costs = (
        "setting",
        "parameters",
        "GFLOP of a window",
        "training s",
        "ms of a streaming step",
        "state of a stream",
    )
    console.show_table("", columns_of_costs, costs)
