"""Video -> Frames: decode and sample by presentation time. Pixels are those of `rgb`.

Times are the container's presentation times, those that are missing or wrong mended by
`presentation_times`. AVI has none: there the k-th frame shown takes the k-th decode time of the
packets that gave a frame.

Decoding goes on after damage (`damage` says which frames it reaches), and runs in one thread: what
libav conceals depends on the number of its threads.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import BadVideo
from pipeline.records import Frames, Rate
from pipeline.video.containers.pixel_aspect import PixelAspects
from pipeline.video.containers.shortfall import missing_end
from pipeline.video.damage import CheckedDecoder, CheckedFrame, LostPicture
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.presentation_times import (
    LOOK_AHEAD,
    REORDERED,
    Stamp,
    in_order_shown,
    presentation_times,
)
from pipeline.video.probe import (
    clock_runs_forward,
    first_frame_s,
    frame_rate,
    header_end_s,
    header_frames,
    list_images,
    open_image,
    open_video_track,
    reason_of,
    require_readable,
)
from pipeline.video.rgb import Picture, cropped, deinterlaced, upright_rgb
from pipeline.video.sampling import Sampler

BLOCK_FRAMES, BLOCK_BYTES = 8, 32 << 20
"""Frames that travel together: few, and few bytes of them, so that a 4K video stays within
memory."""
JOINABLE = {"mpegts", "mpeg"}
"""Containers that may be joined end to end, each part with a clock of its own."""
LOOK_AHEAD_BYTES = 256 << 20
"""Decoded frames that are held back to judge a time, at 3 bytes a pixel."""

EARLIER_S = 5.0
"""In a transport stream a seek can lead too far by a group of pictures or two."""
LOOK_BACK = 3
"""Frames. Deinterlacing looks at one before; a keyframe's own may be shown before it."""

Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class FrameBlock:
    """Consecutive frames of one size that at least one of R rates keeps."""

    frames: Frames
    kept_RF: np.ndarray
    """bool: which rate keeps which frame."""
    damaged_F: np.ndarray
    """bool: which frames are damaged."""


