"""A manifest in parts holds the clips of its source, and its cache the bytes that the parts give one by one; a worker
reads no other parts than those it is at; a training on some videos ends with the weights of one on a whole cache."""

from __future__ import annotations

import json
import shutil
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import RECIPE, assert_refused, call, digest, fine
from support.material import LENGTHS, address_spec
from support.training import assert_same, final, recipe

from pipeline.cache.cache import Cache
from pipeline.cache.commit import forget_store
from pipeline.cache.layout import mark_file, receipt_name
from pipeline.cache.leases import Leases, lease_of
from pipeline.cache.parts import summary
from pipeline.cache.parts.chosen import STORES_OF_A_PART, open_cache
from pipeline.cache.parts.parted import PartedCache
from pipeline.cache.parts.summary import parted_status
from pipeline.cli.bench.scale import parts as startup_parts
from pipeline.config import plugins
from pipeline.datasets.manifest.edit import is_in_share, select, write_parts
from pipeline.datasets.manifest.manifest import Manifest, build
from pipeline.datasets.manifest.parts import PartedManifest, load_any, part_name
from pipeline.errors import BadInput
from pipeline.experiments.sweep import Sweep, sweep
from pipeline.experiments.sweep_caches import prepare
from pipeline.experiments.sweep_spec import GIVEN, SweepSpec
from pipeline.extract.execution import Execution
from pipeline.extract.extract import extract
from pipeline.extract.in_parts import PartsExtraction, extract_parts, open_parts, unfinished
from pipeline.models.encoders.contract import make_encoder
from pipeline.report.source import cache_of
from pipeline.train.loop import train
from pipeline.train.run import Run

CPU = torch.device("cpu")
HERE = Execution(CPU)


@pytest.fixture
def copy(parted, tmp_path) -> PartedCache:
    shutil.copytree(str(parted), tmp_path / parted.storage.name)
    return PartedCache(tmp_path / parted.storage.name)


def stores(cache: Cache) -> dict[str, str]:
    return digest(cache.path / "stores")


def test_parts_hold_the_clips_of_their_source(built, parts):
    read = [parts.part(number) for number in range(len(parts.index.parts))]
    assert [len(part.clips) for part in read] == [2, 2, 2]
    assert tuple(clip for part in read for clip in part.clips) == built.clips
    facts = {name: fact for part in read for name, fact in part.facts.items()}
    assert facts == built.facts
    assert {part.root for part in read} == {built.root}
    assert parts.index.splits == Counter(clip.split for clip in built.clips)
    assert parts.index.labels == built.labels
    assert [entry.digest for entry in parts.index.parts] == [part.digest for part in read]
    named = [{built.labels[number] for number in entry.labels} for entry in parts.index.parts]
    assert named == [{clip.label for clip in part.clips} for part in read]


def test_truth_goes_with_its_clip_and_comes_back_whole(tmp_path):
    settings = {"clips_per_class": 1, "frames": 3, "size_px": 32, "val_fraction": 0.5}
    world = build("world", None, tmp_path / "world", settings)
    parts = write_parts([world], tmp_path / "parts", 3)
    back = select(parts, tmp_path / "back")
    assert [entry.clips for entry in parts.index.parts] == [3, 3, 2]
    assert (back.clips, back.facts, back.labels) == (world.clips, world.facts, world.labels)
    for clip in world.clips:
        truth, wanted = back.targets(clip.clip_id), world.targets(clip.clip_id)
        assert truth.keys() == wanted.keys() != set()
        for name, array in truth.items():
            np.testing.assert_array_equal(array, wanted[name])


def test_a_selection_from_parts_is_that_from_a_whole_manifest(built, parts, tmp_path):
    for number, asked in enumerate(
        (
            {"splits": ["val"]},
            {"labels": ["b"]},
            {"clips": ["*v3*", "*v0*"]},
            {"first": 1},
            {"share": 0.5},
        )
    ):
        ours, theirs = (
            select(source, tmp_path / f"{number}_{name}", **asked)
            for name, source in (("parts", parts), ("whole", built))
        )
        assert ours.clips == theirs.clips != ()
        assert ours.digest == theirs.digest and ours.facts == theirs.facts
    for asked, message in (
        ({"splits": ["vol"]}, "no split called 'vol'"),
        ({"clips": ["x*"]}, "no clip matches 'x*'"),
        ({"targets": ["pose"]}, "no truth called 'pose'"),
        ({"share": 0.0}, "all of them by none: share 0"),
    ):
        with pytest.raises(BadInput, match=message.replace("*", r"\*")):
            select(parts, tmp_path / "none", **asked)


