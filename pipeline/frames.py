"""Video -> Frames: decode, sample by presentation time, and resize to the encoder's square with the affine kept.

Pixels. 8-bit RGB by libswscale with the stream's own matrix and range, the pixels that `ffmpeg -pix_fmt rgb24` writes; an
untagged stream is taken as BT.601. Alpha is dropped: the stored colour counts. Frames flagged as interlaced are deinterlaced at
the frame rate (bwdif). The display matrix of a video (turns and mirrors) or EXIF orientation of a JPEG (turns) is applied.

Times are the container's presentation times. A missing or non-increasing one becomes the previous time plus 1 / rate. AVI has
no presentation times: there the k-th frame shown takes the k-th decode time, which is k / rate unless frames were dropped.

Decoding runs in one thread: on a damaged stream, what libav conceals depends on the number of its threads.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

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
from pipeline.probe import first_frame_s, frame_rate, header_end_s, last_packet_end_s, list_images, open_image, open_video
from pipeline.records import Frames
from pipeline.spec import FrameSettings, View

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

    With t0 the first frame's time, the frames kept are those shown at t0 + k / fps, k = 0, 1, ..., until the video ends; each
    is yielded once, with its own presentation time. `fps` None keeps every frame. `path` is a file, or a folder of images.

    Raises BadVideo, after all good frames have been yielded, if the video cannot be opened, if decoding stops with an error, or
    if the content ends more than 1 s and more than 5 % before the end that its header promises.
    """
    source = _ImageFolder(path, image_fps) if path.is_dir() else _VideoFile(path)
    try:
        yield from _blocks(_sampled(source.pictures(), fps), block_frames)
    except av.FFmpegError as error:
        raise BadVideo(f"{path.name}: its frames cannot be deinterlaced or converted to RGB: {error.strerror}") from error
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
        assert stream.time_base is not None
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
            far = f"decoding stopped after {self.count} frames at {self.end_s:.1f} s" if self.count else _nothing(stream)
            self.failure = BadVideo(f"{self.path.name}: {far}: {error.strerror}")

    def _shortfall(self, container: InputContainer, stream: VideoStream) -> BadVideo | None:
        """Why a video that ended without an error is not complete."""
        if not self.count:
            return BadVideo(f"{self.path.name}: {_nothing(stream)}")
        promised_s = header_end_s(container, stream)
        if promised_s is None or container.format.name not in HONEST_HEADERS:
            return None
        allowed_s = max(1.0, 0.05 * (promised_s - first_frame_s(stream)))
        if promised_s - self.end_s <= allowed_s:
            return None
        # A duration of the whole container may be that of a sound track that goes on after the pictures.
        if stream.duration is None and promised_s - last_packet_end_s(self.path, all_streams=True) <= allowed_s:
            return None
        return BadVideo(
            f"{self.path.name}: truncated: the header promises {promised_s:.1f} s, "
            f"the content ends after {self.count} frames at {self.end_s:.1f} s"
        )


def _nothing(stream: VideoStream) -> str:
    return f"header promises {stream.frames} frames, none could be decoded" if stream.frames else "no frame could be decoded"


def _timed(container: InputContainer, stream: VideoStream) -> Iterator[tuple[VideoFrame, float | None]]:
    """Decoded frames with the times that the container gives them."""
    assert stream.time_base is not None
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
            except BadVideo as error:
                self.failure = error
                return
            yield _Picture(frame, float(time_s), float(end_s), aspect)


def _read_image(image: Path) -> tuple[VideoFrame, float]:
    container, stream = open_image(image)
    with container:
        if stream.codec_context.name == "mjpeg":
            # Otherwise a truncated JPEG passes with its lower part grey.
            stream.codec_context.options = {"err_detect": "explode"}
        reason = "it holds no picture"
        try:
            for frame in container.decode(stream):
                return frame, float(stream.sample_aspect_ratio or 1)
        except av.FFmpegError as error:
            reason = str(error.strerror)
    raise BadVideo(f"{image.parent.name}/{image.name}: cannot be decoded: {reason}")


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


def is_sampled(time_s: float, next_s: float, first_s: float, fps: float) -> bool:
    """Whether a frame shown during [time_s, next_s) is on screen at one of the instants first_s + k / fps, k = 0, 1, ...

    That is so if more instants come before the next frame than before this one.
    """
    before, before_next = (math.ceil((time - TOLERANCE_S - first_s) * fps) for time in (time_s, next_s))
    return before_next > before


def _sampled(pictures: Iterator[_Picture], fps: float | None) -> Iterator[_Picture]:
    """Keeps the pictures shown at the sampling instants. Looks one picture ahead; the last one counts up to its own end."""
    held = next(pictures, None)
    if held is None:
        return
    first_s = held.time_s
    for picture in pictures:
        if fps is None or is_sampled(held.time_s, picture.time_s, first_s, fps):
            yield held
        held = picture
    if fps is None or is_sampled(held.time_s, held.end_s, first_s, fps):
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
    a, b, c, d = _display_matrix(picture.frame)
    pixel_aspect = picture.pixel_aspect
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels_HWC, a, d = pixels_HWC.swapaxes(0, 1), c, b
        pixel_aspect = 1 / pixel_aspect
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], pixel_aspect


