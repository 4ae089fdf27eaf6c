"""Data sets of questions about videos: small copies in the official layouts, and lists as long as the official ones."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support import media

from pipeline.datasets import activitynet_qa, msrvtt_qa, msvd_qa, nextqa
from pipeline.datasets.asked.open_dataset import most_frequent
from pipeline.datasets.asked.questions import first_word
from pipeline.datasets.manifest import edit, manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.texts import ClipTexts
from pipeline.errors import BadInput
from pipeline.records import Clip

ACTIVITYNET_COUNTS = {"train": 32_000, "val": 18_000, "test": 8_000}
NEXTQA_COUNTS = {"train": 34_132, "val": 4_996, "test": 8_564}
NEXTQA_COLUMNS = (
    *("video", "frame_count", "width", "height", "question", "answer", "qid", "type"),
    *("a0", "a1", "a2", "a3", "a4"),
)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tiny mp4, which is all videos of these data sets."""
    path = tmp_path_factory.mktemp("video") / "one.mp4"
    return media.encode(path, [media.grey(9)] * 4, rate=10).read_bytes()


def place(root: Path, content: bytes, *sources: str) -> None:
    for source in sources:
        (root / source).parent.mkdir(parents=True, exist_ok=True)
        (root / source).write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def build(name: str, root: Path, out: Path, **settings: Any) -> Manifest:
    """The manifest as it is read back from disk, which is the one that was built."""
    built = manifest.build(name, root, out, settings)
    loaded = Manifest.load(out)
    assert loaded == built
    return loaded


def refused(name: str, root: Path, out: Path, **settings: Any) -> str:
    with pytest.raises(BadInput) as caught:
        manifest.build(name, root, out, settings)
    assert "\n" not in caught.value.message
    return caught.value.message.replace(f"{root}", "ROOT")


def asked(built: Manifest) -> list[tuple[str, str | None, str | None, str | None]]:
    """Split, label, answer and kind of every clip."""
    texts = built.texts
    return [
        (clip.split, clip.label, texts[clip.clip_id].answer, texts[clip.clip_id].kind)
        for clip in built.clips
    ]


# MSRVTT-QA


def qa(number: int, video: int, question: str, answer: str) -> dict[str, Any]:
    return {
        "answer": answer,
        "category_id": 14,
        "id": number,
        "question": question,
        "video_id": video,
    }


@pytest.fixture
def msrvtt(tmp_path: Path, video: bytes) -> Path:
    root = tmp_path / "MSRVTT-QA"
    place(root, video, *(f"TrainValVideo/video{number}.mp4" for number in (0, 1, 6513)))
    place(root, video, "TestVideo/video7010.mp4")
    train = [
        qa(0, 0, "what is on the couch?", "dog"),
        qa(1, 0, "who sits there?", " Man "),
        qa(2, 1, "Where is it?", "park"),
        qa(3, 1, "what runs?", "dog"),
        qa(4, 1, "is it red?", "man"),
    ]
    write_json(root / "train_qa.json", train)
    write_json(root / "val_qa.json", [qa(158581, 6513, "how many dogs are there?", "two")])
    test = [
        qa(170859, 7010, " when does it start?", "park"),
        qa(170860, 7010, "what flies?", "kite"),
    ]
    write_json(root / "test_qa.json", test)
    return root


def test_msrvtt_qa_is_a_clip_for_each_question(msrvtt: Path, tmp_path: Path) -> None:
    built = build("msrvtt_qa", msrvtt, tmp_path / "out")
    assert built.clips[0] == Clip(
        "video0/question0", "video0", "TrainValVideo/video0.mp4", "train", label="dog"
    )
    assert asked(built) == [
        ("train", "dog", "dog", "what"),
        ("train", "man", "man", "who"),
        ("train", "park", "park", "where"),
        ("train", "dog", "dog", "what"),
        ("train", "man", "man", "other"),
        ("val", None, "two", "how"),
        ("test", "park", "park", "when"),
        ("test", None, "kite", "what"),
    ]
    assert built.texts["video7010/question170859"].question == "when does it start?"
    assert built.labels == ("dog", "man", "park")
    assert [seen.video_id for seen in built.videos] == [
        "video0",
        "video1",
        "video6513",
        "video7010",
    ]
    assert built.origin.notes == {
        "answers": (
            "1 of 1 question of val have an answer beyond the 3 most frequent of train and count "
            "as wrong: two; 1 of 2 questions of test have an answer beyond the 3 most frequent of "
            "train and count as wrong: kite"
        )
    }


