"""Tensors in a pickle of torch, as descriptions of where their numbers lie.

The pickle is read by `pipeline.config.pickles`, which imports and calls nothing. Of what torch
writes, tensors, parameters and their storages are taken apart here; all else stays `OPAQUE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

import torch

from pipeline.config.pickles import OPAQUE, PickleMachine, Symbol, read_pickle


@dataclass(frozen=True)
class TensorStorage:
    """The numbers behind one tensor or several, which lie outside of the pickle."""

    key: str
    dtype: torch.dtype | None
    """None: bytes, whose tensors say what they hold."""
    count: int
    """Of the dtype; of bytes where that is None."""


@dataclass(frozen=True)
class StoredTensor:
    """Where the numbers of a tensor are; nothing in it was checked, not even types."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any
    """A `Symbol`; None: that of the storage."""


DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("int64", "int32", "int16", "int8", "uint8", "bool"),
    )
}
STORAGES: dict[str, torch.dtype | None] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": None,
}
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
TENSORS_WITH_DTYPE = ("torch._utils._rebuild_tensor_v3",)
PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
SUBCLASSES = ("torch._tensor._rebuild_from_type_v2",)


class _TorchMachine(PickleMachine):
    """Knows the forms in which torch writes tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[str, TensorStorage] = {}

    def called(self, maker: Any, arguments: Any) -> Any:
        """What a call makes, where it is one of the forms of torch; nothing is called."""
        name = maker.name if isinstance(maker, Symbol) else None
        if not isinstance(arguments, tuple):
            return OPAQUE
        if name == "torch.Size" and arguments:
            return arguments[0]
        if name in TENSORS and len(arguments) >= 4:
            storage, offset, size, stride = arguments[:4]
            return StoredTensor(storage, offset, size, stride, dtype=None)
        if name in TENSORS_WITH_DTYPE and len(arguments) >= 7:
            storage, offset, size, stride = arguments[:4]
            return StoredTensor(storage, offset, size, stride, dtype=arguments[6])
        if name in PARAMETERS and arguments and isinstance(arguments[0], StoredTensor):
            return arguments[0]
        if name in SUBCLASSES and len(arguments) >= 3 and isinstance(arguments[0], Symbol):
            inner = arguments[0]
            return OPAQUE if inner.name in SUBCLASSES else self.called(inner, arguments[2])
        return super().called(maker, arguments)

    def persistent(self, identity: Any) -> Any:
        """A storage, of what torch writes for one: ("storage", class, key, device, count, ...)."""
        if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
            return OPAQUE
        if identity[5:] not in ((), (None,)):
            return OPAQUE  # a view of another storage, which torch has not written for years
        kind, key, count = identity[1], identity[2], identity[4]
        is_storage = isinstance(kind, Symbol) and kind.name in STORAGES
        if not is_storage or not isinstance(key, str) or type(count) is not int:
            return OPAQUE
        storage = TensorStorage(key, STORAGES[kind.name], count)
        return self.storages.setdefault(key, storage)


def read_torch_pickle(stream: IO[bytes]) -> tuple[Any, dict[str, TensorStorage]]:
    """The value of the pickle at the stream's position, which is then behind it, and its storages.

    Raises ValueError, IndexError, KeyError and others over what is no pickle.
    """
    machine = _TorchMachine()
    return read_pickle(stream, machine), machine.storages
