"""The page of a large sweep is measured: the time that it takes to make, and its size."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.json_files import sealed_json, to_json
from pipeline.config.recipe import Recipe
from pipeline.datasets.manifest import manifest
from pipeline.experiments.summary import Outcome, ScoredPoint, summarise
from pipeline.experiments.sweep import SWEEP_FILE
from pipeline.extract import extract
from pipeline.models.profile import Cost, cost
from pipeline.models.tasks.contract import labels_of
from pipeline.report.report import report
from pipeline.train.bootstrap import interval
from pipeline.train.evaluate import evaluate
from pipeline.train.evaluation import Evaluation, read_evaluation
from pipeline.train.loop import train
from pipeline.train.run import Run

VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 16,
    "image_size": 112,
}
SPEC = {
    "name": "bench",
    "encoder": {"name": "transformers", "layers": [0], "seed": 0, "config": VIT},
    "frames": {"size_px": 112},
}
WORLD = {"clips_per_class": 8, "frames": 16, "val_fraction": 0.5}
RECIPE = {
    "name": "bench",
    "task": {"name": "classify", "readout_width": 32, "heads": 2},
    "windows": {"frames": 12, "fps": 12},
    "training": {"steps": 2, "batch_size": 8, "warmup_steps": 1},
}
RATES = (1e-3, 3e-3, 1e-2)
STEPS, EVALUATE_EVERY = 600, 50
"""Length of the curves that are made up, and the steps between two of their evaluations."""
REFERENCE = "identity, learning_rate 0.003"


def report_speed(runs: int) -> dict[str, Any]:
    """Seconds and bytes of the page of a sweep of `runs`."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = made_up_sweep(Path(folder), runs)
        begin = time.perf_counter()
        (page,) = report(sweep, Path(folder) / "report")
        return {
            "runs": runs,
            "seconds": time.perf_counter() - begin,
            "page_bytes": page.stat().st_size,
        }


def made_up_sweep(folder: Path, runs: int, modules: Sequence[str] = ()) -> Path:
    """A sweep of `runs` members over temporal modules (all, if none are named), learning rates and
    seeds. The last was stopped.

    Every module is trained for two steps on a real cache of real videos; members are copies with
    curves and scores made up.
    """
    cache = _cache(folder)
    trained: dict[str, Run] = {}
    costs: dict[str, Cost] = {}
    names = list(modules) or sorted(plugins.names("temporal"), key=lambda name: name != "identity")
    seeds = -(-runs // (len(names) * len(RATES)))
    outcomes: dict[tuple[str, float], list[Outcome]] = {}
    sweep = folder / "sweep"
    for seed, rate, name in itertools.islice(
        itertools.product(range(seeds), sorted(RATES, key=_far_from_middle), names), runs
    ):
        if name not in trained:
            recipe = plugins.validate(
                Recipe, RECIPE | {"temporal": {"name": name} | _small(name)}, "bench"
            )
            trained[name] = train(recipe, cache, folder / "trained" / name)
            costs[name] = cost(recipe, cache.shape, labels_of(recipe, cache.manifest))
        member = f"{name}-lr{rate:g}-s{seed}"
        level = 0.2 + 0.7 * names.index(name) / len(names) - 0.05 * _far_from_middle(rate)
        run = _copied(trained[name], cache, sweep / "runs" / member, rate, seed, level)
        outcomes.setdefault((name, rate), []).append(Outcome(member, seed, run, training_s=60.0))
    name, rate = list(outcomes)[-1]
    last = outcomes[name, rate][-1]
    outcomes[name, rate][-1] = Outcome(last.member, last.seed, failed="loss is nan at step 120")
    settings = [
        ScoredPoint(
            f"{name}, learning_rate {rate:g}",
            {"temporal.name": name, "training.learning_rate": rate},
            costs[name],
            tuple(rows),
        )
        for (name, rate), rows in outcomes.items()
    ]
    axes: dict[str, list[Any]] = {"temporal.name": names, "training.learning_rate": list(RATES)}
    summary = summarise("bench", axes, settings, REFERENCE)
    (sweep / f"summary-{summary.task}.json").write_text(
        summary.model_dump_json(indent=1), encoding="utf-8"
    )
    (sweep / SWEEP_FILE).write_text(
        json.dumps({"name": "bench", "axes": axes}, indent=1), encoding="utf-8"
    )
    return sweep


def _far_from_middle(rate: float) -> float:
    return abs(float(np.log10(rate / RATES[1])))


def _cache(folder: Path) -> Cache:
    videos = manifest.build("world", None, folder / "world", WORLD)
    return extract.extract(plugins.validate(CacheSpec, SPEC, "bench"), videos, folder / "caches")


def _small(name: str) -> dict[str, int]:
    """One layer and few heads, where the module has such."""
    fields = plugins.load("temporal", name).Settings.model_fields
    return {key: value for key, value in {"layers": 1, "heads": 2}.items() if key in fields}


def _copied(run: Run, cache: Cache, path: Path, rate: float, seed: int, level: float) -> Evaluation:
    """A run folder whose weights are those of `run`, and whose curves end, and whose scores are,
    near `level`."""
    rng = np.random.default_rng([seed, int(1e6 * rate), int(1e6 * level)])
    if not (run.path / "evaluation-val.json").is_file():
        evaluate(run, cache)
    path.mkdir(parents=True)
    for file in [*run.path.glob("*.safetensors"), run.path / "last.json"]:
        os.link(file, path / file.name)
    recipe = dict(run.header.recipe)
    recipe["training"] = recipe["training"] | {"learning_rate": rate, "seed": seed}
    header = run.header.model_copy(update={"recipe": recipe})
    (path / "run.json").write_bytes(sealed_json(header))
    lines = []
    for step in range(1, STEPS + 1):
        share = 1 - np.exp(-4 * step / STEPS)
        line = {"step": step, "loss": 2.1 * (1 - share * level) + 0.1 * rng.standard_normal()}
        if step % EVALUATE_EVERY == 0:
            line["val"] = {
                form: share * level + 0.02 * rng.standard_normal()
                for form in ("streaming", "window")
            }
        lines.append(json.dumps(line))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scored = read_evaluation(run.path, "val")
    assert scored is not None
    videos = [clip.video for clip in scored.clips.values()]
    forms, clips = dict(scored.forms), dict(scored.clips)
    for form in forms:
        right = (rng.random(len(videos)) < level).astype(float)
        forms[form] = forms[form] | {"top-1": interval(right, videos)}
        clips = {
            name: clip._replace(scores=clip.scores | {form: value})
            for (name, clip), value in zip(clips.items(), right.tolist(), strict=True)
        }
    scored = scored.model_copy(update={"run": path.name, "forms": forms, "clips": clips})
    (path / "evaluation-val.json").write_bytes(to_json(scored))
    return scored
