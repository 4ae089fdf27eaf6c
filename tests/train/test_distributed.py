"""Several processes, started by torchrun: the losses of one, whatever the layout; whoever fails or
stops, nobody waits for ever."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.events import drawn, drawn_by
from support.material import FPS
from support.paths import ROOT
from support.processes import ended, start
from support.training import Stop, final, recipe, stop_at

from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.train.distributed import ALONE, Ranks
from pipeline.train.follow.arrivals import Round, Rounds
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics

TRAINING = {
    "steps": 6,
    "batch_size": 8,
    "warmup_steps": 2,
    "evaluate_every": 3,
    "checkpoint_every": 3,
}
SMALL = {"readout_width": 16, "heads": 2}
IN_THE_ROOM = {
    # Its streaming readout magnifies rounding errors as published: see StreamingBoxes.
    "boxes": {"task": {"name": "boxes", **SMALL, "hidden": 8, "forms": ["window"]}},
    "points": {"task": {"name": "points", **SMALL, "hidden": 8, "points": 6}},
    "depth": {"task": {"name": "depth", **SMALL, "size_px": 16, "patch_px": 8}},
    "pose": {"task": {"name": "pose", "readout_width": 16, "hidden": 8}},
    "boxes-still": {
        "task": {
            "name": "boxes",
            **SMALL,
            "hidden": 8,
            "start": "still",
            "reads": "both",
            "look": "updated",
        }
    },
    "points-likeness": {
        "task": {
            "name": "points",
            **SMALL,
            "hidden": 8,
            "start": "likeness",
            "reads": "likeness",
        }
    },
}
BY_MIXER = {
    mixer: {"model": {"mixer": mixer, "width": 12}} for mixer in ("mlp", "last", "norm", "concat")
}
CONTROLS = {
    "shuffle": {"windows": {"frames": 4, "fps": FPS, "shuffle": True}},
    "still": {"windows": {"frames": 4, "fps": FPS, "still": 0.5}},
    "kept": {"windows": {"frames": 4, "fps": FPS, "keep_tokens": 0.4}},
}
"""Windows that see less, by a draw or a choice that all processes share."""


def wanted(**changes):
    training = TRAINING | changes.pop("training", {})
    one = recipe(training=training)
    table = {key: value for key, value in changes.items() if "name" in value}  # replaced as a whole
    windows = {"frames": 4, "fps": 12 if table else FPS}
    merged = {key: value for key, value in changes.items() if key not in table}
    return plugins.validate(
        type(one), one.canonical() | {"windows": windows} | table | merged, "test"
    )


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The cache of a few clips whose boxes, points, depth and poses are known."""
    root = tmp_path_factory.mktemp("room")
    dials = {
        "scene": "room",
        "rooms": 1,
        "clips_per_class": 4,
        "frames": 6,
        "size_px": 32,
        "val_fraction": 0.3,
    }
    config = {
        "model_type": "vit",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
    }
    config |= {"num_attention_heads": 2, "patch_size": 16, "image_size": 32}
    table = {
        "name": "room",
        "encoder": {"name": "transformers", "layers": [0, 1], "seed": 0, "config": config},
        "frames": {"size_px": 32},
        "store": {"chunk_frames": 4, "store_mb": 1, "shard_mb": 1},
    }
    return extract.extract(
        plugins.validate(CacheSpec, table, "test"),
        manifest.build("world", None, root / "data", dials),
        root / "caches",
    )


