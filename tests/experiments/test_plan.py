"""The planner: sizes against what is then written, operations against published figures, break-even against its definition."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import RECIPE, VIT, assert_refused, call, fine
from support.material import address_spec, address_video
from support.media import encode, grey
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cache.layout import bytes_per_frame, frames_per_store
from pipeline.cache.storage.open import open_storage
from pipeline.cli.bench.training import epoch as bench_epoch
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec, load_spec
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.datasets.manifest import manifest
from pipeline.experiments.planning import measure
from pipeline.experiments.planning.plan import break_even, plan
from pipeline.experiments.planning.subset import MIN_HEAD_FRAMES, write_subset
from pipeline.experiments.planning.uncached import UncachedReader
from pipeline.extract import extract
from pipeline.extract.worker import load_encoder
from pipeline.models import profile
from pipeline.models.encoders.contract import make_encoder, token_shape
from pipeline.models.encoders.tower.model_types import MODEL_TYPES
from pipeline.models.video_model import layers_read
from pipeline.train import loop
from pipeline.train.setup import RunContext
from pipeline.train.windows.windows import Windows
from pipeline.video.probe import probe

CPU = torch.device("cpu")
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
"""Width, blocks and heads of DINOv3."""
positive = st.floats(min_value=1e-6, max_value=1e9)


def vit(name: str, size_px: int = 224) -> CacheSpec:
    """Four layers of a DINOv3 ViT."""
    width, depth, heads = SIZES[name]
    config = {
        "model_type": "dinov3_vit",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
    }
    config |= {"num_attention_heads": heads, "num_register_tokens": 4, "patch_size": 16}
    layers = [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1]
    encoder = {"name": "transformers", "layers": layers, "seed": 0, "config": config}
    return plugins.validate(
        CacheSpec,
        {"name": "vit", "encoder": encoder, "frames": {"size_px": size_px, "fps": 12}},
        "test",
    )


def recipe(temporal: str = "identity", **training: object) -> Recipe:
    table = {
        "name": "test",
        "task": {"name": "classify"},
        "temporal": {"name": temporal},
        "windows": {"frames": 16, "fps": 6},
        "training": {"epochs": 10, "batch_size": 8} | training,
    }
    return plugins.validate(Recipe, table, "test")


def speed(**changes: float) -> measure.Throughput:
    table = {
        "videos": 4,
        "frames": 256,
        "load_s": 5,
        "start_s": 1,
        "frame_s": 0.01,
        "decode_s": 0.002,
        "encode_s": 0.008,
    }
    table |= {
        "write_s": 0.001,
        "frame_bytes": 8e5,
        "read_hot_bytes_per_s": 4e9,
        "read_cold_bytes_per_s": 1e9,
        "step_s": 0.5,
    }
    table |= {"uncached_step_s": 1.5}
    return measure.Throughput(**table | changes)


# Sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"codec": {"name": "int8"}},
        {
            "frames": {"size_px": 64, "fps": 4},
            "store": {"chunk_frames": 3, "shard_mb": 1, "store_mb": 1},
        },
        {"views": [{"name": "flip", "flip": True}]},
        {"codec": {"name": "pca", "components": 4}},
        {
            "encoder": {
                "name": "address",
                "layers": [0],
                "width": 64,
                "grid": 8,
                "special_tokens": 0,
            }
        },
    ],
)
def test_sizes_are_those_of_the_cache_that_is_made(built, tmp_path, changes):
    spec = address_spec(**changes)
    foretold = plan(spec, built, None, None, 1, None, 1)
    cache = extract.extract(spec, built, tmp_path)
    receipts = cache.receipts.values()
    scale = foretold.scale
    assert scale.frames == sum(receipt.frames for receipt in receipts)
    assert (scale.stores, scale.videos) == (len(receipts), 6)
    assert scale.tokens == scale.frames * spec.tokens_per_frame(cache.shape)
    assert scale.files == sum(path.is_file() for path in cache.path.rglob("*"))
    stored = sum(
        each.store_bytes for each in receipts
    )  # of which metadata, which is estimated, are a fifth here
    assert scale.codecs[foretold.codec].disk_bytes == pytest.approx(stored, rel=0.02)
    assert scale.codecs[foretold.codec].bytes_per_frame == bytes_per_frame(spec, cache.shape)
    assert foretold.speed is foretold.times is foretold.training is None


@pytest.mark.parametrize(("name", "mib"), [("S", 9.2), ("B", 18.5), ("L", 24.7)])
def test_a_clip_of_16_frames_takes_the_published_space(name, mib):
    codecs = plan(vit(name), None, 16, None, 1, None, 1).scale.codecs
    assert codecs["float16"].bytes_per_frame * 16 / 2**20 == pytest.approx(mib, abs=0.05)
    assert codecs["int8"].bytes_per_frame == codecs["float16"].bytes_per_frame // 2 + 4 * (
        4 * 196 + 5
    )
    assert all(one.disk_bytes > one.bytes_per_frame * 16 for one in codecs.values())


def test_stores_without_a_manifest_are_full():
    spec = vit("S")
    full = frames_per_store(spec, token_shape(spec))
    assert [
        plan(spec, None, frames, None, 1, None, 1).scale.stores for frames in (1, full, full + 1)
    ] == [1, 1, 2]


def test_a_codec_that_cannot_hold_the_tokens_is_none(built):
    odd = address_spec(encoder={"name": "address", "layers": [0], "width": 7})
    codecs = plan(odd, built, None, None, 1, None, 1).scale.codecs
    assert codecs.keys() == set(plugins.names("codec"))
    assert codecs["int4"] is None and codecs["float16"] is not None


# Operations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at_224", "at_256"), [("S", 150, 200), ("B", 574, 754), ("L", 2011, 2636)]
)
def test_the_encoder_costs_what_is_published_of_16_frames(name, at_224, at_256):
    for size_px, wanted in ((224, at_224), (256, at_256)):
        spec = vit(name, size_px)
        flops = plugins.load("encoder", "transformers").flops(spec.encoder.settings, size_px)
        assert flops * 16 / 1e9 == pytest.approx(wanted, abs=0.5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_operations_without_weights_are_those_of_the_encoder_at_work(model_type):
    config = {
        "model_type": model_type,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 16,
    } | ({} if model_type == "siglip2_vision_model" else {"image_size": 64})
    plugin = plugins.load("encoder", "transformers")
    settings = plugin.Settings(layers=(0, 1), seed=0, config=config)
    encoder = plugin(settings, 64, CPU)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert plugin.flops(settings, 64) == counter.get_total_flops() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temporal", "wanted"),
    [("mamba", 3.40), ("mamba_mix", 2.09), ("gated_mamba_mix", 2.00), ("gated_transformer", 2.15)],
)
def test_an_uncached_step_has_as_many_more_operations_as_published(temporal, wanted, monkeypatch):
    """Of a ViT-L, with the mixer and without a readout; in enough memory, so that none is counted
    twice."""
    monkeypatch.setattr("pipeline.experiments.planning.plan.free_memory_bytes", lambda: 10**15)
    made = plan(vit("L"), None, 1600, recipe(temporal), 1, None, 1).operations
    readouts = 3 * 8 * made.readout
    assert (made.uncached_step - readouts) / (made.cached_step - readouts) == pytest.approx(
        wanted, abs=0.01
    )
    assert made.cached_step == 3 * 8 * (made.mixer + made.temporal + made.readout)
    assert made.uncached_step - made.cached_step == 8 * 16 * made.encoder_frame
    assert made.extraction == 1600 * made.encoder_frame


# Time


@given(positive, positive, positive, st.integers(1, 1000), st.integers(1, 1000))
def test_break_even_is_where_caching_begins_to_pay(extract_s, uncached_s, cached_s, runs, epochs):
    paid = break_even(extract_s, uncached_s, cached_s)
    with_cache, without = extract_s + runs * epochs * cached_s, runs * epochs * uncached_s
    if paid is None:
        assert uncached_s <= cached_s and without <= with_cache
    elif not math.isclose(runs * epochs, paid, rel_tol=1e-6) and not math.isclose(
        uncached_s, cached_s, rel_tol=1e-6
    ):
        assert (runs * epochs > paid) == (without > with_cache)


def test_seconds_follow_from_what_was_tried():
    made = plan(vit("S"), None, 12_000, recipe(), 8, speed(), 2)
    times, training = made.times, made.training
    assert training.windows == 12_000 / (16 * 2)  # 12 cached frames a second, 6 of them in a window
    assert (training.steps_per_epoch, training.epochs) == (
        375 / 8,
        math.ceil(10 * 375 / 8) * 8 / 375,
    )
    assert training.step_bytes == 8 * 16 * made.scale.codecs["float16"].bytes_per_frame
    assert (times.extract_s, times.slowest) == (5 + 1 + 12_000 * 0.01, "encode")
    assert times.write_bytes_per_s == pytest.approx(8e5 / 0.008)
    assert (times.cached_step_s, times.uncached_step_s) == (0.5, 1.5)
    assert times.read_bytes_per_s == training.step_bytes / 0.5
    assert (times.cached_epoch_s, times.uncached_epoch_s) == (0.5 * 375 / 8, 1.5 * 375 / 8)
    assert times.break_even == times.extract_s / (times.uncached_epoch_s - times.cached_epoch_s)


def test_what_does_not_fit_memory_is_read_from_the_disk(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    made = plan(vit("S"), None, 12_000, recipe(), 8, speed(read_cold_bytes_per_s=1e8), 2)
    assert not made.times.fits_memory
    assert made.times.cached_step_s == made.training.step_bytes / 1e8 > 0.5
    assert made.times.read_bytes_per_s == pytest.approx(1e8)


def test_writing_can_set_the_pace():
    made = plan(vit("S"), None, 1000, None, 8, speed(write_s=0.05), 1)
    assert (made.times.extract_s, made.times.slowest) == (6 + 1000 * 0.05, "write")
    assert made.times.break_even is None


# The trial


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The manifest of a long video and of a folder of as many images."""
    root = tmp_path_factory.mktemp("long")
    address_video(root / "a" / "v0.mp4", 0, 200)
    address_video(root / "b" / "v1.mp4", 1, 30)
    return manifest.build("folder", root, tmp_path_factory.mktemp("data"), {"val_fraction": 0.0})


