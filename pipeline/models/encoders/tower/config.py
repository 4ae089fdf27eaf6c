"""The configuration of a vision tower: read, checked, and what of it the tokens depend on."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from transformers.activations import ACT2FN

from pipeline.errors import BadInput, unknown_name
from pipeline.models.encoders.tower.files import json_object
from pipeline.records import TokenShape

CLS_TOKENS = {
    "clip_vision_model": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
    "siglip2_vision_model": 0,
    "siglip_vision_model": 0,
    "vit": 1,
    "vit_msn": 1,
}
"""Model type -> leading CLS tokens; registers follow them where the configuration counts any, then
the patches."""

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
UNUSABLE = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, hub_errors.StrictDataclassError),
)
"""Errors that transformers raises over a configuration or weights that it cannot use: it checks
little before it computes."""


def tower_config(settings: Any, folder: Path | None) -> Any:
    """The transformers configuration of the vision tower."""
    if folder is None:
        return _config_from_table(settings.config)
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"model {settings.model} has no config.json",
            "wanted a model saved by transformers' save_pretrained",
        )
    json_object(folder / "config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except UNUSABLE as error:
        raise BadInput(
            f"model {settings.model}: its config.json cannot be used: {reason(error)}"
        ) from error
    config = getattr(config, "vision_config", config)
    if config.model_type not in CLS_TOKENS:
        raise unknown_name("vision tower", config.model_type, CLS_TOKENS, f"model {settings.model}")
    return config


def _config_from_table(table: dict[str, Any]) -> Any:
    model_type = str(table.get("model_type"))
    if model_type not in CLS_TOKENS:
        raise unknown_name("vision tower", model_type, CLS_TOKENS, "config.model_type")
    keys = transformers.AutoConfig.for_model(model_type).to_dict().keys() - NOT_TOKENS
    for key in table:
        if key not in keys:
            raise unknown_name("key", key, keys, f"config of {model_type}")
    try:
        return transformers.AutoConfig.for_model(**table)
    except UNUSABLE as error:
        raise BadInput(f"config of {model_type}: {reason(error)}") from error


def tower_shape(config: Any, layers: tuple[int, ...], size_px: int) -> TokenShape:
    """Checks the configuration, and layers and size against it."""
    _check_config(config)
    depth, patch_px = config.num_hidden_layers, config.patch_size
    if not layers or list(layers) != sorted({*layers}):
        raise BadInput(f"layers must be ascending and different, found {list(layers)}")
    for layer in layers:
        if not 0 <= layer < depth:
            raise BadInput(
                f"layer {layer} is not there: this encoder has {depth} blocks, 0..{depth - 1}"
            )
    side, rest = divmod(size_px, patch_px)
    if rest or not side:
        legal = [str(count * patch_px) for count in (side, side + 1) if count]
        raise BadInput(
            f"size_px = {size_px} is not a whole number of this encoder's patches of {patch_px} px",
            f"near: {', '.join(legal)}",
        )
    specials = CLS_TOKENS[config.model_type] + getattr(config, "num_register_tokens", 0)
    return TokenShape(config.hidden_size, (side, side), specials, tuple(layers))


def _check_config(config: Any) -> None:
    """Refuses what transformers would trip over only later: in its constructors, or at the first
    frame."""
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        value = getattr(config, key)
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"this encoder's {key} is {value}; wanted one whole number of 1 or more")
    width, heads, channels = config.hidden_size, config.num_attention_heads, config.num_channels
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


def canonical_config(config: Any) -> dict[str, Any]:
    """Keys that set this tower apart from its type's defaults, as plain JSON: a newer transformers
    may add keys without harm."""
    defaults = type(config)().to_dict()
    own = {
        key: value
        for key, value in config.to_dict().items()
        if key not in NOT_TOKENS and value != defaults.get(key)
    }
    canonical: dict[str, Any] = json.loads(json.dumps({**own, "model_type": config.model_type}))
    return canonical


def reason(error: Exception) -> str:
    """One line; a KeyError would say its key alone."""
    text = repr(error) if isinstance(error, LookupError) or not str(error) else str(error)
    return textwrap.shorten(text, 300, placeholder=" ...")
