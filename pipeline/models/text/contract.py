"""Contract of a text tower: a frozen text model that turns texts into embeddings.

Everything is in float32. A text has the same embedding among any others. Shape letters: N texts, L
tokens of the longest text, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, field_validator

from pipeline.config import plugins
from pipeline.config.cache_spec import Choice, choice
from pipeline.config.plugins import Settings

PLACE = "{}"
"""Where a text goes in a template."""


class TextSettings(Settings):
    """The table of every text tower holds these settings."""

    template: str = PLACE
    """What the tower reads: the text stands in the place of {}, as in "a photo of {}"."""

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, template: str) -> str:
        if template.count(PLACE) != 1:
            raise ValueError("wanted {} once, where the text goes")
        return template


TextChoice = Annotated[
    Choice,
    BeforeValidator(lambda table: choice("text", table)),
    PlainSerializer(Choice.table),
    WithJsonSchema({plugins.OF_KIND: "text"}),
]
"""A text tower and its settings, as a table in the settings of what reads texts."""


class TextEmbeddings(NamedTuple):
    """What a tower says of N texts."""

    pooled_ND: torch.Tensor
    """One vector for each text, of unit length."""
    tokens_NLD: torch.Tensor
    """The tower's last layer, after its final norm; of a width of its own."""
    mask_NL: torch.Tensor
    """bool: which of the tokens are of the text, its beginning and its end, and no padding."""
    cut: int
    """Texts that are longer than the tower reads, and lost their end."""


class Logits(NamedTuple):
    """How an image-text model turns a cosine into a logit: scale * cosine + bias."""

    scale: float
    bias: float


class TextPlugin(ABC):
    """Base of every `Text`."""

    Settings: ClassVar[type[TextSettings]]
    identity: dict[str, Any]
    """Plain JSON that changes exactly when the embeddings would: configuration, sha256 of the
    weights and of the tokeniser, template."""
    width: int
    """D of pooled embeddings."""
    token_width: int
    """D of the embeddings of tokens."""
    most_tokens: int
    """Tokens of a text that are read, beginning and end included."""
    logits: Logits | None = None
    """None: the tower knows no images."""

    @abstractmethod
    def __init__(self, settings: Any, device: torch.device) -> None: ...

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeddings on the tower's device. Raises BadInput where there is no text, or an empty
        one."""


def make_text(choice: Choice, device: torch.device) -> TextPlugin:
    """The text tower that a table names, on `device`; its weights are read. Raises BadInput."""
    plugin: type[TextPlugin] = plugins.load("text", choice.name)
    return plugin(choice.settings, device)
