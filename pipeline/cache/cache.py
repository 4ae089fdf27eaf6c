"""A cache is all stores of one spec over one manifest: what is planned, what is there, what failed,
and the rows of every video. This file reads; `commit` writes, and `layout` names the files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.codec_parameters import codecs_of, read_learnt
from pipeline.cache.codecs.contract import CodecPlugin, make_codec
from pipeline.cache.layout import (
    CHUNK_CHECKSUMS,
    CODEC_FILE,
    HEADER_FILE,
    MANIFEST,
    RECEIPTS,
    TIMES,
    receipt_name,
    small_shape,
    store_name,
    stored_name,
    tokens_by_array,
)
from pipeline.cache.receipts import (
    Content,
    DamagedStretch,
    Header,
    Receipt,
    VideoFailure,
    header_digest,
)
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.local import LocalFolder, write_atomically
from pipeline.cache.storage.open import open_storage
from pipeline.cache.store import CONTENT, StoreReader
from pipeline.config import plugins
from pipeline.config.cache_spec import (
    BASE,
    FORMAT_VERSION,
    CacheSpec,
    Choice,
    View,
    choice,
    with_implied,
)
from pipeline.config.json_files import parse_json
from pipeline.config.plugins import Model
from pipeline.datasets.manifest.manifest import PARTS, TARGETS, VIDEOS, Manifest
from pipeline.datasets.manifest.parts import part_name
from pipeline.errors import BadInput, StillframeError
from pipeline.records import Clip, TokenShape

UNVOUCHED = {
    1: "its chunks have no checksums, and neither have cache.json and the receipts",
    2: "cache.json and the receipts have no checksums, nor is every chunk known to be in its place",
}
"""Older format -> what its caches cannot vouch for."""


@dataclass(frozen=True)
class Location:
    """The frames of one video in a cache: rows [start, stop) of a store."""

    store: int
    start: int
    stop: int


class Cache:
    """A cache on disk. Opening it reads `cache.json` only; raises BadInput where there is none.

    Receipts, readers and small arrays are read when first asked for and kept: a cache that others
    write to is looked at anew by opening it again.
    """

    are_borders_compared = False
    """Whether the rows of videos in its receipts were compared with those of its stores."""

    def __init__(self, storage: Storage | Path | str) -> None:
        self.storage = storage if isinstance(storage, Storage) else open_storage(storage)
        if not self.storage.exists(HEADER_FILE):
            raise BadInput(f"{self} is not a cache: it has no {HEADER_FILE}", _nearby(self.storage))
        again = (
            f"begin the same extract in another --out, stop it, and copy its {HEADER_FILE} here: "
            "its stores are not touched"
        )
        self.header = self._json(Header, HEADER_FILE, again, range(1, FORMAT_VERSION + 1))
        self._require_checksum(self.header, HEADER_FILE, again)
        self._readers: dict[int, StoreReader] = {}
        self._small_arrays: dict[tuple[int, str], np.ndarray] = {}

    def __str__(self) -> str:
        return str(self.storage)

    @property
    def path(self) -> Path:
        """The folder of a cache that lies in one."""
        return Path(str(self.storage))

    # What was planned

    @property
    def name(self) -> str:
        """The last part of its path or URL."""
        return self.storage.name

    @property
    def unvouched(self) -> str:
        """What a cache of an older format cannot vouch for, in a sentence; "" for today's."""
        if self.header.format_version == FORMAT_VERSION:
            return ""
        return (
            f"{self} has format {self.header.format_version}: "
            f"{UNVOUCHED[self.header.format_version]}. stillframe verify compares every file; "
            f"stillframe derive makes a cache of format {FORMAT_VERSION} from it"
        )

    @property
    def fingerprint(self) -> str:
        """12 hex digits over all that its tokens depend on."""
        return self.header.fingerprint

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The spec as plain JSON. Unlike `cache_spec` it needs no plug-in that can check it."""
        return with_implied(self.header.spec, self.header.format_version)

    @cached_property
    def cache_spec(self) -> CacheSpec:
        """The spec as it was given, defaults filled in."""
        recorded = plugins.as_recorded(self.spec)
        return plugins.validate(CacheSpec, recorded, f"{self}/{HEADER_FILE}")

    @property
    def fps(self) -> float | None:
        """Cached frames per second; None: every frame."""
        fps = self.spec["frames"]["fps"]
        return None if fps == "all" else float(fps)

    @cached_property
    def shape(self) -> TokenShape:
        """Tokens of one frame."""
        tokens = self.header.tokens
        return TokenShape(tokens.width, tokens.grid_hw, tokens.special_tokens, tokens.layers)

    @property
    def plan(self) -> dict[int, dict[str, int]]:
        """store -> video_id -> frames expected from the header of its file."""
        return self.header.plan

    @cached_property
    def manifest(self) -> Manifest:
        """The copy that lies in the cache; its root is where the videos were at extraction, and may
        be gone. Raises BadInput where it is not what was copied; the content of targets.h5, which
        may be large, is compared when it is first read."""
        copy = LocalFolder(self.storage.local(MANIFEST))
        for name, problem in self.manifest_problems(copy, content_of_targets=False).items():
            raise BadInput(f"{self}/{name} is damaged: {problem}", manifest_advice(self))
        manifest = replace(Manifest.load(copy.path), root=Path(self.header.root))
        if manifest.digest != self.header.manifest:
            raise BadInput(
                f"{self}/{MANIFEST} is another manifest: its digest is {manifest.digest}, "
                f"wanted {self.header.manifest}",
                manifest_advice(self),
            )
        return manifest

    def is_its_own(self, manifest: Manifest) -> bool:
        """Whether a manifest is the copy that lies in the cache."""
        return manifest.folder == self.manifest.folder

    def has_videos_of(self, other: Cache) -> bool:
        """Whether both are over one manifest of the same videos: those of equal names and labels
        have the same digest, and other headers."""
        files = [cache.header.manifest_files.get(VIDEOS) for cache in (self, other)]
        same_headers = None in files or files[0] == files[1]
        return same_headers and self.header.manifest == other.header.manifest

    def manifest_problems(
        self, copy: Storage, *, content_of_targets: bool = True
    ) -> dict[str, str]:
        """File of the manifest's `copy` -> what is wrong with it, as far as cache.json vouches for
        the file."""
        problems, sizes = {}, copy.sizes("")
        for name, (size, sha256) in self.header.manifest_files.items():
            file = f"{MANIFEST}/{name}"
            if name not in sizes:
                problems[file] = "missing"
            elif sizes[name] != size:
                problems[file] = f"{sizes[name]} bytes, {HEADER_FILE} says {size}"
            elif (content_of_targets or name != TARGETS) and copy.digest(name) != sha256:
                problems[file] = CONTENT
        return problems

    @cached_property
    def header_sha256(self) -> str:
        """What every receipt must say of cache.json, see `header_digest`."""
        return header_digest(self.storage.read(HEADER_FILE))

    @cached_property
    def views(self) -> dict[str, View | None]:
        """Name of every view -> what is seen; the base comes first and is None."""
        views = [
            plugins.validate(View, table, f"{self}/{HEADER_FILE}")
            for table in self.spec.get("views", ())
        ]
        return {BASE: None} | {view.name: view for view in views}

    # How tokens are stored

    @cached_property
    def codec(self) -> CodecPlugin:
        """Knows the layout of every array; what it encodes and decodes with is in `codecs`."""
        return make_codec(self._codec_choice)

    @cached_property
    def codecs(self) -> dict[str, CodecPlugin]:
        """Name of a token array (`special`, `flip/layer_11`) -> the codec of its values: all views
        of a layer have the same."""
        base = {name.rpartition("/")[2]: None for name in self.token_arrays}
        codecs = codecs_of(self._codec_choice, base, self._learnt(), self.shape.width)
        return {name: codecs[name.rpartition("/")[2]] for name in self.token_arrays}

    @cached_property
    def _codec_choice(self) -> Choice:
        return choice("codec", plugins.as_recorded(self.spec)["codec"], f"{self}/{HEADER_FILE}: ")

    def _learnt(self) -> bytes | None:
        return read_learnt(self.storage, self.header.codec_sha256)

    def copy_learnt(self, folder: Path) -> None:
        """Puts what a fitted codec has learnt into a run's folder, whose streams go through the
        same codec."""
        learnt = self._learnt()
        if learnt is not None:
            write_atomically(folder / CODEC_FILE, learnt)

    @cached_property
    def token_arrays(self) -> dict[str, int]:
        """Name of every token array -> tokens per frame."""
        return tokens_by_array(
            self.shape.layers, self.shape.special_tokens, self.shape.patch_tokens, self.views
        )

    @cached_property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Stored name of every token array -> (shape of one frame, dtype)."""
        layout = self.codec.layout(self.shape.width)
        return {
            stored_name(name, key): ((tokens, *tail), dtype)
            for name, tokens in self.token_arrays.items()
            for key, (tail, dtype) in layout.items()
        }

    # What is there

    def has(self, store: int) -> bool:
        """Whether a store exists now."""
        return self.storage.exists(receipt_name(store))

    def missing_stores(self) -> list[int]:
        """Planned stores that do not exist now."""
        receipts = {f"{RECEIPTS}/{name}" for name in self.storage.names(RECEIPTS)}
        return [store for store in self.plan if receipt_name(store) not in receipts]

    def receipt(self, store: int) -> Receipt:
        """The receipt of a finished store. Raises BadInput where it is damaged or belongs to
        another cache."""
        path = f"{self}/{receipt_name(store)}"
        redo = f"only this store is redone by: stillframe verify {self} --repair"
        receipt = self._json(Receipt, receipt_name(store), redo)
        self._require_checksum(receipt, receipt_name(store), redo)
        expected = (self.fingerprint, store, list(self.plan[store]))
        if (receipt.fingerprint, receipt.store, list(receipt.videos)) != expected:
            raise BadInput(
                f"{path} is damaged: it is for store {receipt.store} of the cache "
                f"{receipt.fingerprint}, wanted store {store} of {self.fingerprint} and the videos "
                "planned for it",
                redo,
            )
        unknown = (receipt.failures.keys() | receipt.content.keys()) - receipt.videos.keys()
        if unknown:
            raise BadInput(
                f"{path} is damaged: it speaks of the video {min(unknown)}, which is not in its "
                "store",
                redo,
            )
        if self.header.has_checksums and receipt.header_sha256 != self.header_sha256:
            raise BadInput(
                f"{path} is damaged: its store was written for another {HEADER_FILE} than there is",
                redo,
            )
        return receipt

    @cached_property
    def receipts(self) -> dict[int, Receipt]:
        """Receipts of the finished stores, as they were when first asked for."""
        missing = set(self.missing_stores())
        return {store: self.receipt(store) for store in self.plan if store not in missing}

    @cached_property
    def locations(self) -> dict[str, Location]:
        """video_id -> where its frames lie, for every video with at least one frame."""
        return {
            video_id: Location(store, *rows)
            for store, receipt in self.receipts.items()
            for video_id, rows in receipt.videos.items()
            if rows[1] > rows[0]
        }

    @cached_property
    def failures(self) -> dict[str, VideoFailure]:
        """video_id -> why it is not, or not wholly, stored."""
        return {
            video_id: failure
            for receipt in self.receipts.values()
            for video_id, failure in receipt.incomplete.items()
        }

    @cached_property
    def broken_off(self) -> dict[str, VideoFailure]:
        """video_id -> why its decoding failed, or ended before the end."""
        return {
            video_id: failure
            for receipt in self.receipts.values()
            for video_id, failure in receipt.failures.items()
        }

    @cached_property
    def content(self) -> dict[str, Content]:
        """video_id -> how many frames it has, for every video that was decoded."""
        return {
            video_id: content
            for receipt in self.receipts.values()
            for video_id, content in receipt.content.items()
        }

    def hole(self, clip: Clip) -> str | None:
        """Why the clip cannot be read whole; None when it can."""
        if clip.video_id not in self.locations:
            failure = self.failures.get(clip.video_id)
            return failure.reason if failure else "not extracted yet"
        failure = self.broken_off.get(clip.video_id)
        start_s, stop_s = clip.stretch_s(self.first_s(clip.video_id))
        if failure and (stop_s is None or stop_s > failure.stored_until_s):
            return failure.reason
        content = self.content.get(clip.video_id)
        if content is None:
            return None
        inside = [
            stretch
            for stretch in content.left_out
            if self._is_over_s(clip.video_id, stretch) > start_s
            and (stop_s is None or stretch.time_s[0] < stop_s)
        ]
        return content.model_copy(update={"damaged": tuple(inside)}).damage_text or None

    def _is_over_s(self, video_id: str, stretch: DamagedStretch) -> float:
        """When something else is on screen than the last frame that is left out of a stretch: at
        the cache's rate it stays until the next cached one. For a picture that is missing the frame
        before it stands."""
        if stretch.frames is None:
            return stretch.time_s[1]
        location = self.locations[video_id]
        time_s = self.small_array(location.store, TIMES)[location.start : location.stop]
        place = np.searchsorted(time_s, stretch.time_s[1])
        return float(time_s[place]) if place < len(time_s) else math.inf

    def first_s(self, video_id: str) -> float:
        """Presentation time of the first frame of a video that has frames here. Receipts of older
        formats do not say; there it is that of the first one cached."""
        content = self.content.get(video_id)
        if content is not None and content.first_s is not None:
            return content.first_s
        location = self.locations[video_id]
        return float(self.small_array(location.store, TIMES)[location.start])

    # Reading stores

    def place(self, store: int) -> tuple[Storage, str]:
        """Where a store lies: a storage, and the folder in it."""
        return self.storage, store_name(store)

    def reader(self, store: int) -> StoreReader:
        """The reader of a finished store, opened once."""
        if store not in self._readers:
            reader = StoreReader(*self.place(store))
            if self.header.has_checksums and CHUNK_CHECKSUMS not in reader.attributes:
                raise BadInput(
                    f"store {reader} is damaged: it lists no checksums of its chunks",
                    f"only this store is redone by: stillframe verify {self} --repair",
                )
            self._readers[store] = reader
        return self._readers[store]

    def small_array(self, store: int, name: str) -> np.ndarray:
        """Times, affines or bounds of all frames of a store, read once. Not to be changed."""
        if (store, name) not in self._small_arrays:
            receipt = self.receipts[store]
            shape = small_shape(name, receipt.frames, len(receipt.videos))
            self._small_arrays[store, name] = self.reader(store).small(name, shape)
        return self._small_arrays[store, name]

    def stored_rows(self, store: int, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of a token array of one store as the codec left them, by the codec's keys."""
        reader, stored = self.reader(store), {}
        for key in self.codec.layout(self.shape.width):
            shape, dtype = self.arrays[stored_name(name, key)]
            stored[key] = np.empty((len(rows), *shape), dtype)
            reader.read_into(stored_name(name, key), rows, stored[key])
        return stored

    def _require_checksum(self, record: Header | Receipt, name: str, hint: str) -> None:
        if self.header.has_checksums and record.checksum is None:
            raise BadInput(f"{self}/{name} is damaged: key 'checksum' is missing", hint)

    def _json(
        self, model: type[Model], name: str, hint: str, versions: range | None = None
    ) -> Model:
        where = f"{self}/{name}"
        try:
            data = self.storage.read(name)
        except OSError as error:
            raise BadInput(f"{where} cannot be read: {error.strerror}", hint) from error
        return parse_json(model, data, where, hint, versions)


def manifest_advice(cache: Cache) -> str:
    """How to mend the copy of the manifest."""
    files = ", ".join(Manifest.FILES)
    return (
        f"copy the manifest that it was extracted from ({files}) into {cache}/{MANIFEST}, "
        f"then run: stillframe verify {cache}"
    )


def require_planned(cache: Cache, manifest: Manifest) -> None:
    """Refuses a manifest with videos that were never planned for the cache. Raises BadInput."""
    planned = {video_id for videos in cache.plan.values() for video_id in videos}
    manifest.require_videos_in(
        planned,
        f"cache {cache}",
        "extract this manifest too, or make one of the videos that the cache has: "
        "stillframe manifest select",
    )


def neighbours(cache: Cache, prefix: str = "") -> Iterator[Cache]:
    """The caches beside one that can be opened, by name; what is wrong with the others does not
    concern it."""
    for storage in _caches_in(cache.storage.parent):
        if storage.name != cache.name and storage.name.startswith(prefix):
            with suppress(StillframeError, OSError):
                yield Cache(storage)


def _caches_in(folder: Storage) -> Iterator[Storage]:
    return (
        folder.below(name) for name in folder.names("") if folder.exists(f"{name}/{HEADER_FILE}")
    )


def _nearby(storage: Storage) -> str:
    """A hint that names the caches in or beside a folder that is none."""
    if storage.exists(PARTS):
        return f"it is a cache in parts: name one of them, as {storage}/{part_name(0)}"
    caches = [str(cache) for cache in _caches_in(storage if storage.names("") else storage.parent)]
    return (
        f"there are: {', '.join(caches)}"
        if caches
        else "make one with: stillframe extract SPEC DATA --out DIR"
    )
