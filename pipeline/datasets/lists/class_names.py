"""Files that name the classes of a list which numbers them.

1 ApplyEyeMakeup                      classInd.txt of UCF101: from 1
abseiling                             label_map.txt of mmaction, jester-v1-labels.csv: from 0
adult+female+singing,4                moments_categories.txt; also id,name with a header
["Back", "15som", "05Twis", "FREE"]   Diving48_vocab.json: a list, each a text or several
{"Holding something": "12"}           JSON of name and number, either way round
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.datasets.lists.entries import Entry
from pipeline.errors import BadInput

NUMBER_FIRST = re.compile(r"(\d+)[\s,;:]+(\S.*)")
NUMBER_LAST = re.compile(r"(\S.*?)[\s,;:]+(\d+)")
HEADER = re.compile(r'"?(id|name|class|label|index)"?([,;\t]"?\w+"?)+', re.IGNORECASE)
CLASS_FILE = re.compile(r"class|label|categor|vocab|names")
"""What the name of such a file has, in small letters, and no name of a split."""


@dataclass(frozen=True)
class ClassNames:
    """Number -> name, as a file has them."""

    path: Path
    names: Mapping[int, str]
    counted: bool
    """Whether the file itself states the numbers, which may then begin at 1; else they are places
    in it, from 0."""

    def shift(self, entries: Iterable[Entry]) -> int:
        """What is added to a number of a list to find its name here: 1 where the list counts from 0
        and this file from 1, else 0. Raises BadInput where neither fits."""
        entries = [entry for entry in entries if entry.number is not None]
        shifts = [0, 1] if self.counted and 0 not in self.names else [0]
        known = {_plain(name) for name in self.names.values()}
        for entry in entries:
            folder = _plain(PurePosixPath(entry.path).parent.name)
            if folder in known:  # the folder says which number is meant
                shifts = [
                    shift
                    for shift in shifts
                    if _plain(self.names.get((entry.number or 0) + shift, "")) == folder
                ]
                if not shifts:
                    name = self.names.get(entry.number or 0, "no class")
                    raise BadInput(
                        f"{self.path} calls class {entry.number} '{name}', and {entry.path} lies "
                        f"in folder '{PurePosixPath(entry.path).parent.name}'",
                        "name the file of this list: --set classes=FILE",
                    )
        fitting = [
            shift
            for shift in shifts
            if all((entry.number or 0) + shift in self.names for entry in entries)
        ]
        if not fitting:
            strange = next(
                entry.number
                for entry in entries
                if (entry.number or 0) + shifts[-1] not in self.names
            )
            raise BadInput(
                f"{self.path} names {len(self.names)} classes, {min(self.names)} to "
                f"{max(self.names)}, and a list has class {strange}",
                "name the file of this list: --set classes=FILE",
            )
        if len(fitting) > 1:
            raise BadInput(
                f"{self.path} counts classes from 1, and the lists may count from 0: no line has "
                "class 0 or a folder that tells",
                "name the classes in a file with one name a line: --set classes=FILE",
            )
        return fitting[0]


def is_class_file(stem: str) -> bool:
    """Whether a file names classes, by its own name."""
    stem = stem.lower()
    return bool(CLASS_FILE.search(stem)) and not re.search(r"(?<![a-z])(train|val|test)", stem)


def names_from_text(path: Path, lines: Sequence[tuple[int, str]]) -> ClassNames:
    """Raises BadInput where a number or a name is there twice."""
    if len(lines) > 1 and HEADER.fullmatch(lines[0][1]):
        lines = lines[1:]
    texts = [text for _, text in lines]
    for pattern, number, name in ((NUMBER_FIRST, 1, 2), (NUMBER_LAST, 2, 1)):
        found = [pattern.fullmatch(text) for text in texts]
        pairs = [(int(match[number]), match[name]) for match in found if match]
        # "class 1", "class 2" are names that end in numbers.
        if len(pairs) == len(texts) == len({text for _, text in pairs}):
            return _checked(path, pairs, counted=True)
    return _checked(path, list(enumerate(texts)), counted=False)


def names_from_json(path: Path, content: Any) -> ClassNames:
    """Raises BadInput where the file is neither a list of names nor names and numbers."""
    if isinstance(content, list):
        names = [
            " ".join(map(str, name)) if isinstance(name, list) else str(name) for name in content
        ]
        return _checked(path, list(enumerate(names)), counted=False)
    table = content if isinstance(content, dict) else {}
    for pairs in (table.items(), ((value, key) for key, value in table.items())):
        read = [(str(number), str(name)) for number, name in pairs]
        if read and all(number.isdecimal() for number, _ in read):
            return _checked(path, [(int(number), name) for number, name in read], counted=True)
    raise BadInput(f"{path} does not name classes: wanted a list, or names and their numbers")


def _checked(path: Path, pairs: list[tuple[int, str]], counted: bool) -> ClassNames:
    names = {number: name.strip().strip('"') for number, name in pairs}
    if len(names) < len(pairs):
        raise BadInput(f"{path} gives a number to two classes")
    by_name = {name: number for number, name in names.items()}
    if len(by_name) < len(names):
        twice = next(name for number, name in names.items() if by_name[name] != number)
        raise BadInput(f"{path} has class '{twice}' twice")
    return ClassNames(path, names, counted)


def _plain(name: str) -> str:
    """A name as folders write it: case, blanks and quotes do not count."""
    return re.sub(r"[\W_]+", "", name).lower()
