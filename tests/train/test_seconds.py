"""Seconds that people write count from the first frame, whatever the clock of the file says; those
of older manifests count by that clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from support.broken_media import noise
from support.material import address_spec
from support.media import encode
from support.paths import SHARED

from pipeline.cache.cache import Cache
from pipeline.config.plugins import Settings
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.extract.extract import extract
from pipeline.records import Clip
from pipeline.train.windows.index import ClipRows, WindowRef, clip_rows_of
from pipeline.train.windows.windows import Windows

FOUND = SHARED / "found"
START_S = {"base.mp4": 0.0, "late.ts": 1.48, "wraps.ts": -2.0, "below.ts": -6.0}
"""Video -> about where the clock of its file begins."""
WRAP_S = 2**33 / 90_000
FRAMES, RATE = 100, 25
WINDOWS = WindowSettings(frames=1, fps=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The same 100 frames under four clocks: at zero, late, and in a transport stream whose counter
    comes to its end in mid-video, or right after it."""
    folder = tmp_path_factory.mktemp("videos")
    pixels = noise(FRAMES)
    for name, start_s in START_S.items():
        offset_s = start_s + (WRAP_S if start_s < 0 else 0)
        options = {"output_ts_offset": f"{offset_s}"} if start_s else {}
        encode(folder / name, pixels, rate=RATE, options={"g": "10"}, container_options=options)
    return folder


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory) -> Cache:
    lines = ["path,label,split,start_s,stop_s"]
    for name in START_S:
        lines += [f"{name},x,train,{span}" for span in ("0,1", "2,3", "3.2,", ",")]
    (root / "rows.csv").write_text("\n".join(lines) + "\n")
    folder = tmp_path_factory.mktemp("cache")
    built = manifest.build("folder", root, folder / "data", {"csv": "rows.csv"})
    assert built.rejected == {}
    return extract(address_spec(), built, folder / "caches")


def rows_of(cache: Cache, clip: Clip) -> ClipRows:
    rows = clip_rows_of(cache, clip, WINDOWS, 1)
    assert isinstance(rows, ClipRows), rows
    return rows


def numbers(cache: Cache, clip: Clip) -> list[int]:
    """Which frames of its video a clip has."""
    rows = rows_of(cache, clip)
    first = rows.first_row - cache.locations[clip.video_id].start
    return list(range(first, first + len(rows.time_s)))


def test_the_receipt_says_when_the_first_frame_is_shown(cache):
    for name, start_s in START_S.items():
        assert cache.content[name].first_s == pytest.approx(start_s, abs=0.13)
        assert cache.first_s(name) == cache.content[name].first_s


def test_a_clip_is_the_same_frames_whatever_the_clock_of_its_file(cache):
    wanted = [range(25), range(50, 75), range(80, 100), range(100)]
    for clip, frames in zip(cache.manifest.clips, wanted * len(START_S), strict=True):
        assert numbers(cache, clip) == list(frames), clip.clip_id


def test_windows_use_all_frames(cache):
    index = Windows(cache, cache.manifest, "train", WindowSettings(frames=8, fps=25)).index
    assert not index.skipped
    whole = [
        rows
        for clip, rows in zip(index.clips, index.clip_rows, strict=True)
        if (clip.start_s, clip.stop_s) == (0.0, None)
    ]
    assert [len(rows.time_s) for rows in whole] == [FRAMES] * len(START_S)


def test_manifests_that_do_not_say_count_by_the_file(cache):
    def old(name: str, start_s: float, stop_s: float | None) -> Clip:
        return Clip("old", name, name, "train", start_s, stop_s, "x", clock="file")

    for name in START_S:
        assert numbers(cache, old(name, 0.0, None)) == list(range(FRAMES))
    first_s = cache.first_s("late.ts")
    assert numbers(cache, old("late.ts", 2.0, 3.0))[0] == round((2 - first_s) * RATE - 0.49)
    assert len(numbers(cache, old("wraps.ts", 0.0, 1.0))) == round(
        (1 - cache.first_s("wraps.ts")) * RATE
    )
    with_file = dataclasses.replace(cache.manifest.clips[0], clock="file")
    assert with_file.stretch_s(5.0) == (0.0, 1.0)


