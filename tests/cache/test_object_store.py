"""Caches in an object store: a real S3 server, a network that fails, a disk cache that is bounded,
and the same bytes in the end."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.commands import assert_refused, call, fine
from support.object_store import STALL_S, proxy_of, s3_server

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import require_valid
from pipeline.cache.layout import receipt_name, store_name
from pipeline.cache.parts.chosen import open_cache
from pipeline.cache.parts.summary import parted_status
from pipeline.cache.storage import disk_cache, retry
from pipeline.cache.storage.contract import Storage
from pipeline.cache.storage.disk_cache import DiskCache
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.storage.open import open_storage
from pipeline.cache.store import StoreReader
from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.edit import write_parts
from pipeline.errors import BadInput, StillframeError
from pipeline.extract import extract
from pipeline.extract.in_parts import extract_parts
from pipeline.train.windows.windows import Windows

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def network_to_server():
    """One proxy before one server for all tests, since every new client of S3 takes a second to set
    up."""
    with s3_server() as port, proxy_of(port) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setattr(retry, "FIRST_WAIT_S", 0.01)
        patch.setattr(retry, "READ_S", STALL_S / 2)
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Path:
    """The folder of the disk cache."""
    folder = tmp_path / "disk"
    monkeypatch.setenv("STILLFRAME_DISK_CACHE", str(folder))
    monkeypatch.delenv("STILLFRAME_DISK_CACHE_GB", raising=False)
    return folder


@pytest.fixture
def proxy(network_to_server, disk):
    """What stands between this test and the server."""
    network_to_server.seen.clear()
    network_to_server.fault = lambda method, path: None
    return network_to_server


@pytest.fixture
def bucket(proxy, request) -> str:
    """The URL of an empty bucket."""
    name = "b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture(params=["folder", "memory", "s3"])
def home(request, tmp_path) -> Storage:
    """An empty place of every kind."""
    if request.param == "folder":
        return open_storage(tmp_path / "home")
    if request.param == "memory":
        request.getfixturevalue("disk")
        return open_storage(f"memory://{tmp_path.name}/home")
    return open_storage(f"{request.getfixturevalue('bucket')}/home")


def upload(cache: Cache, url: str) -> str:
    """A copy of a cache in a bucket; its URL."""
    s3fs.S3FileSystem().put(str(cache.path), f"{url}/{cache.name}", recursive=True)
    return f"{url}/{cache.name}"


@pytest.fixture(scope="module")
def uploaded(network_to_server, material) -> str:
    """The shared cache in a bucket. Read only."""
    s3fs.S3FileSystem().mkdir("shared")
    return upload(material.cache, "s3://shared/caches")


@pytest.fixture
def remote(proxy, uploaded) -> Cache:
    """The same, opened. Read only."""
    return Cache(uploaded)


def stores(cache: Cache) -> dict[str, str]:
    """Every file of every store -> sha256."""
    return {name: cache.storage.digest(f"stores/{name}") for name in cache.storage.sizes("stores")}


def vouched(cache: Cache) -> dict[int, dict[str, tuple[int, str]]]:
    """What the receipts say of every file."""
    return {store: receipt.files for store, receipt in cache.receipts.items()}


def taken(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    total = 0
    for _, folders, files, handle in os.fwalk(folder):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                total += os.stat(name, dir_fd=handle).st_blocks * 512
    return total


def read(storage: Storage, name: str, start: int, stop: int) -> bytes:
    with storage.open(name, [(start, stop)]) as file:
        return os.pread(file.fileno(), stop - start, start)


# Every kind of place


def test_a_file_is_whole_or_as_it_was(home):
    assert not home.exists("receipts/1.json")
    home.write("receipts/1.json", b"one")
    assert home.read("receipts/1.json") == b"one" and home.exists("receipts/1.json")
    home.write("receipts/1.json", b"another")
    assert home.read("receipts/1.json") == b"another"
    assert home.digest("receipts/1.json") == hashlib.sha256(b"another").hexdigest()
    assert not home.exists("receipts")
    home.write("empty", b"")
    assert home.read("empty") == b"" and home.digest("empty") == hashlib.sha256(b"").hexdigest()


def test_a_name_is_taken_once(home):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: home.create("leases/1.json", b"%d" % number), range(8)))
    assert won.count(True) == 1
    assert home.read("leases/1.json") == b"%d" % won.index(True)
    assert not home.create("leases/1.json", home.read("leases/1.json"))


def test_folders_are_what_has_files_below(home):
    assert home.names("") == home.names("stores") == [] and home.sizes("stores") == {}
    for name in ("cache.json", "stores/b/c/0", "stores/a", "stores/b/z", "storeys/a"):
        home.write(name, name.encode())
    assert home.names("") == ["cache.json", "stores", "storeys"]
    assert home.names("stores") == ["a", "b"] and home.names("stores/a") == []
    assert home.sizes("stores") == {"a": 8, "b/c/0": 12, "b/z": 10} and list(
        home.sizes("stores")
    ) == ["a", "b/c/0", "b/z"]
    assert home.sizes("stores/a") == {}
    home.remove("stores/b")
    home.remove("cache.json")
    home.remove("nothing")
    assert home.names("") == ["stores", "storeys"] and home.sizes("stores") == {"a": 8}


def test_a_staged_folder_replaces_the_one_that_was_there(home):
    home.write("stores/0/old", b"old")
    for content in (b"first", b"second"):
        staged = home.stage("stores/0")
        assert list(staged.iterdir()) == []
        (staged / "a/c").mkdir(parents=True)
        (staged / "a/c/0").write_bytes(content)
        (staged / "b").write_bytes(b"")
        home.publish(staged, "stores/0")
        assert not staged.exists()
        assert home.sizes("stores/0") == {"a/c/0": len(content), "b": 0}
        assert home.read("stores/0/a/c/0") == content


def test_what_is_not_there_is_an_error_with_its_name(home):
    for reading in (home.read, home.digest, lambda name: home.open(name, [(0, 1)])):
        with pytest.raises(FileNotFoundError) as caught:
            reading("stores/none")
        assert str(caught.value.filename) == f"{home}/stores/none" and caught.value.strerror


def test_an_opened_file_holds_the_spans_at_their_offsets(home, monkeypatch):
    monkeypatch.setattr(disk_cache, "BLOCK_BYTES", 1000)
    data = random.Random(0).randbytes(25_500)
    home.write("shard", data)
    for spans in (
        [],
        [(0, 1)],
        [(999, 1001), (25_499, 25_500)],
        [(3000, 9000), (100, 200)],
        [(0, 25_500)],
    ):
        with home.open("shard", spans) as file:
            assert os.fstat(file.fileno()).st_size == len(data)
            for start, stop in spans:
                assert os.pread(file.fileno(), stop - start, start) == data[start:stop]


def test_a_folder_of_files_can_be_had_locally(home):
    home.write("manifest/manifest.jsonl", b"{}\n")
    home.write("manifest/deeper/not", b"")
    home.write("manifest/targets.h5", bytes(10_000))
    local = home.local("manifest")
    assert (local / "manifest.jsonl").read_bytes() == b"{}\n"
    assert (local / "targets.h5").stat().st_size == 10_000
    home.write("manifest/manifest.jsonl", b"{1}\n")
    assert (home.local("manifest") / "manifest.jsonl").read_bytes() == b"{1}\n"


def test_places_know_where_they_are(home):
    inner = home.below("caches").below("x-0123")
    assert inner.name == "x-0123" and str(inner) == f"{home}/caches/x-0123"
    inner.write("a", b"a")
    assert inner.parent.names("") == ["x-0123"] and home.read("caches/x-0123/a") == b"a"
    assert open_storage(inner.address).read("a") == b"a"


def test_zarr_and_the_direct_reader_see_the_same_store(home, material):
    name = store_name(0)
    staged = home.stage(name)
    shutil.copytree(material.cache.path / name, staged, dirs_exist_ok=True)
    home.publish(staged, name)
    reader, local = StoreReader(home, name), material.cache.reader(0)
    shape = (material.cache.receipt(0).frames, 2, 3)
    assert reader.attributes == local.attributes
    np.testing.assert_array_equal(reader.small("affine", shape), local.small("affine", shape))
    rows = np.array([0, 5, 6, 7, 1, 20, 19, 3])
    for array in ("special", "layer_2", "layer_5"):
        out = np.empty((len(rows), *local.shape(array)[1:]), local.dtype(array))
        reader.read_into(array, rows, out)
        np.testing.assert_array_equal(out, local.read_general(array, rows))
        np.testing.assert_array_equal(reader.read_general(array, rows), out)


# Caches in the bucket


def test_extraction_to_a_bucket_gives_the_bytes_of_a_local_one(bucket, place, material):
    told = fine("extract", place.spec, place.data, "--out", f"{bucket}/caches", "--json").json
    cache = Cache(f"{bucket}/caches/{material.cache.name}")
    assert told["cache"] == str(cache) == f"{bucket}/caches/{material.cache.name}"
    assert stores(cache) == stores(material.cache)
    assert vouched(cache) == vouched(material.cache)
    assert cache.storage.names("") == ["cache.json", "manifest", "receipts", "stores"]
    assert (
        cache.plan == material.cache.plan
        and cache.manifest.digest == material.cache.manifest.digest
    )


def test_two_workers_share_a_cache_in_a_bucket(bucket, material):
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(extract.extract, material.spec, material.manifest, f"{bucket}/caches")
            for _ in range(2)
        ]
    assert [stores(one.result()) for one in both] == [stores(material.cache)] * 2
    assert both[0].result().storage.names("leases") == []


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_upload_then_a_rerun(bucket, proxy, place, material):
    """The process dies when some objects of its second store are there, and others are not."""
    middle, dead = threading.Event(), threading.Event()

    def fault(method, path):
        if method == "PUT" and "stores/00001.zarr/layer_5/c" in path and not dead.is_set():
            middle.set()
            dead.wait()
            return "reset"
        return None

    proxy.fault = fault
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "extract",
        place.spec,
        place.data,
        "--out",
        f"{bucket}/caches",
    ]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not middle.wait(0.1):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dead.set()
    left = Cache(f"{bucket}/caches/{material.cache.name}")
    assert (
        left.has(0)
        and not left.has(1)
        and left.storage.sizes(store_name(1)).keys() < set(material.cache.receipts[1].files)
    )
    assert left.storage.names("leases") != []
    again = extract.extract(material.spec, material.manifest, f"{bucket}/caches")
    assert stores(again) == stores(material.cache) and again.storage.names("leases") == []


def test_verify_finds_damage_in_a_bucket_and_messages_name_its_url(bucket, material):
    cache = Cache(upload(material.cache, f"{bucket}/caches"))
    storage, shard = cache.storage, "layer_5/c/1/0/0"
    assert str(cache) in fine("verify", cache).out and str(cache) in fine("status", cache).out
    assert_refused(
        call("status", f"{bucket}/caches/nothing"),
        f"{bucket}/caches/nothing is not a cache",
        str(cache),
    )
    flipped, missing = (f"{store_name(store)}/{shard}" for store in (0, 1))
    read(storage, flipped, 0, 8)  # what lies in the disk cache is no proof
    data = bytearray(storage.read(flipped))
    data[100] ^= 1
    storage.write(flipped, bytes(data))
    storage.remove(missing)
    storage.write(f"{store_name(2)}/stray", b"")
    result = call("verify", cache, "--json")
    assert result.code == 2 and f"{cache} is damaged in 3 stores" in result.err
    assert [(each["store"], each["file"], each["problem"]) for each in result.json["problems"]] == [
        (0, shard, "content differs from its checksum"),
        (1, shard, "missing"),
        (2, "stray", "not in the receipt"),
    ]
    storage.write(receipt_name(0), b"{")
    assert_refused(call("status", cache), f"{cache}/receipts/00000.json")


def test_windows_from_a_bucket_are_those_from_the_disk(remote, material):
    settings = WindowSettings(frames=4, fps=10)
    ours, theirs = (
        Windows(cache, cache.manifest, "train", settings, allow_missing=True)
        for cache in (remote, material.cache)
    )
    for (step, batch), (_, wanted) in zip(
        ours.train(2, range(12)), theirs.train(2, range(12)), strict=True
    ):
        assert batch.arrays.keys() == wanted.arrays.keys(), step
        for name, array in wanted.arrays.items():
            np.testing.assert_array_equal(batch.arrays[name].view(np.uint8), array.view(np.uint8))


def test_training_and_scoring_from_a_bucket_equal_those_from_the_disk(remote, place, tmp_path):
    run = tmp_path / "run"
    fine("train", place.recipe, remote, "--out", run)
    assert json.loads((run / "run.json").read_text())["cache_path"] == str(remote)
    ours = fine("evaluate", run, "--cache", remote, "--json").json
    theirs = fine("evaluate", place.run, "--json").json
    assert ours["forms"] == theirs["forms"] and ours["clips_scored"] > 0
    (here,), (there,) = (list(folder.glob("last-*.safetensors")) for folder in (run, place.run))
    assert here.read_bytes() == there.read_bytes()


def test_deriving_into_a_bucket(bucket, place, tmp_path):
    for out in (f"{bucket}/derived", tmp_path / "derived"):
        fine("derive", place.cache, "--out", out, "--set", "codec.name=int8")
    (name,) = open_storage(f"{bucket}/derived").names("")
    there, here = Cache(f"{bucket}/derived/{name}"), Cache(tmp_path / "derived" / name)
    assert vouched(there) == vouched(here) and there.storage.sizes("stores") == here.storage.sizes(
        "stores"
    )


# The disk cache


@pytest.fixture
def blocks(monkeypatch) -> int:
    """Small blocks."""
    monkeypatch.setattr(disk_cache, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(disk_cache, "RUN_BLOCKS", 4)
    return 1 << 16


def test_what_was_fetched_costs_no_request(bucket, proxy, blocks):
    data = random.Random(0).randbytes(20 * blocks + 5)
    open_storage(bucket).write("shard", data)
    storage = open_storage(bucket)
    proxy.seen.clear()
    assert (
        read(storage, "shard", 3 * blocks + 7, 8 * blocks - 1)
        == data[3 * blocks + 7 : 8 * blocks - 1]
    )
    asked = sorted(seen[2] for seen in proxy.seen if seen[0] == "GET")
    assert asked == [
        f"bytes={3 * blocks}-{7 * blocks - 1}",
        f"bytes={7 * blocks}-{8 * blocks - 1}",
    ]  # four at once
    proxy.seen.clear()
    assert read(storage, "shard", 4 * blocks, 6 * blocks) == data[4 * blocks : 6 * blocks]
    assert proxy.seen == []
    assert read(storage, "shard", 7 * blocks, 9 * blocks) == data[7 * blocks : 9 * blocks]
    assert [seen[2] for seen in proxy.seen if seen[0] == "GET"] == [
        f"bytes={8 * blocks}-{9 * blocks - 1}"
    ]
    proxy.seen.clear()
    assert (
        read(open_storage(bucket), "shard", 3 * blocks, 9 * blocks) == data[3 * blocks : 9 * blocks]
    )
    assert [seen[0] for seen in proxy.seen] == ["HEAD"]


@pytest.mark.parametrize("at", [3, -3], ids=["chunk", "index"])
def test_a_damaged_block_of_the_disk_cache_is_fetched_anew(bucket, disk, material, at):
    """The object is sound; if it were not, the second try would fail as the first did."""
    name, rows = store_name(0), np.arange(4)
    home = open_storage(f"{bucket}/home")
    staged = home.stage(name)
    shutil.copytree(material.cache.path / name, staged, dirs_exist_ok=True)
    home.publish(staged, name)
    local = material.cache.reader(0)
    out = np.empty((4, *local.shape("layer_5")[1:]), local.dtype("layer_5"))
    StoreReader(home, name).read_into("layer_5", rows, out)
    shard = (material.cache.path / name / "layer_5/c/0/0/0").read_bytes()
    (kept,) = (file for file in disk.rglob("data") if file.read_bytes() == shard)
    data = bytearray(shard)
    data[at] ^= 1
    kept.write_bytes(data)
    out[:] = 0
    StoreReader(home, name).read_into("layer_5", rows, out)
    np.testing.assert_array_equal(out, local.read_general("layer_5", rows))
    home.write(f"{name}/layer_5/c/0/0/0", bytes(data))
    with pytest.raises(BadInput, match="layer_5/c/0/0/0 is damaged"):
        StoreReader(home, name).read_into("layer_5", rows, out)


def test_threads_that_want_the_same_block_fetch_it_once(bucket, proxy, blocks):
    data = random.Random(0).randbytes(8 * blocks)
    storage = open_storage(bucket)
    storage.write("shard", data)
    proxy.seen.clear()
    with ThreadPoolExecutor(8) as pool:
        got = list(
            pool.map(lambda number: read(storage, "shard", number * 5, 2 * blocks), range(16))
        )
    assert got == [data[number * 5 : 2 * blocks] for number in range(16)]
    assert [seen[2] for seen in proxy.seen if seen[0] == "GET"] == [f"bytes=0-{2 * blocks - 1}"]


def test_the_disk_cache_stays_within_its_bound(bucket, disk, blocks, monkeypatch):
    bound = 14 * blocks
    monkeypatch.setenv("STILLFRAME_DISK_CACHE_GB", str(bound / 1e9))
    rng = random.Random(1)
    data = {f"shard{number}": rng.randbytes(6 * blocks + 11) for number in range(6)}
    storage = open_storage(bucket)
    for name, content in data.items():
        storage.write(name, content)
    most = []

    def look(seed):
        rng = random.Random(seed)
        for _ in range(25):
            name, start = rng.choice(list(data)), rng.randrange(5 * blocks)
            stop = start + rng.randrange(1, 2 * blocks)
            assert read(storage, name, start, stop) == data[name][start:stop]
            most.append(taken(disk / "files"))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(look, range(3)))
    assert bound / 2 < max(most) <= bound


def test_least_recently_used_goes_first_and_what_is_open_can_be_read(
    bucket, disk, proxy, blocks, monkeypatch
):
    monkeypatch.setenv("STILLFRAME_DISK_CACHE_GB", str(8 * blocks / 1e9))
    storage, content = open_storage(bucket), bytes(range(256)) * (2 * blocks // 256)
    for name in "abcd":
        storage.write(name, content)
    for name in "aba":
        read(storage, name, 0, 2 * blocks)
    with storage.open("b", [(0, 2 * blocks)]) as kept:
        read(storage, "a", 0, 1)
        for name in "cd":  # too much by one: b is the oldest
            read(storage, name, 0, 2 * blocks)
        proxy.seen.clear()
        assert read(storage, "a", 0, 2 * blocks) == content and proxy.seen == []
        assert os.pread(kept.fileno(), 2 * blocks, 0) == content
        assert read(storage, "b", 0, 2 * blocks) == content and proxy.seen != []


def test_a_file_larger_than_the_bound_is_read_piece_by_piece(bucket, disk, blocks, monkeypatch):
    monkeypatch.setenv("STILLFRAME_DISK_CACHE_GB", str(4 * blocks / 1e9))
    storage, content = open_storage(bucket), random.Random(0).randbytes(20 * blocks)
    storage.write("shard", content)
    for start in (*range(0, 20 * blocks, 2 * blocks), 0):
        assert (
            read(storage, "shard", start, start + 2 * blocks) == content[start : start + 2 * blocks]
        )
        assert taken(disk / "files") <= 4 * blocks
    with pytest.raises(
        BadInput, match=r"STILLFRAME_DISK_CACHE_GB allows .* GB are needed at once"
    ) as caught:
        read(storage, "shard", 0, 5 * blocks)
    assert "STILLFRAME_DISK_CACHE_GB to" in caught.value.hint


def test_blocks_of_two_versions_never_meet(bucket, blocks):
    storage, before, after = open_storage(bucket), b"a" * (4 * blocks), b"b" * (4 * blocks)
    storage.write("shard", before)
    assert read(storage, "shard", 0, blocks) == before[:blocks]
    open_storage(bucket).write("shard", after)  # by somebody else
    assert read(storage, "shard", 0, 2 * blocks) == after[: 2 * blocks]
    open_storage(bucket).write("shard", b"short")
    assert (
        read(storage, "shard", 0, 2 * blocks) == after[: 2 * blocks]
    )  # a whole version, if an old one
    with storage.open("shard", [(0, 4 * blocks)]) as file:
        assert os.pread(file.fileno(), 4 * blocks, 0) == b"short"
    assert storage.digest("shard") == hashlib.sha256(b"short").hexdigest()


READER = """
import os, random, sys
from pipeline.cache.storage import disk_cache
from pipeline.cache.storage.open import open_storage
disk_cache.BLOCK_BYTES = int(sys.argv[2])
place, rng = open_storage(sys.argv[1]), random.Random(int(sys.argv[3]))
for _ in range(60):
    name, start = rng.choice("abcd"), rng.randrange(0, 300_000, 8)
    with place.open(name, [(start, start + 90_000)]) as file:
        got = os.pread(file.fileno(), 90_000, start)
    assert got == name.encode() * 90_000, (name, start)
