"""A pickle read as inert values: numbers, text, bytes, lists and dictionaries.

A pickle is a program, and to unpickle is to run it: it imports what it names and calls it. Here
nothing is imported and nothing is called. The instructions are followed one by one; every class,
function or object that the pickle asks for is one and the same placeholder, `OPAQUE`, whatever is
done to it. Who knows the few forms in which a library writes its arrays or tensors takes them apart
in a `PickleMachine` of its own. So a file is read whose other content may be anything, since none
of that is needed.

Only text is taken for a key of a dictionary: hashes of other keys are the pickle's to choose, and a
deeply nested or well chosen key could take for ever. Long bytes are not read but described, by
where they lie in the file: a pickle of many gigabytes takes no memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

MOST_BYTES = 2**26
"""Most bytes of a pickle that are read, long bytes apart."""
MOST_INSTRUCTIONS = 5_000_000
"""Most instructions that are followed, some twenty seconds of them."""
LONG_BYTES = 2**9
"""Bytes longer than this are described and not read."""


class Opaque:
    """The type of `OPAQUE`."""


OPAQUE = Opaque()
"""Stands for everything that is not read."""


@dataclass(frozen=True)
class Symbol:
    """A name that the pickle wants imported, as text: module and name, with a dot between."""

    name: str


@dataclass(frozen=True)
class Span:
    """Bytes that lie in the file of the pickle."""

    offset: int
    length: int


OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
"""Instructions that push bytes -> bytes of the number that says how many."""
VALUES = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", *BYTES),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    }
)
"""Instructions that push the value written behind them."""
OPAQUE_VALUES = frozenset({"EMPTY_SET", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "PERSID"})
"""Instructions that push something that is not read."""
NOTHING = frozenset({"PROTO", "FRAME", "READONLY_BUFFER"})
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
FETCH = frozenset({"GET", "BINGET", "LONG_BINGET"})
STORE = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
DICTIONARIES = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")


class _Bounded:
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

    def bytes_or_span(self, width: int) -> bytes | Span:
        """Bytes behind a number of `width` bytes that says how many, described if they are many."""
        count = int.from_bytes(self.read(width), "little")
        if count <= LONG_BYTES:
            data = self.read(count)
            if len(data) < count:
                raise ValueError("the pickle ends inside of a value")
            return data
        span = Span(self._stream.tell(), count)
        self._stream.seek(count, 1)
        return span


def read_pickle(stream: IO[bytes], machine: PickleMachine | None = None) -> Any:
    """The value of the pickle at the stream's position, which is then behind it.

    Raises ValueError, IndexError, KeyError and others over what is no pickle: the caller knows what
    it was reading.
    """
    machine = machine or PickleMachine()
    for name, argument in islice(_instructions(_Bounded(stream)), MOST_INSTRUCTIONS):
        if name == "STOP":
            return machine.stack.pop()
        machine.follow(name, argument)
    raise ValueError("the pickle has no end, or one too far away")


def _instructions(stream: _Bounded) -> Iterator[tuple[str, Any]]:
    """Name and argument of one instruction after the other. Raises ValueError."""
    while True:
        code = stream.read(1)
        opcode = OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError("the pickle has an instruction that is not known, or no end")
        if opcode.name in BYTES:
            yield opcode.name, stream.bytes_or_span(BYTES[opcode.name])
        else:
            reader = opcode.arg.reader if opcode.arg else None
            yield opcode.name, reader(cast(IO[bytes], stream)) if reader else None


class PickleMachine:
    """Stack and memo of a pickle that is being read. Who knows more forms than dictionaries
    overrides `called`, `filled` and `persistent`, in which nothing of the pickle may be called."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def called(self, maker: Any, arguments: Any) -> Any:
        """What a call would make, where its form is known; else `OPAQUE`."""
        name = maker.name if isinstance(maker, Symbol) else None
        if name not in DICTIONARIES or not isinstance(arguments, tuple):
            return OPAQUE
        table: dict[str, Any] = {}
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                _set_items(table, list(pair))
        return table

    def filled(self, made: Any, state: Any) -> None:
        """Takes the state of something that `called` made into it; here it is not read."""

    def persistent(self, identity: Any) -> Any:
        """What lies outside of the pickle under this name; here it is not read."""
        return OPAQUE

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
            stack.append(self.called(maker, arguments))
        elif name == "NEWOBJ_EX":
            stack[-3:] = [OPAQUE]
        elif name == "BUILD":
            state = stack.pop()
            self.filled(stack[-1], state)
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        else:
            raise ValueError(f"the pickle has an instruction that is not known, {name}")

    def _since_mark(self) -> list[Any]:
        """Takes all that came since the last mark from the stack."""
        items, self.stack = self.stack, self._marks.pop()
        return items


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
