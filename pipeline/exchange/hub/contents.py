"""Which files of a run or a cache are shared, and what names a place of this machine in them, which
is left out.

Files of two kinds: what is large, and what vouches for it. A repository without the second is one
that was never pushed to its end.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from pipeline.cache.cache import Cache
from pipeline.cache.layout import CODEC_FILE, HEADER_FILE, MANIFEST, receipt_name, store_name
from pipeline.cache.receipts import Header, Receipt, TokenFacts, header_digest
from pipeline.cache.verify import Verification, verify_cache
from pipeline.config.cache_spec import FORMAT_VERSION
from pipeline.config.json_files import read_json, sealed_json, to_json
from pipeline.config.plugins import Settings
from pipeline.config.regular_files import open_regular, read_regular
from pipeline.config.tensor_files import load_tensors
from pipeline.datasets.manifest.manifest import ORIGIN, Manifest
from pipeline.datasets.manifest.origin import Edit, Origin
from pipeline.errors import BadInput
from pipeline.train.ahead.scores import AheadEvaluation
from pipeline.train.evaluation import Evaluation
from pipeline.train.library.trained_model import shape_of_tokens
from pipeline.train.run import InitFacts, Run, read_metrics
from pipeline.train.weights.seen_videos import VIDEOS_FILE, SeenVideos

What = Literal["run", "cache"]
RUN: What = "run"
CACHE: What = "cache"
Anew = dict[str, tuple[str, ...]]
"""File -> keys whose value is another one than here, as it named a place of this machine."""
HEADERS: dict[What, str] = {RUN: "run.json", CACHE: HEADER_FILE}
"""The file without which it is none."""
CHECKPOINTS = ("last", "best")
METRICS = "metrics.jsonl"
LARGE: dict[What, re.Pattern[str]] = {
    RUN: re.compile(
        r"(last|best)-[0-9]+\.safetensors|answers-[^/]+\.safetensors|metrics\.jsonl"
        r"|codec\.safetensors"
    ),
    CACHE: re.compile(
        rf"codec\.safetensors|{MANIFEST}/({'|'.join(map(re.escape, Manifest.FILES))})"
        r"|stores/[0-9]{5,}\.zarr/.+"
    ),
}
VOUCHING: dict[What, re.Pattern[str]] = {
    RUN: re.compile(r"(run|videos|last|best)\.json|(evaluation|ahead)-[^/]+\.json"),
    CACHE: re.compile(r"cache\.json|receipts/[0-9]{5,}\.json"),
}
"""What has these names in a repository is pulled from it, and replaced by a push; nothing else."""
PLACE = re.compile(r"(/|~|\\\\|[A-Za-z]:[\\/]|[a-z][a-z0-9]*://).*", re.DOTALL)
"""A path or a URL that means something on one machine alone."""
ELSEWHERE = "elsewhere"
TRAIN_AGAIN = "train it again into another --out"
OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class SharedFile:
    """A file as it is pushed."""

    source: Path | bytes
    """Where it lies; or what it says, where that is said anew."""
    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> SharedFile:
        return cls(data, len(data), hashlib.sha256(data).hexdigest())

    @classmethod
    def at(cls, path: Path, sha256: str | None = None) -> SharedFile:
        """`sha256`: if it is known already."""
        return cls(path, path.stat().st_size, sha256 or digest_of_file(path))


@dataclass(frozen=True)
class Contents:
    """All that is shared of a run or a cache."""

    what: What
    subject: Run | Cache
    large: dict[str, SharedFile]
    vouching: dict[str, SharedFile]
    """Committed last."""
    left_out: tuple[str, ...]
    """Files and folders beside these, which stay here."""
    said_anew: Anew
    evaluations: tuple[Evaluation, ...] = ()
    manifest: Manifest | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """The kind of repository that it goes to."""
        return "model" if self.what == RUN else "dataset"

    @property
    def name(self) -> str:
        """The name of the folder that the run or cache lies in."""
        path = self.subject.path
        return path.name or path.absolute().name

    @property
    def files(self) -> dict[str, SharedFile]:
        """All files but for the card, in the order in which they are pushed."""
        return self.large | self.vouching


def contents_of(path: Path, on_bytes: OnBytes | None = None) -> Contents:
    """What there is to share in a folder, every byte of it checked. Raises BadInput where it is
    neither a run nor a cache, is not finished, or is damaged."""
    if (path / HEADERS[RUN]).is_file():
        return _of_run(Run(path))
    if (path / HEADERS[CACHE]).is_file():
        return _of_cache(Cache(path), on_bytes)
    raise BadInput(
        f"{path} is neither a run nor a cache: it has no {HEADERS[RUN]} and no {HEADERS[CACHE]}"
        if path.is_dir()
        else f"there is no folder {path}",
        "give the folder of a run (runs/NAME) or of a cache (caches/NAME)",
    )


def belongs(what: What, name: str) -> bool:
    """Whether a file of that name is one of a run, or of a cache; a name that leads elsewhere is
    none."""
    inside = {"", ".", ".."}.isdisjoint(name.split("/")) and not {"\\", "\0"} & {*name}
    return inside and any(names[what].fullmatch(name) for names in (LARGE, VOUCHING))


def digest_of_file(path: Path) -> str:
    """SHA-256. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


