"""What a run says of frames to come, over a split and in a stream: which frames are scored, by what, and which
runs go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.commands import assert_refused, call

from pipeline.cache.cache import Cache
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest.manifest import build
from pipeline.errors import BadInput
from pipeline.extract.extract import extract
from pipeline.models.ahead import FORECAST, NOW, ORACLE, ReadAhead, answers_ahead
from pipeline.models.tasks.forecasts.pairs import told_from
from pipeline.train.ahead.pair import horizons_of, require_pair
from pipeline.train.ahead.scores import evaluate_ahead, frames_told
from pipeline.train.ahead.stream import StreamAhead
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.setup import RunContext
from pipeline.train.stream import Stream
from pipeline.train.windows.index import WindowRef

CPU = torch.device("cpu")
FPS, FRAMES = 6, 12
SMALL = {
    "training.steps": 2,
    "training.batch_size": 4,
    "windows.frames": FRAMES,
    "windows.fps": FPS,
    "task.readout_width": 8,
    "task.heads": 2,
    "model.width": 8,
}
DEPTH = {"task.size_px": 14, "task.patch_px": 7}
FORECAST_SETS = {"task.horizons_s": [0.5, 1.0], "task.pairs": 2, "task.places": 3}


def recipe(name: str, **changes: object) -> Recipe:
    settings = {key: value for key, value in (SMALL | changes).items() if value is not None}
    sets = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_recipe(shipped("recipe")[name], sets)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Cache:
    """Twelve clips of two seconds, with a random encoder, of which two layers are recorded."""
    folder = tmp_path_factory.mktemp("room")
    dials = {"scene": "room", "clips_per_class": 2, "val_fraction": 0.5, "size_px": 32}
    videos = build("world", None, folder / "data", dials)
    spec = load_spec(shipped("spec")["demo"], ["encoder.layers=[0,1]", "frames.size_px=32"])
    return extract(spec, videos, folder / "caches")


@pytest.fixture(scope="module")
def runs(room, tmp_path_factory) -> dict[str, Run]:
    """Readers of three tasks, a forecaster of a step or two, and one before its first step."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {
        "depth": recipe("demo_depth", **DEPTH),
        "boxes": recipe("demo_boxes"),
        "classify": recipe("demo_classify"),
        "forecast": recipe("demo_forecast", **FORECAST_SETS),
    }
    made = {name: train(each, room, folder / name) for name, each in recipes.items()}
    made["copies"] = before_training(made["forecast"], folder / "copies")
    moved = before_training(made["forecast"], folder / "moves", 0.5)
    return made | {"moves": moved}


def before_training(run: Run, path: Path, drawn: float = 0.0) -> Run:
    """The run with a last layer of zeros, as it is before the first step; or of drawn numbers."""
    shutil.copytree(run.path, path)
    copy = Run(path)
    tensors = copy.tensors("last")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.startswith("model.readouts.streaming.head.out."):
            tensors[name] = drawn * torch.randn(tensor.shape, generator=generator)
    copy.save("last", tensors, step=2, steps=2, best=None)
    return copy


def ahead_of(runs: dict[str, Run], name: str, forecaster: str, room: Cache, *ahead_s: float):
    return evaluate_ahead(runs[name], runs[forecaster], RunContext.of(room, device=CPU), ahead_s)


@pytest.mark.parametrize("name", ["depth", "boxes", "classify"])
def test_a_forecaster_before_training_scores_as_a_copy(runs, room, name):
    result = ahead_of(runs, name, "copies", room)
    assert [at.ahead_s for at in result.horizons] == [0.5, 1.0]
    for at in result.horizons:
        assert at.answers["forecast"] == at.answers["copy"]
        assert at.gains["copy"].score == at.gains["copy"].low == at.gains["copy"].high == 0
    moved = ahead_of(runs, name, "moves", room)
    same = [
        one.answers["copy"] == other.answers["copy"]
        for one, other in zip(result.horizons, moved.horizons, strict=True)
    ]
    assert all(same) and moved.forecaster.sha256 != result.forecaster.sha256


