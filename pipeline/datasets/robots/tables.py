"""Parquet files as columns of plain data, with one sentence on what is wrong with them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.formats.annotations import DAMAGED, few
from pipeline.errors import BadInput, StillframeError


def parquet() -> Any:
    """pyarrow.parquet, which not everyone has."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise StillframeError(
            "Parquet files need the package 'pyarrow', which is not installed",
            "pip install 'stillframe[parquet]'",
        ) from error


def read_columns(
    path: Path, names: Sequence[str], episode: int | None = None
) -> dict[str, list[Any]]:
    """Columns of a file as lists, of the rows of one episode or of all. Raises BadInput where the
    file cannot be read, or lacks one of them."""
    reader = parquet()
    try:
        there = reader.read_schema(path).names
        lacking = [name for name in names if name not in there]
        if lacking:
            raise BadInput(f"{path} lacks the column '{lacking[0]}', it has {few(there, 6)}")
        rows = None if episode is None else [("episode_index", "=", episode)]
        table = reader.read_table(path, columns=list(names), filters=rows)
    except (OSError, ValueError) as error:  # what pyarrow raises for damaged files is either
        text = " ".join(str(error).split())[:200]
        raise BadInput(f"{path} cannot be read: {text}", DAMAGED) from error
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def read_names(path: Path) -> list[str]:
    """The names of all columns. Raises BadInput."""
    try:
        names: list[str] = parquet().read_schema(path).names
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise BadInput(f"{path} cannot be read: {text}", DAMAGED) from error
    return names


def as_rows(values: list[Any], where: str) -> np.ndarray:
    """(F, C) float32 of a column of numbers, or of lists of numbers, all of one length. Raises
    BadInput."""
    try:
        rows = np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: rows are not lists of equally many numbers", DAMAGED) from error
    return rows.reshape(len(values), -1)
