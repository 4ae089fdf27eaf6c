"""Features that were made elsewhere become a cache, which all of stage two reads.

All files are looked at before anything is written: whether every video has one, their widths, every
number, and whether there are as many as the videos are long. The cache has a fingerprint over the
bytes of the files, and receipts as an extraction writes them; a rerun goes on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.codecs.contract import CodecPlugin, FittedCodec, fitted_to, make_codec
from pipeline.cache.commit import (
    cache_names,
    clear_finished,
    create_cache,
    find_place,
    forget_store,
    unwritable,
)
from pipeline.cache.corruption import check_store
from pipeline.cache.layout import (
    HEADER_FILE,
    frames_per_store,
    layer_name,
    store_name,
    stored_name,
)
from pipeline.cache.leases import CacheStore, Leases, claim_units, lease_of
from pipeline.cache.receipts import Content, Header, TokenFacts
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, FORMAT_VERSION, CacheSpec, fingerprint
from pipeline.config.toml_tables import override
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput, StillframeError
from pipeline.exchange.feature_files import FeatureFile, Layout, feature_files, shape_text
from pipeline.extract.calibrate import fit_codecs, middles_of_parts
from pipeline.extract.derive import OnFrames
from pipeline.extract.extract import fill_stores
from pipeline.extract.store_builder import StoreBuilder
from pipeline.models.encoders.contract import token_shape

LAYER = 0
"""The layer that imported features are called."""
ENCODER = "features"
"""What stands in the place of an encoder."""
SLACK_S, SLACK = 1.0, 0.02
"""How far the length of features may be from that of their video: so many seconds, and this share
of it."""
NOT_YET = "0" * 64
"""In the place of a digest that is still to be found."""
HALF_BYTES = 2
CHUNK_BYTES, LEAST_CHUNK_FRAMES, MOST_CHUNK_FRAMES, MOST_SHARD_MB = 2**18, 8, 128, 256
"""How features are laid out, where nothing else is said."""
FROM_FILES = "imported"
"""What cache.json says of the decoder."""
OnFiles = Callable[[int, int], None]
"""Called with (files looked at, files in all)."""


@dataclass(frozen=True)
class Reading:
    """How the files are to be read."""

    fps: float
    """Features of a second."""
    start_s: float = 0.0
    """When the first one is, in seconds after the first frame: half of a snippet, for instance."""
    layout: Layout | None = None
    """None: TC, or TNC where `grid` is given."""
    key: str | None = None
    grid: tuple[int, int] | None = None
    """Rows and columns of the N features of a frame; None: all in one row."""


def import_features(
    folder: Path,
    manifest: Manifest,
    out: Path | str,
    reading: Reading,
    overrides: Sequence[str] = (),
    name: str = "features",
    on_files: OnFiles | None = None,
    on_frames: OnFrames | None = None,
    on_begin: Callable[[list[Cache]], object] = lambda _: None,
) -> Cache:
    """The cache of the features in `folder` of all videos of a manifest, in folder `out`; it is
    called `name`. `overrides` are keys of a spec, of its codec or store. `on_begin` is told of the
    cache before it is filled, if there is something to do.

    Stores that are damaged are made anew. Raises BadInput, before anything is written, where a
    video has no features, files differ in width, hold what is no number, or do not fit the lengths
    of the videos.
    """
    job = FeatureImport(folder, manifest, reading, overrides, name, on_files)
    place = open_storage(out)
    try:
        cache = job.create_or_open(place)
        place = cache.storage
        forget_damaged(cache)
        on_begin([cache] if cache.missing_stores() else [])
        with Leases(place) as leases:
            job.fill(cache, leases, on_frames)
        clear_finished(cache)
    except OSError as error:
        raise unwritable(place, error) from error
    return Cache(place)


def forget_damaged(cache: Cache) -> None:
    """Makes the stores exist no longer that are not what their receipts say."""
    for store in set(cache.plan) - set(cache.missing_stores()):
        try:
            cache.receipt(store)
            is_whole = not check_store(cache, store)
        except BadInput:
            is_whole = False
        if not is_whole:
            forget_store(cache, store)
            cache.storage.remove(store_name(store))


class FeatureImport:
    """One import: files that have been looked at, and the spec that they make."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        reading: Reading,
        overrides: Sequence[str],
        name: str,
        on_files: OnFiles | None = None,
    ) -> None:
        layout: Layout = reading.layout or ("TC" if reading.grid is None else "TNC")
        self.manifest, self.reading = manifest, reading
        self.videos = {video.video_id: video for video in manifest.videos}
        self.files = feature_files(folder, manifest.videos, reading.key, layout)
        self.shapes = _shapes(self.files)
        _require_one_width(self.files, self.shapes, layout)
        _, count, width = next(iter(self.shapes.values()))
        grid = reading.grid or (1, count)
        if grid[0] * grid[1] != count:
            raise BadInput(
                f"a grid of {grid[0]} x {grid[1]} has {grid[0] * grid[1]} features a frame, the "
                f"files of {folder} have {count}",
                "--grid ROWSxCOLUMNS",
            )
        _require_lengths(manifest, self.shapes, reading)
        encoder = {"name": ENCODER, "layers": [LAYER], "width": width, "grid": list(grid)}
        table = {
            "name": name,
            "encoder": encoder | {"sha256": NOT_YET},
            "frames": {"size_px": 1, "fps": reading.fps},
            "store": _store_settings(self.shapes.values()),
        }
        changed = override(copy.deepcopy(table), overrides)
        if any(changed[key] != table[key] for key in ("encoder", "frames", "name")):
            raise BadInput(
                "--set is for the codec and the store of imported features",
                "for example --set codec.name=bfloat16",
            )
        spec = plugins.validate(CacheSpec, changed, "imported features")
        changed["encoder"]["sha256"] = self._looked_at(make_codec(spec.codec), layout, on_files)
        self.spec = plugins.validate(CacheSpec, changed, "imported features")

    def _looked_at(self, codec: CodecPlugin, layout: Layout, on_files: OnFiles | None) -> str:
        """The digest over all files and how they are read. Raises BadInput where one holds what is
        no number, or one that the codec cannot hold."""
        sums: dict[str, str] = {}
        for done, (video_id, file) in enumerate(self.files.items(), start=1):
            with file.opened() as array:
                ends = array.extremes()
            if not isinstance(codec, FittedCodec):
                _, count, width = self.shapes[video_id]
                try:
                    for end in ends:
                        codec.encode(torch.full((1, count, width), end))
                except StillframeError as error:
                    hint = "--set codec.name=bfloat16 holds greater ones, with fewer digits"
                    raise BadInput(f"{file.path}: {error.message}", hint) from error
            sums[video_id] = file.sha256()
            if on_files:
                on_files(done, len(self.files))
        reading = asdict(self.reading) | {"layout": layout}
        text = json.dumps([reading, sums], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What cache.json says of the encoder."""
        identity: dict[str, Any] = plugins.load("encoder", ENCODER).identity_of(
            self.spec.encoder.settings
        )
        return identity

    def create_or_open(self, folder: Storage) -> Cache:
        """The cache in `folder`; planned, fitted and created if it is not there yet."""
        manifest, codec = self.manifest, make_codec(self.spec.codec)
        digits = fingerprint(
            self.spec, self.identity, FROM_FILES, fitted_to(codec, manifest.digest)
        )
        names = cache_names(self.spec.name, digits, manifest.folder.name, manifest)
        while True:
            storage = find_place(folder, names, manifest)
            if storage.exists(HEADER_FILE):
                return Cache(storage)
            with Leases(storage) as leases, leases.alone("plan"):
                if not storage.exists(HEADER_FILE):
                    return self._create(storage, digits)
            # Somebody was quicker, with this manifest or with another one.

    def _create(self, storage: Storage, digits: str) -> Cache:
        codec, shape = make_codec(self.spec.codec), token_shape(self.spec)
        learnt = None
        if isinstance(codec, FittedCodec):
            learnt = fit_codecs(codec, {layer_name(LAYER): self._sample(codec.sample_frames)})
        frames = {video_id: sizes[0] for video_id, sizes in self.shapes.items()}
        header = Header(
            format_version=FORMAT_VERSION,
            fingerprint=digits,
            spec=self.spec.canonical(),
            encoder=self.identity,
            decoder=FROM_FILES,
            tokens=TokenFacts(
                width=shape.width, grid_hw=shape.grid_hw, special_tokens=0, layers=shape.layers
            ),
            manifest=self.manifest.digest,
            root=str(self.manifest.root),
            plan=fill_stores(frames, frames_per_store(self.spec, shape)),
        )
        return create_cache(storage, header, self.manifest, learnt)

    def _sample(self, frames: int) -> torch.Tensor:
        """(frames, N, C) of frames that are spread evenly over all videos."""
        ends = np.cumsum([sizes[0] for sizes in self.shapes.values()])
        videos, parts = list(self.shapes), []
        chosen = middles_of_parts(int(ends[-1]), frames)
        owner = np.searchsorted(ends, chosen, side="right")
        for number in np.unique(owner):
            first = int(ends[number]) - self.shapes[videos[number]][0]
            with self.files[videos[number]].opened() as array:
                rows = (chosen[owner == number] - first).tolist()
                parts += [array.rows(row, row + 1) for row in rows]
        return torch.from_numpy(np.concatenate(parts))

    def fill(self, cache: Cache, leases: Leases, on_frames: OnFrames | None = None) -> None:
        """Writes the stores that are missing, with all others who are at it."""
        missing = cache.missing_stores()
        total, done = sum(sum(cache.plan[store].values()) for store in missing), 0
        while missing:
            units = [[CacheStore(cache, leases, store)] for store in missing]
            for ((_, _, store),) in claim_units(units, threading.Event()):
                self._write(cache, store)
                leases.release(lease_of(store))
                done += sum(cache.plan[store].values())
                if on_frames:
                    on_frames(done, total)
            missing = cache.missing_stores()

    def _write(self, cache: Cache, store: int) -> None:
        begin, builder = time.perf_counter(), StoreBuilder(cache, store)
        layer, reading = layer_name(LAYER), self.reading
        whole = {BASE: np.eye(2, 3)}  # truth in the frame is truth in the square
        try:
            for video_id in cache.plan[store]:
                video, frames = self.videos[video_id], self.shapes[video_id][0]
                builder.start_video(video)
                with self.files[video_id].opened() as array:
                    if array.shape != self.shapes[video_id]:
                        raise BadInput(f"{self.files[video_id].path} has changed meanwhile")
                    for start in range(0, frames, self.spec.store.batch_frames):
                        stop = min(frames, start + self.spec.store.batch_frames)
                        tokens_FND = torch.from_numpy(array.rows(start, stop))
                        stored = cache.codecs[layer].encode(tokens_FND)
                        builder.append(
                            {stored_name(layer, key): each for key, each in stored.items()}
                        )
                        time_s = reading.start_s + np.arange(start, stop) / reading.fps
                        builder.add_frames(video, time_s, whole)
                builder.content[video_id] = Content(decoded=frames, header=frames, first_s=0.0)
            builder.commit({"import": time.perf_counter() - begin}, "cpu")
        finally:
            builder.close()


def _store_settings(shapes: Iterable[tuple[int, int, int]]) -> dict[str, float]:
    """Chunks and shards for frames of so many numbers: a frame may be of a few bytes, and a shard
    has an entry for every chunk that there would be room for."""
    frame_bytes, total = 1, 0
    for frames, count, width in shapes:
        frame_bytes = HALF_BYTES * count * width
        total += frames * frame_bytes
    chunk_frames = min(MOST_CHUNK_FRAMES, max(LEAST_CHUNK_FRAMES, CHUNK_BYTES // frame_bytes))
    return {"chunk_frames": chunk_frames, "shard_mb": min(MOST_SHARD_MB, 1 + total // 10**6)}


def _shapes(files: Mapping[str, FeatureFile]) -> dict[str, tuple[int, int, int]]:
    """video_id -> (T, N, C), of the headers alone."""
    shapes = {}
    for video_id, file in files.items():
        with file.opened() as array:
            shapes[video_id] = array.shape
    return shapes


def _require_one_width(
    files: Mapping[str, FeatureFile], shapes: Mapping[str, tuple[int, int, int]], layout: Layout
) -> None:
    first, *others = shapes
    for other in others:
        if shapes[other][1:] != shapes[first][1:]:
            flipped = layout == "TC" and len({shape[0] for shape in shapes.values()}) == 1
            raise BadInput(
                f"{files[other].path} has features of {shape_text(shapes[other][1:])}, "
                f"{files[first].path} of {shape_text(shapes[first][1:])}",
                "all first axes are equal, so frames may be the second one: --layout CT"
                if flipped
                else "all videos need features of one kind",
            )


def _require_lengths(
    manifest: Manifest, shapes: Mapping[str, tuple[int, int, int]], reading: Reading
) -> None:
    """Refuses a rate by which features and videos are not of one length, as far as it is known."""
    known_s: dict[str, float] = {}
    for clip in manifest.clips:
        known_s[clip.video_id] = max(known_s.get(clip.video_id, 0.0), clip.stop_s or 0.0)
    for video_id, (frames, _, _) in shapes.items():
        facts = manifest.facts.get(video_id)
        length_s = (facts.duration_s if facts else None) or known_s[video_id]
        found_s = reading.start_s + frames / reading.fps
        if length_s and abs(found_s - length_s) > SLACK_S + SLACK * length_s:
            fitting = frames / max(1e-9, length_s - reading.start_s)
            raise BadInput(
                f"video {video_id} is {length_s:.1f} s long by the manifest, and {frames:,} "
                f"features at {reading.fps:g} a second are {found_s:.1f} s",
                f"--fps {fitting:.4g} would fit",
            )
