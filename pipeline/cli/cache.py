"""Stage one on the command line: manifest, also of other manifests (`manifest join`, `select`,
`relabel`, `split`), extract, derive."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
    manifest_app,
    named_file,
    torch_device,
)
from pipeline.cli.show import show_notes, show_status
from pipeline.cli.talk.log_file import keep_log_in
from pipeline.errors import count_text

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache
    from pipeline.config.cache_spec import CacheSpec
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.datasets.manifest.origin import Origin
    from pipeline.extract.launchers.contract import EnginePlugin
    from pipeline.extract.progress import Progress
    from pipeline.video.isolated.sandbox import DecodeLimits

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder with manifest.jsonl.")]
New = Annotated[Path, typer.Option(help="Folder of the new manifest; DATA stays as it is.")]


@manifest_app.callback(invoke_without_command=True)
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
    """List the clips of a data set, with labels and splits. Truth is listed, too. Nothing is
    written where the videos are.

    Exit code 3 if media that should be a clip became none; remarks on clips that are used all the
    same are notes, and change no exit code.

    What is listed is edited by the commands below: join, select, relabel and split make a manifest
    of others. Any first word that is none of them is a data set.

    Example: stillframe manifest folder my_videos --out data/mine
    """
    from pipeline.cli import console
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override
    from pipeline.datasets.manifest import manifest as module

    dataset = plugins.plugin_name("dataset", dataset)
    with console.progress(f"manifest {dataset}") as update:
        built = module.build(
            dataset,
            root,
            out,
            override({}, sets or []),
            lambda done, total: update(done, total, "videos"),
        )
    show_manifest(built, out, as_json)


def show_manifest(built: Manifest, out: Path, as_json: bool) -> None:
    """What a manifest holds that was written into `out`, and what it does not. Ends the command
    with code 3 where videos were rejected."""
    from pipeline.cli import console
    from pipeline.video.even_rates import rates_of, rates_text

    counts = {split: len(built.split(split)) for split in built.splits}
    captions = sum(len(said.captions) for said in built.texts.values())
    questions = sum(said.question is not None for said in built.texts.values())
    if as_json:
        facts = {
            "manifest": str(out),
            "clips": counts,
            "videos": len(built.videos),
            "labels": list(built.labels),
            "captions": captions,
            "questions": questions,
        }
        left_out = built.origin.model_dump(include={"notes", "left_out", "ignored"})
        console.show_json(facts | {"rejected": built.rejected, **left_out, "digest": built.digest})
    else:
        splits = ", ".join(f"{split} {count}" for split, count in counts.items())
        clips, videos = count_text(len(built.clips), "clip"), count_text(len(built.videos), "video")
        counted = {"label": len(built.labels), "caption": captions, "question": questions}
        said = "".join(f", {count_text(count, noun)}" for noun, count in counted.items() if count)
        console.show(f"{out}: {clips} of {videos} ({splits}){said}")
        if "frames_dir" in built.origin.settings:
            console.show(f"frames are laid out in {built.root}")
        if built.rejected:
            console.show_table(
                f"{count_text(len(built.rejected), 'file')} rejected",
                ("file", "reason"),
                list(built.rejected.items()),
            )
        show_notes(built.origin.notes)
        if text := rates_text(rates_of(fact.fps for fact in built.facts.values() if fact)):
            console.show(text)
    if text := _left_out_text(built.origin):
        console.say(text)
    if built.rejected:
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _left_out_text(origin: Origin) -> str:
    """What of the folder is none of the clips and no rejected file either, by kind; empty if there
    is nothing."""
    from pipeline.datasets.formats.folders import MIXED_SIZES

    parts = [
        f"{kind} {found.count} (first {found.first})" for kind, found in origin.left_out.items()
    ]
    if origin.ignored:
        parts.append(f"other files {origin.ignored}")
    if not parts:
        return ""
    hint = "; next: if they are a video all the same, name their folder in a CSV file"
    return f"left out: {', '.join(parts)}{hint if MIXED_SIZES in origin.left_out else ''}"


@manifest_app.command()
def select(
    data: Data,
    out: New,
    split: Annotated[
        list[str] | None, typer.Option(help="Clips of this split; may be given many times.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Clips with this label; may be given many times.")
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Clips whose id, file or video matches, with * and ?; may be given many times.",
        ),
    ] = None,
    has: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRUTH", help="Clips with boxes, points, depth_m or pose; as often as needed."
        ),
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="The first N of each label in each split.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a manifest of some of the clips of another one. They are those that meet all conditions.

    Example: stillframe manifest select data/mine --split val --label waving --out data/waving
    """
    from pipeline.datasets.manifest import edit
    from pipeline.datasets.manifest.manifest import Manifest

    built = edit.select(
        Manifest.load(data, root),
        out,
        splits=split or (),
        labels=label or (),
        clips=clip or (),
        targets=has or (),
        first=first,
    )
    show_manifest(built, out, as_json)


