"""Controls show a model less of a window than there is, to tell what the rest is worth: its frames
in an order drawn at random, or one of them alone.

The times of a window stay with its frames, whatever their order: they are when the frames were on
screen, and do not ascend in a shuffled window.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.config.recipe import WindowSettings
from pipeline.datasets.manifest.targets import CAPTIONS, CLASSES, OF_CLIPS, QUESTION, Wanted
from pipeline.errors import BadInput
from pipeline.records import Clip
from pipeline.train.windows.index import WindowRows

DIRECTED = ("label", "pose", CLASSES, CAPTIONS, QUESTION)
"""Truth that may be another one of frames that are read backwards."""
SHUFFLED = 1
"""Tells the draws of an order from those of the truth, which has the same seed and number."""


def as_shown(window: WindowRows, clip: Clip, settings: WindowSettings) -> WindowRows:
    """The window as the settings let the model see it."""
    num_frames = len(window.rows_T)
    if settings.still is not None:
        order_T = np.full(num_frames, round(settings.still * (num_frames - 1)))
    elif settings.shuffle:
        order_T = _rng(window, clip, settings.seed).permutation(num_frames)
    else:
        return window
    return replace(window, rows_T=window.rows_T[order_T], time_s_T=window.time_s_T[order_T])


def _rng(window: WindowRows, clip: Clip, seed: int) -> np.random.Generator:
    """A pure function of the seed and the number of the sample; in evaluation, where there is none,
    of the seed, the clip and the place of the window in it, whatever other clips there are."""
    ref = window.ref
    if ref.number is not None:
        return np.random.default_rng([seed, ref.number, SHUFFLED])
    place = round(ref.position * 2**32)
    return np.random.default_rng([seed, place, *clip.clip_id.encode(errors="surrogateescape")])


def require_fitting_truth(settings: WindowSettings, wanted: Wanted | None) -> None:
    """Refuses controls where truth is about single frames: its frames would be others than those
    that the model follows. Refuses both directions where truth is of one."""
    needs = wanted.needs if wanted else ()
    directed = [name for name in needs if name in DIRECTED]
    if directed and settings.both_directions:
        raise BadInput(
            "windows.both_directions is for truth that holds in every frame alone, and the truth "
            f"'{directed[0]}' is of one direction of time",
            "leave windows.both_directions out",
        )
    of_frames = [name for name in needs if name not in OF_CLIPS]
    if of_frames and (settings.shuffle or settings.still is not None):
        control = "shuffle" if settings.shuffle else "still"
        raise BadInput(
            f"windows.{control} is for truth that holds of a whole clip, and the truth "
            f"'{of_frames[0]}' is about single frames",
            f"leave windows.{control} out, or choose a task that answers for a clip",
        )
