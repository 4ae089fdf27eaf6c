"""MSVD-QA: 50,505 questions about the 1,970 short videos of MSVD, made from their captions.

Written against the files of Xu et al. 2017 (github.com/xudejing/video-question-answering), with the
videos of MSVD (YouTubeClips) in any folder below the root:

    root/**/{train,val,test}_qa.json    [{"question", "answer", "video_id", "id"}]
    root/**/youtube_mapping.txt         <name> vid<video_id>, one video a line
    root/**/<name>.avi                  or vid<video_id>.avi, for which no mapping is needed

30,933 questions are for training, 6,415 for validation and 13,157 for the test. Training has 1,852
different answers, so that all are labels. The kind of a question is its first word: what, who, how,
when, where, or other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.datasets.asked import qa_json
from pipeline.datasets.asked.asked_dataset import Names
from pipeline.datasets.asked.open_dataset import OpenDataset, OpenSettings
from pipeline.datasets.asked.questions import Question
from pipeline.datasets.formats.annotations import find_file
from pipeline.datasets.formats.splits import read_lines
from pipeline.errors import BadInput

MAPPING = "youtube_mapping.txt"


class Settings(OpenSettings):
    """These settings say how many answers there are, and which videos are held out, where not the
    official ones."""


class Dataset(OpenDataset):
    """One clip per question, called `vid<video_id>/question<id>`."""

    Settings = Settings
    title = "MSVD-QA"
    file_name = qa_json.FILE_NAME

    def read(self, path: Path, split: str, files: Sequence[str]) -> Iterator[Question]:
        """The questions of one split."""
        return qa_json.read_qa(path, "vid")

    def names(self, files: Sequence[str]) -> Names:
        """The name in the files of questions, or that of MSVD."""
        path = find_file(self.root, files, [MAPPING])
        name_of = {} if path is None else read_mapping(path)
        return lambda video: (video, name_of[video]) if video in name_of else (video,)


def read_mapping(path: Path) -> dict[str, str]:
    """vid<number> -> the name of the video in MSVD. Raises BadInput with the line."""
    name_of = {}
    for line in read_lines(path):
        words = line.split()
        if len(words) != 2:
            raise BadInput(f"{path}: wanted '<name in MSVD> vid<number>', found '{line[:60]}'")
        name, video = words
        name_of[video] = name
    return name_of
