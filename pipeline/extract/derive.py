"""A cache from a cache: another codec, fewer layers, views or frames, another layout; no video is
opened, no encoder loaded.

Where codec and rate stay, stored values are copied as they are; otherwise tokens are decoded and
encoded again, so that the source's rounding is in them. A derived cache is therefore never taken
for an extracted one: the fingerprint of its source is part of its own. Holes stay holes, with their
reasons. Stores and receipts are as extraction writes them, and a rerun goes on.

A lower rate keeps the frames that extraction would keep. When the last frame of a video ends is not
in a cache: it is taken to last one step of the source's rate, or the video's median step.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.codec_parameters import read_learnt
from pipeline.cache.codecs.contract import FittedCodec, fitted_to, make_codec
from pipeline.cache.commit import (
    cache_names,
    clear_finished,
    create_cache,
    data_name_of,
    find_place,
    unwritable,
)
from pipeline.cache.corruption import check_store, require_valid
from pipeline.cache.layout import (
    AFFINE,
    HEADER_FILE,
    TIMES,
    frames_per_store,
    in_view,
    store_name,
    stored_name,
    tokens_by_array,
)
from pipeline.cache.leases import CacheStore, Leases, claim_units, lease_of
from pipeline.cache.receipts import Content
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.config.cache_spec import FORMAT_VERSION, CacheSpec, FrameSettings, fingerprint
from pipeline.config.toml_tables import differences, override
from pipeline.errors import BadInput
from pipeline.extract.calibrate import fit_codecs, middles_of_parts
from pipeline.extract.extract import fill_stores
from pipeline.extract.store_builder import StoreBuilder
from pipeline.records import Stride, TokenShape
from pipeline.video.sampling import first_instants

STORE = (
    "store.chunk_frames",
    "store.shard_mb",
    "store.store_mb",
    "store.store_frames",
    "store.compression",
)
RATES = ("frames.fps", "frames.every")
DERIVABLE = ("name", "encoder.layers", "views", *RATES, "codec.", *STORE)
"""Keys of a spec, or beginnings of keys, that may differ from the source's."""

OnFrames = Callable[[int, int], None]
"""Called with (frames done, frames to do)."""


def derive(
    source: Cache,
    overrides: Sequence[str],
    out: Path | str,
    on_frames: OnFrames | None = None,
    on_begin: Callable[[list[Cache]], object] = lambda _: None,
) -> Cache:
    """Brings the cache of `source`'s spec under `overrides` (`codec.name=int8`) to completion, in
    folder `out`; returns it. `on_begin` is told of it before it is filled, if there is something to
    do.

    Raises BadInput: a source that is unfinished or damaged, and what cannot be derived from it.
    """
    derivation = Derivation(source, derived_spec(source, overrides))
    place = folder = open_storage(out)
    try:
        cache = derivation.create_or_open(folder)
        place = cache.storage
        on_begin([cache] if cache.missing_stores() else [])
        with Leases(place) as leases:
            derivation.fill(cache, leases, cache.plan, on_frames)
        clear_finished(cache)
    except OSError as error:
        raise unwritable(place, error) from error
    return Cache(place)


def derived_spec(source: Cache, overrides: Sequence[str]) -> CacheSpec:
    """The source's spec under `overrides`, checked: it differs, and only in what can be derived.
    From a cache of an older format the same spec can be derived, which gives it in this format."""
    table = plugins.as_recorded(copy.deepcopy(source.spec))
    if any(text.partition("=")[0].strip() == "codec.name" for text in overrides):
        table["codec"] = {}  # the settings of another codec are not this one's
    spec = plugins.validate(CacheSpec, override(table, overrides), f"spec derived from {source}")
    is_older = source.header.format_version < FORMAT_VERSION
    if spec.canonical() == source.cache_spec.canonical() and not is_older:
        raise BadInput(
            f"nothing to derive: the spec is that of {source}", "for example --set codec.name=int8"
        )
    require_derivable(source, spec)
    return spec


def require_derivable(source: Cache, spec: CacheSpec) -> None:
    """Refuses a spec that differs from the source's in what its tokens cannot give."""
    changed = differences(source.cache_spec.canonical(), spec.canonical())
    wrong = [line for line in changed if not line.partition(":")[0].startswith(DERIVABLE)]
    if wrong:
        raise BadInput(
            f"cannot be derived from {source} (there / wanted): {'; '.join(wrong)}",
            "its frames must be encoded again: stillframe extract",
        )
    _require_layers(source, spec.encoder.settings.layers)
    _require_views(source, spec)
    _require_rate(source, spec.frames)
    make_codec(spec.codec).layout(source.shape.width)


