"""The specs, recipes and sweeps that ship with the package, by name."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import unknown_name

KINDS = ("spec", "recipe", "sweep")


def shipped(kind: str) -> dict[str, Path]:
    """The shipped files of one of KINDS: name -> .toml file, sorted by name.

    In a checkout `specs` is a link to `cache_specs` at the top level, where users look for them; a
    wheel holds copies.
    """
    folder = (Path(__file__).parent / f"{kind}s").resolve()
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def named_file(kind: str, name: str) -> Path:
    """The file that a name on the command line means: a "spec", "recipe" or "sweep" that ships
    with the package, or else a path. Raises BadInput where it is neither."""
    files = shipped(kind)
    if name in files:
        return files[name]
    if name.endswith((".toml", ".json")) or "/" in name or Path(name).exists():
        return Path(name)
    raise unknown_name(kind, name, files)


def first_sentence(path: Path) -> str:
    """The first sentence of the comment that a TOML file begins with: what the file is for."""
    lines = path.read_text(encoding="utf-8").split("\n#\n")[0].splitlines()
    text = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return re.split(r"(?<=[.?]) (?=[A-Z])", text)[0]
