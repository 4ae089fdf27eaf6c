"""The masks of a sequence as truth: boxes of every object and, if asked for, points.

Masks need not be there for every frame: YouTube-VOS has them of every fifth, test sets of the first
alone. Truth has the times of the frames that have one. An object is absent where it has no pixel in
an image of masks, so objects may appear later, and come back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.formats.annotations import few, normalised_boxes
from pipeline.datasets.masks.mask_files import box_of, objects_among, read_mask, values_of
from pipeline.datasets.masks.mask_points import COUNT, PointKind, points_of
from pipeline.errors import BadVideo
from pipeline.video.probe import Probe, list_images


class MaskTruth(NamedTuple):
    """The truth of one sequence."""

    targets: dict[str, np.ndarray]
    """`boxes` and, where points were asked for, `points` and `visible`, with their times."""
    masks: int
    frames: int
    seen_again: bool
    """Whether any object has masks in two frames: otherwise these only say what to follow."""


class _Object(NamedTuple):
    """One object in one frame, in pixels."""

    box: np.ndarray
    points: np.ndarray


def read_truth(
    images: Path, masks: Path, image_fps: float | None, probed: Probe, kinds: Sequence[PointKind]
) -> MaskTruth:
    """The masks in one folder, *.png, called as the images in the other. Raises BadVideo where they
    cannot be those of the images, or hold no object."""
    frames, time_s, _ = list_images(images, image_fps)
    frame_number = {frame.stem: number for number, frame in enumerate(frames)}
    paths = list(masks.glob("*.png"))
    strange = sorted(path.name for path in paths if path.stem not in frame_number)
    if strange:
        raise BadVideo(f"{len(strange)} of {len(paths)} masks have no image: {few(strange)}")
    if not paths:
        raise BadVideo("has no masks")
    paths.sort(key=lambda path: frame_number[path.stem])

    def look(path: Path) -> dict[int, _Object]:
        mask_HW = read_mask(path, probed.width, probed.height)
        owned = {number: mask_HW == number for number in values_of(mask_HW)}
        return {
            number: _Object(box_of(own_HW), points_of(own_HW, kinds) if kinds else np.empty((0, 2)))
            for number, own_HW in owned.items()
        }

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        objects_of_frame = list(pool.map(look, paths))
    objects = objects_among(set().union(*objects_of_frame))
    if not objects:
        raise BadVideo(f"no object in {len(paths)} masks")
    time_s_F = time_s[[frame_number[path.stem] for path in paths]] - time_s[0]
    targets = _targets(objects, objects_of_frame, time_s_F, probed, kinds)
    times_seen = np.isfinite(targets["boxes"][..., 0]).sum(1)
    return MaskTruth(targets, len(paths), len(frames), bool((times_seen > 1).any()))


def _targets(
    objects: Sequence[int],
    objects_of_frame: Sequence[Mapping[int, _Object]],
    time_s_F: np.ndarray,
    probed: Probe,
    kinds: Sequence[PointKind],
) -> dict[str, np.ndarray]:
    count = sum(COUNT[kind] for kind in kinds)
    absent = _Object(np.full(4, np.nan), np.full((count, 2), np.nan))
    table = [[seen.get(number, absent) for seen in objects_of_frame] for number in objects]
    boxes_OF4 = np.array([[each.box for each in row] for row in table])
    boxes_OF4 = normalised_boxes(boxes_OF4, probed.width, probed.height)
    targets = {"boxes": boxes_OF4, "boxes_time_s": time_s_F}
    if kinds:
        points_OFn2 = np.array([[each.points for each in row] for row in table])
        points_QF2 = points_OFn2.transpose(0, 2, 1, 3).reshape(-1, len(time_s_F), 2)
        points_QF2 = (points_QF2 / [probed.width, probed.height]).astype(np.float32)
        visible_QF = np.isfinite(points_QF2).all(-1)
        targets |= {"points": points_QF2, "visible": visible_QF, "points_time_s": time_s_F}
    return targets
