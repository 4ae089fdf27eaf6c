"""A run or a cache is pushed: first what is large, in commits that each are kept, and in the last
commit what vouches for it, and the card.

Pushed again it goes on where it was: files that the repository has already, with the same checksum,
are not sent. While a push that changes what was there is under way, nothing vouches for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from pipeline.config.plugins import Settings
from pipeline.errors import BadInput
from pipeline.exchange.hub.address import HubAddress
from pipeline.exchange.hub.card import CARD, card_of, is_as_written
from pipeline.exchange.hub.contents import (
    LARGE,
    VOUCHING,
    Contents,
    OnBytes,
    SharedFile,
)
from pipeline.exchange.hub.repository import (
    Snapshot,
    hub,
    in_one_line_of,
    is_same,
    read_small,
    read_snapshot,
    require_token,
    without_bars,
)

COMMIT_FILES, COMMIT_BYTES = 400, 2_000_000_000
"""A commit takes no more of what is large, unless it is one file: an upload that is stopped goes on
after the last commit at the latest."""
Operations = list[CommitOperationAdd | CommitOperationDelete]


class Pushed(Settings):
    """What a push has done, or would do."""

    address: str
    what: str
    """run or cache."""
    kind: str
    """model or dataset."""
    is_private: bool
    files: dict[str, int]
    """File in the repository -> its bytes."""
    left_out: tuple[str, ...]
    """Files and folders that stay here."""
    said_anew: dict[str, tuple[str, ...]]
    """File -> keys that name no place of this machine there."""
    sent: dict[str, int]
    """Those of `files` that were not there yet."""
    removed: tuple[str, ...] = ()
    """Files of an earlier push that are no longer a part of it."""
    commit: str | None = None
    """The last commit; None where nothing has been pushed."""
    notes: tuple[str, ...] = ()


def target_of(contents: Contents, text: str) -> HubAddress:
    """Where a run or cache goes. Raises BadInput for an address that it cannot go to."""
    address = HubAddress.parse(text)
    if address.revision is not None:
        raise BadInput(
            f"{address} names a revision, and a push goes to the main branch",
            f"{address.at(None)}",
        )
    if address.kind not in (None, contents.kind):
        raise BadInput(
            f"{text} is the address of a {address.kind}, and a {contents.what} goes to a "
            f"{contents.kind} repository",
            f"{address.of_kind(contents.kind)}",
        )
    return address.of_kind(contents.kind)


def plan_push(
    contents: Contents, text: str, licence: str | None = None, private: bool | None = None
) -> Pushed:
    """What a push to a new repository would send. Nothing is asked over a network."""
    address = target_of(contents, text)
    card = SharedFile.of(card_of(contents, address, licence))
    files = {name: file.size for name, file in (contents.files | {CARD: card}).items()}
    return _pushed(contents, address, private is not False, files=files, sent=files)


def push(
    contents: Contents,
    text: str,
    licence: str | None = None,
    private: bool | None = None,
    on_bytes: OnBytes | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Pushed:
    """Makes the repository where there is none, and pushes to it. `private`: who may see one that
    is made now; None: it is private.

    Raises BadInput: no token, no access, a repository that holds something else; and
    StillframeError where the hub cannot be reached or refuses it. What was sent is kept.
    """
    address = target_of(contents, text)
    require_token(address)
    with in_one_line_of(address):
        hub().create_repo(
            address.repository, repo_type=address.kind, private=private is not False, exist_ok=True
        )
    there = read_snapshot(address)
    _require_ours(there, contents)
    files, notes = dict(contents.files), []
    vouching = dict(contents.vouching)
    card = SharedFile.of(card_of(contents, address, licence))
    if _may_write_card(there, card):
        vouching[CARD] = card
    else:
        notes.append(f"{CARD} was edited there, and stays as it is")
    files |= vouching
    if private not in (None, there.is_private):
        now = "private" if there.is_private else "public"
        notes.append(f"{address} is {now}, as it was: that is changed in its settings")
    missing = {name: file for name, file in files.items() if not _is_there(there, name, file)}
    stale = tuple(
        name for name in there.files if _is_of_a_push(contents, name) and name not in files
    )
    large = {name: file for name, file in missing.items() if name in contents.large}
    say(_plan_text(address, there, missing))
    with without_bars():
        commit = _send(there, contents, missing, large, stale, vouching, on_bytes)
    sizes = {name: file.size for name, file in files.items()}
    return _pushed(
        contents,
        address,
        there.is_private,
        files=sizes,
        sent={name: sizes[name] for name in missing},
        removed=stale,
        commit=commit,
        notes=tuple(notes),
    )


def _send(
    there: Snapshot,
    contents: Contents,
    missing: dict[str, SharedFile],
    large: dict[str, SharedFile],
    stale: tuple[str, ...],
    vouching: dict[str, SharedFile],
    on_bytes: OnBytes | None,
) -> str:
    """The last commit. Where something large is sent, whatever vouched for the content before is
    removed first."""
    done, total = 0, sum(file.size for file in missing.values())
    commit = there.commit
    old = [name for name in there.files if VOUCHING[contents.what].fullmatch(name)] if large else []
    before: Operations = [CommitOperationDelete(name) for name in old]
    if on_bytes:
        on_bytes(0, total)
    for number, batch in enumerate(_batches(large)):
        operations = [*before, *_additions(batch)]
        before = []
        commit = _commit(there, commit, operations, f"{contents.what}: part {number + 1}")
        done += sum(file.size for file in batch.values())
        if on_bytes:
            on_bytes(done, total)
    left = vouching if old else {name: file for name, file in vouching.items() if name in missing}
    last: Operations = [*_additions(left)]
    last += [CommitOperationDelete(name) for name in stale if name not in old]
    if last:
        commit = _commit(there, commit, last, f"{contents.what} {contents.name}, whole")
    if on_bytes:
        on_bytes(total, total)
    return commit


def _commit(there: Snapshot, parent: str, operations: Operations, message: str) -> str:
    """The new commit, which follows on `parent`: where somebody else has committed meanwhile, the
    hub refuses it."""
    with in_one_line_of(there.address):
        made: Any = hub().create_commit(
            there.address.repository,
            operations,
            commit_message=message,
            repo_type=there.address.kind,
            parent_commit=parent,
        )
    return str(made.oid)


def _additions(files: dict[str, SharedFile]) -> Operations:
    return [CommitOperationAdd(name, file.source) for name, file in files.items()]


def _batches(files: dict[str, SharedFile]) -> Iterator[dict[str, SharedFile]]:
    batch: dict[str, SharedFile] = {}
    for name, file in files.items():
        size = sum(each.size for each in batch.values())
        if batch and (len(batch) == COMMIT_FILES or size + file.size > COMMIT_BYTES):
            yield batch
            batch = {}
        batch[name] = file
    if batch:
        yield batch


def _may_write_card(there: Snapshot, card: SharedFile) -> bool:
    """Whether there is no card that somebody has edited."""
    return (
        CARD not in there.files
        or _is_there(there, CARD, card)
        or is_as_written(read_small(there, CARD))
    )


def _is_there(there: Snapshot, name: str, file: SharedFile) -> bool:
    return name in there.files and is_same(there.files[name], file.source, file.sha256)


def _is_of_a_push(contents: Contents, name: str) -> bool:
    return any(names[contents.what].fullmatch(name) for names in (LARGE, VOUCHING))


def _require_ours(there: Snapshot, contents: Contents) -> None:
    """Refuses a repository in which somebody keeps something else."""
    own = {".gitattributes", ".gitignore", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"}
    strange = [
        name for name in there.files if name not in own and not _is_of_a_push(contents, name)
    ]
    if strange:
        more = f" and {len(strange) - 1} more files" if len(strange) > 1 else ""
        raise BadInput(
            f"{there.address} holds something else: {min(strange)}{more}",
            "push to a repository of its own, which is made if there is none",
        )


def _plan_text(address: HubAddress, there: Snapshot, missing: dict[str, SharedFile]) -> str:
    size = sum(file.size for file in missing.values())
    access = "private" if there.is_private else "public"
    return f"{address} ({access}): {len(missing)} files to send, {size / 1e6:,.1f} MB"


def _pushed(contents: Contents, address: HubAddress, private: bool, **more: Any) -> Pushed:
    return Pushed(
        address=str(address),
        what=contents.what,
        kind=contents.kind,
        is_private=private,
        left_out=contents.left_out,
        said_anew=contents.said_anew,
        **more,
    )


def folder_to_push(source: str) -> Path:
    """The folder that a user names. Raises BadInput for a URL."""
    if "://" in source:
        raise BadInput(
            f"{source} is a URL, and a push reads a folder of this machine",
            "give a folder; stillframe derive copies a cache from an object store into one",
        )
    return Path(source)
