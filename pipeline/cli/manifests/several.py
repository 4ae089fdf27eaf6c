"""Manifests of several: manifest join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.manifests.build import show_manifest
from pipeline.cli.options import AsJson, manifest_app


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
