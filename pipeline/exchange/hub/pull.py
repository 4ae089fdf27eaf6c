"""A run or a cache is pulled: everything is fetched aside, compared with what vouches for it, and
only then takes its name.

Nothing else of a repository is fetched, and none of it is run. Pulled again it goes on where it
was.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import PARTIAL, make_folder, renamed, sync, write_atomically
from pipeline.cache.verify import verify_cache
from pipeline.config.plugins import Settings
from pipeline.config.regular_files import read_regular
from pipeline.errors import BadInput, StillframeError, count_text
from pipeline.exchange.hub.address import HubAddress
from pipeline.exchange.hub.contents import (
    CACHE,
    HEADERS,
    LARGE,
    RUN,
    OnBytes,
    What,
    belongs,
    cache_problems,
    run_problems,
)
from pipeline.exchange.hub.repository import (
    AGAIN,
    Snapshot,
    Unreachable,
    download,
    is_same,
    read_snapshot,
    without_bars,
)
from pipeline.train.run import Run

WHATS: tuple[What, ...] = (RUN, CACHE)
THREADS = 8
"""Files that are fetched at once."""
WHOLE = "whole"
"""Folder inside of the one aside, so that nothing beside the target looks like a run or a cache."""
COMMIT = re.compile(r"[0-9a-f]{40}")


class Pulled(Settings):
    """What a pull has brought."""

    address: str
    what: str
    """run or cache."""
    commit: str
    folder: str
    files: int
    total_bytes: int
    was_there: bool
    """Whether all of it was in the folder before."""


def pull(text: str, out: Path, on_bytes: OnBytes | None = None) -> Pulled:
    """Fetches a run or a cache into the folder `out`, which is new or empty, or holds the same.

    Raises BadInput: no such repository or no access; one that holds no run or cache, or one that
    was not pushed to its end; content that is damaged; a folder with other content. And
    StillframeError where the hub cannot be reached. What was fetched is kept aside for the next
    try.
    """
    snapshot, what = look_up(HubAddress.parse(text))
    names = names_of(snapshot, what)
    was_there = _is_taken(out, snapshot, names)
    if not was_there:
        fetch(snapshot, what, names, out, on_bytes)
    return Pulled(
        address=str(snapshot.address),
        what=what,
        commit=snapshot.commit,
        folder=str(out),
        files=len(names),
        total_bytes=sum(snapshot.files[name].size for name in names),
        was_there=was_there,
    )


def look_up(address: HubAddress) -> tuple[Snapshot, What]:
    """The repository of an address, and what is in it. Where the address does not say of what kind
    it is, models come first, then data sets. Raises BadInput."""
    kinds = ("model", "dataset") if address.kind is None else (address.kind,)
    first: BadInput | None = None
    for kind in kinds:
        try:
            snapshot = read_snapshot(address.of_kind(kind))
            return snapshot, _what_is_in(snapshot)
        except BadInput as error:
            # Of two that are nothing, what is said of the one that exists tells more.
            if first is None or "no such" in first.message:
                first = error
    assert first is not None
    if address.kind is None and "no such" in first.message:
        raise BadInput(
            f"{address}: there is no such model and no such data set on the hub, or it is private "
            "and this account may not see it",
            first.hint,
        )
    raise first


def _what_is_in(snapshot: Snapshot) -> What:
    for what in WHATS:
        if HEADERS[what] in snapshot.files:
            return what
    for what in WHATS:
        if any(LARGE[what].fullmatch(name) for name in snapshot.files):
            raise BadInput(
                f"{snapshot.address} is not whole: a {what} was not pushed to its end, it has no "
                f"{HEADERS[what]} yet",
                "whoever pushed it runs the same push again",
            )
    raise BadInput(
        f"{snapshot.address} holds neither a run nor a cache: it has no {HEADERS[RUN]} and no "
        f"{HEADERS[CACHE]}",
        "look at the address; other models of the hub are encoders, see docs/guide/extract.md",
    )


def names_of(snapshot: Snapshot, what: What) -> list[str]:
    """The files of a repository that are a part of the run or cache. Raises BadInput where a store
    lacks its receipt, or a checkpoint its weights."""
    names = sorted(name for name in snapshot.files if belongs(what, name))
    if what == CACHE:
        stores = {name.split("/")[1].removesuffix(".zarr") for name in names if "stores/" in name}
        lacking = sorted(store for store in stores if f"receipts/{store}.json" not in names)
        if lacking:
            raise BadInput(
                f"{snapshot.address} is not whole: {len(lacking)} of {len(stores)} stores have no "
                f"receipt, the first is {lacking[0]}",
                "whoever pushed it runs the same push again",
            )
    return names


def _is_taken(out: Path, snapshot: Snapshot, names: Sequence[str]) -> bool:
    """Whether the folder holds all of it already. Raises BadInput where it holds anything else."""
    if out.is_dir() and not any(out.iterdir()):
        return False
    if not out.exists():
        return False
    for name in names:
        path = out / name
        if not path.is_file() or not is_same(snapshot.files[name], path):
            raise BadInput(
                f"{out} has other content: its {name} is not that of {snapshot.address}"
                if path.exists()
                else f"{out} has other content: it has no {name}",
                "pull into a folder that is new or empty",
            )
    return True


def fetch(
    snapshot: Snapshot, what: What, names: Sequence[str], out: Path, on_bytes: OnBytes | None
) -> None:
    """Fetches files aside, checks them, and gives them their place. Raises BadInput,
    StillframeError."""
    out = out.absolute()
    aside = out.with_name(f"{out.name}{PARTIAL}")
    whole = aside / WHOLE
    make_folder(whole)
    done, total = 0, sum(snapshot.files[name].size for name in names)
    damaged = []
    with without_bars(), _Pool(THREADS, "pull") as pool:
        if on_bytes:
            on_bytes(done, total)
        arrived = pool.map(lambda name: _fetched(snapshot, name, whole), names)
        for name, is_sound in zip(names, arrived, strict=True):
            done += snapshot.files[name].size
            damaged += [] if is_sound else [name]
            if on_bytes:
                on_bytes(done, total)
    if damaged:
        raise BadInput(
            f"{snapshot.address}: {damaged[0]} arrived otherwise than the hub lists it"
            f"{_more(damaged)}",
            f"{AGAIN}, and fetches what is damaged alone; if it stays: ask its owner to push again",
        )
    shutil.rmtree(whole / ".cache", ignore_errors=True)  # what huggingface_hub knows of them
    for path in sorted(whole.rglob("*"), reverse=True):  # of another repository, or another commit
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path.relative_to(whole).as_posix() not in names:
            path.unlink()
    _require_sound(snapshot, what, whole)
    for folder in [each for each in whole.rglob("*") if each.is_dir()]:
        sync(folder)
    make_folder(out.parent)
    if not renamed(whole, out):
        raise BadInput(f"{out} has other content by now", "pull into a folder that is new or empty")
    aside.rmdir()


def _fetched(snapshot: Snapshot, name: str, whole: Path) -> bool:
    """Whether a file is aside as the hub lists it; what is there already is not fetched again, and
    what arrived otherwise does not stay."""
    path, listed = whole / name, snapshot.files[name]
    if path.is_file() and is_same(listed, path):
        return True
    path.unlink(missing_ok=True)
    download(snapshot, name, whole)
    if not is_same(listed, path):
        path.unlink()
        return False
    sync(path)
    return True


class _Pool(ThreadPoolExecutor):
    """Threads that do not go on with what is waiting when the caller is interrupted."""

    def __exit__(self, kind: object, *rest: object) -> None:
        self.shutdown(cancel_futures=kind is not None)


# What has arrived


def _require_sound(snapshot: Snapshot, what: What, whole: Path) -> None:
    """Refuses what is other than it vouches for itself, though it is as the hub lists it."""
    problems = dict(_problems(what, whole))
    if problems:
        name, problem = next(iter(problems.items()))
        raise BadInput(
            f"{snapshot.address} is damaged in the repository itself: {name}: {problem}"
            f"{_more(problems)}",
            "ask its owner to push it again; another revision may be sound: @REVISION",
        )


def _problems(what: What, whole: Path) -> Iterator[tuple[str, str]]:
    """File -> what is wrong with it, by what the content says of itself."""
    try:
        if what == RUN:
            yield from run_problems(Run(whole)).items()
            return
        cache = Cache(whole)
        yield from ((f"receipts/{store:05d}.json", "missing") for store in cache.missing_stores())
        yield from cache_problems(verify_cache(cache)).items()
    except BadInput as error:
        said = error.message.replace(f"{whole}/", "")
        name = next((each for each in said.split() if each.endswith(".json")), HEADERS[what])
        yield name, said.removeprefix(f"{name} ")


def _more(problems: Collection[str]) -> str:
    return f", and {count_text(len(problems) - 1, 'more file')}" if len(problems) > 1 else ""


# Kept on this machine


def kept(text: str, wanted: What) -> Path:
    """The folder of a run or cache of the hub on this machine, fetched and checked if it is not
    there yet: `stillframe/` in the hub's folder for assets (HF_ASSETS_CACHE, HF_HOME). Without a
    network it is the one that was fetched last.

    Raises BadInput, as `pull` does, and where it is not what is `wanted`; Unreachable.
    """
    address = HubAddress.parse(text)
    if folder := _kept_commit(address):
        return _require_what(folder, address, wanted)
    try:
        snapshot, what = look_up(address)
    except Unreachable as error:
        folder = _kept_last(address)
        if folder is None:
            raise StillframeError(
                f"{error.message}, and it is not on this machine", error.hint
            ) from error
        return _require_what(folder, address, wanted)
    if what != wanted:
        raise _not_wanted(address, what)
    home = _home(snapshot.address)
    folder = home / snapshot.commit
    make_folder(home)
    with WeakFileLock(
        home / f"{snapshot.commit}.lock"
    ):  # processes of one training load it at once
        if not folder.is_dir():
            fetch(snapshot, what, names_of(snapshot, what), folder, None)
    write_atomically(home / _ref(address), snapshot.commit.encode())
    return folder


def _home(address: HubAddress) -> Path:
    name = f"{address.kind}s--{address.repository.replace('/', '--')}"
    return Path(constants.HF_ASSETS_CACHE, "stillframe", name)


def _homes(address: HubAddress) -> list[Path]:
    kinds = ("model", "dataset") if address.kind is None else (address.kind,)
    return [_home(address.of_kind(kind)) for kind in kinds]


def _ref(address: HubAddress) -> str:
    """The file that says which commit a branch or tag was at, when it was last asked for."""
    return f"{quote(address.revision or constants.DEFAULT_REVISION, safe='')}.ref"


def _kept_commit(address: HubAddress) -> Path | None:
    """A commit that is there: it never changes."""
    if address.revision is None or not COMMIT.fullmatch(address.revision):
        return None
    folders = [home / address.revision for home in _homes(address)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _kept_last(address: HubAddress) -> Path | None:
    for home in _homes(address):
        file = home / _ref(address)
        if file.is_file():
            commit = read_regular(file, 100).decode(errors="replace")
            if COMMIT.fullmatch(commit) and (home / commit).is_dir():
                return home / commit
    return None


def _require_what(folder: Path, address: HubAddress, wanted: What) -> Path:
    for what in WHATS:
        if what != wanted and (folder / HEADERS[what]).is_file():
            raise _not_wanted(address, what)
    return folder


def _not_wanted(address: HubAddress, what: What) -> BadInput:
    use = "load_run" if what == RUN else "open_cache"
    return BadInput(f"{address} is a {what}", f'stillframe.{use}("{address}")')
