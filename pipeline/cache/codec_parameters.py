"""Parameters that a fitted codec has learnt are packed into one file, read back checked, and given
to the codec of every token array.

A run keeps a copy of the file, so that a stream goes through the codec that training saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from safetensors import numpy as safetensors

from pipeline.cache.codecs.contract import CodecPlugin, FittedCodec, make_codec
from pipeline.cache.layout import CODEC_FILE
from pipeline.cache.storage.contract import Storage
from pipeline.config.cache_spec import Choice
from pipeline.config.tensor_files import load_arrays
from pipeline.errors import BadInput

UNREADABLE = "its tokens cannot be decoded without it"


def pack_learnt(learnt: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Token array -> what its codec has learnt, as a safetensors file with the names
    `layer_11.basis`."""
    data: bytes = safetensors.save(
        {f"{name}.{key}": array for name, arrays in learnt.items() for key, array in arrays.items()}
    )
    return data


def read_learnt(storage: Storage, sha256: str | None) -> bytes | None:
    """The file of parameters that the codec of the cache or run in `storage` has learnt; None where
    nothing was fitted.

    `sha256` is the checksum that `cache.json` or `run.json` names. Raises BadInput where the file
    cannot be read or differs from it.
    """
    if sha256 is None:
        return None
    file = f"{storage}/{CODEC_FILE}"
    try:
        data = storage.read(CODEC_FILE)
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}", UNREADABLE) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadInput(
            f"{file} is damaged: it differs from its checksum",
            UNREADABLE,
        )
    return data


def codecs_of(
    choice: Choice, names: Iterable[str], learnt: bytes | None, width: int
) -> dict[str, CodecPlugin]:
    """Token array -> its codec: one and the same for all, or a fitted one for each, made ready with
    what was `learnt`. Raises BadInput for a fitted codec without it, or that was fitted to tokens
    of another `width`."""
    codec = make_codec(choice)
    if not isinstance(codec, FittedCodec):
        return dict.fromkeys(names, codec)
    if learnt is None:
        raise BadInput(
            f"codec '{choice.name}' is fitted to the frames of a cache, and there is none here",
            "give a cache instead of a spec",
        )
    arrays = load_arrays(learnt, CODEC_FILE, UNREADABLE)
    codecs: dict[str, CodecPlugin] = {}
    for name in names:
        codec = make_codec(choice)
        assert isinstance(codec, FittedCodec)
        prefix = f"{name}."
        parameters = {
            key.removeprefix(prefix): array
            for key, array in arrays.items()
            if key.startswith(prefix)
        }
        if problem := _misfit(codec, parameters, width):
            raise BadInput(
                f"{CODEC_FILE} is damaged: {problem} for codec '{choice.name}' of '{name}'",
                UNREADABLE,
            )
        codecs[name] = codec
    return codecs


def _misfit(codec: FittedCodec, parameters: Mapping[str, np.ndarray], width: int) -> str:
    """Loads the parameters into the codec; what is wrong with them, "" where tokens of `width` come
    out of it."""
    stored = {
        key: torch.zeros((1, *shape), dtype=torch.from_numpy(np.zeros(0, dtype)).dtype)
        for key, (shape, dtype) in codec.layout(width).items()
    }
    if not all(
        array.dtype == np.float32 and np.isfinite(array).all() for array in parameters.values()
    ):
        return "wanted finite numbers in float32"
    try:
        codec.load(parameters)
        found = codec.decode(stored).shape
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
        return f"it does not hold what is wanted ({str(error).splitlines()[0]})"
    return "" if found == (1, width) else f"it gives tokens {tuple(found)}, wanted (1, {width})"
