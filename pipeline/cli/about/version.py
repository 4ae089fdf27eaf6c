"""Which stillframe this is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pipeline


def version_text() -> str:
    """The version and, where the code lies in a checkout of its own, the commit: "0.5.0 (commit
    0123456789)", with "-dirty" behind the commit where tracked files have been changed."""
    commit = commit_of(Path(pipeline.__path__[0]).resolve().parent)
    return pipeline.__version__ + (f" (commit {commit})" if commit else "")


def commit_of(root: Path) -> str | None:
    """None where `root` is not the top of a checkout, or git does not say."""
    if not (root / ".git").exists():  # a file in a worktree, a folder in a clone
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(
            [*words, "--exclude", "*"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
