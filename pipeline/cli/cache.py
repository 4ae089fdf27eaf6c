"""Stage one on the command line: manifest, extract, derive, status, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli._common import FINISHED_WITH_FAILURES, AsJson, Device, Sets, app, torch_device
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.cache import Cache
    from pipeline.progress import Progress


@app.command()
def manifest(
    dataset: Annotated[str, typer.Argument(help="world, folder, playback, ... (see: stillframe list dataset)")],
    root: Annotated[Path | None, typer.Argument(help="Folder with the videos; not needed by world.")] = None,
    out: Annotated[Path, typer.Option(help="Where manifest.jsonl, targets.h5 and dataset.json go.")] = Path("data"),
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List the clips of a data set, with labels, splits and truth.

    Example: stillframe manifest folder my_videos --out data/mine
    """
    from pipeline import console
    from pipeline import manifest as module
    from pipeline.spec import override

    with console.progress(f"manifest {dataset}") as update:
        built = module.build(dataset, root, out, override({}, sets or []), lambda done, total: update(done, total, "videos"))
    counts = {split: len(built.split(split)) for split in built.splits}
    if as_json:
        facts = {"manifest": str(out), "clips": counts, "videos": len(built.videos), "labels": list(built.labels)}
        console.show_json(facts | {"rejected": built.rejected, "digest": built.digest})
    else:
        splits = ", ".join(f"{split} {count}" for split, count in counts.items())
        labels = f", {len(built.labels)} labels" if built.labels else ""
        console.show(f"{out}: {len(built.clips)} clips of {len(built.videos)} videos ({splits}){labels}")
        if built.rejected:
            console.show_table(f"{len(built.rejected)} files rejected", ("file", "reason"), list(built.rejected.items()))
    if built.rejected:
        raise typer.Exit(FINISHED_WITH_FAILURES)


