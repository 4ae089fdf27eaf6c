"""Initial weights as an axis of a sweep: every point is what it would be alone, and is called by what it began with."""

from __future__ import annotations

import pytest
from support.sweeps import BASE, assert_as_alone

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput
from pipeline.experiments.sweep import Sweep, sweep
from pipeline.experiments.sweep_spec import GIVEN, SweepSpec, groups_of, init_name, load_sweep
from pipeline.report.report import report
from pipeline.report.source import read_sweep
from pipeline.train.loop import train
from pipeline.train.run import Run


@pytest.fixture(scope="module")
def source(material, tmp_path_factory):
    recipe = plugins.validate(Recipe, {"name": "source", **BASE}, "test")
    return train(recipe, material.cache, tmp_path_factory.mktemp("runs") / "pretrained").path


def spec_of(**table) -> SweepSpec:
    return plugins.validate(
        SweepSpec, {"name": "test", "recipe": {"name": "x", **BASE}, **table}, "test"
    )


def test_values_are_none_a_run_or_a_table():
    spec = spec_of(
        recipe={"name": "x", **BASE, "init": {"run": "runs/other", "frozen": True}},
        axes={
            "init": [
                "none",
                "runs/a",
                {"run": "runs/a", "frozen": True},
                {"run": "runs/b", "parts": ["temporal"]},
            ]
        },
    )
    points = spec.grid_points
    assert [point.name for point in points] == [
        "init none",
        "init runs/a",
        "init runs/a, frozen True",
        "init runs/b, parts temporal",
    ]
    assert {point.reference for point in points} == {"init none"}
    members = [member for point in points for member in point.members.items()]
    assert members[2][0] == "init=runs-a-frozen=True-seed0"
    inits = [recipe.init for _, recipe in members]
    assert inits[0] is None and inits[1].run == "runs/a" and not inits[1].frozen
    assert inits[2].frozen and inits[3].parts == ("temporal",)
    assert len(groups_of(points)) == 1  # one read of the cache for all


def test_a_table_may_have_a_name_for_people():
    named = {"name": "pre-trained", "run": "runs/a", "frozen": True}
    (point,) = spec_of(axes={"init": [named]}).grid_points
    assert (point.name, init_name(named)) == ("pre-trained", "pre-trained")
    ((member, recipe),) = point.members.items()
    assert member == "pre-trained-seed0" and recipe.init.run == "runs/a" and recipe.init.frozen


def test_every_seed_may_go_on_from_a_run_of_its_own():
    """The name of the run stands for it in tables, without its folder and seed."""
    other = "sweeps/pretraining/runs/shuffle=False-seed{seed}"
    spec = spec_of(seeds=[0, 7], axes={"init": ["none", other, {"run": other, "frozen": True}]})
    names = ["init none", "init shuffle=False", "init shuffle=False, frozen True"]
    assert [point.name for point in spec.grid_points] == names
    members = dict(spec.grid_points[2].members)
    assert [recipe.init.run for recipe in members.values()] == [
        f"sweeps/pretraining/runs/shuffle=False-seed{seed}" for seed in (0, 7)
    ]
    assert list(members) == [f"init=shuffle=False-frozen=True-seed{seed}" for seed in (0, 7)]


def test_the_command_line_gives_the_axis(tmp_path):
    (tmp_path / "s.toml").write_text('recipe = "demo_gru"\n[axes]\ntemporal = ["gru"]\n')
    spec = load_sweep(tmp_path / "s.toml", axes={"init": ["none", {"run": "runs/a"}]})
    assert [point.name for point in spec.grid_points] == ["gru, init none", "gru, init runs/a"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, r"key 'init.run': Input should be a valid string, found 5"),
        ({"frozen": True}, r"key 'init.run' is missing"),
        ({"run": "a", "froze": 1}, r"unknown key 'init.froze' \(did you mean 'frozen'\?\)"),
    ],
)
def test_other_values_are_refused(value, text):
    with pytest.raises(BadInput, match=text):
        _ = spec_of(axes={"init": ["none", value]}).grid_points


SHORT = {"training.steps": 2, "training.evaluate_every": 2, "task.forms": ["streaming"]}


def test_members_are_what_they_are_alone(material, source, tmp_path):
    init = ["none", str(source), {"run": str(source), "frozen": True}]
    spec = spec_of(axes={"init": init}, changes=SHORT)
    made = sweep(spec, {GIVEN: material.cache}, tmp_path / "sweep")
    assert_as_alone(made, tmp_path / "alone")
    (summary,) = made.summaries.values()
    drawn, tuned, frozen = summary.settings
    assert (tuned.name, frozen.name) == (f"init {source}", f"init {source}, frozen True")
    assert frozen.reference == tuned.reference == drawn.name == "init none"
    assert 0 < frozen.cost.parameters < tuned.cost.parameters == drawn.cost.parameters
    assert Sweep(tmp_path / "sweep").left() == []


@pytest.mark.slow
def test_a_page_has_a_curve_over_labels_for_each_of_them(material, source, tmp_path):
    init = ["none", str(source), {"run": str(source), "frozen": True}]
    spec = spec_of(
        axes={"init": init, "windows.train_fraction": [0.5, 1.0]},
        reference={"init": "none"},
        changes=SHORT,
    )
    made = sweep(spec, {GIVEN: material.cache}, tmp_path / "sweep")
    (page,) = report(tmp_path / "sweep", tmp_path / "report")
    html = page.read_text()
    assert f"init {source}, frozen True, train_fraction 1" in html
    assert "learning_rate_factor" in html  # the recipe of what each began with
    began = [Run(member.path).header.init for member in made.members]
    assert all(init is None or init.sha256 in html for init in began) and began[-1] is not None
    assert "init_sha256" not in html and f"{source}" in html
    values = {
        point.name: point.values for point in read_sweep(tmp_path / "sweep", "val")[0].ranked()
    }
    assert len(values) == 6


def test_a_run_that_does_not_fit_is_refused_before_any_training(material, source, tmp_path):
    spec = spec_of(axes={"temporal": ["gru", "min_gru"], "init": ["none", str(source)]})
    with pytest.raises(
        BadInput, match=r'cannot begin with weights of run .*: temporal\.name: "min_gru" / "gru"'
    ):
        sweep(spec, {GIVEN: material.cache}, tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "runs").exists()
