"""Lists of published action data sets, told apart by their content, and the videos they mean.

Several files may be given: one for each split, one for each class, or a folder that holds them and
the file of class names. A line means the video whose path ends as the line does, or the other way
round, with or without a suffix: lists name files below folders that differ from one machine to the
next. What a list names and nobody has is counted in `notes`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.config.json_files import json_value
from pipeline.config.regular_files import read_regular
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.clip_list import SEPARATORS, Row, decoded
from pipeline.datasets.formats.folders import foreign_kind
from pipeline.datasets.formats.splits import add_note
from pipeline.datasets.lists.class_names import (
    ClassNames,
    is_class_file,
    names_from_json,
    names_from_text,
)
from pipeline.datasets.lists.entries import (
    Entry,
    fold_of_file,
    split_of_file,
)
from pipeline.datasets.lists.listed_media import ListedMedia
from pipeline.datasets.lists.tables import is_json_list, is_table, read_csv_list, read_json_list
from pipeline.datasets.lists.text_lists import (
    HMDB,
    MANY_LABELS,
    looks_like_a_list,
    read_text_list,
)
from pipeline.errors import BadInput, count_text
from pipeline.video.probe import Probe

SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".json", ".lst", ".list"})
"""Of lists; in a folder of lists, other files are passed over."""
MOST_BYTES = 4 << 30
MOST_LINE = 8192
"""Characters."""
LOOKED_AT = 50
"""Lines of a file by which it is told whether it is a list at all."""


@dataclass
class ActionList:
    """One file, read."""

    path: Path
    entries: list[Entry]
    split: str | None
    """By the name of the file."""


@dataclass
class _Found:
    """What the files say together."""

    lists: list[ActionList] = field(default_factory=list)
    classes: list[ClassNames] = field(default_factory=list)


def read_lists(
    dataset: DatasetPlugin, names: Sequence[str], classes: str | None, fold: int | None
) -> list[Row]:
    """The clips of these files or folders of files that are there, in the order of the lists.

    A row's split is None where no list states one. `fold`: which of several official divisions is
    meant; None: the first of those that are there. Paths are relative to the root or to the working
    folder. Raises BadInput: a file that is not there or is no such list, a clip in two splits.
    """
    found = _read_all(dataset, names, fold)
    if classes is not None:
        found.classes = [_read_classes(_find(dataset, classes, "classes"))]
    labelled = _labelled(dataset, found)
    return list(_rows(dataset, labelled))


def _find(dataset: DatasetPlugin, name: str, setting: str) -> Path:
    candidates = [dataset.root / name, Path(name)]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        tried = " and ".join(dict.fromkeys(str(path.absolute()) for path in candidates))
        raise BadInput(f"{setting} {name} does not exist", f"looked for {tried}")
    return path


def _read_all(dataset: DatasetPlugin, names: Sequence[str], fold: int | None) -> _Found:
    found = _Found()
    paths: dict[Path, bool] = {}
    for name in names:
        path = _find(dataset, name, "lists")
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            files = [file for file in inside if file.is_file() and not foreign_kind(file.name)]
            if not files:
                wanted = " ".join(sorted(SUFFIXES))
                raise BadInput(f"lists {path} is a folder without lists", f"looked for {wanted}")
            paths |= dict.fromkeys(files, False)
        else:
            paths[path] = True
    chosen = _of_fold(list(paths), fold)
    for path in chosen:
        _read_into(found, dataset, path, is_named=paths[path])
    if not found.lists:
        raise BadInput(
            f"{', '.join(names)}: no list of clips among {count_text(len(chosen), 'file')}",
            "name the lists, such as trainlist01.txt,testlist01.txt",
        )
    return found


def _of_fold(paths: list[Path], fold: int | None) -> list[Path]:
    """The files of one official division, and those that are of none."""
    fold_of = {path: fold_of_file(path.stem) for path in paths}
    folds = sorted({number for number in fold_of.values() if number is not None})
    if fold is not None and folds and fold not in folds:
        raise BadInput(
            f"fold {fold} is not among the lists; there are: {', '.join(map(str, folds))}"
        )
    chosen = fold if fold is not None else next(iter(folds), None)
    return [path for path in paths if fold_of[path] in (None, chosen)]


def _read_into(found: _Found, dataset: DatasetPlugin, path: Path, is_named: bool) -> None:
    """Adds a file to what it is: a list, or names of classes. One that is neither is noted where
    it only lies in a folder of lists, and refused where it is named."""
    split = split_of_file(path.stem)
    if path.suffix.lower() == ".json":
        content = _json(path)
        if is_json_list(content):
            found.lists.append(ActionList(path, read_json_list(path, content), split))
            return
        if is_class_file(path.stem):
            found.classes.append(names_from_json(path, content))
            return
    else:
        lines = _lines(path)
        separator = _table_separator(lines[0][1]) if lines else None
        if separator is not None:
            found.lists.append(ActionList(path, read_csv_list(path, lines, separator), split))
            return
        if lines and is_class_file(path.stem):
            found.classes.append(names_from_text(path, lines))
            return
        is_list = HMDB.fullmatch(path.stem) or any(
            looks_like_a_list(text) for _, text in lines[:LOOKED_AT]
        )
        if lines and (is_list or is_named):
            found.lists.append(ActionList(path, read_text_list(path, lines), split))
            return
    if is_named:
        raise BadInput(
            f"{path} is no list of clips{'' if path.stat().st_size else ': it is empty'}"
        )
    dataset.notes[str(path)] = "is no list of clips and is passed over"


def _read_classes(path: Path) -> ClassNames:
    if path.suffix.lower() == ".json":
        return names_from_json(path, _json(path))
    lines = _lines(path)
    if not lines:
        raise BadInput(f"classes {path} is empty")
    return names_from_text(path, lines)


def _json(path: Path) -> object:
    try:
        return json_value(read_regular(path, MOST_BYTES))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that hold anything."""
    try:
        text = decoded(read_regular(path, MOST_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    long = next((number for number, line in lines if len(line) > MOST_LINE), None)
    if long is not None:
        raise BadInput(f"{path} line {long} has over {MOST_LINE} characters: no list of clips has")
    return [(number, line) for number, line in lines if line]


def _table_separator(header: str) -> str | None:
    """What splits a first line that names columns; None where it names none."""
    for separator in SEPARATORS:
        if is_table([cell.strip().strip('"') for cell in header.split(separator)]):
            return separator
    return None


def _labelled(dataset: DatasetPlugin, found: _Found) -> list[tuple[ActionList, Entry]]:
    """The entries of all lists that have a class, each with its name."""
    pairs = [(each, entry) for each in found.lists for entry in each.entries]
    numbered = [entry for _, entry in pairs if entry.number is not None]
    names = _class_names(dataset, found.classes, numbered, pairs)
    labelled, unknown = [], Counter[Path]()
    for each, entry in pairs:
        label = entry.label if entry.number is None else names[entry.number]
        if label is None:
            unknown[each.path] += 1
        else:
            labelled.append((each, entry._replace(label=label)))
    for path, count in unknown.items():
        total = sum(each.path == path for each, _ in pairs)
        add_note(dataset.notes, str(path), f"{count} of {total} clips have no class")
    if not labelled:
        lists = ", ".join(str(each.path) for each in found.lists)
        raise BadInput(f"{lists}: no clip has a class", "name the list of train too")
    return labelled


def _class_names(
    dataset: DatasetPlugin,
    classes: Sequence[ClassNames],
    numbered: Sequence[Entry],
    pairs: Sequence[tuple[ActionList, Entry]],
) -> dict[int, str]:
    """Number of a class -> name: of a file, or else of the folders, where these agree with the
    numbers one to one; or else the number itself."""
    numbers = sorted({entry.number for entry in numbered if entry.number is not None})
    if not numbers:
        return {}
    if classes:
        if len(classes) > 1 and len({tuple(sorted(each.names.items())) for each in classes}) > 1:
            files = ", ".join(str(each.path) for each in classes)
            raise BadInput(f"{files} all name classes", "name the right one: --set classes=FILE")
        shift = classes[0].shift(numbered)
        return {number: classes[0].names[number + shift] for number in numbers}
    folders: dict[int, set[str]] = defaultdict(set)
    for entry in numbered:
        folders[entry.number or 0].add(_folder(entry))
    only = {number: next(iter(names)) for number, names in folders.items() if len(names) == 1}
    named_otherwise = any(entry.number is None and entry.label for _, entry in pairs)
    agree = "" not in only.values() and len(only) == len(numbers) == len(set(only.values()))
    if agree and (len(only) > 1 or named_otherwise):
        return only
    if named_otherwise:
        raise BadInput("some lists number their classes and others name them", "give one kind")
    first = next(each for each, entry in pairs if entry.number is not None)
    add_note(
        dataset.notes,
        str(first.path),
        "its classes are numbers; to name them: --set classes=FILE (one name a line)",
    )
    return {number: str(number) for number in numbers}


def _folder(entry: Entry) -> str:
    return PurePosixPath(entry.path.replace("\\", "/")).parent.name


def _rows(dataset: DatasetPlugin, labelled: Sequence[tuple[ActionList, Entry]]) -> Iterator[Row]:
    media = ListedMedia(dataset, [entry.path for entry in {entry for _, entry in labelled}])
    rows: dict[object, tuple[Row, str]] = {}
    split_of: dict[str, tuple[str | None, str]] = {}
    missing: dict[Path, list[str]] = defaultdict(list)
    for each, entry in labelled:
        where = f"{each.path} line {entry.line}"
        cut = media.find(entry.cut) if entry.cut else None
        source = cut or media.find(entry.path) or (media.find(entry.also) if entry.also else None)
        if source is None:
            missing[each.path].append(entry.cut or entry.path)
            continue
        if entry.frames is not None and not (dataset.root / source).is_dir():
            raise BadInput(
                f"{where}: {entry.path} is a video and has two numbers, which are several classes",
                MANY_LABELS,
            )
        row = _row(each, entry, source, is_cut=cut is not None)
        first_split, first = split_of.setdefault(source, (row.split, where))
        if first_split != row.split:
            raise BadInput(f"{where}: {source} is in {row.split}, and in {first_split} in {first}")
        above, first = rows.setdefault((row.clip_id, row.stretch_frames), (row, where))
        if above.label != row.label:
            raise BadInput(f"{where}: {source} is '{row.label}', and '{above.label}' in {first}")
        if first == where:
            yield row
    for path, names in missing.items():
        total = sum(each.path == path for each, _ in labelled)
        add_note(
            dataset.notes,
            str(path),
            f"{len(names)} of {total} clips are not there: {few(names)}",
        )
    media.note(dataset, set(split_of))
    if not rows:
        names = [name for each in missing.values() for name in each]
        raise BadInput(
            f"none of the {len(names)} clips of the lists is in {dataset.root}: {few(names)}",
            f"there are, for example: {few(media.sources)}",
        )


def _row(each: ActionList, entry: Entry, source: str, is_cut: bool) -> Row:
    assert entry.label is not None
    return Row(
        source,
        entry.label,
        entry.split or each.split,
        0.0 if is_cut else entry.start_s,
        None if is_cut else entry.stop_s,
        entry.group,
        entry.frames,
        entry.stretch_frames,
    )


def fitting(dataset: DatasetPlugin, rows: Sequence[Row], facts: Mapping[str, Probe]) -> list[Row]:
    """The rows whose sources could be looked at (`facts`) and hold what the list says, with their
    stretches in seconds. A folder that holds other images than the list counts is rejected."""
    kept = []
    for row in rows:
        probed = facts.get(row.source)
        if probed is None:
            continue
        there = probed.frames_from_header or 0
        if row.images is not None and abs(there - row.images) > 1:
            dataset.rejected[row.source] = (
                f"holds {there} images, the list counts {row.images}: images of another kind, such "
                "as flow, must lie in a folder of their own"
            )
            continue
        if row.stretch_frames is not None and probed.fps:
            first, end = row.stretch_frames
            is_to_end = there and end >= there
            row = row._replace(
                start_s=first / probed.fps, stop_s=None if is_to_end else end / probed.fps
            )
        kept.append(row)
    return kept
