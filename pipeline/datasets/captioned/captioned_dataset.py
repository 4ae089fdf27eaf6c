"""Base of the data sets of captions: makes clips of what lists describe, and says what is lost.

A video lies in any folder below the root; its `video_id` is the name of its file, so that data sets
that speak of the same files share a cache. Captions are kept in the order of the list, and one that
a list has twice is twice there: protocols count it twice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pipeline.datasets.captioned.described import Described
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, find_file, probe_all, videos_by_name
from pipeline.datasets.formats.clip_list import outside
from pipeline.datasets.formats.folders import list_files
from pipeline.datasets.formats.splits import (
    SPLITS_NOTE,
    SplitSettings,
    add_note,
    split_clips,
)
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput, count_text
from pipeline.records import Clip
from pipeline.video.probe import VIDEO_SUFFIXES, Probe


class CaptionedDataset(DatasetPlugin):
    """One clip for each that the lists describe and that has a caption and a video. The settings
    are `SplitSettings`."""

    drawn: ClassVar[float] = 0.05
    """Share of the training videos, by group, that is `val` where the lists have none."""
    image_fps: float | None = None
    """Frame rate of folders of images; None where the data set has none."""

    @abstractmethod
    def described(self) -> list[Described]:
        """All clips of all lists, those whose video is not there too. Raises BadInput where lists
        are missing, damaged or disagree."""

    def clips(self) -> Iterator[Clip]:
        """In the order of `described`. Raises what that raises, and BadInput where no video is
        there, or one is in two splits."""
        usable = self._usable(self.described())
        facts = probe_all(self, list(dict.fromkeys(source for source, _ in usable)), self.image_fps)
        self._captions = {each.clip_id: each.texts for _, each in usable}
        usable = [
            (source, each)
            for source, each in usable
            if source in facts and self._is_inside(each, facts[source])
        ]
        clips = [self._clip(source, each, facts[source]) for source, each in usable]
        splits = {each.split for _, each in usable}
        settings: SplitSettings = self.settings
        if "train" in splits and "val" not in splits and "val" not in settings.asked:
            settings = settings.model_copy(update={"val_fraction": self.drawn})
            text = f"the lists have no val: it is {self.drawn:g} of the groups of train"
            add_note(self.notes, SPLITS_NOTE, f"{text} (--set val_fraction=0 leaves them)")
        share = self.drawn if splits == {None} else None
        yield from split_clips(clips, settings, self.notes, self.given_root, share, self.rejected)

    def texts(self, clip: Clip) -> ClipTexts:
        """The captions."""
        return ClipTexts(captions=self._captions[clip.clip_id])

    def video_id(self, source: str) -> str:
        """What a video is called in the manifest."""
        return PurePosixPath(source).stem

    # What the data sets find

    @cached_property
    def files(self) -> list[str]:
        """Every file below the root."""
        return list_files(self)

    def find_lists(self, names: Mapping[str, str], title: str) -> dict[str, Path]:
        """Split -> its list, for those lists of the data set called `title` that are there. Raises
        BadInput where none is."""
        found = {split: find_file(self.root, self.files, [name]) for split, name in names.items()}
        paths = {split: path for split, path in found.items() if path is not None}
        if not paths:
            raise BadInput(
                f"{self.root} holds no {', '.join(names.values())} of {title}",
                "put the lists, named as they were released, into a folder with the videos",
            )
        return paths

    def find_videos(self, name: Callable[[str], str] = lambda stem: stem) -> dict[str, str]:
        """Name -> source of every video below the root; `name` makes it of that of the file without
        suffix. Raises BadInput where two files have one name."""
        sources: dict[str, str] = {}
        for stem, source in videos_by_name(self.root, self.files, VIDEO_SUFFIXES).items():
            first = sources.setdefault(name(stem), source)
            if first != source:
                raise BadInput(
                    f"{self.root} holds video {name(stem)} twice: {first} and {source}",
                    "keep one copy of the videos",
                )
        return sources

    def note_list(self, path: Path, remark: str) -> None:
        """Adds a remark on a list."""
        inside = path.is_relative_to(self.root)
        self.note(path.relative_to(self.root).as_posix() if inside else str(path), remark)

    def note_unlisted(self, path: Path, videos: Collection[str], listed: Collection[str]) -> None:
        """Notes videos that have captions in a file and are in no list."""
        others = [video for video in videos if video not in listed]
        if others:
            text = (
                f"{len(others)} of {count_text(len(videos), 'video')} are in no list and left out"
            )
            self.note_list(path, f"{text}: {few(others)}")

    # What becomes a clip

    def _usable(self, described: Sequence[Described]) -> list[tuple[str, Described]]:
        """(source, clip) of those that have a video and a caption; the others are told under their
        list. Raises BadInput where no video is there."""
        _require_one_split(described)
        for path, clips in _by_list(described).items():
            videos = {each.video: each.source for each in clips}
            missing = [video for video, source in videos.items() if source is None]
            if missing:
                text = f"{len(missing)} of {count_text(len(videos), 'video')} are not there"
                self.note_list(path, f"{text}: {few(missing)}")
            empty = sum(not text for each in clips for text in each.captions)
            if empty:
                amount = "caption is empty" if empty == 1 else "captions are empty"
                self.note_list(path, f"{empty} {amount} and left out")
            silent = [each.clip_id for each in clips if not each.texts]
            if silent:
                text = f"{len(silent)} of {count_text(len(clips), 'clip')} have no caption"
                self.note_list(path, f"{text} and are left out: {few(silent)}")
        if described and not any(each.source for each in described):
            videos = dict.fromkeys(each.video for each in described)
            lists = ", ".join(path.name for path in _by_list(described))
            raise BadInput(
                f"none of the {count_text(len(videos), 'video')} of {lists} is in {self.root}: "
                f"{few(videos)}",
                "put the videos, named as the lists name them, into any folder below it",
            )
        return [(each.source, each) for each in described if each.source and each.texts]

    def _is_inside(self, each: Described, facts: Probe) -> bool:
        """Whether a clip's stretch holds any of the video; if not, it is rejected under its id."""
        reason = outside(each.start_s, facts)
        if reason is not None:
            self.reject(each.clip_id, reason)
        return reason is None

    def _clip(self, source: str, each: Described, facts: Probe) -> Clip:
        goes_on = each.stop_s is None or facts.duration_s is None or each.stop_s < facts.duration_s
        return Clip(
            each.clip_id,
            self.video_id(source),
            source,
            each.split or "train",
            each.start_s,
            each.stop_s if goes_on else None,
            each.label,
            image_fps=self.image_fps if (self.root / source).is_dir() else None,
            group=each.group,
        )


def _by_list(described: Iterable[Described]) -> dict[Path, list[Described]]:
    clips: dict[Path, list[Described]] = defaultdict(list)
    for each in described:
        clips[each.listed_in].append(each)
    return clips


def _require_one_split(described: Iterable[Described]) -> None:
    """Raises BadInput where a video is in two splits."""
    first: dict[str, Described] = {}
    for each in described:
        other = first.setdefault(each.source or each.video, each)
        if other.split != each.split:
            raise BadInput(
                f"{each.listed_in}: video {each.video} is in {each.split or 'no split'}, and in "
                f"{other.split or 'no split'} in {other.listed_in}"
            )
