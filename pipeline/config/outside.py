"""Plug-ins from outside of the package: in files that the user names, and in packages that the user
has installed.

Nothing here is loaded because a cache, a run or a checkpoint names it. A file is read when the user
names it, and run when a plug-in of it is asked for; a package is imported when a plug-in of its
entry points is. `plugins` keeps what is here apart from what ships.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.abc
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.config.regular_files import read_regular
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

SUFFIX = ".py"
GROUP = "stillframe."
"""Beginning of the groups of entry points; a kind of plug-in is the rest."""
MOST_BYTES = 1 << 22
"""Bytes of a plug-in's file."""
TEMPLATE = "docs/template is a package to begin with"
Origin = dict[str, str]
"""Which plug-in it is: `file` and `sha256`, or `distribution` and `version`."""


@dataclass(frozen=True)
class PluginFile:
    """A file that the user has named, as it was at that moment: what is recorded of it is what is
    run."""

    path: Path
    data: bytes
    kinds: tuple[str, ...]
    """Kinds of which it has a plug-in; its name is that of the file."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of its plug-ins."""
        return self.path.stem

    @cached_property
    def origin(self) -> Origin:
        """What runs and caches keep of it."""
        return {"file": self.path.name, "sha256": hashlib.sha256(self.data).hexdigest()}

    def plugin(self, kind: str) -> Any:
        """The class of that kind. Runs the file, once. Raises BadInput where it does not run."""
        return getattr(self._module, kind.capitalize())

    @cached_property
    def _module(self) -> ModuleType:
        # The last part is the plug-in's name, which messages are made of.
        name = f"stillframe_file.{self.name}"
        loader = _KeptSource(self.path, self.data)
        spec = importlib.util.spec_from_file_location(name, self.path, loader=loader)
        assert spec
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get(name)
        sys.modules[name] = module  # where pydantic, dataclasses and inspect look for it
        try:
            loader.exec_module(module)
        except (Exception, SystemExit) as error:
            sys.modules.pop(name)
            if before is not None:
                sys.modules[name] = before
            raise BadInput(
                f"plug-in {self} does not import: {_where(error, self.path)}{_what(error)}",
                self._advice(error),
            ) from error
        return module

    def _advice(self, error: BaseException) -> str:
        if not isinstance(error, ModuleNotFoundError) or error.name is None:
            return "mend the file"
        beside = self.path.parent / error.name.partition(".")[0]
        if beside.is_dir() or beside.with_suffix(SUFFIX).is_file():
            return f"a plug-in is one whole file; of several, make a package: {TEMPLATE}"
        return f"pip install {error.name.partition('.')[0]}"


