"""The store: what plain zarr reads is what was appended, the direct reader equals it, and damage is
seen."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from zarr.codecs import GzipCodec

from pipeline.cache.corruption import BadChunk, check_chunks, check_files
from pipeline.cache.layout import tokens_by_array
from pipeline.cache.shard import direct, page_cache
from pipeline.cache.shard import reader as shard_reader
from pipeline.cache.shard.format import aligned_empty
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.cache.store_writer import StoreWriter
from pipeline.errors import BadInput
from pipeline.train.windows.reader import RowsToRead, read_in_turn
from tests.support.stores import STORE, reads, values, write


def write_without_checksums(
    path: Path, arrays: dict[str, np.ndarray], chunk: int, shard: int
) -> None:
    """As zarr itself writes shards whose chunks have no checksums."""
    group = zarr.create_group(path)
    for name, array in arrays.items():
        size = {"chunks": (chunk, *array.shape[1:]), "shards": (shard, *array.shape[1:])}
        stored = group.create_array(
            name, shape=array.shape, dtype=array.dtype, compressors=None, **size
        )
        stored[:] = array


layouts = {
    "frames": st.integers(0, 70),
    "chunk": st.integers(1, 9),
    "chunks_per_shard": st.integers(1, 4),
    "batch": st.integers(1, 40),
    "shape": st.sampled_from([(3, 5), (3, 1), (4, 32), (7,)]),
    "dtype": st.sampled_from(["float16", "uint8", "uint16", "float32"]),
    "kind": st.sampled_from(["none", "zstd", "no checksums"]),
    "picks": st.lists(
        st.lists(st.integers(0, 10_000), max_size=30)
        | st.integers(0, 60).map(lambda first: list(range(first, first + 16))),
        min_size=2,
        max_size=2,
    ),
}


@settings(max_examples=100, deadline=None)
@given(**layouts)
def test_direct_reader_equals_zarr_for_any_layout_and_rows(
    tmp_path_factory, frames, chunk, chunks_per_shard, batch, shape, dtype, kind, picks
):
    place = LocalFolder(tmp_path_factory.mktemp("store"))
    array = values(frames, *shape, dtype=dtype)
    if kind == "no checksums":
        write_without_checksums(
            place.path / STORE, {"layer_3": array}, chunk, chunk * chunks_per_shard
        )
    else:
        write(place.path / STORE, {"layer_3": array}, chunk, chunk * chunks_per_shard, batch, kind)
    stored = zarr.open_group(place.path / STORE, mode="r")["layer_3"]
    assert stored.shape == array.shape and stored.dtype == array.dtype
    np.testing.assert_array_equal(stored[:], array)
    reader = StoreReader(place, STORE)
    kept_P = np.random.default_rng(chunk).random(shape[0]) < 0.5
    kept_P[frames % shape[0]] = True
    for picked in picks:
        rows = np.array([pick % frames for pick in picked] if frames else [], np.int64)
        for maps in (False, True):
            out = np.full((len(rows), *shape), 77, array.dtype)
            some = np.full((len(rows), kept_P.sum(), *shape[1:]), 77, array.dtype)
            with reads(maps):
                reader.read_into("layer_3", rows, out)
                reader.read_into("layer_3", rows, some, kept_P)
            np.testing.assert_array_equal(out, array[rows])
            np.testing.assert_array_equal(some, array[rows][:, kept_P])
        np.testing.assert_array_equal(reader.read_general("layer_3", rows), array[rows])
    assert check_chunks(place, STORE, "layer_3") == []


def test_store_opens_with_plain_zarr_and_knows_its_videos(tmp_path):
    write(tmp_path / STORE, {"special": values(20, 2, 4)}, 8, 16, 7)
    group = zarr.open_group(tmp_path / STORE, mode="r")
    assert group.attrs["videos"] == ["a", "b"]
    np.testing.assert_allclose(group["time_s"][:], np.arange(20) / 3)
    assert group["special"].shards == (16, 2, 4) and group["special"].chunks == (8, 2, 4)
    assert np.isnan(group["special"].fill_value)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_bytes_of_a_shard(tmp_path, compression):
    """Each chunk at a multiple of 64, as zarr would encode it, its CRC-32C after it; the index and
    its own at the end."""
    array = values(21, 3, 5)
    write(tmp_path / STORE, {"layer_0": array}, 4, 12, 7, compression)
    data = (tmp_path / STORE / "layer_0/c/1/0/0").read_bytes()
    index = np.frombuffer(data[-3 * 16 - 4 : -4], "<u8").reshape(3, 2)
    assert int.from_bytes(data[-4:], "little") == google_crc32c.value(index.tobytes())
    padded = np.concatenate([array[12:], np.full((3, 3, 5), np.nan, "float16")])
    end = 0
    for chunk, (offset, length) in enumerate(index.tolist()):
        wanted = padded[chunk * 4 : chunk * 4 + 4].tobytes()
        wanted = Zstd().encode(wanted) if compression == "zstd" else wanted
        assert data[offset : offset + length] == wanted + google_crc32c.value(wanted).to_bytes(
            4, "little"
        )
        assert offset % 64 == 0 and data[end:offset] == bytes(offset - end)
        end = offset + length
    assert len(data) == -(-end // 64) * 64 + 3 * 16 + 4


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_same_rows_in_other_batches_give_the_same_bytes(tmp_path, compression):
    array = {"layer_0": values(53, 4, 6)}
    first = write(tmp_path / "a" / STORE, array, 4, 12, 53, compression)
    second = write(tmp_path / "b" / STORE, array, 4, 12, 5, compression)
    assert first == second


def test_a_shard_of_very_many_chunks(tmp_path):
    array = values(3000, 2)
    write(tmp_path / STORE, {"layer_0": array}, 1, 2500, 3000)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / STORE, mode="r")["layer_0"][:], array)


def test_receipt_lists_every_file_with_its_true_size(tmp_path):
    files = write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    found = {
        path.relative_to(tmp_path / STORE).as_posix()
        for path in (tmp_path / STORE).rglob("*")
        if path.is_file()
    }
    assert files.keys() == found
    chunk = 256  # 4 rows of 48 bytes and a CRC, up to a multiple of 64
    assert (
        files["layer_0/c/2/0/0"][0] == 2 * chunk + 3 * 16 + 4
    )  # 6 rows padded to 2 chunks, an index of 3 chunks, its CRC
    assert check_files(LocalFolder(tmp_path), STORE, files) == {}


def test_a_lost_shard_reads_as_nan_in_zarr_and_as_an_error_here(tmp_path):
    write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    (tmp_path / STORE / "layer_0/c/1/0/0").unlink()
    assert np.isnan(zarr.open_group(tmp_path / STORE, mode="r")["layer_0"][12:24]).all()
    with pytest.raises(BadInput, match="shard .*layer_0/c/1/0/0 cannot be read: No such file"):
        StoreReader(LocalFolder(tmp_path), STORE).read_into(
            "layer_0", np.array([13]), np.empty((1, 4, 6), "float16")
        )


@pytest.mark.parametrize(
    ("damage", "problem", "content_only"),
    [
        (lambda path: path.unlink(), "missing", False),
        (lambda path: path.write_bytes(b""), "0 bytes, receipt says", False),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, receipt says", False),
        (
            lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]),
            "content differs from its checksum",
            True,
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, problem, content_only):
    files = write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    damage(tmp_path / STORE / "layer_0/c/1/0/0")
    assert problem in check_files(LocalFolder(tmp_path), STORE, files)["layer_0/c/1/0/0"]
    sizes = check_files(LocalFolder(tmp_path), STORE, files, only_sizes=files)
    assert bool(sizes) is not content_only


def test_a_stray_file_is_named(tmp_path):
    files = write(tmp_path / STORE, {"layer_0": values(5, 4, 6)}, 4, 12, 30)
    (tmp_path / STORE / "stray").write_text("x")
    assert check_files(LocalFolder(tmp_path), STORE, files) == {"stray": "not in the receipt"}


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 40),
    compression=st.sampled_from(["none", "zstd"]),
    shard=st.integers(0, 9),
    at=st.integers(0, 10**6),
)
def test_one_flipped_bit_is_named_by_its_rows_and_refused_by_zarr(
    tmp_path_factory, frames, compression, shard, at
):
    place = LocalFolder(tmp_path_factory.mktemp("store"))
    write(place.path / STORE, {"layer_0": values(frames, 4, 6)}, 4, 12, 30, compression)
    shard %= -(-frames // 12)
    path = place.path / STORE / f"layer_0/c/{shard}/0/0"
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << at % 8
    path.write_bytes(data)
    reader, first, stop = StoreReader(place, STORE), shard * 12, min(shard * 12 + 12, frames)
    try:
        index = reader.index("layer_0", shard)
    except BadInput as error:
        bad = [BadChunk(f"layer_0/c/{shard}/0/0", first, stop, error.message)]
    else:
        within = [
            chunk
            for chunk, (offset, length) in enumerate(index.tolist())
            if offset <= at % len(data) < offset + length
        ]
        rows = [
            (first + chunk * 4, min(first + chunk * 4 + 4, stop)) for chunk in within
        ]  # none: a byte between two chunks
        bad = [
            BadChunk(f"layer_0/c/{shard}/0/0", *each, "content differs from its checksum")
            for each in rows
        ]
    assert check_chunks(place, STORE, "layer_0") == bad
    group = zarr.open_group(place.path / STORE, mode="r")
    for _, first, stop, _ in bad:
        with pytest.raises(ValueError, match="checksum"):
            group["layer_0"][first:stop]
        with pytest.raises(ValueError, match="checksum"):
            reader.read_general("layer_0", np.arange(first, stop))
        for row in range(first, stop):
            with pytest.raises(BadInput, match=f"layer_0/c/{shard}/0/0.* (damaged|cannot be)"):
                reader.read_into("layer_0", np.array([row]), np.empty((1, 4, 6), "f2"))
    sound = np.setdiff1d(
        np.arange(frames), np.concatenate([np.arange(*each[1:3]) for each in bad] or [[]])
    )
    out = np.empty((len(sound), 4, 6), "f2")
    reader.read_into("layer_0", sound, out)
    for read in (out, reader.read_general("layer_0", sound)):
        np.testing.assert_array_equal(read, values(frames, 4, 6)[sound])


def chunk_bytes(reader: StoreReader, array: str, shard: int, chunk: int) -> slice:
    """Where a chunk lies in its shard, checksum included."""
    start, length = reader.index(array, shard)[chunk].tolist()
    return slice(start, start + length)


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("how", ["within a shard", "of another shard", "of another array"])
def test_a_chunk_in_the_place_of_another_is_refused_with_its_own_checksum(
    tmp_path, how, compression
):
    """Bytes and checksum of a chunk fit each other wherever they are copied to."""
    # Noise cannot be packed, so that all chunks have the same length.
    tokens = np.random.default_rng(0).integers(0, 2**16, (2, 24, 4, 6)).astype("u2")
    write(tmp_path / STORE, {"a": tokens[0], "b": tokens[1]}, 4, 12, 30, compression)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    array, shard, chunk = {
        "within a shard": ("a", 0, 2),
        "of another shard": ("a", 1, 0),
        "of another array": ("b", 0, 1),
    }[how]
    source, target = (
        (tmp_path / STORE / name / f"c/{number}/0/0", chunk_bytes(reader, name, number, at))
        for name, number, at in (("a", 0, 1), (array, shard, chunk))
    )
    copied, data = source[0].read_bytes()[source[1]], bytearray(target[0].read_bytes())
    assert len(copied) == target[1].stop - target[1].start
    data[target[1]] = copied
    target[0].write_bytes(data)
    first = shard * 12 + chunk * 4
    assert check_chunks(LocalFolder(tmp_path), STORE, array) == [
        BadChunk(f"{array}/c/{shard}/0/0", first, first + 4, "content differs from its checksum")
    ]
    reader, rows = StoreReader(LocalFolder(tmp_path), STORE), np.arange(first, first + 4)
    with pytest.raises(BadInput, match=rf"{array}/c/{shard}/0/0 is damaged: rows \[{first}, "):
        reader.read_into(array, rows, np.empty((4, 4, 6), "u2"))
    np.testing.assert_array_equal(reader.read_general(array, rows), tokens[0, 4:8])


def test_damage_after_the_first_read_is_not_looked_for_again(tmp_path):
    """What a chunk's first read in a process has vouched for is read at the speed of the disk."""
    write(tmp_path / STORE, {"layer_0": values(24, 4, 6)}, 4, 12, 30)
    reader, out = StoreReader(LocalFolder(tmp_path), STORE), np.empty((1, 4, 6), "f2")
    reader.read_into("layer_0", np.array([0]), out)
    path = tmp_path / STORE / "layer_0/c/0/0/0"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    data[256] ^= 1  # of the rows 4 to 7
    path.write_bytes(data)
    reader.read_into("layer_0", np.array([0]), out)
    with pytest.raises(BadInput, match=r"rows \[4, 8\) of the store"):
        reader.read_into("layer_0", np.array([4]), out)


