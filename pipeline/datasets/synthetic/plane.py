"""One textured object over a still background, seen by a still camera; its motion is the class.

Five attributes say how a frame looks: the object's x, y, angle, size and colour. Each is a phase on
a circle, read modulo 1: x and y wrap around the frame's edges, the angle around a turn, log size
and colour around their ranges. In a clip one attribute moves at a constant rate, forwards or
backwards, and the other four rest; which one and which way is the label:

    x       right / left                       size     approaching / receding
    angle   clockwise / counter_clockwise      colour   red_green_blue / blue_green_red

Why a single frame says nothing: at time t the attributes are u + v t (mod 1), where u is uniform on
the five circles and is drawn independently of the velocity v. Adding v t to a uniform u gives a
uniform phase again, so at every t the attributes have one and the same distribution for every v,
hence for every class; look and background are drawn independently of both. Two classes of a pair
are one stationary process read in the two directions of time.

Two frames are enough: the slowest clip moves 0.4 and the fastest 0.8 of a circle per second, so
that neighbours at 4 frames per second lie at most 0.2 of a circle apart, and 8 frames at 4 (8)
frames per second see at least 0.7 (0.35) of one.

Coordinates are fractions of the frame's side, y down. What leaves the frame at one edge enters at
the opposite one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ATTRIBUTES = ("x", "y", "angle", "size", "colour")
MOTIONS = {
    "approaching": ("size", 1),
    "blue_green_red": ("colour", -1),
    "clockwise": ("angle", 1),
    "counter_clockwise": ("angle", -1),
    "left": ("x", -1),
    "receding": ("size", -1),
    "red_green_blue": ("colour", 1),
    "right": ("x", 1),
}
"""label -> the attribute that moves, and its direction. Sorted, as a manifest sorts its labels."""
LABELS = tuple(MOTIONS)
RATE_RANGE = (0.4, 0.8)
"""Circles per second."""
RADIUS_RANGE = (0.14, 0.28)
"""Mean radius of the object's outline, in frame sides."""
PALETTE = np.array([[0.88, 0.16, 0.13], [0.10, 0.62, 0.22], [0.14, 0.30, 0.92]], np.float32)
OBJECT_RADIUS_M = 0.3
"""With a focal length of one frame side, an object of apparent radius r is 0.3 / r away: 1.07 m to
2.14 m."""
BACKGROUND_M = 4.0
DEPTH_PX = 28
"""Side of the depth maps."""
OBJECT_POINTS, BACKGROUND_POINTS = 6, 2
RENDERING = 1
"""Raised when the same settings would give other pixels."""


@dataclass(frozen=True)
class PlaneScene:
    """All that is random in one clip: the same draws, in the same order, whatever its class."""

    phase_A: np.ndarray
    """Attributes at time 0, uniform in [0, 1)."""
    rate_hz: float
    lobes: int
    lobe_depth: float
    """The outline is radius * (1 + lobe_depth * cos(lobes * angle))."""
    waves_object: np.ndarray
    waves_background: np.ndarray
    """(waves, 3): two wave numbers and a phase."""
    tint: np.ndarray
    """(3,): mean colour of the background."""
    points_object: np.ndarray
    """(points, 2) in radii, in the object's own axes."""
    points_background: np.ndarray
    """(points, 2) in frame sides."""


def draw_scene(seed: int, index: int) -> PlaneScene:
    """The scene of clip `index`; depends on nothing else."""
    rng = np.random.default_rng((seed, index))
    distance, angle = (
        0.75 * np.sqrt(rng.random(OBJECT_POINTS)),
        2 * np.pi * rng.random(OBJECT_POINTS),
    )
    return PlaneScene(
        phase_A=rng.random(len(ATTRIBUTES)),
        rate_hz=rng.uniform(*RATE_RANGE),
        lobes=int(rng.choice([3, 4, 5])),
        lobe_depth=rng.uniform(0.04, 0.14),
        waves_object=np.column_stack([rng.integers(-2, 3, (3, 2)), rng.random(3)]),
        waves_background=np.column_stack([rng.integers(-2, 3, (5, 2)), rng.random(5)]),
        tint=(np.array([0.36, 0.36, 0.38]) + rng.uniform(-0.05, 0.05, 3)).astype(np.float32),
        points_object=distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]),
        points_background=rng.random((BACKGROUND_POINTS, 2)),
    )


class PlaneShot:
    """One clip, ready to be rendered."""

    def __init__(self, seed: int, index: int, label: str) -> None:
        self.scene, self.label = draw_scene(seed, index), label

    def render(self, time_s: np.ndarray, size_px: int) -> np.ndarray:
        """uint8 RGB (T, H, W, 3)."""
        return render(self.scene, attributes(self.scene, self.label, time_s), size_px)

    def truth(self, time_s: np.ndarray) -> dict[str, np.ndarray]:
        """See the function `truth`."""
        return truth(self.scene, attributes(self.scene, self.label, time_s))


def attributes(scene: PlaneScene, label: str, time_s: np.ndarray) -> np.ndarray:
    """(T, A) phases in [0, 1) at the given times: only the label's attribute moves."""
    attribute, direction = MOTIONS[label]
    velocity_A = direction * scene.rate_hz * (np.array(ATTRIBUTES) == attribute)
    return (scene.phase_A + velocity_A * time_s[:, None]) % 1.0


def radius(phase_TA: np.ndarray) -> np.ndarray:
    """(T,) mean radius of the outline, in frame sides."""
    low, high = RADIUS_RANGE
    size: np.ndarray = low * (high / low) ** phase_TA[:, ATTRIBUTES.index("size")]
    return size


