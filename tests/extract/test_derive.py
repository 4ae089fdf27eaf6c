"""A cache from a cache: the values extraction would give wherever they can be had, and a refusal where they cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import VIT, assert_refused, call, digest
from support.material import FPS, LENGTHS, address_spec, address_video

from pipeline.cache.cache import Cache
from pipeline.cache.layout import CODEC_FILE, receipt_name, store_name
from pipeline.cli.bench.store import codecs
from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import calibrate, extract
from pipeline.extract.derive import derive
from pipeline.records import TokenShape
from pipeline.train.loop import train
from pipeline.train.run import load_model
from pipeline.train.stream import Stream
from pipeline.train.windows.index import WindowRef
from pipeline.train.windows.windows import Windows

ENCODER = {"name": "address", "layers": [2, 5], "width": 8, "grid": 3, "special_tokens": 2}
CPU = torch.device("cpu")


def values(cache: Cache) -> dict[str, str]:
    """Every file of the stores but the metadata of a group, which names the fingerprint -> sha256."""
    return {
        name: sha
        for name, sha in digest(cache.path / "stores").items()
        if not name.endswith(".zarr/zarr.json")
    }


def all_tokens(cache: Cache, name: str) -> torch.Tensor:
    """(F, N, D) of every store in order."""
    parts = []
    for store, receipt in cache.receipts.items():
        rows, stored = np.arange(receipt.frames), {}
        for key in cache.codec.layout(cache.shape.width):
            stored[key] = torch.from_numpy(
                cache.reader(store).read_general(f"{name}_{key}" if key else name, rows)
            )
        parts.append(cache.codecs[name].decode(stored))
    return torch.cat(parts)


@pytest.fixture(scope="module")
def pca_spec():
    """As many components as the width: nothing is lost but rounding."""
    return address_spec(codec={"name": "pca", "components": 8, "frames": 20})


@pytest.fixture(scope="module")
def pca_cache(material, pca_spec, tmp_path_factory) -> Cache:
    return extract.extract(pca_spec, material.manifest, tmp_path_factory.mktemp("pca"))


@pytest.mark.parametrize("codec", ["int8", "int4", "bfloat16"])
def test_from_a_lossless_source_the_values_are_those_of_extraction(material, tmp_path, codec):
    """Float16 holds addresses exactly, so nothing lies between them and the other codec."""
    derived = derive(material.cache, [f"codec.name={codec}"], tmp_path / "derived")
    extracted = extract.extract(
        address_spec(codec={"name": codec}), material.manifest, tmp_path / "extracted"
    )
    assert derived.plan == extracted.plan
    assert values(derived) == values(extracted)
    assert derived.spec == extracted.spec
    assert derived.fingerprint != extracted.fingerprint
    assert (derived.header.derived_from, extracted.header.derived_from) == (
        material.cache.fingerprint,
        None,
    )
    receipts = [
        (r.frames, r.videos, r.failures, r.device, set(r.versions))
        for r in derived.receipts.values()
    ]
    assert receipts == [
        (r.frames, r.videos, r.failures, r.device, set(r.versions))
        for r in extracted.receipts.values()
    ]


def test_a_lossy_source_is_decoded_first(material, tmp_path):
    int8 = derive(material.cache, ["codec.name=int8"], tmp_path)
    int4 = derive(int8, ["codec.name=int4"], tmp_path)
    assert int4.header.derived_from == int8.fingerprint
    codec = int4.codecs["layer_5"]
    again = codec.decode(
        {k: torch.from_numpy(v) for k, v in codec.encode(all_tokens(int8, "layer_5")).items()}
    )
    assert torch.equal(all_tokens(int4, "layer_5"), again)
    assert not torch.equal(all_tokens(int8, "layer_5"), all_tokens(material.cache, "layer_5"))


def test_fewer_layers_and_another_layout_are_copies(material, tmp_path):
    """Bytes, plan and all."""
    store = {"chunk_frames": 2, "shard_mb": 0.002, "store_mb": 0.005, "batch_frames": 7}
    changes = [
        "encoder.layers=[5]",
        *(f"store.{key}={value}" for key, value in store.items() if key != "batch_frames"),
    ]
    derived = derive(material.cache, changes, tmp_path / "derived")
    spec = address_spec(encoder=ENCODER | {"layers": [5]}, store=store)
    extracted = extract.extract(spec, material.manifest, tmp_path / "extracted")
    assert derived.plan == extracted.plan != material.cache.plan
    assert set(derived.arrays) == {"special", "layer_5"}
    assert values(derived) == values(extracted)


@pytest.mark.parametrize("fps", [5, 4, 3, 0.5])
def test_a_lower_rate_keeps_the_frames_that_extraction_keeps(material, tmp_path, fps):
    derived = derive(material.cache, [f"frames.fps={fps}"], tmp_path / "derived")
    extracted = extract.extract(
        address_spec(frames={"size_px": 64, "fps": fps}), material.manifest, tmp_path / "extracted"
    )
    assert derived.plan == extracted.plan
    assert values(derived) == values(extracted)


@pytest.mark.parametrize(("first", "then"), [(3, None), (2, 6)])
def test_every_nth_frame_is_that_of_extraction(material, tmp_path, first, then):
    derived = derive(material.cache, [f"frames.every={first}"], tmp_path / "derived")
    if then:
        derived = derive(derived, [f"frames.every={then}"], tmp_path / "again")
    every = then or first
    wanted = address_spec(frames={"size_px": 64, "every": every})
    extracted = extract.extract(wanted, material.manifest, tmp_path / "extracted")
    assert derived.plan == extracted.plan
    assert values(derived) == values(extracted)
    assert sum(receipt.frames for receipt in extracted.receipts.values()) == sum(
        -(-frames // every) for frames in LENGTHS.values()
    )
    with pytest.raises(BadInput, match=rf"cannot derive .* which holds every {every}. frame"):
        derive(derived, ["frames.every=7"], tmp_path)
    with pytest.raises(BadInput, match=rf"cannot derive 1 frames per second .* every {every}. fra"):
        derive(derived, ["frames.every=1", "frames.fps=1"], tmp_path)


def test_a_rate_can_be_divided_again(material, tmp_path):
    """From 10 frames a second to 4 to 2: the same as from 10 to 2."""
    four = derive(material.cache, ["frames.fps=4"], tmp_path)
    twice = derive(four, ["frames.fps=2"], tmp_path)
    once = derive(material.cache, ["frames.fps=2"], tmp_path)
    assert values(twice) == values(once)
    assert sum(r.frames for r in once.receipts.values()) == sum(
        -(-frames // 5) for frames in LENGTHS.values()
    )


def test_windows_read_a_derived_cache(material, tmp_path):
    """Frames and times are right, and every value within the codec's bound."""
    derived = derive(material.cache, ["codec.name=int8", "encoder.layers=[5]"], tmp_path)
    settings = plugins.validate(
        Recipe.model_fields["windows"].annotation, {"frames": 4, "fps": FPS}, "test"
    )
    ours, theirs = (
        Windows(cache, material.manifest, "train", settings, layers=[5])
        for cache in (derived, material.cache)
    )
    for place in range(len(ours)):
        a, b = (windows.read([WindowRef(place, 0.5)]) for windows in (ours, theirs))
        np.testing.assert_array_equal(a.time_s_BT, b.time_s_BT)
        for left, right in zip(ours.tokens(a, CPU), theirs.tokens(b, CPU), strict=True):
            left, right = (
                part if isinstance(part, torch.Tensor) else part[0] for part in (left, right)
            )
            assert ((left - right).abs() <= derived.codec.max_error(right)).all()


