"""Questions to videos on the command line: search asks a cache, stream a run about a video as it
comes."""

from __future__ import annotations

import json
import sys
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
    AskedTexts,
    CacheFolder,
    Camera,
    Device,
    EveryFrame,
    FollowedJson,
    Forecaster,
    RawFps,
    RawSize,
    Root,
    Source,
    StartS,
    TimeoutS,
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
    from pipeline.train.library.live import LiveAnswers
    from pipeline.train.run import Run
    from pipeline.train.stream import Seen, Stream
    from pipeline.video.live.source import LiveSource


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
    source: Source = None,
    camera: Camera = None,
    raw_size: RawSize = None,
    raw_fps: RawFps = None,
    every_frame: EveryFrame = False,
    timeout_s: TimeoutS = 10.0,
    query: FollowedJson = None,
    ask: AskedTexts = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="An answer that --ask is to choose among; repeat it."),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="FILE.mp4", help="Also write a video with the answers drawn."),
    ] = None,
    start_s: StartS = 0.0,
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
    """Follow a video, a camera or an address frame by frame. One JSON line per answer comes on
    stdout, at the rate of the run's windows; with --forecaster also what the answers will be. A
    live source that is faster than the model loses frames.

    Example: stillframe stream runs/demo_gru clip.mp4
    """
    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.models.tasks.parts import fonts
    from pipeline.train.run import Run

    asked = _query(query)
    opened = Run(run)
    live = _live_source(source, camera, raw_size, raw_fps, start_s, image_fps)
    if live is None and (every_frame or timeout_s != 10):
        raise BadInput(f"{source} is no live source", "leave --every-frame and --timeout-s out")
    video = Path(source or "")
    rate = _rate_of_images(video, opened) if image_fps is None and live is None else image_fps
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
    if live is not None:
        from pipeline.train.library.live import LiveAnswers
        from pipeline.video.live.frames import LiveFrames

        came = LiveFrames(live, every_frame, timeout_s, console.say)
        _follow_live(follower, LiveAnswers(follower, came, asked), draw)
        return
    fps = follower.fps_of(video, rate) if draw else 0.0
    _follow(follower, follower.follow(video, asked, start_s, rate), draw, fps)
    if follower.damage:
        console.say(follower.damage)


def _live_source(
    source: str | None,
    camera: str | None,
    raw_size: str | None,
    raw_fps: float | None,
    start_s: float,
    image_fps: float | None,
) -> LiveSource | None:
    """What is followed live; None for files. Raises BadInput where nothing, or two things, are
    named, or what is for others."""
    from pipeline.video.live import source as live

    if (source is None) == (camera is None):
        raise BadInput(
            "name one source to follow",
            "a file, a folder, an address, - for standard input, or --camera 0",
        )
    raw = live.raw_frames(raw_size, raw_fps)
    if raw is not None and source != live.STDIN:
        raise BadInput("raw frames come on standard input", "name the source -")
    if source is not None and not live.is_live(source):
        return None
    if start_s or image_fps is not None:
        raise BadInput(
            "--from and --image-fps are for files",
            "a live source begins now, and knows its times; raw frames have --raw-fps",
        )
    if camera is not None:
        return live.camera(camera)
    if source != live.STDIN:
        return live.address(str(source))
    if sys.stdin.isatty():
        raise BadInput("nothing is piped into standard input", "for example: ffmpeg ... - |")
    return live.standard_input(raw)


def _follow_live(follower: Stream, answers: LiveAnswers, draw: Path | None) -> None:
    """As `_follow`, until the source ends or Ctrl-C; then says what took how long."""
    from pipeline.cli import console

    try:
        _follow(follower, answers, draw, follower.answers_per_second())
    except KeyboardInterrupt:
        console.say("stopped by Ctrl-C")
    finally:
        for line in answers.summary():
            console.say(line)


def _follow(follower: Stream, frames: Iterable[Seen], draw: Path | None, fps: float) -> None:
    """Shows what is said of every frame, and draws it at `fps` where a file is named; at the end,
    however it comes, says how fast that was."""
    from contextlib import nullcontext

    from pipeline.cli import console
    from pipeline.train.visualize import VideoFile

    count, begin = 0, time.perf_counter()
    try:
        with VideoFile(draw, fps) if draw else nullcontext() as drawing:
            for seen in frames:
                count += 1
                line = {"time_s": round(seen.time_s, 6), **follower.plain(seen.answer, seen)}
                told = {at: follower.plain(answer, seen) for at, answer in seen.ahead.items()}
                console.show_line(line | ({"ahead": told} if told else {}))
                if drawing:
                    drawing.append(follower.drawn(seen))
    finally:
        if count:
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
