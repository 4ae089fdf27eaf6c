"""Every codec is measured by what it costs and keeps: bytes, closeness to the encoder's float32
tokens, speed, and the score of a trained run.

Closeness is measured on frames other than those that a fitted codec was fitted to. Speeds count
float32 bytes on the encoder's side, and codecs take turns in every repeat.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pipeline.cache.codec_parameters import codecs_of
from pipeline.cache.codecs.contract import CodecPlugin, FittedCodec, make_codec
from pipeline.cache.layout import bytes_per_frame
from pipeline.cli.bench.timing import Tell, frozen, seconds_of, summary
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec, Choice, choice
from pipeline.config.recipe import load_recipe
from pipeline.config.shipped import shipped
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.device import chosen
from pipeline.extract import derive, extract
from pipeline.extract.calibrate import calibration_tokens, fit_codecs
from pipeline.extract.execution import Execution
from pipeline.models.encoders.contract import make_encoder, token_shape
from pipeline.train import evaluate, loop

REFERENCE = "float16"
RECIPE = "demo_gru"
TIMED_BYTES = 64_000_000
"""Float32 bytes of the tokens that are timed: beyond what a processor's caches hold."""


Choices = Mapping[str, Choice]
"""Codec -> itself with its settings."""


def choices(tables: Mapping[str, Any]) -> dict[str, Choice]:
    """Every codec on disk; `tables`: codec -> settings that are not the defaults. Raises
    BadInput."""
    for name in tables:
        plugins.load("codec", name)
    return {
        name: choice("codec", {**tables.get(name, {}), "name": name})
        for name in plugins.names("codec")
    }


