"""Headers of videos and image folders, read without decoding; what cannot be read is refused with
the true reason.

A header is a claim. Plans are made from it (`expected_frames`), where it is in proportion to the
file (`containers.recount`); what is really there is known only once it is decoded.
"""

from __future__ import annotations

import io
import math
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from pipeline.errors import BadVideo
from pipeline.records import Rate, Stride
from pipeline.video.containers.choice import COVER, choose_video
from pipeline.video.containers.recount import Claims, bytes_to_count, recounted
from pipeline.video.containers.track_header import TrackHeader, read_track_header
from pipeline.video.rgb import cropped_size
from pipeline.video.sampling import frames_apart

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265",
    ".hevc", ".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv",
    ".y4m",
})
_AUDIO = {
    ".aac", ".ac3", ".aif", ".aiff", ".flac", ".m4a", ".mka", ".mp2", ".mp3", ".oga", ".ogg",
    ".opus", ".wav", ".wma",
}
# fmt: on
MEDIA_SUFFIXES = VIDEO_SUFFIXES | _AUDIO
"""Lower-case suffixes of video and audio files: audio in a folder of videos is refused with a
reason, not passed over."""
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

REREAD_BYTES = 256 << 20
"""Bytes of a file that are read again to find out whether the disk is to blame."""
LFS_POINTER = b"version https://git-lfs"
"""Begins the text that stands for a large file in a checkout until Git LFS fetches the file."""
LEAST_BYTES = 2
"""Of a frame: an index tells of one in as few."""
LOOK_TIMEOUT_S = 10.0
"""For one read of a file that is looked at for covers."""
TIMESTAMPS = "timestamps.txt"
"""In an image folder: one time in seconds per line, one line per image."""


class Probe(NamedTuple):
    """The claims of a video's header, or the facts of an image folder."""

    width: int
    """Pixels of what is shown, before rotation."""
    height: int
    fps: float | None
    """Average frame rate."""
    start_s: float
    """Presentation time of the first frame."""
    duration_s: float | None
    frames_from_header: int | None
    """None: the container does not say. Frames that an edit list hides are counted."""
    codec: str


def decoder_identity() -> str:
    """The libraries that decide what a decoded pixel is, by major version; part of every cache's
    fingerprint."""
    pyav = av.__version__.partition(".")[0]
    codec, scale = (av.library_versions[name][0] for name in ("libavcodec", "libswscale"))
    return f"pyav {pyav} libavcodec {codec} libswscale {scale}"


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """A media file and the stream that is its video, by the rule of `containers.choice`.

    Raises BadVideo if there is nothing to decode. The caller closes the container.
    """
    container, stream, _ = open_video_track(path)
    return container, stream


def open_video_track(path: Path) -> tuple[InputContainer, VideoStream, TrackHeader]:
    """What `open_video` gives, and what the header of its track says beyond that."""
    _check_file(path, path.name)
    if path.stat().st_size == 0:
        raise BadVideo(f"{path.name}: is empty (0 bytes)")
    # An absolute path, since libav would take the beginning of "a:b.mp4" for a protocol.
    container, stream = _open(str(path.absolute()), path, path.name)
    header = read_track_header(path, container, stream)
    if header.is_encrypted:
        container.close()
        raise BadVideo(f"{path.name}: is encrypted")
    return container, stream, header


def open_image(path: Path) -> tuple[InputContainer, VideoStream]:
    """One image as a stream of one frame. Raises BadVideo; the caller closes the container."""
    name = f"{path.parent.name}/{path.name}"
    _check_file(path, name)
    try:
        data = path.read_bytes()
    except PermissionError as error:
        raise BadVideo(f"{name}: cannot be read: {error.strerror}") from error
    # From memory, since libav would read a "%" in the name as a pattern.
    return _open(io.BytesIO(data), path, name)


def _check_file(path: Path, name: str) -> None:
    if not path.is_file():
        problem = (
            "is not a file"
            if path.exists()
            else "is a link to nothing"
            if path.is_symlink()
            else "does not exist"
        )
        raise BadVideo(f"{name}: {problem} in {path.parent.absolute()}")
    with suppress(OSError), path.open("rb") as file:  # what cannot be read is told when it is read
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise BadVideo(f"{name}: is a Git LFS pointer in place of the file; run: git lfs pull")


