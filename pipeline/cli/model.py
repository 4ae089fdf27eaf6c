"""Stage two on the command line: train, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli._common import (
    AllowMissing,
    AsJson,
    Device,
    ManifestFolder,
    Sets,
    app,
    other_manifest,
    recipe_file,
    show_scores,
    torch_device,
)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train: a .toml file, or the name of a shipped recipe.")],
    cache: Annotated[Path, typer.Argument(help="A cache folder.")],
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")] = None,
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage two: train a temporal module and a readout from a cache. Run it again to go on after any stop.

    Example: stillframe train demo_gru caches/demo-0123456789ab
    """
    from pipeline import console
    from pipeline.cache import Cache
    from pipeline.spec import load_recipe

    loaded = load_recipe(recipe_file(recipe), sets or [])
    opened = Cache(cache)
    other = other_manifest(manifest_folder)
    from pipeline import train as module
    from pipeline.run import read_metrics

    folder = out or Path("runs") / loaded.name
    with console.progress(f"train {loaded.name}") as update:

        def on_progress(state: module.Progress) -> None:
            scores = "".join(f"  {form} {score:.3f}" for form, score in state.scores.items())
            update(state.step, state.steps, f"steps  loss {state.loss:.4f}  {state.windows_per_s:.0f} windows/s{scores}")

        run = module.train(loaded, opened, folder, other, torch_device(device), allow_missing, on_progress)
    notes = {
        "skipped": "were left out: the cache does not cover them",
        "padded": "are shorter than a window: their last frame repeats",
        "slower": "have fewer frames per second than a window: their frames repeat",
    }
    for what, note in notes.items():
        if count := run.header.clips[what]:
            console.say(f"{count} clips of split 'train' {note}")
    last = run.checkpoint("last")
    assert last is not None
    scores: dict[str, float] = next((line["val"] for line in reversed(read_metrics(folder)) if "val" in line), {})
    facts = {"run": str(folder), "steps": last.step, "parameters": run.header.parameters, "val": scores}
    if as_json:
        console.show_json(facts)
    else:
        text = ", ".join(f"{form} {score:.3f}" for form, score in scores.items())
        console.show(f"{folder}: {last.step} steps, {sum(run.header.parameters.values()):,} trained parameters, val {text}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    cache: Annotated[Path | None, typer.Option(help="The cache, if it is no longer where it was at training.")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on a split, streaming and window-wide, with 95 % intervals.

    Example: stillframe evaluate runs/demo_gru
    """
    from pipeline import console
    from pipeline.cache import Cache
    from pipeline.errors import unknown_name

    if checkpoint not in ("last", "best"):
        raise unknown_name("checkpoint", checkpoint, ("last", "best"))
    from pipeline import evaluate as module
    from pipeline.run import Run

    opened = Run(run)
    place = cache or Path(opened.header.cache_path)
    folder = manifest_folder or (Path(path) if (path := opened.header.manifest_path) else None)
    result = module.evaluate(
        opened, Cache(place), split, checkpoint, other_manifest(folder), torch_device(device), allow_missing
    )
    if as_json:
        console.show_json(result)
    else:
        show_scores([result])


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, its pictures and the table as CSV.")] = Path("report"),
    split: Annotated[str, typer.Option(help="Split whose scores are shown.")] = "val",
) -> None:
    """Put runs side by side: scores with intervals, learning curves, confusions.

    Example: stillframe report runs/* --out report
    """
    from pipeline import console
    from pipeline import report as module
    from pipeline.run import Run

    page = module.report([Run(run) for run in runs], out, split)
    console.show(str(page))
