"""The demo, and what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli._common import AsJson, app, show_scores


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    spec: Annotated[Path, typer.Option(help="What to cache.")] = Path("cache_specs/demo.toml"),
) -> None:
    """The whole path on the built-in world: videos, cache, three temporal modules, scores, report.

    Example: stillframe demo --out demo
    """
    from pipeline import console
    from pipeline import demo as module

    with console.progress("demo") as update:
        results, page = module.demo(out, spec, lambda step, done, total: update(done, total, step), console.say)
    show_scores(results)
    console.show(f"report: {page}")


@app.command("list")
def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="dataset, encoder, codec, temporal, task or recipe.")] = None,
    as_json: AsJson = False,
) -> None:
    """What can be named in a spec, a recipe or a command, with its settings.

    Example: stillframe list temporal
    """
    from pipeline import console, plugins
    from pipeline.errors import unknown_name
    from pipeline.spec import shipped_recipes

    kinds = [*plugins.FOLDERS, "recipe"]
    if kind is not None and kind not in kinds:
        raise unknown_name("kind", kind, kinds)
    rows = []
    for shown in kinds if kind is None else [kind]:
        if shown == "recipe":
            rows += [(shown, name, "", "") for name in shipped_recipes()]
        else:
            rows += [(shown, name, *plugins.describe(shown, name)) for name in plugins.names(shown)]
    if as_json:
        console.show_json([dict(zip(("kind", "name", "what", "settings"), row, strict=True)) for row in rows])
    else:
        console.show_table("", ("kind", "name", "what", "settings"), rows)