"""


@pytest.mark.slow
def test_processes_share_the_disk_cache(bucket, disk, blocks, monkeypatch):
    monkeypatch.setenv("STILLFRAME_DISK_CACHE_GB", str(12 * blocks / 1e9))
    for name in "abcd":
        open_storage(bucket).write(name, name.encode() * 400_000)
    command = [sys.executable, "-c", READER, bucket, str(blocks)]
    readers = [
        subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    assert [reader.communicate()[1] for reader in readers] == ["", ""]
    assert taken(disk / "files") <= 12 * blocks


def test_what_a_kill_left_aside_is_cleared(disk, monkeypatch):
    monkeypatch.setattr(disk_cache, "STRAY_S", -1.0)
    cache = DiskCache(disk, 10**9)
    (disk / "aside/left").mkdir()
    (disk / "aside/left/shard").write_bytes(b"x")
    first = cache.aside()
    second = cache.aside()
    assert {path.name for path in (disk / "aside").iterdir()} == {first.name, second.name}
    cache.discard(first)
    cache.discard(second)
    assert list((disk / "aside").iterdir()) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [("0.001", "one block of a file takes"), ("much", "wanted a number of gigabytes")],
)
def test_a_useless_bound_is_refused_at_once(disk, monkeypatch, value, said):
    monkeypatch.setenv("STILLFRAME_DISK_CACHE_GB", value)
    with pytest.raises(BadInput, match=rf"STILLFRAME_DISK_CACHE_GB.*{said}"):
        open_storage("memory://x/y")


def test_a_disk_that_cannot_be_written_is_named(bucket, disk, monkeypatch):
    storage = open_storage(bucket)
    storage.write("shard", b"x")

    def full(handle, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        StillframeError, match=rf"the disk cache {disk} cannot be written: No space left on device"
    ):
        read(storage, "shard", 0, 1)


def test_the_disk_cache_does_without_calls_that_macos_lacks(bucket, disk, monkeypatch):
    for name in ("posix_fallocate", "fdatasync"):
        monkeypatch.delattr(os, name)
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), fsync(handle)))
    storage, content = open_storage(bucket), secrets.token_bytes(3000)
    storage.write("shard", content)
    before = len(synced)
    assert read(storage, "shard", 10, 2000) == content[10:2000]
    assert len(synced) == before + 1  # the block counts once its bytes are on disk
    assert read(storage, "shard", 0, 3000) == content
    assert len(synced) == before + 1

    def full(*_):
        raise OSError(28, "No space left on device")

    storage.write("other", content)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StillframeError, match="cannot be written: No space left on device"):
        read(storage, "other", 0, 1)


# A network that fails


def test_extraction_and_reading_come_through_a_bad_network(bucket, proxy, material):
    proxy.at_random(0, 0.12)
    cache = extract.extract(material.spec, material.manifest, f"{bucket}/caches")
    assert stores(cache) == stores(material.cache)
    assert cache.storage.names("leases") == []
    require_valid(cache)
    for store in cache.plan:
        rows = np.arange(cache.receipts[store].frames)[::-1]
        shape, dtype = cache.arrays["layer_5"]
        ours, theirs = (np.empty((len(rows), *shape), dtype) for _ in range(2))
        cache.reader(store).read_into("layer_5", rows, ours)
        material.cache.reader(store).read_into("layer_5", rows, theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_large_files_go_up_in_parts_through_a_bad_network(bucket, proxy, monkeypatch):
    monkeypatch.setattr(retry, "PART_BYTES", 5 << 20)
    storage = open_storage(bucket)
    proxy.at_random(3, 0.1, ("500", "reset", "truncated"))
    data = random.Random(0).randbytes(23 << 20)
    staged = storage.stage("store")
    (staged / "shard").write_bytes(data)
    storage.publish(staged, "store")
    assert sum("partNumber" in path for method, path, *_ in proxy.seen if method == "PUT") >= 5
    assert storage.sizes("store") == {"shard": len(data)}
    assert storage.digest("store/shard") == hashlib.sha256(data).hexdigest()
    assert (
        read(open_storage(bucket), "store/shard", 7_000_000, 20_000_000)
        == data[7_000_000:20_000_000]
    )


def test_a_name_whose_answer_was_lost_is_ours(bucket, proxy):
    storage, answers = open_storage(bucket), iter(["lost answer"])
    proxy.fault = lambda method, path: next(answers, None) if method == "PUT" else None
    assert storage.create("leases/1.json", b"me")
    assert not storage.create("leases/1.json", b"me")
    assert sum(seen[0] == "PUT" for seen in proxy.seen if "leases" in seen[1]) == 2


def test_a_store_that_knows_no_conditions_still_takes_names(bucket, proxy):
    storage = open_storage(bucket)
    refused = iter(["501", None, "501"])  # the second is a plain PUT
    proxy.fault = lambda method, path: next(refused, None) if method == "PUT" else None
    assert storage.create("leases/1.json", b"me") and not storage.create("leases/1.json", b"you")
    assert storage.read("leases/1.json") == b"me"


@pytest.mark.parametrize("fault", ["500", "reset", "truncated"])
def test_what_never_works_ends_in_one_line(remote, proxy, fault):
    proxy.fault = lambda method, path: fault if "receipts" in path and method == "GET" else None
    result = call("status", remote)
    assert result.code == 1 and result.out == "" and result.err.count("\n") == 1
    assert (
        f"error: {remote.storage}/receipts" in result.err
        and f"({retry.TRIES} tries in" in result.err
        and "; next: " in result.err
    )


def test_what_is_refused_is_asked_once(remote, proxy):
    proxy.seen.clear()
    proxy.fault = lambda method, path: "403" if "receipts/00000.json" in path else None
    assert_refused(call("status", remote), f"{remote}/receipts/00000.json")
    assert [seen[0] for seen in proxy.seen if "receipts/00000.json" in seen[1]] == ["GET"]
    with pytest.raises(PermissionError) as caught:
        remote.storage.read(receipt_name(0))
    assert caught.value.filename == f"{remote}/receipts/00000.json"


def test_a_bucket_that_is_not_there_is_named(proxy, place):
    result = call("extract", place.spec, place.data, "--out", "s3://no-such-bucket/caches")
    assert (
        result.code == 1
        and "s3://no-such-bucket/caches" in result.err
        and "bucket does not exist" in result.err
    )


# What a user may type


def test_a_missing_package_is_named_with_its_extra():
    code = """
