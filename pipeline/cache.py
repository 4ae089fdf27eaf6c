"""A cache is all stores of one spec over one manifest: what is planned, what is there, what failed, what can be trusted.

```
<name>-<12 hex>/
  cache.json            format version, spec, encoder identity, and the plan: store -> video -> expected frames
  codec.safetensors     what a fitted codec has learnt; absent for others
  manifest/             a copy of the manifest it was extracted from, so that a cache can be moved and trained on alone
  stores/00017.zarr/    see `store.py`
  receipts/00017.json   written last: checksums, rows of every video, failures with reason, timings
```
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from pipeline import plugins
from pipeline.codecs import CodecPlugin, FittedCodec
from pipeline.errors import BadInput
from pipeline.ledger import Failure, Header, Receipt, read_json, to_json
from pipeline.manifest import Manifest
from pipeline.records import Clip, TokenShape
from pipeline.spec import FORMAT_VERSION, differences
from pipeline.store import StoreReader, check_files, stored_name, token_arrays, write_atomically

CODEC_FILE = "codec.safetensors"
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

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "cache.json"
        if not file.is_file():
            raise BadInput(f"{path} is not a cache: it has no cache.json", _nearby(path))
        self.header = read_json(Header, file, "extract again into another folder; its stores are not touched", FORMAT_VERSION)

    @classmethod
    def create(cls, path: Path, header: Header, manifest: Manifest, learnt: bytes | None = None) -> Cache:
        """Lays out an empty cache; cache.json comes last, so that a cache that opens is whole.

        `learnt`: of a fitted codec, see `pack_learnt`.
        """
        for folder in ("stores", "receipts", "manifest"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for name in Manifest.FILES:
            (path / "manifest" / name).unlink(missing_ok=True)
            if (manifest.folder / name).is_file():
                shutil.copyfile(manifest.folder / name, path / "manifest" / name)
        if learnt is not None:
            write_atomically(path / CODEC_FILE, learnt)
            header = header.model_copy(update={"codec_sha256": hashlib.sha256(learnt).hexdigest()})
        write_atomically(path / "cache.json", to_json(header))
        return cls(path)

    # What was planned

    @property
    def name(self) -> str:
        return self.path.name

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
        """Name of a token array (`special`, `layer_11`) -> the codec of its values."""
        return codecs_of(self._make_codec, self.tokens, read_learnt(self.path, self.header.codec_sha256))

    def _make_codec(self) -> CodecPlugin:
        table = dict(self.spec["codec"])
        name = table.pop("name")
        codec: CodecPlugin = plugins.load("codec", name)(plugins.settings("codec", name, table, f"{self.path}/cache.json"))
        return codec

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Name of every token array -> tokens per frame."""
        return token_arrays(self.shape.layers, self.shape.special_tokens, self.shape.patch_tokens)

    @cached_property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Stored name of every token array -> (shape of one frame, dtype)."""
        layout = self.codec.layout(self.shape.width)
        return {
            stored_name(name, key): ((n, *tail), dtype)
            for name, n in self.tokens.items()
            for key, (tail, dtype) in layout.items()
        }

    @property
    def plan(self) -> dict[int, dict[str, int]]:
        return self.header.plan

    @cached_property
    def manifest(self) -> Manifest:
        """The copy that lies in the cache; its root is where the videos were at extraction, and may be gone."""
        return replace(Manifest.load(self.path / "manifest"), root=Path(self.header.root))

    def copy_learnt(self, folder: Path) -> None:
        """Puts what a fitted codec has learnt into a run's folder, whose streams go through the same codec."""
        learnt = read_learnt(self.path, self.header.codec_sha256)
        if learnt is not None:
            write_atomically(folder / CODEC_FILE, learnt)

    # What is there

    def store_path(self, store: int) -> Path:
        return self.path / "stores" / f"{store:05d}.zarr"

    def receipt_path(self, store: int) -> Path:
        return self.path / "receipts" / f"{store:05d}.json"

    def write_receipt(self, receipt: Receipt) -> None:
        """Makes a store exist."""
        write_atomically(self.receipt_path(receipt.store), to_json(receipt))

    def forget(self, store: int) -> None:
        """Makes a store exist no longer, so that the next extraction redoes it."""
        self.receipt_path(store).unlink()

    def missing_stores(self) -> list[int]:
        return [store for store in self.plan if not self.receipt_path(store).is_file()]

    def receipt(self, store: int) -> Receipt:
        """The receipt of a finished store. Raises BadInput where it is damaged or belongs to another cache."""
        path = self.receipt_path(store)
        redo = f"rm {path} and run extract again: only this store is redone"
        receipt = read_json(Receipt, path, redo)
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
        return {store: self.receipt(store) for store in self.plan if self.receipt_path(store).is_file()}

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
    def failures(self) -> dict[str, Failure]:
        """video_id -> why it is not, or not wholly, stored."""
        return {video_id: failure for receipt in self.receipts.values() for video_id, failure in receipt.failures.items()}

    def hole(self, clip: Clip) -> str | None:
        """Why the clip cannot be read whole; None when it can."""
        failure = self.failures.get(clip.video_id)
        if clip.video_id not in self.locations:
            return failure.reason if failure else "not extracted yet"
        if failure and (clip.stop_s is None or clip.stop_s > failure.stored_until_s):
            return failure.reason
        return None

    def reader(self, store: int) -> StoreReader:
        return StoreReader(self.store_path(store))

    # Whether it can be trusted

    def check(self, store: int) -> dict[str, str]:
        """File -> what is wrong with it, for one finished store: its receipt, and the content of every file."""
        try:
            files = self.receipt(store).files
        except BadInput as error:
            return {self.receipt_path(store).name: error.message}
        return check_files(self.store_path(store), files)

    def require_sound(self) -> None:
        """Refuses a cache of which a file is missing or of the wrong size, or a small one (times, metadata) is damaged.

        The content of the large ones, the tokens, is compared by `stillframe verify` alone.
        """
        problems = {
            store: found
            for store, receipt in self.receipts.items()
            if (found := check_files(self.store_path(store), receipt.files, SMALL_BYTES))
        }
        if problems:
            store, files = next(iter(problems.items()))
            file, problem = next(iter(files.items()))
            more = sum(map(len, problems.values())) - 1
            raise BadInput(
                f"cache {self.path} is damaged: {self.store_path(store).name}/{file}: {problem}"
                + (f", and {more} more" if more else ""),
                f"see it all: stillframe verify {self.path}; then delete the receipts it names and rerun extract",
            )

    def status(self) -> dict[str, Any]:
        """Coverage per split, failures, frames, bytes and speed, as plain data."""
        splits: dict[str, Counter[str]] = {}
        for clip in self.manifest.clips:
            counts = splits.setdefault(clip.split, Counter(clips=0, covered=0))
            counts["clips"] += 1
            counts["covered"] += self.hole(clip) is None
        seconds: Counter[str] = Counter()
        for receipt in self.receipts.values():
            seconds.update(receipt.seconds)
        return {
            "cache": str(self.path),
            "spec": self.spec["name"],
            "fingerprint": self.fingerprint,
            "codec": self.spec["codec"]["name"],
            "stores": {"planned": len(self.plan), "done": len(self.receipts)},
            "videos": {
                "planned": sum(map(len, self.plan.values())),
                "stored": len(self.locations.keys() - self.failures.keys()),
                "failed": len(self.failures),
            },
            "frames": sum(receipt.frames for receipt in self.receipts.values()),
            "store_bytes": sum(receipt.store_bytes for receipt in self.receipts.values()),
            "seconds": dict(seconds),
            "splits": {split: dict(counts) for split, counts in splits.items()},
            "failures": {video_id: failure.reason for video_id, failure in self.failures.items()},
        }


