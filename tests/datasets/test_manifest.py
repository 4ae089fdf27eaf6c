"""A manifest says the same in the same bytes, and refuses everything that would make it lie."""

from __future__ import annotations

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.material import LENGTHS

from pipeline.datasets import world
from pipeline.datasets.formats import annotations
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.checks import check_clips
from pipeline.datasets.manifest.jsonl import from_lines, is_of, to_line
from pipeline.datasets.manifest.manifest import Manifest, build
from pipeline.datasets.synthetic import plane
from pipeline.errors import BadInput, StillframeError
from pipeline.records import Clip, Video
from pipeline.video.probe import Probe, probe

SMALL = {"clips_per_class": 2, "frames": 3, "size_px": 32, "val_fraction": 0.5}
LINE = {
    "clip_id": "a",
    "video_id": "v",
    "source": "v.mp4",
    "start_s": 0.0,
    "stop_s": 1.0,
    "split": "train",
    "label": "x",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 16 clips; tests that change it copy it."""
    out = tmp_path_factory.mktemp("manifest")
    build("world", None, out, SMALL)
    return out


def write(folder: Path, lines: list[Any], labels: list[str] | None = None, **changes: Any) -> Path:
    """A manifest folder with these lines (dictionaries, or text as it is) and a dataset.json that fits them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
    ).encode()
    (folder / "manifest.jsonl").write_bytes(text)
    origin = {
        "dataset": "folder",
        "settings": {},
        "root": ".",
        "labels": ["x"] if labels is None else labels,
        "rejected": {},
    }
    origin |= {"ignored": 0, "manifest_sha256": hashlib.sha256(text).hexdigest()} | changes
    (folder / "dataset.json").write_text(json.dumps(origin))
    return folder


def load_error(folder: Path) -> BadInput:
    with pytest.raises(BadInput) as caught:
        Manifest.load(folder)
    return caught.value


# What is written

FILES = ("manifest.jsonl", "targets.h5", "videos.jsonl", "dataset.json")
"""Of a manifest without texts."""


def test_two_builds_are_the_same_bytes(small: Path, tmp_path: Path) -> None:
    built = build("world", None, tmp_path, SMALL)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (small / name).read_bytes()
    assert built == Manifest.load(tmp_path)
    videos = sorted((tmp_path / "videos").iterdir())
    assert len(videos) == 16
    assert all(file.read_bytes() == (small / "videos" / file.name).read_bytes() for file in videos)
    assert not list(tmp_path.rglob("*.partial"))


def test_what_a_manifest_says(small: Path) -> None:
    loaded = Manifest.load(small)
    assert loaded.labels == plane.LABELS
    assert loaded.splits == ("train", "val")
    assert loaded.split("train") == list(range(8))
    assert loaded.split("val") == list(range(8, 16))
    assert loaded.root == small.resolve() == loaded.folder
    clips, targets = (
        hashlib.sha256((small / name).read_bytes()).hexdigest()
        for name in ("manifest.jsonl", "targets.h5")
    )
    assert loaded.digest == hashlib.sha256(f"{clips}{targets}".encode()).hexdigest()
    assert loaded.rejected == {}
    assert loaded.videos[8] == Video("approaching_0001", "videos/approaching_0001.mp4")
    assert len(loaded.videos) == 16
    first = (small / "manifest.jsonl").read_text().splitlines()[0]
    assert first == (
        '{"clip_id": "approaching_0000", "video_id": "approaching_0000", "source": "videos/approaching_0000.mp4", '
        '"start_s": 0.0, "stop_s": 0.25, "split": "train", "label": "approaching"}'
    )
    assert json.loads((small / "dataset.json").read_text()) == {
        "dataset": "world",
        "settings": world.Settings(**SMALL).model_dump(mode="json"),
        "root": ".",
        "labels": list(plane.LABELS),
        "rejected": {},
        "notes": {},
        "left_out": {},
        "ignored": 0,
        "manifest_sha256": clips,
        "targets_sha256": targets,
        "targets_bytes": (small / "targets.h5").stat().st_size,
        "videos_sha256": hashlib.sha256((small / "videos.jsonl").read_bytes()).hexdigest(),
        "clock": "first_frame",
    }
    assert loaded.facts == {video.video_id: probe(small / video.source) for video in loaded.videos}


