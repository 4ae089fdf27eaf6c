"""The checkpoints released with arXiv 2605.19137 -> runs that `evaluate` and `stream` can use.

A released file is a Lightning `.ckpt` whose state dict holds the trained parts, with or without the
frozen encoder. Its names become ours so:

    model.encoder.interm_mlps.*     mixer.*
    model.sequential_core.*         temporal.*
    model.<readout's names>         readouts.streaming.*   (classification: after `readout.`)
    model.encoder.*, all others     left out: the encoder, whose tokens a cache or a spec gives
    loss_fn.*                       left out: weights of the loss

The names inside each part are the same on both sides. What a file of trained parameters alone lacks
is filled in where its value is known (`DEFINED`); running statistics of a batch norm are not.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.config.cache_spec import CacheSpec, fingerprint
from pipeline.config.json_files import json_value, sealed_json
from pipeline.config.recipe import Recipe
from pipeline.config.regular_files import read_regular
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import make_encoder, token_shape
from pipeline.models.tasks.contract import STREAMING, TaskPlugin, make_task, task_class
from pipeline.models.video_model import VideoModel
from pipeline.train.run import RUN_FORMAT, CacheFacts, Run, RunHeader, tool_versions
from pipeline.train.weights.pickled import StoredTensor
from pipeline.train.weights.torch_file import TorchFile
from pipeline.video.on_device import identity_of_decoder

PARTS = {"encoder.interm_mlps.": "mixer.", "sequential_core.": "temporal."}
LEFT_OUT = ("loss_fn.",)
ENCODER = "encoder."
"""Begins the names of the frozen encoder, those of the layer mixer in `PARTS` excepted."""
DEFINED = {
    "num_batches_tracked": "a counter that nothing reads",
    "fourier_enc.freqs": "constants of the method",
}
"""How the names end of what a file may lack: the model made of the recipe has the right value."""
STATISTICS = ("running_mean", "running_var")
"""How the names of a batch norm's running statistics end."""
MOST_LABEL_BYTES = 2**24
LISTED = 8
"""Names in a message about weights that are no finite numbers."""


def import_checkpoint(
    file: Path,
    recipe: Recipe,
    source: Cache | CacheSpec,
    out: Path,
    labels: Sequence[str] | None = None,
    say: Callable[[str], object] = lambda _note: None,
) -> Run:
    """Writes the run folder `out`: the weights in `file` as the last checkpoint of `recipe`.

    `source` is the cache the run is to be scored on, or the spec of the tokens it reads (the
    encoder is then loaded once, to tell its identity). `labels`: names of the classes in the order
    of the file's outputs; they are put into the manifest's order. `say` is told what was left out
    and what was filled in. Raises BadInput: a file without a state dict of tensors, names or shapes
    that do not fit (all are listed), weights that are no finite numbers, labels that are missing,
    `out` taken.
    """
    if (out / "run.json").exists():
        raise BadInput(f"{out} already holds a run", "use another --out")
    weights = read_weights(file, say)
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
    order = [list(labels or ()).index(name) for name in names]
    fitted = _fit(file, weights, model, task, order, say)
    header = _header(recipe, source, model, names)
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Cache):
        source.copy_learnt(out)
    write_atomically(out / "run.json", sealed_json(header))
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


def read_weights(
    file: Path, say: Callable[[str], object] = lambda _note: None
) -> dict[str, torch.Tensor]:
    """name -> tensor of a `.ckpt`, without the prefix `model.` and without what is left out.

    Nothing in the file is executed, and what is no tensor of the state dict is not looked at.
    Raises BadInput.
    """
    try:
        with TorchFile(file) as opened:
            return _state(file, opened, say)
    except BadInput:
        raise
    except Exception as error:  # a file of any other kind fails in many ways
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInput(
            f"checkpoint {file} cannot be read as plain tensors: "
            f"{textwrap.shorten(reason, 200, placeholder=' ...')}",
            "give a file as torch.save writes it; nothing in it is ever executed",
        ) from error


def _state(file: Path, opened: TorchFile, say: Callable[[str], object]) -> dict[str, torch.Tensor]:
    """The tensors of the state dict that are not left out."""
    content = opened.content
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    tensors = isinstance(state, dict) and any(isinstance(x, StoredTensor) for x in state.values())
    if not isinstance(state, dict) or not tensors:
        raise BadInput(
            f"checkpoint {file} holds no state dict of tensors", "give a Lightning .ckpt"
        )
    named = {name.removeprefix("model."): value for name, value in state.items()}
    frozen = [
        name for name in named if name.startswith(ENCODER) and not name.startswith(tuple(PARTS))
    ]
    if frozen:
        say(
            f"left out: {len(frozen)} tensors of the frozen encoder ({frozen[0]}, ...); tokens are "
            "those of the encoder that the cache or spec names"
        )
    left_out = {*frozen, *(name for name in named if name.startswith(LEFT_OUT))}
    weights = {}
    for name, value in named.items():
        if name in left_out:
            continue
        if not isinstance(value, StoredTensor):
            raise BadInput(
                f"checkpoint {file}: {name} in its state dict is no plain tensor",
                "give a file whose state dict holds tensors alone",
            )
        try:
            weights[name] = opened.tensor(value)
        except ValueError as error:
            raise BadInput(f"checkpoint {file}: {name} cannot be read: {error}") from error
    return weights


