"""Video -> Frames: decode, sample by presentation time, and resize to the encoder's square with the affine kept.

Pixels. 8-bit RGB by libswscale with the stream's own matrix and range, bit for bit what `ffmpeg -pix_fmt rgb24` writes; an
untagged stream is taken as BT.601. Alpha is dropped: the stored colour counts. Frames flagged as interlaced are deinterlaced at
the frame rate (bwdif). The display matrix (video) or EXIF orientation (JPEG) is applied, to the nearest quarter turn.

Times are the container's presentation times. A missing or non-increasing one becomes the previous time plus 1 / rate. AVI has no
presentation times: there the k-th frame shown takes the k-th decode time, which counts dropped frames (k / rate without any).

Decoding runs in one thread: on a damaged stream, what libav conceals depends on the number of its threads.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import BadVideo
from pipeline.probe import frame_rate, header_end_s, last_packet_end_s, list_images, open_video
from pipeline.records import Frames

TOLERANCE_S = 1e-3
"""Matroska and FLV round times to 1 ms: a frame this late still counts as shown at a sampling instant."""
HONEST_HEADERS = {"avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"}
"""Containers whose header was written with the file; for others libav estimates the duration from what is there."""

FILTER_TICK = Fraction(1, 1000)


class _Picture(NamedTuple):
    """A decoded frame, shown during [time_s, end_s) unless the next one comes earlier or later."""

    frame: VideoFrame
    time_s: float
    end_s: float
    pixel_aspect: float
    """As stored, before rotation."""


def decode(path: Path, fps: float | None, image_fps: float | None = None, block_frames: int = 8) -> Iterator[Frames]:
    """Blocks of up to `block_frames` consecutive sampled frames; a change of frame size starts a new block.

    With t0 the first frame's time, the frames kept are those shown at t0 + k / fps, k = 0, 1, ..., until the video ends; each is
    yielded once, with its own presentation time. `fps` None keeps every frame. `path` is a file, or a folder of images.

    Raises BadVideo, after all good frames have been yielded, if the video cannot be opened, if decoding stops with an error, or
    if the content ends more than 1 s and more than 5 % before the end that its header promises.
    """
    source = _ImageFolder(path, image_fps) if path.is_dir() else _VideoFile(path)
    yield from _blocks(_sampled(source.pictures(), fps), block_frames)
    if source.failure is not None:
        raise source.failure


class _VideoFile:
    """The pictures of a video file in the order they are shown; afterwards `failure` tells why some are missing."""

    failure: BadVideo | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.end_s = 0.0

    def pictures(self) -> Iterator[_Picture]:
        container, stream = open_video(self.path)
        with container:
            yield from _deinterlaced(self._decoded(container, stream))
            if self.failure is None:
                self.failure = self._shortfall(container, stream)

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[_Picture]:
        interval_s = 1 / (frame_rate(stream) or 25)
        aspect = float(stream.sample_aspect_ratio or 1)
        previous_s = -math.inf
        try:
            for frame, time_s in _timed(container, stream):
                if time_s is None or time_s <= previous_s:
                    time_s = previous_s + interval_s if self.count else 0.0
                self.count += 1
                self.end_s = time_s + (float(frame.duration * stream.time_base) if frame.duration else interval_s)
                previous_s = time_s
                yield _Picture(frame, time_s, self.end_s, aspect)
        except av.FFmpegError as error:
            self.failure = self._stopped(stream, error.strerror)

    def _stopped(self, stream: VideoStream, reason: str) -> BadVideo:
        if self.count:
            return BadVideo(f"{self.path.name}: decoding stopped after {self.count} frames at {self.end_s:.1f} s: {reason}")
        return self._nothing(stream, reason)

    def _nothing(self, stream: VideoStream, reason: str = "") -> BadVideo:
        promise = f"header promises {stream.frames} frames, none" if stream.frames else "no frame"
        return BadVideo(f"{self.path.name}: {promise} could be decoded{': ' if reason else ''}{reason}")

    def _shortfall(self, container: InputContainer, stream: VideoStream) -> BadVideo | None:
        """Why a video that ended without an error is not complete."""
        if not self.count:
            return self._nothing(stream)
        promised_s = header_end_s(container, stream)
        if promised_s is None or container.format.name not in HONEST_HEADERS:
            return None
        allowed_s = max(1.0, 0.05 * promised_s)
        if promised_s - self.end_s <= allowed_s:
            return None
        # A duration of the whole container may be that of a sound track that goes on after the pictures.
        if stream.duration is None and promised_s - last_packet_end_s(self.path, all_streams=True) <= allowed_s:
            return None
        return BadVideo(
            f"{self.path.name}: truncated: the header promises {promised_s:.1f} s, "
            f"the content ends after {self.count} frames at {self.end_s:.1f} s"
        )


def _timed(container: InputContainer, stream: VideoStream) -> Iterator[tuple[VideoFrame, float | None]]:
    """Decoded frames with the times that the container gives them."""
    stream.codec_context.thread_count = 1
    is_avi = container.format.name == "avi"
    decode_times: deque[int] = deque()
    for packet in container.demux(stream):
        if is_avi and packet.dts is not None:
            decode_times.append(packet.dts)
        for frame in packet.decode():
            time = (decode_times.popleft() if decode_times else None) if is_avi else frame.pts
            yield frame, None if time is None else float(time * stream.time_base)


class _ImageFolder:
    """The images of a folder as pictures; afterwards `failure` tells which one could not be decoded."""

    failure: BadVideo | None = None

    def __init__(self, folder: Path, image_fps: float | None) -> None:
        self.folder = folder
        self.images, self.time_s, self.end_s = list_images(folder, image_fps)

    def pictures(self) -> Iterator[_Picture]:
        ends_s = [*self.time_s[1:], self.end_s]
        for image, time_s, end_s in zip(self.images, self.time_s, ends_s, strict=True):
            try:
                frame, aspect = _read_image(image)
            except av.FFmpegError as error:
                self.failure = BadVideo(f"{self.folder.name}/{image.name}: cannot be decoded: {error.strerror}")
                return
            yield _Picture(frame, float(time_s), float(end_s), aspect)


def _read_image(image: Path) -> tuple[VideoFrame, float]:
    # From memory, since libav would read a "%" in the name as a pattern.
    with av.open(io.BytesIO(image.read_bytes()), "r", metadata_errors="replace") as container:
        stream = container.streams.video[0]
        if stream.codec_context.name == "mjpeg":
            # Otherwise a truncated JPEG passes with its lower part grey.
            stream.codec_context.options = {"err_detect": "explode"}
        return next(container.decode(stream)), float(stream.sample_aspect_ratio or 1)


def _deinterlaced(pictures: Iterator[_Picture]) -> Iterator[_Picture]:
    """Passes pictures on until one is flagged interlaced, and from there on sends all through bwdif: one out per one in."""
    graph, layout = None, None
    waiting: deque[_Picture] = deque()
    ticks = itertools.count()
    for picture in pictures:
        frame = picture.frame
        if graph is not None and layout != (frame.width, frame.height, frame.format.name):
            yield from _pulled(graph, waiting, None)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield picture
                continue
            graph, layout = _bwdif(frame), (frame.width, frame.height, frame.format.name)
        # The filter wants even times; the picture keeps its own.
        frame.pts, frame.time_base = next(ticks), FILTER_TICK
        waiting.append(picture)
        yield from _pulled(graph, waiting, frame)
    if graph is not None:
        yield from _pulled(graph, waiting, None)


def _bwdif(frame: VideoFrame) -> Graph:
    """A filter graph that deinterlaces frames like this one; frames that are not flagged pass through it unchanged."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=FILTER_TICK)
    deinterlace = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    graph.link_nodes(source, deinterlace, graph.add("buffersink")).configure()
    return graph


