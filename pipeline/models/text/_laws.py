"""The laws of text towers that hold without a reference: see `contract`, and docs/extending.md."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from pipeline.config.laws import Laws, demand, require_plain_json, require_refused
from pipeline.models.text.contract import TextPlugin

TEXTS = ("a red square moves", "two people cook", "it", "somebody opens a door and leaves the room")
WITHIN = 1e-5


class OneTower:
    """A text tower with settings of the user's, made when it is first asked for."""

    def __init__(self, plugin: type[TextPlugin], settings: Any) -> None:
        self.plugin, self.settings = plugin, settings

    def make(self) -> TextPlugin:
        """Another one. Raises BadInput where its weights are not here."""
        return self.plugin(self.settings, torch.device("cpu"))

    @cached_property
    def tower(self) -> TextPlugin:
        """One that all laws may look at."""
        return self.make()


TEXT_LAWS: Laws[OneTower] = Laws()


@TEXT_LAWS.add("embeddings have the declared widths, float32, one of unit length for each text")
def _widths(one: OneTower) -> None:
    said = one.tower(TEXTS)
    pooled, wanted = tuple(said.pooled_ND.shape), (len(TEXTS), one.tower.width)
    demand(pooled == wanted, f"pooled_ND is {pooled}, wanted {wanted}")
    longest = said.mask_NL.shape[-1]
    found, whole = tuple(said.tokens_NLD.shape), (len(TEXTS), longest, one.tower.token_width)
    demand(found == whole, f"tokens_NLD is {found}, wanted {whole}")
    demand(said.mask_NL.dtype == torch.bool, f"mask_NL is {said.mask_NL.dtype}, wanted bool")
    kinds = {str(part.dtype) for part in (said.pooled_ND, said.tokens_NLD)}
    demand(kinds == {"torch.float32"}, f"embeddings are {', '.join(sorted(kinds))}")
    off = float((said.pooled_ND.norm(dim=-1) - 1).abs().max())
    demand(off <= WITHIN, f"lengths of pooled embeddings are off 1 by {off:.3g}")


@TEXT_LAWS.add("a text has the same embedding among any others")
def _among(one: OneTower) -> None:
    together = one.tower(TEXTS).pooled_ND
    for number, text in enumerate(TEXTS):
        alone = one.tower([text]).pooled_ND[0]
        error = float((alone - together[number]).abs().max())
        demand(error <= WITHIN, f"'{text}' differs by {error:.3g} alone and among {len(TEXTS)}")


@TEXT_LAWS.add("an empty text is refused, and so is none")
def _empty(one: OneTower) -> None:
    require_refused(lambda: one.tower(["a", ""]), "an empty text")
    require_refused(lambda: one.tower([]), "no text at all")


@TEXT_LAWS.add("a text longer than the tower reads is cut, and counted")
def _long(one: OneTower) -> None:
    said = one.tower([TEXTS[0], "word " * (one.tower.most_tokens + 8)])
    demand(said.cut == 1, f"cut is {said.cut} for one such text, wanted 1")
    longest = int(said.mask_NL.sum(-1).max())
    most = one.tower.most_tokens
    demand(longest <= most, f"{longest} tokens of it are read, most_tokens is {most}")


@TEXT_LAWS.add("the identity is plain JSON, and the same again")
def _identity(one: OneTower) -> None:
    require_plain_json(one.tower.identity, "identity")
    again = one.make().identity
    demand(again == one.tower.identity, f"it is {one.tower.identity}, and then {again}")
