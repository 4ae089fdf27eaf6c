"""Real sequences, from the official files to a score and a drawing, by command only.

The environment variables STILLFRAME_GT and STILLFRAME_WEIGHTS name a folder of real sequences (`davis2016`, `sevenscenes` and
`kitti_odometry` inside it, as released) and a folder that holds the encoder `vit_tiny_patch16_224`. A few steps of training say
nothing of how well a module tracks; that the path works and the trivial answers are right is what is checked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.commands import call

from pipeline.datasets.manifest.manifest import Manifest

GT, WEIGHTS = os.environ.get("STILLFRAME_GT"), os.environ.get("STILLFRAME_WEIGHTS")
pytestmark = pytest.mark.skipif(
    not (GT and WEIGHTS),
    reason="STILLFRAME_GT and STILLFRAME_WEIGHTS do not say where real sequences and a real encoder are",
)
FRAMES = 6
"""Of a window."""
SPEC = """
[encoder]
name = "transformers"
model = '{model}'
layers = [11]

[frames]
size_px = 112
fps = {fps}
"""


@dataclass(frozen=True)
class Cached:
    """A data set listed and cached by command."""

    manifest: Manifest
    folder: Path


def done(*arguments: object) -> Any:
    """What a command that ended well shows as JSON."""
    result = call(*arguments, "--json")
    assert result.code == 0, result
    return result.json


def cached(folder: Path, dataset: str, root: str, fps: int, **settings: object) -> Cached:
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    done("manifest", dataset, Path(GT or "") / root, "--out", folder / "data", *sets)
    spec = folder / "vit.toml"
    spec.write_text(SPEC.format(model=f"{WEIGHTS}/vit_tiny_patch16_224", fps=fps))
    done("extract", spec, folder / "data", "--out", folder / "caches")
    (cache,) = (folder / "caches").iterdir()
    return Cached(Manifest.load(folder / "data"), cache)


def scored(recipe: str, material: Cached, run: Path, fps: int, windows: int) -> dict[str, Any]:
    """The evaluation of a few steps of training, with one clip drawn."""
    sets = [
        *("temporal.name=gru", "model.width=16", f"windows.frames={FRAMES}", f"windows.fps={fps}"),
        *(
            f"windows.eval_windows={windows}",
            "training.steps=3",
            "training.batch_size=2",
            "training.warmup_steps=1",
        ),
    ]
    trained = done(
        "train",
        recipe,
        material.folder,
        "--out",
        run,
        *(word for key in sets for word in ("--set", key)),
    )
    assert trained["steps"] == 3
    found: dict[str, Any] = done("evaluate", run, "--draw", 1)
    for form in found["forms"].values():
        for metric, value in form.items():
            assert np.isfinite([value["score"], value["low"], value["high"]]).all(), (metric, value)
            assert (
                value["low"] <= value["score"] + 1e-9 and value["score"] <= value["high"] + 1e-9
            ), (metric, value)
    (video,) = (run / "drawn-val").glob("*.mp4")
    frames, sheet = pictures(video), pictures(run / "drawn-val.png")
    assert len(frames) == FRAMES and len(sheet) == 1
    for pixels in (*frames, *sheet):
        assert min(pixels.shape[:2]) >= 384 and pixels.std() > 10
    return found


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(path) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def motions(pose_F44: np.ndarray) -> np.ndarray:
    """(F - 1, 3): where each camera stands in the frame of the one before."""
    return (np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:])[:, :3, 3]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """150 frames to train on and 50 to score, of one recording at 30 frames per second."""
    folder = tmp_path_factory.mktemp("room")
    return cached(
        folder,
        "sevenscenes",
        "sevenscenes",
        10,
        val_last=0.25,
        frames_dir=folder / "frames",
        depth_px=120,
    )


def test_boxes_on_davis(tmp_path: Path) -> None:
    material = cached(tmp_path, "davis", "davis2016", 12, val_sequences='["camel","dog","soapbox"]')
    splits = {clip.clip_id: clip.split for clip in material.manifest.clips}
    assert sorted(splits.values()) == ["train"] * 7 + ["val"] * 3
    found = scored("demo_boxes", material, tmp_path / "run", 12, windows=8)
    assert (
        found["clips"].keys()
        == {"camel", "dog", "soapbox"}
        == {name for name, split in splits.items() if split == "val"}
    )
    # Every other frame is 1/12 s; boxes are cut to the square in the middle of 854 x 480.
    overlaps = []
    for clip in found["clips"]:
        boxes_F4 = material.manifest.targets(clip)["boxes"][0, ::2].astype(np.float64)
        boxes_F4[:, ::2] = ((boxes_F4[:, ::2] - 0.5) * 854 / 480 + 0.5).clip(0, 1)
        starts = np.linspace(0, len(boxes_F4) - FRAMES, 8).round().astype(int)
        overlaps += [
            iou(boxes_F4[at], boxes_F4[at + step]) for at in starts for step in range(1, FRAMES)
        ]
    assert found["trivial"]["mIoU"] == pytest.approx(np.nanmean(overlaps), abs=0.02)
    # A real encoder's tokens are worth something before anything is trained.
    assert found["baselines"]["likeness, layer 11"]["over_trivial"]["score"] > 0.02


def test_depth_of_a_room(room: Cached, tmp_path: Path) -> None:
    found = scored("demo_depth", room, tmp_path / "run", 10, windows=8)
    depth = {
        clip.split: room.manifest.targets(clip.clip_id)["depth_m"] for clip in room.manifest.clips
    }
    assert {split: len(maps) for split, maps in depth.items()} == {"train": 150, "val": 50}
    # The square in the middle of 4 : 3.
    (train_m, val_m) = (depth[split][:, :, 20:140].astype(np.float64) for split in ("train", "val"))
    median_m, truth_m = np.median(train_m[train_m > 0]), val_m[val_m > 0]
    assert found["trivial"]["AbsRel"] == pytest.approx(
        np.mean(np.abs(median_m - truth_m) / truth_m), rel=0.1
    )
    assert found["trivial"]["RMSE"] == pytest.approx(
        np.sqrt(np.mean((median_m - truth_m) ** 2)), rel=0.1
    )


def test_pose_in_a_room(room: Cached, tmp_path: Path) -> None:
    found = scored("demo_pose", room, tmp_path / "run", 10, windows=8)
    pose = {
        clip.split: room.manifest.targets(clip.clip_id)["pose"][::3] for clip in room.manifest.clips
    }
    shift, mean = motions(pose["val"]), motions(pose["train"]).mean(0)
    expected_mm = 1000 * np.linalg.norm(shift - mean, axis=1).mean()
    assert found["trivial"]["RPE_tr"] == pytest.approx(expected_mm, rel=0.25)


def test_pose_of_a_drive(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    material = cached(
        tmp_path, "kitti_odometry", "kitti_odometry", 10, val_last=0.3, frames_dir=frames
    )
    pose = {
        clip.split: material.manifest.targets(clip.clip_id)["pose"]
        for clip in material.manifest.clips
    }
    assert {split: len(rows) for split, rows in pose.items()} == {"train": 36, "val": 15}
    found = scored("demo_pose", material, tmp_path / "run", 10, windows=4)
    # Four windows over either clip begin on whole frames.
    mean = np.mean(
        [motions(pose["train"][at : at + FRAMES]) for at in (0, 10, 20, 30)], axis=(0, 1)
    )
    starts = (0, 3, 6, 9)
    shift = np.concatenate([motions(pose["val"][at : at + FRAMES]) for at in starts])
    expected_mm = 1000 * np.linalg.norm(shift - mean, axis=1).mean()
    assert found["trivial"]["RPE_tr"] == pytest.approx(expected_mm, rel=0.02)
    assert found["trivial"]["RPE_tr"] < 0.1 * 1000 * np.linalg.norm(shift, axis=1).mean(), (
        "the drive is nearly even"
    )


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boxes xyxy; NaN where either is absent."""
    common = np.prod(np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0))
    union = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - common
    return float(common / union)
