"""TFRecord files and the tf.train.Example messages in them, read without TensorFlow.

A record is `length uint64, masked crc32c of it uint32, data, masked crc32c of the data uint32`,
little-endian (TensorFlow, tensorflow/core/lib/io/record_writer.h). An Example is a protobuf map
from name to a list of bytes, float32 or int64 (tensorflow/core/example/example.proto and
feature.proto); lists are decoded when asked for, as a record holds many megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.errors import BadInput

MASK = 0xA282EAD8
BYTES, FLOATS, INTS = 1, 2, 3
"""Field numbers of the lists in a Feature."""
Span = tuple[int, int]
"""[start, stop) of bytes."""


def masked_crc32c(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset of the data in the file, data) of every record.

    Raises BadInput, after all good records have been yielded, where the file is cut off or does not
    match a checksum.
    """
    with path.open("rb") as file:
        number = 0
        while head := file.read(12):
            number += 1
            where = f"{path} record {number}"
            if len(head) < 12:
                raise BadInput(f"{where}: the file is cut off")
            if masked_crc32c(head[:8]) != int.from_bytes(head[8:], "little"):
                raise BadInput(f"{where}: damaged, the checksum of its length does not match")
            offset, length = file.tell(), int.from_bytes(head[:8], "little")
            data = file.read(length)
            tail = file.read(4)
            if len(data) < length or len(tail) < 4:
                raise BadInput(f"{where}: the file is cut off: found {len(data)} of {length} bytes")
            if masked_crc32c(data) != int.from_bytes(tail, "little"):
                raise BadInput(f"{where}: damaged, the checksum of its data does not match")
            yield offset, data


class Example:
    """A tf.train.Example. `where` names it in errors."""

    def __init__(self, data: bytes, where: str) -> None:
        """Raises BadInput if `data` is no Example."""
        self.data, self.where = data, where
        self._features: dict[str, Span] = {}
        try:
            for field, features in _messages(data, (0, len(data))):
                for _, entry in _messages(data, features) if field == 1 else ():
                    parts = dict(_messages(data, entry))
                    self._features[data[slice(*parts[1])].decode()] = parts.get(2, (0, 0))
        except (ValueError, KeyError, IndexError) as error:
            raise BadInput(f"{where} is no tf.train.Example: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def spans(self, name: str) -> list[Span]:
        """Where in the data the values of a list of bytes lie. Raises BadInput if there is no such
        list."""
        return self._values(name, BYTES)

    def blobs(self, name: str) -> list[bytes]:
        return [self.data[start:stop] for start, stop in self.spans(name)]

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """float32 values in the given shape, in which one -1 may stand."""
        data = b"".join(self.data[start:stop] for start, stop in self._values(name, FLOATS))
        return self._shaped(name, np.frombuffer(data[: len(data) // 4 * 4], "<f4"), shape or (-1,))

    def ints(self, name: str, *shape: int) -> np.ndarray:
        """int64 values in the given shape."""
        values = []
        for start, stop in self._values(name, INTS):
            while start < stop:
                value, start = _varint(self.data, start)
                values.append(value - (1 << 64) if value >> 63 else value)
        return self._shaped(name, np.array(values, np.int64), shape or (-1,))

    def _shaped(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        try:
            return values.reshape(shape)
        except ValueError as error:
            raise BadInput(
                f"{self.where}: '{name}' has {values.size} values, wanted shape {shape}"
            ) from error

    def _values(self, name: str, kind: int) -> list[Span]:
        """The values of a list; numbers may be packed, several to a span."""
        if name not in self._features:
            raise BadInput(f"{self.where} has no '{name}'")
        try:
            lists = list(_messages(self.data, self._features[name]))
            values = [span for _, content in lists for _, span in _messages(self.data, content)]
        except (ValueError, IndexError) as error:
            raise BadInput(f"{self.where}: '{name}' is damaged: {error}") from error
        if any(field != kind for field, _ in lists):
            raise BadInput(
                f"{self.where}: '{name}' is no list of {('bytes', 'floats', 'integers')[kind - 1]}"
            )
        return values


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without end at byte {offset}")


def _messages(data: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """(field number, span of its content); of a plain number, the bytes that hold it."""
    offset, stop = span
    while offset < stop:
        key, offset = _varint(data, offset)
        wire = key & 7
        if wire == 2:
            length, offset = _varint(data, offset)
        elif wire == 0:
            length = _varint(data, offset)[1] - offset
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {offset}")
        if offset + length > stop:
            raise ValueError(f"a field at byte {offset} reaches past the end")
        yield key >> 3, (offset, offset + length)
        offset += length