def test_the_labels_are_the_most_frequent_answers(msrvtt: Path, tmp_path: Path) -> None:
    built = build("msrvtt_qa", msrvtt, tmp_path / "out", answers=2)
    assert built.labels == ("dog", "man")
    assert [clip.label for clip in built.clips] == ["dog", "man", "dog", "man", None, None, None]
    assert built.texts["video7010/question170859"].answer == "park"
    assert built.origin.notes["answers"].startswith(
        "1 of 5 questions of train have an answer beyond the 2 most frequent of train and are left "
        "out: park; 1 of 1 question of val"
    )


def test_answers_that_are_as_frequent_come_by_alphabet() -> None:
    counts = {"walk": 2, "ride": 1, "run": 1, "jump": 1, "sit": 3}
    assert most_frequent(counts, 4) == {"sit", "walk", "jump", "ride"}
    assert most_frequent(counts, 9) == set(counts)


def test_training_that_is_held_out_gives_no_labels(msrvtt: Path, tmp_path: Path) -> None:
    built = build("msrvtt_qa", msrvtt, tmp_path / "out", val_sequences=["video1"])
    assert built.labels == ("dog", "man", "two")
    assert {clip.video_id: clip.split for clip in built.clips} == {
        "video0": "train",
        "video1": "val",
        "video6513": "train",
        "video7010": "test",
    }


def test_questions_without_val_can_draw_it(msrvtt: Path, tmp_path: Path) -> None:
    (msrvtt / "val_qa.json").unlink()
    built = build("msrvtt_qa", msrvtt, tmp_path / "out", val_fraction=0.5)
    splits = Counter(split for _, split in {(clip.video_id, clip.split) for clip in built.clips})
    assert splits == {"train": 1, "val": 1, "test": 1}


