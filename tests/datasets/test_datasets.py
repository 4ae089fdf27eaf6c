"""The built-in world is what its docstring claims; folder and playback read, split and reject as they say."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.paths import SHARED

from pipeline.config import plugins
from pipeline.datasets import folder, playback, world
from pipeline.datasets.formats.folders import find_media
from pipeline.datasets.formats.splits import SplitSettings, split_clips
from pipeline.datasets.synthetic import plane
from pipeline.errors import BadInput
from pipeline.records import Clip

SHARED_CLIPS = SHARED / "clips"
A = {name: place for place, name in enumerate(plane.ATTRIBUTES)}


def video(path: Path, frames: int = 6, fps: int = 12) -> Path:
    """A real mp4 of 32 x 32 grey frames that grow brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.broadcast_to(
        np.linspace(20, 200, frames).astype(np.uint8)[:, None, None, None], (frames, 32, 32, 3)
    )
    world.encode(path, np.ascontiguousarray(pixels), 32, fps)
    return path


def images(path: Path, count: int) -> Path:
    """A folder of real PNG files."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        with av.open(
            path / f"{number:04d}.png", "w", format="image2", options={"update": "1"}
        ) as container:
            stream = container.add_stream("png", rate=1)
            stream.width = stream.height = 32
            stream.pix_fmt = "rgb24"
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def decode(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def dataset(module: Any, root: Path, **settings: Any) -> Any:
    return module.Dataset(root, module.Settings(**settings))


def phases(**values: float) -> np.ndarray:
    """One frame's attributes, (1, A): the given ones, the others 0."""
    return np.array([[values.get(name, 0.0) for name in plane.ATTRIBUTES]])


# The world: one frame says nothing


@pytest.mark.parametrize("label", plane.LABELS)
def test_a_clip_backwards_is_a_clip_of_the_partner_class(label: str) -> None:
    partner = {plane.MOTIONS[name]: name for name in plane.LABELS}[
        (plane.MOTIONS[label][0], -plane.MOTIONS[label][1])
    ]
    scene, time_s = plane.draw_scene(3, 5), np.arange(10) / 8
    forwards = plane.attributes(scene, label, time_s)
    mirrored = plane.PlaneScene(**{**vars(scene), "phase_A": forwards[-1]})
    backwards = plane.attributes(mirrored, partner, time_s)[::-1]
    circle = np.abs(forwards - backwards)
    assert np.minimum(circle, 1 - circle).max() < 1e-12
    difference = plane.render(scene, forwards, 32).astype(int) - plane.render(
        mirrored, backwards, 32
    )
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("label", plane.LABELS)
def test_attributes_at_any_time_are_uniform_in_every_class(label: str) -> None:
    scenes = [plane.draw_scene(0, index) for index in range(2000)]
    expected = (np.arange(2000) + 0.5) / 2000
    for time_s in (0.0, 1.25):
        phase_NA = np.concatenate(
            [plane.attributes(scene, label, np.array([time_s])) for scene in scenes]
        )
        # Kolmogorov-Smirnov, 1.95 / sqrt(n): one false alarm in 1000.
        assert np.abs(np.sort(phase_NA, axis=0) - expected[:, None]).max() < 1.95 / np.sqrt(2000)
        # No attribute tells of another, and none of the clip's rate.
        known = np.column_stack([phase_NA, [scene.rate_hz for scene in scenes]])
        waves = np.concatenate(
            [np.cos(2 * np.pi * known[:, :5]), np.sin(2 * np.pi * known[:, :5]), known[:, 5:]],
            axis=1,
        )
        correlation = np.corrcoef(waves.T) - np.eye(11)
        assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_a_frame_is_coded_without_a_trace_of_its_neighbours(tmp_path: Path) -> None:
    scene = plane.draw_scene(0, 0)
    frames = plane.render(scene, plane.attributes(scene, "left", np.arange(9) / 12), 64)
    world.encode(tmp_path / "forwards.mp4", frames, 64, 12)
    world.encode(tmp_path / "backwards.mp4", frames[::-1].copy(), 64, 12)
    assert np.array_equal(
        decode(tmp_path / "forwards.mp4"), decode(tmp_path / "backwards.mp4")[::-1]
    )


