"""The released weights of RVM, recurrent video masked autoencoders: their names in a .npz file, and
the tensors that are made of them.

Names are those of flax modules, joined by slashes; every size is taken from the shapes of the
arrays. A file holds an image encoder, a recurrent core, and what reconstructs pixels, which is not
read. Kernels of flax are (in, out), those of attention (in, heads, channels of a head).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config.npz_files import NpzFile, sha256_of, short
from pipeline.errors import BadInput, count_text

HINT = "docs/guide/rvm.md says where to fetch it"
ENCODER, CORE = ("cls_token", "tokenizer/", "encoder/"), ("rnn_core/",)
"""How the names of a part begin."""
RECONSTRUCTION = ("mask_token", "decoder_embedder/", "delta_embedder/", "decoder/", "detokenizer/")
"""How names begin that are known and not read."""
CONV = "tokenizer/patch_embedding/Conv_0"
XA_BLOCKS = "rnn_core/transformer/xa_blocks"
GATES = ("input_update", "input_reset", "state_update", "state_reset")


class Sizes(NamedTuple):
    """Sizes of a stack of transformer blocks."""

    width: int
    """D."""
    layers: int
    heads: int
    hidden: int
    """Channels inside of an MLP."""


Get = Callable[[str], np.ndarray]


class _Part:
    """A part of the model: the shapes that its arrays have, and the tensors made of them."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.tensors: dict[str, Callable[[Get], np.ndarray]] = {}

    def put(
        self,
        name: str,
        shape: tuple[int, ...],
        target: str,
        turn: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ) -> None:
        """The tensor `target` is the array `name`, turned."""
        self.shapes[name] = shape
        self.tensors[target] = lambda get: turn(get(name))

    def norm(self, name: str, target: str) -> None:
        self.put(f"{name}/scale", (self.sizes.width,), f"{target}.weight")
        self.put(f"{name}/bias", (self.sizes.width,), f"{target}.bias")

    def mlp(self, name: str, target: str) -> None:
        width, hidden = self.sizes.width, self.sizes.hidden
        for dense, linear, (inputs, outputs) in (
            ("dense_in", "fc1", (width, hidden)),
            ("dense_out", "fc2", (hidden, width)),
        ):
            self.put(
                f"{name}/{dense}/kernel",
                (inputs, outputs),
                f"{target}.{linear}.weight",
                np.transpose,
            )
            self.put(f"{name}/{dense}/bias", (outputs,), f"{target}.{linear}.bias")

    def attention(self, name: str, target: str) -> None:
        """Queries, keys and values become one projection, in this order."""
        width, heads = self.sizes.width, self.sizes.heads
        split = (heads, width // heads)
        names = [f"{name}/{each}" for each in ("query", "key", "value")]
        for each in names:
            self.shapes[f"{each}/kernel"], self.shapes[f"{each}/bias"] = (width, *split), split
        self.tensors[f"{target}.in_proj_weight"] = lambda get: np.concatenate(
            [get(f"{each}/kernel").reshape(width, width).T for each in names]
        )
        self.tensors[f"{target}.in_proj_bias"] = lambda get: np.concatenate(
            [get(f"{each}/bias").reshape(width) for each in names]
        )
        self.put(
            f"{name}/out/kernel",
            (*split, width),
            f"{target}.out_proj.weight",
            lambda kernel: kernel.reshape(width, width).T,
        )
        self.put(f"{name}/out/bias", (width,), f"{target}.out_proj.bias")


def encoder_sizes(path: Path) -> tuple[Sizes, int]:
    """Sizes of the image encoder in a file, and the side of its patches in pixels. No numbers are
    read. Raises BadInput for a file that does not hold an encoder of RVM whole."""
    with _open(path) as file:
        part, patch_px = _encoder(path, file.shapes)
    return part.sizes, patch_px


def encoder_weights(path: Path, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """The `wanted` tensors of the image encoder in a file. Raises BadInput, also for numbers that
    are not finite."""
    with _open(path) as file:
        return _tensors(file, _encoder(path, file.shapes)[0], wanted)


def core_sizes(path: Path) -> Sizes:
    """Sizes of the recurrent core in a file. No numbers are read. Raises BadInput for a file that
    does not hold a core of RVM whole."""
    with _open(path) as file:
        return _core(path, file.shapes).sizes


def core_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the recurrent core in a file. Raises BadInput, also for numbers that are not
    finite."""
    with _open(path) as file:
        part = _core(path, file.shapes)
        return _tensors(file, part, part.tensors)


def weights_path(name: str) -> Path:
    """The file that a user's setting names."""
    # Path.expanduser raises where there is no such user.
    return Path(os.path.expanduser(name))  # noqa: PTH111


def weights_sha256(path: Path) -> str:
    """What sha256sum says of the file. Raises BadInput where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise BadInput(f"weights of RVM {path} cannot be read: {error.strerror}", HINT) from error


def _open(path: Path) -> NpzFile:
    return NpzFile(path, "weights of RVM", HINT)


def _encoder(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[_Part, int]:
    part = _Part(_sizes(path, shapes, "encoder/layers", "attention"))
    patch_px = _shape(path, shapes, f"{CONV}/kernel", 4)[0]
    width = part.sizes.width
    part.put("cls_token", (width,), "cls_token")
    part.put(
        f"{CONV}/kernel",
        (patch_px, patch_px, 3, width),
        "patch_embedding.weight",
        lambda kernel: kernel.transpose(3, 2, 0, 1),
    )
    part.put(f"{CONV}/bias", (width,), "patch_embedding.bias")
    for i in range(part.sizes.layers):
        source, target = f"encoder/layers_{i}", f"blocks.{i}"
        part.norm(f"{source}/attention_norm", f"{target}.sa_norm")
        part.attention(f"{source}/attention", f"{target}.sa_attn")
        part.norm(f"{source}/mlp_norm", f"{target}.mlp_norm")
        part.mlp(f"{source}/mlp", f"{target}.mlp")
    part.norm("encoder/LayerNorm_0", "norm")
    _compare(path, shapes, part, ENCODER, "encoder")
    return part, patch_px


def _core(path: Path, shapes: dict[str, tuple[int, ...]]) -> _Part:
    part = _Part(_sizes(path, shapes, XA_BLOCKS, "ca_attention"))
    width = part.sizes.width
    for gate in GATES:
        part.put(f"rnn_core/{gate}/kernel", (width, width), f"{gate}.weight", np.transpose)
    part.put("rnn_core/state_layer_norm/scale", (width,), "state_layer_norm.weight")
    for i in range(part.sizes.layers):
        source, target = f"{XA_BLOCKS}_{i}", f"transformer.layers.{i}"
        part.norm(f"{source}/ca_attention_norm", f"{target}.ca_norm")
        part.attention(f"{source}/ca_attention", f"{target}.ca_attn")
        part.norm(f"{source}/mlp_norm", f"{target}.mlp_norm")
        part.mlp(f"{source}/mlp", f"{target}.mlp")
        part.norm(f"{source}/attention_norm", f"{target}.sa_norm")
        part.attention(f"{source}/attention", f"{target}.sa_attn")
    part.norm("rnn_core/transformer/output_norm", "transformer.output_norm")
    _compare(path, shapes, part, CORE, "core")
    return part


def _sizes(path: Path, shapes: dict[str, tuple[int, ...]], blocks: str, attention: str) -> Sizes:
    """Sizes of the blocks whose names begin with `blocks`, by their count and the first of them."""
    query = f"{blocks}_0/{attention}/query/kernel"
    width, heads, channels = _shape(path, shapes, query, 3)
    if heads * channels != width:
        raise BadInput(
            f"weights of RVM {path}: {query} has {heads} heads of {channels} channels for a width "
            f"of {width}; wanted as many channels in all",
            HINT,
        )
    _, hidden = _shape(path, shapes, f"{blocks}_0/mlp/dense_in/kernel", 2)
    numbers = {match[1] for name in shapes if (match := re.match(rf"{blocks}_(\d+)/", name))}
    return Sizes(width, len(numbers), heads, hidden)


def _shape(path: Path, shapes: dict[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
    """The last `axes` lengths of an array that sizes are taken from."""
    if name not in shapes:
        raise BadInput(f"weights of RVM {path} lack the array {name}", HINT)
    if len(shapes[name]) < axes:
        raise BadInput(
            f"weights of RVM {path}: {name} has shape {shapes[name]}, wanted {axes} axes", HINT
        )
    return shapes[name][-axes:]


def _compare(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    part: _Part,
    starts: Collection[str],
    what: str,
) -> None:
    """Raises BadInput unless the file holds the arrays of a part, in their shapes, and no others
    than RVM has."""
    missing = [name for name in part.shapes if name not in shapes]
    if missing:
        raise BadInput(
            f"weights of RVM {path} lack {len(missing)} of the {len(part.shapes)} arrays of the "
            f"{what}, the first is {missing[0]}",
            HINT,
        )
    others = tuple(start for start in (*ENCODER, *CORE, *RECONSTRUCTION) if start not in starts)
    strange = [name for name in shapes if name not in part.shapes and not name.startswith(others)]
    if strange:
        raise BadInput(
            f"weights of RVM {path} hold {count_text(len(strange), 'array')} that RVM does not "
            f"have, the first is {short(strange[0])}",
            HINT,
        )
    for name, wanted in part.shapes.items():
        if _without_ones(shapes[name], len(wanted)) != wanted:
            raise BadInput(
                f"weights of RVM {path}: {name} has shape {shapes[name]}, wanted {wanted}", HINT
            )


def _without_ones(shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """A shape without leading lengths of 1 that are too many: a convolution over one frame and one
    over an image have the same numbers."""
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return shape


def _tensors(file: NpzFile, part: _Part, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    def get(name: str) -> np.ndarray:
        return file.array(name).reshape(part.shapes[name])

    return {
        target: torch.from_numpy(np.ascontiguousarray(make(get)))
        for target, make in part.tensors.items()
        if target in wanted
    }
