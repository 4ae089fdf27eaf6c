"""One file of boxes: lines of numbers whose columns have names.

The columns are a list such as `x,y,w,h` or `frame,id,x1,y1,x2,y2,conf,...`. The box is one of

    x, y, w, h              its corner and its size
    cx, cy, w, h            its centre and its size
    x1, y1, x2, y2 [, x3, y3 ...]  two opposite corners, or the corners of a polygon
    region                  the rest of the line, as the VOT challenges write it: four numbers are
                            x, y, w, h, more are a polygon, a word beginning with `m` is a mask
                            of runs, and a single number is absence

`frame` and `id` say which frame and which object a line is of; all other names are free, and may be
asked for in conditions such as `lost=0`. `-` is a column that nobody reads, and `...` at the end
says that there may be more of them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.regular_files import read_regular
from pipeline.errors import BadInput

MOST_BYTES = 1 << 30
"""Of a text file of boxes."""
MORE, UNREAD, REGION = "...", "-", "region"
SEPARATORS = {
    "any": r"[,;\s]+",
    "comma": ",",
    "semicolon": ";",
    "tab": "\t",
    "blank": r"\s+",
}
"""Name -> regular expression of what lies between two columns."""
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
CONDITION = re.compile(r"\s*(.+?)\s*(!=|>=|<=|==|=|>|<)\s*(\S+)\s*")


class Condition(NamedTuple):
    """`name sign value`, such as `class=1`; what `name` is, is for its reader to say."""

    name: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str, where: str) -> Condition:
        """Raises BadInput unless it is a comparison with a number, or (with = and !=) a word."""
        match = CONDITION.fullmatch(text)
        if match is None:
            raise BadInput(f"{where}: wanted a comparison such as 'lost=0', found '{text}'")
        name, sign, value = match.groups()
        sign = "=" if sign == "==" else sign
        if sign not in ("=", "!=") and _number(value) is None:
            raise BadInput(f"{where}: '{sign}' compares with a number, found '{text}'")
        return cls(name, sign, value)

    def holds(self, word: str) -> bool:
        """Whether it is true of what stands in the file. A word that is no number is compared as
        text."""
        found, wanted = _number(word), _number(self.value)
        if found is None or wanted is None:
            same = word.strip('"') == self.value
            return same if self.sign == "=" else self.sign == "!=" and not same
        return COMPARED[self.sign](found, wanted)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


class Columns(NamedTuple):
    """What the columns of a file are."""

    names: tuple[str, ...]
    has_more: bool
    corners: tuple[str, ...]
    """Names of the columns of the box, in the order in which they are read."""
    kind: str
    """`size`, `centre`, `corners` or `region`."""

    @classmethod
    def parse(cls, text: str, where: str) -> Columns:
        """Raises BadInput unless the columns hold one box."""
        names = tuple(name.strip() for name in text.split(","))
        has_more = names[-1] == MORE
        names = names[:-1] if has_more else names
        named = [name for name in names if name != UNREAD]
        odd = [name for name in named if not re.fullmatch(r"[A-Za-z]\w*", name)]
        twice = [name for name in named if named.count(name) > 1]
        if odd or twice:
            wrong = f"'{odd[0]}' is no name" if odd else f"'{twice[0]}' stands twice"
            raise BadInput(f"{where}: {wrong} in '{text}'", "columns are split by commas")
        points = max((at for at in range(2, 65) if {f"x{at}", f"y{at}"} <= set(named)), default=2)
        corners = tuple(f"{axis}{at}" for at in range(1, points + 1) for axis in "xy")
        kinds = {
            "size": ("x", "y", "w", "h"),
            "centre": ("cx", "cy", "w", "h"),
            "corners": corners,
            REGION: (REGION,),
        }
        found = [kind for kind, wanted in kinds.items() if set(wanted) <= set(named)]
        if len(found) != 1:
            raise BadInput(
                f"{where}: wanted one box among the columns, found '{text}'",
                "a box is x,y,w,h or cx,cy,w,h or x1,y1,x2,y2 or a polygon x1,y1,...,x4,y4 or, "
                "as the VOT challenges write it, region",
            )
        if found[0] == REGION and (names[-1] != REGION or has_more):
            raise BadInput(f"{where}: region is the rest of the line and stands last, found {text}")
        return cls(names, has_more, kinds[found[0]], found[0])


class Rows(NamedTuple):
    """The lines of one file that hold a box or its absence."""

    line: np.ndarray
    """(N,) number of the line, counted from 1."""
    xyxy: np.ndarray
    """(N, 4) as written, but as corners; NaN where the line says that there is no box."""
    frame: np.ndarray | None
    """(N,) as written; None: line k is of the k-th frame."""
    objects: list[str] | None
    """What the column `id` says of each line; None: all are of one object."""
    is_kept: np.ndarray
    """(N,) bool: whether the conditions hold."""


class RowReader:
    """Reads files of one kind."""

    def __init__(
        self, columns: Columns, separator: str, header_lines: int, keep: Sequence[Condition]
    ) -> None:
        self.columns, self.header_lines, self.keep = columns, header_lines, tuple(keep)
        self.split = re.compile(SEPARATORS[separator])
        self.at = {name: place for place, name in enumerate(columns.names) if name != UNREAD}
        # Labels in quotation marks may hold blanks.
        self.quoted = re.compile(r'"[^"]*"|[^,;\s]+') if separator in ("any", "blank") else None

    def read(self, path: Path) -> Rows:
        """Raises BadInput with the number of the line where one is not as the columns say, or the
        file cannot be read."""
        try:
            text = read_regular(path, MOST_BYTES).decode("utf-8-sig", errors="replace")
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror}") from error
        lines: list[int] = []
        boxes, frames, objects, kept = [], [], [], []
        for number, line in enumerate(text.rstrip().splitlines(), start=1):
            line = line.strip()
            if number <= self.header_lines or line.startswith("#"):
                continue
            if not line:
                if "frame" in self.at or not lines:
                    continue
                raise BadInput(f"line {number}: is empty, and every line is a frame")
            words = self._words(line)
            lines.append(number)
            boxes.append(self._box(words, number, line))
            kept.append(all(rule.holds(words[self.at[rule.name]]) for rule in self.keep))
            if "frame" in self.at:
                frames.append(self._frame(words[self.at["frame"]], number))
            if "id" in self.at:
                objects.append(words[self.at["id"]])
        return Rows(
            np.array(lines, np.int64),
            np.array(boxes, np.float64).reshape(-1, 4),
            np.array(frames, np.int64) if "frame" in self.at else None,
            objects if "id" in self.at else None,
            np.array(kept, bool),
        )

    def _words(self, line: str) -> list[str]:
        if '"' in line and self.quoted is not None:
            return self.quoted.findall(line)
        return [word.strip() for word in self.split.split(line)]

    def _box(self, words: list[str], number: int, line: str) -> list[float]:
        """x1, y1, x2, y2 of a line's words; NaN where it says that there is none."""
        wanted = self.columns.names
        is_region = self.columns.kind == REGION
        few = len(words) < len(wanted)
        if few or (len(words) > len(wanted) and not (self.columns.has_more or is_region)):
            raise BadInput(
                f"line {number}: wanted {len(wanted)} columns ({','.join(wanted)}), found "
                f"{len(words)} in '{line[:40]}'"
            )
        if is_region:
            values = _region(words[self.at[REGION] :])
        else:
            values = [_number(words[self.at[name]]) for name in self.columns.corners]
        if values is None or None in values:
            raise BadInput(
                f"line {number}: wanted numbers ({','.join(self.columns.corners)}), found "
                f"'{line[:40]}'"
            )
        return _corners([float(value) for value in values if value is not None], self.columns.kind)

    def _frame(self, word: str, number: int) -> int:
        value = _number(word)
        if value is None or value != round(value) or abs(value) > 1e9:
            raise BadInput(f"line {number}: wanted the whole number of a frame, found '{word}'")
        return int(value)