def test_a_lost_and_an_emptied_shard_are_named_by_their_rows(tmp_path):
    write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    (tmp_path / STORE / "layer_0/c/0/0/0").unlink()
    (tmp_path / STORE / "layer_0/c/2/0/0").write_bytes(b"")
    lost, emptied = check_chunks(LocalFolder(tmp_path), STORE, "layer_0")
    assert lost[:3] == ("layer_0/c/0/0/0", 0, 12) and "cannot be read: No such file" in lost.problem
    assert (
        emptied[:3] == ("layer_0/c/2/0/0", 24, 30)
        and "its index does not match its checksum" in emptied.problem
    )


def test_a_chunk_that_zarr_left_out_is_refused_and_named(tmp_path):
    array = values(24, 4)
    array[4:8] = np.nan
    group = zarr.create_group(tmp_path / STORE)
    stored = group.create_array(
        "layer_0",
        shape=(24, 4),
        chunks=(4, 4),
        shards=(12, 4),
        dtype="f2",
        fill_value=np.nan,
        compressors=None,
    )
    stored[:] = array
    assert check_chunks(LocalFolder(tmp_path), STORE, "layer_0") == [
        BadChunk("layer_0/c/0/0", 4, 8, "missing")
    ]
    reader, row = StoreReader(LocalFolder(tmp_path), STORE), np.empty((1, 4), "f2")
    with pytest.raises(BadInput, match=r"layer_0/c/0/0 is damaged: rows \[4, 8\) .*: missing"):
        reader.read_into("layer_0", np.array([5]), row)
    reader.read_into("layer_0", np.array([8]), row)
    np.testing.assert_array_equal(row, array[8:9])