# Runs


def run_problems(run: Run) -> dict[str, str]:
    """File -> what is wrong with it, of those that the run itself vouches for. Raises BadInput
    where a JSON file differs from its own checksum."""
    wanted: dict[str, str | None] = {}
    for which in CHECKPOINTS:
        checkpoint = run.checkpoint(which)
        if checkpoint is not None:
            wanted[checkpoint.file] = checkpoint.sha256
        elif which == CHECKPOINTS[0]:
            return {f"{which}.json": "missing"}
    if run.header.videos_sha256 is not None:
        wanted[VIDEOS_FILE] = run.header.videos_sha256
    if run.header.cache.codec_sha256 is not None:
        wanted[CODEC_FILE] = run.header.cache.codec_sha256
    problems = {}
    for name, sha256 in wanted.items():
        if not (run.path / name).is_file():
            problems[name] = "missing"
        elif sha256 is None:
            problems[name] = "it was written before 0.5.0, and no checksum vouches for it"
        elif digest_of_file(run.path / name) != sha256:
            problems[name] = "its content differs from its checksum"
    return problems


def _of_run(run: Run) -> Contents:
    last = run.checkpoint("last")
    if last is None or last.step < last.steps:
        at = "has no checkpoint yet" if last is None else f"is at step {last.step} of {last.steps}"
        raise BadInput(
            f"run {run.path} is not finished: it {at}", "train it to its end, then push it"
        )
    for name, problem in run_problems(run).items():
        raise BadInput(f"run {run.path} cannot be shared: {name}: {problem}", TRAIN_AGAIN)
    large: dict[str, SharedFile] = {}
    vouching: dict[str, SharedFile] = {}
    anew: Anew = {}
    for which in CHECKPOINTS:
        if checkpoint := run.checkpoint(which):
            file = run.path / checkpoint.file
            large[checkpoint.file] = SharedFile.at(file, checkpoint.sha256)
            vouching[f"{which}.json"] = SharedFile.at(run.path / f"{which}.json")
    if (run.path / METRICS).is_file():
        lines = read_regular(run.path / METRICS).splitlines(keepends=True)
        large[METRICS] = SharedFile.of(b"".join(lines[: len(read_metrics(run.path))]))
    if codec := run.header.cache.codec_sha256:
        large[CODEC_FILE] = SharedFile.at(run.path / CODEC_FILE, codec)
    for file in sorted(run.path.glob("answers-*.safetensors")):
        load_tensors(file, "the file of answers", f"stillframe evaluate {run.path}")
        large[file.name] = SharedFile.at(file)
    evaluations = []
    for file in sorted(run.path.glob("evaluation-*.json")):
        evaluation = read_json(Evaluation, file, f"stillframe evaluate {run.path}")
        evaluations.append(evaluation)
        name = placeless(evaluation.run)
        vouching[file.name] = SharedFile.of(to_json(evaluation.model_copy(update={"run": name})))
    for file in sorted(run.path.glob("ahead-*.json")):
        ahead = read_json(AheadEvaluation, file, f"stillframe evaluate {run.path}")
        of = ahead.forecaster.model_copy(update={"run": placeless(ahead.forecaster.run)})
        told = ahead.model_copy(update={"forecaster": of, "run": placeless(ahead.run)})
        vouching[file.name] = SharedFile.of(to_json(told))
        if told != ahead:
            anew[file.name] = ("forecaster.run",)
    vouching |= _run_header(run, anew)
    return Contents(
        RUN, run, large, vouching, _others(run.path, large | vouching), anew, tuple(evaluations)
    )


