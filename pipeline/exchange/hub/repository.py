"""What is asked of the hub, and every way in which it fails in one line.

Only what huggingface_hub has had since 1.0 is used. Whatever it raises is one of its own errors,
one of its HTTP library, or an OSError, and may lie below another as its cause.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from huggingface_hub.utils import enable_progress_bars as show_progress_bars

import pipeline
from pipeline.config.regular_files import open_regular, read_regular
from pipeline.errors import BadInput, StillframeError
from pipeline.exchange.hub.address import HubAddress

AGAIN = "the same command goes on where it was"
LOGIN = "hf auth login, or a token in HF_TOKEN"
STATUS = {
    401: (
        "the hub does not accept the token",
        f"{LOGIN}; tokens are made at https://huggingface.co/settings/tokens",
    ),
    403: ("this account, or its token, may not do that", "a token that may write: " + LOGIN),
    409: ("somebody else is changing the repository", AGAIN),
    412: ("somebody else has changed the repository meanwhile", AGAIN),
    413: ("the hub takes no more at once", AGAIN),
    429: ("the hub has had too many requests for now", f"wait some minutes; {AGAIN}"),
}
"""HTTP status -> what it means, and the next step."""


class Unreachable(StillframeError):
    """The hub could not be asked."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit."""

    address: HubAddress
    """With its kind; the revision is what was asked for."""
    commit: str
    files: dict[str, RepoFile]
    """Path -> size and checksum."""
    is_private: bool

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files.values())


def hub() -> HfApi:
    """The hub at HF_ENDPOINT, as the user that is logged in."""
    return HfApi(library_name="stillframe", library_version=pipeline.__version__)


def require_token(address: HubAddress) -> None:
    """Refuses to push without a token. Raises BadInput."""
    if get_token() is None:
        raise BadInput(f"{address} cannot be pushed to: there is no token of the hub", LOGIN)


def read_snapshot(address: HubAddress) -> Snapshot:
    """The files of a repository of the kind that the address says. Raises BadInput where there is
    none, Unreachable."""
    api = hub()
    where: dict[str, Any] = {"repo_id": address.repository, "repo_type": address.kind}
    with in_one_line_of(address):
        info = api.repo_info(revision=address.revision, **where)
        commit = str(info.sha)
        tree = api.list_repo_tree(recursive=True, revision=commit, **where)
        files = {each.path: each for each in tree if isinstance(each, RepoFile)}
    return Snapshot(address, commit, files, bool(info.private))


def download(snapshot: Snapshot, name: str, folder: Path) -> Path:
    """A file of a repository in a local folder, which is not fetched again if it is there. Raises
    BadInput, Unreachable."""
    with in_one_line_of(snapshot.address):
        return Path(
            hf_hub_download(
                snapshot.address.repository,
                name,
                repo_type=snapshot.address.kind,
                revision=snapshot.commit,
                local_dir=folder,
                endpoint=constants.ENDPOINT,
                library_name="stillframe",
                library_version=pipeline.__version__,
            )
        )


def read_small(snapshot: Snapshot, name: str) -> bytes:
    """The content of a small file of a repository. Raises BadInput, Unreachable."""
    with tempfile.TemporaryDirectory() as folder:
        return read_regular(download(snapshot, name, Path(folder)))


def is_same(listed: RepoFile, data: bytes | Path, sha256: str | None = None) -> bool:
    """Whether a file of a repository has this content: as Git LFS, or else Git, counts it.

    `sha256`: of the content, if it is known. Raises OSError."""
    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    if listed.size != size:
        return False
    if listed.lfs is not None:
        return listed.lfs.sha256 == (sha256 or _digest(data, hashlib.sha256()))
    return listed.blob_id == _digest(data, hashlib.sha1(b"blob %d\0" % size))


def _digest(data: bytes | Path, algorithm: Any) -> str:
    if isinstance(data, bytes):
        algorithm.update(data)
    else:
        with open_regular(data) as file:
            while piece := file.read(1 << 20):
                algorithm.update(piece)
    return str(algorithm.hexdigest())


@contextmanager
def without_bars() -> Iterator[None]:
    """huggingface_hub draws no progress of its own: one bar for each of many files."""
    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            show_progress_bars()


@contextmanager
def in_one_line_of(address: HubAddress) -> Iterator[None]:
    """What goes wrong with a repository, as one sentence: BadInput, or Unreachable where the hub
    cannot be asked."""
    try:
        yield
    except StillframeError:
        raise
    except (errors.HTTPError, errors.HFValidationError, OSError, RuntimeError, ValueError) as error:
        raise _said(address, _chain(error)) from error


def _chain(error: BaseException) -> Sequence[BaseException]:
    """An error and what lies below it, the deepest first."""
    found: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in found:
        found.append(step)
        step = step.__cause__ or step.__context__
    return found[::-1]


def _said(address: HubAddress, chain: Sequence[BaseException]) -> StillframeError:
    for error in chain:
        if isinstance(error, errors.OfflineModeIsEnabled):
            return Unreachable(
                f"{address} cannot be asked for: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
            )
        if isinstance(error, errors.HfHubHTTPError):
            return _refused(address, error)
    for error in chain:
        if isinstance(error, errors.HTTPError):  # of the HTTP library: no answer at all
            return Unreachable(
                f"{address} cannot be asked for: {constants.ENDPOINT} gives no answer "
                f"({type(error).__name__}: {_first_line(error)})",
                f"look at the network, and at HF_ENDPOINT if it is set; {AGAIN}",
            )
    for error in chain:
        if isinstance(error, OSError) and error.errno is not None:  # of this machine, not the hub
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            return StillframeError(f"{address}: {what}", f"free space or fix access; {AGAIN}")
    return StillframeError(f"{address}: {_first_line(chain[0])}", AGAIN)


def _refused(address: HubAddress, error: errors.HfHubHTTPError) -> StillframeError:
    """The hub has answered, and not with what was asked for."""
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return BadInput(
            f"{address} is gated, and this account has not been let in",
            f"accept its terms at {constants.ENDPOINT}/{address.page}, then: {LOGIN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BadInput(
            f"{address.at(None)} has no revision '{address.revision or 'main'}'",
            f"its branches and tags are at {constants.ENDPOINT}/{address.page}/tree/main",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        what = (
            "there is no such data set" if address.kind == "dataset" else "there is no such model"
        )
        return BadInput(
            f"{address}: {what} on the hub, or it is private and this account may not see it",
            f"check the spelling; for a private one: {LOGIN}",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return BadInput(f"{address}: a file is listed and is not there", "ask its owner to push it")
    what, hint = STATUS.get(status, ("", AGAIN))
    said = _first_line(error.server_message or error)
    if status >= 500:
        return Unreachable(f"{address}: the hub has trouble (HTTP {status}: {said})", AGAIN)
    return BadInput(f"{address}: {what or 'the hub refuses it'} (HTTP {status}: {said})", hint)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