def test_a_store_of_other_codecs_is_refused(tmp_path):
    group = zarr.create_group(tmp_path / STORE)
    group.create_array(
        "layer_0", shape=(24, 4), chunks=(4, 4), shards=(12, 4), dtype="f2", compressors=GzipCodec()
    )
    with pytest.raises(
        BadInput,
        match="array 'layer_0' .* has the codecs bytes, gzip, wanted a shard of bytes, "
        "zstd and crc32c",
    ):
        StoreReader(LocalFolder(tmp_path), STORE).read_into(
            "layer_0", np.array([0]), np.empty((1, 4), "f2")
        )


@pytest.mark.parametrize("maps", [False, True])
def test_a_shard_that_is_cut_while_it_is_read(tmp_path, maps):
    write(tmp_path / STORE, {"layer_0": values(24, 64, 64)}, 4, 24, 24)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    reader.read_into("layer_0", np.array([23]), np.empty((1, 64, 64), "float16"))
    shard = tmp_path / STORE / "layer_0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:100_001])
    for kept_P in (None, np.arange(64) % 4 == 0):
        tokens = 64 if kept_P is None else 16
        with pytest.raises(BadInput, match=r"layer_0/c/0/0/0 .*ends before byte \d+"), reads(maps):
            out = np.empty((24, tokens, 64), "float16")
            reader.read_into("layer_0", np.arange(24), out, kept_P)


