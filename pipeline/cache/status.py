"""What a cache holds and how its extraction is getting on, from its ledger and leases: as plain
data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.leases import holders
from pipeline.cache.receipts import Receipt

LAST = 16
"""Stores from which the speed of now is taken."""
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def status(cache: Cache) -> dict[str, Any]:
    """Coverage per split, failures by reason, bytes, speed, and who is at work."""
    receipts = cache.receipts
    seconds: Counter[str] = Counter()
    for receipt in receipts.values():
        seconds.update(receipt.seconds)
    frames = sum(receipt.frames for receipt in receipts.values())
    store_bytes = sum(receipt.store_bytes for receipt in receipts.values())
    workers = _workers(cache)
    left = sum(count for store in cache.missing_stores() for count in cache.plan[store].values())
    speed = (
        _speed(receipts.values())
        if any(worker["alive"] is not False for worker in workers)
        else None
    )
    sources = {video.video_id: video.source for video in cache.manifest.videos}
    return {
        "cache": str(cache),
        "spec": cache.spec["name"],
        "fingerprint": cache.fingerprint,
        "derived_from": cache.header.derived_from,
        "codec": cache.spec["codec"]["name"],
        "stores": {"planned": len(cache.plan), "done": len(receipts)},
        "videos": {
            "planned": sum(map(len, cache.plan.values())),
            "stored": len(cache.locations.keys() - cache.failures.keys()),
            "failed": len(cache.failures),
        },
        "frames": frames,
        "frames_left": left,
        "store_bytes": store_bytes,
        "bytes_per_frame": round(store_bytes / frames) if frames else None,
        "seconds": {step: round(spent, 3) for step, spent in seconds.items()},
        "splits": _splits(cache),
        "failures": {video_id: failure.reason for video_id, failure in cache.failures.items()},
        "reasons": reasons(
            {video_id: failure.reason for video_id, failure in cache.failures.items()}, sources
        ),
        "other_length": {
            video_id: {"decoded": counted.decoded, "header": counted.header}
            for video_id, counted in cache.content.items()
            if counted.header not in (None, counted.decoded)
        },
        "workers": workers,
        "frames_per_s": speed,
        "eta_s": left / speed if speed else None,
    }


def reasons(failures: Mapping[str, str], sources: Mapping[str, str]) -> list[dict[str, Any]]:
    """Failures with the same reason, whatever their numbers and the names of their files; most
    frequent first."""
    alike: dict[str, list[str]] = {}
    texts = {}
    for video_id, reason in failures.items():
        texts[video_id] = reason.removeprefix(f"{sources[video_id].rpartition('/')[2]}: ")
        alike.setdefault(NUMBER.sub("#", texts[video_id]), []).append(video_id)
    found = [
        {"reason": _common([texts[video] for video in videos]), "videos": videos}
        for videos in alike.values()
    ]
    return sorted(found, key=lambda group: -len(group["videos"]))


def _common(texts: list[str]) -> str:
    """Texts that differ in numbers alone as one, with "..." for each number that is not the same in
    all."""
    between = NUMBER.split(texts[0])
    numbers = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    shown = [each[0] if len(set(each)) == 1 else "..." for each in numbers]
    return "".join(part for pair in zip(between, [*shown, ""], strict=True) for part in pair)


def _splits(cache: Cache) -> dict[str, dict[str, int]]:
    """Of every split: clips, videos and expected frames, and how many of them are covered, whole
    and stored."""
    planned = {
        video_id: count for videos in cache.plan.values() for video_id, count in videos.items()
    }
    splits: dict[str, Counter[str]] = {}
    of_video = {}
    for clip in cache.manifest.clips:
        counts = splits.setdefault(
            clip.split,
            Counter(
                dict.fromkeys(("clips", "covered", "videos", "whole", "expected", "frames"), 0)
            ),
        )
        counts["clips"] += 1
        counts["covered"] += cache.hole(clip) is None
        of_video[clip.video_id] = counts
    for video_id, counts in of_video.items():
        place = cache.locations.get(video_id)
        counts["videos"] += 1
        counts["whole"] += place is not None and video_id not in cache.failures
        counts["frames"] += place.stop - place.start if place else 0
        counts["expected"] += planned[video_id]
    return {split: dict(counts) for split, counts in splits.items()}


def _speed(receipts: Iterable[Receipt]) -> float | None:
    """Frames per second of all workers together, over the last stores that were finished without a
    pause between them."""
    done = sorted(
        (r for r in receipts if r.finished_s is not None),
        key=lambda r: r.finished_s or 0.0,
        reverse=True,
    )
    if not done:
        return None
    last = [done[0]]
    for before in done[1 : LAST + 1]:
        # The steps of a store overlap, so it takes no longer than their work: a longer gap was a pause.
        if _finished(last[-1]) - _finished(before) > 2 * sum(last[-1].seconds.values()):
            break
        last.append(before)
    begin = (
        _finished(last[-1])
        if len(last) > 1
        else _finished(done[0]) - max(done[0].seconds.values(), default=0.0)
    )
    counted = last[:-1] or last
    span_s = _finished(done[0]) - begin
    return sum(receipt.frames for receipt in counted) / span_s if span_s > 0 else None


def _finished(receipt: Receipt) -> float:
    assert receipt.finished_s is not None
    return receipt.finished_s


def _workers(cache: Cache) -> list[dict[str, Any]]:
    """Who holds a lease: `alive` is None where that cannot be known from here."""
    return [
        {
            "lease": name,
            "pid": holder.pid,
            "machine": holder.machine.partition("-")[0],
            "is_here": holder.is_here,
            "alive": not holder.is_gone if holder.is_here else None,
        }
        for name, holder in sorted(holders(cache.storage).items())
    ]
