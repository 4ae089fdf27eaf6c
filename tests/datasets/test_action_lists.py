"""Lists of published action data sets, in their true layouts: clips, classes, splits and groups."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.commands import assert_refused, call
from support.media import encode, grey

from pipeline.datasets import folder
from pipeline.errors import BadInput
from pipeline.records import Clip

FRAMES, RATE = 20, 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return encode(path, [grey(10 * number, 32, 32) for number in range(FRAMES)], rate=RATE)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "a.jpg"
    Image.new("RGB", (32, 32), (90, 90, 90)).save(path)
    return path


def videos(root: Path, video: Path, names: Iterable[str]) -> None:
    """Links to one video under these names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(video, path)


def folders(root: Path, picture: Path, names: Iterable[str], images: int = 3) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(1, images + 1):
            os.link(picture, root / name / f"img_{number:05d}.jpg")


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(root: Path, *lists: object, **settings: Any) -> tuple[list[Clip], folder.Dataset]:
    names = tuple(map(str, lists))
    dataset = folder.Dataset(root, folder.Settings(lists=names, **settings))
    return list(dataset.clips()), dataset


def told(clips: Iterable[Clip]) -> set[tuple[str, str | None, str]]:
    return {(clip.source, clip.label, clip.split) for clip in clips}


UCF = {
    "train": [("Archery", group, clip) for group in (8, 9, 10, 11) for clip in (1, 2)]
    + [("Billiards", group, clip) for group in (8, 9, 10, 11) for clip in (1, 2)],
    "test": [(label, group, 1) for label in ("Archery", "Billiards") for group in (1, 2)],
}


def ucf_name(label: str, group: int, clip: int) -> str:
    return f"{label}/v_{label}_g{group:02d}_c{clip:02d}.avi"


@pytest.fixture
def ucf(tmp_path: Path, video: Path) -> Path:
    """UCF-101 and ucfTrainTestlist side by side, as the archives unpack; division 2 swaps train and test of
    group 1."""
    names = {split: [ucf_name(*clip) for clip in clips] for split, clips in UCF.items()}
    videos(tmp_path / "UCF-101", video, [name for each in names.values() for name in each])
    lists = tmp_path / "ucfTrainTestlist"
    number = {"Archery": 1, "Billiards": 2}
    write(lists / "classInd.txt", "1 Archery", "2 Billiards")
    for fold, (train, test) in {1: ("train", "test"), 2: ("test", "train")}.items():
        rows = [f"{name} {number[name.partition('/')[0]]}" for name in names[train]]
        write(lists / f"trainlist{fold:02d}.txt", *rows)
        write(lists / f"testlist{fold:02d}.txt", *names[test])
    return tmp_path


def test_ucf101_lists_give_classes_splits_and_groups(ucf: Path) -> None:
    clips, dataset = read(ucf / "UCF-101", ucf / "ucfTrainTestlist")
    assert len(clips) == 20 and not dataset.rejected
    assert {clip.label for clip in clips} == {"Archery", "Billiards"}
    test = {clip.source for clip in clips if clip.split == "test"}
    assert test == {ucf_name(*clip) for clip in UCF["test"]}
    groups: dict[str, set[str]] = {}
    for clip in clips:
        groups.setdefault(clip.source[: -len("_c01.avi")], set()).add(clip.split)
    assert all(len(splits) == 1 for splits in groups.values())
    val = [clip for clip in clips if clip.split == "val"]
    assert {clip.label for clip in val} == {"Archery", "Billiards"} and len(val) == 4
    assert len({clip.group for clip in clips}) == 12
    assert dataset.notes["splits"].startswith("the lists have train and test: val is 0.2 of the ")


