"""Measurements of single training steps on the command line, on tokens of random numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.bench.commands import DiskFolder, bench_app, bytes_cell
from pipeline.cli.options import AsJson, Device, RecipeOption, Sets, named_file, torch_device

Grid = Annotated[int, typer.Option(min=1, help="Patches along a side.")]
Width = Annotated[int, typer.Option(min=1, help="Width of a cached token.")]
Repeats = Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")]


@bench_app.command("forecast")
def bench_forecast(
    recipe: RecipeOption = "demo_forecast",
    grid: Grid = 7,
    width: Width = 64,
    repeats: Repeats = 5,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A training step of forecasts against classification. Temporal module and windows are the
    same; it is told by the head and by how much it is asked; tokens are random numbers.

    Example: stillframe bench forecast --repeats 5
    """
    from pipeline.cli import console
    from pipeline.cli.bench.training import forecast
    from pipeline.config.recipe import load_recipe
    from pipeline.records import TokenShape

    loaded = load_recipe(named_file("recipe", recipe), sets or [])
    shape = TokenShape(width, (grid, grid), 1, (1,))
    with console.progress("bench forecast") as update:
        result = forecast.forecast_steps(loaded, shape, repeats, torch_device(device), update)
    if as_json:
        console.show_json(result)
        return
    steps = result["steps"]
    reference = steps[forecast.REFERENCE]["peak_bytes"]
    rows = [
        (
            name,
            f"{1000 * step['median_s']:.0f} ms",
            f"{step['ratio']:.2f}",
            bytes_cell(step["peak_bytes"]),
            f"{step['peak_bytes'] / reference:.2f}" if reference and step["peak_bytes"] else "",
        )
        for name, step in steps.items()
    ]
    title = f"a step of {result['batch']} windows, medians of {repeats}"
    columns = ("step", "time", "ratio", "peak memory", "ratio")
    console.show_table(title, columns, rows, justify="lrrrr")


@bench_app.command("keep")
def bench_keep(
    recipe: RecipeOption = "demo_gru",
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of the patch tokens, as keep_tokens.")
    ] = 0.25,
    grid: Grid = 7,
    width: Width = 64,
    batches: Annotated[int, typer.Option(min=1, help="Batches that are read in a round.")] = 4,
    repeats: Repeats = 5,
    folder: DiskFolder = None,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A training step on some patch tokens against all. The share is windows.keep_tokens; reading a
    batch of windows for it is measured, too: from memory, from the disk, and compressed.

    Example: stillframe bench keep --grid 14 --width 384
    """
    from pipeline.cli import console
    from pipeline.cli.bench.training import keep
    from pipeline.config.recipe import load_recipe
    from pipeline.records import TokenShape

    chosen = [*(sets or []), f"windows.keep_tokens={share}"]
    loaded = load_recipe(named_file("recipe", recipe), chosen)
    shape = TokenShape(width, (grid, grid), 1, (1,))
    with console.progress("bench keep") as update:
        result = keep.keep_speed(
            loaded, shape, batches, repeats, folder, torch_device(device), update
        )
    if as_json:
        console.show_json(result)
        return
    rows = [
        (
            name,
            *(f"{1000 * figure[way]['median_s']:.1f} ms" for way in keep.WAYS),
            f"{figure['ratio']:.2f}",
        )
        for name, figure in result["figures"].items()
    ]
    for name, key in (("memory of a step", "peak_bytes"), ("bytes of a batch", "batch_bytes")):
        whole, kept = (result[key][way] for way in keep.WAYS)
        ratio = f"{kept / whole:.2f}" if whole and kept else ""
        rows.append((name, bytes_cell(whole), bytes_cell(kept), ratio))
    tokens, frames = result["tokens"], result["frames"]
    title = f"{result['batch']} windows of {frames} frames, medians of {repeats}"
    columns = ("", f"{tokens['all']} patches", f"{tokens['kept']} patches", "ratio")
    console.show_table(title, columns, rows, justify="lrrr")
