"""Runs for elsewhere: `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import AsJson, app


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    file_format: Annotated[
        str, typer.Option("--format", help="onnx, or pt2 (what torch.export saves).")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files. Default: RUN/export.")
    ] = None,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Also write the encoder: a square to its tokens.")
    ] = False,
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    cache: Annotated[
        str | None,
        typer.Option(help="The run's cache, if it was moved: the check is made of its tokens."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the encoder's table."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one step of a run as a file of another tool. Tokens of a frame and states go in, answer
    and states come out. It is asked 100 frames, and left behind only if it says what the run says.

    Example: stillframe export runs/demo_gru --format onnx
    """
    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.errors import BadInput, unknown_name
    from pipeline.exchange.export import cache_of_run, export
    from pipeline.exchange.formats import FORMATS
    from pipeline.train.run import Run

    if file_format not in FORMATS:
        raise unknown_name("format", file_format, FORMATS)
    if checkpoint not in ("last", "best"):
        raise unknown_name("checkpoint", checkpoint, ("last", "best"))
    opened = Run(run)
    if text := opened.unvouched(checkpoint):
        console.say(text)
    if sets and not encoder:
        raise BadInput("--set is for the encoder, which does not leave", "add --encoder")
    made = export(
        opened,
        out or run / "export",
        file_format,
        cache_of_run(opened, cache),
        checkpoint,
        override({}, sets or []) if encoder else None,
    )
    for note in made.notes:
        console.say(note)
    if as_json:
        console.show_json(made.model_dump())
        return
    rows = [
        (one.name, output, f"{difference:.1e}")
        for one in made.files
        for output, difference in one.differences.items()
    ]
    console.show_table("", ("file", "output", "differs from PyTorch by up to"), rows)
    for one in made.files:
        console.show(
            f"{one.path}: {one.torch_ms:.2f} ms a frame in PyTorch, {one.file_ms:.2f} ms in the "
            "file"
        )
