"""The text half of the image-text model that a cache was made with."""

from __future__ import annotations

import torch

from pipeline.cache.cache import Cache
from pipeline.config.cache_spec import choice
from pipeline.models.text.contract import TextPlugin, make_text
from pipeline.train.language.frame_embeddings import looking_for, require_same_model, text_model_of


def text_tower_of(cache: Cache, model: str | None, device: torch.device) -> TextPlugin:
    """The text half of the model that a cache was made with; `model` says where it is now, if it
    was moved. Only a model that a user named is fetched. Raises BadInput."""
    named = text_model_of(cache, model)
    table = {"name": "image_text", "model": named.model, "revision": named.revision}
    with looking_for(model):
        tower = make_text(choice("text", table), device)
    require_same_model(cache, tower.identity["weights"], named.model)
    return tower
