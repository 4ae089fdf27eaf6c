"""What --verbose adds: what the rooms tell Python's own `logging` on the level DEBUG, each line
with the seconds since the command began."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PACKAGE = __name__.partition(".")[0]


class _Said(logging.Handler):
    """Says every record."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.DEBUG)
        self._say, self._begin = say, time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        seconds = time.monotonic() - self._begin
        self._say(f"{seconds:8.2f} s  {record.getMessage()}")


@contextmanager
def said(say: Callable[[str], object]) -> Iterator[None]:
    """Within it, `say` is told the details."""
    logger, handler = logging.getLogger(PACKAGE), _Said(say)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
