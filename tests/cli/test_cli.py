"""The command line as a person meets it: exit code, stdout, stderr and what lies on disk, for good input and for bad."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from rich.console import Console
from support.commands import Result, assert_refused, call, digest, fine, process
from support.forgery import edit
from support.material import LENGTHS, address_spec, address_video, write_video
from support.media import tone

from pipeline import __version__
from pipeline.cache.cache import Cache
from pipeline.cache.layout import receipt_name
from pipeline.cache.status import status
from pipeline.cli import console
from pipeline.cli.about.version import commit_of
from pipeline.cli.main import main
from pipeline.config import plugins
from pipeline.config.shipped import KINDS, shipped
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import count_text
from pipeline.extract import extract
from pipeline.models.encoders.address import paint
from pipeline.train.run import Run

COMMANDS = [
    "manifest",
    "extract",
    "derive",
    "status",
    "verify",
    "diff",
    "spot-check",
    "train",
    "evaluate",
]
COMMANDS += ["stream", "import-checkpoint", "push", "pull", "report"]
COMMANDS += [
    "demo",
    "list",
    "show",
    "doctor",
    "bench extract",
    "bench startup",
    "bench leases",
    "bench temporal",
    "bench codecs",
    "bench read",
    "bench write",
]
COMMANDS += [
    "plan",
    "sweep",
    "baselines",
    "predictability",
    "bench plan",
    "bench epoch",
    "bench report",
    "bench sweep",
    "bench search",
    "search",
]


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_and_shows_an_example(command):
    result = fine(*command.split(), "--help")
    assert result.out.startswith("Usage: ")
    example = re.search(r"Example: (stillframe .+)", result.out)
    assert example and example[1].startswith(f"stillframe {command}")
    assert re.findall(r"^  (-.+?)  ", result.out, re.MULTILINE)[-1] == "-h, --help"
    assert fine(*command.split(), "-h") == result


def test_help_lists_every_command():
    listed = re.findall(
        r"^  ([a-z-]+)  ", fine("--help").out.partition("Commands:")[2], re.MULTILINE
    )
    assert listed == [
        "manifest", "extract", "derive", "status", "verify", "diff", "spot-check", "plan", "baselines", "predictability", "search",
        "train", "sweep", "evaluate", "stream", "import-checkpoint", "import-features", "export", "export-features", "push", "pull", "report", "demo",
        "list", "show", "check-plugin", "doctor", "bench",
    ]  # fmt: skip
    listed = re.findall(
        r"^  ([a-z]+)  ", fine("bench", "--help").out.partition("Commands:")[2], re.MULTILINE
    )
    assert listed == [
        "extract",
        "read",
        "write",
        "startup",
        "leases",
        "codecs",
        "temporal",
        "forecast",
        "step",
        "keep",
        "epoch",
        "plan",
        "sweep",
        "report",
        "search",
    ]


@pytest.mark.parametrize(("width", "parts"), [(100, 1), (60, 2)])
def test_no_figure_is_broken_where_a_table_has_no_room(width, parts, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=shown, width=width))
    columns = ("setting", "form", "score", "95 % interval", "gain", "95 % interval")
    row = ("gated_mamba_mix", "streaming", "0.125", "0.000 .. 0.375", "+0.250", "-0.125 .. +0.625")
    console.show_table("scores", columns, [row], justify="llrlrl", keys=2, cut=4)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    named = [line.split() for line in lines if "gated_mamba_mix" in line]
    assert len(named) == parts
    figures = " ".join(word for words in named for word in words)
    assert all(cell in figures for cell in row)


def test_words_of_earlier_versions_still_work_and_are_not_listed(place):
    as_before = fine("replay", place.cache, "--fraction", 1, "--json").json
    assert as_before == fine("spot-check", place.cache, "--fraction", 1, "--json").json
    assert "bench startup" in fine("bench", "scale", "--help").out
    planned = fine("plan", place.spec, place.data, place.recipe, "--probe-s", 0)
    assert planned == fine("plan", place.spec, place.data, place.recipe, "--measure-s", 0)
    shown = [fine(*words, "--help").out for words in ([], ["bench"], ["plan"], ["bench", "plan"])]
    assert not re.search(r"^ +(replay|scale|--probe-s)\b", "\n".join(shown), re.MULTILINE)


@pytest.mark.parametrize("group", ["", "bench"])
def test_no_command_shows_the_help_and_no_error(group):
    assert fine(*group.split()) == fine(*group.split(), "--help")


@pytest.mark.parametrize("group", ["", "bench", "manifest"])
def test_what_a_command_is_for_is_one_sentence_in_80_columns(group, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    help_text = fine(*group.split(), "--help").out
    listed = re.findall(r"^  ([a-z-]+)  +(.+)$", help_text.partition("Commands:")[2], re.MULTILINE)
    assert len(listed) >= 4
    cut = [name for name, what in listed if not re.fullmatch(r"[A-Z].*[^.]\.", what)]
    assert cut == []
    assert max(map(len, help_text.splitlines())) <= 80


def test_the_version_is_one_line_with_the_commit_of_a_checkout(tmp_path):
    assert re.fullmatch(
        rf"stillframe {re.escape(__version__)}( \(commit [0-9a-f]{{10,}}(-dirty)?\))?\n",
        fine("--version").out,
    )
    assert commit_of(tmp_path) is None  # no checkout
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_of(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert commit_of(tmp_path) == head[:10]
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path) == f"{head[:10]}-dirty"


def test_completion_of_the_shell_names_commands(monkeypatch, capsys):
    """What bash asks for where `stillframe sp` is followed by a tabulator."""
    monkeypatch.setenv("_STILLFRAME_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "stillframe sp")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit) as stop:
        main([])
    assert (stop.value.code, capsys.readouterr().out.split()) == (0, ["spot-check"])


# Every command, for real


def test_manifest(place, built, tmp_path):
    result = fine(
        "manifest", "folder", place.videos, "--out", tmp_path / "data", "--set", "val_fraction=0.3"
    )
    clips, rates = result.out.splitlines()
    assert clips == f"{tmp_path}/data: 6 clips of 6 videos (val 2, train 4), 2 labels"
    assert rates.endswith("give even steps")
    assert sorted(digest(tmp_path / "data")) == ["dataset.json", "manifest.jsonl", "videos.jsonl"]
    facts = fine(
        "manifest",
        "folder",
        place.videos,
        "--out",
        tmp_path / "data",
        "--set",
        "val_fraction=0.3",
        "--json",
    ).json
    assert facts == {
        "manifest": f"{tmp_path}/data",
        "clips": {"val": 2, "train": 4},
        "videos": 6,
        "labels": ["a", "b"],
        "captions": 0,
        "questions": 0,
        "rejected": {},
        "notes": {},
        "left_out": {},
        "ignored": 0,
        "digest": hashlib.sha256((tmp_path / "data/manifest.jsonl").read_bytes()).hexdigest(),
    }
    assert facts["digest"] == built.digest


@pytest.mark.parametrize(
    ("arguments", "help_of"),
    [
        (["extract", "--fps", "8"], " extract"),
        (["bench", "read", "--fps"], " bench read"),
        (["x"], ""),
    ],
)
def test_a_wrong_option_points_to_the_help_of_its_command(arguments, help_of):
    assert_refused(call(*arguments), "No such ", f"next: stillframe{help_of} --help")


def test_extract_dry_run_says_what_would_be_and_does_nothing(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest(place.folder)
    text = fine("extract", place.spec, place.data, "--dry-run").out
    assert (
        text
        == "6 videos, about 125 frames, 3 stores, 40.0 kB\n20 tokens and 320 bytes per frame, grid 3x3\n"
    )
    assert fine("extract", place.spec, place.data, "--dry-run", "--json").json == {
        "spec": "address",
        "videos": 6,
        "frames": 125,
        "stores": 3,
        "store_bytes": 125 * 320,
        "bytes_per_frame": 320,
        "tokens_per_frame": 2 * 9 + 2,
        "grid": "3x3",
    }
    assert list(tmp_path.iterdir()) == [] and digest(place.folder) == before


def test_extract(place, material):
    assert place.cache.name == material.cache.name
    assert digest(place.cache / "stores") == digest(material.cache.path / "stores")
    before = digest(place.cache)
    lines = fine("extract", place.spec, place.data, "--out", place.cache.parent).out.splitlines()
    stored = sum(
        file.stat().st_size for file in (place.cache / "stores").rglob("*") if file.is_file()
    )
    assert lines[:-1] == [
        f"{place.cache}: 3 of 3 stores, 125 frames, {stored / 1e3:.1f} kB ({stored / 125:.0f} bytes per frame), codec float16",
        "videos: 6 of 6 whole, 0 failed",
        "split val: 2 of 2 clips, 2 of 2 videos, 55 of about 55 frames",
        "split train: 4 of 4 clips, 4 of 4 videos, 70 of about 70 frames",
    ]
    assert re.fullmatch(r"work: decode [\d.]+ s, encode [\d.]+ s, write [\d.]+ s", lines[-1])
    assert digest(place.cache) == before


def test_extract_says_how_a_sibling_differs(place, cache):
    result = call(
        "extract", place.spec, place.data, "--out", cache.parent, "--set", "frames.fps=5", "--json"
    )
    assert result.code == 0
    assert (
        result.err
        == f'beside it lies {cache.name}, which differs in (this / that): spec.frames.fps: 5.0 / "all"\n'
    )
    assert result.json["fingerprint"] != Cache(cache).fingerprint
    assert len(list(cache.parent.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format_version": 9}'])
def test_extract_minds_no_damaged_neighbour(place, cache, content):
    neighbour = cache.with_name("address-000000000000")
    neighbour.mkdir()
    (neighbour / "cache.json").write_bytes(content)
    before = digest(cache.parent)
    result = fine("extract", place.spec, place.data, "--out", cache.parent, "--json")
    assert result.json == status(Cache(cache)).model_dump(mode="json")
    assert digest(cache.parent) == before


def test_status(place):
    result = fine("status", place.cache, "--json")
    assert result.json == status(Cache(place.cache)).model_dump(mode="json")
    assert result.json["frames"] == sum(LENGTHS.values())
    assert result.json["stores"] == {"planned": 3, "done": 3}
    splits = {
        split: (each["covered"], each["clips"]) for split, each in result.json["splits"].items()
    }
    assert splits == {"val": (2, 2), "train": (4, 4)}
    assert (
        fine("status", place.cache).out
        == fine("extract", place.spec, place.data, "--out", place.cache.parent).out
    )


def test_verify(place):
    assert fine("verify", place.cache).out == f"{place.cache}: 3 stores, every checksum holds\n"
    facts = fine("verify", place.cache, "--json").json
    nothing = {"stores_missing": [], "problems": [], "of_cache": {}, "left_over": {}}
    assert facts == {"cache": str(place.cache), "stores_checked": 3} | nothing


def test_train(place, tmp_path):
    facts = fine("train", place.recipe, place.cache, "--out", tmp_path / "run", "--json").json
    assert facts["run"] == f"{tmp_path}/run" and facts["steps"] == 3
    assert facts["parameters"] == Run(tmp_path / "run").header.parameters
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert facts["val"] == last["val"] and set(facts["val"]) == {"streaming", "window"}
    files = [
        "best-000003.safetensors",
        "best.json",
        "last-000003.safetensors",
        "last.json",
        "metrics.jsonl",
        "run.json",
        "videos.json",
    ]
    assert sorted(digest(tmp_path / "run")) == files
    before = digest(tmp_path / "run")
    text = fine("train", place.recipe, place.cache, "--out", tmp_path / "run").out
    total = f"{sum(facts['parameters'].values()):,}"
    scores = f"streaming {facts['val']['streaming']:.3f}, window {facts['val']['window']:.3f}"
    assert text == (
        f"{tmp_path}/run: 3 steps, {total} trained parameters\n"
        f"val top-1, higher is better: {scores}; trivial answer {facts['trivial']:.3f}\n"
        f"next: stillframe evaluate {tmp_path}/run\n"
    )
    assert digest(tmp_path / "run") == before
    assert facts["trivial"] == call("evaluate", tmp_path / "run", "--json").json["trivial"]["top-1"]


def test_train_takes_shipped_recipes_by_name_and_overrides(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [
        part
        for text in ("training.steps=1", "windows.fps=10", "training.batch_size=2")
        for part in ("--set", text)
    ]
    facts = call("train", "demo_identity", place.cache, *sets, "--json").json
    assert facts["run"] == "runs/demo_identity" and facts["steps"] == 1
    assert Run(tmp_path / "runs/demo_identity").recipe.training.batch_size == 2


def test_train_counts_what_windows_repeat(place, tmp_path):
    """One video has half the frames per second of a window, two are over before it."""
    for video, (frames, fps) in enumerate([(12, 10), (12, 5), (3, 10), (2, 10), (12, 10)]):
        write_video(
            tmp_path / f"videos/x/v{video}.mp4",
            [paint(video, frame, 64) for frame in range(frames)],
            fps,
        )
    (tmp_path / "videos/x/v4.mp4").rename(tmp_path / "videos/x/v4.held.mp4")
    fine(
        "manifest",
        "folder",
        tmp_path / "videos",
        "--out",
        tmp_path / "data",
        "--set",
        "val_fraction=0.2",
    )
    train = [
        int(clip.source[3])
        for clip in Manifest.load(tmp_path / "data").clips
        if clip.split == "train"
    ]
    fine("extract", place.spec, tmp_path / "data", "--out", tmp_path / "caches")
    (cache,) = (tmp_path / "caches").iterdir()
    result = call("train", place.recipe, cache, "--out", tmp_path / "run")
    padded, slower = sum(video in (2, 3) for video in train), sum(video == 1 for video in train)
    assert padded and slower
    assert result.code == 0 and result.err == (
        f"{padded} clips of split 'train' are shorter than a window: their last frame repeats\n"
        f"{slower} clips of split 'train' have fewer frames per second than a window: their frames repeat\n"
    )
    counts = {"train": len(train), "padded": padded, "slower": slower, "skipped": 0}
    assert Run(tmp_path / "run").header.clips == counts


def test_evaluate(place, run):
    (run / "evaluation-val.json").unlink()
    facts = fine("evaluate", run, "--json").json
    assert facts == json.loads((run / "evaluation-val.json").read_text())
    assert (
        facts["clips_scored"] == 2
        and facts["trivial"] == {"top-1": 0.5}
        and facts["checkpoint"] == {"which": "last", "step": 3}
    )
    scores = {form: values["top-1"] for form, values in facts["forms"].items()}
    for form, values in scores.items():
        assert values["score"] == np.mean([clip[form] for clip in facts["clips"].values()])
    text = fine("evaluate", run).out
    assert text.startswith("classify on split val: 2 clips")
    assert re.search(r"^ *trivial +0.500 +0.000 .. 1.000 *$", text, re.MULTILINE)
    for form, values in scores.items():
        assert re.search(
            rf"run +identity +{form} +{values['score']:.3f} +{values['low']:.3f} \.\. {values['high']:.3f}",
            text,
        )
    on_train = call("evaluate", run, "--split", "train", "--checkpoint", "best", "--json")
    assert on_train.code == 0 and on_train.json["clips_scored"] == 4
    assert on_train.err.startswith(f"4 of 4 videos were seen in training by {run}: ")
    assert (run / "evaluation-train.json").is_file()


def test_evaluate_asks_a_run_whether_it_is_causal(run, cache):
    said = fine("evaluate", run, "--cache", cache, "--check-causal").out
    assert "causal: in 2 windows nothing that is said of a frame changes" in said


def test_baselines_need_no_run(place, run, cache):
    """The trivial answer is scored on the windows that a run of the recipe is scored on, for all caches that are named."""
    found = fine("baselines", place.recipe, cache, "--json").json
    facts = json.loads((run / "evaluation-val.json").read_text())
    assert [(one["cache"]["name"], one["clips_scored"]) for one in found] == [(cache.name, 2)]
    of_run = facts["baselines"]["trivial"]
    assert found[0]["baselines"] == {"trivial": of_run | {"run_gains": {}}}
    text = fine("baselines", place.recipe, cache, cache).out
    assert text.startswith("classify on split val, without training: 2 clips of 2 videos")
    assert len(re.findall(rf"^ *{cache.name} +trivial +0.500 ", text, re.MULTILINE)) == 2


def test_evaluate_finds_a_cache_that_was_moved(place, run, cache):
    edit(run / "run.json", lambda header: header.update(cache_path=str(cache.parent / "gone")))
    assert_refused(call("evaluate", run), f"{cache.parent}/gone is not a cache", "; next: ")
    assert (
        fine("evaluate", run, "--cache", cache, "--json").json["forms"]
        == json.loads((place.run / "evaluation-val.json").read_text())["forms"]
    )


def test_report(place, tmp_path):
    before = digest(place.run)
    assert (
        fine("report", place.run, "--out", tmp_path / "report").out
        == f"{tmp_path}/report/report.html\n"
    )
    plots = ["confusion.png", "loss.png", "scores.png", "tokens.png", "validation.png"]
    tables = ["baselines.csv", "coverage.csv", "report.json", "report.md", "runs.csv", "scores.csv"]
    files = sorted(name for name in digest(tmp_path / "report") if not name.startswith("videos/"))
    assert files == sorted(["report.html", *plots, *tables])
    scores = json.loads((place.run / "evaluation-val.json").read_text())["forms"]
    with (tmp_path / "report/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["form"]: float(row["score"]) for row in rows} == {
        form: values["top-1"]["score"] for form, values in scores.items()
    }
    assert "identity" in (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert digest(place.run) == before


def test_list():
    rows = fine("list", "--json").json
    wanted = [(kind, name) for kind in plugins.FOLDERS for name in plugins.names(kind)]
    assert [(row["kind"], row["name"]) for row in rows] == [
        *wanted,
        *((kind, name) for kind in KINDS for name in shipped(kind)),
    ]
    assert all(row["what"] for row in rows)
    assert fine("list", "codec", "--json").json == [row for row in rows if row["kind"] == "codec"]
    text = fine("list").out
    assert all(re.search(rf"^ *{kind} +{name}\b", text, re.MULTILINE) for kind, name in wanted)
    assert (
        fine("list", "temporal").out.count("temporal ") == len(plugins.names("temporal"))
        and "gru" in text
    )


# Bad input: what is typed, and below it what the one line on stderr must hold

BAD = """
# Command and options
$ nonsense
    nonsense
    ; next:
