"""Mamba against published implementations that hold the same weights and get the same tokens,
measured in turn."""

from __future__ import annotations

import copy
import importlib
import inspect
import statistics
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.cli.bench.timing import PASSES, Tell, Workload, in_turn, seconds_of, summary
from pipeline.models.temporal.contract import State

PEAK_SIDE, PEAK_PRODUCTS = 8192, 10
"""The matrix peak is that of products of two square matrices of this side, so many at a time."""


def against_transformers(
    layer: Any, x_BTND: torch.Tensor, grad_BTND: torch.Tensor, repeats: int, tell: Tell
) -> dict[str, Any]:
    """One Mamba `layer`, which takes time first, against `MambaMixer` of transformers in plain
    PyTorch, which takes rows."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    width = layer.in_proj.in_features
    config = MambaConfig(
        hidden_size=width,
        state_size=layer.state,
        expand=layer.inner // width,
        conv_kernel=layer.conv1d.kernel_size[0],
        time_step_rank=layer.rank,
        num_hidden_layers=1,
    )
    mixer = MambaMixer(config, layer_idx=0).to(x_BTND.device)
    mixer.load_state_dict(layer.state_dict())
    x, grad = (part.transpose(0, 1).contiguous() for part in (x_BTND, grad_BTND))
    works = {
        "stillframe": Workload(layer, lambda x_TBND: layer(x_TBND)[0], x, grad),
        "transformers": Workload(mixer, _plain_path(mixer), _rows(x), _rows(grad)),
    }
    tell(0, repeats, "memory of Mamba")
    result = _differences(works) | _figures(works, repeats, tell)
    return result | {"ratios": _ratios(result["transformers"], result["stillframe"])}


def _rows(x_TBND: torch.Tensor) -> torch.Tensor:
    """(B * N, T, D)."""
    return x_TBND.flatten(1, 2).transpose(0, 1).contiguous()


def _plain_path(mixer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`mixer.forward` without the kernels that transformers takes wherever it finds some
    installed."""
    if hasattr(mixer, "slow_forward"):  # older transformers name the path
        return mixer.slow_forward
    forward = inspect.unwrap(type(mixer).forward)
    module_globals = forward.__globals__
    plain = {
        name: inspect.unwrap(module_globals[name])
        for name in forward.__code__.co_names
        if inspect.isfunction(module_globals.get(name))
    }
    plain["mamba_inner_fn"] = lambda *_, **__: None  # no fused path
    return types.FunctionType(
        forward.__code__, module_globals | plain, argdefs=forward.__defaults__
    ).__get__(mixer)


def _differences(works: dict[str, Workload]) -> dict[str, float]:
    """Largest differences: of outputs; of gradients, each over the largest number in that
    gradient."""
    ours, theirs = works.values()
    names = [name for name, _ in ours.module.named_parameters()]
    output = (_rows(ours.forward()) - theirs.forward()).abs().max()
    (x, *rest), (their_x, *their_rest) = ours.forward_backward(), theirs.forward_backward()
    named = dict(
        zip([name for name, _ in theirs.module.named_parameters()], their_rest, strict=True)
    )
    pairs = [(_rows(x), their_x), *zip(rest, (named[name] for name in names), strict=True)]
    gradient = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return {"output_difference": float(output), "gradient_difference": gradient}


def _figures(works: dict[str, Workload], repeats: int, tell: Tell) -> dict[str, Any]:
    """Name -> pass -> time and peak. Call it warm."""
    peaks = {name: work.peaks() for name, work in works.items()}
    seconds = in_turn(works, repeats, tell)
    return {
        name: {
            pass_name: summary(seconds[name][pass_name]) | {"peak_bytes": peaks[name][pass_name]}
            for pass_name in PASSES
        }
        for name in works
    }