def test_a_store_of_frames_with_other_tokens_than_are_kept_of_is_refused(tmp_path):
    write(tmp_path / STORE, {"layer_0": values(8, 4, 6)}, 4, 8, 8)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    for tokens in (3, 5):
        kept_P = np.arange(tokens) < 2
        said = rf"holds float16 \(4, 6\) for a frame, the cache says float16 \({tokens}, 6\)"
        with pytest.raises(BadInput, match=said):
            reader.read_into("layer_0", np.arange(3), np.empty((3, 2, 6), "float16"), kept_P)


def test_a_disk_that_cannot_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)

    def broken(*_) -> int:
        raise OSError(5, "Input/output error")

    reader = StoreReader(LocalFolder(tmp_path), STORE)
    page_cache.unmap_all()
    monkeypatch.setattr(shard_reader, "copy_resident", lambda *_: False)  # it is not in memory
    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(
        BadInput, match="shard .*layer_0/c/1/0/0 cannot be read: Input/output error"
    ):
        reader.read_into("layer_0", np.array([13]), np.empty((1, 4, 6), "float16"))


@pytest.mark.parametrize("maps", [False, True])
def test_rows_of_more_than_one_read_and_far_apart(tmp_path, maps):
    array = values(80, 2, 70_000)
    write(tmp_path / STORE, {"layer_0": array}, 8, 80, 80)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    for rows in (np.arange(80), np.arange(80)[::-1], np.array([0, 79, 3, 3, 4, 41])):
        out = aligned_empty((len(rows), 2, 70_000), array.dtype)
        with reads(maps):
            reader.read_into("layer_0", rows, out)
        np.testing.assert_array_equal(out, array[rows])


