"""Wheels of mamba-ssm that somebody has brought along: tried in a folder of their own, never installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KERNELS = "mamba_ssm.ops.selective_scan_interface"


def tried(folder: str, device: str, scratch: Path, environment: dict[str, str]) -> str:
    """Puts the wheels of `folder` on the path of all parts if they can be imported beside this torch; returns a word on
    what came of it. Without a folder, the kernels that are installed are used, if any are."""
    if not folder:
        return "as installed"
    found = sorted(map(str, Path(folder).glob("*.whl")))
    if device == "cpu" or not found:
        return f"wheels of {folder} not tried: {'no GPU' if found else 'there are none'}"
    site = scratch / "site"
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site))
    done = subprocess.run(
        [sys.executable, *install, *found], capture_output=True, text=True, check=False
    )
    path = os.pathsep.join([environment["PYTHONPATH"], str(site)])
    if done.returncode == 0:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"import {KERNELS}"],
            env=environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        return f"wheels of {folder} do not fit: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    environment["PYTHONPATH"] = path
    return f"wheels of {folder}: {', '.join(Path(name).name for name in found)}"