def _open(source: str | io.BytesIO, path: Path, name: str) -> tuple[InputContainer, VideoStream]:
    def open_again() -> InputContainer:
        again = io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source
        return av.open(again, "r", metadata_errors="replace", timeout=LOOK_TIMEOUT_S)

    try:
        container = av.open(source, "r", metadata_errors="replace")
    except av.FFmpegError as error:
        raise BadVideo(f"{name}: cannot be opened as media: {reason_of(error, path)}") from error
    stream = choose_video(container, open_again)
    if stream is not None:
        return container, stream
    streams = container.streams.video
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        reason = f"no video stream ({' and '.join(kinds) or 'nothing'} only)"
    elif all(stream.disposition & COVER for stream in streams):
        reason = "no video stream, its only picture is cover art"
    else:
        reason = "no decoder for its video codec"
    container.close()
    raise BadVideo(f"{name}: {reason}")


def reason_of(error: av.FFmpegError, path: Path, at_byte: int = 0) -> str:
    """The reason that libav gives for an error with `path` at about a byte. Raises MemoryError or
    OSError if the machine is at fault."""
    if isinstance(error, MemoryError):
        raise MemoryError(error.strerror) from error
    if path.is_file() and not isinstance(error, PermissionError):
        require_readable(path, at_byte)
    return str(error.strerror)


def require_readable(path: Path, at_byte: int) -> None:
    """Reads a file again from about a byte on. Raises OSError where the disk fails: to libav, what
    it fails to read is a torn packet, and a torn file an "Input/output error"."""
    with path.open("rb") as file:
        file.seek(at_byte)
        while file.read(1 << 24) and file.tell() < at_byte + REREAD_BYTES:
            pass


