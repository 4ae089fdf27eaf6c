"""Stage one: plan -> decode -> encode -> store, resumable.

Three steps overlap through bounded queues: threads decode the next videos, this thread resizes and encodes, one thread
writes. A batch of frames runs across the borders of videos but never of stores, so the bytes of a store depend on nothing
but its plan. A video that cannot be decoded is listed with its reason; what was decoded of it before is kept.
"""

from __future__ import annotations

import fcntl
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import frames, plugins, probe, spec
from pipeline.cache import Cache, require_same
from pipeline.encoders import EncoderPlugin
from pipeline.errors import BadInput, BadVideo, StillframeError
from pipeline.manifest import Manifest
from pipeline.records import Frames, Tokens, TokenShape, Video
from pipeline.spec import FORMAT_VERSION, CacheSpec
from pipeline.store import StoreWriter, remove, stored_name

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


def extract(
    cache_spec: CacheSpec,
    manifest: Manifest,
    out: Path,
    device: torch.device | None = None,
    decoders: int = 1,
    on_progress: OnProgress | None = None,
) -> Cache:
    """Brings the cache of `cache_spec` over `manifest` under folder `out` to completion and returns it.

    Finished stores are kept, so calling again after a kill goes on. Videos that fail are in `Cache.failures`.
    Raises BadInput where the cache there was made from something else, StillframeError where it cannot be written.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = plugins.load("encoder", cache_spec.encoder.name)(cache_spec.encoder.settings, cache_spec.frames.size_px, device)
    shape = cache_spec.token_shape()
    path = out / f"{cache_spec.name}-{spec.fingerprint(cache_spec, encoder.identity, probe.decoder_identity())}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with only_one(path):
            cache = open_or_create(path, cache_spec, encoder, shape, manifest)
            missing = cache.missing_stores()
            progress = Progress(sum(sum(cache.plan[store].values()) for store in missing))
            videos = {video.video_id: video for video in manifest.videos}
            plan = {store: [videos[video_id] for video_id in cache.plan[store]] for store in missing}
            Pipeline(cache, cache_spec, encoder, device, manifest.root, decoders, progress, on_progress).run(plan)
    except OSError as error:
        raise StillframeError(
            f"cannot write {error.filename or path}: {error.strerror}",
            "finished stores are kept: free space or fix access, then rerun",
        ) from error
    return Cache(path)


def preview(cache_spec: CacheSpec, manifest: Manifest) -> dict[str, Any]:
    """What `extract` would do, as plain data: probes the videos, reads no weights, writes nothing."""
    shape = cache_spec.token_shape()
    plan = make_plan(cache_spec, shape, manifest)
    expected = sum(sum(videos.values()) for videos in plan.values())
    return {
        "videos": len(manifest.videos),
        "frames": expected,
        "stores": len(plan),
        "store_bytes": expected * cache_spec.bytes_per_frame(shape),
        "bytes_per_frame": cache_spec.bytes_per_frame(shape),
        "tokens_per_frame": shape.tokens_per_frame,
        "grid": f"{shape.grid_hw[0]}x{shape.grid_hw[1]}",
    }


def open_or_create(path: Path, cache_spec: CacheSpec, encoder: EncoderPlugin, shape: TokenShape, manifest: Manifest) -> Cache:
    """The cache at `path`, checked against spec and manifest; planned and created if it is not there yet."""
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fingerprint": path.name.rpartition("-")[2],
        "spec": cache_spec.canonical(),
        "encoder": encoder.identity,
        "decoder": probe.decoder_identity(),
        "tokens": {
            "width": shape.width,
            "grid_hw": list(shape.grid_hw),
            "special_tokens": shape.special_tokens,
            "layers": list(shape.layers),
        },
        "versions": {tool: version(tool) for tool in TOOLS},
        "manifest": manifest.digest,
        "root": str(manifest.root),
    }
    if (path / "cache.json").is_file():
        cache = Cache(path)
        require_same(cache, manifest)
        return cache
    return Cache.create(path, header | {"plan": make_plan(cache_spec, shape, manifest)}, manifest)


def make_plan(cache_spec: CacheSpec, shape: TokenShape, manifest: Manifest) -> dict[str, dict[str, int]]:
    """store -> video_id -> expected frames. Videos in manifest order fill a store up to its size; none is split."""
    limit = cache_spec.frames_per_store(shape)
    stores: list[dict[str, int]] = []
    held = 0
    for video in manifest.videos:
        try:
            facts = probe.probe(manifest.root / video.source, video.image_fps)
            expected = probe.expected_frames(facts, cache_spec.frames.rate)
        except BadVideo:
            expected = 1  # extraction will say what is wrong with it
        if not stores or held + expected > limit:
            stores.append({})
            held = 0
        stores[-1][video.video_id] = expected
        held += expected
    return {str(store): videos for store, videos in enumerate(stores)}


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Refuses a second extraction into the same cache. The kernel drops the lock when its holder dies, however it dies."""
    with (path / "extract.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"another extraction is writing {path}", "wait for it, or stop it and rerun") from error
        yield


class Pipeline:
    """The three steps and the queues between them."""

    def __init__(
        self,
        cache: Cache,
        cache_spec: CacheSpec,
        encoder: EncoderPlugin,
        device: torch.device,
        root: Path,
        decoders: int,
        progress: Progress,
        on_progress: OnProgress | None,
    ) -> None:
        self.cache, self.spec, self.encoder, self.device, self.root = cache, cache_spec, encoder, device, root
        self.decoders, self.progress, self.on_progress = decoders, progress, on_progress or (lambda _: None)
        self.stop = threading.Event()
        self.codec = cache_spec.make_codec()
        self.writer: StoreWriter | None = None

    def run(self, plan: dict[int, list[Video]]) -> None:
        """Decode and encode here and in threads, write in one more thread; the first error of any of them ends all."""
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
                yield item
                if not isinstance(item, Frames):
                    break
            del channels[number]
            start(number + self.decoders)

    def _decode_one(self, video: Video, channel: queue.Queue[Any]) -> None:
        end: Failed | None = None
        blocks = frames.decode(self.root / video.source, self.spec.frames.rate, video.image_fps, BLOCK_FRAMES)
        try:
            while not self.stop.is_set():
                with self.progress.timed("decode"):
                    block = next(blocks, None)
                if block is None:
                    break
                self._put(channel, block)
        except BadVideo as error:
            end = Failed(error.message)
        except Exception as error:  # a decoder may raise anything on a broken file; the video is listed, the run goes on
            end = Failed(f"decoder raised {type(error).__name__}: {error}")
        self._put(channel, end)

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
            end.rows[video.video_id] = [end.frames, end.frames]
            while isinstance(block := next(decoded), Frames):
                with self.progress.timed("encode"):
                    pending.append(self._square(block, end))
                held += len(block)
                end.rows[video.video_id][1] = end.frames
                while held >= batch_frames:
                    ready = torch.cat(pending)
                    pending, held = [ready[batch_frames:]], held - batch_frames
                    yield self._tokens(ready[:batch_frames])
            if block is not None:
                end.fail(video, block.reason)
            self.progress.videos += 1
        if held:
            yield self._tokens(torch.cat(pending))
        yield end

    def _square(self, block: Frames, end: End) -> torch.Tensor:
        """A block as model squares on the device; notes its times and affine."""
        settings = self.spec.frames
        pixels = torch.from_numpy(block.pixels_FHWC).to(self.device)
        squares_FCHW, affine = frames.to_square(pixels, settings.size_px, settings.fit, settings.resample, block.pixel_aspect)
        end.time_s.append(block.time_s)
        end.affine.append(np.broadcast_to(affine, (len(block), 2, 3)))
        end.frames += len(block)
        return squares_FCHW

    def _tokens(self, pixels_NCHW: torch.Tensor) -> Rows:
        with self.progress.timed("encode"), torch.inference_mode():
            tokens = self.encoder(pixels_NCHW)
            done = torch.cuda.Event() if self.device.type == "cuda" else None
            if done:
                done.record()
        self.progress.frames += len(tokens)
        return Rows(tokens, done)

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
                    self.writer.append(self._arrays(item.tokens))
            elif isinstance(item, End):
                assert self.writer is not None
                with self.progress.timed("write"):
                    files = self.writer.commit(item.small(), {"videos": list(item.rows), "fingerprint": self.cache.fingerprint})
                now = dict(self.progress.seconds)
                spent = {step: round(now[step] - seconds[step], 3) for step in now}
                seconds = now
                self.cache.write_receipt(item.store, item.receipt(self.cache.fingerprint, files, spent))
                self.progress.stores += 1
                self.progress.store_bytes += sum(size for size, _ in files.values())

    def _open(self, store: int) -> StoreWriter:
        shape = self.cache.shape
        return StoreWriter(
            self.cache.store_path(store), self.cache.arrays, self.spec.store.chunk_frames, self.spec.frames_per_shard(shape)
        )

    def _arrays(self, tokens: Tokens) -> dict[str, np.ndarray]:
        """A batch through the codec, under the names it is stored by."""
        named = {"special": tokens.special_NSD} if self.cache.shape.special_tokens else {}
        named |= {f"layer_{layer}": patches for layer, patches in tokens.patches_NPD.items()}
        return {
            stored_name(name, key): array for name, value in named.items() for key, array in self.codec.encode(value).items()
        }

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
    """Tokens of consecutive frames; `done` fires when the GPU has computed them."""

    tokens: Tokens
    done: torch.cuda.Event | None


@dataclass
class End:
    """A store ends: all that its receipt and its small arrays say. Filled while its frames pass."""

    store: int
    frames: int = 0
    rows: dict[str, list[int]] = field(default_factory=dict)
    time_s: list[np.ndarray] = field(default_factory=list)
    affine: list[np.ndarray] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fail(self, video: Video, reason: str) -> None:
        start, stop = self.rows[video.video_id]
        until = float(self.time_s[-1][-1]) if stop > start else 0.0
        self.failures[video.video_id] = {"reason": reason, "frames_stored": stop - start, "stored_until_s": until}

    def small(self) -> dict[str, np.ndarray]:
        rows = np.array(list(self.rows.values()), np.int64).reshape(-1, 2)
        return {
            "time_s": np.concatenate([np.zeros(0), *self.time_s]),
            "affine": np.concatenate([np.zeros((0, 2, 3)), *self.affine]),
            "video_start": rows[:, 0],
            "video_stop": rows[:, 1],
        }

    def receipt(self, fingerprint: str, files: dict[str, list[Any]], seconds: dict[str, float]) -> dict[str, Any]:
        return {
            "store": self.store,
            "fingerprint": fingerprint,
            "frames": self.frames,
            "videos": self.rows,
            "failures": self.failures,
            "seconds": seconds,
            "files": files,
        }