def test_gains_are_signed_so_that_more_is_better(runs, room):
    for name, sign in (("depth", -1), ("boxes", 1)):
        for at in ahead_of(runs, name, "moves", room, 0.5).horizons:
            metric = {"depth": "AbsRel", "boxes": "mIoU"}[name]
            for baseline, gain in at.gains.items():
                ours, theirs = (at.answers[way][metric].score for way in ("forecast", baseline))
                assert gain.score == pytest.approx(sign * (ours - theirs), abs=1e-9)
                assert gain.low <= gain.score <= gain.high
            assert at.gains["trivial"].score != 0
            assert name == "boxes" or at.gains["copy"].score != 0


def test_scores_are_those_of_the_frames_that_are_told(runs, room):
    """Twelve frames, six a second: half a second ahead, frames 6 to 11 are told after 3 to 8. By
    hand: depth of these frames, the boxes in them, the share of them in which the label is named."""
    context = RunContext.of(room, device=CPU)
    for name in ("depth", "boxes", "classify"):
        run = runs[name]
        model, task = load_model(run, room.shape, device=CPU)
        windows = context.windows("val", run.recipe, task, model.layers)
        (at,) = ahead_of(runs, name, "moves", room, 0.5).horizons
        (batch,) = windows.evaluation(64)
        device_batch = windows.on_device(batch, CPU)
        patches = [device_batch.patches[layer] for layer in model.layers]
        with torch.inference_mode():
            said = model(device_batch.special_BTSD, patches, task.query(device_batch.targets))
        said_BT = said["streaming"]
        assert at.frames == len(batch) * 6
        if name == "depth":
            truth, told = batch.targets["depth_m"][:, 6:], said_BT[:, 6:].numpy()
            errors = np.abs(told.clip(0.001, 10) - truth)[truth > 0] / truth[truth > 0]
            by_window = [
                np.mean(np.abs(each.clip(0.001, 10) - true)[true > 0] / true[true > 0])
                for each, true in zip(told, truth, strict=True)
            ]
            assert errors.size and at.answers["oracle"]["AbsRel"].score == pytest.approx(
                np.mean(by_window), rel=1e-5
            )
            before = said_BT[:, 3:9].numpy()
            by_window = [
                np.mean(np.abs(each.clip(0.001, 10) - true)[true > 0] / true[true > 0])
                for each, true in zip(before, truth, strict=True)
            ]
            assert at.answers["now"]["AbsRel"].score == pytest.approx(np.mean(by_window), rel=1e-5)
        elif name == "classify":
            right = said_BT[:, 6:].argmax(-1).numpy() == batch.targets["label"][:, None]
            assert at.answers["oracle"]["top-1"].score == pytest.approx(right.mean())
        else:
            valid = batch.targets["boxes_valid"][:, 6:]
            still = task.trivial(batch.targets, {})[:, 6:][valid]
            from_truth = batch.targets["boxes"][:, 6:][valid]
            overlap = [_iou(*pair) for pair in zip(still, from_truth, strict=True)]
            assert at.answers["trivial"]["mIoU"].score == pytest.approx(np.mean(overlap), rel=1e-5)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = np.prod(np.maximum(high - low, 0))
    areas = [np.prod(box[2:] - box[:2]) for box in (one, other)]
    return float(common / (sum(areas) - common))


