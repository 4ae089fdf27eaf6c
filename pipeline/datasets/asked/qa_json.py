"""The files of MSRVTT-QA and MSVD-QA: a list of questions for each split.

[{"question", "answer", "video_id": 1201, "id": 158581, ...}, ...]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.datasets.asked.questions import Question, open_question
from pipeline.datasets.formats.annotations import field, load_json

FILE_NAME = "{split}_qa.json"


def read_qa(path: Path, prefix: str) -> Iterator[Question]:
    """The questions of a file; its videos are called `prefix` and their number. Raises BadInput
    with the entry's number."""
    for number, record in enumerate(load_json(path, list), start=1):
        where = f"{path} entry {number}"
        video = f"{prefix}{field(record, 'video_id', int, where)}"
        yield open_question(
            f"{video}/question{field(record, 'id', int, where)}",
            video,
            field(record, "question", str, where),
            field(record, "answer", str, where),
        )
