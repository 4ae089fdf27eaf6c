"""Questions to videos on the command line: search asks a cache, stream a run about a video as it
comes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import (
    Ahead,
    AsJson,
    CacheFolder,
    Device,
    Forecaster,
    Root,
    app,
    torch_device,
)
from pipeline.device import chosen
from pipeline.errors import BadInput, count_text

if TYPE_CHECKING:
    import torch

    from pipeline.cache.cache import Cache
    from pipeline.models.text.contract import TextPlugin
    from pipeline.search.moments import Moment
    from pipeline.search.queries import ExampleFrame, Query
    from pipeline.train.language.frame_index import FrameIndex
    from pipeline.train.run import Run
    from pipeline.train.stream import Seen, Stream


@app.command()
def search(
    cache: CacheFolder,
    query: Annotated[
        list[str] | None, typer.Argument(help="What to look for, in words; as many as wanted.")
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VIDEO@SECONDS",
            help="Look for what is on screen there; may be given many times.",
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What is not wanted; may be given many times."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.001, help="How long a moment is: scores are means over it.")
    ] = 4.0,
    top: Annotated[int, typer.Option(min=1, help="Moments to show for each query.")] = 10,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also write a page, with a picture of each."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Where the model is now that the cache was made with, if it was moved."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Search by a trained run of retrieve, not by the mean of frames."
        ),
    ] = None,
    root: Root = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find moments by words, or by an example. They are the best of all videos of a cache.

    The cache is one of an image-text model, such as CLIP or SigLIP 2, with its last layer. No
    video is decoded for it.

    Example: stillframe search caches/siglip2_base-* "a dog jumps over a fence"
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.search.moments import best_moments
    from pipeline.search.queries import example_of

    if not query and not like:
        raise BadInput(
            "there is nothing to look for", 'give words, as "a dog jumps", or --like VIDEO@SECONDS'
        )
    opened, unwanted = Cache(cache), negative or []
    examples = [example_of(opened, text) for text in like or []]
    asked = _asked if run is None else partial(_asked_of_run, run)
    index, queries = asked(opened, query or [], examples, unwanted, model, device)
    names = [one.name for one in queries]
    found = dict(zip(names, best_moments(index, queries, seconds, top), strict=True))
    if as_json:
        tables = {name: [asdict(moment) for moment in found[name]] for name in found}
        console.show_json([{"query": name, "moments": tables[name]} for name in tables])
    else:
        for name, moments in found.items():
            _show(name, moments)
    if page is not None:
        from pipeline.search.page import write_page

        unit = "frame" if run is None else "window"
        facts = (
            f"{count_text(len(index), unit)} of {count_text(len(index.videos), 'video')}; "
            f"moments of {seconds:g} s"
        )
        less = f"; less what is like: {'; '.join(unwanted)}" if unwanted else ""
        write_page(page, opened, found, root, facts + less, console.say)
        (console.say if as_json else console.show)(f"page: {page}")


def _asked(
    cache: Cache,
    texts: list[str],
    examples: list[ExampleFrame],
    unwanted: list[str],
    model: str | None,
    device: str | None,
) -> tuple[FrameIndex, list[Query]]:
    """The index of a cache, and queries of texts and of examples. What is wrong with the words is
    said before an index is made."""
    from pipeline.cli import console
    from pipeline.search.queries import query_like, text_queries
    from pipeline.train.language.frame_index import open_index
    from pipeline.train.language.tower import text_tower_of

    where = chosen(torch_device(device))
    queries: list[Query] = []
    tower = text_tower_of(cache, model, where) if texts or unwanted else None
    if tower is not None and texts:
        queries, cut = text_queries(tower, texts, unwanted)
        _say_cut(cut, tower)
    with console.progress("index") as update:
        index = open_index(
            cache, model, where, lambda done, total: update(done, total, "frames"), console.say
        )
    return index, queries + [query_like(index, one, tower, unwanted) for one in examples]


def _asked_of_run(
    path: Path,
    cache: Cache,
    texts: list[str],
    examples: list[ExampleFrame],
    unwanted: list[str],
    model: str | None,
    device: str | None,
) -> tuple[FrameIndex, list[Query]]:
    """As `_asked`, of the windows that a run sees."""
    from pipeline.cli import console
    from pipeline.search.by_run import index_by_run, model_of_search, reads_embeddings
    from pipeline.search.queries import query_like, text_queries
    from pipeline.train.language.frame_embeddings import looking_for
    from pipeline.train.language.frame_index import open_index
    from pipeline.train.language.streamed import tower_of_stream
    from pipeline.train.run import Run

    if unwanted and not texts:
        raise BadInput("--negative with --run is for words", "give words to look for, too")
    where, run = chosen(torch_device(device)), Run(path)
    loaded = model_of_search(run, cache, where)
    task = loaded[1]
    queries: list[Query] = []
    frames: FrameIndex | None = None
    if texts:
        named = {"model": model} if model else dict(cache.spec["encoder"])
        with looking_for(model):
            tower = tower_of_stream(run, named, task, where)
        queries, cut = text_queries(tower, texts, unwanted, task.of_texts)
        _say_cut(cut, tower)
    with console.progress("windows") as update:
        if reads_embeddings(task):
            frames = open_index(
                cache, model, where, lambda done, total: update(done, total, "frames"), console.say
            )
        index = index_by_run(
            run,
            loaded,
            cache,
            frames,
            where,
            lambda done, total: update(done, total, "windows"),
            console.say,
        )
    return index, queries + [query_like(index, one) for one in examples]


def _say_cut(cut: int, tower: TextPlugin) -> None:
    from pipeline.cli import console

    if cut:
        console.say(
            f"{count_text(cut, 'text')} longer than {tower.most_tokens} tokens: the end was left "
            "out"
        )


def _show(name: str, moments: list[Moment]) -> None:
    from pipeline.cli import console

    rows = [
        (f"{moment.score:.3f}", moment.video, f"{moment.start_s:.1f}", f"{moment.stop_s:.1f}")
        for moment in moments
    ]
    console.show_table(name, ("score", "video", "from s", "to s"), rows, justify="rlrr")


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
    choice: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="An answer that --ask is to choose among; repeat it."),
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
    """Follow one video frame by frame, as from a camera. One JSON line per answer comes on stdout,
    at the rate of the run's windows; with --forecaster also what the answers will be.

    Example: stillframe stream runs/demo_gru clip.mp4
    """
    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.models.tasks.parts import fonts
    from pipeline.train.run import Run

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
    if choice and not ask:
        raise BadInput("--choice is for a question", 'name it, too: --ask "what happens?"')
    words = ask or (), choice or ()
    follower = _follower(opened, forecaster, ahead or (), torch_device(device), keys, *words)
    if follower.note:
        console.say(follower.note)
    written = [*opened.header.labels, *(ask or ()), *(choice or ())]
    if draw and (missing := fonts.missing_letters(written)):
        console.say(missing)
    _follow(follower, follower.follow(video, asked, start_s, rate), draw, video, rate)


def _follow(
    follower: Stream, frames: Iterable[Seen], draw: Path | None, video: Path, rate: float | None
) -> None:
    """Shows what is said of every frame, and draws it where a file is named."""
    from contextlib import nullcontext

    from pipeline.cli import console
    from pipeline.train.visualize import VideoFile

    count, begin = 0, time.perf_counter()
    with VideoFile(draw, follower.fps_of(video, rate)) if draw else nullcontext() as drawing:
        for seen in frames:
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
    choices: Sequence[str],
) -> Stream:
    """The stream of a run: of what it says ahead, too, where a forecaster is named."""
    from pipeline.train.ahead.pair import horizons_of
    from pipeline.train.ahead.stream import StreamAhead
    from pipeline.train.run import Run
    from pipeline.train.stream import Stream

    if forecaster is not None:
        return StreamAhead(run, Run(forecaster), ahead_s, device, encoder)
    alone = Stream(run, device, encoder, ask, choices)
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
