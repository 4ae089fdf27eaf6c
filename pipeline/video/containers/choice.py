"""Which of a file's video streams is its video.

A stream of one picture beside one of many is a cover, whatever its flags say, and so is one that is
flagged as a cover or as thumbnails. Of several renditions the one of most pixels is taken; of those
of one size the longest, where the others are shorter by more than a tenth; then the default one;
then the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

COVER = Disposition.attached_pic | Disposition.timed_thumbnails
INCOMPLETE = Disposition.dependent | Disposition.still_image
"""Streams that are shown with another one, or that call themselves a picture: taken where there is
nothing else."""

LOOK_PACKETS, LOOK_BYTES = 1000, 64 << 20
"""Of the beginning of a file whose header does not count its pictures: read to tell covers from
videos."""


def choose_video(
    container: InputContainer, open_again: Callable[[], InputContainer]
) -> VideoStream | None:
    """The stream that is the video of `container`; None if no stream but covers can be decoded.

    `open_again` opens the same file once more. That is done only where several streams are left
    and the header does not say which of them hold one picture; the beginning is then read.
    """
    left = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & COVER
    ]
    if len(left) > 1:
        pictures = _pictures(left, open_again)
        left = _those(left, [pictures[stream.index] > 1 for stream in left])
        left = _those(left, [not stream.disposition & INCOMPLETE for stream in left])
        pixels = [stream.codec_context.width * stream.codec_context.height for stream in left]
        left = _those(left, [number == max(pixels) for number in pixels])
        length_s = [_length_s(stream) for stream in left]
        longest_s = max((length for length in length_s if length < math.inf), default=0.0)
        left = _those(left, [length >= 0.9 * longest_s for length in length_s])
        left = _those(left, [bool(stream.disposition & Disposition.default) for stream in left])
    return left[0] if left else None


def _those(streams: list[VideoStream], wanted: Sequence[bool]) -> list[VideoStream]:
    """The streams that are wanted; all of them if none is."""
    return [
        stream for stream, is_wanted in zip(streams, wanted, strict=True) if is_wanted
    ] or streams


def _length_s(stream: VideoStream) -> float:
    """By the header; infinite where it does not say."""
    if stream.duration is None or stream.time_base is None:
        return math.inf
    return float(stream.duration * stream.time_base)


def _pictures(
    streams: Sequence[VideoStream], open_again: Callable[[], InputContainer]
) -> Counter[int]:
    """Index of a stream -> its pictures by the header; where that does not say, packets in the
    beginning of the file."""
    is_avi = streams[0].container.format.name == "avi"
    # An AVI counts the ticks of its clock; its index counts pictures.
    counts = Counter(
        {
            stream.index: (is_avi and len(stream.index_entries)) or stream.frames
            for stream in streams
        }
    )
    unknown = {index for index, count in counts.items() if not count}
    if not unknown:
        return counts
    packets, size = 0, 0
    try:
        with open_again() as container:
            for packet in container.demux():
                packets, size = packets + 1, size + packet.size
                if packet.stream_index in unknown and packet.size:
                    counts[packet.stream_index] += 1
                all_are_many = all(counts[index] > 1 for index in unknown)
                if all_are_many or packets >= LOOK_PACKETS or size >= LOOK_BYTES:
                    break
    except av.FFmpegError:
        pass  # What could be read counts.
    return counts
