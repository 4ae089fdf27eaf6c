"""Manifests of one or several: manifest join, parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.manifests.build import show_manifest
from pipeline.cli.options import AsJson, manifest_app
from pipeline.errors import count_text


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


@manifest_app.command()
def parts(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA...", help="Folders with manifest.jsonl, one or more."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new manifest; the others stay.")],
    rows: Annotated[int, typer.Option(min=1, help="Clips of a part, at most.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Make a manifest in parts, for very many clips. Whoever extracts it, or looks at its cache,
    holds one part at a time.

    Every part is a manifest of its own. The parts of several manifests follow each other; select
    makes whole manifests of what is needed of them.

    Example: stillframe manifest parts data/first data/second --out data/parts
    """
    from pipeline.cli import console
    from pipeline.datasets.manifest.edit import write_parts
    from pipeline.datasets.manifest.manifest import Manifest

    built = write_parts((Manifest.load(folder) for folder in data), out, rows)
    index = built.index
    if as_json:
        facts = {"manifest": str(out), "parts": len(index.parts), "clips": index.splits}
        facts |= {"videos": index.videos, "labels": list(index.labels), "digest": index.digest}
        console.show_json(facts)
        return
    splits = ", ".join(f"{split} {count}" for split, count in index.splits.items())
    clips, videos = count_text(index.clips, "clip"), count_text(index.videos, "video")
    labels = f", {count_text(len(index.labels), 'label')}" if index.labels else ""
    console.show(
        f"{out}: {clips} of {videos} ({splits}){labels} in {count_text(len(index.parts), 'part')}"
    )
