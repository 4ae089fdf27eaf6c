"""CSV files that list clips, as spreadsheets and people of any country write them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from support.commands import assert_refused, call, fine
from support.media import encode, grey

from pipeline.datasets import folder
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.records import Clip

EUROPE = "path;label;start_s;stop_s\r\nall/a.mp4;übung;0,5;1,5\r\nall/b.mp4;übung;;1\r\n"


@pytest.fixture
def root(tmp_path) -> Path:
    """Two videos of 2 s."""
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / "videos/all" / name)
    return tmp_path / "videos"


def video(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return encode(path, [grey(10 * number, 32, 32) for number in range(20)])


def clips(root: Path, csv: object = "labels.csv") -> list[Clip]:
    return list(folder.Dataset(root, folder.Settings(csv=str(csv), val_fraction=0)).clips())


@pytest.mark.parametrize(
    "data",
    [
        EUROPE.encode("utf-8-sig"),
        EUROPE.encode("utf-16"),
        EUROPE.replace(";", "\t").encode(),
        EUROPE.replace("\r\n", "\n").replace(";", "|").encode(),
        EUROPE.replace("\r\n", "\r").encode(),
        ("sep=;\r\n" + EUROPE).encode(),
        EUROPE.replace(";", ",").replace("0,5", '"0,5"').replace("1,5", '"1,5"').encode(),
        EUROPE.replace(",", ".").replace("label", " label ").encode(),
        EUROPE.replace("\r\n", ";;\r\n").encode() + b";;;;;\r\n\r\n",
        EUROPE.replace("all/", "all\\").encode(),
    ],
    ids=["bom", "utf16", "tabs", "bars", "mac", "sep", "quoted", "points", "blank", "windows"],
)
def test_every_dialect_gives_the_same_clips(root, data):
    (root / "labels.csv").write_bytes(data)
    assert [(clip.source, clip.label, clip.start_s, clip.stop_s) for clip in clips(root)] == [
        ("all/a.mp4", "übung", 0.5, 1.5),
        ("all/b.mp4", "übung", 0.0, 1.0),
    ]


@pytest.mark.parametrize(("on_disk", "in_csv"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_both_ways_to_write_a_letter_find_the_file(tmp_path, on_disk, in_csv):
    name = "übung/café 1.mp4"
    video(tmp_path / unicodedata.normalize(on_disk, name))
    (tmp_path / "labels.csv").write_text(
        f"path,label\n{unicodedata.normalize(in_csv, name)},x\n", encoding="utf-8"
    )
    assert [clip.source for clip in clips(tmp_path)] == [unicodedata.normalize(on_disk, name)]


def test_a_path_of_bytes_that_are_no_utf8_finds_the_file(tmp_path):
    video(tmp_path / "plain.mp4").rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    (tmp_path / "labels.csv").write_bytes(b"path,label\ncaf\xe9.mp4,x\n")
    assert [os.fsencode(clip.source) for clip in clips(tmp_path)] == [b"caf\xe9.mp4"]
    (tmp_path / "labels.csv").write_bytes(b"path,label\ncaf\xe9.mp4,\xe9t\xe9\n")
    with pytest.raises(BadInput, match="line 2: label is not UTF-8") as caught:
        clips(tmp_path)
    assert caught.value.hint == "save it as 'CSV UTF-8'"
    (tmp_path / "labels.csv").write_bytes(b"path,label\n\xe9t\xe9.mp4,x\n")
    with pytest.raises(BadInput, match="does not exist") as caught:
        clips(tmp_path)
    assert "or the file is not UTF-8: save it as 'CSV UTF-8'" in caught.value.hint


def test_paths_are_found_from_the_root_the_csv_or_the_working_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = "path,label\n{0}a.mp4,x\n{0}b.mp4,x\n"
    for csv, prefix in (
        ("videos/labels.csv", "all/"),  # root
        ("videos/all/labels.csv", ""),  # folder of the CSV file
        ("videos/all/labels.csv", "../all/"),
        ("labels.csv", "videos/all/"),  # working folder
        ("lists/labels.csv", f"{root}/all/"),  # absolute
        ("lists/labels.csv", "../videos/all/"),
    ):
        (tmp_path / csv).parent.mkdir(exist_ok=True)
        (tmp_path / csv).write_text(table.format(prefix))
        for named in (csv, tmp_path / csv):
            assert [clip.source for clip in clips(Path("videos"), named)] == [
                "all/a.mp4",
                "all/b.mp4",
            ]
    (tmp_path / "elsewhere").symlink_to(root)
    (tmp_path / "labels.csv").write_text(table.format(f"{root}/all/"))
    assert [clip.source for clip in clips(Path("elsewhere"))] == ["all/a.mp4", "all/b.mp4"]


def test_what_is_there_twice_is_said(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video(root / "all/all/a.mp4")
    table = "path,label\nall/a.mp4,x\n"
    (root / "all/labels.csv").write_text(table)
    result = call("manifest", "folder", root, "--out", "data", "--set", "csv=videos/all/labels.csv")
    assert (result.code, result.err) == (0, "")
    assert "\n1 note\n" in result.out
    assert Manifest.load(tmp_path / "data").origin.notes == {
        "videos/all/labels.csv": f"1 of its paths lead to two files; {root}/all/a.mp4 is used, "
        f"not {root}/all/all/a.mp4"
    }
    for path in (root / "labels.csv", tmp_path / "labels.csv"):
        path.write_text(table)
    result = call("manifest", "folder", root, "--out", "data", "--set", "csv=labels.csv", "--json")
    assert result.json["notes"] == {
        "labels.csv": f"is there twice: {root}/labels.csv is read, not {tmp_path}/labels.csv"
    }


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "name;class\na.mp4;x\n",
            ("columns 'path' and 'label' are missing; found: name, class (split by semicolons)",),
        ),
        (
            "path;label;lenght\na.mp4;x;1\n",
            ("no column called 'lenght'; there are: group, label, path",),
        ),
        (
            "path;class\na.mp4;x\n",
            ("no column called 'class'",),
        ),
        ("path;split\na.mp4;val\n", ("'label' is missing; found: path, split (split by semi",)),
        ("path,label,label\na,x,y\n", ("column 'label' is there 2 times",)),
        ("abc/a.mp4,run\n", ("found: abc/a.mp4, run (split by commas); next: the first line",)),
        ("path,label,start_s\nall/a.mp4,x,\"1,234\"\n", ("start_s must be seconds, 0 or more",)),
        ("path;label;start_s\nall/a.mp4;x;1.234,5\n", ("found '1.234,5'",)),
        ("path,label\n../x.mp4,x\n", ("path must lie under", "the folder that holds all videos")),
        ("path,label\nx.mp4,x\n", ("/x.mp4 does not exist; next: paths are relative to one of",)),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_how_it_seems_to_be_split(root, tmp_path, text, parts):
    (root / "labels.csv").write_text(text)
    result = call("manifest", "folder", root, "--out", tmp_path / "d", "--set", "csv=labels.csv")
    assert_refused(result, f"{root}/labels.csv line ", *parts)


def test_videos_without_labels_are_told_what_to_do(root, tmp_path):
    result = call("manifest", "folder", root / "all", "--out", tmp_path / "data")
    assert_refused(
        result,
        f"{root}/all has videos, such as a.mp4, and no folders that are labels; next: put",
        "--set csv=FILE",
        f"stillframe manifest playback {root}/all",
    )


def test_videos_without_labels_are_clips_where_that_is_asked_for(root, tmp_path):
    """Wherever they lie, and told apart by their path."""
    out = tmp_path / "data"
    fine("manifest", "folder", root / "all", "--out", out, "--set", "labelled=false")
    manifest = Manifest.load(out)
    assert manifest.labels == () and {clip.label for clip in manifest.clips} == {None}
    assert [clip.clip_id for clip in manifest.clips] == sorted(
        file.relative_to(root / "all").as_posix() for file in (root / "all").rglob("*.mp4")
    )
    assert set(manifest.splits) <= {"train", "val"}
