"""A cache is all stores of one spec over one manifest: what is planned, what is there, what failed, what can be trusted.

```
<name>-<12 hex>/
  cache.json            format version, spec, encoder identity, tool versions, and the plan: store -> video -> expected frames
  manifest/             a copy of the manifest it was extracted from, so that a cache can be moved and trained on alone
  stores/00017.zarr/    see `store.py`
  receipts/00017.json   written last: checksums, rows of every video, failures with reason, timings
```
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import plugins
from pipeline.codecs import CodecPlugin
from pipeline.errors import BadInput
from pipeline.manifest import Manifest
from pipeline.records import Clip, TokenShape
from pipeline.spec import FORMAT_VERSION, differences
from pipeline.store import StoreReader, check_files, stored_name, token_arrays, write_atomically


@dataclass(frozen=True)
class Location:
    """Where the frames of one video lie: rows [start, stop) of a store."""

    store: int
    start: int
    stop: int


@dataclass(frozen=True)
class Failure:
    """Why a video is not, or not wholly, in the cache."""

    video_id: str
    reason: str
    frames_stored: int
    stored_until_s: float
    """Presentation time up to which the video is covered; 0 if nothing is."""


class Cache:
    """A cache on disk. Opening it reads `cache.json` only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "cache.json"
        if not file.is_file():
            raise BadInput(f"{path} is not a cache: it has no cache.json", _nearby(path))
        try:
            self.header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            version = self.header["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{file} is damaged: {error}", "extract again into another folder; the stores are not touched"
            ) from error
        if version != FORMAT_VERSION:
            raise BadInput(
                f"{path} has cache format {version}, this version reads format {FORMAT_VERSION}", "upgrade stillframe"
            )

    @classmethod
    def create(cls, path: Path, header: dict[str, Any], manifest: Manifest) -> Cache:
        """Lays out an empty cache; cache.json comes last, so that a cache that opens is whole."""
        for folder in ("stores", "receipts", "manifest"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for file in sorted(manifest.folder.iterdir()):
            if file.name in Manifest.FILES:
                write_atomically(path / "manifest" / file.name, file.read_bytes())
        write_atomically(path / "cache.json", _json(header))
        return cls(path)

    # What was planned

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def fingerprint(self) -> str:
        return str(self.header["fingerprint"])

    @property
    def spec(self) -> dict[str, Any]:
        """The canonical spec as plain JSON: reading a cache needs no encoder."""
        spec: dict[str, Any] = self.header["spec"]
        return spec

    @property
    def fps(self) -> float | None:
        """Cached frames per second; None: every frame."""
        fps = self.spec["frames"]["fps"]
        return None if fps == "all" else float(fps)

    @cached_property
    def shape(self) -> TokenShape:
        tokens = self.header["tokens"]
        return TokenShape(tokens["width"], tuple(tokens["grid_hw"]), tokens["special_tokens"], tuple(tokens["layers"]))

    @cached_property
    def codec(self) -> CodecPlugin:
        table = dict(self.spec["codec"])
        name = table.pop("name")
        codec: CodecPlugin = plugins.load("codec", name)(plugins.settings("codec", name, table, f"{self.path}/cache.json"))
        return codec

    @cached_property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Stored name of every token array -> (shape of one frame, dtype)."""
        layout = self.codec.layout(self.shape.width)
        tokens = token_arrays(self.shape.layers, self.shape.special_tokens, self.shape.patch_tokens)
        return {
            stored_name(name, key): ((n, *tail), dtype) for name, n in tokens.items() for key, (tail, dtype) in layout.items()
        }

    @cached_property
    def plan(self) -> dict[int, dict[str, int]]:
        """store -> video_id -> frames expected from the header of its file."""
        return {int(store): videos for store, videos in self.header["plan"].items()}

    @cached_property
    def manifest(self) -> Manifest:
        """The copy that lies in the cache; its root is where the videos were at extraction, and may be gone."""
        return replace(Manifest.load(self.path / "manifest"), root=Path(self.header["root"]))

    # What is there

    def store_path(self, store: int) -> Path:
        return self.path / "stores" / f"{store:05d}.zarr"

    def receipt_path(self, store: int) -> Path:
        return self.path / "receipts" / f"{store:05d}.json"

    def write_receipt(self, store: int, receipt: dict[str, Any]) -> None:
        """Makes a store exist."""
        write_atomically(self.receipt_path(store), _json(receipt))

    def missing_stores(self) -> list[int]:
        return [store for store in self.plan if not self.receipt_path(store).is_file()]

    @cached_property
    def receipts(self) -> dict[int, dict[str, Any]]:
        """Receipts of the finished stores, as they were when first asked for."""
        found = {}
        for store in self.plan:
            path = self.receipt_path(store)
            if path.is_file():
                try:
                    receipt = json.loads(path.read_text(encoding="utf-8"))
                    if receipt["fingerprint"] != self.fingerprint:
                        raise ValueError(f"it belongs to the cache {receipt['fingerprint']}")
                except (ValueError, KeyError, TypeError) as error:
                    raise BadInput(
                        f"receipt {path} is damaged: {error}", "delete it and rerun extract: only this store is redone"
                    ) from error
                found[store] = receipt
        return found

    @cached_property
    def locations(self) -> dict[str, Location]:
        """video_id -> where its frames lie, for every video with at least one frame."""
        return {
            video_id: Location(store, *rows)
            for store, receipt in self.receipts.items()
            for video_id, rows in receipt["videos"].items()
            if rows[1] > rows[0]
        }

    @cached_property
    def failures(self) -> dict[str, Failure]:
        return {
            video_id: Failure(video_id, **failure)
            for receipt in self.receipts.values()
            for video_id, failure in receipt["failures"].items()
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
        return StoreReader(self.store_path(store))

    # Whether it can be trusted

    def check(self, stores: Iterable[int] | None = None, content: bool = False) -> dict[int, dict[str, str]]:
        """store -> file -> what is wrong with it, for the finished stores. `content` compares checksums, otherwise sizes."""
        wanted = self.receipts if stores is None else stores
        problems = {store: check_files(self.store_path(store), self.receipts[store]["files"], content) for store in wanted}
        return {store: files for store, files in problems.items() if files}

    def require_sound(self) -> None:
        """Refuses a cache whose files are missing or of the wrong size (`verify` also compares checksums)."""
        problems = self.check()
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
            seconds.update(receipt["seconds"])
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
            "frames": sum(receipt["frames"] for receipt in self.receipts.values()),
            "store_bytes": sum(size for receipt in self.receipts.values() for size, _ in receipt["files"].values()),
            "seconds": dict(seconds),
            "splits": {split: dict(counts) for split, counts in splits.items()},
            "failures": {video_id: failure.reason for video_id, failure in self.failures.items()},
        }


def require_same(cache: Cache, manifest: Manifest) -> None:
    """Refuses to go on with a cache that was extracted from another manifest; says what differs."""
    if cache.header["manifest"] != manifest.digest:
        theirs, ours = ({video.video_id for video in m.videos} for m in (cache.manifest, manifest))
        raise BadInput(
            f"manifest {manifest.folder} changed after {cache.path} was extracted from it: "
            f"{len(ours - theirs)} videos added, {len(theirs - ours)} removed, {len(ours & theirs)} kept, "
            f"{len(manifest.clips)} clips now, {len(cache.manifest.clips)} then",
            "extract it into another --out; or, if only clips or labels changed, train with --manifest on the cache as it is",
        )


def siblings(cache: Cache) -> dict[Path, list[str]]:
    """Caches of the same name beside this one -> in what they differ, as `field: this / that`."""

    def meaning(header: dict[str, Any]) -> dict[str, Any]:
        return {key: header[key] for key in ("spec", "encoder", "decoder")}

    found = {}
    for file in sorted(cache.path.parent.glob(f"{cache.spec['name']}-*/cache.json")):
        if file.parent != cache.path:
            found[file.parent] = differences(meaning(cache.header), meaning(Cache(file.parent).header))
    return found


def _nearby(path: Path) -> str:
    """A hint with the caches that lie in or beside a wrong path."""
    folder = path if path.is_dir() else path.parent
    found = sorted(str(file.parent) for file in folder.glob("*/cache.json")) if folder.is_dir() else []
    return f"there are: {', '.join(found)}" if found else "make one with: stillframe extract SPEC DATA --out DIR"


def _json(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, indent=1) + "\n").encode()
