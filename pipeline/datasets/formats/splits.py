"""Which clip lies in which split: the settings that every data set shares, and one function that
carries them out.

A *group* is what clips were cut or recorded from: one source video, one person, one place. Clips of
a group resemble one another, so a model that saw one of them in training has an unfair look at the
others. Draws never divide a group, and splits that a user or a data set lays down are looked
through: a group that lies in two of them is told.

Names (`val_sequences`) count before lists (`split_lists`), and lists before the data set's own
splits. A split that any of the settings speaks of is theirs alone, so that `val_sequences=["dog"]`
makes `train` of all else that was `val`; a split that they do not speak of stays as it is, and
`test` always does, as its truth may be held back. Shares are drawn from what is then `train`.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.config import plugins
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.split_draw import REST, draw_units, fold_units, lacking
from pipeline.errors import BadInput, count_text
from pipeline.records import Clip
from pipeline.video.probe import IMAGE_SUFFIXES, MEDIA_SUFFIXES

SPLITS = ("train", "val", "test")
SPLITS_NOTE, GROUPS_NOTE = "splits", "groups"
"""Under what `notes` tell of them."""
IMAGE_FOLDERS = frozenset({"img", "image", "images", "rgb", "color", "colour", "frames"})
"""Names of a folder of images that say nothing of what it shows."""
SHOWN = 10
"""Names in an error on a name that is not there."""


def _one_or_more(value: object) -> object:
    """`dog` as ["dog"], and numbers as they are written."""
    names = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
        raise ValueError('wanted names, such as "dog" or ["dog", "cat"]')
    return tuple(map(str, names))


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
"""Names in a table; a single one needs no brackets."""


class SplitLists(plugins.Settings):
    """Text files that list the clips of a split: one a line, by name, path or stem. Further words
    of a line are passed over."""

    train: Names = ()
    """Files, relative to the root or to the working folder. What no list holds is left out."""
    val: Names = ()
    """The same of `val`. Without a list of `train`, all that no list holds is `train`."""
    test: Names = ()
    """The same of `test`."""


class SplitSettings(plugins.Settings):
    """These settings say which clips are `train`, `val` and `test`."""

    val_sequences: Names = ()
    """Videos that are `val`, by name, path, stem or group; the others are `train`."""
    test_sequences: Names = ()
    """Videos that are `test`, named in the same way."""
    val_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share of the groups (of each label) that is drawn for `val`, and at least one if there are
    two. None: the data set's own splits; where these lack `val`, 0.2 of your own videos, and 0.05
    of those of published captions."""
    test_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Share that is drawn for `test` in the same way."""
    val_fold: str | None = None
    """K/N, as 2/5: the groups are drawn into N parts, and the K-th is `val`, so that N manifests
    cross-validate."""
    split_lists: SplitLists = SplitLists()
    """Files that list the clips of each split."""
    group: str | None = None
    """Regular expression: what its first group, or else all of it, finds in a clip's path is the
    clip's group, which draws never divide; or a column of the CSV file. None: the data set's own
    groups, or each video."""
    seed: plugins.Seed = 0
    """Draws the splits."""

    @field_validator("group")
    @classmethod
    def _is_pattern(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return text

    @field_validator("val_fold")
    @classmethod
    def _is_fold(cls, text: str | None) -> str | None:
        match = re.fullmatch(r"(\d+)/(\d+)", text or "1/2")
        if match is None or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
            raise ValueError("wanted K/N, as 2/5, with K from 1 to N")
        return text

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for split, keys in self.asked.items():
            drawn = [key for key in keys if key in ("val_fold", f"{split}_fraction")]
            if drawn and len(keys) > 1:
                raise ValueError(f"{' and '.join(keys[-2:])} both say what is {split}: give one")
        if (self.val_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing for train")
        return self

    @property
    def asked(self) -> dict[str, list[str]]:
        """Splits that the settings speak of -> the keys that do."""
        given = {
            "split_lists.train": self.split_lists.train,
            "val_sequences": self.val_sequences,
            "split_lists.val": self.split_lists.val,
            "val_fraction": self.val_fraction is not None,
            "val_fold": self.val_fold,
            "test_sequences": self.test_sequences,
            "split_lists.test": self.split_lists.test,
            "test_fraction": self.test_fraction is not None,
        }
        asked: dict[str, list[str]] = {}
        for key, value in given.items():
            if value:
                split = next((name for name in SPLITS if name in key), "val")
                asked.setdefault(split, []).append(key)
        return asked


def split_clips(
    clips: Iterable[Clip],
    settings: SplitSettings,
    notes: dict[str, str],
    root: Path,
    drawn: float | None = None,
    unusable: Mapping[str, str] = MappingProxyType({}),
) -> list[Clip]:
    """The clips with the groups and splits that the settings ask for, in the same order; those that
    lists leave out are missing.

    `notes` is told what a user should know; `root` is where list files are looked for first;
    `unusable` says why some sources are no clips, in case that one of them is named.
    `drawn`: the clips' own splits mean nothing, and without settings this share becomes `val`.
    Raises BadInput: a name that no clip has, a list that cannot be used.
    """
    grouped = with_groups(clips, settings.group, notes)
    if settings.asked or drawn is not None:
        grouped = _split(_Index(grouped, unusable), settings, notes, root, drawn)
    note_straddling(grouped, notes)
    return grouped


def split_dataset(
    dataset: DatasetPlugin, clips: Iterable[Clip], drawn: float | None = None
) -> list[Clip]:
    """`split_clips` of a data set whose settings are `SplitSettings`."""
    return split_clips(
        clips, dataset.settings, dataset.notes, dataset.given_root, drawn, dataset.rejected
    )


def with_groups(clips: Iterable[Clip], pattern: str | None, notes: dict[str, str]) -> list[Clip]:
    """The clips with the groups that a pattern finds in their paths; None: as they are. Raises
    BadInput where it finds none at all."""
    clips = list(clips)
    if pattern is None:
        return clips
    found = [_match(pattern, clip.source) for clip in clips]
    strange = list(
        dict.fromkeys(clip.source for clip, group in zip(clips, found, strict=True) if not group)
    )
    if clips and not any(found):
        raise BadInput(f"group '{pattern}' finds nothing in any path, such as {clips[0].source}")
    if strange:
        add_note(
            notes,
            GROUPS_NOTE,
            f"'{pattern}' finds nothing in {count_text(len(strange), 'path')}, each a group of its "
            f"own: {few(strange)}",
        )
    return [replace(clip, group=group) for clip, group in zip(clips, found, strict=True)]


def _match(pattern: str, path: str) -> str | None:
    match = re.search(pattern, path)
    if match is None:
        return None
    return next((text for text in match.groups() if text), None) or match[0] or None


def _split(
    index: _Index,
    settings: SplitSettings,
    notes: dict[str, str],
    root: Path,
    drawn: float | None,
) -> list[Clip]:
    clips = index.clips
    fixed = _listed(index, settings.split_lists, notes, root) | _named(index, settings)
    own = {clip.video_id: clip.split if drawn is None else "train" for clip in clips}
    split = dict(fixed)
    for video in own.keys() - fixed.keys():
        if own[video] not in settings.asked or own[video] == "test":
            split[video] = own[video]
        elif "train" not in settings.asked:
            split[video] = "train"
    left_out = [video for video in own if video not in split]
    if left_out:
        text = f"{len(left_out)} of {count_text(len(own), 'video')} are in no list and left out"
        add_note(notes, SPLITS_NOTE, f"{text}: {few(left_out)}")
    aside = [video for video in own if video not in fixed and own[video] == "val"]
    if aside and "val" in settings.asked and "train" in own.values():
        text = f"the data set's own val is laid aside for {settings.asked['val'][0]}"
        add_note(notes, SPLITS_NOTE, text)
    pool = [clip for clip in clips if split.get(clip.video_id) == "train"]
    if not pool and (settings.val_fraction or settings.val_fold):
        key = settings.asked["val"][0]
        raise BadInput(f"{key}: there is nothing to draw from: no video is left for train")
    split |= _drawn(pool, settings, drawn, notes)
    return [replace(clip, split=split[clip.video_id]) for clip in clips if clip.video_id in split]


def _drawn(
    clips: Sequence[Clip], settings: SplitSettings, default: float | None, notes: dict[str, str]
) -> dict[str, str]:
    """video -> the split that is drawn for it; empty where nothing is to be drawn."""
    val = default if "val" not in settings.asked else settings.val_fraction
    shares = {"val": val or 0.0, "test": settings.test_fraction or 0.0}
    shares = {split: share for split, share in shares.items() if share}
    if not clips or not (shares or settings.val_fold):
        return {}
    unit_of = units_of(clips)
    labels: dict[str, set[str]] = defaultdict(set)
    videos: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        labels[unit_of[clip.video_id]].add(clip.label or "")
        videos[clip.label or ""].add(clip.video_id)
    drawn = draw_units(labels, shares, settings.seed)
    if settings.val_fold:
        fold, folds = map(int, settings.val_fold.split("/"))
        rest = {unit: own for unit, own in labels.items() if drawn[unit] == REST}
        if len(rest) < folds:
            raise BadInput(f"val_fold: {len(rest)} groups or videos do not make {folds} parts")
        drawn |= fold_units(rest, fold, folds, settings.seed)
    wanted = {"val": "", **shares} if settings.val_fold else shares
    for split, lacks in lacking(labels, drawn, wanted).items():
        # That one video cannot be in two splits goes without saying.
        if lacks := [label for label in lacks if len(videos[label]) > 1]:
            which = f"{len(lacks)} of {count_text(len(videos), 'label')} ({few(lacks)}): the"
            which = "the" if set(videos) == {""} else which
            add_note(notes, SPLITS_NOTE, f"{which} videos are of too few groups for {split}")
    return {video: drawn[unit] for video, unit in unit_of.items()}


def units_of(clips: Iterable[Clip]) -> dict[str, str]:
    """video -> the unit that stays together: its group, or itself. Groups that share a video are
    one unit, called after the first of them."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    unit_of: dict[str, str] = {}
    for clip in clips:
        own = clip.video_id if clip.group is None else clip.group
        if clip.video_id in unit_of:
            a, b = sorted((root(unit_of[clip.video_id]), root(own)))
            first[b] = a
        unit_of.setdefault(clip.video_id, own)
    return {video: root(unit) for video, unit in unit_of.items()}


