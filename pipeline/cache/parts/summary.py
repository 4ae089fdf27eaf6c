"""How far a cache in parts is: of finished parts by their marks, of others by their receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.cache.parts.parted import PartedCache, PartSummary
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.parts import part_name

READERS = 16
"""Marks that are read at once: they are small, and may be far away."""


class PartCounts(Settings):
    """Numbers of parts."""

    planned: int
    begun: int
    done: int


class PartedCoverage(Settings):
    """Coverage of one split."""

    clips: int
    covered: int
    """Clips that can be read whole."""


class PartedStatus(Settings):
    """What a cache in parts holds. As JSON it is what `stillframe status --json` prints of one."""

    cache: str
    parts: PartCounts
    lost: list[str]
    """Parts that were finished, and are gone."""
    stores: int
    """Finished stores of all parts."""
    videos: int
    """Videos of the manifest."""
    stored: int
    """Videos that are stored whole."""
    failed: int
    """Videos that are not, or not wholly, stored, in parts or stores that are finished."""
    failed_in: list[str]
    """Parts that have some."""
    frames: int
    store_bytes: int
    seconds: dict[str, float]
    """Step -> work of it in all stores."""
    splits: dict[str, PartedCoverage]
    frames_per_s: float | None
    """Speed of all workers together, over the last stores of the parts that they are at; None where
    nobody is at work."""
    eta_s: float | None
    """Seconds until all videos are stored, at this speed, and if the others are as long as these
    are."""


def parted_status(cache: PartedCache) -> PartedStatus:
    """Reads the marks of finished parts, and the receipts of those that are at work, one after the
    other. Raises BadInput where one is damaged."""
    finished = cache.finished()
    begun = cache.begun()
    lost = [part_name(number) for number in sorted({*finished} - {*begun})]
    totals: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    failed_in, speeds = [], []
    for number, summary in _summaries(cache, finished, begun):
        totals.update(summary.model_dump(include={"stores", "videos", "failed", "frames"}))
        totals["store_bytes"] += summary.store_bytes
        seconds.update(summary.seconds)
        covered.update(summary.covered)
        failed_in += [part_name(number)] * bool(summary.failed)
        speeds += [] if summary.frames_per_s is None else [summary.frames_per_s]
    frames_per_s = sum(speeds) if speeds else None
    done_videos = totals["videos"] + totals["failed"]
    left = cache.index.videos - done_videos
    per_video = totals["frames"] / max(1, done_videos)
    return PartedStatus(
        cache=str(cache),
        parts=PartCounts(planned=len(cache), begun=len(begun) + len(lost), done=len(finished)),
        lost=lost,
        stores=totals["stores"],
        videos=cache.index.videos,
        stored=totals["videos"],
        failed=totals["failed"],
        failed_in=failed_in,
        frames=totals["frames"],
        store_bytes=totals["store_bytes"],
        seconds={step: round(spent_s, 3) for step, spent_s in seconds.items()},
        splits={
            split: PartedCoverage(clips=clips, covered=covered[split])
            for split, clips in cache.index.splits.items()
        },
        frames_per_s=frames_per_s,
        eta_s=left * per_video / frames_per_s if frames_per_s else None,
    )


def _summaries(
    cache: PartedCache, finished: list[int], begun: list[int]
) -> Iterator[tuple[int, PartSummary]]:
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(finished, pool.map(cache.summary, finished), strict=True)
    for number in sorted({*begun} - {*finished}):
        if cache.has_part(number):
            yield number, PartSummary.of(cache.part(number))
