"""The processes of one training, as `torchrun` starts them: which one this is, and sums over all of
them.

Every rank sees its part of each batch. Gradients, losses and scores are added up, nothing else: the
part that is trained is small, so that one sum over all its gradients costs little beside a step. A
rank that fails ends: the others notice at their next sum, so that nobody waits for it, and what
went wrong is said once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import distributed

from pipeline.device import chosen, cores
from pipeline.errors import BadInput, StillframeError

PATIENCE = timedelta(minutes=10)
"""Time that a rank waits for the others: longer than any of them reads, evaluates or writes between
two sums."""
TIME_TO_SPEAK_S = 2.0
"""Time that the other ranks stay when one fails: `torchrun` ends all as soon as one has ended, and
the failed rank has something to say."""


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, requested: torch.device | None) -> torch.device:
        """Where this rank computes: `requested`, or else CUDA where there is one; each rank of
        several on a GPU of its own.

        Raises BadInput where one GPU is requested for several ranks, or this one has none.
        """
        device = chosen(requested)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise BadInput(
                f"--device {device} is one GPU, there are {self.size} processes",
                "--device cuda: one for each",
            )
        local, gpus = _local_rank(), torch.cuda.device_count()
        if local >= gpus:
            raise BadInput(
                f"process {local} of this machine, counted from 0, has no GPU: there are {gpus}",
                f"torchrun --nproc-per-node {gpus}, or --device cpu",
            )
        return torch.device("cuda", local)

    def all_reduce_sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over all ranks, in one message. All must be of one dtype
        and on one device. Raises StillframeError where a rank is gone.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            # Its first sentence, without the place in the source before it.
            reason = str(error).partition("\n")[0].split("] ", 1)[-1].split(". ")[0]
            raise StillframeError(
                f"another process of this training has ended or does not answer: {reason}",
                "what was saved is kept, run the same command again to go on",
            ) from error
        for tensor, total in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.detach().copy_(total.view_as(tensor))

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The arrays of every rank, in their order. Shapes may differ."""
        if self.size == 1:
            return [dict(arrays)]
        data = torch.frombuffer(bytearray(save(dict(arrays))), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.all_reduce_sum([sizes])
        ours = torch.zeros(self.size, int(sizes.max()), dtype=torch.uint8)
        ours[self.rank, : len(data)] = data
        self.all_reduce_sum([ours])
        rows = zip(ours, sizes.tolist(), strict=True)
        return [load(row[:size].numpy().tobytes()) for row, size in rows]

    def barrier(self) -> None:
        """Returns when all ranks are here."""
        self.all_reduce_sum([torch.zeros(1)])

    def all_equal(self, value: str) -> bool:
        """Whether `value` is the same in all ranks; they all get the same answer. Also waits for
        them."""
        ours = torch.frombuffer(
            bytearray(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8
        ).long()
        total = ours.clone()
        self.all_reduce_sum([total])
        return torch.equal(total, self.size * ours)


ALONE = Ranks()


@contextmanager
def init_process_group() -> Iterator[Ranks]:
    """The ranks that `torchrun` has started, this process among them; one alone where it has not.

    What goes wrong inside is raised in the rank where it went wrong first. The others end without a
    word, with its exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    _take_cores()
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
    store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
    group = distributed.PrefixStore("group", store)
    distributed.init_process_group(
        backend, store=group, rank=rank, world_size=size, timeout=PATIENCE
    )
    try:
        yield Ranks(rank, size)
    except (Exception, KeyboardInterrupt) as error:
        if _is_first_to_fail(store):
            _tell_torchrun(error)
            raise
        time.sleep(TIME_TO_SPEAK_S)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    distributed.destroy_process_group()  # not after a failure: it may wait for those that are gone


def _is_first_to_fail(store: distributed.Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # what holds the store is gone
        return True


def _tell_torchrun(error: BaseException) -> None:
    """Hands `torchrun` the sentence that its own report ends with, in place of an advice to
    programmers; see `torch.distributed.elastic`."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": f"{error}", "extraInfo": {"timestamp": int(time.time())}}
        Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")


def _local_rank() -> int:
    """Number of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _take_cores() -> None:
    """Lets torch use this process's fair share of the machine's cores, where nobody has chosen:
    `torchrun` itself gives every process one thread."""
    if os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
