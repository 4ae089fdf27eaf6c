"""Sweeps: members are what they are alone, whatever stops, fails, joins or runs out of memory; wrong input is named at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.forgery import edit
from support.material import THREADS
from support.on_device import BOTH, named
from support.paths import ROOT
from support.sweeps import BASE, assert_as_alone
from support.training import assert_same

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.experiments.sweep import Sweep, sweep
from pipeline.experiments.sweep_caches import prepare
from pipeline.experiments.sweep_spec import GIVEN, SweepSpec, groups_of, load_sweep
from pipeline.extract import extract
from pipeline.models.profile import cost
from pipeline.report.report import report
from pipeline.train.evaluation import read_evaluation
from pipeline.train.loop import train
from pipeline.train.run import Run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "base.toml"
    lines = []
    for name, table in BASE.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path.write_text("\n".join(lines))
    return path


def spec_of(base, **table) -> SweepSpec:
    return plugins.validate(SweepSpec, {"name": "test", "recipe": str(base), **table}, "test")


@pytest.fixture(scope="module")
def two_by_two(base):
    return spec_of(base, axes={"temporal": ["identity", "gru"]}, seeds=[0, 5])


# The grid


def names(spec):
    return [setting.name for setting in spec.grid_points]


def test_every_combination_is_a_setting_with_every_seed(base):
    spec = spec_of(
        base,
        axes={"temporal": ["identity", "gru"], "windows.train_fraction": [0.5, 1.0]},
        seeds=[0, 1, 2],
    )
    settings = spec.grid_points
    assert [one.name for one in settings] == [
        "identity, train_fraction 0.5",
        "identity, train_fraction 1",
        "gru, train_fraction 0.5",
        "gru, train_fraction 1",
    ]
    assert [one.reference for one in settings] == [
        "identity, train_fraction 0.5",
        "identity, train_fraction 1",
    ] * 2
    assert list(settings[2].members) == [f"gru-train_fraction=0.5-seed{seed}" for seed in (0, 1, 2)]
    recipe = settings[2].members["gru-train_fraction=0.5-seed2"]
    assert (
        recipe.temporal.name == "gru"
        and recipe.windows.train_fraction == 0.5
        and recipe.training.seed == 2
    )
    assert [len(group) for group in groups_of(settings)] == [6, 6]


def test_a_plug_in_keeps_the_recipes_settings_only_if_it_is_the_same(base):
    spec = spec_of(
        base,
        changes={"temporal": {"name": "min_gru", "layers": 3}},
        axes={"temporal": ["min_gru", {"name": "min_gru", "layers": 1}, "mamba", "gru"]},
    )
    settings = spec.grid_points
    assert [one.name for one in settings] == ["min_gru", "min_gru, layers 1", "mamba", "gru"]
    default = plugins.load("temporal", "mamba").Settings().layers
    layers = [
        getattr(next(iter(one.members.values())).temporal.settings, "layers", None)
        for one in settings
    ]
    assert layers[:3] == [3, 1, default]


def test_star_is_every_module_on_disk(base):
    assert names(spec_of(base, axes={"temporal": "*"})) == plugins.names("temporal")


def test_settings_of_each_plug_in_are_laid_where_it_has_them(base):
    spec = spec_of(
        base,
        axes={"temporal": ["identity", "mamba", {"name": "mamba", "state": 8}]},
        each={"layers": 1},
    )
    recipes = [next(iter(one.members.values())) for one in spec.grid_points]
    default = plugins.load("temporal", "mamba").Settings()
    assert [getattr(recipe.temporal.settings, "layers", None) for recipe in recipes] == [
        None,
        1,
        default.layers,
    ]


def test_settings_one_by_one_join_the_grid(base):
    spec = spec_of(
        base, axes={"temporal": ["identity"]}, settings=[{"temporal": "gru", "model.width": 8}]
    )
    assert names(spec) == ["identity", "gru, width 8"]
    assert [one.reference for one in spec.grid_points] == ["identity", "identity"]


def test_what_reads_other_windows_is_another_group(base):
    axes = {
        "temporal": ["identity", "gru"],
        "windows.frames": [2, 4],
        "task.label_smoothing": [0.0, 0.1],
        "model.layers": [[2], [2, 5]],
    }
    groups = groups_of(spec_of(base, axes=axes).grid_points)
    assert [len(group) for group in groups] == [8, 8]
    shuffled = {"temporal": ["identity", "gru"], "windows.shuffle": [False, True]}
    groups = groups_of(spec_of(base, axes=shuffled).grid_points)
    assert groups == [
        [f"{name}-shuffle={switch}-seed0" for name in ("identity", "gru")]
        for switch in (False, True)
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"axes": {"tempral": ["gru"]}}, r"unknown key 'tempral' \(did you mean 'temporal'\?\)"),
        (
            {"axes": {"training.learnin_rate": [1.0]}},
            r"setting 'learnin_rate 1'.*did you mean 'learning_rate'",
        ),
        ({"axes": {"temporal": ["gruu"]}}, "gruu"),
        (
            {"axes": {"temporal": ["identity", "gru"], "temporal.layers": [1]}},
            "unknown key 'layers'",
        ),
        ({"axes": {"windows.fps": []}}, "axis 'windows.fps' has no values"),
        (
            {"axes": {"temporal": "gru"}},
            r'axis \'temporal\': "\*"|axis \'temporal\' wants a list of values, found \'gru\'',
        ),
        ({"axes": {"windows.fps": "*"}}, r'axis \'windows.fps\': "\*" is for temporal and task'),
        ({}, "nothing to compare"),
        ({"axes": {"temporal": ["gru", "gru"]}}, "two settings are called 'gru'"),
        (
            {"axes": {"temporal": ["gru"]}, "reference": {"temporal": "identity"}},
            "is to be compared with 'identity', which is no setting",
        ),
        (
            {
                "axes": {"cache": ["given", "int9"]},
                "caches": {"int8": {"derive": ["codec.name=int8"]}},
            },
            "int9",
        ),
        ({"axes": {"temporal": ["gru"]}, "seeds": [0, 0]}, "wanted at least one seed, each once"),
        (
            {"axes": {"temporal": ["gru", "mamba"]}, "controls": ["mamb"]},
            "no control called 'mamb'; there are: gru, mamba",
        ),
        ({"axes": {"temporal": ["gru"]}, "caches": {"x": {}}}, "wanted either derive or data"),
        ({"axes": {"temporal": ["gru"]}, "recipe": "demo_grue"}, "demo_grue"),
    ],
)
def test_wrong_sweeps_are_named(base, table, message):
    with pytest.raises(BadInput, match=message):
        spec = (
            spec_of(base, **table)
            if "recipe" not in table
            else plugins.validate(SweepSpec, {"name": "t", **table}, "t")
        )
        list(spec.grid_points)


@pytest.mark.parametrize("name", shipped("sweep"))
def test_shipped_sweeps_are_whole(name):
    spec = load_sweep(shipped("sweep")[name])
    settings = spec.grid_points
    assert (
        spec.name == name and len(settings) > 1 and all(len(one.members) == 3 for one in settings)
    )
    assert {one.reference for one in settings} < {one.name for one in settings}


# Training


@pytest.mark.slow
def test_members_are_what_they_are_alone_and_are_summed_up(material, two_by_two, tmp_path):
    made = sweep(two_by_two, {"given": material.cache}, tmp_path / "sweep")
    assert not made.left()
    assert_as_alone(made, tmp_path)
    summary = json.loads((tmp_path / "sweep/summary-classify.json").read_text())
    assert [one["name"] for one in summary["settings"]] == ["identity", "gru"]
    assert summary["reference"] == "identity" and not summary["settings"][0]["comparisons"]
    for one in summary["settings"]:
        for form, scores in one["scores"].items():
            told = [
                read_evaluation(tmp_path / "sweep/runs" / run, "val").forms[form]["top-1"].score
                for run in one["runs"]
            ]
            assert scores == pytest.approx(told)
        assert one["training_s"] > 0 and one["cost"]["parameters"] > 0


def test_a_finished_sweep_is_left_alone_and_takes_more_members(
    material, base, two_by_two, tmp_path
):
    sweep(two_by_two, {"given": material.cache}, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/*")}
    steps = []
    sweep(two_by_two, {"given": material.cache}, tmp_path, on_progress=steps.append)
    assert not steps
    more = spec_of(base, axes={"temporal": ["identity", "gru", "min_gru"]}, seeds=[0, 5])
    made = sweep(more, {"given": material.cache}, tmp_path, on_progress=steps.append)
    assert {state.run for state in steps} == {"min_gru-seed0", "min_gru-seed5"}
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert [one.name for one in made.summaries["classify"].settings] == [
        "identity",
        "gru",
        "min_gru",
    ]


def test_what_is_trained_is_scored_on_another_split_without_training(material, base, tmp_path):
    """With a control, which the summary compares the other with."""
    clips = [
        dataclasses.replace(clip, split="test" if number % 3 == 2 else clip.split)
        for number, clip in enumerate(material.manifest.clips)
    ]
    manifest = dataclasses.replace(material.manifest, clips=tuple(clips))
    spec = spec_of(
        base,
        axes={"temporal": ["identity"]},
        settings=[{"temporal": "identity", "windows.shuffle": True}],
        controls=["identity, shuffle True"],
        changes={"training.steps": 3},
    )
    caches = {GIVEN: material.cache}
    made = sweep(spec, caches, tmp_path, manifest=manifest)
    trained = {member.name: Run(member.path).tensors("last") for member in made.members}
    assert made.summaries["classify"].split == "val" and Sweep(tmp_path).split == "val"
    steps = []
    again = sweep(spec, caches, tmp_path, manifest=manifest, split="test", on_progress=steps.append)
    assert not steps and Sweep(tmp_path).split == again.summaries["classify"].split == "test"
    in_test = {clip.clip_id for clip in clips if clip.split == "test"}
    for member in again.members:
        assert read_evaluation(member.path, "test").clips.keys() == in_test
        assert read_evaluation(member.path, "val") is not None
        assert_same(trained[member.name], Run(member.path).tensors("last"))
    plain, control = again.summaries["classify"].settings
    assert list(plain.controls["streaming"]) == [control.name] and control.controls == {}
    (page,) = report(tmp_path, tmp_path / "report", "test")
    assert "The least gain over a control" in page.read_text(encoding="utf-8")
    with pytest.raises(BadInput, match="no split called 'tset'; there are: "):
        sweep(spec, caches, tmp_path, manifest=manifest, split="tset")
    assert Sweep(tmp_path).split == "test"


def test_a_diverging_member_is_stopped_and_told(material, base, tmp_path):
    wild = {"training.learning_rate": 1e30, "training.clip_norm": 1e30, "training.warmup_steps": 0}
    spec = spec_of(
        base, axes={"temporal": ["identity", "gru"]}, settings=[{"temporal": "gru"} | wild]
    )
    said = []
    made = sweep(spec, {"given": material.cache}, tmp_path / "sweep", say=said.append)
    failed = [member for member in made.members if member.failure]
    assert [member.point.name.partition(",")[0] for member in failed] == ["gru"] and len(
        failed
    ) == 1
    assert f"{failed[0].name} is stopped at step {failed[0].failure.step}" in said[0]
    row = next(one for one in made.summaries["classify"].settings if one.failed)
    assert "not finite" in row.failed[failed[0].name] and not row.scores
    good = spec_of(base, axes={"temporal": ["identity", "gru"]})
    assert_as_alone(sweep(good, {"given": material.cache}, tmp_path / "sweep"), tmp_path)
    steps = []
    sweep(spec, {"given": material.cache}, tmp_path / "sweep", on_progress=steps.append)
    assert not steps  # stopped for good


CODE = f"""
import json, sys
from pathlib import Path
import torch
torch.set_num_threads({THREADS})
from pipeline.config import plugins
from pipeline.cache.cache import Cache
from pipeline.experiments.sweep_spec import SweepSpec
from pipeline.experiments.sweep import sweep
sweep(plugins.validate(SweepSpec, json.loads(sys.argv[1]), "test"), {{"given": Cache(Path(sys.argv[2]))}}, Path(sys.argv[3]), say=print)
"""


def command(spec, cache, out, code=CODE) -> list[str]:
    return [sys.executable, "-c", code, spec.model_dump_json(), str(cache.path), str(out)]


@pytest.mark.slow
def test_a_killed_sweep_goes_on(material, two_by_two, tmp_path):
    out = tmp_path / "sweep"
    process = subprocess.Popen(command(two_by_two, material.cache, out))
    while process.poll() is None and not list(out.glob("runs/*/last.json")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    made = sweep(two_by_two, {"given": material.cache}, out)
    assert not made.left()
    assert_as_alone(made, tmp_path)


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_members(material, two_by_two, tmp_path):
    out = tmp_path / "sweep"
    both = [subprocess.Popen(command(two_by_two, material.cache, out)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    made = Sweep(out)
    assert not made.left() and not list(out.glob("leases/*"))
    assert_as_alone(made, tmp_path)


@pytest.mark.slow
def test_workers_share_the_members(material, two_by_two, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "OMP_NUM_THREADS", str(THREADS)
    )  # as in this process: a sum over other threads rounds otherwise
    out = tmp_path / "sweep"
    engine = plugins.load("engine", "local")(None, 2)
    made = sweep(two_by_two, {"given": material.cache}, out, engine=engine, logs=tmp_path / "logs")
    assert not made.left() and (out / "summary-classify.json").is_file()
    assert_as_alone(made, tmp_path)


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pipeline.config import plugins
from pipeline.cache.cache import Cache
from pipeline.experiments.sweep_spec import SweepSpec
from pipeline.experiments.sweep import sweep

device = torch.device(sys.argv[5])

def limit(extra):
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        share = (torch.cuda.memory_reserved(device) + extra) / whole if extra else 1.0
        torch.cuda.set_per_process_memory_fraction(share, torch.device("cuda", 0))
        return
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra if extra else resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def say(text):
    print(text)
    limit(0)

# What torch takes once.
torch.nn.Linear(8, 8).to(device)(torch.zeros(4, 8, device=device)).sum().backward()
limit(int(sys.argv[4]))
sweep(plugins.validate(SweepSpec, json.loads(sys.argv[1]), "test"), {"given": Cache(Path(sys.argv[2]))}, Path(sys.argv[3]), device=device, say=say)
"""


