"""A tower with its weights, read from safetensors or drawn from a seed, and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.errors import BadInput
from pipeline.models.encoders.tower.config import UNUSABLE, reason
from pipeline.models.encoders.tower.files import weight_files


def pretrained_tower(folder: Path, config: Any) -> tuple[Any, str]:
    """The tower with the folder's weights, in float32, and the sha256 of its weight files (one
    file: what sha256sum says)."""
    files = weight_files(folder)
    try:
        with _quiet():
            tower, report = transformers.AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except UNUSABLE as error:
        raise BadInput(
            f"the weights in {folder} cannot be read: {reason(error)}",
            "fetch or convert them again",
        ) from error
    # transformers fills what it does not find with random numbers; pooling heads alone may go
    # missing, as no token needs them.
    missing = sorted(
        key for key in report["missing_keys"] if not key.startswith(("pooler.", "head."))
    )
    if missing:
        raise BadInput(
            f"{folder} lacks {len(missing)} weights of the tower, the first is {missing[0]}",
            "fetch it again",
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(2**22):
                digest.update(chunk)
    return tower, digest.hexdigest()


def random_tower(config: Any, seed: int) -> tuple[Any, str]:
    """A tower with random weights, and the sha256 of their names and bytes. The global generator is
    left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            tower = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
        except UNUSABLE as error:
            raise BadInput(f"config of {config.model_type}: {reason(error)}") from error
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return tower, digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' loading report and progress bars; what they were set to comes back."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
