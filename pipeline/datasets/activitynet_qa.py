"""ActivityNet-QA: 58,000 questions that people asked about 5,800 videos of ActivityNet.

Written against github.com/MILVLG/activitynet-qa (Yu et al. 2019), with the videos of ActivityNet in
any folder below the root:

    root/**/{train,val,test}_q.json    [{"video_name", "question", "question_id"}]
    root/**/{train,val,test}_a.json    [{"answer", "type", "question_id"}]
    root/**/v_<video_name>.mp4         or <video_name>.mp4, with any suffix of a video

32,000 questions are for training, 18,000 for validation and 8,000 for the test. The kind of a
question is its type, 0 to 8: motion, spatial or temporal (relationship), and of free questions that
of the answer: yes_no, color, object, location, number, other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from pipeline.datasets.asked.asked_dataset import Names
from pipeline.datasets.asked.open_dataset import OpenDataset, OpenSettings
from pipeline.datasets.asked.questions import Question, open_question
from pipeline.datasets.formats.annotations import few, field, find_file, load_json
from pipeline.errors import BadInput, count_text

KINDS = (
    *("motion", "spatial", "temporal"),
    *("yes_no", "color", "object", "location", "number", "other"),
)
"""Names of the types, by their numbers."""


class Settings(OpenSettings):
    """These settings say how many answers there are, and which videos are held out, where not the
    official ones."""

    answers: int = Field(default=1654, ge=2)
    """Answers that are labels: the most frequent of the training split, or all where it has fewer.
    1,654 are given twice or more (Yang et al. 2021). Questions of `train` with other answers are
    left out; those of `val` and `test` stay without a label and count as wrong."""


class Dataset(OpenDataset):
    """One clip per question, called by its official id."""

    Settings = Settings
    title = "ActivityNet-QA"
    file_name = "{split}_q.json"

    def read(self, path: Path, split: str, files: Sequence[str]) -> Iterator[Question]:
        """The questions of one split that have an answer; the others are told under their file."""
        answers_path = find_file(self.root, files, [f"{split}_a.json"])
        records = load_json(path, list)
        answers = {} if answers_path is None else read_answers(answers_path)
        unanswered = []
        for number, record in enumerate(records, start=1):
            where = f"{path} entry {number}"
            question_id = field(record, "question_id", str, where)
            video = field(record, "video_name", str, where)
            question = field(record, "question", str, where)
            if question_id in answers:
                answer, kind = answers[question_id]
                yield open_question(question_id, video, question, answer, kind)
            else:
                unanswered.append(question_id)
        if unanswered:
            of = f"{len(unanswered)} of {count_text(len(records), 'question')} of {split}"
            remark = f"{of} have no answer in {split}_a.json and are left out"
            self.note("answers", f"{remark}: {few(unanswered)}")

    def names(self, files: Sequence[str]) -> Names:
        """As ActivityNet calls its files, or by the id on YouTube alone."""
        return lambda video: (f"v_{video}", video)


def read_answers(path: Path) -> dict[str, tuple[str, str]]:
    """Question's id -> its answer and its kind. Raises BadInput with the entry's number."""
    answers = {}
    for number, record in enumerate(load_json(path, list), start=1):
        where = f"{path} entry {number}"
        kind = field(record, "type", int, where)
        if not 0 <= kind < len(KINDS):
            raise BadInput(f"{where}: type must be 0 to {len(KINDS) - 1}, found {kind}")
        question_id = field(record, "question_id", str, where)
        answers[question_id] = (field(record, "answer", str, where), KINDS[kind])
    return answers
