"""Tokens of a cache leave as plain arrays: one .npy file for each video, or one Parquet table.

    FOLDER/features.json       what they are: cache, layer, pooling, rate, the file of every video
    FOLDER/NAME.npy            float32 (T, C), or (T, N, C) where tokens are not pooled
    FOLDER/time_s/NAME.npy     float64 (T,): seconds after the first frame of the video
    FOLDER/features.parquet    or all in one table: video, frame, time_s, feature (and token)

The folder is made aside and renamed. `stillframe import-features` reads it back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.layout import SPECIAL, TIMES, layer_name
from pipeline.errors import BadInput, StillframeError
from pipeline.extract.derive import OnFrames

Pool = Literal["mean", "none", "cls"]
Format = Literal["npy", "parquet"]
BATCH_FRAMES = 256
TABLE, FACTS, SECONDS = "features.parquet", "features.json", "time_s"


def export_features(
    cache: Cache,
    out: Path,
    layer: int | None = None,
    pool: Pool = "mean",
    kind: Format = "npy",
    on_frames: OnFrames | None = None,
) -> Path:
    """Writes the tokens of one layer (None: the last one) of all videos into the new folder `out`;
    returns it. `pool`: the mean of a frame's patches, all of them, or its CLS token.

    Raises BadInput where the cache is unfinished, lacks the layer or a CLS token, or where `out`
    holds something.
    """
    layer = _checked_layer(cache, layer, pool)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there and not empty", "name a new folder: --out")
    aside = out.parent / f".{out.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        names = file_names(list(cache.locations))
        parts = _counted(_parts(cache, layer, pool), cache, on_frames)
        if kind == "npy":
            _write_arrays(aside, names, parts)
        else:
            _write_table(aside, cache, pool, parts)
        facts = {
            "cache": cache.name,
            "fingerprint": cache.fingerprint,
            "encoder": cache.spec["encoder"]["name"],
            "layer": layer,
            "pool": pool,
            "width": cache.shape.width,
            "grid": list(cache.shape.grid_hw) if pool == "none" else [1, 1],
            "fps": cache.fps,
            "videos": {
                video_id: {"file": names[video_id] if kind == "npy" else TABLE, "frames": count}
                for video_id, count in _lengths(cache).items()
            },
        }
        (aside / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        if out.exists():
            out.rmdir()
        aside.replace(out)
    except OSError as error:
        raise StillframeError(
            f"cannot write {error.filename or out}: {error.strerror or error}",
            "free space or fix access, then run it again",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _checked_layer(cache: Cache, layer: int | None, pool: Pool) -> int:
    held = cache.shape.layers
    layer = held[-1] if layer is None else layer
    missing = cache.missing_stores()
    if missing:
        raise BadInput(
            f"cache {cache} lacks {len(missing)} of {len(cache.plan)} stores",
            "run extract again first",
        )
    if layer not in held:
        raise BadInput(f"cache {cache} holds the layers {list(held)}, not {layer}", "--layer N")
    if pool == "cls" and (layer != held[-1] or not cache.shape.special_tokens):
        why = (
            f"holds the CLS token of layer {held[-1]} alone"
            if cache.shape.special_tokens
            else "holds no CLS token"
        )
        raise BadInput(f"cache {cache} {why}", "--pool mean")
    return layer


def _lengths(cache: Cache) -> dict[str, int]:
    return {video_id: where.stop - where.start for video_id, where in cache.locations.items()}


def file_names(video_ids: list[str]) -> dict[str, str]:
    """video_id -> name of its file, without the suffix of the video where that tells all apart.
    Raises BadInput for ids that are no path below a folder."""
    for video_id in video_ids:
        parts = PurePosixPath(video_id).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in video_id:
            raise BadInput(f"video '{video_id}' has a name that is no path below a folder")
    short = [PurePosixPath(video_id).with_suffix("").as_posix() for video_id in video_ids]
    names = short if len({*short}) == len(short) else video_ids
    return {video_id: f"{name}.npy" for video_id, name in zip(video_ids, names, strict=True)}


Part = tuple[str, int, np.ndarray, np.ndarray]
"""Video, number of the first frame, seconds (f,), features (f, C) or (f, N, C)."""


def _parts(cache: Cache, layer: int, pool: Pool) -> Iterator[Part]:
    """Some frames after others, video after video."""
    name = SPECIAL if pool == "cls" else layer_name(layer)
    for video_id, where in cache.locations.items():
        time_s = cache.small_array(where.store, TIMES) - cache.first_s(video_id)
        for first in range(where.start, where.stop, BATCH_FRAMES):
            rows = np.arange(first, min(where.stop, first + BATCH_FRAMES))
            stored = cache.stored_rows(where.store, name, rows)
            decoded = cache.codecs[name].decode(
                {key: torch.from_numpy(array) for key, array in stored.items()}
            )
            tokens_FND = decoded.float()
            if pool == "mean":
                tokens_FND = tokens_FND.mean(1)
            elif pool == "cls" or cache.shape.patch_tokens == 1:
                tokens_FND = tokens_FND[:, 0]
            yield video_id, first - where.start, time_s[rows], tokens_FND.numpy()


def _counted(parts: Iterator[Part], cache: Cache, on_frames: OnFrames | None) -> Iterator[Part]:
    total, done = sum(_lengths(cache).values()), 0
    for part in parts:
        yield part
        done += len(part[2])
        if on_frames:
            on_frames(done, total)


def _write_arrays(folder: Path, names: dict[str, str], parts: Iterator[Part]) -> None:
    held: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def write(video_id: str) -> None:
        times, features = zip(*held.pop(video_id), strict=True)
        for place, arrays in ((folder, features), (folder / SECONDS, times)):
            path = place / names[video_id]
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.concatenate(arrays))

    for video_id, _, time_s, features in parts:
        if held and video_id not in held:
            write(next(iter(held)))
        held.setdefault(video_id, []).append((time_s, features))
    for video_id in list(held):
        write(video_id)


def _write_table(folder: Path, cache: Cache, pool: Pool, parts: Iterator[Part]) -> None:
    """A row for each feature; of tokens that are not pooled, one for each token of a frame."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise StillframeError(
            "Parquet needs the package 'pyarrow', which is not installed",
            "pip install 'stillframe[parquet]', or --format npy",
        ) from error
    width, tokens = cache.shape.width, cache.shape.patch_tokens if pool == "none" else 1
    fields: list[tuple[str, Any]] = [
        ("video", pa.string()),
        ("frame", pa.int64()),
        ("time_s", pa.float64()),
        *([("token", pa.int32())] if tokens > 1 else []),
        ("feature", pa.list_(pa.float32(), width)),
    ]
    with pq.ParquetWriter(folder / TABLE, pa.schema(fields)) as writer:
        for video_id, first, time_s, features in parts:
            frames = np.repeat(first + np.arange(len(time_s)), tokens)
            columns = {
                "video": [video_id] * len(frames),
                "frame": frames,
                "time_s": np.repeat(time_s, tokens),
                "token": np.tile(np.arange(tokens, dtype=np.int32), len(time_s)),
                "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), width),
            }
            table = pa.table([columns[name] for name, _ in fields], schema=pa.schema(fields))
            writer.write_table(table)
