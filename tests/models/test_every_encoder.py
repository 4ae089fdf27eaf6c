"""Laws of every encoder found on disk that can be made without weights of its own."""

from __future__ import annotations

from typing import Any

import pytest
from support import laws, rvm

from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.laws import BrokenLaw, Law
from pipeline.config.shipped import shipped
from pipeline.errors import BadInput
from pipeline.models.encoders._laws import ENCODER_LAWS, OneEncoder

NAMES = plugins.names("encoder")


def settings_of(name: str) -> Any:
    """Those of the spec `demo` where it names the encoder, else the defaults and layer 0."""
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


@pytest.mark.parametrize("law", laws.each(ENCODER_LAWS))
@pytest.mark.parametrize("name", NAMES)
def test_law(name: str, law: Law[OneEncoder]) -> None:
    one = OneEncoder(plugins.load("encoder", name), settings_of(name))
    try:
        laws.holds(law, one)
    except BrokenLaw:
        raise
    except BadInput as error:
        pytest.skip(f"encoder '{name}' has no weights here: {error.message}")
