"""Manifests made from a manifest: clips selected, labelled anew or split anew.

Sources stay as they are. Truth and what is known of the videos are copied, so that no video is
opened and none need be there. Equal sources and options give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ConfigDict

from pipeline.config import plugins
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.clip_list import SPLITS, csv_lines, found_columns
from pipeline.datasets.formats.known_groups import with_known_groups
from pipeline.datasets.formats.splits import SplitSettings, note_straddling, split_clips
from pipeline.datasets.manifest.manifest import Manifest, portable, write
from pipeline.datasets.manifest.origin import Edit, EditedFrom
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput, unknown_name
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
    source: Manifest,
    out: Path,
    *,
    splits: Sequence[str] = (),
    labels: Sequence[str] = (),
    clips: Sequence[str] = (),
    targets: Sequence[str] = (),
    first: int | None = None,
) -> Manifest:
    """A manifest of those clips that are in one of the `splits`, have one of the `labels` and all
    of the `targets`, and whose id, last part of it or video's id matches one of the patterns
    `clips`, with * and ?; of these, the `first` of each label and split. What is not given asks for
    nothing.

    Raises BadInput: a split, label, pattern or target that no clip has, no clip left.
    """
    wanted = {"split": (splits, source.splits), "label": (labels, source.labels)}
    for what, (names, there) in wanted.items():
        for name in names:
            if name not in there:
                raise unknown_name(what, name, there, str(source.folder))
    for pattern in clips:
        if not any(_matches(clip, pattern) for clip in source.clips):
            raise BadInput(
                f"{source.folder}: no clip matches '{pattern}'; the first is called "
                f"{source.clips[0].clip_id}",
                "* stands for any letters, as in --clip 'dog*'",
            )
    truth = source.target_names() if targets else [[] for _ in source.clips]
    for name in targets:
        known = set().union(*truth)
        if name not in known:
            known = {name for name in known if not name.endswith("_time_s")}
            raise unknown_name("truth", name, known, str(source.folder))
    chosen, counts = list[Clip](), Counter[tuple[str, str | None]]()
    for clip, own in zip(source.clips, truth, strict=True):
        if (
            (splits and clip.split not in splits)
            or (labels and clip.label not in labels)
            or (clips and not any(_matches(clip, pattern) for pattern in clips))
            or not set(targets) <= set(own)
        ):
            continue
        counts[clip.split, clip.label] += 1
        if first is None or counts[clip.split, clip.label] <= first:
            chosen.append(clip)
    if not chosen:
        asked = [
            f"{name} {', '.join(values)}"
            for name, values in (
                ("split", splits),
                ("label", labels),
                ("clip", clips),
                ("has", targets),
            )
            if values
        ]
        raise BadInput(
            f"{source.folder}: each of these is met by some clip, and all of them by none: "
            f"{'; '.join(asked)}"
        )
    options = {
        "splits": splits,
        "labels": labels,
        "clips": clips,
        "targets": targets,
        "first": first,
    }
    return write_edit("select", options, source, chosen, out, {})


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
    settings = EditedSettings.model_validate(source.origin.settings)
    dataset = EditedClips(source.root, settings, taken, notes)
    edit = edit_of(command, options, [source], out)
    return write(source.origin.dataset, dataset, out, edit)


def edit_of(command: str, options: dict[str, Any], sources: Sequence[Manifest], out: Path) -> Edit:
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