def note_straddling(clips: Iterable[Clip], notes: dict[str, str]) -> None:
    """Says how many groups lie in more than one split, with the first of them."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for clip in clips:
        if clip.group is not None:
            places[clip.group].setdefault(clip.split, clip.clip_id)
    straddling = [group for group, split in places.items() if len(split) > 1]
    if straddling:
        first = straddling[0]
        where = " and ".join(f"{split} ({clip_id})" for split, clip_id in places[first].items())
        add_note(
            notes,
            GROUPS_NOTE,
            f"{len(straddling)} of {count_text(len(places), 'group')} lie in more than one split, "
            f"which flatters scores: '{first}' in {where}",
        )


def _named(index: _Index, settings: SplitSettings) -> dict[str, str]:
    """video -> split of those that `val_sequences` and `test_sequences` name."""
    split_of: dict[str, str] = {}
    for split in ("val", "test"):
        key = f"{split}_sequences"
        for name in getattr(settings, key):
            for video in index.named(name, key):
                if split_of.setdefault(video, split) != split:
                    raise BadInput(f"test_sequences: '{name}' is named by val_sequences too")
    return split_of


def _listed(index: _Index, lists: SplitLists, notes: dict[str, str], root: Path) -> dict[str, str]:
    """video -> split of those that list files name. Raises BadInput if a list names none of the
    videos, or two lists the same."""
    split_of: dict[str, str] = {}
    list_of: dict[str, Path] = {}
    for split in SPLITS:
        for name in getattr(lists, split):
            path = find_list(root, name, f"split_lists.{split}")
            missing, lines = [], read_lines(path)
            for line in lines:
                videos = index.listed(line, str(path))
                if not videos:
                    missing.append(line)
                for video in videos:
                    if split_of.setdefault(video, split) != split:
                        raise BadInput(f"{path} lists {video}, and so does {list_of[video]}")
                    list_of[video] = path
            if len(missing) == len(lines):
                raise BadInput(
                    f"{path} lists none of the {len(index.videos)} videos; first lines: "
                    f"{few(lines)}; videos: {few(index.videos)}"
                )
            if missing:
                text = f"{len(missing)} of the {len(lines)} it lists are not there: {few(missing)}"
                add_note(notes, str(path), text)
    return split_of


def find_list(root: Path, name: str, key: str) -> Path:
    """The file called `name` under the root or in the working folder. Raises BadInput."""
    tried = [root / name, Path(name)]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        places = " and ".join(dict.fromkeys(str(path.absolute()) for path in tried))
        raise BadInput(f"{key}: {name} does not exist", f"looked for {places}")
    return found


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that hold anything, without those that begin with '#'. Raises
    BadInput."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}", "save it as UTF-8") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise BadInput(f"{path} is empty")
    return lines


class _Index:
    """Finds videos by what users and lists call them."""

    def __init__(self, clips: list[Clip], unusable: Mapping[str, str]) -> None:
        self.clips, self.unusable = clips, unusable
        self.videos = list(dict.fromkeys(clip.video_id for clip in clips))
        self._exact: dict[str, dict[str, None]] = defaultdict(dict)
        """Whole names: ids, paths and groups; a group is more than one video."""
        self._tails: dict[str, dict[str, None]] = defaultdict(dict)
        """Last parts of paths, with and without suffix."""
        for clip in clips:
            exact = {clip.clip_id, clip.video_id, clip.source, clip.group or clip.video_id}
            for name in exact:
                self._exact[name][clip.video_id] = None
            for name in (clip.source, clip.video_id):
                for path in {name, _without_suffix(name)}:
                    for tail in _tails(path):
                        self._tails[tail][clip.video_id] = None

    def named(self, name: str, key: str) -> list[str]:
        """The videos that a name in a setting means. Raises BadInput if there is none, or if the
        last part of a path means more than one."""
        videos = self._find(name.strip("/"), key)
        if not videos:
            raise self._unknown(name, key)
        return videos

    def listed(self, line: str, where: str) -> list[str]:
        """The videos that a line of a list means, empty if there is none: the whole line or its
        first word, from the whole path to its last part, or the folder of an image."""
        words = line.replace(",", " ").split()
        for text in dict.fromkeys((line, *words[:1])):
            path = PurePosixPath(text.strip("/"))
            if path.suffix.lower() in IMAGE_SUFFIXES and not self._find(path.name, where):
                path = path.parent
            for tail in _tails(path.as_posix()):
                if videos := self._find(tail, where):
                    return videos
        return []

    def _find(self, name: str, where: str) -> list[str]:
        if name in self._exact:
            return list(self._exact[name])
        videos = list(self._tails.get(name, self._tails.get(_without_suffix(name), ())))
        if len(videos) > 1:
            raise BadInput(
                f"{where}: '{name}' may be any of {len(videos)} videos: {few(videos)}",
                "write the whole path",
            )
        return videos

    def _unknown(self, name: str, key: str) -> BadInput:
        """The error for a name that no video has: says what they are called, as short as can be."""
        for source, reason in self.unusable.items():
            if name in _tails(source) + _tails(_without_suffix(source)):
                return BadInput(f"{key}: '{name}' cannot be used: {reason}")
        names = []
        for video in self.videos:
            tail = _tails(_without_suffix(video))[-1]
            names.append(tail if len(self._tails[tail]) == 1 else video)
        near = difflib.get_close_matches(name, [*names, *self._exact], n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else ""
        if "," in name:
            hint = f'several names are written {key}=["...", "..."]'
        return BadInput(
            f"{key}: no sequence called '{name}'; there are: {few(sorted(names), SHOWN)}", hint
        )


def _tails(path: str) -> list[str]:
    """`a/b/c` -> `a/b/c`, `b/c`, `c`."""
    parts = path.split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _without_suffix(path: str) -> str:
    """A path without the suffix of a video, or without a last folder of images that says
    nothing."""
    parent, _, last = path.rpartition("/")
    if parent and last.lower() in IMAGE_FOLDERS:
        return parent
    pure = PurePosixPath(path)
    return pure.with_suffix("").as_posix() if pure.suffix.lower() in MEDIA_SUFFIXES else path


def add_note(notes: dict[str, str], source: str, text: str) -> None:
    """Adds a remark to those that `source` has."""
    notes[source] = f"{notes[source]}; {text}" if source in notes else text
