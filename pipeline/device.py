"""Where tensors live unless somebody says otherwise, how they get there and back, and how many
cores and how much memory there are to compute with."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

GLIBC_SETTINGS = {-1: 512 << 20, -3: 32 << 20}
"""M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD, the largest that there can be, from `malloc.h`."""


def chosen(device: torch.device | None) -> torch.device:
    """`device`, or else CUDA where there is one, or else the CPU."""
    import torch

    return device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Has the C library keep what is freed for what comes next, up to 512 MiB of it, where it would
    give it back to the system, and every step of a training pay a page fault for every 4 KiB that
    it takes anew. Only glibc can be told so; this holds for the whole process."""
    if platform.libc_ver()[0] == "glibc":
        for setting, value in GLIBC_SETTINGS.items():
            ctypes.CDLL(None).mallopt(setting, value)


def native_precision(device: torch.device) -> str:
    """ "bfloat16" where the device multiplies matrices of it in hardware, else "float32"."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif platform.machine() in ("arm64", "aarch64"):
        native = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        # AVX-512 without this extension computes bfloat16, too, but no faster.
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        native = device.type == "cpu" and supported
    return "bfloat16" if native else "float32"


def device_of_worker(name: str | None, index: int) -> torch.device:
    """The device called `name`; where it is None, that of worker `index`: workers share what CUDA
    devices there are."""
    import torch

    if name is None and torch.cuda.is_available():
        return torch.device("cuda", index % torch.cuda.device_count())
    return chosen(None if name is None else torch.device(name))


@dataclass(frozen=True)
class Upload:
    """An array that has been sent to a device and may still be on its way."""

    tensor: torch.Tensor
    sent: torch.cuda.Event | None
    """Fires when a CUDA device has it."""

    def part(self, cut: slice) -> Upload:
        """Some of its first axis."""
        return Upload(self.tensor[cut], self.sent)

    def on_device(self) -> torch.Tensor:
        """The array there, for work on the current stream of the calling thread, which waits for
        it; the thread does not."""
        if self.sent is not None:
            import torch

            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.sent)
            # Its memory belongs to the stream that copied; not before this one is done with it.
            self.tensor.record_stream(stream)
        return self.tensor


class Uploads:
    """Sends arrays to a device while that computes: to a CUDA device through pinned memory, on a
    stream of its own. To others they go at once, and on the CPU they stay where they are.

    May be used by several threads. PyTorch gives pinned memory out again when the copy from it is
    done (`CachingHostAllocator`).
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._stream = device, side_stream(device)

    def made(self, make: Callable[[], torch.Tensor]) -> Upload:
        """What `make` puts on the device itself: on CUDA on the stream of the copies."""
        import torch

        if self._stream is None:
            return Upload(make(), None)
        with torch.cuda.stream(self._stream):
            return Upload(make(), self._stream.record_event())

    def start(self, array: np.ndarray) -> Upload:
        """Begins to send an array, which on CUDA may be changed when this returns."""
        import torch

        host = torch.from_numpy(array)
        if self._stream is None:
            return Upload(host.to(self.device), None)
        with torch.cuda.stream(self._stream):
            tensor = host.pin_memory().to(self.device, non_blocking=True)
            return Upload(tensor, self._stream.record_event())


def downloaded(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor in host memory, from CUDA in pinned memory, once its device has
    computed them on the current stream. Those of a tensor on the CPU are not copied."""
    import torch

    tensor = tensor.detach().contiguous()
    if not tensor.is_cuda:
        return tensor.cpu().numpy()
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host.numpy()


def side_stream(device: torch.device) -> Any:
    """A stream beside the one that computes; None where there are none, on all but CUDA devices."""
    import torch

    return torch.cuda.Stream(device) if device.type == "cuda" else None


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
CGROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Version -> files of a control group that say how much memory it may have and has, and the line of
its `memory.stat` with what it gives back when it is asked to."""
NO_MEMORY = re.compile(
    r"can't start new thread|(can't|cannot|not enough|out of) .*memory|STATUS_ALLOC_FAILED", re.I
)
"""What torch, Python and the libraries of CUDA (cuBLAS, cuDNN) say, in errors of no type of their
own, where memory or threads ran out."""


def free_memory_bytes() -> int | None:
    """Memory that this process can still take before the system kills something: what is available
    on the machine, or left to its control groups (those of a container or a Slurm job), whichever
    is least. None where the system does not say."""
    free = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)  # what the kernel calls kB
    for folder, version in _control_groups():
        limit, used, given_back = CGROUP_FILES[version]
        with suppress(OSError, ValueError):  # no limit is the word "max"
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            stat = (folder / "memory.stat").read_text().split()
            free.append(left + int(stat[stat.index(given_back) + 1]))
    return max(0, min(free)) if free else None


def _control_groups() -> list[tuple[Path, int]]:
    """Folders of the control groups that limit the memory of this process, and their version: its
    own and all above it."""
    groups = []
    with suppress(OSError, ValueError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 2 if not controllers else 1
            if version == 1 and "memory" not in controllers.split(","):
                continue
            top = CGROUPS / "memory" if version == 1 else CGROUPS
            own = top / path.lstrip("/")
            groups += [
                (folder, version)
                for folder in (own, *own.parents)
                if top in (folder, *folder.parents)
            ]
    return groups


def out_of_memory_kills() -> int | None:
    """How many processes the system has killed for want of memory since it started; None where it
    does not say."""
    with suppress(OSError, ValueError):
        words = (PROC / "vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU or the GPU, or threads did: there are several ways to say
    so."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    )