def test_of_a_crop_a_disk_reads_no_rows_of_patches_that_are_left_out(tmp_path, monkeypatch):
    array = values(24, 64, 768)  # 8 x 8 patches
    write(tmp_path / STORE, {"layer_0": array}, 8, 24, 24)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    rows, row_bytes = np.arange(3, 19), 64 * 768 * 2
    reader.read_into("layer_0", rows, np.empty((16, 64, 768), array.dtype))  # compares chunks
    read_bytes = []
    preadv = os.preadv

    def noted(handle, buffers, offset) -> int:
        read_bytes.append(sum(map(len, buffers)))
        return preadv(handle, buffers, offset)

    monkeypatch.setattr("os.preadv", noted)
    kept_hw = np.zeros((8, 8), bool)
    blocks = 2 * direct.BLOCK  # at most, around what is read past the page cache
    for high, expected in ((2, 16 * (8 + 3) * 768 * 2), (4, 16 * row_bytes)):
        kept_hw[2 : 2 + high, 1:4] = True
        out = np.empty((16, 3 * high, 768), array.dtype)
        read_bytes.clear()
        with reads(maps=False):
            reader.read_into("layer_0", rows, out, kept_hw.ravel())
        np.testing.assert_array_equal(out, array[rows][:, kept_hw.ravel()])
        # What is left out must be worth a request.
        assert expected <= sum(read_bytes) <= expected + (blocks if high == 4 else 0)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system is not told of reads")
def test_the_disk_is_asked_for_a_crop_before_its_turn(tmp_path, monkeypatch):
    array = values(24, 64, 768)
    write(tmp_path / STORE, {"layer_0": array}, 8, 24, 24)
    reader = StoreReader(LocalFolder(tmp_path), STORE)
    reader.read_into("layer_0", np.arange(24), np.empty(array.shape, array.dtype))
    kept_P = np.arange(64) // 8 < 2
    events = []
    preadv, fadvise = os.preadv, os.posix_fadvise

    def read(handle, buffers, offset) -> int:
        events.append(("read", offset))
        return preadv(handle, buffers, offset)

    def ask(handle, offset, length, advice) -> None:
        events.append(("ask", offset))
        fadvise(handle, offset, length, advice)

    monkeypatch.setattr("os.preadv", read)
    monkeypatch.setattr("os.posix_fadvise", ask)
    windows, out = [np.arange(2), np.arange(9, 11)], np.empty((2, 2, 16, 768), array.dtype)
    with reads(maps=False):
        read_in_turn(
            [
                RowsToRead(reader, "layer_0", rows, into, kept_P)
                for rows, into in zip(windows, out, strict=True)
            ]
        )
    np.testing.assert_array_equal(out, array[np.stack(windows)][:, :, kept_P])
    row_bytes = 64 * 768 * 2
    chunk = 8 * row_bytes + 64
    first, second = [0, row_bytes], [chunk + row_bytes, chunk + 2 * row_bytes]
    assert events == [
        *(("ask", offset) for offset in first),
        *(("read", offset) for offset in first),
        *(("ask", offset) for offset in second),  # with the first window at hand
        *(("ask", offset) for offset in second),
        *(("read", offset) for offset in second),
    ]


