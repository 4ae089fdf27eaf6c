"""Random weights of RVM under the names of the released files, and RVM computed from them by NumPy alone in float64.

The reference knows nothing of the project: it was written from the published equations.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
CONV = "tokenizer/patch_embedding/Conv_0"


def random_weights(
    width: int = 24,
    layers: int = 3,
    heads: int = 3,
    hidden: int = 40,
    patch_px: int = 16,
    core_layers: int = 2,
    core_heads: int = 4,
    core_hidden: int = 52,
    seed: int = 0,
) -> Arrays:
    """Name -> array of a model whose every size is another; norms and biases are random too."""
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}

    def put(name: str, *shape: int, around: float = 0.0, scale: float = 0.1) -> None:
        arrays[name] = (around + scale * generator.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        put(f"{name}/scale", width, around=1)
        put(f"{name}/bias", width)

    def dense(name: str, inputs: int, outputs: int) -> None:
        put(f"{name}/kernel", inputs, outputs, scale=inputs**-0.5)
        put(f"{name}/bias", outputs)

    def attention(name: str, heads: int) -> None:
        for part in ("query", "key", "value"):
            put(f"{name}/{part}/kernel", width, heads, width // heads, scale=width**-0.5)
            put(f"{name}/{part}/bias", heads, width // heads)
        put(f"{name}/out/kernel", heads, width // heads, width, scale=width**-0.5)
        put(f"{name}/out/bias", width)

    def mlp(name: str, hidden: int) -> None:
        dense(f"{name}/dense_in", width, hidden)
        dense(f"{name}/dense_out", hidden, width)

    put("cls_token", 1, 1, width)
    put(f"{CONV}/kernel", 1, patch_px, patch_px, 3, width, scale=0.05)
    put(f"{CONV}/bias", width)
    for i in range(layers):
        norm(f"encoder/layers_{i}/attention_norm")
        attention(f"encoder/layers_{i}/attention", heads)
        norm(f"encoder/layers_{i}/mlp_norm")
        mlp(f"encoder/layers_{i}/mlp", hidden)
    norm("encoder/LayerNorm_0")
    for gate in ("input_update", "input_reset", "state_update", "state_reset"):
        put(f"rnn_core/{gate}/kernel", width, width, scale=width**-0.5)
    put("rnn_core/state_layer_norm/scale", width, around=1)
    for i in range(core_layers):
        block = f"rnn_core/transformer/xa_blocks_{i}"
        for part in ("ca_attention", "attention"):
            norm(f"{block}/{part}_norm")
            attention(f"{block}/{part}", core_heads)
        norm(f"{block}/mlp_norm")
        mlp(f"{block}/mlp", core_hidden)
    norm("rnn_core/transformer/output_norm")
    put("mask_token", 1, 8)
    dense("decoder_embedder", width, 8)
    dense("delta_embedder", 64, 8)
    put("decoder/output_norm/scale", 8)
    dense("detokenizer/Dense_0", 8, 12)
    return arrays


def write(path: Path, arrays: Arrays | None = None) -> Path:
    np.savez(path, **(random_weights() if arrays is None else arrays))
    return path


@cache
def small_file(width: int) -> Path:
    """A file of random weights of `width`, which goes when the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="rvm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write(folder / "released.npz", random_weights(width, heads=2, core_heads=2))


def _blocks(arrays: Arrays, start: str) -> list[str]:
    return [f"{start}_{i}" for i in range(99) if f"{start}_{i}/mlp_norm/scale" in arrays]


