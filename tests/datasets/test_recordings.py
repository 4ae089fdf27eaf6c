"""Data sets of camera recordings: tiny copies in the official layouts are read to the exact frame, time, depth, pose and track.

With STILLFRAME_GT naming a folder of real sequences, geometry is checked on those too.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import google_crc32c
import numpy as np
import pytest
from support import media
from support.commands import call
from support.paths import SHARED

from pipeline.datasets import kubric, nuscenes, sevenscenes
from pipeline.datasets.formats import kubric_tracks, recordings
from pipeline.datasets.formats.tfrecord import Example
from pipeline.datasets.formats.trajectory import poses_at, slerp
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput

GT = os.environ.get("STILLFRAME_GT")
needs_gt = pytest.mark.skipif(not GT, reason="STILLFRAME_GT names no folder of real sequences")


# Writers of the official formats


def png(pixels: np.ndarray) -> bytes:
    """uint8 or uint16, grey or RGB."""
    name = {(1, 2): "gray", (2, 2): "gray16be", (1, 3): "rgb24", (2, 3): "rgb48be"}[
        pixels.dtype.itemsize, pixels.ndim
    ]
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = name
        stored = pixels.astype(">u2") if pixels.dtype.itemsize == 2 else pixels
        for packet in (*stream.encode(frame_of(stored, name)), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def frame_of(pixels: np.ndarray, name: str) -> av.VideoFrame:
    frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], name)
    plane, row = frame.planes[0], pixels[0].nbytes
    padded = np.zeros((pixels.shape[0], plane.line_size), np.uint8)
    padded[:, :row] = np.frombuffer(np.ascontiguousarray(pixels).tobytes(), np.uint8).reshape(
        -1, row
    )
    plane.update(padded.tobytes()[: plane.buffer_size])
    return frame


def picture(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    """RGB pixels that tell which frame it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7 % 256, y * 9 % 256, np.full_like(x, 20 * number + 5)], axis=-1).astype(
        np.uint8
    )


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def matrix_text(pose: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:f}" for value in row) for row in pose) + "\n"


def moved(x: float, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: Any) -> bytes:
    """A tf.train.Feature of bytes, floats or integers."""
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(value)) for value in values.flat)))


def example(features: dict[str, Any]) -> bytes:
    entries = (
        field(1, field(1, name.encode()) + field(2, feature(values)))
        for name, values in features.items()
    )
    return field(1, b"".join(entries))


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def tfrecord(records: list[bytes]) -> bytes:
    heads = [struct.pack("<Q", len(data)) for data in records]
    return b"".join(
        head + masked(head) + data + masked(data) for head, data in zip(heads, records, strict=True)
    )


def built(name: str, root: Path, out: Path, **settings: Any) -> manifest.Manifest:
    """Built, and read back from disk."""
    manifest.build(name, root, out, settings)
    return manifest.Manifest.load(out)


def decoded(found: manifest.Manifest, place: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and times of a clip's video."""
    clip = found.clips[place]
    blocks = list(media.decode(found.root / clip.source, None, clip.image_fps))
    return np.concatenate([block.pixels_FHWC for block in blocks]), np.concatenate(
        [block.time_s for block in blocks]
    )


# Kubric: a camera that moves above a floor on which a block slides; everything is known in closed form

FRAMES, SIDE, FOCAL, SENSOR = 5, 64, 35.0, 32.0
BLOCK = np.array([2.0, 1.5, 1.0])
ANGLE = 0.3


def quaternion(angle: float) -> np.ndarray:
    """About the world's z axis."""
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def turn(angle: float) -> np.ndarray:
    return np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )


def camera_place(frame: int) -> np.ndarray:
    return np.array([0.2 * frame - 0.4, 0.1, 6.0])


def block_place(frame: int) -> np.ndarray:
    return np.array([0.5 * frame - 1.0, 0.2, 0.5])


def floor_scene(frame: int) -> dict[str, np.ndarray]:
    """World place, segment, place in the block and distance of every pixel, by intersection of rays with two planes."""
    across = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * SENSOR / FOCAL
    x, y = np.meshgrid(across, -across)
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1) @ turn(ANGLE).T
    origin, centre = camera_place(frame), block_place(frame)
    top = origin + rays * (origin[2] - BLOCK[2]) / -rays[..., 2:]
    inner = (top - centre) @ turn(0.1 * frame) / BLOCK
    on_block = (np.abs(inner[..., :2]) <= 0.5).all(-1)
    world = np.where(on_block[..., None], top, origin + rays * origin[2] / -rays[..., 2:])
    return {
        "world": world,
        "segment": on_block.astype(np.uint8),
        "in_box": np.round(
            (np.where(on_block[..., None], inner, -0.5) + 0.5).clip(0, 1) * 65535
        ).astype(np.uint16),
        "distance": np.linalg.norm(world - origin, axis=-1),
    }


def corners(frame: int) -> np.ndarray:
    unit = np.array([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)])
    return (unit * BLOCK) @ turn(0.1 * frame).T + block_place(frame)


def movi_record(name: str, **changes: Any) -> bytes:
    scenes = [floor_scene(frame) for frame in range(FRAMES)]
    distance = np.stack([scene["distance"] for scene in scenes])
    low, high = distance.min(), distance.max()
    up = np.round((np.array([0, 0, 1.0]) + 1) / 2 * 65535).astype(np.uint16)
    features = {
        "metadata/video_name": [name.encode()],
        "metadata/depth_range": np.array([low, high]),
        "camera/focal_length": np.array([FOCAL]),
        "camera/sensor_width": np.array([SENSOR]),
        "camera/positions": np.stack([camera_place(frame) for frame in range(FRAMES)]),
        "camera/quaternions": np.stack([quaternion(ANGLE)] * FRAMES),
        "instances/bboxes_3d": np.stack([corners(frame) for frame in range(FRAMES)])[None].repeat(
            2, 0
        ),
        "instances/quaternions": np.stack([quaternion(0.1 * frame) for frame in range(FRAMES)])[
            None
        ].repeat(2, 0),
        "instances/bboxes/ragged_row_lengths_0": np.array([2, 0]),
        "instances/bboxes/ragged_flat_values": np.array(
            [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]
        ),
        "instances/bbox_frames/ragged_flat_values": np.array([1, 3]),
        "forward_flow": np.arange(300),
        "video": [png(picture(frame, SIDE, SIDE)) for frame in range(FRAMES)],
        "segmentations": [png(scene["segment"]) for scene in scenes],
        "depth": [
            png(np.round((depth - low) / (high - low) * 65535).astype(np.uint16))
            for depth in distance
        ],
        "object_coordinates": [png(scene["in_box"]) for scene in scenes],
        "normal": [png(np.broadcast_to(up, (SIDE, SIDE, 3)))] * FRAMES,
    }
    return example({key: value for key, value in (features | changes).items() if value is not None})


def movi(root: Path) -> Path:
    """movi_e/256x256/1.0.0 with two records for training and one for validation."""
    folder = root / "movi_e" / "256x256" / "1.0.0"
    splits = [
        {"name": "train", "shardLengths": ["1", "1"]},
        {"name": "validation", "shardLengths": ["1"]},
    ]
    write(
        folder / "dataset_info.json",
        json.dumps({"name": "movi_e", "fileFormat": "tfrecord", "splits": splits}),
    )
    for number in range(2):
        write(
            folder / f"movi_e-train.tfrecord-0000{number}-of-00002",
            tfrecord([movi_record(f"{number + 7}")]),
        )
    write(folder / "movi_e-validation.tfrecord-00000-of-00001", tfrecord([movi_record("7")]))
    return folder


