"""What the header of a track says of its pictures, read from the file's own bytes: of their shape
in MP4 and QuickTime (`clap`, `pasp`), Matroska and WebM (PixelCrop, DisplayUnit), and whether they
are encrypted, in these and in ASF (WMV).

libavformat knows these numbers and hands most of them to programs written in C alone. Only headers
are read, a few hundred bytes at known places; what is malformed says nothing.
"""

from __future__ import annotations

import io
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

Kind = TypeVar("Kind", bytes, int)

MOST_READS = 200_000
"""Of one file, a header of a box or element each; one that needs more says nothing."""
VISUAL_ENTRY_BYTES = 8 + 78
"""Header and fixed fields of a visual sample entry, before its own boxes (ISO/IEC 14496-12)."""

# Matroska, RFC 9559.
SEGMENT, TRACKS, TRACK_ENTRY, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
TRACK_TYPE, CODEC_ID, IS_VIDEO = 0x83, 0x86, 1
PIXEL_WIDTH, PIXEL_HEIGHT, DISPLAY_UNIT = 0xB0, 0xBA, 0x54B2
CONTENT_ENCODINGS, CONTENT_ENCODING, CONTENT_ENCRYPTION = 0x6D80, 0x6240, 0x5035
CROP_BOTTOM, CROP_TOP, CROP_LEFT, CROP_RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD
UNKNOWN_UNIT = 4

ASF_HEADER_BYTES = 1 << 16
ASF_ENCRYPTION = (
    uuid.UUID("2211b3fb-bd23-11d2-b4b7-00a0c955fc6e").bytes_le,
    uuid.UUID("298ae614-2622-4c17-b935-dae07ee9289c").bytes_le,
)
"""Objects of the header that an encrypted file has."""


class Crop(NamedTuple):
    """Pixels of the stored picture that are not shown, at each side, before rotation."""

    left: int
    right: int
    top: int
    bottom: int


class TrackHeader(NamedTuple):
    """What the header of a track says; by default, nothing."""

    crop: Crop | None = None
    states_aspect: bool = False
    """Whether it gives the shape of a pixel, which then counts for every picture of the track."""
    is_encrypted: bool = False
    """Whether its pictures, or some of them, are encrypted."""


def read_track_header(path: Path, container: InputContainer, stream: VideoStream) -> TrackHeader:
    """The header of the track that is `stream` of the file `path`, opened as `container`."""
    names = container.format.name.split(",")
    with _HeaderReader(path.open("rb", buffering=0)) as file:
        try:
            if "mp4" in names:
                return _read_mp4(file, stream.id)
            if "matroska" in names:
                return _read_matroska(file, container, stream)
            if "asf" in names:
                begin = file.read(ASF_HEADER_BYTES)
                return TrackHeader(is_encrypted=any(guid in begin for guid in ASF_ENCRYPTION))
        except (ValueError, struct.error):
            pass  # torn or malformed
    return TrackHeader()


class _HeaderReader(io.BufferedReader):
    """Reads headers here and there in a file, and so many of them at most."""

    reads_left = MOST_READS

    def exactly(self, count: int) -> bytes:
        """Raises ValueError where the file ends, or where this has gone on for long enough."""
        data = self.read(count)
        self.reads_left -= 1
        if len(data) < count or not self.reads_left:
            raise ValueError("the file ends within its header, or its header does not end")
        return data


# MP4 and QuickTime


def _read_mp4(file: _HeaderReader, track_id: int) -> TrackHeader:
    end = file.seek(0, 2)
    for kind, start, stop in _boxes(file, 0, end):
        if kind == b"moov":
            for trak, trak_start, trak_stop in _boxes(file, start, stop):
                if trak == b"trak" and _track_id(file, trak_start, trak_stop) == track_id:
                    return _sample_entries(file, trak_start, trak_stop)
    return TrackHeader()