def test_the_sample_has_whole_short_videos_and_heads_of_long_ones(long, tmp_path):
    few = write_subset(long, address_spec(), 80, tmp_path)
    assert few.splits == ("train", "val")
    frames = {clip.label: probe(few.root / clip.source).duration_s * 10 for clip in few.clips}
    assert frames["a"] == pytest.approx(MIN_HEAD_FRAMES, abs=12)  # up to the next group of pictures
    assert set(frames) <= {"a", "b"}
    assert "b" not in frames or frames["b"] == pytest.approx(30)
    cache = extract.extract(address_spec(), few, tmp_path / "caches")
    assert not cache.failures


def test_the_sample_is_spread_by_frames(built, tmp_path):
    some = write_subset(built, address_spec(), 60, tmp_path)
    found = {
        Path(some.root / clip.source).resolve().name for clip in some.clips if clip.split == "train"
    }
    assert len(found) == 3
    assert (
        sum(
            fact.frames_from_header for name, fact in some.facts.items() if name.startswith("train")
        )
        > 40
    )


@pytest.mark.slow
def test_a_video_whose_header_promises_much_and_that_holds_nothing_does_not_stand_for_all(
    built, tmp_path
):
    root = tmp_path / "videos"
    for video in built.videos:
        (root / video.source).parent.mkdir(parents=True, exist_ok=True)
        (root / video.source).symlink_to(built.root / video.source)
    whole = encode(tmp_path / "whole.mp4", [grey(level) for level in range(250)] * 8)
    data = whole.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    (root / "a/empty.mp4").write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    videos = manifest.build("folder", root, tmp_path / "data", {"val_fraction": 0.0})
    assert any(video.source == "a/empty.mp4" for video in videos.videos)
    for wanted in (30, 60):
        some = write_subset(videos, address_spec(), wanted, tmp_path / str(wanted))
        assert (
            some.videos
            and not extract.extract(address_spec(), some, tmp_path / f"caches{wanted}").failures
        )


