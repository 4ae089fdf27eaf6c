"""File names are bytes: whatever the file system takes as a name goes through every command."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
from support.commands import RECIPE, SPEC, call, fine, process
from support.material import address_video

from pipeline.config.json_files import parse_json, to_json
from pipeline.config.plugins import Settings
from pipeline.train.visualize import NAME_BYTES, file_name

NAMES = (
    b"caf\xe9 1.mp4",  # Latin-1
    b"\xff\xfe\xe9.mp4",
    b"two\nlines\tand a tab %d.mp4",
    "猫が新しいおもちゃで遊んでいる様子を撮影した面白い動画です。.mp4".encode(),
    "Очень длинное название видео про то как кошка играет с новой игрушкой.mp4".encode(),
    b"x" * 246 + b".mp4",
)
LABELS = (b"\xe9t\xe9", "grüßen \U000e0fff".encode())  # the last letter is in no font


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Path:
    """A folder in which a cache and a run have been made of videos with such names."""
    folder = tmp_path_factory.mktemp("names")
    video = address_video(folder / "video.mp4", 0, 12)
    for label in LABELS:
        for name in NAMES:
            path = folder / "videos" / os.fsdecode(label) / os.fsdecode(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(video, path)
    (folder / "address.toml").write_text(SPEC)
    (folder / "tiny.toml").write_text(RECIPE)
    fine("manifest", "folder", folder / "videos", "--out", folder / "data")
    fine("extract", folder / "address.toml", folder / "data", "--out", folder / "caches")
    (cache,) = (folder / "caches").iterdir()
    fine("verify", cache)
    fine("train", folder / "tiny.toml", cache, "--out", folder / "run")
    return folder


def test_every_video_is_cached_under_its_own_name(step):
    (cache,) = (step / "caches").iterdir()
    sources = {f"{os.fsdecode(label)}/{os.fsdecode(name)}" for label in LABELS for name in NAMES}
    planned = json.loads((cache / "cache.json").read_bytes())["plan"]
    assert {name for videos in planned.values() for name in videos} == sources
    state = fine("status", cache, "--json").json
    assert (state["videos"]["stored"], state["failures"]) == (len(sources), {})


def test_a_run_is_scored_drawn_and_reported(step):
    scored = call("evaluate", step / "run", "--split", "train", "--draw", "99", "--json")
    seen, font, drawn_to = scored.err.splitlines()
    assert "seen in training" in seen and font.startswith("no font of this machine has "), drawn_to
    assert scored.code == 0 and os.fsdecode(NAMES[0]) in "".join(scored.json["clips"]), scored
    drawn = sorted(path.name for path in (step / "run/drawn-train").iterdir())
    assert len(drawn) == len(scored.json["clips"])
    assert any("猫が新しい" in name for name in drawn)
    fine("evaluate", step / "run")
    reported = call("report", step / "run", "--out", step / "report")
    assert reported.code == 0, reported
    assert reported.err.startswith("no font of this machine has \U000e0fff: drawn as boxes; ")
    assert reported.err.count("\n") == 1  # and no warnings with lines of source code
    assert (step / "report/report.html").read_bytes().decode("utf-8").count("data:video/mp4") >= 2


def test_a_stream_says_the_label_of_a_name_that_is_no_utf8(step):
    video = step / "videos" / os.fsdecode(LABELS[0]) / os.fsdecode(NAMES[0])
    result = process("stream", step / "run", video)
    assert result.returncode == 0, result
    labels = {json.loads(line)["label"] for line in result.stdout.splitlines()}
    assert labels <= set(map(os.fsdecode, LABELS))


def test_a_rejected_name_that_is_no_utf8_is_printed(step, tmp_path):
    folder = tmp_path / "videos/a"
    folder.mkdir(parents=True)
    os.link(step / "video.mp4", folder / "good.mp4")
    (folder / os.fsdecode(b"bad \xe9.mp4")).write_bytes(b"no media" * 20)
    result = process("manifest", "folder", folder.parent, "--out", tmp_path / "data")
    assert result.returncode == 3 and "a/bad \\udce9.mp4" in result.stdout, result
    assert "1 clip of 1 video (train 1), 1 label\n1 file rejected\n" in result.stdout


class Named(Settings):
    name: str
    numbers: dict[str, tuple[int, int]]


def test_records_keep_every_name_through_json():
    record = Named(
        name="café 猫 \udce9\udcff", numbers={"\udce9": (1, 2), "猫": (0, 1), "\n": (3, 4)}
    )
    text = to_json(record)
    assert parse_json(Named, text, "test", "") == record
    assert "猫".encode() in text and rb"\udce9" in text


def test_a_name_is_kept_where_it_can_be_and_cut_with_a_hash_where_it_is_too_long():
    assert file_name("a/b 1.mp4", ".mp4", set()) == "a__b 1.mp4"
    assert file_name("直剪/é\udce9\n\u202e", ".mp4", set()) == "直剪__é%E9%0A%E2%80%AE.mp4"
    long_id = "п" * (NAME_BYTES // 2)
    assert file_name(long_id, "", set()) == long_id
    names = {file_name(f"{long_id}{letter}", ".mp4", set()) for letter in "пав\udce9"}
    assert len(names) == 4
    for name in names:
        assert len(name.encode()) <= NAME_BYTES + 17
        assert re.fullmatch(r"п+~[0-9a-f]{12}\.mp4", name)
    assert file_name("\n" * 99, "", set()).startswith("%0A" * (NAME_BYTES // 3) + "~")
    assert file_name(unicodedata.normalize("NFD", "é"), "", set()) != file_name("é", "", set())


def test_clips_whose_names_would_be_the_same_get_names_of_their_own():
    taken = set[str]()
    names = [
        file_name(clip_id, ".mp4", taken) for clip_id in ("a/b", "a__b", "a/b.mp4", "a__b.MP4")
    ]
    assert names[0] == "a__b.mp4" and len(taken) == 4
    for name in names[1:]:
        assert re.fullmatch(r"a__b~[0-9a-f]{12}\.mp4", name)
