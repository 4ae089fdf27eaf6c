"""The laws of plug-ins of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import plugins
from pipeline.config.laws import Laws, demand
from pipeline.models.encoders.contract import EncoderSettings
from pipeline.models.text.contract import TextSettings

SHORTEST_SENTENCE = 30
SETTINGS = {"encoder": EncoderSettings, "text": TextSettings}
"""Kind -> the base of its settings, where it has one of its own."""


@dataclass(frozen=True)
class NamedPlugin:
    """A plug-in as everybody else knows it."""

    kind: str
    name: str

    @property
    def plugin(self) -> Any:
        """Its class. Raises BadInput where it is not what its contract asks for."""
        return plugins.load(self.kind, self.name)


COMMON_LAWS: Laws[NamedPlugin] = Laws()


@COMMON_LAWS.add("it defines all that its contract asks for")
def _contract(named: NamedPlugin) -> None:
    demand(named.plugin, "it defines nothing")


@COMMON_LAWS.add("the first paragraph of its file says what it is, in a sentence")
def _described(named: NamedPlugin) -> None:
    what, _ = plugins.describe(named.kind, named.name)
    is_sentence = len(what) > SHORTEST_SENTENCE and what.endswith((".", "?", ")"))
    demand(is_sentence, f"it is '{what}', wanted a docstring at the top of the file")


@COMMON_LAWS.add("its settings are below those of its kind, and each is explained under it")
def _explained(named: NamedPlugin) -> None:
    table, base = named.plugin.Settings, SETTINGS.get(named.kind, plugins.Settings)
    demand(issubclass(table, base), f"Settings are not below {base.__name__} of its contract")
    bare = [key for key, field in table.model_fields.items() if not field.description]
    demand(not bare, f"nothing is said under {', '.join(bare)}: wanted a string below each")
