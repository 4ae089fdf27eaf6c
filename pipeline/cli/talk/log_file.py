"""The log of a long command beside what it makes: all that is said, with the time in UTC and the
process, and a line on the command itself.

A command that is run again to go on appends to it. Each line is one `write`, so that a kill loses
none, and lines of several processes do not mix. What cannot be written is told once: no work ends
for want of a log.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.about.version import version_text
from pipeline.errors import in_one_line

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache

RUN_LOG = "log.txt"
"""The log of a run or a sweep, in its folder."""
MOST_LINES = 1000
"""Lines that are kept for a log that is not open yet: the last ones."""
OPEN = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
"""A pipe or a link of that name is refused, and nobody is waited for."""


@dataclass
class _Call:
    """One call of the command line."""

    words: Sequence[str]
    begin: float = field(default_factory=time.monotonic)
    moment: float = field(default_factory=time.time)
    lines: deque[bytes] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    """What has been said."""
    files: dict[Path, int | None] = field(default_factory=dict)
    """Log -> its descriptor; None where it cannot be written."""


_calls: list[_Call] = []


@contextmanager
def logs_of_call(words: Sequence[str]) -> Iterator[None]:
    """What is said within it may be kept. `words`: the command, without the program's name."""
    call = _Call(words)
    _calls.append(call)
    try:
        yield
    finally:
        _calls.remove(call)
        for handle in call.files.values():
            if handle is not None:
                with suppress(OSError):
                    os.close(handle)


def keep_log(*paths: Path) -> None:
    """From now on what is said is kept in these files as well, with what has been said before.
    Their folders must be there. One that is kept already is left alone."""
    for path in paths:
        if _calls and path not in _calls[-1].files:
            _open(_calls[-1], path)


def keep_log_in(caches: Sequence[Cache], logs: Path | None = None) -> None:
    """Keeps a log in each cache that lies in a folder; of those in object stores, which are not
    written to, one in the folder `logs`, or none."""
    from pipeline.cache.layout import LOG_FILE
    from pipeline.cache.storage.local import LocalFolder

    for cache in caches:
        if isinstance(cache.storage, LocalFolder):
            keep_log(cache.path / LOG_FILE)
        elif logs is not None:
            with suppress(OSError):  # of which `keep_log` tells
                logs.mkdir(parents=True, exist_ok=True)
            keep_log(logs / f"{cache.name}.txt")


def note(text: str) -> None:
    """Keeps a text, line by line, without saying it."""
    if _calls:
        call = _calls[-1]
        lines = [_line(text_line) for text_line in text.splitlines()]
        call.lines += lines
        for path in call.files:
            _write(call, path, b"".join(lines))


def end(code: object) -> None:
    """Keeps how a command has ended."""
    if _calls and any(handle is not None for handle in _calls[-1].files.values()):
        note(f"exit code {code} after {time.monotonic() - _calls[-1].begin:.1f} s")


def _line(text: str, moment: float | None = None) -> bytes:
    """Without a moment, that of now."""
    utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
    return f"{utc} {os.getpid()} {in_one_line(text)}\n".encode(errors="backslashreplace")


def _open(call: _Call, path: Path) -> None:
    try:
        handle = os.open(path, OPEN, 0o666)
    except OSError as error:
        call.files[path] = None
        _tell(path, error)
        return
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        call.files[path] = None
        _tell(path, OSError(errno.EINVAL, "it is no file"))
        return
    call.files[path] = handle
    python = ".".join(map(str, sys.version_info[:3]))
    begin = [
        _line(f"$ {shlex.join(['stillframe', *call.words])}", call.moment),
        _line(f"stillframe {version_text()}, Python {python}", call.moment),
    ]
    _write(call, path, b"".join([*begin, *call.lines]))


def _write(call: _Call, path: Path, data: bytes) -> None:
    handle = call.files[path]
    if handle is None:
        return
    try:
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        call.files[path] = None
        with suppress(OSError):
            os.close(handle)
        _tell(path, error)


def _tell(path: Path, error: OSError) -> None:
    text = f"{path}: no log is kept: {error.strerror}; the work goes on"
    sys.stderr.write(f"{in_one_line(text)}\n")
