"""What makes the embedding of an image out of the tokens of an image-text model's vision tower:
pixels are not needed once the tokens of its last layer are there.

CLIP and MetaCLIP 2 project the last layer's CLS; SigLIP and SigLIP 2 pool its patches by attention.
Shape letters, beside the usual ones: N images, H heads, K channels of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.models.encoders.tower.files import weight_files
from pipeline.models.encoders.tower.weights import weights_digest
from pipeline.models.text.parts.two_tower import (
    TWO_TOWERS,
    VISUAL_PROJECTION,
    half_of_model,
    two_tower_config,
)


class AttentionPooling(nn.Module):
    """SigLIP's pooling, (N, P, D) -> (N, D), with its own weights put together otherwise.

    One probe asks all patches, whatever they are. So each head's query is taken through the
    projection of the keys once, and values are projected after they are averaged: no patch goes
    through a matrix of D x D, of which the model has two. What keys have as their bias is the same
    for all patches, and the softmax does not see it.
    """

    _ask_DH: torch.Tensor
    _value_HKD: torch.Tensor
    _value_bias_D: torch.Tensor

    def __init__(self, head: Any) -> None:
        """`head`: the pooling of a model of transformers."""
        super().__init__()
        self._after, own = nn.ModuleDict({"norm": head.layernorm, "mlp": head.mlp}), head.attention
        width, heads = own.embed_dim, own.num_heads
        query_DD, key_DD, value_DD = own.in_proj_weight.chunk(3)
        query_bias_D, _, value_bias_D = own.in_proj_bias.chunk(3)
        asked_HK = (query_DD @ head.probe[0, 0] + query_bias_D).view(heads, -1)
        keys_HKD = key_DD.view(heads, -1, width)
        ask_DH = torch.einsum("hk,hkd->dh", asked_HK, keys_HKD) / asked_HK.shape[1] ** 0.5
        self.register_buffer("_ask_DH", ask_DH)
        self.register_buffer("_value_HKD", value_DD.view(heads, -1, width))
        self.register_buffer("_value_bias_D", value_bias_D)
        self._out = own.out_proj

    def forward(self, x_NPD: torch.Tensor) -> torch.Tensor:
        """Tokens of the last layer -> embeddings."""
        weight_NHP = (x_NPD @ self._ask_DH).softmax(1).transpose(1, 2)
        mean_NHD = weight_NHP @ x_NPD
        value_NHK = torch.einsum("nhd,hkd->nhk", mean_NHD, self._value_HKD)
        pooled_ND = self._out(value_NHK.flatten(1) + self._value_bias_D)
        made: torch.Tensor = pooled_ND + self._after["mlp"](self._after["norm"](pooled_ND))
        return made


class ImageHead:
    """The head of the model in a folder, which users know as `model`, in float32."""

    def __init__(self, model: str, folder: Path, device: torch.device) -> None:
        """Raises BadInput where the model has no text half, or its weights are not all there."""
        config = two_tower_config(model, folder)
        part = TWO_TOWERS[config.model_type].image_head
        self.reads_cls = part == VISUAL_PROJECTION
        """Whether the last layer's CLS is read, (N, D), or else its patches, (N, P, D)."""
        head = half_of_model(folder, config, (part,)).get_submodule(part)
        self._head = (head if self.reads_cls else AttentionPooling(head)).to(device)
        self.last_layer: int = config.vision_config.num_hidden_layers - 1
        """The layer whose tokens are read, counted from 0."""
        self.patch_px: int = config.vision_config.patch_size
        self.weights = weights_digest(weight_files(folder))
        """sha256 of the model's weight files, as an encoder's identity has it."""

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens as the last layer has them after the tower's final norm -> embeddings of images
        (N, D), of unit length."""
        return functional.normalize(self._head(tokens.float()), dim=-1)