def test_a_share_is_nested_and_as_large_as_it_says():
    names = [f"videos/{number}.mp4" for number in range(4000)]
    shares = [{name for name in names if is_in_share(name, share)} for share in (0.1, 0.4, 1.0)]
    assert shares[0] < shares[1] < shares[2] == set(names)
    # Three standard deviations of a binomial distribution.
    assert abs(len(shares[0]) - 400) < 57 and abs(len(shares[1]) - 1600) < 93


def test_a_selection_reads_no_part_without_its_split(parts, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(parts.folder, data)
    wanted = next(iter(PartedManifest.load(data).splits))
    lacking = [n for n, entry in enumerate(parts.index.parts) if wanted not in entry.splits]
    assert lacking
    for number in lacking:
        shutil.rmtree(data / part_name(number))
    assert {
        clip.split for clip in select(load_any(data), tmp_path / "out", splits=[wanted]).clips
    } == {wanted}


def test_what_does_not_fit_together_is_named(built, parts, tmp_path):
    with pytest.raises(BadInput, match="'a/v0.mp4' is in the parts 00000 and 00003"):
        write_parts([built, built], tmp_path / "twice", 2)
    with pytest.raises(BadInput, match="is not empty"):
        write_parts([built], parts.folder, 2)


@pytest.mark.parametrize("file", ["manifest.jsonl", "videos.jsonl"])
def test_damage_of_one_part_is_found_when_it_is_read(parts, tmp_path, file):
    data = tmp_path / "data"
    shutil.copytree(parts.folder, data)
    damaged = data / "00001" / file
    damaged.write_bytes(damaged.read_bytes().replace(b"v2", b"v9"))
    again = PartedManifest.load(data)
    assert again.part(0).facts and again.part(2).facts
    for wanted in (None, "b/v3.mp4".__eq__):  # which is not the one that was damaged
        with pytest.raises(BadInput, match=rf"00001/{file} was edited after it was built"):
            _ = again.part(1, wanted).facts


def test_a_part_of_some_videos_has_their_clips_and_headers_alone(parts):
    whole, some = parts.part(1), parts.part(1, "b/v3.mp4".__eq__)
    assert [clip.video_id for clip in some.clips] == ["b/v3.mp4"]
    assert some.facts == {"b/v3.mp4": whole.facts["b/v3.mp4"]}
    assert (some.digest, some.labels) == (whole.digest, whole.labels)
    assert parts.part(1, "".__eq__).clips == ()


def test_another_part_in_its_place_and_a_damaged_index_are_found(parts, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(parts.folder, data)
    shutil.rmtree(data / "00001")
    shutil.copytree(data / "00000", data / "00001")
    with pytest.raises(BadInput, match=r"00001 is another manifest than .*parts\.json lists"):
        PartedManifest.load(data).part(1)
    index = data / "parts.json"
    index.write_bytes(index.read_bytes().replace(b'"train"', b'"trial"', 1))
    with pytest.raises(BadInput, match=r"parts\.json is damaged: its content differs"):
        PartedManifest.load(data)


def test_every_part_has_the_bytes_of_a_cache_of_its_own(material, parts, parted, tmp_path):
    assert parted.finished() == parted.begun() == [0, 1, 2]
    for number in range(3):
        alone = extract(material.spec, parts.part(number), tmp_path / str(number), CPU)
        part = parted.part(number)
        assert stores(part) == stores(alone) != {}
        assert (part.fingerprint, part.plan) == (material.cache.fingerprint, alone.plan)
    assert parted.storage.name == material.cache.name


def test_all_tokens_are_those_of_the_whole_cache(material, built, parted):
    cache = open_cache(str(parted), built)
    assert cache.locations.keys() == material.cache.locations.keys() == LENGTHS.keys()
    for video in LENGTHS:
        ours, theirs = cache.locations[video], material.cache.locations[video]
        for name in ("special", "layer_2", "layer_5"):
            read = [
                source.stored_rows(place.store, name, np.arange(place.start, place.stop))
                for source, place in ((cache, ours), (material.cache, theirs))
            ]
            assert read[0].keys() == read[1].keys()
            for key, array in read[0].items():
                np.testing.assert_array_equal(array, read[1][key])


def test_a_training_ends_with_the_weights_of_one_on_the_whole_cache(
    material, built, parted, tmp_path
):
    chosen = select(built, tmp_path / "chosen", clips=["*v0*", "*v3*", "*v5*"])
    runs = [
        train(recipe(), open_cache(str(address), chosen), tmp_path / name, chosen)
        for name, address in (("parts", parted), ("whole", material.cache))
    ]
    assert_same(final(runs[0]), final(runs[1]))
    assert runs[0].header.manifest_path == str(chosen.folder)


def test_a_sweep_ends_with_the_weights_of_one_on_the_whole_cache(material, built, parted, tmp_path):
    chosen = select(built, tmp_path / "chosen", clips=["*v0*", "*v3*", "*v5*"])
    (tmp_path / "base.toml").write_text(RECIPE)
    axes = {"temporal": ["identity", "gru"]}
    table = {"name": "test", "recipe": str(tmp_path / "base.toml"), "axes": axes}
    spec = plugins.validate(SweepSpec, table, "test")
    finals = {}
    for name, address in (("parts", parted), ("whole", material.cache)):
        cache = open_cache(str(address), chosen)
        made = sweep(spec, {GIVEN: cache}, tmp_path / name, manifest=chosen)
        runs = [Run(member.path) for member in made.members]
        assert len(runs) == 2
        finals[name] = list(map(final, runs))
        # As a worker of an engine, and as a page of the report, open it:
        assert Sweep(made.path).caches[GIVEN].plan == cache_of(runs[0]).plan == cache.plan
    for ours, theirs in zip(finals["parts"], finals["whole"], strict=True):
        assert_same(ours, theirs)
    wanted = {"caches": {"small": {"derive": ["codec.name=int8"]}}}
    table |= wanted | {"axes": {"cache": [GIVEN, "small"]}}
    spec = plugins.validate(SweepSpec, table, "test")
    with pytest.raises(BadInput, match="cache 'small' of the sweep is derived from .*in parts"):
        prepare(spec, open_cache(str(parted), chosen), tmp_path / "none")


def test_a_training_follows_no_parts_that_are_not_done(built, copy, tmp_path):
    chosen = select(built, tmp_path / "chosen", clips=["*v3*"])
    part = copy.part(1)
    (store,) = (store for store, videos in part.plan.items() if "b/v3.mp4" in videos)
    forget_store(part, store)
    cache = open_cache(str(copy), chosen)
    with pytest.raises(BadInput, match="in parts, which no training follows, and 1 of the 1 sto"):
        train(recipe(), cache, tmp_path / "run", chosen, follow=True)


def test_what_is_not_chosen_is_not_held(built, parted, tmp_path):
    chosen = select(built, tmp_path / "chosen", clips=["*v3*"])
    cache = open_cache(str(parted), chosen)
    assert {video for videos in cache.plan.values() for video in videos} == {"b/v3.mp4"}
    assert {store // STORES_OF_A_PART for store in cache.plan} == {1}
    (receipt,) = cache.receipts.values()
    assert receipt.videos.keys() == receipt.content.keys() == {"b/v3.mp4"}


def test_plans_are_read_until_all_that_is_wanted_was_found(built, parts, copy, tmp_path):
    """First those of the parts that the manifest says that it was made from, then those with its labels."""
    of_last = select(parts.part(2), tmp_path / "last", first=1)
    with_label = select(built, tmp_path / "label", labels=["a"])
    wanted = {clip.video_id for clip in with_label.clips}
    numbers = {n for n in range(3) if wanted & {clip.video_id for clip in parts.part(n).clips}}
    assert 2 not in numbers
    for chosen, holding in ((of_last, {2}), (with_label, numbers)):
        for number in {0, 1, 2} - holding:
            (Path(str(copy)) / part_name(number) / "cache.json").rename(tmp_path / "aside")
            (Path(str(copy)) / part_name(number) / "cache.json").write_bytes(b"damaged")
            cache = open_cache(str(copy), chosen)
            assert {store // STORES_OF_A_PART for store in cache.plan} == holding
            (tmp_path / "aside").rename(Path(str(copy)) / part_name(number) / "cache.json")


def test_a_worker_reads_no_other_part_than_it_is_at(parts, tmp_path):
    """Worker 1 begins at part 2 of three, and comes to part 0 next."""
    data, spec = tmp_path / "data", address_spec()
    shutil.copytree(parts.folder, data)
    for number in (0, 1):
        shutil.rmtree(data / part_name(number))
    manifest, encoder = PartedManifest.load(data), make_encoder(spec, CPU)
    cache = open_parts(spec, manifest, tmp_path / "out", encoder, CPU)
    work = PartsExtraction(cache, manifest, spec, encoder, HERE)
    with pytest.raises(BadInput, match=r"00000 is missing, which .*parts\.json lists"):
        work.fill(1)
    assert cache.finished() == cache.begun() == [2]
    assert list(unfinished(cache, 1)) == [0, 1]


def test_a_lost_store_is_made_again_and_nothing_else(parts, copy):
    part = copy.part(1)
    before, store = digest(Path(str(copy))), min(part.plan)
    forget_store(part, store)
    assert copy.finished() == [0, 2]
    assert parted_status(copy).parts.model_dump() == {"planned": 3, "begun": 3, "done": 2}
    for kept in (0, 2):  # nobody looks at these
        shutil.rmtree(Path(str(copy)) / part_name(kept))
    extract_parts(address_spec(), parts, Path(str(copy)).parent, HERE)
    after = digest(Path(str(copy)))
    assert after.keys() == {name for name in before if name[:6] not in ("00000/", "00002/")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {f"00001/{receipt_name(store)}", mark_file("00001")}  # which tell of time


def test_a_worker_leaves_what_others_are_at_and_comes_back_for_it(parts, copy):
    part = copy.part(1)
    store = min(part.plan)
    forget_store(part, store)
    for number in (0, 2):
        copy.storage.remove(mark_file(part_name(number)))
    seen: list[list[int]] = []
    with Leases(part.storage) as other:
        assert other.claim(lease_of(store))
        worker = threading.Thread(
            target=extract_parts, args=(address_spec(), parts, Path(str(copy)).parent, HERE)
        )
        worker.start()
        while len(copy.finished()) < 2:
            worker.join(0.05)
        seen.append(copy.finished())
        assert worker.is_alive()
    worker.join()
    assert seen == [[0, 2]] and copy.finished() == [0, 1, 2]


def test_failed_videos_are_counted_and_tried_again(built, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(built.root, videos)
    parts = write_parts([Manifest.load(built.folder, videos)], tmp_path / "data", 2)
    whole = (videos / "b/v4.mp4").read_bytes()
    (videos / "b/v4.mp4").write_bytes(b"no video")
    cache = extract_parts(address_spec(), parts, tmp_path / "out", HERE)
    state = parted_status(cache)
    assert (state.stored, state.failed, state.failed_in) == (5, 1, ["00002"])
    assert sum(counts.covered for counts in state.splits.values()) == 5
    (videos / "b/v4.mp4").write_bytes(whole)
    assert parted_status(extract_parts(address_spec(), parts, tmp_path / "out", HERE)) == state
    retry = replace(HERE, retry_failed=True)
    again = extract_parts(address_spec(), parts, tmp_path / "out", retry)
    assert (parted_status(again).stored, parted_status(again).failed) == (6, 0)
    assert parted_status(again).frames == sum(LENGTHS.values())


def test_other_videos_get_a_cache_of_another_name(material, parts, tmp_path):
    extract(material.spec, material.manifest, tmp_path, CPU)
    names = [
        extract_parts(address_spec(), each, tmp_path, HERE).storage.name for each in (parts, parts)
    ]
    assert names[0] == names[1] == f"address-data-{material.cache.fingerprint}"
    with pytest.raises(BadInput, match="codec 'pca' is fitted to one manifest"):
        extract_parts(address_spec(codec={"name": "pca", "components": 4}), parts, tmp_path, HERE)


def test_a_whole_manifest_goes_beside_a_cache_in_parts(material, built, parts, copy):
    """One of its parts by itself, and all of its videos."""
    before, out = digest(Path(str(copy))), Path(str(copy)).parent
    for manifest in (parts.part(1), built):
        cache = extract(material.spec, manifest, out, CPU)
        assert cache.name == f"address-{manifest.folder.name}-{material.cache.fingerprint}"
    assert digest(Path(str(copy))) == before


def test_a_damaged_index_is_no_free_place(parts, copy):
    (Path(str(copy)) / "parts.json").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"parts\.json is damaged"):
        extract_parts(address_spec(), parts, Path(str(copy)).parent, HERE)
    assert [path.name for path in Path(str(copy)).parent.glob("address-*")] == [copy.storage.name]


def test_memory_of_what_looks_at_all_is_that_of_one_part(tmp_path, monkeypatch):
    """Bytes that Python holds at the peak, with forty parts and with two hundred. The index of them
    grows, and some is garbage that has not been collected yet; the whole would be near five."""
    monkeypatch.setattr(summary, "READERS", 1)  # by chance, 16 are there at once or a few
    peaks: dict[str, list[int]] = {}

    def traced(call, _):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    monkeypatch.setattr(startup_parts, "peak_bytes", traced)
    for clips in (4000, 20000):
        for start in startup_parts.start_in_parts(clips, 100):
            assert (start.clips, start.parts) == (clips, clips // 100)
            peaks.setdefault(start.what, []).append(start.megabytes)
    assert peaks.keys() == {
        "a worker begins",
        "a worker resumes",
        "status",
        "a share is selected",
        "a training opens its stores",
    }
    grown = {what: many / few for what, (few, many) in peaks.items()}
    assert {what: ratio for what, ratio in grown.items() if ratio > 2.5} == {}


@pytest.mark.parametrize(("clips", "parts"), [(10, 1), (250, 3)])
def test_starts_are_measured_where_a_part_has_a_single_store(clips, parts):
    starts = startup_parts.start_in_parts(clips, 100)
    assert {(start.clips, start.parts) for start in starts} == {(clips, parts)}
    assert [start.what for start in starts][:2] == ["a worker begins", "a worker resumes"]
    assert len(starts) == 5 and all(start.seconds > 0 for start in starts)


def test_commands_take_parts_or_say_in_one_line_what_to_do(place, tmp_path):
    data, caches = tmp_path / "parts", tmp_path / "caches"
    out = fine("manifest", "parts", place.data, "--rows", "2", "--out", data).out
    assert out.startswith(f"{data}: 6 clips of 6 videos") and "in 3 parts" in out
    facts = json.loads(call("extract", place.spec, data, "--out", caches, "--json").out)
    assert facts["parts"] == {"planned": 3, "begun": 3, "done": 3}
    (cache,) = caches.iterdir()
    assert fine("status", cache, "--json").json == facts
    assert call("status", cache).out.startswith(f"{cache}: 3 of 3 parts, 0 begun, ")
    fine("verify", cache / "00001")
    assert fine("verify", cache).out == f"{cache}: 3 parts, 3 stores, every checksum holds\n"
    call("manifest", "select", data, "--share", "1", "--out", tmp_path / "all")
    of_all = fine("status", cache, "--manifest", tmp_path / "all", "--json").json
    assert of_all["videos"] == {"planned": 6, "stored": 6, "failed": 0}
    run = tmp_path / "run"
    assert (
        call("train", place.recipe, cache, "--manifest", tmp_path / "all", "--out", run).code == 0
    )
    assert call("evaluate", run).code == 0
    whole, of_one = "stillframe manifest select", f"name one of them, as {cache}/00000"
    for command, part in (
        (("train", place.recipe, cache, "--out", tmp_path / "none"), whole),
        (("manifest", "split", data, "--fold", "1/2", "--out", tmp_path / "none"), whole),
        (("plan", place.spec, data, place.recipe), whole),
        (("extract", place.spec, data, "--dry-run"), f"take one of its 3 parts, as {data}/00000"),
        (("extract", place.spec, place.spec, data), "extract one spec after the other"),
        (("status", data), "name what was extracted from it"),
        (("verify", data), "name what was extracted from it"),
        (("verify", cache, "--repair"), f"stillframe verify {cache}/00000 --repair"),
        (("derive", cache, "--set", "codec.name=int8"), of_one),
        (("export-features", cache, "--out", tmp_path / "none"), of_one),
    ):
        assert_refused(call(*command), "in parts", part)


def test_workers_of_an_engine_fill_parts_together(parts, parted, tmp_path):
    plugin = plugins.load("engine", "local")
    engine = plugin(plugins.settings("engine", "local", {}, "test"), 2)
    cache = extract_parts(
        address_spec(),
        parts,
        tmp_path / "out",
        replace(HERE, engine=engine, logs=tmp_path / "logs"),
    )
    for number in range(3):
        assert stores(cache.part(number)) == stores(parted.part(number))
