"""manifest: the clips of a data set are listed, and what they are is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import FINISHED_WITH_FAILURES, AsJson, Sets, manifest_app
from pipeline.cli.show import show_notes
from pipeline.errors import count_text

if TYPE_CHECKING:
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.datasets.manifest.origin import Origin


@manifest_app.callback(invoke_without_command=True)
def manifest(
    dataset: Annotated[
        str, typer.Argument(help="world, folder, playback, ... (see: stillframe list dataset)")
    ],
    root: Annotated[
        Path | None, typer.Argument(help="Folder with the videos; not needed by world.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where manifest.jsonl, targets.h5 and dataset.json go.")
    ] = Path("data"),
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List the clips of a data set, with labels and splits. Truth is listed, too. Nothing is
    written where the videos are.

    Exit code 3 if media that should be a clip became none; remarks on clips that are used all the
    same are notes, and change no exit code.

    What is listed is edited by the commands below: join, select, relabel and split make a manifest
    of others. Any first word that is none of them is a data set.

    Example: stillframe manifest folder my_videos --out data/mine
    """
    from pipeline.cli import console
    from pipeline.config import plugins
    from pipeline.config.toml_tables import override
    from pipeline.datasets.manifest import manifest as module

    dataset = plugins.plugin_name("dataset", dataset)
    with console.progress(f"manifest {dataset}") as update:
        built = module.build(
            dataset,
            root,
            out,
            override({}, sets or []),
            lambda done, total: update(done, total, "videos"),
        )
    show_manifest(built, out, as_json)


def show_manifest(built: Manifest, out: Path, as_json: bool) -> None:
    """What a manifest holds that was written into `out`, and what it does not. Ends the command
    with code 3 where videos were rejected."""
    from pipeline.cli import console
    from pipeline.video.even_rates import rates_of, rates_text

    counts = {split: len(built.split(split)) for split in built.splits}
    captions = sum(len(said.captions) for said in built.texts.values())
    questions = sum(said.question is not None for said in built.texts.values())
    if as_json:
        facts = {
            "manifest": str(out),
            "clips": counts,
            "videos": len(built.videos),
            "labels": list(built.labels),
            "captions": captions,
            "questions": questions,
        }
        left_out = built.origin.model_dump(include={"notes", "left_out", "ignored"})
        console.show_json(facts | {"rejected": built.rejected, **left_out, "digest": built.digest})
    else:
        splits = ", ".join(f"{split} {count}" for split, count in counts.items())
        clips, videos = count_text(len(built.clips), "clip"), count_text(len(built.videos), "video")
        counted = {"label": len(built.labels), "caption": captions, "question": questions}
        said = "".join(f", {count_text(count, noun)}" for noun, count in counted.items() if count)
        console.show(f"{out}: {clips} of {videos} ({splits}){said}")
        if "frames_dir" in built.origin.settings:
            console.show(f"frames are laid out in {built.root}")
        if built.rejected:
            console.show_table(
                f"{count_text(len(built.rejected), 'file')} rejected",
                ("file", "reason"),
                list(built.rejected.items()),
            )
        show_notes(built.origin.notes)
        if text := rates_text(rates_of(fact.fps for fact in built.facts.values() if fact)):
            console.show(text)
    if text := _left_out_text(built.origin):
        console.say(text)
    if built.rejected:
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _left_out_text(origin: Origin) -> str:
    """What of the folder is none of the clips and no rejected file either, by kind; empty if there
    is nothing."""
    from pipeline.datasets.formats.folders import MIXED_SIZES

    parts = [
        f"{kind} {found.count} (first {found.first})" for kind, found in origin.left_out.items()
    ]
    if origin.ignored:
        parts.append(f"other files {origin.ignored}")
    if not parts:
        return ""
    hint = "; next: if they are a video all the same, name their folder in a CSV file"
    return f"left out: {', '.join(parts)}{hint if MIXED_SIZES in origin.left_out else ''}"
