"""The manifest: every clip of a data set with its video, split and label, and the truth about it.

    manifest.jsonl  one clip per line, in the data set's order
    targets.h5      one group per clip that has truth beyond its label, one array per target
    texts.jsonl     one line per clip of which something is said or asked
    videos.jsonl    one video per line: what its header says of it, so that nothing is opened twice
    dataset.json    where the clips and their videos come from, label names, what was rejected,
                    sha256 of the others

They are written aside and renamed, manifest.jsonl last. The same data set and settings give the
same bytes.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import h5py
import numpy as np

from pipeline.config import plugins
from pipeline.config.json_files import json_value
from pipeline.config.regular_files import read_regular
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.manifest.checks import check_clips, check_root, check_writable
from pipeline.datasets.manifest.clip_targets import ClipTargets
from pipeline.datasets.manifest.jsonl import REBUILD, Wanted, from_lines, is_of, to_line
from pipeline.datasets.manifest.origin import Edit, LeftOut, Origin
from pipeline.datasets.manifest.targets_file import (
    require_as_built,
    write_targets,
)
from pipeline.datasets.manifest.texts import ClipTexts, texts_line, texts_of_lines
from pipeline.datasets.manifest.video_keys import video_keys
from pipeline.errors import BadInput, BadVideo, StillframeError, count_text, unknown_name
from pipeline.records import Clip, Video
from pipeline.video.probe import IMAGE_SUFFIXES, MEDIA_SUFFIXES, Probe, probe

log = logging.getLogger(__name__)

CLIPS, TARGETS, VIDEOS, ORIGIN = "manifest.jsonl", "targets.h5", "videos.jsonl", "dataset.json"
TEXTS, PARTS = "texts.jsonl", "parts.json"
PROBE_TYPES = get_type_hints(Probe)
MOST_OF_A_VIDEO = 1e12
"""Frames, seconds, pixels of a side or frames per second that no video has."""
MOST_BYTES = 4 << 30
"""Bytes of a file of a manifest that is read as a whole: more than ten million clips take."""


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is looked for while very many objects are made that stay: every search would go
    through all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set, checked."""

    FILES: ClassVar[tuple[str, ...]] = (CLIPS, TARGETS, TEXTS, VIDEOS, ORIGIN)

    folder: Path
    root: Path
    """Absolute; holds the videos. It may be gone: training from a cache does not need it."""
    clips: tuple[Clip, ...]
    origin: Origin

    @classmethod
    @uncollected()
    def load(cls, folder: Path, root: Path | None = None, wanted: Wanted | None = None) -> Manifest:
        """Reads a manifest and checks all of it; `root` says where the videos are now, if they were
        moved. With `wanted` it has the clips of those videos alone whose id this takes, which may
        be none; that the others are as they were built is seen by the checksum.

        The content of targets.h5 is trusted, as it may be large: its size alone is compared. Raises
        BadInput: a file missing or damaged, manifest.jsonl edited after it was built, and whatever
        `check` finds.
        """
        folder = folder.resolve()
        text = _read(folder, CLIPS)
        origin = read_origin(folder)
        if hashlib.sha256(text).hexdigest() != origin.manifest_sha256:
            raise BadInput(
                f"{folder / CLIPS} was edited after it was built: {ORIGIN} has another sha256 for "
                "it",
                REBUILD,
            )
        _check_targets(folder / TARGETS, origin.targets_bytes)
        path = str(folder / CLIPS)
        lines = text.decode("ascii", errors="replace").splitlines()
        clips = from_lines(lines, path, origin.clock, wanted)
        has_texts = origin.texts_sha256 is not None
        if wanted is None or clips:
            check_clips(clips, path, "line", lambda _: has_texts)
        if wanted is None and _labels(clips) != origin.labels:
            raise BadInput(f"{folder / ORIGIN} lists other labels than {CLIPS} holds", REBUILD)
        if root is not None:
            check_root(root)
        log.debug("read manifest %s: %d clips", folder, len(clips))
        return cls(folder, (root or folder / origin.root).resolve(), clips, origin)

    @property
    def digest(self) -> str:
        """sha256 of manifest.jsonl; where there are targets or texts, of its sha256 followed by
        theirs."""
        origin = self.origin
        texts = f"texts {origin.texts_sha256}" if origin.texts_sha256 else ""
        others = f"{origin.targets_sha256 or ''}{texts}"
        if not others:
            return origin.manifest_sha256
        return hashlib.sha256(f"{origin.manifest_sha256}{others}".encode()).hexdigest()

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, sorted; a clip's label number is its place here. Empty where clips have no
        labels."""
        return self.origin.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of segments in targets.h5; a class's number is its place here. Empty
        where no clip has segments."""
        return self.origin.classes

    @property
    def rejected(self) -> dict[str, str]:
        """source -> reason, for media that became no clip."""
        return self.origin.rejected

    @cached_property
    @uncollected()
    def videos(self) -> tuple[Video, ...]:
        """Every video once, in the order in which the clips name them."""
        return tuple({clip.video_id: clip.video for clip in self.clips}.values())

    @cached_property
    @uncollected()
    def facts(self) -> dict[str, Probe | None]:
        """video_id -> what its header said when the manifest was built, for each of `videos`; None
        for a video that could not be opened.

        Empty for a manifest without videos.jsonl. Raises BadInput if that is damaged.
        """
        if self.origin.videos_sha256 is None:
            return {}
        text = self._as_built(VIDEOS, self.origin.videos_sha256)
        try:
            if len(self.videos) < text.count(b"\n"):
                ids = {video.video_id for video in self.videos}
                lines = text.decode("ascii").splitlines(keepends=True)
                text = "".join(line for line in lines if is_of(line, ids.__contains__)).encode()
            # At once, as there may be very many.
            records = json_value(b"[%b]" % text.strip().replace(b"\n", b","))
            return {record.pop("video_id"): _probe_of(record) for record in records}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{self.folder / VIDEOS} is damaged: {error}", REBUILD) from error

    @cached_property
    @uncollected()
    def texts(self) -> Mapping[str, ClipTexts]:
        """clip_id -> what is said or asked about it, for clips of which there is something. Raises
        BadInput where texts.jsonl is not what was built."""
        if self.origin.texts_sha256 is None:
            return {}
        lines = self._as_built(TEXTS, self.origin.texts_sha256).decode("ascii", errors="replace")
        return texts_of_lines(lines.splitlines(), str(self.folder / TEXTS))

    def _as_built(self, name: str, sha256: str) -> bytes:
        """The content of a file. Raises BadInput where it has another checksum."""
        content = _read(self.folder, name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BadInput(
                f"{self.folder / name} was edited after it was built: {ORIGIN} has another sha256 "
                "for it",
                REBUILD,
            )
        return content

    @cached_property
    def video_keys(self) -> np.ndarray:
        """(videos, 2) uint64: what tells each of `videos` from others, see `video_keys`."""
        name, seed = self.origin.dataset, None
        is_here = plugins.origin_of("dataset", name) == self.origin.plugin
        if is_here and name in plugins.names("dataset") and plugins.load("dataset", name).renders:
            seed = self.origin.settings.get("seed")
        return video_keys(self.videos, self.facts, self.root, seed)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Videos in the order in which the clips name them."""
        return tuple(dict.fromkeys(clip.split for clip in self.clips))

    def split(self, name: str) -> list[int]:
        """Places in `clips` of one split. Raises BadInput if there is no such split."""
        if name not in self.splits:
            raise unknown_name("split", name, self.splits, str(self.folder))
        return [number for number, clip in enumerate(self.clips) if clip.split == name]

    def require_videos_in(self, known: Collection[str], where: str, hint: str) -> None:
        """Refuses a manifest with videos that are not among the `known` ids, those that `where`
        has. Raises BadInput."""
        strange = [video.video_id for video in self.videos if video.video_id not in known]
        if strange:
            total = len(self.videos)
            raise BadInput(
                f"{where} lacks {count_text(len(strange), 'video')} of manifest {self.folder}, "
                f"the first is {strange[0]}; it has {total - len(strange)} of {total}",
                hint,
            )

    @property
    def has_targets(self) -> bool:
        """Whether any clip has truth beyond its label."""
        return (self.folder / TARGETS).is_file()

    def target_names(self) -> list[list[str]]:
        """Names of the truth of every clip beyond its label. Raises BadInput if targets.h5 cannot
        be read."""
        if not self.has_targets:
            return [[] for _ in self.clips]
        try:
            with self.open_targets() as file:
                return [ClipTargets(file, clip.clip_id).names for clip in self.clips]
        except OSError as error:
            path = self.folder / TARGETS
            raise BadInput(f"{path} cannot be read: {error}", REBUILD) from error

    def open_targets(self) -> h5py.File:
        """targets.h5, whose content is compared with its checksum when it is first opened. Raises
        BadInput where it is not what was built, OSError."""
        _ = self._targets_as_built
        # Not locked: some network file systems cannot, and a manifest is never written in place.
        return h5py.File(self.folder / TARGETS, "r", locking=False)

    @cached_property
    def _targets_as_built(self) -> None:
        sizes = self.origin.targets_bytes or 0, self.origin.targets_sha256
        require_as_built(self.folder / TARGETS, *sizes)

    def targets(self, clip_id: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """The clip's targets, or those of them in `names`; empty if it has none. Safe in threads.

        Raises BadInput if targets.h5 cannot be read.
        """
        if not self.has_targets:
            return {}
        path = self.folder / TARGETS
        try:
            with self.open_targets() as file:
                stored = ClipTargets(file, clip_id)
                wanted = [name for name in stored.names if names is None or name in names]
                return {name: stored.read(name) for name in wanted}
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error}", REBUILD) from error


def build(
    name: str,
    root: Path | None,
    out: Path,
    table: dict[str, Any],
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Asks data set `name`, with the settings in `table`, for clips and targets, and writes the
    manifest into folder `out`.

    `root` holds the videos; a data set that renders its own puts them there (None: into `out`).
    Raises BadInput: unknown data set or setting, no such root, a file where a folder should be, no
    usable video, and whatever `check` finds; StillframeError: something cannot be read or written.
    """
    plugin = plugins.load("dataset", name)
    settings = plugins.settings("dataset", name, table, f"dataset '{name}'")
    if root is None:
        if not plugin.renders:
            raise BadInput(
                f"dataset '{name}' reads videos of yours and was given no folder",
                "name the folder that holds them",
            )
        root = out
    elif not plugin.renders:
        check_root(root)
    dataset: DatasetPlugin = plugin(root, settings, on_progress)
    return write(name, dataset, out)


def write(name: str, dataset: DatasetPlugin, out: Path, edit: Edit | None = None) -> Manifest:
    """The manifest of a data set called `name` in folder `out`; `edit` says how it was made from
    other manifests. See `build` for what it raises."""
    try:
        check_writable(out)
        check_writable(dataset.given_root)
        return _written(name, dataset, out, edit)
    except OSError as error:
        problem = f"cannot read or write {error.filename or out}: {error.strerror or error}"
        raise StillframeError(problem, "free space or fix access, then run it again") from error


def _written(name: str, dataset: DatasetPlugin, out: Path, edit: Edit | None) -> Manifest:
    dataset.write_beside(out)
    root = dataset.root
    clips = tuple(
        clip if clip.clock == dataset.clock else replace(clip, clock=dataset.clock)
        for clip in dataset.clips()
    )
    if not clips:
        raise _no_clips(name, root, dataset.rejected | dataset.notes)
    check_clips(
        clips,
        f"dataset '{name}'",
        "clip",
        lambda clip: dataset.texts(clip).answer is not None,
    )
    text = "".join(map(to_line, clips)).encode("ascii")
    origin = Origin(
        dataset=name,
        settings=dataset.settings.model_dump(mode="json"),
        root=portable(root.resolve(), out.resolve()),
        labels=_labels(clips),
        classes=dataset.classes,
        rejected=dict(sorted(dataset.rejected.items())),
        notes=dict(sorted(dataset.notes.items())),
        left_out={
            kind: LeftOut(count=len(paths), first=min(paths))
            for kind, paths in sorted(dataset.left_out.items())
        },
        ignored=dataset.ignored,
        manifest_sha256=hashlib.sha256(text).hexdigest(),
        clock=dataset.clock,
        made_by=edit,
        plugin=None if edit else plugins.origin_of("dataset", name),
    )
    origin = _write(out, dataset, clips, origin, text)
    return Manifest(out.resolve(), root.resolve(), clips, origin)


def _labels(clips: Iterable[Clip]) -> tuple[str, ...]:
    return tuple(sorted({clip.label for clip in clips if clip.label is not None}))


def _write(
    out: Path, dataset: DatasetPlugin, clips: Iterable[Clip], origin: Origin, text: bytes
) -> Origin:
    """All files aside, then the renames. Returns `origin` with what it says of the others."""
    out.mkdir(parents=True, exist_ok=True)
    aside = {name: out / f".{name}.partial" for name in Manifest.FILES}
    for path in aside.values():
        path.unlink(missing_ok=True)  # a link of that name would be written through
    has_targets = write_targets(aside[TARGETS], ((clip, dataset.targets(clip)) for clip in clips))
    if has_targets:
        with aside[TARGETS].open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            origin = origin.model_copy(
                update={"targets_sha256": sha256, "targets_bytes": file.tell()}
            )
    texts = "".join(texts_line(clip.clip_id, dataset.texts(clip)) for clip in clips).encode("ascii")
    aside[TEXTS].write_bytes(texts)
    if texts:
        sha256 = hashlib.sha256(texts).hexdigest()
        origin = origin.model_copy(update={"texts_sha256": sha256})
    facts = "".join(_facts(dataset, clips)).encode("ascii")
    aside[VIDEOS].write_bytes(facts)
    origin = origin.model_copy(update={"videos_sha256": hashlib.sha256(facts).hexdigest()})
    aside[ORIGIN].write_text(origin.to_json(), encoding="ascii")
    aside[CLIPS].write_bytes(text)
    for name, is_there in ((TARGETS, has_targets), (TEXTS, bool(texts))):
        if not is_there:
            aside.pop(name).unlink()
            (out / name).unlink(missing_ok=True)
    for name in (TARGETS, TEXTS, VIDEOS, ORIGIN, CLIPS):
        if name in aside:
            aside[name].replace(out / name)
    return origin


def _facts(dataset: DatasetPlugin, clips: Iterable[Clip]) -> Iterator[str]:
    """The lines of videos.jsonl. What the data set has looked at is not looked at again."""

    def looked_at(video: Video) -> Probe | None:
        try:
            return probe(dataset.root / video.source, video.image_fps)
        except BadVideo:  # extraction will say what is wrong with it
            return None

    videos = {clip.video_id: clip.video for clip in clips}
    new = [video for video in videos.values() if not dataset.probed.get(video.source)]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        of_new = zip(new, pool.map(looked_at, new), strict=True)
        for video_id, video in videos.items():
            facts = dataset.probed.get(video.source) or next(of_new)[1]
            record = {} if facts is None else facts._asdict()
            yield json.dumps({"video_id": video_id, **record}) + "\n"


def portable(root: Path, out: Path) -> str:
    """A folder as dataset.json names it: relative to the manifest's if inside it, else absolute."""
    return root.relative_to(out).as_posix() if root.is_relative_to(out) else str(root)


def _read(folder: Path, name: str) -> bytes:
    try:
        return read_regular(folder / name, MOST_BYTES)
    except OSError as error:
        if (folder / PARTS).is_file():
            raise BadInput(
                f"{folder} is a manifest in parts, and one that is whole is wanted here",
                f"take one of its parts, as {folder / '00000'}, or what you need of all: "
                f"stillframe manifest select {folder} --out NEW",
            ) from error
        raise BadInput(
            f"{folder} is no manifest: {name} cannot be read ({error.strerror})",
            _instead_of(folder),
        ) from error


def _probe_of(record: dict[str, Any]) -> Probe | None:
    """What a line of videos.jsonl says of a header. Raises ValueError or TypeError."""
    if not record:
        return None
    probed = Probe(**record)
    for name, value in record.items():
        number = float(value) if type(value) in (int, float) else 0.0
        known = PROBE_TYPES[name]
        is_sane = abs(number) < MOST_OF_A_VIDEO  # not so for NaN
        if not is_sane or not (isinstance(value, known) or isinstance(number, known)):
            raise ValueError(f"found {name} {str(value)[:40]}")
    return probed


def read_origin(folder: Path) -> Origin:
    """dataset.json of a manifest, alone. Raises BadInput if it is missing or damaged."""
    try:
        table = json_value(_read(folder, ORIGIN))
        if not isinstance(table, dict):
            raise ValueError(f"wanted an object, found {str(table)[:40]}")
    except ValueError as error:
        raise BadInput(f"{folder / ORIGIN} is not JSON: {error}", REBUILD) from error
    return plugins.validate(Origin, table, str(folder / ORIGIN))


def _check_targets(path: Path, wanted_bytes: int | None) -> None:
    found_bytes = path.stat().st_size if path.is_file() else None
    if found_bytes != wanted_bytes:
        now, as_built = (
            "no such file" if size is None else f"{size} bytes"
            for size in (found_bytes, wanted_bytes)
        )
        raise BadInput(
            f"{path} was changed after it was built: found {now}, {ORIGIN} says {as_built}",
            REBUILD,
        )


def _instead_of(folder: Path) -> str:
    """The hint where `folder` cannot be read as a manifest."""
    if any((folder / name).exists() for name in (CLIPS, ORIGIN)):
        return REBUILD
    parent = folder if folder.is_dir() else folder.parent
    near = sorted(
        str(file.parent) for pattern in (ORIGIN, f"*/{ORIGIN}") for file in parent.glob(pattern)
    )
    if near:
        return f"there are: {', '.join(near[:5])}"
    files = (file for depth in ("*", "*/*", "*/*/*") for file in folder.glob(depth))
    if any(file.suffix.lower() in MEDIA_SUFFIXES | IMAGE_SUFFIXES for file in files):
        command = f"stillframe manifest folder {shlex.quote(str(folder))} --out data"
        return f"list the videos in it first: {command}"
    return "make one with: stillframe manifest"


def _no_clips(name: str, root: Path, rejected: dict[str, str]) -> BadInput:
    """The error for a data set in which nothing can be used."""
    if not rejected:
        return BadInput(f"dataset '{name}' found no clips in {root}")
    few = "; ".join(f"{source}: {reason}" for source, reason in sorted(rejected.items())[:3])
    more = f"; and {len(rejected) - 3} more" if len(rejected) > 3 else ""
    return BadInput(
        f"dataset '{name}': none of {len(rejected)} videos in {root} can be used: {few}{more}"
    )