@pytest.mark.slow
@pytest.mark.parametrize("on", BOTH)
def test_what_does_not_fit_into_memory_together_is_trained_in_halves(material, base, tmp_path, on):
    """A real limit of the address space, or of the device's memory, which is lifted once the sweep has said what it does
    about it."""
    changes = {"model.width": 1000, "training.steps": 1, "task.forms": ["streaming"]}
    spec = spec_of(base, axes={"training.learning_rate": [1e-4, 2e-4, 3e-4, 4e-4]}, changes=changes)
    recipe = next(iter(spec.grid_points[0].members.values()))
    weights_bytes = 4 * cost(recipe, material.cache.shape, material.manifest.labels).parameters
    limit = 8 * weights_bytes  # each of four wants weights, gradient and two moments
    called = [
        *command(spec, material.cache, tmp_path / "sweep", LIMITED),
        str(limit),
        str(named(on)),
    ]
    alone = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(called, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"4 members do not fit into the memory of {named(on)}: half at a time\n"
    made = Sweep(tmp_path / "sweep")
    assert not made.left() and not any(member.failure for member in made.members)
    assert all(Run(member.path).checkpoint("last").step == 1 for member in made.members)


# Bad input, before any training


def refused(spec, cache, out, message):
    with pytest.raises(BadInput, match=message):
        sweep(spec, {"given": cache}, out)
    assert not list(out.rglob("metrics.jsonl")) and not (out / "sweep.json").exists()


def test_members_that_cannot_be_trained_are_named_before_any_training(material, base, tmp_path):
    refused(
        spec_of(base, axes={"model.layers": [[5], [3, 5]]}),
        material.cache,
        tmp_path,
        r"layers=3\+5-seed0' reads layer 3, the cache has 2, 5",
    )
    refused(
        spec_of(base, axes={"windows.fps": [1, 999]}),
        material.cache,
        tmp_path,
        "windows want 999 frames per second",
    )
    refused(
        spec_of(base, axes={"windows.views": [["base", "flip"]]}),
        material.cache,
        tmp_path,
        "no view called 'flip'",
    )
    attention = {"name": "causal_attention", "heads": 5}
    refused(
        spec_of(base, axes={"temporal": ["gru", attention]}),
        material.cache,
        tmp_path,
        r"member 'causal_attention-heads=5-seed0': ",
    )
    refused(
        spec_of(base, axes={"temporal": ["gru"]}, changes={"cache": "abc"}),
        material.cache,
        tmp_path,
        "wants the cache with fingerprint abc",
    )


def test_a_run_folder_of_another_format_or_recipe_is_named_before_any_training(
    material, base, tmp_path
):
    spec = spec_of(base, axes={"temporal": ["gru", "identity"]})
    sweep(spec, {"given": material.cache}, tmp_path / "a")
    changed = spec_of(base, axes={"temporal": ["gru", "identity"]}, changes={"training.steps": 9})
    with pytest.raises(
        BadInput,
        match=r"runs/gru-seed0 was made from something else; now / then: recipe.training.steps: 9 / 8",
    ):
        sweep(changed, {"given": material.cache}, tmp_path / "a")
    header = tmp_path / "a/runs/identity-seed0/run.json"
    edit(header, lambda table: table.update(format_version=99))
    with pytest.raises(BadInput, match=r"identity-seed0/run.json.*99"):
        sweep(spec, {"given": material.cache}, tmp_path / "a")
    edit(header, lambda table: table.update(format_version=2))
    with pytest.raises(
        BadInput,
        match=r"runs/identity-seed0 was made from something else; now / then: format_version: 3 / 2",
    ):
        sweep(spec, {"given": material.cache}, tmp_path / "a")


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (
            '{"format_version": 99}',
            r"sweep.json has format 99, this version of stillframe reads format 2",
        ),
        ("{", "is damaged"),
    ],
)
def test_a_sweep_that_cannot_be_read_is_not_written_over(material, base, tmp_path, found, wanted):
    (tmp_path / "sweep.json").write_text(found)
    with pytest.raises(BadInput, match=wanted):
        sweep(spec_of(base, axes={"temporal": ["identity"]}), {"given": material.cache}, tmp_path)
    assert (tmp_path / "sweep.json").read_text() == found and not (tmp_path / "runs").exists()