def test_it_is_kept_beside_an_evaluation_that_it_does_not_touch(runs, room, capsys):
    run = runs["boxes"]
    evaluate(run, room)
    before = (run.path / "evaluation-val.json").read_bytes()
    result = call(
        *("evaluate", run.path, "--forecaster", runs["moves"].path),
        *("--ahead", 0.5, "--ahead", 0.17, "--check-causal"),
    )
    assert result.code == 0, result.err
    assert (run.path / "evaluation-val.json").read_bytes() == before
    digest = ahead_of(runs, "boxes", "moves", room, 0.5, 1 / 6).forecaster.sha256
    kept = json.loads((run.path / f"ahead-val-{digest[:8]}.json").read_text())
    assert kept["forecaster"] == {"run": "moves", "step": 2, "sha256": digest}
    assert [round(at["ahead_s"], 3) for at in kept["horizons"]] == [0.167, 0.5]
    assert kept["clips"] == 6 and kept["videos"] == 6 and kept["notes"] == []
    for at in kept["horizons"]:
        for words in (
            f"{at['ahead_s']:.3g} s",
            f"{at['answers']['forecast']['mIoU']['score']:.3f}",
        ):
            assert words in result.out
    assert "causal: in 4 windows nothing that is said" in result.out
    as_json = call("evaluate", run.path, "--forecaster", runs["moves"].path, "--json")
    assert [at["ahead_s"] for at in json.loads(as_json.out)["horizons"]] == [0.5, 1.0]


def test_more_than_was_learnt_is_said(runs, room):
    result = ahead_of(runs, "depth", "forecast", room, 8 / 6)
    assert result.notes == (
        f"run {runs['forecast'].path} has learnt to tell up to 1 s ahead, and no more",
    )


def test_frames_past_the_end_of_a_clip_are_not_scored(runs, room, tmp_path):
    """Windows of three seconds over clips of two: frame 12 is the last one of the clip, and the five
    after it repeat it."""
    long = train(recipe("demo_depth", **DEPTH, **{"windows.frames": 18}), room, tmp_path / "long")
    context = RunContext.of(room, device=CPU)
    result = evaluate_ahead(long, runs["moves"], context, (0.5,))
    # Three frames after those behind the first quarter of 18, which is 4 of them.
    assert result.horizons[0].frames == result.clips * len(range(4 + 3, 13))


def test_nothing_is_told_across_a_camera_cut():
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randn(2, 6, 32, generator=generator)
    drift = 0.05 * torch.randn(12, 6, 32, generator=generator).cumsum(0)
    patches_BTPD = (scenes[[0] * 7 + [1] * 5] + drift)[None]
    (from_BT,) = frames_told(np.arange(12)[None] / FPS, (0.5,), patches_BTPD)
    assert from_BT[0].tolist() == [-1] * 6 + [3, -1, -1, -1, 7, 8]


def test_runs_that_do_not_go_together_are_refused(runs, room, tmp_path):
    def made(name: str, cache: Cache = room, **changes: object) -> Run:
        return train(recipe(name, **changes), cache, tmp_path / f"{name}-{len(changes)}")

    depth, forecast = runs["depth"], runs["forecast"]
    with pytest.raises(BadInput, match="boxes is no forecaster: its task is 'boxes'"):
        require_pair(depth, runs["boxes"])
    with pytest.raises(BadInput, match="an answer of task 'forecast' is not about a single frame"):
        require_pair(forecast, forecast)
    with pytest.raises(BadInput, match="an answer of task 'pose' is not about a single frame"):
        require_pair(made("demo_pose", **{"task.heads": None}), forecast)
    window = made("demo_classify", **{"task.forms": ["window"]})
    with pytest.raises(BadInput, match="answers only in the form window, and not frame by frame"):
        require_pair(window, forecast)
    whole = made(
        "demo_forecast", **FORECAST_SETS, **{"task.memory": "all", "task.head": "attention"}
    )
    with pytest.raises(BadInput, match="answers only in the form window.*") as refused:
        require_pair(depth, whole)
    assert 'task.memory = "state"' in refused.value.hint
    shallow = made("demo_depth", **DEPTH, **{"model.layers": [0]})
    with pytest.raises(BadInput, match="reads layer 0, run .*forecast forecasts layer 1 alone"):
        require_pair(shallow, forecast)
    both = made("demo_classify", **{"model.mixer": "mlp", "task.label_smoothing": 0.1})
    with pytest.raises(BadInput, match="reads layer 0, 1, run .*forecasts layer 1 alone"):
        require_pair(both, forecast)
    slow = made("demo_depth", **DEPTH, **{"windows.fps": 4, "windows.frames": 8, "model.width": 9})
    with pytest.raises(BadInput, match="at another pace: windows.fps = 4 and fps = 6"):
        require_pair(slow, forecast)
    shuffled = {"windows.shuffle": True, "task.label_smoothing": 0.1, "model.width": 9}
    with pytest.raises(BadInput, match="was trained with windows.shuffle = true"):
        require_pair(made("demo_classify", **shuffled), forecast)
    spec = load_spec(
        shipped("spec")["demo"],
        ["encoder.layers=[0,1]", "frames.size_px=32", 'codec.name="bfloat16"'],
    )
    cache = extract(spec, room.manifest, tmp_path / "caches")
    other = made("demo_depth", cache, **DEPTH, **{"training.steps": 1, "model.width": 9})
    with pytest.raises(BadInput, match='codec.name: "bfloat16" / "float16"'):
        require_pair(other, forecast)