def test_a_classifier_of_single_frames_guesses() -> None:
    """Ridge regression on pixels and colour excess reads the colour of a frame well, and its class not at all."""
    features, classes, colours = [], [], []
    for index in range(1600):
        scene, label = plane.draw_scene(1, index), plane.LABELS[index % 8]
        phase_TA = plane.attributes(scene, label, np.array([1.0]))
        frame_HWC = plane.render(scene, phase_TA, 32)[0] / 255
        pooled = frame_HWC.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
        excess = frame_HWC - frame_HWC.mean(axis=-1, keepdims=True)
        features.append(
            np.concatenate(
                [pooled.ravel(), excess.max(axis=(0, 1)), excess.min(axis=(0, 1)), [1.0]]
            )
        )
        classes.append(index % 8)
        colours.append(int(phase_TA[0, A["colour"]] * 3))
    train, test = np.array(features)[:800], np.array(features)[800:]

    def accuracy(answers: list[int]) -> float:
        weights = np.linalg.solve(
            train.T @ train + np.eye(train.shape[1]), train.T @ np.eye(8)[answers[:800]]
        )
        return float(((test @ weights).argmax(axis=1) == np.array(answers[800:])).mean())

    assert accuracy(colours) > 0.85
    assert abs(accuracy(classes) - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 800)


def test_neighbours_at_four_frames_a_second_tell_the_direction() -> None:
    rates = [plane.draw_scene(0, index).rate_hz for index in range(500)]
    assert 0.4 <= min(rates) < 0.41
    # A third of a circle or more would skip a colour.
    assert 0.79 < max(rates) <= 0.8 < 4 / 3


# The world: its truth


@pytest.mark.parametrize(("x", "cut_side"), [(0.5, None), (0.03, 0), (0.97, 2)])
def test_boxes_hold_exactly_the_objects_pixels(x: float, cut_side: int | None) -> None:
    """The object's pixels are those that change when it is moved by half a frame, in the half that holds its centre."""
    near_centre = np.abs((np.arange(112) + 0.5) / 112 - x) < 0.25
    for index in range(20):
        scene = plane.draw_scene(0, index)
        phase = {
            "x": x,
            "y": 0.45,
            "angle": scene.phase_A[A["angle"]],
            "colour": scene.phase_A[A["colour"]],
        }
        here = plane.render(scene, phases(**phase), 112)[0].astype(int)
        away = plane.render(scene, phases(**{**phase, "x": (x + 0.5) % 1}), 112)[0]
        rows, columns = np.nonzero((np.abs(here - away).max(axis=-1) > 4) & near_centre)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        box = plane.truth(scene, phases(**phase))["boxes"][0, 0] * 112
        assert np.abs(box - drawn).max() < 1.5  # the outline's edge is blended over a pixel
        assert cut_side is None or box[cut_side] == (0 if cut_side == 0 else 112)


@pytest.mark.slow
@pytest.mark.parametrize(
    "label", [label for label in plane.LABELS if plane.MOTIONS[label][0] != "colour"]
)
def test_points_stay_on_the_same_paint(label: str) -> None:
    """Chromaticity is compared, as light changes with the side of the object."""

    def wander(frames_THWC: np.ndarray, points_PT2: np.ndarray) -> float:
        """By how much the colour under a point differs over time: 90th percentile over points and times."""
        column, row = np.floor(points_PT2 * 256).astype(int).transpose(2, 0, 1)
        colour_PTC = frames_THWC[np.arange(len(frames_THWC)), row, column].astype(float)
        share = colour_PTC / colour_PTC.sum(axis=-1, keepdims=True)
        overexposed = colour_PTC.max(axis=-1) == 255
        share[overexposed] = np.nan
        share = share[overexposed.mean(axis=1) < 0.5]
        return float(
            np.nanpercentile(np.abs(share - np.nanmedian(share, axis=1, keepdims=True)), 90)
        )

    tracked, at_rest = [], []
    for index in range(6):
        scene = plane.draw_scene(2, index)
        phase_TA = plane.attributes(scene, label, np.arange(12) / 8)
        frames, truth = plane.render(scene, phase_TA, 256), plane.truth(scene, phase_TA)
        points = truth["points"][: plane.OBJECT_POINTS]
        tracked.append(wander(frames, points))
        at_rest.append(wander(frames, np.broadcast_to(points[:, :1], points.shape)))
        assert np.ptp(truth["points"][plane.OBJECT_POINTS :], axis=1).max() == 0
    assert max(tracked) < 0.02
    assert np.median(at_rest) > 3 * np.median(tracked)