def test_targets_come_back_as_they_were(small: Path) -> None:
    loaded = Manifest.load(small)
    assert loaded.has_targets
    plugin = world.Dataset(small, world.Settings(**SMALL))
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(loaded.targets, [clip.clip_id for clip in loaded.clips] * 3))
    for clip, found in zip(loaded.clips * 3, stored, strict=True):
        wanted = plugin.targets(clip)
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert found[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(found[name], wanted[name])
    only = loaded.targets(loaded.clips[-1].clip_id, ["boxes", "boxes_time_s", "text"])
    assert sorted(only) == ["boxes", "boxes_time_s"]
    assert loaded.targets("no such clip") == {}


def test_targets_of_ids_with_slashes_stay_apart(tmp_path: Path) -> None:
    class Nested(world.Dataset):
        def targets(self, clip: Clip) -> dict[str, np.ndarray]:
            if clip.clip_id == "a/b":
                return {}
            return {"boxes": np.full((1, 1, 4), len(clip.clip_id)), "boxes_time_s": np.zeros(1)}

    nested = Nested(tmp_path, world.Settings())
    clips = tuple(
        Clip(name, name, f"{name}.mp4", "train")
        for name in ("a", "a/b", "a/b/c.mp4#1 x2", ".", "\udce9")
    )
    origin = manifest.Origin(
        dataset="x",
        settings={},
        root=".",
        labels=(),
        rejected={"\udce9": "?"},
        ignored=0,
        manifest_sha256="",
    )
    origin = manifest._write(tmp_path, nested, clips, origin, b"")
    for clip in clips:
        found = Manifest(tmp_path, tmp_path, clips, origin).targets(clip.clip_id)
        assert {name: array.tolist() for name, array in found.items()} == (
            {}
            if clip.clip_id == "a/b"
            else {"boxes": [[[len(clip.clip_id)] * 4]], "boxes_time_s": [0]}
        )
    with h5py.File(tmp_path / "targets.h5") as file:
        assert len(file) == 4


def test_every_field_of_a_clip_survives(tmp_path: Path) -> None:
    clips = [
        Clip("a", "v", "sub/v.mp4", "train", 0.1, None, "x", reverse=True, speed=2.5),
        Clip("b", "images", "images", "val", 1 / 3, 2.0, "caf\u00e9 \udce9", image_fps=23.976),
    ]
    lines = [to_line(clip).rstrip("\n") for clip in clips]
    assert lines[0] == (
        '{"clip_id": "a", "video_id": "v", "source": "sub/v.mp4", "start_s": 0.1, "stop_s": null, "split": "train", '
        '"label": "x", "reverse": true, "speed": 2.5}'
    )
    said = {"labels": ["caf\u00e9 \udce9", "x"]}
    loaded = Manifest.load(write(tmp_path, lines, **said, clock="first_frame"))
    assert list(loaded.clips) == clips
    # A manifest that does not say counts by the file, as all did once.
    old = Manifest.load(write(tmp_path, lines, **said))
    assert list(old.clips) == [replace(clip, clock="file") for clip in clips]
    assert loaded.videos == (Video("v", "sub/v.mp4"), Video("images", "images", 23.976))
    assert not loaded.has_targets
    assert loaded.targets("a") == {}


def test_a_rebuild_leaves_no_old_targets(small: Path, tmp_path: Path) -> None:
    videos = tmp_path / "mine"
    (videos / "cats").mkdir(parents=True)
    shutil.copy(small / "videos" / "left_0000.mp4", videos / "cats" / "a.mp4")
    (videos / "cats" / "b.mp4").write_bytes(b"broken")
    (videos / "cats" / "c.txt").touch()
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(small / "targets.h5", out / "targets.h5")
    built = build("folder", videos, out, {})
    assert not built.has_targets
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "manifest.jsonl",
        "videos.jsonl",
    ]
    assert list(built.rejected) == ["cats/b.mp4"]
    assert built.origin.ignored == 1
    assert built.origin.root == str(videos.resolve())
    assert Manifest.load(out).root == videos.resolve()
    moved = videos.rename(tmp_path / "moved")
    assert Manifest.load(out, moved).root == moved.resolve()
    assert Manifest.load(out).clips == built.clips  # training from a cache needs no videos