$ status {cache} --jsno
    --jsno
    ; next:
$ extract
    SPEC...
    ; next:
$ extract {spec} {data} --decoders 0
    --decoders
    1
# Wrong paths
$ extract {folder}/adress.toml {data}
    spec {folder}/adress.toml does not exist; next: in {folder} there are: address.toml, tiny.toml, vit.toml
$ train {folder}/x.toml {cache}
    recipe {folder}/x.toml does not exist; next:
    tiny.toml
$ extract {folder} {data}
    spec {folder}
$ extract {spec} {folder}/dat
    {folder}/dat is no manifest: manifest.jsonl cannot be read
    ; next:
$ status {folder}/caches
    {folder}/caches is not a cache: it has no cache.json
    ; next: there are: {cache}
$ verify {folder}/no
    {folder}/no is not a cache: it has no cache.json; next: make one with: stillframe extract
$ train {recipe} {data}
    {data} is not a cache: it has no cache.json
    ; next:
$ evaluate {run} --cache {data}
    {data} is not a cache: it has no cache.json
    ; next:
$ evaluate {cache}
    {cache} is not a run: it has no run.json; next: make one with: stillframe train
$ report {run} {folder}/runs
    {folder}/runs is no run, sweep or cache: it has no run.json
    ; next: name the folders of runs
