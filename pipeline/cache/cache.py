"""A cache is all stores of one spec over one manifest: what is planned, what is there, what failed,
what can be trusted.

```
<name>-<12 hex>/
  cache.json            format version, spec, encoder identity, and the plan: store -> video -> expected frames
  codec.safetensors     what a fitted codec has learnt; absent for others
  manifest/             a copy of the manifest it was extracted from, so that a cache can be moved and trained on alone
  stores/00017.zarr/    see `store.py`
  receipts/00017.json   written last: checksums, rows of every video, failures with reason, timings
  leases/00017.json     only while a worker is at it, see `leases.py`
```

Whoever writes a store does so aside, syncs it, renames it, and vouches for it last. So a kill at
any byte loses at most the store in flight.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from pipeline.cache.codecs.contract import CodecPlugin, FittedCodec
from pipeline.cache.corruption import check_files
from pipeline.cache.receipts import Content, Header, Receipt, VideoFailure
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.local import PARTIAL, sync, write_atomically
from pipeline.cache.storage.open import open_storage
from pipeline.cache.store import StoreReader, stored_name, tokens_by_array
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, FORMAT_VERSION, CacheSpec, View
from pipeline.config.json_files import parse_json, to_json
from pipeline.config.plugins import Model
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput, StillframeError
from pipeline.records import Clip, TokenShape

HEADER_FILE, CODEC_FILE = "cache.json", "codec.safetensors"
CHECKERS = 8
"""Stores that are looked at together."""
SMALL_BYTES = 4_000_000
"""Files up to this size are compared with their checksums whenever a cache is used."""


@dataclass(frozen=True)
class Location:
    """Where the frames of one video lie: rows [start, stop) of a store."""

    store: int
    start: int
    stop: int


class Cache:
    """A cache on disk. Opening it reads `cache.json` only."""

    def __init__(self, storage: Storage | Path | str) -> None:
        self.storage = storage if isinstance(storage, Storage) else open_storage(storage)
        if not self.storage.exists(HEADER_FILE):
            raise BadInput(f"{self} is not a cache: it has no {HEADER_FILE}", _nearby(self.storage))
        again = f"begin the same extract in another --out, stop it, and copy its {HEADER_FILE} here: its stores are not touched"
        self.header = self._json(Header, HEADER_FILE, again, range(1, FORMAT_VERSION + 1))

    @classmethod
    def create(
        cls, storage: Storage, header: Header, manifest: Manifest, learnt: bytes | None = None
    ) -> Cache:
        """Lays out an empty cache; cache.json comes last, so that a cache that opens is whole.

        `learnt`: of a fitted codec, see `pack_learnt`.
        """
        staged = storage.stage("manifest")
        for name in Manifest.FILES:
            if (manifest.folder / name).is_file():
                with (
                    (manifest.folder / name).open("rb") as theirs,
                    (staged / name).open("wb") as ours,
                ):
                    shutil.copyfileobj(theirs, ours)
                sync(staged / name)
        storage.publish(staged, "manifest")
        if learnt is not None:
            storage.write(CODEC_FILE, learnt)
            header = header.model_copy(update={"codec_sha256": hashlib.sha256(learnt).hexdigest()})
        storage.write(HEADER_FILE, to_json(header))
        return cls(storage)

    def __str__(self) -> str:
        return str(self.storage)

    @property
    def path(self) -> Path:
        """The folder it is in."""
        return Path(str(self.storage))

    # What was planned

    @property
    def name(self) -> str:
        return self.storage.name

    @property
    def fingerprint(self) -> str:
        return self.header.fingerprint

    @property
    def spec(self) -> dict[str, Any]:
        return self.header.spec

    @property
    def fps(self) -> float | None:
        """Cached frames per second; None: every frame."""
        fps = self.spec["frames"]["fps"]
        return None if fps == "all" else float(fps)

    @cached_property
    def shape(self) -> TokenShape:
        tokens = self.header.tokens
        return TokenShape(tokens.width, tokens.grid_hw, tokens.special_tokens, tokens.layers)

    @cached_property
    def codec(self) -> CodecPlugin:
        """Knows the layout of every array; what it encodes and decodes with is in `codecs`."""
        return self._make_codec()

    @cached_property
    def codecs(self) -> dict[str, CodecPlugin]:
        """Name of a token array (`special`, `flip/layer_11`) -> the codec of its values: all views
        of a layer have the same."""
        base = {name.rpartition("/")[2]: None for name in self.token_arrays}
        codecs = codecs_of(self._make_codec, base, self._learnt())
        return {name: codecs[name.rpartition("/")[2]] for name in self.token_arrays}

    def _make_codec(self) -> CodecPlugin:
        table = dict(self.spec["codec"])
        name = table.pop("name")
        codec: CodecPlugin = plugins.load("codec", name)(
            plugins.settings("codec", name, table, f"{self}/{HEADER_FILE}")
        )
        return codec

    @cached_property
    def views(self) -> dict[str, View | None]:
        """Name of every view -> what is seen; the base comes first and is None."""
        given = [
            plugins.check(View, table, f"{self}/{HEADER_FILE}")
            for table in self.spec.get("views", ())
        ]
        return {BASE: None} | {view.name: view for view in given}

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
            stored_name(name, key): ((n, *tail), dtype)
            for name, n in self.token_arrays.items()
            for key, (tail, dtype) in layout.items()
        }

    @property
    def plan(self) -> dict[int, dict[str, int]]:
        return self.header.plan

    @cached_property
    def manifest(self) -> Manifest:
        """The copy that lies in the cache; its root is where the videos were at extraction, and may
        be gone."""
        return replace(Manifest.load(self.storage.local("manifest")), root=Path(self.header.root))

    @cached_property
    def cache_spec(self) -> CacheSpec:
        """The spec as it was given, defaults filled in."""
        return plugins.check(CacheSpec, self.spec, f"{self}/{HEADER_FILE}")

    def copy_learnt(self, folder: Path) -> None:
        """Puts what a fitted codec has learnt into a run's folder, whose streams go through the
        same codec."""
        learnt = self._learnt()
        if learnt is not None:
            write_atomically(folder / CODEC_FILE, learnt)

    def _learnt(self) -> bytes | None:
        return read_learnt(self.storage, self.header.codec_sha256)

    # What is there

    def store_name(self, store: int) -> str:
        return f"stores/{store:05d}.zarr"

    def receipt_name(self, store: int) -> str:
        return f"receipts/{store:05d}.json"

    def has(self, store: int) -> bool:
        """Whether a store exists now."""
        return self.storage.exists(self.receipt_name(store))

    def commit(self, staged: Path, receipt: Receipt) -> None:
        """Makes a store that was written aside, with every file synced, exist, unless it does
        already."""
        if self.has(receipt.store):  # a worker that took the store over was quicker
            shutil.rmtree(staged, ignore_errors=True)
            return
        self.storage.publish(staged, self.store_name(receipt.store))
        self.storage.write(self.receipt_name(receipt.store), to_json(receipt))

    def forget(self, store: int) -> None:
        """Makes a store exist no longer, so that the next extraction redoes it."""
        self.storage.remove(self.receipt_name(store))

    def clear_partial(self, store: int | None = None) -> None:
        """Removes what workers that are no more left of a store unfinished; None: of a finished
        cache, and their leases."""
        if store is None:
            for name in self.storage.names("leases"):
                self.storage.remove(f"leases/{name}")
        stem = "" if store is None else f"{store:05d}."
        for folder in ("stores", "receipts", "") if store is None else ("stores",):
            for name in self.storage.names(folder):
                if name.endswith(PARTIAL) and name.removeprefix(".").startswith(stem):
                    self.storage.remove(f"{folder}/{name}" if folder else name)

    def missing_stores(self) -> list[int]:
        done = set(self.storage.names("receipts"))
        return [
            store for store in self.plan if self.receipt_name(store).rpartition("/")[2] not in done
        ]

    def receipt(self, store: int) -> Receipt:
        """The receipt of a finished store. Raises BadInput where it is damaged or belongs to
        another cache."""
        path = f"{self}/{self.receipt_name(store)}"
        redo = f"only this store is redone by: stillframe verify {self} --repair"
        receipt = self._json(Receipt, self.receipt_name(store), redo)
        ours = (self.fingerprint, store, list(self.plan[store]))
        if (receipt.fingerprint, receipt.store, list(receipt.videos)) != ours:
            raise BadInput(
                f"{path} is damaged: it is for store {receipt.store} of the cache {receipt.fingerprint}, "
                f"wanted store {store} of {self.fingerprint} and the videos planned for it",
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
            for video_id, failure in receipt.failures.items()
        }

    @cached_property
    def content(self) -> dict[str, Content]:
        """video_id -> how many frames it has, for every video that was decoded."""
        return {
            video_id: counted
            for receipt in self.receipts.values()
            for video_id, counted in receipt.content.items()
        }

    def hole(self, clip: Clip) -> str | None:
        """Why the clip cannot be read whole; None when it can."""
        failure = self.failures.get(clip.video_id)
        if clip.video_id not in self.locations:
            return failure.reason if failure else "not extracted yet"
        if failure and (clip.stop_s is None or clip.stop_s > failure.stored_until_s):
            return failure.reason
        return None

    def reader(self, store: int) -> StoreReader:
        return StoreReader(self.storage, self.store_name(store))

    def stored_rows(
        self, reader: StoreReader, name: str, rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Rows of a token array of one store as the codec left them, by the codec's keys."""
        stored = {}
        for key in self.codec.layout(self.shape.width):
            shape, dtype = self.arrays[stored_name(name, key)]
            stored[key] = np.empty((len(rows), *shape), dtype)
            reader.read_into(stored_name(name, key), rows, stored[key])
        return stored

    def _json(
        self, model: type[Model], name: str, hint: str, versions: range | None = None
    ) -> Model:
        where = f"{self}/{name}"
        try:
            data = self.storage.read(name)
        except OSError as error:
            raise BadInput(f"{where} cannot be read: {error.strerror}", hint) from error
        return parse_json(model, data, where, hint, versions)

    # Whether it can be trusted

    def check(self, store: int) -> dict[str, str]:
        """File -> what is wrong with it, for one finished store: its receipt, and the content of
        every file."""
        try:
            files = self.receipt(store).files
        except BadInput as error:
            return {self.receipt_name(store): error.message}
        return check_files(self.storage, self.store_name(store), files)

    def require_valid(self) -> None:
        """Refuses a cache of which a file is missing or of the wrong size, or a small one (times,
        metadata) is damaged.

        The content of the large ones, the tokens, is compared by `stillframe verify` alone.
        """

        def check(receipt: Receipt) -> dict[str, str]:
            return check_files(
                self.storage, self.store_name(receipt.store), receipt.files, SMALL_BYTES
            )

        with ThreadPoolExecutor(CHECKERS) as pool:  # many small files, which may be far away
            found = zip(self.receipts, pool.map(check, self.receipts.values()), strict=True)
            problems = {store: files for store, files in found if files}
        if problems:
            store, files = next(iter(problems.items()))
            file, problem = next(iter(files.items()))
            more = sum(map(len, problems.values())) - 1
            raise BadInput(
                f"cache {self} is damaged: {self.store_name(store)}/{file}: {problem}"
                + (f", and {more} more" if more else ""),
                f"see it all: stillframe verify {self}; mend it: stillframe verify {self} --repair",
            )


