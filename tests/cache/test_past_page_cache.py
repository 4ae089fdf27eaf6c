"""Shards that are written past the page cache, and rows that are read so: those that were read before
and that the memory does not hold any more."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.shard import direct, writer
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.errors import BadInput
from tests.support.stores import STORE, reads, values, write

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif(
    not direct.HAS_DIRECT,
    reason="this system reads by its page cache alone",
)


@pytest.fixture(autouse=True)
def on_disk(monkeypatch):
    """Wherever the tests' files lie."""
    monkeypatch.setattr(direct, "is_on_disk", lambda _: True)
    monkeypatch.setattr(writer, "is_on_disk", lambda _: True)


@pytest.mark.parametrize("kept", [False, True])
def test_what_was_read_before_and_is_not_in_memory_is_read_past_it(tmp_path, monkeypatch, kept):
    """In few requests of whole blocks, and again after a fork; at first it is read into memory."""
    array = values(200, 4, 9_000)  # 14.4 MB
    write(tmp_path / STORE, {"layer_0": array}, 8, 80, 80)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    kept_P = np.array([True, False, True, True]) if kept else None
    rows = np.concatenate([np.arange(3, 190), [0, 199, 199, 42], np.arange(9, 60, 3)])
    wanted = array[rows] if kept_P is None else array[rows][:, kept_P]
    requests = []
    preadv = os.preadv

    def noted(handle, buffers, offset) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            requests.append((offset, sum(map(len, buffers))))
        return preadv(handle, buffers, offset)

    monkeypatch.setattr("os.preadv", noted)
    with reads(maps=False):
        reader.read_into("layer_0", np.arange(200), np.empty_like(array))
        assert requests == []
        out = np.empty(wanted.shape, wanted.dtype)
        reader.read_into("layer_0", rows, out, kept_P)
    np.testing.assert_array_equal(out, wanted)
    offsets, sizes = np.array(requests).T
    assert (offsets % direct.BLOCK == 0).all() and (sizes % direct.BLOCK == 0).all()
    assert sizes.max() == direct.STAGED_BYTES and len(requests) < 2 * len(rows) // 8
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:  # the memory that the parent reads into is not the child's
        code = 1
        with suppress(BaseException):
            out[:] = 0
            with reads(maps=False):
                reader.read_into("layer_0", rows, out, kept_P)
            code = 0 if np.array_equal(out, wanted) else 2
        os._exit(code)


@pytest.mark.parametrize("refusal", ["flag", "read"])
def test_a_file_system_that_reads_by_its_memory_alone(tmp_path, monkeypatch, refusal):
    array, rows = values(30, 4, 6), np.arange(2, 29)
    write(tmp_path / STORE, {"layer_0": array}, 4, 12, 30)
    reader, out = StoreReader(LocalFolder(tmp_path), STORE), np.empty((27, 4, 6), "float16")
    fcntl_, preadv, refused = fcntl.fcntl, os.preadv, []

    def refuse(*_) -> None:
        refused.append(refusal)
        raise OSError(errno.EINVAL, "Invalid argument")

    def flags(handle, command, *value) -> int:
        if refusal == "flag" and value and value[0] & os.O_DIRECT:
            refuse()
        return fcntl_(handle, command, *value)

    def read(handle, buffers, offset) -> int:
        if fcntl_(handle, fcntl.F_GETFL) & os.O_DIRECT:
            refuse()
        return preadv(handle, buffers, offset)

    monkeypatch.setattr("fcntl.fcntl", flags)
    monkeypatch.setattr("os.preadv", read)
    with reads(maps=False):
        for _ in range(2):
            out[:] = 0
            reader.read_into("layer_0", rows, out)
            np.testing.assert_array_equal(out, array[rows])
    assert refused


