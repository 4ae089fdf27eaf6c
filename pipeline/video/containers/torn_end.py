"""Whether the end of a file is missing, as its bytes show it.

Containers differ in what they say. Matroska, AVI, MP4, ASF (WMV), FLV, MXF and RealMedia give sizes
that reach beyond the end of a file that was cut. IVF counts its frames, Ogg and GIF mark their end.
The packets of transport and program streams, and the frames of Y4M and DV, have known lengths: a
cut inside one is seen, and one between two of them leaves no trace, as with bare JPEGs (`.mjpeg`).
NUT and other bare streams (`.h264`) say nothing.

Only headers are read, or the last megabyte. Whatever is malformed says nothing.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from av.video.stream import VideoStream

from pipeline.video.containers.transport_stream import STEPS, SYNC

TAIL_BYTES = 1 << 20
"""Read where headers lie all over a file: several packets or pages long."""
PICTURE_BYTES = 16 << 20
"""Of a JPEG: read to find where the last one begins."""
MOST_HEADERS = 2_000_000
"""A file with more of them says nothing."""
SLACK_BYTES = 16
"""Some writers of AVI and RealMedia count the header or the padding of a chunk as part of it."""

BEYOND = "by its own sizes it goes on for {:,} bytes more"
INSIDE = "it ends inside a {}"


def torn_end(path: Path, stream: VideoStream) -> str | None:
    """What shows that the end of the file is missing, in words that follow its name; None where
    nothing does. `stream` is its video, and everything has been read of it that can be read."""
    look = _BY_FORMAT.get(stream.container.format.name.partition(",")[0])
    if look is None:
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return look(file, size, stream)
        except (ValueError, struct.error, LookupError):
            return None


def _exactly(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise ValueError("the file ends within a header")
    return data


def _walk(start: int, size: int, next_place: Callable[[int], int | None]) -> int:
    """From one header to the next; the place after the last one, which lies beyond `size` where
    that one is torn, as it does where a header is. Raises ValueError where there is none."""
    place = start
    for _ in range(MOST_HEADERS):
        if place >= size:
            return place
        try:
            after = next_place(place)
        except (struct.error, IndexError):
            return size + 1
        if after is None or after <= place:
            raise ValueError("no header")
        place = after
    raise ValueError("too many headers")


def _beyond(end: int, size: int, slack: int = 0) -> str | None:
    return BEYOND.format(end - size) if end > size + slack else None


# Containers whose headers give sizes


def _mp4(file: BinaryIO, size: int, stream: VideoStream) -> str | None:
    """The samples of the video; of a fragmented file its boxes, as its samples are known as far as
    fragments have been read."""
    entries = stream.index_entries
    missing = 0
    while missing < len(entries):
        entry = entries[len(entries) - 1 - missing]
        if entry.pos + entry.size <= size:
            break
        missing += 1
    if missing:
        return f"{missing:,} of its {len(entries):,} pictures lie beyond its end"
    fragmented = False

    def after(place: int) -> int:
        nonlocal fragmented
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        fragmented |= kind == b"moof"
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        return place + length if length else size

    end = _walk(0, size, after)
    return INSIDE.format("fragment") if fragmented and end > size else None


def _matroska(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """Every element; those of unknown size, as live recordings have them, are entered."""

    def after(place: int) -> int:
        file.seek(place)
        head = file.read(12)
        id_bytes = 9 - head[0].bit_length()
        size_bytes = 9 - head[id_bytes].bit_length()
        if id_bytes > 4 or size_bytes > 8:
            raise ValueError("no EBML element")
        first = id_bytes + size_bytes
        if len(head) < first:
            raise IndexError
        length = int.from_bytes(head[id_bytes:first], "big") & ((1 << 7 * size_bytes) - 1)
        is_unknown = length == (1 << 7 * size_bytes) - 1
        return place + first + (0 if is_unknown else length)

    return _beyond(_walk(0, size, after), size)


def _avi(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    def after(place: int) -> int:
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or not 4 < length < 0xFFFFFF00:
            raise ValueError("no size, as in a recording that was not finished")
        return place + 8 + length + length % 2

    return _beyond(_walk(0, size, after), size, SLACK_BYTES)


def _flv(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    def after(place: int) -> int:
        file.seek(place)
        kind, high, low = struct.unpack(">BBH", file.read(4))
        if kind not in (8, 9, 18):
            raise ValueError("no tag")
        return place + 11 + (high << 16 | low) + 4

    (header_bytes,) = struct.unpack(">I", _exactly(file, 5, 4))
    return INSIDE.format("tag") if _walk(header_bytes + 4, size, after) > size else None


ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
ASF_DATA_HEADER_BYTES = 50


def _asf(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """By the header's size of the file, and its count of packets, unless it was broadcast: then
    nobody knew when it would end."""
    (header_bytes,) = struct.unpack("<Q", _exactly(file, 16, 8))
    header = _exactly(file, 0, min(header_bytes, TAIL_BYTES))
    properties = header[header.index(ASF_FILE_PROPERTIES) + 24 :]
    file_bytes, packets = struct.unpack_from("<16xQ8xQ", properties)
    flags, packet_bytes = struct.unpack_from("<64x2I", properties)
    end = max(file_bytes, header_bytes + ASF_DATA_HEADER_BYTES + packets * packet_bytes)
    return None if flags & 1 else _beyond(end, size)


def _mxf(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """By its first partition, which knows where the footer is once the file is finished."""
    begin = _exactly(file, 0, 64)
    value = 17 + (begin[16] & 0x7F if begin[16] & 0x80 else 0)
    (footer,) = struct.unpack_from(">24xQ", begin[value:])
    return _beyond(footer, size) if footer >= size else None


def _real_media(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    def after(place: int) -> int:
        file.seek(place)
        kind, length = struct.unpack(">4sI", file.read(8))
        if not re.fullmatch(rb"[.A-Z0-9]{4}", kind) or length < 8:
            raise ValueError("no chunk")
        return place + length

    return _beyond(_walk(0, size, after), size, SLACK_BYTES)


# Containers that count, or mark their end


def _ivf(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """The header counts frames, or ticks of its clock."""
    header_bytes, count = struct.unpack("<6xH16xI", _exactly(file, 0, 28))
    frames, ticks = 0, [0, 0]

    def after(place: int) -> int:
        nonlocal frames, ticks
        file.seek(place)
        length, tick = struct.unpack("<IQ", file.read(12))
        if place + 12 + length <= size:
            frames, ticks = frames + 1, [ticks[1], tick]
        return place + 12 + length

    if _walk(header_bytes, size, after) > size:
        return INSIDE.format("frame")
    end = ticks[1] + max(1, ticks[1] - ticks[0])
    if max(frames, end) < count < 0xFFFFFFFF:
        return f"its header counts {count:,}, it holds {frames:,}"
    return None


def _ogg(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """The last page of every stream says that it is the last one."""
    start = max(0, size - TAIL_BYTES)
    start += _exactly(file, start, size - start).index(b"OggS\0")
    is_last = False

    def after(place: int) -> int:
        nonlocal is_last
        file.seek(place)
        mark, flags, count = struct.unpack("<5sB20xB", file.read(27))
        if mark != b"OggS\0":
            raise ValueError("no page")
        lengths = file.read(count)
        is_last = bool(flags & 4)
        return place + 27 + count + (sum(lengths) if len(lengths) == count else size)

    if _walk(start, size, after) > size:
        return INSIDE.format("page")
    return None if is_last else "no page says that its streams end there"


def _motion_jpeg(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """Bare pictures, each between two marks that stand nowhere within it but around a preview."""
    start = max(0, size - PICTURE_BYTES)
    tail = _exactly(file, start, size - start)
    return INSIDE.format("picture") if tail.rfind(b"\xff\xd8") > tail.rfind(b"\xff\xd9") else None


def _gif(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """Blocks, each of sub-blocks of up to 255 bytes, up to the trailer."""

    def table(packed: int) -> int:
        return 3 << (packed & 7) + 1 if packed & 0x80 else 0

    blocks = itertools.count()

    def sub_blocks(place: int) -> int:
        while next(blocks) < MOST_HEADERS:
            file.seek(place)
            length = file.read(1)[0]
            place += 1 + length
            if not length:
                return place
        raise ValueError("too many blocks")

    def after(place: int) -> int:
        file.seek(place)
        kind = file.read(1)
        if kind == b"\x21":
            return sub_blocks(place + 2)
        if kind == b"\x2c":
            return sub_blocks(place + 11 + table(_exactly(file, place + 9, 1)[0]))
        if kind == b"\x3b":
            raise ValueError("the end, as it should be")
        raise ValueError("no block")

    _walk(13 + table(_exactly(file, 10, 1)[0]), size, after)
    return "its trailer is missing"


# Containers whose packets or frames have known lengths


def _transport_stream(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    """Packets of 188 bytes, maybe with a time before (M2TS) or a checksum after each."""
    tail = _exactly(file, max(0, size - 64 * 204), min(size, 64 * 204))
    for step in STEPS:
        for offset in range(step):
            marks = tail[offset::step]
            if len(marks) >= 8 and set(marks[:-1]) == {SYNC}:
                before = 4 if step == 192 else 0
                whole = step - before
                rest = len(tail) - offset - (len(marks) - 1) * step
                if marks[-1] != SYNC:  # something else was appended
                    return None
                # The beginning of another packet, or all but the time before it.
                return INSIDE.format("packet") if rest % step not in (0, whole) else None
    return None


def _program_stream(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    tail_start = max(0, size - TAIL_BYTES)
    tail = _exactly(file, tail_start, size - tail_start)
    start = tail.index(b"\0\0\1\xba")

    def after(place: int) -> int:
        if tail[place : place + 3] != b"\0\0\1"[: len(tail) - place]:
            raise ValueError("no start code")
        kind = tail[place + 3]
        if kind == 0xB9:
            return place + 4
        if kind == 0xBA:
            is_mpeg2 = tail[place + 4] & 0xC0 == 0x40
            return place + (14 + (tail[place + 13] & 7) if is_mpeg2 else 12)
        if kind < 0xBB:
            raise ValueError("no packet")
        return place + 6 + (tail[place + 4] << 8 | tail[place + 5])

    return INSIDE.format("packet") if _walk(start, len(tail), after) > len(tail) else None


Y4M_SAMPLES = {"420": (2, 2), "422": (2, 1), "411": (4, 1), "444": (1, 1), "mono": (0, 0)}


def _y4m(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    line = file.readline(256)
    words = {word[:1]: word[1:].decode("ascii") for word in line.split()[1:]}
    if file.read(6) != b"FRAME\n":
        return None
    width, height, colour = int(words[b"W"]), int(words[b"H"]), words.get(b"C", "420")
    across, down = next(shape for name, shape in Y4M_SAMPLES.items() if colour.startswith(name))
    samples = width * height
    if across:
        samples += 2 * -(-width // across) * -(-height // down)
    if colour.endswith("alpha"):
        samples += width * height
    deep = re.search(r"(?:p|mono)(\d+)$", colour)
    frame_bytes = samples * (2 if deep and int(deep[1]) > 8 else 1)
    rest = (size - len(line)) % (6 + frame_bytes)
    return INSIDE.format("frame") if rest else None


def _dv(file: BinaryIO, size: int, _: VideoStream) -> str | None:
    frame_bytes = 144_000 if _exactly(file, 3, 1)[0] & 0x80 else 120_000
    return INSIDE.format("frame") if size % frame_bytes else None


_BY_FORMAT: dict[str, Callable[[BinaryIO, int, VideoStream], str | None]] = {
    "mov": _mp4,
    "matroska": _matroska,
    "avi": _avi,
    "flv": _flv,
    "asf": _asf,
    "mxf": _mxf,
    "rm": _real_media,
    "ivf": _ivf,
    "ogg": _ogg,
    "gif": _gif,
    "jpeg_pipe": _motion_jpeg,
    "mjpeg": _motion_jpeg,
    "mpegts": _transport_stream,
    "mpeg": _program_stream,
    "yuv4mpegpipe": _y4m,
    "dv": _dv,
}
"""libav's name of a format, the first of them, to what looks at it."""