def _ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Pass -> time and peak of theirs over ours. Times as the median over repeats of pairs measured
    in turn."""
    ratios = {}
    for pass_name in PASSES:
        pairs = zip(theirs[pass_name]["s"], ours[pass_name]["s"], strict=True)
        peak, our_peak = theirs[pass_name]["peak_bytes"], ours[pass_name]["peak_bytes"]
        ratios[pass_name] = {
            "time": statistics.median(a / b for a, b in pairs),
            "peak": peak / our_peak if peak is not None and our_peak else None,
        }
    return ratios


class _Published(nn.Module):
    """A published Mamba, (B * N, T, D) -> (B * N, T, D), in the place of ours: time first, and no
    state is given back."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self, x_TBND: torch.Tensor, state: State | None = None
    ) -> tuple[torch.Tensor, State]:
        assert state is None
        y_RTD = self.mixer(x_TBND.flatten(1, 2).transpose(0, 1))
        return y_RTD.transpose(0, 1).unflatten(1, x_TBND.shape[1:3]), ()


def against_kernels(
    module: Any, x_BTND: torch.Tensor, grad_BTND: torch.Tensor, repeats: int, tell: Tell
) -> dict[str, Any]:
    """`gated_mamba_mix` against the same module with the layers of mamba_ssm, under bfloat16
    autocast. CUDA only.

    Where mamba_ssm cannot be used, the key `missing` says why and ours is measured alone.
    """
    works = {"stillframe": _autocast(module, x_BTND, grad_BTND)}
    missing = {}
    try:
        published = importlib.import_module("mamba_ssm").Mamba
    except Exception as error:  # a build for another torch, CUDA or driver fails in many ways
        missing = {"missing": f"{type(error).__name__}: {error}"}
    else:
        works["mamba_ssm"] = _autocast(_composed(module, published), x_BTND, grad_BTND)
    tell(0, repeats, "memory of gated_mamba_mix and the matrix peak")
    for work in works.values():
        work.forward_backward()  # warms up
    peak = matrix_peak(repeats, x_BTND.device)
    flops = len(x_BTND) * module.flops(*x_BTND.shape[1:3])
    result = _figures(works, repeats, tell)
    for figures in result.values():
        for pass_name, share in PASSES.items():
            reached = share * flops / figures[pass_name]["median_s"]
            figures[pass_name] |= {"flop_per_s": reached, "share_of_matrix_peak": reached / peak}
    if "mamba_ssm" in works:
        result["ratios"] = _ratios(result["mamba_ssm"], result["stillframe"])
        ours, theirs = (work.forward() for work in works.values())
        result["output_difference"] = float((ours - theirs).abs().max())
    return result | missing | {"matrix_peak_flop_per_s": peak}


def _composed(module: Any, published: Any) -> nn.Module:
    """A copy of `module` whose Mamba layers are `published` ones, with the same weights."""
    module = copy.deepcopy(module)
    for block in module.mamba_blocks:
        ours = block.mamba
        mixer = published(
            module.width, ours.state, ours.conv1d.kernel_size[0], ours.inner // module.width
        )
        mixer.load_state_dict(ours.state_dict())
        block.mamba = _Published(mixer).to(ours.D.device)
    return module


def _autocast(module: nn.Module, x_BTND: torch.Tensor, grad_BTND: torch.Tensor) -> Workload:
    def run(x_BTND: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x_BTND.device.type, torch.bfloat16):
            return module(x_BTND)[0]

    return Workload(module, run, x_BTND, grad_BTND)


def matrix_peak(repeats: int, device: torch.device) -> float:
    """FLOP/s of large bfloat16 products."""
    a = torch.randn(PEAK_SIDE, PEAK_SIDE, dtype=torch.bfloat16, device=device)

    def multiply() -> None:
        for _ in range(PEAK_PRODUCTS):
            a @ a

    multiply()
    return (
        PEAK_PRODUCTS
        * 2
        * PEAK_SIDE**3
        / statistics.median(seconds_of(multiply, device) for _ in range(repeats))
    )