def test_what_is_not_there_is_counted(msrvtt: Path, tmp_path: Path) -> None:
    (msrvtt / "TestVideo" / "video7010.mp4").unlink()
    (msrvtt / "TrainValVideo" / "video1.mp4").write_bytes(b"")
    more = [qa(5, 0, "  ", "dog"), qa(6, 0, "what is empty?", ""), qa(7, 2, "who?", "dog")]
    path = msrvtt / "train_qa.json"
    write_json(path, json.loads(path.read_text()) + more)
    built = build("msrvtt_qa", msrvtt, tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == [
        "video0/question0",
        "video0/question1",
        "video6513/question158581",
    ]
    assert built.rejected == {"TrainValVideo/video1.mp4": "is empty (0 bytes)"}
    assert built.origin.notes["questions"] == (
        "2 of 8 questions of train have an empty text and are left out: video0/question5, "
        "video0/question6"
    )
    assert built.origin.notes["videos"] == (
        "1 of 3 videos of train are not there, with 1 of 6 questions: video2; 1 of 1 video of test "
        "are not there, with 2 of 2 questions: video7010"
    )


def test_questions_without_any_video_are_refused(msrvtt: Path, tmp_path: Path) -> None:
    for path in msrvtt.rglob("*.mp4"):
        path.rename(path.with_name(f"MSRVTT_{path.name}"))
    assert refused("msrvtt_qa", msrvtt, tmp_path / "out") == (
        "ROOT holds none of the 4 videos of MSRVTT-QA; looked for files called video0, video1, "
        "video6513 and 1 more"
    )


def test_labels_need_videos_of_train(msrvtt: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        (msrvtt / "TrainValVideo" / f"video{number}.mp4").unlink()
    assert refused("msrvtt_qa", msrvtt, tmp_path / "out") == (
        "ROOT holds no video of split 'train' of MSRVTT-QA: the answers to its questions are the "
        "labels of all others"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([{"question": "a"}], "ROOT/val_qa.json entry 1: key 'video_id' is missing; there are: "),
        (
            [qa(1, 6513, "a", "b"), qa(2, 6513, "a", 3)],  # type: ignore[arg-type]
            "ROOT/val_qa.json entry 2: answer must be a text, found 3",
        ),
        (
            [qa(1, "video6513", "a", "b")],  # type: ignore[arg-type]
            "ROOT/val_qa.json entry 1: video_id must be a whole number, found video6513",
        ),
        ({"a": 1}, "ROOT/val_qa.json: wanted a list at the top, found dict"),
        (
            [qa(1, 6513, "caf\udce9", "b")],
            "ROOT/val_qa.json: question video6513/question1 is not UTF-8, found 'caf\\udce9'",
        ),
        (
            [qa(1, 6513, "a", "b")] * 2,
            "ROOT/val_qa.json: question video6513/question1 is there twi",
        ),
        (
            [qa(9, 1, "a", "b")],
            "ROOT/val_qa.json: question video1/question9 is about video video1, which is in split "
            "'train' too",
        ),
    ],
)
def test_a_damaged_file_is_named(msrvtt: Path, tmp_path: Path, content: Any, problem: str) -> None:
    write_json(msrvtt / "val_qa.json", content)
    assert refused("msrvtt_qa", msrvtt, tmp_path / "out").startswith(problem)


def test_a_folder_without_questions_is_refused(msrvtt: Path, tmp_path: Path) -> None:
    for path in msrvtt.glob("*.json"):
        path.unlink()
    assert refused("msrvtt_qa", msrvtt, tmp_path / "out") == (
        "ROOT holds no train_qa.json, val_qa.json, test_qa.json of MSRVTT-QA"
    )


def test_questions_are_not_split_anew_after_their_labels(msrvtt: Path, tmp_path: Path) -> None:
    built = build("msrvtt_qa", msrvtt, tmp_path / "out")
    few = edit.select(built, tmp_path / "few", splits=["train", "test"])
    assert [few.texts[clip.clip_id] for clip in few.clips] == [
        built.texts[clip.clip_id] for clip in built.clips if clip.split != "val"
    ]
    settings = msrvtt_qa.Settings(val_sequences=["video1"])
    with pytest.raises(BadInput, match="clip 1 has a label and clip 6 has none") as caught:
        edit.resplit(built, tmp_path / "split", settings)
    assert caught.value.hint.startswith("questions are split when their manifest is built")


def test_a_clip_without_label_needs_an_answer(msrvtt: Path, tmp_path: Path) -> None:
    class Silent(msrvtt_qa.Dataset):
        """Says nothing of the clips without labels."""

        def texts(self, clip: Clip) -> ClipTexts:
            return ClipTexts() if clip.label is None else super().texts(clip)

    silent = Silent(msrvtt, msrvtt_qa.Settings())
    with pytest.raises(BadInput, match="clip 1 has a label and clip 6 has none"):
        manifest.write("msrvtt_qa", silent, tmp_path / "out")


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is it", "what"),
        ("who?", "who"),
        ("how many", "how"),
        ("why is it so?", "other"),
        ("in what room?", "other"),
        ("", "other"),
    ],
)
def test_the_first_word_is_the_kind(question: str, word: str) -> None:
    assert first_word(question) == word


# MSVD-QA


@pytest.fixture
def msvd(tmp_path: Path, video: bytes) -> Path:
    root = tmp_path / "MSVD-QA"
    place(root, video, "YouTubeClips/-4wsuPCjDBc_5_15.avi", "YouTubeClips/klteYv1Uv9A_27_33.avi")
    place(root, video, "YouTubeClips/2YhDTpzxd3c_98_105.avi")
    (root / "youtube_mapping.txt").write_text(
        "-4wsuPCjDBc_5_15 vid1\r\nklteYv1Uv9A_27_33 vid1201\r\n2YhDTpzxd3c_98_105 vid1301\r\n"
    )
    for split, number, video_id in (("train", 0, 1), ("val", 30933, 1201), ("test", 37348, 1301)):
        entry = {"question": "what is chewing?", "answer": "animal"}
        write_json(root / f"{split}_qa.json", [{**entry, "id": number, "video_id": video_id}])
    return root


def test_msvd_qa_finds_videos_by_their_mapping(msvd: Path, tmp_path: Path) -> None:
    built = build("msvd_qa", msvd, tmp_path / "out")
    assert built.clips == (
        Clip(
            "vid1/question0",
            "-4wsuPCjDBc_5_15",
            "YouTubeClips/-4wsuPCjDBc_5_15.avi",
            "train",
            label="animal",
        ),
        Clip(
            "vid1201/question30933",
            "klteYv1Uv9A_27_33",
            "YouTubeClips/klteYv1Uv9A_27_33.avi",
            "val",
            label="animal",
        ),
        Clip(
            "vid1301/question37348",
            "2YhDTpzxd3c_98_105",
            "YouTubeClips/2YhDTpzxd3c_98_105.avi",
            "test",
            label="animal",
        ),
    )
    assert built.origin.notes == {}


