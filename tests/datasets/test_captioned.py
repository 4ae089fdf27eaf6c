"""Data sets of captions, in their true layouts: clips, captions, splits and groups, and the official counts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.commands import assert_refused, call, fine
from support.media import encode, grey

from pipeline.config import plugins
from pipeline.datasets import didemo, lsmdc, msrvtt, msvd
from pipeline.datasets.captioned.captioned_dataset import CaptionedDataset
from pipeline.datasets.captioned.described import Described
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput

FRAMES, RATE = 20, 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return encode(path, [grey(10 * number, 32, 32) for number in range(FRAMES)], rate=RATE)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 seconds, a frame each."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return encode(path, [grey(6 * number, 32, 32) for number in range(40)], rate=1)


def videos(root: Path, video: Path, names: Iterable[str]) -> None:
    """Links to one video under these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(video, path)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def write_json(path: Path, content: Any) -> Path:
    return write(path, json.dumps(content))


def build(name: str, root: Path, out: Path, **settings: Any) -> Manifest:
    return manifest.build(name, root, out, settings)


def said(built: Manifest) -> dict[str, tuple[str, tuple[str, ...]]]:
    """clip_id -> split and captions."""
    return {clip.clip_id: (clip.split, built.texts[clip.clip_id].captions) for clip in built.clips}


