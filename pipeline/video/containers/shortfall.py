"""Whether pictures are missing at the end of a video that was read to its end without an error."""

from __future__ import annotations

from pathlib import Path

from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.video.containers.recount import FAR
from pipeline.video.containers.torn_end import torn_end
from pipeline.video.probe import (
    first_frame_s,
    frame_rate,
    header_end_s,
    last_packet_end_s,
    tagged_end_s,
)

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
SPEAKS_OF_MEDIA = {MP4, "flv"}
"""Containers in which nothing stands behind the media: what is torn there is missing."""
HONEST_HEADERS = {"avi", "flv", "matroska,webm", MP4, "mxf"}
"""Containers whose header was written with the file; for others libav estimates the duration from
what is there."""
ROUNDED_FRAMES = 0.5
"""A content that ends this many frames before its header says is whole, as durations are rounded: a
cut took what stands behind the pictures, such as an index."""


def missing_end(
    path: Path, container: InputContainer, stream: VideoStream, end_s: float
) -> str | None:
    """Why a video whose pictures end at `end_s` is not whole; None where nothing speaks against it.

    That is so if the header promises more than 1 s and more than 5 % more, or if the bytes show
    that the end of the file is missing, unless all is there that the header promises. May read the
    whole file, but decodes nothing.
    """
    is_honest = container.format.name in HONEST_HEADERS
    promised_s = header_end_s(container, stream) if is_honest else None
    is_own = _speaks_of_pictures(container, stream)
    torn = torn_end(path, stream)
    if promised_s is None:
        return torn

    def is_there(allowed_s: float) -> bool:
        """Whether the content goes on until the promised end, but for so much. What is said of the
        whole file may be said of sound or subtitles, which go on after the pictures."""
        return promised_s - end_s <= allowed_s or (
            not is_own
            and promised_s - last_packet_end_s(path, of_video=False, from_s=end_s) <= allowed_s
        )

    allowed_s = max(1.0, 0.05 * (promised_s - first_frame_s(stream)))
    if not is_there(allowed_s) and (
        torn is not None or not _lies(path, promised_s, allowed_s, is_own)
    ):
        return f"the header promises {promised_s:.1f} s"
    if torn is None or container.format.name in SPEAKS_OF_MEDIA:
        return torn
    return None if is_there(ROUNDED_FRAMES / (frame_rate(stream) or 25)) else torn


def _lies(path: Path, promised_s: float, allowed_s: float, is_own: bool) -> bool:
    """Whether the header of a file whose bytes are all there was written from a stray time within
    its content, or promises, of the whole file, what is out of proportion."""
    end_s = last_packet_end_s(path, of_video=True)
    if promised_s - end_s <= allowed_s:
        return True
    return not is_own and promised_s > FAR * max(end_s, last_packet_end_s(path, of_video=False))


def _speaks_of_pictures(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the header says of the pictures alone when they end, and not of the whole file."""
    if container.format.name == "matroska,webm":
        return tagged_end_s(stream) is not None
    return bool(stream.frames)