def _allocate_private(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 memory of this process."""
    return np.empty(shape, np.uint8)


def decode_rates(
    path: Path,
    rates: Sequence[Rate],
    image_fps: float | None = None,
    counted: FrameCounts | None = None,
    *,
    skip: int = 0,
    block_frames: int = BLOCK_FRAMES,
    block_bytes: int = BLOCK_BYTES,
    allocate: Allocate = _allocate_private,
) -> Iterator[FrameBlock]:
    """Decodes once for several rates: blocks of consecutive frames that at least one of `rates`
    keeps.

    With t0 the first frame's time, a rate keeps the frames shown at t0 + k / rate, k = 0, 1, ...,
    until the video ends, each of them once and with its own presentation time; a `Stride` keeps
    every n-th frame, and None every one. `path` is a file, or a folder of images.

    A block holds up to `block_frames` frames and `block_bytes`, but at least one frame; a change of
    size starts a new one. Its memory is what `allocate` gives for its shape. The first `skip` kept
    frames are left out. `counted` is filled.

    Damaged frames are among them, and marked. Raises BadVideo, after all frames have been yielded,
    if the video cannot be opened, if no frame can be decoded, if reading stops with an error, or if
    the end of the content is missing (`missing_end`). Raises OSError or MemoryError for what is no
    fault of the video.
    """
    counted = counted or FrameCounts()
    source = _ImageFolder(path, image_fps, counted) if path.is_dir() else _VideoFile(path, counted)
    kept = itertools.islice(_sampled(source, rates, counted), skip, None)
    try:
        yield from _blocks(kept, block_frames, block_bytes, allocate)
    except av.FFmpegError as error:
        raise BadVideo(
            f"{path.name}: its frames cannot be deinterlaced or converted to RGB: "
            f"{reason_of(error, path)}"
        ) from error
    if source.failure is not None:
        raise source.failure


def decode_at(
    path: Path,
    time_s_F: np.ndarray,
    image_fps: float | None = None,
    counted: FrameCounts | None = None,
) -> list[Frames]:
    """The frames that have the presentation times `time_s_F`, ascending, from the keyframe before
    the first of them on.

    Pixels and times are those of `decode_rates`. `counted` is filled, with what the last attempt
    decoded, and which of it is damaged. Raises BadVideo if they cannot be decoded; OSError,
    MemoryError as there.
    """
    counted = counted or FrameCounts()
    # Where a seek does not lead to these very times, as in files that have none, the way from the
    # beginning does.
    for from_s in (float(time_s_F[0]), float(time_s_F[0]) - EARLIER_S, -math.inf):
        counted.restart()
        source = (
            _ImageFolder(path, image_fps, counted, from_s)
            if path.is_dir()
            else _VideoFile(path, counted, from_s)
        )
        with contextlib.suppress(av.FFmpegError), contextlib.closing(source.pictures()) as pictures:
            blocks = list(
                _blocks(_at(pictures, time_s_F), BLOCK_FRAMES, BLOCK_BYTES, _allocate_private)
            )
            if sum(len(block.frames) for block in blocks) == len(time_s_F):
                return [block.frames for block in blocks]
    raise source.failure or BadVideo(
        f"{path.name}: frames at {len(time_s_F)} times from {time_s_F[0]:.3f} s on cannot all be "
        "found"
    )


class _VideoFile:
    """The pictures of a video file in the order they are shown; afterwards `failure` tells why some
    are missing."""

    failure: BadVideo | None = None

    def __init__(self, path: Path, counted: FrameCounts, from_s: float = -math.inf) -> None:
        """Leaves pictures out that are shown long before `from_s`."""
        self.path, self.counted, self.from_s = path, counted, from_s
        self.fps: float | None = None
        """Average frames per second, once `pictures` has begun; None: nobody says."""
        self.lost_packets = 0
        """Packets whose pictures are lost that are noted already."""

    def pictures(self) -> Generator[Picture, None, None]:
        """Yields every picture; sets `failure` at the end."""
        container, stream, header = open_video_track(self.path)
        with container:
            self.fps = frame_rate(stream)
            end_s = header_end_s(container, stream)
            self.counted.promise(
                header_frames(stream),
                None if end_s is None else end_s - first_frame_s(stream),
            )
            aspects = PixelAspects(stream, header)
            pictures = _damage_noted(self._decoded(container, stream, aspects), self.counted)
            yield from cropped(deinterlaced(pictures), header.crop)
            if self.failure is None:
                self.failure = self._shortfall(container, stream)

    def _decoded(
        self, container: InputContainer, stream: VideoStream, aspects: PixelAspects
    ) -> Iterator[Picture]:
        assert stream.time_base is not None
        interval_s = 1 / (frame_rate(stream) or 25)
        counted, checked = self.counted, CheckedDecoder(container, stream, self.path)
        stamped = self._stamped(container, stream, checked)
        if container.format.name == "avi":
            stamped = in_order_shown(stamped)
        for decoded, time_s in presentation_times(stamped, interval_s, _look_ahead(stream)):
            frame = decoded.frame
            end_s = time_s + (
                float(frame.duration * stream.time_base) if frame.duration else interval_s
            )
            self._note_lost(checked, stream, interval_s)
            if not counted.decoded and counted.first_s is not None:  # nothing was on screen so far
                last = counted.lost[-1]
                counted.lost[-1] = last._replace(end_s=max(last.end_s, time_s))
            counted.picture(time_s, end_s)
            yield Picture(frame, time_s, end_s, aspects.of(decoded.said_aspect), decoded.damage)
        self._note_lost(checked, stream, interval_s)
        if checked.damaged_at is not None:
            require_readable(self.path, checked.damaged_at)
        error = checked.failure
        if not counted.decoded:
            error = error or next((lost.error for lost in checked.lost if lost.error), None)
        if error is not None:
            reason = reason_of(error, self.path, checked.at_byte)
            if isinstance(error, PermissionError):  # the file itself is open
                reason = "is encrypted"
            far = f"decoding stopped after {counted.decoded} frames at {counted.end_s:.1f} s"
            self.failure = BadVideo(
                f"{self.path.name}: {far if counted.decoded else _no_frame_text(stream)}: {reason}"
            )

    def _note_lost(self, checked: CheckedDecoder, stream: VideoStream, interval_s: float) -> None:
        """Notes what was lost since the last time; without a time of its own it is where the last
        picture ends. A video begins with its first packet, also where that one is lost; only what
        is cut from a broadcast may begin with pictures that nobody can show."""
        assert stream.time_base is not None
        noted, self.lost_packets = self.lost_packets, len(checked.lost)
        for packet in checked.lost[noted:]:
            ticks = packet.note.dts if packet.note.pts is None else packet.note.pts
            time_s = self.counted.end_s if ticks is None else float(ticks * stream.time_base)
            length_s = float((packet.note.duration or 0) * stream.time_base) or interval_s
            is_first = packet.note.number == 0 and checked.container.format.name not in JOINABLE
            if is_first and time_s >= first_frame_s(stream) and not self.counted.decoded:
                self.counted.first_s = time_s
            self.counted.lost.append(LostPicture(time_s, time_s + length_s, packet.reason))

    def _stamped(
        self, container: InputContainer, stream: VideoStream, checked: CheckedDecoder
    ) -> Iterator[tuple[CheckedFrame, Stamp]]:
        """Decoded frames with the times that the container gives them; none where a seek went too
        far."""
        assert stream.time_base is not None
        is_avi, was_sought = container.format.name == "avi", self._seek(container, stream)
        must_begin_s = self.from_s if was_sought else math.inf
        for decoded in checked.frames(from_start=not was_sought):
            # What libav makes up as a presentation time in AVI is not worth having.
            ticks = (decoded.dts, None) if is_avi else (decoded.frame.pts, decoded.dts)
            shown_s, decoded_s = (
                None if tick is None else float(tick * stream.time_base) for tick in ticks
            )
            if must_begin_s < math.inf and (shown_s is None or shown_s >= must_begin_s):
                return
            must_begin_s = math.inf
            yield decoded, Stamp(shown_s, decoded_s)

    def _seek(self, container: InputContainer, stream: VideoStream) -> bool:
        """Goes to the last keyframe from which `from_s` can be had, with what deinterlacing looks
        back at; False: need not."""
        assert stream.time_base is not None
        begin_s = self.from_s - LOOK_BACK / (frame_rate(stream) or 25)
        counts_times = container.format.name == "avi"
        # x264 once erred in 4:4:4. libav mends that by the build, which only the first packet
        # names, and a seek forgets.
        needs_first = stream.codec_context.name == "h264" and "444" in (
            stream.codec_context.pix_fmt or ""
        )
        if begin_s <= first_frame_s(stream) or counts_times or needs_first:
            return False
        # Where the clock was set back, a time stands for two frames, and a seek finds either.
        if container.format.name in JOINABLE and not clock_runs_forward(self.path):
            return False
        container.seek(math.floor(begin_s / stream.time_base), stream=stream)
        return True

    def _shortfall(self, container: InputContainer, stream: VideoStream) -> BadVideo | None:
        """Why a video that ended without an error is not complete."""
        counted = self.counted
        if not counted.decoded:
            return BadVideo(f"{self.path.name}: {_no_frame_text(stream)}")
        reason = missing_end(self.path, container, stream, counted.end_s)
        if reason is None:
            return None
        return BadVideo(
            f"{self.path.name}: truncated: {reason}, "
            f"the content ends after {counted.decoded} frames at {counted.end_s:.1f} s"
        )


def _look_ahead(stream: VideoStream) -> int:
    """Frames that may be held back to judge a time; fewer of large ones, for the sake of memory."""
    frame_bytes = 3 * stream.codec_context.width * stream.codec_context.height
    return max(2, min(LOOK_AHEAD, LOOK_AHEAD_BYTES // max(1, frame_bytes)))


def _damage_noted(pictures: Iterator[Picture], counted: FrameCounts) -> Iterator[Picture]:
    """Notes which pictures are damaged. Deinterlacing looks at both neighbours of a picture, so
    their damage is its own. Pictures that vanish near damage, without a word, are noted as lost."""
    before: str | None = None
    shown: Picture | None = None
    picture = next(pictures, None)
    for number in itertools.count():
        if picture is None:
            return
        damage, following = picture.damage, None
        if picture.frame.interlaced_frame:
            following = next(pictures, None)
            damage = damage or before or (following.damage if following else None)
        before = picture.damage
        picture = picture._replace(damage=damage)
        if counted.damaged and counted.damaged[-1].stop == number:  # on screen until this one is
            counted.damaged[-1] = counted.damaged[-1]._replace(stop_s=picture.time_s)
        reason = damage
        if counted.damaged and number - counted.damaged[-1].stop < REORDERED:
            reason = damage or counted.damaged[-1].reason
        if reason is not None and shown is not None:
            counted.lost += _vanished(shown, picture, counted.lost, reason)
        if damage is not None:
            counted.damage(number, picture)
        yield picture
        shown, picture = picture, following or next(pictures, None)


def _vanished(
    before: Picture, picture: Picture, lost: Sequence[LostPicture], reason: str
) -> list[LostPicture]:
    """What should have been shown between two pictures, near damage, up to what is noted as lost
    already; nothing where that is no more than rounding."""
    rounding_s, until_s = (before.end_s - before.time_s) / 2, picture.time_s
    if until_s - before.end_s >= rounding_s:  # rarely: only then are all of `lost` looked through
        noted_s = [it.time_s for it in lost if before.end_s < it.end_s <= picture.time_s]
        until_s = min([until_s, *noted_s])
    if until_s - before.end_s < rounding_s:
        return []
    return [LostPicture(before.end_s, until_s, reason)]


def _no_frame_text(stream: VideoStream) -> str:
    promised = header_frames(stream)
    return (
        f"header promises {promised} frames, none could be decoded"
        if promised
        else "no frame could be decoded"
    )


class _ImageFolder:
    """The images of a folder as pictures; afterwards `failure` tells why there is none."""

    failure: BadVideo | None = None

    def __init__(
        self, folder: Path, image_fps: float | None, counted: FrameCounts, from_s: float = -math.inf
    ) -> None:
        """Leaves images out that are shown before `from_s`."""
        self.folder, self.image_fps, self.counted, self.from_s = folder, image_fps, counted, from_s
        self.fps: float | None = None
        """Average frames per second, once `pictures` has begun."""

    def pictures(self) -> Generator[Picture, None, None]:
        """Yields every image that can be decoded as a picture."""
        images, time_s_F, last_s = list_images(self.folder, self.image_fps)
        times_s = time_s_F.tolist()
        self.fps = len(images) / (last_s - times_s[0])
        self.counted.promise(len(images), last_s - times_s[0])
        unread: BadVideo | None = None
        for image, time_s, end_s in zip(images, times_s, [*times_s[1:], last_s], strict=True):
            if time_s < self.from_s:
                continue
            try:
                frame, aspect, damage = _read_image(image)
            except BadVideo as error:
                unread = unread or error
                self.counted.lost.append(LostPicture(time_s, end_s, error.message))
                continue
            if not self.counted.decoded:  # an image that is lost has its time, too
                self.counted.first_s = times_s[0]
            self.counted.picture(time_s, end_s)
            picture = Picture(frame, time_s, end_s, aspect, damage)
            if damage is not None:
                self.counted.damage(self.counted.decoded - 1, picture)
            yield picture
        if not self.counted.decoded:
            self.failure = unread


def _read_image(image: Path) -> tuple[VideoFrame, float, str | None]:
    """An image decoded, its pixel aspect, and what speaks against it. Raises BadVideo where there
    is no picture in it."""
    container, stream = open_image(image)
    with container:
        checked = CheckedDecoder(container, stream, image)
        aspect = float(stream.sample_aspect_ratio or 1)
        for decoded in checked.frames():
            damage = decoded.damage and f"{image.name}: {decoded.damage}"
            return decoded.frame, aspect, damage
        reason = "it holds no picture"
        error = checked.failure or next((lost.error for lost in checked.lost), None)
        if error is not None:
            reason = reason_of(error, image)
    raise BadVideo(f"{image.parent.name}/{image.name}: cannot be decoded: {reason}")


def _sampled(
    source: _VideoFile | _ImageFolder, rates: Sequence[Rate], counted: FrameCounts
) -> Iterator[tuple[Picture, list[bool]]]:
    """The pictures that at least one rate keeps, and (R,) which rates those are. Looks one picture
    ahead; the last one counts up to its own end."""
    pictures = source.pictures()
    held = next(pictures, None)
    if held is None:
        return
    assert counted.first_s is not None
    samplers = [Sampler(rate, counted.first_s, held.time_s, source.fps) for rate in rates]
    for picture in itertools.chain(pictures, [None]):
        next_s = held.end_s if picture is None else picture.time_s
        kept_R = [sampler.keeps(held.time_s, next_s) for sampler in samplers]
        if any(kept_R):
            yield held, kept_R
        held = picture or held


def _at(pictures: Iterator[Picture], time_s_F: np.ndarray) -> Iterator[tuple[Picture, list[bool]]]:
    """The pictures that have these times, up to the first that is not there."""
    left = deque(time_s_F.tolist())
    for picture in pictures:
        if picture.time_s == left[0]:
            yield picture, [True]
            left.popleft()
        if not left or picture.time_s > left[0]:
            return


def _blocks(
    kept: Iterator[tuple[Picture, list[bool]]],
    block_frames: int,
    block_bytes: int,
    allocate: Allocate,
) -> Iterator[FrameBlock]:
    """Converts kept pictures to upright RGB and gathers those of one size."""
    converter = VideoReformatter()
    buffer_FHWC: np.ndarray | None = None
    times_s: list[float] = []
    masks: list[list[bool]] = []
    damaged: list[bool] = []
    aspect = 1.0

    def block() -> FrameBlock:
        """The block that is gathered, whose pixels are held by its receiver alone from now on."""
        nonlocal buffer_FHWC
        assert buffer_FHWC is not None
        frames = Frames(buffer_FHWC[: len(times_s)], np.array(times_s), aspect)
        gathered = FrameBlock(frames, np.array(masks).T, np.array(damaged))
        buffer_FHWC = None
        for gathering in (times_s, masks, damaged):
            gathering.clear()
        return gathered

    for picture, kept_R in kept:
        pixels_HWC, pixel_aspect = upright_rgb(picture, converter)
        if buffer_FHWC is not None and (
            pixels_HWC.shape != buffer_FHWC.shape[1:] or pixel_aspect != aspect
        ):
            yield block()
        if buffer_FHWC is None:
            capacity = max(1, min(block_frames, block_bytes // pixels_HWC.nbytes))
            buffer_FHWC, aspect = allocate((capacity, *pixels_HWC.shape)), pixel_aspect
        buffer_FHWC[len(times_s)] = pixels_HWC
        times_s.append(picture.time_s)
        masks.append(kept_R)
        damaged.append(picture.damage is not None)
        if len(times_s) == len(buffer_FHWC):
            yield block()
    if times_s:
        yield block()
