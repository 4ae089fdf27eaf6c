"""Safetensors files, read whole and with one sentence on what is wrong with them.

The format holds numbers and nothing that runs; the library compares a header with the size of the
file before it takes memory. What it raises has many types.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.config.regular_files import open_regular
from pipeline.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import torch

Arrays = TypeVar("Arrays")


def load_arrays(data: bytes, where: str, hint: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file of these bytes. Raises BadInput, with `hint`."""
    from safetensors import numpy

    return _read(lambda: numpy.load(data), where, hint)


def load_tensors(path: Path, what: str, hint: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. `what` it is, for errors: BadInput, with `hint`."""
    from safetensors import torch

    def load() -> dict[str, torch.Tensor]:
        open_regular(path).close()
        return torch.load_file(path)

    return _read(load, f"{what} {path}", hint)


def _read(read: Callable[[], Arrays], where: str, hint: str) -> Arrays:
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"{where} is damaged: {' '.join(text.split())}", hint) from error
