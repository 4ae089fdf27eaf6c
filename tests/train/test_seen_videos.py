"""Pre-training never sees a held-out video: what a run writes down of its videos, and what is refused because of it."""

from __future__ import annotations

import base64
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.commands import assert_refused, call
from support.material import LENGTHS
from support.training import recipe

from pipeline.config.json_files import sealed_json
from pipeline.datasets.manifest import edit
from pipeline.datasets.manifest.join import join
from pipeline.datasets.manifest.manifest import Manifest, build
from pipeline.datasets.manifest.video_keys import video_keys
from pipeline.errors import BadInput
from pipeline.records import Video
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.run import Run
from pipeline.train.weights.seen_videos import SeenVideos
from pipeline.video.probe import Probe

STEPS = {"steps": 1, "checkpoint_every": 1}


def wanted(source: Run | None = None, **changes):
    init = {} if source is None else {"init": {"run": str(source.path)}}
    return recipe(training=STEPS, **init, **changes)


@pytest.fixture(scope="module")
def turned(material, tmp_path_factory) -> Manifest:
    """The manifest of the material, with one of its training videos held out, too."""
    folder = tmp_path_factory.mktemp("turned")
    moved = next(clip for clip in material.manifest.clips if clip.split == "train")
    lines = [
        f"{clip.clip_id},{clip.label},{'val' if clip == moved else clip.split}"
        for clip in material.manifest.clips
    ]
    (folder / "splits.csv").write_text("\n".join(["clip_id,label,split", *lines]))
    return edit.relabel(material.manifest, folder / "splits.csv", folder / "turned")


@pytest.fixture(scope="module")
def source(material, tmp_path_factory) -> Run:
    return train(wanted(), material.cache, tmp_path_factory.mktemp("source") / "run")


def held_out(manifest: Manifest) -> list[str]:
    return [clip.video_id for clip in manifest.clips if clip.split != "train"]


def refusal(source: Run, video_id: str, manifest: Manifest) -> str:
    return (
        rf"run {source.path}, or one that it began with, was trained on 1 video of "
        rf"{len(held_out(manifest))} that .* holds out, the first is {video_id} \(split 'val'\)"
    )


def test_a_run_writes_down_the_videos_that_it_was_trained_on(source, material):
    seen = SeenVideos.read(source)
    used = {clip.video_id for clip in material.manifest.clips if clip.split == "train"}
    assert seen.videos == len(used) and seen.unknown == () and len(seen.array) == 2 * len(used)
    known = np.isin(material.manifest.video_keys, seen.array).all(axis=1)
    for video, is_known in zip(material.manifest.videos, known, strict=True):
        assert is_known == (video.video_id in used)
    share = wanted(windows={"train_fraction": 0.5})
    part = SeenVideos.read(train(share, material.cache, source.path.parent / "share"))
    assert part.videos == 2 < seen.videos and set(part.array) < set(seen.array)


def test_a_video_that_was_trained_on_is_not_held_out(source, material, turned, tmp_path):
    (video_id,) = set(held_out(turned)) - set(held_out(material.manifest))
    text = refusal(source, video_id, turned)
    with pytest.raises(BadInput, match=text):
        train(wanted(source), material.cache, tmp_path / "run", turned)
    assert not (tmp_path / "run").exists()
    few = Run(source.path.parent / "share")  # has not seen it, or has: its own list says
    seen = np.isin(turned.video_keys, SeenVideos.read(few).array).any(axis=1)
    (place,) = [at for at, video in enumerate(turned.videos) if video.video_id == video_id]
    if not seen[place]:
        train(wanted(few), material.cache, tmp_path / "run", turned)


def test_the_chain_of_runs_is_known_when_they_are_gone(source, material, turned, tmp_path):
    (video_id,) = set(held_out(turned)) - set(held_out(material.manifest))
    others = edit.select(
        material.manifest,
        tmp_path / "others",
        clips=[clip.clip_id for clip in material.manifest.clips if clip.video_id != video_id],
    )
    first = Run(shutil.copytree(source.path, tmp_path / "first"))
    second = train(wanted(first), material.cache, tmp_path / "second", others)
    shutil.rmtree(first.path)
    with pytest.raises(BadInput, match=refusal(second, video_id, turned)):
        train(wanted(second), material.cache, tmp_path / "third", turned)


def test_a_run_that_does_not_know_its_videos_is_said_not_refused(
    source, material, turned, tmp_path
):
    old = Run(shutil.copytree(source.path, tmp_path / "old"))
    header = old.header.model_copy(update={"videos_sha256": None})
    (old.path / "run.json").write_bytes(sealed_json(header))
    said = []
    second = train(wanted(old), material.cache, tmp_path / "second", turned, say=said.append)
    train(wanted(second), material.cache, tmp_path / "third", turned, say=said.append)
    assert len(said) == 2 and said[0] == said[1]
    assert said[0].startswith(f"{old.path}: it is not known which videos")


