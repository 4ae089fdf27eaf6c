"""Something-Something v2: 220 847 short videos of 174 things that hands do, told apart by what
happens.

Written against the release of 20BN (2018) and its re-release by Qualcomm (2022), which differ in
the names of the annotations:

    root/**/20bn-something-something-v2/<id>.webm                 the videos; any folder below the
                                                                  root will do
    root/**/something-something-v2-{labels,train,validation,test}.json
                                                                  20BN
    root/**/labels/{labels,train,validation,test}.json, test-answers.csv
                                                                  Qualcomm

An entry names its class in `template`, in which placeholders stand in brackets: "Putting
[something] into [something]". Without the brackets it is a key of the labels file, and that is the
clip's label; sorted, the 174 labels have their official numbers. `test.json` holds ids alone; their
labels are in `test-answers.csv` (`id;label`), without which the test split is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import (
    few,
    field,
    find_file,
    load_json,
    probe_all,
    videos_by_name,
)
from pipeline.datasets.formats.folders import list_files
from pipeline.datasets.formats.splits import SplitSettings, split_dataset
from pipeline.errors import BadInput
from pipeline.records import Clip

PREFIX = "something-something-v2-"
SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Name of the annotation file -> split."""
ANSWERS = "test-answers.csv"
SUFFIXES = (".webm", ".mp4")
"""The official videos are .webm; many keep them as .mp4."""


class Settings(SplitSettings):
    """These settings say which videos are held out, where not the official ones."""


class Dataset(DatasetPlugin):
    """One clip per video, named by its official id."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        """Train, val, test, each in the order of its file. Raises BadInput where annotations are
        damaged or disagree."""
        files = list_files(self)
        sources = videos_by_name(self.root, files, SUFFIXES)
        labels_path = self._find(files, "labels")
        tables = {name: path for name in SPLITS if (path := self._find(files, name))}
        if labels_path is None or not tables:
            lacking = (
                "labels.json"
                if labels_path is None
                else " or ".join(f"{name}.json" for name in SPLITS)
            )
            hint = (
                "put the annotations beside the videos, the names as released, with or without "
                f"'{PREFIX}'"
            )
            raise BadInput(f"{self.root} holds no {lacking} of Something-Something v2", hint)
        labels = load_json(labels_path, dict)
        answers = find_file(self.root, files, [ANSWERS])
        split_of: dict[str, str] = {}
        entries: list[tuple[str, str]] = []
        for name, path in tables.items():
            templates = _read_templates(path) if name != "test" else _read_answers(path, answers)
            for video_id in templates:
                if split_of.setdefault(video_id, SPLITS[name]) != SPLITS[name]:
                    raise BadInput(
                        f"{path}: video {video_id} is in split '{split_of[video_id]}' too"
                    )
            entries += self._usable(path, templates, labels, sources)
        facts = probe_all(self, [sources[video_id] for video_id, _ in entries])
        clips = [
            Clip(video_id, video_id, sources[video_id], split_of[video_id], label=label)
            for video_id, label in entries
            if sources[video_id] in facts
        ]
        yield from split_dataset(self, clips)

    def _find(self, files: list[str], name: str) -> Path | None:
        return find_file(self.root, files, [f"{PREFIX}{name}.json", f"{name}.json"])

    def _usable(
        self,
        path: Path,
        templates: dict[str, str | None],
        labels: dict[str, Any],
        sources: dict[str, str],
    ) -> list[tuple[str, str]]:
        """(id, label) of the entries that have a known label and a video; the others are told
        under their file."""
        labelled = {video_id: label for video_id, label in templates.items() if label is not None}
        entries = [(video_id, label) for video_id, label in labelled.items() if label in labels]
        unlabelled = [video_id for video_id in templates if video_id not in labelled]
        strange = [f"{key} '{label}'" for key, label in labelled.items() if label not in labels]
        missing = [video_id for video_id, _ in entries if video_id not in sources]
        for tell, problem, names in (
            (self.note, f"have no label in {ANSWERS}", unlabelled),
            (self.reject, "have no class in the labels file", strange),
            (self.note, "are not there", missing),
        ):
            if names:
                text = f"{len(names)} of {len(templates)} videos {problem}: {few(names)}"
                tell(path.relative_to(self.root).as_posix(), text)
        return [(video_id, label) for video_id, label in entries if video_id in sources]


def _read_templates(path: Path) -> dict[str, str | None]:
    """Id -> class, in the file's order. Raises BadInput with the entry's number."""
    templates: dict[str, str | None] = {}
    for number, record in enumerate(load_json(path, list), start=1):
        where = f"{path} entry {number}"
        video_id = field(record, "id", str, where)
        if video_id in templates:
            raise BadInput(f"{where} repeats video {video_id}")
        templates[video_id] = (
            field(record, "template", str, where).replace("[", "").replace("]", "")
        )
    return templates


def _read_answers(path: Path, answers: Path | None) -> dict[str, str | None]:
    """Id -> class of the test split, None where no answer is known. Raises BadInput with the
    entry's or line's number."""
    ids = [
        field(record, "id", str, f"{path} entry {number}")
        for number, record in enumerate(load_json(path, list), start=1)
    ]
    class_of: dict[str, str] = {}
    lines = [] if answers is None else answers.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, start=1):
        video_id, separator, label = line.partition(";")
        if not separator:
            raise BadInput(f"{answers} line {number}: wanted id;label, found '{line[:40]}'")
        class_of[video_id.strip()] = label.strip().strip('"')
    return {video_id: class_of.get(video_id) for video_id in ids}
