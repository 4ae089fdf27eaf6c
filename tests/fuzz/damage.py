"""Damages of one file: as a disk makes them, and as somebody makes them who knows the format and wants to do harm."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

DEEP = "[" * 50_000 + "]" * 50_000
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**18, 10**400, 0.5, -0.5, 1e308, float("inf"), float("nan"),
    "", "x", "x" * 20_000, "\x1b[2J", "\0", "\ud800", "../../../home", "/etc/passwd", "%s{}", "=1+1",
    "http://127.0.0.1:9/x", "<img src=x>", [], [[]], [0, 1], {}, {"": {}}, {"name": "../../x"},
]  # fmt: skip
"""What stands in the place of a value."""


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def lengthen(data: bytes, random: Random) -> bytes:
    return data + random.choice((b"\0", b"{}", data, random.randbytes(5000)))


def empty(data: bytes, random: Random) -> bytes:
    return b""


def zeros(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + bytes(len(data) - start)


def noise(data: bytes, random: Random) -> bytes:
    return random.randbytes(min(len(data), 10_000))


def splice(data: bytes, random: Random) -> bytes:
    """A part of it once more, somewhere else."""
    a, b, c = sorted(random.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:]


def deepen(data: bytes, random: Random) -> bytes:
    """All of it, or a value in it, nested by the thousand."""
    text = data.decode("utf-8", "replace")
    return random.choice((DEEP, f'{{"a": {DEEP}}}', text.replace(": ", f": {DEEP}, ", 1))).encode()


def header_length(data: bytes, random: Random) -> bytes:
    """Another length of a safetensors header."""
    return random.choice((0, 1, 7, 2**31, 2**60, 2**64 - 1)).to_bytes(8, "little") + data[8:]


RAW = [flip, flip, cut, lengthen, empty, zeros, noise, splice, deepen, header_length]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, inner in items for found in places(inner, (*path, key)))]


def forge(data: bytes, random: Random) -> bytes:
    """Valid JSON with one value or key exchanged, left out, doubled or moved. Of several lines, one."""
    lines = data.decode().splitlines(keepends=True)
    is_lines = len(lines) > 1 and all(line.startswith("{") for line in lines)
    number = random.randrange(len(lines)) if is_lines else 0
    root = [json.loads(lines[number] if is_lines else data)]
    path = random.choice(places(root)[1:])
    outer: Any = root
    for key in path[:-1]:
        outer = outer[key]
    action = random.randrange(5)
    if action < 3:
        outer[path[-1]] = random.choice(VALUES)
    elif action == 3 and isinstance(outer, dict):
        outer[random.choice(("x", "../x", "\x1b[2J", "0", "é" * 300))] = outer.pop(path[-1])
    elif len(path) > 1:
        del outer[path[-1]]
    else:
        outer[path[-1]] = [outer[path[-1]]]
    text = json.dumps(root[0]) if root else ""
    if is_lines:
        lines[number] = text + "\n"
        text = "".join(lines)
    return text.encode("utf-8", "surrogatepass")


def other_thing(file: Path, home: Path, random: Random) -> None:
    """Something else in the place of a file or a folder; `home` is a folder of the user."""
    copy = file.with_name(f"{file.name}.before")
    file.rename(copy)
    kind = random.randrange(9)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(home / "thesis.tex")
    elif kind == 3:
        file.symlink_to(home)
    elif kind == 4:
        file.symlink_to("/dev/zero")
    elif kind == 5:
        file.symlink_to(file.name)
    elif kind == 6:
        file.symlink_to("nowhere")
    elif kind == 7 and len(str(file)) < 100:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(file))
    elif copy.is_dir():  # a folder of the user that looks like this one
        shutil.copytree(copy, home / file.name, symlinks=True)
        file.symlink_to(home / file.name)
    else:
        file.touch()
        os.truncate(file, 1 << 42)  # a hole
    if copy.is_dir():
        shutil.rmtree(copy)
    else:
        copy.unlink()


def change(file: Path, how: Callable[[bytes, Random], bytes], random: Random) -> None:
    file.write_bytes(how(file.read_bytes(), random))