def _require_layers(source: Cache, layers: tuple[int, ...]) -> None:
    held = source.shape.layers
    if not layers or list(layers) != sorted(set(layers) & set(held)):
        raise BadInput(
            f"cannot derive layers {list(layers)} from {source}, which holds {list(held)}",
            "name some of these, ascending",
        )
    if source.shape.special_tokens and layers[-1] != held[-1]:
        raise BadInput(
            f"cannot derive layers {list(layers)} from {source}: its special tokens are those of "
            f"layer {held[-1]}, and "
            f"the special tokens of layer {layers[-1]} are not stored",
            f"keep layer {held[-1]}, or extract again",
        )


def _require_views(source: Cache, spec: CacheSpec) -> None:
    missing = [view.name for view in spec.views if source.views.get(view.name) != view]
    if missing:
        raise BadInput(
            f"cannot derive views {missing} from {source}, which holds {list(source.views)}, or "
            "holds them otherwise",
            "leave them out, or extract again",
        )


def _require_rate(source: Cache, wanted: FrameSettings) -> None:
    """A lower rate can be derived if its instants are among the source's, a stride if its frames
    are."""
    frames, rate, held = source.cache_spec.frames, wanted.rate, source.fps
    if wanted.kept == frames.kept:
        return
    if wanted.every > 1 or frames.every > 1:
        if held is not None or rate is not None or wanted.every % frames.every:
            holds = f"{held:g} frames per second" if held else f"every {frames.every}. frame"
            asked = f"{rate:g} frames per second" if rate else f"every {wanted.every}. frame"
            raise BadInput(
                f"cannot derive {asked} from {source}, which holds {holds}",
                f"choose {held:g} divided by a whole number"
                if held
                else f"choose frames.every as a multiple of {frames.every}",
            )
        return
    if held is None:
        return
    if isinstance(frames.kept, Stride):
        raise BadInput(
            f"cannot derive another frame rate from {source}, which keeps every n-th frame, a "
            "number that depends on the rate of each video",
            "extract again with the frames.fps that is wanted",
        )
    if rate is None or abs(held / rate - round(held / rate)) > 1e-9 or rate > held:
        rate_text = "every frame" if rate is None else f"{rate:g} frames per second"
        raise BadInput(
            f"cannot derive {rate_text} from {source}, which holds {held:g}",
            f"choose {held:g} divided by a whole number",
        )


