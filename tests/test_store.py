"""The store: what plain zarr reads is what was appended, the direct reader equals it, and damage is seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.store import StoreReader, StoreWriter, check_files, token_arrays, write_atomically


def write(path: Path, arrays: dict[str, np.ndarray], chunk: int, shard: int, batch: int) -> dict[str, list]:
    writer = StoreWriter(path, {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}, chunk, shard)
    frames = len(next(iter(arrays.values())))
    for first in range(0, frames, batch):
        writer.append({name: array[first : first + batch] for name, array in arrays.items()})
    return writer.commit({"time_s": np.arange(frames) / 3}, {"videos": ["a", "b"]})


def values(frames: int, *shape: int, dtype: str = "float16") -> np.ndarray:
    count = frames * int(np.prod(shape))
    return (np.arange(count) % 2039).astype(dtype).reshape(frames, *shape)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(0, 70),
    chunk=st.integers(1, 9),
    chunks_per_shard=st.integers(1, 4),
    batch=st.integers(1, 40),
    picks=st.lists(st.integers(0, 10_000), max_size=30),
)
def test_direct_reader_equals_zarr_for_any_layout_and_rows(tmp_path_factory, frames, chunk, chunks_per_shard, batch, picks):
    path = tmp_path_factory.mktemp("store") / "00000.zarr"
    arrays = {"layer_3": values(frames, 3, 5), "layer_3_scale": values(frames, 3, dtype="float32")}
    write(path, arrays, chunk, chunk * chunks_per_shard, batch)
    group = zarr.open_group(path, mode="r")
    reader = StoreReader(path)
    rows = np.array([pick % frames for pick in picks] if frames else [], np.int64)
    for name, array in arrays.items():
        assert group[name].shape == array.shape and group[name].dtype == array.dtype
        np.testing.assert_array_equal(group[name][:], array)
        out = np.full((len(rows), *array.shape[1:]), -1, array.dtype)
        reader.read_into(name, rows, out)
        np.testing.assert_array_equal(out, array[rows])
        np.testing.assert_array_equal(reader.read_general(name, rows), array[rows])


def test_store_opens_with_plain_zarr_and_knows_its_videos(tmp_path):
    write(tmp_path / "00000.zarr", {"special": values(20, 2, 4)}, 8, 16, 7)
    group = zarr.open_group(tmp_path / "00000.zarr", mode="r")
    assert group.attrs["videos"] == ["a", "b"]
    np.testing.assert_allclose(group["time_s"][:], np.arange(20) / 3)
    assert group["special"].shards == (16, 2, 4) and group["special"].chunks == (8, 2, 4)
    assert np.isnan(group["special"].fill_value)


def test_same_rows_in_other_batches_give_the_same_bytes(tmp_path):
    array = {"layer_0": values(53, 4, 6)}
    first = write(tmp_path / "a" / "00000.zarr", array, 4, 12, 53)
    second = write(tmp_path / "b" / "00000.zarr", array, 4, 12, 5)
    assert first == second


def test_receipt_lists_every_file_with_its_true_size(tmp_path):
    files = write(tmp_path / "00000.zarr", {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    found = {
        path.relative_to(tmp_path / "00000.zarr").as_posix() for path in (tmp_path / "00000.zarr").rglob("*") if path.is_file()
    }
    assert files.keys() == found
    assert files["layer_0/c/2/0/0"][0] == 8 * 4 * 6 * 2 + 3 * 16 + 4  # 6 rows padded to 2 chunks, an index of 3 chunks, its CRC
    assert not check_files(tmp_path / "00000.zarr", files, content_up_to=math.inf)


def test_a_lost_shard_reads_as_nan_in_zarr_and_as_an_error_here(tmp_path):
    write(tmp_path / "00000.zarr", {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    (tmp_path / "00000.zarr/layer_0/c/1/0/0").unlink()
    assert np.isnan(zarr.open_group(tmp_path / "00000.zarr", mode="r")["layer_0"][12:24]).all()
    with pytest.raises(BadInput, match="shard .*layer_0/c/1/0/0 cannot be read: No such file"):
        StoreReader(tmp_path / "00000.zarr").read_into("layer_0", np.array([13]), np.empty((1, 4, 6), "float16"))


@pytest.mark.parametrize(
    ("damage", "problem", "content_only"),
    [
        (lambda path: path.unlink(), "missing", False),
        (lambda path: path.write_bytes(b""), "0 bytes, receipt says", False),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, receipt says", False),
        (lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), "content differs from its checksum", True),
    ],
)
def test_damage_is_named(tmp_path, damage, problem, content_only):
    store = tmp_path / "00000.zarr"
    files = write(store, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    damage(store / "layer_0/c/1/0/0")
    assert problem in check_files(store, files, content_up_to=math.inf)["layer_0/c/1/0/0"]
    assert bool(check_files(store, files, content_up_to=0)) is not content_only


def test_a_stray_file_is_named(tmp_path):
    files = write(tmp_path / "00000.zarr", {"layer_0": values(5, 4, 6)}, 4, 12, 30)
    (tmp_path / "00000.zarr/stray").write_text("x")
    assert check_files(tmp_path / "00000.zarr", files, content_up_to=math.inf) == {"stray": "not in the receipt"}


def test_truncated_shard_is_refused_by_its_index(tmp_path):
    write(tmp_path / "00000.zarr", {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    shard = tmp_path / "00000.zarr/layer_0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(BadInput, match="its index does not match its checksum"):
        StoreReader(tmp_path / "00000.zarr").read_into("layer_0", np.array([0]), np.empty((1, 4, 6), "float16"))


def test_an_unfinished_store_is_only_ever_a_partial_folder(tmp_path):
    writer = StoreWriter(tmp_path / "00000.zarr", {"layer_0": ((4, 6), np.dtype("float16"))}, 4, 12)
    writer.append({"layer_0": values(30, 4, 6)})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["00000.zarr.partial"]
    write(tmp_path / "00000.zarr", {"layer_0": values(3, 4, 6)}, 4, 12, 3)  # a rerun clears it away
    assert [path.name for path in tmp_path.iterdir()] == ["00000.zarr"]


def test_array_names():
    assert token_arrays((5, 11), 5, 196) == {"special": 5, "layer_5": 196, "layer_11": 196}
    assert token_arrays((11,), 0, 4) == {"layer_11": 4}


def test_write_atomically_leaves_the_old_file_when_it_cannot_write(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.json", b"old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match=r"cannot write .*a\.json: No space left on device"):
        write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
