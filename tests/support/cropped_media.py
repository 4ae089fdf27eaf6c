"""Adds what a container crops to files that have none: a `clap` box to MP4 and QuickTime, PixelCrop
elements to Matroska."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path


def add_clap(path: Path, *numbers: int, entry: bytes = b"avc1") -> Path:
    """Appends a `clap` box of eight numbers to the first sample entry of this kind."""
    return add_to_sample_entry(path, struct.pack(">I4s8i", 40, b"clap", *numbers), entry)


def add_to_sample_entry(path: Path, box: bytes, entry: bytes = b"avc1") -> Path:
    data = path.read_bytes()
    chain, start, end = [], 0, len(data)
    inside = {b"stsd": 8}
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", entry):
        place, size = next((p, n) for p, n, found in _boxes(data, start, end) if found == kind)
        chain.append(place)
        start, end = place + 8 + inside.get(kind, 0), place + size
    new = bytearray(data[:end] + box + data[end:])
    for place in chain:
        (size,) = struct.unpack_from(">I", new, place)
        struct.pack_into(">I", new, place, size + len(box))
    assert data.index(b"mdat") < chain[0], "sample offsets would move"
    path.write_bytes(new)
    return path


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        yield start, size, kind
        start += size


def add_pixel_crop(path: Path, left: int, right: int, top: int, bottom: int) -> Path:
    """Appends PixelCrop elements to the first video track of a Matroska file written as `live`."""
    data = path.read_bytes()
    elements = ((0x54AA, bottom), (0x54BB, top), (0x54CC, left), (0x54DD, right))
    crop = b"".join(struct.pack(">HBH", kind, 0x82, value) for kind, value in elements)
    segment = _find(data, 0, len(data), "18538067")
    tracks = _find(data, segment[1], len(data), "1654AE6B")
    entry = _find(data, tracks[1], tracks[2], "AE")
    video = _find(data, entry[1], entry[2], "E0")
    video_new = _element("E0", data[video[1] : video[2]] + crop)
    entry_new = _element("AE", data[entry[1] : video[0]] + video_new + data[video[2] : entry[2]])
    tracks_new = _element(
        "1654AE6B", data[tracks[1] : entry[0]] + entry_new + data[entry[2] : tracks[2]]
    )
    path.write_bytes(data[: tracks[0]] + tracks_new + data[tracks[2] :])
    return path


def _element(kind: str, payload: bytes) -> bytes:
    return bytes.fromhex(kind) + (1 << 56 | len(payload)).to_bytes(8, "big") + payload


def _find(data: bytes, start: int, end: int, kind: str) -> tuple[int, int, int]:
    """Where an element begins, where its content does, and where it ends."""
    while start < end:
        id_bytes = 9 - data[start].bit_length()
        size_bytes = 9 - data[start + id_bytes].bit_length()
        first = start + id_bytes + size_bytes
        size = int.from_bytes(data[start + id_bytes : first], "big") & ((1 << 7 * size_bytes) - 1)
        if data[start : start + id_bytes] == bytes.fromhex(kind):
            return start, first, min(first + size, end)
        start = first + size
    raise AssertionError(f"no element {kind}")
