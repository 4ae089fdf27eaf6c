"""MSRVTT-QA: 243,680 questions about the 10,000 videos of MSR-VTT, made from their captions.

Written against the files of Xu et al. 2017 (github.com/xudejing/video-question-answering), with the
videos of MSR-VTT in any folder below the root:

    root/**/{train,val,test}_qa.json    [{"question", "answer", "category_id", "video_id", "id"}]
    root/**/video<video_id>.mp4

158,581 questions are for training, 12,278 for validation and 72,821 for the test. The kind of a
question is its first word: what, who, how, when, where, or other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.datasets.asked import qa_json
from pipeline.datasets.asked.open_dataset import OpenDataset, OpenSettings
from pipeline.datasets.asked.questions import Question


class Settings(OpenSettings):
    """These settings say how many answers there are, and which videos are held out, where not the
    official ones."""


class Dataset(OpenDataset):
    """One clip per question, called `video<video_id>/question<id>`."""

    Settings = Settings
    title = "MSRVTT-QA"
    file_name = qa_json.FILE_NAME

    def read(self, path: Path, split: str, files: Sequence[str]) -> Iterator[Question]:
        """The questions of one split."""
        return qa_json.read_qa(path, "video")
