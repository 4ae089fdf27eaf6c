"""What every part of an extraction costs the processor, each done alone: time of cores, which other
work on the machine does not change, and bytes that travel."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import bytes_per_frame, frames_per_shard, stored_name
from pipeline.cache.store_writer import StoreWriter
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.device import chosen
from pipeline.extract import extract
from pipeline.extract.encode import named_tokens
from pipeline.extract.execution import Execution
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder
from pipeline.models.profile import synchronize
from pipeline.records import Tokens
from pipeline.video.reader import FrameReader, ReadBlock


@dataclass(frozen=True)
class ExtractionParts:
    """Costs of one frame. A core-millisecond is a millisecond of one core."""

    core_ms: dict[str, float]
    """Part -> core-milliseconds a frame, in the order of a frame's way."""
    written_per_s: float
    """Frames that a worker writes and syncs in a second of the clock, if it does nothing else."""
    start_core_ms: float
    """To start a decoding process, once for each."""
    source_bytes: int
    """Of a decoded frame of the first video, which go to the device."""
    stored_bytes: int
    """Of its tokens, which come back through the codec."""
    flops: int
    """Of the encoder, see `EncoderPlugin.flops`."""


def extraction_parts(
    spec: CacheSpec, videos: Manifest, device: torch.device | None
) -> ExtractionParts:
    """Takes the frames of a manifest of several videos through one part after the other, in one
    thread of torch."""
    device = chosen(device)
    encoder, threads = make_encoder(spec, device), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            cache = extract.create_or_open(spec, videos, Path(folder), encoder, Execution(device))
            return _measured(cache, encoder, videos, device, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _measured(
    cache: Cache, encoder: EncoderPlugin, videos: Manifest, device: torch.device, folder: Path
) -> ExtractionParts:
    spec, spent = cache.cache_spec, _Spent(device)
    with spent.on("few"):  # the end of a decoding process tells what it took
        few = _read(videos, spec, device, only=1)
    with spent.on("all"):
        frames = _read(videos, spec, device)
    few_ms, all_ms = spent.core_ms.pop("few"), spent.core_ms.pop("all")
    decode_ms = (all_ms - few_ms) / (frames - few)
    with FrameReader(videos.root, device) as reader:
        blocks = [
            next(reader.blocks(video, [spec.frames.kept], decoder=spec.frames.decoder))
            for video in videos.videos
        ]
    with spent.on("resize"):
        squares = torch.cat([_square(block, spec) for block in blocks])
    encoder.prepare(spec.store.batch_frames)
    batch_NCHW = squares[: spec.store.batch_frames]
    encoder(batch_NCHW)  # warm
    with spent.on("encoder"):
        tokens = encoder(batch_NCHW)
    batches = max(1, frames // len(batch_NCHW))
    with spent.on("codec"):
        encoded = [_arrays(cache, tokens) for _ in range(batches)]
    (folder / "store").mkdir()
    with spent.on("write"):
        shard_frames = frames_per_shard(spec, cache.shape)
        store = spec.store
        layout = (cache.arrays, store.chunk_frames, shard_frames, store.compression)
        writer = StoreWriter(folder / "store", *layout)
        begin_s = time.perf_counter()
        for arrays in encoded:
            writer.append(arrays)
        writer.finish({}, {})
        writing_s = time.perf_counter() - begin_s
    stored = batches * len(batch_NCHW)
    counts = {
        "resize": len(squares),
        "encoder": len(batch_NCHW),
        "codec": stored,
        "write": stored,
    }
    plugin: type[EncoderPlugin] = plugins.load("encoder", spec.encoder.name)
    return ExtractionParts(
        core_ms={"decode": decode_ms}
        | {part: spent.core_ms[part] / count for part, count in counts.items()},
        written_per_s=stored / writing_s,
        start_core_ms=few_ms - decode_ms * few,
        source_bytes=int(np.mean([block.transforms.frame_bytes for block in blocks])),
        stored_bytes=bytes_per_frame(spec, cache.shape),
        flops=plugin.flops(spec.encoder.settings, spec.frames.size_px),
    )


class _Spent:
    """Core-milliseconds of this process and of those that it has waited for, by part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.core_ms: dict[str, float] = {}

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Adds what is spent inside."""
        begin_ms = _core_ms()
        yield
        synchronize(self.device)
        self.core_ms[part] = self.core_ms.get(part, 0.0) + _core_ms() - begin_ms


def _core_ms() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1000 * sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _read(videos: Manifest, spec: CacheSpec, device: torch.device, only: int | None = None) -> int:
    """Decodes the videos, or some of them, and lets go of their frames; how many there were."""
    with FrameReader(videos.root, device) as reader:
        return sum(
            len(block.time_s)
            for video in islice(videos.videos, only)
            for block in reader.blocks(video, [spec.frames.kept], decoder=spec.frames.decoder)
        )


def _square(block: ReadBlock, spec: CacheSpec) -> torch.Tensor:
    return block.transforms.squares(spec.frames, block.wanted(spec.frames), None)[0]


def _arrays(cache: Cache, tokens: Tokens) -> dict[str, np.ndarray]:
    """A batch through the codec, once for every view of the cache."""
    named = {
        name: part for view in cache.views for name, part in named_tokens(tokens, view).items()
    }
    return {
        stored_name(name, key): array
        for name, part in named.items()
        for key, array in cache.codecs[name].encode(part).items()
    }
