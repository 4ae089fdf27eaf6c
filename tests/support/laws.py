"""Laws of plug-ins as tests."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.laws import Law, Laws, NotChecked


def each(laws: Laws[Any], *but: str) -> list[Any]:
    """A parameter for every law, those named in `but` left out."""
    return [
        pytest.param(law, id=law.name, marks=[pytest.mark.slow] if law.is_slow else [])
        for law in laws
        if law.name not in but
    ]


def holds(law: Law[Any], subject: Any) -> None:
    """Skips the test where there is nothing to check."""
    try:
        law.check(subject)
    except NotChecked as reason:
        pytest.skip(str(reason))