@manifest_app.command()
def split(
    data: Data,
    out: New,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Draw the groups into N parts; the K-th is val. Sets val_fold."
        ),
    ] = None,
    with_test: Annotated[
        bool, typer.Option("--with-test", help="Split clips that are test, too; else they stay.")
    ] = False,
    root: Root = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make a manifest of the same clips in other splits. Groups are never divided.

    Keys for --set are val_sequences, test_sequences, val_fraction, test_fraction,
    split_lists.train, .val and .test, group, seed and val_fold.

    Example: stillframe manifest split data/mine --fold 1/5 --out data/mine_1of5
    """
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override
    from pipeline.datasets.formats.splits import SplitSettings
    from pipeline.datasets.manifest import edit
    from pipeline.datasets.manifest.manifest import Manifest

    table = override({}, sets or []) | ({"val_fold": fold} if fold else {})
    settings = plugins.validate(SplitSettings, table, "manifest split")
    built = edit.resplit(Manifest.load(data, root), out, settings, with_test=with_test)
    show_manifest(built, out, as_json)


@manifest_app.command()
def relabel(
    data: Data,
    csv: Annotated[Path, typer.Argument(metavar="CSV", help="Columns path or clip_id, and label.")],
    out: New,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a manifest with labels from a CSV file. It has the same clips; the file may also give
    splits and groups.

    Its first line names the columns: path (all clips of a video) or clip_id, label and, if wanted,
    split and group. Clips that it does not name stay as they are.

    Example: stillframe manifest relabel data/mine labels.csv --out data/relabelled
    """
    from pipeline.datasets.manifest import edit
    from pipeline.datasets.manifest.manifest import Manifest

    show_manifest(edit.relabel(Manifest.load(data, root), csv, out), out, as_json)


@manifest_app.command()
def join(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA...", help="Folders with manifest.jsonl, two or more."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new manifest; the others stay.")],
    labels: Annotated[
        bool, typer.Option(help="Keep labels, which all have or none; else leave them out.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make one manifest of several. They may be of different data sets in different folders.

    Splits, groups and truth are kept. Videos that have one name are told apart by the name of
    their data set.

    Example: stillframe manifest join data/davis data/otb --out data/tracking
    """
    from pipeline.datasets.manifest.join import join as join_manifests
    from pipeline.datasets.manifest.manifest import Manifest

    built = join_manifests([Manifest.load(folder) for folder in data], out, labels=labels)
    show_manifest(built, out, as_json)


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
    from pipeline.config.cache_spec import load_spec
    from pipeline.datasets.manifest.manifest import Manifest

    loaded_specs = [load_spec(named_file("spec", name), sets or []) for name in specs]
    request = ExtractionRequest(
        loaded_specs,
        Manifest.load(data, root),
        out,
        device,
        decoders,
        _limits(limit or []),
        make_engine(engine, workers, engine_sets or []),
        logs,
    )
    if dry_run:
        _show_plans(request, as_json)
        return
    caches = _fill(request, retry_failed)
    _show_siblings(caches)
    _show_statuses(caches, as_json)
    if any(cache.failures for cache in caches):
        from pipeline.cli import console

        console.say(
            "to try these again, once they are mended: the same command with --retry-failed"
        )
        raise typer.Exit(FINISHED_WITH_FAILURES)


@dataclass(frozen=True)
class ExtractionRequest:
    """What the flags of `extract` ask for."""

    specs: list[CacheSpec]
    manifest: Manifest
    out: str
    device: str | None
    """As it was typed: a worker of an engine chooses on its own machine."""
    decoders: int
    limits: DecodeLimits
    engine: EnginePlugin | None
    logs: Path


def _fill(request: ExtractionRequest, retry_failed: bool) -> list[Cache]:
    """Extracts, with a bar that shows the speed and what sets it."""
    from pipeline.cli import console
    from pipeline.extract import extract as module

    names = ", ".join(spec.name for spec in request.specs)
    with console.progress(f"extract {names}") as update:

        def on_progress(state: Progress) -> None:
            size, open_size = map(console.bytes_text, (state.store_bytes, state.in_flight_bytes))
            eta, slowest = console.duration_text(state.eta_s), state.slowest(request.decoders)
            update(
                state.frames,
                state.frames_planned,
                f"frames  ETA {eta}  {state.frames_per_s:.0f} frames/s  slowest: {slowest}  "
                f"{size} whole, {open_size} in flight",
            )

        return module.extract_all(
            request.specs,
            request.manifest,
            request.out,
            torch_device(request.device),
            request.decoders,
            request.limits,
            retry_failed,
            on_progress,
            request.engine,
            request.logs,
            console.say,
            lambda caches: keep_log_in(caches, request.logs),
        )


def _show_siblings(caches: list[Cache]) -> None:
    """Says which caches lie beside these under the same name of a spec, and how they differ."""
    from pipeline.cli import console
    from pipeline.extract.diff import siblings

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


def _show_plans(request: ExtractionRequest, as_json: bool) -> None:
    """What an extraction would make, and the script of its engine. JSON of one spec is an object,
    of several a list of them."""
    from pipeline.cli import console
    from pipeline.extract import extract as module

    plans = [module.preview(spec, request.manifest) for spec in request.specs]
    for spec in request.specs:
        if text := module.uneven_frames_text(spec, request.manifest):
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
    if request.engine:
        caches = [f"{request.out}/{spec.name}" for spec in request.specs]
        job = module.extraction_job(caches, request.manifest, request.device, request.decoders)
        if script := request.engine.script(job):
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
