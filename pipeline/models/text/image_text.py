"""The text half of an image-text model of Hugging Face transformers (CLIP, MetaCLIP 2, SigLIP,
SigLIP 2): from the hub or from a local folder.

Texts are cut into tokens, padded and pooled as the model's own processor and `get_text_features` do
it: CLIP pools at the end of the text, SigLIP at the last of its 64 tokens. Weights come from
safetensors inside the model's own folder; nothing is unpickled and no code is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.models.encoders.tower.config import canonical_config
from pipeline.models.encoders.tower.files import (
    JSON_FILES,
    WEIGHT_FILES,
    model_folder,
    weight_files,
)
from pipeline.models.encoders.tower.weights import weights_digest
from pipeline.models.text.contract import Logits, TextEmbeddings, TextPlugin, TextSettings
from pipeline.models.text.parts.tokenizer import TOKENIZER_FILES, TextTokenizer, embed
from pipeline.models.text.parts.two_tower import TEXT, TWO_TOWERS, half_of_model, two_tower_config


class Text(TextPlugin):
    """The text tower with its projection, in evaluation mode on one device."""

    class Settings(TextSettings):
        """These settings say which model is read."""

        model: str
        """Hub id, or a local folder with config.json, safetensors and a tokeniser."""
        revision: str | None = None
        """Branch, tag or commit on the hub."""

    def __init__(self, settings: Any, device: torch.device) -> None:
        folder = model_folder(settings, JSON_FILES + WEIGHT_FILES + TOKENIZER_FILES)
        assert folder is not None
        config = two_tower_config(settings.model, folder)
        text = config.text_config
        self._tokenizer = TextTokenizer(
            settings.model,
            folder,
            text.max_position_embeddings,
            text.vocab_size,
            TWO_TOWERS[config.model_type].padding,
        )
        model = half_of_model(folder, config, TEXT)
        bias = float(model.logit_bias) if hasattr(model, "logit_bias") else 0.0
        self.logits = Logits(float(model.logit_scale.exp()), bias)
        self._model, self._device = model.to(device), device
        self._template = settings.template
        self.most_tokens = self._tokenizer.most_tokens
        self.token_width: int = text.hidden_size
        projection = getattr(model, "text_projection", None) or model.text_model.head
        self.width: int = projection.out_features
        self.identity = {
            "type": config.model_type,
            "config": canonical_config(text),
            "weights": weights_digest(weight_files(folder)),
            "tokenizer": self._tokenizer.identity,
            "template": settings.template,
        }

    def __call__(self, texts: Sequence[str]) -> TextEmbeddings:
        return embed(self._tokenizer, self._run, texts, self._template, self._device)

    def _run(
        self, inputs: dict[str, torch.Tensor], _mask_NL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output = self._model.get_text_features(**inputs, return_dict=True)
        return output.pooler_output, output.last_hidden_state