def test_kubric_frames_times_poses_and_boxes(tmp_path: Path) -> None:
    movi(tmp_path / "data")
    found = built("kubric", tmp_path / "data", tmp_path / "out")
    prefix = "movi_e/256x256/1.0.0"
    assert [(clip.clip_id, clip.split) for clip in found.clips] == [
        (f"{prefix}/train/7", "train"),
        (f"{prefix}/train/8", "train"),
        (f"{prefix}/validation/7", "val"),
    ]
    assert found.rejected == {}
    pixels, time_s = decoded(found)
    assert np.array_equal(pixels, [picture(frame, SIDE, SIDE) for frame in range(FRAMES)])
    assert np.array_equal(time_s, np.arange(FRAMES) / 12)
    truth = found.targets(found.clips[0].clip_id)
    for name in ("boxes", "points", "depth_m", "pose"):
        assert np.array_equal(truth[f"{name}_time_s"], time_s)
    assert np.abs(truth["pose"][2, :3, 3] - camera_place(2)).max() < 1e-6
    assert np.abs(truth["pose"][2, :3, :3] - turn(ANGLE) @ np.diag([1, -1, -1])).max() < 1e-6
    assert truth["boxes"].shape == (2, FRAMES, 4)
    assert np.allclose(truth["boxes"][0, [1, 3]], [[0.2, 0.1, 0.4, 0.3], [0.6, 0.5, 0.8, 0.7]])
    assert np.isnan(truth["boxes"][0, [0, 2, 4]]).all() and np.isnan(truth["boxes"][1]).all()


def test_kubric_depth_is_along_the_axis_and_agrees_with_the_pose(tmp_path: Path) -> None:
    movi(tmp_path / "data")
    found = built("kubric", tmp_path / "data", tmp_path / "out", tracks=0)
    truth = found.targets(found.clips[0].clip_id)
    assert "points" not in truth
    assert truth["depth_m"].dtype == np.float16
    for frame in range(FRAMES):
        world = unprojected(
            truth["depth_m"][frame].astype(float), truth["pose"][frame], FOCAL / SENSOR * SIDE
        )
        assert np.abs(world - floor_scene(frame)["world"]).max() < 0.005


def unprojected(depth: np.ndarray, pose: np.ndarray, focal_px: float) -> np.ndarray:
    """World places of every pixel, x right, y down, z forward."""
    height, width = depth.shape
    x, y = np.meshgrid(
        (np.arange(width) + 0.5 - width / 2) / focal_px,
        (np.arange(height) + 0.5 - height / 2) / focal_px,
    )
    return (np.stack([x, y, np.ones_like(x)], axis=-1) * depth[..., None]) @ pose[:3, :3].T + pose[
        :3, 3
    ]


def test_kubric_tracks_stay_on_their_paint_and_hide_under_the_block(tmp_path: Path) -> None:
    movi(tmp_path / "data")
    found = built("kubric", tmp_path / "data", tmp_path / "out", tracks=24)
    truth = found.targets(found.clips[0].clip_id)
    points, visible = truth["points"].astype(float), truth["visible"]
    assert points.shape == (24, FRAMES, 2) and visible.any(1).all()
    scenes = [floor_scene(frame) for frame in range(FRAMES)]
    on_block, hidden_by_block = 0, 0
    for track, seen in zip(points, visible, strict=True):
        floor, paint = [], []
        for frame in range(FRAMES):
            ray = (
                np.array([(track[frame, 0] - 0.5), (0.5 - track[frame, 1]), -FOCAL / SENSOR])
                @ turn(ANGLE).T
            )
            place = camera_place(frame)
            top = place + ray * (place[2] - BLOCK[2]) / -ray[2]
            floor.append(place + ray * place[2] / -ray[2])
            paint.append((top - block_place(frame)) @ turn(0.1 * frame))
        spread = [np.ptp(np.array(places), axis=0).max() for places in (floor, paint)]
        assert min(spread) < 1e-4  # pixels of 16 bits
        is_block = spread[1] < spread[0]
        on_block += is_block
        for frame in range(FRAMES):
            inside = ((track[frame] > 0.05) & (track[frame] < 0.95)).all()
            row, column = (track[frame, ::-1] * SIDE).astype(int).clip(0, SIDE - 1)
            around = scenes[frame]["segment"][
                max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2
            ]
            if inside and (around == is_block).all():
                assert seen[frame]
            if (around != is_block).all():
                assert not seen[frame]
                hidden_by_block += not is_block and inside
    assert on_block >= 3 and hidden_by_block >= 1
    again = built("kubric", tmp_path / "data", tmp_path / "out", tracks=24).targets(
        found.clips[0].clip_id
    )
    assert np.array_equal(again["points"], truth["points"])
    other = built("kubric", tmp_path / "data", tmp_path / "out", tracks=24, seed=1).targets(
        found.clips[0].clip_id
    )
    assert not np.array_equal(other["points"], truth["points"])


def test_a_normal_that_turns_away_hides_its_point() -> None:
    """A plate that is turned over: all else says that it is seen."""
    shape = (2, 8, 8)
    axis = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])  # still, then half a turn about x
    unit = kubric_tracks.UNIT_BOX[:, :3] * [4, 4, 0]
    scene = kubric_tracks.RenderedScene(
        camera=kubric_tracks.Camera(np.array([moved(0, 0, 5.0)] * 2), 1.0),
        distance_FHW=np.full(shape, 9.0),
        segment_FHW=np.ones(shape, np.uint8),
        in_box_FHW3=np.full((*shape, 3), 40000, np.uint16),
        normal_FHW3=np.broadcast_to(np.array([32768, 32768, 65535], np.uint16), (*shape, 3)),
        corners_OF83=np.array([[unit, unit * [1, -1, -1]]]),
        wxyz_OF4=axis[None],
    )
    queries = np.array([[0, 3, 3], [0, 4, 4]])
    smooth = np.ones(shape, bool)
    assert kubric_tracks._follow(scene, 1, queries, smooth)[1].tolist() == [[True, False]] * 2
    assert kubric_tracks._follow(scene, 1, queries, ~smooth)[1].all()
    # A normal that faces away where its point is seen is not believed.
    inside_out = replace(scene, normal_FHW3=65535 - scene.normal_FHW3)
    assert kubric_tracks._follow(inside_out, 1, queries, smooth)[1].all()


def test_a_point_is_covered_by_what_is_nearer_or_of_another_segment() -> None:
    """One frame of 8 x 8 pixels, all 5 m away; the 4 pixels around (0.5, 0.5) have rows and columns 3 and 4."""
    segment, distance = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 5.0)
    segment[0, :3], segment[0, 3, 3] = 1, 1
    distance[0, 7] = 4.0
    unused = np.zeros((1, 8, 8, 3), np.uint16)
    scene = kubric_tracks.RenderedScene(
        kubric_tracks.Camera(np.eye(4)[None], 1.0),
        distance,
        segment,
        unused,
        unused,
        np.empty(0),
        np.empty(0),
    )

    def covered(segment: int, x: float, y: float, metres: float) -> bool:
        return bool(
            kubric_tracks._is_covered(scene, segment, np.array([[[x, y]]]), np.array([[metres]]))[
                0, 0
            ]
        )

    assert not covered(0, 0.5, 0.5, 5.0) and not covered(
        1, 0.5, 0.5, 5.0
    )  # both segments are around
    assert covered(1, 0.7, 0.7, 5.0) and covered(0, 0.5, 0.2, 5.0)
    assert not covered(0, 0.7, 0.7, 5.04) and covered(0, 0.7, 0.7, 5.06)
    assert covered(0, 0.7, 0.97, 4.5) and not covered(
        0, 0.7, 0.9, 4.5
    )  # the farthest of the 4 counts
    assert (
        not covered(1, 0.01, 0.01, 5.0)
        and covered(1, -0.01, 0.01, 5.0)
        and covered(1, 0.01, np.nan, 5.0)
    )


def test_a_camera_projects_what_it_sees_and_nothing_behind_it() -> None:
    """Pixels are square, so that in a frame twice as wide as high a step down counts twice."""
    camera = kubric_tracks.Camera(np.array([moved(1, 2, 3)]), 0.8)
    xy = np.array([[0.5, 0.5], [0.9, 0.5], [0.5, 0.9], [0.1, 0.3]])
    rays = camera.rays(xy, 2.0)
    assert np.allclose(rays[1] - rays[0], [0.4 / 0.8, 0, 0])
    assert np.allclose(rays[2] - rays[0], [0, -0.4 / 0.8 / 2, 0])
    assert np.allclose(camera.project((rays * 7 + [1, 2, 3])[:, None], 2.0)[:, 0], xy)
    assert np.isnan(camera.project((rays * -7 + [1, 2, 3])[:, None], 2.0)).all()
    assert np.allclose(camera.ray_length(1, 2), np.linalg.norm([0.25 / 0.8, 0, 1]))


