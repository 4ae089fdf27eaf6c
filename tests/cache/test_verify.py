"""Whether a cache can be trusted: damage named and mended, its state, a spec held against it, its
frames encoded again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import SPEC, assert_refused, call, digest, fine
from support.forgery import edit
from support.material import LENGTHS, address_spec, address_video, write_video
from support.training import recipe

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import Damage, count_damaged_frames, group_damage
from pipeline.cache.layout import CODEC_FILE, receipt_name, store_name
from pipeline.cache.leases import Leases
from pipeline.cache.receipts import Content
from pipeline.cache.status import FailureGroup, group_failures, status
from pipeline.cache.verify import verify_cache
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.derive import derive
from pipeline.extract.upkeep.repair import repair
from pipeline.extract.upkeep.spot_check import ROUNDING, least_cosine, sample_frames, spot_check
from pipeline.models.encoders.address import paint
from pipeline.train import loop

SHARD = "layer_5/c/0/0/0"


def copied(cache: Cache, folder: Path) -> Cache:
    shutil.copytree(cache.path, folder / cache.name)
    return Cache(folder / cache.name)


@pytest.fixture
def mine(material, tmp_path) -> Cache:
    """A copy of the cache to damage."""
    return copied(material.cache, tmp_path / "caches")


def found(cache: Cache) -> list[tuple[int, str, str]]:
    return [
        (each.store, each.file, each.problem) for each in verify_cache(Cache(cache.storage)).damage
    ]


def store(cache: Cache, number: int) -> Path:
    return cache.path / store_name(number)


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def mend(cache: Cache, material) -> None:
    """Repairs it; afterwards it is what was never damaged."""
    done = repair(verify_cache(cache))
    assert done.after.is_valid and not done.failures
    assert digest(cache.path / "stores") == digest(material.cache.path / "stores")
    assert verify_cache(Cache(cache.storage)).is_valid
    vouched = [
        {s: r.files for s, r in each.receipts.items()}
        for each in (Cache(cache.storage), material.cache)
    ]
    assert vouched[0] == vouched[1]


# Verify and repair


def test_nothing_is_found_in_a_sound_cache(material):
    seen = []
    result = verify_cache(material.cache, on_bytes=lambda done, total: seen.append((done, total)))
    assert result.is_valid and result.checked == 3 and not result.orphans
    size = sum(receipt.store_bytes for receipt in material.cache.receipts.values())
    assert seen[-1] == (size, size)


def test_swapped_shards_are_named_by_what_they_hold(mine, material):
    swap(store(mine, 1) / SHARD, store(mine, 2) / SHARD)
    assert found(mine) == [
        (1, SHARD, f"has the content of {SHARD} of store 2"),
        (2, SHARD, f"has the content of {SHARD} of store 1"),
    ]
    swap(store(mine, 1) / SHARD, store(mine, 2) / SHARD)
    swap(store(mine, 0) / SHARD, store(mine, 0) / "layer_2/c/0/0/0")
    assert found(mine) == [
        (0, "layer_2/c/0/0/0", f"has the content of {SHARD} of the same store"),
        (0, SHARD, "has the content of layer_2/c/0/0/0 of the same store"),
    ]
    mend(mine, material)


def test_swapped_stores_are_one_line_each(mine, material):
    swap(store(mine, 0), store(mine, 2))
    name = store_name
    assert found(mine) == [
        (0, name(0), "has the content of store 2"),
        (2, name(2), "has the content of store 0"),
    ]
    assert (
        count_damaged_frames(verify_cache(mine).damage)
        == mine.receipts[0].frames + mine.receipts[2].frames
    )
    mend(mine, material)


def test_swapped_receipts(mine, material):
    receipts = [mine.path / receipt_name(number) for number in (0, 1)]
    swap(*receipts)
    assert [(number, file) for number, file, _ in found(mine)] == [
        (0, "receipts/00000.json"),
        (1, "receipts/00001.json"),
    ]
    mend(mine, material)


def test_a_store_that_is_gone(mine, material):
    shutil.rmtree(store(mine, 1))
    assert found(mine) == [(1, "stores/00001.zarr", "folder is missing")]
    mend(mine, material)


def test_damage_says_which_rows_and_videos_it_hits(mine):
    (store(mine, 2) / "layer_2/c/1/0/0").unlink()
    flip(store(mine, 2) / "layer_5/c/1/0/0")
    damage = verify_cache(mine).damage
    assert [each.rows for each in damage] == [
        ((8, 16),),
        ((12, 16),),
    ]  # a lost shard, and the chunk that a bit fell in
    start, stop = mine.receipts[2].videos[damage[0].videos[0]]
    assert start < 16 and stop > 8 and len(damage[0].videos) == 1
    assert count_damaged_frames(damage) == 8  # rows of two arrays that overlap


EDITS = {
    "a failure that never was": lambda table: table["failures"].update(
        {next(iter(table["videos"])): {"reason": "x", "frames_stored": 1, "stored_until_s": 0.5}}
    ),
    "a file left out": lambda table: table["files"].pop(SHARD),
    "another checksum": lambda table: table["files"][SHARD].__setitem__(1, "0" * 64),
}


@pytest.mark.parametrize("how", EDITS)
def test_an_edited_receipt_is_found(mine, material, how):
    edit(mine.path / receipt_name(1), EDITS[how])
    assert {number for number, _, _ in found(mine)} == {1}
    mend(mine, material)


def test_rows_moved_from_one_video_to_the_next(mine, material):
    def move(table):
        (first, (start, stop)), (second, (_, end)) = list(table["videos"].items())[:2]
        table["videos"] |= {first: [start, stop - 1], second: [stop - 1, end]}

    number = next(s for s, videos in mine.plan.items() if len(videos) > 1)
    edit(mine.path / receipt_name(number), move)
    assert found(mine) == [
        (number, receipt_name(number), "its rows are not those that the store says")
    ]
    mend(mine, material)


def test_what_was_left_over_is_named_and_harms_nobody(mine, material):
    (mine.path / "stores/00001.zarr.1-dead.partial").mkdir()
    (mine.path / "receipts/.00001.json.1-dead.partial").write_bytes(b"{")
    (mine.path / "notes.txt").write_text("mine")
    (mine.path / receipt_name(2)).unlink()
    result = verify_cache(Cache(mine.storage))
    unfinished, strange = "unfinished, and its writer is gone", "does not belong here"
    assert result.is_valid and result.missing == [2]
    assert result.orphans == {
        "notes.txt": strange,
        "stores/00001.zarr.1-dead.partial": unfinished,
        "receipts/.00001.json.1-dead.partial": unfinished,
        "stores/00002.zarr": "without a receipt: it counts as not extracted",
    }
    done = repair(result)
    assert sorted(done.removed) == [
        "receipts/.00001.json.1-dead.partial",
        "stores/00001.zarr.1-dead.partial",
    ]
    assert (mine.path / "notes.txt").exists() and Cache(mine.storage).missing_stores() == [2]


def test_what_a_living_worker_writes_is_not_left_over(mine):
    (mine.path / receipt_name(2)).unlink()
    with Leases(mine.storage) as leases:
        leases.claim("00002")
        mine.storage.stage(store_name(2))
        assert verify_cache(Cache(mine.storage)).orphans == {}


def test_a_stray_file_is_removed_and_its_store_kept(mine, material):
    (store(mine, 1) / "layer_5/c/extra").write_bytes(b"x")
    before = {
        path: path.stat().st_mtime_ns
        for path in store(mine, 1).rglob("*")
        if path.is_file() and path.name != "extra"
    }
    assert found(mine) == [(1, "layer_5/c/extra", "not in the receipt")]
    assert repair(verify_cache(mine)).stores == []
    assert {
        path: path.stat().st_mtime_ns for path in store(mine, 1).rglob("*") if path.is_file()
    } == before


def test_only_damaged_stores_are_made_anew_in_an_unfinished_cache(mine):
    (mine.path / receipt_name(0)).unlink()
    flip(store(mine, 1) / SHARD)
    done = repair(verify_cache(Cache(mine.storage)))
    assert done.stores == [1] and done.after.is_valid
    assert Cache(mine.storage).missing_stores() == [0]


def test_repair_refuses_before_it_removes_anything(mine, tmp_path):
    flip(store(mine, 1) / SHARD)
    before = digest(mine.path)
    with pytest.raises(
        BadInput, match=r"of the damaged stores are not in .*nowhere, the first is "
    ):
        repair(verify_cache(mine), root=tmp_path / "nowhere")
    assert digest(mine.path) == before


def test_a_mended_store_that_is_not_what_was_lost_is_said(material, mine, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(material.root, root)
    video = next(iter(mine.plan[1]))
    address_video(root / video, 9, LENGTHS[video])
    flip(store(mine, 1) / SHARD)
    result = call("verify", mine.path, "--repair", "--root", root)
    assert (
        result.code == 0
        and "store 1 is sound, but not what its receipt vouched for before" in result.out
    )


def test_a_derived_cache_is_mended_from_its_source(material, mine, tmp_path):
    derived = derive(mine, ["codec.name=int8"], tmp_path / "caches")
    before = digest(derived.path / "stores")
    flip(store(derived, 0) / SHARD)
    (store(derived, 1) / "layer_2_scale/c/0/0").unlink()
    done = repair(verify_cache(Cache(derived.storage)))
    assert done.stores == [0, 1] and not done.changed and digest(derived.path / "stores") == before
    flip(store(derived, 0) / SHARD)
    flip(store(mine, 0) / SHARD)
    damaged = digest(derived.path)
    with pytest.raises(
        BadInput, match=rf"is damaged itself: stores/00000.zarr/{SHARD}: content differs"
    ):
        repair(verify_cache(Cache(derived.storage)))
    assert digest(derived.path) == damaged
    flip(store(mine, 0) / SHARD)
    mine.path.rename(tmp_path / "elsewhere")
    with pytest.raises(
        BadInput, match=rf"was derived from the cache {material.cache.fingerprint}, which is not in"
    ):
        repair(verify_cache(Cache(derived.storage)))
    assert call("verify", derived.path, "--repair", "--source", tmp_path / "elsewhere").code == 0
    assert digest(derived.path / "stores") == before


@pytest.mark.parametrize("file", ["manifest/manifest.jsonl", "manifest/dataset.json"])
def test_the_copy_of_the_manifest_is_not_mended_silently(mine, file):
    path = mine.path / file
    path.write_bytes(path.read_bytes().replace(b"v1.mp4", b"v9.mp4").replace(b'"a"', b'"c"'))
    before = digest(mine.path)
    for more in ([], ["--repair"]):
        result = call("verify", mine.path, *more)
        assert_refused(
            result,
            f"{mine.path}/manifest",
            "; next: copy the manifest that it was extracted from",
            out=True,
        )
    assert digest(mine.path) == before


def test_a_header_that_does_not_follow_from_itself(mine):
    edit(mine.path / "cache.json", lambda table: table["spec"]["frames"].update(size_px=65))
    result = call("verify", mine.path, "--repair")
    assert_refused(
        result,
        "cache.json",
        "but what it says gives",
        "begin the same extract in another --out",
        out=True,
    )


def test_a_plan_of_other_videos(mine):
    edit(mine.path / "cache.json", lambda table: table["plan"]["1"].update(strange=3))
    assert_refused(
        call("verify", mine.path),
        "cache.json: its plan is not for the videos of its manifest",
        out=True,
    )


def test_what_a_codec_learnt_is_copied_from_the_same_extraction(material, tmp_path):
    spec = address_spec(codec={"name": "pca", "components": 8, "frames": 20})
    cache = extract.extract(spec, material.manifest, tmp_path / "a")
    flip(cache.path / CODEC_FILE)
    result = call("verify", cache.path)
    assert_refused(
        result,
        f"{CODEC_FILE} is damaged: it differs from its checksum",
        f"copy its {CODEC_FILE} into",
        out=True,
    )
    again = extract.extract(spec, material.manifest, tmp_path / "b")
    shutil.copy(again.path / CODEC_FILE, cache.path / CODEC_FILE)
    assert verify_cache(Cache(cache.storage)).is_valid


def test_a_dead_disk_is_few_lines():
    damage = [
        Damage(number, file, "missing", "missing", ((0, 10),), (f"v{number}",))
        for number in range(3000)
        for file in ("a", f"b{number}")
    ]
    (group,) = group_damage(damage)
    assert (len(group.stores), group.frames, len(group.videos), len(group.files)) == (
        3000,
        30_000,
        3000,
        3001,
    )


def test_a_file_that_cannot_be_read_is_named(mine, monkeypatch):
    """As root reads everything, the error of a dying disk is raised by hand."""
    real = type(mine.storage).digest

    def digest_of(place, name):
        if name.endswith(f"00001.zarr/{SHARD}"):
            raise OSError(5, "Input/output error")
        return real(place, name)

    monkeypatch.setattr(type(mine.storage), "digest", digest_of)
    assert found(mine) == [(1, SHARD, "cannot be read: Input/output error")]


# Status


def test_reasons_are_grouped_whatever_their_numbers_and_names():
    sources = {"a": "x/a.mp4", "b": "x/b.mp4", "c": "c.mp4"}
    failures = {
        "a": "a.mp4: truncated: 3.0 s of 24 fps",
        "b": "b.mp4: truncated: 4.5 s of 24 fps",
        "c": "c.mp4: is empty (0 bytes)",
    }
    assert group_failures(failures, sources) == [
        FailureGroup(reason="truncated: ... s of 24 fps", videos=["a", "b"]),
        FailureGroup(reason="is empty (0 bytes)", videos=["c"]),
    ]


def test_status_counts_what_is_left_and_who_is_at_work(mine):
    (mine.path / receipt_name(2)).unlink()
    facts = status(Cache(mine.storage))
    assert (
        facts.frames_left == sum(mine.plan[2].values())
        and facts.workers == []
        and facts.eta_s is None
    )
    assert "nobody is at work: run extract again" in fine("status", mine.path).out
    done = sum(receipt.frames for number, receipt in mine.receipts.items() if number != 2)
    assert sum(split.frames for split in facts.splits.values()) == done == facts.frames
    assert facts.bytes_per_frame == round(facts.store_bytes / done)
    with Leases(mine.storage) as leases:
        leases.claim("00002")
        facts = status(Cache(mine.storage))
        (worker,) = facts.workers
        assert (worker.lease, worker.pid, worker.alive, worker.is_here) == (
            "00002",
            os.getpid(),
            True,
            True,
        )
        assert facts.eta_s == pytest.approx(facts.frames_left / facts.frames_per_s)
        assert (
            f"process {os.getpid()} of this machine: store 2, at work\n"
            in fine("status", mine.path).out
        )


def test_speed_is_that_of_the_last_stores_without_the_pause_before(mine):
    for number, finished_s in ((0, 1000.0), (1, 5000.0), (2, 5002.0)):
        edit(
            mine.path / receipt_name(number),
            lambda table, at=finished_s: table.update(
                finished_s=at, seconds={"decode": 1.0, "encode": 1.5, "write": 0.5}
            ),
        )
    with Leases(mine.storage) as leases:
        leases.claim("00002")
        assert status(Cache(mine.storage)).frames_per_s == mine.receipts[2].frames / 2.0


def test_a_dead_worker_is_called_gone(mine):
    code = (
        "import sys, os\nfrom pipeline.cache.leases import Leases\nfrom "
        "pipeline.cache.storage.open import open_storage\n"
        "Leases(open_storage(sys.argv[1])).claim('00001')\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(mine.path)], check=True)
    (worker,) = status(Cache(mine.storage)).workers
    assert worker.alive is False
    assert ", gone\n" in fine("status", mine.path).out


def test_videos_of_another_length_than_promised(mine):
    video = next(iter(mine.plan[0]))
    content = {video: Content(decoded=LENGTHS[video], header=LENGTHS[video] + 2).model_dump()}
    edit(mine.path / receipt_name(0), lambda table: table.update(content=content))
    assert status(Cache(mine.storage)).other_length == {
        video: Content(decoded=LENGTHS[video], header=LENGTHS[video] + 2)
    }
    assert (
        "another number of frames than the header says, in 1 video:"
        in fine("status", mine.path).out
    )


# Diff


@pytest.fixture
def spec_file(tmp_path) -> Path:
    path = tmp_path / "address.toml"
    path.write_text(SPEC)
    return path


def test_a_spec_that_is_the_cache(spec_file, material):
    assert (
        fine("diff", spec_file, material.cache.path).out
        == f"{spec_file} asks for {material.cache}: nothing would be computed\n"
    )
    facts = fine("diff", spec_file, material.cache.path, "--json").json
    assert (facts["verdict"], facts["name"], facts["differ"]) == ("same", material.cache.name, [])


@pytest.mark.parametrize(
    "changes",
    [
        ["codec.name=int4"],
        ["encoder.layers=[5]"],
        ["frames.fps=5"],
        ["codec.name=int8", "store.chunk_frames=2"],
    ],
)
def test_what_can_be_derived_is_derived_by_the_command_that_diff_gives(
    spec_file, mine, tmp_path, changes
):
    if changes == ["frames.fps=5"]:
        mine = extract.extract(
            address_spec(frames={"size_px": 64, "fps": 10}), mine.manifest, tmp_path / "ten"
        )
    sets = [part for change in changes for part in ("--set", change)]
    result = call("diff", spec_file, mine.path, *sets, "--json")
    assert result.code == 3 and result.json["verdict"] == "derivable"
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {result.json['command']}"],
        capture_output=True,
        text=True,
        check=True,
    )
    fine(*words.stdout.splitlines()[1:])
    derived = [Cache(path) for path in mine.path.parent.iterdir() if path.name != mine.name]
    assert len(derived) == 1 and derived[0].header.derived_from == mine.fingerprint
    text = call("diff", spec_file, derived[0].path, *sets, "--json").json
    assert [field for field, _, _ in text["differ"]] == ["derived_from"]


def test_what_must_be_encoded_again(spec_file, material):
    result = call("diff", spec_file, material.cache.path, "--set", "frames.size_px=32", "--json")
    assert result.code == 3
    facts = result.json
    assert (facts["verdict"], facts["differ"]) == ("everything", [["frames.size_px", 32, 64]])
    assert (facts["frames"], facts["store_bytes"]) == (125, 125 * 320)
    result = call("diff", spec_file, material.cache.path, "--set", "encoder.width=16", "--json")
    assert (
        result.json["differ"] == [["encoder.identity.width", 16, 8]]
        and "another encoder" in result.json["why_not"]
    )


def test_new_layers(spec_file, material):
    result = call("diff", spec_file, material.cache.path, "--set", "encoder.layers=[2,3,5]")
    assert result.code == 3 and "new in it: layers [3]; the others are here" in result.out


def test_without_weights_the_rest_is_compared(place, material, tmp_path):
    spec = tmp_path / "vit.toml"
    spec.write_text((place.folder / "vit.toml").read_text().replace("[0, 7]", "[0, 1]"))
    fine("extract", spec, place.data, "--out", tmp_path / "caches")
    (cache,) = (tmp_path / "caches").iterdir()
    assert fine("diff", spec, cache, "--json").json["verdict"] == "same"
    gone = ["--set", f"encoder.model={tmp_path}/no", "--set", "encoder.layers=[0]"]
    text = spec.read_text().replace("seed = 0", "").partition("[encoder.config]")
    spec.write_text(text[0] + "[frames]" + text[2].partition("[frames]")[2])
    result = call("diff", spec, cache, *gone)
    assert (
        result.code == 3
        and "weights not compared: " in result.out
        and "encoder.layers" in result.out
    )


# Replay


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["float16", "int8", "int4", "pca"])
def test_on_the_same_machine_no_token_has_drifted(material, tmp_path, codec):
    cache = extract.extract(address_spec(codec={"name": codec}), material.manifest, tmp_path)
    outcome = spot_check(cache, 1.0)
    assert outcome.frames_sampled == 125 and outcome.videos_sampled == 6 and outcome.mismatch_s == 0
    assert not outcome.drifted and not outcome.changed
    assert [array.tokens for array in outcome.arrays.values()] == [250, 125 * 9, 125 * 9]
    assert all(array.below == 0 for array in outcome.arrays.values())
    if codec == "float16":
        assert all(array.min == pytest.approx(1, abs=1e-12) for array in outcome.arrays.values())


def test_a_repainted_video_and_no_other_has_drifted(material, mine, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(material.root, root)
    address_video(root / "b/v3.mp4", 1900, LENGTHS["b/v3.mp4"])
    (root / "a/v1.mp4").unlink()
    address_video(root / "b/v4.mp4", 4, 2)
    result = call("spot-check", mine.path, "--fraction", "1", "--root", root, "--json")
    assert result.code == 3
    facts = result.json
    assert facts["drifted"] == ["b/v3.mp4"] and {frame["video"] for frame in facts["worst"]} == {
        "b/v3.mp4"
    }
    assert facts["changed"].keys() == {"a/v1.mp4", "b/v4.mp4"}
    assert "does not exist" in facts["changed"]["a/v1.mp4"]
    assert "ends before the frame that was cached at 0.200 s" in facts["changed"]["b/v4.mp4"]
    assert facts["arrays"]["layer_5"]["below"] == LENGTHS["b/v3.mp4"] * 9
    text = call("spot-check", mine.path, "--fraction", "1", "--root", root).out
    assert "drifted: b/v3.mp4" in text and "2 videos changed or gone" in text


def test_shifted_times_are_found(material, mine, tmp_path):
    """The same pictures at half the rate."""
    root = tmp_path / "videos"
    shutil.copytree(material.root, root)
    write_video(root / "b/v3.mp4", [paint(3, frame, 64) for frame in range(24)], fps=5)
    outcome = spot_check(mine, 1.0, root)
    assert (
        outcome.shifted == ["b/v3.mp4"]
        and outcome.mismatch_s == pytest.approx(2.3)
        and not outcome.drifted
    )


def test_a_derived_cache_is_not_judged(mine, tmp_path):
    derived = derive(derive(mine, ["codec.name=int4"], tmp_path), ["codec.name=float16"], tmp_path)
    outcome = spot_check(derived, 0.5)
    assert not outcome.judged and not outcome.drifted and outcome.arrays["layer_2"].min < 1


def test_the_sample_follows_from_the_seed_and_takes_few_videos(material):
    samples = [sample_frames(material.cache.locations, 0.1, seed) for seed in (0, 0, 1)]
    texts = [
        str({video: places.tolist() for video, places in sample.items()}) for sample in samples
    ]
    assert texts[0] == texts[1] != texts[2]
    assert sum(map(len, samples[0].values())) == 13 and len(samples[0]) <= 3
    for video, places in samples[0].items():
        assert len(set(places.tolist())) == len(places) and places.max() < LENGTHS[video]
    assert sum(map(len, sample_frames(material.cache.locations, 1e-9, 0).values())) == 1


def test_the_least_cosine_is_a_bound_that_is_met():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 16, generator=generator, dtype=torch.float64)
    for size in (0.01, 0.3):
        error = torch.full_like(x, size)
        worst = least_cosine(error, x, 0.0)
        signs = torch.randn(1000, 16, generator=generator, dtype=torch.float64).sign()
        assert (torch.cosine_similarity(x, x + signs * error, dim=-1) >= worst).all()
    along = torch.zeros(1, 2, dtype=torch.float64) + torch.tensor([1.0, 0.0])
    assert least_cosine(torch.tensor([[0.0, 0.5]]), along, 0.0).item() == pytest.approx(
        np.cos(np.arcsin(0.5))
    )
    assert least_cosine(torch.zeros(1, 2), along, ROUNDING[torch.float32]).item() == pytest.approx(
        1 - 2e-6, abs=1e-8
    )


def test_replay_without_the_videos(mine, tmp_path):
    assert_refused(
        call("spot-check", mine.path, "--root", tmp_path / "no"),
        "is not here; next: say where they are: --root DIR",
    )


def test_truth_beyond_labels_is_compared_byte_by_byte(material, tmp_path):
    """By `verify`, and before anything of targets.h5 is read."""
    built = manifest.build(
        "world",
        None,
        tmp_path / "data",
        {"scene": "room", "clips_per_class": 1, "size_px": 64, "frames": 4},
    )
    cache = extract.extract(address_spec(), built, tmp_path / "caches")
    assert verify_cache(cache).is_valid
    flip(cache.path / "manifest/targets.h5")
    assert verify_cache(Cache(cache.storage)).cache_problems == {
        "manifest/targets.h5": "content differs from its checksum"
    }
    damaged, problem = Cache(cache.storage), r"targets.h5 is damaged: its content differs from its"
    with pytest.raises(BadInput, match=problem):
        damaged.manifest.targets(built.clips[0].clip_id)
    wanted = recipe(task={"name": "boxes", "readout_width": 8}, windows={"frames": 2, "fps": 6})
    with pytest.raises(BadInput, match=problem):
        loop.train(wanted, damaged, tmp_path / "run")
