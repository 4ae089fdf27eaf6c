"""A frame over a picture of time: one strip for the truth, one for the answer, and a line where the
frame is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.models.tasks.parts.canvas import Canvas, Colour, colour

STRIP_PX, GAP_PX = 26, 6
PAPER: Colour = (40, 40, 40)
NOTHING: Colour = (70, 70, 70)
"""Frames of background, or of no class."""
CURSOR: Colour = (255, 255, 255)
RIGHT, WRONG, PLAIN = (120, 230, 120), (255, 110, 110), (255, 255, 255)


def strip(labels_T: np.ndarray, background: Sequence[int], width: int) -> np.ndarray:
    """uint8 (STRIP_PX, width, 3): the label of every frame as a colour, from left to right."""
    inks = [
        NOTHING if number < 0 or number in background else colour(number)
        for number in labels_T.tolist()
    ]
    places = np.arange(width) * len(inks) // width
    row: np.ndarray = np.array(inks, np.uint8)[places]
    return np.repeat(row[None], STRIP_PX, axis=0)


def with_strips(
    pixels_HWC: np.ndarray,
    lines: Sequence[tuple[str, Colour]],
    strips: Sequence[tuple[str, np.ndarray]],
    place: float,
) -> np.ndarray:
    """uint8 picture: the enlarged frame with lines of words, and below it the strips, each with its
    name on it; `place` from 0 to 1 is where in them the frame lies."""
    canvas = Canvas(pixels_HWC)
    for row, (words, ink) in enumerate(lines):
        canvas.text(np.array([0.02, 0.02 + 0.06 * row]), words, ink)
    frame = canvas.pixels
    width = frame.shape[1]
    height = GAP_PX + len(strips) * (STRIP_PX + GAP_PX)
    below = np.full((height, width, 3), PAPER, np.uint8)
    for number, (_, picture) in enumerate(strips):
        top = GAP_PX + number * (STRIP_PX + GAP_PX)
        below[top : top + STRIP_PX] = picture
    at = round(place * (width - 1))
    below[:, max(0, at - 1) : at + 2] = CURSOR
    whole = Canvas(np.concatenate([frame, below]))
    for number, (name, _) in enumerate(strips):
        top = len(frame) + GAP_PX + number * (STRIP_PX + GAP_PX) + 2
        whole.text((0.01, top / (len(frame) + height)), name)
    return whole.pixels
