"""Python processes of our own import this very package, whatever lies in the working directory or
comes first on sys.path: its name is a common one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder that this package is in: that of installed packages, or a checkout."""
NAME = __name__.partition(".")[0]


def module_command(module: str) -> list[str]:
    """The command that runs a module of this package, given `search_path` as PYTHONPATH."""
    return [sys.executable, "-P", "-m", module]  # -P: the working directory does not come first


def search_path() -> str:
    """sys.path for PYTHONPATH, in which folders that hold another package of our name come last,
    after our own."""
    others = [entry for entry in sys.path if _holds_another(entry)]
    first = [entry for entry in sys.path if entry not in others]
    own = [str(HOME)] if others and str(HOME) not in first else []
    return os.pathsep.join([*first, *own, *others])


def others_of_our_name() -> list[str]:
    """Folders that hold another package of our name, where Python processes that somebody else
    starts would find it first: of sys.path, and the working directory."""
    return [entry for entry in dict.fromkeys([*sys.path, str(Path.cwd())]) if _holds_another(entry)]


def _holds_another(entry: str) -> bool:
    folder = Path(entry or ".")
    if folder.resolve() == HOME:
        return False
    return (folder / NAME / "__init__.py").is_file() or (folder / f"{NAME}.py").is_file()