def test_msvd_qa_finds_renamed_videos_without_a_mapping(
    msvd: Path, tmp_path: Path, video: bytes
) -> None:
    (msvd / "youtube_mapping.txt").unlink()
    place(msvd, video, "video/vid1.avi")
    built = build("msvd_qa", msvd, tmp_path / "out")
    assert [clip.source for clip in built.clips] == ["video/vid1.avi"]
    assert built.origin.notes["videos"] == (
        "1 of 1 video of val are not there, with 1 of 1 question: vid1201; 1 of 1 video of test "
        "are not there, with 1 of 1 question: vid1301"
    )


def test_msvd_qa_says_which_names_it_looked_for(msvd: Path, tmp_path: Path) -> None:
    for path in (msvd / "YouTubeClips").iterdir():
        path.unlink()
    assert refused("msvd_qa", msvd, tmp_path / "out") == (
        "ROOT holds none of the 3 videos of MSVD-QA; looked for files called vid1 or "
        "-4wsuPCjDBc_5_15, vid1201 or klteYv1Uv9A_27_33, vid1301 or 2YhDTpzxd3c_98_105"
    )


def test_a_damaged_mapping_is_named(msvd: Path, tmp_path: Path) -> None:
    (msvd / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15\n")
    assert refused("msvd_qa", msvd, tmp_path / "out") == (
        "ROOT/youtube_mapping.txt: wanted '<name in MSVD> vid<number>', found '-4wsuPCjDBc_5_15'"
    )


# ActivityNet-QA


def act_q(video: str, number: int, question: str) -> dict[str, Any]:
    return {"video_name": video, "question": question, "question_id": f"v_{video}_{number}"}


def act_a(video: str, number: int, answer: str, kind: int) -> dict[str, Any]:
    return {"answer": answer, "type": kind, "question_id": f"v_{video}_{number}"}


@pytest.fixture
def activitynet(tmp_path: Path, video: bytes) -> Path:
    root = tmp_path / "activitynet"
    place(root, video, "v1-2/train/v_okC18bPTils.mp4", "v1-3/train_val/v__ucD-3rUWWE.mkv")
    place(root, video, "v1-2/val/1QIUV7WYKXg.webm")
    qa_folder = root / "activitynet-qa" / "dataset"
    write_json(
        qa_folder / "train_q.json",
        [
            act_q("okC18bPTils", 3, "are all the people in the video men"),
            act_q("okC18bPTils", 8, "what colour is the hat "),
            act_q("_ucD-3rUWWE", 1, "what does the man do"),
        ],
    )
    # Answers are matched by their id, not by their place.
    write_json(
        qa_folder / "train_a.json",
        [
            act_a("_ucD-3rUWWE", 1, "Running", 0),
            act_a("okC18bPTils", 3, "no", 3),
            act_a("okC18bPTils", 8, "red", 4),
        ],
    )
    write_json(qa_folder / "val_q.json", [act_q("1QIUV7WYKXg", 5, "where is the cup")])
    write_json(qa_folder / "val_a.json", [act_a("1QIUV7WYKXg", 5, "table", 1)])
    write_json(qa_folder / "test_q.json", [act_q("XuEnTlV0cZ8", 2, "how many are there")])
    return root


def test_activitynet_qa_puts_answers_to_their_questions(activitynet: Path, tmp_path: Path) -> None:
    built = build("activitynet_qa", activitynet, tmp_path / "out")
    assert asked(built) == [
        ("train", "no", "no", "yes_no"),
        ("train", "red", "red", "color"),
        ("train", "running", "running", "motion"),
        ("val", None, "table", "spatial"),
    ]
    assert [(clip.clip_id, clip.video_id, clip.source) for clip in built.clips[1:]] == [
        ("v_okC18bPTils_8", "v_okC18bPTils", "v1-2/train/v_okC18bPTils.mp4"),
        ("v__ucD-3rUWWE_1", "v__ucD-3rUWWE", "v1-3/train_val/v__ucD-3rUWWE.mkv"),
        ("v_1QIUV7WYKXg_5", "1QIUV7WYKXg", "v1-2/val/1QIUV7WYKXg.webm"),
    ]
    assert built.origin.settings["answers"] == 1654
    assert built.origin.notes == {
        "answers": (
            "1 of 1 question of test have no answer in test_a.json and are left out: "
            "v_XuEnTlV0cZ8_2; 1 of 1 question of val have an answer beyond the 3 most frequent of "
            "train and count as wrong: table"
        )
    }


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (act_a("okC18bPTils", 3, "no", 9), "entry 1: type must be 0 to 8, found 9"),
        ({"answer": "no", "type": 3}, "entry 1: key 'question_id' is missing; there are: answer, "),
        (act_a("okC18bPTils", 3, None, 3), "entry 1: answer must be a text, found None"),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_answer_is_named(
    activitynet: Path, tmp_path: Path, answer: Mapping[str, Any], problem: str
) -> None:
    write_json(activitynet / "activitynet-qa" / "dataset" / "train_a.json", [answer])
    assert refused("activitynet_qa", activitynet, tmp_path / "out").startswith(
        f"ROOT/activitynet-qa/dataset/train_a.json {problem}"
    )


# NExT-QA


def row(
    video: str, qid: int, kind: str, answer: int | str, *choices: str, question: str = "why"
) -> list[Any]:
    return [video, 369, 640, 480, question, answer, qid, kind, *choices]


def write_csv(
    path: Path, rows: Iterable[Iterable[Any]], columns: Iterable[str] = NEXTQA_COLUMNS
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def next_qa(tmp_path: Path, video: bytes) -> Path:
    root = tmp_path / "NExT-QA"
    place(root, video, "NExTVideo/1164/3238737531.mp4", "NExTVideo/0101/2909445186.mp4")
    place(root, video, "NExTVideo/0016/3837320324.mp4")
    folder = root / "dataset" / "nextqa"
    train = [
        row("3238737531", 0, "CW", 2, "roll it", "tap, then jump", "strum", "hit", "pat"),
        row("3238737531", 6, "DL", 4, "pool", "outdoor", "field", "desert", "bed room"),
    ]
    write_csv(folder / "train.csv", train)
    write_csv(folder / "val.csv", [row("2909445186", 1, "TN", 3, "no", "a", "no", "no", "b")])
    write_csv(folder / "test.csv", [row("3837320324", 2, "DC", 0, "two", "six", "ten", "one", "3")])
    write_json(folder / "map_vid_vidorID.json", {"3238737531": "1164/3238737531"})
    return root


def test_nextqa_keeps_five_choices_and_the_right_one(next_qa: Path, tmp_path: Path) -> None:
    built = build("nextqa", next_qa, tmp_path / "out")
    assert built.clips[0] == Clip(
        "3238737531_0", "3238737531", "NExTVideo/1164/3238737531.mp4", "train"
    )
    assert built.texts == {
        "3238737531_0": ClipTexts(
            question="why",
            answer="strum",
            choices=("roll it", "tap, then jump", "strum", "hit", "pat"),
            kind="CW",
        ),
        "3238737531_6": ClipTexts(
            question="why",
            answer="bed room",
            choices=("pool", "outdoor", "field", "desert", "bed room"),
            kind="DL",
        ),
        "2909445186_1": ClipTexts(
            question="why",
            answer="no (3)",
            choices=("no", "a", "no (2)", "no (3)", "b"),
            kind="TN",
        ),
        "3837320324_2": ClipTexts(
            question="why", answer="two", choices=("two", "six", "ten", "one", "3"), kind="DC"
        ),
    }
    assert built.labels == ()
    assert [clip.split for clip in built.clips] == ["train", "train", "val", "test"]
    assert built.origin.notes == {
        "choices": "1 question of val with a choice twice, the second is numbered: 2909445186_1"
    }


def test_numbers_behind_choices_are_not_choices() -> None:
    assert nextqa.told_apart(["no", "no (2)", "no", "", ""]) == ("no", "no (2)", "no (3)", "", "")


def test_a_question_with_an_empty_choice_is_left_out(next_qa: Path, tmp_path: Path) -> None:
    path = next_qa / "dataset" / "nextqa" / "val.csv"
    write_csv(path, [row("2909445186", 1, "TN", 3, "no", "a", "", "c", "")])
    built = build("nextqa", next_qa, tmp_path / "out")
    assert [clip.split for clip in built.clips] == ["train", "train", "test"]
    assert built.origin.notes == {
        "questions": "1 of 1 question of val have an empty text and are left out: 2909445186_1"
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            row("1", 1, "XX", 3, *"abcde"),
            "line 2: type must be one of CW, CH, TC, TN, TP, DC, DL, ",
        ),
        (row("1", 1, "CW", 5, *"abcde"), "line 2: answer must be 0 to 4, found '5'"),
        (row("1", 1, "CW", "b", *"abcde"), "line 2: answer must be 0 to 4, found 'b'"),
        (row("", 1, "CW", 0, *"abcde"), "line 2: video or qid is empty"),
        (row("1", 1, "CW", 0, *"abc"), "line 2: fewer cells than the header has columns"),
    ],
)
def test_a_damaged_line_is_named(
    next_qa: Path, tmp_path: Path, line: list[Any], problem: str
) -> None:
    path = next_qa / "dataset" / "nextqa" / "val.csv"
    write_csv(path, [line])
    assert refused("nextqa", next_qa, tmp_path / "out").startswith(
        f"ROOT/dataset/nextqa/val.csv {problem}"
    )


