"""Whether torch.compile can compile on this machine, asked before much depends on it."""

from __future__ import annotations

import torch

from pipeline.errors import BadInput, in_one_line


def require_compiler(key: str, device: torch.device) -> None:
    """Raises BadInput, which names the setting `key`, where torch.compile cannot compile for a
    device."""
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # backends and the compilers that they call fail in many ways
        reason = in_one_line(str(error).strip().partition("\n")[0])
        raise BadInput(
            f"{key}: torch.compile cannot compile for {device} here: {reason}",
            f"leave {key} out, or install a C++ compiler (g++), which CXX names",
        ) from error
