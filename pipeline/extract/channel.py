"""Typed queues between the threads of an extraction, which end when they are closed and let nobody
wait once the work has been stopped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Stopped(Exception):
    """The work was stopped while this thread waited on a channel, or before that."""


class StopSignal(threading.Event):
    """An event that also wakes all who wait on a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()
        """One condition for all channels of an extraction: they are few, and so are their items."""

    def set(self) -> None:
        super().set()
        with self.changed:
            self.changed.notify_all()


class Channel(Generic[Item]):
    """A queue of at most `capacity` items from one thread to another.

    Once `stop` is set, putting and reading raise Stopped, whatever is still in the queue.
    """

    def __init__(self, capacity: int, stop: StopSignal) -> None:
        self._capacity, self._stop = capacity, stop
        self._items: deque[Item] = deque()
        self._is_closed = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> None:
        """Appends an item; waits while the queue is full."""
        with self._stop.changed:
            self._wait(lambda: len(self._items) < self._capacity)
            self._items.append(item)
            self._stop.changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more will come. The reader is given what is still in the queue, then `error`."""
        with self._stop.changed:
            self._is_closed, self._error = True, error
            self._stop.changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        """Items in order until the channel is closed. Raises the error that it was closed with."""
        while True:
            with self._stop.changed:
                self._wait(lambda: bool(self._items) or self._is_closed)
                if not self._items:
                    break
                item = self._items.popleft()
                self._stop.changed.notify_all()
            yield item
        if self._error:
            raise self._error

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        self._stop.changed.wait_for(lambda: self._stop.is_set() or is_ready())
        if self._stop.is_set():
            raise Stopped
