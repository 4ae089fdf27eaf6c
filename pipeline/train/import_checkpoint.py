"""The checkpoints released with arXiv 2605.19137 -> runs that `evaluate` and `stream` can use.

A released file is a Lightning `.ckpt` whose state dict holds the trained parts alone. Its names
become ours so:

    model.encoder.interm_mlps.*     mixer.*
    model.sequential_core.*         temporal.*
    model.<readout's names>         readouts.streaming.*   (classification: after `readout.`)
    loss_fn.*                       left out: weights of the loss

The names inside each part are the same on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.config.cache_spec import CacheSpec, fingerprint
from pipeline.config.json_files import to_json
from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import make_encoder, token_shape
from pipeline.models.tasks.contract import STREAMING, TaskPlugin, make_task, task_class
from pipeline.models.video_model import VideoModel
from pipeline.train.run import RUN_FORMAT, CacheFacts, Run, RunHeader, tool_versions
from pipeline.video import probe

PARTS = {"encoder.interm_mlps.": "mixer.", "sequential_core.": "temporal."}
LEFT_OUT = ("loss_fn.",)
BATCHES_SEEN = "num_batches_tracked"
"""A counter of BatchNorm that evaluation does not read; a file may lack it."""


def import_checkpoint(
    file: Path,
    recipe: Recipe,
    source: Cache | CacheSpec,
    out: Path,
    labels: Sequence[str] | None = None,
) -> Run:
    """Writes the run folder `out`: the weights in `file` as the last checkpoint of `recipe`.

    `source` is the cache the run is to be scored on, or the spec of the tokens it reads (the
    encoder is then loaded once, to tell its identity). `labels`: names of the classes in the order
    of the file's outputs; they are put into the manifest's order. Raises BadInput: a file that
    holds more than tensors, names or shapes that do not fit (all are listed), labels that are
    missing, `out` taken.
    """
    if (out / "run.json").exists():
        raise BadInput(f"{out} already holds a run", "use another --out")
    weights = read_weights(file)
    if "label" in task_class(recipe).needs and not labels:
        raise BadInput(
            f"task '{recipe.task.name}' needs the names of the classes in the order of the "
            "checkpoint's outputs",
            "give --labels FILE: a JSON object name -> number, such as the data set's own labels "
            "file, or one name per line",
        )
    names = tuple(sorted(labels or ()))
    task = make_task(recipe, names)
    shape = source.shape if isinstance(source, Cache) else token_shape(source)
    model = VideoModel(recipe, shape, task)
    fitted = _fit(file, weights, model, task, [list(labels or ()).index(name) for name in names])
    header = _header(recipe, source, model, names)
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Cache):
        source.copy_learnt(out)
    write_atomically(out / "run.json", to_json(header))
    run = Run(out)
    loss_weights = {f"task.{name}": tensor for name, tensor in task.state_dict().items()}
    run.save(
        "last",
        {f"model.{name}": tensor for name, tensor in fitted.items()} | loss_weights,
        step=0,
        steps=0,
        best=None,
    )
    return run


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """name -> tensor of a `.ckpt`, without the prefix `model.` and what is left out. Unpickles
    nothing but plain data."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of any other kind fails in many ways
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise BadInput(
            f"checkpoint {file} cannot be read as plain tensors: {reason}",
            "only state dicts of tensors are read; nothing in a file is ever executed",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise BadInput(
            f"checkpoint {file} holds no state dict of tensors", "give a Lightning .ckpt"
        )
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(LEFT_OUT)}
    return {name.removeprefix("model."): tensor for name, tensor in kept.items()}


def read_labels(file: Path) -> list[str]:
    """Class names in the order of their numbers: a JSON object name -> number, a JSON list, or one
    name per line."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"labels {file} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        table = json.loads(text)
    except ValueError:
        table = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(table, dict):
        numbers = sorted((int(number), name) for name, number in table.items())
        if [number for number, _ in numbers] != list(range(len(numbers))):
            raise BadInput(f"labels {file}: wanted the numbers 0 to {len(numbers) - 1}, each once")
        table = [name for _, name in numbers]
    names = [str(name) for name in table] if isinstance(table, list) else []
    if not names or len(set(names)) != len(names):
        raise BadInput(
            f"labels {file}: wanted names, each once, found {len(names)} "
            f"of which {len(set(names))} differ"
        )
    return names


def _fit(
    file: Path,
    weights: dict[str, torch.Tensor],
    model: VideoModel,
    task: TaskPlugin,
    order: Sequence[int],
) -> dict[str, torch.Tensor]:
    """`weights` under the model's names; raises BadInput with every name that is missing, left over
    or of another shape."""
    readout = f"readouts.{STREAMING}."
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        part = next((part for part in PARTS if name.startswith(part)), None)
        ours = (
            PARTS[part] + name.removeprefix(part)
            if part
            else readout + name.removeprefix(task.published)
        )
        renamed[ours] = tensor
    expected = model.state_dict()
    counters = {name: x for name, x in expected.items() if name.endswith(BATCHES_SEEN)}
    renamed = counters | renamed
    problems = [f"{name} is missing" for name in expected if name not in renamed]
    problems += [f"{name} has no place" for name in renamed if name not in expected]
    problems += [
        f"{name} is {tuple(renamed[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in renamed and renamed[name].shape != tensor.shape
    ]
    if problems:
        raise BadInput(
            f"checkpoint {file} does not fit the recipe, {len(problems)} of {len(expected)} "
            f"tensors: {'; '.join(problems)}",
            "choose the recipe of its task and temporal module, with the encoder it was trained on",
        )
    inner = {
        name.removeprefix(readout): tensor
        for name, tensor in renamed.items()
        if name.startswith(readout)
    }
    return renamed | {readout + name: tensor for name, tensor in task.reorder(inner, order).items()}


def _header(
    recipe: Recipe, source: Cache | CacheSpec, model: VideoModel, labels: tuple[str, ...]
) -> RunHeader:
    if isinstance(source, Cache):
        facts, spec, encoder = CacheFacts.of(source), source.spec, source.header.encoder
        address = source.storage.address
    else:
        encoder = make_encoder(source, torch.device("cpu")).identity
        digits = fingerprint(source, encoder, probe.decoder_identity())
        facts = CacheFacts(
            name=f"{source.name}-{digits}", fingerprint=digits, codec=source.codec.name
        )
        spec, address = source.canonical(), None
    return RunHeader(
        format_version=RUN_FORMAT,
        recipe=recipe.canonical(),
        cache=facts,
        manifest=None,
        labels=labels,
        spec=spec,
        encoder=encoder,
        cache_path=address,
        manifest_path=None,
        parameters=model.parameter_counts(),
        clips={},
        versions=tool_versions(),
    )