def pack_learnt(learnt: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Token array -> what its codec has learnt, as a safetensors file with the names
    `layer_11.basis`."""
    data: bytes = safetensors.save(
        {f"{name}.{key}": array for name, arrays in learnt.items() for key, array in arrays.items()}
    )
    return data


def read_learnt(storage: Storage, sha256: str | None) -> bytes | None:
    """What the codec of a cache or run has learnt, compared with its checksum; None where there is
    none. Raises BadInput."""
    if sha256 is None:
        return None
    file = f"{storage}/{CODEC_FILE}"
    try:
        data = storage.read(CODEC_FILE)
    except OSError as error:
        raise BadInput(
            f"{file} cannot be read: {error.strerror}", "its tokens cannot be decoded without it"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadInput(
            f"{file} is damaged: it differs from its checksum",
            "its tokens cannot be decoded without it",
        )
    return data


def codecs_of(
    make: Callable[[], CodecPlugin], names: Iterable[str], learnt: bytes | None
) -> dict[str, CodecPlugin]:
    """Token array -> its codec: one and the same for all, or a fitted one for each, made ready with
    what was `learnt`."""
    codec = make()
    if not isinstance(codec, FittedCodec):
        return dict.fromkeys(names, codec)
    if learnt is None:
        raise BadInput(
            f"codec '{type(codec).__module__.rpartition('.')[2]}' is fitted to the frames of a cache, and there is none here",
            "give a cache instead of a spec",
        )
    arrays = safetensors.load(learnt)
    codecs: dict[str, CodecPlugin] = {}
    for name in names:
        codec = make()
        assert isinstance(codec, FittedCodec)
        prefix = f"{name}."
        codec.load(
            {
                key.removeprefix(prefix): array
                for key, array in arrays.items()
                if key.startswith(prefix)
            }
        )
        codecs[name] = codec
    return codecs


def require_same_manifest(cache: Cache, manifest: Manifest) -> None:
    """Refuses to go on with a cache that was extracted from another manifest; says what differs."""
    if cache.header.manifest != manifest.digest:
        theirs, ours = ({video.video_id for video in m.videos} for m in (cache.manifest, manifest))
        raise BadInput(
            f"manifest {manifest.folder} changed after {cache} was extracted from it: "
            f"{len(ours - theirs)} videos added, {len(theirs - ours)} removed, {len(ours & theirs)} kept, "
            f"{len(manifest.clips)} clips now, {len(cache.manifest.clips)} then",
            "extract it into another --out; or, if only clips or labels changed, train with --manifest on the cache as it is",
        )


def unwritable(what: object, error: OSError) -> StillframeError:
    """The error for a cache that cannot be written."""
    return StillframeError(
        f"cannot write {error.filename or what}: {error.strerror or error}",
        "finished stores are kept: free space or fix access, then rerun",
    )


def neighbours(cache: Cache, prefix: str = "") -> Iterator[Cache]:
    """The caches beside one that can be opened, by name; what is wrong with the others does not
    concern it."""
    for storage in _caches_in(cache.storage.parent):
        if storage.name != cache.name and storage.name.startswith(prefix):
            with suppress(StillframeError):
                yield Cache(storage)


def _caches_in(folder: Storage) -> Iterator[Storage]:
    return (
        folder.below(name) for name in folder.names("") if folder.exists(f"{name}/{HEADER_FILE}")
    )


def _nearby(storage: Storage) -> str:
    """A hint with the caches that lie in or beside a wrong place."""
    found = [str(other) for other in _caches_in(storage if storage.names("") else storage.parent)]
    return (
        f"there are: {', '.join(found)}"
        if found
        else "make one with: stillframe extract SPEC DATA --out DIR"
    )
