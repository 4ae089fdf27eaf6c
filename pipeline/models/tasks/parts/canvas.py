"""Drawing over frames: boxes, points, crosses and words on an enlarged frame, and frames side by
side.

Places are x, y in the frame, from 0 to 1. Every mark has a dark rim, so that it shows on any
background.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.models.tasks.parts.fonts import font_runs, readable

SIDE_PX = 384
"""Smaller frames are enlarged to this."""
COLOURS = (
    (255, 209, 70),
    (70, 190, 255),
    (255, 110, 140),
    (120, 230, 120),
    (200, 150, 255),
    (255, 160, 70),
    (100, 235, 215),
    (255, 150, 230),
)
RIM = (15, 15, 15)
WHITE = (255, 255, 255)
RIGHT, WRONG = (120, 230, 120), (255, 110, 110)
"""Of an answer."""
MOST_DRAWN, LINE = 3, 0.06
"""Answers that are written over a frame at most, and the height of one, of the frame's."""
GAP_PX = 4
CAPTION_PX = 24
"""Height of the strip below a frame that says which it is."""

Colour = tuple[int, int, int]


def colour(number: int) -> Colour:
    """The colour of object or point `number`; they repeat after eight."""
    return COLOURS[number % len(COLOURS)]


class Canvas:
    """One frame, uint8 (H, W, 3), enlarged until its shorter side has `SIDE_PX`. `pixels` is what
    has been drawn so far."""

    def __init__(self, pixels_HWC: np.ndarray) -> None:
        image = Image.fromarray(pixels_HWC)
        scale = max(1.0, SIDE_PX / min(image.size))
        if scale > 1:
            image = image.resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
            )
        self._image, self._draw = image, ImageDraw.Draw(image)
        self.line_px = max(2, min(image.size) // 160)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3) of the enlarged frame."""
        return np.array(self._image)

    def box(self, xyxy: np.ndarray, ink: Colour, dashed: bool = False) -> None:
        """The outline of a box; one whose corners are swapped is drawn as if they were not."""
        x1, y1, x2, y2 = (
            *self._px(np.minimum(xyxy[:2], xyxy[2:])),
            *self._px(np.maximum(xyxy[:2], xyxy[2:])),
        )
        sides = [(x1, y1, x2, y1), (x2, y1, x2, y2), (x2, y2, x1, y2), (x1, y2, x1, y1)]
        strokes = [
            stroke for side in sides for stroke in (self._dashes(*side) if dashed else [side])
        ]
        self._strokes(strokes, ink)

    def point(self, xy: np.ndarray, ink: Colour, hollow: bool = False) -> None:
        """A disc, or a ring."""
        x, y = self._px(xy)
        radius = 3 * self.line_px
        for shade, reach, width in (
            (RIM, radius + 1, self.line_px + 2),
            (ink, radius, self.line_px),
        ):
            self._draw.ellipse(
                (x - reach, y - reach, x + reach, y + reach),
                None if hollow else shade,
                shade,
                width,
            )

    def cross(self, xy: np.ndarray, ink: Colour) -> None:
        """Two thin strokes that meet at the place."""
        x, y = self._px(xy)
        arm = 4 * self.line_px
        self._strokes(
            [(x - arm, y - arm, x + arm, y + arm), (x - arm, y + arm, x + arm, y - arm)], ink
        )

    def text(self, xy: np.ndarray | tuple[float, float], words: str, ink: Colour = WHITE) -> None:
        """Words in any script, on one line, whose upper left corner is at the place."""
        pieces = _line(words, 6 * self.line_px + 1)
        x, y = self._px(xy)
        # Thin, or the rims of neighbouring letters meet and fill what is between them.
        rim = 1
        ascent = max((font.getmetrics()[0] for font, _ in pieces), default=0)
        for font, piece in pieces:
            place = (x, y + ascent)
            self._draw.text(place, piece, ink, font, "ls", stroke_width=rim, stroke_fill=RIM)
            x += round(font.getlength(piece))

    def _px(self, xy: np.ndarray | tuple[float, float]) -> tuple[int, int]:
        """The pixel at a place; at most one side away from the frame, so that a wild prediction
        costs no time."""
        x, y = np.floor(np.nan_to_num(np.asarray(xy, np.float64)).clip(-1, 2) * self._image.size)
        return int(x), int(y)

    def _dashes(
        self, x1: float, y1: float, x2: float, y2: float
    ) -> list[tuple[float, float, float, float]]:
        dash = 4 * self.line_px
        count = max(1, round(np.hypot(x2 - x1, y2 - y1) / (2 * dash)))
        stops = np.arange(2 * count + 1) / (2 * count + 1)
        share = 1 / (2 * count + 1)
        return [
            (
                x1 + (x2 - x1) * at,
                y1 + (y2 - y1) * at,
                x1 + (x2 - x1) * (at + share),
                y1 + (y2 - y1) * (at + share),
            )
            for at in stops[::2].tolist()
        ]

    def _strokes(self, strokes: Sequence[tuple[float, float, float, float]], ink: Colour) -> None:
        for shade, width in ((RIM, self.line_px + 2), (ink, self.line_px)):
            for stroke in strokes:
                self._draw.line(stroke, fill=shade, width=width)


def draw_likeliest(
    pixels_THWC: np.ndarray, said: Sequence[tuple[str, float]], truth: str | None
) -> np.ndarray:
    """Frames, uint8, under the truth and the answers of `said` with their probabilities, the
    likeliest first, of which the first is what is said: green where it is the truth, red where it
    is not. None: the truth is not known. (T, H, W, 3) of enlarged frames."""
    lines = [] if truth is None else [(f"truth: {truth}", WHITE)]
    for row, (answer, share) in enumerate(said[:MOST_DRAWN]):
        ink = WHITE if truth is None or row else RIGHT if answer == truth else WRONG
        lines.append((f"{share:.0%} {answer}", ink))
    drawn = []
    for pixels_HWC in pixels_THWC:
        canvas = Canvas(pixels_HWC)
        for row, (words, ink) in enumerate(lines):
            canvas.text((0.02, 0.02 + LINE * row), words, ink)
        drawn.append(canvas.pixels)
    return np.stack(drawn)


def concat_width(panels: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 panels (H, W, 3) in a row, enlarged to the height of the tallest, with a dark gap
    between them."""
    height = max(len(panel) for panel in panels)
    row: list[np.ndarray] = []
    for panel in panels:
        width = round(panel.shape[1] * height / len(panel))
        if len(panel) != height:
            panel = np.array(
                Image.fromarray(panel).resize((width, height), Image.Resampling.BICUBIC)
            )
        row += [np.full((height, GAP_PX, 3), RIM, np.uint8), panel]
    return np.concatenate(row[1:], axis=1)


def with_caption(pixels_HWC: np.ndarray, words: str) -> np.ndarray:
    """uint8 (H + CAPTION_PX, W, 3): the picture over a dark strip with one line of words, cut where
    they are wider."""
    image = Image.new("RGB", (pixels_HWC.shape[1], CAPTION_PX), RIM)
    draw, x = ImageDraw.Draw(image), CAPTION_PX // 4
    for font, piece in _line(words, CAPTION_PX * 2 // 3):
        draw.text((x, CAPTION_PX * 3 // 4), piece, WHITE, font, "ls")
        x += round(font.getlength(piece))
    return np.concatenate([pixels_HWC, np.array(image)])


def _line(words: str, size_px: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Words on one line, as pieces with a font each."""
    line = " ".join(readable(words).split())
    # The mark says that a line begins at the left, also where its first letters are Arabic.
    return font_runs(line if line.isascii() else f"\u200e{line}", size_px)
