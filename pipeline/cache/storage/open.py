"""A path or a URL, as a user writes it, becomes the storage that it names."""

from __future__ import annotations

from pathlib import Path

from pipeline.cache.storage.contract import Storage
from pipeline.errors import BadInput


def open_storage(text: str | Path) -> Storage:
    """The storage that a user names: a path, or a URL such as `s3://bucket/caches`. Raises
    BadInput."""
    from pipeline.cache.storage.local import LocalFolder

    if isinstance(text, Path) and text.parts[:1] and text.parts[0].endswith(":"):
        raise BadInput(
            f"{text} is a URL that has become a path and lost a slash", "give it as text"
        )
    protocol, _, path = str(text).rpartition("://")
    if protocol in ("", "file"):
        return LocalFolder(Path(path))
    from pipeline.cache.storage.object_store import ObjectStorage

    return ObjectStorage(str(text))
