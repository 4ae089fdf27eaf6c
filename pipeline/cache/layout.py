"""Names and sizes of all that a cache has on disk: no other file spells them.

```
<name>-<12 hex>/
  cache.json            format version, spec, encoder identity, plan: store -> video -> frames
  codec.safetensors     what a fitted codec has learnt; absent for others
  manifest/             a copy of the manifest it was extracted from: a cache can be moved alone
  stores/00017.zarr/    a Zarr v3 group, see below
  receipts/00017.json   written last: checksums, rows of every video, failures, timings
  leases/00017.json     only while a worker is at it, see `leases`
  log.txt               what the commands said that made it; nothing reads it

stores/00017.zarr/
  zarr.json             of the group; each array and each view's group has one, too
  time_s, video_start, video_stop     small arrays of one chunk
  affine                (frames, 2, 3), source frame to square
  special, layer_11     token arrays, in shards `layer_11/c/<number>/0/0`; with them what else the
                        codec needs, such as `layer_11_scale`
  flip/                 a view: its own affine and token arrays
```
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from pipeline.cache.codecs.contract import make_codec
from pipeline.config.cache_spec import BASE, CacheSpec
from pipeline.records import TokenShape

HEADER_FILE, CODEC_FILE = "cache.json", "codec.safetensors"
LOG_FILE = "log.txt"
"""What commands said that made a cache in a folder; nothing reads it, and no receipt knows it."""
MANIFEST, STORES, RECEIPTS, LEASES = "manifest", "stores", "receipts", "leases"
"""Folders of a cache."""
MARKS = "done"
"""Folder of a cache in parts, see `parts`: a file for every part that is finished."""
TIMES, VIDEO_STARTS, VIDEO_STOPS = "time_s", "video_start", "video_stop"
"""Small arrays of a store: presentation times (F,), and the rows [start, stop) of its videos."""
AFFINE, SPECIAL = "affine", "special"
VIDEO_IDS, FINGERPRINT, CHUNK_CHECKSUMS = "videos", "fingerprint", "chunk_crc32c"
"""Attributes of a store's group: ids of its videos, the cache that it belongs to, and for every
token array the CRC-32C of each of its chunks in their order, 8 hexadecimal digits each."""
ZARR_METADATA = "zarr.json"


# Files of a cache


def store_number(store: int) -> str:
    """The number of a store as all file names of it have it; also the name of its lease."""
    return f"{store:05d}"


def store_name(store: int) -> str:
    """The folder of a store, relative to its cache."""
    return f"{STORES}/{store_number(store)}.zarr"


def receipt_name(store: int) -> str:
    """The receipt of a store, relative to its cache."""
    return f"{RECEIPTS}/{store_number(store)}.json"


def lease_file(name: str) -> str:
    """The file of a lease, relative to its cache."""
    return f"{LEASES}/{name}.json"


def mark_file(part: str) -> str:
    """The mark of a finished part, relative to the cache in parts."""
    return f"{MARKS}/{part}.json"


# Files of a store


class ChunkFile(NamedTuple):
    """A file that holds one chunk, or one shard, of an array."""

    array: str
    indices: tuple[int, ...]
    """One for each axis; those of a shard are its number, then zeros."""

    @classmethod
    def parse(cls, file: str) -> ChunkFile | None:
        """The chunk that a file of a store holds; None for a file of metadata."""
        array, separator, indices = file.partition("/c/")
        return cls(array, tuple(map(int, indices.split("/")))) if separator else None

    def __str__(self) -> str:
        """The file, relative to its store."""
        return f"{self.array}/c/{'/'.join(map(str, self.indices))}"


def shard_file(array: str, number: int, axes: int) -> str:
    """The file of a shard, relative to its store; `axes` counts those of a row of the array."""
    return str(ChunkFile(array, (number, *[0] * axes)))


def metadata_file(node: str) -> str:
    """The metadata of an array or of a view's group, relative to its store; that of the store
    itself for the node ""."""
    return f"{node}/{ZARR_METADATA}" if node else ZARR_METADATA


def small_arrays(views: Iterable[str]) -> dict[str, str]:
    """Name of every small array -> the file of its one chunk, relative to the store. Zarr does not
    write a chunk that would hold zeros alone."""
    files = {name: str(ChunkFile(name, (0,))) for name in (TIMES, VIDEO_STARTS, VIDEO_STOPS)}
    affines = [in_view(view, AFFINE) for view in views]
    return files | {name: str(ChunkFile(name, (0, 0, 0))) for name in affines}


def small_shape(name: str, frames: int, videos: int) -> tuple[int, ...]:
    """The shape of a small array of a store with so many frames and videos."""
    if name == TIMES:
        return (frames,)
    return (videos,) if name in (VIDEO_STARTS, VIDEO_STOPS) else (frames, 2, 3)


def required_files(arrays: Mapping[str, int], shards: int, views: Collection[str]) -> set[str]:
    """The files that a store must have, relative to it: all metadata, and the shards of its token
    arrays. `arrays`: stored name -> axes of a row. Chunks of small arrays may be absent."""
    groups = {metadata_file("" if view == BASE else view) for view in views}
    metadata = {metadata_file(name) for name in (*arrays, *small_arrays(views))}
    return (groups | metadata) | {
        shard_file(name, number, axes) for name, axes in arrays.items() for number in range(shards)
    }


# Arrays of a store


def tokens_by_array(
    layers: tuple[int, ...], special_tokens: int, patch_tokens: int, views: Iterable[str] = (BASE,)
) -> dict[str, int]:
    """Stored name of every token array -> tokens per frame. Encoders without special tokens have no
    array `special`."""
    tokens = {SPECIAL: special_tokens} if special_tokens else {}
    tokens |= {layer_name(layer): patch_tokens for layer in layers}
    return {in_view(view, name): count for view in views for name, count in tokens.items()}


def in_view(view: str, name: str) -> str:
    """Stored name of an array of a view: `flip/layer_11`. Those of the base lie at the top."""
    return name if view == BASE else f"{view}/{name}"


def view_of(name: str) -> str:
    """The view that a stored array belongs to."""
    return name.rpartition("/")[0] or BASE


def layer_name(layer: int) -> str:
    """Stored name of a layer's patch tokens."""
    return f"layer_{layer}"


def stored_name(array: str, key: str) -> str:
    """Stored name of a codec's array: `layer_11`, or `layer_11_scale` for its sibling `scale`."""
    return f"{array}_{key}" if key else array


# Sizes


def bytes_per_frame(spec: CacheSpec, shape: TokenShape) -> int:
    """Bytes of one frame in all layers and views, before lossless compression."""
    return spec.tokens_per_frame(shape) * make_codec(spec.codec).bytes_per_token(shape.width)


def frames_per_shard(spec: CacheSpec, shape: TokenShape) -> int:
    """Frames of one shard, in whole chunks. A shard holds one array, so the number follows from the
    widest one, which is the patches of a layer."""
    shard_bytes, chunk_frames = spec.store.shard_mb * 1e6, spec.store.chunk_frames
    return max(1, int(shard_bytes / layer_bytes(spec, shape)) // chunk_frames) * chunk_frames


def frames_per_store(spec: CacheSpec, shape: TokenShape) -> int:
    """Frames after which no more videos are put into a store."""
    frames = max(1, int(spec.store.store_mb * 1e6 / layer_bytes(spec, shape)))
    return min(frames, spec.store.store_frames or frames)


def layer_bytes(spec: CacheSpec, shape: TokenShape) -> int:
    """Bytes of one frame's patches in one layer."""
    return shape.patch_tokens * make_codec(spec.codec).bytes_per_token(shape.width)