def test_scores_on_videos_that_were_trained_on_are_said_and_counted(
    source, material, turned, tmp_path
):
    own = {clip.video_id for clip in material.manifest.clips if clip.split == "train"}
    on_train = evaluate(source, material.cache, "train")
    assert on_train.videos_seen == on_train.videos == len(own)
    assert evaluate(source, material.cache).videos_seen == 0
    (video_id,) = set(held_out(turned)) - set(held_out(material.manifest))
    others = edit.select(
        material.manifest,
        tmp_path / "others",
        clips=[clip.clip_id for clip in material.manifest.clips if clip.video_id != video_id],
    )
    second = train(wanted(source), material.cache, tmp_path / "second", others)
    count = len(held_out(turned))
    for run, by in (
        (source, f"by {source.path}:"),
        (second, f"by {second.path}, or by {source.path}, with which it began:"),
    ):
        for more in ((), ("--json",)):
            done = call("evaluate", run.path, "--manifest", turned.folder, *more)
            line = f"1 of {count} videos were seen in training {by} these scores do not tell"
            assert done.code == 0 and line in " ".join(done.err.split())
        assert json.loads(done.out)["videos_seen"] == 1 < count
    quiet = call("evaluate", source.path)
    assert quiet.code == 0 and "seen in training" not in quiet.err
    lost = Run(shutil.copytree(source.path, tmp_path / "lost"))
    (lost.path / "videos.json").unlink()
    assert evaluate(lost, material.cache, "train").videos_seen is None


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda file: file.unlink(), "videos.json cannot be read: No such file"),
        (
            lambda file: file.write_text(file.read_text() + " "),
            "videos.json is damaged: its content",
        ),
    ],
)
def test_a_damaged_list_is_refused(source, material, tmp_path, damage, text):
    forged = Run(shutil.copytree(source.path, tmp_path / "forged"))
    damage(forged.path / "videos.json")
    with pytest.raises(BadInput, match=text):
        train(wanted(forged), material.cache, tmp_path / "run")


@pytest.mark.parametrize("keys", ["AAAA", "not base64!", 5])
def test_keys_are_whole(keys, tmp_path):
    with pytest.raises(ValueError, match="keys"):
        SeenVideos(videos=1, keys=keys)


def shared(one: Manifest, other: Manifest) -> set[str]:
    """ids, in the second, of videos that are in both."""
    same = np.isin(other.video_keys, one.video_keys).any(axis=1)
    return {video.video_id for video, known in zip(other.videos, same, strict=True) if known}


def test_a_video_is_the_same_in_manifests_that_were_made_apart(videos, tmp_path):
    whole = build("folder", videos, tmp_path / "whole", {})
    everything = {video.video_id for video in whole.videos}
    assert len(everything) == len(LENGTHS)
    below = build("playback", videos / "a", tmp_path / "below", {"min_fps": 9})
    assert shared(whole, below) == {video.video_id for video in below.videos}  # by place
    moved = build("folder", shutil.copytree(videos, tmp_path / "moved"), tmp_path / "of_moved", {})
    assert shared(whole, moved) == everything  # by name
    played = build("playback", videos, tmp_path / "played", {"min_fps": 9})
    assert shared(whole, played) == {video.video_id for video in played.videos}
    joined = join([below, moved], tmp_path / "joined", labels=False)
    assert shared(joined, whole) == everything
    relabelled = edit.select(whole, tmp_path / "selected", labels=["a"])
    assert len(shared(whole, relabelled)) == 3


def test_other_videos_of_one_name_are_not_the_same():
    facts = Probe(64, 48, 25.0, 0.0, 4.0, 100, "h264")
    video = Video("a/0001", "a/0001.mp4")
    ours = video_keys([video], {"a/0001": facts}, Path("/data/one"), None)
    for other, root, seed in (
        (facts._replace(frames_from_header=101), Path("/data/two"), None),
        (facts._replace(width=65), Path("/data/two"), None),
        (facts, Path("/data/two"), 1),
    ):
        assert not np.isin(video_keys([video], {"a/0001": other}, root, seed), ours).any()
    faster = facts._replace(fps=24.99, duration_s=4.002)  # as another version of a library reads it
    same = video_keys([video], {"a/0001": faster}, Path("/data/two"), None)
    assert np.isin(same, ours).tolist() == [[True, False]]


def test_worlds_of_other_seeds_are_other_videos(tmp_path):
    worlds = [
        build(
            "world",
            None,
            tmp_path / name,
            {"clips_per_class": 1, "frames": 2, "size_px": 32} | more,
        )
        for name, more in (("one", {}), ("more", {"clips_per_class": 2}), ("other", {"seed": 1}))
    ]
    one, more, other = worlds
    assert len(shared(one, more)) == 8 and shared(one, other) == set()


def test_many_videos_are_little(material):
    videos = [Video(f"label {n % 100}/video number {n}", f"v/{n}.mp4") for n in range(50_000)]
    begin = time.process_time()
    keys = video_keys(videos, {}, material.root, None)
    assert time.process_time() - begin < 3
    text = base64.b64encode(np.unique(keys).tobytes())
    assert len(np.unique(keys)) == 100_000 and len(text) < 1.1e6


def test_the_command_line_refuses_in_one_line(source, material, turned, tmp_path):
    file = tmp_path / "wanted.json"
    file.write_text(json.dumps({"recipe": wanted().canonical()}))
    done = call(
        "train",
        file,
        material.cache.path,
        "--out",
        tmp_path / "run",
        "--init",
        source.path,
        "--manifest",
        turned.folder,
    )
    assert_refused(done, "was trained on 1 video", "stillframe manifest split")
    assert replace(material.manifest, root=tmp_path).video_keys.shape == (6, 2)
