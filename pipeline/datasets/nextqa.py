"""NExT-QA: 47,692 questions with five answers each, about why, how, when and what happens in 5,440
videos of VidOR.

Written against the multiple choice of github.com/doc-doc/NExT-QA (Xiao et al. 2021), with the
videos in any folder below the root:

    root/**/{train,val,test}.csv    columns video, question, answer, qid, type, a0, a1, a2, a3, a4,
                                    and others
    root/**/<video>.mp4             as in VidOR (1164/3238737531.mp4) or in one folder

`answer` is the place of the right one among a0 to a4. The videos have other ids than any other file
of VidOR, so that `map_vid_vidorID.json`, which says in which folder each lies, is not needed.
34,132 questions are for training, 4,996 for validation and 8,564 for the test. The kind of question
is its type: CW, CH (causal: why, how), TC, TN, TP (temporal: at the time, next, previous), DC, DL,
DO (descriptive: count, location, other).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.datasets.asked.asked_dataset import AskedDataset
from pipeline.datasets.asked.questions import Question
from pipeline.datasets.formats.annotations import few
from pipeline.datasets.formats.clip_list import csv_lines, found_columns
from pipeline.datasets.formats.splits import SplitSettings
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput, count_text

KINDS = ("CW", "CH", "TC", "TN", "TP", "DC", "DL", "DO")
CHOICES = ("a0", "a1", "a2", "a3", "a4")
COLUMNS = ("video", "question", "answer", "qid", "type", *CHOICES)


class Settings(SplitSettings):
    """These settings say which videos are held out, where not the official ones."""


class Dataset(AskedDataset):
    """One clip per question, called `<video>_<qid>`, as in the official files of results."""

    Settings = Settings
    title = "NExT-QA"
    file_name = "{split}.csv"

    def read(self, path: Path, split: str, files: Sequence[str]) -> Iterator[Question]:
        """The questions of one split. Of choices that are the same text, the second is numbered, so
        that the right one is still told from the others, and a note says how many there are."""
        numbered_in = []
        try:
            for line, cells, _ in csv_lines(path, COLUMNS, _check_columns):
                question, is_numbered = _question(cells, f"{path} line {line}")
                if is_numbered:
                    numbered_in.append(question.clip_id)
                yield question
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from error
        if numbered_in:
            remark = f"{count_text(len(numbered_in), 'question')} of {split} with a choice twice"
            self.note("choices", f"{remark}, the second is numbered: {few(numbered_in)}")


def _check_columns(
    where: str, columns: Sequence[str], known: Sequence[str], separator: str
) -> None:
    missing = [column for column in known if column not in columns]
    if missing:
        raise BadInput(
            f"{where}: no column {', '.join(missing)}; found: {found_columns(columns, separator)}",
            "wanted the files of the multiple choice of NExT-QA, not those of its open questions",
        )


def _question(cells: dict[str, str], where: str) -> tuple[Question, bool]:
    """A line's question, and whether any of its choices got a number. Raises BadInput."""
    kind, place = cells["type"], cells["answer"]
    if kind not in KINDS:
        raise BadInput(f"{where}: type must be one of {', '.join(KINDS)}, found '{kind[:40]}'")
    if place not in ("0", "1", "2", "3", "4"):
        raise BadInput(f"{where}: answer must be 0 to 4, found '{place[:40]}'")
    if not cells["video"] or not cells["qid"]:
        raise BadInput(f"{where}: video or qid is empty")
    written = [cells[name] for name in CHOICES]
    choices = told_apart(written)
    texts = ClipTexts(
        question=cells["question"], answer=choices[int(place)], choices=choices, kind=kind
    )
    return Question(f"{cells['video']}_{cells['qid']}", cells["video"], texts), (
        list(choices) != written
    )


def told_apart(choices: Sequence[str]) -> tuple[str, ...]:
    """The choices, of which a text that was there before gets a number behind it: `no`, `no (2)`.
    An empty one stays as it is."""
    different: list[str] = []
    for choice in choices:
        text, number = choice, 2
        while choice and text in different:
            text, number = f"{choice} ({number})", number + 1
        different.append(text)
    return tuple(different)
