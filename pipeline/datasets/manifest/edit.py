"""Manifests made from a manifest: clips selected, labelled anew, split anew, or cut into parts.

Sources stay as they are. Truth and what is known of the videos are copied, so that no video is
opened and none need be there. Equal sources and options give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ConfigDict

from pipeline.config import plugins
from pipeline.config.json_files import sealed_json
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.clip_list import SPLITS, csv_lines, found_columns
from pipeline.datasets.formats.known_groups import with_known_groups
from pipeline.datasets.formats.splits import SplitSettings, note_straddling, split_clips
from pipeline.datasets.manifest.checks import check_writable
from pipeline.datasets.manifest.manifest import PARTS, Manifest, portable, write
from pipeline.datasets.manifest.origin import Edit, EditedFrom
from pipeline.datasets.manifest.parts import (
    PARTS_FORMAT,
    Part,
    PartedManifest,
    PartsIndex,
    only,
    part_name,
)
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput, StillframeError, unknown_name
from pipeline.records import Clip

RELABELLED = ("clip_id", "path", "label", "split", "group")
"""Columns of a CSV file of new labels."""


class Taken(NamedTuple):
    """A clip of a new manifest, with what it was in its source."""

    clip: Clip
    source: Manifest
    original: Clip


class EditedSettings(plugins.Settings):
    """The settings of the data set that a source was built from, as they stand there."""

    model_config = ConfigDict(extra="allow")


class EditedClips(DatasetPlugin):
    """Clips of other manifests as a data set, so that they are checked and written as any other."""

    Settings = EditedSettings

    def __init__(
        self, root: Path, settings: EditedSettings, taken: Sequence[Taken], notes: dict[str, str]
    ) -> None:
        super().__init__(root, settings)
        self.notes = notes
        self._taken = {part.clip.clip_id: part for part in taken}
        self._in_order = [part.clip for part in taken]
        if taken:
            self.clock = taken[0].source.origin.clock
        names = (name for part in taken for name in part.source.classes)
        self.classes = tuple(dict.fromkeys(names))
        for part in taken:
            if facts := part.source.facts.get(part.original.video_id):
                self.probed[part.clip.source] = facts

    def clips(self) -> Iterator[Clip]:
        """In the order in which they were taken."""
        yield from self._in_order

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        """The truth that the clip has in its source."""
        part = self._taken[clip.clip_id]
        truth = part.source.targets(part.original.clip_id)
        if "segment_class" in truth and part.source.classes != self.classes:
            number = {name: place for place, name in enumerate(self.classes)}
            places = np.array([number[name] for name in part.source.classes] + [-1], np.int64)
            truth["segment_class"] = places[truth["segment_class"]]
        return truth

    def texts(self, clip: Clip) -> ClipTexts:
        """What is said or asked of the clip in its source."""
        part = self._taken[clip.clip_id]
        return part.source.texts.get(part.original.clip_id, ClipTexts())


def select(
    source: Manifest | PartedManifest,
    out: Path,
    *,
    splits: Sequence[str] = (),
    labels: Sequence[str] = (),
    clips: Sequence[str] = (),
    targets: Sequence[str] = (),
    share: float | None = None,
    first: int | None = None,
) -> Manifest:
    """A manifest of those clips that are in one of the `splits`, have one of the `labels` and all
    of the `targets`, whose id, last part of it or video's id matches one of the patterns `clips`,
    with * and ?, and whose video is in the `share` of all videos, see `is_in_share`; of these, the
    `first` of each label and split. What is not given asks for nothing.

    A source in parts is read part by part, and parts without such a split or label are not: memory
    is that for what is chosen, and for one part. Raises BadInput: a split, label, pattern or target
    that no clip has, no clip left.
    """
    wanted = {"split": (splits, source.splits), "label": (labels, source.labels)}
    for what, (names, there) in wanted.items():
        for name in names:
            if name not in there:
                raise unknown_name(what, name, there, str(source.folder))
    # Patterns and truth are looked for in all clips, to say which of them nothing has.
    in_share = None if share is None or clips or targets else partial(is_in_share, share=share)
    pieces = (
        source.pieces(splits, labels, in_share) if isinstance(source, PartedManifest) else [source]
    )
    taken, counts = list[Taken](), Counter[tuple[str, str | None]]()
    known, unmatched, first_id = set[str](), set(clips), ""
    for piece in pieces:
        truth = piece.target_names() if targets else [[] for _ in piece.clips]
        known.update(*truth)
        first_id = first_id or next((clip.clip_id for clip in piece.clips), "")
        unmatched -= {name for name in unmatched if any(_matches(c, name) for c in piece.clips)}
        chosen = list[Clip]()
        for clip, own in zip(piece.clips, truth, strict=True):
            if (
                (splits and clip.split not in splits)
                or (labels and clip.label not in labels)
                or (clips and not any(_matches(clip, pattern) for pattern in clips))
                or not set(targets) <= set(own)
                or (share is not None and not is_in_share(clip.video_id, share))
            ):
                continue
            counts[clip.split, clip.label] += 1
            if first is None or counts[clip.split, clip.label] <= first:
                chosen.append(clip)
        if chosen:
            slim = only(piece, chosen)
            taken += [Taken(clip, slim, clip) for clip in chosen]
    if unmatched:
        raise BadInput(
            f"{source.folder}: no clip matches '{min(unmatched)}'; the first is called {first_id}",
            "* stands for any letters, as in --clip 'dog*'",
        )
    for name in targets:
        if name not in known:
            arrays = {name for name in known if not name.endswith("_time_s")}
            raise unknown_name("truth", name, arrays, str(source.folder))
    options = {
        "splits": splits,
        "labels": labels,
        "clips": clips,
        "targets": targets,
        "share": share,
        "first": first,
    }
    if not taken:
        asked = {"split": splits, "label": labels, "clip": clips, "has": targets}
        texts = [f"{name} {', '.join(values)}" for name, values in asked.items() if values]
        texts += [] if share is None else [f"share {share:g}"]
        raise BadInput(
            f"{source.folder}: each of these is met by some clip, and all of them by none: "
            f"{'; '.join(texts)}"
        )
    return _write_taken("select", options, source, taken, out, {})


def is_in_share(video_id: str, share: float) -> bool:
    """Whether a video is in a share of all videos, which is drawn by a hash of its id alone: no
    other video need be known, and a smaller share lies in a larger one."""
    digest = hashlib.blake2b(video_id.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _matches(clip: Clip, pattern: str) -> bool:
    names = (clip.clip_id, clip.video_id, clip.clip_id.rpartition("/")[2])
    return any(fnmatchcase(name, pattern) for name in names)


def resplit(
    source: Manifest, out: Path, settings: SplitSettings, *, with_test: bool = False
) -> Manifest:
    """A manifest of the same clips in the splits and groups that the settings ask for, list files
    being looked for in the folder of the videos first.

    Clips of `test` stay there; `with_test`: they are drawn and named as all others. Clips without a
    group get the one that their names tell. Raises BadInput as `split_clips` does, and where the
    settings ask for nothing.
    """
    if not settings.asked and settings.group is None:
        raise BadInput(
            "nothing says how to split",
            "for example --set val_fraction=0.2, --set val_sequences=NAME or --fold 1/5",
        )
    notes: dict[str, str] = {}
    clips: Sequence[Clip] = source.clips
    if with_test:
        clips = [replace(clip, split="train") if clip.split == "test" else clip for clip in clips]
    if settings.group is None:
        clips = with_known_groups(clips, notes)
    clips = split_clips(clips, settings, notes, source.root)
    options = settings.model_dump(mode="json", exclude_defaults=True) | {"with_test": with_test}
    return write_edit("split", options, source, clips, out, notes)


def relabel(source: Manifest, csv: Path, out: Path) -> Manifest:
    """A manifest of the same clips with what a CSV file says of them: its first line names the
    columns clip_id or path, label and, if wanted, split and group. A path means all clips of a
    video. Clips that it does not name stay as they are.

    Raises BadInput, naming the line, and where no clip is named.
    """
    of_id = {clip.clip_id: [clip.clip_id] for clip in source.clips}
    of_path: dict[str, list[str]] = {}
    for clip in source.clips:
        of_path.setdefault(clip.source, []).append(clip.clip_id)
        if clip.video_id != clip.source:
            of_path.setdefault(clip.video_id, []).append(clip.clip_id)
    changed: dict[str, Clip] = {clip.clip_id: clip for clip in source.clips}
    line_of: dict[str, int] = {}
    missing: list[str] = []
    for line, cells, _ in csv_lines(csv, RELABELLED, _check_relabelled):
        where = f"{csv} line {line}"
        name = cells.get("clip_id") or cells.get("path") or ""
        found = (of_id if "clip_id" in cells else of_path).get(name, [])
        if not found:
            missing.append(name)
        for column in ("label", "split"):
            if cells.get(column) == "":
                raise BadInput(f"{where}: {column} is empty")
        if cells.get("split", SPLITS[0]) not in SPLITS:
            raise unknown_name("split", cells["split"], SPLITS, where)
        for clip_id in found:
            if clip_id in line_of:
                raise BadInput(f"{where} repeats line {line_of[clip_id]}: {name}")
            line_of[clip_id] = line
            clip = changed[clip_id]
            changed[clip_id] = replace(
                clip,
                label=cells["label"],
                split=cells.get("split", clip.split),
                group=cells.get("group") or clip.group,
            )
    if not line_of:
        raise BadInput(
            f"{csv} names none of the clips of {source.folder}, such as {source.clips[0].clip_id}",
            f"its first are {few(missing)}" if missing else "write one clip a line",
        )
    notes: dict[str, str] = {}
    if missing:
        notes[str(csv)] = f"{len(missing)} of its clips are not in the manifest: {few(missing)}"
    if len(line_of) < len(source.clips):
        others = [clip.clip_id for clip in source.clips if clip.clip_id not in line_of]
        text = (
            f"{len(others)} of {len(source.clips)} clips are not in {csv} and stay: {few(others)}"
        )
        notes["labels"] = text
    note_straddling(changed.values(), notes)
    sums = {"csv": str(csv), "sha256": hashlib.sha256(csv.read_bytes()).hexdigest()}
    return write_edit("relabel", sums, source, changed.values(), out, notes)


def _check_relabelled(
    where: str, columns: Sequence[str], known: Sequence[str], separator: str
) -> None:
    found = found_columns(columns, separator)
    for column in columns:
        if column not in known:
            raise unknown_name("column", column, known, where)
    names = {"clip_id", "path"} & set(columns)
    if len(names) != 1 or "label" not in columns:
        raise BadInput(
            f"{where}: wanted the columns clip_id or path, and label; found: {found}",
            "the first line names the columns, for example: path,label",
        )


def write_edit(
    command: str,
    options: dict[str, Any],
    source: Manifest,
    clips: Collection[Clip],
    out: Path,
    notes: dict[str, str],
) -> Manifest:
    """The manifest of `clips`, which are those of the source or say other things of them. Raises
    BadInput if `out` is the source, and what `manifest.write` does."""
    of_id = {clip.clip_id: clip for clip in source.clips}
    taken = [Taken(clip, source, of_id[clip.clip_id]) for clip in clips]
    return _write_taken(command, options, source, taken, out, notes)


def _write_taken(
    command: str,
    options: dict[str, Any],
    source: Manifest | PartedManifest,
    taken: Sequence[Taken],
    out: Path,
    notes: dict[str, str],
) -> Manifest:
    settings = EditedSettings.model_validate(source.origin.settings)
    dataset = EditedClips(taken[0].source.root, settings, taken, notes)
    edit = edit_of(command, options, [source], out)
    return write(source.origin.dataset, dataset, out, edit)


def edit_of(
    command: str,
    options: dict[str, Any],
    sources: Sequence[Manifest | PartedManifest],
    out: Path,
) -> Edit:
    """What dataset.json says of an edit. Raises BadInput if `out` is one of the sources."""
    for source in sources:
        if source.folder == out.resolve():
            raise BadInput(f"{out} is the manifest that is edited", "name a new folder: --out")
    return Edit(
        command=command,
        options={key: value for key, value in options.items() if value not in ((), None, False)},
        sources=tuple(
            EditedFrom(
                folder=portable(source.folder, out.resolve()),
                dataset=source.origin.dataset,
                digest=source.digest,
                made_by=source.origin.made_by,
            )
            for source in sources
        ),
    )


def write_parts(sources: Iterable[Manifest], out: Path, rows: int) -> PartedManifest:
    """The clips of the sources, one source after the other, in parts of up to `rows` clips, in
    folder `out`; a video with more of them is a part of its own. Clips of one video come together.
    One source is held at a time.

    Raises BadInput: `out` is not empty, and what `write_index` does; StillframeError where
    something cannot be written.
    """
    check_writable(out)
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty", "name a new folder: --out")

    def parts() -> Iterator[Manifest]:
        number = 0
        for source in sources:
            for clips in _cut(source, rows):
                options = {"rows": rows, "number": number}
                piece, folder = only(source, clips), out / part_name(number)
                yield write_edit("parts", options, piece, clips, folder, {})
                number += 1

    return write_index(parts(), out)


def write_index(parts: Iterable[Manifest], out: Path) -> PartedManifest:
    """The index of parts, which lie in the folder `out` under their numbers; one of them is held at
    a time. It comes last: a manifest in parts that opens is whole.

    Raises BadInput: clips or videos of one name in two parts, parts whose classes or clocks differ;
    StillframeError where it cannot be written.
    """
    facts: list[tuple[dict[str, Any], tuple[str, ...]]] = []
    keys: list[np.ndarray] = []
    shared: dict[str, Any] = {}
    for number, part in enumerate(parts):
        assert part.folder == (out / part_name(number)).resolve()
        for name in ("classes", "clock"):
            found = getattr(part.origin, name)
            if shared.setdefault(name, found) != found:
                raise BadInput(
                    f"the {name} of {part.folder} differ: found {found}, before {shared[name]}",
                    "one manifest in parts has one list of classes, and one clock",
                )
        counts = Counter(clip.split for clip in part.clips)
        said = {"clips": len(part.clips), "videos": len(part.videos), "splits": dict(counts)}
        facts.append((said | {"digest": part.digest}, part.labels))
        keys.append(_name_hashes(part))
    _require_different(out, keys)
    labels = tuple(sorted({label for _, names in facts for label in names}))
    of_label = {label: number for number, label in enumerate(labels)}
    index = PartsIndex(
        format_version=PARTS_FORMAT,
        labels=labels,
        classes=shared["classes"],
        parts=tuple(
            Part(**said, labels=tuple(of_label[name] for name in names)) for said, names in facts
        ),
        checksum="",
    )
    try:
        aside = out / f".{PARTS}.partial"
        aside.write_bytes(sealed_json(index))
        aside.replace(out / PARTS)
    except OSError as error:
        problem = f"cannot write {error.filename or out}: {error.strerror or error}"
        raise StillframeError(problem, "free space or fix access, then run it again") from error
    return PartedManifest.load(out)


def _cut(source: Manifest, rows: int) -> Iterator[list[Clip]]:
    """The clips of a source, cut between videos."""
    videos: dict[str, list[Clip]] = {}
    for clip in source.clips:
        videos.setdefault(clip.video_id, []).append(clip)
    part: list[Clip] = []
    for clips in videos.values():
        if part and len(part) + len(clips) > rows:
            yield part
            part = []
        part += clips
    yield part


def _name_hashes(part: Manifest) -> np.ndarray:
    """8 bytes of a hash of the name of each clip, and of each video."""
    names = [f"clip {clip.clip_id}" for clip in part.clips]
    names += [f"video {video.video_id}" for video in part.videos]
    data = (name.encode("utf-8", errors="surrogateescape") for name in names)
    return np.frombuffer(
        b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in data), "<u8"
    )


def _require_different(out: Path, hashes: Sequence[np.ndarray]) -> None:
    """Raises BadInput where a name comes in two parts. Those in which hashes are equal are read
    again, since different names may have one."""
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice, seen = values[counts > 1], dict[tuple[str, str], str]()
    for number, own in enumerate(hashes):
        if not np.isin(own, twice).any():
            continue
        name, part = part_name(number), Manifest.load(out / part_name(number))
        things = [("clip", clip.clip_id) for clip in part.clips]
        for thing in things + [("video", video.video_id) for video in part.videos]:
            if seen.setdefault(thing, name) != name:
                raise BadInput(
                    f"{thing[0]} '{thing[1]}' is in the parts {seen[thing]} and {name}",
                    "join manifests of which names are the same first: stillframe manifest join",
                )
