"""A run on a video as it comes: what a stream says is what a window over the cached tokens says."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.broken_media import hanging_video, impatient, memory_bomb
from support.commands import assert_refused, call
from support.material import FPS, address_video

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput, BadVideo
from pipeline.models.encoders import address
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.stream import Stream, trained_image_fps
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.windows import Windows


def recipe(temporal: str, forms: tuple[str, ...] = ("streaming",), **task: object) -> Recipe:
    plugin = plugins.load("temporal", temporal)
    small = {"layers": 1, "heads": 2, "state": 3, "history": 8}
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 16, "heads": 2, "forms": forms, **task},
        "temporal": {
            "name": temporal,
            **{key: value for key, value in small.items() if key in plugin.Settings.model_fields},
        },
        "windows": {"frames": 4, "fps": FPS},
        "model": {"width": 32},
        "training": {"steps": 3, "batch_size": 4, "warmup_steps": 1},
    }
    return plugins.validate(Recipe, table, "test")


@pytest.fixture(scope="module")
def run(material, tmp_path_factory):
    return train(recipe("gated_mamba_mix"), material.cache, tmp_path_factory.mktemp("run"))


@torch.no_grad()
def test_a_stream_says_what_a_window_says(material, run):
    model, task = load_model(run, material.cache.shape)
    windows = Windows(
        material.cache,
        material.manifest,
        "val",
        run.recipe.windows,
        task,
        material.cache.shape.layers,
    )
    for place in range(len(windows)):
        batch = windows.read([WindowRef(place, 0.0)])
        expected = model(*windows.tokens(batch, torch.device("cpu")))["streaming"][0]
        seen = list(Stream(run).follow(material.root / windows.clip(place).source))
        assert len(seen) == len(windows.index.clip_rows[place].time_s)
        for t, frame in enumerate(seen[:4]):
            assert frame.time_s == batch.time_s_BT[0, t]
            np.testing.assert_allclose(frame.answer, expected[t], atol=1e-5)


def test_a_stream_is_not_bounded_by_the_window(material, run, tmp_path):
    video = address_video(tmp_path / "long.mp4", 3, 150)
    stream = Stream(run)
    seen = list(stream.follow(video))
    assert len(seen) == 150 and all(np.isfinite(frame.answer).all() for frame in seen)
    assert stream.state_bytes == stream.model.temporal.state_bytes(stream.model.tokens_per_frame)
    again = list(stream.follow(video))
    assert all(np.array_equal(a.answer, b.answer) for a, b in zip(seen, again, strict=True))


def test_frames_are_sampled_at_the_rate_of_the_windows(material, tmp_path):
    slow = recipe("gru").model_copy(
        update={"windows": recipe("gru").windows.model_copy(update={"fps": FPS / 2})}
    )
    stream = Stream(train(slow, material.cache, tmp_path / "run"))
    seen = list(stream.follow(material.root / "a/v0.mp4"))
    np.testing.assert_allclose([frame.time_s for frame in seen], np.arange(0, 31, 2) / FPS)


@pytest.mark.parametrize("kind", ["hang", "bomb"])
def test_a_stream_ends_where_its_decoder_hangs_or_eats_all_memory(run, tmp_path, monkeypatch, kind):
    """The frames before that are answered, and the video is named with the reason."""
    if kind == "hang":
        impatient(monkeypatch)
        path, reason = hanging_video(tmp_path / "hang.mkv"), "hang.mkv: decoder made no progress"
    else:
        impatient(monkeypatch, memory_mb=300)
        path, reason = memory_bomb(tmp_path / "bomb"), "bomb: decoding needs more than 300 MB"
        (path / "timestamps.txt").write_text("0.0 0.1 0.2")
    seen = []
    with pytest.raises(BadVideo, match=reason):
        seen.extend(frame.time_s for frame in Stream(run).follow(path))
    assert seen == pytest.approx([number / FPS for number in range(len(seen))]) and seen


def test_the_command_prints_one_line_for_each_frame(material, run, tmp_path):
    result = call(
        "stream", run.path, material.root / "a/v1.mp4", "--draw", tmp_path / "drawn/v1.mp4"
    )
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 0 and len(lines) == 8 and "8 answers, " in result.err
    assert [line["time_s"] for line in lines] == pytest.approx(list(np.arange(8) / FPS))
    assert all(line["label"] in ("a", "b") and 0.5 <= line["probability"] <= 1 for line in lines)
    with av.open(tmp_path / "drawn/v1.mp4") as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 8 and min(frames[0].shape[:2]) >= 64


def test_bad_input_is_named(material, run, tmp_path):
    video = material.root / "a/v1.mp4"
    assert_refused(call("stream", run.path, tmp_path / "no.mp4"), "no.mp4")
    assert_refused(call("stream", tmp_path, video), f"{tmp_path} is not a run")
    assert_refused(call("stream", run.path, video, "--query", "{"), "--query is not JSON")
    assert_refused(
        call("stream", run.path, video, "--query", "[1]"), "wants a JSON object, found [1]"
    )
    assert_refused(
        call("stream", run.path, video, "--query", '{"boxes": []}'),
        "follows nothing that could be named, found boxes",
    )
    assert_refused(
        call("stream", run.path, video, "--set", "layers=[2, 4]"),
        "other weights, layers or another configuration",
    )
    assert_refused(call("stream", run.path, video, "--set", "layerz=[2]"), "layerz")
    window_only = train(recipe("gru", ("window",)), material.cache, tmp_path / "window")
    with pytest.raises(BadInput, match="only in the form window"):
        Stream(window_only)


def test_a_folder_of_images_is_followed_at_the_rate_that_is_given(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.fromarray(address.paint(0, number, 64)).save(images / f"{number}.png")

    def times(*options: object) -> list[float]:
        result = call("stream", run.path, images, *options)
        assert result.code == 0, result
        return [json.loads(line)["time_s"] for line in result.out.splitlines()]

    assert times("--image-fps", FPS) == [number / FPS for number in range(8)]
    assert len(times("--image-fps", 5)) == 16  # every image is on screen twice as long
    (images / "timestamps.txt").write_text("".join(f"{number / FPS}\n" for number in range(8)))
    assert times() == [number / FPS for number in range(8)]


def test_a_folder_of_images_has_the_rate_of_the_data_set_or_says_how_to_give_one(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(10):
        Image.fromarray(address.paint(0, number, 64)).save(images / f"{number}.png")
    result = call("stream", run.path, images)  # the data set says 25 a second
    assert result.code == 0 and json.loads(result.out.splitlines()[1])["time_s"] == 0.08
    told = f"{images}: 25 images a second, as in training; --image-fps sets another\n"
    assert result.err.startswith(told)
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    header = json.loads((copy / "run.json").read_text())
    gone = header | {"cache_path": str(tmp_path / "gone"), "manifest_path": None}
    (copy / "run.json").write_text(json.dumps(gone | {"checksum": None}))
    assert trained_image_fps(Run(copy)) is None
    assert_refused(call("stream", copy, images), "images have no times", "--image-fps 25")
    nope = call("stream", run.path, "nope.mp4")
    assert_refused(nope, "video nope.mp4 does not exist; next: looked for /")


def frames_of(path: Path) -> list[tuple[np.ndarray, float]]:
    """The frames of a video as anybody decodes them, with their times."""
    with av.open(path) as file:
        return [
            (frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in file.decode(video=0)
        ]


def test_frames_of_ones_own_are_answered_as_those_of_a_file(material, run):
    video = material.root / "a/v1.mp4"
    stream = Stream(run)
    expected = list(stream.follow(video))
    for _ in range(2):  # after a reset it begins anew
        seen = [stream.step(pixels_HWC, time_s) for pixels_HWC, time_s in frames_of(video)]
        assert [frame.time_s for frame in seen] == [frame.time_s for frame in expected]
        for own, of_file in zip(seen, expected, strict=True):
            np.testing.assert_array_equal(own.pixels_HWC, of_file.pixels_HWC)
            np.testing.assert_array_equal(own.affine_23, of_file.affine_23)
            np.testing.assert_array_equal(own.answer, of_file.answer)
        stream.reset()


@pytest.mark.parametrize("temporal", ["gated_mamba_mix", "causal_attention"])
def test_a_copy_of_a_stream_goes_on_by_itself(material, tmp_path, temporal):
    stream = Stream(train(recipe(temporal), material.cache, tmp_path / "run"))
    frames = frames_of(material.root / "a/v1.mp4")
    stream.step(*frames[0])
    other = copy.copy(stream)
    assert other.model is stream.model
    of_other = other.step(*frames[5]).answer
    own = [stream.step(*frame).answer for frame in frames[1:]]
    expected = list(stream.follow(material.root / "a/v1.mp4"))[1:]
    for answer, frame in zip(own, expected, strict=True):
        np.testing.assert_array_equal(answer, frame.answer)
    assert not np.array_equal(of_other, own[0])


def test_of_a_faster_camera_the_frames_that_are_due_keep_the_pace(run, material):
    stream = Stream(run)
    pixels, _ = frames_of(material.root / "a/v1.mp4")[0]
    given = []
    for number in [*range(60), *range(75, 90)]:  # at 30 frames a second, and half a second is lost
        if stream.is_due(number / 30 + 7):
            stream.step(pixels, number / 30 + 7)
            given.append(number)
    assert given == [*range(0, 60, 3), *range(75, 90, 3)]
    stream.reset()
    assert stream.is_due(0.0)
    of_25 = []
    for number in range(50):  # 25 do not divide by ten: every instant has the next frame
        if stream.is_due(number / 25):
            stream.step(pixels, number / 25)
            of_25.append(number)
    assert of_25 == sorted([*range(0, 50, 5), *range(3, 50, 5)])


def test_a_frame_that_cannot_be_one_is_refused_and_nothing_is_forgotten(run, material):
    stream = Stream(run)
    (first, _), (second, _), *_ = frames_of(material.root / "a/v1.mp4")
    stream.step(first, 5.0)

    def refusal(pixels: np.ndarray, time_s: float, **more: float) -> str:
        with pytest.raises(BadInput) as refused:
            stream.step(pixels, time_s, **more)
        return refused.value.with_hint

    assert refusal(second[..., 0], 6) == (
        "frames are uint8 (F, H, W, 3), found uint8 (1, 64, 64) (RGB, upright; a tensor (F, 3, H, W): "
        "frames.permute(0, 2, 3, 1).numpy())"
    )
    assert "found float32 (1, 64, 64, 3)" in refusal(second.astype(np.float32), 6)
    assert "found uint8 (1, 0, 64, 3)" in refusal(second[:0], 6)
    assert refusal(second, float("nan")) == "a frame has a time in seconds, found nan"
    assert refusal(second, 6, pixel_aspect=0) == "the aspect of pixels is above 0, found 0"
    assert refusal(second, 5) == (
        "the frame at 5 s does not come after the last one, at 5 s (begin a new stream: "
        "stream.reset())"
    )
    assert refusal(second, 5.01) == (
        "the frame at 5.01 s comes 0.01 s after the last one; this run has learnt 10 frames a "
        "second (give those for which stream.is_due(time_s))"
    )
    again = Stream(run)
    again.step(first, 0.0)
    expected = again.step(second, 1 / FPS)
    np.testing.assert_array_equal(stream.step(second, 5 + 1 / FPS).answer, expected.answer)
