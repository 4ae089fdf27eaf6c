"""Training while the cache is filled: what is drawn when, what is waited for, what a stop and a new start change (nothing)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from typing import Self

import numpy as np
import pytest
from support.commands import RECIPE, SPEC, call, fine
from support.material import address_spec, address_video
from support.training import Stop, assert_same, final, recipe, stop_at

from pipeline.cache.cache import Cache
from pipeline.cache.layout import RECEIPTS, receipt_name
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import extract
from pipeline.extract.worker import all_over
from pipeline.train.follow import arrivals
from pipeline.train.follow.arrivals import FOLLOW_FILE, Rounds
from pipeline.train.follow.pace import BEFORE_WHOLE, Pace, allowed_samples
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics
from pipeline.train.windows.windows import Windows

LABELS, VIDEOS = ("a", "b", "c"), 8
"""Videos of each label."""
STEPS = 24


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for number, label in enumerate(LABELS):
        for video in range(VIDEOS):
            place = VIDEOS * number + video
            address_video(root / label / f"v{place:02}.mp4", place, 6 + place % 5)
    folder = tmp_path_factory.mktemp("manifest")
    return manifest.build("folder", root, folder, {"val_fraction": 0.25})


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    store = {"chunk_frames": 4, "shard_mb": 0.0012, "store_mb": 0.003, "batch_frames": 7}
    cache = extract.extract(address_spec(store=store), clips, tmp_path_factory.mktemp("caches"))
    assert len(cache.plan) >= 8
    return cache


class Filling:
    """A copy of a cache whose stores come one after the other, in the order of extraction."""

    def __init__(self, whole: Cache, folder, there: int) -> None:
        self.path, self.aside = folder / whole.name, folder / "aside"
        shutil.copytree(whole.path, self.path)
        (self.path / RECEIPTS).rename(self.aside)
        (self.path / RECEIPTS).mkdir()
        self.left = [list(whole.plan)[number] for number in all_over(len(whole.plan))]
        self.come(there)

    def come(self, stores: int) -> None:
        for store in self.left[:stores]:
            name = receipt_name(store)
            (self.aside / name.removeprefix(f"{RECEIPTS}/")).rename(self.path / name)
        self.left = self.left[stores:]

    def __enter__(self) -> Self:
        """One more store comes whenever training waits."""
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(arrivals.time, "sleep", lambda _: self.come(1))
        return self

    def __exit__(self, *_) -> None:
        self._patch.undo()

    @property
    def cache(self) -> Cache:
        return Cache(self.path)


def followed(**changes):
    training = {"steps": STEPS, "evaluate_every": 4, "checkpoint_every": 5}
    return recipe(training=training | changes.pop("training", {}), **changes)


@pytest.fixture
def reads(monkeypatch):
    """Every window that is read for training: sample number -> (clip_id, position)."""
    found = {}
    read = Windows.read

    def noted(self, refs):
        for ref in refs:
            if ref.number is not None:
                found[ref.number] = (self.clip(ref.clip).clip_id, ref.position, self.locate(ref))
        return read(self, refs)

    monkeypatch.setattr(Windows, "read", noted)
    return found


def test_a_training_draws_what_has_come_and_ends_on_all(whole, tmp_path, reads):
    said = []
    with Filling(whole, tmp_path, 3) as filling:
        run = train(followed(), filling.cache, tmp_path / "run", say=said.append, follow=True)
    record = Rounds.read(run.path)
    rounds = record.rounds
    assert sum(each.steps for each in rounds) == STEPS
    assert sorted(store for each in rounds for store in each.stores) == sorted(whole.plan)
    assert rounds[0].windows < rounds[0].of == 18 == rounds[-1].windows
    store_of = {video: store for store, videos in whole.plan.items() for video in videos}
    come = set()
    for each in rounds:
        come |= {*each.stores}
        if each.windows < each.of:
            assert each.stop * 4 <= allowed_samples(STEPS * 4, each.windows, each.of)
        for number in range(4 * each.step, 4 * each.stop):
            assert store_of[reads[number][0]] in come
    counts = Counter(clip_id for clip_id, *_ in reads.values())
    # 96 samples of 18 clips: 5.3 each
    assert len(counts) == 18 and max(counts.values()) == 6 and min(counts.values()) >= 4
    lines = read_metrics(run.path)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    evaluated = {line["step"]: line.get("val_share", 1.0) for line in lines if "val" in line}
    assert evaluated[STEPS] == 1.0 and min(evaluated.values()) < 1
    assert sorted(evaluated.values()) == list(evaluated.values())
    best = run.checkpoint("best")
    assert evaluated[best.step] == 1.0
    assert any("step 5: " in text and "of the windows are there" in text for text in said)
    assert "each window was drawn" in said[-1] and "whole from step" in said[-1]


def test_a_stopped_training_goes_on_with_what_it_would_have_drawn(whole, tmp_path):
    with Filling(whole, tmp_path, 3) as filling, pytest.raises(Stop):
        train(followed(), filling.cache, tmp_path / "run", on_progress=stop_at(13), follow=True)
    filling.come(len(filling.left))
    # It was begun so, and goes on so without being asked.
    run = train(followed(), filling.cache, tmp_path / "run")
    # The same rounds over the whole cache, without a stop.
    (tmp_path / "again").mkdir()
    shutil.copy(run.path / FOLLOW_FILE, tmp_path / "again")
    again = train(followed(), whole, tmp_path / "again")
    assert_same(final(run), final(again))
    assert read_metrics(run.path) == read_metrics(again.path)
    assert Rounds.read(again.path) == Rounds.read(run.path)
    said = []
    train(followed(), whole, tmp_path / "again", say=said.append)  # finished before
    assert "each window was drawn 5 to 6 times" in said[-1]


def test_a_whole_cache_is_not_followed(whole, tmp_path):
    run = train(followed(), whole, tmp_path / "asked", follow=True)
    plain = train(followed(), whole, tmp_path / "plain")
    assert not (run.path / FOLLOW_FILE).exists()
    assert_same(final(run), final(plain))


def test_it_waits_for_a_first_batch_and_something_to_score(whole, tmp_path):
    said = []
    with Filling(whole, tmp_path, 0) as filling:
        run = train(followed(), filling.cache, tmp_path / "run", say=said.append, follow=True)
    assert "0 of 12 stores; training begins when there are clips of split 'train'" in said[0]
    assert "which nobody is filling" in said[0]
    first = Rounds.read(run.path).rounds[0]
    assert first.windows >= 4 and len(first.stores) > 1


@pytest.mark.parametrize(
    "windows",
    [
        {"per_clip": "length", "frames": 2},
        {"shuffle": True},
        {"keep_tokens": 0.5, "train_fraction": 0.6},
        {"span": "clip", "fps": None},
    ],
)
def test_windows_of_every_kind(whole, tmp_path, windows):
    asked = followed(windows=windows, training={"steps": None, "epochs": 2, "evaluate_every": None})
    with Filling(whole, tmp_path, 2) as filling:
        run = train(asked, filling.cache, tmp_path / "run", follow=True)
    (tmp_path / "again").mkdir()
    shutil.copy(run.path / FOLLOW_FILE, tmp_path / "again")
    assert_same(final(run), final(train(asked, whole, tmp_path / "again")))


def test_what_cannot_be_followed_is_refused(whole, tmp_path):
    filling = Filling(whole, tmp_path, 5)
    with pytest.raises(BadInput, match="has holes"):
        train(followed(), filling.cache, tmp_path / "run")
    run = tmp_path / "run"
    run.mkdir()
    (run / FOLLOW_FILE).write_text("{}")
    with pytest.raises(BadInput, match=r"follow.json is damaged"):
        train(followed(), filling.cache, run)
    some = {"step": 0, "steps": 1, "stores": [0], "windows": 3, "of": 9}
    for changes, words in [
        ({"step": 1}, "round 0 begins at step 1, wanted 0"),
        ({"steps": 2**40}, f"its rounds end at step {2**40} of {STEPS}"),
        ({"stores": [0, 77]}, "store 77 holds no clip of the cache that is trained on"),
        ({"stores": []}, "round 0 has no windows"),
        ({"steps": 0}, "greater than or equal to 1"),
    ]:
        table = {"format_version": 1, "windows": 9, "rounds": [some | changes]}
        (run / FOLLOW_FILE).write_text(json.dumps(table))
        with pytest.raises(BadInput, match=words):
            train(followed(), whole, run)
        shutil.rmtree(run)
        run.mkdir()


def test_a_damaged_store_is_noticed_when_it_comes(whole, tmp_path):
    filling = Filling(whole, tmp_path, 8)
    (times,) = filling.path.glob(f"stores/*{filling.left[0]:04}*/time_s/c/0") or [None]
    times.write_bytes(times.read_bytes()[:-1])

    def come(state):
        if state.step == 1:
            filling.come(2)

    with pytest.raises(BadInput, match="damaged"):
        train(followed(), filling.cache, tmp_path / "run", on_progress=come, follow=True)
    assert Run(tmp_path / "run").checkpoint("last") is None


@pytest.mark.slow
def test_extraction_and_training_at_the_same_time(tmp_path):
    for number in range(40):
        label = "ab"[number % 2]
        address_video(tmp_path / "videos" / label / f"v{number:02}.mp4", number, 30, size_px=128)
    (tmp_path / "small.toml").write_text(SPEC.replace("store_mb = 0.0072", "store_mb = 0.003"))
    (tmp_path / "mine.toml").write_text(RECIPE.replace("steps = 3", "steps = 40"))
    fine("manifest", "folder", tmp_path / "videos", "--out", tmp_path / "data")
    command = [sys.executable, "-m", "pipeline.cli", "extract", tmp_path / "small.toml"]
    with (tmp_path / "log").open("w") as log:
        filling = subprocess.Popen(
            [*command, tmp_path / "data", "--out", tmp_path / "caches"], stdout=log, stderr=log
        )
    while not (headers := list(tmp_path.glob("caches/*/cache.json"))):
        assert filling.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    run = tmp_path / "run"
    words = ["train", tmp_path / "mine.toml", headers[0].parent, "--out", run, "--follow"]
    trained = call(*words)
    assert filling.wait() == 0, (tmp_path / "log").read_text()
    assert trained.code == 0, trained
    record = Rounds.read(run)
    assert record is not None and record.rounds[-1].stop == 40
    assert "each window was drawn" in trained.err
    assert len(fine("evaluate", run, "--json").json["clips"]) == 8


# Pace


@pytest.mark.parametrize("seed", range(20))
def test_every_window_is_drawn_as_often_as_any_other(seed):
    rng = np.random.default_rng(seed)
    batch, windows, times = 4, int(rng.integers(5, 60)), int(rng.integers(1, 9))
    samples = windows * times
    pace, drawn, there, round_number = Pace(samples, seed), [], 0, 0
    while len(drawn) < samples:
        if there < windows:
            come = int(min(rng.integers(1, 12), windows - there))
            pace.add(come)
            there += come
        limit = samples if there == windows else allowed_samples(samples, there, windows)
        count = min(int(rng.integers(1, 5)) * batch, limit - len(drawn))
        if count > 0:
            numbers, shares_3M = pace.draw(round_number, count, windows)
            assert numbers.max() < there and shares_3M.shape == (3, count)
            drawn += numbers.tolist()
            round_number += 1
    assert set(Counter(drawn).values()) == {times} and len({*drawn}) == windows


def test_late_windows_are_not_learnt_alone():
    pace = Pace(1000, 0)
    pace.add(90)
    pace.draw(0, allowed_samples(1000, 90, 100), 100)
    assert pace.drawn_W.sum() == int(BEFORE_WHOLE * 810)
    pace.add(10)
    numbers, _ = pace.draw(1, 40, 100)
    # Twice as likely as each of the others, and among them.
    late = (numbers >= 90).mean()
    assert 0.1 < late < 0.35


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 100, 129])
def test_stores_are_filled_all_over(count):
    order = all_over(count)
    assert sorted(order) == list(range(count))
    if count == 8:
        assert order == [0, 4, 2, 6, 1, 5, 3, 7]
    for first in range(8, count + 1):
        gaps = np.diff([-1, *sorted(order[:first]), count])
        assert gaps.max() <= 4 * count / first
