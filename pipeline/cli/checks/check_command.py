"""`stillframe check-plugin`."""

from __future__ import annotations

import inspect
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import AsJson, Sets, app
from pipeline.errors import BadInput, StillframeError

if TYPE_CHECKING:
    from pipeline.config.laws import Law

HOLDS = "holds"


@app.command("check-plugin")
def check_plugin(
    plugin: Annotated[
        str, typer.Argument(help="A file of a plug-in of your own, or the name of any plug-in.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="temporal, task, codec, ... Default: all kinds that there are of it."),
    ] = None,
    sets: Sets = None,
    data: Annotated[
        Path | None,
        typer.Option(help="For a data set: a small folder in its layout, to build manifests of."),
    ] = None,
    size_px: Annotated[int, typer.Option(min=1, help="For an encoder: side of its frames.")] = 112,
    as_json: AsJson = False,
) -> None:
    """Hold a plug-in to the laws of its kind.

    The first one that it breaks is named. --set gives settings that it does not have by default,
    such as the weights of an encoder.

    Example: stillframe check-plugin ./my_module.py
    """
    from pipeline.cli import console
    from pipeline.cli.checks.subjects import Material
    from pipeline.config import outside
    from pipeline.config.toml_tables import override

    name = plugin
    if plugin.endswith(outside.SUFFIX):
        from pipeline.config.plugins import add

        add(Path(plugin))
        name = Path(plugin).stem
    material = Material(override({}, sets or []), data, size_px)
    found = {each: _checked(each, name, material) for each in _kinds(name, kind)}
    if as_json:
        rows = [
            {"kind": each, "name": name, "law": says, "found": how}
            for each, laws in found.items()
            for says, how in laws
        ]
        console.show_json(rows)
        return
    for each, laws in found.items():
        held = sum(how == HOLDS for _, how in laws)
        console.show_table(f"{each} '{name}'", ("law", ""), laws)
        rest = f", {len(laws) - held} were not checked" if held < len(laws) else ""
        console.show(f"{each} '{name}': {held} laws hold{rest}")


def _kinds(name: str, kind: str | None) -> list[str]:
    """The kinds of which there is a plug-in of that name. Raises BadInput where there is none."""
    from pipeline.config import plugins
    from pipeline.errors import unknown_name

    if kind is not None and kind not in plugins.FOLDERS:
        raise unknown_name("kind", kind, plugins.FOLDERS)
    kinds = [each for each in plugins.FOLDERS if name in plugins.names(each)]
    if kind is not None:
        plugins.load(kind, name)
        return [kind]
    if not kinds:
        known = {each for every in plugins.FOLDERS for each in plugins.names(every)}
        raise unknown_name("plug-in", name, known)
    return kinds


def _checked(kind: str, name: str, material: Any) -> list[tuple[str, str]]:
    """Every law, and whether it holds or why it was not checked. Raises BadInput for the first that
    is broken."""
    from pipeline.cli import console
    from pipeline.cli.checks.common_laws import COMMON_LAWS, NamedPlugin
    from pipeline.cli.checks.subjects import laws_of

    named = NamedPlugin(kind, name)
    rows = [(law.says, _found(law, named, named)) for law in COMMON_LAWS]
    laws, subject = laws_of(kind, name, material)
    with console.progress(f"laws of {kind} '{name}'") as update, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what the laws do
        for number, law in enumerate(laws):
            update(number, len(laws), "laws")
            rows.append((law.says, _found(law, subject, named)))
    return rows


def _found(law: Law[Any], subject: Any, named: Any) -> str:
    """Whether a law holds, or why it was not checked. Raises BadInput where it is broken."""
    from pipeline.config import plugins
    from pipeline.config.laws import BrokenLaw, NotChecked

    brought = plugins.from_outside(named.kind, named.name) or "stillframe"
    what = f"{named.kind} plug-in '{named.name}' of {brought}"
    hint = "see its kind in docs/extending.md"
    try:
        law.check(subject)
    except NotChecked as reason:
        return f"not checked: {reason}"
    except BrokenLaw as error:
        raise BadInput(f"{what} breaks the law that {law.says}: {error.message}", hint) from error
    except StillframeError as error:
        raise BadInput(
            f"{what} cannot be held to the law that {law.says}: {error.message}",
            error.hint or hint,
        ) from error
    except Exception as error:  # whatever a plug-in of somebody else's does
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        frames = traceback.extract_tb(error.__traceback__)
        own = inspect.getfile(named.plugin)
        *_, last = [frame for frame in frames if frame.filename == own] or frames
        where = f"{last.filename} line {last.lineno}"
        raise BadInput(f"{what} breaks the law that {law.says}: {said} ({where})", hint) from error
    return HOLDS