def _run_header(run: Run, anew: Anew) -> dict[str, SharedFile]:
    """run.json and videos.json. `anew` is told what they say otherwise than here."""
    header, files = run.header, {}
    changes: dict[str, Any] = {
        "cache_path": None,
        "manifest_path": None,
        "recipe": all_placeless(header.recipe),
        "spec": all_placeless(header.spec),
        "init": _init_anew(header.init),
    }
    if header.videos_sha256 is not None:
        seen = SeenVideos.read(run)
        told = seen.model_copy(update={"unknown": tuple(map(placeless, seen.unknown))})
        data = read_regular(run.path / VIDEOS_FILE) if told == seen else to_json(told)
        files[VIDEOS_FILE] = SharedFile.of(data)
        changes["videos_sha256"] = files[VIDEOS_FILE].sha256
        _note(anew, VIDEOS_FILE, seen, told)
    if header.tokens is None:
        # The cache and the encoder, which would tell, are not there where it arrives.
        with suppress(BadInput, OSError):
            changes["tokens"] = TokenFacts(**asdict(shape_of_tokens(run)))
    told_header = header.model_copy(update=changes)
    same = told_header == header and header.checksum is not None
    file = run.path / HEADERS[RUN]
    files[file.name] = SharedFile.at(file) if same else SharedFile.of(sealed_json(told_header))
    _note(anew, file.name, header, told_header)
    return files


def _init_anew(init: InitFacts | None) -> InitFacts | None:
    if init is None:
        return None
    update = {"run": placeless(init.run), "init": _init_anew(init.init)}
    return init.model_copy(update=update)


# Caches


def _of_cache(cache: Cache, on_bytes: OnBytes | None) -> Contents:
    version = cache.header.format_version
    if version < FORMAT_VERSION:
        raise BadInput(
            f"cache {cache} has format {version}, which cannot vouch for itself elsewhere",
            f"share what this makes of it: stillframe derive {cache}",
        )
    if missing := cache.missing_stores():
        raise BadInput(
            f"cache {cache} is not finished: {len(missing)} of {len(cache.plan)} stores are "
            "missing",
            "run the same extract again, then push it",
        )
    verification = verify_cache(cache, on_bytes=on_bytes)
    if not verification.is_valid:
        file, problem = next(iter(cache_problems(verification).items()))
        raise BadInput(
            f"cache {cache} is damaged: {file}: {problem}", f"stillframe verify {cache} --repair"
        )
    large: dict[str, SharedFile] = {}
    anew: Anew = {}
    manifest = cache.manifest
    for name, (_, sha256) in cache.header.manifest_files.items():
        file = f"{MANIFEST}/{name}"
        large[file] = SharedFile.at(cache.path / file, sha256)
    told_origin = _origin_anew(manifest.origin, cache.header)
    if told_origin != manifest.origin:
        data = told_origin.to_json().encode()
        large[f"{MANIFEST}/{ORIGIN}"] = SharedFile.of(data)
        _note(anew, f"{MANIFEST}/{ORIGIN}", manifest.origin, told_origin)
    if codec := cache.header.codec_sha256:
        large[CODEC_FILE] = SharedFile.at(cache.path / CODEC_FILE, codec)
    for store, receipt in cache.receipts.items():
        for name, (_, sha256) in receipt.files.items():
            file = f"{store_name(store)}/{name}"
            large[file] = SharedFile.at(cache.path / file, sha256)
    origin = large[f"{MANIFEST}/{ORIGIN}"]
    vouching = _cache_vouching(cache, (origin.size, origin.sha256), anew)
    return Contents(
        CACHE,
        cache,
        large,
        vouching,
        _others(cache.path, large | vouching),
        anew,
        manifest=manifest,
    )


