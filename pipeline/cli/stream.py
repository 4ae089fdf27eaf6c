"""A run on a video as it comes, on the command line: stream."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Ahead, Device, Forecaster, app, torch_device
from pipeline.errors import BadInput, count_text

if TYPE_CHECKING:
    import torch

    from pipeline.train.run import Run
    from pipeline.train.stream import Stream


@app.command()
def stream(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    video: Annotated[Path, typer.Argument(help="A video file, or a folder of images.")],
    query: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='What to follow from the first frame on: {"boxes": [[x0, y0, x1, y1]]} in [0, 1].',
        ),
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="How much is the video like this text (retrieve; may be repeated); or a question.",
        ),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.mp4", help="Also write a video with the answers drawn."),
    ] = None,
    start_s: Annotated[
        float,
        typer.Option(
            "--from",
            metavar="SECONDS",
            min=0,
            help="Begin with the frame on screen so long after the first one.",
        ),
    ] = 0.0,
    image_fps: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1000, help="Frame rate of a folder of images. Default: as in training."
        ),
    ] = None,
    forecaster: Forecaster = None,
    ahead: Ahead = None,
    device: Device = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the encoder's table."),
    ] = None,
) -> None:
    """Follow one video frame by frame, as a camera would deliver it: one JSON line per answer on
    stdout, at the rate of the run's windows; with --forecaster also what the answers will be.

    Example: stillframe stream runs/demo_gru clip.mp4
    """
    import time
    from contextlib import nullcontext

    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.models.tasks.parts import fonts
    from pipeline.train.run import Run
    from pipeline.train.visualize import VideoFile

    asked = _query(query)
    opened = Run(run)
    rate = _rate_of_images(video, opened) if image_fps is None else image_fps
    if text := opened.unvouched("last"):
        console.say(text)
    keys = override({}, sets or [])
    if ask and forecaster is not None:
        raise BadInput(
            "what is asked in words is not told ahead", "leave --ask or --forecaster out"
        )
    follower = _follower(opened, forecaster, ahead or (), torch_device(device), keys, ask or ())
    if follower.note:
        console.say(follower.note)
    if draw and (missing := fonts.missing_letters([*opened.header.labels, *(ask or ())])):
        console.say(missing)
    count, begin = 0, time.perf_counter()
    with VideoFile(draw, follower.fps_of(video, rate)) if draw else nullcontext() as drawing:
        for seen in follower.follow(video, asked, start_s, rate):
            count += 1
            line = {"time_s": round(seen.time_s, 6), **follower.plain(seen.answer, seen)}
            told = {at: follower.plain(answer, seen) for at, answer in seen.ahead.items()}
            console.show_line(line | ({"ahead": told} if told else {}))
            if drawing:
                drawing.append(follower.drawn(seen))
    if follower.damage:
        console.say(follower.damage)
    speed = count / (time.perf_counter() - begin)
    size = console.bytes_text(follower.state_bytes)
    console.say(f"{count_text(count, 'answer')}, {speed:.1f} a second, {size} of state")


def _follower(
    run: Run,
    forecaster: Path | None,
    ahead_s: Sequence[float],
    device: torch.device | None,
    encoder: Mapping[str, Any],
    ask: Sequence[str],
) -> Stream:
    """The stream of a run: of what it says ahead, too, where a forecaster is named."""
    from pipeline.train.ahead.pair import horizons_of
    from pipeline.train.ahead.stream import StreamAhead
    from pipeline.train.run import Run
    from pipeline.train.stream import Stream

    if forecaster is not None:
        return StreamAhead(run, Run(forecaster), ahead_s, device, encoder)
    alone = Stream(run, device, encoder, ask)
    if ahead_s:
        alone.task.look_ahead(horizons_of(ahead_s, None))
    return alone


def _rate_of_images(video: Path, run: Run) -> float | None:
    """The frame rate for a folder of images that nobody gave one: that of the run's own data set,
    which is said. None for what knows its own times. Raises BadInput if there is no such path, or
    no rate is known."""
    from pipeline.cli import console
    from pipeline.train.stream import trained_image_fps
    from pipeline.video.probe import TIMESTAMPS

    if not video.exists():
        raise BadInput(f"video {video} does not exist", f"looked for {video.absolute()}")
    if not video.is_dir() or (video / TIMESTAMPS).is_file():
        return None
    rate = trained_image_fps(run)
    if rate is None:
        raise BadInput(
            f"{video}: its images have no times",
            "give their frame rate, for example --image-fps 25, or one time in seconds per line "
            f"in {video / TIMESTAMPS}",
        )
    console.say(f"{video}: {rate:g} images a second, as in training; --image-fps sets another")
    return rate


def _query(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        table = json.loads(text)
    except ValueError as error:
        raise BadInput(
            f"--query is not JSON: {error}",
            "for example --query '{\"boxes\": [[0.1, 0.2, 0.5, 0.6]]}'",
        ) from error
    if not isinstance(table, dict):
        raise BadInput(
            f"--query wants a JSON object, found {text}", 'for example {"points": [[0.5, 0.5]]}'
        )
    return table
