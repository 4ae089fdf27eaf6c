"""The weights of one run begin the training of another: `[init]` in a recipe.

They must mean the same there: tokens of one encoder, layers and codec, parts of one kind and size.
The other run may come from a stranger. Nothing of it is executed, and no model is made of its
recipe: its tensors are compared with those that the own recipe asks for, name by name.

Batch norms of the mixer hold weights, which are learnt, and running statistics of the tokens that
were seen. Frozen parts keep both, in training and evaluation. Parts that go on training take over
the weights alone: their statistics begin anew, as those of a training from scratch do, and become
the same numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.cache.cache import Cache
from pipeline.config import plugins
from pipeline.config.recipe import RUN_FILE, InitSettings, Part, Recipe
from pipeline.config.toml_tables import differences
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import labels_of, make_task
from pipeline.models.video_model import VideoModel, layers_read
from pipeline.train.run import CacheFacts, InitFacts, Run
from pipeline.train.weights.seen_videos import SeenVideos

LISTED = 4
"""Differences of two runs that a message lists."""


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a training begins with, but for those that are drawn."""

    facts: InitFacts
    tensors: dict[str, torch.Tensor]
    """Name in the model -> weights. Empty for a run that has a checkpoint of its own, and whose
    source is gone."""
    seen: SeenVideos | None
    """The videos that they were trained on; None for such a run, which has it written down."""

    def load_into(self, model: VideoModel) -> None:
        """Puts them in the place of those that were drawn."""
        model.load_state_dict(self.tensors, strict=False)


def initial_weights(
    recipe: Recipe, cache: Cache, manifest: Manifest, path: Path
) -> InitialWeights | None:
    """The weights that `recipe` takes over from another run, for its own run in folder `path`; None
    where all are drawn.

    A run that has a checkpoint of its own goes on without its source. Raises BadInput: no such run
    or checkpoint, a run that is not trained to its end, over other tokens or with other parts, or
    that has seen a video which the manifest holds out, tensors that do not fit or are not finite, a
    part without weights.
    """
    if recipe.init is None:
        return None
    if facts := _of_a_run_without_its_source(recipe.init, path):
        return InitialWeights(facts, {}, None)
    source = Run(Path(recipe.init.run))
    _require_finished(source, recipe.init)
    with torch.device("meta"):  # shapes alone: no weights are made
        model = VideoModel(recipe, cache.shape, make_task(recipe, labels_of(recipe, manifest)))
    _require_same_meaning(recipe, cache, source, model.taken_over)
    seen = SeenVideos.read(source)
    seen.require_unseen(manifest, source)
    tensors = _fitting(source, recipe.init, model)
    checkpoint = source.checkpoint(recipe.init.checkpoint)
    assert checkpoint is not None
    facts = InitFacts(
        run=str(source.path.absolute()),
        checkpoint=recipe.init.checkpoint,
        step=checkpoint.step,
        parts=model.taken_over,
        sha256=digest_of(tensors),
        init=source.header.init,
    )
    return InitialWeights(facts, tensors, seen)


def _of_a_run_without_its_source(init: InitSettings, path: Path) -> InitFacts | None:
    """What the run in folder `path` says that it began with, if it has a checkpoint of its own and
    its source is gone."""
    if (Path(init.run) / RUN_FILE).is_file() or not (path / RUN_FILE).is_file():
        return None
    run = Run(path)
    return run.header.init if run.checkpoint("last") else None


def _require_finished(source: Run, init: InitSettings) -> None:
    """Refuses the last weights of a run that still has steps to go."""
    checkpoint = source.checkpoint(init.checkpoint)
    if init.checkpoint == "last" and checkpoint and checkpoint.step < checkpoint.steps:
        raise BadInput(
            f"run {source.path} is not trained to its end: it is at step {checkpoint.step} of "
            f"{checkpoint.steps}",
            'train it to its end, or take its best weights so far: init.checkpoint = "best"',
        )


