"""Data sets in their official layouts: small copies with the true file names and keys, and real sequences where there are some.

The environment variable STILLFRAME_GT names a folder of real sequences: `davis2016` and `otb` inside it, as they were released.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support import media
from support.media import decode

from pipeline.config import plugins
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput, StillframeError
from pipeline.records import Clip

GT = os.environ.get("STILLFRAME_GT")
needs_gt = pytest.mark.skipif(GT is None, reason="STILLFRAME_GT names no folder")
NAN = float("nan")


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
    return caught.value.message


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def images(folder: Path, names: Iterable[str], width: int = 64, height: int = 48) -> Path:
    """Real JPEG files, each of one grey level."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(jpeg(folder, 10 * number, width, height))
    return folder


def jpeg(folder: Path, level: int, width: int = 64, height: int = 48) -> bytes:
    path = folder / "one.jpg"
    options = {"update": "1"}
    with av.open(str(path), "w", format="image2", options=options) as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj444p"
        frame = av.VideoFrame.from_ndarray(media.grey(level, height, width), format="rgb24")
        container.mux(stream.encode(frame.reformat(format="yuvj444p")))
        container.mux(stream.encode())
    content = path.read_bytes()
    path.unlink()
    return content


def mask(path: Path, mask_HW: np.ndarray, palette: bool) -> Path:
    """A real PNG: the mask as palette indices, or as grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = mask_HW.shape
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8" if palette else "gray"
        if palette:
            # The colours of the DAVIS palette do not grow with the index, so that a reader of colours would not pass.
            colours = np.zeros((256, 4), np.uint8)
            colours[:, 0] = 255
            colours[1], colours[2], colours[3] = (
                [255, 128, 0, 0],
                [255, 0, 128, 0],
                [255, 128, 128, 0],
            )
            frame = av.VideoFrame.from_ndarray((mask_HW, colours), format="pal8")
        else:
            frame = av.VideoFrame.from_ndarray(mask_HW, format="gray")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rectangle(
    value: int, x1: int, y1: int, x2: int, y2: int, mask_HW: np.ndarray | None = None
) -> np.ndarray:
    """A mask of 48 x 64 with one more rectangle of pixels x1 <= x < x2."""
    mask_HW = np.zeros((48, 64), np.uint8) if mask_HW is None else mask_HW
    mask_HW[y1:y2, x1:x2] = value
    return mask_HW


def share(*xyxy_px: float, width: int = 64, height: int = 48) -> list[float]:
    return [xyxy_px[0] / width, xyxy_px[1] / height, xyxy_px[2] / width, xyxy_px[3] / height]


# Something-Something v2

TEMPLATES = {
    "78687": "Holding [something] next to [something]",
    "42326": "Pushing [part] of [something]",
}
LABELS = {"Holding something next to something": "0", "Pushing part of something": "1"}


def webm(root: Path, video_id: str) -> Path:
    path = root / "20bn-something-something-v2" / f"{video_id}.webm"
    path.parent.mkdir(parents=True, exist_ok=True)
    return media.encode(path, [media.grey(9)] * 4, codec="libvpx-vp9", rate=12)


def entry(video_id: str, template: str) -> dict[str, Any]:
    return {
        "id": video_id,
        "label": "holding a cup next to a pen",
        "template": template,
        "placeholders": ["a cup", "a pen"],
    }


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    """Four videos in the layout of the re-release."""
    root = tmp_path / "ssv2"
    for video_id in ("78687", "42326", "74225", "90000"):
        webm(root, video_id)
    labels = root / "labels"
    write_json(labels / "labels.json", LABELS)
    write_json(labels / "train.json", [entry(*item) for item in TEMPLATES.items()])
    write_json(labels / "validation.json", [entry("74225", TEMPLATES["78687"])])
    write_json(labels / "test.json", [{"id": "90000"}])
    (labels / "test-answers.csv").write_text("90000;Pushing part of something\n")
    return root


def test_ssv2_reads_ids_templates_and_splits(ssv2: Path, tmp_path: Path) -> None:
    built = build("ssv2", ssv2, tmp_path / "out")
    folder = "20bn-something-something-v2"
    assert built.clips == (
        Clip(
            "78687",
            "78687",
            f"{folder}/78687.webm",
            "train",
            label="Holding something next to something",
        ),
        Clip("42326", "42326", f"{folder}/42326.webm", "train", label="Pushing part of something"),
        Clip(
            "74225",
            "74225",
            f"{folder}/74225.webm",
            "val",
            label="Holding something next to something",
        ),
        Clip("90000", "90000", f"{folder}/90000.webm", "test", label="Pushing part of something"),
    )
    assert (built.labels, built.rejected, built.has_targets) == (tuple(LABELS), {}, False)


def test_ssv2_reads_the_first_release_and_says_what_has_no_label(
    ssv2: Path, tmp_path: Path
) -> None:
    for path in (ssv2 / "labels").glob("*.json"):
        path.rename(ssv2 / f"something-something-v2-{path.name}")
    (ssv2 / "labels" / "test-answers.csv").unlink()
    built = build("ssv2", ssv2, tmp_path / "out")
    assert [clip.split for clip in built.clips] == ["train", "train", "val"]
    reason = "1 of 1 videos have no label in test-answers.csv: 90000"
    assert (built.rejected, built.origin.notes) == (
        {},
        {"something-something-v2-test.json": reason},
    )


def test_ssv2_counts_what_is_missing_damaged_or_of_no_class(ssv2: Path, tmp_path: Path) -> None:
    more = [entry(str(number), TEMPLATES["78687"]) for number in range(5)]
    strange = entry("78687", "Eating [something]")
    write_json(ssv2 / "labels" / "train.json", [strange, entry("42326", TEMPLATES["42326"]), *more])
    (ssv2 / "20bn-something-something-v2" / "74225.webm").write_bytes(b"")
    built = build("ssv2", ssv2, tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["42326", "90000"]
    assert built.rejected == {
        "20bn-something-something-v2/74225.webm": "is empty (0 bytes)",
        "labels/train.json": "1 of 7 videos have no class in the labels file: 78687 'Eating something'",
    }
    missing = "5 of 7 videos are not there: 0, 1, 2 and 2 more"
    assert built.origin.notes == {"labels/train.json": missing}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train", [], "train.json holds no entries"),
        ("train", {"id": "1"}, "train.json: wanted a list at the top, found dict"),
        ("train", [{"id": 5, "template": ""}], "train.json entry 1: id must be a text, found 5"),
        ("train", [{"id": "5"}], "train.json entry 1: key 'template' is missing; there are: id"),
        ("train", [entry("5", "a"), entry("5", "b")], "train.json entry 2 repeats video 5"),
        (
            "validation",
            [entry("78687", "a")],
            "validation.json: video 78687 is in split 'train' too",
        ),
    ],
)
def test_ssv2_refuses_annotations_that_cannot_be_right(
    ssv2: Path, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    path = write_json(ssv2 / "labels" / f"{name}.json", content)
    assert refused("ssv2", ssv2, tmp_path / "out") == f"{path.parent}/{message}"


def test_ssv2_refuses_half_a_file_two_copies_and_no_annotations(ssv2: Path, tmp_path: Path) -> None:
    (ssv2 / "mp4").mkdir()
    media.encode(ssv2 / "mp4" / "78687.mp4", [media.grey(9)] * 4)
    message = refused("ssv2", ssv2, tmp_path / "out")
    assert (
        message
        == f"{ssv2} holds video 78687 twice: 20bn-something-something-v2/78687.webm and mp4/78687.mp4"
    )
    (ssv2 / "mp4" / "78687.mp4").unlink()
    path = ssv2 / "labels" / "train.json"
    path.write_bytes(path.read_bytes()[:50])
    assert refused("ssv2", ssv2, tmp_path / "out").startswith(f"{path} is not JSON: ")
    (ssv2 / "labels" / "labels.json").unlink()
    assert (
        refused("ssv2", ssv2, tmp_path / "out")
        == f"{ssv2} holds no labels.json of Something-Something v2"
    )


def test_ssv2_follows_links_and_survives_those_that_lead_back(ssv2: Path, tmp_path: Path) -> None:
    (tmp_path / "big_disk").mkdir()
    (ssv2 / "20bn-something-something-v2").rename(tmp_path / "big_disk" / "videos")
    (ssv2 / "videos").symlink_to(tmp_path / "big_disk" / "videos")
    (tmp_path / "big_disk" / "videos" / "back").symlink_to(ssv2)
    built = build("ssv2", ssv2, tmp_path / "out")
    assert [clip.source for clip in built.clips] == [
        f"videos/{name}.webm" for name in ("78687", "42326", "74225", "90000")
    ]


# Perception Test


def record(video_id: str, split: str = "valid", **tracks: Any) -> dict[str, Any]:
    metadata = {
        "split": split,
        "video_id": video_id,
        "frame_rate": 10.0,
        "num_frames": 6,
        "resolution": [48, 64],
    }
    metadata |= {
        "audio_samples": 0,
        "audio_sample_rate": 48000,
        "is_cup_game": False,
        "is_camera_moving": False,
    }
    return {
        "metadata": metadata,
        "object_tracking": [],
        "point_tracking": [],
        "mc_question": [],
    } | tracks


def point_track(
    number: int, frame_ids: list[int], y: list[float], x: list[float]
) -> dict[str, Any]:
    return {
        "id": number,
        "label": "point",
        "parent_objects": [0],
        "frame_ids": frame_ids,
        "points": [y, x],
    }


def object_track(number: int, frame_ids: list[int], boxes: list[list[float]]) -> dict[str, Any]:
    start = [1] + [0] * (len(frame_ids) - 1)
    track = {
        "id": number,
        "label": "red cup",
        "is_occluder": False,
        "bounding_boxes": boxes,
        "frame_ids": frame_ids,
    }
    return track | {
        "initial_tracking_box": start,
        "is_masked": start,
        "timestamps": [100 * number for number in frame_ids],
    }


POINTS = [
    point_track(0, [0, 1, 2], [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]),
    point_track(1, [1, 4], [0.9, 0.8], [0.0, 1.0]),
]
BOXES = [
    object_track(0, [0, 5], [[0.1, 0.2, 0.5, 0.6], [-0.2, 0.5, 0.4, 1.3]]),
    object_track(1, [0, 3, 5], [[0.5, 0.5, 0.6, 0.6], [1.1, 0.2, 1.3, 0.4], [0.3, 0.3, 0.3, 0.5]]),
]


@pytest.fixture
def perception(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for video_id in ("video_1", "video_2"):
        (root / "videos").mkdir(parents=True, exist_ok=True)
        media.encode(root / "videos" / f"{video_id}.mp4", [media.grey(9)] * 6, rate=10)
    both = {"point_tracking": POINTS, "object_tracking": BOXES}
    write_json(
        root / "all_valid.json",
        {"video_2": record("video_2", **both), "video_3": record("video_3")},
    )
    write_json(
        root / "all_train.json",
        {"video_1": record("video_1", "train", **both), "video_9": record("video_9", **both)},
    )
    return root


def test_perception_test_reads_points(perception: Path, tmp_path: Path) -> None:
    built = build("perception_test", perception, tmp_path / "out")
    assert built.clips == (
        Clip("video_1", "video_1", "videos/video_1.mp4", "train"),
        Clip("video_2", "video_2", "videos/video_2.mp4", "val"),
    )
    missing = "1 of 2 videos with point_tracking are not there: video_9"
    assert (built.rejected, built.origin.notes) == ({}, {"all_train.json": missing})
    targets = built.targets("video_2")
    assert set(targets) == {"points", "visible", "points_time_s"}
    np.testing.assert_allclose(targets["points_time_s"], [0, 0.1, 0.2, 0.4], atol=1e-12)
    expected = [
        [[0.5, 0.1], [0.6, 0.2], [0.7, 0.3], [NAN, NAN]],
        [[NAN, NAN], [0.0, 0.9], [NAN, NAN], [1.0, 0.8]],
    ]
    np.testing.assert_array_equal(targets["points"], np.array(expected, np.float32))
    assert targets["visible"].tolist() == [[True, True, True, False], [False, True, False, True]]
    assert targets["visible"].dtype == bool


def test_perception_test_reads_boxes_and_cuts_them_at_the_frame(
    perception: Path, tmp_path: Path
) -> None:
    built = build("perception_test", perception, tmp_path / "out", task="object_tracking")
    lost = "2 of 5 boxes have no area inside the frame and count as absent"
    assert (built.rejected, built.origin.notes["videos/video_2.mp4"]) == ({}, lost)
    targets = built.targets("video_2")
    np.testing.assert_allclose(targets["boxes_time_s"], [0, 0.3, 0.5], atol=1e-12)
    nowhere = [NAN] * 4
    expected = [
        [[0.1, 0.2, 0.5, 0.6], nowhere, [0, 0.5, 0.4, 1]],
        [[0.5, 0.5, 0.6, 0.6], nowhere, nowhere],
    ]
    np.testing.assert_array_equal(targets["boxes"], np.array(expected, np.float32))


def test_perception_test_prefers_the_file_of_the_task(perception: Path, tmp_path: Path) -> None:
    write_json(
        perception / "point_tracking_valid.json",
        {"video_2": {"metadata": record("")["metadata"], "point_tracking": POINTS[:1]}},
    )
    built = build("perception_test", perception, tmp_path / "out")
    assert built.targets("video_2")["points"].shape == (1, 3, 2)
    named = build("perception_test", perception, tmp_path / "named", annotations=["all_valid.json"])
    assert [clip.clip_id for clip in named.clips] == ["video_2"]
    assert named.targets("video_2")["points"].shape == (2, 4, 2)


def test_perception_test_refuses_a_video_that_is_not_the_one_annotated(
    perception: Path, tmp_path: Path
) -> None:
    media.encode(perception / "videos" / "video_1.mp4", [media.grey(9)] * 6, rate=5)
    media.encode(perception / "videos" / "video_2.mp4", [media.grey(9)] * 4, rate=10)
    message = refused("perception_test", perception, tmp_path / "out")
    assert "videos/video_1.mp4: has 5 frames per second, its annotations are for 10" in message
    assert "videos/video_2.mp4: has 4 frames, its annotations are for 6" in message


@pytest.mark.parametrize(
    ("tracks", "message"),
    [
        ([point_track(0, [0, 1], [0.1], [0.2])], "point_tracking 0: 2 frame_ids for 1 values"),
        (
            [point_track(0, [1, 0], [0.1, 0.1], [0.2, 0.2])],
            "point_tracking 0: frame_ids must be increasing and at least one, found 1, 0",
        ),
        (
            [point_track(0, [0], [0.1], [0.2]) | {"points": [[0.1, 0.2]]}],
            "point_tracking 0 points: wanted 2 x n numbers, found 1 x 2",
        ),
        ([{"id": 0}], "point_tracking 0: key 'frame_ids' is missing; there are: id"),
    ],
)
def test_perception_test_refuses_damaged_tracks(
    perception: Path, tmp_path: Path, tracks: list[Any], message: str
) -> None:
    path = write_json(
        perception / "all_valid.json", {"video_2": record("video_2", point_tracking=tracks)}
    )
    assert refused("perception_test", perception, tmp_path / "out") == f"{path} video_2 {message}"


def test_perception_test_refuses_unknown_splits_and_other_folders(
    perception: Path, tmp_path: Path
) -> None:
    path = write_json(perception / "all_valid.json", {"video_2": record("video_2", "dev")})
    assert refused("perception_test", perception, tmp_path / "out").startswith(
        f"{path} video_2: no split called 'dev'"
    )
    (tmp_path / "empty").mkdir()
    assert refused("perception_test", tmp_path / "empty", tmp_path / "out").endswith(
        "holds no annotations of the Perception Test"
    )


# Waymo

SEGMENT = "10023947602400723454_1120_000_1140_000"
START_MICROS = 1552440195362591
FRONT, FRONT_LEFT = 1, 2
VEHICLE, PEDESTRIAN, SIGN, CYCLIST = 1, 2, 3, 4


def parquet(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    """A file of a component, with the column types of the release."""
    arrow = pytest.importorskip("pyarrow")
    types = {
        "segment_context_name": arrow.string(),
        "frame_timestamp_micros": arrow.int64(),
        "camera_name": arrow.int8(),
    }
    types |= {"camera_object_id": arrow.string(), "image": arrow.binary(), "type": arrow.int8()}
    schema = arrow.schema(
        [(name, types.get(name.rpartition(".")[2], arrow.float64())) for name in rows[0]]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(
        arrow.Table.from_pylist([dict(row) for row in rows], schema), path, row_group_size=3
    )
    return path


def key(frame: int, camera: int, **more: str) -> dict[str, Any]:
    key = {
        "segment_context_name": SEGMENT,
        "frame_timestamp_micros": START_MICROS + 100_000 * frame,
        "camera_name": camera,
    }
    return {f"key.{name}": value for name, value in (key | more).items()}


def box_row(
    frame: int, name: str, kind: int, xyxy: tuple[float, float, float, float], camera: int = FRONT
) -> dict[str, Any]:
    x1, y1, x2, y2 = xyxy
    values = {
        "box.center.x": (x1 + x2) / 2,
        "box.center.y": (y1 + y2) / 2,
        "box.size.x": x2 - x1,
        "box.size.y": y2 - y1,
    }
    values |= {"type": kind, "difficulty_level.detection": 1.0, "difficulty_level.tracking": 1.0}
    component = {f"[CameraBoxComponent].{name}": value for name, value in values.items()}
    return key(frame, camera, camera_object_id=name) | component


@pytest.fixture
def waymo(tmp_path: Path) -> Path:
    """One segment of four frames of 96 x 64, rows in no order; the central square spans x from 16 to 80."""
    pytest.importorskip("pyarrow.parquet")
    root = tmp_path / "waymo"
    cameras = [(frame, camera) for frame in (2, 0, 3, 1) for camera in (FRONT_LEFT, FRONT)]
    rows = [
        key(frame, camera)
        | {"[CameraImageComponent].image": jpeg(tmp_path, 50 * frame + camera, 96, 64)}
        for frame, camera in cameras
    ]
    parquet(root / "training" / "camera_image" / f"{SEGMENT}.parquet", rows)
    boxes = [
        box_row(0, "b", PEDESTRIAN, (20, 10, 40, 50)),
        box_row(0, "a", VEHICLE, (-10, 30, 30, 70)),
        box_row(2, "a", VEHICLE, (30, 30, 50, 60)),
        box_row(1, "c", CYCLIST, (30, 30, 34, 34)),  # 16 px: 0.4 % of the square
        box_row(3, "d", VEHICLE, (0, 0, 17, 20)),  # 20 px of it inside the square: 0.49 %
        box_row(1, "e", SIGN, (20, 10, 40, 50)),
        box_row(1, "f", VEHICLE, (20, 10, 40, 50), FRONT_LEFT),
        box_row(3, "b", PEDESTRIAN, (100, 10, 120, 50)),
    ]
    parquet(root / "training" / "camera_box" / f"{SEGMENT}.parquet", boxes)
    return root


def test_waymo_copies_the_images_unchanged_and_reads_boxes(waymo: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [waymo, *waymo.rglob("*")]}
    built = build("waymo", waymo, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in [waymo, *waymo.rglob("*")]} == before
    source = f"training/{SEGMENT}/FRONT"
    assert built.clips == (Clip(SEGMENT, SEGMENT, source, "train"),)
    assert built.root == (tmp_path / "out" / "stillframe_frames").resolve()
    folder = built.root / source
    files = [f"{START_MICROS + 100_000 * frame}.jpg" for frame in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == [*files, "timestamps.txt"]
    assert [(folder / name).read_bytes() for name in files] == [
        jpeg(tmp_path, 50 * frame + FRONT, 96, 64) for frame in range(4)
    ]
    (frames,) = decode(folder, None)
    assert frames.time_s.tolist() == [0, 0.1, 0.2, 0.3]
    targets = built.targets(SEGMENT)
    assert targets["boxes_time_s"].tolist() == frames.time_s.tolist()
    nowhere = [NAN] * 4
    size = {"width": 96, "height": 64}
    car = [share(0, 30, 30, 64, **size), nowhere, share(30, 30, 50, 60, **size), nowhere]
    walker = [share(20, 10, 40, 50, **size), nowhere, nowhere, nowhere]
    np.testing.assert_array_equal(targets["boxes"], np.array([car, walker], np.float32))
    box_file = f"training/camera_box/{SEGMENT}.parquet"
    lost = "1 boxes have no area inside the frame and count as absent"
    assert (built.rejected, built.origin.notes) == ({}, {box_file: lost})


def test_waymo_settings_choose_camera_types_and_size(waymo: Path, tmp_path: Path) -> None:
    every = build(
        "waymo", waymo, tmp_path / "every", min_area=0, types=["vehicle", "sign", "cyclist"]
    )
    assert np.isfinite(every.targets(SEGMENT)["boxes"]).all(-1).tolist() == [
        [True, False, True, False],  # a
        [False, True, False, False],  # c
        [False, False, False, True],  # d
        [False, True, False, False],  # e
    ]
    left = build(
        "waymo",
        waymo,
        tmp_path / "left",
        camera="FRONT_LEFT",
        frames_dir=str(tmp_path / "elsewhere"),
    )
    assert left.clips[0].source == f"training/{SEGMENT}/FRONT_LEFT"
    assert (
        tmp_path / "elsewhere" / left.clips[0].source / f"{START_MICROS}.jpg"
    ).read_bytes() == jpeg(tmp_path, FRONT_LEFT, 96, 64)
    np.testing.assert_array_equal(
        left.targets(SEGMENT)["boxes"][0, 1], np.float32(share(20, 10, 40, 50, width=96, height=64))
    )


def test_waymo_writes_images_once(waymo: Path, tmp_path: Path) -> None:
    first = build("waymo", waymo, tmp_path / "a")
    image = first.root / first.clips[0].source / f"{START_MICROS}.jpg"
    before = image.stat().st_mtime_ns
    assert build("waymo", waymo, tmp_path / "a").digest == first.digest
    shared = str(tmp_path / "a" / "stillframe_frames")
    assert build("waymo", waymo, tmp_path / "b", frames_dir=shared).digest == first.digest
    assert image.stat().st_mtime_ns == before
    (image.parent / "timestamps.txt").write_text("0.0\n")
    assert "holds other images than this: delete it" in refused("waymo", waymo, tmp_path / "a")


def test_waymo_says_what_is_missing_or_damaged(waymo: Path, tmp_path: Path) -> None:
    image_file = waymo / "training" / "camera_image" / f"{SEGMENT}.parquet"
    for number in range(4):
        path = waymo / "validation" / "camera_image" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_file.read_bytes()[:200] if number == 0 else image_file.read_bytes())
    for number in (0, 1, 7):
        path = waymo / "validation" / "camera_box" / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((waymo / "training" / "camera_box" / f"{SEGMENT}.parquet").read_bytes())
    built = build("waymo", waymo, tmp_path / "out")
    rejected = built.rejected
    assert built.origin.notes["validation/camera_image"] == "1 of 3 segments are not there: 7"
    assert rejected["validation/camera_box"] == "2 of 4 segments are not there: 2, 3"
    assert rejected["validation/camera_image/0.parquet"].startswith("cannot be read: ")
    assert (
        rejected["validation/camera_image/1.parquet"] == f"holds segment {SEGMENT}, its name says 1"
    )


def test_waymo_refuses_boxes_that_do_not_fit_the_images(waymo: Path, tmp_path: Path) -> None:
    box_file = waymo / "training" / "camera_box" / f"{SEGMENT}.parquet"
    place = (20, 10, 40, 50)
    for rows, reason in [
        (
            [box_row(0, "a", VEHICLE, place), box_row(9, "a", VEHICLE, place)],
            "1 of 2 boxes are at times without an image",
        ),
        ([box_row(0, "a", VEHICLE, place)] * 2, "an object has two boxes in one frame"),
        ([box_row(0, "a", SIGN, place)], "no box of the chosen camera, types and size"),
        ([key(0, FRONT)], "lacks the column 'key.camera_object_id'"),
    ]:
        parquet(box_file, rows)
        assert refused("waymo", waymo, tmp_path / "out").endswith(
            f"training/camera_box/{SEGMENT}.parquet: {reason}"
        )


def test_waymo_keeps_irregular_times_and_says_so(waymo: Path, tmp_path: Path) -> None:
    image = {"[CameraImageComponent].image": jpeg(tmp_path, 9, 96, 64)}
    image_file = f"training/camera_image/{SEGMENT}.parquet"
    parquet(waymo / image_file, [key(frame, FRONT) | image for frame in (0, 1, 2, 3, 7)])
    built = build("waymo", waymo, tmp_path / "out")
    assert (
        built.origin.notes[image_file]
        == "1 of 4 intervals are not 0.1 s; used with the times as they are"
    )
    assert built.targets(SEGMENT)["boxes_time_s"].tolist() == [0, 0.1, 0.2, 0.3, 0.7]


def test_waymo_names_the_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        StillframeError, match="dataset 'waymo' needs the package 'pyarrow', which is not installed"
    ):
        manifest.build("waymo", tmp_path, tmp_path / "out", {})
    assert plugins.describe("dataset", "waymo")[0].startswith("Waymo Open Dataset")


def test_waymo_refuses_another_folder(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    assert (
        refused("waymo", tmp_path, tmp_path / "out")
        == f"{tmp_path} holds no segments of the Waymo Open Dataset v2"
    )


# DAVIS


def davis_sequence(
    root: Path, name: str, masks: list[np.ndarray], palette: bool = True, frames: int | None = None
) -> None:
    count = len(masks) if frames is None else frames
    images(root / "JPEGImages" / "480p" / name, [f"{number:05d}.jpg" for number in range(count)])
    for number, mask_HW in enumerate(masks):
        mask(root / "Annotations" / "480p" / name / f"{number:05d}.png", mask_HW, palette)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """DAVIS 2017: two objects and void in one sequence, one in another, the first mask alone in the test set."""
    root = tmp_path / "DAVIS"
    first = rectangle(2, 10, 10, 20, 30, rectangle(1, 0, 40, 5, 48))
    second = rectangle(255, 30, 0, 64, 10, rectangle(2, 12, 10, 22, 30))
    davis_sequence(root, "bear", [first, second])
    davis_sequence(root, "dogs-jump", [rectangle(3, 1, 2, 3, 4)] * 3)
    davis_sequence(root, "aerobatics", [rectangle(1, 1, 2, 3, 4)], frames=3)
    for name, sequences in (
        ("train", "bear\n"),
        ("val", "dogs-jump\n"),
        ("test-dev", "aerobatics\n"),
    ):
        path = root / "ImageSets" / "2017" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sequences)
    return root


def test_davis_2017_takes_boxes_from_palette_masks(davis: Path, tmp_path: Path) -> None:
    built = build("davis", davis, tmp_path / "out")
    assert built.clips == tuple(
        Clip(name, name, f"JPEGImages/480p/{name}", split, image_fps=24.0)
        for name, split in (("bear", "train"), ("dogs-jump", "val"), ("aerobatics", "test"))
    )
    assert built.rejected == {}
    bear = built.targets("bear")
    assert bear["boxes_time_s"].tolist() == [0, 1 / 24]
    expected = [[share(0, 40, 5, 48), [NAN] * 4], [share(10, 10, 20, 30), share(12, 10, 22, 30)]]
    np.testing.assert_array_equal(bear["boxes"], np.array(expected, np.float32))
    assert built.targets("dogs-jump")["boxes"].shape == (1, 3, 4)
    assert built.targets("aerobatics")["boxes_time_s"].tolist() == [0]


def test_davis_2016_takes_255_as_the_object_and_reads_lists_of_frames(tmp_path: Path) -> None:
    root = tmp_path / "DAVIS"
    davis_sequence(
        root, "bear", [rectangle(255, 10, 10, 20, 30), rectangle(0, 0, 0, 1, 1)], palette=False
    )
    davis_sequence(root, "camel", [rectangle(255, 0, 0, 64, 48)] * 2, palette=False)
    lists = root / "ImageSets" / "480p"
    lists.mkdir(parents=True)
    for split, name in (("train", "bear"), ("val", "camel")):
        lines = [
            f"/JPEGImages/480p/{name}/{n:05d}.jpg /Annotations/480p/{name}/{n:05d}.png 1"
            for n in range(2)
        ]
        (lists / f"{split}.txt").write_text("\n".join(lines))
    built = build("davis", root, tmp_path / "out")
    assert [(clip.clip_id, clip.split) for clip in built.clips] == [
        ("bear", "train"),
        ("camel", "val"),
    ]
    expected = [[share(10, 10, 20, 30), [NAN] * 4]]
    np.testing.assert_array_equal(built.targets("bear")["boxes"], np.array(expected, np.float32))
    np.testing.assert_array_equal(
        built.targets("camel")["boxes"], np.array([[[0, 0, 1, 1]] * 2], np.float32)
    )


def test_davis_without_lists_holds_out_what_is_named(davis: Path, tmp_path: Path) -> None:
    shutil.rmtree(davis / "ImageSets")
    (davis / "Annotations/480p/aerobatics/00001.png").write_bytes(
        (davis / "Annotations/480p/aerobatics/00000.png").read_bytes()
    )
    (davis / "Annotations/480p/aerobatics/00002.png").write_bytes(
        (davis / "Annotations/480p/aerobatics/00000.png").read_bytes()
    )
    assert {clip.split for clip in build("davis", davis, tmp_path / "a").clips} == {"val"}
    built = build("davis", davis, tmp_path / "b", val_sequences=["bear"])
    assert {clip.clip_id: clip.split for clip in built.clips} == {
        "aerobatics": "train",
        "bear": "val",
        "dogs-jump": "train",
    }
    assert "no sequence called 'beer'" in refused(
        "davis", davis, tmp_path / "c", val_sequences=["beer"]
    )


def test_davis_lists_give_way_to_names_and_shares(davis: Path, tmp_path: Path) -> None:
    own = {clip.clip_id: clip.split for clip in build("davis", davis, tmp_path / "a").clips}
    assert own["bear"] == "train"
    built = build("davis", davis, tmp_path / "b", val_sequences="bear")
    assert {clip.clip_id: clip.split for clip in built.clips} == {
        name: split if split == "test" else "val" if name == "bear" else "train"
        for name, split in own.items()
    }
    drawn = build("davis", davis, tmp_path / "c", val_fraction=0.5)
    assert sorted(clip.split for clip in drawn.clips) == ["test", "train", "val"]


def test_davis_says_which_sequences_cannot_be_used(davis: Path, tmp_path: Path) -> None:
    nothing = rectangle(0, 0, 0, 1, 1)
    davis_sequence(davis, "short", [rectangle(1, 1, 2, 3, 4)], frames=3)
    davis_sequence(davis, "blank", [nothing] * 2)
    davis_sequence(davis, "damaged", [rectangle(1, 1, 2, 3, 4)] * 2)
    davis_sequence(davis, "other", [np.ones((24, 32), np.uint8)] * 2)
    davis_sequence(davis, "astray", [rectangle(1, 1, 2, 3, 4)] * 2)
    davis_sequence(davis, "extra", [rectangle(1, 1, 2, 3, 4)] * 2, frames=1)
    path = davis / "Annotations" / "480p" / "damaged" / "00001.png"
    path.write_bytes(path.read_bytes()[:60])
    listed = ["dogs-jump", "short", "blank", "damaged", "other", "extra", "gone"]
    (davis / "ImageSets" / "2017" / "val.txt").write_text("\n".join(listed))
    built = build("davis", davis, tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["bear", "dogs-jump", "short", "aerobatics"]
    assert built.origin.notes["Annotations/480p/short"] == "1 of 3 frames have masks"
    assert built.targets("short")["boxes_time_s"].tolist() == [0]
    damaged = built.rejected.pop("Annotations/480p/damaged")
    assert (
        damaged.startswith("00001.png cannot be decoded") or damaged == "00001.png holds no picture"
    )
    assert built.origin.notes == {
        "ImageSets/2017/val.txt": "1 of 7 are not there: gone",
        "ImageSets/2017": "1 of 9 sequences are in no list: astray",
        "Annotations/480p/short": "1 of 3 frames have masks",
    }
    assert built.rejected == {
        "Annotations/480p/blank": "no object in 2 masks",
        "Annotations/480p/other": "00000.png is 32x24, the images are 64x48",
        "Annotations/480p/extra": "1 of 2 masks have no image: 00001.png",
    }


def test_davis_refuses_empty_lists_and_other_folders(davis: Path, tmp_path: Path) -> None:
    path = davis / "ImageSets" / "2017" / "val.txt"
    path.write_text("bear\n")
    assert (
        refused("davis", davis, tmp_path / "out")
        == f"{path}: sequence 'bear' is in split 'train' too"
    )
    path.write_text("\n")
    assert refused("davis", davis, tmp_path / "out") == f"{path} is empty"
    (tmp_path / "none").mkdir()
    message = refused("davis", tmp_path / "none", tmp_path / "out")
    assert message == f"{tmp_path / 'none' / 'JPEGImages' / '480p'} does not exist"


# OTB


def otb_sequence(root: Path, name: str, count: int, **tables: str) -> None:
    images(root / name / "img", [f"{number:04d}.jpg" for number in range(1, count + 1)])
    for suffix, lines in tables.items():
        (
            root / name / f"groundtruth_rect{'' if suffix == 'one' else '.' + suffix[1:]}.txt"
        ).write_text(lines)


def test_otb_reads_commas_tabs_blanks_and_two_objects(tmp_path: Path) -> None:
    root = tmp_path / "OTB"
    otb_sequence(root, "Car4", 2, one="11,21,8,4\r\n12,21,8,4\r\n")
    otb_sequence(
        root, "Jogging", 2, _1="1\t1\t64\t48\n-3\t1\t8\t8\n", _2=" 5  6  7.5  8\n0 0 0 0\n"
    )
    built = build("otb", root, tmp_path / "out", image_fps=25)
    assert built.clips == (
        Clip("Car4", "Car4", "Car4/img", "val", 0.0, 2 / 25, image_fps=25.0),
        Clip("Jogging", "Jogging", "Jogging/img", "val", 0.0, 2 / 25, image_fps=25.0),
    )
    car, joggers = built.targets("Car4"), built.targets("Jogging")
    np.testing.assert_array_equal(
        car["boxes"], np.float32([[share(10, 20, 18, 24), share(11, 20, 19, 24)]])
    )
    assert car["boxes_time_s"].tolist() == [0, 1 / 25]
    expected = [[[0, 0, 1, 1], share(0, 0, 4, 8)], [share(4, 5, 11.5, 13), [NAN] * 4]]
    np.testing.assert_array_equal(joggers["boxes"], np.array(expected, np.float32))
    lost = "1 of 2 boxes have no area inside the frame and count as absent: lines 2"
    assert (built.rejected, built.origin.notes) == ({}, {"Jogging/groundtruth_rect.2.txt": lost})


def test_otb_covers_what_has_both_an_image_and_a_box(tmp_path: Path) -> None:
    root = tmp_path / "OTB"
    otb_sequence(root, "Long", 3, one="1,1,9,9\n" * 5)
    otb_sequence(root, "Short", 5, one="1,1,9,9\n" * 2)
    otb_sequence(root, "Human4", 2, _1="", _2="1,1,9,9\n" * 2)
    built = build("otb", root, tmp_path / "out", split="train")
    stops = {clip.clip_id: clip.stop_s for clip in built.clips}
    assert stops == {"Human4": 2 / 30, "Long": 3 / 30, "Short": 2 / 30}
    assert {name: built.targets(name)["boxes"].shape[1] for name in stops} == {
        "Human4": 2,
        "Long": 3,
        "Short": 2,
    }
    assert {clip.split for clip in built.clips} == {"train"}
    assert built.rejected == {}
    assert built.origin.notes == {
        "Human4/groundtruth_rect.1.txt": "is empty",
        "Long/groundtruth_rect.txt": "5 boxes for 3 images, only what has both is used",
        "Short/groundtruth_rect.txt": "2 boxes for 5 images, only what has both is used",
    }


def test_otb_knows_the_annotated_part_of_david(tmp_path: Path) -> None:
    root = tmp_path / "OTB"
    otb_sequence(root, "David", 1, one="1,1,9,9\n" * 471)
    image = (root / "David" / "img" / "0001.jpg").read_bytes()
    for number in range(2, 771):
        (root / "David" / "img" / f"{number:04d}.jpg").write_bytes(image)
    built = build("otb", root, tmp_path / "out")
    assert built.rejected == {}
    assert (built.clips[0].start_s, built.clips[0].stop_s) == (299 / 30, 770 / 30)
    time_s = built.targets("David")["boxes_time_s"]
    assert (len(time_s), time_s[0], time_s[-1]) == (471, 299 / 30, 769 / 30)


def test_otb_leaves_out_a_damaged_sequence_and_names_what_cannot_be_used(tmp_path: Path) -> None:
    root = tmp_path / "OTB"
    otb_sequence(root, "Bare", 2)
    otb_sequence(root, "Gone", 2, one="0,0,0,0\n" * 2)
    (root / "Empty" / "img").mkdir(parents=True)
    otb_sequence(root, "Good", 2, one="1,1,9,9\n" * 2)
    built = build("otb", root, tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["Good"]
    lost = "2 of 2 boxes have no area inside the frame and count as absent: lines 1, 2"
    no_images = built.rejected.pop("Empty/img")
    assert no_images.startswith("holds no images")
    assert built.rejected == {
        "Bare/img": "has no groundtruth_rect*.txt with boxes",
        "Gone/img": "shows no object",
    }
    assert built.origin.notes == {"Gone/groundtruth_rect.txt": lost}
    otb_sequence(root, "Torn", 2, one="1,1,9,9\n1,1,9")
    built = build("otb", root, tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["Good"]
    assert built.rejected["Torn/img"] == (
        "groundtruth_rect.txt line 2: wanted 4 columns (x,y,w,h), found 3 in '1,1,9'"
    )
    assert refused("otb", root / "Torn" / "img", tmp_path / "out").endswith(
        "img holds no OTB sequences"
    )


# Real sequences


@needs_gt
def test_real_davis_masks_give_a_box_in_every_sequence(tmp_path: Path) -> None:
    built = build("davis", Path(str(GT)) / "davis2016", tmp_path)
    assert (len(built.clips), built.rejected) == (10, {})
    for clip in built.clips:
        targets = built.targets(clip.clip_id)
        boxes, time_s = targets["boxes"], targets["boxes_time_s"]
        masks = sorted((built.root / "Annotations" / "480p" / clip.clip_id).glob("*.png"))
        assert boxes.shape == (1, len(masks), 4)
        np.testing.assert_array_equal(time_s, np.arange(len(masks)) / 24)
        for number in (0, len(masks) // 2):
            with av.open(str(masks[number])) as container:
                rows, columns = np.nonzero(
                    next(container.decode(video=0)).to_ndarray(format="gray")
                )
            expected = share(
                columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, width=854, height=480
            )
            np.testing.assert_array_equal(boxes[0, number], np.float32(expected))


@needs_gt
def test_real_otb_sequences_read_as_published(tmp_path: Path) -> None:
    built = build("otb", Path(str(GT)) / "otb", tmp_path)
    assert [clip.clip_id for clip in built.clips] == ["Car4", "jogging"]
    assert built.origin.notes == {
        "Car4/groundtruth_rect.txt": "659 boxes for 300 images, only what has both is used"
    }
    car, joggers = built.targets("Car4")["boxes"], built.targets("jogging")["boxes"]
    assert (car.shape, joggers.shape) == ((1, 300, 4), (2, 307, 4))
    assert np.isfinite(car).all()
    assert np.isfinite(joggers).all()
    np.testing.assert_array_equal(
        car[0, 0], np.float32(share(69, 50, 176, 137, width=360, height=240))
    )
    np.testing.assert_array_equal(
        joggers[1, -1], np.float32(share(142, 92, 178, 239, width=352, height=288))
    )
