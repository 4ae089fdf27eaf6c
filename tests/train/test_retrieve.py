"""Runs of retrieve on the cache of a small CLIP: zero-shot at step 0, what does not fit, several processes, and the losses of training
alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import media
from support.image_text import save_image_text
from support.matching_worker import losses_of
from support.paths import ROOT
from support.processes import ended, start
from support.training import final, recipe

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.texts import WordTable
from pipeline.errors import BadInput
from pipeline.extract.extract import extract
from pipeline.report.frames.words import films_of_words
from pipeline.train.evaluate import evaluate, evaluate_together
from pipeline.train.loop import train
from pipeline.train.run import Run, read_metrics
from pipeline.train.setup import RunContext, open_windows

VIDEOS, FRAMES, WIDTH = 12, 6, 24
THINGS = ("dog", "cat", "hen", "cow", "pig", "fox")


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of one shape, of which one made the cache."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: save_image_text("clip", root / name, seed)
        for seed, name in enumerate(("own", "other"))
    }


def captioned(root: Path, said: list[list[str]]) -> Any:
    """The manifest of videos of noise, each with captions; two of three are for training."""
    rng = np.random.default_rng(0)
    (root / "videos").mkdir(parents=True)
    rows = []
    for number, captions in enumerate(said):
        tiles = rng.integers(0, 256, (FRAMES, 4, 4, 3)).astype(np.uint8)
        media.encode(root / f"videos/{number}.mp4", tiles.repeat(12, 1).repeat(12, 2))
        split = "val" if number % 3 == 2 else "train"
        rows.append({"video": f"{number}.mp4", "caption": captions, "split": split})
    (root / "videos/captions.json").write_text(json.dumps(rows))
    return manifest.build("captions", root / "videos", root / "data", {})


@pytest.fixture(scope="module")
def cache(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("captioned")
    said = [
        [f"a {THINGS[number % 6]} {number}"] + [f"{number} it is"] * (number % 2)
        for number in range(VIDEOS)
    ]
    table = {
        "name": "small",
        "encoder": {"name": "transformers", "model": str(models["own"]), "layers": [2]},
        "frames": {"size_px": 32},
    }
    spec = plugins.validate(CacheSpec, table, "test")
    return extract(spec, captioned(root, said), root / "caches")


def wanted(task: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    table = {"name": "retrieve", "width": WIDTH, "readout_width": 16, "heads": 2} | (task or {})
    training = {"steps": 4, "batch_size": 8, "evaluate_every": 4} | changes.pop("training", {})
    windows = {"frames": 3, "fps": 10} | changes.pop("windows", {})
    whole = recipe(training=training, windows=windows, **changes).canonical()
    return plugins.validate(Recipe, whole | {"task": table}, "test")


def test_a_run_of_no_steps_scores_as_the_mean_of_its_frames(cache: Cache, tmp_path: Path) -> None:
    run = train(wanted(training={"steps": 0}), cache, tmp_path / "run")
    found = evaluate(run, cache)
    plain = found.baselines["mean_of_frames"].metrics
    assert found.forms.keys() == {"streaming", "window"} and found.checkpoint.step == 0
    for form, scores in found.forms.items():
        assert scores == plain, form
    assert plain["t2v R@10"].score == 1 and 1 <= plain["t2v MnR"].score <= 4
    assert found.baselines["trivial"].metrics["t2v R@1"].score == pytest.approx(1 / 4)
    assert found.baselines["trivial"].metrics["v2t MdR"].score == pytest.approx(1 + 4.5 / 2, abs=1)


def test_two_runs_are_scored_from_one_read(cache: Cache, tmp_path: Path) -> None:
    runs = [
        train(wanted(temporal={"name": name}), cache, tmp_path / name)
        for name in ("gru", "identity")
    ]
    alone = [evaluate(run, cache) for run in runs]
    assert evaluate_together(runs, RunContext.of(cache)) == alone


def refused(cache: Cache, out: Path, task: dict[str, Any], **rest: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        train(wanted(task), cache, out, **rest)
    assert not out.exists()
    return caught.value


def test_what_does_not_fit_is_named(cache: Cache, models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    wide = refused(cache, out, {"width": 32})
    assert wide.message == "task.width is 32, and embeddings of texts are 24 wide"
    assert wide.hint == "task.width = 24"
    other = {"name": "image_text", "model": str(models["other"])}
    assert str(models["other"]) in refused(cache, out, {"text": other}).message
    silent = captioned(tmp_path / "silent", [["a dog"]] * 3)
    bare = manifest.build("folder", silent.root, tmp_path / "bare", {"labelled": False})
    assert bare.splits
    without = refused(cache, out, {}, manifest=bare)
    assert without.message == (
        f"the task reads texts, and manifest {bare.folder} has neither captions nor questions"
    )


def test_another_text_tower_does_not_go_on_with_a_run(
    cache: Cache, models: dict[str, Path], tmp_path: Path
) -> None:
    """Of the same width, in a folder whose content has changed."""
    folder = save_image_text("clip", tmp_path / "clip", 0)
    table = {"zero_shot": False, "text": {"name": "image_text", "model": str(folder)}}
    out = tmp_path / "run"
    train(wanted(table), cache, out)
    save_image_text("clip", tmp_path / "clip", 1)
    longer = wanted(table)
    with pytest.raises(BadInput) as caught:
        train(longer, cache, out)
    assert caught.value.message.startswith(
        f"run {out} was trained with another text tower; now / then: weights: "
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_masked_words_and_pairs_are_losses_of_training_alone(
    accumulate: int, cache: Cache, tmp_path: Path
) -> None:
    """With few of the tokens; a stopped run goes on; what is scored has no part of them."""
    aids = {"mask_words": 1.0, "match": 0.5, "vocabulary": 10}
    changes = {"windows": {"keep_tokens": 0.3}, "training": {"accumulate": accumulate}}
    run = train(wanted(aids, **changes), cache, tmp_path / "run")
    lines = read_metrics(run.path)
    assert all(
        list(line["losses"]) == ["streaming", "window", "masked_words", "matching"]
        for line in lines
    )
    assert all(line["loss"] == pytest.approx(sum(line["losses"].values())) for line in lines)
    assert 0 < lines[0]["losses"]["masked_words"] < 3 * np.log(10)
    assert evaluate(run, cache).forms.keys() == {"streaming", "window"}
    plain = train(wanted(**changes), cache, tmp_path / "plain")
    assert not {name for name in final(plain) if "masked" in name or "matching" in name}
    with_aids = {name for name in final(run) if name.startswith("model.readouts.masked_words.")}
    assert with_aids


def test_words_and_embedding_are_of_the_same_drawn_caption(cache: Cache) -> None:
    """And of the training captions alone; in evaluation there are no words."""
    ((task,), windows, held_out) = open_windows(
        [wanted({"mask_words": 1.0, "match": 1.0})], RunContext.of(cache)
    )
    assert windows.language is not None
    training = [clip.clip_id for clip in cache.manifest.clips if clip.split == "train"]
    said = [text for clip in training for text in cache.manifest.texts[clip].captions]
    table, drawn = WordTable(said), set()
    for number in range(30):
        truth = windows.truth([windows.order.sample(number)])
        words_L = np.maximum(truth["words_left"][0], truth["asked_words"][0])
        (caption,) = [text for text in said if np.array_equal(table.numbers(text), words_L)]
        assert np.array_equal(truth["captions"][0], windows.language.texts.pooled([caption]))
        assert np.array_equal(truth["own_text"][0], truth["captions"][0, 0])
        assert (truth["asked_words"] > 0).any()
        drawn.add(caption)
    assert drawn == set(said)
    evaluated = held_out.truth(list(held_out.order.evaluation()))
    assert evaluated.keys() == {"captions", "frame_embeddings"}
    assert task.query(
        {name: torch.from_numpy(part) for name, part in evaluated.items()}
    ).keys() == {"frame_embeddings"}


@pytest.mark.slow
def test_two_processes_have_the_losses_gradients_and_weights_of_one(
    cache: Cache, tmp_path: Path
) -> None:
    jobs = [
        {"recipe": wanted().canonical(), "cache": str(cache.path), "out": str(tmp_path / "two")},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    process = start(2, ROOT / "tests/support/matching_worker.py", tmp_path / "jobs.json")
    whole = losses_of(slice(0, 8), 1)
    one = train(wanted(), cache, tmp_path / "one")
    code, _, said = ended(process)
    assert (code, said) == (0, [])
    losses = torch.load(tmp_path / "jobs.json.losses")
    assert losses.keys() == whole.keys() and len(whole) == 8
    for name, tensor in whole.items():
        assert tensor.abs().max() > 1e-3, name
        torch.testing.assert_close(losses[name], tensor, rtol=1e-5, atol=1e-6)
    two = Run(tmp_path / "two")
    for ours, theirs in zip(read_metrics(two.path), read_metrics(one.path), strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=2e-3)
        assert ours.get("val") == theirs.get("val")
    weights = final(one)
    for name, tensor in final(two).items():
        if name.startswith(("model.", "task.")):
            torch.testing.assert_close(tensor, weights[name], rtol=1e-2, atol=1e-4)


def test_a_page_shows_what_words_have_found(cache: Cache, tmp_path: Path) -> None:
    run = train(wanted(training={"steps": 0}), cache, tmp_path / "run")
    found = evaluate(run, cache)
    films, missing = films_of_words(run, found, "last", "streaming")
    texts = {
        clip.clip_id: cache.manifest.texts[clip.clip_id].captions[0] for clip in found_clips(cache)
    }
    assert missing == "" and len(films) == 4  # of four videos the best two and the worst two
    assert {film.clip for film in films} == set(texts.values())
    ranks = [float(film.label.split()[1]) for film in films]
    assert ranks[0] <= ranks[1] <= min(ranks[2:]) and {film.label[-5:] for film in films} == {
        " of 4"
    }
    for film, rank in zip(films, ranks, strict=True):
        own, *others = film.strips
        assert texts[own.about] == film.clip and {tile.shape[-1] for tile in own.tiles} == {3}
        assert [strip.name for strip in others] == ["found first"] * (rank > 1)
    (run.path / "answers-val.safetensors").unlink()
    _, missing = films_of_words(run, found, "last", "streaming")
    assert missing.startswith("What words find cannot be shown: ")


def found_clips(cache: Cache) -> list[Any]:
    """Those of the split that is scored."""
    return [cache.manifest.clips[number] for number in cache.manifest.split("val")]