def test_a_division_is_chosen_and_lists_may_be_named_one_by_one(ucf: Path) -> None:
    root, lists = ucf / "UCF-101", ucf / "ucfTrainTestlist"
    second, _ = read(root, lists, fold=2, val_fraction=0)
    assert {clip.source for clip in second if clip.split == "train"} == {
        ucf_name(*clip) for clip in UCF["test"]
    }
    named, _ = read(root, lists / "trainlist02.txt", lists / "testlist02.txt", val_fraction=0)
    assert told(named) == told(second)
    with pytest.raises(BadInput, match="fold 3 is not among the lists; there are: 1, 2"):
        read(root, lists, fold=3)
    only, _ = read(root, lists / "testlist01.txt")
    assert {clip.split for clip in only} == {"test"}


def test_hmdb51_has_a_list_for_each_class(tmp_path: Path, video: Path) -> None:
    root, lists = tmp_path / "hmdb", tmp_path / "testTrainMulti_7030_splits"
    clips = {
        f"{film}_{label}_{view}_nm_np1_ba_goo_{number}.avi": (label, number)
        for film in ("April_09", "Prelinger")
        for label, view in (("brush_hair", "u"), ("eat", "h"))
        for number in (0, 1, 2)
    }
    videos(root, video, [f"{label}/{name}" for name, (label, _) in clips.items()])
    for label in ("brush_hair", "eat"):
        own = {name: number for name, (its, number) in clips.items() if its == label}
        write(
            lists / f"{label}_test_split1.txt", *(f"{name} {sign} " for name, sign in own.items())
        )
        write(lists / f"{label}_test_split2.txt", *(f"{name} 1 " for name in own))
    read_back, dataset = read(root, lists, val_fraction=0)
    expected = {1: "train", 2: "test"}
    assert told(read_back) == {
        (f"{label}/{name}", label, expected[number])
        for name, (label, number) in clips.items()
        if number
    }
    assert dataset.notes["lists"].startswith("in no list: 4 videos (")


@pytest.mark.parametrize("layout", ["{label}/{cut}.mp4", "{cut}.mp4", "val/{label}/{cut}.mkv"])
def test_kinetics_csv_finds_cut_files_wherever_they_lie(
    tmp_path: Path, video: Path, layout: str
) -> None:
    rows = {"-3B32lodo2M": ("arm wrestling", 59, 69), "abcdefghijk": ("zumba", 0, 10)}
    for key, (label, start, stop) in rows.items():
        cut = f"{key}_{start:06d}_{stop:06d}"
        videos(tmp_path / "k", video, [layout.format(label=label.replace(" ", "_"), cut=cut)])
    lines = [f'"{label}",{key},{start},{stop},train' for key, (label, start, stop) in rows.items()]
    gone = [f"zumba,gone{number:07d},1,11,validate" for number in range(5)]
    header = "label,youtube_id,time_start,time_end,split"
    path = write(tmp_path / "annotations.csv", header, *lines, *gone)
    clips, dataset = read(tmp_path / "k", path)
    assert [(clip.label, clip.split, clip.start_s, clip.stop_s) for clip in clips] == [
        ("arm wrestling", "train", 0.0, None),
        ("zumba", "train", 0.0, None),
    ]
    assert dataset.notes[str(path)] == (
        "5 of 7 clips are not there: gone0000000_000001_000011, gone0000001_000001_000011, "
        "gone0000002_000001_000011 and 2 more"
    )
    assert dataset.rejected == {}


