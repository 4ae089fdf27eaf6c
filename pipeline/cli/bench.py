"""Measurements on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli._common import AsJson, Device, app, torch_device

bench_app = typer.Typer(
    help="Measure this machine: medians, and ratios against a reference in the same run.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")


@bench_app.command("extract")
def bench_extract(
    frames: Annotated[int, typer.Option(min=32, help="Frames to extract in each repeat.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode videos.")] = 1,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Extraction end to end against the bare encoder on frames already in memory.

    Example: stillframe bench extract --repeats 5
    """
    from pipeline import console
    from pipeline.bench import extract

    result = extract.extract_speed(frames, repeats, decoders, torch_device(device))
    if as_json:
        console.show_json(result)
    else:
        console.show_table(result["title"], ("", "frames/s, median", "min", "max"), result["rows"])
        console.show(f"extraction reaches {result['ratio']:.3f} of the bare encoder (median of {repeats} paired ratios)")
