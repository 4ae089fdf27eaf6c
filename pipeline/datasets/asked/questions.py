"""Questions about videos, as the files of a data set ask them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput

FIRST_WORDS = ("what", "who", "how", "when", "where")
"""First words of questions that have scores of their own in papers; all others are `OTHER`."""
OTHER = "other"


class Question(NamedTuple):
    """One question about one video."""

    clip_id: str
    video: str
    """The video's name in the data set."""
    texts: ClipTexts

    @property
    def said(self) -> tuple[str, ...]:
        """The question, its answer and its choices."""
        return (self.texts.question or "", self.texts.answer or "", *self.texts.choices)


class Asked(NamedTuple):
    """The questions of one split."""

    path: Path
    """The file that asks them."""
    questions: list[Question]


def open_question(
    clip_id: str, video: str, question: str, answer: str, kind: str | None = None
) -> Question:
    """A question without choices. The answer is in small letters, as all protocols compare it; the
    kind is by default the question's first word."""
    question = question.strip()
    texts = ClipTexts(
        question=question,
        answer=answer.strip().lower(),
        kind=first_word(question) if kind is None else kind,
    )
    return Question(clip_id, video, texts)


def first_word(question: str) -> str:
    """A question's first word in small letters if it is one of `FIRST_WORDS`, else `OTHER`."""
    word = question.split(maxsplit=1)[0].lower().rstrip("?,") if question else ""
    return word if word in FIRST_WORDS else OTHER


def check_asked(asked: Iterable[tuple[str, Asked]]) -> None:
    """Raises BadInput where a question is there twice or is not UTF-8, or a video is asked about in
    two splits."""
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for split, (path, questions) in asked:
        for question in questions:
            if question.clip_id in seen:
                raise BadInput(f"{path}: question {question.clip_id} is there twice")
            seen.add(question.clip_id)
            if strange := next((text for text in question.said if not _is_utf8(text)), ""):
                raise BadInput(
                    f"{path}: question {question.clip_id} is not UTF-8, found {strange[:40]!a}",
                    "save the file as UTF-8",
                )
            if split_of.setdefault(question.video, split) != split:
                raise BadInput(
                    f"{path}: question {question.clip_id} is about video {question.video}, which "
                    f"is in split '{split_of[question.video]}' too",
                    "use the files of one release",
                )


def _is_utf8(text: str) -> bool:
    """Not so for lone surrogates, which stand for bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