def refused(name: str, root: Path, tmp_path: Path, **settings: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        build(name, root, tmp_path / "refused", **settings)
    return caught.value


def described(name: str, root: Path, **settings: Any) -> list[Described]:
    """What the lists say, before any video is looked at."""
    dataset = plugins.load("dataset", name)(root, plugins.settings("dataset", name, settings, name))
    assert isinstance(dataset, CaptionedDataset)
    return dataset.described()


def counts(each: Iterable[Described]) -> dict[str | None, tuple[int, int]]:
    """Split -> clips and captions."""
    clips, captions = Counter[str | None](), Counter[str | None]()
    for one in each:
        clips[one.split] += 1
        captions[one.split] += len(one.texts)
    return {split: (clips[split], captions[split]) for split in clips}


# MSR-VTT


def vtt_data(train: int, val: int, test: int, sentences: int = 20) -> dict[str, Any]:
    """MSRVTT_data.json; clips 2k and 2k + 1 are of one YouTube video."""
    splits = ["train"] * train + ["validate"] * val + ["test"] * test
    entries = [
        {
            "category": 9,
            "url": f"https://www.youtube.com/watch?v=film{number // 2:07d}",
            "video_id": f"video{number}",
            "start time": 137.72,
            "end time": 149.44,
            "split": split,
            "id": number,
        }
        for number, split in enumerate(splits)
    ]
    said = [
        {
            "caption": f"sentence {number} of {each['video_id']}",
            "video_id": each["video_id"],
            "sen_id": sentences * each["id"] + number,
        }
        for number in range(sentences)
        for each in entries
    ]
    return {"info": {"year": "2016", "version": "1.0"}, "videos": entries, "sentences": said}


def vtt_test(numbers: Iterable[int]) -> str:
    rows = (
        f"ret{place},msr{number},video{number},a query for {number}\n"
        for place, number in enumerate(numbers)
    )
    return "key,vid_key,video_id,sentence\n" + "".join(rows)


def ids_csv(numbers: Iterable[int]) -> str:
    return "video_id\n" + "".join(f"video{number}\n" for number in numbers)


@pytest.fixture
def vtt(tmp_path: Path, video: Path) -> Path:
    """10 videos, of which 8 and 9 are tested; CLIP4Clip's files as they unpack."""
    root = tmp_path / "MSRVTT"
    videos(root / "videos/all", video, [f"video{number}.mp4" for number in range(10)])
    write_json(root / "msrvtt_data/MSRVTT_data.json", vtt_data(5, 1, 4, sentences=3))
    write(root / "msrvtt_data/MSRVTT_train.9k.csv", ids_csv(range(8)))
    write(root / "msrvtt_data/MSRVTT_train.7k.csv", ids_csv(range(6)))
    write(root / "msrvtt_data/MSRVTT_JSFUSION_test.csv", vtt_test([9, 8]))
    return root


def test_msrvtt_1k_a_tests_one_sentence_and_trains_on_all(vtt: Path, tmp_path: Path) -> None:
    built = build("msrvtt", vtt, tmp_path / "out")
    texts = said(built)
    assert texts["video9"] == ("test", ("a query for 9",))
    assert texts["video8"] == ("test", ("a query for 8",))
    assert texts["video3"][1] == tuple(f"sentence {number} of video3" for number in range(3))
    assert Counter(split for split, _ in texts.values()) == {"train": 6, "val": 2, "test": 2}
    (val,) = {clip.group for clip in built.clips if clip.split == "val"}
    assert {clip.split for clip in built.clips if clip.group == val} == {"val"}
    assert built.clips[0].source == "videos/all/video0.mp4"
    assert built.clips[0].video_id == "video0"
    assert built.origin.notes == {
        "splits": "the lists have no val: it is 0.05 of the groups of train (--set val_fraction=0 "
        "leaves them)"
    }
    assert not built.rejected


def test_msrvtt_has_other_protocols(vtt: Path, tmp_path: Path) -> None:
    texts = said(build("msrvtt", vtt, tmp_path / "7k", protocol="7k", val_fraction=0))
    assert Counter(split for split, _ in texts.values()) == {"train": 6, "test": 2}
    assert texts["video9"][1] == ("a query for 9",)
    texts = said(build("msrvtt", vtt, tmp_path / "full", protocol="full"))
    assert Counter(split for split, _ in texts.values()) == {"train": 5, "val": 1, "test": 4}
    assert {len(captions) for _, captions in texts.values()} == {3}
    assert list(texts) == [f"video{number}" for number in range(10)]


def test_msrvtt_groups_tell_of_clips_of_one_video_in_two_splits(vtt: Path, tmp_path: Path) -> None:
    write(vtt / "msrvtt_data/MSRVTT_JSFUSION_test.csv", vtt_test([7, 9]))
    write(vtt / "msrvtt_data/MSRVTT_train.9k.csv", ids_csv([0, 1, 2, 3, 6, 8]))
    notes = build("msrvtt", vtt, tmp_path / "out", val_fraction=0).origin.notes
    assert notes["groups"].startswith(
        "2 of 4 groups lie in more than one split, which flatters scores: 'film0000003' in train "
    )


def test_msrvtt_reads_the_two_official_files_and_a_spreadsheets_csv(
    vtt: Path, tmp_path: Path
) -> None:
    (vtt / "msrvtt_data/MSRVTT_data.json").unlink()
    data = vtt_data(5, 1, 4, sentences=1)
    for name, splits in (("train_val", ("train", "validate")), ("test", ("test",))):
        own = [each for each in data["videos"] if each["split"] in splits]
        ids = {each["video_id"] for each in own}
        sentences = [each for each in data["sentences"] if each["video_id"] in ids]
        write_json(vtt / f"{name}_videodatainfo.json", {"videos": own, "sentences": sentences})
    full = said(build("msrvtt", vtt, tmp_path / "full", protocol="full"))
    assert Counter(split for split, _ in full.values()) == {"train": 5, "val": 1, "test": 4}
    text = '\ufeffkey;vid_key;video_id;sentence\r\nret0;msr9;video9;"a ""b""; c"\r\n'
    write(vtt / "msrvtt_data/MSRVTT_JSFUSION_test.csv", text)
    texts = said(build("msrvtt", vtt, tmp_path / "out", val_fraction=0))
    assert texts["video9"] == ("test", ('a "b"; c',))
    assert texts["video7"] == ("train", ("sentence 0 of video7",))


def test_msrvtt_reads_the_lists_of_vindlu(vtt: Path, tmp_path: Path) -> None:
    for path in (vtt / "msrvtt_data").iterdir():
        path.unlink()
    train = [{"video": f"video{n}.mp4", "caption": [f"a {n}", f"b {n}"]} for n in range(8)]
    write_json(vtt / "msrvtt_ret_train9k.json", train)
    test = [{"video": f"video{n}.mp4", "caption": f"c {n}"} for n in (8, 9)]
    write_json(vtt / "msrvtt_ret_test1k.json", test)
    texts = said(build("msrvtt", vtt, tmp_path / "out", val_fraction=0))
    assert texts["video7"] == ("train", ("a 7", "b 7"))
    assert texts["video9"] == ("test", ("c 9",))


def test_msrvtt_counts_what_is_not_there_or_says_nothing(vtt: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3, 9):
        (vtt / f"videos/all/video{number}.mp4").unlink()
    write(vtt / "videos/all/video3.mp4", b"no video")
    data = vtt_data(5, 1, 4, sentences=2)
    empty = {"video4": ["a", " \t"], "video5": ["", ""]}
    for each in data["sentences"]:
        if each["video_id"] in empty:
            each["caption"] = empty[each["video_id"]].pop()
    write_json(vtt / "msrvtt_data/MSRVTT_data.json", data)
    built = build("msrvtt", vtt, tmp_path / "out", val_fraction=0)
    assert list(said(built)) == ["video0", "video4", "video6", "video7", "video8"]
    assert said(built)["video4"] == ("train", ("a",))
    assert built.origin.notes == {
        "msrvtt_data/MSRVTT_train.9k.csv": "2 of 8 videos are not there: video1, video2; 3 captions are "
        "empty and left out; 1 of 8 clips have no caption and are left out: video5",
        "msrvtt_data/MSRVTT_JSFUSION_test.csv": "1 of 2 videos are not there: video9",
    }
    assert list(built.rejected) == ["videos/all/video3.mp4"]
    for path in (vtt / "videos/all").iterdir():
        path.unlink()
    error = refused("msrvtt", vtt, tmp_path)
    assert error.message == (
        "none of the 10 videos of MSRVTT_train.9k.csv, MSRVTT_JSFUSION_test.csv is in "
        f"{vtt}: video0, video1, video2 and 7 more"
    )
    assert error.hint == "put the videos, named as the lists name them, into any folder below it"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MSRVTT_data.json", "[1]", ": wanted an object at the top, found list"),
        ("MSRVTT_data.json", '{"videos": [}', " is not JSON: Expecting value"),
        ("MSRVTT_data.json", '{"videos": []}', ": key 'sentences' is missing; there are: videos"),
        (
            "MSRVTT_data.json",
            '{"videos": [{"video_id": "a", "split": "dark"}], "sentences": []}',
            " videos 1: no split called 'dark'; there are: train",
        ),
        (
            "MSRVTT_data.json",
            '{"videos": [], "sentences": [{"video_id": "a", "caption": 3}]}',
            " sentences 1: caption must be a text, found 3",
        ),
        (
            "MSRVTT_data.json",
            '{"videos": [], "sentences": [{"video_id": "a", "caption": "\\ud83d"}]}',
            " sentences 1: a caption is not UTF-8, found '\\ud83d'",
        ),
        ("MSRVTT_train.9k.csv", "video\nvideo1\n", " line 1: column 'video_id' is missing; found"),
        ("MSRVTT_train.9k.csv", "video_id\na\nb\na\n", " line 4 repeats line 2: a"),
        ("MSRVTT_train.9k.csv", "video_id\n", " holds no ids"),
        (
            "MSRVTT_JSFUSION_test.csv",
            "key,video_id,sentence\nret0,video9,a,b\n",
            " line 2: more cells than the header has columns",
        ),
        (
            "MSRVTT_JSFUSION_test.csv",
            b"key,video_id,sentence\nret0,video9,caf\xe9\n",
            " line 2: a caption is not UTF-8, found 'caf\\udce9'",
        ),
        ("MSRVTT_JSFUSION_test.csv", "video_id,sentence\n", " has no rows below its header"),
        (
            "MSRVTT_JSFUSION_test.csv",
            "video_id,sentence\nvideo1,a\n",
            ": video video1 is in test, and in train in ",
        ),
    ],
)
def test_msrvtt_refuses_damaged_files(
    vtt: Path, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(vtt / "msrvtt_data" / name, content)
    assert refused("msrvtt", vtt, tmp_path).message.startswith(f"{path}{message}")


def test_msrvtt_says_which_files_it_needs(vtt: Path, tmp_path: Path) -> None:
    (vtt / "msrvtt_data/MSRVTT_data.json").unlink()
    error = refused("msrvtt", vtt, tmp_path)
    assert error.message == f"{vtt} holds no captions of MSRVTT_train.9k.csv"
    assert error.hint == msrvtt.ANNOTATIONS
    assert refused("msrvtt", vtt, tmp_path, protocol="full").hint == msrvtt.ANNOTATIONS
    (vtt / "msrvtt_data/MSRVTT_train.9k.csv").unlink()
    zero_shot = build("msrvtt", vtt, tmp_path / "out")
    assert zero_shot.splits == ("test",) and not zero_shot.origin.notes
    (vtt / "msrvtt_data/MSRVTT_JSFUSION_test.csv").unlink()
    error = refused("msrvtt", vtt, tmp_path)
    assert error.message == f"{vtt} holds no lists of MSR-VTT 1k-A"
    assert error.hint == (
        "looked for MSRVTT_train.9k.csv, msrvtt_ret_train9k.json, MSRVTT_JSFUSION_test.csv, "
        "msrvtt_ret_test1k.json; the official split needs none: --set protocol=full"
    )


def test_msrvtt_has_the_official_counts(tmp_path: Path) -> None:
    write_json(tmp_path / "MSRVTT_data.json", vtt_data(6513, 497, 2990))
    tested = range(7010, 8010)
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", vtt_test(tested))
    rest = [number for number in range(10_000) if number not in tested]
    write(tmp_path / "MSRVTT_train.9k.csv", ids_csv(rest))
    write(tmp_path / "MSRVTT_train.7k.csv", ids_csv(range(7010)))
    assert counts(described("msrvtt", tmp_path)) == {"train": (9000, 180_000), "test": (1000, 1000)}
    write_json(tmp_path / "MSRVTT_data.json", vtt_data(6513, 497, 2990, sentences=1))
    assert counts(described("msrvtt", tmp_path, protocol="7k")) == {
        "train": (7010, 7010),
        "test": (1000, 1000),
    }
    assert counts(described("msrvtt", tmp_path, protocol="full")) == {
        "train": (6513, 6513),
        "val": (497, 497),
        "test": (2990, 2990),
    }


# MSVD

MSVD = {
    "train": ["-4wsuPCjDBc_5_15", "-8y1Q0rA3n8_108_115"],
    "val": ["bQJQGoJF7_k_162_169"],
    "test": ["-8y1Q0rA3n8_95_102", "_O9kWD8nuRU_17_23"],
}
DESCRIPTIONS = (
    "# Microsoft Research Video Description Corpus\r\n#\r\n\r\n"
    "-4wsuPCjDBc_5_15 a squirrel is eating a peanut in it's shell\r\n"
    "-4wsuPCjDBc_5_15 a chipmunk is eating\r\n"
    "-4wsuPCjDBc_5_15 a chipmunk is eating\r\n"
    "-4wsuPCjDBc_5_15 \r\n"
    "-8y1Q0rA3n8_108_115 a man slices a soda bottle, with a sword\r\n"
    'bQJQGoJF7_k_162_169 "a cat"\u2028plays \r\n'
    "-8y1Q0rA3n8_95_102 a man stabs a target\r\n"
    "_O9kWD8nuRU_17_23 a dog runs\r\n"
    "zz_unlisted_0_5 a bird\r\n"
)


@pytest.fixture
def msvd_root(tmp_path: Path, video: Path) -> Path:
    root = tmp_path / "MSVD"
    for split, ids in MSVD.items():
        write(root / f"{split}_list.txt", "\n".join(ids) + ("\n" if split == "val" else ""))
        videos(root / "YouTubeClips", video, [f"{each}.avi" for each in ids])
    write(root / "AllVideoDescriptions.txt", DESCRIPTIONS)
    return root


def test_msvd_reads_lists_and_descriptions(msvd_root: Path, tmp_path: Path) -> None:
    built = build("msvd", msvd_root, tmp_path / "out")
    chipmunk = "a chipmunk is eating"
    assert said(built) == {
        "-4wsuPCjDBc_5_15": (
            "train",
            ("a squirrel is eating a peanut in it's shell", chipmunk, chipmunk),
        ),
        "-8y1Q0rA3n8_108_115": ("train", ("a man slices a soda bottle, with a sword",)),
        "bQJQGoJF7_k_162_169": ("val", ('"a cat"\u2028plays',)),
        "-8y1Q0rA3n8_95_102": ("test", ("a man stabs a target",)),
        "_O9kWD8nuRU_17_23": ("test", ("a dog runs",)),
    }
    assert [clip.group for clip in built.clips][:2] == ["-4wsuPCjDBc", "-8y1Q0rA3n8"]
    assert built.origin.notes == {
        "AllVideoDescriptions.txt": "1 of 6 videos are in no list and left out: zz_unlisted_0_5",
        "groups": "1 of 4 groups lie in more than one split, which flatters scores: '-8y1Q0rA3n8' in "
        "train (-8y1Q0rA3n8_108_115) and test (-8y1Q0rA3n8_95_102)",
        "train_list.txt": "1 caption is empty and left out",
    }


def test_msvd_reads_captions_as_json(msvd_root: Path, tmp_path: Path) -> None:
    (msvd_root / "AllVideoDescriptions.txt").unlink()
    captions = {each: [f" one {each}", "two"] for ids in MSVD.values() for each in ids}
    write(msvd_root / "captions_msvd.json", b"\xef\xbb\xbf" + json.dumps(captions).encode())
    texts = said(build("msvd", msvd_root, tmp_path / "out"))
    assert texts["_O9kWD8nuRU_17_23"] == ("test", ("one _O9kWD8nuRU_17_23", "two"))
    path = write_json(msvd_root / "captions_msvd.json", {"a_1_2": "no list"})
    assert refused("msvd", msvd_root, tmp_path).message == (
        f"{path}: a_1_2 must be a list, found no list"
    )


def test_msvd_does_not_open_the_pickle(msvd_root: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    pickle = write(msvd_root / "raw-captions.pkl", f"cos\nmkdir\n(V{ran}\ntR.".encode())
    assert len(build("msvd", msvd_root, tmp_path / "out").clips) == 5
    (msvd_root / "AllVideoDescriptions.txt").unlink()
    error = refused("msvd", msvd_root, tmp_path)
    assert error.message == (
        f"{pickle} is a pickle, which can run code of whoever made it, and is not read"
    )
    assert error.hint == msvd.BESIDE and not ran.exists()
    pickle.unlink()
    assert refused("msvd", msvd_root, tmp_path).message == f"{msvd_root} holds no captions of MSVD"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_list.txt", "a_1_2\nb_1_2\na_1_2\n", " line 3 repeats line 1: a_1_2"),
        ("train_list.txt", " \n", " is empty"),
        ("test_list.txt", MSVD["val"][0], f": video {MSVD['val'][0]} is in test, and in val in "),
        ("AllVideoDescriptions.txt", b"a_1_2 caf\xe9", " line 1: a caption is not UTF-8, found "),
    ],
)
def test_msvd_refuses_damaged_files(
    msvd_root: Path, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(msvd_root / name, content)
    assert refused("msvd", msvd_root, tmp_path).message.startswith(f"{path}{message}")


@pytest.mark.parametrize("name", ["train_list.txt", "AllVideoDescriptions.txt"])
def test_a_pipe_in_the_place_of_a_list_is_refused(
    msvd_root: Path, tmp_path: Path, name: str
) -> None:
    (msvd_root / name).unlink()
    os.mkfifo(msvd_root / name)
    assert refused("msvd", msvd_root, tmp_path).message == (
        f"{msvd_root / name} cannot be read: it is a named pipe, not a regular file"
    )


def test_a_pipe_in_the_place_of_a_csv_file_is_refused(vtt: Path, tmp_path: Path) -> None:
    path = vtt / "msrvtt_data/MSRVTT_train.9k.csv"
    path.unlink()
    os.mkfifo(path)
    assert refused("msrvtt", vtt, tmp_path).message == (
        f"{path} cannot be read: it is a named pipe, not a regular file"
    )


def test_msvd_has_the_official_counts(tmp_path: Path) -> None:
    numbers = {"train": range(1200), "val": range(1200, 1300), "test": range(1300, 1970)}
    for split, own in numbers.items():
        write(tmp_path / f"{split}_list.txt", "\n".join(f"clip{n:05d}_1_9" for n in own))
    lines = [f"clip{n:05d}_1_9 sentence {k}\n" for n in range(1970) for k in range(41)]
    write(tmp_path / "AllVideoDescriptions.txt", "# corpus\n" + "".join(lines))
    assert counts(described("msvd", tmp_path)) == {
        "train": (1200, 49_200),
        "val": (100, 4100),
        "test": (670, 27_470),
    }


# DiDeMo


def moment(video: str, description: str) -> dict[str, Any]:
    return {
        "num_segments": 6,
        "description": description,
        "dl_link": "https://www.flickr.com/video_download.gne?id=6060447507",
        "times": [[1, 1], [1, 1], [1, 1], [0, 0]],
        "video": video,
        "annotation_id": 49152,
    }


@pytest.fixture
def didemo_root(tmp_path: Path, video: Path, long_video: Path) -> Path:
    root = tmp_path / "DiDeMo"
    names = [
        "35034348999@N01_6060447507_dc1a90b8ef.mov",
        "39727414@N00_3622114091_452b89919c.3gp.mp4",
        "86091119@N00_13912142554_c451140af5.mp4",
    ]
    videos(root / "videos", video, names)
    videos(root / "videos", long_video, ["23204349@N00_3805441967_a4dc75edec.mp4"])
    baby = "39727414@N00_3622114091_452b89919c.3gp"
    train = [
        moment(baby, "the baby is first shown."),
        moment(names[0], "the man in the hat briefly bends"),
        moment(baby, "a baby smiles\n"),
        moment("gone@N00_1_2.avi", "nobody knows"),
    ]
    write_json(root / "train_data.json", train)
    write_json(root / "val_data.json", [moment(names[2], "camera stops panning right")])
    full = "23204349@N00_3805441967_a4dc75edec.mov"
    write_json(root / "test_data.json", [moment(full, "glass is full"), moment(full, "")])
    return root


def test_didemo_makes_a_paragraph_of_each_video(didemo_root: Path, tmp_path: Path) -> None:
    built = build("didemo", didemo_root, tmp_path / "out")
    assert said(built) == {
        "39727414@N00_3622114091_452b89919c": (
            "train",
            ("the baby is first shown. a baby smiles",),
        ),
        "35034348999@N01_6060447507_dc1a90b8ef": ("train", ("the man in the hat briefly bends",)),
        "86091119@N00_13912142554_c451140af5": ("val", ("camera stops panning right",)),
        "23204349@N00_3805441967_a4dc75edec": ("test", ("glass is full",)),
    }
    assert [clip.stop_s for clip in built.clips] == [None, None, None, didemo.SEEN_S]
    assert all(clip.video_id == clip.clip_id for clip in built.clips)
    assert built.origin.notes == {
        "train_data.json": "1 of 3 videos are not there: gone@N00_1_2",
        "test_data.json": "1 caption is empty and left out",
    }


def test_didemo_takes_the_videos_of_a_list(didemo_root: Path, tmp_path: Path) -> None:
    listed = "35034348999@N01_6060447507_dc1a90b8ef.mov\nsilent@N00_1_2.avi\n"
    write(didemo_root / "train_list.txt", listed)
    built = build("didemo", didemo_root, tmp_path / "out")
    assert [clip.clip_id for clip in built.clips if clip.split == "train"] == [
        "35034348999@N01_6060447507_dc1a90b8ef"
    ]
    assert built.origin.notes["train_data.json"] == (
        "2 of 3 videos are in no list and left out: 39727414@N00_3622114091_452b89919c, "
        "gone@N00_1_2; 1 of 2 videos are not there: silent@N00_1_2; 1 of 2 clips have no caption "
        "and are left out: silent@N00_1_2"
    )


def test_didemo_refuses_two_copies_and_damaged_entries(
    didemo_root: Path, tmp_path: Path, video: Path
) -> None:
    path = write_json(didemo_root / "val_data.json", [{"video": "a.mov"}])
    assert refused("didemo", didemo_root, tmp_path).message == (
        f"{path} entry 1: key 'description' is missing; there are: video"
    )
    videos(didemo_root, video, ["86091119@N00_13912142554_c451140af5.mp4.mkv"])
    error = refused("didemo", didemo_root, tmp_path)
    assert "holds video 86091119@N00_13912142554_c451140af5 twice: " in error.message
    assert refused("didemo", tmp_path / "out", tmp_path).message.endswith("does not exist")


def test_didemo_has_the_official_counts(tmp_path: Path) -> None:
    for split, number in {"train": 8395, "val": 1065, "test": 1004}.items():
        names = [f"{n}@N00_{n}_{split}.mov" for n in range(number)]
        moments = [{"video": each, "description": f"{k}."} for k in (1, 2, 3) for each in names]
        write_json(tmp_path / f"{split}_data.json", moments)
    write(tmp_path / "train_list.txt", "".join(f"{n}@N00_{n}_train.mov\n" for n in range(8392)))
    each = described("didemo", tmp_path)
    assert counts(each) == {"train": (8392, 8392), "val": (1065, 1065), "test": (1004, 1004)}
    assert {one.texts for one in each} == {("1. 2. 3.",)}


# ActivityNet Captions

FIRST, SECOND = "v_QOlSCBRmfWY", "v_v_bXdq2zI1M"
"""The second id begins with the prefix itself."""


@pytest.fixture
def anet(tmp_path: Path, video: Path) -> Path:
    root = tmp_path / "ActivityNet"
    names = ["v_QOlSCBRmfWY.mp4", "v_bXdq2zI1M.mkv", "trainclip03.webm", "v_trainclip04.mp4"]
    videos(root / "videos", video, names)
    train = {
        FIRST: {
            "duration": 82.73,
            "timestamps": [[0.83, 1.86], [1.5, 0.5], [0.4, 0.4]],
            "sentences": ["A young woman is seen.", " The girl dances.\n", " She stands."],
        },
        "v_trainclip03": {"duration": 9.0, "timestamps": [[0, 9.0]], "sentences": ["One."]},
        "v_trainclip04": {"duration": 9.0, "timestamps": [[7, 9.0]], "sentences": ["Two."]},
        "v_nobodyhasit": {"duration": 9.0, "timestamps": [[0, 1]], "sentences": ["Lost."]},
    }
    write_json(root / "captions/train.json", train)
    test = {SECOND: {"duration": 2.0, "timestamps": [[0, 1], [1, 2]], "sentences": ["A.", " B."]}}
    write_json(root / "captions/val_1.json", test)
    write_json(root / "captions/val_2.json", test)
    write_json(root / "captions/train_ids.json", list(train))
    return root


def test_activitynet_makes_a_paragraph_of_each_video(anet: Path, tmp_path: Path) -> None:
    built = build("activitynet_captions", anet, tmp_path / "out", val_fraction=0)
    assert said(built) == {
        FIRST: ("train", ("A young woman is seen. The girl dances. She stands.",)),
        "v_trainclip03": ("train", ("One.",)),
        "v_trainclip04": ("train", ("Two.",)),
        SECOND: ("test", ("A. B.",)),
    }
    assert {clip.video_id: clip.source for clip in built.clips} == {
        "v_QOlSCBRmfWY": "videos/v_QOlSCBRmfWY.mp4",
        "trainclip03": "videos/trainclip03.webm",
        "v_trainclip04": "videos/v_trainclip04.mp4",
        "v_bXdq2zI1M": "videos/v_bXdq2zI1M.mkv",
    }
    assert built.origin.notes == {
        "captions/train.json": "1 of 4 videos are not there: v_nobodyhasit"
    }
    drawn = build("activitynet_captions", anet, tmp_path / "drawn")
    assert Counter(clip.split for clip in drawn.clips) == {"train": 2, "val": 1, "test": 1}


def test_activitynet_makes_a_clip_of_each_sentence(anet: Path, tmp_path: Path) -> None:
    built = build("activitynet_captions", anet, tmp_path / "out", paragraphs=False, val_fraction=0)
    stretches = {clip.clip_id: (clip.start_s, clip.stop_s) for clip in built.clips}
    assert stretches == {
        f"{FIRST}#000": (0.83, 1.86),
        f"{FIRST}#001": (0.5, 1.5),
        "v_trainclip03#000": (0.0, None),
        f"{SECOND}#000": (0.0, 1.0),
        f"{SECOND}#001": (1.0, None),
    }
    assert said(built)[f"{FIRST}#001"] == ("train", ("The girl dances.",))
    assert built.origin.notes["captions/train.json"] == (
        f"1 of 6 sentences end before they begin and are read the other way round: {FIRST}#001; "
        f"1 of 6 sentences have no length and are left out: {FIRST}#002; 1 of 4 videos are not "
        "there: v_nobodyhasit"
    )
    assert list(built.rejected) == ["v_trainclip04#000"]
    assert built.rejected["v_trainclip04#000"].startswith(
        "holds nothing of the video: it starts 7.00 s after the first frame, and the video is 2.00"
    )


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "wanted an object, found []"),
        ({"sentences": "A."}, "sentences must be a list, found A."),
        ({"sentences": [["A."]]}, "a caption must be a text, found ['A.']"),
        ({"sentences": ["A."]}, "key 'timestamps' is missing; there are: sentences"),
        (
            {"sentences": ["A.", "B."], "timestamps": [[0, 1]]},
            "1 timestamps for 2 sentences",
        ),
        ({"sentences": ["A."], "timestamps": [[0]]}, "wanted n x 2 numbers, found 1 x 1"),
        ({"sentences": ["A."], "timestamps": [[-1, 1]]}, "timestamps must be seconds, 0 or more"),
    ],
)
def test_activitynet_refuses_damaged_entries(
    anet: Path, tmp_path: Path, record: object, message: str
) -> None:
    path = write_json(anet / "captions/train.json", {FIRST: record})
    error = refused("activitynet_captions", anet, tmp_path, paragraphs=False)
    assert error.message.removeprefix(f"{path} {FIRST}").removeprefix(" timestamps") == (
        f": {message}"
    )


