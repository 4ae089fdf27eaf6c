"""Videos in, stores out: decode -> resize and encode -> write, three steps that overlap through bounded queues.

Threads decode the next videos, the calling thread resizes and encodes, one more thread writes. A batch of frames runs across
the borders of videos but never of stores, so the bytes of a store depend on nothing but its plan. A video that cannot be
decoded is listed with its reason, and what was decoded of it before is kept. What is the machine's fault (files that cannot
be read, memory) ends the run instead: it says nothing about the video.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pipeline import frames
from pipeline.cache import Cache
from pipeline.encoders import EncoderPlugin
from pipeline.errors import BadVideo, StillframeError
from pipeline.ledger import Failure, Receipt
from pipeline.manifest import Manifest
from pipeline.records import Frames, Tokens, Video
from pipeline.spec import CacheSpec
from pipeline.square import to_square
from pipeline.store import StoreWriter, layer_name, remove, stored_name

BLOCK_FRAMES = 8
"""Frames that travel together from a decoder: small, so that a 4K video stays within memory."""
BLOCKS_AHEAD = 4
"""Blocks that one decoder may be ahead."""
TOOLS = ("stillframe", "torch", "transformers", "zarr", "numpy", "av")


@dataclass
class Progress:
    """What an extraction has done so far; handed to `on_progress` after every batch."""

    frames_planned: int
    """From the headers of the files that are left to do: an estimate."""
    frames: int = 0
    store_bytes: int = 0
    stores: int = 0
    videos: int = 0
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "encode", "write"), 0.0))
    """Work done by each step, waiting left out."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.seconds[step] += time.perf_counter() - begin

    @property
    def frames_per_s(self) -> float:
        return self.frames / max(1e-9, time.perf_counter() - self.started)

    @property
    def eta_s(self) -> float:
        return max(0, self.frames_planned - self.frames) / max(1e-9, self.frames_per_s)

    def slowest(self, decoders: int) -> str:
        """The step that sets the pace: decoding is shared by `decoders` threads."""
        busy = self.seconds | {"decode": self.seconds["decode"] / decoders}
        return max(busy, key=lambda step: busy[step])


OnProgress = Callable[[Progress], None]


