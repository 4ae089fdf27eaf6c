"""Videos in, stores out: decode -> resize and encode -> write, three steps that overlap through
bounded channels.

Processes decode the next videos, the calling thread resizes and encodes, one more thread writes.
On a CUDA device frames go up meanwhile, on streams of the threads that watch the decoders; the
codec runs, and its arrays come down, on that of the writing thread, which alone waits for them.
One decode serves several caches: each is a `CacheTarget` with its own encoder, rate and stores. A
batch of frames runs across the borders of videos but never of stores, so the bytes of a store
depend on nothing but its plan. A video that cannot be decoded is listed with its reason, and what
was decoded of it before is kept. What is the machine's fault (files that cannot be read) ends the
run instead: it says nothing about the video.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import in_view, layer_name, stored_name, view_of
from pipeline.cache.leases import Leases, lease_of
from pipeline.config.cache_spec import BASE
from pipeline.device import side_stream
from pipeline.errors import BadVideo, StillframeError
from pipeline.extract.channel import Channel, Stopped, StopSignal
from pipeline.extract.execution import Execution
from pipeline.extract.progress import Progress
from pipeline.extract.reuse import ReusableCache
from pipeline.extract.store_builder import StoreBuilder
from pipeline.models.encoders.contract import EncoderPlugin
from pipeline.records import Rate, Tokens, Video
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.reader import FrameReader, ReadBlock

log = logging.getLogger(__name__)


@dataclass
class CacheTarget:
    """One cache that is being filled."""

    cache: Cache
    encoder: EncoderPlugin
    leases: Leases
    reusable_caches: Sequence[ReusableCache]
    whole: set[int] = field(default_factory=set)
    """Stores that no other cache can give anything for: tried, and found to be of other frames or
    damaged."""

    def make_builder(self, store: int) -> StoreBuilder:
        reusable = (
            reusable
            for reusable in self.reusable_caches
            if store not in self.whole and reusable.has(store, self.cache.plan[store])
        )
        return StoreBuilder(self.cache, store, next(reusable, None))

    @property
    def rate(self) -> Rate:
        """Which frames of a video are kept."""
        return self.cache.cache_spec.frames.kept


class TargetStore(NamedTuple):
    """A store of a target: what a worker claims, and fills."""

    target: CacheTarget
    store: int

    @property
    def cache(self) -> Cache:
        return self.target.cache

    @property
    def leases(self) -> Leases:
        return self.target.leases


WorkUnit = list[TargetStore]
"""Stores that are filled from one pass over their videos."""


class Extraction:
    """The three steps and the channels between them."""

    def __init__(
        self,
        videos: Sequence[Video],
        root: Path,
        how: Execution,
        progress: Progress,
    ) -> None:
        self.videos = {video.video_id: (index, video) for index, video in enumerate(videos)}
        self.root, self.how, self.device = root, how, how.here
        self.progress, self.on_progress = progress, how.on_progress or (lambda _: None)
        self.down = side_stream(self.device)
        self.stop = StopSignal()
        self.open: dict[tuple[str, int], OpenStore] = {}

    def run(self, units: Iterable[WorkUnit]) -> None:
        """Fills the stores of `units`, which may be handed out as others give them up. The first
        error of any step ends all."""
        to_write = Channel[TokenBatch | StoreDone](2, self.stop)
        jobs = Channel[VideoJob](self.how.decoders, self.stop)
        with ExitStack() as stack:
            writer, feeder = (
                stack.enter_context(ThreadPoolExecutor(1, name)) for name in ("write", "feed")
            )
            threads = stack.enter_context(ThreadPoolExecutor(self.how.decoders, "decode"))
            readers: queue.SimpleQueue[FrameReader] = queue.SimpleQueue()
            for _ in range(self.how.decoders):
                reader = FrameReader(self.root, self.device, self.how.limits)
                readers.put(stack.enter_context(reader))
            # Comes first on the way out; then the decoders end, then the threads.
            stack.callback(self.stop.set)
            writing = writer.submit(self._write, to_write)
            feeder.submit(self._feed, units, jobs, threads, readers)
            with suppress(Stopped):  # by the writer, whose error is raised next
                for item in self._encode(jobs):
                    to_write.put(item)
                    self.on_progress(self.progress)
                to_write.close()
            writing.result()
            self.on_progress(self.progress)

    # Decode

    def _feed(
        self,
        units: Iterable[WorkUnit],
        jobs: Channel[VideoJob],
        threads: ThreadPoolExecutor,
        readers: queue.SimpleQueue[FrameReader],
    ) -> None:
        """Has the videos of all units decoded, and puts them into `jobs`, `decoders` of them
        ahead."""
        try:
            for unit in units:
                for job in self._video_jobs(unit):
                    # First, since it may fail: whoever takes a job waits until it was decoded.
                    threads.submit(self._decode_one, job, readers)
                    jobs.put(job)
        except BaseException as error:  # whatever it is, the calling thread raises it
            jobs.close(error)
        else:
            jobs.close()

    def _video_jobs(self, unit: WorkUnit) -> Iterator[VideoJob]:
        """Every video of a unit once for each of the decoders of its stores, in the manifest's
        order, with the stores that want it."""
        stores: dict[tuple[str, str], WorkUnit] = {}
        for target in unit:
            decoder = target.cache.cache_spec.frames.decoder
            for video_id in target.cache.plan[target.store]:
                stores.setdefault((video_id, decoder), []).append(target)
        for key in sorted(stores, key=lambda key: self.videos[key[0]][0]):
            video, channel = self.videos[key[0]][1], Channel[ReadBlock](1, self.stop)
            yield VideoJob(video, stores[key], key[1], channel)

    def _decode_one(self, job: VideoJob, readers: queue.SimpleQueue[FrameReader]) -> None:
        reader = readers.get()
        rates = list(dict.fromkeys(target.rate for target, _ in job.stores))
        video, counted = job.video, FrameCounts()
        lost: Exception | None = None
        try:
            blocks = reader.blocks(video, rates, counted, job.decoder)
            while True:
                with self.progress.timed("decode"):
                    block = next(blocks, None)
                if block is None:
                    break
                job.blocks.put(block)
        except BadVideo as error:
            job.result.failed = error.with_hint
            if not self._root_is_there():
                lost = self._lost(video, "the folder of the videos is gone")
        except OSError as error:  # the machine's fault: nothing is held against the video
            lost = self._lost(video, str(error) or type(error).__name__)
        except Stopped:  # kept by nobody, so that the decoder ends when this thread lets go of it
            pass
        except Exception as error:  # whatever it is, the calling thread raises it
            lost = error
        job.result.counted = counted
        readers.put(reader)
        job.blocks.close(lost)

    def _root_is_there(self) -> bool:
        with suppress(OSError):  # as where the disk of the videos was taken away
            return self.root.is_dir() and any(self.root.iterdir())
        return False

    def _lost(self, video: Video, reason: str) -> StillframeError:
        return StillframeError(
            f"cannot read {self.root / video.source}: {reason}",
            "finished stores are kept: mend it and run extract again",
        )

    # Encode

    def _encode(self, jobs: Channel[VideoJob]) -> Iterator[TokenBatch | StoreDone]:
        """Whole batches of every store's frames as tokens, and then that it is done."""
        for job in jobs:
            stores = [self._open_store(target, store) for target, store in job.stores]
            for open_store in stores:
                open_store.builder.start_video(job.video)
            for block in job.blocks:
                yield from self._resize_for_all(job.video, block, stores)
            for open_store in stores:
                self.progress.learn(*open_store.finish(job.video, job.result))
                if open_store.is_full:
                    if (rest := open_store.batch(whole=False)) is not None:
                        yield self._tokens(open_store, rest)
                    yield StoreDone(open_store.target, open_store.builder)
                    del self.open[open_store.key]
            self.progress.videos += 1

    def _open_store(self, target: CacheTarget, store: int) -> OpenStore:
        key = str(target.cache), store
        if key not in self.open:
            self.open[key] = OpenStore(target, target.make_builder(store))
        return self.open[key]

    def _resize_for_all(
        self,
        video: Video,
        block: ReadBlock,
        stores: Sequence[OpenStore],
    ) -> Iterator[TokenBatch]:
        """A block for all stores that want frames of it; what is equal for several of them is
        resized once."""
        for open_store in stores:
            settings = open_store.target.cache.cache_spec.frames
            mask = block.wanted(settings)
            left_out = block.kept[open_store.target.rate] & ~mask
            if left_out.any():
                open_store.builder.leave_out(video, block.time_s[left_out])
            if not mask.any():
                continue
            with self.progress.timed("encode"):
                seen = {
                    name: block.transforms.squares(settings, mask, view)
                    for name, view in open_store.target.cache.views.items()
                }
                open_store.pending.append(
                    torch.stack([seen[view][0] for view in open_store.views], dim=1)
                )
                affines = {view: affine for view, (_, affine) in seen.items()}
                open_store.builder.add_frames(video, block.time_s[mask], affines)
            while (batch := open_store.batch()) is not None:
                yield self._tokens(open_store, batch)

    def _tokens(self, open_store: OpenStore, pixels_NVCHW: torch.Tensor) -> TokenBatch:
        with self.progress.timed("encode"), torch.inference_mode():
            views = zip(open_store.views, pixels_NVCHW.unbind(1), strict=True)
            tokens = {
                view: open_store.target.encoder(pixels_NCHW.contiguous())
                for view, pixels_NCHW in views
            }
            done = torch.cuda.Event() if self.device.type == "cuda" else None
            if done:
                # The device of this worker, which need not be the current one.
                done.record(torch.cuda.current_stream(self.device))
        self.progress.frames += len(pixels_NVCHW)
        return TokenBatch(open_store.target, open_store.builder, tokens, done)

    # Write

    def _write(self, to_write: Channel[TokenBatch | StoreDone]) -> None:
        """Stores tokens as they come; an error here stops the other steps."""
        in_flight: dict[StoreBuilder, int] = {}  # builder -> bytes
        seconds = dict(self.progress.seconds)
        try:
            for item in to_write:
                if item.builder.given_up:
                    continue
                in_flight.setdefault(item.builder, 0)
                if isinstance(item, TokenBatch):
                    in_flight[item.builder] += self._append(item)
                else:
                    now = dict(self.progress.seconds)
                    self._commit(item, {step: now[step] - seconds[step] for step in now})
                    seconds = now
                    del in_flight[item.builder]
                self.progress.in_flight_bytes = sum(
                    count for builder, count in in_flight.items() if not builder.given_up
                )
        except BaseException:
            self.stop.set()
            raise
        finally:
            for builder in in_flight:
                builder.close()

    def _append(self, item: TokenBatch) -> int:
        """Returns how many bytes that are, before lossless compression."""
        if item.done:
            with self.progress.timed("encode"):  # waiting for the GPU is encoding
                item.done.synchronize()
        with self.progress.timed("write"), _unless_taken_over(item):
            # Behind no batch that the device was given since. This thread waits until the arrays
            # are here, and lets go of the tokens later: nobody gets their memory before.
            with torch.cuda.stream(self.down) if self.down else nullcontext():
                arrays = _arrays(item.tokens, item.builder)
            item.builder.append(arrays)
        return sum(array.nbytes for array in arrays.values())

    def _commit(self, item: StoreDone, seconds: Mapping[str, float]) -> None:
        with self.progress.timed("write"), _unless_taken_over(item):
            receipt = item.builder.commit(seconds, str(self.device))
            if receipt:
                self.progress.stores += 1
                self.progress.store_bytes += receipt.store_bytes
                log.debug("finished store %d: %d frames", item.builder.store, receipt.frames)
            else:  # the store is still missing: it comes again
                item.target.whole.add(item.builder.store)
                self.progress.frames_planned += item.builder.frames
        item.target.leases.release(lease_of(item.builder.store))


