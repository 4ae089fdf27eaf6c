"""Tokens as plain arrays: `import-features` and `export-features`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from pipeline.cli.options import AsJson, CacheFolder, CachesFolder, Root, Sets, app
from pipeline.cli.show import show_status
from pipeline.cli.talk.log_file import keep_log_in
from pipeline.errors import BadInput, unknown_name


@app.command("import-features")
def import_features(
    folder: Annotated[
        Path, typer.Argument(help="Holds NAME.npy, NAME.npz or NAME.h5 for every video.")
    ],
    manifest: Annotated[
        Path, typer.Option("--manifest", help="The videos and their truth; no video need be there.")
    ],
    fps: Annotated[float, typer.Option(min=1e-3, max=1000, help="Features of a second.")],
    start: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="When the first one is: half of a snippet, for instance."
        ),
    ] = 0.0,
    layout: Annotated[
        str | None,
        typer.Option(
            help="TC, CT or TNC: T frames, N features of a frame, C numbers of a feature. Default: "
            "TC, or TNC with --grid."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="The array, where a file holds several.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(metavar="ROWSxCOLUMNS", help="How the N features of a frame lie in it."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the cache's name begins with.")] = "features",
    out: CachesFolder = "caches",
    root: Root = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make a cache of features that others computed.

    There is one array for each video of a manifest. All files are looked at before anything is
    written. Run it again to go on after any stop.

    Example: stillframe import-features salads/features --manifest data/salads --fps 15 --layout CT
    """
    from pipeline.cli import console
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.exchange import import_features as module
    from pipeline.exchange.feature_files import Layout

    chosen = None if layout is None else _one_of("layout", layout, get_args(Layout))
    reading = module.Reading(fps, start, chosen, key, _grid(grid))
    videos = Manifest.load(manifest, root)
    with console.progress("import features") as update:
        cache = module.import_features(
            folder,
            videos,
            out,
            reading,
            sets or [],
            name,
            lambda done, total: update(done, total, "files looked at"),
            lambda done, total: update(done, total, "frames"),
            keep_log_in,
        )
    show_status(cache, as_json)


@app.command("export-features")
def export_features(
    cache: CacheFolder,
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    layer: Annotated[
        int | None, typer.Option(help="Recorded layer. Default: the last one.")
    ] = None,
    pool: Annotated[
        str, typer.Option(help="mean of a frame's patches, none (all of them), or cls.")
    ] = "mean",
    form: Annotated[
        str,
        typer.Option("--format", help="npy: a file for each video; parquet: one table of all."),
    ] = "npy",
    as_json: AsJson = False,
) -> None:
    """Write tokens of a cache as plain arrays.

    They are pooled or not, and their times are beside them.

    Example: stillframe export-features caches/demo-0123456789ab --out features --pool mean
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.exchange import export_features as module

    opened = Cache(cache)
    with console.progress(f"export from {opened.name}") as update:
        module.export_features(
            opened,
            out,
            layer,
            _one_of("pool", pool, get_args(module.Pool)),
            _one_of("format", form, get_args(module.Format)),
            lambda done, total: update(done, total, "frames"),
        )
    frames = sum(where.stop - where.start for where in opened.locations.values())
    if as_json:
        videos = len(opened.locations)
        console.show_json({"folder": str(out), "videos": videos, "frames": frames})
    else:
        console.show(f"{out}: {frames} frames of {len(opened.locations)} videos")


def _one_of(what: str, name: str, known: Sequence[str]) -> Any:
    """The name. Raises BadInput where it is none of those that are known."""
    if name not in known:
        raise unknown_name(what, name, known)
    return name


def _grid(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text or "")
    if text is not None and match is None:
        raise BadInput(f"--grid: wanted ROWSxCOLUMNS, as 7x7, found '{text}'")
    return (int(match[1]), int(match[2])) if match else None