$ train {recipe} {cache} --manifest {folder}
    {folder} is no manifest: manifest.jsonl
    ; next:
$ manifest folder {folder}/vidoes
    folder of videos {folder}/vidoes does not exist; next: did you mean {videos}?
$ manifest folder {spec}
    folder of videos {spec} is a file, not a folder
$ manifest folder
    dataset 'folder' reads videos of yours and was given no folder; next:
$ manifest folder {data}
    no media found in {data} (other files: 3); next: looked for
    .mp4
$ extract {spec} {data} --root {folder}/vidoes
    {folder}/vidoes does not exist; next: did you mean {videos}?
$ demo --spec {folder}/adress.toml
    spec {folder}/adress.toml does not exist; next:
# Unknown names
$ manifest foldr {videos}
    no dataset called 'foldr'; there are:
    ; next: did you mean 'folder'?
$ extract {spec} {data} --set encoder.name=addres
    no encoder called 'addres'
    ; next: did you mean 'address'?
$ extract {spec} {data} --set codec.name=float61
    no codec called 'float61'
    ; next: did you mean 'float16'?
$ train {recipe} {cache} --set temporal.name=gruu
    no temporal called 'gruu'
    ; next: did you mean 'gru'?
$ train {recipe} {cache} --set task.name=clasify
    no task called 'clasify'
    ; next: did you mean 'classify'?
