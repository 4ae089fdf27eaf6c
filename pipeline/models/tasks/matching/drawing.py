"""How much a video is like each of some texts, drawn over its frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.models.tasks.parts.canvas import Canvas, colour

MOST_LINES = 7
"""Texts that are drawn at most."""
LINE = 0.12
"""Height of a text and its bar, of the frame's."""
BAR = 0.96
"""Length of a bar that says 1, of the frame's width."""


def draw_scores(pixels_THWC: np.ndarray, scores: Sequence[tuple[str, float]]) -> np.ndarray:
    """Frames, uint8, with a line for each text: its score, its words, and a bar below them that is
    as long as the score, from 0 to 1; (T, H, W, 3) of enlarged frames."""
    drawn = []
    for pixels_HWC in pixels_THWC:
        canvas = Canvas(pixels_HWC)
        for line, (words, score) in enumerate(scores[:MOST_LINES]):
            top = 0.02 + LINE * line
            canvas.text((0.02, top), f"{score:.3f} {words}")
            bar = 0.02, top + 0.07, 0.02 + BAR * min(1.0, max(0.0, score)), top + 0.075
            canvas.box(np.array(bar), colour(line))
        drawn.append(canvas.pixels)
    return np.stack(drawn)
