"""How much a command says: --quiet and --verbose, options of all commands."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from pipeline.cli.talk import details
from pipeline.errors import BadInput

Loudness = Literal["quiet", "normal", "verbose"]
FLAGS = ("--quiet", "--verbose")
DOWNLOAD_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
"""A variable by which the Hugging Face hub's own bars are silent."""

_now: Loudness = "normal"
_until_end: ExitStack | None = None


def is_quiet() -> bool:
    """Whether nothing is to be said but results and errors."""
    return _now == "quiet"


def is_verbose() -> bool:
    """Whether more is to be said than a user needs where all goes well."""
    return _now == "verbose"


@contextmanager
def loudness_of_call() -> Iterator[None]:
    """What is chosen within it is forgotten at its end."""
    global _now, _until_end
    before = _now, _until_end
    with ExitStack() as stack:
        _now, _until_end = "normal", stack
        try:
            yield
        finally:
            _now, _until_end = before


def choose(quiet: bool, verbose: bool, say: Callable[[str], object]) -> None:
    """Takes what the user has chosen, until the call ends; `say` is told the details. Raises
    BadInput for both at once."""
    global _now
    if quiet and verbose:
        raise BadInput("--quiet and --verbose are both given", "leave one out")
    _now = "quiet" if quiet else "verbose" if verbose else "normal"
    if _until_end is None:
        return
    if quiet:
        _until_end.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if DOWNLOAD_BARS not in os.environ:
            os.environ[DOWNLOAD_BARS] = "1"
            _until_end.callback(os.environ.pop, DOWNLOAD_BARS, None)
    if verbose:
        _until_end.enter_context(details.said(say))


def flags_first(words: Sequence[str]) -> list[str]:
    """The words of a command with --quiet and --verbose before all others, where typer looks for
    options of all commands: they may be written behind the command, too."""
    stop = words.index("--") if "--" in words else len(words)
    flags = [word for word in words[:stop] if word in FLAGS]
    return [*flags, *(word for word in words[:stop] if word not in FLAGS), *words[stop:]]