def test_headers_are_read_once(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the data set has looked at goes into videos.jsonl as it is."""
    read: list[str] = []

    def counted(path: Path, image_fps: float | None = None) -> Probe:
        read.append(path.relative_to(videos).as_posix())
        return probe(path, image_fps)

    for module in (annotations, manifest):
        monkeypatch.setattr(module, "probe", counted)
    built = build("folder", videos, tmp_path, {})
    assert sorted(read) == sorted(LENGTHS)
    assert Manifest.load(tmp_path).facts == {
        video.video_id: probe(videos / video.source) for video in built.videos
    }


# What cannot be built


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "my_videos").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(BadInput) as caught:
        build("folder", tmp_path / "my_video", tmp_path / "out", {})
    assert caught.value.message == f"folder of videos {tmp_path / 'my_video'} does not exist"
    assert caught.value.hint == f"did you mean {tmp_path / 'my_videos'}?"
    with pytest.raises(BadInput, match=r"folder of videos .*file is a file, not a folder$"):
        build("folder", tmp_path / "file", tmp_path / "out", {})
    with pytest.raises(
        BadInput, match=r"^dataset 'folder' reads videos of yours and was given no folder$"
    ):
        build("folder", None, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_dataset_or_setting_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^no dataset called 'word'; there are: ") as caught:
        build("word", tmp_path, tmp_path, {})
    assert caught.value.hint == "did you mean 'world'?"
    with pytest.raises(
        BadInput, match=r"^dataset 'world': unknown key 'frame' \(did you mean 'frames'\?\)$"
    ):
        build("world", None, tmp_path, {"frame": 3})


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for number in range(5):
        (tmp_path / "cats" / f"{number}.mp4").touch()
    with pytest.raises(BadInput) as caught:
        build("folder", tmp_path, tmp_path / "out", {})
    assert caught.value.message.startswith(
        f"dataset 'folder': none of 5 videos in {tmp_path} can be used: cats/0.mp4: "
    )
    assert "; cats/1.mp4: " in caught.value.message
    assert caught.value.message.endswith("; and 2 more")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"clip_id": "a"}, "here line 2: clip_id 'a' is taken by line 1"),
        ({"split": "val"}, "here line 2: video 'v' is in split 'val' here and in 'train' before"),
        ({"label": None}, "here: line 1 has a label and line 2 has none"),
        (
            {"video_id": "w", "source": "/w.mp4"},
            "here line 2: source must lie under the root, found '/w.mp4'",
        ),
        (
            {"video_id": "w", "source": "a/../../w.mp4"},
            "here line 2: source must lie under the root, found 'a/../../w.mp4'",
        ),
    ],
)
def test_clips_that_contradict_each_other(second: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_clips([Clip(**LINE), Clip(**{**LINE, "clip_id": "b", **second})], "here", "line")
    assert caught.value.message == message


def test_a_video_is_one_file() -> None:
    with pytest.raises(
        BadInput, match=r"^here line 2: video 'v' is .*w.mp4.* here and .*v.mp4.* before$"
    ):
        check_clips(
            [Clip(**LINE), Clip(**{**LINE, "clip_id": "b", "source": "w.mp4"})], "here", "line"
        )


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for root, out in (
        (None, file),
        (None, file / "deeper"),
        (file, tmp_path / "out"),
        (file / "a" / "b", tmp_path / "out"),
    ):
        with pytest.raises(BadInput) as caught:
            build("world", root, out, SMALL)
        assert (
            caught.value.message == f"{root or out} cannot be made: {file} is a file, not a folder"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written(small: Path, tmp_path: Path) -> None:
    (tmp_path / ".manifest.jsonl.partial").mkdir()
    with pytest.raises(StillframeError) as caught:
        build("world", small, tmp_path, SMALL)
    assert (
        caught.value.message
        == f"cannot read or write {tmp_path / '.manifest.jsonl.partial'}: Is a directory"
    )
    assert (type(caught.value), caught.value.exit_code) == (StillframeError, 1)


# What cannot be loaded


def test_an_edited_manifest_is_refused(small: Path, tmp_path: Path) -> None:
    for name in ("manifest.jsonl", "dataset.json"):
        shutil.copy(small / name, tmp_path / name)
    path = tmp_path / "manifest.jsonl"
    path.write_text(path.read_text().replace('"val"', '"train"', 1))
    error = load_error(tmp_path)
    assert (
        error.message
        == f"{path} was edited after it was built: dataset.json has another sha256 for it"
    )
    assert error.hint == "build it again with: stillframe manifest"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[1]", ": wanted a JSON object, found [1]"),
        ({**LINE, "lable": "x"}, ": no key called 'lable'; there are: clip_id, group, image_fps, label, reverse, source, speed, "
         "split, start_s, stop_s, video_id"),
        ({key: LINE[key] for key in LINE if key != "split"}, ": key 'split' is missing"),
        ({**LINE, "start_s": "0"}, ': start_s must be a float, found "0"'),
        ({**LINE, "stop_s": float("inf")}, ": stop_s must be a float, found Infinity"),
        ({**LINE, "reverse": 1}, ": reverse must be a bool, found 1"),
        ({**LINE, "speed": True}, ": speed must be a float, found true"),
        ({**LINE, "source": None}, ": source must be a str, found null"),
        ({**LINE, "speed": 0}, ": speed must be above 0, found 0.0"),
        ({**LINE, "stop_s": 0}, ": wanted 0 <= start_s < stop_s, found [0.0, 0.0)"),
        ({**LINE, "split": ""}, ": clip_id, video_id, source and split must not be empty"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    first = {**LINE, "clip_id": "first", "start_s": 0}  # a whole number is a number
    error = load_error(write(tmp_path, [first, line]))
    assert (
        error.message
        == f"{tmp_path / 'manifest.jsonl'} line 2{'' if message.startswith(':') else ' '}{message}"
    )


CLIPS = st.builds(
    Clip,
    st.text(min_size=1),
    st.text(min_size=1),
    st.text(min_size=1),
    st.sampled_from(["train", "val"]),
    st.floats(0, 10),
    st.none() | st.floats(11, 20),
    st.none() | st.text(),
    st.booleans(),
    st.floats(0.1, 10),
    st.none() | st.floats(1, 60),
)


@given(st.lists(CLIPS))
def test_lines_come_back_as_clips(clips: list[Clip]) -> None:
    assert from_lines([to_line(clip).rstrip("\n") for clip in clips], "x") == tuple(clips)


@given(st.lists(CLIPS, min_size=1), st.data())
def test_lines_of_some_videos_are_told_by_their_ids_alone(clips: list[Clip], data) -> None:
    """Also where these have quotes, backslashes or bytes that are no UTF-8."""
    ids = data.draw(st.sets(st.sampled_from([clip.video_id for clip in clips])))
    lines = [to_line(clip).rstrip("\n") for clip in clips]
    some = from_lines(lines, "x", wanted=ids.__contains__)
    assert some == tuple(clip for clip in clips if clip.video_id in ids)
    facts = [json.dumps({"video_id": clip.video_id, "fps": 1.0}) for clip in clips]
    of_ids = [is_of(line, ids.__contains__) for line in facts]
    assert of_ids == [clip.video_id in ids for clip in clips]


GOOD, NEXT = json.dumps(LINE), json.dumps({**LINE, "clip_id": "b"})


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([f"{GOOD}, {NEXT}", '{"clip_id": "c"', GOOD[1:]], 1),
        ([GOOD[:-1] + ', "label": [{}', "{}]}", f"{NEXT}, {NEXT}"], 1),
        ([f"{GOOD}, [{{}}", "{}], {}", NEXT], 1),
        ([GOOD, "", NEXT], 2),
        ([GOOD, f"{NEXT},"], 2),
    ],
)
def test_every_line_is_json_by_itself(lines: list[str], number: int) -> None:
    """Also where all of them together are."""
    with pytest.raises(BadInput, match=f"^x line {number} is not JSON: "):
        from_lines(lines, "x")


def test_lines_are_counted_from_the_first() -> None:
    with pytest.raises(BadInput, match=r"^x line 10003: key 'label' is missing"):
        from_lines([*[GOOD] * 10_002, GOOD.replace(', "label": "x"', ""), "{"], "x")


def test_damaged_manifests(small: Path, tmp_path: Path) -> None:
    assert load_error(tmp_path / "none").message == (
        f"{tmp_path / 'none'} is no manifest: manifest.jsonl cannot be read (No such file or directory)"
    )
    folder = write(tmp_path / "empty", [], labels=[])
    assert load_error(folder).message == f"{folder / 'manifest.jsonl'} holds no clips"
    folder = write(tmp_path / "labels", [LINE], labels=["x", "y"])
    assert (
        load_error(folder).message
        == f"{folder / 'dataset.json'} lists other labels than manifest.jsonl holds"
    )
    folder = write(tmp_path / "key", [LINE], digest="0")
    assert load_error(folder).message.startswith(
        f"{folder / 'dataset.json'}: unknown key 'digest' (legal keys: classes, clock, dataset, "
    )
    folder = write(tmp_path / "type", [LINE], ignored="many")
    assert load_error(folder).message.startswith(f"{folder / 'dataset.json'}: key 'ignored': ")
    (folder / "dataset.json").write_text("{")
    assert load_error(folder).message.startswith(f"{folder / 'dataset.json'} is not JSON: ")
    (folder / "dataset.json").unlink()
    assert (
        load_error(folder).message
        == f"{folder} is no manifest: dataset.json cannot be read (No such file or directory)"
    )
    folder = write(tmp_path / "targets", [LINE])
    (folder / "targets.h5").write_bytes((small / "targets.h5").read_bytes()[:1000])
    assert load_error(folder).message == (
        f"{folder / 'targets.h5'} was changed after it was built: found 1000 bytes, dataset.json says no such file"
    )
    write(folder, [LINE], targets_sha256="0", targets_bytes=1000)
    with pytest.raises(BadInput, match=r"targets\.h5 is damaged: its content differs from its"):
        Manifest.load(folder).targets("a")
    cut = hashlib.sha256((folder / "targets.h5").read_bytes()).hexdigest()
    write(folder, [LINE], targets_sha256=cut, targets_bytes=1000)
    with pytest.raises(BadInput, match=r"targets\.h5 cannot be read: "):
        Manifest.load(folder).targets("a")
    (folder / "targets.h5").unlink()
    assert load_error(folder).message.endswith(": found no such file, dataset.json says 1000 bytes")


def test_the_digest_covers_clips_and_targets(tmp_path: Path) -> None:
    digests = {
        Manifest.load(
            write(tmp_path, [{**LINE, "start_s": start_s}], targets_sha256=targets)
        ).digest
        for start_s in (0, 0.5)
        for targets in (None, "a", "b")
    }
    assert len(digests) == 6
    lone = Manifest.load(write(tmp_path, [LINE]))
    assert lone.digest == hashlib.sha256((tmp_path / "manifest.jsonl").read_bytes()).hexdigest()


def test_a_wrong_folder_is_told_what_to_do(small: Path, tmp_path: Path) -> None:
    data, videos = tmp_path / "data", tmp_path / "my videos"
    for name in FILES:
        data.mkdir(exist_ok=True)
        shutil.copy(small / name, data / name)
    (videos / "cats").mkdir(parents=True)
    (videos / "cats" / "a.mp4").touch()
    for wrong in (tmp_path / "dta", tmp_path, data / "manifest.jsonl"):
        assert load_error(wrong).hint == f"there are: {data}"
    assert (
        load_error(videos).hint
        == f"list the videos in it first: stillframe manifest folder '{videos}' --out data"
    )
    assert load_error(videos / "none" / "such").hint == "make one with: stillframe manifest"
    (data / "manifest.jsonl").unlink()
    assert load_error(data).hint == "build it again with: stillframe manifest"


def test_a_split_that_does_not_exist(small: Path) -> None:
    loaded = Manifest.load(small)
    with pytest.raises(BadInput) as caught:
        loaded.split("vall")
    assert (
        caught.value.message == f"{small.resolve()}: no split called 'vall'; there are: train, val"
    )
    assert caught.value.hint == "did you mean 'val'?"
    with pytest.raises(BadInput, match=r"^folder of videos .*gone does not exist$"):
        Manifest.load(small, small / "gone")


def test_a_build_that_fails_keeps_the_manifest_that_was_there(small: Path, tmp_path: Path) -> None:
    for name in FILES:
        shutil.copy(small / name, tmp_path / name)

    class Failing(world.Dataset):
        def targets(self, clip: Clip) -> dict[str, np.ndarray]:
            raise OSError("disk full")

    failing = Failing(tmp_path, world.Settings())
    loaded = Manifest.load(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        manifest._write(tmp_path, failing, loaded.clips, loaded.origin, b"")
    assert Manifest.load(tmp_path) == loaded
    assert loaded.targets("left_0000")["label"] == 4
