"""Manifests of a manifest: manifest select, split, relabel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.manifests.build import show_manifest
from pipeline.cli.options import AsJson, Root, Sets, manifest_app

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder with manifest.jsonl.")]
New = Annotated[Path, typer.Option(help="Folder of the new manifest; DATA stays as it is.")]


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
    share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="This share of all videos, drawn by a hash of their ids."),
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="The first N of each label in each split.")
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a manifest of some of the clips of another one. They are those that meet all conditions.
    The other one may be in parts; the new one is whole.

    Example: stillframe manifest select data/mine --split val --label waving --out data/waving
    """
    from pipeline.datasets.manifest import edit
    from pipeline.datasets.manifest.parts import load_any

    built = edit.select(
        load_any(data, root),
        out,
        splits=split or (),
        labels=label or (),
        clips=clip or (),
        targets=has or (),
        share=share,
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
