"""All names that a spec, a recipe, a sweep or a command can hold: plug-ins, and files that ship."""

from __future__ import annotations

from pipeline.config import plugins
from pipeline.config.shipped import KINDS, first_sentence, shipped
from pipeline.errors import BadInput

SHIPPED = "stillframe"
BROKEN = "cannot be used:"
"""Beginning of what is said of a plug-in from outside that breaks its contract."""


def all_kinds() -> list[str]:
    """Kinds of plug-ins, then those of files."""
    return [*plugins.FOLDERS, *KINDS]


def named_things(kind: str) -> list[dict[str, str]]:
    """All that a kind has, each with `kind`, `name`, `what` it is, its `settings`, and where it is
    `from`."""
    if kind in KINDS:
        found = [(name, first_sentence(path), "", SHIPPED) for name, path in shipped(kind).items()]
    else:
        found = [(name, *_described(kind, name)) for name in plugins.names(kind)]
    columns = ("kind", "name", "what", "settings", "from")
    return [dict(zip(columns, (kind, *row), strict=True)) for row in found]


def _described(kind: str, name: str) -> tuple[str, str, str]:
    """What a plug-in is, its settings, and where it is from; of one from outside that cannot be
    used, why."""
    try:
        found = plugins.from_outside(kind, name)
        return *plugins.describe(kind, name), str(found or SHIPPED)
    except BadInput as error:
        return f"{BROKEN} {error.with_hint}", "", "outside"
