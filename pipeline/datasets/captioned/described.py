"""What any list of captions says, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.formats.clip_list import AS_UTF8
from pipeline.errors import BadInput

NOT_UTF8 = re.compile(r"[\ud800-\udfff]")
"""What stands for a byte that is no UTF-8, or for half a letter that JSON escapes."""


class Described(NamedTuple):
    """One clip as a list describes it."""

    listed_in: Path
    clip_id: str
    video: str
    """The video's name in the list."""
    source: str | None
    """Path of the video below the root; None where it is not there."""
    captions: Sequence[str]
    """In the order of the list. Those that are empty are counted, and left out."""
    split: str | None
    """None where the list states none."""
    start_s: float = 0.0
    stop_s: float | None = None
    label: str | None = None
    group: str | None = None
    """The recording that the video was cut from."""
    is_paragraph: bool = False
    """Whether all captions together are one."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions that are not empty, or the paragraph that they are."""
        texts = tuple(filter(None, self.captions))
        return (" ".join(texts),) if texts and self.is_paragraph else texts


def caption(value: object, place: str) -> str:
    """A caption without white space at its ends. Raises BadInput where it is no text."""
    if not isinstance(value, str):
        raise BadInput(f"{place}: a caption must be a text, found {str(value)[:40]}")
    if NOT_UTF8.search(value):
        raise BadInput(f"{place}: a caption is not UTF-8, found {value[:40]!a}", AS_UTF8)
    return value.strip()
