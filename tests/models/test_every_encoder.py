"""Laws of every encoder found on disk that can be made without weights of its own."""

from __future__ import annotations

import pytest
from support import laws
from support.towers import settings_of

from pipeline.config import plugins
from pipeline.config.laws import BrokenLaw, Law
from pipeline.errors import BadInput
from pipeline.models.encoders._laws import ENCODER_LAWS, OneEncoder

NAMES = plugins.names("encoder")


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
