"""Decoded pictures, before they are frames: deinterlaced, cropped, then upright RGB.

8-bit RGB by libswscale with the stream's own matrix and range, the pixels that `ffmpeg -pix_fmt
rgb24` writes; an untagged stream is taken as BT.601. Alpha is dropped: the stored colour counts.
Frames flagged as interlaced are deinterlaced at the frame rate (bwdif). What the container crops is
cut off as `ffmpeg` does it, which is by whole samples of colour. The display matrix of a video
(turns and mirrors) or EXIF orientation of a JPEG (turns) is applied.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.video.containers.track_header import Crop

FILTER_TICK = Fraction(1, 1000)


class Picture(NamedTuple):
    """A decoded frame, shown during [time_s, end_s) unless the next one comes earlier or later."""

    frame: VideoFrame
    time_s: float
    end_s: float
    pixel_aspect: float
    """Width of a stored pixel over its height, before rotation."""
    damage: str | None = None
    """Why it is not the picture that was encoded; None: nothing speaks against it."""


def deinterlaced(pictures: Iterator[Picture]) -> Iterator[Picture]:
    """Passes pictures on until one is flagged interlaced, and from there on sends all through
    bwdif: one out per one in."""
    graph, layout = None, None
    waiting: deque[Picture] = deque()
    ticks = itertools.count()
    for picture in pictures:
        frame = picture.frame
        if graph is not None and layout != (frame.width, frame.height, frame.format.name):
            yield from _filter(graph, waiting, None)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield picture
                continue
            graph, layout = _bwdif(frame), (frame.width, frame.height, frame.format.name)
        # The filter wants even times; the picture keeps its own.
        frame.pts, frame.time_base = next(ticks), FILTER_TICK
        waiting.append(picture)
        yield from _filter(graph, waiting, frame)
    if graph is not None:
        yield from _filter(graph, waiting, None)


def cropped(pictures: Iterator[Picture], crop: Crop | None) -> Iterator[Picture]:
    """The part of each picture that is shown. Pictures from which it would leave nothing, as they
    have another size than the header says, are passed on as they are."""
    if crop is None:
        yield from pictures
        return
    graph, layout = None, None
    for picture in pictures:
        frame = picture.frame
        if cropped_size(frame.width, frame.height, frame.format, crop) is None:
            yield picture
            continue
        if graph is None or layout != (frame.width, frame.height, frame.format.name):
            graph, layout = _crop_graph(frame, crop), (frame.width, frame.height, frame.format.name)
        frame.pts, frame.time_base = 0, FILTER_TICK
        yield from _filter(graph, deque([picture]), frame)


def cropped_size(
    width: int, height: int, layout: VideoFormat, crop: Crop | None
) -> tuple[int, int] | None:
    """Width and height that `cropped` leaves, whole samples of colour; None if that is nothing."""
    if crop is None:
        return width, height
    # Luma samples to a sample of colour, along either axis.
    across, down = 16 // layout.chroma_width(16), 16 // layout.chroma_height(16)
    width, height = width - crop.left - crop.right, height - crop.top - crop.bottom
    width, height = width - width % across, height - height % down
    return (width, height) if width > 0 and height > 0 else None


def _crop_graph(frame: VideoFrame, crop: Crop) -> Graph:
    left, right, top, bottom = crop
    return _graph(frame, "crop", f"iw-{left + right}:ih-{top + bottom}:{left}:{top}")


def _bwdif(frame: VideoFrame) -> Graph:
    """A filter graph that deinterlaces frames like this one; frames that are not flagged pass
    through it unchanged."""
    return _graph(frame, "bwdif", "mode=send_frame:deint=interlaced")


def _graph(frame: VideoFrame, name: str, settings: str) -> Graph:
    """A graph of one filter, for frames like this one."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=FILTER_TICK
    )
    graph.link_nodes(source, graph.add(name, settings), graph.add("buffersink")).configure()
    return graph


def _filter(graph: Graph, waiting: deque[Picture], frame: VideoFrame | None) -> Iterator[Picture]:
    """Pushes a frame (None: the end) and takes out what is ready; the filter looks one frame
    ahead."""
    graph.vpush(frame)
    while waiting:
        try:
            filtered = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield waiting.popleft()._replace(frame=filtered)


def upright_rgb(picture: Picture, converter: VideoReformatter) -> tuple[np.ndarray, float]:
    """RGB pixels (H, W, 3) as a viewer shows them, a view of libav's own, and their aspect."""
    # Without any accuracy flag libswscale runs its fast path; one thread, since a frame is small
    # work.
    rgb = converter.reformat(
        picture.frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
    )
    plane = rgb.planes[0]
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(rgb.height, plane.line_size)
    pixels_HWC = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
    a, b, c, d = display_matrix(picture.frame)
    pixel_aspect = picture.pixel_aspect
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels_HWC, a, d = pixels_HWC.swapaxes(0, 1), c, b
        pixel_aspect = 1 / pixel_aspect
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], pixel_aspect


def display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): what is stored at (x, y) is shown at (a x + c y, b x + d y); ISO/IEC 14496-12,
    6.2.2."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 refuses all side data of a frame that has EXIF, and tells the angle alone.
        turn = math.radians(frame.rotation)
        return math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(cast(Any, matrix)), np.int32)[:5].tolist()
    return a, b, c, d
