"""The Hugging Face hub: `push` and `pull`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import AsJson, DryRun, app
from pipeline.errors import count_text

if TYPE_CHECKING:
    from pipeline.exchange.hub.push import Pushed

FOLDER = re.compile(r"receipts/|stores/[^/]+/")
"""Whose files are listed together."""
FEW = 12
"""Files of which it is listed what they do not say there."""


@app.command()
def push(
    source: Annotated[
        str, typer.Argument(metavar="RUN|CACHE", help="The folder of a finished run or cache.")
    ],
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="hf://user/name; it is made if need be.")
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Who may see a repository that is made now. Default: private.",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="As the hub spells it: mit, apache-2.0, cc-by-4.0. Default: none."
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Push a run or a cache to the Hugging Face hub.

    A run becomes a model repository, a cache a data set. What vouches for the content is committed
    last. Run it again to go on after any stop: what is there already is not sent again.

    Example: stillframe push runs/demo_gru hf://user/demo_gru
    """
    from pipeline.cli import console
    from pipeline.exchange.hub import push as module
    from pipeline.exchange.hub.address import HubAddress
    from pipeline.exchange.hub.contents import contents_of

    HubAddress.parse(address)  # before every byte is checked
    folder = module.folder_to_push(source)
    with console.progress("check") as update:
        contents = contents_of(folder, lambda done, total: update(done / 1e6, total / 1e6, "MB"))
    if dry_run:
        pushed = module.plan_push(contents, address, licence, private)
    else:
        with console.progress("push") as update:
            pushed = module.push(
                contents,
                address,
                licence,
                private,
                lambda done, total: update(done / 1e6, total / 1e6, "MB"),
                console.say,
            )
    for note in pushed.notes:
        console.say(note)
    if as_json:
        console.show_json(pushed.model_dump())
    elif dry_run:
        _show_plan(pushed)
    else:
        _show_pushed(pushed)


def _show_plan(pushed: Pushed) -> None:
    """Every file, those of a store together."""
    from pipeline.cli import console

    sizes: dict[str, list[int]] = {}
    for name, size in pushed.files.items():
        folder = FOLDER.match(name)
        sizes.setdefault(f"{folder[0]}..." if folder else name, []).append(size)
    rows = [(name, len(each), console.bytes_text(sum(each))) for name, each in sizes.items()]
    console.show_table("", ("file", "files", "size"), rows, justify="lrr")
    access = "private" if pushed.is_private else "public"
    total = console.bytes_text(sum(pushed.files.values()))
    console.show(
        f"{pushed.address}: a {pushed.kind} repository, {access} if it is made now; "
        f"{count_text(len(pushed.files), 'file')}, {total}"
    )
    for name, keys in list(pushed.said_anew.items())[:FEW]:
        console.show(f"{name}: without the places of this machine in {', '.join(keys)}")
    if len(pushed.said_anew) > FEW:
        console.show(f"and {len(pushed.said_anew) - FEW} more files likewise")
    if pushed.left_out:
        console.show(f"stays here: {', '.join(pushed.left_out)}")
    console.show("nothing was sent")


def _show_pushed(pushed: Pushed) -> None:
    from pipeline.cli import console

    size = console.bytes_text(sum(pushed.sent.values()))
    count = count_text(len(pushed.files), "file")
    what = (
        f"{len(pushed.sent)} of {count} sent, {size}"
        if pushed.sent
        else f"all {count} were there already"
    )
    removed = f"; {count_text(len(pushed.removed), 'file')} removed" if pushed.removed else ""
    access = "private" if pushed.is_private else "public"
    console.show(
        f"{pushed.address} ({access}): {what}{removed}; commit {(pushed.commit or '')[:12]}"
    )
    console.show(f"next: stillframe pull {pushed.address} --out FOLDER")


@app.command()
def pull(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS", help="hf://user/name, with @revision or as hf://datasets/user/name."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder of the run or cache itself.")],
    as_json: AsJson = False,
) -> None:
    """Pull a run or a cache from the Hugging Face hub.

    All of it is fetched aside and checked before it takes its name. Run it again to go on after
    any stop. Nothing in a repository is run.

    Example: stillframe pull hf://user/demo_gru --out runs/pulled
    """
    from pipeline.cli import console
    from pipeline.exchange.hub import pull as module

    with console.progress("pull") as update:
        pulled = module.pull(
            address, out, lambda done, total: update(done / 1e6, total / 1e6, "MB")
        )
    if as_json:
        console.show_json(pulled.model_dump())
        return
    how = "was there already, whole" if pulled.was_there else "checked"
    size = console.bytes_text(pulled.total_bytes)
    console.show(
        f"{out}: a {pulled.what}, {count_text(pulled.files, 'file')}, {size}, {how}; commit "
        f"{pulled.commit[:12]}"
    )
    hint = f"evaluate {out} --cache CACHE" if pulled.what == "run" else f"status {out}"
    console.show(f"next: stillframe {hint}")
