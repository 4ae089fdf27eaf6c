"""When batches are read, by whom, and into which memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.train.windows import reader
from pipeline.train.windows.reader import BatchMemory, read_ahead

FLOAT16 = np.dtype("float16")


@pytest.mark.parametrize("quick", [set(), set(range(20)), {0, 1}, {7, 8, 9, 12}, {18, 19}])
def test_quick_reads_wait_until_they_are_asked_for_and_order_is_kept(quick):
    """`quick`: the jobs at whose turn reading is quick. Whoever changes from threads to none first
    hands over what the threads were given."""
    by_thread: dict[int, bool] = {}
    found: list[int] = []

    def read(job: int) -> int:
        by_thread[job] = threading.current_thread() is not threading.main_thread()
        assert by_thread[job] or job == len(found)
        return job * job

    found.extend(read_ahead(read, range(20), lambda: len(found) in quick))
    assert found == [job * job for job in range(20)] and len(by_thread) == 20
    if not quick:
        assert all(by_thread.values())
    if len(quick) == 20:
        assert not any(by_thread.values())


def test_threads_read_no_further_ahead_than_there_is_memory_for():
    started: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(30):
            started.append(job)
            yield job

    for index, _ in enumerate(read_ahead(lambda job: job, jobs(), lambda: False)):
        assert len(started) - index <= reader.BATCHES_AHEAD + 1


def test_memory_is_used_again_once_nobody_looks_at_it():
    memory = BatchMemory()
    first = memory.empty((4, 3, 5), FLOAT16)
    assert first.shape == (4, 3, 5) and first.dtype == FLOAT16
    assert first.ctypes.data % 64 == 0 and first.flags.c_contiguous
    place = first.ctypes.data
    views = [first[1:3], torch.from_numpy(first)[2], torch.from_numpy(first[:, 1]).float()]
    del first
    for view in views[:2]:  # the third is a copy
        assert memory.empty((4, 3, 5), FLOAT16).ctypes.data != place, view.shape
    del views, view
    again = memory.empty((4, 3, 5), FLOAT16)
    others = [memory.empty((4, 3, 5), FLOAT16) for _ in range(3)]
    places = {array.ctypes.data for array in (again, *others)}
    assert place in places and len(places) == 4


def test_memory_of_another_size_is_let_go_of():
    memory = BatchMemory()
    held = memory.empty((2, 10), FLOAT16)
    for size in range(11, 30):
        memory.empty((2, size), FLOAT16)
        assert len(memory._buffers) == 2  # what is held, and the last
    held[:] = 3
    assert (held == 3).all()


def test_threads_never_get_the_same_memory():
    memory = BatchMemory()
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            array = memory.empty((50, 7), FLOAT16)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(memory._buffers) <= 6
