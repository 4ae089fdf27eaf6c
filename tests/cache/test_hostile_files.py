"""Files of a cache or a run that a stranger made: read, or refused in one line; nothing waits and nothing fills the memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from support.commands import assert_refused, call, fine
from support.forgery import edit

from pipeline.cache.cache import Cache, neighbours
from pipeline.cache.codec_parameters import codecs_of
from pipeline.cache.layout import receipt_name, store_name
from pipeline.config.cache_spec import choice
from pipeline.config.json_files import MOST_NESTED, json_value
from pipeline.config.regular_files import open_regular, read_regular
from pipeline.errors import BadInput

DEEP = "[" * 30_000 + "]" * 30_000
SHARD = f"{store_name(0)}/layer_5/c/0/0/0"
FILES = [
    "cache.json",
    receipt_name(1),
    "manifest/manifest.jsonl",
    "manifest/dataset.json",
    f"{store_name(0)}/zarr.json",
    f"{store_name(0)}/time_s/zarr.json",
    f"{store_name(0)}/time_s/c/0",
    SHARD,
]


@pytest.fixture(autouse=True)
def _watchdog():
    """Whoever waits for a pipe is interrupted."""

    def wake(*_: object) -> None:
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def mine(place, tmp_path) -> Path:
    """A copy of a finished cache."""
    shutil.copytree(place.cache, tmp_path / place.cache.name)
    return tmp_path / place.cache.name


def one_line(result) -> None:
    assert result.code in (0, 1, 2, 3), result
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (result.code in (1, 2)), result


@pytest.mark.parametrize("file", FILES)
def test_a_named_pipe_in_the_place_of_a_file_is_not_waited_for(place, mine, tmp_path, file):
    (mine / file).unlink(missing_ok=True)
    os.mkfifo(mine / file)
    one_line(call("status", mine))
    assert call("verify", mine).code in (2, 3)
    result = call("train", place.recipe, mine, "--out", tmp_path / "run")
    assert_refused(result)


@pytest.mark.parametrize("file", [file for file in FILES if "json" in file])
def test_json_that_is_nested_deeply(place, mine, tmp_path, file):
    (mine / file).write_text(DEEP)
    one_line(call("status", mine))
    one_line(call("verify", mine))
    one_line(call("train", place.recipe, mine, "--out", tmp_path / "run"))


def test_a_bad_neighbour_does_not_stop_a_sound_cache(place, mine):
    for name, text in (("a", DEEP), ("b", "{"), ("c", "null")):
        (mine.parent / name).mkdir()
        (mine.parent / name / "cache.json").write_text(text)
    (mine.parent / "d").mkdir()
    os.mkfifo(mine.parent / "d/cache.json")
    (mine.parent / "e/cache.json").mkdir(parents=True)
    assert list(neighbours(Cache(mine))) == []
    assert call("extract", place.spec, place.data, "--out", mine.parent).code == 0


def test_a_neighbour_that_could_be_reused_and_is_full_of_pipes(place, mine):
    for file in ("zarr.json", "time_s/zarr.json", "affine/c/0/0/0", "special/c/0/0/0"):
        (mine / store_name(0) / file).unlink()
        os.mkfifo(mine / store_name(0) / file)
    wider = ("--set", "encoder.layers=[1,2,5]")
    assert call("extract", place.spec, place.data, "--out", mine.parent, *wider).code == 0


def refused(place, mine, tmp_path, *parts) -> None:
    assert_refused(call("train", place.recipe, mine, "--out", tmp_path / "run"), *parts)
    one_line(call("verify", mine))
    one_line(call("status", mine))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 10**12),
        ("grid_hw", [10**6, 10**6]),
        ("special_tokens", 10**9),
        ("layers", list(range(10**6))),
        ("layers", [5, 5]),
        ("layers", [-1, 5]),
        ("width", 1 << 20),
        ("grid_hw", [4096, 4096]),
    ],
)
def test_a_header_that_claims_what_no_memory_holds(place, mine, tmp_path, key, value):
    edit(mine / "cache.json", lambda table: table["tokens"].update({key: value}))
    refused(place, mine, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 7},
        {"frames": {"fps": -1}},
        {"frames": {}},
        {"encoder": {"name": 3}},
        {"codec": "x"},
        {"name": {}},
        {"views": 3},
        {"store": []},
    ],
    ids=str,
)
def test_a_spec_whose_tables_are_something_else(place, mine, tmp_path, change):
    edit(mine / "cache.json", lambda table: table["spec"].update(change))
    refused(place, mine, tmp_path, "cache.json is damaged")


def vouch(mine: Path, file: str, change) -> None:
    """Changes metadata of store 0 and makes its receipt fit."""
    edit(mine / store_name(0) / file, change)
    data = (mine / store_name(0) / file).read_bytes()

    def fit(receipt) -> None:
        receipt["files"][file] = [len(data), hashlib.sha256(data).hexdigest()]

    edit(mine / receipt_name(0), fit)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("time_s/zarr.json", {"shape": [10**12]}),
        ("time_s/zarr.json", {"data_type": "string", "fill_value": ""}),
        ("affine/zarr.json", {"shape": [10**12, 2, 3]}),
        ("layer_5/zarr.json", {"shape": [10**3, 9, 8 << 20]}),
        ("layer_5/zarr.json", {"data_type": "float64"}),
    ],
    ids=str,
)
def test_zarr_metadata_that_claims_what_is_not_there(place, mine, tmp_path, file, change):
    vouch(mine, file, lambda table: table.update(change))
    refused(place, mine, tmp_path)


def test_a_receipt_that_claims_more_frames_than_its_files_hold(place, mine, tmp_path):
    def claim(receipt) -> None:
        last = list(receipt["videos"])[-1]
        receipt["videos"][last][1] = receipt["frames"] = 10**12

    edit(mine / receipt_name(0), claim)
    refused(place, mine, tmp_path, "do not fit into")


@pytest.mark.parametrize("name", ["../../cache.json", "/etc/passwd", "a//b", "a/./b", "a\0b"])
def test_a_receipt_that_lists_a_file_outside(place, mine, tmp_path, name):
    edit(mine / receipt_name(0), lambda receipt: receipt["files"].update({name: [1, "0" * 64]}))
    refused(place, mine, tmp_path, "wanted a path inside the store")


@pytest.mark.parametrize(
    "text",
    [DEEP, "{}", '{"worker": "w", "machine": "m", "pid": "../tmp", "started": 1}', "\xff", ""],
    ids=["deep", "empty", "path as number", "no UTF-8", "nothing"],
)
def test_a_lease_that_is_nonsense(mine, text):
    (mine / "leases").mkdir(exist_ok=True)
    (mine / "leases/00000.json").write_text(text, encoding="latin-1")
    fine("status", mine)
    assert call("verify", mine).code == 0


# A run


@pytest.fixture
def run(place, tmp_path) -> Path:
    shutil.copytree(place.run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["run.json", "last.json", "last-000003.safetensors"])
def test_a_named_pipe_and_nested_json_in_a_run(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    assert_refused(call("evaluate", run))
    (run / name).unlink()
    (run / name).write_text(DEEP)
    assert_refused(call("evaluate", run))


@pytest.mark.parametrize(
    ("width", "message"),
    [(10**6, "checkpoint does not fit the model"), (2**63, "which no tensor has")],
)
def test_a_run_that_claims_a_model_that_no_memory_holds(run, width, message):
    def widen(table) -> None:
        table["recipe"]["model"]["width"] = width

    edit(run / "run.json", widen)
    assert_refused(call("evaluate", run), message)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "run.json", "last-1\n"])
def test_a_checkpoint_is_a_file_of_the_run(run, name):
    edit(run / "last.json", lambda table: table.update(file=name))
    assert_refused(call("evaluate", run), "key 'file'")


@pytest.mark.parametrize(
    "line",
    ['{"step": "x", "loss": []}', DEEP, '{"step": 3, "loss": 1.0, "val": {"window": {}}}', "[]"],
    ids=["types", "deep", "scores", "list"],
)
def test_metrics_that_are_nonsense_are_passed_over(place, run, line):
    (run / "metrics.jsonl").write_text(f"{line}\n")
    assert call("train", place.recipe, place.cache, "--out", run).code == 0


@pytest.mark.parametrize("part", ["forms", "trivial", "metrics", "clips"])
def test_an_evaluation_whose_parts_do_not_belong_together(run, tmp_path, part):
    def take(table) -> None:
        if part == "forms":
            table["forms"]["window"].pop("top-1")
        elif part == "clips":
            next(iter(table["clips"].values())).pop("window")
        else:
            table[part] = type(table[part])()

    edit(run / "evaluation-val.json", take)
    result = call("report", run, "--out", tmp_path / "page")
    assert_refused(result, "evaluation-val.json is damaged", "; next: stillframe evaluate")


@pytest.mark.parametrize("name", ["drawn-val", "drawn-val.png", "drawn-val/.a_v0.mp4.partial"])
def test_a_run_is_drawn_through_no_link(run, tmp_path, name):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("precious")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(home if name == "drawn-val" else home / "thesis.tex")
    result = call("evaluate", run, "--draw", 9)
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]
    assert (home / "thesis.tex").read_text() == "precious"
    assert result.code == (2 if name == "drawn-val" else 0)


# The ground


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in (("pipe", "named pipe"), ("link", "named pipe"), ("socket", "socket")):
        with pytest.raises(OSError, match=f"a {kind}, not a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(OSError, match="a device, not a regular file"):
        open_regular("/dev/zero")
    with pytest.raises(IsADirectoryError, match="a folder, not a regular file"):
        open_regular(tmp_path)
    (tmp_path / "holes").touch()
    os.truncate(tmp_path / "holes", 1 << 40)
    with pytest.raises(OSError, match="it has more than 1,073,741,824 bytes"):
        read_regular(tmp_path / "holes")
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "to_file").symlink_to("file")
    assert read_regular(tmp_path / "to_file", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(tmp_path / "file", 4)


@pytest.mark.parametrize("text", ["9" * 20, "-9223372036854775809", f"[1, {10**400}]", "1" * 5000])
def test_whole_numbers_that_nothing_holds(text):
    with pytest.raises(ValueError):
        json_value(text)
    assert json_value("[18446744073709551615, -9223372036854775808, 0]") == [2**64 - 1, -(2**63), 0]


@pytest.mark.parametrize("value", [1e300, 10**18, "x", None, [], -1e13])
def test_claims_about_a_video_that_no_video_makes(place, mine, tmp_path, value):
    file = mine / "manifest/videos.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["width"] = value
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    edit(file.with_name("dataset.json"), lambda table: table.update(videos_sha256=sha256))
    one_line(call("verify", mine))
    result = call("extract", place.spec, mine / "manifest", "--out", tmp_path / "again")
    assert_refused(result, "videos.jsonl is damaged: found width")


def test_nested_json_up_to_a_bound():
    nested = json.loads("[" * MOST_NESTED + "]" * MOST_NESTED)
    assert json_value(json.dumps(nested)) == nested
    for text in (
        f"[{json.dumps(nested)}]",
        f'{{"a": {json.dumps(nested)}}}',
        DEEP,
        '{"a":' * 10**6,
    ):
        with pytest.raises(ValueError):
            json_value(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (2**60).to_bytes(8, "little") + b"{}",
        (60_000).to_bytes(8, "little") + DEEP.encode(),
        save({"layer_5.mean": np.zeros(8, np.float32)}),
        save({"layer_5.mean": np.zeros(8), "layer_5.basis": np.zeros((8, 4))}),
        save({"layer_5.mean": np.zeros(8, "f4"), "layer_5.basis": np.zeros((7, 4), "f4")}),
        save({"layer_5.mean": np.zeros(9, "f4"), "layer_5.basis": np.zeros((9, 4), "f4")}),
        save({"layer_5.mean": np.full(8, np.nan, "f4"), "layer_5.basis": np.zeros((8, 4), "f4")}),
    ],
    ids=["empty", "huge header", "deep header", "no basis", "float64", "misfit", "width", "NaN"],
)
def test_learnt_parameters_of_a_codec_that_do_not_fit(data):
    pca = choice("codec", {"name": "pca", "components": 4})
    with pytest.raises(BadInput, match=r"codec\.safetensors is damaged"):
        codecs_of(pca, ["layer_5"], data, 8)
