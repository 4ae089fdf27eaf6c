"""Words of any script on pictures: which font has which letter, and what is said where none has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from support.paths import ROOT

from pipeline.models.tasks.parts import fonts
from pipeline.models.tasks.parts.canvas import Canvas

NOBODYS = "\U000e0fff"  # a number that Unicode has not given away


def drawn(words: str) -> np.ndarray:
    canvas = Canvas(np.full((384, 384, 3), 127, np.uint8))
    canvas.text((0.1, 0.1), words)
    return canvas.pixels


@pytest.mark.parametrize("letters", ["éïüßñøő", "КошайЖщ", "αβωλΣ", "ابتثعن", "שלוםא"])
def test_letters_of_other_alphabets_are_drawn_and_told_apart(letters):
    box = drawn(NOBODYS)
    pictures = [drawn(letter) for letter in letters]
    for picture in pictures:
        assert (picture != 127).any() and (picture != box).any()
    for first, second in combinations(pictures, 2):
        assert (first != second).any()
    assert fonts.missing_letters([letters]) == ""


def test_words_run_from_the_left_in_their_own_order():
    """The percentage stands before an Arabic label, whose letters are joined and run to the left."""
    words, alone = drawn("50% نص"), drawn("50%")
    columns = np.flatnonzero((alone != 127).any((0, 2)))
    np.testing.assert_array_equal(
        words[:, columns[0] : columns[-1]], alone[:, columns[0] : columns[-1]]
    )
    np.testing.assert_array_equal(drawn("cafe\u0301"), drawn("café"))
    np.testing.assert_array_equal(drawn("two\n lines\t"), drawn("two lines"))
    np.testing.assert_array_equal(drawn("byte \udce9"), drawn(r"byte \udce9"))


def test_letters_that_no_font_has_are_named_once():
    assert fonts.missing_letters(["café", "\u200eКошка\n"]) == ""
    words = fonts.missing_letters([f"a{NOBODYS}", NOBODYS, "b"])
    assert words.startswith(f"no font of this machine has {NOBODYS}: drawn as boxes; next: install")
    many = "".join(chr(0xE0F00 + number) for number in range(40))
    assert fonts.missing_letters([many]).count(" ...") == 1
    assert fonts.families(["café", NOBODYS]) == ["DejaVu Sans"]


def made_font(path: Path, letters: str) -> None:
    """A font in which each of the letters is a bar of another height."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"glyph{number}" for number in range(len(letters)))]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): names[1 + i] for i, letter in enumerate(letters)})
    glyphs = {}
    for number, name in enumerate(names):
        pen, top = TTGlyphPen(None), 100 + 150 * number
        pen.moveTo((100, 0))
        for corner in ((100, top), (800, top), (800, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": "Made Sans", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


SCRIPT = """
import json, sys
import numpy as np
from pipeline.models.tasks.parts import fonts
from pipeline.models.tasks.parts.canvas import Canvas

def drawn(words):
    canvas = Canvas(np.full((384, 384, 3), 127, np.uint8))
    canvas.text((0.1, 0.1), words)
    return canvas.pixels

first, second = sys.argv[1]
print(json.dumps([
    fonts.font_of(first).name, fonts.missing_letters([first, second]), fonts.families([first, "é"]),
    bool((drawn(f"é{first}") != drawn(f"é{second}")).any()),
]))
"""


def test_letters_that_a_font_of_the_system_has_are_taken_from_it(tmp_path):
    folder = tmp_path / "fonts"
    folder.mkdir()
    letters = "\U000f0001\U000f0002"  # for private use: no other font has them
    made_font(folder / "MadeSans-Regular.ttf", letters)
    (folder / "Broken.ttf").write_bytes(b"no font")
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, letters]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [
        "MadeSans-Regular.ttf",
        "",
        ["DejaVu Sans", "Made Sans"],
        True,
    ]