class Pipeline:
    """The three steps and the queues between them."""

    def __init__(
        self,
        cache: Cache,
        cache_spec: CacheSpec,
        encoder: EncoderPlugin,
        device: torch.device,
        manifest: Manifest,
        decoders: int,
        progress: Progress,
        on_progress: OnProgress | None,
    ) -> None:
        self.cache, self.spec, self.encoder, self.device = cache, cache_spec, encoder, device
        self.manifest, self.root = manifest, manifest.root
        self.decoders, self.progress, self.on_progress = decoders, progress, on_progress or (lambda _: None)
        self.stop = threading.Event()
        self.writer: StoreWriter | None = None

    def run(self, stores: Sequence[int]) -> None:
        """Fills `stores` of the plan. The first error of any of the steps ends all."""
        known = {video.video_id: video for video in self.manifest.videos}
        plan = {store: [known[video_id] for video_id in self.cache.plan[store]] for store in stores}
        for aside in (self.cache.path / "stores").glob("*.partial"):
            remove(aside)
        to_write: queue.Queue[Any] = queue.Queue(maxsize=2)
        with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(self.decoders, "decode") as pool:
            writing = writer.submit(self._write, to_write)
            try:
                decoded = self._decode([video for videos in plan.values() for video in videos], pool)
                for store, videos in plan.items():
                    for item in self._encode(store, videos, decoded):
                        self._put(to_write, item)
                        if writing.done():
                            writing.result()
                        self.on_progress(self.progress)
                self._put(to_write, None)
                writing.result()
                self.on_progress(self.progress)
            finally:
                self.stop.set()

    # Decode

    def _decode(self, videos: list[Video], pool: ThreadPoolExecutor) -> Iterator[Frames | Failed | None]:
        """Blocks of every video in order, each video ended by None or by why it failed; `decoders` videos ahead."""
        channels: dict[int, queue.Queue[Any]] = {}

        def start(number: int) -> None:
            if number < len(videos):
                channels[number] = queue.Queue(maxsize=BLOCKS_AHEAD)
                pool.submit(self._decode_one, videos[number], channels[number])

        for number in range(self.decoders):
            start(number)
        for number in range(len(videos)):
            while True:
                item = self._get(channels[number])
                if isinstance(item, StillframeError):
                    raise item
                yield item
                if not isinstance(item, Frames):
                    break
            del channels[number]
            start(number + self.decoders)

    def _decode_one(self, video: Video, channel: queue.Queue[Any]) -> None:
        end: Failed | StillframeError | None = None
        try:
            blocks = frames.decode(self.root / video.source, self.spec.frames.rate, video.image_fps, BLOCK_FRAMES)
            while not self.stop.is_set():
                with self.progress.timed("decode"):
                    block = next(blocks, None)
                if block is None:
                    break
                self._put(channel, block)
        except BadVideo as error:
            end = Failed(error.message) if self._root_is_there() else self._lost(video, "the folder of the videos is gone")
        except (OSError, MemoryError) as error:  # the machine's fault and not the video's: nothing is held against it
            end = self._lost(video, str(error) or type(error).__name__)
        except Exception as error:  # a decoder may raise anything on a broken file; the video is listed, the run goes on
            end = Failed(f"decoder raised {type(error).__name__}: {error}")
        self._put(channel, end)

    def _root_is_there(self) -> bool:
        return self.root.is_dir() and any(self.root.iterdir())

    def _lost(self, video: Video, reason: str) -> StillframeError:
        return StillframeError(
            f"cannot read {self.root / video.source}: {reason}", "finished stores are kept: mend it and run extract again"
        )

    # Encode

    def _encode(
        self, store: int, videos: list[Video], decoded: Iterator[Frames | Failed | None]
    ) -> Iterator[Begin | Rows | End]:
        """Whole batches of a store's frames as tokens, between `Begin` and `End`."""
        yield Begin(store)
        batch_frames = self.spec.store.batch_frames
        pending: list[torch.Tensor] = []
        held = 0
        end = End(store)
        for video in videos:
            end.rows[video.video_id] = (end.frames, end.frames)
            while isinstance(block := next(decoded), Frames):
                with self.progress.timed("encode"):
                    pending.append(self._square(block, end))
                held += len(block)
                end.rows[video.video_id] = (end.rows[video.video_id][0], end.frames)
                while held >= batch_frames:
                    ready = torch.cat(pending)
                    pending, held = [ready[batch_frames:]], held - batch_frames
                    yield self._tokens(store, ready[:batch_frames])
            if block is not None:
                end.fail(video, block.reason)
            self.progress.videos += 1
        if held:
            yield self._tokens(store, torch.cat(pending))
        yield end

    def _square(self, block: Frames, end: End) -> torch.Tensor:
        """A block as model squares on the device; notes its times and affine."""
        settings = self.spec.frames
        pixels = torch.from_numpy(block.pixels_FHWC).to(self.device)
        squares_FCHW, affine = to_square(pixels, settings.size_px, settings.fit, settings.resample, block.pixel_aspect)
        end.time_s.append(block.time_s)
        end.affine.append(np.broadcast_to(affine, (len(block), 2, 3)))
        end.frames += len(block)
        return squares_FCHW

    def _tokens(self, store: int, pixels_NCHW: torch.Tensor) -> Rows:
        with self.progress.timed("encode"), torch.inference_mode():
            tokens = self.encoder(pixels_NCHW)
            done = torch.cuda.Event() if self.device.type == "cuda" else None
            if done:
                done.record()
        self.progress.frames += len(tokens)
        return Rows(store, tokens, done)

    # Write

    def _write(self, to_write: queue.Queue[Any]) -> None:
        """Stores tokens until None comes; an error here stops the other steps."""
        try:
            self._write_stores(to_write)
        except BaseException:
            self.stop.set()
            raise
        finally:
            if self.writer:
                self.writer.close()

    def _write_stores(self, to_write: queue.Queue[Any]) -> None:
        seconds = dict(self.progress.seconds)
        while (item := self._get(to_write)) is not None:
            if isinstance(item, Begin):
                self.writer = self._open(item.store)
            elif isinstance(item, Rows):
                assert self.writer is not None
                if item.done:
                    with self.progress.timed("encode"):  # waiting for the GPU is encoding
                        item.done.synchronize()
                with self.progress.timed("write"):
                    self.writer.append(self._arrays(item.tokens, item.store))
            elif isinstance(item, End):
                assert self.writer is not None
                with self.progress.timed("write"):
                    files = self.writer.commit(item.small(), {"videos": list(item.rows), "fingerprint": self.cache.fingerprint})
                now = dict(self.progress.seconds)
                spent = {step: round(now[step] - seconds[step], 3) for step in now}
                seconds = now
                receipt = self._receipt(item, files, spent)
                self.cache.write_receipt(receipt)
                self.progress.stores += 1
                self.progress.store_bytes += receipt.store_bytes

    def _open(self, store: int) -> StoreWriter:
        shape = self.cache.shape
        return StoreWriter(
            self.cache.store_path(store), self.cache.arrays, self.spec.store.chunk_frames, self.spec.frames_per_shard(shape)
        )

    def _arrays(self, tokens: Tokens, store: int) -> dict[str, np.ndarray]:
        """A batch through the codec, under the names it is stored by."""
        named = {"special": tokens.special_NSD} if self.cache.shape.special_tokens else {}
        named |= {layer_name(layer): patches for layer, patches in tokens.patches_NPD.items()}
        arrays: dict[str, np.ndarray] = {}
        for name, value in named.items():
            try:
                arrays |= {stored_name(name, key): array for key, array in self.cache.codecs[name].encode(value).items()}
            except StillframeError as error:
                videos = list(self.cache.plan[store])
                where = f"array '{name}' of store {store} (videos {videos[0]} to {videos[-1]})"
                raise StillframeError(f"{where}: {error.message}", error.hint) from error
        return arrays

    def _receipt(self, end: End, files: dict[str, tuple[int, str]], seconds: dict[str, float]) -> Receipt:
        return Receipt(
            store=end.store,
            fingerprint=self.cache.fingerprint,
            frames=end.frames,
            videos=end.rows,
            failures=end.failures,
            seconds=seconds,
            device=str(self.device),
            versions={tool: version(tool) for tool in TOOLS},
            files=files,
        )

    # Queues that a stopped run cannot block on

    def _put(self, channel: queue.Queue[Any], item: Any) -> None:
        while not self.stop.is_set():
            try:
                channel.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _get(self, channel: queue.Queue[Any]) -> Any:
        while not self.stop.is_set():
            try:
                return channel.get(timeout=0.2)
            except queue.Empty:
                continue
        return None


@dataclass
class Failed:
    """A video ended early."""

    reason: str


@dataclass
class Begin:
    """A store begins."""

    store: int


@dataclass
class Rows:
    """Tokens of consecutive frames of a store; `done` fires when the GPU has computed them."""

    store: int
    tokens: Tokens
    done: torch.cuda.Event | None


@dataclass
class End:
    """A store ends: all that its receipt and its small arrays say. Filled while its frames pass."""

    store: int
    frames: int = 0
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    time_s: list[np.ndarray] = field(default_factory=list)
    affine: list[np.ndarray] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)

    def fail(self, video: Video, reason: str) -> None:
        start, stop = self.rows[video.video_id]
        until = float(self.time_s[-1][-1]) if stop > start else 0.0
        self.failures[video.video_id] = Failure(reason=reason, frames_stored=stop - start, stored_until_s=until)

    def small(self) -> dict[str, np.ndarray]:
        rows = np.array(list(self.rows.values()), np.int64).reshape(-1, 2)
        return {
            "time_s": np.concatenate([np.zeros(0), *self.time_s]),
            "affine": np.concatenate([np.zeros((0, 2, 3)), *self.affine]),
            "video_start": rows[:, 0],
            "video_stop": rows[:, 1],
        }
