"""A cache in parts, as it lies in a folder or an object store: the index of its manifest, a cache
for every part that was begun, and a mark for every part that is finished.

```
<name>-<12 hex>/
  parts.json         the manifest's index: which parts there are to be
  00000/ 00001/ ...  caches, each of one part, as `pipeline.cache.layout` describes them
  done/00000.json    what a finished part holds, so that nobody looks at it again
```

No file here grows with the number of clips but the index, by one entry for each part. Stores,
leases and receipts are those of the parts: workers that are at different parts never meet.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.cache.cache import Cache
from pipeline.cache.layout import HEADER_FILE, MARKS, mark_file
from pipeline.cache.receipts import Number
from pipeline.cache.status import status
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.open import open_storage
from pipeline.config.json_files import parse_json, to_json
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.manifest import CLIPS, PARTS
from pipeline.datasets.manifest.parts import PARTS_FORMAT, PartsIndex, part_name
from pipeline.errors import BadInput


class PartSummary(Settings):
    """What a part of a cache holds: the content of done/00000.json, once it is finished."""

    stores: Number
    """Finished stores."""
    stores_planned: Number
    videos: Number
    """Stored whole."""
    failed: Number
    """Videos that are not, or not wholly, stored."""
    frames: Number
    store_bytes: Number
    seconds: dict[str, float]
    """Step -> work of it in all stores."""
    covered: dict[str, Number] = Field(default_factory=dict)
    """Split -> clips that can be read whole."""
    frames_per_s: float | None = None
    """Speed of all workers together that are at it; None where nobody is."""

    @classmethod
    def of(cls, cache: Cache) -> PartSummary:
        """Reads all receipts of a part. Raises BadInput where one is damaged."""
        state = status(cache)
        return cls(
            stores=state.stores.done,
            stores_planned=state.stores.planned,
            videos=state.videos.stored,
            failed=state.videos.failed,
            frames=state.frames,
            store_bytes=state.store_bytes,
            seconds=state.seconds,
            covered={split: counts.covered for split, counts in state.splits.items()},
            frames_per_s=state.frames_per_s,
        )


class PartedCache:
    """A cache in parts. Opening it reads its index, and no part."""

    def __init__(self, storage: Storage | Path | str) -> None:
        """Raises BadInput where there is none."""
        self.storage = storage if isinstance(storage, Storage) else open_storage(storage)
        try:
            self.index_bytes = self.storage.read(PARTS)
        except OSError as error:
            raise BadInput(f"{self} is no cache in parts: {PARTS}: {error.strerror}") from error
        self.index = parse_json(
            PartsIndex,
            self.index_bytes,
            f"{self}/{PARTS}",
            f"copy {PARTS} of the manifest it was extracted from here",
            range(PARTS_FORMAT, PARTS_FORMAT + 1),
        )
        if self.storage.exists(f"{part_name(0)}/{CLIPS}"):
            raise BadInput(
                f"{self} is a manifest in parts, and a cache is wanted here",
                "name what was extracted from it, as caches/NAME",
            )

    def __str__(self) -> str:
        return str(self.storage)

    def __len__(self) -> int:
        """The number of parts that there are to be."""
        return len(self.index.parts)

    def begun(self) -> list[int]:
        """Parts of which there is a cache now, or a folder for one."""
        return self._numbers(self.storage.names(""), "")

    def finished(self) -> list[int]:
        """Parts of which all stores are there."""
        return self._numbers(self.storage.names(MARKS), ".json")

    def has_part(self, number: int) -> bool:
        """Whether there is a cache of a part now."""
        return self.storage.exists(f"{part_name(number)}/{HEADER_FILE}")

    def part(self, number: int) -> Cache:
        """The cache of a part that was begun. Raises BadInput where it is of another manifest than
        the index lists."""
        cache = Cache(self.storage.below(part_name(number)))
        wanted = self.index.parts[number].digest
        if cache.header.manifest != wanted:
            raise BadInput(
                f"{cache} is of another manifest than {self}/{PARTS} lists: its digest is "
                f"{cache.header.manifest}, wanted {wanted}",
                "put back what was there, or extract into another --out",
            )
        return cache

    def summary(self, number: int) -> PartSummary:
        """The mark of a finished part."""
        name = mark_file(part_name(number))
        hint = f"remove it, and run extract again: it looks at part {part_name(number)} anew"
        return parse_json(PartSummary, self.storage.read(name), f"{self}/{name}", hint)

    def mark(self, number: int) -> None:
        """Marks a part as finished, of which no store is missing."""
        summary = PartSummary.of(self.part(number)).model_copy(update={"frames_per_s": None})
        self.storage.write(mark_file(part_name(number)), to_json(summary))

    def _numbers(self, names: list[str], suffix: str) -> list[int]:
        known = {f"{part_name(number)}{suffix}": number for number in range(len(self))}
        return [known[name] for name in names if name in known]


def require_alike(cache: Cache, fingerprint: str) -> None:
    """Refuses a cache that is of another spec than what lies around it. Raises BadInput."""
    if cache.fingerprint != fingerprint:
        raise BadInput(
            f"{cache} is of another spec than wanted here: its fingerprint is {cache.fingerprint}, "
            f"wanted {fingerprint}",
            f"move {cache} away, and run extract again",
        )