@pytest.fixture(scope="module")
def whole(material, room, tmp_path_factory):
    """name -> the run of one process, the batch in one part."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        name: train(
            wanted(**changes), room if name in IN_THE_ROOM else material.cache, folder / name
        )
        for name, changes in (BY_MIXER | CONTROLS | IN_THE_ROOM).items()
    }


@pytest.fixture(scope="module")
def two(material, room, whole, tmp_path_factory):
    """The folder of what two processes have done in one start."""
    folder = tmp_path_factory.mktemp("two")
    jobs = []

    def add(name, cache, out, **rest):
        jobs.append(
            {
                "recipe": wanted(**name).canonical(),
                "cache": str(cache.path),
                "out": str(folder / out),
            }
            | rest
        )

    with pytest.raises(Stop):
        train(wanted(), material.cache, folder / "from-one", on_progress=stop_at(5))
    for place in ("0", "1"):
        shutil.copytree(folder / "from-one", folder / "checkpoints" / place)
    (folder / "checkpoints/1/last.json").unlink()
    add({}, material.cache, "spoilt", spoil="train")
    add({}, material.cache, "spoilt-val", spoil="val")
    add({}, material.cache, "apart", apart=True)
    add({}, material.cache, "checkpoints", apart=True)
    add({"training": {"batch_size": 9}}, material.cache, "odd")
    add({}, material.cache, "from-two", stop=5)
    add({}, material.cache, "from-one")
    add({"temporal": {"name": "min_gru", "layers": 1, "dropout": 0.5}}, material.cache, "dropout")
    followed = write_rounds(folder / "followed", material.cache)
    add({}, material.cache, followed.name)
    for name, changes in (BY_MIXER | CONTROLS | IN_THE_ROOM).items():
        for parts in (1, 2):
            cache = room if name in IN_THE_ROOM else material.cache
            add(changes | {"training": {"accumulate": parts}}, cache, f"{name}-{parts}")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    code, _, said = ended(
        start(2, ROOT / "tests" / "support" / "ranks_worker.py", folder / "jobs.json")
    )
    assert (code, said) == (0, [])
    return folder


def write_rounds(run: Path, cache) -> Path:
    """A run folder as that of a training that has begun with some of the stores of its cache."""
    stores, clips = sorted(cache.plan), len(cache.manifest.split("train"))
    come = {1: [0], clips: [1, 2, *range(3, len(stores))]}
    rounds = tuple(
        Round(step=3 * number, steps=3, stores=tuple(those), windows=windows, of=clips)
        for number, (windows, those) in enumerate(come.items())
    )
    run.mkdir(exist_ok=True)
    Rounds(format_version=1, windows=clips, rounds=rounds).write(run)
    return run


@pytest.mark.slow
def test_processes_that_follow_a_cache_draw_what_one_draws(material, two, tmp_path):
    one = train(wanted(), material.cache, write_rounds(tmp_path / "run", material.cache))
    assert_alike(Run(two / "followed"), one)


def assert_alike(run: Run, other: Run) -> None:
    """The same curve, the same scores and nearly the same weights."""
    ours, theirs = read_metrics(run.path), read_metrics(other.path)
    assert (
        [line["step"] for line in ours]
        == [line["step"] for line in theirs]
        == list(range(1, TRAINING["steps"] + 1))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["step"]
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=2e-3)
        assert a["learning_rate"] == b["learning_rate"]
        assert a.get("val") == (pytest.approx(b["val"], rel=1e-3) if "val" in b else None)
    weights = final(other)
    for name, tensor in final(run).items():
        if name.startswith(("model.", "task.")):
            torch.testing.assert_close(tensor, weights[name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BY_MIXER, *CONTROLS, *IN_THE_ROOM])
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_have_the_losses_of_one(whole, two, name, parts):
    assert_alike(Run(two / f"{name}-{parts}"), whole[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_THE_ROOM)
def test_parts_of_unequal_truth_add_up(room, whole, tmp_path, name):
    assert_alike(
        train(wanted(**IN_THE_ROOM[name], training={"accumulate": 4}), room, tmp_path / "run"),
        whole[name],
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_under_another_number_of_processes(material, whole, two):
    assert Run(two / "from-two").checkpoint("last").step == 3
    assert_alike(train(wanted(), material.cache, two / "from-two"), whole["mlp"])
    assert_alike(Run(two / "from-one"), whole["mlp"])


@pytest.mark.slow
def test_dropout_takes_other_activations_in_another_layout(material, two, tmp_path):
    changes = {"temporal": {"name": "min_gru", "layers": 1, "dropout": 0.5}}
    lines = read_metrics(train(wanted(**changes), material.cache, tmp_path / "run").path)
    others = read_metrics(two / "dropout")
    assert lines[0]["loss"] != pytest.approx(others[0]["loss"], rel=1e-6)
    assert len(lines) == len(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("spoilt", "not finite"),
        ("spoilt-val", "not finite"),
        ("apart", "not all processes of this training see run"),
        ("checkpoints", "different checkpoints"),
        (
            "odd",
            "batch_size 9 is no multiple of 2 processes x 1 parts; next: make it a multiple of 2",
        ),
    ],
)
def test_what_goes_wrong_in_one_process_all_are_told(two, out, words):
    for rank in range(2):
        message = (two / f"{out}.{rank}.error").read_text()
        assert words in message or (
            (out, rank) == ("spoilt", 0) and "loss is nan, at step 1 " in message
        )


@pytest.mark.slow
def test_a_batch_that_does_not_divide_leaves_no_run(two):
    assert not (two / "odd").exists() and (two / "from-two").exists()


def test_each_process_has_a_gpu_of_its_own_and_none_that_is_named():
    with pytest.raises(BadInput, match="--device cuda:1 is one GPU, there are 2 processes"):
        Ranks(1, 2).device(torch.device("cuda:1"))
    assert Ranks(1, 2).device(torch.device("cpu")) == torch.device("cpu")
    assert ALONE.device(torch.device("cuda:1")) == torch.device("cuda:1")


def ranks_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """Rank -> process id."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in children}
    found = {
        pid: [item[5:].decode() for item in items if item.startswith(b"RANK=")]
        for pid, items in environments.items()
    }
    return {rank[0]: int(pid) for pid, rank in found.items() if rank}


