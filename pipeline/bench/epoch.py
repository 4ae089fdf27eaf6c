"""An epoch with the encoder in the loop against one from the cache: same windows, same batches, same model, same steps.

Without the cache, as many processes decode as in extraction, ahead of the step, and the encoder runs without gradients. Both
read ahead in the same threads. Seconds are those of the loop: no evaluation, no checkpoint.
"""

from __future__ import annotations

import queue
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import extract, manifest
from pipeline.bench._timing import Tell, summary
from pipeline.cache import Cache
from pipeline.costs import synchronize
from pipeline.decoder import Decoder
from pipeline.device import chosen
from pipeline.encoders import EncoderPlugin
from pipeline.model import VideoModel, layers_read
from pipeline.progress import Timed
from pipeline.ranks import ALONE
from pipeline.records import Batch
from pipeline.run import read_metrics
from pipeline.spec import CacheSpec, Recipe
from pipeline.square import Squares
from pipeline.train import Group, make_task, open_or_create
from pipeline.trainer import Trainer
from pipeline.windows import Sample, Windows
from pipeline.worker import load_encoder

WAYS = ("cached", "uncached")
BESIDE = ("read", "decode")
"""Parts that go on in threads of their own."""


class FromCache(Windows):
    """Windows of a cache; the time of what is done for them is kept."""

    gives = "codec"
    """What makes tokens of a batch."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.clock = Timed()

    def read(self, samples: Sequence[Sample]) -> Batch:
        with self.clock.timed("read"):
            return super().read(samples)

    def tokens(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
        made = super().tokens(batch, device)
        synchronize(device)
        return made


class FromVideos(FromCache):
    """The same windows from the videos: decoded and resized in `read`, encoded in `tokens`; to be closed.

    Of the cache it takes only which frames of a video make a window, and where these show what the truth speaks of.
    """

    gives = "encode"

    def __init__(self, encoder: EncoderPlugin, decoders: int, device: torch.device, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.encoder, self.device = encoder, device
        self.stack = ExitStack()
        self.pool = self.stack.enter_context(ThreadPoolExecutor(decoders, "decode"))
        self.idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(decoders):
            self.idle.put(self.stack.enter_context(Decoder()))

    def close(self) -> None:
        """Ends the decoders."""
        self.stack.close()

    def read(self, samples: Sequence[Sample]) -> Batch:
        with self.clock.timed("decode"):
            squares = torch.stack(list(self.pool.map(self._squares, samples)))
        time_s = [self.stretches[sample.clip].time_s[self._rows(sample)] for sample in samples]
        clips = np.array([sample.clip for sample in samples], np.int64)
        return Batch({"squares": squares}, np.stack(time_s), clips, self.truth(samples))

    def tokens(self, batch: Batch, device: torch.device) -> tuple[torch.Tensor, list[torch.Tensor]]:
        squares = batch.arrays["squares"]
        parts = [self.encoder(part) for part in squares.flatten(0, 1).split(self.cache.cache_spec.store.batch_frames)]
        # Put together outside of inference mode, as tensors that gradients may be traced through.
        special = torch.cat([part.special_NSD for part in parts]).unflatten(0, squares.shape[:2])
        patches = [
            torch.cat([part.patches_NPD[layer] for part in parts]).unflatten(0, squares.shape[:2]) for layer in self.layers
        ]
        synchronize(device)
        return special, patches

    def _squares(self, sample: Sample) -> torch.Tensor:
        """(T, 3, size_px, size_px) uint8 of a window."""
        clip, stretch, settings = self.clip(sample.clip), self.stretches[sample.clip], self.cache.cache_spec.frames
        places = stretch.first_row - self.cache.locations[clip.video_id].start + self._rows(sample)
        parts, at = [], 0
        decoder = self.idle.get()
        try:
            for block in decoder.decode(self.manifest.root / clip.source, [settings.rate], clip.image_fps):
                wanted = np.isin(np.arange(at, at + len(block.frames)), places)
                if wanted.any():
                    parts.append(Squares(block.frames, self.device).of(settings, wanted, self.cache.views[sample.view])[0])
                at += len(block.frames)
        finally:
            self.idle.put(decoder)
        return torch.cat(parts)[np.unique(places, return_inverse=True)[1]]


class Epoch(NamedTuple):
    """One epoch of runs that train side by side."""

    seconds: float
    """Of all of them."""
    steps: int
    losses: list[list[float]]
    """Of every step of each."""
    parts: dict[str, float]
    """Seconds; `read` and `decode` go on beside the others, and are no part of the sum."""


def one_epoch(recipes: Sequence[Recipe], windows: FromCache, held_out: Windows, runs: Path, device: torch.device) -> Epoch:
    """Trains a new run of each recipe, in a folder in `runs`, side by side for one epoch on `windows`."""
    timing = ExitStack()

    def begin(*_: object) -> None:
        synchronize(device)
        timing.enter_context(windows.clock.timed("optimiser"))

    def end(*_: object) -> None:
        synchronize(device)
        timing.close()

    trainers = []
    for recipe in recipes:
        once = {"steps": None, "epochs": 1.0, "evaluate_every": None, "checkpoint_every": 10**9}
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=once)})
        torch.manual_seed(recipe.training.seed)
        task = make_task(recipe, windows.manifest)
        model = VideoModel(recipe, windows.cache.shape, task).to(device)
        run = open_or_create(runs / f"{recipe.training.seed}", recipe, windows.cache, windows.manifest, model, windows)
        trainer = Trainer(run, model, task.to(device), len(windows), device, ALONE)
        trainer.optimizer.register_step_pre_hook(begin)
        trainer.optimizer.register_step_post_hook(end)
        trainers.append(trainer)
    Group(trainers, windows, held_out, device, ALONE, None, None).fit()
    data, tokens, steps = (sum(one.progress.seconds[what] for one in trainers) for what in ("data", "tokens", "steps"))
    parts = windows.clock.seconds
    parts |= {"waiting": data, windows.gives: tokens, "model": steps - parts["optimiser"]}
    losses = [[line["loss"] for line in read_metrics(one.run.path)] for one in trainers]
    return Epoch(data + tokens + steps, trainers[0].step, losses, parts)


def epoch_speed(
    spec: CacheSpec,
    recipe: Recipe,
    clips_per_class: int,
    ablations: int,
    decoders: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """An epoch of each of `ablations` runs on the built-in world, with and without a cache, in turn; other seeds each time.

    Then an epoch of all of them side by side, as a sweep trains them.
    """
    device = chosen(device)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tell(0, ablations, "rendering videos")
        videos = manifest.build("world", None, folder / "world", {"clips_per_class": clips_per_class})
        tell(0, ablations, "extracting")
        begin = time.perf_counter()
        cache = extract.extract(spec, videos, folder / "caches", device, decoders)
        extract_s = time.perf_counter() - begin
        recipes = [
            recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
            for seed in range(ablations)
        ]
        cached, uncached = _in_turn(recipes, cache, folder, decoders, device, tell)
        tell(ablations, ablations, "one sweep")
        sweep = epoch("cached", recipes, cache, folder / "sweep", decoders, device)
    steps, shape = cached[0].steps, cache.shape
    return {
        "size": {
            "frames": sum(receipt.frames for receipt in cache.receipts.values()),
            "windows": f"{recipe.training.batch_size} x {recipe.windows.frames} frames",
            "tokens": f"{shape.tokens_per_frame} of {shape.width}",
            "steps": steps,
            "device": str(device),
            "decoders": decoders,
        },
        "extract_s": extract_s,
        "epochs": {
            name: summary([e.seconds for e in each]) | {"step_s": statistics.median(e.seconds for e in each) / steps}
            for name, each in (("cached", cached), ("uncached", uncached))
        },
        "ratio": statistics.median(b.seconds / a.seconds for a, b in zip(cached, uncached, strict=True)),
        "parts_of_a_step": {
            name: {part: statistics.median(e.parts[part] for e in each) / steps for part in each[0].parts}
            for name, each in (("cached", cached), ("uncached", uncached))
        },
        "sweep_s": sweep.seconds,
        "runs": {
            "uncached": sum(e.seconds for e in uncached),
            "cached": extract_s + sum(e.seconds for e in cached),
            "sweep": extract_s + sweep.seconds,
        },
    }


def _in_turn(
    recipes: Sequence[Recipe], cache: Cache, folder: Path, decoders: int, device: torch.device, tell: Tell
) -> list[list[Epoch]]:
    """Of each of `WAYS`, an epoch of every recipe alone."""
    epochs: dict[str, list[Epoch]] = {name: [] for name in WAYS}
    for number in range(-1, len(recipes)):  # the first round warms up
        for name in WAYS if number % 2 else WAYS[::-1]:
            tell(max(0, number), len(recipes), name)
            alone = [recipes[max(0, number)]]
            epochs[name].append(epoch(name, alone, cache, folder / f"{name}{number}", decoders, device))
    return [epochs[name][1:] for name in WAYS]


def epoch(name: str, recipes: Sequence[Recipe], cache: Cache, runs: Path, decoders: int, device: torch.device) -> Epoch:
    """One epoch of new runs that differ in their seeds, side by side, `cached` or `uncached`."""
    videos, recipe = cache.manifest, recipes[0]
    task = make_task(recipe, videos)
    asked: dict[str, Any] = {"settings": recipe.windows, "wanted": task, "layers": layers_read(recipe, cache.shape)}
    held_out = Windows(cache, videos, "val", **asked)
    if name == "cached":
        return one_epoch(recipes, FromCache(cache, videos, "train", **asked), held_out, runs, device)
    encoder = load_encoder(cache, device)
    with closing(FromVideos(encoder, decoders, device, cache, videos, "train", **asked)) as windows:
        return one_epoch(recipes, windows, held_out, runs, device)
