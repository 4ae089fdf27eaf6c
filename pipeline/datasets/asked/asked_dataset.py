"""Base of the data sets of questions: finds the videos, and makes a clip of each question."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pipeline.datasets.asked.questions import Asked, Question, check_asked
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.annotations import few, find_file, probe_all, videos_by_name
from pipeline.datasets.formats.folders import list_files
from pipeline.datasets.formats.splits import SPLITS, split_dataset
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput, count_text
from pipeline.records import Clip
from pipeline.video.probe import VIDEO_SUFFIXES

Names = Callable[[str], Iterable[str]]
"""A video's name in the data set -> the names that its file may have, without suffix, the most
likely first."""


class AskedDataset(DatasetPlugin):
    """Questions about whole videos, several about each. The settings are `SplitSettings`.

    A video is found by its name in any folder below the root, and `video_id` is the name of its
    file: data sets that speak of the same files share a cache.
    """

    title: ClassVar[str]
    """The data set's own name, for errors."""
    file_name: ClassVar[str]
    """Name of the files of questions, {split} standing for `train`, `val` or `test`."""

    @abstractmethod
    def read(self, path: Path, split: str, files: Sequence[str]) -> Iterator[Question]:
        """The questions of one file. Raises BadInput that names the entry; `files` are all below
        the root."""

    def names(self, files: Sequence[str]) -> Names:
        """What the files of the videos may be called; by default as the data set calls them."""
        return lambda video: (video,)

    def clips(self) -> Iterator[Clip]:
        """Train, val, test, each in the order of its file. Raises BadInput where files of questions
        are damaged or disagree, and where no video is there."""
        files = list_files(self)
        asked = self._asked(files)
        source_of = self._sources(asked, files)
        readable = probe_all(self, list(dict.fromkeys(source_of.values())))
        id_of = {source: PurePosixPath(source).stem for source in readable}
        self._texts: dict[str, ClipTexts] = {}
        clips = []
        for split, (_, questions) in asked.items():
            for clip_id, video, texts in questions:
                source = source_of.get(video, "")
                if source in id_of:
                    self._texts[clip_id] = texts
                    clips.append(Clip(clip_id, id_of[source], source, split))
        yield from self.labelled(split_dataset(self, clips))

    def labelled(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """The clips with the labels that their answers are; by default without any."""
        return clips

    def texts(self, clip: Clip) -> ClipTexts:
        """The question and its answer."""
        return self._texts[clip.clip_id]

    def _asked(self, files: Sequence[str]) -> dict[str, Asked]:
        """split -> its questions that have text. Raises BadInput if there are none."""
        names = {split: self.file_name.format(split=split) for split in SPLITS}
        paths = {split: find_file(self.root, files, [name]) for split, name in names.items()}
        asked = {
            split: Asked(path, list(self.read(path, split, files)))
            for split, path in paths.items()
            if path is not None
        }
        if not asked:
            raise BadInput(
                f"{self.root} holds no {', '.join(names.values())} of {self.title}",
                "put the files of questions, named as they were released, into a folder with the "
                "videos",
            )
        check_asked(asked.items())
        for split, part in asked.items():
            empty = [each.clip_id for each in part.questions if not all(each.said)]
            if empty:
                of = f"{len(empty)} of {count_text(len(part.questions), 'question')} of {split}"
                self.note("questions", f"{of} have an empty text and are left out: {few(empty)}")
                part.questions[:] = [each for each in part.questions if all(each.said)]
        return asked

    def _sources(self, asked: Mapping[str, Asked], files: Sequence[str]) -> dict[str, str]:
        """Video -> its source, for those that are there. Raises BadInput where none is."""
        by_name = videos_by_name(self.root, files, VIDEO_SUFFIXES)
        names = self.names(files)
        source_of: dict[str, str] = {}
        every: dict[str, None] = {}
        for split, part in asked.items():
            videos = dict.fromkeys(question.video for question in part.questions)
            every |= videos
            for video in videos:
                found = next((name for name in names(video) if name in by_name), None)
                if found is not None:
                    source_of[video] = by_name[found]
            missing = [video for video in videos if video not in source_of]
            if missing:
                lost = sum(question.video not in source_of for question in part.questions)
                self.note(
                    "videos",
                    f"{len(missing)} of {count_text(len(videos), 'video')} of {split} are not "
                    f"there, with {lost} of {count_text(len(part.questions), 'question')}: "
                    f"{few(missing)}",
                )
        if every and not source_of:
            looked_for = [" or ".join(names(video)) for video in every]
            raise BadInput(
                f"{self.root} holds none of the {count_text(len(every), 'video')} of "
                f"{self.title}; looked for files called {few(looked_for)}",
                "put the videos, named as they were released, into any folder below",
            )
        return source_of