def train_command(material, tmp_path, **training) -> list[object]:
    table = wanted(training=training).canonical()
    sections = "".join(
        f"[{name}]\n"
        + "".join(
            f"{key} = {json.dumps(value)}\n"
            for key, value in table[name].items()
            if value is not None
        )
        for name in ("task", "temporal", "windows", "model", "training")
    )
    (tmp_path / "mine.toml").write_text(sections)
    return [
        "-m",
        "pipeline.cli",
        "train",
        tmp_path / "mine.toml",
        material.cache.path,
        "--out",
        tmp_path / "run",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the processes in /proc")
def test_a_killed_process_ends_the_training_and_three_go_on(material, tmp_path):
    training = {"steps": 48, "batch_size": 6, "evaluate_every": 24}
    command = train_command(material, tmp_path, **training, checkpoint_every=2)
    process = start(2, *command, "--tensorboard")
    while process.poll() is None and not (tmp_path / "run/last.json").exists():
        time.sleep(0.01)
    os.kill(ranks_of(process)["1"], signal.SIGKILL)
    code, out, said = ended(process)
    assert (code, out) == (1, "")
    assert len(said) <= 1  # torchrun may be quicker to end the other
    assert all(
        line.startswith("error: another process of this training has ended or does not answer: ")
        for line in said
    )
    step = Run(tmp_path / "run").checkpoint("last").step
    assert 0 < step < 48
    code, out, said = ended(start(3, *command, "--tensorboard", "--json"))
    assert (code, said) == (0, [])
    assert json.loads(out)["steps"] == 48
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 49))
    undisturbed = train(wanted(training=training), material.cache, tmp_path / "alone")
    for ours, theirs in zip(lines, read_metrics(undisturbed.path), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours.get("val") == theirs.get(
            "val"
        )  # of two clips, so that one of the three has none
    assert drawn(tmp_path / "run") == drawn_by(lines)


def test_what_one_process_cannot_read_ends_all(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / "cache")
    shard = next(
        path
        for path in sorted((tmp_path / "cache/stores").rglob("layer_5/c/*/*/*"))
        if path.is_file()
    )
    data = bytearray(shard.read_bytes())
    data[3] ^= 255
    shard.write_bytes(data)
    command = [
        str(part).replace(str(material.cache.path), str(tmp_path / "cache"))
        for part in train_command(material, tmp_path)
    ]
    code, out, said = ended(start(2, *command))
    assert (code, out, len(said)) == (1, "", 1)
    assert "error: " in said[0] and "checksum" in said[0]
