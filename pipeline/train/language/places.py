"""Where what is made of a cache or a manifest, and can be made again, is kept: beside it, and where
that cannot be written, in the user's own folder of caches."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import LocalFolder


def places(beside: Path | None, folder: str) -> list[Path]:
    """Folders called `folder`, the best place first: beside the folder `beside`, unless that is far
    away (None), then among what this user's programs keep."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    near = [] if beside is None else [beside.resolve().parent / folder]
    return [*near, home / f"stillframe_{folder.removeprefix('.')}"]


def folder_of(cache: Cache) -> Path | None:
    """Where a cache lies, for what is kept beside it; None where that is far away."""
    return cache.path if isinstance(cache.storage, LocalFolder) else None