def test_normals_are_trusted_where_they_are_like_their_neighbours() -> None:
    """Beyond the frame lie zeros, as in kubric's code: a corner has 3 such neighbours, an edge 2."""
    normal = np.full((1, 7, 7, 3), 65535, np.uint16)
    normal[0, 3, 3] = 0
    rough = np.argwhere(~kubric_tracks._is_smooth(normal)[0]).tolist()
    assert rough == [[0, 0], [0, 6], [3, 3], [6, 0], [6, 6]]


def test_shares_of_points_follow_kubrics_rule() -> None:
    """Worked by hand: 10 wanted of 3 segments; the rarest gets at most a tenth of its own, the last what is left."""
    assert kubric_tracks.shares(np.array([1000, 20, 60]), 10).tolist() == [4, 2, 4]
    assert kubric_tracks.shares(np.array([30, 0]), 100).tolist() == [3, 0]


def test_kubric_lists_what_is_damaged_missing_or_there_twice(tmp_path: Path) -> None:
    folder = movi(tmp_path / "data")
    first, second = sorted(folder.glob("movi_e-train*"))
    data = first.read_bytes()
    first.write_bytes(tfrecord([movi_record("7"), movi_record("7")]) + data[: len(data) // 2])
    second.unlink()
    flipped = bytearray((folder / "movi_e-validation.tfrecord-00000-of-00001").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "movi_e-validation.tfrecord-00000-of-00001").write_bytes(flipped)
    found = built("kubric", tmp_path / "data", tmp_path / "out", tracks=0)
    assert [clip.split for clip in found.clips] == ["train"]
    reasons = {key.rpartition("/")[2]: reason for key, reason in found.rejected.items()}
    assert len(reasons) == 3
    assert "record 3: the file is cut off: found" in reasons["movi_e-train.tfrecord-00000-of-00002"]
    assert "(after 2 whole records)" in reasons["movi_e-train.tfrecord-00000-of-00002"]
    assert "checksum of its data" in reasons["movi_e-validation.tfrecord-00000-of-00001"]
    assert found.origin.notes == {
        "movi_e/256x256/1.0.0/movi_e-train.tfrecord: files": (
            "1 of 2 are missing; first movi_e-train.tfrecord-00001-of-00002"
        )
    }
    (again,) = [reason for reason in reasons.values() if "already" in reason]
    assert again == "there is a 'movi_e/256x256/1.0.0/train/7' already"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera/positions": None}, "has no 'camera/positions'"),
        (
            {"camera/positions": np.zeros((3, 3))},
            "'camera/positions' has 9 values, wanted shape (5, 3)",
        ),
        ({"video": np.zeros(3)}, "'video' is no list of bytes"),
        ({"metadata/video_name": [b"../../up"]}, "its name leads out of the folder of frames"),
    ],
)
def test_kubric_says_what_is_wrong_with_a_record(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    write(
        tmp_path / "data" / "movi_f-train.tfrecord-00000-of-00001",
        tfrecord([movi_record("1", **changes)]),
    )
    with pytest.raises(BadInput) as caught:
        built("kubric", tmp_path / "data", tmp_path / "out")
    assert reason in caught.value.message
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == []


def test_kubric_counts_records_and_refuses_damaged_boxes(tmp_path: Path) -> None:
    folder = movi(tmp_path / "data")
    path = folder / "movi_e-validation.tfrecord-00000-of-00001"
    path.write_bytes(tfrecord([movi_record("1"), movi_record("2")]))
    found = built("kubric", tmp_path / "data", tmp_path / "out", tracks=0)
    told = ["holds 2 records, dataset_info.json says 1"]
    assert (found.rejected, list(found.origin.notes.values())) == ({}, told)
    path.write_bytes(tfrecord([]))
    found = built("kubric", tmp_path / "data", tmp_path / "out", tracks=0)
    assert list(found.rejected.values()) == ["holds 0 records, dataset_info.json says 1"]
    path.write_bytes(
        tfrecord(
            [movi_record("1", **{"instances/bbox_frames/ragged_flat_values": np.array([1, 9])})]
        )
    )
    with pytest.raises(BadInput, match="2 boxes, 2 frames of them and rows"):
        built("kubric", tmp_path / "data", tmp_path / "out", tracks=0)
    with pytest.raises(BadInput, match="does not list splits"):
        kubric.record_counts(write(tmp_path / "dataset_info.json", "{}"))


def test_example_reads_packed_and_single_numbers_and_negative_ones() -> None:
    single = field(
        1, field(1, b"n") + field(2, field(3, b"\x08" + varint(5) + b"\x08" + varint(-3)))
    )
    floats = field(
        1,
        field(1, b"f")
        + field(2, field(2, b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", -2))),
    )
    read = Example(field(1, single + floats), "it")
    assert read.ints("n").tolist() == [5, -3]
    assert read.floats("f").tolist() == [1.5, -2.0]
    assert Example(example({"n": np.array([-1, 300])}), "it").ints("n", 2, 1).tolist() == [
        [-1],
        [300],
    ]
    for junk in (b"\x0a\xff", b"\x0b\x00", b"\x80" * 12, b"\x0a\x03\x0a\x01\x00"):
        with pytest.raises(BadInput, match=r"it is no tf\.train\.Example"):
            Example(junk, "it")


# ScanNet


def depth_map(number: int, height: int = 24, width: int = 32) -> np.ndarray:
    depth = 1000 + 100 * number + np.arange(height * width, dtype=np.uint16).reshape(height, width)
    depth[0, 0] = 0
    return depth


def sens(times_us: list[int], cut: int = 0, depth_compression: int = 1) -> bytes:
    """A frame for each time; tracking is lost in the second."""
    head = struct.pack("<IQ", 4, 6) + b"sensor" + np.zeros((4, 4, 4), "<f4").tobytes()
    head += struct.pack("<2i4If", 1, depth_compression, 32, 24, 32, 24, 1000.0)
    head += struct.pack("<Q", len(times_us))
    for number, time_us in enumerate(times_us):
        colour, depth = png(picture(number)), depth_map(number).astype("<u2").tobytes()
        depth = zlib.compress(depth) if depth_compression == 1 else depth
        pose = np.full((4, 4), -np.inf) if number == 1 else moved(0.1 * number)
        head += (
            pose.astype("<f4").tobytes()
            + struct.pack("<4Q", time_us, time_us, len(colour), len(depth))
            + colour
            + depth
        )
    return (head + struct.pack("<Q", 0))[: None if not cut else -cut]


def export(folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        write(folder / "color" / f"{number}.png", png(picture(number)))
        write(folder / "depth" / f"{number}.png", png(depth_map(number)))
        write(folder / "pose" / f"{number}.txt", matrix_text(moved(0.1 * number)))


def test_scannet_sens(tmp_path: Path) -> None:
    times_us = [5_000_000, 5_033_000, 5_070_000]
    write(tmp_path / "data" / "scans" / "scene0000_00" / "scene0000_00.sens", sens(times_us))
    write(
        tmp_path / "data" / "scans" / "scene0001_00" / "scene0001_00.sens",
        sens([0, 0, 0], depth_compression=0),
    )
    write(tmp_path / "data" / "scans_test" / "scene0707_00" / "scene0707_00.sens", sens(times_us))
    found = built("scannet", tmp_path / "data", tmp_path / "out")
    assert [(clip.clip_id, clip.split) for clip in found.clips] == [
        ("scene0000_00", "train"),
        ("scene0001_00", "train"),
        ("scene0707_00", "test"),
    ]
    pixels, time_s = decoded(found)
    assert np.array_equal(pixels, [picture(number) for number in range(3)])
    assert np.allclose(time_s, [0, 0.033, 0.07], atol=1e-9)
    assert np.array_equal(decoded(found, 1)[1], np.arange(3) / 30)
    for clip in found.clips:
        truth = found.targets(clip.clip_id)
        assert np.array_equal(
            truth["depth_m"],
            np.stack([depth_map(number) / 1000 for number in range(3)]).astype(np.float16),
        )
        assert np.isnan(truth["pose"][1]).all()
        assert np.allclose(truth["pose"][[0, 2]], [moved(0), moved(0.2)])
    lost = "1 of 3 frames have no finite pose, kept as NaN; first scans/scene0000_00/scene0000_00.sens at byte "
    assert found.rejected == {}
    assert found.origin.notes["scene0000_00: pose"].startswith(lost)
    stored = list((tmp_path / "out" / "stillframe_frames" / "scene0000_00").iterdir())
    assert sorted(path.name for path in stored) == [
        "frame_000000.png",
        "frame_000001.png",
        "frame_000002.png",
        "timestamps.txt",
    ]
    before = stored[0].stat().st_ino
    built("scannet", tmp_path / "data", tmp_path / "out")
    assert stored[0].stat().st_ino == before


def test_scannet_lists_what_is_cut_off_or_of_another_kind(tmp_path: Path) -> None:
    whole = sens([0, 0, 0])
    write(tmp_path / "data" / "a.sens", sens([0, 0, 0], cut=60))
    write(tmp_path / "data" / "b.sens", whole[:100])
    write(tmp_path / "data" / "c.sens", b"\x05\x00\x00\x00" + whole[4:])
    write(tmp_path / "data" / "d.sens", sens([0, 0, 0], depth_compression=2))
    write(tmp_path / "data" / "e.sens", whole)
    found = built("scannet", tmp_path / "data", tmp_path / "out")
    assert [clip.clip_id for clip in found.clips] == ["e"]
    assert "cut off: holds 2 of 3 frames" in found.rejected["a"]
    assert "cut off in its header" in found.rejected["b"]
    assert "found version 5" in found.rejected["c"]
    assert "compression 1 of colour and 2 of depth" in found.rejected["d"]


STEPS_US = [33_333 * number + 1 for number in range(8)]
AT_K = ": frame k is taken at k / 30 s"


@pytest.mark.parametrize(
    ("times_us", "said"),
    [
        (STEPS_US, None),
        ([0] * 8, None),
        ([0] * 5 + [1_394_820_000] + [0] * 2, "7 of 8 frames have no time stamp"),
        (
            [*STEPS_US[:5], 0, *STEPS_US[6:]],
            "the time stamp of frame 5 does not follow the others",
        ),
        (
            [*STEPS_US[:7], 1_394_820_000_000],
            "the time stamp of frame 7 does not follow the others",
        ),
        ([*STEPS_US[:7], 2**64 - 1], "the time stamp of frame 7 does not follow the others"),
        ([0, *[time_us + 10**12 for time_us in STEPS_US[1:]]], "the time stamp of frame 1"),
        ([9] * 8, "the time stamp of frame 1 does not follow the others"),
        ([7], None),
    ],
)
def test_a_stray_time_stamp_costs_no_scan(
    tmp_path: Path, times_us: list[int], said: str | None
) -> None:
    write(tmp_path / "data" / "scene0001_00.sens", sens(times_us))
    found = built("scannet", tmp_path / "data", tmp_path / "out")
    assert [clip.clip_id for clip in found.clips] == ["scene0001_00"]
    laid_out = tmp_path / "out" / "stillframe_frames" / "scene0001_00" / "timestamps.txt"
    time_s = np.array(laid_out.read_text().split(), float)
    if times_us == STEPS_US:
        assert np.allclose(time_s, np.arange(8) * 0.033333, atol=1e-9)
    else:
        assert np.array_equal(time_s, np.arange(len(times_us)) / 30)
    assert ("scene0001_00" in found.origin.notes) == (said is not None)
    assert found.origin.notes.get("scene0001_00", "").startswith(said or "")
    assert said is None or found.origin.notes["scene0001_00"].endswith(AT_K)


def test_scans_with_stray_stamps_are_used(tmp_path: Path) -> None:
    scans = SHARED / "found" / "inputs_public" / "scannet"
    if not scans.is_dir():
        pytest.skip("the scans are not here")
    result = call("manifest", "scannet", scans, "--out", tmp_path / "out")
    assert result.code == 0 and "2 clips of 2 videos" in result.out, result
    assert "2 notes" in result.out and result.out.count("scene000") == 2


def test_scannet_export_with_splits_gaps_and_damage(tmp_path: Path) -> None:
    root = tmp_path / "data"
    export(root / "scene0000_00", [0, 2, 10])
    write(root / "scene0000_00" / "scene0000_00.sens", b"not read, as it is exported")
    export(root / "scene0000_01", [0, 1])
    export(root / "scene0009_00", [0])
    (root / "scene0000_00" / "color" / "2.png").rename(
        root / "scene0000_00" / "color" / "000002.png"
    )
    (root / "scene0000_01" / "depth" / "1.png").unlink()
    (root / "scene0000_01" / "color" / "0.png").unlink()
    write(root / "scene0000_01" / "pose" / "1.txt", "-inf " * 16)
    write(root / "scannetv2_train.txt", "scene0000_00\nscene0000_02\n")
    write(root / "scannetv2_val.txt", "scene0000_01\n")
    found = built("scannet", root, tmp_path / "out", depth_px=12)
    assert [(clip.clip_id, clip.split) for clip in found.clips] == [
        ("scene0000_00", "train"),
        ("scene0000_01", "val"),
    ]
    assert {clip.group for clip in found.clips} == {"scene0000"}
    assert found.origin.notes["groups"] == (
        "1 of 1 group lie in more than one split, which flatters scores: 'scene0000' in train "
        "(scene0000_00) and val (scene0000_01)"
    )
    pixels, time_s = decoded(found)
    assert np.array_equal(pixels, [picture(number) for number in (0, 2, 10)])
    assert np.array_equal(time_s, np.array([0, 2, 10]) / 30)
    truth = found.targets("scene0000_00")
    assert np.array_equal(
        truth["depth_m"][2], (depth_map(10)[1::2, 1::2] / 1000).astype(np.float16)
    )
    assert np.allclose(truth["pose"][2], moved(1.0))
    assert "depth_m" not in found.targets("scene0000_01")
    assert found.rejected == {}
    assert {source: text for source, text in found.origin.notes.items() if source != "groups"} == {
        "scannetv2_train.txt": "1 of the 2 scans it lists are not there; first scene0000_02",
        "scene0000_01: color": "1 of 2 frames have no colour image; first scene0000_01/depth/0.png",
        "scene0000_01: depth": "1 of 1 frames have no depth; first scene0000_01/color/1.png",
        "scene0000_01: pose": "1 of 1 frames have no finite pose, kept as NaN; first scene0000_01/color/1.png",
        "scene0009_00": "none of scannetv2_{train,val,test}.txt lists it",
    }
    write(root / "scene0000_00" / "depth" / "2.png", png(depth_map(2))[:-40])
    with pytest.raises(BadInput, match=r"depth.2\.png cannot be read as an image"):
        built("scannet", root, tmp_path / "out")
    write(root / "scene0000_00" / "depth" / "2.png", png(picture(2)))
    with pytest.raises(BadInput, match="wanted a 16-bit grey image of depth, found uint8"):
        built("scannet", root, tmp_path / "out")


def test_scannet_refuses_a_scan_in_two_places_or_splits(tmp_path: Path) -> None:
    export(tmp_path / "data" / "a" / "scene0000_00", [0])
    export(tmp_path / "data" / "b" / "scene0000_00", [0])
    with pytest.raises(BadInput, match="scan 'scene0000_00' is there 2 times"):
        built("scannet", tmp_path / "data", tmp_path / "out")
    for split in ("train", "val"):
        write(tmp_path / "data" / f"scannetv2_{split}.txt", "scene0000_00")
    (tmp_path / "data" / "b").rename(tmp_path / "aside")
    with pytest.raises(
        BadInput, match=r"scannetv2_val\.txt: scan 'scene0000_00' is in split 'train' too"
    ):
        built("scannet", tmp_path / "data", tmp_path / "out")


# nuScenes

Q90 = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
"""A quarter turn to the left about the map's z axis."""
FORWARD = [0.5, -0.5, 0.5, -0.5]
"""A camera that looks along the car's x axis: its x is the car's -y, its y the car's -z, its z the car's x."""


def nuscenes_root(root: Path, version: str = "v1.0-mini") -> Path:
    """Two scenes; the first has 4 front images at uneven times, one of them missing."""
    times = [1_000_000, 1_083_000, 1_167_000, 1_250_000]
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": "s1", "name": "scene-0103"}, {"token": "s2", "name": "scene-0061"}],
        "sample": [{"token": "a1", "scene_token": "s1"}, {"token": "a2", "scene_token": "s2"}],
        "sensor": [{"token": "f", "channel": "CAM_FRONT"}, {"token": "b", "channel": "CAM_BACK"}],
        "calibrated_sensor": [
            {
                "token": "cf",
                "sensor_token": "f",
                "translation": [1.7, 0.0, 1.5],
                "rotation": FORWARD,
            },
            {
                "token": "cb",
                "sensor_token": "b",
                "translation": [0.0, 0.0, 0.0],
                "rotation": [1, 0, 0, 0],
            },
        ],
        "ego_pose": [
            {"token": f"e{k}", "translation": [10.0, 0.5 * k, 0.0], "rotation": Q90}
            for k in range(5)
        ],
        "sample_data": [],
    }
    for place, time in reversed(list(enumerate(times))):
        folder = "samples" if place == 0 else "sweeps"
        name = f"{folder}/CAM_FRONT/n__CAM_FRONT__{time}.png"
        row = {
            "sample_token": "a1",
            "ego_pose_token": f"e{place}",
            "calibrated_sensor_token": "cf",
            "timestamp": time,
        }
        tables["sample_data"].append({"token": f"d{place}", "filename": name, **row})
        if place != 2:
            write(root / name, png(picture(place)))
    tables["sample_data"].append(
        {**tables["sample_data"][0], "token": "back", "calibrated_sensor_token": "cb"}
    )
    tables["sample_data"].append(
        {**tables["sample_data"][0], "token": "other", "sample_token": "a2", "filename": "no.jpg"}
    )
    for name, rows in tables.items():
        write(root / version / f"{name}.json", json.dumps(rows, indent=0))
    return root


def test_nuscenes_times_and_poses(tmp_path: Path) -> None:
    found = built("nuscenes", nuscenes_root(tmp_path / "data"), tmp_path / "out")
    assert [(clip.clip_id, clip.split) for clip in found.clips] == [("scene-0103", "val")]
    pixels, time_s = decoded(found)
    assert np.array_equal(pixels, [picture(number) for number in (0, 1, 3)])
    assert np.allclose(time_s, [0, 0.083, 0.25], atol=1e-12)
    truth = found.targets("scene-0103")
    assert truth.keys() == {"pose", "pose_time_s"}
    # The car drives along the map's y axis: so does the camera's z axis, its x axis is the map's x axis, its y axis points down.
    assert np.allclose(
        truth["pose"][2],
        [[1, 0, 0, 10], [0, 0, 1, 1.7 + 1.5], [0, -1, 0, 1.5], [0, 0, 0, 1]],
        atol=1e-9,
    )
    assert np.allclose(
        (np.linalg.inv(truth["pose"][0]) @ truth["pose"][1])[:3, 3], [0, 0, 0.5], atol=1e-9
    )
    assert found.rejected == {}
    assert found.origin.notes == {
        "scene-0061": "none of its 1 CAM_FRONT images is there; first no.jpg",
        "scene-0103: images": "1 of 4 CAM_FRONT images are not there; first sweeps/CAM_FRONT/n__CAM_FRONT__1167000.png",
    }


def test_nuscenes_names_damaged_tables_and_missing_rows(tmp_path: Path) -> None:
    root = nuscenes_root(tmp_path / "data")
    tables = root / "v1.0-mini"
    rows = json.loads((tables / "ego_pose.json").read_text())
    (tables / "ego_pose.json").write_text(json.dumps(rows[1:]))
    found = built("nuscenes", root, tmp_path / "out")
    assert np.isnan(found.targets("scene-0103")["pose"]).any((1, 2)).tolist() == [
        True,
        False,
        False,
    ]
    assert found.origin.notes["scene-0103: pose"].startswith("1 of 3 frames have no finite pose")
    (tables / "ego_pose.json").write_text(json.dumps(rows)[:-20])
    with pytest.raises(BadInput, match=r"ego_pose\.json is damaged or cut off"):
        built("nuscenes", root, tmp_path / "out")
    (tables / "ego_pose.json").write_text('[{"token": "e1"}]')
    with pytest.raises(BadInput, match=r"ego_pose\.json: a row has no 'translation'"):
        built("nuscenes", root, tmp_path / "out")
    (tables / "ego_pose.json").unlink()
    with pytest.raises(BadInput, match=r"ego_pose\.json cannot be read"):
        built("nuscenes", root, tmp_path / "out")
    (root / "v1.0-trainval").mkdir()
    with pytest.raises(BadInput, match=r"holds 2 versions \(v1.0-mini, v1.0-trainval\)"):
        built("nuscenes", root, tmp_path / "out")
    with pytest.raises(BadInput, match="no version called 'v1.0-test'"):
        built("nuscenes", root, tmp_path / "out", version="v1.0-test")


def test_nuscenes_tables_are_read_across_blocks(tmp_path: Path) -> None:
    rows = [{"token": str(number), "text": "x] ,{" * 100} for number in range(5000)]
    path = write(tmp_path / "table.json", json.dumps(rows, indent=1))
    assert path.stat().st_size > 2 << 20
    assert list(nuscenes.read_rows(path, "text")) == rows
    assert list(nuscenes.read_rows(write(path, "[\n]"))) == []


def test_nuscenes_splits_are_the_official_ones() -> None:
    names = [f"scene-{number:04d}" for number in range(1, 1111)]
    val = [name for name in names if nuscenes.split_of(name, "v1.0-trainval") == "val"]
    assert len(val) == 150
    assert (val[0], val[-1]) == ("scene-0003", "scene-1073")
    assert [name for name in names if nuscenes.split_of(name, "v1.0-mini") == "val"] == [
        "scene-0103",
        "scene-0916",
    ]
    assert nuscenes.split_of("scene-0077", "v1.0-test") == "test"


# 7-Scenes


def seven(folder: Path, numbers: list[int]) -> None:
    depth = np.full((24, 32), 2000, np.uint16)
    depth[10, 16], depth[12, 16] = 0, 65535
    for number in numbers:
        write(folder / f"frame-{number:06d}.color.png", png(picture(number)))
        write(folder / f"frame-{number:06d}.depth.png", png(depth))
        write(
            folder / f"frame-{number:06d}.pose.txt",
            matrix_text(moved(0.1 * number)).replace(" ", "\t"),
        )


def test_sevenscenes_layout_splits_and_truth(tmp_path: Path) -> None:
    root = tmp_path / "data"
    seven(root / "chess" / "seq-01", [0, 1, 2])
    seven(root / "chess" / "seq-03", [0, 4])
    seven(root / "fire" / "seq-01", [0])
    write(root / "chess" / "TrainSplit.txt", "sequence1\nsequence2\n")
    write(root / "chess" / "TestSplit.txt", "sequence3\n")
    write(root / "chess" / "seq-01" / "frame-000001.pose.txt", "nan " * 16)
    (root / "chess" / "seq-01" / "frame-000002.depth.png").unlink()
    (root / "chess" / "seq-03" / "frame-000000.color.png").unlink()
    found = built("sevenscenes", root, tmp_path / "out")
    splits = [(clip.clip_id, clip.split) for clip in found.clips]
    assert splits == [("chess/seq-01", "train"), ("chess/seq-03", "test"), ("fire/seq-01", "train")]
    pixels, time_s = decoded(found)
    assert np.array_equal(pixels, [picture(number) for number in range(3)])
    assert np.array_equal(time_s, np.arange(3) / 30)
    truth = found.targets("chess/seq-01")
    assert np.array_equal(truth["depth_m_time_s"], [0, 1 / 30])
    assert np.isnan(truth["pose"][1]).all() and np.allclose(truth["pose"][2], moved(0.22))
    depth = truth["depth_m"][0]
    assert set(np.unique(depth)) == {0, 2}
    assert (depth[[0, -1]] == 0).all() and (
        depth[:, [0, -1]] == 0
    ).all()  # beyond the depth camera's view
    assert 1 <= (depth[2:22, 3:29] == 0).sum() <= 2
    assert found.rejected == {}
    assert found.origin.notes == {
        "chess/seq-01: depth": "1 of 3 frames have no depth; first chess/seq-01/frame-000002.color.png",
        "chess/seq-01: pose": "1 of 3 frames have no finite pose, kept as NaN; first chess/seq-01/frame-000001.color.png",
        "chess/seq-03: color": "1 of 2 frames have no colour image; first chess/seq-03/frame-000000.depth.png",
        "chess: sequences": "1 of the 3 sequences that its split files list are not there; first seq-02",
    }
    write(root / "chess" / "TestSplit.txt", "seq three\n")
    with pytest.raises(BadInput, match="wanted lines such as 'sequence1', found 'seq'"):
        built("sevenscenes", root, tmp_path / "out")


def test_sevenscenes_depth_moves_into_the_colour_camera() -> None:
    """Two points at known places of the depth camera's space, seen again by the colour camera."""
    depth = np.zeros((480, 640))
    depth[300, 400], depth[100, 200] = 2.0, 1.0
    seen = sevenscenes.as_colour_camera(depth)
    wanted = {}
    for row, column, z in ((300, 400, 2.0), (100, 200, 1.0)):
        x, y = (column + 0.5 - 320) / 585 * z - 0.02, (row + 0.5 - 240) / 585 * z
        wanted[int(np.floor(y / z * 525 + 240)), int(np.floor(x / z * 525 + 320))] = z
    assert {
        (int(row), int(column)): seen[row, column]
        for row, column in zip(*np.nonzero(seen), strict=True)
    } == wanted


# TUM


def tum(folder: Path) -> None:
    colour_s, depth_s = [100.0, 100.0333, 100.0712, 100.1], [100.005, 100.035, 100.13]
    for kind, times in (("rgb", colour_s), ("depth", depth_s)):
        lines = [f"{time:.6f} {kind}/{time:.6f}.png" for time in times]
        write(folder / f"{kind}.txt", "# images\n# timestamp filename\n" + "\n".join(lines) + "\n")
    for number, time in enumerate(colour_s):
        write(folder / "rgb" / f"{time:.6f}.png", png(picture(number)))
    for number, time in enumerate(depth_s):
        write(folder / "depth" / f"{time:.6f}.png", png(5 * depth_map(number)))
    # A quarter turn about the axis y = down: from looking along z to looking along x.
    turned = f"0 {np.sqrt(0.5)} 0 {np.sqrt(0.5)}"
    poses = [f"{99.99 + 0.01 * k:.4f} {k} 2 3 {turned if k > 2 else '0 0 0 1'}" for k in range(8)]
    write(folder / "groundtruth.txt", "# truth\n" + "\n".join(poses) + "\n")


def test_tum_associates_depth_and_poses_by_time(tmp_path: Path) -> None:
    root = tmp_path / "data"
    tum(root / "rgbd_dataset_freiburg1_xyz")
    tum(root / "rgbd_dataset_freiburg1_validation")
    (root / "rgbd_dataset_freiburg1_validation" / "groundtruth.txt").unlink()
    found = built("tum", root, tmp_path / "out")
    name = "rgbd_dataset_freiburg1_xyz"
    assert [(clip.clip_id, clip.split) for clip in found.clips] == [
        ("rgbd_dataset_freiburg1_validation", "test"),
        (name, "train"),
    ]
    pixels, time_s = decoded(found, 1)
    assert np.array_equal(pixels, [picture(number) for number in range(4)])
    assert np.allclose(time_s, [0, 0.0333, 0.0712, 0.1], atol=1e-9)
    truth = found.targets(name)
    assert np.allclose(truth["depth_m_time_s"], [0, 0.0333], atol=1e-9)
    assert np.array_equal(
        truth["depth_m"],
        np.stack([5 * depth_map(0) / 5000, 5 * depth_map(1) / 5000]).astype(np.float16),
    )
    # At a pose, a third of the way between two, and behind the last one.
    assert np.allclose(truth["pose"][:3, 0, 3], [1, 4.33, 7], atol=1e-5)
    assert np.isnan(truth["pose"][3]).all()
    assert np.allclose(truth["pose"][1][:3, :3], [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-6)
    assert "pose" not in found.targets("rgbd_dataset_freiburg1_validation")
    assert (
        found.origin.notes[f"{name}: depth"]
        == f"2 of 4 frames have no depth; first {name}/rgb/100.071200.png"
    )
    assert found.rejected == {}
    assert found.origin.notes[f"{name}: pose"].startswith("1 of 4 frames have no finite pose")
    assert built("tum", root, tmp_path / "out", val_sequences=[name]).splits == ("test", "val")
    with pytest.raises(BadInput, match="val_sequences: no sequence called 'fr1'"):
        built("tum", root, tmp_path / "out", val_sequences=["fr1"])


def rodrigues(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) rotation by an angle about a unit axis, as a matrix and by no quaternion."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_tum_poses_are_those_at_the_times_of_the_frames(tmp_path: Path) -> None:
    """A camera that moves and turns evenly: what its pose is at any time is known."""
    folder = tmp_path / "data" / "turning"
    tum(folder)
    axis, start_s = np.array([2.0, -3.0, 6.0]) / 7, 99.896
    speed, turn = np.array([0.8, -0.3, 0.1]), 1.5

    def angle_at(time_s: float) -> float:
        return 3.0 + turn * (time_s - start_s)  # the real part changes its sign on the way

    lines = []
    for k in range(30):
        time_s = start_s + 0.01 * k + 0.003 * (k % 2)  # unevenly, and not at the frames' times
        if 100.05 < time_s < 100.095:
            continue  # a gap about the frame at 100.0712 s
        wxyz = np.array([np.cos(angle_at(time_s) / 2), *np.sin(angle_at(time_s) / 2) * axis])
        wxyz *= (-1) ** (k // 2) * (1 + k % 3)  # the same rotation, with either sign and any length
        numbers = [*(speed * (time_s - start_s)), *wxyz[1:], wxyz[0]]
        lines.append(f"{time_s:.4f} " + " ".join(f"{number:.9f}" for number in numbers))
    write(folder / "groundtruth.txt", "\n".join(lines) + "\n")
    pose = built("tum", folder, tmp_path / "out").targets("turning")["pose"]
    for frame, time_s in ((0, 100.0), (1, 100.0333), (3, 100.1)):
        assert np.allclose(pose[frame, :3, 3], speed * (time_s - start_s), atol=1e-6)
        assert np.allclose(pose[frame, :3, :3], rodrigues(axis, angle_at(time_s)), atol=1e-6)
        assert pose[frame, 3].tolist() == [0, 0, 0, 1]
    assert np.isnan(pose[2]).all()  # in the gap, 0.0222 s and 0.0248 s from the poses beside it


def test_poses_beside_gaps_at_ends_and_where_tracking_was_lost() -> None:
    known_s = np.array([1.0, 1.01, 1.01, 1.05, 1.06, 1.07])
    place = np.array([[0.0], [1], [1], [5], [np.nan], [7]]) * np.ones(3)
    wxyz = np.tile([1.0, 0, 0, 0], (6, 1))

    def x_at(*time_s: float) -> list[float]:
        return poses_at(np.array(time_s), known_s, place, wxyz, 0.02)[:, 0, 3].tolist()

    assert np.allclose(x_at(1.0, 1.0025, 1.01), [0, 0.25, 1])
    assert x_at(0.979, 0.99, 1.08, 1.1)[1:3] == [0, 7]  # before the first and behind the last
    assert np.isnan(x_at(0.979, 1.1)).all()
    assert x_at(1.022, 1.044) == [1, 5]  # neighbours that are too far apart: the nearer one
    assert x_at(1.052) == [5] and np.isnan(x_at(1.058)).all() and x_at(1.068) == [7]
    assert np.isnan(poses_at(np.array([1.0]), known_s[:0], place[:0], wxyz[:0], 0.02)).all()
    one = poses_at(np.array([0.995, 1.0, 1.005]), known_s[:1], place[:1], wxyz[:1], 0.02)
    assert one[:, 0, 3].tolist() == [0, 0, 0]


def test_rotations_are_interpolated_at_constant_speed() -> None:
    axis, share = np.array([1.0, 2.0, -2.0]) / 3, np.array([[0.0], [0.3], [0.5], [1.0]])
    for angle in (0.0, 1e-9, 0.4, 3.1):
        second = np.array([np.cos(angle / 2), *np.sin(angle / 2) * axis])
        between = slerp(np.tile([1.0, 0, 0, 0], (4, 1)), np.tile(-second, (4, 1)), share)
        wanted = [rodrigues(axis, part * angle) for part in share[:, 0]]
        assert np.allclose(recordings.motion(np.zeros((4, 3)), between)[:, :3, :3], wanted)


def test_tum_lists_missing_files_and_malformed_lines(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "desk"
    tum(folder)
    (folder / "rgb" / "100.033300.png").unlink()
    with (folder / "rgb.txt").open("a") as file:
        file.write("100.0 rgb/100.000000.png\n")
    found = built("tum", folder, tmp_path / "out")
    assert len(decoded(found)[1]) == 3
    assert found.clips[0].clip_id == "desk"
    assert (
        found.origin.notes["desk: rgb.txt"] == "1 of 5 files are missing; first rgb/100.033300.png"
    )
    assert (
        found.origin.notes["desk: rgb.txt again"]
        == "1 of 5 files repeat a time and are left out; first rgb/100.000000.png"
    )
    write(folder / "groundtruth.txt", "1 2 3\n")
    with pytest.raises(BadInput, match=r"groundtruth\.txt line 1: wanted 8 numbers, found 3"):
        built("tum", folder, tmp_path / "out")
    write(folder / "rgb.txt", "now rgb/a.png\n")
    with pytest.raises(
        BadInput, match=r"rgb\.txt: wanted lines of a time and a file, found 'now rgb/a\.png'"
    ):
        built("tum", folder, tmp_path / "out")


# KITTI odometry


def kitti(root: Path, name: str, cameras: tuple[str, ...], poses: int = 4) -> None:
    folder = root / "sequences" / name
    for camera in cameras:
        for number in range(4):
            write(
                folder / camera / f"{number:06d}.png",
                png(picture(number + len(camera[:-1]) * int(camera[-1]))),
            )
    write(folder / "times.txt", "".join(f"{0.1037 * number:e}\n" for number in range(4)))
    rows = {"P0": 0.0, "P1": -380.0, "P2": 45.0, "P3": -330.0}
    lines = [f"{key}: 700 0 16 {value} 0 700 12 0 0 0 1 0.002" for key, value in rows.items()]
    write(folder / "calib.txt", "\n".join(lines) + "\nTr: " + "0 " * 12)
    if poses:
        lines = [
            " ".join(f"{value:e}" for value in moved(0, 0, 1.1 * number)[:3].flat)
            for number in range(poses)
        ]
        write(root / "poses" / f"{name}.txt", "\n".join(lines) + "\n")


def test_kitti_cameras_poses_and_splits(tmp_path: Path) -> None:
    root = tmp_path / "data"
    kitti(root, "00", ("image_0", "image_2"))
    kitti(root, "09", ("image_0",))
    kitti(root, "11", ("image_2",), poses=0)
    found = built("kitti_odometry", root, tmp_path / "out")
    assert [(clip.clip_id, clip.split) for clip in found.clips] == [
        ("sequences/00", "train"),
        ("sequences/09", "val"),
        ("sequences/11", "test"),
    ]
    assert found.rejected == {}
    pixels, time_s = decoded(found)
    assert np.array_equal(pixels, [picture(number + 12) for number in range(4)])
    assert np.allclose(time_s, 0.1037 * np.arange(4), atol=1e-9)
    # K^-1 (45, 0, 0.002) is where the grey camera's centre lies as image_2 sees it; the camera is at its negative.
    shift = np.array([(45 - 16 * 0.002) / 700, -12 * 0.002 / 700, 0.002])
    assert np.allclose(
        found.targets("sequences/00")["pose"][2][:3, 3], [0, 0, 2.2] - shift, atol=1e-9
    )
    assert np.allclose(found.targets("sequences/09")["pose"][2], moved(0, 0, 2.2), atol=1e-9)
    assert found.targets("sequences/11") == {}
    grey = built("kitti_odometry", root, tmp_path / "grey", camera="image_0", val_sequences=["00"])
    assert [(clip.clip_id, clip.split) for clip in grey.clips] == [
        ("sequences/00", "val"),
        ("sequences/09", "train"),
    ]
    assert np.array_equal(decoded(grey)[0], [picture(number) for number in range(4)])
    assert "has no image_0, only image_2" in grey.rejected["sequences/11"]


def test_kitti_refuses_names_that_are_not_there(tmp_path: Path) -> None:
    """The default names official sequences, of which users may have others."""
    root = tmp_path / "data"
    kitti(root, "00", ("image_0",))
    kitti(root, "01", ("image_0",))
    assert built("kitti_odometry", root, tmp_path / "out").splits == ("train",)
    with pytest.raises(BadInput, match=r"val_sequences: no sequence called '9'; there are: 00, 01"):
        built("kitti_odometry", root, tmp_path / "out", val_sequences=["00", "9"])
    last = built("kitti_odometry", root, tmp_path / "out", val_sequences="01", val_last=0.5)
    assert [(clip.clip_id, clip.split) for clip in last.clips] == [
        ("sequences/00_first", "train"),
        ("sequences/00_last", "val"),
        ("sequences/01", "val"),
    ]
    write(root / "poses" / "01.txt", "no numbers")
    with pytest.raises(BadInput, match=r"val_sequences: '01' cannot be used: .*01.txt line 1"):
        built("kitti_odometry", root, tmp_path / "out", val_sequences="01")


def test_kitti_lists_gaps_and_short_tables(tmp_path: Path) -> None:
    root = tmp_path / "data"
    kitti(root, "00", ("image_0",), poses=3)
    (root / "sequences" / "00" / "image_0" / "000001.png").unlink()
    found = built("kitti_odometry", root, tmp_path / "out")
    assert np.allclose(decoded(found)[1], [0, 0.2074, 0.3111])
    assert np.isnan(found.targets("sequences/00")["pose"]).any((1, 2)).tolist() == [
        False,
        False,
        True,
    ]
    assert (
        found.origin.notes["sequences/00: image_0"]
        == "1 of 4 frames have no image in image_0; first 000001"
    )
    assert found.rejected == {}
    assert found.origin.notes["sequences/00: pose"].startswith("1 of 3 frames have no finite pose")
    write(root / "sequences" / "00" / "times.txt", "0\n0.1\n")
    with pytest.raises(
        BadInput, match=r"times\.txt holds 2 times, and there is a frame 000003\.png"
    ):
        built("kitti_odometry", root, tmp_path / "out")


# What all of them share


def test_frames_are_linked_once_and_again_when_the_source_changes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    seven(root / "seq-01", [0, 1])
    found = built("sevenscenes", root, tmp_path / "out")
    laid_out = found.root / "seq-01"
    assert sorted(path.name for path in laid_out.iterdir()) == [
        "frame_000000.png",
        "frame_000001.png",
        "timestamps.txt",
    ]
    assert (laid_out / "frame_000001.png").readlink() == root / "seq-01/frame-000001.color.png"
    before = laid_out.stat().st_ino
    built("sevenscenes", root, tmp_path / "out")
    assert laid_out.stat().st_ino == before
    seven(root / "seq-01", [2])
    root.rename(tmp_path / "moved")
    again = built("sevenscenes", tmp_path / "moved", tmp_path / "out")
    assert np.array_equal(decoded(again)[1], np.arange(3) / 30)
    assert [path.name for path in again.root.iterdir()] == ["seq-01"]
    elsewhere = built(
        "sevenscenes", tmp_path / "moved", tmp_path / "out", frames_dir=str(tmp_path / "frames")
    )
    assert elsewhere.root == tmp_path / "frames"
    assert np.array_equal(decoded(elsewhere)[0], decoded(again)[0])


def test_a_folder_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    root = tmp_path / "data"
    seven(root / "seq-01", [0])
    for inner in (str(root), ".."):
        with pytest.raises(BadInput, match="frames_dir must not be the root or hold it"):
            built("sevenscenes", root, tmp_path / "out", frames_dir=inner)
    mine = write(tmp_path / "out" / "stillframe_frames" / "seq-01" / "mine.txt", "mine")
    write(mine.with_name("timestamps.txt"), "0.0\n")
    with pytest.raises(BadInput, match=r"it holds other files \(mine\.txt\)"):
        built("sevenscenes", root, tmp_path / "out")
    assert mine.read_text() == "mine"


def scans(root: Path) -> None:
    write(root / "scans" / "scene0000_00" / "scene0000_00.sens", sens([0, 0, 0]))
    export(root / "scene0009_00", [0, 1])


LAYOUTS = {
    "kubric": movi,
    "scannet": scans,
    "nuscenes": nuscenes_root,
    "sevenscenes": lambda root: seven(root / "chess" / "seq-01", [0, 1]),
    "tum": lambda root: tum(root / "desk"),
    "kitti_odometry": lambda root: kitti(root, "00", ("image_0", "image_2")),
    "rgbd": lambda root: tum(root / "desk"),
}


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Path -> its size and the time of its last change, of a folder and all below it."""
    paths = [root, *root.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_written_into_the_data_set(tmp_path: Path, name: str) -> None:
    """The root may be read-only and shared; the frames are beside the manifest, and a moved
    manifest takes them along."""
    root = tmp_path / "data"
    LAYOUTS[name](root)
    before = listing(root)
    settings = {"tracks": 0} if name == "kubric" else {}
    found = built(name, root, tmp_path / "out", **settings)
    assert listing(root) == before
    assert found.root == tmp_path / "out" / "stillframe_frames"
    assert found.origin.root == "stillframe_frames"
    pixels, time_s = decoded(found)
    (tmp_path / "out").rename(tmp_path / "moved")
    moved_pixels, moved_s = decoded(manifest.Manifest.load(tmp_path / "moved"))
    assert np.array_equal(moved_pixels, pixels) and np.array_equal(moved_s, time_s)
    # Another manifest of the same data set, beside the frames of an earlier version.
    write(root / "stillframe_frames" / "chess" / "frame-000000.color.png", png(picture(0)))
    again = built(name, root, tmp_path / "again", **settings)
    assert (again.digest, again.root.parent) == (found.digest, tmp_path / "again")


def test_frames_inside_the_root_are_linked_relatively(tmp_path: Path) -> None:
    """Who names a folder inside the data set can move both together."""
    root = tmp_path / "data"
    seven(root / "seq-01", [0, 1])
    found = built("sevenscenes", root, tmp_path / "out", frames_dir=str(root / "frames"))
    link = found.root / "seq-01" / "frame_000001.png"
    assert link.readlink() == Path("../../seq-01/frame-000001.color.png")


def test_a_picture_that_is_none_rejects_the_recording(tmp_path: Path) -> None:
    root = tmp_path / "data"
    seven(root / "seq-01", [0])
    seven(root / "seq-02", [0])
    write(root / "seq-01" / "frame-000000.color.png", b"not a picture")
    found = built("sevenscenes", root, tmp_path / "out")
    assert [clip.clip_id for clip in found.clips] == ["seq-02"]
    assert found.rejected["seq-01"].startswith("seq-01/frame-000000.color.png: ")


def test_poses_that_are_no_motion_are_unknown(tmp_path: Path) -> None:
    good = moved(1, 2, 3)
    mirrored, scaled, holed = np.diag([1.0, 1, -1, 1]), np.diag([2.0, 2, 2, 1]), good.copy()
    holed[1, 3] = np.inf
    read = recordings.rigid(np.stack([good, mirrored, scaled, holed, np.zeros((4, 4))]))
    assert np.isnan(read).all((1, 2)).tolist() == [False, True, True, True, True]
    assert np.array_equal(read[0], good)
    assert np.isnan(recordings.read_poses([write(tmp_path / "pose.txt", "1 2 three"), None])).all()
    assert np.isnan(recordings.motion(np.zeros((1, 3)), np.zeros((1, 4)))).all()
    assert np.allclose(
        recordings.motion(np.zeros((1, 3)), np.array([[2.0, 0, 0, 2]]))[0] @ [1, 0, 0, 0],
        [0, 1, 0, 0],
    )


def test_depth_keeps_the_pixels_at_the_centres() -> None:
    depth = np.arange(12 * 18).reshape(12, 18)
    assert np.array_equal(recordings.nearest_pixels(depth, 4), depth[1::3, 1::3])
    assert np.array_equal(recordings.nearest_pixels(depth, 100), depth)
    assert recordings.nearest_pixels(depth, 5).shape == (5, 8)


# Real sequences


@needs_gt
def test_real_sevenscenes_depth_and_poses_agree(tmp_path: Path) -> None:
    """Depth and pose of frame a predict the depth of frame a + 5."""
    root = Path(GT or "") / "sevenscenes"
    found = built("sevenscenes", root, tmp_path / "out", frames_dir=str(tmp_path / "frames"))
    assert found.rejected == {}
    truth = found.targets(found.clips[0].clip_id)
    depth, pose = truth["depth_m"].astype(float), truth["pose"]
    assert depth.shape == (200, 224, 299)
    errors = np.concatenate(
        [reprojection_error(depth, pose, first, first + 5) for first in range(0, 190, 20)]
    )
    assert np.median(errors) < 0.01
    assert (errors < 0.02).mean() > 0.8
    wrong = np.linalg.inv(pose)
    assert (
        np.median(
            np.concatenate(
                [reprojection_error(depth, wrong, first, first + 5) for first in range(0, 190, 20)]
            )
        )
        > 0.02
    )


def reprojection_error(depth: np.ndarray, pose: np.ndarray, first: int, second: int) -> np.ndarray:
    """Metres between the depth that frame `first` predicts for frame `second` and the depth there."""
    height, width = depth.shape[1:]
    focal_px = sevenscenes.COLOUR_FOCAL_PX * height / 480
    world = unprojected(depth[first], pose[first], focal_px)[depth[first] > 0]
    x, y, z = ((world - pose[second, :3, 3]) @ pose[second, :3, :3]).T
    column, row = np.floor(x / z * focal_px + width / 2), np.floor(y / z * focal_px + height / 2)
    inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    there = depth[second][row[inside].astype(int), column[inside].astype(int)]
    return np.abs(there - z[inside])[there > 0]


@needs_gt
def test_real_sevenscenes_frames_are_the_official_ones(tmp_path: Path) -> None:
    root = Path(GT or "") / "sevenscenes"
    found = built(
        "sevenscenes", root, tmp_path / "out", frames_dir=str(tmp_path / "frames"), depth_px=28
    )
    pixels, time_s = decoded(found)
    assert pixels.shape == (200, 480, 640, 3)
    assert np.allclose(np.diff(time_s), 1 / 30)
    assert (
        found.root / found.clips[0].source / "frame_000123.jpg"
    ).resolve().name == "frame-000123.color.jpg"


@needs_gt
def test_real_kitti_drives_forward(tmp_path: Path) -> None:
    root = Path(GT or "") / "kitti_odometry" / "seq1"
    found = built("kitti_odometry", root, tmp_path / "out", frames_dir=str(tmp_path / "frames"))
    assert found.rejected == {}
    pose = found.targets("seq1")["pose"]
    step = (np.linalg.inv(pose[:-1]) @ pose[1:])[:, :3, 3]
    assert len(pose) == 51
    assert (np.abs(step[:, 2] - 1.2) < 0.02).all() and (np.abs(step[:, :2]) < 0.04).all()
    assert len(decoded(found)[1]) == 51


def test_the_end_of_a_lone_recording_may_be_held_out(tmp_path: Path) -> None:
    images = [tmp_path / f"{number}.png" for number in range(10)]
    pose = np.tile(np.eye(4), (10, 1, 1))
    pose[:, 2, 3] = np.arange(10)
    one = recordings.Recording(
        "a/b", "train", images, np.arange(10) / 10, pose, [None] * 9 + [images[0]]
    )
    first, last = recordings.split_off(one, 0.3)
    assert (first.name, first.split, last.name, last.split) == (
        "a/b_first",
        "train",
        "a/b_last",
        "val",
    )
    assert list(first.images) == images[:7] and list(last.images) == images[7:]
    assert last.pose is not None and last.pose[:, 2, 3].tolist() == [7, 8, 9]
    assert last.time_s.tolist() == [0.7, 0.8, 0.9] and last.depth == [None, None, images[0]]
    assert (
        recordings.split_off(one, 0.0) == [one]
        and recordings.split_off(one, 0.01) == [one]
        and recordings.split_off(one, 0.99) == [one]
    )
    held_out = recordings.Recording("a", "val", images, np.arange(10) / 10)
    assert recordings.split_off(held_out, 0.5) == [held_out]


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/hostname"])
def test_nuscenes_images_lie_below_the_folder(tmp_path: Path, name: str) -> None:
    """They become links, which led to any picture that there is."""
    root = nuscenes_root(tmp_path / "data")
    table = root / "v1.0-mini/sample_data.json"
    rows = json.loads(table.read_text())
    for row in rows:
        row["filename"] = name
    table.write_text(json.dumps(rows))
    with pytest.raises(BadInput, match="does not lie below"):
        built("nuscenes", root, tmp_path / "out")