def _display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): what is stored at (x, y) is shown at (a x + c y, b x + d y); ISO/IEC 14496-12, 6.2.2."""
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


class Squares:
    """What encoders see of some frames: what several of them see is made once."""

    def __init__(self, frames: Frames, device: torch.device) -> None:
        self.frames, self.device = frames, device
        self._pixels: dict[bytes, torch.Tensor] = {}
        self._made: dict[tuple[Any, ...], tuple[torch.Tensor, np.ndarray]] = {}

    def of(self, settings: FrameSettings, mask: np.ndarray, view: View | None) -> tuple[torch.Tensor, np.ndarray]:
        """Squares of the frames of `mask`, and the affine that leads to them; `view` None is the base."""
        key = (settings.size_px, settings.fit, settings.resample, mask.tobytes(), view)
        if key not in self._made:
            self._made[key] = self._make(settings, mask, view)
        return self._made[key]

    def _make(self, settings: FrameSettings, mask: np.ndarray, view: View | None) -> tuple[torch.Tensor, np.ndarray]:
        if mask.tobytes() not in self._pixels:
            self._pixels[mask.tobytes()] = torch.from_numpy(self.frames.pixels_FHWC[mask]).to(self.device)
        pixels_FHWC = self._pixels[mask.tobytes()]
        if view is None:
            return to_square(pixels_FHWC, settings.size_px, settings.fit, settings.resample, self.frames.pixel_aspect)
        squares_FCHW, affine_23 = self.of(settings, mask, None)
        if view.crop is not None:
            squares_FCHW, affine_23 = to_part(pixels_FHWC, affine_23, view.crop, settings.size_px, settings.resample)
        return mirrored(squares_FCHW, affine_23) if view.flip else (squares_FCHW, affine_23)


def to_square(
    pixels_FHWC: torch.Tensor,
    size_px: int,
    fit: Literal["crop", "squash"],
    resample: Literal["bilinear", "bicubic"],
    pixel_aspect: float = 1.0,
) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 (F, H, W, 3) -> uint8 (F, 3, size_px, size_px) on the same device, antialiased, and the affine (2, 3).

    crop: the frame, as shown with its pixel aspect, is resized until its short side is `size_px`, its long side rounded to
    whole pixels, and the centre is cut out. Of a frame longer than 2:1 only the central 2:1 is resized, which bounds memory and
    moves the result by half a pixel at most. squash: both sides are resized to `size_px`.

    The affine maps (x, y, 1), normalised to [0, 1] in the source frame, to (x, y) normalised to [0, 1] in the square. It is
    that of the pixels, roundings included. The CPU resizes in uint8 and rounds between the axes, other devices in float32: they
    differ by a level or so, by more only where enlarging overshoots.
    """
    _, height, width, _ = pixels_FHWC.shape
    if fit == "squash":
        return _resize(pixels_FHWC, (size_px, size_px), resample).contiguous(), np.eye(2, 3)
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


def to_part(
    pixels_FHWC: torch.Tensor,
    affine_23: np.ndarray,
    crop: tuple[float, float, float, float],
    size_px: int,
    resample: Literal["bilinear", "bicubic"],
) -> tuple[torch.Tensor, np.ndarray]:
    """The part `crop` (x0, y0, x1, y1 in [0, 1]) of the square that `affine_23` leads to, as a square of `size_px` of its own.

    Resampled from the source's pixels, so that a part has the detail that the square has lost. The affine is that of the new
    square's pixels, which are whole: its edges lie within one of them of those of `crop`.
    """
    _, height, width, _ = pixels_FHWC.shape
    x0, y0, x1, y1 = crop
    rows, resized_h, top, scale_y, shift_y = _part(height, affine_23[1, 1], affine_23[1, 2], y0, y1, size_px)
    columns, resized_w, left, scale_x, shift_x = _part(width, affine_23[0, 0], affine_23[0, 2], x0, x1, size_px)
    resized = _resize(pixels_FHWC[:, rows, columns], (resized_h, resized_w), resample)
    part = resized[:, :, top : top + size_px, left : left + size_px].contiguous()
    return part, np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])


def _part(
    stored_px: int, scale: float, shift: float, start: float, stop: float, size_px: int
) -> tuple[slice, int, int, float, float]:
    """One axis of a part [start, stop) of the square, as `_centre`. Half a part more is read on either side, for the filter."""
    first_px, last_px = ((place - shift) / scale * stored_px for place in (start, stop))
    beside_px = (last_px - first_px) / 2
    begin_px, end_px = max(0, math.floor(first_px - beside_px)), min(stored_px, math.ceil(last_px + beside_px))
    read_px = end_px - begin_px
    resized_px = max(size_px, round(size_px * read_px / (last_px - first_px)))
    centre_px = ((first_px + last_px) / 2 - begin_px) / read_px * resized_px
    crop_px = min(max(0, round(centre_px - size_px / 2)), resized_px - size_px)
    new_scale = stored_px / read_px * resized_px / size_px
    return slice(begin_px, end_px), resized_px, crop_px, new_scale, -(begin_px / read_px * resized_px + crop_px) / size_px


def mirrored(squares_FCHW: torch.Tensor, affine_23: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Squares mirrored left to right, and their affine: x becomes 1 - x."""
    return squares_FCHW.flip(-1), np.array([[-1.0, 0, 1], [0, 1, 0]]) @ np.vstack([affine_23, [0, 0, 1]])


def _resize(pixels_FHWC: torch.Tensor, size_hw: tuple[int, int], resample: str) -> torch.Tensor:
    """(F, H, W, 3) -> (F, 3, *size_hw), uint8. The permuted view is channels-last, on which torch's uint8 kernel is fast."""
    pixels_FCHW = pixels_FHWC.permute(0, 3, 1, 2)
    if pixels_FCHW.device.type == "cpu":
        return F.interpolate(pixels_FCHW, size_hw, mode=resample, antialias=True)
    resized = F.interpolate(pixels_FCHW.float(), size_hw, mode=resample, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
