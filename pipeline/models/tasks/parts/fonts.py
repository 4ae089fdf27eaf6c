"""Fonts for words in any script.

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic, Arabic, Hebrew and more. What
it lacks, such as Chinese, Japanese or Devanagari, is taken from the fonts of the system. A letter
that no font has is drawn as an empty box, and `missing_letters` says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

DEFAULT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
SPECIAL_CUT = re.compile("bold|italic|oblique|mono|light|black|thin|condensed|serif", re.IGNORECASE)
"""Names of fonts that are taken only where no plain one has a letter."""
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode categories of what is not drawn: blanks, line breaks, marks of direction."""
NAMED = 12
"""Letters that a note names."""


def readable(words: str) -> str:
    """The words as letters alone: a byte of a file name that is no UTF-8 is spelled out, and a
    letter and its accent are one."""
    text = words.encode("utf-8", errors="backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", text)


def font_runs(words: str, size_px: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Readable words cut into pieces, each with a font that has its letters."""
    paths: list[Path] = []
    for letter in words:
        is_drawn = unicodedata.category(letter) not in INVISIBLE
        paths.append(font_of(letter) or DEFAULT if is_drawn else paths[-1] if paths else DEFAULT)
    pieces = groupby(zip(paths, words, strict=True), key=lambda pair: pair[0])
    return [
        (_sized(path, size_px), "".join(letter for _, letter in pairs)) for path, pairs in pieces
    ]


def families(texts: Iterable[str]) -> list[str]:
    """Names of the fonts that matplotlib needs to draw these texts, `DEFAULT` first."""
    letters = set(readable("".join(texts)))
    paths = {path for letter in letters if (path := font_of(letter))} - {DEFAULT}
    for path in sorted(paths):
        fontManager.addfont(path)
    return ["DejaVu Sans", *(FT2Font(str(path)).family_name for path in sorted(paths))]


def missing_letters(texts: Iterable[str]) -> str:
    """A sentence on the letters that no font has; empty if there are none."""
    letters = sorted(set(readable("".join(texts))))
    missing = [
        letter
        for letter in letters
        if unicodedata.category(letter) not in INVISIBLE and font_of(letter) is None
    ]
    if not missing:
        return ""
    more = " ..." if len(missing) > NAMED else ""
    return (
        f"no font of this machine has {' '.join(missing[:NAMED])}{more}: drawn as boxes; next: "
        "install one that does, for example Noto Sans CJK for Chinese, Japanese and Korean"
    )


@cache
def font_of(letter: str) -> Path | None:
    """The font that a letter is drawn in: `DEFAULT`, or else one of the system; None if no font
    has it."""
    if ord(letter) in _default_letters():
        return DEFAULT
    return next((path for path, codes in _system_fonts() if ord(letter) in codes), None)


@cache
def _sized(path: Path, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size_px)


@cache
def _default_letters() -> set[int]:
    return set(FT2Font(str(DEFAULT)).get_charmap())


class _Codes:
    """Numbers of the letters that a font has, in little memory, as there may be many fonts."""

    def __init__(self, font: FT2Font) -> None:
        self.sorted = np.array(sorted(font.get_charmap()), np.uint32)

    def __contains__(self, code: int) -> bool:
        index = int(np.searchsorted(self.sorted, code))
        return index < len(self.sorted) and int(self.sorted[index]) == code


@cache
def _system_fonts() -> list[tuple[Path, _Codes]]:
    """Fonts of the system with what they have, plain ones first."""
    fonts = []
    for path in sorted(map(Path, findSystemFonts()), key=_rank):
        try:
            ImageFont.truetype(path, 20)  # which refuses bitmaps, such as colourful faces
            fonts.append((path, _Codes(FT2Font(str(path)))))
        except (OSError, RuntimeError, ValueError):
            continue
    return fonts


def _rank(path: Path) -> tuple[bool, bool, str]:
    return bool(SPECIAL_CUT.search(path.stem)), "sans" not in path.stem.lower(), str(path)
