"""Verification of a cache in parts, one part after the other: memory is that of one part, and of
what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import count_damaged_frames, damaged_videos
from pipeline.cache.layout import HEADER_FILE, LOG_FILE, MARKS, RECEIPTS, mark_file, store_name
from pipeline.cache.parts.parted import PartedCache, PartSummary, require_alike
from pipeline.cache.verify import Verification, advice, verify_cache
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.manifest import PARTS
from pipeline.datasets.manifest.parts import part_name
from pipeline.errors import BadInput, count_text


class BadPart(Settings):
    """A part of which something is damaged."""

    part: str
    """Its folder, as 00017."""
    stores: list[int]
    """Its damaged stores."""
    frames: int
    """Rows of these that cannot be trusted."""
    videos: int
    """Videos that these rows are of."""
    problem: str
    """The first that is wrong with it: where, what is found, and what is wanted."""
    more: int
    """Other things that are wrong with it."""
    next_step: str

    @property
    def text(self) -> str:
        """All of this in a line."""
        more = f", and {self.more} more" if self.more else ""
        frames, videos = count_text(self.frames, "frame"), count_text(self.videos, "video")
        hit = f"; {frames} of {videos} cannot be trusted" if self.frames else ""
        return f"part {self.part}: {self.problem}{more}{hit}; next: {self.next_step}"


@dataclass
class PartedVerification:
    """Result of checking every byte of a cache in parts."""

    cache: PartedCache
    begun: int
    """Parts that there are."""
    parts: int = 0
    """Parts whose stores were looked at."""
    checked: int = 0
    """These stores."""
    missing: int = 0
    """Stores of these parts that are not extracted yet."""
    bad: list[BadPart] = field(default_factory=list)
    orphans: dict[str, str] = field(default_factory=dict)
    """File or folder that does not belong there -> why. Nothing reads it."""

    def add(self, part: Cache, found: Verification) -> None:
        """Takes over what was found of a part."""
        self.parts += 1
        self.checked += found.checked
        self.missing += len(found.missing)
        self.orphans |= {f"{part.name}/{file}": why for file, why in found.orphans.items()}
        if not found.is_valid:
            self.bad.append(_of_part(part, found))


def verify_parts(
    cache: PartedCache, on_part: Callable[[int, int], None] | None = None
) -> PartedVerification:
    """Checks every byte of all parts that were begun, that they are of one spec, and that the marks
    of finished ones say what their receipts say. Changes nothing; `on_part` is told (parts done,
    parts to do)."""
    marked = {*cache.finished()}
    numbers = sorted({*cache.begun(), *marked})
    verification = PartedVerification(cache, len(numbers), orphans=_orphans(cache))
    fingerprint = ""
    for done, number in enumerate(numbers, 1):
        try:
            if (part := _planned(cache, number, number in marked)) is not None:
                fingerprint = fingerprint or part.fingerprint
                require_alike(part, fingerprint)
                verification.add(part, found := verify_cache(part))
                if found.is_valid and number in marked:
                    _require_mark(cache, number, part)
        except BadInput as error:
            verification.bad.append(_unreadable(part_name(number), error))
        if on_part:
            on_part(done, len(numbers))
    return verification


def _planned(cache: PartedCache, number: int, is_marked: bool) -> Cache | None:
    """The cache of a part; None where nobody has planned it yet. Raises BadInput."""
    name = part_name(number)
    if cache.has_part(number):
        return cache.part(number)
    if is_marked or cache.storage.names(f"{name}/{RECEIPTS}"):
        before = f"remove {cache}/{mark_file(name)}, and " if is_marked else ""
        raise BadInput(f"{cache}/{name}/{HEADER_FILE} is missing", f"{before}run extract again")
    return None


def _of_part(part: Cache, found: Verification) -> BadPart:
    problems = [f"{part}/{file}: {problem}" for file, problem in found.cache_problems.items()]
    for damage in found.damage:
        is_below_cache = damage.file.startswith((f"{RECEIPTS}/", store_name(damage.store)))
        file = damage.file if is_below_cache else f"{store_name(damage.store)}/{damage.file}"
        problems.append(f"{part}/{file}: {damage.problem}")
    return BadPart(
        part=part.name,
        stores=found.stores,
        frames=count_damaged_frames(found.damage),
        videos=len(damaged_videos(found.damage)),
        problem=problems[0],
        more=len(problems) - 1,
        next_step=advice(part, next(iter(found.cache_problems)))
        if found.cache_problems
        else f"stillframe verify {part} --repair",
    )


def _unreadable(name: str, error: BadInput) -> BadPart:
    """A part of which nothing but this is known."""
    return BadPart(
        part=name,
        stores=[],
        frames=0,
        videos=0,
        problem=error.message,
        more=0,
        next_step=error.hint or "",
    )


def _require_mark(cache: PartedCache, number: int, part: Cache) -> None:
    """Compares the mark of a finished part with its receipts, which are sound. Raises BadInput."""
    said = cache.summary(number).model_dump()
    found = PartSummary.of(part).model_dump() | {"frames_per_s": None}
    differ = [key for key in found if said[key] != found[key]]
    if differ:
        raise BadInput(
            f"{cache}/{mark_file(part_name(number))} says {differ[0]} {said[differ[0]]}, the "
            f"receipts of its part {found[differ[0]]}",
            "remove it, and run extract again",
        )


def _orphans(cache: PartedCache) -> dict[str, str]:
    parts = {part_name(number) for number in range(len(cache))}
    contents = {"": {PARTS, MARKS, LOG_FILE, *parts}, MARKS: {f"{part}.json" for part in parts}}
    return {
        f"{folder}/{name}" if folder else name: "does not belong here"
        for folder, belonging in contents.items()
        for name in cache.storage.names(folder)
        if name not in belonging
    }
