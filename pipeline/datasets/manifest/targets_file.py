"""targets.h5 as a file: written once, and compared with its checksum before anything of it is
read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import h5py
import numpy as np

from pipeline.config.regular_files import open_regular
from pipeline.datasets.manifest.jsonl import REBUILD
from pipeline.errors import BadInput
from pipeline.records import Clip

HASHED_BYTES = 8 << 30
"""A file of up to this size is compared as a whole, in 5 seconds at most. Of a larger one HDF5
compares what is read with checksums of its own."""
PACKED_BYTES = 4096
"""Larger arrays are packed, and have checksums of their own."""
PACKING = {"compression": "gzip", "shuffle": True, "fletcher32": True}


def write_targets(path: Path, targets: Iterator[tuple[Clip, dict[str, np.ndarray]]]) -> bool:
    """Whether any clip had targets."""
    with h5py.File(path, "w") as file:
        for clip, arrays in targets:
            for name in sorted(arrays):
                array = np.asarray(arrays[name])
                packing = PACKING if array.nbytes > PACKED_BYTES else {}
                file.create_dataset(
                    f"{target_group(clip.clip_id)}/{name}", data=array, track_times=False, **packing
                )
        return len(file) > 0


def require_as_built(path: Path, size: int, sha256: str | None) -> None:
    """Refuses a file of `size` bytes with another content than was written. Raises BadInput,
    OSError."""
    if size > HASHED_BYTES:
        return
    with open_regular(path) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:  # type: ignore[arg-type]
            raise BadInput(f"{path} is damaged: its content differs from its checksum", REBUILD)


def target_group(clip_id: str) -> str:
    """HDF5 reads '/' as a path."""
    return quote(clip_id, safe=" #@", errors="surrogateescape").replace(".", "%2E")