def test_a_covered_background_point_is_not_visible() -> None:
    scene = plane.draw_scene(0, 0)
    for x, y in scene.points_background:
        covered = plane.truth(scene, phases(x=x, y=y))["visible"][:, 0]
        free = plane.truth(scene, phases(x=(x + 0.5) % 1, y=y))["visible"][:, 0]
        place = plane.OBJECT_POINTS + scene.points_background[:, 0].tolist().index(x)
        assert not covered[place]
        assert free[place]
        assert covered[: plane.OBJECT_POINTS].all()


def test_depth_and_size_agree_with_a_pinhole_camera() -> None:
    scene = plane.draw_scene(0, 1)
    near, far = (
        plane.truth(scene, phases(x=0.5, y=0.5, size=0.999)),
        plane.truth(scene, phases(x=0.5, y=0.5)),
    )
    assert far["depth_m"][0, 14, 14] == pytest.approx(0.3 / 0.14)
    assert near["depth_m"][0, 14, 14] == pytest.approx(0.3 / 0.28, rel=1e-3)
    width = [truth["boxes"][0, 0, 2] - truth["boxes"][0, 0, 0] for truth in (near, far)]
    assert width[0] / width[1] == pytest.approx(
        far["depth_m"].min() / near["depth_m"].min(), rel=1e-5
    )
    assert set(np.unique(far["depth_m"])) == {np.float32(0.3 / 0.14), np.float32(4.0)}
    covered = (far["depth_m"] < 4).mean()
    assert covered == pytest.approx(np.pi * 0.14**2 * (1 + scene.lobe_depth**2 / 2), rel=0.15)


# The world on disk


def test_videos_show_what_was_rendered(tmp_path: Path) -> None:
    data = dataset(world, tmp_path, clips_per_class=1, frames=6, size_px=64)
    clips = list(data.clips())
    for clip, label in zip(clips, plane.LABELS, strict=True):
        scene = plane.draw_scene(0, clips.index(clip))
        rendered = plane.render(scene, plane.attributes(scene, label, np.arange(6) / 12), 64)
        error = decode(tmp_path / clip.source).astype(float) - rendered
        assert (
            10 * np.log10(255**2 / (error**2).mean()) > 34
        )  # dB; chroma is stored at half resolution
        targets = data.targets(clip)
        assert targets["label"] == plane.LABELS.index(label)
        assert np.array_equal(targets["boxes_time_s"], np.arange(6) / 12)
        with av.open(tmp_path / clip.source) as container:
            times = [frame.time for frame in container.decode(video=0)]
        assert times == pytest.approx(targets["points_time_s"].tolist())
        assert np.array_equal(targets["pose"], np.tile(np.eye(4), (6, 1, 1)))
        assert clip == Clip(
            f"{label}_0000", f"{label}_0000", f"videos/{label}_0000.mp4", "train", 0.0, 0.5, label
        )


def test_world_is_balanced_and_the_same_every_time(tmp_path: Path) -> None:
    settings = {"clips_per_class": 5, "frames": 2, "size_px": 32, "val_fraction": 0.4}
    clips = list(dataset(world, tmp_path / "a", **settings).clips())
    assert Counter((clip.label, clip.split) for clip in clips) == {
        (label, split): count
        for label in plane.LABELS
        for split, count in (("train", 3), ("val", 2))
    }
    assert clips == list(dataset(world, tmp_path / "b", **settings).clips())
    other = list(dataset(world, tmp_path / "c", **settings, seed=1).clips())
    for clip, moved in zip(clips, other, strict=True):
        ours, again = ((tmp_path / side / clip.source).read_bytes() for side in "ab")
        assert ours == again != (tmp_path / "c" / moved.source).read_bytes()


def test_world_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = dataset(world, tmp_path, clips_per_class=1, frames=2, size_px=32)
    seen: list[tuple[int, int]] = []
    data.on_progress = lambda done, total: seen.append((done, total))
    first = list(data.clips())
    assert seen == [(done, 8) for done in range(1, 9)]
    kept, lost = (tmp_path / clip.source for clip in first[:2])
    whole, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    lost.with_suffix(".partial").write_bytes(whole[:100])
    assert list(data.clips()) == first
    assert lost.read_bytes() == whole
    assert kept.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.rglob("*.partial")) == []