$ train demo_gruu {cache}
    no recipe called 'demo_gruu'
    ; next: did you mean 'demo_gru'?
$ list codek
    no kind called 'codek'
    ; next: did you mean 'codec'?
$ evaluate {run} --checkpoint lst
    no checkpoint called 'lst'; there are: best, last; next: did you mean 'last'?
$ evaluate {run} --split vall
    no split called 'vall'; there are: train, val; next: did you mean 'val'?
$ report {run} --split test
    not evaluated on split 'test': {run}; next: stillframe evaluate
$ extract {spec} {data} --device gpu
    no device called 'gpu'; next: cpu, cuda or cuda:1
$ extract {spec} {data} --device xla
    'xla'
    ; next:
$ train {recipe} {cache} --device meta
    'meta'
    ; next:
# Keys and values
$ extract {spec} {data} --set frames.size=3
    {spec}: unknown key 'frames.size' (did you mean 'size_px'?)
$ train {recipe} {cache} --set training.stepps=3
    {recipe}: unknown key 'training.stepps' (did you mean 'steps'?)
$ extract {spec} {data} --set encoder.widht=8
    unknown key 'widht' (did you mean 'width'?)
$ manifest folder {videos} --set val_fractoin=0
    unknown key 'val_fractoin' (did you mean 'val_fraction'?)
$ extract {spec} {data} --set fps=3 --set frames.fitt=1
    unknown key 'fps'
    unknown key 'frames.fitt' (did you mean 'fit'?)
$ extract {spec} {data} --set frames.size_px=big
    {spec}: key 'frames.size_px'
    integer
    found 'big'
$ extract {spec} {data} --set frames.fps=0
    key 'frames.fps
    found 0
