"""Image-text models of transformers, of which one half is read: the text tower with its projection,
or the head that turns tokens of the vision tower into the embedding of an image."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.errors import BadInput
from pipeline.models.encoders.tower.config import model_config
from pipeline.models.encoders.tower.files import weight_files
from pipeline.models.encoders.tower.weights import refuse_mismatched, tensors_of, with_weights
from pipeline.models.text.parts.tokenizer import Padding


class TwoTower(NamedTuple):
    """How models of one type are made and read."""

    model_class: str
    """Class of transformers that is the whole model."""
    image_head: str
    """What makes the embedding of an image: VISUAL_PROJECTION of CLS, or POOLING of the patches."""
    padding: Padding
    """How texts are made as long as each other."""


VISUAL_PROJECTION, POOLING = "visual_projection", "vision_model.head"
"""Parts of models."""
TEXT = ("text_model", "text_projection", "logit_scale", "logit_bias")
"""Parts of models that are the text half."""
TWO_TOWERS = {
    "clip": TwoTower("CLIPModel", VISUAL_PROJECTION, "longest"),
    "metaclip_2": TwoTower("MetaClip2Model", VISUAL_PROJECTION, "longest"),
    "siglip": TwoTower("SiglipModel", POOLING, "max_length"),
    "siglip2": TwoTower("Siglip2Model", POOLING, "max_length"),
}
"""Model type -> how its models are made and read."""


def two_tower_config(model: str, folder: Path) -> Any:
    """The configuration of the image-text model in a folder, which users know as `model`. Raises
    BadInput where it has no text half that is read."""
    config = model_config(model, folder)
    if config.model_type not in TWO_TOWERS:
        raise BadInput(
            f"model {model} has no text half: its type is {config.model_type}",
            f"wanted a whole image-text model, one of {', '.join(TWO_TOWERS)}",
        )
    return config


def half_of_model(folder: Path, config: Any, parts: tuple[str, ...]) -> Any:
    """A two-tower model in evaluation mode whose `parts` have the weights of a folder; the towers
    that are none of them have no blocks. Raises BadInput where a weight of the parts is missing or
    does not fit."""
    import transformers

    wanted = tuple(f"{part}." for part in parts) + parts
    config = copy.deepcopy(config)
    for tower in ("text", "vision"):
        if f"{tower}_model" not in parts:
            getattr(config, f"{tower}_config").num_hidden_layers = 0
    weights = {
        name: tensor
        for name, tensor in tensors_of(folder, weight_files(folder)).items()
        if name.startswith(wanted)
    }
    model_class = getattr(transformers, TWO_TOWERS[config.model_type].model_class)
    # What is not read is drawn at random: the global generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        model, report = with_weights(folder, model_class, config, weights)
    missing = sorted(name for name in report["missing_keys"] if name.startswith(wanted))
    if missing:
        raise BadInput(
            f"{folder} lacks {len(missing)} weights of its {' and '.join(parts[:2])}, the first is "
            f"{missing[0]}",
            "fetch it again; wanted a whole image-text model",
        )
    refuse_mismatched(folder, report)
    return model.eval().requires_grad_(False)
