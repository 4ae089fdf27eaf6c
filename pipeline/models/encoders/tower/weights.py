"""A tower with its weights, read from safetensors or drawn from a seed, and their SHA-256."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import BadInput
from pipeline.models.encoders.tower.config import quiet, reason
from pipeline.models.encoders.tower.files import json_object, weight_files
from pipeline.models.encoders.tower.model_types import MODEL_TYPES

NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Number formats of weights that are not quantised."""
SPARE = ("pooler.", "head.", "embeddings.mask_token")
"""How the names of parameters begin that no token needs: they may be missing from a file."""


def empty_tower(config: Any) -> Any:
    """The tower that a configuration describes, with the numbers that its constructor gives it."""
    return _model_class(config)._from_config(_build_config(config), attn_implementation="sdpa")


def pretrained_tower(folder: Path, config: Any) -> tuple[Any, str]:
    """The tower with the folder's weights, in float32, and the sha256 of its weight files (one
    file: what sha256sum says)."""
    files = weight_files(folder)
    weights = tensors_of(folder, files)
    model_class, build = _model_class(config), _build_config(config)
    tower, report = with_weights(folder, model_class, build, weights)
    if _missing(report) and (inner := _inner_tower(weights, tower)):
        tower, report = with_weights(folder, model_class, build, inner)
    _refuse_incomplete(folder, config, report)
    refuse_mismatched(folder, report)
    return tower, weights_digest(files)


def weights_digest(files: list[Path]) -> str:
    """SHA-256 of weight files, one after the other. Files that are as they were when this process
    last read them are not read again: both halves of an image-text model are in the same ones."""
    stats = [(file, file.stat()) for file in files]
    return _digest_of(
        tuple((file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    )


@cache
def _digest_of(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """SHA-256 of files, each with its inode, size and time of change."""
    digest = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as stream:
            while chunk := stream.read(2**22):
                digest.update(chunk)
    return digest.hexdigest()


def random_tower(config: Any, seed: int) -> tuple[Any, str]:
    """A tower with random weights, and the sha256 of their names and bytes. The global generator is
    left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tower = empty_tower(config)
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return tower, digest.hexdigest()


def with_weights(
    folder: Path,
    model_class: Any,
    config: Any,
    weights: dict[str, torch.Tensor],
    attention: str = "sdpa",
) -> tuple[Any, dict[str, Any]]:
    """A model of a class of transformers with `weights`, which are those of a folder, in float32,
    and what transformers reports of them. Raises BadInput where it cannot be made."""
    try:
        with quiet():
            # The weights are handed over, so that transformers opens no file of the folder.
            tower, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                dtype=torch.float32,
                attn_implementation=attention,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers fails in any way over what it did not foresee
        raise BadInput(
            f"the weights in {folder} cannot be read: {reason(error)}",
            "fetch or convert them again",
        ) from error
    return tower, report


def _missing(report: dict[str, Any]) -> list[str]:
    """The tower's weights that the files did not have, without those that no token needs."""
    return sorted(name for name in report["missing_keys"] if not name.startswith(SPARE))


def _inner_tower(weights: dict[str, torch.Tensor], tower: Any) -> dict[str, torch.Tensor]:
    """The weights of a tower inside a larger model, by the tower's own names: those whose names
    begin as that of its patch embedding does. Empty where there is no such name, or more than
    one."""
    patch_embedding = next(
        name for name in tower.state_dict() if "patch" in name and name.endswith("weight")
    )
    starts = [
        name.removesuffix(patch_embedding)
        for name in weights
        if name.endswith("." + patch_embedding)
    ]
    if len(starts) != 1:
        return {}
    start = starts[0]
    return {
        name.removeprefix(start): tensor
        for name, tensor in weights.items()
        if name.startswith(start)
    }


def _model_class(config: Any) -> Any:
    import transformers

    return getattr(transformers, MODEL_TYPES[config.model_type].model_class)


def _build_config(config: Any) -> Any:
    """The configuration that the tower is made with: as it was read, but with what its type fixes,
    and a square image's size as one number, which is all that some types understand."""
    config = copy.deepcopy(config)
    for key, value in MODEL_TYPES[config.model_type].fixed:
        setattr(config, key, value)
    size = getattr(config, "image_size", None)
    if isinstance(size, list | tuple) and len({*size}) == 1:
        config.image_size = size[0]
    # Would replace modules by fused ones, whose numbers differ.
    config.fusion_config = None
    return config


def tensors_of(folder: Path, files: list[Path]) -> dict[str, torch.Tensor]:
    """name -> tensor of all files. Raises BadInput where one is no safetensors file, or holds
    quantised weights."""
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadInput(
                f"the weights in {file} cannot be read: {reason(error)}",
                "fetch or convert them again",
            ) from error
    quantised = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in sorted(weights.items())
        if name.endswith(("weight", "bias")) and tensor.dtype not in NUMBERS
    ]
    if quantised:
        raise BadInput(
            f"{folder} holds {len(quantised)} quantised weights, the first is {quantised[0]}: "
            "quantised weights are not read",
            'use the model as it was before; precision = "bfloat16" halves its memory',
        )
    return weights


def _refuse_incomplete(folder: Path, config: Any, report: dict[str, Any]) -> None:
    """Raises BadInput where the files did not give the tower every weight that tokens need, in its
    shape: transformers fills such weights with random numbers."""
    missing = _missing(report)
    whole_type = json_object(folder / "config.json").get("model_type")
    if missing and whole_type != config.model_type:
        raise BadInput(
            f"{folder} is a whole {whole_type} model, and its weights lack {len(missing)} of those "
            f"of its vision tower ({config.model_type}), the first is {missing[0]}",
            "fetch it again; or load it with transformers, and call save_pretrained of its vision "
            "tower, which then is a model of its own",
        )
    if missing:
        raise BadInput(
            f"{folder} lacks {len(missing)} weights of the tower, the first is {missing[0]}",
            "fetch it again",
        )


def refuse_mismatched(folder: Path, report: dict[str, Any]) -> None:
    """Raises BadInput where weights have other shapes than their model."""
    mismatched = sorted(
        (str(name), tuple(shape), tuple(tower_shape))
        for name, shape, tower_shape in report["mismatched_keys"]
        if not str(name).startswith(SPARE)
    )
    if mismatched:
        name, shape, tower_shape = mismatched[0]
        raise BadInput(
            f"{folder}: {len(mismatched)} weights do not fit its config.json, the first is {name}, "
            f"of shape {shape} where {tower_shape} is wanted",
            "fetch both again",
        )