def test_past_the_page_cache_a_cut_shard_and_a_broken_disk_are_named(tmp_path, monkeypatch):
    write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    reader, out = StoreReader(LocalFolder(tmp_path), STORE), np.empty((12, 4, 6), "float16")
    with reads(maps=False):
        reader.read_into("layer_0", np.arange(12), out)
        os.truncate(tmp_path / STORE / "layer_0/c/0/0/0", 100)
        with pytest.raises(BadInput, match="layer_0/c/0/0/0 ends before byte"):
            reader.read_into("layer_0", np.arange(12), out)
        monkeypatch.setattr("os.preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "no luck")))
        with pytest.raises(BadInput, match="layer_0/c/0/0/0 cannot be read: no luck"):
            reader.read_into("layer_0", np.arange(12), out)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 90),
    chunk=st.integers(1, 9),
    chunks_per_shard=st.integers(1, 5),
    batch=st.integers(1, 40),
    tokens=st.sampled_from([1, 3, 700, 4096]),
    staged=st.sampled_from([4096, 8192, 4 << 20]),
    compression=st.sampled_from(["none", "zstd"]),
)
def test_what_is_written_past_the_page_cache_is_the_same_to_the_byte(
    tmp_path_factory, frames, chunk, chunks_per_shard, batch, tokens, staged, compression
):
    arrays = {"a": values(frames, tokens, 3), "b": values(frames, 5, dtype="uint8")}
    folder = tmp_path_factory.mktemp("stores")
    files = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "STAGED_BYTES", staged)
        for is_direct in (True, False):
            patch.setattr(writer, "is_on_disk", lambda _, is_direct=is_direct: is_direct)
            path = folder / f"{is_direct}"
            receipt = write(path, arrays, chunk, chunk * chunks_per_shard, batch, compression)
            whole = {name: (path / name).read_bytes() for name in receipt}
            assert receipt == {
                name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in whole.items()
            }
            files.append(whole)
    assert files[0] == files[1]


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.ENOSPC])
def test_a_refusal_to_write_past_the_page_cache(tmp_path, monkeypatch, refused):
    """Of the way, there is another; of the bytes, the writing ends with the system's word."""
    array, pwrite, refusals = values(40, 700, 3), os.pwrite, []

    def write_or_refuse(handle, data, offset) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT and len(data):
            refusals.append(offset)
            if refused == errno.EINVAL or offset:
                raise OSError(refused, os.strerror(refused))
            return pwrite(handle, data[: len(data) // 2], offset)  # then there is no more room
        return pwrite(handle, data, offset)

    monkeypatch.setattr("os.pwrite", write_or_refuse)
    if refused == errno.ENOSPC:
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / STORE, {"layer_0": array}, 8, 24, 10)
        return
    write(tmp_path / STORE, {"layer_0": array}, 8, 24, 10)
    out = np.empty(array.shape, array.dtype)
    StoreReader(LocalFolder(tmp_path), STORE).read_into("layer_0", np.arange(40), out)
    np.testing.assert_array_equal(out, array)
    assert refusals


def test_a_kernel_without_large_pages(tmp_path, monkeypatch):
    class SmallPages(mmap.mmap):
        def madvise(self, *_) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("mmap.mmap", SmallPages)
    monkeypatch.setattr(direct, "_staging", direct._Staging())
    array = values(40, 700, 3)
    write(tmp_path / STORE, {"layer_0": array}, 8, 24, 10)
    reader, out = StoreReader(LocalFolder(tmp_path), STORE), np.empty(array.shape, array.dtype)
    with reads(maps=False):
        for _ in range(2):
            out[:] = 0
            reader.read_into("layer_0", np.arange(40), out)
            np.testing.assert_array_equal(out, array)


def test_only_a_disk_of_this_machine_is_written_to_and_read_so(monkeypatch, tmp_path):
    monkeypatch.undo()
    direct._file_system.cache_clear()
    with (tmp_path / "file").open("wb") as file:
        kind = direct._file_system(os.fstat(file.fileno()).st_dev)
        assert direct.is_on_disk(file.fileno()) is (kind in direct.FILE_SYSTEMS)
    with Path("/proc/self/status").open("rb") as file:
        assert direct._file_system(os.fstat(file.fileno()).st_dev) == "proc"
        assert not direct.is_on_disk(file.fileno())
    assert direct._file_system(os.makedev(4000, 4000)) == ""