$ train {recipe} {cache} --set training.epochs=1
    key 'training'
    exactly one of steps and epochs
$ extract {spec} {data} --set encoder.width.x=8
    encoder.width.x: 'width' is a value, not a table
$ extract {spec} {data} --set encoder=8
    [encoder] must be a table with a name, found 8; next: names: address, features, rvm, transformers
$ extract {spec} {data} --set frames.fps
    --set wants key=value, found 'frames.fps'; next: for example --set frames.fps=8
$ train {recipe} {cache} --set =8
    --set wants key=value, found '=8'; next:
# What does not fit together
$ extract {folder}/vit.toml {data}
    layer 7
    this encoder has 2 blocks, 0..1
$ extract {spec} {data} --set encoder.layers=[5,2]
    layers must be ascending
    found [5, 2]
$ extract {folder}/vit.toml {data} --dry-run
    layer 7
    this encoder has 2 blocks, 0..1
$ extract {folder}/vit.toml {data} --set encoder.layers=[1] --set frames.size_px=70
    size_px = 70
    32 px; next: near: 64, 96
$ train {recipe} {cache} --set 'cache="abc"'
    recipe 'tiny' wants the cache with fingerprint abc, {cache} has
    ; next: give the cache it wants
$ train {recipe} {cache} --out {run} --set training.learning_rate=0.1
    run {run} was made from something else; now / then: recipe.training.learning_rate: 0.1 / 0.0003; next: use another --out
$ evaluate {run} --cache {slow}
    was trained on the cache with fingerprint
    {slow} has
    ; next: give the cache
$ train {recipe} {slow}
    windows want 10 frames per second, cache {slow} holds 4; next: set windows.fps to at most 4, or extract with
$ manifest playback {videos}
    none of 6 videos in {videos} can be used
    a/v0.mp4: too few frames (10 per second), wanted at least
    (min_fps)
# Places that cannot be written
$ manifest folder {videos} --out {spec}
    {spec}
$ report {run} --out {spec}
    {spec}
$ train {recipe} {cache} --out {spec}
    {spec}