def test_two_worlds_do_not_mix(tmp_path: Path) -> None:
    list(dataset(world, tmp_path, clips_per_class=1, frames=2, size_px=32).clips())
    with pytest.raises(BadInput) as caught:
        list(dataset(world, tmp_path, clips_per_class=1, frames=2, size_px=64, seed=7).clips())
    assert (
        caught.value.message
        == f"{tmp_path} already holds another world (wanted / found): seed: 7 / 0; size_px: 64 / 32"
    )
    assert caught.value.hint == "render into another folder, or delete this one first"
    # Another split of the same videos is no other world.
    assert (
        len(
            list(
                dataset(
                    world, tmp_path, clips_per_class=1, frames=2, size_px=32, val_fraction=0
                ).clips()
            )
        )
        == 8
    )


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_world_is_not_taken_for_another(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "world.json").write_bytes(text)
    with pytest.raises(BadInput) as caught:
        list(dataset(world, tmp_path, clips_per_class=1, frames=2, size_px=32).clips())
    assert (
        caught.value.message
        == f"{tmp_path / 'world.json'} is damaged: it does not say which world lies here"
    )
    assert (
        caught.value.hint
        == f"delete it together with {tmp_path / 'videos'}, or render into another folder"
    )


# Folder


def ids(clips: list[Clip]) -> list[str]:
    return [clip.clip_id for clip in clips]


def test_folders_are_labels(tmp_path: Path) -> None:
    for name in ("cats/a.mp4", "cats/a.mov", "cats/deep/b.MP4", "dogs/a.mp4"):
        video(tmp_path / "video.mp4").rename(
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True) or tmp_path / name
        )
    images(tmp_path / "dogs" / "run", 4)
    images(tmp_path / "dogs" / "single", 1)
    (tmp_path / "dogs" / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "cats" / "._a.mp4").write_text("hidden")
    video(tmp_path / "stray.mp4")
    data = dataset(folder, tmp_path, val_fraction=0.5, image_fps=10)
    clips = list(data.clips())
    assert ids(clips) == ["cats/a.mov", "cats/a.mp4", "cats/deep/b.MP4", "dogs/a.mp4", "dogs/run"]
    assert [clip.label for clip in clips] == ["cats"] * 3 + ["dogs"] * 2
    assert [clip.image_fps for clip in clips] == [None] * 4 + [10.0]
    assert all(
        clip.source == clip.video_id == clip.clip_id and (clip.start_s, clip.stop_s) == (0.0, None)
        for clip in clips
    )
    assert Counter((clip.label, clip.split) for clip in clips if clip.label == "dogs") == {
        ("dogs", "train"): 1,
        ("dogs", "val"): 1,
    }
    assert data.rejected.pop("stray.mp4") == "lies in no label folder"
    assert list(data.rejected) == ["dogs/broken.mp4"]
    assert "Invalid data" in data.rejected["dogs/broken.mp4"]
    assert "broken" not in data.rejected["dogs/broken.mp4"]
    assert data.ignored == 2  # notes.txt and the single image


