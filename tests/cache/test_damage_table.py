"""Every damage that was ever planted, each alone on a fresh copy of a tiny cache: `verify` names it, and training refuses
the cache or comes to the very same weights."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.forgery import edit
from support.training import assert_same, final, recipe

from pipeline.cache import corruption
from pipeline.cache.cache import Cache
from pipeline.cache.layout import receipt_name, store_name
from pipeline.cache.receipts import Header, Receipt
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.cache.verify import verify_cache
from pipeline.config.json_files import parse_json
from pipeline.errors import BadInput
from pipeline.extract.derive import derive
from pipeline.train import loop

SHARD = "layer_5/c/0/0/0"
WANTED = recipe(training={"steps": 3, "batch_size": 6, "checkpoint_every": 3, "evaluate_every": 3})
"""Reads every clip of the training split."""

Damage = Callable[[Path], object]


def flip(file: str, at: float = 0.5, bit: int = 0) -> Damage:
    """One bit; `at`: a byte, or a share of the file."""

    def damage(cache: Path) -> None:
        data = bytearray((cache / file).read_bytes())
        data[int(at * len(data)) if isinstance(at, float) else at] ^= 1 << bit
        (cache / file).write_bytes(data)

    return damage


def rewrite(file: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """As somebody edits it who does not know of checksums."""

    def damage(cache: Path) -> None:
        table = json.loads((cache / file).read_text())
        change(table)
        (cache / file).write_text(json.dumps(table, indent=1) + "\n")

    return damage


def forge(file: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """As somebody edits it who does."""
    return lambda cache: edit(cache / file, change)


def content(file: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda cache: (cache / file).write_bytes(change((cache / file).read_bytes()))


def swap(one: str, other: str) -> Damage:
    def damage(cache: Path) -> None:
        (cache / one).rename(cache / "aside")
        (cache / other).rename(cache / one)
        (cache / "aside").rename(cache / other)

    return damage


def copy(source: str, target: str) -> Damage:
    def damage(cache: Path) -> None:
        if (cache / source).is_dir():
            shutil.rmtree(cache / target)
            shutil.copytree(cache / source, cache / target)
        else:
            shutil.copy(cache / source, cache / target)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda cache: [damage(cache) for damage in damages]


def in_place_of(file: str, put: Callable[[Path], object]) -> Damage:
    def damage(cache: Path) -> None:
        path = cache / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        put(path)

    return damage


def move_border(table: dict[str, Any]) -> None:
    (first, (start, stop)), (second, (_, end)) = list(table["videos"].items())[:2]
    table["videos"] |= {first: [start, stop - 1], second: [stop - 1, end]}


def claim_a_row_more(table: dict[str, Any]) -> None:
    table["frames"] += 1
    table["videos"][list(table["videos"])[-1]][1] += 1


def chunk_over_another(cache: Path) -> None:
    """Bytes and checksum of one chunk, where another was."""
    index = StoreReader(LocalFolder(cache), store_name(0)).index("layer_5", 0)
    (a, length), (b, _) = index[:2].tolist()
    path = cache / store_name(0) / SHARD
    data = bytearray(path.read_bytes())
    data[b : b + length] = data[a : a + length]
    path.write_bytes(data)


S0, S1, S2 = (store_name(number) for number in range(3))
R0, R1 = receipt_name(0), receipt_name(1)
INVENTED = {"reason": "x", "frames_stored": 1, "stored_until_s": 0.5}

DAMAGES: dict[str, Damage] = {
    "shard: low bit": flip(f"{S0}/{SHARD}", 130),
    "shard: high bit": flip(f"{S1}/{SHARD}", 131, 6),
    "shard: checksum of a chunk": flip(f"{S0}/{SHARD}", 4 * 9 * 8 * 2),
    "shard: padding": flip(f"{S0}/{SHARD}", 4 * 9 * 8 * 2 + 5),
    "shard: index": flip(f"{S0}/{SHARD}", -36),
    "shard: checksum of the index": flip(f"{S1}/{SHARD}", -1),
    "shard of special tokens": flip(f"{S1}/special/c/0/0/0", 3),
    "zarr.json of a store": flip(f"{S0}/zarr.json"),
    "zarr.json of an array": flip(f"{S0}/layer_5/zarr.json"),
    "zarr.json: fill value": rewrite(f"{S0}/layer_5/zarr.json", lambda t: t.update(fill_value=0.0)),
    "zarr.json: shape": rewrite(
        f"{S0}/layer_5/zarr.json", lambda t: t["shape"].__setitem__(0, 10**9)
    ),
    "zarr.json: no checksums of chunks": rewrite(
        f"{S0}/zarr.json", lambda t: t["attributes"].pop("chunk_crc32c")
    ),
    "time_s": flip(f"{S1}/time_s/c/0"),
    "affine": flip(f"{S0}/affine/c/0/0/0"),
    "video_stop": flip(f"{S2}/video_stop/c/0"),
    "receipt: bit": flip(R0, 0.3, 1),
    "receipt: sha256": rewrite(R0, lambda t: t["files"][SHARD].__setitem__(1, "0" * 64)),
    "receipt: a row more": rewrite(R1, claim_a_row_more),
    "receipt: a row more, forged": forge(R1, claim_a_row_more),
    "receipt: border": rewrite(R0, move_border),
    "receipt: border, forged": forge(R0, move_border),
    "receipt: invented failure": rewrite(
        R0, lambda t: t["failures"].update({next(iter(t["videos"])): INVENTED})
    ),
    "receipt: content": rewrite(R0, lambda t: next(iter(t["content"].values())).update(decoded=7)),
    "receipt: versions": rewrite(R0, lambda t: t["versions"].update(torch="9")),
    "receipt: seconds": rewrite(R0, lambda t: t.update(seconds={"decode": 9.0})),
    "receipt: finished_s": rewrite(R0, lambda t: t.update(finished_s=1.0)),
    "receipt: device": rewrite(R0, lambda t: t.update(device="cuda")),
    "receipt: file outside": rewrite(
        R0, lambda t: t["files"].update({"../../cache.json": [1, "0"]})
    ),
    "receipt: file left out": rewrite(R0, lambda t: t["files"].pop("time_s/c/0")),
    "receipt: no checksum": rewrite(R0, lambda t: t.pop("checksum")),
    "receipt: of another cache.json": forge(R0, lambda t: t.update(header_sha256="0" * 64)),
    "receipt: empty": content(R1, lambda data: b""),
    "receipt: removed": lambda cache: (cache / R1).unlink(),
    "receipt: NaN": rewrite(R0, lambda t: t.update(finished_s=float("nan"))),
    "receipt: deep": content(R0, lambda data: b'{"a":' * 30_000),
    "receipts swapped": swap(R0, R1),
    "cache.json: bit in the encoder": content(
        "cache.json", lambda data: data.replace(b'"layers"', b'"layerr"', 1)
    ),
    "cache.json: fingerprint": rewrite("cache.json", lambda t: t.update(fingerprint="0" * 12)),
    "cache.json: plan counts": rewrite(
        "cache.json", lambda t: t["plan"]["0"].update(dict.fromkeys(t["plan"]["0"], 3))
    ),
    "cache.json: plan counts, forged": forge(
        "cache.json", lambda t: t["plan"]["0"].update(dict.fromkeys(t["plan"]["0"], 3))
    ),
    "cache.json: store dropped": rewrite("cache.json", lambda t: t["plan"].pop("2")),
    "cache.json: grid": rewrite("cache.json", lambda t: t["tokens"].update(grid_hw=[1, 9])),
    "cache.json: grid, forged": forge("cache.json", lambda t: t["tokens"].update(grid_hw=[1, 9])),
    "cache.json: root": rewrite("cache.json", lambda t: t.update(root="/elsewhere")),
    "cache.json: manifest": rewrite("cache.json", lambda t: t.update(manifest="0" * 64)),
    "cache.json: no checksum": rewrite("cache.json", lambda t: t.pop("checksum")),
    "cache.json: of an older format": rewrite(
        "cache.json", lambda t: (t.pop("checksum"), t.update(format_version=2))
    ),
    "manifest.jsonl: label": content(
        "manifest/manifest.jsonl", lambda data: data.replace(b'"label": "a"', b'"label": "b"', 1)
    ),
    "manifest.jsonl: bit": flip("manifest/manifest.jsonl"),
    "manifest.jsonl: line lost": content(
        "manifest/manifest.jsonl", lambda data: data[: data[:-1].rindex(b"\n") + 1]
    ),
    "videos.jsonl: bit": flip("manifest/videos.jsonl", 0.4, 1),
    "videos.jsonl: missing": lambda cache: (cache / "manifest/videos.jsonl").unlink(),
    "dataset.json: bit": flip("manifest/dataset.json", 0.2),
    "dataset.json: settings": rewrite(
        "manifest/dataset.json", lambda t: t["settings"].update(val_fraction=0.5)
    ),
    "manifest: another file": lambda cache: (cache / "manifest/targets.h5").write_bytes(b"x"),
    "shard: a byte less": content(f"{S0}/{SHARD}", lambda data: data[:-1]),
    "shard: half": content(f"{S1}/{SHARD}", lambda data: data[: len(data) // 2]),
    "shard: empty": content(f"{S0}/{SHARD}", lambda data: b""),
    "shard: missing": lambda cache: (cache / S0 / SHARD).unlink(),
    "shard: a byte more": content(f"{S0}/{SHARD}", lambda data: data + b"\0"),
    "shard: random": content(f"{S0}/{SHARD}", lambda data: random.Random(0).randbytes(len(data))),
    "shard: zeros": content(f"{S1}/{SHARD}", lambda data: bytes(len(data))),
    "shard: a folder": in_place_of(f"{S0}/{SHARD}", Path.mkdir),
    "shard: a FIFO": in_place_of(f"{S0}/{SHARD}", lambda path: os.mkfifo(path)),
    "receipt: a FIFO": in_place_of(R0, lambda path: os.mkfifo(path)),
    "manifest.jsonl: a FIFO": in_place_of("manifest/manifest.jsonl", lambda path: os.mkfifo(path)),
    "times missing": lambda cache: (cache / S2 / "time_s/c/0").unlink(),
    "store missing": lambda cache: shutil.rmtree(cache / S1),
    "file more in a store": lambda cache: (cache / S1 / "layer_5/c/extra").write_bytes(b"x"),
    "store more": lambda cache: (cache / "stores/00007.zarr").mkdir(),
    "file more at the top": lambda cache: (cache / "notes.txt").write_text("x"),
    "shards of two stores swapped": swap(f"{S0}/{SHARD}", f"{S1}/{SHARD}"),
    "shards of two arrays swapped": swap(f"{S0}/{SHARD}", f"{S0}/layer_2/c/0/0/0"),
    "shards of a store swapped": swap(f"{S1}/{SHARD}", f"{S1}/layer_5/c/1/0/0"),
    "chunk over another": chunk_over_another,
    "stores swapped": swap(S0, S1),
    "store copied": copy(S0, S1),
    "store and receipt copied": both(copy(S0, S1), copy(R0, R1)),
    "unfinished store": lambda cache: (cache / f"{S2}.999999-abcd.partial").mkdir(),
    "unfinished receipt": lambda cache: (cache / "receipts/.00001.json.1-dead.partial").write_bytes(
        b"{"
    ),
}
HARMLESS = {
    "shard: padding",
    "receipt: sha256",
    "store more",
    "file more at the top",
    "unfinished store",
    "unfinished receipt",
    "manifest: another file",
}
"""These may be trained on: the weights must be the same."""


@pytest.fixture(scope="module")
def weights(material, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Of a training on the sound cache."""
    return final(loop.train(WANTED, material.cache, tmp_path_factory.mktemp("sound") / "run"))


