"""Trackers hold what metrics.jsonl and the evaluation hold, each step once, as Weights & Biases and MLflow themselves read it; and what fails is said."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.commands import assert_refused, call
from support.events import drawn, drawn_by
from support.paths import ROOT
from support.processes import ended, start
from support.sweeps import BASE
from support.training import Stop, assert_same, final, recipe, stop_at

import pipeline
from pipeline.experiments.sweep import Sweep, SweepJob, sweep
from pipeline.experiments.sweep_spec import SweepSpec, load_sweep
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluation import read_evaluation
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics
from pipeline.train.trackers.tracking import TRACKERS, Tracking, scores_of

TITLES = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
pytestmark = [
    pytest.mark.slow,  # both packages take seconds to import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what MLflow asks of SQLAlchemy
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of a process that a test kills
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Held(NamedTuple):
    """What a tracker has of one run folder."""

    ids: set[str]
    name: str
    group: str
    steps: list[tuple[int, dict[str, float]]]
    """In the order in which they came."""
    config: dict[str, Any]
    scores: dict[str, float]
    ended: Any

    @property
    def by_tag(self) -> dict[str, dict[int, float]]:
        """As `events.drawn` has it; no step twice."""
        assert len({step for step, _ in self.steps}) == len(self.steps)
        tags: dict[str, dict[int, float]] = {}
        for step, values in self.steps:
            for tag, value in values.items():
                tags.setdefault(tag, {})[step] = value
        return tags


def of_wandb(run: Path) -> Held:
    import wandb
    from support.wandb_files import offline_runs

    wandb.teardown()  # else files may be written to still
    parts = offline_runs(run / "wandb")
    assert {part.project for part in parts} == {"stillframe"}
    summary = {key: value for part in parts for key, value in part.summary.items()}
    scores = {key: value for key, value in summary.items() if key.startswith("evaluation/")}
    return Held(
        {part.id for part in parts},
        parts[0].name,
        parts[0].group,
        [step for part in parts for step in part.steps if step[1]],
        {key: value for key, value in parts[0].config.items() if not key.startswith("_")},
        scores,
        parts[-1].exit_code,
    )


def of_mlflow(run: Path) -> Held:
    import mlflow

    client = mlflow.MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "stillframe"]
    found = [
        each
        for each in client.search_runs([experiment.experiment_id])
        if each.info.run_name == run.name
    ]
    steps: list[tuple[int, dict[str, float]]] = []
    for each in found:
        table: dict[int, dict[str, float]] = {}
        for tag in each.data.metrics:
            if tag.startswith("evaluation/"):
                assert len(client.get_metric_history(each.info.run_id, tag)) == 1
                continue
            history = client.get_metric_history(each.info.run_id, tag)
            assert len({point.step for point in history}) == len(history), tag
            for point in history:
                table.setdefault(point.step, {})[tag] = point.value
        steps += sorted(table.items())
    last = found[0].data
    tags = {key: value for key, value in last.tags.items() if not key.startswith("mlflow.")}
    return Held(
        {each.info.run_id for each in found},
        found[0].info.run_name,
        tags.pop("sweep", ""),
        steps,
        {"tags": tags, "params": last.params},
        {key: value for key, value in last.metrics.items() if key.startswith("evaluation/")},
        found[0].info.status,
    )


READERS: dict[str, Callable[[Path], Held]] = {"wandb": of_wandb, "mlflow": of_mlflow}
FINISHED = {"wandb": 0, "mlflow": "FINISHED"}
FAILED = {"wandb": 1, "mlflow": "FAILED"}


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers write into `tmp_path` alone."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # which forgets the environment of the test before
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(params=TITLES)
def tracker(request: pytest.FixtureRequest, own_folder: None) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture
def both(own_folder: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags that ask for both, for commands in processes of their own, which take long to start."""
    for name in TITLES:
        pytest.importorskip(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return [word for name in TITLES for word in ("--track", name)]


def line_values(run: Path) -> dict[str, dict[int, float]]:
    return drawn_by(read_metrics(run))


def test_a_run_that_goes_on_is_one_run_with_every_step_once(material, tmp_path, tracker):
    folder, told = tmp_path / "run", []
    with pytest.raises(Stop), Tracking([tracker], say=told.append) as tracking:
        train(
            recipe(), material.cache, folder, on_progress=stop_at(8), tracking=tracking
        )  # the checkpoint is at step 5
    assert READERS[tracker](folder).ended == FAILED[tracker]
    with Tracking([tracker], say=told.append) as tracking:
        run = train(recipe(), material.cache, folder, tracking=tracking)
        evaluation = evaluate(run, material.cache)
        tracking.finish(run, evaluation, "finished")
    held = READERS[tracker](folder)
    assert (len(held.ids), held.name, held.group) == (1, "run", "")
    assert held.by_tag == line_values(folder)
    assert {"losses/streaming", "losses/window", "val/streaming", "val/window"} < held.by_tag.keys()
    assert held.ended == FINISHED[tracker]
    assert held.scores == pytest.approx(scores_of(evaluation))
    assert "evaluation/val/streaming/top-1/low" in held.scores
    assert len(told) == 2 and all(line.startswith(f"{TITLES[tracker]}: ") for line in told)
    untracked = train(recipe(), material.cache, tmp_path / "untracked")
    assert_same(final(run), final(untracked))
    assert run.header == untracked.header


def test_the_config_says_what_the_run_is_made_from(material, tmp_path, tracker):
    with Tracking([tracker]) as tracking:
        run = train(recipe(), material.cache, tmp_path / "run", tracking=tracking)
    held, header = READERS[tracker](run.path), run.header
    if tracker == "wandb":
        assert held.config == {
            "recipe": header.recipe,
            "cache": header.cache.model_dump(),
            "stillframe": pipeline.__version__,
        }
    else:
        assert held.config["tags"] == {
            "cache": header.cache.fingerprint,
            "stillframe": pipeline.__version__,
        }
        params = held.config["params"]
        assert params["recipe.training.steps"] == "12"
        assert params["recipe.temporal.name"] == "gru"
        assert params["cache.fingerprint"] == header.cache.fingerprint
        assert params["stillframe"] == pipeline.__version__
        assert json.loads(params["recipe.training.betas"]) == header.recipe["training"]["betas"]


def test_the_command_tracks_and_scores(place, tmp_path, tracker):
    folder = tmp_path / "run"
    command = ("train", place.recipe, place.cache, "--out", folder)
    done = call(*command)
    assert done.code == 0 and not list(folder.glob("tracker-*"))
    for _ in range(2):  # afterwards it takes what is there, and once more nothing
        done = call(*command, "--track", tracker, "--json")
        assert done.code == 0 and done.json["steps"] == 3
        (told,) = done.err.splitlines()
        assert told.startswith(f"{TITLES[tracker]}: ")
    held = READERS[tracker](folder)
    assert len(held.ids) == 1
    assert held.by_tag == line_values(folder)
    evaluation = read_evaluation(folder, "val")
    assert evaluation is not None
    assert held.scores == pytest.approx(scores_of(evaluation))


def started(*words: object) -> subprocess.Popen[str]:
    """A training that has saved a checkpoint, and has many steps to go."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folder = Path(str(words[words.index("--out") + 1]))
    while not (folder / "last.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_a_killed_training_goes_on_in_the_same_run(place, tmp_path, both):
    run = tmp_path / "run"
    words = ["train", place.recipe, place.cache, "--out", run, "--set", "training.steps=120"]
    words += ["--set", "training.checkpoint_every=7", *both]
    process = started(*words)
    process.kill()
    process.communicate()
    assert 0 < Run(run).checkpoint("last").step < 120
    done = call(*words)
    assert done.code == 0
    wanted = line_values(run)
    for tracker, reader in READERS.items():
        held = reader(run)
        assert len(held.ids) == 1, tracker
        assert held.by_tag == wanted, tracker


def test_ctrl_c_stops_a_training_and_its_trackers(place, tmp_path, both):
    run = tmp_path / "run"
    words = ["train", place.recipe, place.cache, "--out", run, "--set", "training.steps=100000"]
    process = started(*words, "--set", "training.checkpoint_every=5", *both)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said and said.splitlines()[-1].startswith("stopped; ")
    for tracker, state in {"wandb": 130, "mlflow": "KILLED"}.items():
        held = READERS[tracker](run)
        assert held.ended == state
        assert max(held.by_tag["loss"]) >= 4  # the checkpoint is saved before its step is told


def break_off(tracker: str, folder: Path) -> None:
    """What a tracker writes with, or to, is gone."""
    if tracker == "wandb":
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        names = {int(child): Path(f"/proc/{child}/comm").read_text() for child in children}
        (service,) = [child for child, name in names.items() if name.startswith("wandb-core")]
        os.kill(service, signal.SIGKILL)
    else:
        with sqlite3.connect(folder / "mlflow.db") as store:
            store.execute(
                "CREATE TRIGGER broken BEFORE INSERT ON metrics BEGIN SELECT RAISE(FAIL, 'no disk'); END"
            )


def test_a_tracker_that_dies_is_said_once_and_the_training_goes_on(material, tmp_path, tracker):
    folder, told = tmp_path / "run", []

    def on_progress(state):
        if state.step == 6:
            break_off(tracker, tmp_path)
        if state.step >= 6:
            time.sleep(0.1)  # until it is noticed

    with Tracking([tracker, "tensorboard"], say=told.append) as tracking:
        run = train(recipe(), material.cache, folder, on_progress=on_progress, tracking=tracking)
        tracking.finish(run, evaluate(run, material.cache), "finished")
    assert [line["step"] for line in read_metrics(folder)] == list(range(1, 13))
    assert drawn(folder) == line_values(folder)  # the other tracker is not harmed
    where, said = told
    assert where.startswith(f"{TITLES[tracker]}: ") and "\n" not in said
    assert said.startswith(f"{TITLES[tracker]} has failed, and run run goes on without it: ")
    assert said.endswith("; next: the same command once more logs what is missing")
    if tracker == "mlflow":
        assert "no disk" in said
        with sqlite3.connect(tmp_path / "mlflow.db") as store:
            store.execute("DROP TRIGGER broken")
    with Tracking([tracker]) as tracking:
        train(recipe(), material.cache, folder, tracking=tracking)
    assert READERS[tracker](folder).by_tag == line_values(folder)


def pair(folder: Path) -> SweepSpec:
    """A sweep of two members that train side by side."""
    lines = (
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in of.items())
        for name, of in BASE.items()
    )
    (folder / "base.toml").write_text("".join(lines))
    file = folder / "pair.toml"
    file.write_text('recipe = "base.toml"\nseeds = [0]\n[axes]\ntemporal = ["identity", "gru"]\n')
    return load_sweep(file)


def test_members_of_a_sweep_are_runs_of_a_group(material, tmp_path, tracker):
    with Tracking([tracker], "pair") as tracking:
        made = sweep(
            pair(tmp_path), {"given": material.cache}, tmp_path / "sweep", tracking=tracking
        )
    ids = set[str]()
    for member in made.members:
        held, evaluation = READERS[tracker](member.path), read_evaluation(member.path, "val")
        assert evaluation is not None
        assert (held.name, held.group, held.ended) == (member.name, "pair", FINISHED[tracker])
        assert held.by_tag == line_values(member.path)
        assert held.scores == pytest.approx(scores_of(evaluation))
        ids |= held.ids
    assert len(ids) == len(made.members) == 2


def test_a_worker_of_an_engine_tracks_its_members(material, tmp_path, tracker):
    planned = Sweep.planned(tmp_path / "sweep", pair(tmp_path), {"given": material.cache})
    planned.write_header()
    SweepJob(sweep=str(planned.path), device="cpu", track=(tracker,)).work(0)
    for member in planned.members:
        held = READERS[tracker](member.path)
        assert (held.group, held.ended) == ("pair", FINISHED[tracker])
        assert held.by_tag == line_values(member.path)


def test_the_first_process_alone_tracks(place, tmp_path, both):
    words = ["train", place.recipe, place.cache, "--out", tmp_path / "run", *both]
    code, _, errors = ended(start(2, "-m", "pipeline.cli", *words))
    assert (code, errors) == (0, [])
    for reader in READERS.values():
        held = reader(tmp_path / "run")
        assert len(held.ids) == 1 and held.by_tag == line_values(tmp_path / "run")


def test_a_tracker_that_does_not_answer_is_said_before_any_step(
    place, tmp_path, tracker, monkeypatch
):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # discard: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "run"
    refused = call("train", place.recipe, place.cache, "--out", folder, "--track", tracker)
    why = {"wandb": "No API key configured", "mlflow": "at http://127.0.0.1:9: API request to"}
    next_step = {"wandb": "WANDB_MODE=offline", "mlflow": "MLFLOW_TRACKING_URI"}
    assert_refused(
        refused,
        f"{TITLES[tracker]} does not take run 'run'",
        why[tracker],
        next_step[tracker],
    )
    assert not (folder / "metrics.jsonl").exists()


def test_a_store_that_does_not_know_the_run_gets_a_new_one(
    material, tmp_path, own_folder, monkeypatch
):
    pytest.importorskip("mlflow")
    for name in ("one.db", "other.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name}")
        with Tracking(["mlflow"]) as tracking:
            train(recipe(), material.cache, tmp_path / "run", tracking=tracking)
        assert of_mlflow(tmp_path / "run").by_tag == line_values(tmp_path / "run")


@pytest.mark.parametrize("name", TITLES)
def test_a_missing_package_is_said_before_anything(place, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    for command in (("train", place.recipe), ("sweep", "temporal_modules")):
        refused = call(*command, place.cache, "--out", tmp_path / "out", "--track", name)
        assert_refused(
            refused, f"{TITLES[name]} is not installed", f"pip install 'stillframe[{name}]'"
        )
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_refused(place, tmp_path):
    refused = call(
        "train", place.recipe, place.cache, "--out", tmp_path / "out", "--track", "mlflw"
    )
    assert_refused(refused, "no tracker called 'mlflw'", "did you mean 'mlflow'?")


def test_nothing_is_imported_unless_asked():
    code = (
        "import sys; from pipeline.train.trackers.tracking import Tracking; Tracking(); "
        "assert not {'wandb', 'mlflow', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_tracker_has_an_extra():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(TRACKERS) <= set(extras)