def _cache_vouching(cache: Cache, origin: tuple[int, str], anew: Anew) -> dict[str, SharedFile]:
    """cache.json and the receipts. A receipt knows the header that it was written for, and is
    sealed anew where that says something else of what tokens depend on."""
    header = cache.header
    told = header.model_copy(
        update={
            "root": place_of_videos(header),
            "spec": all_placeless(header.spec),
            "manifest_files": header.manifest_files | {ORIGIN: origin},
        }
    )
    _note(anew, HEADER_FILE, header, told)
    data = cache.storage.read(HEADER_FILE) if told == header else sealed_json(told)
    of_header, files = header_digest(data), {}
    for store, receipt in cache.receipts.items():
        name = receipt_name(store)
        told_receipt = _receipt_anew(receipt, header).model_copy(
            update={"header_sha256": of_header}
        )
        files[name] = (
            SharedFile.at(cache.path / name)
            if told_receipt == receipt
            else SharedFile.of(sealed_json(told_receipt))
        )
        _note(anew, name, receipt, told_receipt)
    return files | {HEADER_FILE: SharedFile.of(data)}


def _receipt_anew(receipt: Receipt, header: Header) -> Receipt:
    """Reasons may name files of this machine."""

    def told(reason: str) -> str:
        for place in (header.root, str(Path.home())):
            if len(place) > 1 and PLACE.fullmatch(place):
                reason = reason.replace(place, placeless(place))
        return reason

    failures = {
        video: failure.model_copy(update={"reason": told(failure.reason)})
        for video, failure in receipt.failures.items()
    }
    content = {
        video: each.model_copy(
            update={
                "damaged": tuple(
                    stretch.model_copy(update={"reason": told(stretch.reason)})
                    for stretch in each.damaged
                )
            }
        )
        for video, each in receipt.content.items()
    }
    return receipt.model_copy(update={"failures": failures, "content": content})


def place_of_videos(header: Header) -> str:
    """The root of the videos of a shared cache: a name that is the same for the same clips. Videos
    are told apart by where they lie, too, so those of other data must not seem to lie there."""
    if not PLACE.fullmatch(header.root):
        return header.root
    return f"{placeless(header.root)}-{header.manifest[:8]}"


def _origin_anew(origin: Origin, header: Header) -> Origin:
    return origin.model_copy(
        update={
            "root": place_of_videos(header) if PLACE.fullmatch(origin.root) else origin.root,
            "settings": all_placeless(origin.settings),
            "made_by": _edit_anew(origin.made_by),
        }
    )


def _edit_anew(edit: Edit | None) -> Edit | None:
    if edit is None:
        return None
    sources = tuple(
        source.model_copy(
            update={
                "folder": placeless(source.folder),
                "made_by": _edit_anew(source.made_by),
            }
        )
        for source in edit.sources
    )
    return edit.model_copy(update={"options": all_placeless(edit.options), "sources": sources})


def cache_problems(verification: Verification) -> dict[str, str]:
    """File below the cache -> what is wrong with it."""
    problems = dict(verification.cache_problems)
    for item in verification.damage:
        of_cache = item.kind in ("receipt", "gone") or item.file.startswith("stores/")
        name = item.file if of_cache else f"{store_name(item.store)}/{item.file}"
        problems[name] = item.problem
    return problems


# Places


def placeless(text: str) -> str:
    """The last part of a path or URL of one machine; any other text as it is."""
    if not PLACE.fullmatch(text):
        return text
    name = PurePath(text.replace("\\", "/").rstrip("/")).name
    return ELSEWHERE if name in ("", "~", Path.home().name) else name


def all_placeless(value: Any) -> Any:
    """The same of every text in nested tables; their keys stay."""
    if isinstance(value, str):
        return placeless(value)
    if isinstance(value, Mapping):
        return {key: all_placeless(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(all_placeless, value))
    return value


def _note(anew: Anew, file: str, before: Settings, after: Settings) -> None:
    """Keeps the keys of a file whose values have changed, its checksums apart."""
    old, new = before.model_dump(), after.model_dump()
    names = [key for key in old if old[key] != new[key] and "sha256" not in key]
    if names := [key for key in names if key not in ("checksum", "manifest_files", "tokens")]:
        anew[file] = tuple(names)


def _others(folder: Path, shared: Mapping[str, object]) -> tuple[str, ...]:
    """What lies in a folder beside what is shared, as far down as that tells it."""
    tops = {name.partition("/")[0] for name in shared}
    return tuple(sorted(each.name for each in folder.iterdir() if each.name not in tops))
