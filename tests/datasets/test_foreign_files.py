"""What systems, cameras and network drives leave in a user's folder is no video, and is counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import call
from support.media import encode, grey

from pipeline.datasets import folder, playback, ssv2, tum
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.formats.folders import find_media, foreign_kind, list_files


def video(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return encode(path, [grey(level, 32, 32) for level in (20, 90, 160)])


def pictures(path: Path, *sizes: tuple[int, int]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        level = 20 + 40 * (number % 5)
        Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(path / f"{number}.jpg")
    return path


def opened(module, root: Path, **settings) -> DatasetPlugin:
    return module.Dataset(root, module.Settings(**settings))


def test_thumbnails_of_a_synology_drive_are_no_videos(tmp_path):
    for label in ("a", "b"):
        for number in range(3):
            video(tmp_path / "videos" / label / f"clip{number}.mp4")
            thumbnails = tmp_path / "videos" / label / f"@eaDir/clip{number}.mp4"
            pictures(thumbnails, (320, 180), (120, 68), (640, 360))
    result = call("manifest", "folder", tmp_path / "videos", "--out", tmp_path / "data")
    clips, _ = result.out.splitlines()
    assert clips == f"{tmp_path / 'data'}: 6 clips of 6 videos (val 2, train 4), 2 labels"
    assert result.err == "left out: thumbnails 2 (first a/@eaDir)\n"
    shown = call("manifest", "folder", tmp_path / "videos", "--out", tmp_path / "data", "--json")
    assert shown.json["left_out"] == {"thumbnails": {"count": 2, "first": "a/@eaDir"}}
    origin = json.loads((tmp_path / "data/dataset.json").read_text())
    assert origin["left_out"] == shown.json["left_out"]


@pytest.mark.parametrize("module", [folder, playback])
def test_files_and_folders_of_a_system_are_passed_over(tmp_path, module):
    video(tmp_path / "a/clip.mp4")
    for name in (
        ".Trash-1000/files", "$RECYCLE.BIN/S-1-5-21", "System Volume Information", "__MACOSX/a",
        ".AppleDouble", "#recycle/a", "lost+found", "@Recycle", "#snapshot/a",
    ):  # fmt: skip
        video(tmp_path / name / "old.mp4")
        pictures(tmp_path / "a" / name, (32, 32), (32, 32))
    for name in ("Thumbs.db", "._clip.mp4", ".DS_Store", "desktop.ini"):
        (tmp_path / "a" / name).write_bytes(b"\0\5\x16\7")
    data = opened(module, tmp_path)
    assert find_media(data) == ["a/clip.mp4"]
    assert {kind: len(paths) for kind, paths in data.left_out.items()} == {
        "hidden": 2 * 2 + 2,
        "system": 2 * 7 + 2,
    }
    assert (data.rejected, data.ignored) == ({}, 0)


def test_a_folder_named_like_a_video_beside_it_is_none(tmp_path):
    for name in ("a/clip.mp4", "a/x.mkv", "a/y.mov"):
        video(tmp_path / name)
    pictures(tmp_path / "a/clip.mp4.d/clip.mp4", (32, 32), (32, 32))
    pictures(tmp_path / "a/x", (32, 32), (32, 32))  # its frames, taken out of it
    pictures(tmp_path / "a/previews/y.mov", (32, 32), (32, 32))
    pictures(tmp_path / "a/z", (32, 32), (32, 32))
    data = opened(folder, tmp_path)
    assert find_media(data) == ["a/clip.mp4", "a/x.mkv", "a/y.mov", "a/z"]
    assert sorted(data.left_out["pictures beside their video"]) == [
        "a/clip.mp4.d/clip.mp4", "a/previews/y.mov", "a/x",
    ]  # fmt: skip


def test_an_album_is_no_video_and_a_sequence_is_one(tmp_path):
    sequence = pictures(tmp_path / "a/sequence", *[(64, 48)] * 30)
    (sequence / "12.jpg").write_bytes(b"damaged")
    pictures(tmp_path / "a/album", *[(64, 48), (48, 64)] * 9)
    timed = pictures(tmp_path / "a/tracklet", (20, 40), (22, 41), (24, 44))
    (timed / "timestamps.txt").write_text("0\n0.1\n0.2\n")
    data = opened(folder, tmp_path)
    assert find_media(data) == ["a/sequence", "a/tracklet"]
    assert data.left_out == {"pictures of several sizes": ["a/album"]}
    assert data.ignored == 0
    result = call("manifest", "folder", tmp_path, "--out", tmp_path / "data")
    assert "pictures of several sizes 1 (first a/album)" in result.err
    assert "next: if they are a video all the same, name their folder in a CSV" in result.err
    (tmp_path / "list.csv").write_text("path,label\na/album,a\n")
    assert [clip.source for clip in opened(folder, tmp_path, csv="list.csv").clips()] == ["a/album"]


def test_readers_of_official_layouts_walk_by_the_same_rule(tmp_path):
    for name in ("@eaDir/1.webm", "videos/1.webm", ".hidden/1.webm", "__MACOSX/._1.webm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = opened(ssv2, tmp_path)
    assert list_files(data) == ["videos/1.webm"]
    assert {kind: len(paths) for kind, paths in data.left_out.items()} == {
        "thumbnails": 1,
        "hidden": 1,
        "system": 1,
    }
    walked = opened(tum, tmp_path)
    assert [path.name for path, _, _ in walked.walk()] == [tmp_path.name, "videos"]


def test_names_of_users_are_no_names_of_systems():
    for name in ("recycled", "@home", "#1", "trash", "thumbs", "$5", "System", "lost", "clip.mp4"):
        assert foreign_kind(name) is None
    assert foreign_kind("THUMBS.DB") == "system"