def codec_table(
    spec: CacheSpec,
    codecs: Choices,
    frames: int,
    repeats: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """Every codec on tokens of `frames` frames of the built-in world that `spec` encodes."""
    device = chosen(device)
    with tempfile.TemporaryDirectory() as folder:
        tell(0, 1, "rendering videos")
        clips = {"clips_per_class": -(-2 * frames // 8)}
        videos = manifest.build("world", None, Path(folder) / "world", clips)
        return compare(spec, codecs, videos, frames, repeats, device, tell)


def compare(
    spec: CacheSpec,
    codecs: Choices,
    videos: Manifest,
    frames: int,
    repeats: int,
    device: torch.device,
    tell: Tell,
) -> dict[str, Any]:
    """Every codec on tokens of `frames` frames of `videos`: twice as many are sampled, the first
    half to fit to, the second to measure."""
    encoder = make_encoder(spec, device)
    shape = token_shape(spec)
    tell(0, 1, "encoding frames")
    plan = extract.make_plan(spec, shape, videos)
    sampled = calibration_tokens(spec, encoder, videos, plan, 2 * frames, Execution(device))
    fitted_to, measured = (
        {name: part.chunk(2)[half] for name, part in sampled.items()} for half in (0, 1)
    )
    tried = {name: _ready(codec, fitted_to) for name, codec in codecs.items()}
    arrays = {name: part.to(device) for name, part in measured.items()}
    with frozen():
        speeds = _speeds(tried, arrays, repeats, tell)
    table = {}
    for name, of_array in tried.items():
        with_codec = spec.model_copy(update={"codec": codecs[name]})
        settings = codecs[name].settings.model_dump(mode="json")
        facts = {"settings": settings, "bytes_per_frame": bytes_per_frame(with_codec, shape)}
        table[name] = facts | _closeness(of_array, arrays) | speeds[name]
    reference = table[REFERENCE]
    for facts in table.values():
        facts["bytes_ratio"] = facts["bytes_per_frame"] / reference["bytes_per_frame"]
        for way in ("encode", "decode"):
            pairs = zip(reference[way]["s"], facts[way]["s"], strict=True)
            facts[way]["speed_ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    return {
        "encoder": spec.encoder.table(),
        "frames": len(next(iter(measured.values()))),
        "tokens_per_frame": shape.tokens_per_frame,
        "width": shape.width,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "reference": REFERENCE,
        "codecs": table,
    }


def codec_scores(
    spec: CacheSpec,
    codecs: Choices,
    device: torch.device | None,
    tell: Tell,
    world: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Codec -> form -> score with its interval: the shipped recipe trained on the built-in world
    through each codec.

    Frames are encoded once, into `spec`'s cache; the others are derived from that one. `world`:
    settings of the data set, `overrides`: keys of the recipe.
    """
    scores = {}
    recipe = load_recipe(shipped("recipe")[RECIPE], overrides)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tell(0, 1, "rendering videos")
        videos = manifest.build("world", None, folder / "world", dict(world or {}))
        how = Execution(
            device,
            on_progress=lambda state: tell(state.frames, state.frames_planned, "extracting"),
        )
        source = extract.extract_all([spec], videos, folder, how)[0]
        for done, (name, codec) in enumerate(codecs.items()):
            tell(done, len(codecs), f"training through {name}")
            changes = [f"codec.{key}={json.dumps(value)}" for key, value in codec.table().items()]
            cache = (
                source
                if codec.table() == spec.codec.table()
                else derive.derive(source, changes, folder)
            )
            run = loop.train(recipe, cache, folder / "runs" / name, device=device)
            result = evaluate.evaluate(run, cache, device=device)
            first = result.metrics[0].name
            scores[name] = {
                form: {"metric": first, **of_form[first].model_dump()}
                for form, of_form in result.forms.items()
            }
    return scores


def _ready(chosen: Choice, fitted_to: Mapping[str, torch.Tensor]) -> dict[str, CodecPlugin]:
    """Token array -> the chosen codec, fitted where it wants to be."""
    codec = make_codec(chosen)
    learnt = fit_codecs(codec, fitted_to) if isinstance(codec, FittedCodec) else None
    width = next(iter(fitted_to.values())).shape[-1]
    return codecs_of(chosen, fitted_to, learnt, width)


def _closeness(
    codecs: Mapping[str, CodecPlugin], arrays: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Cosine of every token with itself after the trip, mean and 1st percentile, and |error| /
    |tokens|, over all arrays."""
    cosines: dict[str, torch.Tensor] = {}
    squared_error = squared = 0.0
    for name, tokens_FND in arrays.items():
        decoded = _decode(codecs[name], _encode(codecs[name], tokens_FND, tokens_FND.device))
        cosines[name] = (
            F.cosine_similarity(decoded.double(), tokens_FND.double(), dim=-1).flatten().cpu()
        )
        squared_error += float((decoded.double() - tokens_FND.double()).square().sum())
        squared += float(tokens_FND.double().square().sum())
    every = torch.cat(list(cosines.values()))
    return {
        "cosine_mean": float(every.mean()),
        "cosine_p1": float(every.kthvalue(1 + len(every) // 100).values),
        "relative_error": (squared_error / squared) ** 0.5,
        "cosine_mean_by_array": {name: float(cosine.mean()) for name, cosine in cosines.items()},
    }


def _speeds(
    tried: Mapping[str, Mapping[str, CodecPlugin]],
    arrays: Mapping[str, torch.Tensor],
    repeats: int,
    tell: Tell,
) -> dict[str, dict[str, Any]]:
    """Codec -> encode and decode: seconds of each repeat, and GB/s by their median. The first round
    warms up."""
    name, tokens_FND = max(arrays.items(), key=lambda item: item[1].numel())
    tokens_FND = tokens_FND.repeat(-(-TIMED_BYTES // (tokens_FND.numel() * 4)), 1, 1)
    device, size = tokens_FND.device, tokens_FND.numel() * 4
    seconds: dict[str, dict[str, list[float]]] = {
        codec: {"encode": [], "decode": []} for codec in tried
    }
    for repeat in range(repeats + 1):
        for index, (codec, codecs) in enumerate(tried.items()):
            tell(repeat * len(tried) + index, (repeats + 1) * len(tried), f"time of {codec}")
            stored = _encode(codecs[name], tokens_FND, device)
            seconds[codec]["encode"].append(
                seconds_of(partial(codecs[name].encode, tokens_FND), device)
            )
            seconds[codec]["decode"].append(
                seconds_of(partial(_decode, codecs[name], stored), device)
            )
    return {
        codec: {
            way: (facts := summary(times[1:])) | {"gb_per_s": size / 1e9 / facts["median_s"]}
            for way, times in of.items()
        }
        for codec, of in seconds.items()
    }


def _encode(
    codec: CodecPlugin, tokens_FND: torch.Tensor, device: torch.device
) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(array).to(device) for key, array in codec.encode(tokens_FND).items()
    }


def _decode(codec: CodecPlugin, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return codec.decode(stored)