def test_a_stretch_outside_is_refused_in_both_clocks(cache, root, tmp_path):
    gone = Clip("gone", "late.ts", "late.ts", "train", 5.0, 6.0, "x")
    said = clip_rows_of(cache, gone, WINDOWS, 1)
    first_s = cache.first_s("late.ts")
    assert said == (
        "no cached frame in [5, 6) s after the first frame; its video is cached from 0.000 to 3.960 "
        f"s after it ({first_s:.3f} to {first_s + 3.96:.3f} s on the clock of the file)"
    )
    (root / "rows.csv").write_text("path,label,start_s,stop_s\nlate.ts,x,0,1\nlate.ts,x,4.5,5\n")
    built = manifest.build("folder", root, tmp_path / "data", {"csv": "rows.csv"})
    (reason,) = built.rejected.values()
    assert reason == (
        "holds nothing of the video: it starts 4.50 s after the first frame, and the video is 4.00 s "
        f"long (from {first_s:.2f} s to {first_s + 4:.2f} s on the clock of the file)"
    )


class Boxed(DatasetPlugin):
    """One clip per video, whose box moves to the right by a hundredth per frame."""

    Settings = Settings

    def clips(self) -> Iterator[Clip]:
        for name in START_S:
            yield Clip(name, name, name, "train")

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        x_F = np.arange(FRAMES) / 200
        boxes_F4 = np.stack([x_F, x_F * 0 + 0.2, x_F + 0.4, x_F * 0 + 0.8], 1)
        return {
            "boxes": boxes_F4[None],
            "boxes_time_s": np.arange(FRAMES) / RATE + self.zero_s(clip),
        }

    def zero_s(self, clip: Clip) -> float:
        return 0.0


class BoxedByFile(Boxed):
    clock = "file"
    first_s: Mapping[str, float] = {}

    def zero_s(self, clip: Clip) -> float:
        return self.first_s[clip.video_id]


class WantsBoxes:
    needs = ("boxes",)
    dense_px = None

    def prepare(self, targets, rng):
        return targets


@pytest.mark.parametrize("kind", [Boxed, BoxedByFile])
def test_truth_has_the_clock_of_its_clips(cache, root, tmp_path, kind):
    data = kind(root, Settings())
    data.first_s = {name: cache.first_s(name) for name in START_S}
    boxed = manifest.write("boxed", data, tmp_path / "boxed")
    assert Manifest.load(tmp_path / "boxed").clips == boxed.clips
    assert {clip.clock for clip in boxed.clips} == {kind.clock}
    windows = Windows(cache, boxed, "train", WindowSettings(frames=10, fps=5), WantsBoxes())
    truths = [windows.truth([WindowRef(clip, 0.5)]) for clip in range(len(START_S))]
    for truth in truths:
        assert truth["boxes_valid"].all()
        assert (np.diff(truth["boxes"][0, :, 0, 0]) > 0).all()
    for name in ("boxes", "boxes_valid"):
        for truth in truths[1:]:
            np.testing.assert_allclose(truth[name], truths[0][name], atol=1e-6)


@pytest.mark.skipif(not (FOUND / "inputs_public/start_ts.csv").is_file(), reason="not here")
def test_files_that_were_found(tmp_path):
    root = tmp_path / "root"
    (root / "v").mkdir(parents=True)
    for name in ("start.ts", "base.mp4"):
        (root / "v" / name).symlink_to(FOUND / "inputs_public" / name)
    (root / "v" / "halfneg.ts").symlink_to(FOUND / "inputs_reliability" / "halfneg.ts")
    csv = (FOUND / "inputs_public/start_ts.csv").read_text().rstrip("\n")
    (root / "rows.csv").write_text(f"{csv}\nv/halfneg.ts,a,,\n")
    built = manifest.build("folder", root, tmp_path / "data", {"csv": "rows.csv"})
    assert built.rejected == {}
    cache = extract(address_spec(), built, tmp_path / "caches")
    clips = {clip.clip_id: numbers(cache, clip) for clip in built.clips}
    for span in ("0.0-1.0", "2.0-3.0"):
        assert clips[f"v/start.ts@{span}"] == clips[f"v/base.mp4@{span}"]
    assert clips["v/base.mp4@2.0-3.0"] == list(range(50, 75))
    assert len(clips["v/halfneg.ts"]) == 100


def test_a_cache_is_not_gone_on_with_under_another_clock(cache, root):
    """Clips and their digest are the same, and would be other frames."""
    same = Manifest.load(cache.path / "manifest", root)
    assert extract(address_spec(), same, cache.path.parent).path == cache.path
    older = dataclasses.replace(same, origin=same.origin.model_copy(update={"clock": "file"}))
    assert older.digest == same.digest
    with pytest.raises(BadInput, match="by the clock 'file', the copy in .* by 'first_frame'"):
        extract(address_spec(), older, cache.path.parent)
