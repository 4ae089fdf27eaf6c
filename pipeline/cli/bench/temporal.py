"""Temporal modules side by side: time, FLOPs, memory, state and streaming, and Mamba against
published implementations."""

from __future__ import annotations

import copy
import itertools
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.cli.bench import references
from pipeline.cli.bench.memory import live_bytes
from pipeline.cli.bench.timing import PASSES, Tell, Workload, frozen, in_turn, summary
from pipeline.config import plugins
from pipeline.device import chosen
from pipeline.models.profile import counted, timed
from pipeline.models.temporal.contract import TemporalModule

ENDS = 100
"""Frames at the start and at the end of a stream that are compared."""
SPEED_FRAMES = 32
"""Length of the stream that tells the speed at the full number of tokens."""
ALLOCATORS = {"GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}
"""Environment variables, besides MALLOC_..., that choose or tune an allocator."""


@dataclass(frozen=True)
class Size:
    """B windows of T frames of N tokens of D; `layers` for modules that have such a setting."""

    batch: int
    frames: int
    tokens: int
    width: int
    layers: int

    def window(self, device: torch.device) -> torch.Tensor:
        """Normal numbers, (B, T, N, D)."""
        return torch.randn(self.batch, self.frames, self.tokens, self.width, device=device)


@dataclass(frozen=True)
class Streams:
    """The long stream: more than 2 ENDS frames, of few tokens, so that many frames do not take
    long."""

    frames: int
    tokens: int


def measure(
    names: Sequence[str],
    references: bool,
    size: Size,
    streams: Streams,
    repeats: int,
    device: torch.device | None,
    tell: Tell,
) -> dict[str, Any]:
    """Figures of the modules `names` and, where `references`, of Mamba against published
    implementations; raw times too."""
    device = chosen(device)
    result = {
        "size": asdict(size),
        "streams": asdict(streams),
        "repeats": repeats,
        "surroundings": surroundings(device),
    }
    with frozen():
        if names:
            result["modules"] = modules(names, size, streams, repeats, device, tell)
        if references:
            result |= against_published(size, repeats, device, tell)
    return result


def _outputs(module: TemporalModule, x: torch.Tensor) -> torch.Tensor:
    return module(x)[0]


def modules(
    names: Sequence[str],
    size: Size,
    streams: Streams,
    repeats: int,
    device: torch.device,
    tell: Tell,
) -> dict[str, Any]:
    """Module -> its figures. `flops` and `flops_measured` are of one window, `flop_per_s` by
    formula of the whole batch."""
    built = {name: make_module(name, size.width, size.layers).to(device) for name in names}
    x, grad = size.window(device), size.window(device)
    works = {
        name: Workload(module, partial(_outputs, module), x, grad) for name, module in built.items()
    }
    facts: dict[str, dict[str, Any]] = {}
    for i, (name, module) in enumerate(built.items()):
        tell(i, len(built), f"memory and stream of {name}")
        Workload(
            module, works[name].run, x[:1], grad[:1]
        ).forward_backward()  # warms libraries and allocators up
        facts[name] = {
            "parameters": sum(part.numel() for part in module.parameters()),
            "state_bytes": module.state_bytes(size.tokens),
            "flops": module.flops(size.frames, size.tokens),
            "flops_measured": products(module, x[:1]),
            "peaks": works[name].peaks(),
            "stream": measure_stream(module, size.tokens, streams, device),
        }
    for name, seconds in in_turn(works, repeats, tell).items():
        flops, peaks = size.batch * facts[name]["flops"], facts[name].pop("peaks")
        for pass_name, share in PASSES.items():
            timing = summary(seconds[pass_name])
            facts[name][pass_name] = timing | {
                "flop_per_s": share * flops / timing["median_s"],
                "peak_bytes": peaks[pass_name],
            }
    return facts


def against_published(size: Size, repeats: int, device: torch.device, tell: Tell) -> dict[str, Any]:
    """One Mamba layer against transformers; on CUDA also `gated_mamba_mix` against its composition
    from mamba_ssm."""
    x, grad = size.window(device), size.window(device)
    mamba: Any = make_module("mamba", size.width, 1).to(device)
    result = {
        "mamba": references.against_transformers(
            mamba.mamba_blocks[0].mamba, x, grad, repeats, tell
        )
    }
    if device.type == "cuda":
        mix = make_module("gated_mamba_mix", size.width, size.layers).to(device)
        result["gated_mamba_mix"] = references.against_kernels(mix, x, grad, repeats, tell)
    return result


def make_module(name: str, width: int, layers: int) -> TemporalModule:
    """The plug-in with its defaults, `layers` if it has such, and as many of its default heads as
    divide the width."""
    plugin = plugins.load("temporal", name)
    fields = plugin.Settings.model_fields
    table = {"layers": layers} if "layers" in fields else {}
    if "heads" in fields and isinstance(fields["heads"].default, int):
        table["heads"] = math.gcd(fields["heads"].default, width)
    torch.manual_seed(0)
    return plugin(width, plugins.settings("temporal", name, table, f"[temporal] {name}"))


@torch.inference_mode()
def products(module: TemporalModule, x_BTND: torch.Tensor) -> int:
    """FLOPs of a forward pass as torch counts them: matrix products and convolutions only."""
    module.eval()
    return counted(lambda: module(x_BTND))


@torch.inference_mode()
def measure_stream(
    module: TemporalModule, tokens: int, streams: Streams, device: torch.device
) -> dict[str, Any]:
    """Frame by frame with the state carried over: frames per second at N = `tokens`, and what does
    not grow with time.

    The last frames of a long stream and the first of another take turns, on the module and a copy
    of it as it was before.
    """
    module.eval()
    speed = [_Stream(module, tokens, device) for _ in range(2)]  # the first warms up
    seconds = [[stream.step() for _ in range(SPEED_FRAMES)] for stream in speed]
    young = _Stream(copy.deepcopy(module), streams.tokens, device)
    old = _Stream(module, streams.tokens, device)
    for _ in range(ENDS):
        old.step()
    live = live_bytes(device)
    for _ in range(streams.frames - 2 * ENDS):
        old.step()
    grown_bytes = live_bytes(device) - live
    pairs = [(young.step(), old.step()) for _ in range(ENDS)]
    return {
        "frames_per_s": 1 / statistics.median(seconds[-1]),
        "first_s": [first for first, _ in pairs],
        "last_s": [last for _, last in pairs],
        "last_over_first": statistics.median(last / first for first, last in pairs),
        "grown_bytes": grown_bytes,
    }


class _Stream:
    """One stream, B = 1, of frames that repeat after a while."""

    def __init__(self, module: TemporalModule, tokens: int, device: torch.device) -> None:
        self.module = module
        self.state = module.initial_state(1, tokens)
        self.x_FBND = itertools.cycle(torch.randn(8, 1, tokens, module.width, device=device))

    def step(self) -> float:
        """Seconds that the next frame took."""
        x_BND = next(self.x_FBND)
        seconds, (_, self.state) = timed(lambda: self.module.step(x_BND, self.state), x_BND.device)
        return seconds


def surroundings(device: torch.device) -> dict[str, Any]:
    """The facts that the figures depend on besides the code."""
    cuda = device.type == "cuda"
    chosen = [
        f"{key}={value}"
        for key, value in sorted(os.environ.items())
        if key.startswith("MALLOC_") or key in ALLOCATORS
    ]
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "allocator": " ".join(chosen) or "default",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