"""


def cases() -> list[Any]:
    """(command, parts of the answer) of every entry."""
    found: list[Any] = []
    for line in BAD.splitlines():
        if line.startswith("$ "):
            found.append(pytest.param(line[2:], [], id=line[2:]))
        elif line.startswith("    "):
            found[-1].values[1].append(line[4:])
    return found


@pytest.mark.parametrize(("command", "parts"), cases())
def test_bad_input(place, slow_cache, tmp_path, monkeypatch, command, parts):
    monkeypatch.chdir(tmp_path)
    names = {
        name: str(getattr(place, name))
        for name in ("folder", "videos", "spec", "recipe", "data", "cache", "run")
    }
    names["slow"] = str(slow_cache)
    before = digest(place.folder), digest(slow_cache)
    result = call(*shlex.split(command.format(**names)))
    if (
        command.endswith("--out {spec}") and result.code == 1
    ):  # a place that cannot be written may also count as a failure
        result = dataclasses.replace(result, code=2)
    assert_refused(result, *(part.format(**names) for part in parts))
    assert (digest(place.folder), digest(slow_cache)) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize(
    "command",
    ["extract {spec} {data}", "train {recipe} {cache}", "evaluate {run}", "bench extract"],
)
def test_cuda_where_there_is_none(place, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    before = digest(place.folder)
    arguments = command.format(
        spec=place.spec, data=place.data, recipe=place.recipe, cache=place.cache, run=place.run
    ).split()
    assert_refused(
        call(*arguments, "--device", "cuda:1"),
        "device 'cuda:1' asks for CUDA, which this machine",
        "; next: --device cpu",
    )
    assert digest(place.folder) == before and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"[encoder\n", ["is not valid TOML: Expected ']'", "line 1"]),
        (b"\xff", ["is not valid TOML", "utf-8"]),
        (b"", ["key 'encoder' is missing; key 'frames' is missing"]),
        (
            b"[frames]\nsize_px = 64\n[encoder]\nlayers = [1]\n",
            ["[encoder] must be a table with a name", "; next: names: address"],
        ),
    ],
)
def test_a_spec_that_is_none(place, tmp_path, content, parts):
    (tmp_path / "bad.toml").write_bytes(content)
    assert_refused(
        call("extract", tmp_path / "bad.toml", place.data, "--out", tmp_path / "caches"), *parts
    )
    assert not (tmp_path / "caches").exists()


# Manifests


def test_a_manifest_edited_by_hand(place, tmp_path):
    data = Path(shutil.copytree(place.data, tmp_path / "data"))
    text = (data / "manifest.jsonl").read_text()
    (data / "manifest.jsonl").write_text(text.replace('"val"', '"test"'))
    message = (
        f"{data}/manifest.jsonl was edited after it was built",
        "; next: build it again with: stillframe manifest",
    )
    before = digest(place.folder)
    assert_refused(call("extract", place.spec, data, "--out", place.cache.parent), *message)
    assert_refused(
        call("train", place.recipe, place.cache, "--manifest", data, "--out", tmp_path / "run"),
        *message,
    )
    assert digest(place.folder) == before and not (tmp_path / "run").exists()


def test_an_empty_manifest(place, tmp_path):
    data = Path(shutil.copytree(place.data, tmp_path / "data"))
    (data / "manifest.jsonl").write_bytes(b"")
    origin = json.loads((data / "dataset.json").read_text()) | {
        "manifest_sha256": hashlib.sha256(b"").hexdigest()
    }
    (data / "dataset.json").write_text(json.dumps(origin))
    message = f"{data}/manifest.jsonl holds no clips; next: build it again"
    assert_refused(call("extract", place.spec, data, "--out", tmp_path / "caches"), message)
    assert not (tmp_path / "caches").exists()


@pytest.mark.parametrize("content", [b"", b"{nope", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_dataset_json(place, tmp_path, content):
    data = Path(shutil.copytree(place.data, tmp_path / "data"))
    (data / "dataset.json").write_bytes(content)
    assert_refused(
        call("extract", place.spec, data, "--out", tmp_path / "caches"), data / "dataset.json"
    )
    assert not (tmp_path / "caches").exists()


def test_a_manifest_rebuilt_with_other_videos(place, cache, tmp_path):
    shutil.copytree(place.videos, tmp_path / "videos")
    address_video(tmp_path / "videos/a/v7.mp4", 7, 6)
    (tmp_path / "videos/b/v4.mp4").unlink()
    fine(
        "manifest",
        "folder",
        tmp_path / "videos",
        "--out",
        tmp_path / "data",
        "--set",
        "val_fraction=0.3",
    )
    before = digest(cache)
    assert_refused(
        call("extract", place.spec, tmp_path / "data", "--out", cache.parent),
        f"manifest {tmp_path}/data changed after {cache} was extracted from it: 1 video added, 1 removed, 5 kept",
        "; next: extract it into another --out",
    )
    assert_refused(
        call(
            "train", place.recipe, cache, "--manifest", tmp_path / "data", "--out", tmp_path / "run"
        ),
        f"cache {cache} lacks 1 video of manifest {tmp_path}/data, the first is a/v7.mp4",
        "5 of 6; next: ",
    )
    assert digest(cache) == before and not (tmp_path / "run").exists()


def test_videos_that_were_moved_away(place, tmp_path):
    """A root that is gone says nothing about any one video: no cache may remember six failures for it."""
    data = Path(shutil.copytree(place.data, tmp_path / "data"))
    shutil.copytree(place.videos, tmp_path / "elsewhere")
    origin = json.loads((data / "dataset.json").read_text()) | {"root": str(tmp_path / "videos")}
    (data / "dataset.json").write_text(json.dumps(origin))
    message = f"none of the 6 videos of {data} is in {tmp_path}/videos; next: say where they are: --root DIR"
    assert_refused(call("extract", place.spec, data, "--dry-run"), message)
    for _ in range(2):
        assert_refused(call("extract", place.spec, data, "--out", tmp_path / "caches"), message)
        assert digest(tmp_path / "caches") == {}
        (tmp_path / "videos").mkdir(exist_ok=True)  # and the second time it is there, and empty
    fine(
        "extract", place.spec, data, "--out", tmp_path / "caches", "--root", tmp_path / "elsewhere"
    )
    assert digest(tmp_path / "caches" / place.cache.name / "stores") == digest(
        place.cache / "stores"
    )


def test_videos_that_are_moved_away_half_way(place, cache, tmp_path):
    data = Path(shutil.copytree(place.data, tmp_path / "data"))
    origin = json.loads((data / "dataset.json").read_text()) | {"root": str(tmp_path / "videos")}
    (data / "dataset.json").write_text(json.dumps(origin))
    (cache / receipt_name(1)).unlink()
    before = digest(cache)
    assert_refused(
        call("extract", place.spec, data, "--out", cache.parent),
        f"is in {tmp_path}/videos; next: ",
        "--root DIR",
    )
    assert digest(cache) == before
    fine("extract", place.spec, data, "--out", cache.parent, "--root", place.videos)
    assert digest(cache / "stores") == digest(place.cache / "stores")
    fine(
        "extract", place.spec, data, "--out", cache.parent
    )  # nothing is left to do, so no video is needed


# Videos that fail


@pytest.fixture
def poor(tmp_path) -> Path:
    """Two good videos among files that are none."""
    root = tmp_path / "poor"
    for video in range(2):
        address_video(root / f"x/good{video}.mp4", video, 9)
    tone(root / "x/sound.m4a", "aac")
    (root / "x/zero.mp4").write_bytes(b"")
    for suffix in ("mp4", "avi"):
        with av.open(str(root / f"x/frameless.{suffix}"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            container.start_encoding()
    return root


RETRY = "to try these again, once they are mended: the same command with --retry-failed\n"
REJECTED = {
    "x/frameless.mp4": "no video stream",
    "x/sound.m4a": "no video stream (audio only)",
    "x/zero.mp4": "is empty (0 bytes)",
}


def test_rejected_files_are_listed_with_exit_code_3(poor, tmp_path):
    result = call("manifest", "folder", poor, "--out", tmp_path / "data")
    assert (result.code, result.err) == (3, "")
    assert result.out.startswith(f"{tmp_path}/data: 3 clips of 3 videos (")
    assert "3 files rejected" in result.out
    for source, reason in REJECTED.items():
        assert re.search(rf"{re.escape(source)} +{re.escape(reason)}", result.out)
    result = call("manifest", "folder", poor, "--out", tmp_path / "data", "--json")
    assert (result.code, result.err) == (3, "")
    assert result.json["videos"] == 3 and result.json["rejected"].keys() == REJECTED.keys()
    assert len(Manifest.load(tmp_path / "data").clips) == 3


def test_notes_are_counted_by_kind_and_change_no_exit_code(tmp_path):
    for number in range(4):
        address_video(tmp_path / f"videos/v{number}.mp4", number, 20 if number == 3 else 4 + number)
    settings = ("--set", "min_s=1", "--set", "min_fps=1", "--set", "val_fraction=0")
    command = ("manifest", "playback", tmp_path / "videos", "--out", tmp_path / "data", *settings)
    result = call(*command)
    assert (result.code, result.err) == (0, "")
    assert "\n3 notes\n" in result.out and "rejected" not in result.out
    row = r" 3 +v0.mp4, v1.mp4 and 1 more +too short \(\.\.\. s\), wanted at least 1 s \(min_s\)"
    assert re.search(row, result.out), result.out
    result = call(*command, "--json")
    assert (result.code, result.json["rejected"]) == (0, {})
    assert result.json["notes"]["v1.mp4"] == "too short (0.50 s), wanted at least 1 s (min_s)"
    assert result.json["notes"].keys() == {"v0.mp4", "v1.mp4", "v2.mp4"}


def test_nothing_but_rejected_files(poor, tmp_path):
    for file in poor.glob("x/good*"):
        file.unlink()
    (poor / "x/frameless.avi").unlink()
    result = call("manifest", "folder", poor, "--out", tmp_path / "data")
    assert_refused(
        result, f"none of 3 videos in {poor} can be used: x/frameless.mp4: ", *REJECTED.values()
    )
    assert not (tmp_path / "data").exists()


def test_failed_videos_are_listed_with_exit_code_3(place, poor, tmp_path):
    call("manifest", "folder", poor, "--out", tmp_path / "data", "--set", "val_fraction=0.4")
    (poor / "x/good1.mp4").write_bytes(b"no longer a video")
    result = call("extract", place.spec, tmp_path / "data", "--out", tmp_path / "caches")
    assert (result.code, result.err) == (3, RETRY)
    assert "videos: 1 of 3 whole, 2 failed\n" in result.out
    assert re.search(r"x/frameless.avi +.*no frame could be decoded", result.out)
    assert re.search(r"x/good1.mp4 +.*cannot be opened as media", result.out)
    result = call("extract", place.spec, tmp_path / "data", "--out", tmp_path / "caches", "--json")
    assert (result.code, result.err) == (3, RETRY)
    assert (
        result.json["videos"] == {"planned": 3, "stored": 1, "failed": 2}
        and result.json["frames"] == 9
    )
    assert result.json["failures"].keys() == {"x/frameless.avi", "x/good1.mp4"}
    assert fine("status", result.json["cache"], "--json").json == result.json


@pytest.fixture
def failed(place, poor, tmp_path) -> list[object]:
    """The command of an extraction in which two of three videos failed; every video has a store of its own."""
    call("manifest", "folder", poor, "--out", tmp_path / "data", "--set", "val_fraction=0.4")
    (poor / "x/good1.mp4").write_bytes(b"no longer a video")
    command = [
        "extract",
        place.spec,
        tmp_path / "data",
        "--out",
        tmp_path / "caches",
        "--set",
        "store.store_mb=0.0014",
    ]
    assert call(*command, "--json").json["stores"] == {"planned": 3, "done": 3}
    return command


def test_retry_failed_redoes_the_stores_with_failures_alone(poor, failed, tmp_path):
    (cache,) = (tmp_path / "caches").iterdir()
    (kept,) = [
        path
        for path in (cache / "receipts").iterdir()
        if not json.loads(path.read_text())["failures"]
    ]
    before, untouched = digest(cache), kept.stat()
    address_video(poor / "x/good1.mp4", 1, 9)
    assert (
        call(*failed).code == 3 and digest(cache) == before
    )  # what failed is not tried again unasked
    result = call(*failed, "--retry-failed", "--json")
    assert (result.code, result.err) == (3, RETRY)
    assert result.json["frames"] == 18 and result.json["failures"].keys() == {"x/frameless.avi"}
    address_video(poor / "x/frameless.avi", 2, 6)
    result = fine(*failed, "--retry-failed", "--json")
    assert result.json["frames"] == 24 and result.json["failures"] == {}
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (
        untouched.st_ino,
        untouched.st_mtime_ns,
    )
    before = digest(cache)
    fine(*failed, "--retry-failed")
    assert digest(cache) == before
    fine(*[tmp_path / "fresh" if part == tmp_path / "caches" else part for part in failed])
    assert digest(cache / "stores") == digest(tmp_path / "fresh" / cache.name / "stores")


def test_retry_failed_without_the_videos_forgets_nothing(poor, failed, tmp_path):
    before = digest(tmp_path / "caches")
    poor.rename(tmp_path / "elsewhere")
    assert_refused(call(*failed, "--retry-failed"), f"is in {poor}; next: ", "--root DIR")
    assert digest(tmp_path / "caches") == before


ODD = "x/[draft] x[red][/b] :smile:.mp4"
"""What looks like markup and like the name of a symbol."""


def test_odd_names_are_listed_as_they_are(place, tmp_path):
    """Nothing in the name of a file is taken for markup, whether it is rejected, fails or is labelled so."""
    root = tmp_path / "videos"
    for video in range(3):
        address_video(root / f"[bold]y/good{video}.mp4", video, 9)
    (root / "x").mkdir()
    (root / ODD).parent.mkdir(parents=True)
    (root / ODD).write_bytes(b"no video")
    result = call("manifest", "folder", root, "--out", tmp_path / "data")
    assert result.code == 3 and ODD in result.out
    (root / ODD).unlink()
    address_video(root / ODD, 3, 9)
    fine("manifest", "folder", root, "--out", tmp_path / "data", "--set", "val_fraction=0.4")
    (root / ODD).write_bytes(b"no longer a video")
    result = call("extract", place.spec, tmp_path / "data", "--out", tmp_path / "caches")
    assert result.code == 3 and re.search(
        rf"{re.escape(ODD)} +.*cannot be opened as media", result.out
    )
    (cache,) = (tmp_path / "caches").iterdir()
    assert ODD in fine("status", cache).out


# Caches with holes


def test_holes_are_refused_and_counted(place, cache, tmp_path):
    (cache / receipt_name(0)).unlink()
    gone = Cache(place.cache).plan[0].keys()
    clips = Cache(cache).manifest.clips
    holes = {
        split: sum(clip.video_id in gone for clip in clips if clip.split == split)
        for split in ("train", "val")
    }
    assert min(holes.values()) >= 1
    facts = fine("status", cache, "--json").json
    assert facts["stores"] == {"planned": 3, "done": 2}
    assert facts["splits"]["train"]["covered"] == 4 - holes["train"]
    assert "1 of 3 stores are not extracted yet: run extract again" in fine("verify", cache).out
    assert fine("verify", cache, "--json").json["stores_missing"] == [0]
    run = tmp_path / "run"
    message = f"cache {cache} has holes: {holes['train']} of 4 clips of split 'train' are not covered, the first is "
    assert_refused(
        call("train", place.recipe, cache, "--out", run),
        message,
        ": not extracted yet; next: ",
        "--allow-missing",
    )
    assert not run.exists()
    result = call("train", place.recipe, cache, "--out", run, "--allow-missing", "--json")
    assert result.code == 0 and result.json["steps"] == 3
    assert (
        result.err
        == f"{holes['train']} clips of split 'train' were left out: the cache does not cover them\n"
    )
    assert Run(run).header.clips["skipped"] == holes["train"]
    assert_refused(
        call("evaluate", run),
        f"has holes: {holes['val']} of 2 clips of split 'val'",
        "--allow-missing",
    )
    result = call("evaluate", run, "--allow-missing")
    assert result.code == 0 and count_text(2 - holes["val"], "clip") in result.out
    left_out = count_text(holes["val"], "clip")
    assert result.err == f"run: {left_out} left out: the cache does not cover them\n"


def test_a_cache_without_any_store(place, cache, tmp_path):
    shutil.rmtree(cache / "receipts")
    assert fine("status", cache, "--json").json["stores"] == {"planned": 3, "done": 0}
    result = call("train", place.recipe, cache, "--out", tmp_path / "run", "--allow-missing")
    assert_refused(result, f"has no clip that {cache} covers; next: extract")
    assert not (tmp_path / "run").exists()


# As a process


def test_a_process_gives_the_same(place):
    done = process("status", place.cache, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == status(Cache(place.cache)).model_dump(mode="json")


def test_a_process_that_is_refused(place):
    done = process("status", place.folder / "no")
    assert_refused(Result(done.returncode, done.stdout, done.stderr), "is not a cache")


def test_a_process_without_command_shows_the_help():
    done = process()
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Usage: ")
    assert (
        done.stdout.splitlines()[1:] == fine("--help").out.splitlines()[1:]
    )  # the first line tells how it was called


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_accident():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pipeline.cli", "list", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "Traceback" not in done.stderr


STOPPED = "stopped; what was finished is kept, run the same command again to go on\n"


def interruptible(command: list[str]) -> subprocess.Popen[str]:
    """A process that hears SIGINT, which tests in the background of a shell do not pass on."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(command: list[str], folder: Path, begun: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that gets a Ctrl-C as soon as a file that `begun`
    matches is in its `folder`."""
    process = interruptible(command)
    while process.poll() is None and not list(folder.glob(begun)):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    return process.returncode, out, err


LOSES_AN_INTERRUPT = """
import signal, sys, time, weakref
import pipeline.cli.main as cli
class Thing: pass
def command(*_, **__):
    thing = Thing()
    weakref.finalize(thing, signal.raise_signal, signal.SIGINT)
    del thing  # Python ignores what is raised here
    try:
        time.sleep(60)
    finally:
        print("woken" if time.monotonic() < began + 50 else "slept to the end")
