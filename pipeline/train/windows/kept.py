"""Patch tokens that training leaves out, to take less time: a share of all (`windows.keep_tokens`;
as in the post-pre-training of arXiv 2310.19554), or all outside of a rectangle of the patch grid
(`windows.crop`), whose rows lie side by side on the disk.

A window keeps the same places in all of its frames, since a temporal module carries a state for
each place. Every window draws its own.
"""

from __future__ import annotations

import numpy as np

from pipeline.config.recipe import WindowSettings
from pipeline.errors import BadInput
from pipeline.train.windows.index import WindowRef

KEPT, CROPPED = 2, 3
"""Tell these draws from others with the same seed and number, see `controls`."""


def kept_patches(
    ref: WindowRef, grid_hw: tuple[int, int], settings: WindowSettings
) -> np.ndarray | None:
    """Mask (P,) of the patch tokens of every frame of a window that are read, row by row of the
    patch grid: a pure function of the seed and the number of the sample. None: all, as always in
    evaluation."""
    (high, wide), count = grid_hw, settings.patches_kept(grid_hw)
    if ref.number is None or count == high * wide:
        return None
    kept_P = np.zeros(high * wide, bool)
    if settings.crop is None:
        kept_P[_some(ref.number, high * wide, count, settings.seed)] = True
        return kept_P
    rows, columns = settings.crop
    rng = quick_rng([settings.seed, ref.number, CROPPED])
    top, left = rng.integers((high - rows + 1, wide - columns + 1))
    places_HW = np.arange(high * wide).reshape(grid_hw)
    places_P = places_HW[top : top + rows, left : left + columns].ravel()
    if count < len(places_P):
        places_P = places_P[_some(ref.number, len(places_P), count, settings.seed)]
    kept_P[places_P] = True
    return kept_P


def _some(number: int, places: int, count: int, seed: int) -> np.ndarray:
    """(K,) so many of the places, in any order."""
    some_K: np.ndarray = quick_rng([seed, number, KEPT]).permutation(places)[:count]
    return some_K


def require_fitting_crop(settings: WindowSettings, grid_hw: tuple[int, int], where: str) -> None:
    """Refuses a crop that is larger than the patch grid, which `where` has."""
    (high, wide), (rows, columns) = grid_hw, settings.crop or (0, 0)
    if rows > high or columns > wide:
        raise BadInput(
            f"windows.crop = [{rows}, {columns}] does not fit into the {high} x {wide} patches of "
            f"{where}",
            f"set windows.crop to at most [{high}, {wide}] rows and columns",
        )


def quick_rng(entropy: list[int]) -> np.random.Generator:
    """`np.random.default_rng(entropy)`, which takes longer than a small window to read: numpy
    itself cuts numbers into words of 32 bits more slowly."""
    if max(entropy) < 1 << 32:
        return np.random.Generator(
            np.random.PCG64(np.random.SeedSequence(np.array(entropy, np.uint32)))
        )
    return np.random.default_rng(entropy)