@pytest.mark.slow
def test_sigkill_at_any_moment_then_rerun_gives_the_same_bytes(material, tmp_path):
    whole = derive(material.cache, ["codec.name=int8"], tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "derive",
        str(material.cache.path),
        "--set",
        "codec.name=int8",
    ]
    command += ["--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if list((tmp_path / "killed").glob("address-*/stores/*")):
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.001)
    process.wait()
    (path,) = (tmp_path / "killed").glob("address-*")
    receipts = {file: file.stat().st_mtime_ns for file in (path / "receipts").glob("*")}
    again = derive(material.cache, ["codec.name=int8"], tmp_path / "killed")
    assert again.path == path and not again.missing_stores()
    assert digest(again.path / "stores") == digest(whole.path / "stores")
    assert {file: file.stat().st_mtime_ns for file in receipts} == receipts


def test_a_finished_derivation_is_left_alone(material, tmp_path):
    first = derive(material.cache, ["codec.name=int8"], tmp_path)
    before = digest(first.path)
    assert derive(material.cache, ["codec.name=int8"], tmp_path).path == first.path
    assert digest(first.path) == before


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Cache:
    """A cache of three videos of which one is cut short and one is no video."""
    folder = tmp_path_factory.mktemp("holed")
    for video, name in enumerate(("v0.mp4", "v1.mkv", "v2.mp4")):
        address_video(folder / "videos/x" / name, video, 60)
    built = manifest.build("folder", folder / "videos", folder / "data", {"val_fraction": 0.4})
    whole = (folder / "videos/x/v1.mkv").read_bytes()
    (folder / "videos/x/v1.mkv").write_bytes(whole[: len(whole) // 2])
    (folder / "videos/x/v2.mp4").write_bytes(b"not a video at all")
    return extract.extract(address_spec(), built, folder / "caches")


def test_holes_stay_holes_with_their_reasons(holed, tmp_path):
    assert set(holed.failures) == {"x/v1.mkv", "x/v2.mp4"} and "x/v1.mkv" in holed.locations
    derived = derive(holed, ["codec.name=int8"], tmp_path)
    assert derived.failures == holed.failures and derived.locations == holed.locations
    result = call("derive", holed.path, "--set", "codec.name=int8", "--out", tmp_path)
    assert result.code == 3 and "2 videos failed" in result.out
    slower = derive(holed, ["frames.fps=5"], tmp_path)
    assert {video: failure.reason for video, failure in slower.failures.items()} == {
        video: failure.reason for video, failure in holed.failures.items()
    }
    failure, before = slower.failures["x/v1.mkv"], holed.failures["x/v1.mkv"]
    # Of 16 decoded frames number 14 is left out, which is one of those that the slower cache takes.
    assert (before.frames_stored, failure.frames_stored) == (15, 7)
    assert 0 <= before.stored_until_s - failure.stored_until_s <= 2 / 5


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("encoder.layers=[3, 5]", ["layers [3, 5]", "which holds [2, 5]"]),
        ("encoder.layers=[5, 2]", ["layers [5, 2]", "ascending"]),
        (
            "encoder.layers=[2]",
            ["special tokens are those of layer 5", "of layer 2 are not stored"],
        ),
        ("frames.size_px=96", ["frames.size_px: 64 / 96", "stillframe extract"]),
        ("store.batch_frames=8", ["store.batch_frames: 7 / 8"]),
        ("encoder.width=10", ["encoder.width: 8 / 10"]),
        ("codec.name=int9", ["no codec called 'int9'"]),
        ("codec.bits=3", ["codec", "bits"]),
        ("frames.fps=all", ["nothing to derive"]),
    ],
)
def test_what_cannot_be_derived_is_refused(material, tmp_path, change, parts):
    assert_refused(call("derive", material.cache.path, "--set", change, "--out", tmp_path), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fps", "wanted"),
    [(8, "8 frames per second"), (3, "3 frames per second"), ("all", "every frame")],
)
def test_instants_that_the_source_lacks_are_refused(material, tmp_path, fps, wanted):
    four = derive(material.cache, ["frames.fps=4"], tmp_path)
    with pytest.raises(BadInput, match=rf"cannot derive {wanted} from .*, which holds 4"):
        derive(four, [f"frames.fps={fps}"], tmp_path)


def test_an_unfinished_source_is_refused(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    source = Cache(tmp_path / material.cache.name)
    (source.path / receipt_name(1)).unlink()
    with pytest.raises(BadInput, match="lacks 1 of 3 stores"):
        derive(source, ["codec.name=int8"], tmp_path / "derived")


def test_damage_is_not_vouched_for_anew(material, tmp_path):
    """One flipped bit of a token, too deep for anything but a checksum to see."""
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    source = Cache(tmp_path / material.cache.name)
    file = (source.path / store_name(1)) / "layer_5/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        BadInput,
        match=r"is damaged: stores/00001.zarr/layer_5/c/0/0/0: content differs from its checksum",
    ):
        derive(source, ["codec.name=int8"], tmp_path / "derived")


# Fitted codecs


def test_spread_takes_the_middles_of_equal_parts():
    assert calibrate.middles_of_parts(10, 2).tolist() == [2, 7]
    assert calibrate.middles_of_parts(3, 10).tolist() == [0, 1, 2]
    assert (
        calibrate.middles_of_parts(1, 1).tolist() == [0]
        and calibrate.middles_of_parts(0, 5).tolist() == []
    )


@pytest.mark.parametrize("killed", ["before cache.json", "in a store"])
def test_what_was_learnt_does_not_depend_on_workers_or_kills(
    material, pca_spec, pca_cache, tmp_path, killed
):
    shutil.copytree(pca_cache.path, tmp_path / pca_cache.name)
    left = Cache(tmp_path / pca_cache.name)
    (left.path / receipt_name(1)).unlink()
    if killed == "before cache.json":
        (left.path / "cache.json").unlink()
        (left.path / CODEC_FILE).write_bytes(b"half of it")
        for receipt in (left.path / "receipts").glob("*"):
            receipt.unlink()
    again = extract.extract(pca_spec, material.manifest, tmp_path, decoders=3)
    assert again.name == pca_cache.name
    assert digest(again.path / "stores") == digest(pca_cache.path / "stores")
    assert (again.path / CODEC_FILE).read_bytes() == (pca_cache.path / CODEC_FILE).read_bytes()


def test_a_fitted_cache_is_decodable_alone_and_right(material, pca_cache):
    """Every array has a basis of its own: the numbers of layers 2 and 5 come back within rounding."""
    for name in ("special", "layer_2", "layer_5"):
        tokens = all_tokens(material.cache, name)
        found = all_tokens(pca_cache, name)
        assert ((found - tokens).abs() <= pca_cache.codecs[name].max_error(tokens)).all()
        assert (found - tokens).abs().max() < 0.05


def test_the_manifest_is_part_of_what_is_fingerprinted_where_a_codec_is_fitted(
    material, pca_spec, pca_cache, tmp_path
):
    """Another sample, another basis: such caches must not pass for equal."""
    root = tmp_path / "videos"
    shutil.copytree(material.root, root)
    shutil.rmtree(root / "b")
    address_video(root / "c/v9.mp4", 9, 12)
    other = manifest.build("folder", root, tmp_path / "data", {"val_fraction": 0.3})
    assert extract.extract(pca_spec, other, tmp_path).fingerprint != pca_cache.fingerprint
    assert (
        extract.extract(address_spec(), other, tmp_path).fingerprint == material.cache.fingerprint
    )


def test_deriving_to_and_from_a_fitted_codec(material, pca_cache, tmp_path):
    fitted = derive(material.cache, ["codec.name=pca", "codec.components=8"], tmp_path)
    for name in ("special", "layer_5"):
        assert (all_tokens(fitted, name) - all_tokens(material.cache, name)).abs().max() < 0.05
    fewer = derive(pca_cache, ["encoder.layers=[5]"], tmp_path)
    assert torch.equal(all_tokens(fewer, "layer_5"), all_tokens(pca_cache, "layer_5"))
    back = derive(pca_cache, ["codec.name=float16"], tmp_path)
    assert back.header.codec_sha256 is None and not (back.path / CODEC_FILE).exists()
    assert torch.equal(all_tokens(back, "special"), all_tokens(pca_cache, "special").half().float())


def test_what_was_learnt_is_checked(pca_cache, tmp_path):
    shutil.copytree(pca_cache.path, tmp_path / "damaged")
    file = tmp_path / "damaged" / CODEC_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert_refused(
        call("verify", tmp_path / "damaged"),
        f"{file} is damaged: it differs from its checksum",
        out=True,
    )
    file.unlink()
    assert_refused(
        call("verify", tmp_path / "damaged"),
        f"{file} cannot be read: No such file or directory",
        out=True,
    )


@torch.no_grad()
def test_a_run_on_a_fitted_cache_streams_without_it(material, pca_cache, tmp_path):
    """The run keeps what was learnt, so that its streams see what training saw."""
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 16, "heads": 2, "forms": ["streaming"]},
        "temporal": {"name": "gru", "layers": 1},
        "windows": {"frames": 4, "fps": FPS},
        "training": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    }
    shutil.copytree(pca_cache.path, tmp_path / "cache")
    with torch.enable_grad():
        run = train(
            plugins.validate(Recipe, table, "test"), Cache(tmp_path / "cache"), tmp_path / "run"
        )
    model, task = load_model(run, pca_cache.shape)
    windows = Windows(
        pca_cache, material.manifest, "val", run.recipe.windows, task, pca_cache.shape.layers
    )
    expected = model(*windows.tokens(windows.read([WindowRef(0, 0.0)]), CPU))["streaming"][0]
    shutil.rmtree(tmp_path / "cache")
    seen = list(Stream(run).follow(material.root / windows.clip(0).source))
    for t in range(4):
        np.testing.assert_allclose(seen[t].answer, expected[t], atol=1e-4)


def test_derived_spec_needs_no_encoder(material, tmp_path, monkeypatch):
    """Neither weights nor configuration are read: they may be gone."""

    def gone(*_: object) -> TokenShape:
        raise AssertionError("the encoder was asked for")

    monkeypatch.setattr(plugins.load("encoder", "address"), "shape", gone)
    monkeypatch.setattr(plugins.load("encoder", "address"), "__init__", gone)
    derived = derive(material.cache, ["codec.name=int8", "name=small"], Path(tmp_path))
    assert derived.name.startswith("small-") and not derived.missing_stores()


# Bench


def test_bench_codecs_measures_every_codec(tmp_path, monkeypatch):
    """A random ViT of width 16: what is counted is exact, what is close is close, what is timed is there."""
    monkeypatch.setattr(codecs, "TIMED_BYTES", 100_000)
    (tmp_path / "vit.toml").write_text(VIT.replace("[0, 7]", "[0, 1]"))
    arguments = (
        "--spec",
        tmp_path / "vit.toml",
        "--frames",
        4,
        "--repeats",
        2,
        "--set",
        "pca.components=4",
        "--json",
    )
    result = call("bench", "codecs", *arguments)
    assert result.code == 0, result
    found = result.json["codecs"]
    assert list(found) == plugins.names("codec") and result.json["frames"] == 4
    per_token = {"bfloat16": 32, "float16": 32, "int4": 10, "int8": 20, "pca": 8}
    assert {
        name: facts["bytes_per_frame"] / result.json["tokens_per_frame"]
        for name, facts in found.items()
    } == per_token
    assert found["int4"]["bytes_ratio"] == 10 / 32
    errors = [
        found[name]["relative_error"] for name in ("float16", "bfloat16", "int8", "int4", "pca")
    ]
    assert errors == sorted(errors) and errors[0] < 2**-11
    assert found["int8"]["cosine_mean"] > 0.999 and found["int4"]["cosine_p1"] > 0.95
    for facts in found.values():
        assert facts["cosine_p1"] <= facts["cosine_mean"] <= 1 + 1e-9
        assert set(facts["cosine_mean_by_array"]) == {"special", "layer_0", "layer_1"}
        assert all(
            len(facts[way]["s"]) == 2 and facts[way]["gb_per_s"] > 0 for way in ("encode", "decode")
        )
    assert {way: found["float16"][way]["speed_ratio"] for way in ("encode", "decode")} == {
        "encode": 1,
        "decode": 1,
    }
    assert_refused(call("bench", "codecs", "--set", "int9.x=1"), "no codec called 'int9'")


@pytest.mark.slow
def test_bench_scores_train_through_every_codec(tmp_path):
    (tmp_path / "vit.toml").write_text(VIT.replace("[0, 7]", "[0, 1]"))
    chosen = {
        name: codec
        for name, codec in codecs.choices({}).items()
        if name in ("float16", "int8", "pca")
    }
    said = []
    scores = codecs.codec_scores(
        load_spec(tmp_path / "vit.toml"),
        chosen,
        CPU,
        lambda _done, _total, what: said.append(what),
        {"clips_per_class": 2, "frames": 8, "size_px": 64, "val_fraction": 0.5},
        ["training.steps=2", "training.batch_size=4", "training.warmup_steps=1"],
    )
    assert set(scores) == {"float16", "int8", "pca"} and "training through pca" in said
    for forms in scores.values():
        assert set(forms) == {"streaming", "window"}
        assert all(
            0 <= facts["low"] <= facts["score"] <= facts["high"] <= 1 for facts in forms.values()
        )
