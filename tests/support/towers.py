"""A small tower of every family of image models, and settings of every encoder that can be made without weights of
its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.shipped import shipped
from support import rvm

BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 32,
}
WIDE = BASE | {"intermediate_size": 64}
BERT = {
    "hidden_dropout_prob": 0.5,
    "attention_probs_dropout_prob": 0.5,
}  # would show if ever in training mode


class Tower(NamedTuple):
    config: dict[str, Any]
    norm: str | None
    specials: int


DROPPED = WIDE | {"attention_dropout": 0.5}
RATIO = BASE | {"mlp_ratio": 2}
TOWERS = {
    "aimv2_vision_model": Tower(DROPPED | {"is_native": True}, "rms_norm", 0),
    "beit": Tower(WIDE | BERT | {"use_relative_position_bias": True}, None, 1),
    "blip_2_vision_model": Tower(DROPPED, "post_layernorm", 1),
    "chinese_clip_vision_model": Tower(DROPPED, "post_layernorm", 1),
    "clip_vision_model": Tower(DROPPED, "post_layernorm", 1),
    "data2vec-vision": Tower(
        WIDE | BERT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
        "layernorm",
        1,
    ),
    "deit": Tower(WIDE | BERT, "layernorm", 2),
    "dinov2": Tower(RATIO | BERT, "layernorm", 1),
    "dinov2_with_registers": Tower(RATIO | BERT | {"num_register_tokens": 3}, "layernorm", 4),
    "dinov3_vit": Tower(DROPPED | {"num_register_tokens": 2}, "norm", 3),
    "ijepa": Tower(WIDE | BERT, "layernorm", 0),
    "metaclip_2_vision_model": Tower(DROPPED, "post_layernorm", 1),
    "mlcd_vision_model": Tower(DROPPED | {"num_key_value_groups": 1}, "post_layernorm", 1),
    "pixio": Tower(RATIO | BERT | {"n_cls_tokens": 3}, "layernorm", 3),
    "radio": Tower(
        RATIO
        | BERT
        | {"mlp_ratio": 2.0, "max_img_size": 64, "num_cls_tokens": 2, "num_registers": 3},
        None,
        5,
    ),
    "sapiens2": Tower(
        DROPPED | {"num_key_value_heads_per_layer": [4, 2, 2, 4], "num_register_tokens": 2},
        "norm",
        3,
    ),
    "siglip2_vision_model": Tower(
        {key: value for key, value in DROPPED.items() if key != "image_size"} | {"num_patches": 16},
        "post_layernorm",
        0,
    ),
    "siglip_vision_model": Tower(DROPPED, "post_layernorm", 0),
    "tipsv2_vision_model": Tower(RATIO | BERT | {"num_register_tokens": 2}, "layernorm", 3),
    "vit": Tower(WIDE | BERT, "layernorm", 1),
    "vit_mae": Tower(WIDE | BERT | {"decoder_num_hidden_layers": 1}, "layernorm", 1),
    "vit_msn": Tower(WIDE | BERT, "layernorm", 1),
}


def settings_of(name: str) -> Any:
    """Those of the spec `demo` where it names the encoder, else the defaults and layer 0. Skips a test of an encoder
    that wants more."""
    demo = load_spec(shipped("spec")["demo"]).encoder
    if demo.name == name:
        return demo.settings
    fields = plugins.load("encoder", name).Settings.model_fields
    wanted = [key for key, field in fields.items() if field.is_required() and key != "layers"]
    if wanted not in ([], ["weights"]):
        pytest.skip(f"encoder '{name}' is not made without {', '.join(wanted)}")
    table = {"layers": [0]} if fields["layers"].is_required() else {}
    table |= {key: str(rvm.small_file(24)) for key in wanted}
    return plugins.settings("encoder", name, table, name)
