"""The configuration of a vision tower: read, checked, and what of it the tokens depend on.

transformers is imported where it is used, here and in the other files on its models: it takes a
second, and specs and caches of its towers are read without it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, unknown_name
from pipeline.models.encoders.contract import grid_of_patches
from pipeline.models.encoders.tower.files import json_object
from pipeline.models.encoders.tower.model_types import MODEL_TYPES
from pipeline.records import TokenShape

NOT_TOKENS = {
    *(
        "_name_or_path",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "torch_dtype",
        "transformers_version",
    ),
    *(
        "out_features",
        "out_indices",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "stage_names",
    ),
}
"""Configuration keys that do not reach the tokens."""
MOST = {"hidden_size": 2**16, "num_hidden_layers": 2**10, "patch_size": 2**10}
"""Configuration keys and the largest values that are read: far above any model there is, and small
enough that a tower without numbers is made of them in a moment."""
QUANTISED = ("quantization_config", "compression_config")
"""Configuration keys that say that the weights are quantised."""


def tower_config(settings: Any, folder: Path | None) -> Any:
    """The transformers configuration of the vision tower."""
    if folder is None:
        return _config_from_table(settings.config)
    config = model_config(settings.model, folder)
    config = getattr(config, "vision_config", config)
    model_type = getattr(config, "model_type", None)
    if model_type not in MODEL_TYPES:
        raise unknown_name("vision tower", str(model_type), MODEL_TYPES, f"model {settings.model}")
    return config


def model_config(model: str, folder: Path) -> Any:
    """The transformers configuration of the whole model in a folder, which users know as `model`.
    Raises BadInput where there is none, or none that is read."""
    import transformers

    if not (folder / "config.json").is_file():
        raise BadInput(
            f"model {model} has no config.json",
            "wanted a model saved by transformers' save_pretrained",
        )
    table = json_object(folder / "config.json")
    for part in (table, table.get("vision_config"), table.get("text_config")):
        _refuse_quantised(model, part if isinstance(part, dict) else {})
    _refuse_huge(table)
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # transformers fails in any way over what it did not foresee
        raise BadInput(f"model {model}: its config.json cannot be used: {reason(error)}") from error


def _refuse_quantised(model: str, table: dict[str, Any]) -> None:
    """Raises BadInput where a configuration tells of quantised weights."""
    for key in QUANTISED:
        if not table.get(key):
            continue
        method = table[key].get("quant_method") if isinstance(table[key], dict) else None
        by = f" by {textwrap.shorten(str(method), 40)}" if method else ""
        raise BadInput(
            f"model {model} is quantised{by} ({key} in its config.json): quantised weights are "
            "not read",
            'use the model as it was before; precision = "bfloat16" halves its memory',
        )


def _refuse_huge(table: dict[str, Any]) -> None:
    """Raises BadInput where a number, at any depth, is far above that of any model: transformers
    makes lists as long as such a number when it reads a configuration."""
    for value in table.values():
        if isinstance(value, dict):
            _refuse_huge(value)
    for key, most in MOST.items():
        if isinstance(table.get(key), int) and table[key] > most:
            raise BadInput(
                f"this encoder's {key} is {table[key]}, more than the {most} that are read"
            )


def _config_from_table(table: dict[str, Any]) -> Any:
    import transformers

    model_type = str(table.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise unknown_name("vision tower", model_type, MODEL_TYPES, "config.model_type")
    unread = NOT_TOKENS | MODEL_TYPES[model_type].unread
    keys = transformers.AutoConfig.for_model(model_type).to_dict().keys() - unread
    for key in table:
        if key not in keys:
            raise unknown_name("key", key, keys, f"config of {model_type}")
    _refuse_huge(table)
    try:
        return transformers.AutoConfig.for_model(**table)
    except Exception as error:  # see above
        raise BadInput(f"config of {model_type}: {reason(error)}") from error


def tower_shape(config: Any, layers: tuple[int, ...], size_px: int) -> TokenShape:
    """Checks the configuration, and layers and size against it."""
    _check_config(config)
    depth, patch_px = config.num_hidden_layers, config.patch_size
    grid_hw = grid_of_patches(layers, depth, patch_px, size_px)
    model_type = MODEL_TYPES[config.model_type]
    model_type.positions(config, size_px)
    specials = model_type.special_tokens(config)
    return TokenShape(config.hidden_size, grid_hw, specials, tuple(layers))


def _check_config(config: Any) -> None:
    """Refuses what transformers would trip over only later: in its constructors, or at the first
    frame."""
    from transformers.activations import ACT2FN

    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        value = getattr(config, key)
        if type(value) is not int or value < 1:
            raise BadInput(f"this encoder's {key} is {value}; wanted one whole number of 1 or more")
    width, heads = config.hidden_size, config.num_attention_heads
    channels = getattr(config, "num_channels", 3)
    if width % heads:
        raise BadInput(
            f"this encoder's hidden_size is {width}, which its num_attention_heads, {heads}, do "
            "not divide"
        )
    if channels != 3:
        raise BadInput(
            f"this encoder's num_channels is {channels}; frames have 3: red, green and blue"
        )
    if config.hidden_act not in ACT2FN:
        raise unknown_name(
            "hidden_act", config.hidden_act, ACT2FN, f"config of {config.model_type}"
        )


def canonical_config(config: Any, unread: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Keys that set this tower apart from its type's defaults, but for those that are `unread`, as
    plain JSON: a newer transformers may add keys without harm."""
    with quiet():
        defaults = type(config)().to_dict()
    unread = unread | NOT_TOKENS
    own = {
        key: value
        for key, value in config.to_dict().items()
        if key not in unread and value != defaults.get(key)
    }
    canonical: dict[str, Any] = json.loads(json.dumps({**own, "model_type": config.model_type}))
    return canonical


def reason(error: Exception) -> str:
    """One line; a KeyError would say its key alone."""
    text = repr(error) if isinstance(error, LookupError) or not str(error) else str(error)
    return textwrap.shorten(text, 300, placeholder=" ...")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings, loading report and progress bars; what they were set to comes
    back. It warns of the defaults of its own configurations, too."""
    from transformers.utils import logging as log

    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
