"""Runs of segment: whole videos of any length are scored, each frame once, by the answers of a stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.material import FPS, address_spec, address_video
from support.training import recipe

from pipeline.cache.cache import Cache
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract.extract import extract
from pipeline.models.tasks.segments.segments import edit_score, found, segments_of
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run, load_model
from pipeline.train.setup import RunContext
from pipeline.train.stream import Stream
from pipeline.train.visualize import drawings

FRAMES = {"t0": 9, "t1": 14, "v0": 11, "v1": 5, "v2": 11}
"""Video -> its frames; those in v are held out."""
NAMES = ("background", "cut", "mix")


def label_at(video: int, frame: int) -> str:
    return NAMES[(video + frame // 3) % 3]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("root")
    (root / "groundTruth").mkdir()
    for number, (name, frames) in enumerate(FRAMES.items()):
        address_video(root / f"{name}.mp4", number, frames)
        lines = [label_at(number, frame) for frame in range(frames)]
        (root / f"groundTruth/{name}.txt").write_text("\n".join(lines))
    held_out = {"val_sequences": ["v0", "v1", "v2"]}
    built = manifest.build("frame_labels", root, tmp_path_factory.mktemp("data"), held_out)
    return extract(address_spec(), built, tmp_path_factory.mktemp("caches"))


TASK = {"name": "segment", "readout_width": 8, "heads": 2, "layers": 1}
WINDOWS = {"frames": 4, "fps": FPS, "eval_frames": "clip", "per_clip": "length"}


def wanted(**changes: object) -> object:
    table = {"task": TASK, "windows": WINDOWS, "training": {"steps": 4, "evaluate_every": 2}}
    return recipe(
        **{key: {**table.get(key, {}), **changes.get(key, {})} for key in {*table, *changes}}
    )


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(wanted(), cache, tmp_path_factory.mktemp("runs") / "run")


def test_whole_videos_are_scored_by_the_answers_of_a_stream(cache: Cache, run: Run) -> None:
    evaluation = evaluate(run, cache)
    assert run.header.labels == NAMES
    weights = {name: clip.weight for name, clip in evaluation.clips.items()}
    assert weights == {name: FRAMES[name] for name in ("v0", "v1", "v2")}, "each frame once"
    answers = load_file(run.path / "answers-val.safetensors")
    assert answers["streaming"].shape == answers["window"].shape == (3, 11, 3)
    assert not answers["streaming"][1, 5:].any(), "filled up with zeros"
    np.testing.assert_allclose(answers["time_s"][0], np.arange(11) / FPS, atol=1e-6)
    stream, root = Stream(run, torch.device("cpu")), cache.manifest.root
    right, edits, counts = 0, [], np.zeros((3, 2))
    for place, name in enumerate(("v0", "v1", "v2")):
        seen = list(stream.follow(root / f"{name}.mp4"))
        followed_TK = np.stack([each.answer[0] for each in seen])
        np.testing.assert_allclose(followed_TK, answers["streaming"][place, : len(seen)], atol=2e-5)
        said = answers["streaming"][place, : len(seen)].argmax(-1)
        number = list(FRAMES).index(name)
        true = np.array([NAMES.index(label_at(number, frame)) for frame in range(len(seen))])
        right += int((said == true).sum())
        pair = segments_of(said, {0}), segments_of(true, {0})
        edits.append(edit_score(*pair))
        counts += [
            [2 * found(*pair, least), len(pair[0]) + len(pair[1])] for least in (0.1, 0.25, 0.5)
        ]
    scores = {name: each.score for name, each in evaluation.forms["streaming"].items()}
    assert scores["accuracy"] == pytest.approx(right / 27)
    assert scores["edit"] == pytest.approx(np.mean(edits))
    assert [scores[f"F1@{least}"] for least in (10, 25, 50)] == pytest.approx(
        list(counts[:, 0] / counts[:, 1])
    )
    assert list(scores) == ["accuracy", "edit", "F1@10", "F1@25", "F1@50", "mAP", "mcAP"]
    assert evaluation.trivial["mcAP"] == pytest.approx(0.5) and evaluation.videos == 3


def test_videos_side_by_side_have_the_answers_that_they_have_alone(cache: Cache, run: Run) -> None:
    """Those of one length share a batch; no answer depends on padding, there being none."""
    context = RunContext.of(cache, device=torch.device("cpu"))
    model, task = load_model(run, cache.shape)
    windows = context.windows("val", run.recipe, task, model.layers)
    sizes = {size: [batch.time_s_BT.shape for batch in windows.evaluation(size)] for size in (1, 4)}
    assert sizes == {1: [(1, 11), (1, 5), (1, 11)], 4: [(1, 11), (1, 5), (1, 11)]}
    told = [
        model.eval().answers(windows.on_device(batch, context.device), task)
        for batch in windows.evaluation(4)
    ]
    answers = load_file(run.path / "answers-val.safetensors")
    for form in ("streaming", "window"):
        for place, each in enumerate(told):
            frames = each[form].shape[1]
            np.testing.assert_allclose(each[form][0], answers[form][place, :frames], atol=1e-6)


def test_a_video_is_drawn_over_a_picture_of_time(cache: Cache, run: Run) -> None:
    (drawing,) = drawings(run, RunContext.of(cache, device=torch.device("cpu")), 1)
    assert drawing.pixels_THWC.shape[0] == 11 and drawing.fps == FPS


def test_several_classes_stand_by_the_scores_of_detection(cache: Cache, tmp_path: Path) -> None:
    detect = wanted(task={"classes": "several", "forms": ["streaming"]})
    evaluation = evaluate(train(detect, cache, tmp_path / "run"), cache)
    assert [metric.name for metric in evaluation.metrics] == ["mAP", "mcAP"]
    assert evaluation.trivial["mcAP"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"windows": {"eval_windows": 2}},
            'eval_frames = "clip" wants fps or every, and one window',
        ),
        ({"windows": {"both_directions": True}}, "the truth 'classes' is of one direction of time"),
        ({"windows": {"shuffle": True}}, "the truth 'classes' is about single frames"),
        (
            {"task": {"background": ["background", "cut", "mix"]}},
            "no classes of segments but background",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    cache: Cache, tmp_path: Path, changes: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        train(wanted(**changes), cache, tmp_path / "run")
    assert message in caught.value.message


def test_clips_without_segments_are_counted(material, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="task 'segment': the manifest has no classes of segments"):
        train(wanted(), material.cache, tmp_path / "run")


def test_a_run_refuses_other_classes(cache: Cache, run: Run, tmp_path: Path) -> None:
    root = cache.manifest.root
    (tmp_path / "csv.csv").write_text("video,start_s,stop_s,label\nv0,0,1,cut\nt0,0,1,cut\n")
    other = manifest.build(
        "frame_labels",
        root,
        tmp_path / "data",
        {"csv": str(tmp_path / "csv.csv"), "val_sequences": ["v0"]},
    )
    with pytest.raises(
        BadInput, match="knows the labels background, cut, mix; manifest .* has background, cut$"
    ):
        evaluate(run, cache, manifest=other)