def object_axes(
    scene: PlaneScene, phase_TA: np.ndarray, xy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where places of the frame, (..., 2), lie on the object at each time.

    Returns `offset` from the centre by the shortest way around the edges and `surface`, the place
    in the object's own turning axes, both (T, ..., 2) in radii; and `inside`, (T, ...): how deep
    below the outline, in frame sides, negative outside.
    """
    spread = (slice(None), *[None] * (xy.ndim - 1))
    r = radius(phase_TA)[spread]
    offset = ((xy - phase_TA[spread][..., :2] + 0.5) % 1.0 - 0.5) / r[..., None]
    turn = 2 * np.pi * phase_TA[spread][..., ATTRIBUTES.index("angle")]
    cos, sin = np.cos(turn), np.sin(turn)
    surface = np.stack(
        [cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]],
        axis=-1,
    )
    angle = np.arctan2(surface[..., 1], surface[..., 0])
    outline = 1 + scene.lobe_depth * np.cos(scene.lobes * angle)
    return offset, surface, (outline - np.hypot(offset[..., 0], offset[..., 1])) * r


def waves(parameters: np.ndarray, xy: np.ndarray, period: float) -> np.ndarray:
    """A smooth texture in about [-1, 1]: the mean of a few plane waves."""
    k, phase = parameters[:, :2].astype(xy.dtype), parameters[:, 2].astype(xy.dtype)
    return np.sin(2 * np.pi * (xy @ k.T / xy.dtype.type(period) + phase)).mean(axis=-1) * 1.5


def pixel_centres(size_px: int, dtype: Any = np.float32) -> np.ndarray:
    """(H, W, 2) xy of the pixels' centres."""
    places = (np.arange(size_px, dtype=dtype) + dtype(0.5)) / dtype(size_px)
    return np.stack(np.meshgrid(places, places, indexing="xy"), axis=-1)


def render(scene: PlaneScene, phase_TA: np.ndarray, size_px: int) -> np.ndarray:
    """uint8 RGB (T, H, W, 3). Each frame depends on its own phases alone.

    The object's paint fades from colour to white around its centre, which shows the angle; it is
    lit from the left, which shows the side from which it enters a place.
    """
    xy, phase_TA = pixel_centres(size_px), phase_TA.astype(np.float32)
    background = scene.tint + 0.07 * waves(scene.waves_background, xy, 1.0)[..., None]
    offset, surface, inside = object_axes(scene, phase_TA, xy)
    cover = np.clip(inside * size_px + 0.5, 0, 1)[..., None]
    around = (np.arctan2(surface[..., 1], surface[..., 0]) / (2 * np.pi)) % 1.0
    fade = np.minimum(around / 0.9, (1 - around) / 0.1)
    white = 0.75 * fade * np.clip(2 * np.hypot(surface[..., 0], surface[..., 1]), 0, 1) + 0.05
    colour = phase_TA[:, ATTRIBUTES.index("colour")] * 3
    step = np.clip((colour % 1 - 0.8) / 0.2, 0, 1)[:, None]
    first = colour.astype(int) % 3
    hue = (PALETTE[first] * (1 - step) + PALETTE[(first + 1) % 3] * step)[:, None, None, :]
    light = 0.84 - 0.34 * offset[..., 0] + 0.08 * waves(scene.waves_object, surface, 2.0)
    paint = (hue + (1 - hue) * white[..., None]) * light[..., None]
    return (np.clip(background * (1 - cover) + paint * cover, 0, 1) * 255 + 0.5).astype(np.uint8)


def truth(scene: PlaneScene, phase_TA: np.ndarray) -> dict[str, np.ndarray]:
    """The truth of every frame, exact to rounding.

    `boxes` (1, T, 4): xyxy of the outline around the object's centre, cut at the frame's edges. The
    centre is always in the frame; what has left at an edge and shows at the opposite one is not
    boxed. `points` (8, T, 2): 6 fixed on the object, which cross the edges as it does, then 2 on
    the background. `visible` (8, T): False where the object covers a point of the background.
    `depth_m` (T, 28, 28): distance of the object's plane, or the background's, at the centre of
    each cell. `pose` (T, 4, 4): camera to world, the identity: the camera is still.
    """
    centre, r = phase_TA[:, None, :2], radius(phase_TA)[:, None, None]
    turn = 2 * np.pi * phase_TA[:, ATTRIBUTES.index("angle"), None]
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    outline = (1 + scene.lobe_depth * np.cos(scene.lobes * angle))[:, None] * _unit(angle + turn)
    box = np.concatenate(
        [(centre + r * outline).min(axis=1), (centre + r * outline).max(axis=1)], axis=-1
    ).clip(0, 1)

    along, across = _unit(turn), _unit(turn + np.pi / 2)
    on_object = (
        centre + r * (scene.points_object[:, :1] * along + scene.points_object[:, 1:] * across)
    ) % 1.0
    on_background = np.broadcast_to(
        scene.points_background, (len(phase_TA), *scene.points_background.shape)
    )
    _, _, inside = object_axes(scene, phase_TA, scene.points_background)
    visible = np.concatenate([np.ones(on_object.shape[:2], bool), inside <= 0], axis=1)

    _, _, inside = object_axes(scene, phase_TA, pixel_centres(DEPTH_PX, np.float64))
    return {
        "boxes": box[None].astype(np.float32),
        "points": np.concatenate([on_object, on_background], axis=1)
        .transpose(1, 0, 2)
        .astype(np.float32),
        "visible": visible.T,
        "depth_m": np.where(inside > 0, OBJECT_RADIUS_M / r, BACKGROUND_M).astype(np.float32),
        "pose": np.tile(np.eye(4, dtype=np.float32), (len(phase_TA), 1, 1)),
    }


def _unit(angle: np.ndarray) -> np.ndarray:
    """Angles -> unit vectors, (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
