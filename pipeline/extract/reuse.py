"""Reuse of a cache beside this one, so that a layer or a view that is added to a spec costs only
itself.

Caches of the same frames through the same encoder have the same bytes in the arrays that both hold.
Such a cache gives its arrays, store by store, once their checksums and the facts of their frames
have been compared; it stays as it is, and either cache can be deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.cache import Cache, neighbours
from pipeline.cache.codec_parameters import read_learnt
from pipeline.cache.layout import CODEC_FILE, ChunkFile, metadata_file, store_name, stored_name
from pipeline.cache.receipts import Content, Header, Receipt
from pipeline.config import plugins
from pipeline.config.tensor_files import load_arrays
from pipeline.errors import StillframeError

Files = dict[str, tuple[int, str]]
"""Path in a store -> bytes, sha256."""


@dataclass(frozen=True)
class ReusableCache:
    """A cache, and which of its token arrays another one takes over."""

    cache: Cache
    names: tuple[str, ...]

    def has(self, store: int, videos: Mapping[str, int]) -> bool:
        """Whether it has finished the store, and with these videos."""
        return list(self.cache.plan.get(store, ())) == list(videos) and self.cache.has(store)

    def link_into(
        self,
        receipt: Receipt,
        rows: Mapping[str, tuple[int, int]],
        content: Mapping[str, Content],
        small: Mapping[str, np.ndarray],
        staged: Path,
    ) -> dict[str, Files] | None:
        """Links the shards of its arrays into a staged store, or copies them where that cannot be
        done.

        Returns stored name -> files; None where its store's videos, rows or small arrays (times,
        affines) are not these, or a file does not match its checksum. Raises OSError,
        StillframeError.
        """
        reader, files = self.cache.reader(receipt.store), receipt.files
        common = [name for name in small if metadata_file(name) in files]
        if receipt.videos != rows or receipt.content != content:
            return None
        if not all(
            np.array_equal(reader.small(name, small[name].shape), small[name]) for name in common
        ):
            return None
        names = [
            stored_name(name, key)
            for name in self.names
            for key in self.cache.codec.layout(self.cache.shape.width)
        ]
        linked = {
            name: {
                file: files[file]
                for file in files
                if (chunk := ChunkFile.parse(file)) and chunk.array == name
            }
            for name in names
        }
        for file, (_, digest) in (
            item for of_array in linked.values() for item in of_array.items()
        ):
            source = f"{store_name(receipt.store)}/{file}"
            if not self.cache.storage.link(source, staged / file):
                self._copy(source, files[file][0], staged / file)
            with (staged / file).open("rb") as data:
                if hashlib.file_digest(data, "sha256").hexdigest() != digest:
                    return None
        return linked

    def _copy(self, source: str, size: int, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.cache.storage.open(source, [(0, size)]) as data, target.open("wb") as copy:
            shutil.copyfileobj(data, copy)
            copy.flush()
            os.fsync(copy.fileno())


def reusable_caches(cache: Cache) -> list[ReusableCache]:
    """Caches in the same folder whose layers and views are some of this one's, and all else is the
    same; the largest first."""
    reusables = []
    for other in neighbours(cache):
        with suppress(StillframeError):  # of one whose tokens cannot be decoded nothing is taken
            if names := _common(cache, other):
                reusables.append(ReusableCache(other, names))
    return sorted(reusables, key=lambda reusable: -len(reusable.names))


def _common(ours: Cache, theirs: Cache) -> tuple[str, ...]:
    """Token arrays of `theirs` that are the same in `ours`; none unless `ours` has all that
    `theirs` has, and more."""
    layers, their_layers = ours.shape.layers, theirs.shape.layers
    if (
        _meaning(ours.header) != _meaning(theirs.header)
        or not ours.has_videos_of(theirs)
        or ours.fingerprint == theirs.fingerprint
        or not set(their_layers) <= set(layers)
        or not all(view in ours.views.items() for view in theirs.views.items())
    ):
        return ()
    learnt, their_learnt = _learnt(ours), _learnt(theirs)
    return tuple(
        name
        for name in theirs.token_arrays
        if (
            layers[-1] == their_layers[-1] or name.rpartition("/")[2] != "special"
        )  # specials are those of the deepest layer
        and learnt.get(name.rpartition("/")[2]) == their_learnt.get(name.rpartition("/")[2])
    )


def _meaning(header: Header) -> dict[str, Any]:
    """All that must be equal: frames, encoder but for its layers, codec and layout, videos."""
    spec = {
        key: table for key, table in header.spec.items() if key not in ("name", "encoder", "views")
    }
    facts = header.model_dump(
        mode="json", include={"format_version", "encoder", "decoder", "manifest", "derived_from"}
    )
    encoder = header.spec["encoder"]
    return facts | {
        "spec": spec,
        "encoder_name": encoder["name"],
        "encoder_from": encoder.get(plugins.FROM),
    }


def _learnt(cache: Cache) -> dict[str, dict[str, bytes]]:
    """Token array of the base -> what its codec has learnt; empty where nothing is fitted."""
    data = read_learnt(cache.storage, cache.header.codec_sha256)
    tables: dict[str, dict[str, bytes]] = {}
    for name, array in (load_arrays(data, CODEC_FILE, "") if data else {}).items():
        tables.setdefault(name.partition(".")[0], {})[name] = array.tobytes()
    return tables
