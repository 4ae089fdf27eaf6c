"""A search around the last place of an object: which of what is there looks like it, whatever it is
and wherever it was.

Around a place lies a grid of samples, as large as the place and one patch of the encoder more on
every side. They belong to the object as far as those samples of another frame do that they look
like, of which there are as many around the place, and as many all over the square: a softmax over
cosines carries a place on, as masks are propagated in arXiv 2006.14613. What is learnt sees these
maps alone, neither tokens nor places in the frame, so that it holds of objects and places that no
training video shows.

Shape letters: B batch, O objects or points, P = SIDE * SIDE samples, h and w rows and columns of
the patch grid, K width of the keys. Places are cxcywh (B, O, 4) in the square, halves (B, O, 2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.tasks.contract import Query
from pipeline.models.tasks.parts.trackers import SHARPNESS, patch_size

SIDE = 7
"""Samples along each axis."""
MAPS = 5
"""Maps that the network sees."""


def patch_grid(x_BND: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """The patches of one frame's tokens, (B, h, w, D): the last ones, behind the special ones."""
    patches = grid_hw[0] * grid_hw[1]
    return x_BND[:, x_BND.shape[1] - patches :].unflatten(1, grid_hw)


def sides(place_BO4: torch.Tensor, patch_2: torch.Tensor) -> torch.Tensor:
    """(B, O, 2): width and height of a place, at least those of a patch, `patch_2`: a point is as
    large as that."""
    return place_BO4[..., 2:].maximum(patch_2)


def half_sides(place_BO4: torch.Tensor, patch_2: torch.Tensor) -> torch.Tensor:
    """(B, O, 2): half the width and height of the search, the unit in which followers step."""
    return sides(place_BO4, patch_2) / 2 + patch_2


class Search(nn.Module):
    """Looks around the last places of objects, and remembers what lay around the told ones and
    around the last ones. In float32, also under autocast."""

    grid_P2: torch.Tensor
    """Places of the samples around a place, in units of the search's half sides."""
    cells_P2: torch.Tensor
    """Centres of the SIDE x SIDE cells of the square."""
    patch_2: torch.Tensor
    """Width and height of a patch."""

    def __init__(
        self, width: int, grid_hw: tuple[int, int], *, keys: int, hidden: int, outputs: int
    ) -> None:
        """`keys` is K; `hidden` that of the network that gives `outputs` numbers."""
        super().__init__()
        self.grid_hw, self.keys = grid_hw, keys
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, keys, bias=False)
        # Cosines of keys then come near those of the tokens from the start.
        nn.init.orthogonal_(self.key.weight)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        self.network = nn.Sequential(
            nn.Linear(MAPS * SIDE**2 + 2, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            zero_linear(hidden, outputs),
        )
        at = torch.linspace(-1, 1, SIDE)
        y, x = torch.meshgrid(at, at, indexing="ij")
        self.register_buffer("grid_P2", torch.stack([x, y], -1).flatten(0, 1), persistent=False)
        self.register_buffer("cells_P2", self.grid_P2 * (SIDE - 1) / SIDE / 2 + 0.5, False)
        self.register_buffer("patch_2", patch_size(grid_hw), persistent=False)

    def start(self, told_BO4: torch.Tensor) -> Query:
        """What is remembered before the first frame."""
        nothing = told_BO4.new_zeros(*told_BO4.shape[:2], 2 * SIDE**2, self.keys)
        return {"told": told_BO4, "first": nothing, "last": nothing}

    def key_maps(self, x_BND: torch.Tensor) -> torch.Tensor:
        """Tokens of one frame -> keys of its patches, each of length 1, (B, K, h, w)."""
        with torch.autocast(x_BND.device.type, enabled=False):
            patches_BhwD = patch_grid(x_BND, self.grid_hw).to(self.key.weight.dtype)
            keys_BhwK = F.normalize(self.key(self.norm(patches_BhwD)), dim=-1)
        return keys_BhwK.permute(0, 3, 1, 2)

    def find(
        self,
        keys_BKhw: torch.Tensor,
        place_BO4: torch.Tensor,
        memory: Query,
        begins_BO: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network says of what is around the last places, (B, O, outputs), zeros before
        training, and the samples (B, O, 2 P, K) of the frame in which each object was told, to be
        remembered. Objects that begin (bool) are told in this very frame."""
        with torch.autocast(keys_BKhw.device.type, enabled=False):
            samples = self.samples(keys_BKhw, place_BO4)
            begins = begins_BO[..., None, None]
            first, last = (torch.where(begins, samples, memory[name]) for name in ("first", "last"))
            now, around_last = samples[:, :, : SIDE**2], last[:, :, : SIDE**2]
            told_share, share = self._shares(memory["told"]), self._shares(place_BO4)
            half_BO2 = half_sides(place_BO4, self.patch_2)
            at_BOP2 = place_BO4[:, :, None, :2] + self.grid_P2 * half_BO2.unsqueeze(2)
            views = [
                self._carried(now, first, told_share),
                self._carried(around_last, first, told_share),
                self._carried(now, last, share),
                share[..., : SIDE**2],
                ((at_BOP2 - 0.5).abs() < 0.5).all(-1).to(now.dtype),
                sides(place_BO4, self.patch_2) / (2 * half_BO2),
            ]
            return self.network(torch.cat(views, dim=-1)), first

    def samples(self, keys_BKhw: torch.Tensor, place_BO4: torch.Tensor) -> torch.Tensor:
        """Keys around places, then at the cells of the square, (B, O, 2 P, K). What lies outside
        the square is its edge."""
        with torch.autocast(keys_BKhw.device.type, enabled=False):
            half_BO12 = half_sides(place_BO4, self.patch_2).unsqueeze(2)
            around_BOP2 = place_BO4[:, :, None, :2] + self.grid_P2 * half_BO12
            at = torch.cat([around_BOP2, self.cells_P2.expand_as(around_BOP2)], dim=2)
            read_BKOP = F.grid_sample(
                keys_BKhw,
                2 * at.to(keys_BKhw.dtype) - 1,
                padding_mode="border",
                align_corners=False,
            )
        return read_BKOP.permute(0, 2, 3, 1)

    def _shares(self, place_BO4: torch.Tensor) -> torch.Tensor:
        """(B, O, 2 P): the share of what is around each of the samples that the place covers, of a
        patch or of a cell of the square."""
        around_BOP2 = self.grid_P2 * half_sides(place_BO4, self.patch_2).unsqueeze(2)
        cells_BOP2 = self.cells_P2 - place_BO4[:, :, None, :2]
        edge_BO12 = sides(place_BO4, self.patch_2).unsqueeze(2) / 2

        def covered(at_BOP2: torch.Tensor, side: torch.Tensor | float) -> torch.Tensor:
            high = torch.minimum(at_BOP2 + side / 2, edge_BO12)
            low = torch.maximum(at_BOP2 - side / 2, -edge_BO12)
            return ((high - low).clamp(min=0) / side).prod(-1)

        around_BOP = covered(around_BOP2, self.patch_2)
        return torch.cat([around_BOP, covered(cells_BOP2, 1 / SIDE)], dim=-1)

    def _carried(self, now: torch.Tensor, then: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Shares of the samples `then`, carried on to those of `now` that look like them."""
        alike = self.log_sharpness.exp() * now @ then.transpose(-1, -2)
        return (alike.softmax(-1) @ share.unsqueeze(-1)).squeeze(-1)


def zero_linear(width: int, outputs: int) -> nn.Linear:
    """A linear layer that says 0 before training."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