def _norm(arrays: Arrays, name: str, x: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    bias = arrays.get(f"{name}/bias", np.zeros(1))
    return y * arrays[f"{name}/scale"].astype(float) + bias


def _attention(arrays: Arrays, name: str, x: np.ndarray, kv: np.ndarray) -> np.ndarray:
    q, k, v = (
        np.einsum("nd,dhc->hnc", tokens, arrays[f"{name}/{part}/kernel"].astype(float))
        + arrays[f"{name}/{part}/bias"][:, None]
        for part, tokens in (("query", x), ("key", kv), ("value", kv))
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    out = np.einsum("hnc,hcd->nd", mixed, arrays[f"{name}/out/kernel"].astype(float))
    return out + arrays[f"{name}/out/bias"]


def _mlp(arrays: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    x = x @ arrays[f"{name}/dense_in/kernel"].astype(float) + arrays[f"{name}/dense_in/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ arrays[f"{name}/dense_out/kernel"].astype(float) + arrays[f"{name}/dense_out/bias"]


def positions(side: int, width: int) -> np.ndarray:
    """(side * side, width): the table of the 16 x 16 grid, resized as jax.image.resize does with method "bicubic"."""
    table = np.zeros((256, width))
    for place in range(256):
        for channel in range(width):
            angle = place / 10_000 ** (2 * (channel // 2) / width)
            table[place, channel] = np.cos(angle) if channel % 2 else np.sin(angle)
    weights = np.zeros((side, 16))
    reach = max(16 / side, 1)
    for i in range(side):
        for j in range(16):
            x = abs((i + 0.5) * 16 / side - 0.5 - j) / reach
            if x < 1:
                weights[i, j] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[i, j] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights /= weights.sum(1, keepdims=True)
    grid = np.einsum("ia,jb,abd->ijd", weights, weights, table.reshape(16, 16, width))
    return grid.reshape(side * side, width)


def encoder(arrays: Arrays, frame_CHW: np.ndarray) -> list[np.ndarray]:
    """The normed tokens (1 + P, D) after every block, CLS first, of one uint8 frame."""
    kernel = arrays[f"{CONV}/kernel"].astype(float)
    patch_px, width = kernel.shape[-3], kernel.shape[-1]
    side = frame_CHW.shape[-1] // patch_px
    pixels = frame_CHW.astype(float) / 255
    cut = pixels.reshape(3, side, patch_px, side, patch_px).transpose(1, 3, 2, 4, 0)
    x = cut.reshape(side * side, -1) @ kernel.reshape(-1, width)
    x = x + arrays[f"{CONV}/bias"] + positions(side, width)
    x = np.concatenate([arrays["cls_token"].astype(float).reshape(1, width), x])
    layers = []
    for block in _blocks(arrays, "encoder/layers"):
        y = _norm(arrays, f"{block}/attention_norm", x)
        x = x + _attention(arrays, f"{block}/attention", y, y)
        x = x + _mlp(arrays, f"{block}/mlp", _norm(arrays, f"{block}/mlp_norm", x))
        layers.append(_norm(arrays, "encoder/LayerNorm_0", x))
    return layers


def core(arrays: Arrays, x_TND: np.ndarray) -> np.ndarray:
    """The state (T, N, D) after every frame's tokens."""

    def gate(name: str, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        kernels = (
            arrays[f"rnn_core/{side}_{name}/kernel"].astype(float) for side in ("input", "state")
        )
        of_input, of_state = kernels
        return 1 / (1 + np.exp(-(x @ of_input + state @ of_state)))

    state, states = np.zeros(x_TND.shape[1:]), []
    for frame in x_TND.astype(float):
        update, reset = (gate(name, frame, state) for name in ("update", "reset"))
        kv = reset * _norm(arrays, "rnn_core/state_layer_norm", state, eps=1e-4)
        x = frame
        for block in _blocks(arrays, "rnn_core/transformer/xa_blocks"):
            y = _norm(arrays, f"{block}/ca_attention_norm", x)
            x = x + _attention(arrays, f"{block}/ca_attention", y, kv)
            x = x + _mlp(arrays, f"{block}/mlp", _norm(arrays, f"{block}/mlp_norm", x))
            y = _norm(arrays, f"{block}/attention_norm", x)
            x = x + _attention(arrays, f"{block}/attention", y, y)
        h = _norm(arrays, "rnn_core/transformer/output_norm", x)
        state = (1 - update) * state + update * h
        states.append(state)
    return np.stack(states)
