"""A path or a URL, as a user writes it, becomes the storage that it names."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.cache.storage.contract import Storage
from pipeline.errors import BadInput

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "memory")
"""Protocols that are opened; the last one is of this process alone. fsspec knows many more, and
some of them unpack, forward or run what they are given."""
PLAIN_PATH = re.compile(r"file://(.*)|((?!.*://).*)", re.DOTALL)
SECRET = re.compile(r"(?<=://)[^/]*@|\?.*", re.DOTALL)
"""Parts of a URL that may hold a password, a key or a token."""


def open_storage(text: str | Path) -> Storage:
    """The storage that a user names: a path, or a URL such as `s3://bucket/caches`. Raises
    BadInput."""
    from pipeline.cache.storage.local import LocalFolder

    if isinstance(text, Path) and text.parts[:1] and text.parts[0].endswith(":"):
        raise BadInput(
            f"{text} is a URL that has become a path and lost a slash", "give it as text"
        )
    if plain := PLAIN_PATH.fullmatch(str(text)):
        return LocalFolder(Path(plain[1] or plain[2] or ""))
    protocol = str(text).partition("://")[0]
    if protocol == "hf":
        raise BadInput(
            f"{text} is not a folder of this machine",
            f"fetch it first: stillframe pull {text} --out CACHE",
        )
    if SECRET.search(str(text)):
        raise BadInput(
            f"{SECRET.sub('***', str(text))} holds credentials or a query, which would end up in "
            "files and messages",
            "give keys to the object store's own settings, such as AWS_ACCESS_KEY_ID or a profile",
        )
    if protocol not in OBJECT_STORES or "::" in str(text):
        raise BadInput(
            f"{text} cannot be opened: it is no URL of an object store that is supported",
            "use a path, s3:// or gs://",
        )
    from pipeline.cache.storage.object_store import ObjectStorage

    return ObjectStorage(str(text))