def test_a_folder_that_is_no_sweep_is_named(tmp_path):
    with pytest.raises(BadInput, match="is not a sweep: it has no sweep.json"):
        Sweep(tmp_path)


# Other caches


def test_derived_caches_are_made_and_compared_on_the_same_clips(material, base, tmp_path):
    spec = spec_of(
        base,
        axes={"cache": ["given", "int8"]},
        caches={"int8": {"derive": ["codec.name=int8"]}, "unused": {"derive": ["codec.name=pca"]}},
    )
    caches = prepare(spec, material.cache, tmp_path)
    assert list(caches) == ["given", "int8"] and caches["int8"].spec["codec"]["name"] == "int8"
    made = sweep(spec, caches, tmp_path)
    (summary,) = made.summaries.values()
    assert [one.name for one in summary.settings] == ["given", "int8"]
    assert list(summary.settings[1].comparisons) == ["streaming", "window"]
    assert len(made.groups) == 2
    again = prepare(spec, material.cache, tmp_path)
    assert again["int8"].path == caches["int8"].path


@pytest.mark.slow
def test_harder_videos_are_rendered_cached_and_compared_among_themselves(tmp_path, base):
    from support.material import address_spec

    world = manifest.build(
        "world",
        None,
        tmp_path / "world",
        {"scene": "room", "clips_per_class": 2, "val_fraction": 0.5, "size_px": 32, "frames": 6},
    )
    cache = extract.extract(address_spec(), world, tmp_path / "caches")
    spec = spec_of(
        base,
        axes={"cache": ["given", "hard"], "temporal": ["identity", "gru"]},
        caches={"hard": {"data": {"occlusion": 1.0}}},
        reference={"temporal": "identity"},
        changes={"windows.fps": 6, "training.batch_size": 4},
    )
    caches = prepare(spec, cache, tmp_path / "sweep")
    assert (
        caches["hard"].manifest.origin.settings["occlusion"] == 1.0
        and caches["hard"].fingerprint == cache.fingerprint
    )
    (summary,) = sweep(spec, caches, tmp_path / "sweep").summaries.values()
    rows = {one.name: one for one in summary.settings}
    assert list(rows) == ["given, identity", "given, gru", "hard, identity", "hard, gru"]
    assert rows["hard, gru"].values == {"cache": "hard", "temporal": "gru", "occlusion": 1.0}
    assert [one.reference for one in rows.values()] == ["given, identity"] * 2 + [
        "hard, identity"
    ] * 2
    gain = rows["hard, gru"].comparisons["streaming"].gain.score
    means = [rows[name].intervals["streaming"].score for name in ("hard, gru", "hard, identity")]
    assert gain == pytest.approx(means[0] - means[1])


