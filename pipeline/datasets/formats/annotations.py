"""Helpers that data sets share: tables with clear errors, headers of videos, boxes, and sources
that are missing.

A source that is missing or unusable never stops the others. What is left out is summed up under the
file that it concerns, with counts and the first few names, so that half a download of 200 000
videos is one line and not 100 000.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from pipeline.config.json_files import json_value
from pipeline.config.regular_files import read_regular
from pipeline.datasets.contract import DatasetPlugin
from pipeline.errors import BadInput, BadVideo
from pipeline.video.probe import Probe, probe

T = TypeVar("T")
DAMAGED = "the file is damaged or its download stopped: fetch it again"
JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
}


def few(names: Collection[object], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(str(name) for name in list(names)[:shown])
    return f"{first} and {len(names) - shown} more" if len(names) > shown else first


def find_file(root: Path, files: Iterable[str], names: Sequence[str]) -> Path | None:
    """The file that has the first of these names that any file has. Raises BadInput if two folders
    hold one."""
    by_name: dict[str, list[str]] = {name: [] for name in names}
    for file in files:
        name = file.rpartition("/")[2]
        if name in by_name:
            by_name[name].append(file)
    same_name = next((paths for paths in by_name.values() if paths), [])
    if len(same_name) > 1:
        raise BadInput(
            f"{root} holds {same_name[0].rpartition('/')[2]} {len(same_name)} times: "
            f"{few(same_name)}",
            "keep one of them",
        )
    return root / same_name[0] if same_name else None


def videos_by_name(root: Path, files: Iterable[str], suffixes: Collection[str]) -> dict[str, str]:
    """File name without suffix -> source. Raises BadInput if two files have one name."""
    sources: dict[str, str] = {}
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() in suffixes:
            first = sources.setdefault(path.stem, file)
            if first != file:
                raise BadInput(
                    f"{root} holds video {path.stem} twice: {first} and {file}",
                    "keep one copy of the videos",
                )
    return sources


def load_json(path: Path, kind: type[T]) -> T:
    """The content of a JSON file. Raises BadInput if it cannot be read, is damaged, or is not of
    this kind or empty."""
    try:
        content = json_value(read_regular(path, 4 << 30).removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}", DAMAGED) from error
    if not isinstance(content, kind):
        raise BadInput(
            f"{path}: wanted {JSON_NAMES[kind]} at the top, found {type(content).__name__}"
        )
    if not content:
        raise BadInput(f"{path} holds no entries", DAMAGED)
    return content


def field(record: object, key: str, kind: type[T], where: str) -> T:
    """`record[key]`, checked. A whole number passes for a float. Raises BadInput."""
    if not isinstance(record, Mapping):
        raise BadInput(f"{where}: wanted an object, found {str(record)[:40]}")
    if key not in record:
        raise BadInput(
            f"{where}: key '{key}' is missing; there are: {', '.join(map(str, record)) or 'none'}"
        )
    value: Any = record[key]
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadInput(f"{where}: {key} must be {JSON_NAMES[kind]}, found {str(value)[:40]}")
    return value


def numbers(value: object, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """A nested list as float64 of this shape (None: any length). Raises BadInput."""
    dims = " x ".join("n" if size is None else str(size) for size in shape)
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: wanted {dims} numbers, found {str(value)[:40]}") from error
    if array.size == 0 and None in shape:
        return np.empty([size or 0 for size in shape])
    if array.ndim != len(shape) or any(
        want not in (None, size) for want, size in zip(shape, array.shape, strict=True)
    ):
        raise BadInput(
            f"{where}: wanted {dims} numbers, found {' x '.join(map(str, array.shape)) or 'one'}"
        )
    return array


def probe_all(
    dataset: DatasetPlugin, sources: Sequence[str], image_fps: float | None = None
) -> dict[str, Probe]:
    """source -> what its header says, in the order given; what is no readable video goes to
    `dataset.rejected`."""
    facts: dict[str, Probe] = {}

    def look(source: str) -> Probe | BadVideo:
        try:
            return probe(dataset.root / source, image_fps)
        except BadVideo as error:
            return error

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 16)) as pool:
        for done, (source, result) in enumerate(
            zip(sources, pool.map(look, sources), strict=True), start=1
        ):
            if isinstance(result, BadVideo):
                name = PurePosixPath(source).name
                dataset.reject(source, result.message.removeprefix(f"{name}: "))
            else:
                facts[source] = result
            dataset.on_progress(done, len(sources))
    dataset.probed |= facts
    return facts


def normalised_boxes(xyxy_px: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes (..., 4) in pixel edges -> float32 fractions of the frame, cut at its edges; NaN where
    nothing is left."""
    boxes = xyxy_px.astype(np.float64).reshape(-1, 2, 2) / [width, height]
    boxes = boxes.clip(0, 1).reshape(xyxy_px.shape)
    with np.errstate(invalid="ignore"):
        has_area = np.all(
            boxes[..., 2:] > boxes[..., :2], axis=-1, keepdims=True
        )  # False where a coordinate is NaN
    return np.where(has_area, boxes, np.nan).astype(np.float32)


def present(values: np.ndarray) -> np.ndarray:
    """(...,) bool: which of the boxes or points (..., C) are there."""
    return np.asarray(np.isfinite(values).all(-1))
