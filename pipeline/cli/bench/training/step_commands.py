"""Measurements of single training steps on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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


@bench_app.command("step")
def bench_step(
    recipe: RecipeOption = "demo_gru",
    cache: Annotated[
        Path | None,
        typer.Option(help="A cache to train on; without it, one is made of the built-in world."),
    ] = None,
    grid: Grid = 7,
    width: Width = 64,
    codec: Annotated[str, typer.Option(help="Codec of the cache that is made.")] = "float16",
    steps: Annotated[int, typer.Option(min=2, help="Timed steps of a round.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 7,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """A training step from a cache against one on resident tokens. The same batches lie on the
    device, decoded; the command says where the difference goes: waiting, transfer and codec, or
    steps that are slower beside reading.

    Example: stillframe bench step --grid 14 --width 384 --set training.batch_size=8
    """
    from pipeline.cli import console
    from pipeline.cli.bench.training import cached
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.recipe import load_recipe

    spec = load_spec(
        named_file("spec", "demo"),
        [
            f"codec.name={codec}",
            f"encoder.config.hidden_size={width}",
            f"encoder.config.image_size={16 * grid}",
            f"frames.size_px={16 * grid}",
            # The demo's are so small that a training would have more of them than it keeps open.
            "store.shard_mb=64",
            "store.store_mb=64",
        ],
    )
    loaded = load_recipe(named_file("recipe", recipe), sets or [])
    with console.progress("bench step") as update:
        result = cached.step_speed(
            None if cache else spec, cache, loaded, steps, repeats, torch_device(device), update
        )
    if as_json:
        console.show_json(result)
        return
    _show_step(result)


PARTS = {
    "data": "of it waiting for a batch",
    "tokens": "of it moving and decoding",
    "steps": "of it model and optimiser",
}
"""Seconds that the loop counts -> what they are."""


def _show_step(result: dict[str, Any]) -> None:
    from pipeline.cli import console
    from pipeline.cli.bench.training import cached

    def cells(seconds: list[float]) -> tuple[str, ...]:
        own, reference = seconds
        return f"{1e3 * own:.2f}", f"{1e3 * reference:.2f}", f"{1e3 * (own - reference):+.2f}"

    size, medians = result["size"], [result["steps"][way]["median_s"] for way in cached.WAYS]
    rows = [("a step", *cells(medians))]
    rows += [
        (name, *cells([result["parts"][way][part] for way in cached.WAYS]))
        for part, name in PARTS.items()
    ]
    title = (
        f"{size['windows']}, {size['tokens']} in {size['codec']}, "
        f"{bytes_cell(size['batch_bytes'])} a batch, {size['device']}, "
        f"{size['threads']} threads\nmilliseconds, medians of {result['repeats']} rounds of "
        f"{size['steps']} steps"
    )
    columns = ("", "from the cache", "resident", "difference")
    console.show_table(title, columns, rows, justify="lrrr")
    alone = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in result["alone"].items())
    console.show(f"a batch alone: {alone}; losses are {'' if result['equal'] else 'not '}equal")
    console.show(
        f"a step from the cache takes {result['ratio']:.3f} of one on resident tokens "
        f"({min(result['ratios']):.3f} .. {max(result['ratios']):.3f})"
    )
