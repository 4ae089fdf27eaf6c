"""Clips, windows, runs and frames as tensors, through the public names alone: what they hold is what
extraction wrote, and what training reads."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import zarr
from support.paths import ROOT
from torch.utils.data import DataLoader

import stillframe
from stillframe import BadInput

FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("public")


@pytest.fixture(scope="module")
def cache(folder) -> stillframe.TokenCache:
    """Clips of the built-in room, which have all kinds of truth; int8 tokens of two layers, in
    batches that videos share."""
    settings = {"scene": "room", "clips_per_class": 2, "val_fraction": 0.5, "size_px": 32}
    videos = stillframe.make_manifest("world", out=folder / "data", frames=FRAMES, **settings)
    changes = ["encoder.layers=[0,1]", "frames.size_px=32", "store.batch_frames=8"]
    spec = stillframe.load_spec("demo", [*changes, 'codec.name="int8"'])
    return stillframe.extract(spec, videos, folder / "caches", device="cpu")


@pytest.fixture(scope="module")
def run(cache, folder) -> stillframe.Run:
    small = ["training.steps=2", "training.batch_size=4", "windows.frames=4"]
    return stillframe.train("demo_gru", cache, folder / "run", small, device="cpu")


def refusal(function, *words: object, **named: object) -> str:
    with pytest.raises(BadInput) as refused:
        function(*words, **named)
    return refused.value.with_hint


# Clips


def test_a_clip_is_read_as_plain_zarr_has_it(cache):
    clip = cache.clips[3]
    tokens = stillframe.open_cache(str(cache)).read(clip.clip_id, layer=1)
    place = cache.locations[clip.video_id]
    rows = slice(place.start, place.stop)
    group = zarr.open_group(cache.path / "stores" / f"{place.store:05d}.zarr", mode="r")
    keys = {key: f"layer_1_{key}" if key else "layer_1" for key in cache.codec.layout(64)}
    stored = {key: torch.from_numpy(group[name][rows]) for key, name in keys.items()}
    assert tokens.clip == clip and len(tokens) == FRAMES and tokens.grid_hw == (2, 2)
    assert torch.equal(tokens.patches_TPD, cache.codecs["layer_1"].decode(stored))
    assert tokens.tokens_TND.shape == (FRAMES, 1 + 4, 64)
    assert torch.equal(tokens.tokens_TND[:, :1], tokens.special_TSD)
    assert tokens.time_s_T.tolist() == group["time_s"][rows].tolist()
    assert tokens.affine_T23.tolist() == group["affine"][rows].tolist()


def test_truth_lies_beside_the_tokens_in_the_square(cache):
    clip = cache.clips[0]
    tokens = cache.read(clip.clip_id)
    assert list(tokens.patches) == [0, 1]
    assert int(tokens.truth["label"]) == cache.manifest.labels.index(clip.label)
    shapes = {name: tuple(tokens.truth[name].shape) for name in ("boxes", "points", "pose")}
    assert shapes == {"boxes": (12, 2, 4), "points": (12, 28, 2), "pose": (12, 4, 4)}
    windows = stillframe.WindowDataset(
        cache, clip.split, frames=FRAMES, every=1, truth=["boxes", "depth_m"], batch_size=6
    )
    (batch,) = [each for each in windows if clip.clip_id in each.clip_ids]
    row = batch.clip_ids.index(clip.clip_id)
    assert torch.equal(batch.targets["boxes"][row], tokens.truth["boxes"])
    depth = cache.read(clip.clip_id, layer=0, truth=["depth_m"]).truth["depth_m"]
    assert depth.shape == (FRAMES, 32, 32) and torch.equal(depth, batch.targets["depth_m"][row])


def test_a_whole_video_is_read_by_its_id_and_a_clip_by_its_stretch(material):
    cache = stillframe.open_cache(material.cache.path)
    whole = cache.read("a/v0.mp4")
    assert len(whole) == 31 and whole.truth.keys() <= {"label"}
    part = stillframe.Clip("part", "a/v0.mp4", "a/v0.mp4", "x", start_s=1.0, stop_s=1.5)
    some = cache.read(part, layer=cache.layers[0])
    assert some.time_s_T.tolist() == whole.time_s_T[10:15].tolist()
    assert torch.equal(some.patches_TPD, whole.patches[cache.layers[0]][10:15])
    assert repr(some) == (
        "ClipTokens('part', 5 frames from 1.000 to 1.400 s, layers 2, "
        f"{some.grid_hw[0]} x {some.grid_hw[1]} + {some.special_TSD.shape[1]} tokens of width "
        f"{some.special_TSD.shape[2]}, truth: none)"
    )


def test_a_cache_says_what_it_is_and_what_it_has_not(cache, tmp_path):
    assert repr(cache) == (
        f"TokenCache('{cache.path}', 12 videos, every frame, layers 0, 1, 2 x 2 + 1 tokens of "
        "width 64, codec int8)"
    )
    first = cache.clips[0].clip_id
    assert refusal(cache.read, f"{first}.mp4") == (
        f"no clip or video called '{first}.mp4' among the 12 clips of cache {cache} (did you mean "
        f"'{first}'?)"
    )
    assert f"(the first is '{first}'; see cache.clips)" in refusal(cache.read, "zzzz")
    assert refusal(cache.read, first, layer=5) == f"cache {cache} has no layer 5; it has 0, 1"
    assert refusal(cache.read, first, layer=[]) == "no layer is named (one of 0, 1)"
    assert "no view called 'flip'" in refusal(cache.read, first, view="flip")
    assert "no truth called 'box'" in refusal(cache.read, first, truth=["box"])
    both = cache.read(first)
    assert refusal(lambda: both.tokens_TND) == (
        f"{first} was read with layers 0, 1 (name one: cache.read(clip, layer=L), or take "
        "patches[L])"
    )
    assert f"{tmp_path} is not a cache" in refusal(stillframe.open_cache, str(tmp_path))


def test_a_clip_that_is_not_there_is_named(cache):
    clip = cache.clips[0]
    holey = stillframe.open_cache(cache.path)
    holey.locations = {name: at for name, at in cache.locations.items() if name != clip.video_id}
    assert refusal(holey.read, clip.clip_id) == (
        f"cache {cache} does not hold {clip.clip_id}: not extracted yet (stillframe status {cache})"
    )


# Windows


def batches(dataset: stillframe.WindowDataset) -> list[list[str]]:
    return [batch.clip_ids for batch in DataLoader(dataset, batch_size=None)]


def test_windows_come_as_training_reads_them_and_go_on_from_any_step(cache):
    keys = {"frames": 4, "every": 2, "seed": 3, "truth": ["label"], "batch_size": 4}
    dataset = stillframe.WindowDataset(cache, **keys)
    epoch = list(dataset)
    assert len(dataset) == len(epoch) == 2  # six clips, four a step
    ours = dataset.windows.train(4, range(4))
    for (_, batch), theirs in zip(islice(ours, 2), epoch, strict=True):
        special_BTSD, patches = dataset.windows.tokens(batch, torch.device("cpu"))
        assert torch.equal(special_BTSD, theirs.special_BTSD)
        assert all(map(torch.equal, patches, theirs.patches.values()))
        assert theirs.time_s_BT.tolist() == batch.time_s_BT.tolist()
        labels = [cache.manifest.labels[number] for number in theirs.targets["label"]]
        by_id = {clip.clip_id: clip.label for clip in cache.clips}
        assert labels == [by_id[name] for name in theirs.clip_ids]
    assert dataset.state_dict() == {"step": 2}
    later = batches(dataset)  # the next epoch
    assert later == [
        [dataset.windows.clip(int(index)).clip_id for index in batch.clip_index]
        for _, batch in dataset.windows.train(4, range(2, 4))
    ]
    stopped = stillframe.WindowDataset(cache, **keys)
    assert next(iter(stopped)).clip_ids == epoch[0].clip_ids
    resumed = stillframe.WindowDataset(cache, **keys)
    resumed.load_state_dict(stopped.state_dict())
    assert batches(resumed) == [epoch[1].clip_ids]  # the rest of the epoch
    assert batches(resumed) == later


def test_other_splits_come_in_order_once_in_an_iteration(cache):
    dataset = stillframe.WindowDataset(cache, "val", frames=4, every=2, layers=[1], batch_size=4)
    held_out = [clip.clip_id for clip in cache.clips if clip.split == "val"]
    for _ in range(2):
        assert [name for batch in batches(dataset) for name in batch] == held_out
    assert len(dataset) == 2 and dataset.state_dict() == {"step": 0}
    assert list(next(iter(dataset)).patches) == [1] and next(iter(dataset)).targets == {}
    assert repr(dataset) == (
        f"WindowDataset({cache}, split 'val', 6 clips, 4 frames, batches of 4)"
    )


def test_workers_of_a_loader_are_refused_with_the_reason(cache):
    dataset = stillframe.WindowDataset(cache, frames=4, every=1)
    with pytest.raises(BadInput, match="each worker of a DataLoader would give every batch again"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))


def test_windows_that_cannot_be_are_refused(cache, run):
    make = stillframe.WindowDataset
    assert refusal(make, cache, frames=4, every=1, batch_size=0) == (
        "batch_size is 0, wanted at least 1"
    )
    assert "did you mean 'frames'" in refusal(make, cache, frame=4, every=1)
    assert "wanted exactly one of fps, every" in refusal(make, cache, frames=4)
    assert "no split called 'test'" in refusal(make, cache, "test", frames=4, every=1)
    assert refusal(make, cache, recipe=run.recipe, frames=4) == (
        "a recipe has windows and truth of its own, and frames is given"
    )


# Runs


def test_a_run_is_a_module_that_says_what_evaluation_says(cache, run):
    model = stillframe.load_run(str(run.path))
    assert isinstance(model, torch.nn.Module) and not model.training and model.layers == (1,)
    assert model.labels == cache.manifest.labels
    dataset = stillframe.WindowDataset(cache, "val", recipe=run.recipe, batch_size=6)
    (batch,) = dataset
    scores = stillframe.evaluate(run, device="cpu").forms["window"]["top-1"].score
    answers = model.answers(batch)["window"]
    labels = batch.targets["label"].numpy()
    assert (answers.argmax(-1) == labels).mean() == pytest.approx(scores)
    predictions = model(batch)
    assert predictions["streaming"].shape == (6, 4, 6) and predictions["window"].requires_grad
    assert model.features(batch).shape == (6, 4, model.model.tokens_per_frame, 96)
    assert f"Run('{run.path}', recipe 'demo_gru'), layers 1" in repr(model)


def test_a_run_is_loaded_where_its_cache_is_gone(run, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(stillframe.Run, "cache_path", str(tmp_path / "gone"))
    without = stillframe.load_run(run.path).state_dict()
    monkeypatch.undo()
    assert all(
        map(torch.equal, without.values(), stillframe.load_run(run.path).state_dict().values())
    )
    assert refusal(stillframe.load_run, run.path, "first") == (
        "a run has the checkpoints last and best, found 'first'"
    )
    assert f"{tmp_path} is not a run" in refusal(stillframe.load_run, tmp_path)


# Frames


def test_frames_become_the_very_tokens_that_extraction_wrote(cache):
    """Bit for bit, of every clip and both layers, though extraction fills its batches with frames
    of several videos."""
    encoder = stillframe.open_encoder(str(cache), device="cpu")
    for clip in cache.clips:
        parts = list(encoder.video(cache.manifest.root / clip.source))
        tokens = cache.read(clip.clip_id)
        assert [len(part.time_s_F) for part in parts] == [8, 4]
        for layer in cache.layers:
            patches = torch.cat([part.patches[layer] for part in parts])
            assert torch.equal(patches, tokens.patches[layer])
        assert torch.equal(torch.cat([part.special_FSD for part in parts]), tokens.special_TSD)
        assert torch.equal(torch.cat([part.time_s_F for part in parts]), tokens.time_s_T)
        assert torch.equal(torch.cat([part.affine_F23 for part in parts]), tokens.affine_T23)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_frames_of_ones_own_become_the_same_tokens(cache):
    clip = cache.clips[0]
    encoder = stillframe.open_encoder(cache, device="cpu")
    pixels_FHWC = decoded(cache.manifest.root / clip.source)
    tokens, expected = encoder(pixels_FHWC), cache.read(clip.clip_id)
    assert torch.equal(tokens.patches[1], expected.patches[1])
    assert torch.equal(tokens.special_FSD, expected.special_TSD)
    assert tokens.time_s_F.tolist() == list(range(FRAMES))
    by_spec = stillframe.open_encoder(cache.cache_spec, device="cpu")
    assert torch.equal(by_spec(pixels_FHWC[:8]).patches[1], tokens.patches[1][:8])
    assert repr(encoder) == "FrameEncoder(transformers, 32 x 32 px, layers 0, 1, codec int8, cpu)"
    assert "found uint8 (32, 32, 3)" in refusal(encoder, pixels_FHWC[0])
    assert "above 0, found -1" in refusal(encoder, pixels_FHWC, -1)


def test_a_cache_of_another_encoder_is_refused(cache):
    other = {"seed": 1}
    assert refusal(stillframe.open_encoder, cache, device="cpu", encoder=other) == (
        f"cache {cache} holds other tokens: encoder 'transformers' has other weights, layers or "
        'another configuration than the one that made it (name that one: encoder={"model": '
        '"FOLDER"})'
    )


def test_a_stream_answers_about_frames_of_ones_own(cache, run):
    video = cache.manifest.root / cache.clips[0].source
    stream = stillframe.open_stream(str(run.path), device="cpu")
    of_file = [seen.answer for seen in stream.follow(video)]
    step_s = 1 / stream.answers_per_second()
    frames = decoded(video)[:: round(12 * step_s)]  # the video has 12 a second
    own = [stream.step(frame, number * step_s).answer for number, frame in enumerate(frames)]
    assert len(own) == len(of_file) > 3 and all(map(np.array_equal, own, of_file))


# What is imported


@pytest.mark.slow
def test_caches_windows_and_runs_need_no_transformers(cache, run, tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import stillframe
cache = stillframe.open_cache({str(cache)!r})
cache.read(cache.clips[0].clip_id, layer=1)
next(iter(stillframe.WindowDataset({str(cache)!r}, frames=4, every=1)))
stillframe.load_run({str(run.path)!r})
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"