def frame_rate(stream: VideoStream) -> float | None:
    """Average frames per second, else libav's guess (IVF and MPEG-TS state no average)."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def first_frame_s(stream: VideoStream) -> float:
    """When the first frame is shown, according to the header; 0 if it does not say."""
    return (
        float(stream.start_time * stream.time_base)
        if stream.start_time and stream.time_base
        else 0.0
    )


def header_frames(stream: VideoStream) -> int | None:
    """Frames that the header counts; None if it does not say, or was left open by a recording that
    was not finished."""
    container = stream.container
    assert isinstance(container, InputContainer)
    return stream.frames if 0 < stream.frames <= container.size // LEAST_BYTES else None


def header_end_s(container: InputContainer, stream: VideoStream) -> float | None:
    """Presentation time at which the header says the video ends; None if it does not say."""
    start_s = first_frame_s(stream)
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        if header_frames(stream) is None:
            return None
        # libav cuts the duration of a truncated AVI down to what is there; the frame count stays as
        # it was written.
        return start_s + float(stream.frames / stream.average_rate)
    if container.format.name == "matroska,webm" and (tagged_s := tagged_end_s(stream)) is not None:
        whole_s = container.duration and container.duration / av.time_base
        return min(tagged_s, whole_s) if whole_s and whole_s > start_s else tagged_s
    if stream.duration is not None and stream.time_base is not None:
        return start_s + float(stream.duration * stream.time_base)
    if container.duration is not None:
        # Of the longest stream. Most writers of Matroska count it from zero, some from the first
        # frame.
        whole_s = container.duration / av.time_base
        return whole_s if whole_s > start_s else start_s + whole_s
    return None


def tagged_end_s(stream: VideoStream) -> float | None:
    """When the pictures end according to the tag that most writers of Matroska leave behind for
    each track; None if there is none."""
    names = {key.partition("-")[0]: text for key, text in stream.metadata.items()}
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", names.get("DURATION", ""))
    if not found:
        return None
    hours, minutes, seconds = map(float, found.groups())
    tagged_s = 3600 * hours + 60 * minutes + seconds
    # mkvmerge, which signs its statistics, counts from the first frame; others from zero.
    return tagged_s + first_frame_s(stream) * ("_STATISTICS_WRITING_APP" in names)


def last_packet_end_s(path: Path, *, of_video: bool, from_s: float = 0.0) -> float:
    """When the last packet of the video stream, or of all other streams, ends; 0 if there is none.
    Reads the whole file, of Matroska what lies after `from_s`, but decodes nothing."""
    container, video = open_video(path)
    end_s = 0.0
    with container:
        if from_s > 0 and container.format.name == "matroska,webm":
            with suppress(av.FFmpegError):
                container.seek(int(from_s * av.time_base))
        try:
            streams = [
                stream for stream in container.streams if (stream.index == video.index) == of_video
            ]
            for packet in container.demux(streams) if streams else ():
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None:
                    end_s = max(end_s, float((time + (packet.duration or 0)) * packet.time_base))
        except av.FFmpegError:
            pass  # What can be read counts.
    return end_s


def clock_runs_forward(path: Path) -> bool:
    """Whether the decode times of the video stream never fall. Reads the whole file, once in a
    process, but decodes nothing."""
    facts = path.stat()
    return _clock_runs_forward(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _clock_runs_forward(path: Path, size: int, mtime_ns: int) -> bool:  # noqa: ARG001
    container, video = open_video(path)
    latest = None
    with container, suppress(av.FFmpegError):
        for packet in container.demux(video):
            if packet.dts is None:
                continue
            if latest is not None and packet.dts < latest:
                return False
            latest = packet.dts
    return True


def probe(path: Path, image_fps: float | None = None) -> Probe:
    """Reads what a video file, or a folder of images at `image_fps`, says of itself. Raises
    BadVideo."""
    try:
        return _probe_folder(path, image_fps) if path.is_dir() else _probe_file(path)
    except PermissionError as error:
        raise BadVideo(f"{path.name}: cannot be read: {error.strerror}") from error


def _probe_file(path: Path) -> Probe:
    container, stream, header = open_video_track(path)
    with container:
        context = stream.codec_context
        start_s, end_s = first_frame_s(stream), header_end_s(container, stream)
        if end_s is None:
            end_s = last_packet_end_s(path, of_video=True)
        claims = Claims(
            header_frames(stream),
            end_s - start_s if end_s > start_s else None,
            frame_rate(stream),
        )
        if limit_bytes := bytes_to_count(claims, container):
            claims = recounted(claims, container, stream, limit_bytes)
        size = (context.width, context.height)
        if context.format is not None:
            size = cropped_size(*size, context.format, header.crop) or size
        return Probe(
            width=size[0],
            height=size[1],
            fps=claims.fps,
            start_s=start_s,
            duration_s=claims.length_s,
            frames_from_header=claims.frames,
            codec=context.name,
        )


def _probe_folder(folder: Path, image_fps: float | None) -> Probe:
    images, time_s, end_s = list_images(folder, image_fps)
    container, stream = open_image(images[0])
    with container:
        return Probe(
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=len(images) / (end_s - float(time_s[0])),
            start_s=float(time_s[0]),
            duration_s=end_s - float(time_s[0]),
            frames_from_header=len(images),
            codec=stream.codec_context.name,
        )


def expected_frames(probe: Probe, rate: Rate) -> int:
    """Frames that the header promises and `rate` keeps. An estimate, at least 1."""
    counts = []
    if probe.frames_from_header is not None:
        counts.append(probe.frames_from_header)
    if probe.duration_s is not None and probe.fps is not None:
        counts.append(round(probe.duration_s * probe.fps))
    if isinstance(rate, Stride):
        return max(1, math.ceil(min(counts, default=1) / frames_apart(rate, probe.fps)))
    if probe.duration_s is not None and rate is not None:
        counts.append(math.ceil(probe.duration_s * rate - 1e-3))
    return max(1, min(counts, default=1))


def list_images(folder: Path, image_fps: float | None) -> tuple[list[Path], np.ndarray, float]:
    """A folder's images in natural order (frame 2 before frame 10), their times in seconds, and
    when the last one ends.

    Times are those of `timestamps.txt` if the folder has one, else index / image_fps. Hidden files
    and folders are left out; a link that leads nowhere is not, as the images after it would move up
    in time.
    """
    named = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    images = [file for file in named if not file.is_dir()]
    if not images:
        raise BadVideo(
            f"{folder.name}: holds no images",
            f"wanted files ending in {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    images.sort(key=_natural)
    if (folder / TIMESTAMPS).is_file():
        time_s = _read_timestamps(folder, len(images))
        interval_s = (time_s[-1] - time_s[0]) / (len(images) - 1) if len(images) > 1 else 1.0
        return images, time_s, float(time_s[-1] + interval_s)
    if image_fps is None:
        raise BadVideo(
            f"{folder.name}: its images have no times",
            f"give image_fps, or one time in seconds per line in {TIMESTAMPS}",
        )
    if not (math.isfinite(image_fps) and image_fps > 0):
        raise BadVideo(f"{folder.name}: image_fps must be above 0, found {image_fps}")
    return images, np.arange(len(images)) / image_fps, len(images) / image_fps


def _natural(file: Path) -> tuple[list[str | int], str]:
    """Digits compare as numbers; names that differ only in leading zeros compare as text."""
    return [
        int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)
    ], file.name


def _read_timestamps(folder: Path, count: int) -> np.ndarray:
    where = f"{folder.name}/{TIMESTAMPS}"
    try:
        time_s = np.array(
            [float(word) for word in (folder / TIMESTAMPS).read_text(encoding="utf-8").split()]
        )
    except ValueError as error:
        raise BadVideo(f"{where}: wanted one number of seconds per line: {error}") from error
    if len(time_s) != count:
        raise BadVideo(f"{where}: holds {len(time_s)} times for {count} images")
    if not (np.isfinite(time_s).all() and (np.diff(time_s) > 0).all()):
        raise BadVideo(f"{where}: times must be finite and strictly increasing")
    return time_s
