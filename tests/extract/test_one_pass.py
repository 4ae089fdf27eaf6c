"""Several caches from one decode, and layers or views that are added later: the bytes of caches that were made alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.commands import SPEC, assert_refused, call, digest, fine
from support.material import LENGTHS, address_spec, address_video
from support.views import FLIP, PART, vit_spec

from pipeline.cache.cache import Cache
from pipeline.cache.commit import forget_store
from pipeline.cache.corruption import check_store
from pipeline.cache.layout import receipt_name, store_name
from pipeline.cache.storage.local import LocalFolder
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.json_files import sealed_json
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.derive import derive
from pipeline.extract.execution import Execution
from pipeline.extract.reuse import reusable_caches
from pipeline.models.encoders import address
from pipeline.video.isolated import sandbox

ENCODER = {"name": "address", "layers": [2, 5], "width": 8, "grid": 3, "special_tokens": 2}
STORE = {"chunk_frames": 4, "shard_mb": 0.0012, "store_mb": 0.0072, "batch_frames": 7}


def layers_spec(*layers: int, **changes: object) -> CacheSpec:
    return address_spec(encoder=ENCODER | {"layers": list(layers)}, **changes)


def stores(cache: Cache) -> dict[str, str]:
    return digest(cache.path / "stores")


@pytest.fixture
def decoded(monkeypatch) -> Counter[str]:
    """Name of a video -> how often it was decoded."""
    counts: Counter[str] = Counter()
    real = sandbox.Decoder.decode

    def counting(self, path, *arguments):
        counts[path.name] += 1
        return real(self, path, *arguments)

    monkeypatch.setattr(sandbox.Decoder, "decode", counting)
    return counts


@pytest.fixture(scope="module")
def vit_cache(built, tmp_path_factory) -> Cache:
    """Read only."""
    return extract.extract(vit_spec([0, 2]), built, tmp_path_factory.mktemp("vit"))


# Several caches from one decode


def test_caches_made_together_are_those_made_alone(material, vit_cache, tmp_path, decoded):
    specs = [
        material.spec,
        vit_spec([0, 2]),
        address_spec(name="squash", frames={"size_px": 32, "fps": 5, "fit": "squash"}),
    ]
    alone = [
        material.cache,
        vit_cache,
        extract.extract(specs[2], material.manifest, tmp_path / "alone"),
    ]
    assert len({tuple(map(tuple, cache.plan.values())) for cache in alone}) == 3
    decoded.clear()
    together = extract.extract_all(
        specs, material.manifest, tmp_path / "together", Execution(decoders=2)
    )
    assert [cache.name for cache in together] == [cache.name for cache in alone]
    for ours, theirs in zip(together, alone, strict=True):
        assert stores(ours) == stores(theirs)
        assert [r.videos for r in ours.receipts.values()] == [
            r.videos for r in theirs.receipts.values()
        ]
        assert [r.content for r in ours.receipts.values()] == [
            r.content for r in theirs.receipts.values()
        ]
    # `squash` has the fewest stores, and the others have a border inside of them: what lies behind is decoded twice.
    assert (
        decoded.keys() == {Path(source).name for source in LENGTHS} and max(decoded.values()) <= 2
    )
    assert sum(decoded.values()) - len(LENGTHS) <= 2


def test_where_one_store_holds_all_every_video_is_decoded_once(material, tmp_path, decoded):
    whole = address_spec(name="whole", frames={"size_px": 32, "fps": 5})
    whole = whole.model_copy(update={"store": whole.store.model_copy(update={"store_mb": 1})})
    caches = extract.extract_all([material.spec, whole], material.manifest, tmp_path)
    assert [len(cache.plan) for cache in caches] == [len(material.cache.plan), 1]
    assert decoded == dict.fromkeys((Path(source).name for source in LENGTHS), 1)
    assert stores(caches[0]) == stores(material.cache)
    assert stores(caches[1]) == stores(
        extract.extract(whole, material.manifest, tmp_path / "alone")
    )


def test_one_that_is_half_done_is_finished_with_the_others(material, vit_cache, tmp_path, decoded):
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    half = Cache(tmp_path / material.cache.name)
    forget_store(half, 1)
    together = extract.extract_all([vit_spec([0, 2]), material.spec], material.manifest, tmp_path)
    assert stores(together[0]) == stores(vit_cache) and stores(together[1]) == stores(
        material.cache
    )
    decoded.clear()
    extract.extract_all([vit_spec([0, 2]), material.spec], material.manifest, tmp_path)
    assert not decoded


@pytest.mark.slow
def test_a_kill_of_several_then_a_rerun_gives_the_same_bytes(material, tmp_path):
    (tmp_path / "a.toml").write_text(SPEC)
    (tmp_path / "b.toml").write_text(SPEC.replace("size_px = 64", "size_px = 32\nfps = 5"))
    out = tmp_path / "out"
    arguments = [
        "extract",
        tmp_path / "a.toml",
        tmp_path / "b.toml",
        material.manifest.folder,
        "--out",
        out,
    ]
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if len(list(out.glob("*/stores/*"))) > 2:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    fine(*arguments)
    (a,), (b,) = out.glob("a-*"), out.glob("b-*")
    assert stores(Cache(a)) == stores(material.cache)
    alone = extract.extract(
        address_spec(frames={"size_px": 32, "fps": 5}), material.manifest, tmp_path / "alone"
    )
    assert stores(Cache(b)) == stores(alone)


def test_the_command_takes_several_specs(place, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(SPEC.replace("size_px = 64", "size_px = 32\nfps = 5"))
    plans = fine("extract", place.spec, other, place.data, "--dry-run", "--json").json
    assert [(plan["spec"], plan["frames"]) for plan in plans] == [("address", 125), ("other", 64)]
    text = fine("extract", place.spec, other, place.data, "--dry-run").out.splitlines()
    assert [line for line in text if line.endswith(":")] == ["address:", "other:"] and len(
        text
    ) == 6
    result = fine("extract", place.spec, other, place.data, "--out", tmp_path, "--json").json
    assert [facts["spec"] for facts in result] == ["address", "other"]
    assert [facts["stores"]["done"] for facts in result] == [3, 2]
    assert_refused(
        call("extract", place.spec, place.spec, place.data, "--out", tmp_path),
        "two of the specs say the same",
    )
    assert call("extract", place.spec).code == 2


# A layer or a view that is added later

ADDED = {
    "below": (layers_spec(5), layers_spec(2, 5), {"special", "layer_5"}),
    "above": (layers_spec(2), layers_spec(2, 5), {"layer_2"}),
    "view": (layers_spec(2, 5), layers_spec(2, 5, views=[FLIP]), {"special", "layer_2", "layer_5"}),
    "both": (
        layers_spec(5, views=[FLIP]),
        layers_spec(2, 5, views=[PART, FLIP]),
        {"special", "layer_5", "flip/special", "flip/layer_5"},
    ),
    "siblings": (
        layers_spec(5, codec={"name": "int8"}),
        layers_spec(2, 5, codec={"name": "int8"}),
        {"special", "layer_5"},
    ),
    "fitted": (
        layers_spec(5, codec={"name": "pca", "components": 4, "frames": 20}),
        layers_spec(5, 6, codec={"name": "pca", "components": 4, "frames": 20}),
        {"layer_5"},
    ),
    "encoder": (vit_spec([0, 2], views=[FLIP]), vit_spec([0, 1, 2], views=[FLIP, PART]), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ADDED)
def test_what_lies_beside_is_taken_over_and_the_bytes_are_those_of_a_fresh_cache(
    built, tmp_path, case
):
    old_spec, new_spec, names = ADDED[case]
    old = extract.extract(old_spec, built, tmp_path)
    before, said = digest(old.path), []
    (new,) = extract.extract_all([new_spec], built, tmp_path, Execution(say=said.append))
    fresh = extract.extract(new_spec, built, tmp_path / "fresh")
    names = set(old.token_arrays) if names is None else names
    assert stores(new) == stores(fresh) and digest(old.path) == before
    assert new.plan == fresh.plan == old.plan
    for store, receipt in new.receipts.items():
        assert receipt.taken_from == dict.fromkeys(names, old.fingerprint)
        assert not fresh.receipts[store].taken_from
        plain = {"finished_s": None, "taken_from": {}, "seconds": {}, "checksum": None}
        assert receipt.model_copy(update=plain) == fresh.receipts[store].model_copy(update=plain)
        for file in (new.path / store_name(store)).rglob("c/**/*"):
            name = file.relative_to(new.path / store_name(store)).as_posix()
            token = next(
                (
                    token
                    for token in new.token_arrays
                    if name.startswith((f"{token}/c/", f"{token}_"))
                ),
                None,
            )
            assert not file.is_file() or (file.stat().st_nlink == 2) == (token in names), file
    encoded = ", ".join(name for name in new.token_arrays if name not in names)
    *uneven_rates, line = said
    assert all("would be even" in text for text in uneven_rates)
    assert (
        line.startswith(f"{new.name}: ")
        and f" taken over from {old.name} in {len(new.plan)} of {len(new.plan)}" in line
    )
    assert line.endswith(f"; encoding {encoded}")


def test_only_what_is_added_is_encoded(material, tmp_path, monkeypatch):
    extract.extract(material.spec, material.manifest, tmp_path)
    seen, real = [], address.Encoder.__call__

    def counting(self, pixels):
        seen.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(address.Encoder, "__call__", counting)
    extract.extract(address_spec(views=[FLIP]), material.manifest, tmp_path)
    assert sum(seen) == sum(LENGTHS.values())


def test_either_cache_can_be_deleted(material, tmp_path):
    old = extract.extract(layers_spec(5), material.manifest, tmp_path)
    new = extract.extract(layers_spec(2, 5), material.manifest, tmp_path)
    shutil.copytree(
        tmp_path, tmp_path / "again", copy_function=os.link, ignore=shutil.ignore_patterns("again")
    )
    shutil.rmtree(old.path)
    assert not any(check_store(new, store) for store in new.plan)
    assert stores(new) == stores(material.cache)
    old = Cache(tmp_path / "again" / old.name)
    shutil.rmtree(tmp_path / "again" / new.name)
    shutil.rmtree(new.path)
    assert not any(check_store(old, store) for store in old.plan)


def test_without_links_the_bytes_are_copied(material, tmp_path, monkeypatch):
    extract.extract(layers_spec(5), material.manifest, tmp_path)

    monkeypatch.setattr(LocalFolder, "link", lambda *_: False)
    new = extract.extract(layers_spec(2, 5), material.manifest, tmp_path)
    assert stores(new) == stores(material.cache) and all(
        receipt.taken_from for receipt in new.receipts.values()
    )
    assert {
        file.stat().st_nlink for file in (new.path / "stores").rglob("*") if file.is_file()
    } == {1}


def test_of_a_cache_that_is_partly_finished_its_stores_are_taken_over(material, tmp_path):
    old = extract.extract(layers_spec(5), material.manifest, tmp_path)
    forget_store(old, 1)
    said: list[str] = []
    (new,) = extract.extract_all(
        [layers_spec(2, 5)], material.manifest, tmp_path, Execution(say=said.append)
    )
    assert [bool(receipt.taken_from) for receipt in new.receipts.values()] == [
        store != 1 for store in new.plan
    ]
    assert f" in {len(new.plan) - 1} of {len(new.plan)} stores" in said[0] and len(said) == 1
    assert stores(new) == stores(material.cache)


@pytest.mark.parametrize("where", ["layer_5/c/0/0/0", "time_s/c/0", "receipt"])
def test_what_is_damaged_is_not_taken_over(material, tmp_path, where):
    old = extract.extract(layers_spec(5), material.manifest, tmp_path)
    file = old.path / (receipt_name(1) if where == "receipt" else f"{store_name(1)}/{where}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data[:-9] if where == "receipt" else data)
    said: list[str] = []
    (new,) = extract.extract_all(
        [layers_spec(2, 5)], material.manifest, tmp_path, Execution(say=said.append)
    )
    assert [bool(receipt.taken_from) for receipt in new.receipts.values()] == [
        store != 1 for store in new.plan
    ]
    assert (
        said[1]
        == f"{new.name}: 1 store made whole, since what lies beside is of other frames or damaged: [1]"
    )
    assert stores(new) == stores(material.cache)
    assert not list((new.path / "stores").glob("*.partial"))


def test_two_workers_may_find_the_same_damage(material, tmp_path):
    old = extract.extract(layers_spec(5), material.manifest, tmp_path)
    (old.path / store_name(1) / "layer_5/c/0/0/0").write_bytes(b"")
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(extract.extract, layers_spec(2, 5), material.manifest, tmp_path)
            for _ in range(2)
        ]
    assert [stores(one.result()) for one in both] == [stores(material.cache)] * 2
    new = both[0].result()
    assert [bool(receipt.taken_from) for receipt in new.receipts.values()] == [
        store != 1 for store in new.plan
    ]


def test_a_receipt_names_every_device_that_had_a_part(material, tmp_path):
    old = extract.extract(layers_spec(5), material.manifest, tmp_path)
    receipt = old.receipt(0).model_copy(update={"device": "cuda"})
    old.storage.write(receipt_name(0), sealed_json(receipt))
    new = extract.extract(layers_spec(2, 5), material.manifest, tmp_path)
    assert [receipt.device for receipt in new.receipts.values()] == [
        "cpu, cuda",
        *["cpu"] * (len(new.plan) - 1),
    ]


def test_where_a_video_has_changed_its_store_is_made_whole(tmp_path):
    root = tmp_path / "videos/x"
    for video in range(4):
        address_video(root / f"v{video}.mp4", video, 24)
    built = manifest.build("folder", root.parent, tmp_path / "data", {"val_fraction": 0.5})
    extract.extract(layers_spec(5), built, tmp_path / "caches")
    address_video(root / "v2.mp4", 2, 23)
    said: list[str] = []
    (new,) = extract.extract_all(
        [layers_spec(2, 5)], built, tmp_path / "caches", Execution(say=said.append)
    )
    changed = new.locations["x/v2.mp4"].store
    assert [bool(receipt.taken_from) for receipt in new.receipts.values()] == [
        store != changed for store in new.plan
    ]
    assert said[1].endswith(f"[{changed}]")
    assert stores(new) == stores(extract.extract(layers_spec(2, 5), built, tmp_path / "fresh"))


@pytest.mark.slow
def test_only_a_cache_of_the_same_tokens_gives_any(material, tmp_path):
    """Others lie in the same folder: another codec, rate, size, encoder, more layers, another view of that name, a derived one."""
    others = [
        layers_spec(5, codec={"name": "int8"}),
        layers_spec(5, frames={"size_px": 64, "fps": 5}),
        layers_spec(5, frames={"size_px": 32}),
        layers_spec(5, store=STORE | {"batch_frames": 6}),
        address_spec(encoder=ENCODER | {"layers": [5], "special_tokens": 1}),
        layers_spec(2, 5, 6),
        layers_spec(2, 5, views=[PART | {"name": "flip"}]),
    ]
    extract.extract_all(others, material.manifest, tmp_path)
    derive(
        extract.extract(layers_spec(5), material.manifest, tmp_path / "b"),
        ["codec.name=bfloat16"],
        tmp_path,
    )
    derive(
        Cache(next((tmp_path / "b").iterdir())),
        ["codec.name=float16", "store.shard_mb=1"],
        tmp_path,
    )
    said: list[str] = []
    (new,) = extract.extract_all(
        [layers_spec(2, 5, views=[FLIP])], material.manifest, tmp_path, Execution(say=said.append)
    )
    assert (
        reusable_caches(new) == []
        and said == []
        and not any(receipt.taken_from for receipt in new.receipts.values())
    )


def test_the_largest_gives(material, tmp_path):
    extract.extract(layers_spec(2), material.manifest, tmp_path)
    large = extract.extract(layers_spec(2, 5), material.manifest, tmp_path)
    new = extract.extract(layers_spec(2, 4, 5), material.manifest, tmp_path)
    assert {
        source for receipt in new.receipts.values() for source in receipt.taken_from.values()
    } == {large.fingerprint}


def test_the_command_says_what_is_taken_over(place, tmp_path):
    fine("extract", place.spec, place.data, "--out", tmp_path, "--set", "encoder.layers=[5]")
    (old,) = tmp_path.iterdir()
    result = call("extract", place.spec, place.data, "--out", tmp_path)
    new = next(path.name for path in tmp_path.iterdir() if path != old)
    lines = result.err.splitlines()
    assert (
        lines[0]
        == f"{new}: special, layer_5 taken over from {old.name} in 3 of 3 stores; encoding layer_2"
    )
    assert result.code == 0 and "damaged" not in result.err
    assert fine("verify", tmp_path / new).code == 0


def test_two_layouts_of_one_name_are_no_donors_of_each_other(material, tmp_path):
    with pytest.raises(BadInput, match="two of the specs say the same"):
        extract.extract_all(
            [layers_spec(5), layers_spec(5, name="other")], material.manifest, tmp_path
        )
    first = extract.extract(layers_spec(5), material.manifest, tmp_path)
    again = extract.extract(layers_spec(5, name="other"), material.manifest, tmp_path)
    assert again.fingerprint == first.fingerprint and reusable_caches(again) == []
    np.testing.assert_array_equal(list(stores(first).values()), list(stores(again).values()))