def test_kinetics_and_activitynet_cut_stretches_from_whole_videos(
    tmp_path: Path, video: Path
) -> None:
    videos(tmp_path / "k", video, ["abcdefghijk.mp4", "v_lmnopqrstuv.mp4"])
    header = "label,youtube_id,time_start,time_end"
    csv = write(tmp_path / "kinetics_train.csv", header, "zumba,abcdefghijk,0.5,1.5")
    (clip,) = read(tmp_path / "k", csv)[0]
    assert (clip.split, clip.start_s, clip.stop_s) == ("train", 0.5, 1.5)
    stretches = [
        {"label": "Kayaking", "segment": [0, 0.8]},
        {"label": "Surfing", "segment": [1, 2]},
    ]
    database = {
        "lmnopqrstuv": {"subset": "validation", "annotations": stretches},
        "unlabelled1": {"subset": "testing", "annotations": []},
    }
    path = tmp_path / "activity_net.v1-3.min.json"
    path.write_text(json.dumps({"database": database, "taxonomy": [], "version": "1.3"}))
    clips, dataset = read(tmp_path / "k", path)
    assert [(clip.label, clip.start_s, clip.stop_s, clip.split) for clip in clips] == [
        ("Kayaking", 0.0, 0.8, "val"),
        ("Surfing", 1.0, 2.0, "val"),
    ]
    assert "1 of 3 clips have no class" in dataset.notes[str(path)]
    as_json = {
        "abcdefghijk": {
            "annotations": {"label": "zumba", "segment": [0.5, 1.5]},
            "duration": 2.0,
            "subset": "validate",
        }
    }
    path = tmp_path / "kinetics700.json"
    path.write_text(json.dumps(as_json))
    assert [(c.label, c.start_s, c.split) for c in read(tmp_path / "k", path)[0]] == [
        ("zumba", 0.5, "val")
    ]


def test_mmaction_lists_of_videos_name_classes_by_file_or_folder(
    tmp_path: Path, video: Path
) -> None:
    names = ["running a lap/a 1.mp4", "jump/b.mp4", "jump/c.mp4"]
    videos(tmp_path / "data", video, names)
    train = write(tmp_path / "k_train_list_videos.txt", "running a lap/a 1.mp4 7", "jump/b.mp4 0")
    val = write(tmp_path / "k_val_list_videos.txt", "data/k/jump/c.mp4 0")
    clips, dataset = read(tmp_path / "data", train, val)
    expected = {
        ("running a lap/a 1.mp4", "running a lap", "train"),
        ("jump/b.mp4", "jump", "train"),
        ("jump/c.mp4", "jump", "val"),
    }
    assert told(clips) == expected and dataset.notes == {}
    label_map = write(tmp_path / "label_map.txt", *(f"class {n}" for n in range(8)))
    assert {clip.label for clip in read(tmp_path / "data", train, val, label_map)[0]} == {
        "class 0",
        "class 7",
    }
    flat = tmp_path / "flat"
    videos(flat, video, ["a.mp4", "b.mp4"])
    path = write(tmp_path / "list.txt", "a.mp4 10", "b.mp4 2")
    clips, dataset = read(flat, path, val_fraction=0)
    assert [clip.label for clip in clips] == ["10", "2"]
    assert "its classes are numbers; to name them: --set classes=FILE" in dataset.notes[str(path)]


def test_mmaction_lists_of_frames_count_the_images(tmp_path: Path, picture: Path) -> None:
    root = tmp_path / "rawframes"
    folders(root, picture, ["jump/x", "run/y", "run/z"])
    path = write(tmp_path / "train_rawframes.txt", "jump/x 3 1", "run/y 3 0", "run/z 9 0")
    clips, dataset = read(root, path)
    assert told(clips) == {("jump/x", "jump", "train"), ("run/y", "run", "train")}
    assert clips[0].image_fps == 25.0
    assert "holds 3 images, the list counts 9" in dataset.rejected["run/z"]


def test_class_files_may_count_from_one(tmp_path: Path, video: Path) -> None:
    videos(tmp_path / "v", video, ["a.mp4", "b.mp4", "c.mp4"])
    names = write(tmp_path / "classInd.txt", "1 Archery", "2 Billiards", "3 Climbing")
    from_zero = write(tmp_path / "train0.txt", "a.mp4 0", "b.mp4 1")
    from_one = write(tmp_path / "train1.txt", "a.mp4 1", "b.mp4 3")
    unclear = write(tmp_path / "train2.txt", "a.mp4 1", "b.mp4 2")
    for path, expected in (
        (from_zero, ["Archery", "Billiards"]),
        (from_one, ["Archery", "Climbing"]),
    ):
        clips, _ = read(tmp_path / "v", path, classes=str(names), val_fraction=0)
        assert [clip.label for clip in clips] == expected
    with pytest.raises(BadInput, match="counts classes from 1, and the lists may count from 0"):
        read(tmp_path / "v", unclear, classes=str(names))