def test_videos_of_a_user_cannot_be_made_harder(material, base, tmp_path):
    spec = spec_of(base, axes={"cache": ["hard"]}, caches={"hard": {"data": {"occlusion": 1.0}}})
    with pytest.raises(
        BadInput,
        match="cache 'hard' of the sweep wants other videos, and data set 'folder' of .* renders none",
    ):
        prepare(spec, material.cache, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_can_be_opened_where_the_sweep_was_made(material, two_by_two, tmp_path):
    made = sweep(two_by_two, {"given": material.cache}, tmp_path)
    assert made.caches["given"].fingerprint == Cache(material.cache.path).fingerprint


@pytest.mark.parametrize("given", [{}, {"CACHE": "caches/mine", "SWEEP": "layers"}])
def test_make_ablate_finds_the_cache_of_the_demo_among_others(material, base, tmp_path, given):
    root = ROOT
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "demo/caches/demo-of-another").mkdir(parents=True)
    train(load_recipe(base), material.cache, tmp_path / "demo/runs/demo_gru")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.ready").touch()
    asked = [f"{key}={value}" for key, value in ({"STILLFRAME": "echo"} | given).items()]
    said = subprocess.run(
        ["make", "-s", "ablate", *asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    wanted = (
        ("layers", "caches/mine")
        if given
        else ("temporal_modules", str(material.cache.path.absolute()))
    )
    assert said.stdout.split() == ["sweep", *wanted] and said.stderr == ""


@pytest.mark.parametrize("link", ["runs", "runs/t"])
def test_a_sweep_is_trained_through_no_link(two_by_two, material, tmp_path, link):
    """Runs of a folder that somebody else made could lie anywhere."""
    made = Sweep.planned(tmp_path / "sweep", two_by_two, {"given": material.cache})
    link = link.replace("t", made.members[0].name)
    (tmp_path / "home").mkdir()
    (tmp_path / "sweep" / link).parent.mkdir(parents=True)
    (tmp_path / "sweep" / link).symlink_to(tmp_path / "home")
    with pytest.raises(BadInput, match="is a symbolic link, and a sweep is trained in its own"):
        made.write_header()
