"""Weights go on: what is taken over, what of it learns, what is refused before any training."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from support.commands import assert_refused, call
from support.material import address_spec
from support.training import Stop, assert_same, final, recipe, stop_at

from pipeline.errors import BadInput
from pipeline.extract.extract import extract
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics
from pipeline.train.weights.initial import initial_weights

STEPS = {"steps": 4, "checkpoint_every": 2, "evaluate_every": 4}
ONE = {"steps": 1, "evaluate_every": 1}
STREAMING = {"forms": ["streaming"]}


@pytest.fixture(scope="module")
def source(material, tmp_path_factory) -> Run:
    """A run of another task setting and other windows, with batch norms in its mixer."""
    wanted = recipe(
        training=STEPS, windows={"frames": 3, "seed": 5}, task={"readout_width": 8, **STREAMING}
    )
    return train(wanted, material.cache, tmp_path_factory.mktemp("source") / "pretrained")


def from_run(source: Run, init: dict | None = None, **changes):
    training = {**STEPS, **changes.pop("training", {})}
    begin = {"run": str(source.path)} | (init or {})
    return recipe(training=training, init=begin, **{"task": STREAMING, **changes})


def weights(tensors: dict[str, torch.Tensor], *parts: str) -> dict[str, torch.Tensor]:
    begins = tuple(f"model.{part}." for part in parts)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(begins)}


def is_statistic(name: str) -> bool:
    return ".bn.running_" in name or name.endswith("num_batches_tracked")


def test_frozen_parts_stay_bit_by_bit_and_keep_the_statistics_of_their_batch_norms(
    source, material, tmp_path
):
    """Also where norms are told the moments of batches that come in parts."""
    wanted = from_run(source, {"frozen": True}, training={"accumulate": 2})
    run = train(wanted, material.cache, tmp_path / "run")
    taken = weights(final(source), "mixer", "projection", "temporal")
    assert len(taken) > 20 and any(map(is_statistic, taken))
    assert_same(weights(final(run), "mixer", "projection", "temporal"), taken)
    optimiser = {name for name in final(run) if name.startswith("optimizer.")}
    assert optimiser and not any(
        f".model.{part}." in name
        for name in optimiser
        for part in ("mixer", "projection", "temporal")
    )
    assert run.header.parameters["mixer"] == run.header.parameters["temporal"] == 0
    losses = [line["loss"] for line in read_metrics(run.path)]
    assert losses[-1] != losses[0]
    assert evaluate(run, material.cache).clips_scored > 0


def test_statistics_of_pretraining_do_not_leak_into_a_task(source, material, tmp_path):
    """Those of a tuned run are those of a run from scratch on the same windows, bit by bit: tokens
    are frozen, so they are a function of the windows alone."""
    tuned = train(from_run(source), material.cache, tmp_path / "tuned")
    scratch = train(recipe(training=STEPS, task=STREAMING), material.cache, tmp_path / "scratch")
    statistics = {name for name in final(tuned) if is_statistic(name)}
    assert len(statistics) == 3 * 2
    for name in statistics:
        assert torch.equal(final(tuned)[name], final(scratch)[name])
    means = [name for name in statistics if name.endswith("running_mean")]
    assert not any(torch.equal(final(tuned)[name], final(source)[name]) for name in means)


def test_what_is_not_taken_over_is_drawn_as_from_scratch(source, material, tmp_path):
    still = {"learning_rate": 1e-300, "min_learning_rate": 0, "steps": 1, "weight_decay": 0}
    scratch = final(
        train(recipe(training=STEPS | still, task=STREAMING), material.cache, tmp_path / "scratch")
    )
    tuned = final(
        train(
            from_run(source, {"parts": ["temporal"]}, training=still),
            material.cache,
            tmp_path / "tuned",
        )
    )
    assert_same(weights(tuned, "temporal"), weights(final(source), "temporal"))
    rest = ("mixer", "projection", "readouts")
    assert_same(weights(tuned, *rest), weights(scratch, *rest))


def test_a_factor_scales_the_learning_rate_of_what_was_taken_over(source, material, tmp_path):
    """The first step of AdamW is the learning rate in every number that has a gradient."""
    moved = {}
    for factor in (1.0, 0.1):
        wanted = from_run(
            source,
            {"parts": ["projection", "temporal"], "learning_rate_factor": factor},
            training={
                "steps": 1,
                "warmup_steps": 0,
                "learning_rate": 1e-3,
                "weight_decay": 0,
                "clip_norm": 1e9,
            },
        )
        after = final(train(wanted, material.cache, tmp_path / f"{factor}"))
        moved[factor] = {
            name: (after[name] - before).abs().max().item()
            for name, before in weights(final(source), "projection", "temporal").items()
        }
    for name, by in moved[1.0].items():
        assert by == pytest.approx(1e-3, rel=1e-2), name
        assert moved[0.1][name] == pytest.approx(1e-4, rel=1e-2), name


def test_a_factor_leaves_other_parts_at_the_learning_rate(source, material, tmp_path):
    from pipeline.models.tasks.contract import make_task
    from pipeline.models.video_model import VideoModel, parameter_groups

    wanted = from_run(source, {"parts": ["temporal"], "learning_rate_factor": 0.25})
    model = VideoModel(wanted, material.cache.shape, make_task(wanted, material.manifest.labels))
    groups = parameter_groups(model, 0.01, {"temporal.": 0.25})
    slow = {id(p) for group in groups if group["factor"] == 0.25 for p in group["params"]}
    assert slow == {id(parameter) for parameter in model.temporal.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {(group["weight_decay"], group["factor"]) for group in groups} == {
        (0.01, 1.0),
        (0.0, 1.0),
        (0.01, 0.25),
        (0.0, 0.25),
    }


@pytest.mark.parametrize(
    "init",
    [{"frozen": True}, pytest.param({"learning_rate_factor": 0.3}, marks=pytest.mark.slow)],
)
def test_a_stopped_run_ends_as_an_undisturbed_one_and_needs_its_source_no_more(
    source, material, tmp_path, init
):
    moved = tmp_path / "source"
    shutil.copytree(source.path, moved)
    wanted = from_run(Run(moved), init)
    whole = train(wanted, material.cache, tmp_path / "whole")
    with pytest.raises(Stop):
        train(wanted, material.cache, tmp_path / "stopped", on_progress=stop_at(3))
    with pytest.raises(Stop):
        train(wanted, material.cache, tmp_path / "begun", on_progress=stop_at(1))
    shutil.rmtree(moved)
    again = train(wanted, material.cache, tmp_path / "stopped")
    assert_same(final(whole), final(again))
    assert read_metrics(whole.path) == read_metrics(again.path)
    assert again.header.init == whole.header.init
    with pytest.raises(BadInput, match=f"{moved} is not a run"):
        train(wanted, material.cache, tmp_path / "begun")


def test_a_run_says_what_it_began_with_and_goes_on_with_the_same_alone(source, material, tmp_path):
    moved = Run(shutil.copytree(source.path, tmp_path / "source"))
    run = train(from_run(moved, training=ONE), material.cache, tmp_path / "run")
    facts = run.header.init
    assert (facts.run, facts.checkpoint, facts.step) == (str(moved.path), "last", 4)
    assert facts.parts == ("mixer", "projection", "temporal") and facts.init is None
    again = initial_weights(from_run(source), material.cache, material.manifest, tmp_path / "x")
    assert again.facts.sha256 == facts.sha256 != "0" * 64  # of the weights, wherever they lie
    best = initial_weights(
        from_run(source, {"checkpoint": "best", "parts": ["temporal"]}),
        material.cache,
        material.manifest,
        tmp_path / "x",
    )
    assert best.facts.sha256 != facts.sha256
    chained = train(from_run(run, training=ONE), material.cache, tmp_path / "chained")
    assert chained.header.init.init == facts
    tensors = moved.tensors("last")
    tensors["model.temporal.output_norm.bias"] += 1e-3
    moved.save("last", tensors, 4, 4, None)
    with pytest.raises(BadInput, match=r"was made from something else; .*init_sha256: \"[0-9a-f]"):
        train(from_run(moved, training=ONE), material.cache, tmp_path / "run")


def test_a_moved_source_with_the_same_weights_is_the_same(source, material, tmp_path):
    wanted = from_run(source, training=ONE)
    run = train(wanted, material.cache, tmp_path / "run")
    moved = Run(shutil.copytree(source.path, tmp_path / "moved"))
    assert train(from_run(moved, training=ONE), material.cache, run.path).header == run.header


REFUSED = {
    "width": ({}, {"model": {"width": 10}}, r"model\.width: 10 / 12"),
    "mixer": ({}, {"model": {"mixer": "concat"}}, r'model\.mixer: "concat" / "mlp"'),
    "layers": ({}, {"model": {"layers": [5]}}, r"layers: \[5\] / \[2, 5\]"),
    "special tokens": ({}, {"model": {"tokens": "patches"}}, r'model\.tokens: "patches" / "all"'),
    "module": (
        {},
        {"temporal": {"name": "min_gru"}},
        r'here / there: temporal\.name: "min_gru" / "gru"$',
    ),
    "setting": ({}, {"temporal": {"layers": 2}}, r"temporal\.layers: 2 / 1"),
    "checkpoint": ({"checkpoint": "newest"}, {}, r"init.checkpoint"),
    "unknown part": ({"parts": ["readouts"]}, {}, r"init.parts"),
    "no part": ({"parts": []}, {}, r"parts: wanted at least one part, each once"),
    "twice": ({"parts": ["mixer", "mixer"]}, {}, r"parts: wanted at least one part, each once"),
    "factor": ({"learning_rate_factor": 0}, {}, r"learning_rate_factor.*greater than 0"),
    "frozen and factor": (
        {"frozen": True, "learning_rate_factor": 0.1},
        {},
        r"frozen parts are not trained",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_something_else_is_refused_before_any_training(source, material, tmp_path, name):
    init, changes, text = REFUSED[name]
    with pytest.raises(BadInput, match=text):
        train(from_run(source, init, **changes), material.cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("init", "model", "text"),
    [
        (
            {"parts": ["projection"]},
            {"width": None},
            "the projection, which has no weights with model.width unset",
        ),
        (
            {"parts": ["mixer"], "frozen": True},
            {"mixer": "last"},
            'has no weights with model.mixer = "last"',
        ),
    ],
)
def test_a_part_without_weights_is_refused(source, material, tmp_path, init, model, text):
    with pytest.raises(BadInput, match=text):
        train(from_run(source, init, model=model), material.cache, tmp_path / "run")


def test_parts_that_are_not_named_are_those_with_weights(material, tmp_path):
    plain = recipe(training=ONE, task=STREAMING, model={"mixer": "last", "width": None})
    run = train(plain, material.cache, tmp_path / "source")
    wanted = from_run(run, training=ONE, model={"mixer": "last", "width": None})
    assert train(wanted, material.cache, tmp_path / "run").header.init.parts == ("temporal",)


def test_other_differences_do_not_matter(source, material, tmp_path):
    """Another mixer, where it is not taken over; other windows and readouts never do."""
    wanted = from_run(source, {"parts": ["temporal"]}, training=ONE, model={"mixer": "concat"})
    train(wanted, material.cache, tmp_path / "run")


def derived(material, folder, **changes):
    return extract(address_spec(**changes), material.manifest, folder)


def test_an_encoder_of_other_weights_and_a_fitted_codec_are_refused(source, material, tmp_path):
    other = derived(
        material,
        tmp_path,
        encoder={"name": "address", "layers": [2, 5], "width": 8, "grid": 2, "special_tokens": 2},
    )
    with pytest.raises(BadInput, match=r"here / there: encoder\.grid: 2 / 3"):
        train(from_run(source), other, tmp_path / "run")
    fitted = derived(material, tmp_path, codec={"name": "pca", "components": 4})
    with pytest.raises(BadInput, match=r'here / there: fitted codec: "pca [0-9a-f]{64}" / null'):
        train(from_run(source), fitted, tmp_path / "run")
    rounded = derived(material, tmp_path, codec={"name": "int8"})
    assert train(from_run(source, training=ONE), rounded, tmp_path / "run").header.init is not None


def test_what_is_no_run_or_has_no_checkpoint_is_named(source, material, tmp_path):
    nothing = recipe(init={"run": str(tmp_path / "nothing")})
    with pytest.raises(BadInput, match="is not a run: it has no run.json"):
        train(nothing, material.cache, tmp_path / "run")
    untrained = Run(shutil.copytree(source.path, tmp_path / "untrained"))
    (untrained.path / "last.json").unlink()
    with pytest.raises(BadInput, match="has no last checkpoint yet"):
        train(from_run(untrained), material.cache, tmp_path / "run")


def test_weights_of_a_run_that_goes_on_are_taken_over_as_its_best_alone(source, material, tmp_path):
    half = Run(shutil.copytree(source.path, tmp_path / "half"))
    half.save("last", half.tensors("last"), 2, 4, None)
    with pytest.raises(BadInput, match="half is not trained to its end: it is at step 2 of 4"):
        train(from_run(half, training=ONE), material.cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    begun = train(
        from_run(half, {"checkpoint": "best"}, training=ONE), material.cache, tmp_path / "run"
    )
    assert begun.header.init.step == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("model.temporal.output_norm.bias"), "output_norm.bias is missing"),
        (
            lambda t: t.update({"model.temporal.output_norm.bias": torch.zeros(10**6)}),
            r"output_norm.bias is \(1000000,\) float32, wanted \(12,\) float32",
        ),
        (
            lambda t: t.update({"model.projection.bias": torch.zeros(12, dtype=torch.int32)}),
            r"projection.bias is \(12,\) int32, wanted \(12,\) float32",
        ),
        (
            lambda t: t["model.projection.bias"].fill_(float("nan")),
            "projection.bias holds NaN or infinity",
        ),
    ],
)
def test_a_run_of_a_stranger_is_compared_with_what_is_wanted(
    source, material, tmp_path, change, text
):
    forged = Run(shutil.copytree(source.path, tmp_path / "forged"))
    tensors = forged.tensors("last")
    change(tensors)
    forged.save("last", tensors, 4, 4, None)
    with pytest.raises(BadInput, match=text):
        train(from_run(forged), material.cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_a_run(source, material, tmp_path):
    table = tmp_path / "mine.toml"
    canonical = recipe(training=STEPS, task=STREAMING).canonical()
    lines = [
        'task = {name = "classify", readout_width = 16, heads = 2}',
        'temporal = {name = "gru"}',
        f"windows = {{frames = 4, fps = {canonical['windows']['fps']}}}",
        "model = {width = 12}",
        "training = {steps = 2, batch_size = 4}",
        "init = {run = 'elsewhere', frozen = true}",
    ]
    table.write_text("\n".join(lines))
    out = tmp_path / "run"
    done = call("train", table, material.cache.path, "--out", out, "--init", source.path)
    assert done.code == 0, done.err
    header = json.loads((out / "run.json").read_text())
    assert header["recipe"]["init"]["run"] == str(source.path)
    assert header["recipe"]["init"]["frozen"] and header["init"]["run"] == str(source.path)
    assert_refused(
        call("train", table, material.cache.path, "--out", tmp_path / "no", "--init", tmp_path),
        f"{tmp_path} is not a run",
    )