cli.program, began = lambda: command, time.monotonic()
try:
    cli.entry()
except KeyboardInterrupt:
    print("stopped")
"""


def test_an_interrupt_that_comes_while_an_object_is_cleaned_up_is_not_lost():
    process = interruptible([sys.executable, "-c", LOSES_AN_INTERRUPT])
    assert process.communicate() == ("woken\nstopped\n", "")


@pytest.mark.slow
def test_interrupting_keeps_what_was_finished(place, tmp_path):
    run = tmp_path / "run"
    sets = ["--set", "training.steps=1000000", "--set", "training.checkpoint_every=5"]
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "train",
        str(place.recipe),
        str(place.cache),
        "--out",
        str(run),
        *sets,
    ]
    assert interrupted(command, run, "last.json") == (130, "", STOPPED)
    last = Run(run).checkpoint("last")
    assert last is not None and last.step % 5 == 0 and Run(run).tensors("last")
    assert fine("evaluate", run, "--json").json["checkpoint"]["step"] == last.step


@pytest.mark.slow
def test_interrupting_an_extraction_keeps_finished_stores(place, tmp_path):
    for copy in range(4):
        shutil.copytree(place.videos, tmp_path / "videos" / f"{copy}")
    fine("manifest", "folder", tmp_path / "videos", "--out", tmp_path / "data")
    arguments = ["extract", str(place.spec), str(tmp_path / "data"), "--out"]
    command = [sys.executable, "-m", "pipeline.cli", *arguments, str(tmp_path / "stopped")]
    stopped = interrupted(command, tmp_path / "stopped", "*/receipts/*.json")
    assert stopped == (130, "", STOPPED)
    (cache,) = (tmp_path / "stopped").iterdir()
    done = {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (cache / "receipts").glob("*.json")
    }
    assert 1 <= len(done) < len(Cache(cache).plan)
    fine(*arguments, tmp_path / "stopped")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done} == done
    fine(*arguments, tmp_path / "whole")
    assert digest(cache / "stores") == digest(tmp_path / "whole" / cache.name / "stores")


def test_extracting_through_the_api_or_by_command_is_one(place, tmp_path):
    built = manifest.build("folder", place.videos, tmp_path / "data", {"val_fraction": 0.3})
    assert (
        dataclasses.asdict(extract.preview(address_spec(), built))
        == fine("extract", place.spec, place.data, "--dry-run", "--json").json
    )
