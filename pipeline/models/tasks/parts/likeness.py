"""How alike tokens are to a template, and where: what tracking needs of cached tokens before
anything is learnt.

A template is the look of an object or point: tokens pooled under a box, or sampled at a place. The
cosine between it and every patch token is a map of likeness, and the map's peak or centroid is a
place. All of it is in float32, has no parameters, and lets gradients through.

Shape letters: B batch, O objects or points, h and w rows and columns of the patch grid, D width.
Places are x, y in the square, from 0 to 1, and boxes xyxy; patch (row, column) covers x from column
/ w to (column + 1) / w, and y likewise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

NO_LENGTH = 1e-6
"""Length below which a token or template has no direction: it is alike to nothing."""


def patch_centres(grid_hw: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """xy (h, w, 2) of the centre of every patch."""
    y_h, x_w = (
        (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size for size in grid_hw
    )
    y_hw, x_hw = torch.meshgrid(y_h, x_w, indexing="ij")
    return torch.stack([x_hw, y_hw], dim=-1)


def directions(tokens: torch.Tensor, mean: torch.Tensor | None = None) -> torch.Tensor:
    """Tokens (..., D) of length 1, or 0 where they have none. With `mean`, which broadcasts, what
    they have in common is taken away first, and their lengths count the same: tokens of one image
    share a large part, beside which all are alike."""
    unit = F.normalize(tokens.float(), dim=-1, eps=NO_LENGTH)
    return unit if mean is None else F.normalize(unit - mean, dim=-1, eps=NO_LENGTH)


def box_weights(box_BO4: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """Boxes xyxy -> (B, O, h, w), the share of each patch in the part of a box that lies in the
    square; sums to 1. A box without area there has all its weight on the patch nearest to its
    centre."""
    box = box_BO4.float()

    def overlap(low: torch.Tensor, high: torch.Tensor, size: int) -> torch.Tensor:
        edge = torch.arange(size + 1, dtype=torch.float32, device=box.device) / size
        covered = torch.minimum(high[..., None], edge[1:])
        return (covered - torch.maximum(low[..., None], edge[:-1])).clamp(min=0)

    def nearest(low: torch.Tensor, high: torch.Tensor, size: int) -> torch.Tensor:
        index = ((low + high) / 2 * size).floor().clamp(0, size - 1)
        return F.one_hot(index.long(), size).to(box.dtype)

    high, wide = grid_hw
    x1, y1, x2, y2 = box.unbind(-1)
    area = overlap(y1, y2, high)[..., :, None] * overlap(x1, x2, wide)[..., None, :]
    centre = nearest(y1, y2, high)[..., :, None] * nearest(x1, x2, wide)[..., None, :]
    total = area.sum((-2, -1), keepdim=True)
    return torch.where(total > 0, area / total.clamp(min=torch.finfo(total.dtype).tiny), centre)


def pooled(tokens_BhwD: torch.Tensor, weights_BOhw: torch.Tensor) -> torch.Tensor:
    """(B, O, D): tokens averaged with the weights, such as those of `box_weights`."""
    return torch.einsum("bohw,bhwd->bod", weights_BOhw, tokens_BhwD.float())


def sampled(tokens_BhwD: torch.Tensor, xy_BO2: torch.Tensor) -> torch.Tensor:
    """(B, O, D): tokens between the centres of patches, bilinear. A place beyond the outermost
    centres has the token at the nearest place that is not."""
    maps_BDhw = tokens_BhwD.float().permute(0, 3, 1, 2)
    read_BDO1 = F.grid_sample(
        maps_BDhw,
        2 * xy_BO2.float()[:, :, None] - 1,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return read_BDO1.squeeze(-1).transpose(1, 2)


def likeness(tokens_BhwD: torch.Tensor, template_BOD: torch.Tensor) -> torch.Tensor:
    """(B, O, h, w): cosine of every token and every template, -1 to 1; 0 where either has no
    length."""
    return torch.einsum("bhwd,bod->bohw", directions(tokens_BhwD), directions(template_BOD))


def near(
    centre_BO2: torch.Tensor, sigma_BO2: torch.Tensor, grid_hw: tuple[int, int]
) -> torch.Tensor:
    """(B, O, h, w): logarithm of a Gaussian around a place, 0 there: a soft search window, to be
    added to the logits of a likeness. `sigma_BO2`, above 0, are its standard deviations in x and
    y."""
    offset_BOhw2 = patch_centres(grid_hw, centre_BO2.device) - centre_BO2[:, :, None, None].float()
    return -0.5 * (offset_BOhw2 / sigma_BO2[:, :, None, None]).square().sum(-1)


def centroid(logits_BOhw: torch.Tensor) -> torch.Tensor:
    """xy (B, O, 2): mean of the patch centres under the softmax of the logits."""
    share_BOP = logits_BOhw.float().flatten(2).softmax(-1)
    return share_BOP @ patch_centres(_grid(logits_BOhw), logits_BOhw.device).flatten(0, 1)


def argmax(logits_BOhw: torch.Tensor) -> torch.Tensor:
    """xy (B, O, 2): centre of the patch with the largest logit, the first of equal ones."""
    best_BO = logits_BOhw.flatten(2).argmax(-1)
    return patch_centres(_grid(logits_BOhw), logits_BOhw.device).flatten(0, 1)[best_BO]


def soft_argmax(logits_BOhw: torch.Tensor, reach_patches: float) -> torch.Tensor:
    """xy (B, O, 2), finer than the grid: centroid of the patches no further than `reach_patches`
    from the one with the largest logit, as in TAPIR (arXiv 2306.08637)."""
    high, wide = _grid(logits_BOhw)
    size = torch.tensor([wide, high], dtype=torch.float32, device=logits_BOhw.device)
    centres_hw2 = patch_centres((high, wide), logits_BOhw.device)
    away_BOhw = ((centres_hw2 - argmax(logits_BOhw)[:, :, None, None]) * size).square().sum(-1)
    # A little further, as distances are rounded.
    beyond = away_BOhw > reach_patches**2 + 1e-3
    return centroid(logits_BOhw.float().masked_fill(beyond, -torch.inf))


def _grid(map_BOhw: torch.Tensor) -> tuple[int, int]:
    return map_BOhw.shape[2], map_BOhw.shape[3]