class _KeptSource(importlib.abc.SourceLoader):
    """Runs bytes that were read before, and writes no compiled ones beside them."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data = path, data

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        if path != str(self._path):
            raise OSError(f"{path!s} is not kept")
        return self._data


@dataclass(frozen=True)
class PluginEntry:
    """An entry point of a package that is installed."""

    kind: str
    distribution: str
    version: str
    point: EntryPoint

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    @property
    def origin(self) -> Origin:
        """What runs and caches keep of it."""
        return {"distribution": self.distribution, "version": self.version}

    def plugin(self, kind: str) -> Any:
        """The class that the entry point names. Imports its module. Raises BadInput where that is
        not possible."""
        advice = f"mend it, or pip uninstall {self.distribution}"
        what = f"plug-in '{self.point.name}' of {self}"
        if not self.point.attr:
            raise BadInput(
                f"{what} names no class: its entry point of the group {GROUP}{kind} is "
                f"'{self.point.value}', wanted MODULE:CLASS",
                advice,
            )
        try:
            return self.point.load()
        except (Exception, SystemExit) as error:
            raise BadInput(
                f"{what} does not import: {_where(error, None)}{_what(error)}", advice
            ) from error


Plugin = PluginFile | PluginEntry

_named: dict[tuple[str, str], PluginFile] = {}
"""(kind, name) -> the file that the user has named, in this call of the command line or, without
one, in this process."""


@contextmanager
def one_call() -> Iterator[None]:
    """What is named within it is forgotten at its end."""
    before = dict(_named)
    try:
        yield
    finally:
        _named.clear()
        _named.update(before)


def named_paths() -> tuple[str, ...]:
    """The files that the user has named, for processes that work for this one."""
    return tuple(dict.fromkeys(str(file.path) for file in _named.values()))


def keep(file: PluginFile) -> None:
    """From now on the plug-ins of a file can be asked for. Raises BadInput where another file has
    one of that name."""
    for kind in file.kinds:
        other = _named.get((kind, file.name))
        if other is not None and other.origin != file.origin:
            raise BadInput(
                f"two files bring a {kind} plug-in '{file.name}': {other} and {file}",
                "rename one of them, or name one alone",
            )
    for kind in file.kinds:
        _named.setdefault((kind, file.name), file)


def outside_names(kind: str) -> list[str]:
    """All plug-ins of a kind that files and packages bring."""
    return [name for of, name in (*_named, *_entries(tuple(sys.path))) if of == kind]


def candidates(kind: str, name: str) -> list[Plugin]:
    """Whatever brings a plug-in of that name."""
    file = _named.get((kind, name))
    return [*([file] if file else []), *_entries(tuple(sys.path)).get((kind, name), ())]


@functools.cache
def _entries(path: tuple[str, ...]) -> dict[tuple[str, str], list[PluginEntry]]:
    """(kind, name) -> the entry points of that name, in what can be imported by way of `path`."""
    from importlib.metadata import distributions  # waits, as not every command needs it

    found: dict[tuple[str, str], list[PluginEntry]] = {}
    seen: set[str] = set()
    for distribution in distributions(path=list(path)):
        points = [each for each in distribution.entry_points if each.group.startswith(GROUP)]
        if not points or distribution.name in seen:  # of two copies Python imports the first
            continue
        seen.add(distribution.name)
        for point in points:
            kind = point.group.removeprefix(GROUP)
            entry = PluginEntry(kind, distribution.name, distribution.version, point)
            found.setdefault((kind, point.name), []).append(entry)
    return found


def read_files(path: Path, kinds: Sequence[str]) -> list[PluginFile]:
    """The plug-ins of a file, or of the files of a folder: those .py files that define a class
    called as a kind of plug-in is. None is run. Raises BadInput where there are none."""
    if not path.is_dir():
        return [read_file(path, kinds)]
    found = [_read(file, kinds) for file in sorted(path.glob(f"[!_]*{SUFFIX}"))]
    files = [_well_named(file) for file in found if file.kinds]
    if not files:
        raise BadInput(
            f"folder {path} has no plug-ins: of {len(found)} {SUFFIX} files in it none defines "
            f"{_classes(kinds)}",
            "name the folder that holds the files themselves",
        )
    return files


def read_file(path: Path, kinds: Sequence[str]) -> PluginFile:
    """A file that brings at least one plug-in of `kinds`. Raises BadInput where it does not."""
    file = _read(path, kinds)
    if not file.kinds:
        raise BadInput(
            f"plug-in {path} lacks its class: wanted {_classes(kinds)} at its top",
            "see docs/extending.md",
        )
    return _well_named(file)


def _well_named(file: PluginFile) -> PluginFile:
    if not file.name.isidentifier():
        raise BadInput(
            f"plug-in {file}: '{file.name}' is no name of a plug-in, wanted letters, digits and "
            "underscores",
            f"rename it, for example {file.name.replace('-', '_')}{SUFFIX}",
        )
    return file


def _classes(kinds: Sequence[str]) -> str:
    names = [f"class {kind.capitalize()}" for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _read(path: Path, kinds: Sequence[str]) -> PluginFile:
    try:
        data = read_regular(path, MOST_BYTES)
    except FileNotFoundError as error:
        near = sorted(file.name for file in path.parent.glob(f"*{SUFFIX}"))
        raise BadInput(
            f"plug-in {path} does not exist",
            f"in {path.parent} there are: {', '.join(near)}" if near else "look at the path",
        ) from error
    except OSError as error:
        raise BadInput(f"plug-in {path} cannot be read: {error.strerror}") from error
    try:
        tree = ast.parse(data, str(path))
    except (SyntaxError, ValueError) as error:
        raise BadInput(
            f"plug-in {path} does not import: {_where(error, path)}{_what(error)}", "mend the file"
        ) from error
    top = set(_bound(tree))
    return PluginFile(path.absolute(), data, tuple(k for k in kinds if k.capitalize() in top))


def _bound(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines, assigns or imports at its top."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _where(error: BaseException, path: Path | None) -> str:
    """The line that an error is from: the last one in the file at `path`, or in any that is neither
    this one nor a part of Python's own import."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        is_inside = path is not None and error.filename == str(path)
        return f"{'' if is_inside else f'{error.filename} '}line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    if path is not None:
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        return f"line {lines[-1]}: " if lines else ""
    own = (__file__, "<frozen", str(Path(importlib.util.__file__).parent))
    others = [frame for frame in frames if not frame.filename.startswith(own)]
    return f"{others[-1].filename} line {others[-1].lineno}: " if others else ""


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")
