"""An exported file, opened to be asked frame by frame: an ONNX file in a process without PyTorch, a
.pt2 file in this one."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np
import torch

from pipeline.child_python import module_command, search_path
from pipeline.errors import StillframeError
from pipeline.exchange import outside
from pipeline.exchange.formats import without_talk
from pipeline.exchange.outside import receive, send
from pipeline.exchange.ports import RESET, Ports

Arrays = dict[str, np.ndarray]


class LoadedStep(Protocol):
    """Asked by the name of a stream, or of several in one batch, whose state it keeps."""

    def __call__(
        self, stream: str, inputs: Mapping[str, np.ndarray], want_states: bool
    ) -> tuple[Arrays, float]:
        """Outputs for one frame, with the states where they are wanted, and the seconds that it
        took. States among the inputs take the place of those that are kept."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class OnnxStep:
    """A process that has nothing but numpy and onnxruntime."""

    def __init__(self, file: Path) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        command = module_command(outside.__name__)
        self._process = subprocess.Popen(
            [*command, str(file), str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | {"PYTHONPATH": search_path()},
        )

    def __call__(
        self, stream: str, inputs: Mapping[str, np.ndarray], want_states: bool
    ) -> tuple[Arrays, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, inputs, stream=stream, want_states=want_states)  # type: ignore[arg-type]
            arrays, words = receive(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError) as error:
            self._process.wait()
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise StillframeError(
                f"the file cannot be run by onnxruntime: {last[0] if last else 'it says nothing'}",
                "another version of onnxruntime may; --format pt2 needs none",
            ) from error
        return arrays, float(words["seconds"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.communicate()
        self._said.close()


class Pt2Step:
    """What `torch.export.load` makes of a file."""

    def __init__(self, file: Path, ports: Ports) -> None:
        with without_talk():
            self._step = torch.export.load(file).module()
        self._ports, self._states = ports, dict[str, dict[str, torch.Tensor]]()

    @torch.no_grad()
    def __call__(
        self, stream: str, inputs: Mapping[str, np.ndarray], want_states: bool
    ) -> tuple[Arrays, float]:
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()}
        kept = self._states.get(stream)
        if kept is None:
            kept = zero_states(self._ports, tensors)
            tensors |= {RESET: torch.ones(sizes_of(self._ports, tensors)["B"], dtype=torch.bool)}
        whole = kept | {RESET: torch.zeros(sizes_of(self._ports, tensors)["B"]).bool()} | tensors
        begin = time.perf_counter()
        said = self._step({port.name: whole[port.name] for port in self._ports.inputs})
        seconds = time.perf_counter() - begin
        self._states[stream] = {each.input: said[each.output] for each in self._ports.states}
        names = self._ports.all_outputs if want_states else self._ports.outputs
        return {port.name: said[port.name].numpy() for port in names}, seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._states.clear()


def sizes_of(ports: Ports, tensors: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the free axes of some inputs."""
    return {
        axis: size
        for port in (*ports.frame, *ports.told)
        for axis, size in zip(port.shape, tensors[port.name].shape, strict=True)
        if isinstance(axis, str)
    }


def zero_states(ports: Ports, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """States before the first frame, for inputs of these sizes."""
    sizes = sizes_of(ports, tensors)
    return {
        each.input: torch.zeros(
            [sizes[axis] if isinstance(axis, str) else axis for axis in each.shape],
            dtype=getattr(torch, each.dtype),
        )
        for each in ports.states
    }