def _boxes(file: _HeaderReader, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and first and last byte of the content, of each box within [start, end)."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.exactly(8))
        head = 8
        if size == 1:
            size, head = struct.unpack(">Q", file.exactly(8))[0], 16
        stop = end if size == 0 else min(start + size, end)
        if stop < start + head:
            return
        yield kind, start + head, stop
        start = stop


def _first_of(kind: Kind, parts: Iterable[tuple[Kind, int, int]]) -> tuple[int, int]:
    """Where the content of the first part of a kind lies. Raises ValueError if there is none."""
    for found, first, last in parts:
        if found == kind:
            return first, last
    raise ValueError("not there")


def _track_id(file: _HeaderReader, start: int, end: int) -> int:
    try:
        start, _ = _first_of(b"tkhd", _boxes(file, start, end))
    except ValueError:
        return -1
    file.seek(start)
    version = file.exactly(4)[0]
    file.seek(start + (20 if version == 1 else 12))
    return int.from_bytes(file.exactly(4), "big")


def _sample_entries(file: _HeaderReader, start: int, end: int) -> TrackHeader:
    """The last `clap` and `pasp` of a track's sample entries, and whether one is encrypted."""
    for kind in (b"mdia", b"minf", b"stbl", b"stsd"):
        start, end = _first_of(kind, _boxes(file, start, end))
    header = TrackHeader()
    for entry, first, last in _boxes(file, start + 8, end):
        if entry == b"encv":
            header = header._replace(is_encrypted=True)
        file.seek(first + 24)
        width, height = struct.unpack(">HH", file.exactly(4))
        for kind, inner, inner_end in _boxes(file, first - 8 + VISUAL_ENTRY_BYTES, last):
            if kind == b"clap" and inner_end - inner >= 32:
                file.seek(inner)
                numbers = struct.unpack(">4I4i", file.exactly(32))
                header = header._replace(crop=_clean_aperture(numbers, width, height))
            elif kind == b"pasp" and inner_end - inner >= 8:
                file.seek(inner)
                header = header._replace(states_aspect=all(struct.unpack(">II", file.exactly(8))))
    return header


def _clean_aperture(numbers: tuple[int, ...], width: int, height: int) -> Crop | None:
    """What a `clap` box leaves out: it gives the size of what is shown, and how far its centre lies
    from that of the picture, as fractions. What is shown of a pixel in part is shown whole."""
    if not all(numbers[1::2]):
        return None
    shown_w, shown_h, right_by, down_by = (
        Fraction(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)
    )
    left, top = (width - shown_w) / 2 + right_by, (height - shown_h) / 2 + down_by
    return _valid_crop((left, width - shown_w - left, top, height - shown_h - top), width, height)


def _valid_crop(sides: Sequence[Fraction | int], width: int, height: int) -> Crop | None:
    """The crop of left, right, top and bottom; None where nothing is left out, or nothing left, or
    what is shown lies outside."""
    if min(sides) < 0:
        return None
    crop = Crop(*map(int, sides))
    if crop.left + crop.right >= width or crop.top + crop.bottom >= height or not any(crop):
        return None
    return crop


# Matroska and WebM


def _read_matroska(
    file: _HeaderReader, container: InputContainer, stream: VideoStream
) -> TrackHeader:
    """libavformat makes a stream of every track in their order, and of attached pictures after
    them."""
    number = [
        other.index
        for other in container.streams.video
        if not other.disposition & Disposition.attached_pic
    ].index(stream.index)
    end = file.seek(0, 2)
    for segment, start, stop in _elements(file, 0, end):
        if segment != SEGMENT:
            continue
        tracks_start, tracks_stop = _first_of(TRACKS, _elements(file, start, stop))
        entries = [
            entry
            for kind, first, last in _elements(file, tracks_start, tracks_stop)
            if kind == TRACK_ENTRY and (entry := _video_entry(file, first, last)) is not None
        ]
        video = entries[number] if number < len(entries) else {}
        sides = tuple(video.get(kind, 0) for kind in (CROP_LEFT, CROP_RIGHT, CROP_TOP, CROP_BOTTOM))
        return TrackHeader(
            _valid_crop(sides, video.get(PIXEL_WIDTH, 0), video.get(PIXEL_HEIGHT, 0)),
            bool(video) and video.get(DISPLAY_UNIT, 0) < UNKNOWN_UNIT,
            CONTENT_ENCRYPTION in video,
        )
    return TrackHeader()


def _video_entry(file: _HeaderReader, start: int, end: int) -> dict[int, int] | None:
    """The numbers of a video track; None for a track of another kind."""
    numbers: dict[int, int] = {}
    track_type, has_codec = 0, False
    for kind, first, last in _elements(file, start, end):
        if kind == TRACK_TYPE:
            track_type = _unsigned(file, first, last)
        elif kind == CODEC_ID:
            has_codec = True
        elif kind == CONTENT_ENCODINGS:
            for encoding, encoding_first, encoding_last in _elements(file, first, last):
                if encoding == CONTENT_ENCODING:
                    inside = _elements(file, encoding_first, encoding_last)
                    numbers |= {kind: 1 for kind, *_ in inside if kind == CONTENT_ENCRYPTION}
        elif kind == VIDEO:
            for inner, inner_first, inner_last in _elements(file, first, last):
                if inner_last - inner_first <= 8:
                    numbers[inner] = _unsigned(file, inner_first, inner_last)
    return numbers if track_type == IS_VIDEO and has_codec else None


def _elements(file: _HeaderReader, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, and first and last byte of the content, of each EBML element within [start, end)."""
    while start + 2 <= end:
        file.seek(start)
        kind, _ = _variable_integer(file, keep_marker=True)
        size, is_unknown = _variable_integer(file, keep_marker=False)
        first = file.tell()
        stop = end if is_unknown else min(first + size, end)
        yield kind, first, stop
        start = stop


def _variable_integer(file: _HeaderReader, *, keep_marker: bool) -> tuple[int, bool]:
    """An integer whose leading zeros say how many bytes it has, and whether it is all ones: a size
    that is not known."""
    first = file.exactly(1)[0]
    count = 9 - first.bit_length()
    if count > 8:
        raise ValueError("no EBML element")
    value = int.from_bytes(bytes([first]) + file.exactly(count - 1), "big")
    payload = value & ((1 << 7 * count) - 1)
    return value if keep_marker else payload, payload == (1 << 7 * count) - 1


def _unsigned(file: _HeaderReader, start: int, end: int) -> int:
    if end - start > 8:
        raise ValueError("no number")
    file.seek(start)
    return int.from_bytes(file.exactly(end - start), "big")
