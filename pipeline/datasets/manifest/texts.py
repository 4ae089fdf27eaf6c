"""texts.jsonl of a manifest: what is said and asked about its clips, one line for each of them.

Texts are kept as they are written, but for white space at their ends. A clip has captions, or a
question with its answer, or neither: several questions about a video are several clips of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from pipeline.config import plugins
from pipeline.config.json_files import json_value
from pipeline.datasets.manifest.jsonl import REBUILD
from pipeline.errors import BadInput, unknown_name

PADDING, UNKNOWN, MASK, FIRST_WORD = range(4)
"""Numbers of what is no word of a table, and of its first word."""
WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}]\w+)*")


class ClipTexts(NamedTuple):
    """What is said or asked about one clip. None of the texts is empty."""

    captions: tuple[str, ...] = ()
    """Sentences, each of which says what the clip shows."""
    question: str | None = None
    answer: str | None = None
    """The right answer; None where it is not known, as in a test split that is kept secret. An
    answer that the training split does not have is no label of the clip, and is kept here."""
    choices: tuple[str, ...] = ()
    """Answers of which one is right; empty where a question is open."""
    kind: str | None = None
    """The kind of the question, as its data set names it, for scores of each kind."""


class WordTable:
    """The words of texts as numbers from FIRST_WORD on: the more often a word is said, the smaller
    its number, and of words that are said equally often, in the order of the alphabet."""

    def __init__(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in words_of(text))
        self.words = tuple(sorted(counts, key=lambda word: (-counts[word], word)))
        self._number = {word: number for number, word in enumerate(self.words, FIRST_WORD)}

    def numbers(self, text: str) -> np.ndarray:
        """(L,) int64: the words of a text in order, UNKNOWN where the table lacks one."""
        return np.array([self._number.get(word, UNKNOWN) for word in words_of(text)], np.int64)


def words_of(text: str) -> list[str]:
    """The words of a text in order, in lower case: letters and digits, and apostrophes between
    them."""
    return WORD.findall(text.lower())


class TextsLine(plugins.Settings):
    """The keys of a line, in their order; those that say nothing are left out."""

    model_config = ConfigDict(strict=True)

    clip_id: str
    captions: list[str] = Field(default_factory=list)
    question: str | None = None
    answer: str | None = None
    choices: list[str] = Field(default_factory=list)
    kind: str | None = None


def texts_line(clip_id: str, texts: ClipTexts) -> str:
    """One line of texts.jsonl, in ASCII; "" where there is nothing to say. Raises BadInput where
    texts do not go together."""
    if texts == ClipTexts():
        return ""
    _check(clip_id, texts)
    said = {key: value for key, value in texts._asdict().items() if value}
    return json.dumps({"clip_id": clip_id, **said}, separators=(", ", ": ")) + "\n"


def texts_of_lines(lines: Iterable[str], where: str) -> Mapping[str, ClipTexts]:
    """clip_id -> its texts, of all lines of texts.jsonl. Raises BadInput that names the line,
    counted from 1."""
    texts: dict[str, ClipTexts] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = vars(TextsLine.model_validate(json_value(line)))
        except ValidationError as error:
            raise _explain(error, f"{where} line {number}") from error
        except ValueError as error:
            raise BadInput(f"{where} line {number} is not JSON: {error}", REBUILD) from error
        clip_id = values.pop("clip_id")
        lists = {key: tuple(values[key]) for key in ("captions", "choices")}
        texts[clip_id] = ClipTexts(**values | lists)
    return texts


def _check(clip_id: str, texts: ClipTexts) -> None:
    """Raises BadInput where a data set gives what no task could read."""

    def wrong(problem: str) -> BadInput:
        return BadInput(f"clip {clip_id} {problem}", "mend the data set's own files")

    if any(not text.strip() for text in _all(texts)):
        raise wrong("has an empty text")
    if texts.captions and texts.question is not None:
        raise wrong("has both captions and a question")
    if texts.question is None and (texts.answer is not None or texts.choices):
        raise wrong("has an answer to no question")
    if texts.choices and texts.answer is not None and texts.answer not in texts.choices:
        raise wrong(f"has the answer '{texts.answer}', which is none of its choices")
    if len(set(texts.choices)) < len(texts.choices):
        raise wrong("has a choice twice")


def _all(texts: ClipTexts) -> Iterator[str]:
    yield from texts.captions
    yield from texts.choices
    yield from (text for text in (texts.question, texts.answer) if text is not None)


def _explain(error: ValidationError, where: str) -> BadInput:
    problem: Any = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return unknown_name("key", key, TextsLine.model_fields, where)
    return BadInput(f"{where}: {key or 'the line'}: {problem['msg']}", REBUILD)
