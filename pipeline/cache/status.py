"""Status of a cache: what it holds, and how its extraction is getting on, from its receipts and
leases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline.cache.cache import Cache, require_planned
from pipeline.cache.leases import holders
from pipeline.cache.receipts import Content, DamagedStretch, Receipt
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.records import Clip

RECENT_STORES = 16
"""Stores from which the speed of now is taken."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")


class StoreCounts(Settings):
    """Numbers of stores."""

    planned: int
    done: int


class VideoCounts(Settings):
    """Numbers of videos."""

    planned: int
    stored: int
    """Stored whole."""
    failed: int
    """Not, or not wholly, stored."""


class Hole(Settings):
    """A clip that cannot be read whole."""

    clip: str
    reason: str


class SplitCoverage(Settings):
    """Coverage of one split."""

    clips: int
    covered: int
    """Clips that can be read whole."""
    first_hole: Hole | None
    """The first of the others; None where there are none."""
    videos: int
    whole: int
    """Videos that are stored whole."""
    expected: int
    """Frames, by the headers of the files."""
    frames: int
    """Frames that are stored."""


class FailureGroup(Settings):
    """Videos that failed for the same reason."""

    reason: str
    """The common reason, with "..." for each number that is not the same in all."""
    videos: list[str]


class WorkerStatus(Settings):
    """Who holds a lease."""

    lease: str
    pid: int
    machine: str
    is_here: bool
    """Whether it is, or was, a process of this machine."""
    alive: bool | None
    """None where that cannot be known from here."""


class Status(Settings):
    """Coverage per split, failures by reason, bytes, speed, and who is at work. As JSON it is what
    `stillframe status --json` prints."""

    cache: str
    manifest: str | None
    """Folder of the manifest whose clips `splits` counts; None: the one that was extracted."""
    spec: str
    fingerprint: str
    derived_from: str | None
    codec: str
    stores: StoreCounts
    videos: VideoCounts
    frames: int
    frames_left: int
    """Frames expected in the stores that are missing."""
    store_bytes: int
    bytes_per_frame: int | None
    """None where nothing is stored."""
    seconds: dict[str, float]
    """Step -> work of it in all stores."""
    splits: dict[str, SplitCoverage]
    failures: dict[str, str]
    """video_id -> reason."""
    reasons: list[FailureGroup]
    """Most frequent first."""
    other_length: dict[str, Content]
    """video_id -> frames, for videos that hold another number than their header promises."""
    damaged: dict[str, tuple[DamagedStretch, ...]]
    """video_id -> its frames that are damaged or missing, left out or kept."""
    workers: list[WorkerStatus]
    frames_per_s: float | None
    """Speed of all workers together, over the last stores; None where nobody is at work."""
    eta_s: float | None
    """Seconds until no frame is left, at this speed."""

    @property
    def is_worked_on(self) -> bool:
        """Whether somebody is, or may be, at work."""
        return any(worker.alive is not False for worker in self.workers)


def status(cache: Cache, manifest: Manifest | None = None) -> Status:
    """Reads all receipts and leases of a cache; `manifest` is one over its videos, whose clips are
    counted in place of its own. Raises BadInput where a receipt is damaged, or the manifest has
    other videos."""
    if manifest is not None:
        require_planned(cache, manifest)
    receipts = cache.receipts
    seconds: Counter[str] = Counter()
    for receipt in receipts.values():
        seconds.update(receipt.seconds)
    frames = sum(receipt.frames for receipt in receipts.values())
    store_bytes = sum(receipt.store_bytes for receipt in receipts.values())
    workers = _workers(cache)
    frames_left = sum(
        count for store in cache.missing_stores() for count in cache.plan[store].values()
    )
    is_worked_on = any(worker.alive is not False for worker in workers)
    frames_per_s = _frames_per_s(receipts.values()) if is_worked_on else None
    failures = {video_id: failure.reason for video_id, failure in cache.failures.items()}
    sources = {video.video_id: video.source for video in cache.manifest.videos}
    return Status(
        cache=str(cache),
        manifest=None if manifest is None else str(manifest.folder),
        spec=cache.spec["name"],
        fingerprint=cache.fingerprint,
        derived_from=cache.header.derived_from,
        codec=cache.spec["codec"]["name"],
        stores=StoreCounts(planned=len(cache.plan), done=len(receipts)),
        videos=VideoCounts(
            planned=sum(map(len, cache.plan.values())),
            stored=len(cache.locations.keys() - cache.failures.keys()),
            failed=len(cache.failures),
        ),
        frames=frames,
        frames_left=frames_left,
        store_bytes=store_bytes,
        bytes_per_frame=round(store_bytes / frames) if frames else None,
        seconds={step: round(spent_s, 3) for step, spent_s in seconds.items()},
        splits=_splits(cache, manifest or cache.manifest),
        failures=failures,
        reasons=group_failures(failures, sources),
        other_length={
            video_id: content
            for video_id, content in cache.content.items()
            if content.header not in (None, content.decoded)
        },
        damaged={
            video_id: content.damaged
            for video_id, content in cache.content.items()
            if content.damaged
        },
        workers=workers,
        frames_per_s=frames_per_s,
        eta_s=frames_left / frames_per_s if frames_per_s else None,
    )