def test_nothing_stays_of_a_trial(place, tmp_path):
    out = tmp_path / "caches"
    made = measure.measure_stages(
        load_spec(place.spec),
        manifest.Manifest.load(place.data),
        load_recipe(place.recipe),
        str(out),
        CPU,
        1,
        0.2,
        lambda _: None,
    )
    assert not out.exists()
    assert made.frames >= 2 * 4
    assert max(made.decode_s, made.encode_s) <= made.frame_s
    numbers = made.model_dump(exclude={"read_cold_bytes_per_s"}).values()
    assert all(number > 0 for number in numbers if number != made.start_s) and made.start_s >= 0


def test_steps_of_an_extraction_take_what_its_receipts_say(built, tmp_path):
    spec = address_spec(views=[{"name": "flip", "flip": True}])
    encoder = make_encoder(spec, CPU)
    found = measure.timed_extraction(spec, built, encoder, str(tmp_path), CPU, 2)
    receipts = found.cache.receipts.values()
    assert found.frames == sum(receipt.frames for receipt in receipts)

    def work_s(step):
        return sum(receipt.seconds[step] for receipt in receipts) / found.frames

    assert found.write_s == pytest.approx(work_s("write"))
    assert found.decode_s == pytest.approx(min(work_s("decode"), 2 * found.frame_s))
    assert 2 * found.encode_s == pytest.approx(min(work_s("encode"), found.frame_s))


