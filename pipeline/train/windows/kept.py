"""Patch tokens that training leaves out, to take less time (`windows.keep_tokens`; as in the
post-pre-training of arXiv 2310.19554).

A window keeps the same places in all of its frames, since a temporal module carries a state for
each place. Every window draws its own.
"""

from __future__ import annotations

import numpy as np

from pipeline.config.recipe import WindowSettings
from pipeline.train.windows.index import WindowRef

KEPT = 2
"""Tells these draws from others with the same seed and number, see `controls`."""


def kept_patches(ref: WindowRef, patch_tokens: int, settings: WindowSettings) -> np.ndarray | None:
    """Mask (P,) of the patch tokens of every frame of a window that are read, P = `patch_tokens`: a
    pure function of the seed and the number of the sample. None: all, as always in evaluation."""
    count = settings.patches_kept(patch_tokens)
    if ref.number is None or count == patch_tokens:
        return None
    rng = np.random.default_rng([settings.seed, ref.number, KEPT])
    kept_P = np.zeros(patch_tokens, bool)
    kept_P[rng.permutation(patch_tokens)[:count]] = True
    return kept_P