def _region(words: list[str]) -> list[float | None] | None:
    """The numbers of a region; None where it is none. Written against the VOT toolkit's regions."""
    if len(words) == 1:
        return [float("nan")] * 4 if _number(words[0]) is not None else None
    if words[0].startswith("m"):
        return _mask_box([words[0][1:], *words[1:]])
    values = [_number(word) for word in words]
    return values if len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0) else None


def _mask_box(words: list[str]) -> list[float | None] | None:
    """x, y, w, h around the ones of a mask, which is written as the x, y, w, h of a part of the
    frame and the lengths of its runs of zeros and ones in turn, row by row."""
    if not all(re.fullmatch(r"\d{1,9}", word) for word in words) or len(words) < 5:
        return None
    left, top, width, _, *runs = map(int, words)
    stop = np.cumsum(runs)
    first, last = stop[:-1:2], stop[1::2] - 1
    is_long = last >= first
    first, last = first[is_long], last[is_long]
    if not len(first) or not width:
        return [float("nan")] * 4
    rows, last_rows = first // width, last // width
    is_whole = (last_rows > rows).any()  # a run over the end of a row holds both of its ends
    low = 0 if is_whole else (first % width).min()
    high = width - 1 if is_whole else (last % width).max()
    return [left + low, top + rows[0], high - low + 1, last_rows[-1] - rows[0] + 1]


def _corners(values: list[float], kind: str) -> list[float]:
    first, second, *rest = values
    if kind == "centre":
        width, height = rest
        return [first - width / 2, second - height / 2, first + width / 2, second + height / 2]
    if kind == "size" or (kind == REGION and len(values) == 4):
        width, height = rest
        return [first, second, first + width, second + height]
    if any(value != value for value in values):
        return [float("nan")] * 4
    x, y = values[::2], values[1::2]
    return [min(x), min(y), max(x), max(y)]


def read_flags(path: Path, rule: Condition) -> np.ndarray:
    """(N,) bool: which of the words of a file, one a frame, fulfil a condition. Raises BadInput."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    wrong = next((word for word in words if _number(word) is None), None)
    if wrong is not None:
        raise BadInput(f"wanted one number a frame, found '{wrong[:20]}'")
    return np.array([rule.holds(word) for word in words], bool)
