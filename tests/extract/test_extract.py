"""Stage one: every cached token is the token of its own frame, stores are the same bytes however they came about, failures are listed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from support.commands import SPEC, fine
from support.material import FPS, LENGTHS, address_spec, address_video, write_video
from support.media import encode

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import check_store, require_valid
from pipeline.cache.layout import receipt_name, store_name
from pipeline.cache.status import status
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput, StillframeError
from pipeline.extract import extract, store_builder
from pipeline.extract.derive import derive
from pipeline.extract.execution import Execution
from pipeline.extract.upkeep.repair import find_derivation_source
from pipeline.models.encoders import address
from pipeline.models.encoders.contract import token_shape
from pipeline.video.isolated.sandbox import Decoder


def digest(cache: Cache) -> dict[str, str]:
    """Every file of every store -> sha256."""
    files = sorted((cache.path / "stores").rglob("*"))
    return {
        str(f.relative_to(cache.path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if f.is_file()
    }


def test_every_row_of_every_array_is_the_right_frame(material):
    cache = material.cache
    assert len(cache.plan) >= 3 and not cache.missing_stores() and not cache.failures
    assert cache.locations.keys() == LENGTHS.keys()
    for source, frames in LENGTHS.items():
        place = cache.locations[source]
        assert place.stop - place.start == frames
        group = zarr.open_group((cache.path / store_name(place.store)), mode="r")
        np.testing.assert_allclose(
            group["time_s"][place.start : place.stop], np.arange(frames) / FPS, atol=1e-4
        )
        for name, layer, tokens in (("special", 5, 2), ("layer_2", 2, 9), ("layer_5", 5, 9)):
            found = address.read(np.asarray(group[name][place.start : place.stop]))
            assert (found.video == int(source[3])).all()
            np.testing.assert_array_equal(
                found.frame, np.broadcast_to(np.arange(frames)[:, None], (frames, tokens))
            )
            np.testing.assert_array_equal(
                found.token, np.broadcast_to(np.arange(tokens), (frames, tokens))
            )
            assert (found.layer == layer).all() and (found.special == (name == "special")).all()


def test_a_store_names_its_videos_and_their_rows(material):
    cache = material.cache
    for store, videos in cache.plan.items():
        group = zarr.open_group((cache.path / store_name(store)), mode="r")
        assert (
            group.attrs["videos"] == list(videos)
            and group.attrs["fingerprint"] == cache.fingerprint
        )
        rows = zip(group["video_start"][:].tolist(), group["video_stop"][:].tolist(), strict=True)
        assert dict(zip(videos, rows, strict=True)) == cache.receipts[store].videos
        assert (
            cache.receipts[store].frames
            == group["time_s"].shape[0]
            == sum(LENGTHS[video] for video in videos)
        )


def test_stores_have_several_shards_and_chunks(material):
    group = zarr.open_group((material.cache.path / store_name(0)), mode="r")
    assert group["layer_5"].shape[0] > group["layer_5"].shards[0] > group["layer_5"].chunks[0] == 4


@pytest.mark.parametrize("decoders", [1, 3])
def test_extracting_again_elsewhere_gives_the_same_bytes(material, tmp_path, decoders):
    again = extract.extract(material.spec, material.manifest, tmp_path, decoders=decoders)
    assert again.name == material.cache.name
    assert digest(again) == digest(material.cache)


def test_a_finished_cache_is_left_alone(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / material.cache.name / "stores").rglob("*")
    }
    extract.extract(material.spec, material.manifest, tmp_path)
    assert {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / material.cache.name / "stores").rglob("*")
    } == before


@pytest.mark.parametrize("left", ["no receipt", "partial folder", "truncated without receipt"])
def test_what_a_kill_leaves_is_redone_to_the_same_bytes(material, tmp_path, left):
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    cache = Cache(tmp_path / material.cache.name)
    (cache.path / receipt_name(1)).unlink()
    store = cache.path / store_name(1)
    if left == "partial folder":
        store.rename(store.with_name(store.name + ".partial"))
    if left == "truncated without receipt":
        (store / "layer_5/c/0/0/0").write_bytes(b"")
    again = extract.extract(material.spec, material.manifest, tmp_path)
    assert digest(again) == digest(material.cache)
    assert not list((again.path / "stores").glob("*.partial"))


@pytest.mark.slow
def test_sigkill_at_any_moment_then_rerun_gives_the_same_bytes(material, tmp_path):
    spec = tmp_path / "address.toml"
    spec.write_text(SPEC)
    arguments = ["extract", spec, material.manifest.folder, "--out", tmp_path]
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    kills = 0
    for stores_wanted in (0, 1, 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            asides = len(list(tmp_path.glob("address-*/stores/*")))
            if asides > stores_wanted:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.002)
        process.wait()
    assert kills >= 1
    fine(*arguments)
    (path,) = tmp_path.glob("address-*")
    assert path.name == material.cache.name
    assert digest(Cache(path)) == digest(material.cache)


@pytest.fixture
def broken(tmp_path) -> Manifest:
    """Five videos, of which one is cut short, one is no video any more and one is gone since the manifest was built."""
    root = tmp_path / "videos"
    for video in range(5):
        address_video(root / "x" / f"v{video}.mp4", video, 24)
    built = manifest.build("folder", root, tmp_path / "data", {"val_fraction": 0.4})
    whole = (root / "x/v1.mp4").read_bytes()
    middle = len(whole) // 2
    (root / "x/v1.mp4").write_bytes(
        whole[:middle] + bytes(len(whole) // 4) + whole[middle + len(whole) // 4 :]
    )
    (root / "x/v2.mp4").write_bytes(b"not a video at all")
    (root / "x/v3.mp4").unlink()
    return built


def test_videos_that_cannot_be_decoded_are_listed_and_the_rest_is_stored(broken, tmp_path):
    cache = extract.extract(address_spec(), broken, tmp_path / "caches")
    assert {"x/v2.mp4", "x/v3.mp4"} <= cache.failures.keys() <= {"x/v1.mp4", "x/v2.mp4", "x/v3.mp4"}
    assert "does not exist" in cache.failures["x/v3.mp4"].reason
    assert cache.failures["x/v2.mp4"].frames_stored == 0
    assert {"x/v0.mp4", "x/v4.mp4"} <= cache.locations.keys()
    for video_id, place in cache.locations.items():
        found = address.read(
            cache.reader(place.store).read_general("layer_5", np.arange(place.start, place.stop))
        )
        assert set(np.unique(found.video)) <= {int(video_id[3]), address.UNREADABLE}
    facts = status(cache)
    assert facts.videos.planned == 5 and facts.videos.failed == len(cache.failures)
    assert extract.extract(address_spec(), broken, tmp_path / "caches").failures == cache.failures


def test_failed_videos_are_tried_again_when_asked(broken, tmp_path):
    cache = extract.extract(address_spec(), broken, tmp_path / "caches")
    assert len(cache.failures) >= 2
    for video in (1, 2, 3):
        address_video(broken.root / f"x/v{video}.mp4", video, 24)
    assert extract.extract(address_spec(), broken, tmp_path / "caches").failures == cache.failures
    again = Execution(retry_failed=True)
    (mended,) = extract.extract_all([address_spec()], broken, tmp_path / "caches", again)
    assert not mended.failures and status(mended).frames == 5 * 24


def test_videos_that_were_moved_away_are_not_held_against_them(material, tmp_path):
    shutil.copytree(material.root, tmp_path / "videos")
    built = manifest.build("folder", tmp_path / "videos", tmp_path / "data", {"val_fraction": 0.3})
    (tmp_path / "videos").rename(tmp_path / "moved")
    with pytest.raises(BadInput, match=r"none of the 6 videos of .* is in .*videos"):
        extract.extract(material.spec, built, tmp_path)
    moved = Manifest.load(built.folder, tmp_path / "moved")
    assert digest(extract.extract(material.spec, moved, tmp_path)) == digest(material.cache)


def test_what_is_the_machines_fault_ends_the_run_and_is_no_failure_of_a_video(
    material, tmp_path, monkeypatch
):
    real = Decoder.decode

    def decode(self, path, *arguments):
        if path.name == "v3.mp4":
            raise OSError(5, "Input/output error")
        return real(self, path, *arguments)

    monkeypatch.setattr(Decoder, "decode", decode)
    with pytest.raises(StillframeError, match=r"cannot read .*b/v3.mp4: .*Input/output error"):
        extract.extract(material.spec, material.manifest, tmp_path)
    monkeypatch.undo()
    assert digest(extract.extract(material.spec, material.manifest, tmp_path)) == digest(
        material.cache
    )


def test_a_machine_that_starts_no_more_threads_ends_the_run(material, tmp_path, monkeypatch):
    """And nobody waits for the video that no thread decodes."""
    start = threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if thread.name.startswith("decode"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        extract.extract(material.spec, material.manifest, tmp_path)
    monkeypatch.undo()
    again = extract.extract(material.spec, material.manifest, tmp_path)
    assert digest(again) == digest(material.cache)


def test_tokens_that_a_codec_cannot_hold_are_named_by_place(material, tmp_path, monkeypatch):
    monkeypatch.setattr(
        address.Encoder,
        "_spell",
        lambda self, video, *rest: torch.full((len(video), rest[2], 8), 1e9),
    )
    with pytest.raises(
        StillframeError, match=r"array 'special' of store 0 \(videos a/v0.mp4 to .*\): .*float16"
    ):
        extract.extract(material.spec, material.manifest, tmp_path)


def test_a_manifest_that_changed_is_refused_and_nothing_is_lost(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    root = tmp_path / "videos"
    shutil.copytree(material.root, root)
    address_video(root / "a/v7.mp4", 7, 6)
    (root / "b/v4.mp4").unlink()
    other = manifest.build("folder", root, tmp_path / "data", {"val_fraction": 0.3})
    before = digest(material.cache)
    with pytest.raises(
        BadInput, match=r"changed after .* 1 video added, 1 removed, 5 kept, 6 clips now, 6 then"
    ):
        extract.extract(material.spec, other, tmp_path)
    assert digest(Cache(tmp_path / material.cache.name)) == before


def other_data(folder: Path, first: int, count: int = 3) -> Manifest:
    """A manifest `folder/mine` of videos that are called like those of every other call."""
    for number in range(count):
        address_video(folder / f"videos/a/v{number}.mp4", first + number, 3 + first + number)
    table = {"val_fraction": 0.4}
    return manifest.build("folder", folder / "videos", folder / "mine", table)


def test_data_sets_of_one_spec_share_a_folder(material, tmp_path):
    """The first to come has the name of the spec alone; the same command finds its own cache, also
    where the others are gone."""
    name, digits = material.cache.name.rsplit("-", 1)
    shutil.copytree(material.cache.path, tmp_path / material.cache.name)
    data = [other_data(tmp_path / "one", 1), other_data(tmp_path / "two", 8)]
    said: list[str] = []
    caches = [
        extract.extract_all([material.spec], each, tmp_path, Execution(say=said.append))[0]
        for each in data
    ]
    assert [cache.name for cache in caches] == [
        f"{name}-mine-{digits}",
        f"{name}-mine-{data[1].digest[:8]}-{digits}",
    ]
    assert {cache.fingerprint for cache in caches} == {digits}
    taken = f"{tmp_path / material.cache.name} is of other videos; these go to "
    assert said == [f"{taken}{cache}" for cache in caches]
    for cache, each in zip(caches, data, strict=True):
        alone = extract.extract(material.spec, each, tmp_path / f"alone-{cache.name}")
        assert digest(cache) == digest(alone)
    before = digest(caches[1])
    shutil.rmtree(tmp_path / material.cache.name)
    said.clear()
    again = extract.extract_all([material.spec], data[1], tmp_path, Execution(say=said.append))[0]
    assert (again.name, digest(again), said) == (caches[1].name, before, [])
    assert extract.extract(material.spec, material.manifest, tmp_path).name == material.cache.name
    # Derived caches, which know no videos either, go by the same rule.
    derived = [derive(each, ["codec.name=int8"], tmp_path / "int8") for each in caches]
    assert len({cache.name for cache in derived}) == 2
    assert derived[1].name.startswith(f"{name}-mine-{data[1].digest[:8]}-")
    assert [cache.manifest.digest for cache in derived] == [each.digest for each in data]
    assert [find_derivation_source(Cache(shutil.copytree(each.path, tmp_path / each.name))).name
            for each in derived] == [cache.name for cache in caches]  # fmt: skip


def test_one_data_set_in_another_state_is_no_other_data_set(material, tmp_path):
    """Videos that are there already are not encoded again unasked, whatever the folder is called."""
    one = other_data(tmp_path / "one", 1)
    extract.extract(material.spec, one, tmp_path / "caches")
    more = other_data(tmp_path / "one", 1, count=4)
    with pytest.raises(BadInput, match="1 video added, 0 removed, 3 kept") as caught:
        extract.extract(material.spec, more, tmp_path / "caches")
    assert caught.value.hint.startswith("extract it into another --out")
    table = {"val_fraction": 0.0}
    relabelled = manifest.build("folder", tmp_path / "one/videos", tmp_path / "other", table)
    (tmp_path / "one/videos/a/v3.mp4").unlink()
    part = manifest.build("folder", tmp_path / "one/videos", tmp_path / "part", table)
    assert len(relabelled.videos) == 4
    with pytest.raises(BadInput, match="0 videos added, 0 removed, 3 kept") as caught:
        extract.extract(material.spec, part, tmp_path / "caches")
    wanted = f"nothing is to be extracted: the commands that read the cache take --manifest {part.folder}"
    assert caught.value.hint == wanted
    assert len(list((tmp_path / "caches").iterdir())) == 1


def test_two_data_sets_that_begin_at_once_get_a_place_each(material, tmp_path):
    data = [other_data(tmp_path / "one", 1), other_data(tmp_path / "two", 8)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(extract.extract, material.spec, each, tmp_path / "caches")
            for each in data * 2
        ]
    caches = [job.result() for job in jobs]
    assert [cache.manifest.digest for cache in caches] == [each.digest for each in data * 2]
    assert [cache.name for cache in caches[:2]] == [cache.name for cache in caches[2:]]
    assert len({cache.name for cache in caches}) == 2
    for cache, each in zip(caches, data, strict=False):
        assert digest(cache) == digest(extract.extract(material.spec, each, tmp_path / cache.name))


def test_two_extractions_into_one_cache_share_the_work(material, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(extract.extract, material.spec, material.manifest, tmp_path)
            for _ in range(2)
        ]
    assert [digest(one.result()) for one in both] == [digest(material.cache)] * 2
    assert not any((tmp_path / material.cache.name / "leases").iterdir())


def test_a_full_disk_ends_in_one_sentence_and_a_rerun_goes_on(material, tmp_path, monkeypatch):
    real, calls = store_builder.StoreWriter.append, []

    def full(self, arrays):
        calls.append(1)
        if len(calls) == 12:
            raise OSError(28, "No space left on device", "layer_5/c/0")
        real(self, arrays)

    monkeypatch.setattr(store_builder.StoreWriter, "append", full)
    with pytest.raises(StillframeError, match="cannot write layer_5/c/0: No space left on device"):
        extract.extract(material.spec, material.manifest, tmp_path)
    monkeypatch.undo()
    done = len(list((tmp_path / material.cache.name / "receipts").glob("*.json")))
    assert 0 < done < len(material.cache.plan)
    assert digest(extract.extract(material.spec, material.manifest, tmp_path)) == digest(
        material.cache
    )


def test_cache_moves_and_still_reads(material, tmp_path):
    shutil.copytree(material.cache.path, tmp_path / "renamed")
    moved = Cache(tmp_path / "renamed")
    require_valid(moved)
    assert status(moved).splits == status(material.cache).splits
    assert not any(check_store(moved, store) for store in moved.plan)


def test_progress_adds_up(material, tmp_path):
    seen = []
    how = Execution(
        on_progress=lambda state: seen.append((state.frames, state.stores, state.videos))
    )
    extract.extract_all([material.spec], material.manifest, tmp_path, how)
    assert seen[-1] == (sum(LENGTHS.values()), len(material.cache.plan), len(LENGTHS))
    assert seen == sorted(seen)


def test_a_header_that_promises_too_much_does_not_set_the_pace(tmp_path):
    """A clock that jumps by a day within a second of video: neither the plan nor what is left to do
    are made of it, and when a video is done its own frames count."""
    folder = tmp_path / "videos" / "label"
    folder.mkdir(parents=True)
    levels = [np.full((64, 64, 3), 9 * k, np.uint8) for k in range(25)]
    for name, starts_s in (("a.ts", (0, 80_000)), ("b.ts", (80_000, 0)), ("c.ts", (0,))):
        parts = [
            encode(
                tmp_path / f"{start_s}.ts",
                levels,
                codec="mpeg2video",
                rate=25,
                container_options={"output_ts_offset": str(start_s)},
            ).read_bytes()
            for start_s in starts_s
        ]
        (folder / name).write_bytes(b"".join(parts))
    built = manifest.build("folder", folder.parent, tmp_path / "data", {})
    seen = []
    how = Execution(on_progress=lambda state: seen.append((state.frames, state.frames_planned)))
    spec = address_spec(frames={"size_px": 64, "fps": "all"})
    (cache,) = extract.extract_all([spec], built, tmp_path, how)
    assert sum(sum(videos.values()) for videos in cache.plan.values()) <= 4 * 125
    stored = sum(place.stop - place.start for place in cache.locations.values())
    assert 120 <= stored <= 125
    assert seen[-1] == (stored, stored)


def test_fps_keeps_the_frame_shown_at_each_tick(videos, built, tmp_path):
    cache = extract.extract(address_spec(frames={"size_px": 64, "fps": 4}), built, tmp_path)
    place = cache.locations["b/v5.mp4"]
    found = address.read(
        cache.reader(place.store).read_general("layer_5", np.arange(place.start, place.stop))
    )
    ticks = np.arange(0, 40 / FPS, 1 / 4)
    np.testing.assert_array_equal(found.frame[:, 0], np.floor(ticks * FPS + 1e-6))


def test_preview_tells_what_will_be(material):
    plan = extract.preview(material.spec, material.manifest)
    assert plan.videos == len(LENGTHS) and plan.frames == sum(LENGTHS.values())
    assert plan.stores == len(material.cache.plan)
    assert plan.bytes_per_frame == (2 * 9 + 2) * 8 * 2


def test_a_plan_needs_no_video_where_the_manifest_knows_their_headers(built, tmp_path, monkeypatch):
    spec = address_spec(frames={"size_px": 64, "fps": 4})
    shape = token_shape(spec)
    plan = extract.make_plan(spec, shape, built)
    folder = tmp_path / "older"
    shutil.copytree(built.folder, folder)
    origin = json.loads((folder / "dataset.json").read_text())
    del origin["videos_sha256"]
    (folder / "dataset.json").write_text(json.dumps(origin))
    assert extract.make_plan(spec, shape, Manifest.load(folder, built.root)) == plan
    monkeypatch.setattr(extract.probe, "probe", None)
    assert extract.make_plan(spec, shape, built) == plan


def test_affine_maps_the_source_to_the_square(tmp_path):
    frames = [np.zeros((64, 96, 3), np.uint8)] * 3
    write_video(tmp_path / "videos/x/wide.mp4", frames)
    built = manifest.build("folder", tmp_path / "videos", tmp_path / "data", {"val_fraction": 0})
    cache = extract.extract(address_spec(), built, tmp_path / "caches")
    affine = cache.small_array(0, "affine")
    np.testing.assert_allclose(
        affine, np.broadcast_to([[1.5, 0, -0.25], [0, 1, 0]], (3, 2, 3)), atol=1e-9
    )


def test_receipt_is_plain_json_with_checksums(material):
    receipt = json.loads((material.cache.path / receipt_name(0)).read_text())
    assert receipt["fingerprint"] == material.cache.fingerprint
    assert set(receipt["seconds"]) == {"decode", "encode", "write"}
    for relative, (size, sha) in receipt["files"].items():
        data = ((material.cache.path / store_name(0)) / relative).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha)


def test_siblings_say_which_field_differs(material, tmp_path):
    from pipeline.extract.upkeep.diff import siblings

    first = extract.extract(material.spec, material.manifest, tmp_path)
    second = extract.extract(
        address_spec(frames={"size_px": 64, "fps": 5}), material.manifest, tmp_path
    )
    assert siblings(second) == {first.name: ['spec.frames.fps: 5.0 / "all"']}


def test_paths_are_not_part_of_the_fingerprint(material, tmp_path):
    shutil.copytree(material.root, tmp_path / "elsewhere")
    built = manifest.build(
        "folder", tmp_path / "elsewhere", tmp_path / "data", {"val_fraction": 0.3}
    )
    assert Path(extract.extract(material.spec, built, tmp_path).path).name == material.cache.name
