"""An exported step in a process of its own, which has no PyTorch: `python -m
pipeline.exchange.outside FILE THREADS` answers frames that come on stdin, and says on stdout how
long each took.

A message is a line of JSON and the bytes of the arrays that it names. It also names a stream, or
several in one batch, which keeps a state of its own.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from pipeline.exchange.runner import StepRunner


def send(pipe: BinaryIO, arrays: Mapping[str, np.ndarray], **words: Any) -> None:
    """Writes one message."""
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    kinds = {name: [array.dtype.str, array.shape] for name, array in whole.items()}
    pipe.write((json.dumps(words | {"arrays": kinds}) + "\n").encode())
    for array in whole.values():
        pipe.write(array.tobytes())
    pipe.flush()


def receive(pipe: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads one message. Raises EOFError at the end."""
    line = pipe.readline()
    if not line:
        raise EOFError
    words, arrays = json.loads(line), {}
    for name, (kind, shape) in words.pop("arrays").items():
        dtype = np.dtype(kind)
        data = pipe.read(dtype.itemsize * math.prod(shape))
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return arrays, words


def answer(runner: StepRunner, arrays: dict[str, Any], want_states: bool) -> tuple[Any, float]:
    """Outputs, and the states after where they are wanted, and the seconds that they took."""
    told = {name: arrays.pop(name) for name in list(arrays) if name.startswith("state_")}
    runner.state = told or runner.state
    begin = time.perf_counter()
    said = runner(**arrays)
    seconds = time.perf_counter() - begin
    if want_states:
        said |= {each["output"]: runner.state[each["input"]] for each in runner.states}
    return said, seconds


def answer_all(file: str, threads: int) -> None:
    """Answers until stdin ends."""
    fresh = StepRunner(file, threads)
    streams: dict[str, StepRunner] = {}
    while True:
        try:
            arrays, words = receive(sys.stdin.buffer)
        except EOFError:
            return
        runner = streams.setdefault(words["stream"], copy.copy(fresh))
        said, seconds = answer(runner, arrays, words["want_states"])
        assert "torch" not in sys.modules, "this process has loaded PyTorch"
        send(sys.stdout.buffer, said, seconds=seconds)


if __name__ == "__main__":
    answer_all(sys.argv[1], int(sys.argv[2]))