import sys
sys.modules["s3fs"] = None
from pipeline.errors import BadInput
from pipeline.cache.storage.open import open_storage
try:
    open_storage("s3://bucket/x")
except BadInput as error:
    print(error.message, error.hint, sep="; ")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == (
        "s3://bucket/x cannot be reached: a package for s3:// is not installed; pip "
        "install 'stillframe[s3]'\n"
    )


def test_credentials_that_are_not_there_are_named(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setattr(retry, "CONNECT_S", 9.0)  # other options, thus another client
    with pytest.raises(PermissionError, match="Unable to locate credentials"):
        open_storage(bucket).read("x")


def test_urls_and_paths_are_told_apart(tmp_path, disk):
    assert isinstance(open_storage(tmp_path), LocalFolder) and isinstance(
        open_storage(str(tmp_path)), LocalFolder
    )
    assert open_storage(f"file://{tmp_path}").address == str(tmp_path)
    with pytest.raises(BadInput, match="gopher"):
        open_storage("gopher://x/y")
    with pytest.raises(BadInput, match="lost a slash"):
        open_storage(Path("s3://bucket/x"))


def test_parts_in_a_bucket_have_the_bytes_of_those_in_a_folder(bucket, material, tmp_path):
    parts = write_parts([material.manifest], tmp_path / "parts", 2)
    inside = extract_parts(material.spec, parts, f"{bucket}/caches")
    beside = extract_parts(material.spec, parts, tmp_path / "caches")
    assert inside.finished() == inside.begun() == [0, 1, 2]
    for number in range(3):
        assert vouched(inside.part(number)).keys() == vouched(beside.part(number)).keys()
        assert stores(inside.part(number)) == stores(beside.part(number))
    ours, theirs = (parted_status(each) for each in (inside, beside))
    kept = {"cache", "seconds"}
    assert ours.model_dump(exclude=kept) == theirs.model_dump(exclude=kept)
    cache = open_cache(str(inside), material.manifest)
    assert cache.locations.keys() == material.cache.locations.keys()
    require_valid(cache)


def test_requests_of_a_store(bucket, proxy, material):
    """What docs/scale.md counts: the files, the lease and the receipt are put, and this is asked."""
    cache = extract.extract(material.spec, material.manifest, f"{bucket}/caches")
    for store in cache.plan:
        extract.forget_store(cache, store)
    proxy.seen.clear()
    extract.extract(material.spec, material.manifest, f"{bucket}/caches")
    asked = [
        ("LIST" if "?list-type" in path else method, path) for method, path, _, _ in proxy.seen
    ]
    for store, receipt in cache.receipts.items():
        counts = Counter(method for method, path in asked if f"{store:05d}" in path)
        assert counts.pop("PUT") == len(receipt.files) + 2
        assert counts == {"HEAD": 4, "GET": 1, "DELETE": 1, "LIST": 5}
    of_all_stores = [path for method, path in asked if "stores%2F&" in path]
    assert len(of_all_stores) == len(cache.plan) + 1  # one more LIST for each, and one at the end