def test_the_open_questions_of_nextqa_are_refused(next_qa: Path, tmp_path: Path) -> None:
    path = next_qa / "dataset" / "nextqa" / "train.csv"
    columns = (*NEXTQA_COLUMNS[:8], "additional_ref_answer")
    write_csv(path, [row("3238737531", 0, "CW", "pat", "tap")], columns)
    assert refused("nextqa", next_qa, tmp_path / "out") == (
        "ROOT/dataset/nextqa/train.csv line 1: no column a0, a1, a2, a3, a4; found: "
        f"{', '.join(columns)} (split by commas)"
    )


# Lists as long as the official ones


def test_msrvtt_qa_reads_all_questions_of_train(tmp_path: Path) -> None:
    entry = '{{"answer":"a","category_id":1,"id":{0},"question":"who","video_id":{1}}}'
    entries = (entry.format(n, n % 6513) for n in range(158_581))
    path = tmp_path / "train_qa.json"
    path.write_text(f"[{','.join(entries)}]")
    questions = list(msrvtt_qa.Dataset(tmp_path, msrvtt_qa.Settings()).read(path, "train", []))
    assert len(questions) == 158_581
    assert questions[-1].clip_id == "video2268/question158580"


def test_msvd_qa_maps_all_of_its_videos(tmp_path: Path) -> None:
    path = tmp_path / "youtube_mapping.txt"
    path.write_text("".join(f"name_{n}_5_15 vid{n}\n" for n in range(1, 1971)))
    name_of = msvd_qa.read_mapping(path)
    assert len(name_of) == 1970
    assert name_of["vid1970"] == "name_1970_5_15"