def test_horizons_are_whole_steps_that_differ_and_fit(runs):
    assert horizons_of([1, 0.16], 1 / 6, 12) == pytest.approx((1 / 6, 1))
    assert horizons_of([0.3], None) == (0.3,)
    for asked_s, words, hint in (
        ([0.5, 0.52], "0.5 s and 0.52 s ahead are the same frame of windows at 6", "leave one"),
        ([1.5], "windows of 12 frames, 0.167 s apart, are too short for what comes in 1.5", "1.33"),
        ([0.05], "0.05 s ahead is less than half a step of windows at 6", "--ahead 0.167"),
        ([0], "wanted more than 0 s, found 0", "--ahead 0.5"),
        ([float("nan")], "wanted more than 0 s, found nan", "--ahead 0.5"),
    ):
        with pytest.raises(BadInput, match=words) as refused:
            horizons_of(asked_s, 1 / 6, 12)
        assert hint in refused.value.hint
    assert horizons_of([8 / 6], 1 / 6, 12) == pytest.approx((8 / 6,))
    depth, moves = runs["depth"].path, runs["moves"].path
    assert_refused(call("evaluate", depth, "--ahead", 1), "nobody forecasts")
    assert_refused(call("evaluate", depth, "--forecaster", moves, "--draw", 1), "--draw draws")
    assert_refused(
        call("evaluate", depth, "--forecaster", moves, "--ahead", 3), "12 frames, 0.167 s apart"
    )


@pytest.mark.parametrize("name", ["depth", "boxes", "classify"])
def test_a_stream_tells_ahead_what_is_scored(runs, room, name):
    """The first window of a video, and the stream of it: now, and half a second ahead."""
    run, forecaster = runs[name], runs["moves"]
    model, task = load_model(run, room.shape, device=CPU)
    tells, _ = load_model(forecaster, room.shape, device=CPU)
    windows = RunContext.of(room, device=CPU).windows("val", run.recipe, task, model.layers)
    batch = windows.read([WindowRef(0, 0.0)])
    seen_s_BT = batch.time_s_BT - batch.time_s_BT[:, :1]
    from_KBT = told_from(seen_s_BT[0], 0.5)[None, None]
    device_batch = windows.on_device(batch, CPU)
    told = answers_ahead(ReadAhead(model, tells), task, device_batch, seen_s_BT, from_KBT)
    asked = {}
    if name == "boxes":
        boxes_O4 = batch.targets["boxes"][0, 0]
        asked = {"boxes": boxes_O4.tolist()}
    stream = StreamAhead(run, forecaster, (0.5, 1 / 6), CPU)
    seen = list(stream.follow(room.manifest.root / windows.clip(0).source, asked))
    assert len(seen) == FRAMES and list(seen[0].ahead) == ["0.167", "0.5"]
    for time, frame in enumerate(seen):
        np.testing.assert_allclose(frame.answer, _as_window(told[ORACLE], time, task), atol=2e-4)
        if time >= 3 and time + 3 < FRAMES:
            later = _as_window(told[FORECAST], time + 3, task)
            np.testing.assert_allclose(frame.ahead["0.5"], later, atol=2e-4)
            assert np.abs(frame.ahead["0.5"] - _as_window(told[NOW], time + 3, task)).max() > 1e-3
    plain = [frame.answer for frame in Stream(run, CPU).follow(_video(room, windows), asked)]
    assert all(np.array_equal(frame.answer, one) for frame, one in zip(seen, plain, strict=True))


