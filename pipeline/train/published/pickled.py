"""A pickle read as inert values: numbers, text, lists, dictionaries, and descriptions of tensors.

A pickle is a program, and to unpickle is to run it: it imports what it names and calls it. Here
nothing is imported and nothing is called. The instructions are followed one by one; every class,
function or object that the pickle asks for is one and the same placeholder, `OPAQUE`, whatever is
done to it, except for the few forms in which torch writes tensors and dictionaries, which are taken
apart here. So a checkpoint is read whose hyper-parameters hold a Namespace, a path or anything
else, since none of that is needed.

Only text is taken for a key of a dictionary: hashes of other keys are the pickle's to choose, and a
deeply nested or well chosen key could take for ever.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

import torch

MOST_BYTES = 2**26
"""Largest pickle that is read. Tensors lie outside of it: it takes some hundred bytes for each."""
MOST_INSTRUCTIONS = 5_000_000
"""Most instructions that are followed, some twenty seconds of them; a tensor takes about 40."""


class Opaque:
    """The type of `OPAQUE`."""


OPAQUE = Opaque()
"""Stands for everything that is not read."""


@dataclass(frozen=True)
class Symbol:
    """A name that the pickle wants imported, as text: module and name, with a dot between."""

    name: str


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
DICTIONARIES = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
TENSORS_WITH_DTYPE = ("torch._utils._rebuild_tensor_v3",)
PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
)
SUBCLASSES = ("torch._tensor._rebuild_from_type_v2",)

LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    }
)
"""Instructions that push the value written behind them."""
OPAQUE_VALUES = frozenset({"EMPTY_SET", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "PERSID"})
"""Instructions that push something that is not read."""
NOTHING = frozenset({"PROTO", "FRAME", "READONLY_BUFFER"})
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FETCH = frozenset({"GET", "BINGET", "LONG_BINGET"})
STORE = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class Bounded:
    """A stream of which no more than `MOST_BYTES` are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, MOST_BYTES

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError(f"the pickle is larger than {MOST_BYTES >> 20} MB")
        data = self._stream.read(count)
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self._stream.readline(self._left)
        self._left -= len(data)
        return data

    def tell(self) -> int:
        return self._stream.tell()


def read_pickle(stream: IO[bytes]) -> tuple[Any, dict[str, TensorStorage]]:
    """The value of the pickle at the stream's position, which is then behind it, and its storages.

    Raises ValueError, IndexError, KeyError and others over what is no pickle: the caller knows what
    it was reading.
    """
    machine = _Machine()
    instructions = pickletools.genops(cast(IO[bytes], Bounded(stream)))
    for opcode, argument, _ in islice(instructions, MOST_INSTRUCTIONS):
        if opcode.name == "STOP":
            return machine.stack.pop(), machine.storages
        machine.follow(opcode.name, argument)
    raise ValueError("the pickle has no end, or one too far away")


class _Machine:
    """Stack and memo of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, TensorStorage] = {}
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Carries out one instruction."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in LITERALS:
            self.stack.append(LITERALS[name])
        elif name in STORE:
            self._memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in FETCH:
            self.stack.append(self._memo[int(argument)])
        elif name in OPAQUE_VALUES:
            self.stack.append(OPAQUE)
        elif name not in NOTHING and not self._container(name):
            self._object(name, argument)

    def _container(self, name: str) -> bool:
        """Carries out an instruction on marks, tuples, lists, dictionaries and sets; False where it
        is another."""
        stack = self.stack
        if name == "MARK":
            self._marks.append(stack)
            self.stack = []
        elif name in TUPLES:
            count = TUPLES[name]
            if len(stack) < count:
                raise IndexError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in GROUPS:
            items = self._since_mark()
            self.stack.append(GROUPS[name](items))
        elif name == "APPEND":
            item = stack.pop()
            _append(stack[-1], [item])
        elif name in ("APPENDS", "ADDITEMS"):
            items = self._since_mark()
            _append(self.stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = self._since_mark()
            _set_items(self.stack[-1], items)
        elif name == "POP_MARK":
            self._since_mark()
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                self._since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            return False
        return True

    def _object(self, name: str, argument: Any) -> None:
        """Carries out an instruction that names, makes or fills an object."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Symbol(".".join(argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Symbol(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, maker = stack.pop(), stack.pop()
            stack.append(_call_result(maker, arguments))
        elif name == "NEWOBJ_EX":
            stack[-3:] = [OPAQUE]
        elif name == "BUILD":
            # What fills an object is not read; tensors and dictionaries are whole without it.
            stack.pop()
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        else:
            raise ValueError(f"the pickle has an instruction that is not known, {name}")

    def _since_mark(self) -> list[Any]:
        """Takes all that came since the last mark from the stack."""
        items, self.stack = self.stack, self._marks.pop()
        return items

    def _storage(self, identity: Any) -> Any:
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


def _call_result(maker: Any, arguments: Any) -> Any:
    """What a call makes, where it is one of the forms of torch; nothing is called."""
    name = maker.name if isinstance(maker, Symbol) else None
    if not isinstance(arguments, tuple):
        return OPAQUE
    if name in DICTIONARIES:
        table: dict[str, Any] = {}
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                _set_items(table, list(pair))
        return table
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
        return OPAQUE if inner.name in SUBCLASSES else _call_result(inner, arguments[2])
    return OPAQUE


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _set_items(target: Any, items: list[Any]) -> None:
    """Sets keys and values, which take turns; only text is taken for a key."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value


def _dictionary(items: list[Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    _set_items(table, items)
    return table


GROUPS: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "DICT": _dictionary,
    "FROZENSET": lambda _items: OPAQUE,
    "INST": lambda _items: OPAQUE,
    "OBJ": lambda _items: OPAQUE,
}
"""Instructions that make one value of all that came since the last mark."""
