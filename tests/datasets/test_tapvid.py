"""Pickles of TAP-Vid become clips and tracks, whoever wrote them and in whatever protocol, and never run."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import assert_refused, call
from support.media import read as decoded

from pipeline.config import plugins
from pipeline.config.pickles import LONG_BYTES, OPAQUE, Span, read_pickle
from pipeline.datasets.formats.pickled_arrays import PickledArrays
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import Targets
from pipeline.models.tasks.points import Task

HEIGHT, WIDTH, FRAMES = 24, 36, 6


def example(seed: int, frames: int = FRAMES, tracks: int = 4) -> dict[str, Any]:
    """As TAP-Vid-DAVIS has it: uint8 frames, float points, bool occlusions."""
    rng = np.random.default_rng(seed)
    occluded = rng.random((tracks, frames)) < 0.3
    occluded[:, 0] = [True, *[False] * (tracks - 1)]
    occluded[0, 2] = False
    return {
        "video": rng.integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8),
        "points": rng.random((tracks, frames, 2)).astype(np.float32),
        "occluded": occluded,
    }


def jpegs(video: np.ndarray) -> tuple[bytes, ...]:
    frames = []
    for pixels in video:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        frames.append(file.getvalue())
    return tuple(frames)


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def build(root: Path, out: Path, **settings: Any) -> Manifest:
    manifest.build("tapvid", root, out, settings)
    return Manifest.load(out)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_davis_and_stacking_are_read_pixel_by_pixel(tmp_path: Path, protocol: int) -> None:
    davis = {"goat": example(0), "blackswan": example(1, frames=4)}
    stacking = [example(2), example(3)]
    write(tmp_path / "tapvid/tapvid_davis.pkl", davis, protocol)
    write(tmp_path / "tapvid/tapvid_rgb_stacking.pkl", stacking, protocol)
    built = build(tmp_path / "tapvid", tmp_path / "out")
    assert built.rejected == {}
    expected = {f"tapvid_davis/{name}": each for name, each in davis.items()}
    expected |= {f"tapvid_rgb_stacking/{n:04d}": each for n, each in enumerate(stacking)}
    assert {clip.clip_id for clip in built.clips} == set(expected)
    assert {clip.split for clip in built.clips} == {"val"}
    for clip in built.clips:
        truth, given = built.targets(clip.clip_id), expected[clip.clip_id]
        np.testing.assert_array_equal(truth["points"], given["points"])
        np.testing.assert_array_equal(truth["visible"], ~given["occluded"])
        fps = 24 if "davis" in clip.clip_id else 25
        np.testing.assert_allclose(truth["points_time_s"], np.arange(len(given["video"])) / fps)
        frames, times_s, reason = decoded(built.root / clip.source)
        np.testing.assert_array_equal(np.stack(frames), given["video"])
        np.testing.assert_allclose(times_s, truth["points_time_s"])
        assert reason == ""


@pytest.mark.parametrize("form", ["bytes", "objects", "list"])
def test_kinetics_keeps_its_jpeg_bytes(tmp_path: Path, form: str) -> None:
    given = example(4)
    encoded = jpegs(given["video"])
    assert min(map(len, encoded)) > LONG_BYTES
    forms = {"bytes": np.array(encoded), "objects": np.array(encoded, object), "list": [*encoded]}
    write(tmp_path / "k/0000_of_0010.pkl", [given | {"video": forms[form]}])
    built = build(tmp_path / "k", tmp_path / "out", video_fps=25)
    (clip,) = built.clips
    assert clip.clip_id == "0000_of_0010/0000"
    for number, data in enumerate(encoded):
        laid_out = (built.root / clip.source / f"frame_{number:06d}.jpg").read_bytes()
        assert laid_out.rstrip(b"\0") == data
    assert built.targets(clip.clip_id)["visible"].tolist() == (~given["occluded"]).tolist()


def test_one_file_of_names_needs_no_prefix_and_a_folder_without_any_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a/tapvid_davis.pkl", {"goat": example(0)})
    assert [clip.clip_id for clip in build(tmp_path / "a", tmp_path / "x").clips] == ["goat"]
    (tmp_path / "none").mkdir()
    result = call("manifest", "tapvid", tmp_path / "none", "--out", tmp_path / "y")
    assert_refused(result, "holds no pickle of TAP-Vid", "unpack the archive first")


def test_queries_are_those_of_the_official_readers(tmp_path: Path) -> None:
    """First: the first visible frame of every track that has one. Strided: every 5th frame in which it is visible."""
    given = example(5, frames=12)
    given["occluded"][3] = True
    write(tmp_path / "t/rgb.pkl", {"a": given})
    truth = build(tmp_path / "t", tmp_path / "out").targets("a")
    visible_TQ = truth["visible"].T
    targets = {
        "points": truth["points"].transpose(1, 0, 2),
        "points_valid": np.isfinite(truth["points"]).all(-1).T,
        "visible": visible_TQ,
    }
    assert targets["points_valid"].all()  # occlusion counts where a point is hidden
    occluded, points = given["occluded"], given["points"]
    for queries in ("first", "strided"):
        settings = plugins.settings("task", "points", {"queries": queries}, "test")
        prepared = Task(settings, ()).prepare(targets, None)
        found = {
            (frame, *prepared["points"][frame, query].tolist())
            for query, frame in enumerate(prepared["query_frame"].tolist())
        }
        frames = range(0, 12, 5) if queries == "strided" else range(12)
        wanted = {
            (frame, *points[track, frame].tolist())
            for track in range(3)
            for frame in frames
            if not occluded[track, frame]
            and (queries == "strided" or not (~occluded[track, :frame]).any())
        }
        assert found == wanted


def official(
    queries: np.ndarray, occluded: np.ndarray, points: np.ndarray, said: np.ndarray, mode: str
) -> dict[str, float]:
    """AJ, delta_avg and OA of one video by the definitions of the paper: queries (Q,) frames, places in pixels of 256,
    every point said to be visible."""
    frames = np.arange(occluded.shape[1])
    asked = frames > queries[:, None] if mode == "first" else frames != queries[:, None]
    visible, distance = ~occluded, np.linalg.norm(said - points, axis=-1)
    jaccard, within = [], []
    for limit in (1, 2, 4, 8, 16):
        near = distance < limit
        true = (near & visible & asked).sum()
        false = ((~visible | ~near) & asked).sum()
        jaccard.append(true / ((visible & asked).sum() + false))
        within.append(true / (visible & asked).sum())
    right = (visible & asked).sum() / asked.sum()
    return {"AJ": np.mean(jaccard), "delta_avg": np.mean(within), "OA": right}


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_a_video_shorter_than_its_window_scores_as_by_itself(tmp_path: Path, mode: str) -> None:
    """The answer is the told place in all frames; the window is longer than the video, whose last frame repeats."""
    given = example(6, frames=9, tracks=5)
    given["points"] = (0.5 + np.cumsum(given["points"] - 0.5, axis=1) * 0.04).astype(np.float32)
    write(tmp_path / "t/davis.pkl", {"a": given})
    built = build(tmp_path / "t", tmp_path / "out")
    task = Task(plugins.settings("task", "points", {"queries": mode}, "test"), ())
    times_s = np.minimum(np.arange(14), 8) / 24
    affine = np.broadcast_to(np.eye(3)[:2], (14, 2, 3))
    prepared = Targets(built, task).window(built.clips[0], times_s, affine, 1 / 24, None)
    window = {name: value[None] for name, value in prepared.items()}
    scores = task.score(task.trivial(window, {}), window)

    frames = range(9) if mode == "first" else range(0, 9, 5)
    seen = ~given["occluded"]
    pairs = [
        (track, frame)
        for track in range(5)
        for frame in frames
        if seen[track, frame] and (mode == "strided" or not seen[track, :frame].any())
    ]
    track, query = np.array(pairs).T
    points = given["points"][track].astype(np.float64) * 256
    told = points[np.arange(len(track)), query][:, None].repeat(9, axis=1)
    wanted = official(query, given["occluded"][track], points, told, mode)
    for name, value in wanted.items():
        assert scores[name].tolist() == pytest.approx([value])


class Runs:
    """Its pickle calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_pickle_runs(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    hostile = {
        "evil": Runs(os.system, f"touch {mark}"),
        "inside": example(1) | {"video": Runs(open, str(mark), "w")},
        "more": example(2) | {"extra": Runs(eval, f"open({str(mark)!r}, 'w')")},
    }
    write(tmp_path / "h/tapvid.pkl", hostile, protocol)
    write(tmp_path / "h/other.pkl", Runs(os.system, f"touch {mark}"), protocol)
    write(tmp_path / "h/good.pkl", {"goat": example(0)})
    built = build(tmp_path / "h", tmp_path / "out")
    assert not mark.exists()
    clips = {clip.clip_id for clip in built.clips}
    assert "good/goat" in clips and clips <= {"good/goat", "tapvid/more"}
    assert built.rejected["other.pkl"] == "holds neither a list of videos nor videos by name"
    assert (
        built.rejected["tapvid.pkl evil"] == "wanted video, points, occluded, found no dictionary"
    )
    assert built.rejected["tapvid.pkl inside"] == "video is no array"


def damaged(name: str) -> Any:
    """Examples that are not as documented, each in one way."""
    given = example(0)
    return {
        "no points": {key: given[key] for key in ("video", "occluded")},
        "points of another video": given | {"points": given["points"][:, :-1]},
        "occluded of others": given | {"occluded": given["occluded"][:2]},
        "points that are text": given | {"points": np.array([["a"]])},
        "floating frames": given | {"video": given["video"].astype(np.float32)},
        "grey frames": given | {"video": given["video"][..., 0]},
        "columns first": given | {"video": np.asfortranarray(given["video"])},
        "records": given | {"points": np.zeros(3, [("x", "f4")])},
        "no frames": given | {"video": given["video"][:0]},
        "a number": 3,
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        *("no points", "points of another video", "occluded of others", "points that are text"),
        *("floating frames", "grey frames", "columns first", "records", "no frames", "a number"),
    ],
)
def test_a_video_that_is_not_as_documented_is_listed_and_the_others_are_used(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path / "d/t.pkl", {"bad": damaged(name), "good": example(1)})
    built = build(tmp_path / "d", tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["good"]
    assert list(built.rejected) == ["t.pkl bad"]


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/x", "a/b", ".hidden", "", "a\n\x1b[2J", "x" * 300]
)
def test_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    write(tmp_path / "d/t.pkl", {name: example(0), "good": example(1)})
    built = build(tmp_path / "d", tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["good"]
    ((where, reason),) = built.rejected.items()
    assert reason == "its name cannot be that of a folder" and where.isprintable()


def test_one_video_under_many_names_fills_no_disk(tmp_path: Path) -> None:
    shared = example(0)
    twin = {"video": shared["video"], "points": shared["points"], "occluded": shared["occluded"]}
    write(tmp_path / "d/t.pkl", {"a": shared, "b": twin, "c": dict(shared)})
    built = build(tmp_path / "d", tmp_path / "out")
    assert [clip.clip_id for clip in built.clips] == ["a"]
    assert set(built.rejected.values()) == {"its frames are those of another video"}


@pytest.mark.parametrize("kept", [0, 1, 40, 3000, -40])
def test_a_file_that_was_cut_short_or_is_no_pickle_is_named(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "d/t.pkl", {"a": example(0)})
    path.write_bytes(path.read_bytes()[:kept] if kept != 1 else b"PK\x03\x04" + b"x" * 100)
    result = call("manifest", "tapvid", tmp_path / "d", "--out", tmp_path / "out")
    assert result.code == 2 and "Traceback" not in result.err
    assert "t.pkl: cannot be read as plain arrays, and nothing in it is executed" in result.err


def test_long_bytes_are_described_and_not_read(tmp_path: Path) -> None:
    content = [b"x" * 10, np.zeros(20_000_000, np.uint8)]
    path = write(tmp_path / "t.pkl", content)
    del content
    tracemalloc.start()
    with PickledArrays(path) as opened:
        short, stored = opened.content
        assert opened.shape(stored) == (20_000_000,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert short == b"x" * 10 and isinstance(stored.data, Span) and peak < 5_000_000


def test_other_objects_are_opaque() -> None:
    value = {"a": Path("x"), "b": {1, 2}, "c": np.float64(3), "d": [1, "two", None]}
    read = read_pickle(io.BytesIO(pickle.dumps(value, 4)))
    assert read == {"a": OPAQUE, "b": OPAQUE, "c": OPAQUE, "d": [1, "two", None]}
