"""One to three flat things before a still background, of which one, the actor, does two different
things one after the other.

Three attributes say how a thing looks in a frame: x, y and size. Each is a phase on a circle, read
modulo 1: x and y wrap around the frame's edges, log size around its range. An event takes one of
them exactly once around its circle, forwards or backwards, at a constant rate:

    x   right / left          y   down / up          size   grows / shrinks

The first event fills the first half of the clip, the second one the other half; all else rests.
Every ordered pair of two different events is as frequent. The label is the first event.

What a single frame says: who is there, and nothing of who acts or what happens. At time t the
attributes are u + s(t) (mod 1), where u is uniform on all circles and is drawn independently of the
actor and the events, which alone make s. That gives uniform phases again, whatever s is. Shapes,
colours, who covers whom and the background are drawn independently of all of these.

What all frames say if their order is lost: who acts and which attributes change, and no more. An
event passes the same places forwards and backwards and ends where it began, so that "left, then
grows" has the frames of "right, then shrinks" and of "grows, then left", each as often. From such a
bag of frames the first event is guessed at 0.3 at best: one of four where two attributes change (24
of the 30 pairs), one of two where the actor goes there and back on one (6 pairs).

Things are placed independently of each other, as a rule that keeps them apart would show which of
them is free to move; so one covers another now and then.

Coordinates are fractions of the frame's side, y down. What leaves the frame at one edge enters at
the opposite one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from pipeline.datasets.synthetic.plane import pixel_centres, waves

ATTRIBUTES = ("x", "y", "size")
EVENTS = {
    "down": ("y", 1),
    "grows": ("size", 1),
    "left": ("x", -1),
    "right": ("x", 1),
    "shrinks": ("size", -1),
    "up": ("y", -1),
}
"""event -> the attribute that changes, and its direction. Sorted, as a manifest sorts labels."""
LABELS = tuple(EVENTS)
ROUND = len(LABELS) * (len(LABELS) - 1)
"""Clips in a row that show every pair of events once."""
COLOURS = {
    "blue": (0.14, 0.28, 0.94),
    "green": (0.10, 0.66, 0.22),
    "red": (0.90, 0.14, 0.12),
    "yellow": (0.97, 0.85, 0.10),
}
SQUARE = np.sqrt(np.pi) / 2
"""Half side of the square that has the area of a disc of radius 1."""
TRIANGLE = np.sqrt(np.pi / np.sqrt(27))
"""Distance from the centre to the sides of the triangle of that area, equal-sided and upright; its
corners are twice as far away."""
EXTENTS = {
    "disc": (-1.0, -1.0, 1.0, 1.0),
    "square": (-SQUARE, -SQUARE, SQUARE, SQUARE),
    "triangle": (-np.sqrt(3) * TRIANGLE, -2 * TRIANGLE, np.sqrt(3) * TRIANGLE, TRIANGLE),
}
"""shape -> its box around the centre, xyxy in radii."""
SHAPES = tuple(EXTENTS)
RADIUS_RANGE = (0.11, 0.24)
"""Radius of the disc of the same area, in frame sides."""
PEEP_PX = 56
"""A thing is hidden where none of PEEP_PX x PEEP_PX places of the frame shows it."""
RENDERING = 1
"""Raised when the same settings would give other pixels."""


class Thing(NamedTuple):
    colour: str
    shape: str


class Cast(NamedTuple):
    """Who is there. No two things share a shape or a colour, so that either names one of them."""

    things: tuple[Thing, ...]
    """In the order of SHAPES."""
    actor: int
    """The place in `things` of the one that acts."""


CASTS = tuple(
    tuple(
        Cast(tuple(map(Thing, colours, shapes)), actor)
        for shapes in combinations(SHAPES, count)
        for colours in permutations(COLOURS, count)
        for actor in range(count)
    )
    for count in range(1, len(SHAPES) + 1)
)
"""All casts of one thing (12), of two (72) and of three (72)."""
MOST_SHARED = len(CASTS) * min(map(len, CASTS))


@dataclass(frozen=True)
class Story:
    """All that is random in one clip, and what happens in it."""

    cast: Cast
    events: tuple[str, str]
    phase_OA: np.ndarray
    """Attributes of each thing at time 0, uniform in [0, 1)."""
    order: np.ndarray
    """Places of the things, the one farthest back first."""
    waves_background: np.ndarray
    """(waves, 3): two wave numbers and a phase."""
    tint: np.ndarray
    """(3,): mean colour of the background."""


def draw_story(seed: int, index: int, casts: int = 0) -> Story:
    """The story of clip `index`, whose draws are the same whatever happens in it. `casts` are
    shared by all clips, each for a whole round in turn; 0: this clip has its own."""
    rng = np.random.default_rng((seed, index))
    # How many are there is drawn first, as there are more casts of more things.
    alike = CASTS[rng.integers(len(CASTS))]
    cast = alike[rng.integers(len(alike))]
    if casts:
        cast = shared_casts(seed)[index // ROUND % casts]
    count = len(cast.things)
    phase_OA = rng.random((len(SHAPES), len(ATTRIBUTES)))
    return Story(
        cast=cast,
        events=events(index),
        phase_OA=phase_OA[:count],
        order=np.argsort(rng.random(len(SHAPES))[:count]),
        waves_background=np.column_stack([rng.integers(-2, 3, (5, 2)), rng.random(5)]),
        tint=(np.array([0.40, 0.40, 0.42]) + rng.uniform(-0.05, 0.05, 3)).astype(np.float32),
    )


def events(index: int) -> tuple[str, str]:
    """What happens in clip `index`: the first events in turn, each with the others in turn."""
    first, ahead = index % len(LABELS), 1 + index // len(LABELS) % (len(LABELS) - 1)
    return LABELS[first], LABELS[(first + ahead) % len(LABELS)]


@lru_cache(maxsize=2)
def shared_casts(seed: int) -> tuple[Cast, ...]:
    """MOST_SHARED different casts, of one, two and three things in turn."""
    rng = np.random.default_rng((seed, 2**32 + 1))
    shuffled = ([alike[place] for place in rng.permutation(len(alike))] for alike in CASTS)
    return tuple(cast for casts in zip(*shuffled, strict=False) for cast in casts)


class StoryShot:
    """One clip of `seconds`, ready to be rendered."""

    def __init__(self, story: Story, seconds: float) -> None:
        self.story, self.seconds = story, seconds

    def attributes(self, time_s: np.ndarray) -> np.ndarray:
        """(T, O, A) phases in [0, 1) at the given times."""
        story = self.story
        phase_TOA = np.repeat(story.phase_OA[None], len(time_s), axis=0)
        for half, event in enumerate(story.events):
            attribute, direction = EVENTS[event]
            done_T = np.clip(2 * time_s / self.seconds - half, 0, 1)
            phase_TOA[:, story.cast.actor, ATTRIBUTES.index(attribute)] += direction * done_T
        phases: np.ndarray = phase_TOA % 1.0
        return phases

    def render(self, time_s: np.ndarray, size_px: int) -> np.ndarray:
        """uint8 RGB (T, H, W, 3). Each frame depends on its own phases alone."""
        texture = waves(self.story.waves_background, pixel_centres(size_px), 1.0)
        background = self.story.tint + 0.05 * texture[..., None]
        frames = np.repeat(background[None], len(time_s), axis=0)
        inside_TOHW = self._inside(time_s, size_px)
        for number in self.story.order:
            cover = np.clip(inside_TOHW[:, number] * size_px + 0.5, 0, 1)[..., None]
            paint = np.array(COLOURS[self.story.cast.things[number].colour], np.float32)
            frames = frames * (1 - cover) + paint * cover
        return (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8)

    def truth(self, time_s: np.ndarray) -> dict[str, np.ndarray]:
        """`boxes` (O, T, 4) float32, exact to rounding, in the order of the cast: xyxy of the whole
        outline around a thing's centre, cut at the frame's edges; what has left at an edge and
        shows at the opposite one is not boxed. NaN where others hide the thing."""
        phase_TOA = self.attributes(time_s)
        centre_TO2, radius_TO1 = phase_TOA[..., :2], disc_radius(phase_TOA)[..., None]
        extent_O4 = np.array([EXTENTS[thing.shape] for thing in self.story.cast.things])
        box_TO4 = np.tile(centre_TO2, 2) + radius_TO1 * extent_O4
        inside_TOHW = self._inside(time_s, PEEP_PX)
        shown_THW = np.full((len(time_s), PEEP_PX, PEEP_PX), -1)
        for number in self.story.order:
            shown_THW[inside_TOHW[:, number] > 0] = number
        shows_TO = np.stack(
            [(shown_THW == number).any((1, 2)) for number in range(len(extent_O4))], axis=1
        )
        box_TO4 = np.where(shows_TO[..., None], box_TO4.clip(0, 1), np.nan)
        return {"boxes": box_TO4.transpose(1, 0, 2).astype(np.float32)}

    def _inside(self, time_s: np.ndarray, size_px: int) -> np.ndarray:
        """(T, O, H, W): how deep the centres of size_px x size_px pixels lie within each thing, in
        frame sides; negative outside."""
        phase_TOA = self.attributes(time_s).astype(np.float32)
        places = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
        # From the centre by the shortest way around the edges; columns know x and rows know y.
        offset_TO2S = (places - phase_TOA[..., :2, None] + 0.5) % 1.0 - 0.5
        x_TO1W, y_TOH1 = offset_TO2S[:, :, 0, None, :], offset_TO2S[:, :, 1, :, None]
        radius_TO11 = disc_radius(phase_TOA)[..., None, None]
        depths = [
            _depth(thing.shape, x_TO1W[:, number], y_TOH1[:, number], radius_TO11[:, number])
            for number, thing in enumerate(self.story.cast.things)
        ]
        return np.stack(depths, axis=1)


def disc_radius(phase_OA: np.ndarray) -> np.ndarray:
    """Phases (..., A) -> radius of the disc of a thing's area, in frame sides."""
    low, high = RADIUS_RANGE
    size: np.ndarray = low * (high / low) ** phase_OA[..., ATTRIBUTES.index("size")]
    return size


def _depth(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How deep places at x, y from the centre lie within the outline of a shape."""
    if shape == "disc":
        return radius - np.hypot(x, y)
    if shape == "square":
        return np.float32(SQUARE) * radius - np.maximum(np.abs(x), np.abs(y))
    slanted = np.float32(np.sqrt(0.75)) * np.abs(x) - np.float32(0.5) * y
    return np.float32(TRIANGLE) * radius - np.maximum(y, slanted)
