"""Stage one on the command line: extract, derive."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    FINISHED_WITH_FAILURES,
    AsJson,
    CachesFolder,
    Decoders,
    Device,
    DryRun,
    EngineName,
    EngineSets,
    Logs,
    Root,
    Sets,
    Workers,
    app,
    make_engine,
    named_file,
    torch_device,
)
from pipeline.cli.show import show_parted_status, show_status
from pipeline.cli.talk.log_file import keep_log_in
from pipeline.errors import BadInput, count_text

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache
    from pipeline.config.cache_spec import CacheSpec
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.datasets.manifest.parts import PartedManifest
    from pipeline.extract.execution import Execution
    from pipeline.extract.progress import Progress
    from pipeline.video.isolated.sandbox import DecodeLimits


@app.command()
def extract(
    specs: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC...",
            help="What to cache, one for each cache: .toml files, or names of shipped specs.",
        ),
    ],
    data: Annotated[Path, typer.Argument(help="Folder with manifest.jsonl.")],
    out: CachesFolder = "caches",
    root: Root = None,
    device: Device = None,
    decoders: Decoders = 1,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="stall_s, video_s or memory_mb: when decoding a video is given up.",
        ),
    ] = None,
    engine: EngineName = None,
    workers: Workers = 1,
    engine_sets: EngineSets = None,
    logs: Logs = Path("logs"),
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Redo the stores that hold a failed video.")
    ] = False,
    dry_run: DryRun = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage one: encode every frame once, store its tokens. Run it again to go on after any stop.

    Several specs are served by one decode of every video. A layer or view that is added to a spec
    is made alone: what a cache in the same folder holds already is taken over.

    Example: stillframe extract dinov2_small data/mine --out caches
    """
    from pipeline.cli import console
    from pipeline.config.cache_spec import load_spec
    from pipeline.datasets.manifest.parts import PartedManifest, load_any
    from pipeline.extract.execution import Execution

    loaded_specs = [load_spec(named_file("spec", name), sets or []) for name in specs]
    manifest = load_any(data, root)
    how = Execution(
        torch_device(device),
        decoders,
        _limits(limit or []),
        retry_failed,
        make_engine(engine, workers, engine_sets or []),
        logs,
        say=console.say,
    )
    if isinstance(manifest, PartedManifest):
        _extract_parts(loaded_specs, manifest, out, how, dry_run, as_json)
        return
    if dry_run:
        _show_plans(loaded_specs, manifest, out, how, as_json)
        return
    caches = _fill(loaded_specs, manifest, out, how)
    _show_siblings(caches)
    _show_statuses(caches, as_json)
    _end_of_extract(any(cache.failures for cache in caches))


def _end_of_extract(has_failures: bool) -> None:
    if has_failures:
        from pipeline.cli import console

        console.say(
            "to try these again, once they are mended: the same command with --retry-failed"
        )
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _extract_parts(
    specs: list[CacheSpec],
    manifest: PartedManifest,
    out: str,
    how: Execution,
    dry_run: bool,
    as_json: bool,
) -> None:
    """`extract` of a manifest in parts."""
    from pipeline.cache.parts.summary import parted_status
    from pipeline.cli import console
    from pipeline.extract.in_parts import extract_parts

    if dry_run or len(specs) > 1:
        what = "--dry-run plans" if dry_run else "several specs are served by"
        raise BadInput(
            f"{manifest.folder} is a manifest in parts, and {what} a whole one",
            f"take one of its {len(manifest.index.parts)} parts, as {manifest.folder / '00000'}"
            if dry_run
            else "extract one spec after the other",
        )
    with console.progress(f"extract {specs[0].name}") as update:

        def on_progress(state: Progress) -> None:
            if how.engine is None:
                update(*_shown(state, how.decoders))
            else:
                update(state.frames, state.frames_planned, "parts")

        cache = extract_parts(specs[0], manifest, out, replace(how, on_progress=on_progress))
    state = parted_status(cache)
    show_parted_status(state, as_json)
    _end_of_extract(bool(state.failed))


