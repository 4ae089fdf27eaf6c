"""Queues between the threads of an extraction: order, bounds, ends and errors."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.extract.channel import Channel, Stopped, StopSignal


def test_items_come_in_order_and_no_more_wait_than_fit():
    channel = Channel[int](2, StopSignal())
    ahead, seen = [], []

    def produce() -> None:
        for number in range(20):
            channel.put(number)
            ahead.append(number + 1 - len(seen))
        channel.close()

    with ThreadPoolExecutor(1) as pool:
        producing = pool.submit(produce)
        for number in channel:
            time.sleep(0.002)
            seen.append(number)
        producing.result()
    assert seen == list(range(20)) and max(ahead) <= 4  # two in the queue, one on either side


def test_an_error_comes_after_what_was_put_before_it():
    channel = Channel[str](3, StopSignal())
    channel.put("a")
    channel.close(ValueError("b"))
    items = iter(channel)
    assert next(items) == "a"
    with pytest.raises(ValueError, match="b"):
        next(items)


def test_nothing_is_not_the_end():
    channel = Channel[int | None](3, StopSignal())
    channel.put(None)
    channel.put(1)
    channel.close()
    assert list(channel) == [None, 1]


@pytest.mark.parametrize("side", ["put", "get"])
def test_a_stop_wakes_whoever_waits_at_once(side):
    stop = StopSignal()
    channel = Channel[int](1, stop)
    if side == "put":
        channel.put(0)

    def wait() -> float:
        with pytest.raises(Stopped):
            channel.put(1) if side == "put" else next(iter(channel))
        return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        time.sleep(0.05)
        assert not waiting.done()
        stopped = time.monotonic()
        stop.set()
        assert waiting.result() - stopped < 0.15


def test_after_a_stop_nothing_is_handed_over():
    stop = StopSignal()
    channel = Channel[int](2, stop)
    channel.put(1)
    stop.set()
    with pytest.raises(Stopped):
        channel.put(2)
    with pytest.raises(Stopped):
        next(iter(channel))


def test_many_writers_and_no_item_lost():
    stop = StopSignal()
    channels = [Channel[int](1, stop) for _ in range(4)]

    def produce(channel: Channel[int]) -> None:
        for number in range(200):
            channel.put(number)
        channel.close()

    threads = [threading.Thread(target=produce, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    assert [list(channel) for channel in channels] == [list(range(200))] * 4
    for thread in threads:
        thread.join()
