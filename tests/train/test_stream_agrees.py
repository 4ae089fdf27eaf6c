"""A stream's answers are those of a window over the cache at the same instants: at any rates, through
gaps, at variable rates, and where the video is slower than the windows."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.broken_media import noise
from support.media import SHARED_CLIPS, encode
from support.training import recipe

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.records import Clip
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.stream import Seen, Stream
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.windows import Windows

CPU = torch.device("cpu")
FRAMES = 24
"""T of the windows that streams are compared with."""
GAP_S = 1.5
UNEVEN_S = np.cumsum([0, *np.random.default_rng(0).integers(20, 250, 30)]) / 1000
TIMES_S = {
    "ntsc": np.arange(60) / (30 / 1.001),
    "28": np.arange(50) / 28,
    "25": np.arange(45) / 25,
    "gap": np.concatenate([np.arange(20), np.arange(20, 40) + 12 * GAP_S]) / 12,
    "uneven": UNEVEN_S,
    "slow": np.arange(10) / 3,
}
"""Video -> when its frames appear, in seconds. MP4 keeps these times to 1 / 30,000 s, Matroska to
1 / 1000 s."""
SOURCES = ["a/ntsc.mp4", "a/28.mp4", "a/25.mp4", "a/slow.mp4", "a/gap.mp4", "b/ntsc.mkv"]
SOURCES += ["b/uneven.mkv", "b/gap.mkv"]
CLIPS = {
    "sam2_cups.mp4": "29.97",
    "kinetics_arm_wrestling.mp4": "28",
    "chaplin.mp4": "25",
    "corner/corner_phone_rot180_vfr.mp4": "variable",
    "ntu_two_person_1080p.mp4": "a gap",
}


def tiny_spec(fps: float | str, **frames: object) -> CacheSpec:
    """A random encoder of one layer that sees 32 pixels."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = {"model_type": "vit", "num_hidden_layers": 1, "patch_size": 16, "image_size": 32}
    table = {
        "name": "tiny",
        "encoder": {"name": "transformers", "layers": [0], "seed": 0, "config": config | sizes},
        "frames": {"size_px": 32, "fps": fps, **frames},
        "codec": {"name": "float16"},
    }
    table["encoder"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    return plugins.validate(CacheSpec, table, "test")


def by(pace: float | str) -> dict[str, float | None]:
    """The settings of windows of so many frames per second, or of every k-th cached frame."""
    if isinstance(pace, str):
        return {"every": int(pace.split()[1]), "fps": None}
    return {"fps": pace}


def cache_of(root: Path, spec: CacheSpec, out: Path) -> Cache:
    built = manifest.build("folder", root, out / "data", {"val_fraction": 0.3})
    return extract.extract(spec, built, out / "caches")


def run_on(
    cache: Cache, pace: float | str, out: Path, temporal: str = "gru", **changes: object
) -> Run:
    """A model that has seen one batch, and whose answers are far from even."""
    small = {"layers": 1, "heads": 2, "state": 3, "history": 8}
    fields = plugins.load("temporal", temporal).Settings.model_fields
    table = {
        "task": {"forms": ("streaming",)},
        "temporal": {"name": temporal, **{k: v for k, v in small.items() if k in fields}},
        "windows": {"frames": 8, **by(pace), **changes},
        "training": {"steps": 1, "warmup_steps": 1, "batch_size": 2},
    }
    return train(recipe(**table), cache, out)


@torch.no_grad()
def window_answers(run: Run, cache: Cache, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """(T,) times and (T, K) answers of the first window of a clip over the cache."""
    model, task = load_model(run, cache.shape)
    one = dataclasses.replace(
        cache.manifest, clips=(dataclasses.replace(clip, split="val"), *cache.manifest.clips)
    )
    pace = run.recipe.windows
    settings = WindowSettings(frames=FRAMES, fps=pace.fps, every=pace.every)
    windows = Windows(cache, one, "val", settings, task, model.layers)
    batch = windows.read([WindowRef(0, 0.0)])
    return batch.time_s_BT[0], model(*windows.tokens(batch, CPU))["streaming"][0].numpy()


def assert_same(seen: list[Seen], time_s_T: np.ndarray, answers: np.ndarray) -> None:
    """Over the instants of both: a window goes on with the last frame when the video is over."""
    count = min(len(seen), len(time_s_T))
    assert count >= 5
    np.testing.assert_array_equal([frame.time_s for frame in seen[:count]], time_s_T[:count])
    for frame, answer in zip(seen[:count], answers[:count], strict=True):
        np.testing.assert_allclose(frame.answer, answer, atol=1e-5)
    assert len(set(time_s_T[count:])) <= 1
    assert np.ptp([frame.answer for frame in seen], axis=0).min() > 1e-3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The videos of TIMES_S, two labels."""
    folder = tmp_path_factory.mktemp("videos")
    for source in SOURCES:
        times_s = TIMES_S[Path(source).stem]
        (folder / source).parent.mkdir(exist_ok=True)
        ticks_per_s = 1000 if source.endswith("mkv") else 30_000
        encode(
            *(folder / source, noise(len(times_s))),
            times_s=times_s.tolist(),
            ticks_per_s=ticks_per_s,
        )
    return folder


@pytest.fixture(scope="module")
def caches(root, tmp_path_factory) -> dict[float | str, Cache]:
    """Of every frame, of 12 frames a second, and of every n-th frame, where n is given or that of a
    rate."""
    specs = {fps: tiny_spec(fps) for fps in ("all", 12)}
    specs["every 2"] = tiny_spec("all", every=2)
    specs["stride"] = tiny_spec(12, sampling="stride", antialias=False, pixel_aspect=False)
    return {
        name: cache_of(root, spec, tmp_path_factory.mktemp("cache")) for name, spec in specs.items()
    }


@pytest.fixture(scope="module")
def runs(caches, tmp_path_factory):
    """A run of a cache at a rate, trained when it is first asked for."""

    @lru_cache
    def run(cached: float | str, pace: float | str, temporal: str = "gru") -> Run:
        out = tmp_path_factory.mktemp("run") / "run"
        return run_on(caches[cached], pace, out, temporal, eval_windows=2)

    return run


@pytest.mark.parametrize(
    ("cached", "fps", "temporal", "videos"),
    [
        ("all", 6, "gru", ["a/ntsc.mp4", "b/uneven.mkv", "b/gap.mkv"]),
        ("all", 12, "gated_mamba_mix", ["b/ntsc.mkv", "a/28.mp4", "a/25.mp4"]),
        (12, 5, "gru", ["a/ntsc.mp4", "a/gap.mp4", "b/uneven.mkv"]),
        (12, 12, "gru", ["a/gap.mp4", "b/uneven.mkv"]),
        (12, "every 2", "gru", ["a/25.mp4", "b/gap.mkv"]),
        ("stride", 5, "gru", ["a/28.mp4", "b/uneven.mkv"]),
        ("every 2", 6, "gru", ["a/28.mp4", "b/uneven.mkv", "a/gap.mp4"]),
        ("every 2", "every 3", "gru", ["a/ntsc.mp4", "b/uneven.mkv"]),
    ],
)
def test_a_stream_sees_what_a_window_sees(caches, runs, root, cached, fps, temporal, videos):
    cache, run = caches[cached], runs(cached, fps, temporal)
    clips = {clip.source: clip for clip in cache.manifest.clips}
    for source in videos:
        seen = list(Stream(run).follow(root / source))
        assert_same(seen, *window_answers(run, cache, clips[source]))


def test_a_frame_that_stays_on_screen_is_answered_again(caches, runs, root):
    """Through a gap, where the video is slower than the windows, and at the end, which counts to
    the end of the last frame."""
    cache, run = caches["all"], runs("all", 4)
    seen = [frame.time_s for frame in Stream(run).follow(root / "a/gap.mp4")]
    stays = [time_s for time_s in seen if time_s == pytest.approx(19 / 12, abs=1e-3)]
    assert len(stays) == GAP_S * 4 and len(seen) == np.ceil((40 / 12 + GAP_S) * 4)
    (clip,) = (clip for clip in cache.manifest.clips if clip.source == "a/slow.mp4")
    slow = list(Stream(run).follow(root / clip.source))
    assert_same(slow, *window_answers(run, cache, clip))
    wanted = np.floor(np.arange(len(slow)) / 4 * 3 + 1e-3) / 3
    np.testing.assert_allclose([frame.time_s for frame in slow], wanted, atol=1e-3)
    with pytest.raises(BadInput, match="slow.mp4 ends before 90 s, where the stream is to begin"):
        list(Stream(run).follow(root / clip.source, start_s=90))
    with pytest.raises(BadInput, match="a stream begins at 0 s or later, found nan"):
        list(Stream(run).follow(root / clip.source, start_s=float("nan")))


def test_windows_at_the_rate_of_a_stride_take_every_cached_frame_once(caches):
    """Whatever the frames' times are."""
    cache = caches["stride"]
    windows = Windows(cache, cache.manifest, "train", WindowSettings(frames=6, fps=12))
    for clip, rows in enumerate(windows.index.clip_rows):
        for position in (0.0, 0.37, 1.0):
            taken = windows.index.locate(WindowRef(clip, position)).rows_T
            assert np.diff(taken).tolist() == [1] * 5
        assert taken[-1] == rows.first_row + len(rows.time_s) - 1


@pytest.mark.parametrize(("source", "start_s"), [("a/ntsc.mp4", 1.05), ("b/uneven.mkv", 0.7)])
def test_a_clip_that_starts_between_frames(caches, runs, root, source, start_s):
    """The window and the stream begin with the frame that is on screen then."""
    cache, run = caches["all"], runs("all", 6)
    (clip,) = (clip for clip in cache.manifest.clips if clip.source == source)
    times_s, answers = window_answers(run, cache, dataclasses.replace(clip, start_s=start_s))
    on_screen = max(time_s for time_s in TIMES_S[Path(source).stem] if time_s <= start_s)
    assert times_s[0] == pytest.approx(on_screen, abs=1e-3)
    assert_same(list(Stream(run).follow(root / source, start_s=start_s)), times_s, answers)


def test_evaluation_and_stream_agree_from_the_same_first_frame(caches, runs, root):
    """answers-val.safetensors says when the frames of its windows appear."""
    cache, run = caches[12], runs(12, 5)
    evaluate(run, cache)
    kept = load_file(run.path / "answers-val.safetensors")
    clips = [clip for clip in cache.manifest.clips if clip.split == "val"]
    assert kept["time_s"].shape == (2 * len(clips), 8) and len(clips) >= 2
    for window in range(1, len(kept["time_s"]), 2):
        time_s_T = kept["time_s"][window]
        frames = Stream(run).follow(root / clips[window // 2].source, start_s=float(time_s_T[0]))
        seen = list(islice(frames, 8))
        assert [frame.time_s for frame in seen] == time_s_T.tolist()
        np.testing.assert_allclose(seen[-1].answer, kept["streaming"][window], atol=1e-5)


@pytest.fixture(scope="module")
def real_caches(tmp_path_factory):
    """A cache of the real clips at a rate, made when it is first asked for."""
    root = tmp_path_factory.mktemp("clips")
    for label, source in enumerate(CLIPS):
        path = root / "ab"[label % 2] / Path(source).name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(SHARED_CLIPS / source)

    @lru_cache
    def cache(cached: float | str) -> Cache:
        return cache_of(root, tiny_spec(cached), tmp_path_factory.mktemp("real"))

    return cache


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_CLIPS.is_dir(), reason="no real clips")
@pytest.mark.parametrize(("cached", "fps"), [("all", 6), ("all", 12), (12, 5), (12, 12)])
def test_real_clips(real_caches, tmp_path, cached, fps):
    cache = real_caches(cached)
    run = run_on(cache, fps, tmp_path / "run")
    for clip in cache.manifest.clips:
        video = cache.manifest.root / clip.source
        seen = list(islice(Stream(run).follow(video), FRAMES))
        assert_same(seen, *window_answers(run, cache, clip))