def test_a_stopped_training_ends_after_its_step_and_saves_nothing(vit_cache, tmp_path):
    asked, seen = load_recipe(write(tmp_path / "tiny.toml", RECIPE)), []
    context = RunContext.of(vit_cache, device=CPU)
    tasks, *windows = loop.open_windows([asked], context)
    trainers = loop.make_trainers({tmp_path / "run": asked}, tasks, windows[0], context)

    def stop(progress):
        seen.append(progress.step)
        training.stop()

    training = loop.TrainLoop(trainers, *windows, context, stop)
    training.fit()
    assert seen == [1] and asked.training.steps > 1
    assert not list((tmp_path / "run").glob("last*"))


def test_with_a_slow_encoder_a_step_is_tried_with_fewer_windows(vit_cache, tmp_path, monkeypatch):
    sizes = []
    read = UncachedReader.read

    def noted(self, samples):
        sizes.append(len(samples))
        return read(self, samples)

    monkeypatch.setattr(UncachedReader, "read", noted)
    asked, encoder = (
        load_recipe(write(tmp_path / "tiny.toml", RECIPE)),
        load_encoder(vit_cache, CPU),
    )
    batch, frames = asked.training.batch_size, asked.windows.frames
    found = {}
    for name, encode_s in (("fast", 1e-9), ("slow", 1e9)):
        sizes.clear()
        found[name] = measure.timed_step(
            asked, vit_cache, tmp_path / name, CPU, 0.1, measure.InLoop(encoder, 1, encode_s)
        )
        assert (
            set(sizes) == {batch if name == "fast" else 1}
            and len(sizes) > measure.BATCHES_AHEAD + measure.LEAST_STEPS
        )
    assert batch > 1 and frames > 1 and min(found.values()) > 0