def group_failures(failures: Mapping[str, str], sources: Mapping[str, str]) -> list[FailureGroup]:
    """Failures (video_id -> reason) with the same reason, whatever their numbers and the names of
    their files; most frequent first."""
    groups: dict[str, list[str]] = {}
    texts = {}
    for video_id, reason in failures.items():
        texts[video_id] = reason.removeprefix(f"{sources.get(video_id, '').rpartition('/')[2]}: ")
        groups.setdefault(NUMBER.sub("#", texts[video_id]), []).append(video_id)
    named = [
        FailureGroup(reason=_common_text([texts[video] for video in videos]), videos=videos)
        for videos in groups.values()
    ]
    return sorted(named, key=lambda group: -len(group.videos))


def _common_text(texts: list[str]) -> str:
    """Texts that differ in numbers alone as one, with "..." for each number that is not the same in
    all."""
    between = NUMBER.split(texts[0])
    numbers = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    shown = [column[0] if len(set(column)) == 1 else "..." for column in numbers]
    return "".join(part for pair in zip(between, [*shown, ""], strict=True) for part in pair)


def _splits(cache: Cache, manifest: Manifest) -> dict[str, SplitCoverage]:
    """Coverage of every split of a manifest. A video with clips in two splits counts in both."""
    planned = {
        video_id: count for videos in cache.plan.values() for video_id, count in videos.items()
    }
    splits: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        splits.setdefault(clip.split, []).append(clip)
    coverages = {}
    for split, clips in splits.items():
        holes = [Hole(clip=clip.clip_id, reason=why) for clip in clips if (why := cache.hole(clip))]
        videos = {clip.video_id for clip in clips}
        stored = [cache.locations[video] for video in videos if video in cache.locations]
        coverages[split] = SplitCoverage(
            clips=len(clips),
            covered=len(clips) - len(holes),
            first_hole=holes[0] if holes else None,
            videos=len(videos),
            whole=len((videos & cache.locations.keys()) - cache.failures.keys()),
            expected=sum(planned.get(video, 0) for video in videos),
            frames=sum(location.stop - location.start for location in stored),
        )
    return coverages


def _frames_per_s(receipts: Iterable[Receipt]) -> float | None:
    """Frames per second of all workers together, over the last stores that were finished without a
    pause between them; None where no receipt says when its store was finished."""
    done = sorted(
        (receipt for receipt in receipts if receipt.finished_s is not None),
        key=_finished_s,
        reverse=True,
    )
    if not done:
        return None
    last = [done[0]]
    for earlier in done[1 : RECENT_STORES + 1]:
        # The steps of a store overlap, so it takes no longer than their work: a longer gap was a
        # pause.
        if _finished_s(last[-1]) - _finished_s(earlier) > 2 * sum(last[-1].seconds.values()):
            break
        last.append(earlier)
    begin = (
        _finished_s(last[-1])
        if len(last) > 1
        else _finished_s(done[0]) - max(done[0].seconds.values(), default=0.0)
    )
    counted = last[:-1] or last
    span_s = _finished_s(done[0]) - begin
    return sum(receipt.frames for receipt in counted) / span_s if span_s > 0 else None


def _finished_s(receipt: Receipt) -> float:
    assert receipt.finished_s is not None
    return receipt.finished_s


def _workers(cache: Cache) -> list[WorkerStatus]:
    """Who holds a lease, by the name of the lease."""
    return [
        WorkerStatus(
            lease=name,
            pid=holder.pid,
            machine=holder.machine.partition("-")[0],
            is_here=holder.is_here,
            alive=not holder.is_gone if holder.is_here else None,
        )
        for name, holder in sorted(holders(cache.storage).items())
    ]
