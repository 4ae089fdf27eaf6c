"""Lists without a header, one clip a line: what each line is, is seen from the line alone.

    ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1     UCF101 (trainlist01.txt; testlist01.txt has no
                                                      number), and mmaction lists of videos
    some/folder 300 12                                mmaction lists of frames: images, class
    34870;Drumming Fingers                            Jester, Something-Something v1
    blowing/flickr-1_3.mp4,blowing,3,0                Moments in Time: votes for and against
    April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1       HMDB51 (<class>_test_split1.txt: 1 train, 2
                                                      test, 0 neither)

After tools/data/parse_file_list.py and mmaction/datasets/*_dataset.py of github.com/open-mmlab/
mmaction2, and torchvision/datasets/{ucf101,hmdb51}.py of github.com/pytorch/vision.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.datasets.lists.entries import Entry, has_media_suffix
from pipeline.errors import BadInput
from pipeline.video.probe import MEDIA_SUFFIXES

HMDB = re.compile(r"(?P<label>.+)_test_split[1-9]")
HMDB_SPLITS = {"1": "train", "2": "test", "0": None}
SUFFIX = re.compile(
    rf"(?:{'|'.join(map(re.escape, sorted(MEDIA_SUFFIXES)))})(?=[ \t,])", re.IGNORECASE
)
WORD = re.compile(r"[^ \t,]+")
NUMBER = re.compile(r"-?\d{1,9}")
MANY_LABELS = "stillframe reads one class for each clip: keep one in each line"


class Line(NamedTuple):
    """One line, and of which kind it is."""

    kind: str
    entry: Entry
    numbers: tuple[int, ...] = ()


def read_text_list(path: Path, lines: Sequence[tuple[int, str]]) -> list[Entry]:
    """The clips of a list that has no header, from its (number, text) that are not empty.

    Raises BadInput, naming the line, where lines are of two kinds or of none.
    """
    if hmdb := HMDB.fullmatch(path.stem):
        return list(_hmdb(path, lines, hmdb["label"]))
    read = [_line(number, text, f"{path} line {number}") for number, text in lines]
    first = read[0]
    for line in read:
        if line.kind != first.kind:
            raise BadInput(
                f"{path}: line {first.entry.line} is {first.kind}, line {line.entry.line} is "
                f"{line.kind}",
                "every line of a list must be of one kind",
            )
    return [line.entry for line in read]


def looks_like_a_list(text: str) -> bool:
    """Whether one line could name a clip: it has a folder, the suffix of a video, or a class behind
    a name."""
    try:
        line = _line(1, text, "")
    except BadInput:
        return True
    return line.kind != "a path alone" or line.entry.label is not None or has_media_suffix(text)


def _line(number: int, text: str, where: str) -> Line:
    """Raises BadInput where a line has several classes, or names nothing."""
    path, separator, label = text.partition(";")
    if separator:
        name = label.strip().strip('"') or None  # test lists have the id alone
        return Line("id;class", Entry(number, path.strip(), name))
    if suffix := SUFFIX.search(text):
        name = text[suffix.end() :].lstrip(" \t,").partition(",")[0].strip()
        if name and not NUMBER.match(name):
            return Line("path,class", Entry(number, text[: suffix.end()], name))
    path, numbers = _trailing_numbers(text)
    if numbers:
        if len(numbers) > 2 or (len(numbers) == 2 and has_media_suffix(path)):
            raise BadInput(
                f"{where}: '{text[:60]}' has {len(numbers)} numbers, which are several classes",
                MANY_LABELS,
            )
        frames = numbers[0] if len(numbers) == 2 else None
        kind = "path class" if frames is None else "path frames class"
        number_of_class = numbers[-1] if numbers[-1] >= 0 else None
        entry = Entry(number, path, number=number_of_class, frames=frames)
        return Line(kind, entry, numbers)
    folder = PurePosixPath(text.replace("\\", "/")).parent.name
    return Line("a path alone", Entry(number, text, folder or None))


def _trailing_numbers(text: str) -> tuple[str, tuple[int, ...]]:
    """What stands before the numbers at the end of a line, and these; at least one word is left."""
    words = list(WORD.finditer(text))
    first = len(words)
    while first > 1 and NUMBER.fullmatch(words[first - 1][0]):
        first -= 1
    numbers = tuple(int(word[0]) for word in words[first:])
    return (text[: words[first - 1].end()] if words else text), numbers


def _hmdb(path: Path, lines: Sequence[tuple[int, str]], label: str) -> Iterator[Entry]:
    for number, text in lines:
        name, _, sign = text.rpartition(" ")
        if sign not in HMDB_SPLITS or not name.strip():
            raise BadInput(
                f"{path} line {number}: wanted a file and 0, 1 or 2, found '{text[:60]}'"
            )
        if split := HMDB_SPLITS[sign]:
            yield Entry(number, name.strip(), label, split=split)
