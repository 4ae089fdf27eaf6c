"""The handwritten pages as tests see them: fenced blocks, commands, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

README = ROOT / "README.md"
PAGES = [README, *ROOT.glob("CONTRIBUTING.md"), *sorted((ROOT / "docs").rglob("*.md"))]
"""All pages, the generated ones too: their links must hold as well."""
HANDWRITTEN = [page for page in PAGES if "reference" not in page.parts]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def name(page: Path) -> str:
    """A page's path below the repository, for the ids of tests."""
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str = "") -> list[str]:
    """Content of the page's fenced blocks of one language, or of those that name none."""
    return [text for found, text in FENCE.findall(read(page)) if found == language]


def code_in_prose(page: Path) -> list[str]:
    """The inline code of a page."""
    return [" ".join(text.split()) for text in INLINE.findall(prose(page))]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", read(page))


@dataclass(frozen=True)
class Line:
    """One command line of a fenced block."""

    page: Path
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def arguments(self) -> list[str] | None:
        """What the command `stillframe` is given; None where the line is another command."""
        words = self.words
        if words[0] == "stillframe":
            return words[1:]
        if "-m" in words and words[words.index("-m") + 1] == "stillframe":  # torchrun ... -m ...
            return words[words.index("-m") + 2 :]
        return None

    def __str__(self) -> str:
        return f"{name(self.page)}: {self.text.partition(' #')[0].strip()}"


def lines(page: Path) -> Iterator[Line]:
    """The command lines of a page's blocks, continued ones put together; what commands print is passed over."""
    for block in blocks(page):
        is_session = block.startswith("$ ")
        for text in block.replace("\\\n", " ").splitlines():
            if is_session and not text.startswith("$ "):
                continue
            command = text.removeprefix("$ ")
            if re.match(r"(stillframe|make|torchrun|tensorboard|pytest|\.) ?", command):
                yield Line(page, command)


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of the page's headings."""
    headings = HEADING.findall(prose(page))
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in headings
    }
