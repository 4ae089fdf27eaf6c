"""Requests to an object store: tried again while that may help, and then one sentence.

fsspec knows the stores; this file knows how they fail. Every request has time limits. What a second
try cannot mend (a wrong name, missing rights) is raised at once, as the OSError that a file system
would raise. Servers that are busy or broken, connections that are cut or stall, and bodies that end
early are tried again, after waits that grow and differ from client to client.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import fsspec

from pipeline.errors import BadInput, StillframeError

CONNECT_S, READ_S = 10.0, 30.0
"""Seconds until a connection must stand, and between two pieces of an answer."""
TRIES = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
"""Seconds before the second try, and before any: each wait is up to twice the one before. All of
them take about 40 s."""
AT_ONCE = 8
"""Requests under way at once."""
PART_BYTES, PART_TRIES = 16 << 20, 4
"""Larger files are uploaded in parts of this size, each of which is sent again by itself before the
whole file is."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol -> the extra of this package that brings what it needs."""

NAMED = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    NotImplementedError: errno.ENOSYS,
}
REFUSED = {
    errno.EINVAL,
    errno.EPERM,
    errno.ENOSYS,
    errno.ENAMETOOLONG,
    errno.EMSGSIZE,
    errno.ENOSPC,
}
CUT_SHORT = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"}
"""Codes by which S3 refuses a request because it did not arrive as it was sent."""
TRANSPORT = {
    "ClientError",
    "ConnectionError",
    "HTTPClientError",
    "ResponseParserError",
    "IncompleteRead",
    "TransportError",
}
"""Classes of aiohttp, botocore, urllib3 and google-auth; none of these packages need be there."""

P = ParamSpec("P")
T = TypeVar("T")


class Network:
    """The store that a URL is in. Safe to share between threads."""

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0]
        try:
            self.fs = fsspec.core.url_to_fs(url, **_options(protocol, 1))[0]
            # A part that fails must not cost the whole file: here the transport tries again by
            # itself.
            self.bulk = fsspec.core.url_to_fs(url, **_options(protocol, PART_TRIES))[0]
        except ImportError as error:
            extra = EXTRAS.get(protocol)
            hint = f"pip install 'stillframe[{extra}]'" if extra else str(error)
            raise BadInput(
                f"{url} cannot be reached: a package for {protocol}:// is not installed", hint
            ) from error
        except ValueError as error:
            raise BadInput(
                f"{url} cannot be reached: {error}", "use a path, s3:// or gs://"
            ) from error
        self.in_parts: dict[str, Any] = {}
        if EXTRAS.get(protocol) == "s3":
            self.fs.retries = 1  # of s3fs itself
            self.in_parts = {"chunksize": PART_BYTES, "max_concurrency": 2}
        self.pool = ThreadPoolExecutor(AT_ONCE, "network")

    def path(self, url: str) -> str:
        """A URL as the store's own methods take it."""
        return str(self.fs._strip_protocol(url))

    def call(self, url: str, request: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Makes a request for `url` and returns its result.

        Raises OSError where another try cannot help, StillframeError where none of `TRIES` did.
        """
        begin, wait_s = time.monotonic(), FIRST_WAIT_S
        for left in reversed(range(TRIES)):
            try:
                return request(*arguments, **options)
            except Exception as error:
                _raise_final(error, url)
                if not left:
                    raise StillframeError(
                        f"{url}: {_one_line(error)} ({TRIES} tries in "
                        f"{time.monotonic() - begin:.0f} s)",
                        "see that the network and the store are well, then run the same command "
                        "again: it goes on where it was",
                    ) from error
            time.sleep(wait_s * random.uniform(0.5, 1))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise AssertionError("the last try returns or raises")


def _options(protocol: str, tries: int) -> dict[str, Any]:
    """`tries`: how often the transport itself sends a request, where it lets itself be told."""
    if EXTRAS.get(protocol) == "s3":
        user_config = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        retries = {"mode": "standard", "total_max_attempts": tries}
        limits = {"connect_timeout": CONNECT_S, "read_timeout": READ_S, "retries": retries}
        # One request for a whole file: with more at once s3fs asks for its size first.
        return {
            "use_listings_cache": False,
            "max_concurrency": 1,
            "config_kwargs": user_config | limits,
        }
    if EXTRAS.get(protocol) == "gcs":
        from aiohttp import ClientTimeout

        return {
            "use_listings_cache": False,
            "requests_timeout": ClientTimeout(sock_connect=CONNECT_S, sock_read=READ_S),
        }
    return {}


def _raise_final(error: Exception, url: str) -> None:
    """Raises the error as a file system would put it, unless another try may help."""
    code = _s3_code(error)
    if code in CUT_SHORT:
        return
    if code == "PreconditionFailed":
        raise FileExistsError(errno.EEXIST, "is there already", url) from error
    for kind, number in NAMED.items():
        if isinstance(error, kind):
            raise OSError(number, _one_line(error), url) from error
    if isinstance(error, OSError):
        if error.errno in REFUSED:
            raise OSError(error.errno, _one_line(error), url) from error
        if str(error).startswith("Forbidden"):  # how gcsfs says 403
            raise PermissionError(errno.EACCES, _one_line(error), url) from error
        return
    names = {kind.__name__ for kind in type(error).__mro__}
    if any("Credentials" in name for name in names):
        raise PermissionError(errno.EACCES, _one_line(error), url) from error
    if "HttpError" in names and not _is_busy(getattr(error, "code", None)):  # of gcsfs
        raise OSError(errno.EINVAL, _one_line(error), url) from error
    if (
        names & {"BotoCoreError", "ValueError"} and not names & TRANSPORT
    ):  # a name that no bucket can have, for example
        raise OSError(errno.EINVAL, _one_line(error), url) from error
    if not names & {*TRANSPORT, "HttpError", "ChecksumError"}:
        raise error


def _is_busy(status: object) -> bool:
    return str(status).isdigit() and (int(str(status)) >= 500 or int(str(status)) in (408, 429))


def _s3_code(error: BaseException | None) -> str:
    """The code that S3 gives an error, "" if it did not come from there."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _one_line(error: Exception) -> str:
    """The text of an error in one line: libraries put XML pages and backtraces into their
    messages."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(said.split())[:200]