class Derivation:
    """The derivation of one cache: which rows of the source are kept, and how they are stored."""

    def __init__(self, source: Cache, spec: CacheSpec) -> None:
        missing = source.missing_stores()
        if missing:
            raise BadInput(
                f"cache {source} lacks {len(missing)} of {len(source.plan)} stores",
                "run extract again first",
            )
        require_valid(source)
        self.source, self.spec = source, spec
        self.same_codec = spec.codec.table() == source.spec["codec"]
        self.videos = {video.video_id: video for video in source.manifest.videos}
        self._valid_stores: set[int] = set()
        self._rows: dict[str, np.ndarray] = {}
        self._content = dict(source.content)

    @cached_property
    def digits(self) -> str:
        header = self.source.header
        of_codec = fitted_to(make_codec(self.spec.codec), header.manifest)
        return fingerprint(self.spec, header.encoder, header.decoder, of_codec, header.fingerprint)

    @property
    def shape(self) -> TokenShape:
        return replace(self.source.shape, layers=tuple(self.spec.encoder.settings.layers))

    def create_or_open(self, folder: Storage) -> Cache:
        """The derived cache in `folder`; planned, fitted and created if it is not there yet."""
        manifest = self.source.manifest
        names = cache_names(self.spec.name, self.digits, data_name_of(self.source), manifest)
        while True:
            storage = find_place(folder, names, manifest)
            if storage.exists(HEADER_FILE):
                return Cache(storage)
            with Leases(storage) as leases, leases.alone("plan"):
                if not storage.exists(HEADER_FILE):
                    return self._create(storage)
            # Somebody was quicker, with this manifest or with another one.

    def _create(self, storage: Storage) -> Cache:
        header = self.source.header
        shape, codec = self.shape, make_codec(self.spec.codec)
        learnt = None
        if isinstance(codec, FittedCodec):
            same = (
                read_learnt(self.source.storage, header.codec_sha256) if self.same_codec else None
            )
            learnt = same or fit_codecs(codec, self._sample(codec))
        changes = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.digits,
            "spec": self.spec.canonical(),
            "tokens": header.tokens.model_copy(update={"layers": shape.layers}),
            "plan": fill_stores(self._expected(), frames_per_store(self.spec, shape)),
            "derived_from": header.fingerprint,
            "codec_sha256": None,
        }
        return create_cache(
            storage, header.model_copy(update=changes), self.source.manifest, learnt
        )

    def fill(
        self,
        cache: Cache,
        leases: Leases,
        stores: Collection[int],
        on_frames: OnFrames | None = None,
    ) -> None:
        """Writes those of some stores that are missing, with all others who are at it."""
        missing = [store for store in cache.missing_stores() if store in stores]
        total, done = (
            sum(len(self.rows(video)) for store in missing for video in cache.plan[store]),
            0,
        )
        while missing:
            units = [[CacheStore(cache, leases, store)] for store in missing]
            for ((_, _, store),) in claim_units(units, threading.Event()):
                for frames in self.write(cache, store):
                    done += frames
                    if on_frames:
                        on_frames(done, total)
                leases.release(lease_of(store))
            missing = [store for store in cache.missing_stores() if store in stores]

    def write(self, cache: Cache, store: int) -> Iterator[int]:
        """Writes one store and vouches for it; yields the frames of every step."""
        begin, builder = time.perf_counter(), StoreBuilder(cache, store)
        try:
            for video_id in cache.plan[store]:
                yield from self._write_video(builder, video_id)
            devices = {
                self.source.receipts[number].device for number in self._stores(cache.plan[store])
            }
            builder.commit({"derive": time.perf_counter() - begin}, ", ".join(sorted(devices)))
        finally:
            builder.close()

    def _write_video(self, builder: StoreBuilder, video_id: str) -> Iterator[int]:
        video, rows, cache = self.videos[video_id], self.rows(video_id), builder.cache
        builder.start_video(video)
        for start in range(0, len(rows), self.spec.store.batch_frames):
            some = rows[start : start + self.spec.store.batch_frames]
            source_store = self.source.locations[video_id].store
            arrays: dict[str, np.ndarray] = {}
            for name in cache.token_arrays:
                stored = self._read(source_store, name, some)
                if not self.same_codec:
                    stored = cache.codecs[name].encode(self._decode(name, stored))
                arrays |= {stored_name(name, key): array for key, array in stored.items()}
            builder.append(arrays)
            affines = {
                view: self._small_array(source_store, in_view(view, AFFINE))[some]
                for view in cache.views
            }
            builder.add_frames(video, self._small_array(source_store, TIMES)[some], affines)
            yield len(some)
        if failure := self.source.broken_off.get(video_id):
            builder.fail(video, failure.reason)
        if content := self._content.get(video_id):
            builder.content[video_id] = content

    # Which frames

    def rows(self, video_id: str) -> np.ndarray:
        """Rows of the video's kept frames in its store of the source."""
        if video_id not in self._rows:
            location = self.source.locations.get(video_id)
            rows = np.arange(location.start, location.stop) if location else np.zeros(0, np.int64)
            frames, held = self.spec.frames, self.source.cache_spec.frames
            if location and frames.kept != held.kept:
                content = self.source.content.get(video_id)
                if frames.rate is None:
                    kept, content = _every(len(rows), content, held.every, frames.every)
                else:
                    time_s = self._small_array(location.store, TIMES)[rows]
                    kept, content = _sampled(time_s, content, held.rate, frames.rate)
                rows = rows[kept]
                self._content |= {video_id: content} if content else {}
            self._rows[video_id] = rows
        return self._rows[video_id]

    def _expected(self) -> dict[str, int]:
        """video_id -> expected frames: as the source's headers promised, scaled to what is kept of
        each video."""
        planned = {
            video_id: count
            for videos in self.source.plan.values()
            for video_id, count in videos.items()
        }
        if self.spec.frames.kept == self.source.cache_spec.frames.kept:
            return planned
        expected = {}
        for video_id, count in planned.items():
            location, kept = self.source.locations.get(video_id), len(self.rows(video_id))
            whole = video_id not in self.source.failures
            expected[video_id] = (
                kept
                if whole or not location
                else max(1, -(-count * kept // (location.stop - location.start)))
            )
        return {video_id: max(1, count) for video_id, count in expected.items()}

    def _sample(self, codec: FittedCodec) -> dict[str, torch.Tensor]:
        """Token array -> tokens (F, N, D) of evenly spread kept frames, to fit a codec to."""
        candidates = [(video_id, row) for video_id in self.videos for row in self.rows(video_id)]
        chosen: dict[str, list[int]] = {}
        for index in middles_of_parts(len(candidates), codec.sample_frames):
            video_id, row = candidates[index]
            chosen.setdefault(video_id, []).append(row)
        if not chosen:
            raise BadInput(
                f"cache {self.source} holds no frame to fit a codec to", "see: stillframe status"
            )
        return {
            name: torch.cat(
                [
                    self._decode(
                        name,
                        self._read(self.source.locations[video_id].store, name, np.array(rows)),
                    )
                    for video_id, rows in chosen.items()
                ]
            )
            for name in tokens_by_array(
                self.shape.layers, self.shape.special_tokens, self.shape.patch_tokens
            )
        }

    # Reading the source

    def _stores(self, videos: Iterable[str]) -> set[int]:
        """Stores of the source that hold, or would have held, these videos."""
        return {
            store
            for store, planned in self.source.plan.items()
            if not planned.keys().isdisjoint(videos)
        }

    def _read(self, store: int, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
        self._require_valid(store)
        return self.source.stored_rows(store, name, rows)

    def _decode(self, name: str, stored: dict[str, np.ndarray]) -> torch.Tensor:
        return self.source.codecs[name].decode(
            {key: torch.from_numpy(array) for key, array in stored.items()}
        )

    def _small_array(self, store: int, name: str) -> np.ndarray:
        """Times or affines of all frames of a store of the source."""
        self._require_valid(store)
        return self.source.small_array(store, name)

    def _require_valid(self, store: int) -> None:
        """Compares every file of a store of the source with its checksum, before its first use:
        damage must not be vouched for anew."""
        if store in self._valid_stores:
            return
        if problems := check_store(self.source, store):
            file, problem = next(iter(problems.items()))
            raise BadInput(
                f"cache {self.source} is damaged: {store_name(store)}/{file}: {problem}",
                f"see it all: stillframe verify {self.source}",
            )
        self._valid_stores.add(store)


def _every(
    count: int, content: Content | None, held: int, every: int
) -> tuple[np.ndarray, Content | None]:
    """(F,) bool: which frames of a video, of which `count` are cached and were every `held`-th, are
    every `every`-th; and its content, with what is left out of these. Frames that were left out
    count."""
    stretches = content.damaged if content else ()
    out = [stretch.frames for stretch in stretches if stretch.left_out and stretch.frames]
    numbers = held * np.arange(count + sum(_multiples(held, *frames) for frames in out))
    for start, stop in out:
        numbers = numbers[(numbers < start) | (numbers >= stop)]
    if content is not None:
        damaged = tuple(
            stretch.model_copy(update={"left_out": _multiples(every, *stretch.frames)})
            if stretch.left_out and stretch.frames
            else stretch
            for stretch in content.damaged
        )
        content = content.model_copy(update={"damaged": damaged})
    return numbers[:count] % every == 0, content


def _multiples(every: int, start: int, stop: int) -> int:
    """The number of multiples of `every` in [start, stop)."""
    return -(-stop // every) - -(-start // every)


def _sampled(
    time_s: np.ndarray, content: Content | None, held: float | None, rate: float
) -> tuple[np.ndarray, Content | None]:
    """(F,) bool: which frames of a video, cached at `held` frames per second, are shown at the
    instants of `rate`; and its content, with what is left out at this rate. While a stretch is on
    screen that the source leaves out, no frame before it is."""
    step_s = 1 / held if held else float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0
    missing_s = [stretch.time_s[0] for stretch in content.left_out] if content else []
    shown_s = np.concatenate([time_s, missing_s])
    order = np.argsort(shown_s, kind="stable")
    instants = np.zeros(len(shown_s), np.int64)
    ends_s = np.append(shown_s[order], shown_s.max() + step_s)
    first_s = content.first_s if content else None
    instants[order] = np.diff(
        first_instants(ends_s, float(ends_s[0]) if first_s is None else first_s, rate)
    )
    if content is not None:
        counts = iter(instants[len(time_s) :].tolist())
        damaged = tuple(
            stretch.model_copy(update={"left_out": min(stretch.left_out, next(counts))})
            if stretch.left_out
            else stretch
            for stretch in content.damaged
        )
        content = content.model_copy(update={"damaged": damaged})
    return instants[: len(time_s)] > 0, content
