"""Textures of the room: a bank of patterns drawn once per seed, painted in colours of each
surface's own.

A pattern is two fields in [-1, 1] on a periodic square of TEXELS x TEXELS: one of sharp shapes and
one of soft shades. It is kept at LEVELS sharpnesses, so that a far or slanted surface is painted
without flicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.datasets.synthetic.rays import FOCAL, Body

PATTERNS, LEVELS, TEXELS = 15, 4, 256


@dataclass(frozen=True)
class Skin:
    """The texture and colours of the six faces of a body; face 2 a + b is the one at which own
    axis a is least (b = 0) or greatest (b = 1)."""

    half_3: np.ndarray
    """Half axes of the body at rest, in metres: they measure the texture, which a stretch then
    carries along."""
    texel_m: float
    pattern_6: np.ndarray
    shift_62: np.ndarray
    """Texels."""
    colour_633: np.ndarray
    """(face, part, RGB): mean colour, and what the two fields add to it."""


def draw_skin(
    rng: np.random.Generator, half_3: np.ndarray, texel_m: float, tint: float, *, one_pattern: bool
) -> Skin:
    """`tint`: how far the mean colour may lie from grey. `one_pattern`: the same pattern and
    colours all around."""
    pattern_6, mean_63 = rng.integers(0, PATTERNS, 6), 0.5 + rng.uniform(-tint, tint, (6, 3))
    contrast_63 = rng.choice([-1, 1], (6, 3)) * rng.uniform(0.12, 0.34, (6, 3))
    colour_633 = np.stack([mean_63, contrast_63, rng.uniform(-0.16, 0.16, (6, 3))], axis=1)
    if one_pattern:
        pattern_6, colour_633 = np.repeat(pattern_6[:1], 6), np.repeat(colour_633[:1], 6, axis=0)
    shift_62 = rng.uniform(0, TEXELS, (6, 2)).astype(np.float32)
    return Skin(half_3, texel_m, pattern_6, shift_62, colour_633.astype(np.float32))


def shade(
    skin: Skin,
    patterns: np.ndarray,
    body: Body,
    light_T3: np.ndarray,
    ray_3N: np.ndarray,
    met: tuple[np.ndarray, ...],
    depth_M: np.ndarray,
    pixel: float,
) -> np.ndarray:
    """Colours (3, M) of a body where the rays `met` (frame and ray of each) meet it at `depth_M`.

    `patterns`: the bank. `light_T3`: towards the light, in camera coordinates. `pixel`: the side of
    one, in frame sides. Surfaces are lit from there and by a lamp on the camera, which fades with
    depth.
    """
    row_M = met[0]
    start_T31, way_T3N = body.own_ray(ray_3N)
    way_3M = [way_T3N[:, axis][met] for axis in range(3)]
    own_3M = [start_T31[row_M, axis, 0] + way * depth_M for axis, way in enumerate(way_3M)]
    size_3M = [np.abs(own) for own in own_3M]
    axis_M = np.where(
        size_3M[0] >= np.maximum(size_3M[1], size_3M[2]),
        0,
        np.where(size_3M[1] >= size_3M[2], 1, 2),
    )
    face_M = 2 * axis_M + (_pick(axis_M, own_3M) > 0)
    slope_M, lit_M = _slope_and_light(body, light_T3, way_3M, own_3M, axis_M, row_M)
    # Towards the camera, whichever side of the surface it is on.
    brightness_M = (0.78 - 0.3 * np.sign(slope_M) * lit_M) * 1.3 / (1 + (depth_M / 6) ** 2)

    texels_M = (
        depth_M
        * np.float32(pixel / (FOCAL * skin.texel_m))
        / np.sqrt(np.maximum(np.abs(slope_M), 0.05))
    )
    level_M = np.clip(np.log2(texels_M) + 0.5, 0, LEVELS - 1).astype(np.int32)
    scaled_3M = [
        own * np.float32(half / skin.texel_m) for own, half in zip(own_3M, skin.half_3, strict=True)
    ]
    u_M, v_M = (
        np.floor(_pick(axis_M, [scaled_3M[axis] for axis in axes]) + shift_6[face_M]).astype(
            np.int32
        )
        % TEXELS
        for axes, shift_6 in zip(([1, 0, 0], [2, 2, 1]), skin.shift_62.T, strict=True)
    )
    place_M = ((skin.pattern_6[face_M] * LEVELS + level_M) * TEXELS + v_M) * TEXELS + u_M
    sharp_M, soft_M = patterns.reshape(-1, 2)[place_M].T.astype(np.float32) / 127
    return np.stack(
        [
            (base_6[face_M] + sharp_M * by_sharp_6[face_M] + soft_M * by_soft_6[face_M])
            * brightness_M
            for base_6, by_sharp_6, by_soft_6 in skin.colour_633.transpose(2, 1, 0)
        ]
    )


def _slope_and_light(
    body: Body,
    light_T3: np.ndarray,
    way_3M: list[np.ndarray],
    own_3M: list[np.ndarray],
    axis_M: np.ndarray,
    row_M: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) each: the outward normal along the ray, up to the ray's length, and towards the light.

    A normal is a column of inverse^T times the normal in the body's own coordinates, which is `own`
    or an axis.
    """
    inverse_T33 = np.linalg.inv(body.axes_T33).astype(np.float32)
    light_T3 = (inverse_T33 @ light_T3[:, :, None].astype(np.float32))[:, :, 0]
    if body.round:
        normal_3M = [sum(inverse_T33[row_M, j, i] * own_3M[j] for j in range(3)) for i in range(3)]
        length_M = np.sqrt(sum(normal**2 for normal in normal_3M))
        slope_M = sum(own * way for own, way in zip(own_3M, way_3M, strict=True))
        lit_M = sum(own * light_T3[row_M, axis] for axis, own in enumerate(own_3M))
    else:
        sign_M = np.sign(_pick(axis_M, own_3M))
        length_M = np.linalg.norm(inverse_T33, axis=2)[row_M, axis_M]
        slope_M, lit_M = sign_M * _pick(axis_M, way_3M), sign_M * light_T3[row_M, axis_M]
    return slope_M / length_M, lit_M / length_M


