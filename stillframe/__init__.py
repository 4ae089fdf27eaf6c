"""stillframe in Python: the names that are public, each with a line that says what it is. They stay
as they are within a minor version; everything else in `pipeline`, where the code is, may move.

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stillframe._own_code import import_own_code

import_own_code()

from pipeline import __version__  # noqa: E402

if TYPE_CHECKING:
    from pipeline.cache.cache import Cache
    from pipeline.errors import BadInput, BadVideo, StillframeError
    from pipeline.train.run import Run
    from pipeline.train.stream import Seen, Stream

__all__ = [
    "BadInput",
    "BadVideo",
    "Cache",
    "Run",
    "Seen",
    "StillframeError",
    "Stream",
    "__version__",
]

_MODULES = {
    "BadInput": "pipeline.errors",
    "BadVideo": "pipeline.errors",
    "Cache": "pipeline.cache.cache",
    "Run": "pipeline.train.run",
    "Seen": "pipeline.train.stream",
    "StillframeError": "pipeline.errors",
    "Stream": "pipeline.train.stream",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'stillframe' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