def test_a_trial_at_a_url_leaves_nothing_there(place, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLFRAME_DISK_CACHE", str(tmp_path / "disk"))
    url = f"memory://{tmp_path.name}/caches"
    made = fine(
        "plan", place.spec, place.data, place.recipe, "--out", url, "--measure-s", 0.2, "--json"
    ).json
    assert (
        made["speed"]["read_cold_bytes_per_s"] is None and made["speed"]["read_hot_bytes_per_s"] > 0
    )
    assert open_storage(url).sizes("") == {}


# Command line


@pytest.fixture(scope="module")
def tried(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return fine(
        "plan",
        place.spec,
        place.data,
        place.recipe,
        "--out",
        out,
        "--measure-s",
        0.5,
        "--device",
        "cpu",
        "--json",
    ).json


def test_plan_as_data(tried, place):
    assert (tried["spec"], tried["recipe"], tried["runs"]) == ("address", "tiny", 8)
    times = tried["times"]
    assert times["uncached_epoch_s"] > 0 and times["cached_epoch_s"] > 0
    saved_s = times["uncached_epoch_s"] - times["cached_epoch_s"]
    assert times["break_even"] == (
        pytest.approx(times["extract_s"] / saved_s) if saved_s > 0 else None
    )


def test_plan_as_tables(place, tmp_path):
    shown = fine(
        "plan",
        place.spec,
        place.data,
        place.recipe,
        "--out",
        tmp_path,
        "--measure-s",
        0.2,
        "--ablations",
        2,
    )
    for part in (
        "frames/s",
        "float16 (the spec's)",
        "operations of a window",
        "training step, un-cached",
        "caching",
    ):
        assert part in shown.out
    assert "nan" not in shown.out
    assert list(tmp_path.iterdir()) == []


def test_plan_of_hours_in_words(place):
    shown = fine(
        "plan", place.spec, "--hours-of-video", 2, "--set", "frames.fps=5", "--measure-s", 0
    )
    assert "36,000" in shown.out and "2.00 h" in shown.out
    assert "no recipe" in shown.out and "--measure-s 0" in shown.out
    million = fine("plan", place.spec, "--measure-s", 0)
    assert "1,000,000" in million.out


def test_plan_says_when_caching_does_not_pay(place, tmp_path):
    """By operations alone: every frame is encoded once, but an epoch sees few of them."""
    (tmp_path / "vit.toml").write_text(VIT.replace("[0, 7]", "[0, 1]"))
    (tmp_path / "short.toml").write_text(RECIPE.replace("steps = 3", "epochs = 0.1"))
    asked = (
        "plan",
        tmp_path / "vit.toml",
        place.data,
        tmp_path / "short.toml",
        "--measure-s",
        0,
        "--ablations",
    )
    assert "caching does not pay for 1 run" in fine(*asked, 1).out
    assert "caching pays for 1000 runs" in fine(*asked, 1000).out


def test_plan_takes_a_recipe_without_data(place):
    made = fine("plan", place.spec, place.recipe, "--frames", 400, "--measure-s", 0, "--json").json
    assert (made["recipe"], made["training"]["windows"]) == ("tiny", 100)


def test_plan_refuses(place, tmp_path):
    assert_refused(call("plan", tmp_path / "no.toml"), "no.toml")
    assert_refused(call("plan", place.spec, tmp_path, "--measure-s", 0), "is no manifest")
    assert_refused(
        call("plan", place.spec, place.data, "demo_gruu", "--measure-s", 0),
        "no recipe called 'demo_gruu'",
    )
    assert_refused(
        call("plan", place.spec, place.data, "--frames", 10), "a manifest says how many frames"
    )
    assert_refused(call("plan", place.spec, "--hours-of-video", 1), "a spec with a rate")
    slow = ("--set", "frames.fps=4", "--measure-s", 0)
    assert_refused(
        call("plan", place.spec, place.data, place.recipe, *slow),
        "windows want 10",
        "spec 'address' holds 4",
    )
    other = tmp_path / "views.toml"
    other.write_text(RECIPE.replace("[training]", 'views = ["flip"]\n[training]'))
    assert_refused(
        call("plan", place.spec, place.data, other, "--measure-s", 0), "wants the view 'flip'"
    )
    assert_refused(
        call("plan", place.spec, place.data, "--root", tmp_path, "--measure-s", 0),
        "none of the 6 videos",
    )
    assert_refused(
        call("plan", place.spec, place.data, "demo_boxes", "--set", "frames.fps=12"), "boxes"
    )


# The loops that are compared


@pytest.fixture(scope="module")
def vit_cache(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    (folder / "vit.toml").write_text(VIT.replace("[0, 7]", "[0, 1]"))
    return extract.extract(load_spec(folder / "vit.toml"), built, folder)


def test_both_loops_see_the_same_tokens_and_begin_with_the_same_loss(vit_cache, tmp_path):
    asked = load_recipe(write(tmp_path / "tiny.toml", RECIPE))
    cache, videos = vit_cache, vit_cache.manifest
    task = plugins.load("task", "classify")(asked.task.settings, videos.labels)
    settings = {
        "settings": asked.windows,
        "wanted": task,
        "layers": layers_read(asked, cache.shape),
    }
    cached, live = (Windows(cache, videos, "train", **settings) for _ in range(2))
    samples = [cached.order.sample(number) for number in range(6)]
    with UncachedReader(live, load_encoder(cache, CPU), 2, CPU) as live.reader:
        ours, theirs = cached.read(samples), live.read(samples)
        (special, patches), (special_live, patches_live) = (
            cached.tokens(ours, CPU),
            live.tokens(theirs, CPU),
        )
    assert (ours.time_s_BT == theirs.time_s_BT).all() and (
        ours.clip_index == theirs.clip_index
    ).all()
    for a, b in zip((special, *patches), (special_live, *patches_live), strict=True):
        torch.testing.assert_close(a.float(), b.half().float(), rtol=2e-3, atol=1e-4)
        assert not b.is_inference()
    epochs = {
        way: bench_epoch.epoch(way, [asked], cache, tmp_path / way, 2, CPU)
        for way in bench_epoch.WAYS
    }
    assert epochs["cached"].steps == epochs["uncached"].steps == math.ceil(len(cached) / 2)
    assert epochs["cached"].losses[0][0] == pytest.approx(epochs["uncached"].losses[0][0], rel=1e-3)
    other = asked.model_copy(update={"training": asked.training.model_copy(update={"seed": 7})})
    both = bench_epoch.epoch("cached", [asked, other], cache, tmp_path / "both", 2, CPU)
    alone = bench_epoch.epoch("cached", [other], cache, tmp_path / "alone", 2, CPU)
    assert both.losses == [*epochs["cached"].losses, *alone.losses] and both.steps == alone.steps
    epochs |= {"both": both}
    assert set(epochs["uncached"].parts) == {"decode", "encode", "optimiser", "model", "waiting"}
    assert set(epochs["cached"].parts) == {"read", "codec", "optimiser", "model", "waiting"}
    for each in epochs.values():
        within = sum(
            seconds for part, seconds in each.parts.items() if part not in bench_epoch.BESIDE
        )
        assert within == pytest.approx(each.seconds) and min(each.parts.values()) > 0


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


WHATS = ("extract", "disk bytes", "cached epoch", "uncached epoch")
TINY = ["--spec", "cache_specs/demo.toml", "--set", "training.batch_size=4", "--device", "cpu"]


@pytest.mark.slow
def test_bench_epoch():
    result = fine("bench", "epoch", *TINY, "--clips", 2, "--ablations", 2, "--json").json
    epochs = result["epochs"]
    pairs = zip(epochs["cached"]["s"], epochs["uncached"]["s"], strict=True)
    assert result["ratio"] == statistics.median(b / a for a, b in pairs)
    assert result["runs"]["cached"] == pytest.approx(
        result["extract_s"] + sum(epochs["cached"]["s"])
    )
    assert result["runs"]["uncached"] == pytest.approx(sum(epochs["uncached"]["s"]))
    assert (
        result["runs"]["sweep"] == result["extract_s"] + result["sweep_s"] and result["sweep_s"] > 0
    )
    assert result["size"]["frames"] == 16 * 24


@pytest.mark.slow
def test_bench_plan(monkeypatch):
    monkeypatch.setattr("pipeline.cli.bench.plan.LEAST_STEPS", 3)
    shown = fine("bench", "plan", *TINY, "--clips", 2, "--repeats", 1, "--measure-s", 0.5).out
    rows = {
        what: re.search(rf"384 +{what} .* (\d+\.\d+) +(\d+\.\d+) \.\. (\d+\.\d+)", shown)
        for what in WHATS
    }
    assert float(rows["disk bytes"][1]) == pytest.approx(1, abs=0.003)
    assert all(row[1] == row[2] == row[3] for row in rows.values())  # one round


def test_operations_of_the_parts_are_those_of_costs(place):
    spec, asked = load_spec(place.spec), load_recipe(place.recipe)
    made = plan(spec, None, 100, asked, 1, None, 1).operations
    parts = profile.flops(asked, token_shape(spec), ("one", "two"))
    assert (made.mixer, made.temporal, made.readout) == tuple(parts.values())
