"""Which process wrote something, and whether it still lives: asked of leases, and of files that are
being written."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path


def machine() -> str:
    """One boot of one machine, as seen from inside one container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{os.uname().nodename} {os.uname().sysname}"


@lru_cache(maxsize=1)
def machine_tag() -> str:
    """8 hexadecimal digits that stand for `machine` in file names."""
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def is_running(pid: int) -> bool:
    """Whether there is a process of that number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of somebody else
        return True
    return True


def started(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