def is_named(cache: Path) -> bool:
    """Whether `verify` says that something is wrong."""
    try:
        found = verify_cache(Cache(cache))
    except BadInput:
        return True
    return bool(found.damage or found.cache_problems or found.orphans or found.missing)


def copied(material, folder: Path) -> Path:
    return Path(shutil.copytree(material.cache.path, folder / material.cache.name))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_never_trained_on(material, weights, tmp_path, name):
    cache = copied(material, tmp_path)
    DAMAGES[name](cache)
    assert is_named(cache)
    try:
        run = loop.train(WANTED, Cache(cache), tmp_path / "run")
    except BadInput:
        return
    assert name in HARMLESS
    assert_same(final(run), weights)


def tokens(cache: Cache) -> list[np.ndarray]:
    """All tokens, as training reads them."""
    return [
        stored
        for store, receipt in cache.receipts.items()
        for array in cache.token_arrays
        for stored in cache.stored_rows(store, array, np.arange(receipt.frames)).values()
    ]


@pytest.mark.parametrize("name", [name for name in DAMAGES if "shard" in name or "chunk" in name])
def test_damage_of_large_shards_is_met_where_it_is_read(material, tmp_path, monkeypatch, name):
    """They are not compared as a whole before training, but chunk by chunk."""
    monkeypatch.setattr(corruption, "SMALL_BYTES", 0)
    cache = copied(material, tmp_path)
    DAMAGES[name](cache)
    try:
        corruption.require_valid(Cache(cache))
        read = tokens(Cache(cache))
    except BadInput:
        return
    assert name in HARMLESS
    for ours, sound in zip(read, tokens(material.cache), strict=True):
        np.testing.assert_array_equal(ours, sound)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_siblings_of_a_codec_are_vouched_for(material, tmp_path, monkeypatch, codec):
    monkeypatch.setattr(corruption, "SMALL_BYTES", 0)
    cache = derive(material.cache, [f"codec.name={codec}"], tmp_path)
    for array in ("layer_5", "layer_5_scale"):
        shard = min(file for file in (cache.path / S0 / array / "c").rglob("*") if file.is_file())
        damage = flip(shard.relative_to(cache.path).as_posix(), 9)
        damage(cache.path)
        assert is_named(cache.path)
        with pytest.raises(BadInput, match=rf"/{array}/c/0/.* is damaged: rows \[0, 4\)"):
            Cache(cache.path).stored_rows(0, "layer_5", np.arange(4))
        damage(cache.path)
    assert not is_named(cache.path)


@pytest.mark.parametrize("file", ["cache.json", R1])
@pytest.mark.parametrize("every", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_bit_of_what_is_written_down_is_named(material, file, every):
    model = Header if file == "cache.json" else Receipt
    sound = (material.cache.path / file).read_bytes()
    parse_json(model, sound, file, "")
    for at in range(0, 8 * len(sound), every):
        data = bytearray(sound)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(BadInput, match=file):
            parse_json(model, bytes(data), file, "", range(1, 4))