def test_activitynet_has_the_official_counts(tmp_path: Path) -> None:
    record = {"duration": 9.5, "timestamps": [[0, 1], [1, 2.5]], "sentences": ["A.", " B."]}
    for name, number in (("train", 10_009), ("val_1", 4917)):
        write_json(
            tmp_path / f"{name}.json", {f"v_{name:>5}{n:06d}": record for n in range(number)}
        )
    each = described("activitynet_captions", tmp_path)
    assert counts(each) == {"train": (10_009, 10_009), "test": (4917, 4917)}


# LSMDC


def movie_clip(movie: str, second: int) -> str:
    return f"{movie}_00.{second // 60:02d}.{second % 60:02d}.338-00.59.59.153"


def movie_line(clip: str, sentence: str) -> str:
    return f"{clip}\t00.03.25.338\t00.03.28.153\t00.03.25.000\t00.03.28.500\t{sentence}\n"


@pytest.fixture
def movies(tmp_path: Path, video: Path) -> Path:
    root = tmp_path / "LSMDC"
    clips = {
        "training": [
            movie_clip("3001_21_JUMP_STREET", 175),
            movie_clip("0001_American_Beauty", 149),
        ],
        "val": [movie_clip("1010_TITANIC", 9)],
        "test": [movie_clip("3015_CHARLIE_ST_CLOUD", 3)],
    }
    for own in clips.values():
        for clip in own:
            videos(root, video, [f"{clip.rpartition('_')[0]}/{clip}.avi"])
    first, second = clips["training"]
    lines = [
        movie_line(first, 'He says "hi", and SOMEONE\'s "friend'),
        movie_line(second, "A bag dances."),
        movie_line(first, "He leaves. "),
        movie_line(movie_clip("1010_TITANIC", 99), "Nobody has this."),
        movie_line(second, ""),
    ]
    write(root / "LSMDC16_annos_training.csv", "".join(lines).replace("\n", "\r\n"))
    write(root / "LSMDC16_annos_val.csv", movie_line(clips["val"][0], "A ship."))
    test = movie_line(clips["test"][0], "SOMEONE nods.")
    write(root / "LSMDC16_challenge_1000_publictect.csv", test)
    return root


