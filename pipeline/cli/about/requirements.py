"""The packages that stillframe asks for: what its own metadata says, of a checkout or installed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pipeline

MODULES = {"pillow": "PIL"}
"""Name of a package -> what is imported of it, where that is another name."""
NOT_FOR_USERS = "dev"
"""The extra for those who change stillframe."""


class Requirement(NamedTuple):
    """A package that must be there, or that an extra brings."""

    package: str
    least: str
    """The lowest version that will do."""
    extra: str
    """"" for what must be there."""

    @property
    def module(self) -> str:
        """What is imported of it."""
        return MODULES.get(self.package, self.package.replace("-", "_"))

    @property
    def installed(self) -> str | None:
        """The version that is installed; None for none."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def is_too_old(self, version: str) -> bool:
        """Whether a version is below the lowest that will do."""
        return _numbers(version) < _numbers(self.least)


def requirements() -> list[Requirement]:
    """In the order in which they are written down. A checkout says so itself: what is installed may
    be of another version. Empty where nothing says it."""
    project = Path(pipeline.__path__[0]).resolve().parent / "pyproject.toml"
    try:
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        try:
            return _parsed(metadata.requires("stillframe") or ())
        except metadata.PackageNotFoundError:
            return []
    lines = list(table["dependencies"])
    for extra, texts in table["optional-dependencies"].items():
        lines += [f'{text}; extra == "{extra}"' for text in texts]
    return _parsed(lines)


def _parsed(lines: Iterable[str]) -> list[Requirement]:
    """The requirements that are for users, of lines such as `onnx>=1.18; extra == "export"`."""
    found = []
    for line in lines:
        text, _, condition = line.partition(";")
        name = re.match(r"[\w.-]+", text.strip())
        least = re.search(r">=\s*([\d.]+)", text)
        extra = re.search(r"extra\s*==\s*['\"](.+?)['\"]", condition)
        if name and least and not (extra and extra[1] == NOT_FOR_USERS):
            found.append(Requirement(name[0], least[1], extra[1] if extra else ""))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of 2.13.0+cpu."""
    begin = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, begin[0].split("."))) if begin else ()