def test_sound_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    if not SHARED_CLIPS.is_dir():
        pytest.skip("real clips are not here")
    video(tmp_path / "noise" / "a.mp4")
    (tmp_path / "noise" / "sound.mp4").symlink_to(
        (SHARED_CLIPS / "corner" / "corner_audio_only.mp3").resolve()
    )
    data = dataset(folder, tmp_path)
    assert ids(list(data.clips())) == ["noise/a.mp4"]
    assert data.rejected == {"noise/sound.mp4": "no video stream (audio only)"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    video(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "root" / "cats").mkdir(parents=True)
    (tmp_path / "root" / "cats" / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cats" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "kittens").symlink_to("cats")
    data = dataset(folder, tmp_path / "root")
    assert find_media(data) == ["cats/far/a.mp4"]
    assert data.rejected == {
        "cats/loop": "the same folder as the root, which is read already",
        "kittens": "the same folder as cats, which is read already",
    }


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    """A path too long for the system is refused to everyone, root included."""
    video(tmp_path / "cats" / "a.mp4")
    name, place = "x" * 250, os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):
        os.mkdir(name, dir_fd=place)
        below = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    data = dataset(folder, tmp_path)
    assert ids(list(data.clips())) == ["cats/a.mp4"]
    assert [(source[:3], reason) for source, reason in data.rejected.items()] == [
        ("xxx", "cannot be read: File name too long")
    ]


def test_split_folders_are_respected(tmp_path: Path) -> None:
    for name in ("train/cats/a.mp4", "test/cats/b.mp4", "val/dogs/c.mp4"):
        video(tmp_path / name)
    clips = list(dataset(folder, tmp_path).clips())
    assert [(clip.split, clip.label) for clip in clips] == [
        ("test", "cats"),
        ("train", "cats"),
        ("val", "dogs"),
    ]
    video(tmp_path / "birds" / "d.mp4")
    with pytest.raises(BadInput) as caught:
        list(dataset(folder, tmp_path).clips())
    assert (
        caught.value.message
        == f"{tmp_path} mixes split folders (test, train, val) and others (birds)"
    )
    assert caught.value.hint == "put every label folder inside train, val or test, or none of them"


def test_a_label_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train/a.mp4", "bus/b.mp4"):
        video(tmp_path / name)
    assert [clip.label for clip in dataset(folder, tmp_path).clips()] == ["bus", "train"]


def test_split_law() -> None:
    def draw(label_of: dict[str, str], fraction: float = 0.2, seed: int = 0) -> dict[str, str]:
        clips = [Clip(name, name, name, "train", label=label) for name, label in label_of.items()]
        drawn = split_clips(clips, SplitSettings(seed=seed), {}, Path(), drawn=fraction)
        return {clip.clip_id: clip.split for clip in drawn}

    label_of = {
        f"{label}/{number}.mp4": label
        for label, count in (("a", 100), ("b", 2), ("c", 1))
        for number in range(count)
    }
    drawn = draw(label_of)
    counts = Counter((label_of[source], split) for source, split in drawn.items())
    assert counts == {
        ("a", "train"): 80,
        ("a", "val"): 20,
        ("b", "train"): 1,
        ("b", "val"): 1,
        ("c", "train"): 1,
    }
    assert draw(dict(reversed(label_of.items()))) == drawn
    assert draw(label_of, seed=1) != drawn
    assert set(draw(label_of, fraction=0.0).values()) == {"train"}
    # New videos of another label move nothing, new ones of this label move its border only.
    more = draw(label_of | {f"b/new{number}.mp4": "b" for number in range(50)})
    assert {source: more[source] for source in label_of if label_of[source] == "a"} == {
        source: drawn[source] for source in label_of if label_of[source] == "a"
    }
    more = draw(label_of | {f"a/new{number}.mp4": "a" for number in range(10)})
    assert sum(more[source] != drawn[source] for source in drawn) <= 10


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for module in (folder, playback):
        with pytest.raises(BadInput) as caught:
            list(dataset(module, tmp_path).clips())
        assert caught.value.message == f"no media found in {tmp_path} (other files: 1)"
        assert caught.value.hint.startswith("looked for ")
        assert ".mp4" in caught.value.hint


# CSV


def test_csv_names_labels_splits_and_stretches(tmp_path: Path) -> None:
    video(tmp_path / "videos" / "a.mp4")
    video(tmp_path / "videos" / "b.mp4")
    images(tmp_path / "videos" / "c", 3)
    (tmp_path / "labels.csv").write_text(
        "path,label,split,start_s,stop_s\n"
        "videos/b.mp4,wave,test,,\n"
        "./videos/a.mp4,wave,train,0.1,0.25\n"
        "videos/a.mp4,run,train,0.25,\n"
        'videos/c,"run, then jump",train,,\n',
        encoding="utf-8-sig",
    )
    clips = list(dataset(folder, tmp_path, csv="labels.csv").clips())
    assert clips == [
        Clip("videos/b.mp4", "videos/b.mp4", "videos/b.mp4", "test", 0.0, None, "wave"),
        Clip("videos/a.mp4@0.1-0.25", "videos/a.mp4", "videos/a.mp4", "train", 0.1, 0.25, "wave"),
        Clip("videos/a.mp4@0.25-end", "videos/a.mp4", "videos/a.mp4", "train", 0.25, None, "run"),
        Clip(
            "videos/c", "videos/c", "videos/c", "train", 0.0, None, "run, then jump", image_fps=25.0
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,lable\na.mp4,x\n",
            "{csv} line 1: no column called 'lable'; "
            "there are: group, label, path, split, start_s, stop_s",
        ),
        (
            "path,split\na.mp4,val\n",
            "{csv} line 1: column 'label' is missing; found: path, split (split by commas)",
        ),
        (
            "abc.mp4 0\n",
            "{csv} line 1: columns 'path' and 'label' are missing; found: abc.mp4 0 (in one piece)",
        ),
        ("", "{csv} line 1: columns 'path' and 'label' are missing; found: nothing"),
        ("path,label\n", "{csv} has no rows below its header"),
        ("path,label\na.mp4,x\nb.mp4\n", "{csv} line 3: fewer cells than the header has columns"),
        ("path,label\na.mp4,x,y\n", "{csv} line 2: more cells than the header has columns"),
        ("path,label\na.mp4,\n", "{csv} line 2: label is empty"),
        ("path,label\nnone.mp4,x\n", "{csv} line 2: {root}/none.mp4 does not exist"),
        ("path,label\n../a.mp4,x\n", "{csv} line 2: path must lie under {root}, found ../a.mp4"),
        ("path,label\n/a.mp4,x\n", "{csv} line 2: path must lie under {root}, found /a.mp4"),
        ("path,label\na.mp4,x\na.mp4,y\n", "{csv} line 3 repeats line 2: a.mp4"),
        (
            "path,label,start_s\na.mp4,x,soon\n",
            "{csv} line 2: start_s must be seconds, 0 or more, found 'soon'",
        ),
        (
            "path,label,start_s\na.mp4,x,nan\n",
            "{csv} line 2: start_s must be seconds, 0 or more, found 'nan'",
        ),
        (
            "path,label,start_s,stop_s\na.mp4,x,2,1\n",
            "{csv} line 2: wanted start_s < stop_s, found 2 and 1",
        ),
        (
            "path,label,split,stop_s\na.mp4,x,train,1\na.mp4,x,val,\n",
            "{csv} line 3: a.mp4 is in split 'train' further up, 'val' here",
        ),
        (
            "path,label,split\na.mp4,x,tran\n",
            "{csv} line 2: no split called 'tran'; there are: test, train, val",
        ),
        ('path,label\n"a.mp4"b,x\n', "{csv} is not a CSV file in UTF-8: ',' expected after '\"'"),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        list(dataset(folder, tmp_path, csv="labels.csv").clips())
    assert caught.value.message == message.format(csv=tmp_path / "labels.csv", root=tmp_path)


def test_stretches_outside_their_video_are_rejected(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")  # 0.5 s
    (images(tmp_path / "late", 3) / "timestamps.txt").write_text("5 5.5 6")
    (tmp_path / "labels.csv").write_text(
        "path,label,start_s,stop_s\n"
        "a.mp4,x,0.25,9\na.mp4,x,0.5,\na.mp4,x,7,8\n"
        "late,x,0,5\nlate,x,1.4,\nlate,x,1.5,7\nlate,x,6.4,\n"
    )  # fmt: skip
    data = dataset(folder, tmp_path, csv="labels.csv")
    assert ids(list(data.clips())) == ["a.mp4@0.25-9.0", "late@0.0-5.0", "late@1.4-end"]

    def reason(start: str, length: str, span: str) -> str:
        return (
            f"holds nothing of the video: it starts {start} s after the first frame, and the video "
            f"is {length} s long (from {span} s on the clock of the file)"
        )

    assert data.rejected == {
        "a.mp4@0.5-end": reason("0.50", "0.50", "0.00 s to 0.50"),
        "a.mp4@7.0-8.0": reason("7.00", "0.50", "0.00 s to 0.50"),
        "late@1.5-7.0": reason("1.50", "1.50", "5.00 s to 6.50"),
        "late@6.4-end": reason("6.40", "1.50", "5.00 s to 6.50"),
    }


def test_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        list(dataset(folder, tmp_path, csv="labels.csv").clips())
    assert caught.value.message == "csv labels.csv does not exist"
    assert caught.value.hint == (
        f"looked for {tmp_path / 'labels.csv'} and {Path.cwd() / 'labels.csv'}"
    )


# Playback


def test_playback_reads_every_stretch_in_every_way(tmp_path: Path) -> None:
    video(tmp_path / "deep" / "long.mp4", frames=50, fps=10)  # 5 s: two stretches of 2 s
    video(tmp_path / "just.mp4", frames=16, fps=10)  # 1.6 s: one stretch, the whole
    video(tmp_path / "short.mp4", frames=6, fps=10)
    data = dataset(
        playback, tmp_path, stretch_s=2, min_s=1.5, min_fps=10, speeds=(1, 2), label="both", seed=3
    )
    clips = list(data.clips())
    too_short = {"short.mp4": "too short (0.60 s), wanted at least 1.5 s (min_s)"}
    assert (data.rejected, data.notes) == ({}, too_short)
    labels = ["forward x1", "forward x2", "reverse x1", "reverse x2"]
    stretches = [("deep/long.mp4", 0.0, 2.0), ("deep/long.mp4", 2.0, 4.0), ("just.mp4", 0.0, None)]
    assert [(clip.source, clip.start_s, clip.stop_s, clip.label) for clip in clips] == [
        (*stretch, label) for stretch in stretches for label in labels
    ]
    assert all(
        clip.label == f"{'reverse' if clip.reverse else 'forward'} x{clip.speed:g}"
        for clip in clips
    )
    assert ids(clips)[5] == "deep/long.mp4#001 forward x2"
    assert len(set(ids(clips))) == len(clips)


def test_playback_leaves_out_videos_whose_frames_would_repeat(tmp_path: Path) -> None:
    for fps in (10, 12):
        video(tmp_path / f"{fps}.mp4", frames=4 * fps, fps=fps)
    data = dataset(playback, tmp_path)
    assert {(clip.source, clip.label) for clip in data.clips()} == {
        ("12.mp4", "x1"),
        ("12.mp4", "x4"),
    }
    assert data.rejected == {}
    assert data.notes == {
        "10.mp4": "too few frames (10 per second), wanted at least 11.9 (min_fps)"
    }


def test_playback_splits_by_video(tmp_path: Path) -> None:
    for number in range(6):
        video(tmp_path / f"{number}.mp4", frames=12, fps=4)
    clips = list(
        dataset(
            playback, tmp_path, stretch_s=1, min_s=1, min_fps=0, speeds=(1, 2, 4), val_fraction=0.3
        ).clips()
    )
    assert len(clips) == 6 * 3 * 6
    assert len({(clip.video_id, clip.split) for clip in clips}) == 6
    assert Counter(clip.split for clip in clips) == {"train": 4 * 18, "val": 2 * 18}
    tiny = list(
        dataset(
            playback, tmp_path, stretch_s=1, min_s=1, min_fps=0, speeds=(1, 2, 4), val_fraction=0.01
        ).clips()
    )
    assert Counter(clip.split for clip in tiny) == {"train": 5 * 18, "val": 18}


def test_playback_caps_long_videos_evenly(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", frames=40, fps=4)
    data = dataset(
        playback,
        tmp_path,
        stretch_s=1,
        min_s=1,
        min_fps=0,
        max_stretches=3,
        label="direction",
        speeds=(1,),
    )
    clips = list(data.clips())
    assert [clip.start_s for clip in clips] == [1.0, 1.0, 5.0, 5.0, 8.0, 8.0]
    assert {clip.label for clip in clips} == {"forward", "reverse"}


def test_playback_counts_from_the_first_frame() -> None:
    if not SHARED_CLIPS.is_dir():
        pytest.skip("real clips are not here")
    data = dataset(playback, SHARED_CLIPS / "corner", stretch_s=4, min_s=4, min_fps=0)
    starts = {clip.start_s for clip in data.clips() if clip.source == "corner_first_pts_5s.mp4"}
    assert starts == {0.0, 4.0}
    assert "corner_audio_only.mp3" in data.rejected or data.ignored
    assert "too short" in data.notes["corner_3_frames.mp4"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"speeds": [1], "label": "speed"},
            "label 'speed' has one value only: give more speeds or directions",
        ),
        (
            {"speeds": [2, 2]},
            "speeds must be different from one another and at least one, found [2.0, 2.0]",
        ),
        (
            {"directions": []},
            "directions must be different from one another and at least one, found []",
        ),
        ({"speeds": [0, 1]}, "speeds must be above 0, found [0.0, 1.0]"),
        ({"stretch_s": 1}, "min_s must be at most stretch_s, found 2.5 and 1"),
    ],
)
def test_playback_settings_that_make_no_task(table: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        plugins.settings("dataset", "playback", table, "playback")
    assert caught.value.message == f"playback: {message}"


def test_world_json_holds_the_pixels_settings(tmp_path: Path) -> None:
    list(dataset(world, tmp_path, clips_per_class=1, frames=2, size_px=32).clips())
    assert json.loads((tmp_path / "world.json").read_text()) == {
        "rendering": plane.RENDERING, "clips_per_class": 1, "frames": 2, "fps": 12, "size_px": 32, "seed": 0,
    }  # fmt: skip