def _pick(axis_M: np.ndarray, three: Sequence[np.ndarray]) -> np.ndarray:
    """Picks from three arrays (M,) at every index the value of the one that `axis_M` names."""
    return np.where(axis_M == 0, three[0], np.where(axis_M == 1, three[1], three[2]))


@lru_cache(maxsize=2)
def bank(seed: int) -> np.ndarray:
    """int8 (PATTERNS, LEVELS, TEXELS, TEXELS, 2), 127 standing for 1."""
    rng = np.random.default_rng((seed, 2**32))
    return np.stack([_pattern(rng, number) for number in range(PATTERNS)])


def _pattern(rng: np.random.Generator, number: int) -> np.ndarray:
    """(LEVELS, TEXELS, TEXELS, 2) of one pattern: tiles, warped bands, checks, blotches or dots, in
    turn."""
    frequency = np.fft.fftfreq(TEXELS)
    k_SS = np.hypot(frequency[:, None], frequency)
    soft, grain = _noise(rng, k_SS, 90), _noise(rng, k_SS, 10)
    y, x = np.mgrid[:TEXELS, :TEXELS] / TEXELS
    count = int(rng.choice([4, 6, 8, 10]))
    turn = 2 * np.pi * count
    if number % 5 == 0:
        tile = rng.uniform(-0.6, 1, (count, count))[
            (y * count).astype(int), (x * count).astype(int)
        ]
        shape = np.where(np.maximum(np.cos(turn * x), np.cos(turn * y)) > 0.93, -1, tile)
    elif number % 5 == 1:
        along, across = rng.integers(-3, 4), count
        shape = np.tanh(4 * np.sin(2 * np.pi * (along * x + across * y) + 1.5 * soft))
    elif number % 5 == 2:
        shape = np.tanh(
            6
            * np.sin(turn / 2 * x + 0.8 * soft)
            * np.sin(turn / 2 * y + 0.8 * _noise(rng, k_SS, 90))
        )
    elif number % 5 == 3:
        shape = np.tanh(3 * _noise(rng, k_SS, 160 / count))
    else:
        shape = np.tanh(4 * (np.cos(turn * x + soft) + np.cos(turn * y - soft) - 0.7))
    fields = np.stack([0.85 * shape + 0.15 * grain, 0.6 * soft + 0.4 * grain], axis=-1)
    spectrum, k_SR = np.fft.rfft2(fields, axes=(0, 1)), k_SS[:, : TEXELS // 2 + 1]
    levels = [fields]
    for level in range(1, LEVELS):
        # A Gaussian of half a pixel's width, where a pixel covers 2^level texels.
        blur = np.exp(-2 * (np.pi * 0.5 * 2**level * k_SR) ** 2)[..., None]
        levels.append(np.fft.irfft2(spectrum * blur, axes=(0, 1)))
    return np.round(np.clip(np.stack(levels), -1, 1) * 127).astype(np.int8)


def _noise(rng: np.random.Generator, k_SS: np.ndarray, period: float) -> np.ndarray:
    """Periodic noise of unit variance, whose waves are `period` texels long and longer."""
    low_pass = np.exp(-2 * (k_SS[:, : TEXELS // 2 + 1] * period) ** 2)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(k_SS.shape)) * low_pass)
    field -= field.mean()
    noise: np.ndarray = field / field.std()
    return noise
