"""Time and memory that must not grow with the data are measured: time to begin and resume on very
many clips, memory over long and many videos."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import receipt_name
from pipeline.cache.leases import CacheStore, Leases, claim_units
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.manifest.manifest import Manifest, write
from pipeline.extract import extract
from pipeline.extract.execution import Execution
from pipeline.extract.progress import Progress
from pipeline.records import Clip
from pipeline.video.probe import Probe

SAMPLE_S = 0.05
SIZE_PX, FPS, SHORT_FRAMES = 64, 30, 8
PARTS = 10
"""Equal parts of the progress for which the most memory is told."""
SPEC = {
    "name": "startup",
    "encoder": {"name": "address", "layers": [0], "width": 8, "grid": 2, "special_tokens": 0},
    "frames": {"size_px": SIZE_PX},
    "store": {"store_mb": 0.5, "shard_mb": 0.25},
}


class Listed(DatasetPlugin):
    """Clips and headers that are given, of videos that nobody opens."""

    Settings = plugins.Settings

    def __init__(self, root: Path, clips: list[Clip], facts: Probe | None) -> None:
        super().__init__(root, plugins.Settings())
        self.listed = clips
        if facts:
            self.probed = dict.fromkeys((clip.source for clip in clips), facts)

    def clips(self) -> Iterator[Clip]:
        yield from self.listed


def start_seconds(clips: int) -> list[tuple[str, float]]:
    """Seconds from nothing to the first claimed store, on a manifest of `clips` videos: at first,
    and with half of it done."""
    spec, how = plugins.validate(CacheSpec, SPEC, "bench"), Execution(torch.device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listed = [listed_clip(number) for number in range(clips)]
        (root / listed[0].source).parent.mkdir(parents=True)
        (root / listed[0].source).touch()
        facts = Probe(SIZE_PX, SIZE_PX, 12.0, 0.0, 4.0, 48, "h264")
        write("startup", Listed(root, listed, facts), root / "data")
        for what in ("first start", "resume, half done"):
            begin = time.perf_counter()
            manifest = Manifest.load(root / "data")
            encoder = extract.load_encoders([spec], how.here)[0][1]
            cache = extract.create_or_open(spec, manifest, root / "caches", encoder, how)
            missing = cache.missing_stores()
            with Leases(cache.storage) as leases:
                units = [[CacheStore(cache, leases, store)] for store in missing]
                next(claim_units(units, threading.Event()))
                rows.append(
                    (
                        f"{what}, {clips:,} clips, {len(cache.plan):,} stores",
                        time.perf_counter() - begin,
                    )
                )
            _pretend_done(cache, list(cache.plan)[::2])
    return rows


def memory_over(hours: float, videos: int) -> list[dict[str, Any]]:
    """Megabytes of this process and its decoder, the most in each tenth of an extraction: one long
    video, many short ones."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        frames = round(hours * 3600 * FPS)
        _write_video(root / "long" / "0.mp4", frames)
        results.append(
            _memory(
                f"one video of {hours:g} h, {frames:,} frames",
                root / "long",
                [listed_clip(0, "0.mp4")],
                root,
            )
        )
        short = root / "short"
        _write_video(short / "0.mp4", SHORT_FRAMES)
        for number in range(1, videos):
            (short / f"{number}.mp4").hardlink_to(short / "0.mp4")
        clips = [listed_clip(number, f"{number}.mp4") for number in range(videos)]
        results.append(_memory(f"{videos:,} videos of {SHORT_FRAMES} frames", short, clips, root))
    return results


def _memory(title: str, videos: Path, clips: list[Clip], root: Path) -> dict[str, Any]:
    manifest = write("startup", Listed(videos, clips, None), root / "data" / videos.name)
    done = [0.0]

    def on_progress(state: Progress) -> None:
        done[0] = state.frames / max(1, state.frames_planned)

    with _sampled(done) as samples:
        extract.extract_all(
            [plugins.validate(CacheSpec, SPEC, "bench")],
            manifest,
            root / "caches" / videos.name,
            Execution(on_progress=on_progress),
        )
    share, megabytes = np.array(samples).T
    part = np.minimum((share * PARTS).astype(int), PARTS - 1)
    most: list[float] = []
    for number in range(PARTS):
        here = megabytes[part == number]
        # A part that passes between two samples has what the one before it had.
        most.append(float(here.max()) if len(here) else most[-1] if most else float(megabytes[0]))
    shutil.rmtree(root / "caches")
    return {
        "title": title,
        "megabytes": [round(value, 1) for value in most],
        "growth": round(most[-1] / most[1], 3),
    }


@contextmanager
def _sampled(done: list[float]) -> Iterator[list[tuple[float, float]]]:
    """(share done, megabytes) every few milliseconds, from a thread."""
    samples: list[tuple[float, float]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            samples.append((done[0], _tree_megabytes()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _tree_megabytes() -> float:
    """Memory of this process and its children that no file backs; what they share counts once."""
    own = Path("/proc/self")
    children = [
        int(pid) for file in own.glob("task/*/children") for pid in file.read_text().split()
    ]
    kilobytes = _status_kb(own, "RssAnon") + _status_kb(own, "RssShmem")
    return (kilobytes + sum(_status_kb(Path(f"/proc/{pid}"), "RssAnon") for pid in children)) / 1000


def _status_kb(process: Path, key: str) -> int:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def listed_clip(number: int, source: str | None = None) -> Clip:
    source = source or f"videos/{number // 1000:04d}/{number:07d}.mp4"
    return Clip(
        source,
        source,
        source,
        "val" if number % 10 == 0 else "train",
        label=f"class_{number % 174:03d}",
    )


def _write_video(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (SIZE_PX, SIZE_PX, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(FPS), options={"preset": "ultrafast"}
        )
        stream.height = stream.width = SIZE_PX
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _pretend_done(cache: Cache, stores: list[int]) -> None:
    """Receipts of empty stores: what a resume reads of a finished one is that its receipt is
    there."""
    for store in stores:
        cache.storage.write(receipt_name(store), b"{}")
