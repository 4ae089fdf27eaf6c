"""What every process of the two in tests/train/test_retrieve.py does: a loss over the videos and texts of both with its gradients, then
a training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from pipeline.models.tasks.matching.losses import info_nce, sigmoid_loss
from pipeline.train import distributed


def losses_of(part: slice, world_size: int) -> dict[str, torch.Tensor]:
    """Of the rows `part` of a batch that is always the same, as a training adds them up over processes: the losses, and the gradients of the
    projections that both sides go through."""
    generator = torch.Generator().manual_seed(0)
    x_BE, y_BE = torch.randn(2, 8, 5, generator=generator)
    y_BE[5] = y_BE[2]  # of another part: neither is wrong
    y_BE[6] = 0
    found = {}
    for name in ("softmax", "sigmoid"):
        weights = [torch.eye(5, requires_grad=True) for _ in range(2)]
        scale = torch.tensor(4.0, requires_grad=True)
        video, text = (
            torch.nn.functional.normalize(side[part] @ weight, dim=-1)
            for side, weight in zip((x_BE, y_BE), weights, strict=True)
        )
        mask_B = y_BE[part].any(-1)
        if name == "softmax":
            loss = info_nce(video, text, scale=scale, mask_B=mask_B)
        else:
            loss = sigmoid_loss(video, text, scale=scale, bias=torch.tensor(-2.0), mask_B=mask_B)
        (loss / world_size).backward()
        parts = [loss.detach() / world_size, *(part.grad for part in (*weights, scale))]
        found |= {f"{name} {number}": tensor for number, tensor in enumerate(parts)}
    return found


if __name__ == "__main__":
    from ranks_worker import do  # beside this file, which torchrun starts by its path

    with distributed.init_process_group() as ours:
        rows = 8 // ours.size
        losses = losses_of(slice(ours.rank * rows, (ours.rank + 1) * rows), ours.size)
        ours.all_reduce_sum(list(losses.values()))
        if ours.is_first:
            torch.save(losses, f"{sys.argv[1]}.losses")
        for job in json.loads(Path(sys.argv[1]).read_text()):
            do(job, ours)
