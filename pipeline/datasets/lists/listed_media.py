"""Videos and folders of frames, found by what lists call them.

Lists name files below folders that differ from one machine to the next, with a suffix or without.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.folders import find_media
from pipeline.datasets.formats.splits import add_note
from pipeline.datasets.lists.entries import stem_of
from pipeline.errors import count_text


class ListedMedia:
    """Finds the videos and folders of frames that lists mean, as sources under the root."""

    def __init__(self, dataset: DatasetPlugin, paths: Iterable[str]) -> None:
        """`paths`: those that the lists have, one for each clip. Raises BadInput if there is no
        media at all."""
        self.sources = find_media(dataset)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for source in self.sources:
            self._by_stem[_composed(stem_of(source))].append(source)
        self._wanted = Counter(_composed(stem_of(path)) for path in paths)
        self._elsewhere: dict[str, str] = {}
        self._doubles: dict[str, list[str]] = {}

    def find(self, path: str) -> str | None:
        """The source whose folders are those of the path, as far as both have some; else, where
        the name is there once and is meant once, the one of that name in another folder."""
        parts = PurePosixPath(_composed(path.replace("\\", "/"))).parts
        stem = _composed(stem_of(path))
        named = self._by_stem.get(stem, [])
        alike = [source for source in named if _agree(parts[:-1], source)]
        exact = [source for source in alike if PurePosixPath(_composed(source)).name == parts[-1]]
        found = exact or alike
        if len(found) > 1:
            self._doubles[path] = found
        if not found and len(named) == 1 and self._wanted[stem] == 1:
            self._elsewhere[path] = named[0]
            return named[0]
        return found[0] if found else None

    def note(self, dataset: DatasetPlugin, used: set[str]) -> None:
        """Says what was found in other places than the lists say, twice, or is in no list."""
        for problem, names in (
            ("in other folders than the lists say", list(self._elsewhere)),
            ("there twice, and the first is used", list(self._doubles)),
            ("in no list", [source for source in self.sources if source not in used]),
        ):
            if names:
                text = f"{problem}: {count_text(len(names), 'video')} ({few(names)})"
                add_note(dataset.notes, "lists", text)


def _agree(folders: tuple[str, ...], source: str) -> bool:
    """Whether the folders of a path end as those of a source do, as far as both have some."""
    own = PurePosixPath(_composed(source)).parts[:-1]
    length = min(len(folders), len(own))
    return length == 0 or folders[-length:] == own[-length:]


def _composed(text: str) -> str:
    """Unicode writes one letter in two ways, and systems differ in which."""
    return unicodedata.normalize("NFC", text)
