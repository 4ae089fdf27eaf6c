"""Boxes from text files: each published layout as a small copy with its true names, read by its
preset; own layouts by settings; and what is wrong in one of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import media
from support.paths import SHARED

from pipeline.config import plugins
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.shapes import box_lists
from pipeline.datasets.shapes.box_columns import Columns, Condition, RowReader
from pipeline.datasets.shapes.box_presets import PRESETS
from pipeline.datasets.shapes.patterns import check_pattern, find
from pipeline.errors import BadInput

NAN = float("nan")
WIDTH, HEIGHT = 64, 48
needs_gt = pytest.mark.skipif(not (SHARED / "gt").is_dir(), reason="no real sequences are there")


@cache
def jpeg() -> bytes:
    content = BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(content, "JPEG")
    return content.getvalue()


def images(folder: Path, count: int, digits: int = 8, first: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:0{digits}d}.jpg").write_bytes(jpeg())
    return folder


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def build(root: Path, out: Path, **settings: Any) -> Manifest:
    """The manifest as it is read back from disk."""
    built = manifest.build("boxes_text", root, out, settings)
    loaded = Manifest.load(out)
    assert loaded == built
    return loaded


def boxes(built: Manifest, clip_id: str) -> np.ndarray:
    """(O, F, 4) in pixels."""
    stored: np.ndarray = built.targets(clip_id)["boxes"].astype(np.float64)
    return np.round(stored * [WIDTH, HEIGHT, WIDTH, HEIGHT], 3)


def splits(built: Manifest) -> dict[str, str]:
    return {clip.clip_id: clip.split for clip in built.clips}


def equal(found: np.ndarray, expected: Iterable[Any]) -> None:
    np.testing.assert_allclose(found, np.array(list(expected), np.float64), atol=1e-3)


# The published layouts


def test_lasot_has_its_flags_and_its_official_test_set(tmp_path: Path) -> None:
    root = tmp_path / "LaSOT"
    for name, kind in (("airplane-1", "airplane"), ("airplane-2", "airplane"), ("zebra-3", "")):
        images(root / kind / name / "img", 4)
        text(
            root / kind / name / "groundtruth.txt",
            "8,6,16,12",
            "9,6,16,12",
            "10,6,16,12",
            "0,0,0,0",
        )
        text(root / kind / name / "full_occlusion.txt", "0,1,0,0")
        text(root / kind / name / "out_of_view.txt", "0,0,0,1")
    built = build(root, tmp_path / "out", preset="lasot")
    assert splits(built) == {"airplane-1": "test", "airplane-2": "train", "zebra-3": "train"}
    assert (built.rejected, built.origin.notes) == ({}, {})
    for clip in built.clips:
        equal(
            boxes(built, clip.clip_id),
            [[[8, 6, 24, 18], [NAN] * 4, [10, 6, 26, 18], [NAN] * 4]],
        )
    assert built.clips[0].image_fps == 30
    assert len(box_lists.OFFICIAL_TEST["lasot"]) == 280


def test_got10k_reads_rates_flags_lists_and_its_three_splits(tmp_path: Path) -> None:
    root = tmp_path / "GOT-10k"
    for split, name in (("train", "GOT-10k_Train_000001"), ("val", "GOT-10k_Val_000001")):
        images(root / split / name, 3)
        text(root / split / name / "groundtruth.txt", *["8.0000,6.0000,16.0000,12.0000"] * 3)
        text(root / split / name / "absence.label", "0", "1", "0")
        text(root / split / name / "cover.label", "8", "5", "0")
        text(
            root / split / name / "meta_info.ini", "[METAINFO]", "anno_fps: 10Hz", "object_class: a"
        )
        text(root / split / "list.txt", name)
    images(root / "test" / "GOT-10k_Test_000001", 3)
    text(root / "test" / "GOT-10k_Test_000001" / "groundtruth.txt", "8.0,6.0,16.0,12.0")
    images(root / "train" / "GOT-10k_Train_000002", 2)
    built = build(root, tmp_path / "out", preset="got10k")
    assert splits(built) == {
        "GOT-10k_Test_000001": "test",
        "GOT-10k_Train_000001": "train",
        "GOT-10k_Val_000001": "val",
    }
    equal(boxes(built, "GOT-10k_Train_000001"), [[[8, 6, 24, 18], [NAN] * 4, [NAN] * 4]])
    by_id = {clip.clip_id: clip for clip in built.clips}
    assert (by_id["GOT-10k_Val_000001"].image_fps, by_id["GOT-10k_Val_000001"].stop_s) == (10, 0.3)
    # A test sequence is all of its frames, though the first alone has a box.
    assert by_id["GOT-10k_Test_000001"].stop_s == 0.3
    assert built.targets("GOT-10k_Test_000001")["boxes_time_s"].tolist() == [0.0]
    assert built.rejected == {}


def test_uav123_parts_are_spans_of_one_video(tmp_path: Path) -> None:
    root = tmp_path / "UAV123"
    images(root / "data_seq" / "UAV123" / "truck4", 1261, 6)
    images(root / "data_seq" / "UAV123" / "car1_s", 2, 6)
    annotations = root / "anno" / "UAV123"
    text(annotations / "truck4_1.txt", *["9,7,16,12"] * 577)
    text(annotations / "truck4_2.txt", "9,7,16,12", "NaN,NaN,NaN,NaN", *["10,7,16,12"] * 683)
    text(annotations / "car1_s.txt", "9,7,16,12", "9,7,16,12")
    text(annotations / "boat1.txt", "9,7,16,12")
    built = build(root, tmp_path / "out", preset="uav123")
    assert [clip.clip_id for clip in built.clips] == ["car1_s", "truck4_1", "truck4_2"]
    part = built.clips[2]
    assert (part.video_id, part.source) == ("truck4", "data_seq/UAV123/truck4")
    assert {clip.split for clip in built.clips[1:]} in ({"train"}, {"val"})
    assert [clip.group for clip in built.clips] == [None, "truck4", "truck4"]
    assert (part.start_s, part.stop_s) == (576 / 30, 1261 / 30)
    time_s = built.targets("truck4_2")["boxes_time_s"]
    assert (len(time_s), time_s[0], time_s[-1]) == (685, 576 / 30, 1260 / 30)
    equal(boxes(built, "truck4_2")[:, :3], [[[8, 6, 24, 18], [NAN] * 4, [9, 6, 25, 18]]])
    assert built.rejected == {}
    assert built.origin.notes.pop("anno/UAV123/{sequence}.txt").startswith("1 of 4 files of truth")
    lost = "1 of 685 boxes have no area inside the frame and count as absent: lines 2"
    assert built.origin.notes == {"anno/UAV123/truck4_2.txt": lost}
    assert len(box_lists.SPANS["uav123"]) == 51


def test_spans_may_come_from_a_file_or_from_the_toolkit(tmp_path: Path) -> None:
    root = tmp_path / "root"
    images(root / "frames" / "a", 6, 6)
    for name in ("a_1", "a_2"):
        text(root / "anno" / f"{name}.txt", *["8,6,16,12"] * 2)
    text(root / "spans.txt", "# name video first last", "a_1 a 1 2", "a_2,a,4,5")
    struct = "seqs={struct('name','%s','path','..\\a\\','startFrame',%d,'endFrame',%d,'nz',6),..."
    text(root / "configSeqs.m", "function seqs", struct % ("a_1", 1, 2), struct % ("a_2", 4, 5))
    for file in ("spans.txt", "configSeqs.m"):
        built = build(
            root,
            tmp_path / file,
            frames="frames/{sequence}",
            truth="anno/{sequence}.txt",
            spans=file,
            image_fps=10,
        )
        assert [(clip.clip_id, clip.start_s, clip.stop_s) for clip in built.clips] == [
            ("a_1", 0.0, 0.2),
            ("a_2", 0.3, 0.5),
        ]
    text(root / "spans.txt", "a_1 a 1 2", "a_2 a 5 9")
    built = build(
        root,
        tmp_path / "o",
        frames="frames/{sequence}",
        truth="anno/{sequence}.txt",
        spans="spans.txt",
    )
    assert built.rejected == {"frames/a": "a_2 is frames 5 to 9 of a, which has 6 here"}


def test_need_for_speed_at_both_rates(tmp_path: Path) -> None:
    root = tmp_path / "NfS"
    line = '0 %d 6 24 18 %d %d 0 1 "Shopping cart"'
    for rate, count in (("240", 16), ("30", 2)):
        images(root / "bag_1" / rate / "bag_1", count, 5)
        rows = [line % (8 + number, number + 1, number == 9) for number in range(16)]
        text(root / "bag_1" / rate / "bag_1.txt", *rows)
    fast = build(root, tmp_path / "fast", preset="nfs240")
    slow = build(root, tmp_path / "slow", preset="nfs30")
    assert (fast.clips[0].image_fps, slow.clips[0].image_fps) == (240, 30)
    expected = np.array([[8 + number, 6, 24, 18] for number in range(16)], np.float64)
    expected[9] = NAN
    equal(boxes(fast, "bag_1"), [expected])
    equal(boxes(slow, "bag_1"), [expected[[0, 8]]])
    assert slow.targets("bag_1")["boxes_time_s"].tolist() == [0, 1 / 30]
    assert (fast.origin.notes, slow.origin.notes) == ({}, {})


def test_trackingnet_reads_its_chunks(tmp_path: Path) -> None:
    root = tmp_path / "TrackingNet"
    for chunk, rows in (("TRAIN_11", 3), ("TEST", 1)):
        images(root / chunk / "frames" / f"{chunk}-a", 3, 1, first=0)
        text(root / chunk / "anno" / f"{chunk}-a.txt", *["8.5,6,16,12"] * rows)
    text(root / "TRAIN_11" / "anno" / "not-there.txt", "8,6,16,12")
    built = build(root, tmp_path / "out", preset="trackingnet")
    assert splits(built) == {"TEST-a": "test", "TRAIN_11-a": "train"}
    equal(boxes(built, "TRAIN_11-a"), [[[8.5, 6, 24.5, 18]] * 3])
    assert {clip.stop_s for clip in built.clips} == {0.1}


def test_vot_reads_rectangles_polygons_masks_and_absence(tmp_path: Path) -> None:
    root = tmp_path / "sequences"
    images(root / "ants" / "color", 5)
    mask = "m10,8,4,5,5,2,2,2,9"  # 0000 0110 0110 ...: ones in columns 1 and 2 of rows 1 and 2
    rows = ["8,6,16,12", "8,6,24,8,20,18,4,16", mask, "nan,nan,nan,nan", "0"]
    text(root / "ants" / "groundtruth.txt", *rows)
    text(root / "ants" / "sequence", "channels.color=color/%08d.jpg", "fps=25")
    images(root / "two" / "color", 1)
    text(root / "two" / "groundtruth_a.txt", "8,6,16,12")
    text(root / "two" / "groundtruth_b.txt", "9,6,16,12")
    images(root / "unlisted" / "color", 1)
    text(root / "list.txt", "ants", "two")
    built = build(root, tmp_path / "out", preset="vot")
    assert [clip.clip_id for clip in built.clips] == ["ants", "two"]
    assert [clip.image_fps for clip in built.clips] == [25, 30]
    equal(
        boxes(built, "ants"),
        [[[8, 6, 24, 18], [4, 6, 24, 18], [11, 9, 13, 11], [NAN] * 4, [NAN] * 4]],
    )
    equal(boxes(built, "two"), [[[8, 6, 24, 18]], [[9, 6, 25, 18]]])


def test_mot_keeps_pedestrians_that_are_not_to_be_ignored(tmp_path: Path) -> None:
    root = tmp_path / "MOT17"
    sequence = root / "train" / "MOT17-02-DPM"
    images(sequence / "img1", 4, 6)
    text(
        sequence / "gt" / "gt.txt",
        "1,2,9,7,16,12,1,1,1.0",
        "2,2,10,7,16,12,1,1,0.5",
        "4,2,11,7,16,12,0,1,0.0",
        "1,11,1,1,4,4,1,1,1",
        "1,3,1,1,60,40,0,8,1",
        "2,4,1,1,60,40,1,3,1",
    )
    text(sequence / "seqinfo.ini", "[Sequence]", "name=MOT17-02-DPM", "frameRate=14", "seqLength=4")
    images(root / "test" / "MOT17-01-DPM" / "img1", 2, 6)
    built = build(root, tmp_path / "out", preset="mot")
    assert splits(built) == {"MOT17-02-DPM": "train"}
    assert built.clips[0].image_fps == 14
    equal(
        boxes(built, "MOT17-02-DPM"),
        [
            [[8, 6, 24, 18], [9, 6, 25, 18], [NAN] * 4],
            [[0, 0, 4, 4], [NAN] * 4, [NAN] * 4],
        ],
    )
    assert built.targets("MOT17-02-DPM")["boxes_time_s"].tolist() == [0, 1 / 14, 3 / 14]
    assert built.rejected == {}
    hidden = "is of a test set, whose boxes are not published"
    assert built.origin.notes == {"test/MOT17-01-DPM/img1": hidden}
    slow = build(root, tmp_path / "slow", preset="mot", image_fps=25)
    assert slow.clips[0].image_fps == 25


def test_tiny_tlp_has_six_columns_and_otb_reads_what_it_did(tmp_path: Path) -> None:
    root = tmp_path / "TinyTLP"
    images(root / "CarChase2" / "img", 3, 5)
    rows = ["1,8,6,16,12,0", "2,9,6,16,12,1", "3,10,6,16,12,0"]
    text(root / "CarChase2" / "groundtruth_rect.txt", *rows)
    images(root / "Car4" / "img", 2, 4)
    text(root / "Car4" / "groundtruth_rect.txt", "9,7,16,12", "10 7\t16,12")
    tiny = build(root, tmp_path / "tlp", preset="tlp")
    equal(boxes(tiny, "CarChase2"), [[[8, 6, 24, 18], [NAN] * 4, [10, 6, 26, 18]]])
    assert tiny.rejected == {
        "Car4/img": "groundtruth_rect.txt line 1: wanted 6 columns (frame,x,y,w,h,lost), found 4 in "
        "'9,7,16,12'"
    }
    otb = build(root, tmp_path / "otb", preset="otb")
    equal(boxes(otb, "Car4"), [[[8, 6, 24, 18], [9, 6, 25, 18]]])
    assert list(otb.rejected) == ["CarChase2/img"]


@needs_gt
def test_real_otb_by_preset_and_by_settings_is_what_otb_reads(tmp_path: Path) -> None:
    root = SHARED / "gt" / "otb"
    special = manifest.build("otb", root, tmp_path / "otb", {})
    by_settings = {
        "frames": "{sequence}/img",
        "truth": "{sequence}/groundtruth_rect*.txt",
        "separator": "comma",
        "first_pixel": 1,
    }
    for number, settings in enumerate(({"preset": "otb"}, by_settings)):
        built = build(root, tmp_path / str(number), **settings)
        assert [clip.clip_id for clip in built.clips] == ["Car4", "jogging"]
        for one, other in zip(built.clips, special.clips, strict=True):
            assert (one.start_s, one.stop_s, one.source) == (
                other.start_s,
                other.stop_s,
                other.source,
            )
            mine, theirs = built.targets(one.clip_id), special.targets(other.clip_id)
            np.testing.assert_array_equal(mine["boxes"], theirs["boxes"])
            np.testing.assert_array_equal(mine["boxes_time_s"], theirs["boxes_time_s"])
    # The first line of Car4 is 70,51,107,87 of 360 x 240 pixels.
    first = built.targets("Car4")["boxes"][0, 0]
    np.testing.assert_allclose(
        first, np.array([69, 50, 176, 137]) / [360, 240, 360, 240], rtol=1e-6
    )


# Own layouts


def test_splits_are_drawn_named_or_listed_and_never_divide_a_group(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(10):
        images(root / f"s{number}" / "img", 1)
        text(root / f"s{number}" / "groundtruth.txt", "8,6,16,12")
    drawn = splits(build(root, tmp_path / "drawn"))
    assert sorted(drawn.values()) == ["train"] * 8 + ["val"] * 2
    text(root / "val.txt", "s1", "s2")
    listed = splits(build(root, tmp_path / "listed", split_lists={"val": "val.txt"}))
    named = splits(build(root, tmp_path / "named", val_sequences=["s1", "s2"]))
    expected = {f"s{number}": "val" if number in (1, 2) else "train" for number in range(10)}
    assert listed == named == expected
    mot = tmp_path / "MOT17"
    for name in ("MOT17-02-DPM", "MOT17-02-SDP", "MOT17-04-DPM", "MOT17-04-SDP"):
        images(mot / "train" / name / "img1", 1)
        text(mot / "train" / name / "gt" / "gt.txt", "1,1,9,7,16,12,1,1,1")
    built = build(mot, tmp_path / "mot", preset="mot", val_fraction=0.5)
    of_group = {(clip.group, clip.split) for clip in built.clips}
    assert sorted(group for group, _ in of_group) == ["MOT17-02", "MOT17-04"]
    assert sorted(split for _, split in of_group) == ["train", "val"]


def test_videos_take_their_own_times(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    frames = [media.grey(20 * number, HEIGHT, WIDTH) for number in range(6)]
    media.encode(root / "a.mp4", frames, rate=12)
    text(root / "a.txt", "frame;left", "0;0.125;0.125;0.375;0.375", "4;0.25;0.125;0.5;0.375")
    built = build(
        root,
        tmp_path / "out",
        frames="{sequence}.mp4",
        truth="{sequence}.txt",
        columns="frame,x1,y1,x2,y2",
        separator="semicolon",
        header_lines=1,
        fractions=True,
        frame_numbers="from_0",
    )
    (clip,) = built.clips
    assert (clip.source, clip.start_s, clip.image_fps) == ("a.mp4", 0.0, None)
    assert clip.stop_s == pytest.approx(5 / 12)
    np.testing.assert_allclose(built.targets("a")["boxes_time_s"], [0, 4 / 12], atol=1e-6)
    equal(boxes(built, "a"), [[[8, 6, 24, 18], [16, 6, 32, 18]]])


def test_frames_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    root = images(tmp_path / "root" / "seq", 3, first=101).parent
    text(
        root / "seq.csv",
        "101 cat 8 6 23 17",
        "103 cat 9 6 24 17",
        "103 dog 1 1 2 2",
        "250 cat 1 1 2 2",
    )
    built = build(
        root,
        tmp_path / "out",
        frames="{sequence}",
        truth="{sequence}.csv",
        columns="frame,id,x1,y1,x2,y2",
        inclusive=True,
        frame_numbers="names",
        image_fps=10,
    )
    equal(boxes(built, "seq"), [[[8, 6, 24, 18], [9, 6, 25, 18]], [[NAN] * 4, [1, 1, 3, 3]]])
    assert built.targets("seq")["boxes_time_s"].tolist() == [0, 0.2]
    assert built.origin.notes == {
        "seq.csv": "1 of 4 boxes are of frames that are not there: lines 4"
    }


def test_conditions_are_of_numbers_and_of_words(tmp_path: Path) -> None:
    file = text(
        tmp_path / "a.txt",
        '1 1 2 2 0.9 "two words"',
        '1 1 2 2 0.1 "two words"',
        '1 1 2 2 0.9 "other"',
    )
    columns = Columns.parse("cx,cy,w,h,visibility,label", "columns")
    rules = [Condition.parse("visibility>0.5", "keep"), Condition.parse("label!=other", "keep")]
    rows = RowReader(columns, "any", 0, rules).read(file)
    assert rows.is_kept.tolist() == [True, False, False]
    assert rows.xyxy.tolist() == [[0, 0, 2, 2]] * 3


def test_patterns_find_fields_any_folders_and_nothing_of_the_system(tmp_path: Path) -> None:
    for path in ("a/x/img", "b/y/img", "z/img", ".git/q/img", "@eaDir/q/img", "a/x/x"):
        (tmp_path / path).mkdir(parents=True)
    found = find(tmp_path, "**/{sequence}/img")
    assert [(place.fields["**"], place.fields["sequence"]) for place in found] == [
        ("a", "x"),
        ("b", "y"),
        ("", "z"),
    ]
    assert [place.path for place in find(tmp_path, "**/{sequence}/img", {"**": "b"})] == [
        tmp_path / "b" / "y" / "img"
    ]
    assert [place.fields for place in find(tmp_path, "a/{sequence}/{sequence}")] == [
        {"sequence": "x"}
    ]
    (tmp_path / "b" / "y" / "loop").symlink_to(tmp_path)
    assert len(find(tmp_path, "b/**/img")) >= 1
    for wrong in ("/a", "../a", "a//b", "a\\b", "a**", "**/**", "{a", ""):
        with pytest.raises(BadInput):
            check_pattern(wrong, "frames")


# What is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_sequences": "b"}, "no sequence called 'b'"),
        ({"preset": "lasott"}, "no preset called 'lasott'"),
        ({"columns": "x,y,w"}, "wanted one box among the columns"),
        ({"columns": "x,y,w,h,x1,y1,x2,y2"}, "wanted one box among the columns"),
        ({"columns": "x;y;w;h"}, "is no name"),
        ({"columns": "x,y,w,h,h"}, "'h' stands twice"),
        ({"keep": ["lost"]}, "wanted a comparison"),
        ({"keep": ["lost=0"]}, "there is no column 'lost'"),
        ({"keep": ["x>a"]}, "compares with a number"),
        ({"frames": "img"}, "wanted {sequence}"),
        ({"frames": "/data/{sequence}"}, "a path below the root"),
        ({"absent_files": ["a.txt"]}, "wanted a comparison"),
        ({"fps_file": "seqinfo.ini"}, "a colon and a key"),
        ({"separator": "colon"}, "'any', 'comma'"),
        ({"spans": "spans.txt"}, "spans.txt cannot be read"),
        ({"frames": "{sequence}/images"}, "holds no sequences"),
    ],
)
def test_a_wrong_setting_is_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    images(tmp_path / "root" / "a" / "img", 1)
    with pytest.raises(BadInput) as caught:
        manifest.build("boxes_text", tmp_path / "root", tmp_path / "out", settings)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_odd_lines_and_folders_are_said(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for split, name in (("train", "a"), ("dev", "b")):
        images(root / split / name, 2)
        lines = ("1,7,8,6,16,12", "", "2,7,8,6,16,12", "2,7,9,6,16,12", "9,7,9,6,16,12")
        text(root / "anno" / f"{name}.txt", "\ufeff# frame,id,box", *lines, "", "")
        text(root / split / f"{name}.ini", "rate=fast")
    images(root / "anno" / "empty", 0)
    built = build(
        root,
        tmp_path / "out",
        frames="{split}/{sequence}",
        truth="anno/{sequence}.txt",
        columns="frame,id,x,y,w,h",
        fps_file="{split}/{sequence}.ini:rate",
        image_fps=12,
    )
    assert splits(built) == {"a": "train", "b": "train"}
    equal(boxes(built, "a"), [[[8, 6, 24, 18], [9, 6, 25, 18]]])
    odd = (
        "1 of 4 boxes are of frames that are not there: lines 6; "
        "1 lines repeat a frame of their object, the last counts"
    )
    assert (built.rejected, built.origin.notes) == (
        {},
        {
            "anno/a.txt": odd,
            "anno/b.txt": odd,
            "{split}/{sequence}": "1 of 2 sequences lie in no folder of a split and are train: b",
            "{split}/{sequence}.ini:rate": "2 of its files say no rate that is taken, so it is 12: "
            "dev/b.ini, train/a.ini",
        },
    )
    # A line that is missing would move every later box to the frame before its own.
    text(root / "anno" / "a.txt", "8,6,16,12", "", "8,6,16,12")
    own = {"frames": "{split}/{sequence}", "truth": "anno/{sequence}.txt"}
    text(root / "anno" / "b.txt", "8,6,16,12", "8,6,16,12")
    built = build(root, tmp_path / "gap", **own)
    assert built.rejected == {"train/a": "a.txt line 2: is empty, and every line is a frame"}


def test_a_preset_is_guessed_from_where_files_lie(tmp_path: Path) -> None:
    images(tmp_path / "cat" / "cat-1" / "img", 1)
    text(tmp_path / "cat" / "cat-1" / "groundtruth.txt", "8,6,16,12")
    with pytest.raises(BadInput) as caught:
        manifest.build("boxes_text", tmp_path, tmp_path / "out", {})
    assert caught.value.message.endswith("holds no sequences at {sequence}/img")
    assert caught.value.hint == "its files lie as those of --set preset=lasot"


def test_one_odd_file_drops_its_sequence_and_no_other(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("good", "word", "flags", "bytes", "none", "double"):
        images(root / name / "img", 2)
        text(root / name / "groundtruth.txt", "8,6,16,12", "8,6,16,12")
        text(root / name / "lost.txt", "0", "0")
    text(root / "word" / "groundtruth.txt", "8,6,16,12", "8,six,16,12")
    text(root / "flags" / "lost.txt", "0")
    (root / "bytes" / "groundtruth.txt").write_bytes(b"\xff\xfe\x00,1\n")
    (root / "none" / "groundtruth.txt").unlink()
    images(root / "more" / "double" / "img", 1)
    built = build(
        root,
        tmp_path / "out",
        frames="**/{sequence}/img",
        truth="**/{sequence}/groundtruth.txt",
        absent_files=["**/{sequence}/lost.txt=1"],
    )
    assert [clip.clip_id for clip in built.clips] == ["double", "good"]
    assert built.rejected.pop("bytes/img").startswith("groundtruth.txt line 1: wanted 4 columns")
    assert built.rejected == {
        "flags/img": "groundtruth.txt has 2 lines, and lost.txt 1 numbers",
        "more/double/img": "there is a sequence 'double' at double/img",
        "none/img": "has no groundtruth.txt with boxes",
        "word/img": "groundtruth.txt line 2: wanted numbers (x,y,w,h), found '8,six,16,12'",
    }


def test_every_preset_is_valid_and_named_in_the_settings() -> None:
    plugin = plugins.load("dataset", "boxes_text")
    said = plugin.Settings.model_fields["preset"].description
    for name in PRESETS:
        assert plugin.Settings(preset=name).frames == PRESETS[name]["frames"]
        assert name in said.replace(",", " ").replace(".", " ").split()
