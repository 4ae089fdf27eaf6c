"""Errors are part of the interface: what went wrong, where, what was found and wanted, and the next
step.

Code at the border (a user's file, key, path or cache) raises one of these; code inside asserts.
`cli` is the only place that catches them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

EXIT_CODES = {
    0: "Done. Notes may have been printed: they change no exit code.",
    1: "Failed, for example on a full disk. What was finished is kept.",
    2: "Bad input: a file, path, key, value or cache cannot be used as it is.",
    3: "Finished, and what failed, is damaged, differs or has drifted is listed: media that should "
    "be clips, frames that should be cached.",
    130: "Stopped by Ctrl-C. What was finished is kept; the same command goes on.",
}
"""Exit code of a command -> what it means."""

UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Controls but for tabs and ends of lines, what turns the direction of writing, and lone
surrogates, which stand for bytes of file names that are no UTF-8."""


class StillframeError(Exception):
    """One sentence for the user, and in `hint` the next step to take."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def with_hint(self) -> str:
        """The message, and the hint in brackets if there is one, for lists of what failed."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadInput(StillframeError):
    """The user's file, path, key, value or cache cannot be used as it is."""

    exit_code = 2


class BadVideo(BadInput):
    """One video cannot be opened or decoded; long jobs list it with its reason and go on."""


def count_text(count: int, noun: str) -> str:
    """A number and what it counts: 1 file, 2 files."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def unknown_name(what: str, name: str, known: Iterable[str], where: str = "") -> BadInput:
    """The error for a name that does not exist: says which do, and the nearest one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else ""
    prefix = f"{where}: " if where else ""
    return BadInput(
        f"{prefix}no {what} called '{name}'; there are: {', '.join(known) or 'none'}", hint
    )


def printable(text: str) -> str:
    """Text of which a terminal shows every character and obeys none: file names, labels and what
    caches and runs say may hold escape sequences, which clear the screen, set its title or lie
    about what stands there. These characters are spelled out, as in `\\x1b`."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def in_one_line(text: str) -> str:
    """Printable text, in which the ends of lines are spelled out too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
