"""stillframe in Python: the names that are public. They keep their meaning within a minor version;
all else in `pipeline`, where the code is, may move.

    cache = stillframe.open_cache("caches/mine-0123456789ab")
    clip = cache.read("people/juggle.mp4", layer=11)
    clip.patches_TPD, clip.time_s_T, clip.truth

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stillframe._own_code import import_own_code

import_own_code()

from pipeline import __version__  # noqa: E402

if TYPE_CHECKING:
    from pipeline.config.cache_spec import CacheSpec
    from pipeline.config.recipe import Recipe
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.errors import BadInput, BadVideo, StillframeError
    from pipeline.records import Clip
    from pipeline.train.evaluation import Evaluation
    from pipeline.train.library.frame_encoder import FrameEncoder, FrameTokens
    from pipeline.train.library.token_cache import ClipTokens, TokenCache
    from pipeline.train.library.trained_model import TrainedModel
    from pipeline.train.library.window_dataset import WindowBatch, WindowDataset
    from pipeline.train.run import Run
    from pipeline.train.stream import Seen, Stream
    from stillframe._verbs import (
        add_plugins,
        evaluate,
        extract,
        load_manifest,
        load_recipe,
        load_run,
        load_spec,
        make_manifest,
        open_cache,
        open_encoder,
        open_stream,
        train,
    )

_NAMES = {
    "pipeline.config.cache_spec": ("CacheSpec",),
    "pipeline.config.recipe": ("Recipe",),
    "pipeline.datasets.manifest.manifest": ("Manifest",),
    "pipeline.errors": ("BadInput", "BadVideo", "StillframeError"),
    "pipeline.records": ("Clip",),
    "pipeline.train.evaluation": ("Evaluation",),
    "pipeline.train.library.frame_encoder": ("FrameEncoder", "FrameTokens"),
    "pipeline.train.library.token_cache": ("ClipTokens", "TokenCache"),
    "pipeline.train.library.trained_model": ("TrainedModel",),
    "pipeline.train.library.window_dataset": ("WindowBatch", "WindowDataset"),
    "pipeline.train.run": ("Run",),
    "pipeline.train.stream": ("Seen", "Stream"),
    "stillframe._verbs": (
        "add_plugins",
        "evaluate",
        "extract",
        "load_manifest",
        "load_recipe",
        "load_run",
        "load_spec",
        "make_manifest",
        "open_cache",
        "open_encoder",
        "open_stream",
        "train",
    ),
}
"""Module -> the public names that it defines, as type checkers read them above."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "BadInput",
    "BadVideo",
    "CacheSpec",
    "Clip",
    "ClipTokens",
    "Evaluation",
    "FrameEncoder",
    "FrameTokens",
    "Manifest",
    "Recipe",
    "Run",
    "Seen",
    "StillframeError",
    "Stream",
    "TokenCache",
    "TrainedModel",
    "WindowBatch",
    "WindowDataset",
    "__version__",
    "add_plugins",
    "evaluate",
    "extract",
    "load_manifest",
    "load_recipe",
    "load_run",
    "load_spec",
    "make_manifest",
    "open_cache",
    "open_encoder",
    "open_stream",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'stillframe' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
