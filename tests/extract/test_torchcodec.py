"""A cache whose frames are decoded where they are encoded, by torchcodec: on the CPU the tokens of any other cache, and yet a
cache of its own. Most of it is skipped where torchcodec cannot be used."""

from __future__ import annotations

import json
import sys

import pytest
from support.broken_media import noise
from support.commands import VIT, assert_refused, call, digest, fine
from support.media import encode
from support.on_device import CPU
from support.views import FLIP, vit_spec

from pipeline.cache.cache import Cache
from pipeline.config.cache_spec import CacheSpec
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.execution import Execution
from pipeline.extract.upkeep.spot_check import spot_check
from pipeline.extract.worker import load_encoder
from pipeline.video import on_device

SPEC = VIT.replace("[0, 7]", "[0, 1]") + 'decoder = "torchcodec"\n'


def spec_of(decoder: str, **changes: object) -> CacheSpec:
    frames = {"size_px": 32, "fps": 4, "resample": "bilinear", "decoder": decoder}
    return vit_spec([0, 2], name=decoder, frames=frames, codec={"name": "float16"}, **changes)


@pytest.fixture(scope="module")
def usable() -> None:
    try:
        on_device.identity_of_decoder("torchcodec", CPU)
    except BadInput as error:
        pytest.skip(error.with_hint)


def stores(cache: Cache) -> dict[str, str]:
    """Without the files that name the cache."""
    found = digest(cache.path / "stores")
    return {name: sha256 for name, sha256 in found.items() if not name.endswith(".zarr/zarr.json")}


def test_tokens_are_the_same_and_the_cache_is_another(usable, built, tmp_path):
    specs = [spec_of(decoder, views=[FLIP]) for decoder in ("pyav", "torchcodec")]
    ours, theirs = extract.extract_all(specs, built, tmp_path / "together", Execution(CPU, 2))
    alone = extract.extract(specs[1], built, tmp_path / "alone")
    assert stores(ours) == stores(theirs) == stores(alone)
    assert theirs.fingerprint == alone.fingerprint != ours.fingerprint
    assert theirs.header.decoder.startswith("torchcodec ")
    assert theirs.spec["frames"]["decoder"] == "torchcodec" and "decoder" not in ours.spec["frames"]
    assert [receipt.content for receipt in theirs.receipts.values()] == [
        receipt.content for receipt in ours.receipts.values()
    ]
    assert not any(receipt.taken_from for receipt in theirs.receipts.values())
    assert spot_check(theirs, 1.0, device=CPU).is_sound


def test_a_worker_with_another_version_is_refused(usable, built, tmp_path, monkeypatch):
    cache = extract.extract(spec_of("torchcodec"), built, tmp_path)
    monkeypatch.setattr("torchcodec.__version__", "0.0.1")
    wanted = rf"the decoder here is torchcodec 0\.0\.1 .*, {cache} was begun with torchcodec "
    with pytest.raises(BadInput, match=wanted):
        load_encoder(cache, CPU)


def test_a_video_that_it_does_not_decode_is_listed(usable, tmp_path):
    folder = tmp_path / "videos" / "a"
    folder.mkdir(parents=True)
    encode(folder / "good.mp4", noise(9))
    encode(folder / "four.mp4", noise(9), pix_fmt="yuv444p")
    fine("manifest", "folder", tmp_path / "videos", "--out", tmp_path / "data")
    (tmp_path / "vit.toml").write_text(SPEC)
    made = call("extract", tmp_path / "vit.toml", tmp_path / "data", "--out", tmp_path / "caches")
    assert made.code == 3
    assert "four.mp4: is H.264 in 4:4:4" in made.out and "good.mp4" not in made.out
    (cache,) = map(Cache, (tmp_path / "caches").iterdir())
    assert len(cache.failures) == 1 and sum(r.frames for r in cache.receipts.values()) == 9
    # A spec that says nothing of the decoder asks for another cache.
    (tmp_path / "plain.toml").write_text(VIT.replace("[0, 7]", "[0, 1]"))
    compared = json.loads(call("diff", tmp_path / "plain.toml", cache, "--json").out)
    assert compared["verdict"] == "everything"
    fields = {difference[0] for difference in compared["differ"]}
    assert fields == {"decoder", "frames.decoder", "name"}
    refused = call("derive", cache, "--out", tmp_path / "caches", "--set", "frames.decoder=pyav")
    assert_refused(refused, "cannot be derived", "frames.decoder")


def test_without_the_package_the_error_says_how_to_get_it(built, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    (tmp_path / "vit.toml").write_text(SPEC)
    refused = call("extract", tmp_path / "vit.toml", built.folder, "--out", tmp_path / "caches")
    assert_refused(
        refused,
        'frames.decoder = "torchcodec" needs the package torchcodec, which is not installed',
        "pip install 'stillframe[torchcodec]'",
    )
    assert not (tmp_path / "caches").exists()
