"""Damaged caches and runs: every command names the file and the next step, and leaves all as it
was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.commands import Result, assert_refused, call, digest, fine
from support.forgery import edit

from pipeline.cache.cache import Cache
from pipeline.config.cache_spec import FORMAT_VERSION
from pipeline.config.json_files import parse_json
from pipeline.errors import BadInput
from pipeline.train.run import RUN_FORMAT, Checkpoint, RunHeader

SHARD = "layer_5/c/0/0/0"


def truncate(file: Path) -> str:
    size = file.stat().st_size
    os.truncate(file, size - 7)
    return f"{size - 7} bytes, receipt says {size}"


def empty(file: Path) -> str:
    size = file.stat().st_size
    os.truncate(file, 0)
    return f"0 bytes, receipt says {size}"


def unlink(file: Path) -> str:
    file.unlink()
    return "missing"


def flip(file: Path) -> str:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return "content differs from its checksum"


@pytest.mark.parametrize("damage", [unlink, empty, truncate])
def test_a_damaged_shard_is_refused(place, cache, run, tmp_path, damage):
    problem = damage(cache / "stores/00001.zarr" / SHARD)
    message = (
        f"cache {cache} is damaged: stores/00001.zarr/{SHARD}: {problem}; next: see "
        f"it all: stillframe verify {cache}"
    )
    before = digest(tmp_path)
    assert_refused(call("train", place.recipe, cache, "--out", tmp_path / "new"), message)
    assert_refused(call("evaluate", run, "--cache", cache), message)
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()


def problems(cache: Path) -> list[tuple[int, str, str]]:
    """(store, file, problem) of every line that `verify --json` gives, which must end with exit
    code 2."""
    result = call("verify", cache, "--json")
    assert_refused(
        result,
        f"; next: only these stores are redone by: stillframe verify {cache} --repair",
        out=True,
    )
    assert result.json["stores_checked"] == 3
    return [(each["store"], each["file"], each["problem"]) for each in result.json["problems"]]


def mended(place, cache: Path) -> Result:
    """What `verify --repair` gave, after which the stores are those that were never damaged."""
    result = call("verify", cache, "--repair")
    assert (result.code, result.err) == (0, ""), result
    assert digest(cache / "stores") == digest(place.cache / "stores")
    assert fine("verify", cache).out == f"{cache}: 3 stores, every checksum holds\n"
    return result


@pytest.mark.parametrize("damage", [unlink, empty, truncate, flip])
def test_verify_names_store_and_file_and_mends_it(place, cache, damage):
    problem = damage(cache / "stores/00001.zarr" / SHARD)
    before = digest(cache)
    result = call("verify", cache)
    frames = 4 if damage is flip else 8  # a chunk, or the whole shard
    assert_refused(
        result,
        f"{cache} is damaged in 1 store: {frames} frames of 1 video cannot be trusted; next: ",
        out=True,
    )
    assert re.search(
        rf"\nstore 1: {SHARD}: .*{problem}\n +{frames} frames of a/v2.mp4\n", result.out
    )
    ((store, file, found),) = problems(cache)
    assert (store, file) == (1, SHARD) and found.endswith(problem)
    assert digest(cache) == before
    untouched = (
        (cache / "receipts/00000.json").read_bytes(),
        (cache / "receipts/00002.json").read_bytes(),
    )
    assert "made anew: store 1\n" in mended(place, cache).out
    assert (
        (cache / "receipts/00000.json").read_bytes(),
        (cache / "receipts/00002.json").read_bytes(),
    ) == untouched


SMALL = ["zarr.json", "layer_5/zarr.json", "time_s/zarr.json", "time_s/c/0", "video_start/c/0"]


@pytest.mark.parametrize("file", SMALL)
def test_one_bit_of_times_or_metadata_is_refused(place, cache, run, tmp_path, file):
    """These decide which frame is which, so they are compared with their checksums whenever the
    cache is used."""
    problem = flip(cache / "stores/00001.zarr" / file)
    before = digest(tmp_path)
    message = (
        f"cache {cache} is damaged: stores/00001.zarr/{file}: {problem}; next: see "
        f"it all: stillframe verify {cache}"
    )
    assert_refused(call("train", place.recipe, cache, "--out", tmp_path / "new"), message)
    assert_refused(call("evaluate", run, "--cache", cache), message)
    assert problems(cache) == [(1, file, problem)]
    assert digest(tmp_path) == before


BROKEN = {
    "no bytes": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "no text": lambda data: b"\xff\xfe" + data,
    "no JSON": lambda data: b"{nope",
    "another shape": lambda data: b"[]",
    "keys missing": lambda data: b'{"format_version": 1}',
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize(
    ("file", "commands"),
    [
        (
            "caches/*/cache.json",
            ["status {cache}", "verify {cache}", "train {recipe} {cache} --out {new}"],
        ),
        (
            "caches/*/receipts/00001.json",
            ["status {cache}", "verify {cache}", "train {recipe} {cache} --out {new}"],
        ),
        (
            "run/run.json",
            ["evaluate {run}", "report {run} --out {new}", "train {recipe} {cache} --out {run}"],
        ),
        ("run/last.json", ["evaluate {run}", "train {recipe} {cache} --out {run}"]),
        ("run/evaluation-val.json", ["report {run} --out {new}"]),
    ],
    ids=["cache.json", "receipt", "run.json", "last.json", "evaluation"],
)
def test_damaged_json_is_named_and_left_alone(place, cache, run, tmp_path, file, commands, how):
    (path,) = tmp_path.glob(file)
    path.write_bytes(BROKEN[how](path.read_bytes()))
    before = digest(tmp_path)
    for command in commands:
        arguments = command.format(
            cache=cache, run=run, recipe=place.recipe, new=tmp_path / "new"
        ).split()
        listed = path.parent.name == "receipts" and command.startswith(
            "verify"
        )  # in a table, with all other damage
        result = call(*arguments)
        assert_refused(result, "is damaged in" if listed else path, "; next: ", out=listed)
        assert not listed or "receipts/00001.json" in result.out
        assert digest(tmp_path) == before


def test_a_receipt_that_lacks_a_key(cache):
    edit(cache / "receipts/00001.json", lambda table: table.pop("files"))
    path = cache / "receipts/00001.json"
    message = (
        f"{path} is damaged: key 'files' is missing; next: only this store is redone "
        f"by: stillframe verify {cache} --repair"
    )
    assert_refused(call("status", cache), message)


@pytest.mark.parametrize("how", BROKEN)
def test_verify_lists_a_damaged_receipt_and_goes_on(place, cache, how):
    receipt = cache / "receipts/00001.json"
    receipt.write_bytes(BROKEN[how](receipt.read_bytes()))
    problem = flip(cache / "stores/00002.zarr" / SHARD)
    (first, second) = problems(cache)
    assert first[:2] == (1, "receipts/00001.json") and second == (2, SHARD, problem)
    result = call("verify", cache)
    assert (
        "\nstore 1: receipts/00001.json: " in result.out
        and f"\nstore 2: {SHARD}: {problem}\n" in result.out
    )
    mended(place, cache)


def test_a_receipt_of_another_cache(place, slow_cache, cache):
    shutil.copy(slow_cache / "receipts/00001.json", cache / "receipts/00001.json")
    theirs, ours = Cache(slow_cache).fingerprint, Cache(cache).fingerprint
    path = cache / "receipts/00001.json"
    message = (
        f"{path} is damaged: it is for store 1 of the cache {theirs}, wanted store 1 "
        f"of {ours} and the videos planned"
    )
    assert_refused(call("status", cache), message, "; next: only this store is redone by")
    assert problems(cache)[0][:2] == (1, "receipts/00001.json")
    mended(place, cache)


def test_a_receipt_of_another_store(place, cache):
    path = cache / "receipts/00001.json"
    shutil.copy(cache / "receipts/00002.json", path)
    assert_refused(
        call("status", cache),
        f"{path} is damaged: it is for store 2 of the cache",
        "; next: only this store is",
    )
    assert problems(cache)[0][:2] == (1, "receipts/00001.json")
    mended(place, cache)


@pytest.mark.parametrize("command", ["status", "evaluate"])
def test_a_format_from_the_future(cache, run, command):
    folder, file = {"status": (cache, cache / "cache.json"), "evaluate": (run, run / "run.json")}[
        command
    ]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 9, "new": 1}))
    read = RUN_FORMAT if file.name == "run.json" else FORMAT_VERSION
    message = (
        f"{file} has format 9, this version of stillframe reads format {read}; next: "
        "upgrade stillframe"
    )
    assert_refused(call(command, folder), message)


@pytest.mark.parametrize("damage", [unlink, empty, truncate, flip])
def test_a_damaged_checkpoint(place, run, damage):
    damage(run / "last-000003.safetensors")
    before = digest(run)
    message = f"checkpoint {run}/last-000003.safetensors is damaged: "
    assert_refused(call("evaluate", run), message, "; next: ")
    assert_refused(call("train", place.recipe, place.cache, "--out", run), message, "; next: ")
    assert_refused(call("stream", run, place.videos / "a/v0.mp4"), message, "; next: ")
    assert digest(run) == before
    fine("evaluate", run, "--checkpoint", "best")


def test_a_checkpoint_of_another_model(run):
    file = run / "last-000003.safetensors"
    save_file({"model.mixer.weight": torch.zeros(3)}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    edit(run / "last.json", lambda table: table.update(sha256=sha256))
    assert_refused(
        call("evaluate", run), "checkpoint does not fit the model: ", "; next: train again"
    )


def test_a_damaged_best_checkpoint_is_refused_where_it_is_asked_for(run):
    (best,) = run.glob("best-*.safetensors")
    flip(best)
    message = f"checkpoint {best} is damaged: its content differs from its checksum"
    assert_refused(call("evaluate", run, "--checkpoint", "best"), message)
    fine("evaluate", run)


@pytest.mark.parametrize("name", ["run.json", "last.json", "best.json"])
def test_any_flipped_bit_of_the_json_of_a_run_is_named(run, name):
    file = run / name
    sound = file.read_bytes()
    model = RunHeader if name == "run.json" else Checkpoint
    for at in range(0, 8 * len(sound), 1 if len(sound) < 1000 else 11):
        data = bytearray(sound)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(BadInput, match=re.escape(str(file))):
            parse_json(model, bytes(data), str(file), "", range(2, RUN_FORMAT + 1))


def test_a_checkpoint_of_other_steps_than_the_run_has_is_not_gone_on_with(place, run):
    edit(run / "last.json", lambda table: table.update(step=10**6, steps=10**6))
    message = f"{run}/last.json says 1000000 steps, the run has 3: the file is damaged, or"
    assert_refused(call("train", place.recipe, place.cache, "--out", run), message)
    edit(run / "last.json", lambda table: table.update(step=10**7))
    assert_refused(call("evaluate", run), f"{run}/last.json is damaged: step is 10000000, of 10000")


def test_a_run_of_before_there_were_checksums_opens_and_is_said_to_have_none(place, run):
    for name in ("run.json", "last.json", "best.json"):
        table = json.loads((run / name).read_text())
        for key in ("checksum", "sha256"):
            table.pop(key, None)
        (run / name).write_text(json.dumps(table))
    said = f"run {run} was written before 0.5.0: its last checkpoint has no checksum"
    for arguments in (
        ["evaluate", run],
        ["stream", run, place.videos / "a/v0.mp4"],
        ["train", place.recipe, place.cache, "--out", run],
    ):
        result = call(*arguments)
        assert result.code == 0 and said in result.err, result


def test_a_run_without_checkpoint(run):
    (run / "last.json").unlink()
    assert_refused(
        call("evaluate", run), f"run {run} has no last checkpoint yet; next: train it first"
    )


@pytest.mark.parametrize("content", [None, b"", b"junk"], ids=["missing", "empty", "junk"])
def test_damaged_answers(run, tmp_path, content):
    (path,) = run.glob("answers-val.*")
    path.unlink() if content is None else path.write_bytes(content)
    assert_refused(call("report", run, "--out", tmp_path / "report"), path, "; next: ")


@pytest.fixture(scope="module")
def undamaged(place, tmp_path_factory) -> Path:
    """The report of the run."""
    out = tmp_path_factory.mktemp("undamaged")
    fine("report", place.run, "--out", out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n", b"3\n", b'{"step": 1}\n'])
def test_without_metrics_the_report_has_no_learning_curve_but_all_scores(
    undamaged, run, tmp_path, content
):
    path = run / "metrics.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    before = digest(run)
    fine("report", run, "--out", tmp_path / "report")
    scores = [
        json.loads((folder / "report.json").read_text())["scores"]
        for folder in (tmp_path / "report", undamaged)
    ]
    for row in scores[0] + scores[1]:
        assert row.pop("latency_ms") > 0  # measured for the page
        row.pop("setting")
    assert scores[0] == scores[1]
    assert (
        (undamaged / "loss.png").is_file()
        and not (tmp_path / "report/loss.png").exists()
        and digest(run) == before
    )


def test_a_run_of_an_older_format_is_trained_again(run):
    file = run / "run.json"
    edit(file, lambda table: table.update(format_version=1))
    message = (
        f"{file} has format 1, this version of stillframe reads format {RUN_FORMAT}; "
        "next: train again into another --out"
    )
    assert_refused(call("evaluate", run), message)