def test_diving48_reads_numbers_of_frames_and_its_vocabulary(tmp_path: Path, video: Path) -> None:
    root, lists = tmp_path / "rgb", tmp_path / "lists"
    ids = [f"_8Vy3dlHg2w_{number:05d}" for number in range(4)]
    videos(root, video, [f"{name}.mp4" for name in ids])
    lists.mkdir()
    (lists / "Diving48_vocab.json").write_text(
        json.dumps([["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis", "PIKE"]])
    )
    entries = [
        {"vid_name": name, "label": number % 2, "start_frame": 0, "end_frame": 20}
        for number, name in enumerate(ids)
    ]
    entries[1] |= {"start_frame": 5, "end_frame": 15}
    (lists / "Diving48_V2_train.json").write_text(json.dumps(entries[:2]))
    (lists / "Diving48_V2_test.json").write_text(json.dumps(entries[2:]))
    clips, _ = read(root, lists, val_fraction=0)
    assert [(clip.label, clip.split, clip.start_s, clip.stop_s) for clip in clips] == [
        ("Back 15som 05Twis FREE", "test", 0.0, None),
        ("Forward Dive NoTwis PIKE", "test", 0.0, None),
        ("Back 15som 05Twis FREE", "train", 0.0, None),
        ("Forward Dive NoTwis PIKE", "train", 0.5, 1.5),
    ]


def test_jester_and_moments_and_something_something(
    tmp_path: Path, video: Path, picture: Path
) -> None:
    root, lists = tmp_path / "20bn-jester-v1", tmp_path / "annotations"
    folders(root, picture, ["34870", "56557", "129112"])
    write(lists / "jester-v1-labels.csv", "Doing other things", "Drumming Fingers")
    write(lists / "jester-v1-train.csv", "34870;Drumming Fingers")
    write(lists / "jester-v1-validation.csv", "56557;Doing other things")
    write(lists / "jester-v1-test.csv", "129112;")
    clips, dataset = read(root, lists, image_fps=12)
    assert told(clips) == {
        ("34870", "Drumming Fingers", "train"),
        ("56557", "Doing other things", "val"),
    }
    assert dataset.notes[str(lists / "jester-v1-test.csv")] == "1 of 1 clips have no class"

    root = tmp_path / "moments"
    videos(
        root, video, ["training/adult+female+singing/flickr-0-9_10.mp4", "validation/art/x_1.mp4"]
    )
    train = write(
        tmp_path / "trainingSet.csv",
        "adult+female+singing/flickr-0-9_10.mp4,adult+female+singing,4,0",
    )
    val = write(tmp_path / "validationSet.csv", "art/x_1.mp4,art,3,1")
    assert told(read(root, train, val)[0]) == {
        ("training/adult+female+singing/flickr-0-9_10.mp4", "adult+female+singing", "train"),
        ("validation/art/x_1.mp4", "art", "val"),
    }

    videos(tmp_path / "s", video, ["78687.webm"])
    (tmp_path / "train.json").write_text(
        json.dumps([{"id": "78687", "label": "holding a cup", "template": "Holding [something]"}])
    )
    (clip,) = read(tmp_path / "s", tmp_path / "train.json")[0]
    assert clip.split == "train"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.mp4 1 4 9"], "has 3 numbers, which are several classes"),
        (["a.mp4 1 4"], "has 2 numbers, which are several classes"),
        (["x/a 1 4"], "a.mp4 is a video and has two numbers|x/a is a video and has two numbers"),
        (["a.mp4 1", "b.mp4;jump"], "line 1 is path class, line 2 is id;class"),
        (["a.mp4 1", "a.mp4 2"], "a.mp4 is '2', and '1' in"),
        (["label,youtube_id,time_start,time_end", "x,abc,five,9"], "time_start must be seconds"),
        (["label,youtube_id,time_start,time_end,split", "x,abc,1,9,all"], "no split called 'all'"),
        (["Tags,youtube_id,time_start,time_end", "a|b,abc,1,9"], "holds several classes"),
        (["none.mp4 1", "other.mp4 2"], "none of the 2 clips of the lists is in"),
        ([], "is no list of clips: it is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, video: Path, lines: list[str], message: str
) -> None:
    videos(tmp_path / "v", video, ["a.mp4", "b.mp4"])
    path = write(tmp_path / "list.txt", *lines)
    with pytest.raises(BadInput, match=message) as caught:
        read(tmp_path / "v", path)
    assert "\n" not in caught.value.message


