"""The machine and the software that figures depend on. What cannot be found out is left out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from support.paths import ROOT

PACKAGES = (
    *("torch", "transformers", "numpy", "zarr", "av", "pydantic", "triton"),
    *("mamba-ssm", "causal-conv1d"),
)
# In a process of its own: this one stays off the device.
LOOK = """
import json, torch
found = {"CUDA of torch": torch.version.cuda, "threads": torch.get_num_threads()}
if torch.cuda.is_available():
    facts = torch.cuda.get_device_properties(0)
    found |= {
        "GPU": facts.name,
        "GPUs": torch.cuda.device_count(),
        "GPU memory": f"{facts.total_memory / 2**30:.1f} GiB",
        "multiprocessors": facts.multi_processor_count,
        "compute capability": f"{facts.major}.{facts.minor}",
        "cuDNN": torch.backends.cudnn.version(),
        "TF32 in products": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
    }
print(json.dumps(found))
"""


def _said(*command: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""


def facts() -> dict[str, Any]:
    """Name -> what it is."""
    found: dict[str, Any] = {}
    with suppress(ValueError):
        found |= json.loads(_said(sys.executable, "-W", "ignore", "-c", LOOK) or "{}")
    if driver := _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"):
        found["driver"] = driver.splitlines()[0]
    found |= {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "Python": platform.python_version(),
    }
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    commit = _said("git", "rev-parse", "--short=12", "HEAD")
    if commit:
        changed = _said("git", "status", "--porcelain", "--untracked-files=no")
        found["commit"] = commit + (" and changes" if changed else "")
    return {name: fact for name, fact in found.items() if fact is not None}


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