def test_lsmdc_reads_lines_without_a_header(movies: Path, tmp_path: Path) -> None:
    built = build("lsmdc", movies, tmp_path / "out")
    assert said(built) == {
        "3001_21_JUMP_STREET_00.02.55.338-00.59.59.153": (
            "train",
            ('He says "hi", and SOMEONE\'s "friend', "He leaves."),
        ),
        "0001_American_Beauty_00.02.29.338-00.59.59.153": ("train", ("A bag dances.",)),
        "1010_TITANIC_00.00.09.338-00.59.59.153": ("val", ("A ship.",)),
        "3015_CHARLIE_ST_CLOUD_00.00.03.338-00.59.59.153": ("test", ("SOMEONE nods.",)),
    }
    assert [clip.group for clip in built.clips][::2] == ["3001_21_JUMP_STREET", "1010_TITANIC"]
    assert all((clip.start_s, clip.stop_s) == (0.0, None) for clip in built.clips)
    assert built.origin.notes == {
        "LSMDC16_annos_training.csv": "1 of 3 videos are not there: "
        "1010_TITANIC_00.01.39.338-00.59.59.153; 1 caption is empty and left out"
    }
    path = write(movies / "LSMDC16_annos_val.csv", "\n\na clip\tand a sentence\n")
    assert refused("lsmdc", movies, tmp_path).message == (
        f"{path} line 3: wanted a clip id, four times and a sentence, split by tabs; found 'a clip\tand a "
        "sentence'"
    )


