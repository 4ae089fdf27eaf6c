"""Stage one on the command line: manifest, extract, derive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from pipeline.cli.show import show_status

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache
    from pipeline.extract.progress import Progress
    from pipeline.video.sandbox import DecodeLimits


@app.command()
def manifest(
    dataset: Annotated[
        str, typer.Argument(help="world, folder, playback, ... (see: stillframe list dataset)")
    ],
    root: Annotated[
        Path | None, typer.Argument(help="Folder with the videos; not needed by world.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where manifest.jsonl, targets.h5 and dataset.json go.")
    ] = Path("data"),
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List the clips of a data set, with labels, splits and truth.

    Example: stillframe manifest folder my_videos --out data/mine
    """
    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.datasets.manifest import manifest as module

    with console.progress(f"manifest {dataset}") as update:
        built = module.build(
            dataset,
            root,
            out,
            override({}, sets or []),
            lambda done, total: update(done, total, "videos"),
        )
    counts = {split: len(built.split(split)) for split in built.splits}
    if as_json:
        facts = {
            "manifest": str(out),
            "clips": counts,
            "videos": len(built.videos),
            "labels": list(built.labels),
        }
        console.show_json(facts | {"rejected": built.rejected, "digest": built.digest})
    else:
        splits = ", ".join(f"{split} {count}" for split, count in counts.items())
        labels = f", {len(built.labels)} labels" if built.labels else ""
        console.show(
            f"{out}: {len(built.clips)} clips of {len(built.videos)} videos ({splits}){labels}"
        )
        if built.rejected:
            console.show_table(
                f"{len(built.rejected)} files rejected",
                ("file", "reason"),
                list(built.rejected.items()),
            )
    if built.rejected:
        raise typer.Exit(FINISHED_WITH_FAILURES)


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
    """Stage one: encode every frame once and store its tokens. Run it again to go on after any
    stop.

    Several specs are served by one decode of every video. A layer or view that is added to a spec
    is made alone: what a cache in the same folder holds already is taken over.

    Example: stillframe extract dinov2_small data/mine --out caches
    """
    from pipeline.cli import console
    from pipeline.config.cache_spec import load_spec
    from pipeline.datasets.manifest.manifest import Manifest

    loaded = [load_spec(named_file("spec", name), sets or []) for name in specs]
    clips = Manifest.load(data, root)
    from pipeline.extract import extract as module

    limits, crew = _limits(limit or []), make_engine(engine, workers, engine_sets or [])
    if dry_run:
        _show_plans([module.preview(spec, clips) for spec in loaded], as_json)
        if crew and (
            script := crew.script(
                module.extraction_job(
                    [f"{out}/{spec.name}" for spec in loaded], clips, device, decoders
                )
            )
        ):
            console.say(script)
        return
    with console.progress(f"extract {', '.join(spec.name for spec in loaded)}") as update:

        def on_progress(state: Progress) -> None:
            text = f"frames  {state.frames_per_s:.0f} frames/s  {console.bytes_text(state.store_bytes)}"
            slowest = state.slowest(decoders)
            update(
                state.frames,
                state.frames_planned,
                f"{text}  ETA {console.duration_text(state.eta_s)}  slowest: {slowest}",
            )

        on = torch_device(device)
        caches = module.extract_all(
            loaded,
            clips,
            out,
            on,
            decoders,
            limits,
            retry_failed,
            on_progress,
            crew,
            logs,
            console.say,
        )
    _show_made(caches, as_json)
    if any(cache.failures for cache in caches):
        console.say(
            "to try these again, once they are mended: the same command with --retry-failed"
        )
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _show_made(caches: list[Cache], as_json: bool) -> None:
    """What has been made, and what lies beside it under the same name."""
    from pipeline.cli import console
    from pipeline.extract.diff import siblings

    made = {cache.name for cache in caches}
    for cache in caches:
        it = "it" if len(caches) == 1 else cache.name
        for other, changed in siblings(cache).items():
            if other not in made:
                console.say(
                    f"beside {it} lies {other}, which differs in (this / that): {'; '.join(changed)}"
                )
    _show_statuses(caches, as_json)


def _limits(sets: list[str]) -> DecodeLimits:
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override
    from pipeline.video.sandbox import DecodeLimits

    return plugins.check(DecodeLimits, override({}, sets), "--limit")


@app.command()
def derive(
    source: Annotated[str, typer.Argument(metavar="CACHE", help="A finished cache.")],
    out: Annotated[
        str, typer.Option(help="Folder or URL for caches; this one gets a name of its own in it.")
    ] = "caches",
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A cache from a cache, without videos or encoder: another codec, fewer layers or frames,
    another store layout.

    Example: stillframe derive caches/demo-0123456789ab --set codec.name=int8
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.extract import derive as module

    opened = Cache(source)
    with console.progress(f"derive from {opened.name}") as update:
        cache = module.derive(
            opened, sets or [], out, lambda done, total: update(done, total, "frames")
        )
    show_status(cache, as_json)
    if cache.failures:
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _show_plans(plans: list[dict[str, Any]], as_json: bool) -> None:
    """JSON of one spec is an object, of several a list of them."""
    from pipeline.cli import console

    if as_json:
        console.show_json(plans if len(plans) > 1 else plans[0])
        return
    for plan in plans:
        if len(plans) > 1:
            console.show(f"{plan['spec']}:")
        size = console.bytes_text(plan["store_bytes"])
        console.show(
            f"{plan['videos']} videos, about {plan['frames']} frames, {plan['stores']} stores, {size}"
        )
        console.show(
            f"{plan['tokens_per_frame']} tokens and {plan['bytes_per_frame']:,} bytes per frame, grid {plan['grid']}"
        )


def _show_statuses(caches: list[Cache], as_json: bool) -> None:
    """JSON of one cache is an object, of several a list of them."""
    from pipeline.cache.status import status
    from pipeline.cli import console

    if as_json and len(caches) > 1:
        console.show_json([status(cache) for cache in caches])
        return
    for cache in caches:
        show_status(cache, as_json)
