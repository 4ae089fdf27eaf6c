"""What makes the embedding of an image out of the tokens of an image-text model's vision tower:
pixels are not needed once the tokens of its last layer are there.

CLIP and MetaCLIP 2 project the last layer's CLS; SigLIP and SigLIP 2 pool its patches by attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pipeline.models.encoders.tower.files import weight_files
from pipeline.models.encoders.tower.weights import weights_digest
from pipeline.models.text.parts.two_tower import (
    TWO_TOWERS,
    VISUAL_PROJECTION,
    half_of_model,
    two_tower_config,
)


class ImageHead:
    """The head of the model in a folder, which users know as `model`, in float32."""

    def __init__(self, model: str, folder: Path, device: torch.device) -> None:
        """Raises BadInput where the model has no text half, or its weights are not all there."""
        config = two_tower_config(model, folder)
        part = TWO_TOWERS[config.model_type].image_head
        self._head = half_of_model(folder, config, (part,)).get_submodule(part).to(device)
        self.reads_cls = part == VISUAL_PROJECTION
        """Whether the last layer's CLS is read, (N, D), or else its patches, (N, P, D)."""
        self.last_layer: int = config.vision_config.num_hidden_layers - 1
        """The layer whose tokens are read, counted from 0."""
        self.patch_px: int = config.vision_config.patch_size
        self.weights = weights_digest(weight_files(folder))
        """sha256 of the model's weight files, as an encoder's identity has it."""
        self.identity: dict[str, Any] = {
            "type": config.model_type,
            "part": part,
            "weights": self.weights,
        }

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens as the last layer has them after the tower's final norm -> embeddings of images
        (N, D), of unit length."""
        return functional.normalize(self._head(tokens.float()), dim=-1)