def test_threads_share_a_reader(tmp_path):
    array = values(200, 3, 32)
    write(tmp_path / STORE, {"layer_0": array}, 8, 40, 64)
    wrong = []
    reader = StoreReader(LocalFolder(tmp_path), STORE)

    def read(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 200, 50)
        out = np.empty((50, 3, 32), "float16")
        reader.read_into("layer_0", rows, out)
        wrong.extend(rows[(out != array[rows]).any(axis=(1, 2))])

    for maps in (False, True):
        with reads(maps):
            threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert wrong == []


def test_more_files_are_read_than_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(page_cache, "MAPS", 2)
    array = values(60, 4, 6)
    write(tmp_path / STORE, {"layer_0": array}, 4, 12, 30)
    reader, out = StoreReader(LocalFolder(tmp_path), STORE), np.empty((60, 4, 6), "float16")
    page_cache.unmap_all()
    with reads(maps=True):
        reader.read_into("layer_0", np.arange(60), out)
    np.testing.assert_array_equal(out, array)
    assert len(page_cache._maps) == 2


def test_rows_in_memory_are_copied_without_opening_their_shards(tmp_path, monkeypatch):
    """Once a shard was read; what has been put in its place is opened, and what was cut refused."""
    page_cache.unmap_all()
    array, rows = values(30, 4, 6), np.array([3, 4, 14, 13, 29])
    write(tmp_path / STORE, {"layer_0": array}, 4, 12, 30)
    reader, out = StoreReader(LocalFolder(tmp_path), STORE), np.empty((5, 4, 6), "float16")
    reader.read_into("layer_0", rows, out)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "open_shard", lambda *_: pytest.fail("a shard was opened"))
        again = np.empty_like(out)
        reader.read_into("layer_0", rows, again)
        np.testing.assert_array_equal(again, array[rows])
    shard_path = tmp_path / STORE / "layer_0/c/0/0/0"
    os.truncate(shard_path, 100)
    with pytest.raises(BadInput, match="ends before byte"):
        reader.read_into("layer_0", rows, again)


def test_what_is_not_in_memory_is_read(tmp_path):
    """And what is past the end of a file never is."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    out = np.zeros(300, np.uint8)
    with path.open("rb") as file:
        assert page_cache.copy_resident(file, [(100, out)]) and out.tolist() == [
            (100 + place) % 256 for place in range(300)
        ]
        assert not page_cache.copy_resident(file, [(256 * 64 - 299, out)])


def test_truncated_shard_is_refused_by_its_index(tmp_path):
    write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)
    shard = tmp_path / STORE / "layer_0/c/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(BadInput, match="its index does not match its checksum"):
        StoreReader(LocalFolder(tmp_path), STORE).read_into(
            "layer_0", np.array([0]), np.empty((1, 4, 6), "float16")
        )


def test_a_disk_that_cannot_sync_is_an_error(tmp_path, monkeypatch):
    """The sync runs in another thread; what it raises is raised here."""

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / STORE, {"layer_0": values(30, 4, 6)}, 4, 12, 30)


def test_a_store_that_is_given_up_lets_go(tmp_path):
    writer = StoreWriter(tmp_path, {"layer_0": ((4, 6), np.dtype("float16"))}, 4, 12)
    before = threading.active_count()
    writer.append({"layer_0": values(30, 4, 6)})
    assert threading.active_count() > before
    writer.close()
    assert threading.active_count() == before
    assert not (tmp_path / "zarr.json").exists()


def test_array_names():
    assert tokens_by_array((5, 11), 5, 196) == {"special": 5, "layer_5": 196, "layer_11": 196}
    assert tokens_by_array((11,), 0, 4) == {"layer_11": 4}


def test_memory_for_a_batch_begins_at_a_cache_line():
    for shape in [(1,), (7, 3), (16, 201, 384)]:
        room = aligned_empty(shape, np.dtype("float16"))
        assert (
            room.shape == shape
            and room.dtype == "float16"
            and room.flags.c_contiguous
            and room.flags.writeable
        )
        assert room.ctypes.data % 64 == 0