def test_a_folder_in_the_list_must_agree_where_names_repeat(tmp_path: Path, video: Path) -> None:
    videos(tmp_path / "v", video, ["jump/1.mp4", "run/1.mp4", "run/2.mp4"])
    path = write(
        tmp_path / "train.txt", "jump/1.mp4 0", "run/1.mp4 1", "swim/1.mp4 2", "elsewhere/2 1"
    )
    clips, dataset = read(tmp_path / "v", path)
    assert told(clips) == {
        ("jump/1.mp4", "0", "train"),
        ("run/1.mp4", "1", "train"),
        ("run/2.mp4", "1", "train"),
    }
    assert "1 of 4 clips are not there: swim/1.mp4" in dataset.notes[str(path)]
    assert dataset.notes["lists"] == "in other folders than the lists say: 1 video (elsewhere/2)"


def test_tables_of_any_header_and_lines_of_any_length_are_read(tmp_path: Path, video: Path) -> None:
    videos(tmp_path / "v", video, ["train/Archery/a.avi", "val/Archery/b.avi", "val/Diving/c.avi"])
    lists = tmp_path / "lists"
    write(lists / "train.csv", "clip_name,clip_path,label", "a,/train/Archery/a.avi,Archery")
    rows = ["b,/val/Archery/b.avi,Archery", "c,/val/Diving/c.avi,Diving"]
    write(lists / "val.csv", "clip_name,clip_path,label", *rows)
    clips, dataset = read(tmp_path / "v", lists)
    assert told(clips) == {
        ("train/Archery/a.avi", "Archery", "train"),
        ("val/Archery/b.avi", "Archery", "val"),
        ("val/Diving/c.avi", "Diving", "val"),
    }
    assert dataset.notes == {}
    for line in ("1 " * 100_000 + "x", "a." * 100_000, "x" * 200_000 + ".mp4 1"):
        path = write(tmp_path / "long.txt", "a.avi 1", line)
        with pytest.raises(BadInput, match="line 2 has over 8192 characters"):
            read(tmp_path / "v", path)
    path = write(tmp_path / "numbers.txt", "1 " * 4000 + "2")
    with pytest.raises(BadInput, match="has 4000 numbers, which are several classes"):
        read(tmp_path / "v", path)


def test_the_csv_setting_names_the_way_out(tmp_path: Path, video: Path) -> None:
    videos(tmp_path / "v", video, ["a.mp4"])
    header = "label,youtube_id,time_start,time_end,split"
    for lines in ([header, "x,a,1,2,train"], ["a.mp4 0"]):
        path = write(tmp_path / "list.csv", *lines)
        result = call(
            "manifest", "folder", tmp_path / "v", "--out", tmp_path / "d", "--set", f"csv={path}"
        )
        assert_refused(result, "lists of published data sets are read by --set lists=FILE")
    result = call(
        *("manifest", "folder", tmp_path / "v", "--out", tmp_path / "d"),
        *("--set", f"lists={path}", "--set", "csv=x.csv"),
    )
    assert_refused(result, "csv and lists both say which clips there are")
