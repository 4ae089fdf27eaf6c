"""Reading and writing measured: every reader reads what was written, and figures fit together."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from support.commands import assert_refused, call

from pipeline.cache.corruption import check_chunks
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.cli.bench.store import read, readers, write
from pipeline.errors import StillframeError

OURS = ("numpy", "zarr", "h5py", "safetensors")
WINDOW_BYTES = 16 * 201 * 384 * 2
NAMES = [reader.name for reader in readers.READERS]


@pytest.fixture
def only_ours(monkeypatch):
    """As on a machine with nothing but what stillframe itself needs."""
    monkeypatch.setattr(read, "find_spec", lambda package: package in OURS or None)


@pytest.mark.filterwarnings(
    "default::DeprecationWarning"
)  # of packages that are no part of this one
@pytest.mark.parametrize("reader", readers.READERS, ids=NAMES)
def test_every_reader_reads_what_was_written(tmp_path, reader):
    pytest.importorskip(reader.package)
    tokens = read.random_tokens(6 * 4)[:, :7, :32].copy()
    reader.write(tmp_path, tokens, 4)
    starts = {readers.IN_ORDER: [0, 4, 8], readers.WHOLE: [12, 0, 20]}.get(reader.name, [13, 0, 20])
    with reader.open(tmp_path, 4) as windows:
        for of_batch in (starts[:2], starts[2:]):
            out = np.zeros((len(of_batch), 4, 7, 32), "float16")
            windows(of_batch, out)
            for start, window in zip(of_batch, out, strict=True):
                np.testing.assert_array_equal(window, tokens[start : start + 4])


def test_read_says_what_was_measured(only_ours, tmp_path):
    result = call(
        "bench", "read", "--windows", "3", "--repeats", "2", "--folder", tmp_path, "--json"
    ).json
    assert result["window"] == {"shape": [16, 201, 384], "dtype": "float16", "bytes": WINDOW_BYTES}
    assert (result["windows"], result["repeats"]) == (3, 2) and result["machine"]
    assert (
        WINDOW_BYTES * 3.9 < result["file_bytes"] < WINDOW_BYTES * 4.01
    )  # a window may begin anywhere
    assert result["missing"] == {
        name: f"pip install {name.removeprefix('zarr + ')}"
        for name in ("tensorstore", "zarr + zarrs", "webdataset", "litdata")
    }
    hot, cold = result["readers"]["hot"], result["readers"]["cold"]
    assert cold.keys() - hot.keys() == {"dd", "stillframe, read before"}
    assert hot.keys() == set(NAMES) - result["missing"].keys()
    for of_state, reference in ((hot, "memory-map copy"), (cold, "dd")):
        for name, facts in of_state.items():
            size = result["file_bytes"] if name == "dd" else 3 * WINDOW_BYTES
            rates = [size / 1e9 / each for each in facts["s"]]
            assert len(rates) == 2 and facts["gb_per_s"] == pytest.approx(statistics.median(rates))
            theirs = of_state[reference]
            their_size = result["file_bytes"] if reference == "dd" else 3 * WINDOW_BYTES
            pairs = zip(rates, theirs["s"], strict=True)
            assert facts["ratio"] == pytest.approx(
                statistics.median(ours * each / their_size * 1e9 for ours, each in pairs)
            )
    assert list(tmp_path.iterdir()) == []


def test_read_as_a_table(only_ours, tmp_path):
    result = call("bench", "read", "--windows", "1", "--repeats", "1", "--folder", tmp_path)
    assert result.code == 0
    assert "1 windows of 16 x 201 x 384 float16, store of 4.9 MB, 1 rounds" in result.out
    assert all(name in result.out for name in ("memory-map copy", "safetensors", "cold GB/s", "dd"))
    assert "tensorstore: not installed: pip install tensorstore" in result.out


def test_a_reader_that_reads_something_else_is_not_timed(only_ours, tmp_path, monkeypatch):
    monkeypatch.setattr(StoreReader, "read_into", lambda self, *_: True)
    with pytest.raises(StillframeError, match="stillframe.* read other tokens than were written"):
        read.read_speed(1, 1, tmp_path, lambda *_: None)


def test_write_says_what_was_measured(tmp_path):
    result = call(
        "bench", "write", "--windows", "2", "--repeats", "3", "--folder", tmp_path, "--json"
    ).json
    assert (result["file_bytes"], result["repeats"]) == (2 * WINDOW_BYTES, 3) and result["machine"]
    plain, ours = (result["ways"][way] for way in write.WAYS)
    for facts in (plain, ours):
        rates = [2 * WINDOW_BYTES / 1e9 / each for each in facts["s"]]
        assert len(rates) == 3 and facts["gb_per_s"] == pytest.approx(statistics.median(rates))
    assert plain["ratio"] == 1 and ours["ratio"] > 0
    assert list(tmp_path.iterdir()) == []


def test_write_as_a_table(tmp_path):
    result = call("bench", "write", "--windows", "1", "--repeats", "1", "--folder", tmp_path)
    assert result.code == 0
    assert "2.5 MB, 1 rounds" in result.out and "x plain" in result.out
    assert "of memory beyond the tokens" in result.out


def test_plain_files_and_shards_hold_the_same_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "SHARD_BYTES", 5_000_000)
    tokens = read.random_tokens(80)
    for way in write.WAYS:
        (tmp_path / way).mkdir()
    write._write_plain(tmp_path / "plain", tokens)
    readers.write_store(tmp_path / "stillframe", tokens)
    sizes = [path.stat().st_size for path in read._files(tmp_path / "plain")]
    shards = [path.stat().st_size for path in read._shards(tmp_path / "stillframe")]
    assert sizes == [32 * tokens[0].nbytes, 32 * tokens[0].nbytes, 16 * tokens[0].nbytes]
    assert all(0 < ours - theirs < 1000 for theirs, ours in zip(sizes, shards, strict=True))
    assert check_chunks(LocalFolder(tmp_path / "stillframe"), readers.STORE, readers.ARRAY) == []


def test_wrong_input(tmp_path):
    assert_refused(call("bench", "read", "--windows", "0"), "--windows")
    assert_refused(call("bench", "write", "--folder", tmp_path / "nowhere"), "nowhere")