def test_activitynet_qa_reads_all_of_its_questions(tmp_path: Path) -> None:
    dataset = activitynet_qa.Dataset(tmp_path, activitynet_qa.Settings())
    for split, count in ACTIVITYNET_COUNTS.items():
        numbers = range(count)
        path, answers = tmp_path / f"{split}_q.json", tmp_path / f"{split}_a.json"
        write_json(path, [act_q(f"{n // 10}", n % 10, "is it") for n in numbers])
        write_json(answers, [act_a(f"{n // 10}", n % 10, "no", n % 9) for n in reversed(numbers)])
        questions = list(dataset.read(path, split, [answers.name]))
        assert len(questions) == count
        assert len({question.video for question in questions}) == count // 10
        assert {question.texts.kind for question in questions} == set(activitynet_qa.KINDS)
    assert dataset.notes == {}


def test_nextqa_reads_all_of_its_questions(tmp_path: Path) -> None:
    dataset = nextqa.Dataset(tmp_path, nextqa.Settings())
    for split, count in NEXTQA_COUNTS.items():
        path = tmp_path / f"{split}.csv"
        write_csv(path, (row(f"{n // 9}", n % 9, "TP", n % 5, *"abcde") for n in range(count)))
        questions = list(dataset.read(path, split, []))
        assert len(questions) == count
        answers = Counter(question.texts.answer for question in questions)
        assert max(answers.values()) - min(answers.values()) <= 1
