"""What any list of clips says, whatever its format."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.errors import BadInput
from pipeline.video.probe import MEDIA_SUFFIXES


class Entry(NamedTuple):
    """One clip as a list names it."""

    line: int
    """Of the file, or number of the entry in it, from 1."""
    path: str
    """Video or folder of frames; folders before it and the suffix may be missing."""
    label: str | None = None
    """Name of the class."""
    number: int | None = None
    """Number of the class, where the list has no name for it."""
    split: str | None = None
    """Split that the line itself states; None: that of its file."""
    frames: int | None = None
    """Images that a folder of frames should have."""
    start_s: float = 0.0
    stop_s: float | None = None
    """Stretch in `path`, in seconds."""
    cut: str | None = None
    """Name of a file that holds this stretch and nothing else, which is looked for first."""
    also: str | None = None
    """Another name that people give to `path`."""
    stretch_frames: tuple[int, int] | None = None
    """Stretch in frames of the video, [first, end)."""
    group: str | None = None
    """The recording that the clip was cut from."""


SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Name of a split, in small letters, in published lists -> ours."""
IN_A_FILE_NAME = re.compile(r"(?<![a-z])(train|val|test)")
FOLD = re.compile(r"(?:list|split|fold)[_-]?0?([1-9])(?!\d)")


def stem_of(path: str) -> str:
    """The name that a path ends in, without the suffix of a video. Other dots are part of it."""
    name = PurePosixPath(path.replace("\\", "/")).name
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in MEDIA_SUFFIXES else name


def has_media_suffix(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in MEDIA_SUFFIXES


def split_of_file(stem: str) -> str | None:
    """The split that the name of a list states; None if it states none, or two."""
    found = set(IN_A_FILE_NAME.findall(stem.lower()))
    return found.pop() if len(found) == 1 else None


def split_named(value: object, where: str) -> str | None:
    """The split that a line states by one of its names; None where the value is None. Raises
    BadInput."""
    if value is None:
        return None
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise BadInput(
            f"{where}: no split called '{str(value)[:40]}'; there are: {', '.join(SPLIT_NAMES)}"
        )
    return split


def fold_of_file(stem: str) -> int | None:
    """Which of several official divisions into train and test a list is of, by its name."""
    found = FOLD.search(stem.lower())
    return int(found[1]) if found else None