@app.command()
def extract(
    spec: Annotated[Path, typer.Argument(help="What to cache, a .toml file.")],
    data: Annotated[Path, typer.Argument(help="Folder with manifest.jsonl.")],
    out: Annotated[str, typer.Option(help="Folder or URL for caches; this one gets a name of its own in it.")] = "caches",
    root: Annotated[Path | None, typer.Option(help="Where the videos are, if they were moved.")] = None,
    device: Device = None,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode videos.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Redo the stores that hold a failed video.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage one: encode every frame once and store its tokens. Run it again to go on after any stop.

    Example: stillframe extract cache_specs/dinov2_small.toml data/mine --out caches
    """
    from pipeline import console
    from pipeline.manifest import Manifest
    from pipeline.spec import load_spec

    loaded = load_spec(spec, sets or [])
    clips = Manifest.load(data, root)
    from pipeline import extract as module
    from pipeline.cache import siblings

    if dry_run:
        _show_plan(module.preview(loaded, clips), as_json)
        return
    with console.progress(f"extract {loaded.name}") as update:

        def on_progress(state: Progress) -> None:
            text = f"frames  {state.frames_per_s:.0f} frames/s  {console.bytes_text(state.store_bytes)}"
            slowest = state.slowest(decoders)
            update(state.frames, state.frames_planned, f"{text}  ETA {console.duration_text(state.eta_s)}  slowest: {slowest}")

        cache = module.extract(loaded, clips, out, torch_device(device), decoders, retry_failed, on_progress)
    for other, changed in siblings(cache).items():
        console.say(f"beside it lies {other}, which differs in (this / that): {'; '.join(changed)}")
    _show_status(cache, as_json)
    if cache.failures:
        console.say("to try these again, once they are mended: the same command with --retry-failed")
        raise typer.Exit(FINISHED_WITH_FAILURES)


@app.command()
def derive(
    source: Annotated[str, typer.Argument(metavar="CACHE", help="A finished cache.")],
    out: Annotated[str, typer.Option(help="Folder or URL for caches; this one gets a name of its own in it.")] = "caches",
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A cache from a cache, without videos or encoder: another codec, fewer layers or frames, another store layout.

    Example: stillframe derive caches/demo-0123456789ab --set codec.name=int8
    """
    from pipeline import console
    from pipeline import derive as module
    from pipeline.cache import Cache

    opened = Cache(source)
    with console.progress(f"derive from {opened.name}") as update:
        cache = module.derive(opened, sets or [], out, lambda done, total: update(done, total, "frames"))
    _show_status(cache, as_json)
    if cache.failures:
        raise typer.Exit(FINISHED_WITH_FAILURES)


@app.command()
def status(cache: Annotated[str, typer.Argument(help="A cache: its folder or URL.")], as_json: AsJson = False) -> None:
    """What a cache holds: coverage per split, failures with their reasons, bytes, speed.

    Example: stillframe status caches/demo-0123456789ab
    """
    from pipeline.cache import Cache

    _show_status(Cache(cache), as_json)


@app.command()
def verify(cache: Annotated[str, typer.Argument(help="A cache: its folder or URL.")], as_json: AsJson = False) -> None:
    """Compare every file of a cache with its checksum, and name what is damaged.

    Example: stillframe verify caches/demo-0123456789ab
    """
    from pipeline import console
    from pipeline.cache import Cache

    opened = Cache(cache)
    opened.codecs  # noqa: B018  what a fitted codec has learnt is compared with its checksum when it is read
    problems: dict[int, dict[str, str]] = {}
    missing = opened.missing_stores()
    finished = [store for store in opened.plan if store not in missing]
    with console.progress("verify") as update:
        for done, store in enumerate(finished, 1):
            if found := opened.check(store):
                problems[store] = found
            update(done, len(finished), "stores")
    if as_json:
        named = {opened.store_name(store): files for store, files in problems.items()}
        console.show_json({"cache": str(cache), "stores_checked": len(finished), "stores_missing": missing, "problems": named})
    else:
        rows = [(opened.store_name(store), file, what) for store, files in problems.items() for file, what in files.items()]
        if rows:
            console.show_table(f"{len(problems)} damaged stores", ("store", "file", "problem"), rows)
        else:
            console.show(f"{cache}: {len(finished)} stores, every checksum holds")
        if missing:
            console.show(f"{len(missing)} of {len(opened.plan)} stores are not extracted yet: run extract again")
    if problems:
        receipts = " ".join(f"{cache}/{opened.receipt_name(store)}" for store in problems)
        raise BadInput(
            f"{len(problems)} stores of {cache} are damaged", f"rm {receipts} and run extract again: only these are redone"
        )


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    from pipeline import console

    if as_json:
        console.show_json(plan)
    else:
        size = console.bytes_text(plan["store_bytes"])
        console.show(f"{plan['videos']} videos, about {plan['frames']} frames, {plan['stores']} stores, {size}")
        console.show(f"{plan['tokens_per_frame']} tokens and {plan['bytes_per_frame']:,} bytes per frame, grid {plan['grid']}")


def _show_status(cache: Cache, as_json: bool) -> None:
    from pipeline import console

    facts = cache.status()
    if as_json:
        console.show_json(facts)
        return
    stores, videos = facts["stores"], facts["videos"]
    console.show(
        f"{facts['cache']}: {stores['done']} of {stores['planned']} stores, {facts['frames']} frames, "
        f"{console.bytes_text(facts['store_bytes'])}, codec {facts['codec']}"
    )
    console.show(f"videos: {videos['stored']} of {videos['planned']} whole, {videos['failed']} failed")
    for split, counts in facts["splits"].items():
        console.show(f"split {split}: {counts['covered']} of {counts['clips']} clips covered")
    if facts["seconds"]:
        console.show("work: " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in facts["seconds"].items()))
    if facts["failures"]:
        console.show_table(f"{videos['failed']} videos failed", ("video", "reason"), list(facts["failures"].items()))
