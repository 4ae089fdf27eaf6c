"""A store in the making: rows and facts are gathered, then it is committed to its cache as a whole,
with its receipt."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.cache.commit import commit_store
from pipeline.cache.layout import (
    AFFINE,
    FINGERPRINT,
    TIMES,
    VIDEO_IDS,
    VIDEO_STARTS,
    VIDEO_STOPS,
    frames_per_shard,
    in_view,
    store_name,
)
from pipeline.cache.receipts import Content, DamagedStretch, Receipt, VideoFailure
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store_writer import StoreWriter
from pipeline.errors import StillframeError
from pipeline.extract.reuse import ReusableCache
from pipeline.records import Video
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.sampling import first_instants

TOOLS = ("stillframe", "torch", "transformers", "zarr", "numpy", "av")


class StoreBuilder:
    """One store of a cache, not there yet for any reader.

    Facts of its frames and videos may be noted by one thread while another appends the tokens.
    """

    def __init__(self, cache: Cache, store: int, reusable: ReusableCache | None = None) -> None:
        """`reusable`: a cache whose token arrays are linked into this store, and not appended."""
        self.cache, self.store, self.reusable = cache, store, reusable
        self.tokens = [
            name for name in cache.token_arrays if reusable is None or name not in reusable.names
        ]
        """Token arrays whose rows must be appended."""
        self.frames = 0
        self.rows: dict[str, tuple[int, int]] = {}
        self.failures: dict[str, VideoFailure] = {}
        self.content: dict[str, Content] = {}
        self._time_s: list[np.ndarray] = []
        self._left_out_s: dict[str, list[float]] = {}
        self._affine: dict[str, list[np.ndarray]] = {view: [] for view in cache.views}
        self.given_up = False
        self._written: tuple[Path, StoreWriter] | None = None

    # Facts

    def start_video(self, video: Video) -> None:
        """The rows of a video begin here."""
        self.rows[video.video_id] = (self.frames, self.frames)

    def add_frames(
        self, video: Video, time_s: np.ndarray, affines: Mapping[str, np.ndarray]
    ) -> None:
        """The next frames (f,) of a video, and for every view their affine (2, 3) or (f, 2, 3)."""
        self._time_s.append(time_s)
        for view, affine in affines.items():
            self._affine[view].append(np.broadcast_to(affine, (len(time_s), 2, 3)))
        self.frames += len(time_s)
        self.rows[video.video_id] = (self.rows[video.video_id][0], self.frames)

    def leave_out(self, video: Video, time_s: np.ndarray) -> None:
        """The frames (f,) of a video that would come next, had they not been damaged."""
        self._left_out_s.setdefault(video.video_id, []).extend(time_s.tolist())

    def count(self, video: Video, counted: FrameCounts) -> None:
        """How many frames the video has, and which of them are damaged or missing."""
        settings = self.cache.cache_spec.frames
        first_s = counted.first_s or 0.0
        times_s = np.array(self._left_out_s.pop(video.video_id, []))
        stretches = [
            DamagedStretch(
                frames=(found.start, found.stop),
                time_s=(found.start_s, found.stop_s),
                left_out=int(np.sum((times_s >= found.start_s) & (times_s < found.stop_s))),
                reason=found.reason,
            )
            for found in counted.damaged
        ]
        for lost in counted.lost:
            span_s = np.array([lost.time_s, lost.end_s])
            is_missed = settings.rate is None or np.ptp(
                first_instants(span_s, first_s, settings.rate)
            )
            stretches.append(
                DamagedStretch(
                    frames=None,
                    time_s=(lost.time_s, lost.end_s),
                    left_out=int(bool(is_missed) and settings.damaged == "list"),
                    reason=lost.reason,
                )
            )
        self.content[video.video_id] = Content(
            decoded=counted.decoded,
            header=counted.header,
            first_s=counted.first_s,
            damaged=tuple(sorted(stretches, key=lambda stretch: stretch.time_s)),
        )

    def fail(self, video: Video, reason: str) -> None:
        """Why the video is not wholly in the store."""
        start, stop = self.rows[video.video_id]
        until_s = float(self._time_s[-1][-1]) if stop > start else 0.0
        self.failures[video.video_id] = VideoFailure(
            reason=reason, frames_stored=stop - start, stored_until_s=until_s
        )

    # Writing

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """(f, ...) rows of every stored array of `tokens`."""
        self._writer()[1].append(arrays)

    def commit(self, seconds: Mapping[str, float], device: str) -> Receipt | None:
        """Makes the store exist; `seconds` of work it took, and where its tokens were made.

        None, and it does not exist, if what the other cache has is of other frames or damaged.
        Raises FileNotFoundError where what was written of it has been cleared away.
        """
        staged, writer = self._writer()
        rows = np.array(list(self.rows.values()), np.int64).reshape(-1, 2)
        small = {
            TIMES: np.concatenate([np.zeros(0), *self._time_s]),
            VIDEO_STARTS: rows[:, 0],
            VIDEO_STOPS: rows[:, 1],
        }
        for view, affine in self._affine.items():
            small[in_view(view, AFFINE)] = np.concatenate([np.zeros((0, 2, 3)), *affine])
        if self.reusable:
            source_receipt = self._take_over(self.reusable, small)
            if source_receipt is None:
                self.close()
                return None
            device = ", ".join(sorted({device, *source_receipt.device.split(", ")}))
        receipt = Receipt(
            store=self.store,
            fingerprint=self.cache.fingerprint,
            frames=self.frames,
            videos=self.rows,
            failures=self.failures,
            content=self.content,
            seconds={step: round(spent, 3) for step, spent in seconds.items()},
            device=device,
            versions={tool: version(tool) for tool in TOOLS},
            finished_s=round(time.time(), 3),
            files=writer.finish(
                small,
                {VIDEO_IDS: list(self.rows), FINGERPRINT: self.cache.fingerprint},
                lists_checksums=self.cache.header.has_checksums,
            ),
            taken_from=dict.fromkeys(self.reusable.names, self.reusable.cache.fingerprint)
            if self.reusable
            else {},
        )
        # What has been written of a store is cleared away by a worker that takes it over; the rest
        # of it is not the store.
        lost = receipt.files.keys() - LocalFolder(staged).sizes("").keys()
        if lost:
            first = f"{staged}/{min(lost)}"
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), first)
        commit_store(self.cache, staged, receipt)
        return receipt

    def close(self) -> None:
        """Gives an unfinished store up; what is written of it stays aside until somebody takes the
        store over."""
        self.given_up = True
        if self._written:
            self._written[1].close()

    def _take_over(
        self, reusable: ReusableCache, small: Mapping[str, np.ndarray]
    ) -> Receipt | None:
        """The receipt of what the other cache gave; None if it has nothing to give."""
        staged, writer = self._writer()
        with suppress(
            OSError, StillframeError
        ):  # whatever is wrong with its store, this one can be made whole
            receipt = reusable.cache.receipt(self.store)
            linked_files = reusable.link_into(receipt, self.rows, self.content, small, staged)
            if linked_files is not None:
                for name, files in linked_files.items():
                    writer.adopt_shards(name, self.frames, files)
                return receipt
        return None

    def _writer(self) -> tuple[Path, StoreWriter]:
        if self._written is None:
            cache = self.cache
            staged = cache.storage.stage(store_name(self.store))
            settings, shard_frames = (
                cache.cache_spec.store,
                frames_per_shard(cache.cache_spec, cache.shape),
            )
            writer = StoreWriter(
                staged, cache.arrays, settings.chunk_frames, shard_frames, settings.compression
            )
            self._written = staged, writer
        return self._written