def test_lsmdc_has_the_official_counts(tmp_path: Path) -> None:
    wanted = {"train": 101_079, "val": 7408, "test": 1000}
    for split, number in wanted.items():
        lines = (movie_line(movie_clip(f"{n:06d}_{split}", 3), "A.") for n in range(number))
        write(tmp_path / lsmdc.FILES[split], "".join(lines))
    assert counts(described("lsmdc", tmp_path)) == {s: (n, n) for s, n in wanted.items()}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("msvd", "train_list.txt, val_list.txt, test_list.txt of MSVD"),
        ("didemo", "train_data.json, val_data.json, test_data.json of DiDeMo"),
        ("activitynet_captions", "train.json, val_1.json of ActivityNet Captions"),
        ("lsmdc", ", ".join(lsmdc.FILES.values()) + " of LSMDC"),
    ],
)
def test_a_folder_without_annotations_is_refused(name: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    error = refused(name, tmp_path / "root", tmp_path)
    assert error.message == f"{tmp_path / 'root'} holds no {wanted}"
    assert error.hint.startswith("put the ")


# Captions of your own

ROWS: list[dict[str, Any]] = [
    {"video": "a.mp4", "caption": "a dog runs", "split": "train"},
    {"video": "videos/b.mp4", "caption": ["a cat", " sleeps "], "split": "training"},
    {"video": "a", "caption": "it barks", "split": "train", "start_s": None},
    {"video_id": "b", "sentence": "it wakes", "split": "train", "start_s": 0.5, "stop_s": 1},
    {"path": "c.mp4", "caption": "a bird", "split": "validation", "frames": 3},
]


@pytest.fixture
def mine(tmp_path: Path, video: Path) -> Path:
    root = tmp_path / "mine"
    videos(root, video, ["videos/a.mp4", "videos/b.mp4", "videos/c.mp4"])
    return root


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_captions_of_any_list_are_the_same(mine: Path, tmp_path: Path, suffix: str) -> None:
    rows, path = ROWS, mine / f"captions{suffix}"
    if suffix == ".json":
        write_json(path, rows)
    elif suffix == ".jsonl":
        write(path, "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in rows))
    else:
        lines = ["sep=;", "video;caption;split;start_s;stop_s;frames"]
        lines += ["a.mp4;a dog runs;train;;;", 'videos/b.mp4;"a cat @ sleeps";training;;;']
        lines += ["a;it barks;train;;;", "b;it wakes;train;0,5;1;", "c.mp4;a bird;validation;;;3"]
        write(path, "\r\n".join(lines))
    built = build("captions", mine, tmp_path / "out", separator="@")
    assert said(built) == {
        "videos/a.mp4": ("train", ("a dog runs", "it barks")),
        "videos/b.mp4": ("train", ("a cat", "sleeps")),
        "videos/b.mp4@0.5-1.0": ("train", ("it wakes",)),
        "videos/c.mp4": ("val", ("a bird",)),
    }
    assert [(clip.start_s, clip.stop_s) for clip in built.clips][2] == (0.5, 1.0)
    assert {clip.video_id for clip in built.clips} == {f"videos/{name}.mp4" for name in "abc"}
    assert not built.origin.notes and not built.rejected


def test_a_cell_is_one_caption_unless_a_separator_is_named(mine: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "labels/mine.csv", 'video,caption\na,"me @ home, 1"\nb,x@@y\n')
    twice = [str(path), str(path)]
    one = said(build("captions", mine, tmp_path / "one", lists=twice, val_fraction=0))
    assert one["videos/a.mp4"][1] == ("me @ home, 1",)
    built = build("captions", mine, tmp_path / "two", lists=str(path), separator="@")
    assert said(built)["videos/a.mp4"][1] == ("me", "home, 1")
    assert said(built)["videos/b.mp4"][1] == ("x", "y")
    assert built.origin.notes == {
        str(path): "1 caption is empty and left out",
        "lists": "in no list: 1 video (videos/c.mp4)",
    }
    assert sorted(clip.split for clip in built.clips) == ["train", "val"]


def test_names_of_lists_say_the_split(mine: Path, tmp_path: Path) -> None:
    write_json(mine / "train.json", [{"video": "a.mp4", "caption": "a", "label": "x"}])
    write_json(mine / "my_test.json", [{"video": "b.mp4", "caption": "b", "label": "y"}])
    built = build("captions", mine, tmp_path / "out")
    assert {clip.source: (clip.split, clip.label) for clip in built.clips} == {
        "videos/a.mp4": ("train", "x"),
        "videos/b.mp4": ("test", "y"),
    }
    assert built.origin.notes["splits"].startswith("the lists have no val: it is 0.2 of the group")


def test_folders_of_images_have_captions_too(mine: Path, tmp_path: Path) -> None:
    from PIL import Image

    (mine / "frames/d").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number,) * 3).save(mine / f"frames/d/{number}.png")
    write_json(mine / "captions.json", [{"video": "d", "caption": "it grows brighter"}])
    (clip,) = build("captions", mine, tmp_path / "out", image_fps=5).clips
    assert (clip.source, clip.image_fps) == ("frames/d", 5.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '{"a": "b"}', ": wanted a list at the top, found dict"),
        ("x.json", "[]", " holds no entries"),
        ("x.json", '["a"]', " entry 1: wanted an object, found a"),
        (
            "x.json",
            '[{"image": "a", "caption": "b"}]',
            " entry 1: none of the keys video, video_id, path is there; there are: image, caption",
        ),
        (
            "x.json",
            '[{"video": "a.mp4"}]',
            " entry 1: none of the keys caption, sentence is there; there are: video",
        ),
        ("x.json", '[{"video": ["a"], "caption": "b"}]', " entry 1: the video must be a path or a"),
        ("x.json", '[{"video": "a", "caption": [1]}]', " entry 1: a caption must be a text, found"),
        (
            "x.json",
            '[{"video": "a", "caption": "b", "split": "all"}]',
            " entry 1: no split called 'all'; there are: train, ",
        ),
        (
            "x.json",
            '[{"video": "a", "caption": "b", "start_s": 2, "stop_s": 1}]',
            " entry 1: wanted 0 <= start_s < stop_s, found 2.0 and 1.0",
        ),
        (
            "x.json",
            '[{"video": "a", "caption": "b", "start_s": NaN}]',
            " entry 1: wanted 0 <= start_s < stop_s, found nan and None",
        ),
        (
            "x.json",
            '[{"video": "a", "caption": "b", "stop_s": Infinity}]',
            " entry 1: wanted 0 <= start_s < stop_s, found 0.0 and inf",
        ),
        (
            "x.json",
            '[{"video": "a", "caption": "b", "label": 3}]',
            " entry 1: label must be a text, found 3",
        ),
        ("x.json", "[" * 100_000, " is not JSON: it is nested more than 64 deep"),
        ("x.jsonl", '{"video": "a", "caption": "b"}\n{"video"\n', " line 2 is not JSON: "),
        ("x.jsonl", "\n", " is empty"),
        (
            "x.csv",
            "film,caption\na,b\n",
            " line 1: column 'video' or 'video_id' or 'path' is missing; found: film, caption (split by "
            "commas)",
        ),
        ("x.csv", "video,caption,caption\na,b,c\n", " line 1: column 'caption' is there 2 times"),
        ("x.csv", "video,caption\na,b,c\n", " line 2: more cells than the header has columns"),
        ("x.csv", "video,caption\n,b\n", " line 2: the video must be a path or a name, found ''"),
        ("x.csv", "video,caption,start_s\na,b,soon\n", " line 2: start_s must be seconds, 0 or"),
        (
            "x.csv",
            "video,caption,split\na,b,val\na.mp4,c,test\n",
            " line 3: a.mp4 has split 'test', and 'val' in ",
        ),
        (
            "x.csv",
            "video,caption,label\na,b,x\na.mp4,c,y\n",
            " line 3: a.mp4 has label 'y', and 'x' in ",
        ),
        (
            "x.csv",
            "video,caption,split,stop_s\na,b,val,1\na,c,test,\n",
            ": video a is in test, and in val in ",
        ),
    ],
)
def test_captions_refuses_what_it_cannot_read(
    mine: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = write(mine / name, content)
    assert refused("captions", mine, tmp_path).message.startswith(f"{path}{message}")


def test_captions_says_what_it_looked_for(mine: Path, tmp_path: Path) -> None:
    error = refused("captions", mine, tmp_path)
    assert error.message == f"{mine} holds no list of captions (.csv .json .jsonl .tsv)"
    assert error.hint == "name the lists: --set lists=captions.json"
    assert refused("captions", mine, tmp_path, lists="no.json").message == (
        "lists: no.json does not exist"
    )
    write(mine / "videos/notes.txt", "hello")
    error = refused("captions", mine, tmp_path, lists="videos/notes.txt")
    assert error.message == f"{mine / 'videos/notes.txt'} is no list of captions by its name"
    assert error.hint == "wanted one of .json, .jsonl, .csv, .tsv"
    write_json(mine / "x.json", {"a.mp4": "b"})
    assert refused("captions", mine, tmp_path).hint == (
        'wanted [{"video": "a.mp4", "caption": "a dog runs"}, ...]'
    )
    (mine / "x.json").unlink()
    write(mine / "x.csv", "video,caption\nz.mp4,b\n")
    assert refused("captions", mine, tmp_path).message == (
        f"none of the 1 video of x.csv is in {mine}: z.mp4"
    )


# The command


def test_the_command_counts_captions(vtt: Path, tmp_path: Path) -> None:
    shown = fine("manifest", "msrvtt", vtt, "--out", tmp_path / "out").out.splitlines()
    assert shown[0] == (
        f"{tmp_path / 'out'}: 10 clips of 10 videos (train 6, val 2, test 2), 26 captions"
    )
    result = call("manifest", "msrvtt", vtt, "--out", tmp_path / "out", "--set", "protocol=1k-B")
    assert_refused(result, "key 'protocol': Input should be '1k-A', '7k' or 'full', found '1k-B'")


def test_a_run_can_hold_out_videos_of_a_users_choice(vtt: Path, tmp_path: Path) -> None:
    built = build("msrvtt", vtt, tmp_path / "out", val_sequences=("video0", "video1"))
    assert [clip.clip_id for clip in built.clips if clip.split == "val"] == ["video0", "video1"]
    assert Counter(clip.split for clip in built.clips) == {"train": 6, "val": 2, "test": 2}