def read_labels(file: Path) -> list[str]:
    """Class names in the order of their numbers: a JSON object name -> number, a JSON list, or one
    name per line."""
    try:
        text = read_regular(file, MOST_LABEL_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"labels {file} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        table = json_value(text)
    except ValueError:
        table = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(table, dict):
        try:
            numbers = sorted((int(number), name) for name, number in table.items())
        except (TypeError, ValueError, OverflowError):  # the last: infinity
            raise BadInput(
                f"labels {file}: wanted an object name -> number, found a value that is no number"
            ) from None
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
    say: Callable[[str], object],
) -> dict[str, torch.Tensor]:
    """`weights` under the model's names; raises BadInput with every name that is missing, left over
    or of another shape, and with those that are no finite numbers."""
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
    renamed = _defined(expected, renamed, say) | renamed
    _require_statistics(file, expected, renamed)
    problems = [f"{name} is missing" for name in expected if name not in renamed]
    problems += [f"{name} has no place" for name in renamed if name not in expected]
    problems += [
        f"{name} is {tuple(renamed[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in renamed and renamed[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, wanted numbers with a fraction"
        for name, tensor in renamed.items()
        if name in expected
        and expected[name].is_floating_point()
        and not tensor.is_floating_point()
    ]
    if problems:
        raise BadInput(
            f"checkpoint {file} does not fit the recipe, {len(problems)} of {len(expected)} "
            f"tensors: {'; '.join(problems)}",
            "choose the recipe of its task and temporal module, with the encoder it was trained on",
        )
    _require_finite(file, renamed)
    inner = {
        name.removeprefix(readout): tensor
        for name, tensor in renamed.items()
        if name.startswith(readout)
    }
    return renamed | {readout + name: tensor for name, tensor in task.reorder(inner, order).items()}


def _defined(
    expected: dict[str, torch.Tensor],
    renamed: dict[str, torch.Tensor],
    say: Callable[[str], object],
) -> dict[str, torch.Tensor]:
    """What the file lacks and the recipe's model has at its right value; it is said, unless nothing
    ever reads it."""
    filled: dict[str, torch.Tensor] = {}
    for end, why in DEFINED.items():
        names = [name for name in expected if name.endswith(end) and name not in renamed]
        filled |= {name: expected[name] for name in names}
        if names and end != "num_batches_tracked":
            say(f"filled in: {', '.join(names)}, which the file lacks: {why}")
    return filled


def _require_statistics(
    file: Path, expected: dict[str, torch.Tensor], renamed: dict[str, torch.Tensor]
) -> None:
    """Raises BadInput where the file has a batch norm's weights without its running statistics: the
    loader of the paper's code then norms tokens by mean 0 and variance 1, which they do not have,
    and its answers mean nothing."""
    lacking = [
        name
        for name in expected
        if name.endswith(STATISTICS)
        and name not in renamed
        and f"{name.rpartition('.')[0]}.weight" in renamed
    ]
    if lacking:
        raise BadInput(
            f"checkpoint {file} lacks {len(lacking)} running statistics of batch norms, the first "
            f"is {lacking[0]}: they cannot be told from the other weights, and without them every "
            "answer would be wrong",
            "save the module's whole state_dict(), which has its buffers, not its parameters alone",
        )


def _require_finite(file: Path, weights: dict[str, torch.Tensor]) -> None:
    """Raises BadInput that names weights that are NaN or infinite, and variances below 0."""
    wrong = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point()
        and not (
            tensor.isfinite().all() and (not name.endswith("running_var") or (tensor >= 0).all())
        )
    ]
    if wrong:
        listed = ", ".join(wrong[:LISTED]) + (", ..." if len(wrong) > LISTED else "")
        raise BadInput(
            f"checkpoint {file}: {len(wrong)} of {len(weights)} tensors hold NaN, infinity or a "
            f"negative variance: {listed}",
            "its training had failed; give an earlier checkpoint",
        )


def _header(
    recipe: Recipe, source: Cache | CacheSpec, model: VideoModel, labels: tuple[str, ...]
) -> RunHeader:
    if isinstance(source, Cache):
        facts, spec, encoder = CacheFacts.of(source), source.spec, source.header.encoder
        address = source.storage.address
    else:
        device = torch.device("cpu")
        encoder = make_encoder(source, device).identity
        digits = fingerprint(source, encoder, identity_of_decoder(source.frames.decoder, device))
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
