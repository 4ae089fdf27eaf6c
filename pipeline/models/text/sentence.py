"""A bidirectional sentence encoder of Hugging Face transformers, such as BERT or MiniLM: from the
hub or from a local folder.

A text's embedding is the mean of the last layer over its tokens, as sentence-transformers makes
it; a folder of theirs that pools otherwise is refused. Weights come from safetensors inside the
model's own folder; nothing is unpickled and no code is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import BadInput, unknown_name
from pipeline.models.encoders.tower.config import canonical_config, model_config
from pipeline.models.encoders.tower.files import (
    JSON_FILES,
    WEIGHT_FILES,
    json_object,
    model_folder,
    weight_files,
)
from pipeline.models.encoders.tower.weights import (
    refuse_mismatched,
    tensors_of,
    weights_digest,
    with_weights,
)
from pipeline.models.text.contract import TextEmbeddings, TextPlugin, TextSettings
from pipeline.models.text.parts.tokenizer import TOKENIZER_FILES, TextTokenizer, embed

POOLING_FILE, LENGTH_FILE = "1_Pooling/config.json", "sentence_bert_config.json"
"""Files of sentence-transformers: how tokens are pooled, and how many are read."""
TYPES = {
    "albert": False,
    "bert": False,
    "camembert": True,
    "distilbert": False,
    "electra": False,
    "modernbert": False,
    "mpnet": True,
    "roberta": True,
    "xlm-roberta": True,
}
"""Model types that are read -> whether their positions begin after that of padding."""
UNREAD = ("pooler.",)
"""How the names of parameters begin that the mean does not need."""


class Text(TextPlugin):
    """The encoder in evaluation mode on one device."""

    class Settings(TextSettings):
        """These settings say which model is read."""

        model: str
        """Hub id, or a local folder with config.json, safetensors and a tokeniser."""
        revision: str | None = None
        """Branch, tag or commit on the hub."""

    def __init__(self, settings: Any, device: torch.device) -> None:
        own = [POOLING_FILE, LENGTH_FILE]
        folder = model_folder(settings, JSON_FILES + WEIGHT_FILES + TOKENIZER_FILES + own)
        assert folder is not None
        config = model_config(settings.model, folder)
        if config.model_type not in TYPES:
            raise unknown_name(
                "sentence encoder", config.model_type, TYPES, f"model {settings.model}"
            )
        if getattr(config, "is_decoder", False):
            raise BadInput(
                f"model {settings.model} is a decoder: its tokens do not see the whole text",
                "wanted is_decoder = false in its config.json",
            )
        _require_mean(settings.model, folder)
        most = _most_tokens(config, folder)
        self._tokenizer = TextTokenizer(settings.model, folder, most, config.vocab_size, "longest")
        self._model = _encoder(folder, config).to(device)
        self._device, self._template = device, settings.template
        self.most_tokens = self._tokenizer.most_tokens
        self.width = self.token_width = config.hidden_size
        self.identity = {
            "type": config.model_type,
            "config": canonical_config(config),
            "weights": weights_digest(weight_files(folder)),
            "tokenizer": self._tokenizer.identity,
            "template": settings.template,
            "most_tokens": self.most_tokens,
        }

    def __call__(self, texts: Sequence[str]) -> TextEmbeddings:
        return embed(self._tokenizer, self._run, texts, self._template, self._device)

    def _run(
        self, inputs: dict[str, torch.Tensor], mask_NL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens_NLD = self._model(**inputs).last_hidden_state
        weight_NL1 = mask_NL.unsqueeze(-1).to(tokens_NLD.dtype)
        return (tokens_NLD * weight_NL1).sum(1) / weight_NL1.sum(1), tokens_NLD


def _require_mean(model: str, folder: Path) -> None:
    """Raises BadInput where the folder says that tokens are pooled otherwise."""
    if not (folder / POOLING_FILE).is_file():
        return
    table = json_object(folder / POOLING_FILE)
    modes = [key for key, value in table.items() if key.startswith("pooling_mode_") and value]
    if modes != ["pooling_mode_mean_tokens"]:
        raise BadInput(
            f"model {model} pools tokens by {', '.join(modes) or 'nothing'} "
            f"({POOLING_FILE}); only the mean is read",
            "use a model that is pooled by pooling_mode_mean_tokens",
        )


def _most_tokens(config: Any, folder: Path) -> int:
    """Tokens of a text that are read: those that the folder names, and those that have a
    position."""
    most: int = config.max_position_embeddings
    if TYPES[config.model_type]:
        most -= config.pad_token_id + 1
    file = folder / LENGTH_FILE
    named = json_object(file).get("max_seq_length") if file.is_file() else None
    return min(most, named) if isinstance(named, int) and named > 0 else most


def _encoder(folder: Path, config: Any) -> Any:
    """The encoder with the weights of a folder. Raises BadInput where one is missing."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_class = getattr(transformers, MODEL_MAPPING_NAMES[config.model_type])
    weights = tensors_of(folder, weight_files(folder))
    # A pooler that is not read may be drawn at random: the global generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        model, report = with_weights(folder, model_class, config, weights, "eager")
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNREAD))
    if missing:
        raise BadInput(
            f"{folder} lacks {len(missing)} weights of the encoder, the first is {missing[0]}",
            "fetch it again",
        )
    refuse_mismatched(folder, report)
    return model.eval().requires_grad_(False)