def _pulled(graph: Graph, waiting: deque[_Picture], frame: VideoFrame | None) -> Iterator[_Picture]:
    """Pushes a frame (None: the end) and takes out what is ready; the filter looks one frame ahead."""
    graph.vpush(frame)
    while waiting:
        try:
            filtered = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield waiting.popleft()._replace(frame=filtered)


def grid_points_before(time_s: float, first_s: float, fps: float) -> int:
    """How many of the sampling instants first_s + k / fps, k = 0, 1, ... come before a frame shown from `time_s` on.

    A frame is shown at an instant, and hence kept, exactly if this number grows from it to the next frame.
    """
    return math.ceil((time_s - TOLERANCE_S - first_s) * fps)


def _sampled(pictures: Iterator[_Picture], fps: float | None) -> Iterator[_Picture]:
    """Keeps the pictures shown at the sampling instants. Looks one picture ahead; the last one counts up to its own end."""
    if fps is None:
        yield from pictures
        return
    first = held = next(pictures, None)
    if first is None or held is None:
        return
    for picture in pictures:
        if grid_points_before(picture.time_s, first.time_s, fps) > grid_points_before(held.time_s, first.time_s, fps):
            yield held
        held = picture
    if grid_points_before(held.end_s, first.time_s, fps) > grid_points_before(held.time_s, first.time_s, fps):
        yield held


