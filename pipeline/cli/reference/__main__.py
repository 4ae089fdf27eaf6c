"""Writes the reference of the checkout that this file lies in, and says which files changed."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli import console
from pipeline.cli.reference.pages import files


def write_reference(root: Path) -> None:
    """Writes every generated file below `root` whose text is not what it should be."""
    for path, text in files(root).items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            console.say(f"written: {path.relative_to(root)}")


if __name__ == "__main__":
    write_reference(Path(__file__).resolve().parents[3])