@dataclass
class VideoResult:
    """The end of the decoding of a video."""

    failed: str | None = None
    """Why it ended early; None: it was decoded as a whole."""
    counted: FrameCounts | None = None
    """Counts of the frames that were decoded and of those in the header, and which are damaged."""


@dataclass
class VideoJob:
    """A video on its way to the stores that want it."""

    video: Video
    stores: WorkUnit
    decoder: str
    """That of all of these stores."""
    blocks: Channel[ReadBlock]
    """Decoded frames, in order. Closed with an error where the machine is at fault and not the
    video. One block fits: the decoder is ahead by itself."""
    result: VideoResult = field(default_factory=VideoResult)
    """Filled before `blocks` is closed."""


class OpenStore:
    """A store of a target, and its frames that do not make a batch yet."""

    def __init__(self, target: CacheTarget, builder: StoreBuilder) -> None:
        self.target, self.builder = target, builder
        self.key = (str(target.cache), builder.store)
        self.pending: list[torch.Tensor] = []
        self.left = len(target.cache.plan[builder.store])
        self.views = [
            view
            for view in target.cache.views
            if any(view_of(name) == view for name in builder.tokens)
        ]
        """Views of which at least one token array must be encoded."""

    @property
    def is_full(self) -> bool:
        return self.left == 0

    def batch(self, whole: bool = True) -> torch.Tensor | None:
        """The next whole batch (N, V, 3, size, size), or with `whole` False whatever is left; None
        if there is none."""
        size, held = self.target.cache.cache_spec.store.batch_frames, sum(map(len, self.pending))
        if held == 0 or (whole and held < size):
            return None
        ready = torch.cat(self.pending)
        self.pending = [ready[size:]]
        return ready[:size]

    def finish(self, video: Video, result: VideoResult) -> tuple[int, int]:
        """Notes how a video ended; returns how many frames of it were planned and how many there
        are."""
        self.left -= 1
        if result.counted:
            self.builder.count(video, result.counted)
        if result.failed:
            self.builder.fail(video, result.failed)
        start, stop = self.builder.rows[video.video_id]
        return self.target.cache.plan[self.builder.store][video.video_id], stop - start


