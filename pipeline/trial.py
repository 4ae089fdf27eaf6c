"""Both stages tried out on this machine for half a minute: real videos, encoder, codec, disk and recipe, on a small sample.

The sample is spread over the videos by the frames they give, and of long videos it has the beginning. It is extracted and
trained on by the same code as all of them would be, in a scratch folder inside the output's, which is removed afterwards.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from pipeline import extract, manifest, train
from pipeline.cache import Cache, unwritable
from pipeline.costs import synchronize
from pipeline.datasets import DatasetPlugin
from pipeline.decoder import Decoder
from pipeline.encoders import EncoderPlugin
from pipeline.errors import BadVideo, StillframeError
from pipeline.manifest import Manifest
from pipeline.mapped import drop
from pipeline.model import layers_read
from pipeline.places import at
from pipeline.places.folder import Folder
from pipeline.plugins import Settings
from pipeline.probe import TIMESTAMPS, expected_frames, list_images, open_video
from pipeline.records import Clip, Frames, Video
from pipeline.spec import CacheSpec, Recipe, WindowSettings
from pipeline.square import Squares
from pipeline.windows import Windows
from pipeline.worker import fill

Tell = Callable[[str], None]
"""What is being tried."""
FIRST_FRAMES = 64
"""Decoded and encoded first, to know how many can be extracted in time."""
MOST_BYTES = 2 * 10**9
"""Of tokens that are written."""
SHARES = {"alone": 0.15, "extract": 0.4, "train": 0.3}
"""Of the time; reading and what comes before and after take the rest."""
BLOCKS = 8
"""Of decoded frames, each of another video, that the encoder alone is tried with."""
LEAST_STEPS, MOST_STEPS = 4, 100_000
READ_BATCH = 8
WITHOUT = "--probe-s 0 plans without looking at any"
HELD_OUT = 2
"""Videos that are also there as evaluation split, which training wants to see."""


class Speed(Settings):
    """What was measured. Seconds per frame are per cached frame."""

    videos: int
    frames: int
    """Extracted."""
    load_s: float
    """Until the encoder is loaded."""
    start_s: float
    """Of an extraction, before its first frames and after its last: processes start, the last store is synced."""
    frame_s: float
    """Of an extraction: decoding, encoding and writing overlap."""
    decode_s: float
    """One decoding process alone."""
    encode_s: float
    """Resizing and encoding alone, in one view."""
    write_s: float
    """Codec, checksums, writing and syncing, while the other steps are at work."""
    frame_bytes: float
    """On disk, after codec and compression."""
    read_hot_bytes_per_s: float
    """Windows, from memory."""
    read_cold_bytes_per_s: float | None
    """From the disk; None where the system cannot forget a file, or the cache is at a URL."""
    step_s: float | None = None
    """A training step, its tokens read from memory; None without a recipe."""


class _Enough(Exception):
    """Training has been looked at for long enough."""


def attempt(
    spec: CacheSpec,
    videos: Manifest | None,
    recipe: Recipe | None,
    out: str,
    device: torch.device,
    decoders: int,
    seconds: float,
    tell: Tell,
) -> Speed:
    """Tries both stages for about `seconds`; with a slow encoder it takes longer, as some frames are needed for a window.

    Without a manifest, videos of the built-in world stand in.

    Raises StillframeError where nothing can be decoded or written, and whatever a real extraction or training would raise.
    """
    tell("loading the encoder")
    begin = time.perf_counter()
    encoder = spec.make_encoder(device)
    load_s = time.perf_counter() - begin
    least = 2 * (recipe.windows.frames if recipe else 1)
    with tempfile.TemporaryDirectory() as made, _scratch(out) as place:
        folder = Path(made)
        videos = videos or _stand_in(spec, recipe, folder / "world")
        tell("decoding and encoding")
        few = sample(videos, spec, max(FIRST_FRAMES, least), folder / "first")
        alone = _alone(spec, few, encoder, device, SHARES["alone"] * seconds)
        tell("extracting")
        frames = int(SHARES["extract"] * seconds / max(alone.decode_s / decoders, alone.encode_s * (1 + len(spec.views))))
        wanted = max(least, min(frames, MOST_BYTES // spec.bytes_per_frame(spec.token_shape())))
        some = sample(videos, spec, wanted, folder / "more")
        # Where not even a few batches can be had in time, they are smaller; encoders of that kind gain little from large ones.
        store = spec.store.model_copy(update={"batch_frames": min(spec.store.batch_frames, max(1, wanted // 4))})
        caches = f"{place}/caches"
        cache, extracted = _extract(spec.model_copy(update={"store": store}), some, encoder, caches, device, decoders)
        tell("reading")
        read = _read(cache, some, recipe)
        step_s = None
        if recipe:
            tell("training")
            step_s = _step(recipe, cache, folder / "run", device, SHARES["train"] * seconds)
    # A frame is extracted no faster than it is decoded and encoded: what was slower alone was disturbed.
    decode_s = min(alone.decode_s, extracted["frame_s"] * decoders)
    encode_s = min(alone.encode_s, extracted["frame_s"] / (1 + len(spec.views)))
    figures = {"load_s": load_s, "decode_s": decode_s, "encode_s": encode_s, "step_s": step_s, **extracted, **read}
    return Speed(videos=len(some.videos), **figures)


@contextmanager
def _scratch(out: str) -> Iterator[str]:
    """A place of its own inside `out`, and nothing left of it afterwards, nor of `out` if that was not there."""
    name = f".plan-{os.getpid()}"
    where = at(out)
    is_new = isinstance(where, Folder) and not Path(out).exists()
    try:
        yield f"{out.rstrip('/')}/{name}"
    except OSError as error:
        raise unwritable(where, error) from error
    finally:
        where.remove(name)
        if is_new:
            with suppress(OSError):
                Path(out).rmdir()


# The sample


def _stand_in(spec: CacheSpec, recipe: Recipe | None, folder: Path) -> Manifest:
    """Small videos with every kind of truth."""
    fps = math.ceil(max(12, spec.frames.rate or 0, recipe.windows.fps if recipe else 0))
    settings = {"scene": "room", "clips_per_class": 1, "frames": 48, "fps": fps, "size_px": 160}
    return manifest.build("world", None, folder, settings)


class _Sample(DatasetPlugin):
    """Some videos of a manifest, linked or cut short, with their clips and truth; the first few also as evaluation split."""

    Settings = Settings

    def __init__(self, root: Path, videos: Manifest, chosen: list[Video], head_s: float | None) -> None:
        super().__init__(root, Settings())
        self.all, self.head_s = videos, head_s
        self.origin: dict[str, str] = {}
        self.linked: dict[str, list[tuple[str, str]]] = {}
        for number, video in enumerate(chosen):
            for split in ("train", "val")[: 2 if number < HELD_OUT else 1]:
                source = f"{split}-{number}{Path(video.source).suffix}"
                if (name := _head(videos.root / video.source, root / source, video.image_fps, head_s)) is not None:
                    self.linked.setdefault(video.video_id, []).append((split, name))

    def clips(self) -> Iterator[Clip]:
        first: set[str] = set()
        for clip in self.all.clips:
            if self.head_s is not None and clip.start_s >= self.head_s:
                if clip.video_id in first:
                    continue
                clip = replace(clip, start_s=0.0, stop_s=None)
            first.add(clip.video_id)
            for split, source in self.linked.get(clip.video_id, ()):
                clip_id = f"{split} {clip.clip_id}"
                self.origin[clip_id] = clip.clip_id
                yield replace(clip, clip_id=clip_id, video_id=source, source=source, split=split)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        return self.all.targets(self.origin[clip.clip_id])


def sample(videos: Manifest, spec: CacheSpec, frames: int, folder: Path) -> Manifest:
    """A manifest in `folder` of videos that give about `frames` frames, in the same proportions of sizes as all of them.

    Raises StillframeError if none of them can be opened.
    """
    facts = {video.video_id: videos.facts.get(video.video_id) for video in videos.videos}
    usable = [video for video in videos.videos if facts[video.video_id] is not None] or list(videos.videos)
    known = [(video, facts[video.video_id]) for video in usable]
    known.sort(key=lambda pair: pair[1].width * pair[1].height if pair[1] else 0)
    gives = np.array([expected_frames(fact, spec.frames.rate) if fact else 1 for _, fact in known])
    head = max(FIRST_FRAMES, frames // 8)
    wanted = min(len(known), max(1, round(frames / float(np.minimum(gives, head).mean()))))
    middles = (np.arange(wanted) + 0.5) / wanted * gives.sum()
    chosen = [known[place][0] for place in np.unique(np.searchsorted(gives.cumsum(), middles))]
    head_s = None
    if gives.max() > head:
        head_s = head / (spec.frames.rate or _rate(videos))
    root = folder / "videos"
    root.mkdir(parents=True)
    made = _Sample(root, videos, chosen, head_s)
    if not made.linked:
        raise StillframeError(f"none of {len(chosen)} sampled videos of {videos.folder} can be opened", WITHOUT)
    return manifest.write("sample", made, folder)


def _rate(videos: Manifest) -> float:
    """Frames per second of most of them; 25 where headers do not say."""
    return statistics.median([fact.fps for fact in videos.facts.values() if fact and fact.fps] or [25.0])


def _head(path: Path, link: Path, image_fps: float | None, head_s: float | None) -> str | None:
    """Puts a video beside `link`, cut after `head_s` if it is longer. Returns its name, or None if it cannot be opened."""
    try:
        if path.is_dir():
            images, time_s, _ = list_images(path, image_fps)
            kept = images if head_s is None else images[: max(2, int(np.searchsorted(time_s - time_s[0], head_s)))]
            link.mkdir()
            for image in kept:
                (link / image.name).symlink_to(image)
            if (path / TIMESTAMPS).is_file():
                (link / TIMESTAMPS).write_text("".join(f"{one!r}\n" for one in time_s[: len(kept)].tolist()), encoding="utf-8")
            return link.name
        if head_s is None or not _cut(path, link.with_suffix(".mkv"), head_s):
            link.symlink_to(path)
            return link.name
        return link.with_suffix(".mkv").name
    except (BadVideo, OSError, ValueError, av.FFmpegError):  # the last two: what cannot be put into a file of another kind
        return None


def _cut(path: Path, out: Path, head_s: float) -> bool:
    """The packets of the first `head_s` as a file of its own; False if the video is shorter."""
    container, stream = open_video(path)
    with container, av.open(str(out), "w") as cut:
        copied = cut.add_stream_from_template(stream)
        start_s = None
        for packet in container.demux(stream):
            if packet.dts is None:
                continue
            time_s = float(packet.dts * packet.time_base)
            start_s = time_s if start_s is None else start_s
            if time_s - start_s > head_s:
                return True
            packet.stream = copied
            cut.mux(packet)
    out.unlink()
    return False


# What is tried


class _Alone(NamedTuple):
    """Seconds per frame of one decoding process, and of the encoder, each by itself."""

    decode_s: float
    encode_s: float


def _alone(spec: CacheSpec, some: Manifest, encoder: EncoderPlugin, device: torch.device, seconds: float) -> _Alone:
    blocks: deque[Frames] = deque(maxlen=BLOCKS)
    frames, spent_s = 0, 0.0
    with Decoder() as decoder:
        for turn, video in enumerate((some.videos[0], *some.videos)):
            begin, count = time.perf_counter(), 0
            with suppress(BadVideo):
                for block in decoder.decode(some.root / video.source, [spec.frames.rate], video.image_fps):
                    if count == 0:
                        blocks.append(block.frames)
                    count += len(block.frames)
            if turn:  # the first one has waited for the process to start
                frames, spent_s = frames + count, spent_s + time.perf_counter() - begin
            if frames and spent_s > seconds / 2:
                break
    if not frames:
        raise StillframeError("none of the sampled videos could be decoded", WITHOUT)

    def encode(size: int) -> float:
        """Seconds of a batch, its frames as they come from several videos."""
        begin, squares = time.perf_counter(), list[torch.Tensor]()
        with torch.inference_mode():
            while (left := size - sum(map(len, squares))) > 0:
                squares.append(Squares(blocks[0], device).of(spec.frames, np.arange(len(blocks[0])) < left, None)[0])
                blocks.rotate()
            encoder(torch.cat(squares))
        synchronize(device)
        return time.perf_counter() - begin

    encode(1)  # warms up
    # Where the encoder is slow, batches are small: they gain it little.
    size = min(spec.store.batch_frames, max(1, int(seconds / 4 / encode(1))))
    encode(size)
    batches = [encode(size)]
    while sum(batches) < seconds / 4:
        batches.append(encode(size))
    return _Alone(spent_s / frames, statistics.median(batches) / size)


def _extract(
    spec: CacheSpec, some: Manifest, encoder: EncoderPlugin, out: str, device: torch.device, decoders: int
) -> tuple[Cache, dict[str, Any]]:
    """The cache of the sample, and figures of its extraction."""
    noted: list[tuple[float, int]] = []
    begin = time.perf_counter()
    laid_out = extract.lay_out(spec, some, out, encoder, device)
    job = extract.a_job([laid_out.place.address], some, str(device), decoders)
    progress = fill(
        [(laid_out, encoder, [])], some.videos, job, device, lambda state: noted.append((time.perf_counter(), state.frames))
    )
    cache = Cache(laid_out.place)
    whole_s = time.perf_counter() - begin
    if not progress.frames:
        raise StillframeError("none of the sampled videos could be decoded", WITHOUT)
    first, last = noted[0], next(pair for pair in noted if pair[1] == progress.frames)
    frame_s = (last[0] - first[0]) / (last[1] - first[1]) if last[1] > first[1] else whole_s / last[1]
    figures = {
        "frames": progress.frames,
        "start_s": max(0.0, whole_s - progress.frames * frame_s),
        "frame_s": frame_s,
        "write_s": progress.seconds["write"] / progress.frames,
        "frame_bytes": progress.store_bytes / progress.frames,
    }
    return cache, figures


def _read(cache: Cache, some: Manifest, recipe: Recipe | None) -> dict[str, Any]:
    """Bytes per second of windows, in the order in which evaluation reads them, from the disk and then from memory."""
    settings = recipe.windows if recipe else WindowSettings(frames=16, fps=cache.fps or _rate(some))
    layers = layers_read(recipe, cache.shape) if recipe else cache.shape.layers
    windows = Windows(cache, some, "train", settings, layers=layers, allow_missing=True)

    def once() -> float:
        begin = time.perf_counter()
        size = sum(array.nbytes for batch in windows.evaluation(READ_BATCH) for array in batch.arrays.values())
        return size / (time.perf_counter() - begin)

    once()  # opens the stores
    is_cold = isinstance(cache.place, Folder) and drop(cache.path)
    cold, _, hot = once(), once(), once()
    return {"read_cold_bytes_per_s": cold if is_cold else None, "read_hot_bytes_per_s": hot}


def _step(recipe: Recipe, cache: Cache, run: Path, device: torch.device, seconds: float) -> float:
    """Seconds of a training step, the first one left out; no evaluation and no checkpoint is among them."""
    endless = recipe.training.model_copy(
        update={"steps": MOST_STEPS, "epochs": None, "evaluate_every": None, "checkpoint_every": MOST_STEPS}
    )
    ended: list[float] = []

    def note(_: object) -> None:
        ended.append(time.perf_counter())
        if len(ended) >= LEAST_STEPS and ended[-1] - ended[0] > seconds:
            raise _Enough

    with suppress(_Enough):
        windows = recipe.windows.model_copy(update={"train_fraction": 1.0})  # the sample is small enough
        asked = recipe.model_copy(update={"training": endless, "windows": windows, "cache": None})
        train.train(asked, cache, run, device=device, allow_missing=True, on_progress=note)
    return (ended[-1] - ended[0]) / (len(ended) - 1)