def pack_learnt(learnt: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Token array -> what its codec has learnt, as a safetensors file with the names `layer_11.basis`."""
    data: bytes = safetensors.save({f"{name}.{key}": array for name, arrays in learnt.items() for key, array in arrays.items()})
    return data


def read_learnt(folder: Path, sha256: str | None) -> bytes | None:
    """What the codec of a cache or run has learnt, compared with its checksum; None where there is none. Raises BadInput."""
    if sha256 is None:
        return None
    file = folder / CODEC_FILE
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}", "its tokens cannot be decoded without it") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadInput(f"{file} is damaged: it differs from its checksum", "its tokens cannot be decoded without it")
    return data


def codecs_of(make: Callable[[], CodecPlugin], names: Iterable[str], learnt: bytes | None) -> dict[str, CodecPlugin]:
    """Token array -> its codec: one and the same for all, or a fitted one for each, made ready with what was `learnt`."""
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
        codec.load({key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)})
        codecs[name] = codec
    return codecs


def require_same(cache: Cache, manifest: Manifest) -> None:
    """Refuses to go on with a cache that was extracted from another manifest; says what differs."""
    if cache.header.manifest != manifest.digest:
        theirs, ours = ({video.video_id for video in m.videos} for m in (cache.manifest, manifest))
        raise BadInput(
            f"manifest {manifest.folder} changed after {cache.path} was extracted from it: "
            f"{len(ours - theirs)} videos added, {len(theirs - ours)} removed, {len(ours & theirs)} kept, "
            f"{len(manifest.clips)} clips now, {len(cache.manifest.clips)} then",
            "extract it into another --out; or, if only clips or labels changed, train with --manifest on the cache as it is",
        )


def siblings(cache: Cache) -> dict[Path, list[str]]:
    """Caches of the same name beside this one -> in what they differ, as `field: this / that`."""

    def meaning(header: Header) -> dict[str, Any]:
        return header.model_dump(mode="json", include={"spec", "encoder", "decoder", "derived_from"})

    found = {}
    for file in sorted(cache.path.parent.glob(f"{cache.spec['name']}-*/cache.json")):
        try:
            differ = differences(meaning(cache.header), meaning(Cache(file.parent).header))
        except BadInput:  # what is wrong with a neighbour does not concern this cache
            continue
        if differ:
            found[file.parent] = differ
    return found


def _nearby(path: Path) -> str:
    """A hint with the caches that lie in or beside a wrong path."""
    folder = path if path.is_dir() else path.parent
    found = sorted(str(file.parent) for file in folder.glob("*/cache.json")) if folder.is_dir() else []
    return f"there are: {', '.join(found)}" if found else "make one with: stillframe extract SPEC DATA --out DIR"