def _fill(specs: list[CacheSpec], manifest: Manifest, out: str, how: Execution) -> list[Cache]:
    """Extracts, with a bar that shows the speed and what sets it."""
    from pipeline.cli import console
    from pipeline.extract import extract as module

    names = ", ".join(spec.name for spec in specs)
    with console.progress(f"extract {names}") as update:
        return module.extract_all(
            specs,
            manifest,
            out,
            replace(how, on_progress=lambda state: update(*_shown(state, how.decoders))),
            lambda caches: keep_log_in(caches, how.logs),
        )


def _shown(state: Progress, decoders: int) -> tuple[int, int, str]:
    """What the bar of an extraction shows: frames done, frames planned, and words."""
    from pipeline.cli import console

    size, open_size = map(console.bytes_text, (state.store_bytes, state.in_flight_bytes))
    eta, slowest = console.duration_text(state.eta_s), state.slowest(decoders)
    return (
        state.frames,
        state.frames_planned,
        f"frames  ETA {eta}  {state.frames_per_s:.0f} frames/s  slowest: {slowest}  "
        f"{size} whole, {open_size} in flight",
    )


def _show_siblings(caches: list[Cache]) -> None:
    """Says which caches lie beside these under the same name of a spec, and how they differ."""
    from pipeline.cli import console
    from pipeline.extract.upkeep.diff import siblings

    names = {cache.name for cache in caches}
    for cache in caches:
        it = "it" if len(caches) == 1 else cache.name
        for sibling, differences in siblings(cache).items():
            if sibling not in names:
                console.say(
                    f"beside {it} lies {sibling}, which differs in (this / that): "
                    f"{'; '.join(differences)}"
                )


def _limits(sets: list[str]) -> DecodeLimits:
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override
    from pipeline.video.isolated.sandbox import DecodeLimits

    return plugins.validate(DecodeLimits, override({}, sets), "--limit")


@app.command()
def derive(
    source: Annotated[str, typer.Argument(metavar="CACHE", help="A finished cache.")],
    out: Annotated[
        str, typer.Option(help="Folder or URL for caches; this one gets a name of its own in it.")
    ] = "caches",
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make a cache from a cache, without videos or encoder. It has another codec, fewer layers or
    frames, or another store layout.

    Example: stillframe derive caches/demo-0123456789ab --set codec.name=int8
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.extract import derive as module

    opened = Cache(source)
    with console.progress(f"derive from {opened.name}") as update:
        cache = module.derive(
            opened, sets or [], out, lambda done, total: update(done, total, "frames"), keep_log_in
        )
    show_status(cache, as_json)
    if cache.failures:
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _show_plans(
    specs: list[CacheSpec], manifest: Manifest, out: str, how: Execution, as_json: bool
) -> None:
    """What an extraction would make, and the script of its engine. JSON of one spec is an object,
    of several a list of them."""
    from pipeline.cli import console
    from pipeline.extract import extract as module

    plans = [module.preview(spec, manifest) for spec in specs]
    for spec in specs:
        if text := module.uneven_frames_text(spec, manifest):
            console.say(text if len(plans) == 1 else f"{spec.name}: {text}")
    if as_json:
        facts = [asdict(plan) for plan in plans]
        console.show_json(facts if len(facts) > 1 else facts[0])
    for plan in [] if as_json else plans:
        if len(plans) > 1:
            console.show(f"{plan.spec}:")
        size = console.bytes_text(plan.store_bytes)
        console.show(
            f"{count_text(plan.videos, 'video')}, about {count_text(plan.frames, 'frame')}, "
            f"{count_text(plan.stores, 'store')}, {size}"
        )
        console.show(
            f"{plan.tokens_per_frame} tokens and {plan.bytes_per_frame:,} bytes per frame, "
            f"grid {plan.grid}"
        )
    if how.engine:
        caches = [f"{out}/{spec.name}" for spec in specs]
        if script := how.engine.script(module.extraction_job(caches, manifest, how)):
            console.say(script)


def _show_statuses(caches: list[Cache], as_json: bool) -> None:
    """JSON of one cache is an object, of several a list of them."""
    from pipeline.cache.status import status
    from pipeline.cli import console

    if as_json and len(caches) > 1:
        console.show_json([status(cache).model_dump() for cache in caches])
        return
    for cache in caches:
        show_status(cache, as_json)