def _blocks(pictures: Iterator[_Picture], block_frames: int) -> Iterator[Frames]:
    """Converts kept pictures to upright RGB and gathers those of one size."""
    converter = VideoReformatter()
    rows: list[np.ndarray] = []
    times_s: list[float] = []
    aspect = 1.0
    for picture in pictures:
        pixels_HWC, pixel_aspect = _upright_rgb(picture, converter)
        if rows and (pixels_HWC.shape != rows[0].shape or pixel_aspect != aspect):
            yield _block(rows, times_s, aspect)
        aspect = pixel_aspect
        rows.append(pixels_HWC)
        times_s.append(picture.time_s)
        if len(rows) == block_frames:
            yield _block(rows, times_s, aspect)
    if rows:
        yield _block(rows, times_s, aspect)


def _block(rows: list[np.ndarray], times_s: list[float], aspect: float) -> Frames:
    """Empties the lists, so that a block handed out is held by its receiver alone."""
    block = Frames(np.stack(rows), np.array(times_s), aspect)
    rows.clear()
    times_s.clear()
    return block


def _upright_rgb(picture: _Picture, converter: VideoReformatter) -> tuple[np.ndarray, float]:
    """RGB pixels (H, W, 3) as a viewer shows them, and their aspect."""
    # Without any accuracy flag libswscale runs its fast path; one thread, since a frame is small work.
    rgb = converter.reformat(picture.frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
    pixels_HWC = rgb.to_ndarray()
    matrix = picture.frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels_HWC, picture.pixel_aspect
    # Stored (x, y) is shown at (a x + c y, b x + d y), ISO/IEC 14496-12, 6.2.2.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels_HWC, a, d = pixels_HWC.swapaxes(0, 1), c, b
        picture = picture._replace(pixel_aspect=1 / picture.pixel_aspect)
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], picture.pixel_aspect


def to_square(
    pixels_FHWC: torch.Tensor,
    size_px: int,
    fit: Literal["crop", "squash"],
    resample: Literal["bilinear", "bicubic"],
    pixel_aspect: float = 1.0,
) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 (F, H, W, 3) -> uint8 (F, 3, size_px, size_px) on the same device, antialiased, and the affine (2, 3).

    crop: the frame, as shown with its pixel aspect, is resized until its short side is `size_px`, its long side rounded to whole
    pixels, and the centre is cut out. What lies further out than the central 2:1 of a longer frame is cut off before the resize.
    squash: both sides are resized to `size_px`, whatever the aspect.

    The affine maps (x, y, 1), normalised to [0, 1] in the source frame, to (x, y) normalised to [0, 1] in the square. It is that
    of the pixels, roundings included. The CPU resizes in uint8, other devices in float32: they differ by at most 1 or 2 levels.
    """
    _, height, width, _ = pixels_FHWC.shape
    if fit == "squash":
        return _resize(pixels_FHWC, (size_px, size_px), resample), np.eye(2, 3)
    shown_hw = (float(height), width * pixel_aspect)
    rows, resized_h, top, scale_y, shift_y = _centre(height, shown_hw[0] / min(shown_hw), size_px)
    columns, resized_w, left, scale_x, shift_x = _centre(width, shown_hw[1] / min(shown_hw), size_px)
    resized = _resize(pixels_FHWC[:, rows, columns], (resized_h, resized_w), resample)
    square = resized[:, :, top : top + size_px, left : left + size_px].contiguous()
    return square, np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])


def _centre(stored_px: int, aspect: float, size_px: int) -> tuple[slice, int, int, float, float]:
    """One axis of the crop: source pixels to read, their number after resizing, where the square begins, and scale and shift.

    `aspect` is the shown length of this axis over that of the short one, at least 1.
    """
    read_px = stored_px if aspect <= 2 else math.ceil(stored_px * 2 / aspect)
    begin_px = (stored_px - read_px) // 2
    resized_px = max(size_px, round(size_px * aspect * read_px / stored_px))
    crop_px = (resized_px - size_px) // 2
    scale = stored_px / read_px * resized_px / size_px
    shift = -(begin_px / read_px * resized_px + crop_px) / size_px
    return slice(begin_px, begin_px + read_px), resized_px, crop_px, scale, shift


def _resize(pixels_FHWC: torch.Tensor, size_hw: tuple[int, int], resample: str) -> torch.Tensor:
    """(F, H, W, 3) -> (F, 3, *size_hw), uint8. A view of channels-last memory, which is what torch's uint8 kernel is fast on."""
    pixels_FCHW = pixels_FHWC.permute(0, 3, 1, 2)
    if pixels_FCHW.device.type == "cpu":
        return F.interpolate(pixels_FCHW, size_hw, mode=resample, antialias=True)
    resized = F.interpolate(pixels_FCHW.float(), size_hw, mode=resample, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