@dataclass
class TokenBatch:
    """Tokens of consecutive frames of a store, by view; `done` fires when the GPU has computed
    them."""

    target: CacheTarget
    builder: StoreBuilder
    tokens: dict[str, Tokens]
    done: torch.cuda.Event | None


@dataclass
class StoreDone:
    """A store has all its rows."""

    target: CacheTarget
    builder: StoreBuilder


@contextmanager
def _unless_taken_over(item: TokenBatch | StoreDone) -> Iterator[None]:
    """Gives a store up, for another worker or for a later pass, where the store is ours no longer
    or was cleared away.

    A worker that seemed dead finds both: whoever takes a store over clears away what is written of
    it, and may do that late.
    """
    leases, name = item.target.leases, lease_of(item.builder.store)
    try:
        yield
    except (OSError, StillframeError) as error:
        if leases.holds(name) and not isinstance(error, FileNotFoundError):
            raise
        item.builder.close()
        leases.release(name)


def named_tokens(tokens: Tokens, view: str = BASE) -> dict[str, torch.Tensor]:
    """Token array of a view -> (N, tokens, D)."""
    named = {in_view(view, "special"): tokens.special_NSD} if tokens.special_NSD.shape[1] else {}
    return named | {
        in_view(view, layer_name(layer)): patches for layer, patches in tokens.patches_NPD.items()
    }


def _arrays(tokens: Mapping[str, Tokens], builder: StoreBuilder) -> dict[str, np.ndarray]:
    """A batch through the codec, under the names it is stored by."""
    cache = builder.cache
    named = {
        name: part
        for view, seen in tokens.items()
        for name, part in named_tokens(seen, view).items()
    }
    arrays: dict[str, np.ndarray] = {}
    for name in builder.tokens:
        try:
            arrays |= {
                stored_name(name, key): array
                for key, array in cache.codecs[name].encode(named[name]).items()
            }
        except StillframeError as error:
            videos = list(cache.plan[builder.store])
            where = f"array '{name}' of store {builder.store} (videos {videos[0]} to {videos[-1]})"
            raise StillframeError(f"{where}: {error.message}", error.hint) from error
    return arrays
