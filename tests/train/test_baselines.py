"""Answers that need no training in evaluations: the same with and without a run, alone and side by side."""

from __future__ import annotations

import pytest

from pipeline.cache.cache import Cache
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest.manifest import build
from pipeline.experiments.baselines import evaluate_baselines
from pipeline.extract.extract import extract
from pipeline.train.evaluate import evaluate_together
from pipeline.train.evaluation import Evaluation
from pipeline.train.loop import train
from pipeline.train.setup import RunContext

LAYERS = (0, 1)
RECIPE = (
    *("training.steps=1", "training.batch_size=4", "windows.frames=3", "windows.eval_windows=2"),
    *("model.width=8", "task.readout_width=8", "task.heads=2", "task.hidden=8"),
)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Cache:
    """Six clips of objects that move, with a random encoder, of which two layers are recorded."""
    folder = tmp_path_factory.mktemp("room")
    dials = {"clips_per_class": 2, "val_fraction": 0.5, "frames": 6, "size_px": 32}
    videos = build("world", None, folder / "data", {"scene": "room"} | dials)
    spec = load_spec(shipped("spec")["demo"], ["encoder.layers=[0,1]", "frames.size_px=32"])
    return extract(spec, videos, folder / "caches")


@pytest.fixture(scope="module", params=["boxes", "points"])
def evaluated(request, room, tmp_path_factory) -> tuple[str, list[Evaluation]]:
    """Two runs of a task that were scored side by side: one reads both layers, one the last."""
    folder, context = tmp_path_factory.mktemp(request.param), RunContext.of(room)
    file = shipped("recipe")[f"demo_{request.param}"]
    mixers = {"both": ["model.mixer=concat"], "last": ["model.mixer=last"]}
    runs = [
        train(load_recipe(file, [*RECIPE, *mixer]), room, folder / name)
        for name, mixer in mixers.items()
    ]
    return request.param, evaluate_together(runs, context)


def test_a_run_is_scored_beside_the_baselines_of_the_layers_that_it_reads(evaluated):
    _, (both, last) = evaluated
    assert list(both.baselines) == ["trivial", *(f"likeness, layer {layer}" for layer in LAYERS)]
    assert list(last.baselines) == ["trivial", "likeness, layer 1"]
    assert [scores.layer for scores in both.baselines.values()] == [None, *LAYERS]
    assert both.ceilings == {}, "no codec has rounded boxes"
    first = both.metrics[0].name
    for result in (both, last):
        trivial = result.baselines["trivial"]
        assert {name: each.score for name, each in trivial.metrics.items()} == result.trivial
        for name, scores in result.baselines.items():
            assert scores.clips.keys() == result.clips.keys()
            weights = [clip.weight for clip in result.clips.values()]
            mean = sum(w * s for w, s in zip(weights, scores.clips.values(), strict=True))
            assert scores.metrics[first].score == pytest.approx(mean / sum(weights))
            for form, gain in scores.run_gains.items():
                ahead = result.forms[form][first].score - scores.metrics[first].score
                assert gain.score == pytest.approx(ahead)
            over = scores.metrics[first].score - trivial.metrics[first].score
            assert (scores.over_trivial is None) == (name == "trivial")
            assert scores.over_trivial is None or scores.over_trivial.score == pytest.approx(over)
    assert set(both.clips[next(iter(both.clips))].scores) == set(both.forms), "they are no forms"


def test_they_are_the_same_without_a_run(evaluated, room):
    task, (both, _) = evaluated
    recipe = load_recipe(shipped("recipe")[f"demo_{task}"], RECIPE)
    found = evaluate_baselines(recipe, RunContext.of(room))
    assert (found.task, found.clips_scored, found.videos) == (task, both.clips_scored, both.videos)
    assert list(found.baselines) == list(both.baselines)
    for name, scores in found.baselines.items():
        assert scores == both.baselines[name].model_copy(update={"run_gains": {}})
