"""Captions and questions of a manifest: what is kept, what is refused, and that edits keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.commands import fine

from pipeline.datasets import world
from pipeline.datasets.manifest import edit, manifest
from pipeline.datasets.manifest.manifest import Manifest, write
from pipeline.datasets.manifest.texts import (
    FIRST_WORD,
    UNKNOWN,
    ClipTexts,
    WordTable,
    texts_line,
    texts_of_lines,
)
from pipeline.errors import BadInput
from pipeline.records import Clip

SAID = {
    "left_0000": ClipTexts(captions=("it moves left", "à gauche")),
    "right_0001": ClipTexts(
        question="which way?", answer="right", choices=("left", "right"), kind="direction"
    ),
}


class Talking(world.Dataset):
    """The built-in world with a few words."""

    def texts(self, clip: Clip) -> ClipTexts:
        return SAID.get(clip.clip_id, ClipTexts())


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("talking")
    dataset = Talking(folder, world.Settings(clips_per_class=2, frames=2, size_px=32))
    return write("world", dataset, folder)


def test_texts_come_back_as_they_were_said(talking: Manifest) -> None:
    assert Manifest.load(talking.folder).texts == SAID
    assert (talking.folder / "texts.jsonl").read_text().splitlines() == [
        '{"clip_id": "left_0000", "captions": ["it moves left", "\\u00e0 gauche"]}',
        '{"clip_id": "right_0001", "question": "which way?", "answer": "right", '
        '"choices": ["left", "right"], "kind": "direction"}',
    ]


def test_texts_are_a_part_of_what_a_manifest_is(talking: Manifest, tmp_path: Path) -> None:
    silent = manifest.build(
        "world", talking.root, tmp_path, {"clips_per_class": 2, "frames": 2, "size_px": 32}
    )
    assert silent.texts == {}
    assert silent.digest != talking.digest
    assert silent.origin.manifest_sha256 == talking.origin.manifest_sha256
    assert not (tmp_path / "texts.jsonl").exists()


def test_an_edit_keeps_texts(talking: Manifest, tmp_path: Path) -> None:
    few = edit.select(talking, tmp_path, clips=["left_*"])
    assert Manifest.load(tmp_path).texts == few.texts == {"left_0000": SAID["left_0000"]}


def test_the_command_counts_them(talking: Manifest, tmp_path: Path) -> None:
    words = ("manifest", "select", talking.folder, "--out", tmp_path)
    counted = fine(*words, "--clip", "left_*", "--clip", "right_0001").out.splitlines()[0]
    assert counted.endswith(" 2 labels, 2 captions, 1 question")
    facts = fine(*words, "--clip", "right_*", "--json").json
    assert (facts["captions"], facts["questions"]) == (0, 1)


def test_an_edited_file_is_refused(talking: Manifest, tmp_path: Path) -> None:
    for name in Manifest.FILES:
        if (talking.folder / name).exists():
            (tmp_path / name).write_bytes((talking.folder / name).read_bytes())
    (tmp_path / "texts.jsonl").write_text('{"clip_id": "left_0000", "captions": ["other"]}\n')
    with pytest.raises(BadInput, match=r"texts\.jsonl was edited after it was built"):
        _ = Manifest.load(tmp_path).texts


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (ClipTexts(captions=("a", " ")), "has an empty text"),
        (ClipTexts(captions=("a",), question="b?"), "has both captions and a question"),
        (ClipTexts(answer="a"), "has an answer to no question"),
        (
            ClipTexts(question="b?", answer="c", choices=("a", "b")),
            "has the answer 'c', which is none of its choices",
        ),
        (ClipTexts(question="b?", choices=("a", "a")), "has a choice twice"),
    ],
)
def test_what_no_task_could_read_is_refused(texts: ClipTexts, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        texts_line("clip", texts)
    assert caught.value.message == f"clip clip {problem}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "texts line 2 is not JSON"),
        ('{"clip_id": "a", "caption": []}', "texts line 2: no key called 'caption'"),
        ('{"captions": []}', "texts line 2: clip_id: Field required"),
        ('{"clip_id": "a", "captions": [1]}', "texts line 2: captions.0: "),
        ("[]", "texts line 2: the line: "),
    ],
)
def test_a_damaged_line_is_named(line: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        texts_of_lines(['{"clip_id": "b"}', line], "texts")
    assert caught.value.message.startswith(problem)


def test_words_are_numbered_by_how_often_they_are_said_and_then_by_the_alphabet():
    table = WordTable(["A dog, a cat!", "the dog's dog", "été d’été a", "?!"])
    assert table.words == ("a", "dog", "cat", "dog's", "d’été", "the", "été")
    numbers = table.numbers("A Dog's 7 dog")
    assert numbers.tolist() == [FIRST_WORD, FIRST_WORD + 3, UNKNOWN, FIRST_WORD + 1]
    assert numbers.dtype == np.int64 and table.numbers("?!").tolist() == []
