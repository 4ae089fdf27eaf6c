"""DiDeMo: 10 464 videos of Flickr, whose moments people described; retrieval takes all descriptions
of a video as one paragraph.

Written against the annotations of LocalizingMoments and the lists of Collaborative Experts, which
CLIP4Clip uses:

    root/**/<video>, <video>.mp4, <name>.mp4   the videos; any folder, any suffix. The video of
                                               "1@N00_2_3.avi" may be called "1@N00_2_3.avi.mp4",
                                               as its download script does, or "1@N00_2_3.mp4"
    root/**/{train,val,test}_data.json         [{"video", "description", "times", ...}, ...]
    root/**/{train,val,test}_list.txt          8392, 1065 and 1004 names of videos, one a line; they
                                               leave out three that the annotations of train have

Without its list, a split is all videos of its annotations. People saw the first 30 seconds of a
video and no more: a clip ends there.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described, caption
from pipeline.datasets.captioned.list_files import read_ids
from pipeline.datasets.formats.annotations import field, find_file, load_json
from pipeline.datasets.formats.splits import SPLITS, SplitSettings

SEEN_S = 30.0


class Settings(SplitSettings):
    """These settings say which videos are held out, where not the official ones."""


class Dataset(CaptionedDataset):
    """One clip per video, named as in the annotations without the suffix, with one caption."""

    Settings = Settings

    def described(self) -> list[Described]:
        """Train, val, test, each in the order of its list. Raises BadInput where annotations are
        missing or damaged."""
        paths = self.find_lists({split: f"{split}_data.json" for split in SPLITS}, "DiDeMo")
        sources = self.find_videos(_name_of)
        return [each for split, path in paths.items() for each in self._read(split, path, sources)]

    def _read(self, split: str, path: Path, sources: dict[str, str]) -> list[Described]:
        sentences = _read_descriptions(path)
        ids = find_file(self.root, self.files, [f"{split}_list.txt"])
        videos = sentences if ids is None else dict.fromkeys(map(_name_of, read_ids(ids)))
        self.note_unlisted(path, sentences, videos)
        return [
            Described(
                path,
                video,
                video,
                sources.get(video),
                sentences.get(video, ()),
                split,
                stop_s=SEEN_S,
                is_paragraph=True,
            )
            for video in videos
        ]

    def video_id(self, source: str) -> str:
        """As in the annotations, without the suffix."""
        return _name_of(super().video_id(source))


def _name_of(video: str) -> str:
    """The name of a video up to its first dot: suffixes change as videos are converted."""
    return video.partition(".")[0]


def _read_descriptions(path: Path) -> dict[str, list[str]]:
    """Name -> descriptions, in the order of the file. Raises BadInput with the entry's number."""
    sentences: dict[str, list[str]] = defaultdict(list)
    for number, record in enumerate(load_json(path, list), start=1):
        place = f"{path} entry {number}"
        text = caption(field(record, "description", str, place), place)
        sentences[_name_of(field(record, "video", str, place))].append(text)
    return sentences
