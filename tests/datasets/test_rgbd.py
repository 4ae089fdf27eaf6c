"""Folders of images with depth or poses, read by settings: layouts of data sets that have no reader
of their own, real recordings as their own readers read them, and what is wrong in one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from support.paths import SHARED

from pipeline.datasets import rgbd
from pipeline.datasets.formats.recordings import motion, nearest_pixels
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.sevenscenes import COLOUR_TO_DEPTH, as_colour_camera
from pipeline.datasets.shapes.pose_files import wxyz_of
from pipeline.errors import BadInput

WIDTH, HEIGHT = 8, 6
TAG = np.array([202021.25], "<f4").tobytes()
needs_gt = pytest.mark.skipif(not (SHARED / "gt").is_dir(), reason="no real sequences are there")


def images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(folder / name)
    return folder


def depth_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def build(root: Path, out: Path, **settings: Any) -> Manifest:
    """The manifest as it is read back from disk."""
    given = {"frames_dir": str(out / "frames")} | settings
    built = manifest.build("rgbd", root, out / "data", given)
    loaded = Manifest.load(out / "data")
    assert loaded == built
    return loaded


def some_poses(count: int) -> np.ndarray:
    """(N, 4, 4) that turn and move."""
    rng = np.random.default_rng(3)
    return motion(rng.normal(size=(count, 3)), rng.normal(size=(count, 4)))


def ramp(offset: int = 0) -> np.ndarray:
    return np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) + 1000 + offset


def row(pose: np.ndarray, numbers: int = 12) -> str:
    return " ".join(repr(float(value)) for value in pose.ravel()[:numbers])


# Layouts without a reader of their own


def test_nyu_like_folders_have_png_depth_with_unknown_values(tmp_path: Path) -> None:
    root = tmp_path / "nyu"
    for split, name in (("train", "office"), ("test", "kitchen")):
        images(root / split / name, "rgb_0001.jpg", "rgb_0003.jpg")
        values = ramp()
        values[0, :2] = 0, 65535
        depth_png(root / split / name / "sync_depth_0001.png", values)
        depth_png(root / split / name / "sync_depth_0009.png", values)
    built = build(
        root,
        tmp_path,
        images="{split}/{sequence}/rgb_{frame}.jpg",
        depth="{split}/{sequence}/sync_depth_{frame}.png",
        image_fps=20,
    )
    assert {clip.clip_id: clip.split for clip in built.clips} == {
        "kitchen": "test",
        "office": "train",
    }
    targets = built.targets("office")
    assert targets["depth_m_time_s"].tolist() == [0.0]
    expected = ramp() / 1000
    expected[0, :2] = 0
    np.testing.assert_array_equal(targets["depth_m"][0], expected.astype(np.float16))
    assert "pose" not in targets


def test_sintel_has_binary_depth_and_cameras(tmp_path: Path) -> None:
    root = tmp_path / "sintel"
    training = root / "training"
    images(training / "final" / "alley_1", "frame_0001.png", "frame_0002.png")
    poses, metres = some_poses(2), ramp() / 7
    for number in (1, 2):
        camera = training / "camdata_left" / "alley_1" / f"frame_{number:04d}.cam"
        camera.parent.mkdir(parents=True, exist_ok=True)
        inverse = np.linalg.inv(poses[number - 1])[:3]
        camera.write_bytes(
            TAG + np.eye(3).astype("<f8").tobytes() + inverse.astype("<f8").tobytes()
        )
        depth = training / "depth" / "alley_1" / f"frame_{number:04d}.dpt"
        depth.parent.mkdir(parents=True, exist_ok=True)
        size = np.array([WIDTH, HEIGHT], "<i4").tobytes()
        depth.write_bytes(TAG + size + metres.astype("<f4").tobytes())
    built = build(
        root,
        tmp_path,
        images="training/final/{sequence}/frame_{frame}.png",
        depth="training/depth/{sequence}/frame_{frame}.dpt",
        depth_per_m=1,
        poses="training/camdata_left/{sequence}/frame_{frame}.cam",
        pose_is="world_to_camera",
        image_fps=24,
    )
    targets = built.targets("alley_1")
    np.testing.assert_allclose(targets["pose"], poses, atol=1e-12)
    np.testing.assert_allclose(targets["pose_time_s"], [0, 1 / 24])
    np.testing.assert_allclose(targets["depth_m"][1], metres, rtol=1e-3)


def test_realestate_lists_have_times_and_poses_from_world_to_camera(tmp_path: Path) -> None:
    root = tmp_path / "re10k"
    times = (45979267, 46012633, 46079367)
    images(root / "frames" / "0bf1", *(f"{time}.jpg" for time in times))
    poses = some_poses(3)
    lines = [
        f"{time} 0.47 0.84 0.5 0.5 0 0 {row(np.linalg.inv(pose))}"
        for time, pose in zip(times, poses, strict=True)
    ]
    (root / "train").mkdir()
    (root / "train" / "0bf1.txt").write_text("\n".join(["https://a.video", *lines]) + "\n")
    built = build(
        root,
        tmp_path,
        images="frames/{sequence}/{frame}.jpg",
        poses="train/{sequence}.txt",
        pose_columns="time,-,-,-,-,-,-,matrix",
        pose_header_lines=1,
        pose_is="world_to_camera",
        pose_time_s=1e-6,
        times="names",
        time_s=1e-6,
    )
    targets = built.targets("0bf1")
    np.testing.assert_allclose(targets["pose"], poses, atol=1e-9)
    np.testing.assert_allclose(targets["pose_time_s"], [0, 0.033366, 0.1001], atol=1e-9)


def test_poses_at_other_times_are_interpolated_along_the_shorter_arc(tmp_path: Path) -> None:
    """As EuRoC writes them: nanoseconds, comma-separated, real part first."""
    root = images(
        tmp_path / "mav" / "cam0", "1000000000.png", "1050000000.png", "3000000000.png"
    ).parent
    half = np.sqrt(0.5)  # a quarter turn about z, whose quaternion is written with the other sign
    (root / "gt.csv").write_text(
        "#timestamp, p x, p y, p z, q w, q x, q y, q z, v\n"
        "1000000000,0,0,0,1,0,0,0,9\n"
        f"1100000000,2,0,4,{-half},0,0,{-half},9\n"
    )
    built = build(
        root,
        tmp_path,
        images="cam0/{frame}.png",
        poses="gt.csv",
        pose_columns="time,tx,ty,tz,qw,qx,qy,qz,...",
        pose_time_s=1e-9,
        times="names",
        time_s=1e-9,
        max_gap_s=0.06,
    )
    (clip,) = built.clips
    assert clip.clip_id == "mav"
    pose = built.targets("mav")["pose"]
    np.testing.assert_allclose(pose[0], np.eye(4), atol=1e-9)
    eighth = [[half, -half, 0, 1], [half, half, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
    np.testing.assert_allclose(pose[1], eighth, atol=1e-6)
    assert np.isnan(pose[2]).all()


def test_nerf_poses_are_in_the_axes_of_opengl(tmp_path: Path) -> None:
    root = images(tmp_path / "lego" / "images", "frame_00002.png", "frame_00001.png").parent
    poses = some_poses(2)
    frames = [
        {
            "file_path": f"images/frame_0000{number}.png",
            "transform_matrix": poses[number - 1].tolist(),
        }
        for number in (2, 1)
    ]
    (root / "transforms.json").write_text(json.dumps({"fl_x": 5, "frames": frames}))
    built = build(
        root,
        tmp_path,
        images="images/frame_{frame}.png",
        poses="transforms.json",
        pose_axes="opengl",
        pose_per_m=10,
    )
    found = built.targets("lego")["pose"]
    expected = poses.copy()
    expected[:, :3, 3] /= 10
    expected[:, :3, 1:3] *= -1
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_tartanair_moves_along_the_x_of_its_own_axes(tmp_path: Path) -> None:
    root = tmp_path / "tartanair"
    for scene in ("abandoned", "ocean"):
        folder = images(root / scene / "P001" / "image_left", "000000_left.png", "000001_left.png")
        (folder.parent / "pose_left.txt").write_text("0 0 0 0 0 0 1\n3 0.5 0.25 0 0 0 1\n")
        for number in (0, 1):
            path = folder.parent / "depth_left" / f"00000{number}_left_depth.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, np.full((HEIGHT, WIDTH), 2.5 + number, np.float32))
    built = build(
        root,
        tmp_path,
        images="{scene}/{sequence}/image_left/{frame}_left.png",
        depth="{scene}/{sequence}/depth_left/{frame}_left_depth.npy",
        depth_per_m=1,
        poses="{scene}/{sequence}/pose_left.txt",
        pose_columns="tx,ty,tz,qx,qy,qz,qw",
        pose_axes="ned",
    )
    assert [clip.clip_id for clip in built.clips] == ["abandoned/P001", "ocean/P001"]
    targets = built.targets("ocean/P001")
    moved = np.linalg.inv(targets["pose"][0]) @ targets["pose"][1]
    # 3 m forward, 0.5 m to the right, 0.25 m down.
    np.testing.assert_allclose(moved[:3, 3], [0.5, 0.25, 3], atol=1e-12)
    assert targets["depth_m"][:, 0, 0].tolist() == [2.5, 3.5]


def test_depth_along_rays_and_in_other_files(tmp_path: Path) -> None:
    root = images(tmp_path / "room" / "rgb", "1.png", "2.png", "3.png").parent
    plane = np.full((HEIGHT, WIDTH), 2.0)
    x = (np.arange(WIDTH) + 0.5 - 4) / 5
    y = (np.arange(HEIGHT) + 0.5 - 3) / 5
    distance = plane * np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)
    (root / "d").mkdir()
    np.save(root / "d" / "1.npy", distance)
    header = f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode()
    (root / "d" / "2.pfm").write_bytes(header + distance[::-1].astype("<f4").tobytes())
    exr(root / "d" / "3.exr", distance)
    settings = {"images": "rgb/{frame}.png", "depth": "d/{frame}.*", "depth_per_m": 1}
    rays = {"depth_along": "ray", "intrinsics": [5, 5, 4, 3]}
    built = build(root, tmp_path, **settings, **rays)
    np.testing.assert_allclose(built.targets("room")["depth_m"], [plane] * 3, rtol=1e-3)


def exr(path: Path, values: np.ndarray) -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("exr", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "grayf32le"
        frame = av.VideoFrame.from_ndarray(values.astype(np.float32), format="grayf32le")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_times_of_a_file_and_rows_by_the_number_of_the_frame(tmp_path: Path) -> None:
    root = images(tmp_path / "seq", "5.png", "7.png")
    poses = some_poses(9)
    (root / "poses.txt").write_text("".join(f"{row(pose, 16)}\n" for pose in poses))
    (root / "times.txt").write_text("# s\n0.5\n0.75\n")
    settings = {"images": "{frame}.png", "poses": "poses.txt"}
    built = build(root, tmp_path / "a", **settings, times="times.txt")
    np.testing.assert_allclose(built.targets("seq")["pose"], poses[[5, 7]], atol=1e-12)
    np.testing.assert_allclose(built.targets("seq")["pose_time_s"], [0, 0.25])
    (root / "times.txt").write_text("0.1 5.png\n0.4 7.png\n")
    built = build(root, tmp_path / "b", **settings, times="times.txt", time_s=10)
    np.testing.assert_allclose(built.targets("seq")["pose_time_s"], [0, 3])
    np.save(root / "poses.npy", poses[:2, :3])
    built = build(root, tmp_path / "c", images="{frame}.png", poses="poses.npy")
    np.testing.assert_allclose(built.targets("seq")["pose"], poses[:2], atol=1e-12)
    named = "".join(f"{n} {row(poses[n])}\n" for n in (7, 5))
    (root / "poses.txt").write_text(named)
    built = build(root, tmp_path / "d", **settings, pose_columns="frame,matrix")
    np.testing.assert_allclose(built.targets("seq")["pose"], poses[[5, 7]], atol=1e-12)


def test_quaternions_of_rotations_turn_back_into_them() -> None:
    poses = some_poses(200)
    half_turns = np.stack(
        [np.diag([1.0, -1, -1, 1]), np.diag([-1.0, 1, -1, 1]), np.diag([-1.0, -1, 1, 1])]
    )
    every = np.concatenate([poses, half_turns, np.eye(4)[None]])
    np.testing.assert_allclose(motion(every[:, :3, 3], wxyz_of(every)), every, atol=1e-9)
    assert np.isnan(wxyz_of(np.full((1, 4, 4), np.nan))).all()


# Real recordings


@needs_gt
def test_a_real_room_is_read_as_sevenscenes_reads_it(tmp_path: Path) -> None:
    first = next(iter(sorted((SHARED / "gt" / "sevenscenes").rglob("frame-000000.color.*"))))
    root = tmp_path / "room"
    root.mkdir()
    for number in (0, 1, 5):
        for path in first.parent.glob(f"frame-{number:06d}.*"):
            (root / path.name).symlink_to(path)
    special = manifest.build(
        "sevenscenes", root, tmp_path / "s", {"frames_dir": str(tmp_path / "sf")}
    )
    built = build(
        root,
        tmp_path / "g",
        images="frame-{frame}.color.*",
        depth="frame-{frame}.depth.png",
        poses="frame-{frame}.pose.txt",
    )
    one, other = built.targets("room"), special.targets("room")
    np.testing.assert_array_equal(one["pose"] @ COLOUR_TO_DEPTH, other["pose"])
    np.testing.assert_array_equal(one["pose_time_s"], other["pose_time_s"])
    assert one["pose_time_s"].tolist() == [0, 1 / 30, 5 / 30]
    # That reader moves depth into the colour camera, which is not known of folders in general.
    plugin = rgbd.Dataset(root, rgbd.Settings())
    for number, depth in enumerate(sorted(root.glob("*.depth.png"))):
        moved = nearest_pixels(as_colour_camera(plugin.metres(depth)), 224).astype(np.float16)
        np.testing.assert_array_equal(moved, other["depth_m"][number])


@needs_gt
def test_a_real_drive_is_read_as_kitti_odometry_reads_it(tmp_path: Path) -> None:
    root = SHARED / "gt" / "kitti_odometry"
    special = manifest.build(
        "kitti_odometry", root, tmp_path / "s", {"frames_dir": str(tmp_path / "sf")}
    )
    built = build(
        root,
        tmp_path / "g",
        images="{sequence}/image_l/{frame}.png",
        poses="{sequence}/poses.txt",
        image_fps=10,
    )
    (clip,), (other,) = built.clips, special.clips
    for name, values in special.targets(other.clip_id).items():
        np.testing.assert_array_equal(built.targets(clip.clip_id)[name], values)


# What is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "{sequence}/rgb/*.png"}, "wanted {frame}"),
        ({"images": "{sequence}/color/{frame}.png"}, "holds no images at"),
        ({"depth": "{sequence}/depth/{frame}.png"}, "depth: none of the sequences has any"),
        ({"poses": "{sequence}/poses.txt"}, "poses: none of the sequences has any"),
        ({"pose_columns": "tx,ty,tz"}, "wanted columns such as"),
        ({"pose_columns": "matrix,time"}, "wanted columns such as"),
        ({"depth_along": "ray"}, "needs intrinsics"),
        ({"times": "names"}, "wanted a time, found 'a'"),
        ({"times": "{sequence}/times.txt"}, "0 files of times"),
        ({"poses": "{sequence}/short.txt"}, "1 poses for 2 images"),
        ({"poses": "{sequence}/torn.txt"}, "line 2: wanted 0 columns and 12 or 16 numbers"),
    ],
)
def test_wrong_settings_and_files_are_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = images(tmp_path / "root" / "s" / "rgb", "a.png", "b.png").parent
    (folder / "short.txt").write_text(f"{row(np.eye(4))}\n")
    (folder / "torn.txt").write_text(f"{row(np.eye(4))}\n1 2 3\n")
    with pytest.raises(BadInput) as caught:
        build(tmp_path / "root", tmp_path, **settings)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_damaged_poses_and_missing_depth_are_said_and_stop_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a", "b"):
        images(root / name / "rgb", "1.png", "2.png", "3.png")
        for number in (1, 2, 3):
            (root / name / f"{number}.txt").write_text(row(np.eye(4), 16))
    (root / "a" / "2.txt").write_text("1 0 0")
    (root / "a" / "3.txt").write_text(row(np.diag([2.0, 1, 1, 1]), 16))
    depth_png(root / "a" / "depth" / "1.png", ramp())
    built = build(
        root, tmp_path, poses="{sequence}/{frame}.txt", depth="{sequence}/depth/{frame}.png"
    )
    assert [clip.clip_id for clip in built.clips] == ["a", "b"]
    assert np.isnan(built.targets("a")["pose"]).any((1, 2)).tolist() == [False, True, True]
    said = built.rejected | built.origin.notes
    assert said == {
        "a: pose": "2 of 3 frames have no finite pose, kept as NaN; first a/rgb/2.png",
        "a: depth": "2 of 3 frames have no depth; first a/rgb/2.png",
    }
