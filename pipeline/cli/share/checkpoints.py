"""Runs from elsewhere: `import-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import AsJson, Sets, app, named_file


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A released Lightning .ckpt.")],
    recipe: Annotated[
        str,
        typer.Argument(
            help="What it was trained as: a .toml file, or the name of a shipped recipe."
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="A cache; or the spec of the tokens it reads, a .toml file or a shipped name."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/<name of the file>.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names in the order of its outputs: JSON name -> number, or one per line."
        ),
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Turn a released checkpoint of the paper into a run. The run is one for evaluate and stream.

    Example: stillframe import-checkpoint gmm.ckpt ssv2
    caches/dinov3_vitl16-0123456789ab --labels labels.json
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.recipe import load_recipe
    from pipeline.config.shipped import shipped
    from pipeline.train.weights import import_checkpoint

    is_spec = source.endswith(".toml") or source in shipped("spec")
    read = load_spec(named_file("spec", source)) if is_spec else Cache(source)
    names = import_checkpoint.read_labels(labels) if labels else None
    run = import_checkpoint.import_checkpoint(
        file,
        load_recipe(named_file("recipe", recipe), sets or []),
        read,
        out or Path("runs") / file.stem,
        names,
        console.say,
    )
    if as_json:
        console.show_json(
            {
                "run": str(run.path),
                "parameters": run.header.parameters,
                "labels": len(run.header.labels),
            }
        )
    else:
        parts = ", ".join(f"{name} {count:,}" for name, count in run.header.parameters.items())
        console.show(f"{run.path}: parameters of {parts}")