def _video(room: Cache, windows) -> Path:
    return room.manifest.root / windows.clip(0).source


def _as_window(answers: list[np.ndarray], time: int, task) -> np.ndarray:
    """The answer of one frame as a stream has it."""
    answer = answers[0][0, time]
    return answer[None] if task.by_frame else answer


def test_a_frame_is_encoded_once_for_both(runs, room):
    stream = StreamAhead(runs["depth"], runs["moves"], (0.5,), CPU)
    encoder, calls = stream.encoder, []

    def counted(pixels):
        calls.append(len(pixels))
        return encoder(pixels)

    stream.encoder = counted
    clip = room.manifest.clips[0]
    assert len(list(stream.follow(room.manifest.root / clip.source))) == len(calls) == FRAMES


def test_the_command_prints_and_draws_what_is_told(runs, room, tmp_path):
    video = room.manifest.root / room.manifest.clips[0].source
    forecaster = ("--forecaster", runs["moves"].path)
    result = call(
        *("stream", runs["depth"].path, video, *forecaster),
        *("--ahead", 0.5, "--draw", tmp_path / "ahead.mp4"),
    )
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert len(lines) == FRAMES and all(list(line["ahead"]) == ["0.5"] for line in lines)
    assert lines[0]["ahead"]["0.5"].keys() == {"nearest_m", "median_m", "farthest_m"}
    assert lines[5]["ahead"]["0.5"] != {k: lines[5][k] for k in lines[5]["ahead"]["0.5"]}
    plain = call("stream", runs["depth"].path, video, "--draw", tmp_path / "plain.mp4")
    assert [json.loads(line) for line in plain.out.splitlines()] == [
        {key: value for key, value in line.items() if key != "ahead"} for line in lines
    ]
    widths = [_shape(tmp_path / f"{name}.mp4")[1] for name in ("ahead", "plain")]
    assert widths[0] > 2 * widths[1] - 4
    assert_refused(
        call("stream", runs["depth"].path, video, *forecaster, "--ahead", 0.01), "0.01 s"
    )
    assert_refused(call("stream", runs["depth"].path, video, "--ahead", 1), "tells nothing ahead")


def test_a_forecaster_is_told_how_far_ahead_it_is_followed(runs, room, tmp_path):
    video = room.manifest.root / room.manifest.clips[0].source
    run = runs["moves"].path
    usual, chosen, same = (
        [
            json.loads(line)["changes"]
            for line in call("stream", run, video, *options).out.split("\n")[:-1]
        ]
        for options in ((), ("--ahead", 0.25, "--ahead", 2), ("--ahead", 1, "--ahead", 0.5))
    )
    assert [list(line) for line in (usual[0], chosen[0])] == [["0.5", "1"], ["0.25", "2"]]
    assert usual == same and len(usual) == FRAMES
    assert_refused(call("stream", run, video, "--ahead", -1), "wanted more than 0 s")


def _shape(path: Path) -> tuple[int, int]:
    with av.open(path) as file:
        frame = next(file.decode(video=0))
        return frame.height, frame.width