def _require_same_meaning(
    recipe: Recipe, cache: Cache, source: Run, parts: tuple[Part, ...]
) -> None:
    """Refuses a run whose weights would mean something else here: another encoder, other layers or
    tokens, a codec that is fitted to other components of them, other parts."""
    layers = source.recipe.model.layers_of(source.spec.encoder.settings.layers)
    here = _meaning(recipe, layers_read(recipe, cache.shape), CacheFacts.of(cache), parts)
    there = _meaning(source.recipe, layers, source.header.cache, parts)
    here["encoder"] = _encoder(cache.spec, cache.header.encoder)
    there["encoder"] = _encoder(source.header.spec, source.header.encoder)
    for plugin in ("encoder", "temporal"):
        if plugin in here and here[plugin]["name"] != there[plugin]["name"]:  # which says all
            here[plugin], there[plugin] = (
                {"name": table[plugin]["name"]} for table in (here, there)
            )
    changed = differences(here, there)
    if changed:
        more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
        raise BadInput(
            f"recipe '{recipe.name}' cannot begin with weights of run {source.path}; here / there: "
            f"{'; '.join(changed[:LISTED])}{more}",
            "train such a run on this cache first, or take fewer parts over: init.parts",
        )


def _encoder(spec: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    table = spec["encoder"]
    return {key: table[key] for key in ("name", plugins.FROM) if key in table} | identity


def _meaning(
    recipe: Recipe, layers: tuple[int, ...], cache: CacheFacts, parts: tuple[Part, ...]
) -> dict[str, Any]:
    """Everything but the encoder that says what the weights of some parts mean."""
    model = recipe.model
    # A codec that rounds numbers leaves them where they are; one that is fitted keeps some
    # components of the tokens, and which, its digest says.
    fitted = cache.codec_sha256 and f"{cache.codec} {cache.codec_sha256}"
    table: dict[str, Any] = {
        "layers": list(layers),
        "model.tokens": model.tokens,
        "fitted codec": fitted,
    }
    if "mixer" in parts:
        table["model.mixer"] = model.mixer
    if "projection" in parts or "temporal" in parts:
        table["model.width"] = model.width
    if "temporal" in parts:
        table["temporal"] = recipe.temporal.table()
    return table


def _fitting(source: Run, init: InitSettings, model: VideoModel) -> dict[str, torch.Tensor]:
    """Name in the model -> what is taken over of it. Raises BadInput where a tensor is missing, of
    another shape or kind, or holds what is no number."""
    stored, fitting = source.tensors(init.checkpoint), {}
    for name, wanted in _wanted(model, with_statistics=init.frozen).items():
        tensor = stored.get(f"model.{name}")
        problem = ""
        if tensor is None:
            problem = "is missing"
        elif (tensor.shape, tensor.dtype) != (wanted.shape, wanted.dtype):
            found, asked = (
                f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}"
                for each in (tensor, wanted)
            )
            problem = f"is {found}, wanted {asked}"
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problem = "holds NaN or infinity"
        if tensor is None or problem:
            raise BadInput(
                f"the {init.checkpoint} checkpoint of run {source.path} cannot be begun with: "
                f"{name} {problem}",
                "give another run or checkpoint, or train that one again",
            )
        fitting[name] = tensor
    return fitting


def _wanted(model: VideoModel, with_statistics: bool) -> dict[str, torch.Tensor]:
    """Name -> tensor of the model's state that is taken over, part by part: running statistics of
    batch norms only where they are to stay."""
    wanted = {}
    for part in model.taken_over:
        module = model.part(part)
        statistics = {
            f"{name}.{buffer}"
            for name, inner in module.named_modules()
            if isinstance(inner, nn.modules.batchnorm._BatchNorm)
            for buffer, _ in inner.named_buffers(recurse=False)
        }
        for name, tensor in module.state_dict().items():
            if with_statistics or name not in statistics:
                wanted[f"{part}.{name}"] = tensor
    return wanted


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over name, shape, kind and bytes of the tensors, one after the other."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
