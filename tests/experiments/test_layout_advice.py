"""A plan says what windows read of a layout, and which one suits them: by hand, and by what is
really read."""

from __future__ import annotations

import os

import numpy as np
import pytest

from pipeline.cache import store
from pipeline.cache.shard import reader as shard_reader
from pipeline.cache.storage.local import LocalFolder
from pipeline.cache.store import StoreReader
from pipeline.cache.store_writer import StoreWriter
from pipeline.config.cache_spec import CacheSpec, load_spec
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.config.shipped import named_file
from pipeline.experiments.planning.layout import LayoutAdvice, advise
from pipeline.records import TokenShape

SHAPE = TokenShape(384, (14, 14), 5, (2, 11))
"""Tokens of a ViT-S/16 at 224 px with four registers."""
TOKEN_BYTES = 384 * 2
ROW_BYTES, SPECIAL_BYTES = 196 * TOKEN_BYTES, 5 * TOKEN_BYTES
MB = 1 << 20


def spec(**store) -> CacheSpec:
    sizes = {"shard_mb": 256, "store_mb": 512} | store
    words = [
        f'store.{key}="{value}"' if isinstance(value, str) else f"store.{key}={value}"
        for key, value in sizes.items()
    ]
    return load_spec(named_file("spec", "demo"), words)


def recipe(**windows) -> Recipe:
    """One that reads the last layer alone."""
    words = [f"windows.{key}={value}" for key, value in ({"frames": 16} | windows).items()]
    return load_recipe(named_file("recipe", "demo_gru"), ['model.mixer="last"', *words])


def advice(spacing=1.0, store=None, **windows) -> LayoutAdvice:
    return advise(spec(**(store or {})), SHAPE, recipe(**windows), spacing)


def stride(row_bytes: int, frames: int) -> int:
    return -(-(frames * row_bytes + 4) // 64) * 64


def test_a_window_of_consecutive_frames_wants_small_chunks():
    found = advice()
    # 16 frames lie in two chunks of 8 if they begin with one, else in three.
    chunks = (2 + 7 * 3) / 8
    both = stride(ROW_BYTES, 8) + stride(SPECIAL_BYTES, 8)
    assert found.present.first_bytes == pytest.approx(chunks * both)
    assert found.present.disk_bytes == 16 * (ROW_BYTES + SPECIAL_BYTES)
    assert found.sets == ["store.chunk_frames=2"]
    # In nine chunks of 2 or eight.
    both = stride(ROW_BYTES, 2) + stride(SPECIAL_BYTES, 2)
    assert found.proposed.first_bytes == pytest.approx(8.5 * both)
    assert found.proposed.disk_bytes == found.present.disk_bytes
    assert advice(store={"chunk_frames": 2}).sets == []


def test_frames_that_are_far_apart_want_chunks_of_one():
    found = advice(spacing=8)
    assert found.present.first_bytes == 16 * (stride(ROW_BYTES, 8) + stride(SPECIAL_BYTES, 8))
    assert found.sets == ["store.chunk_frames=1"]
    assert found.proposed.first_bytes == 16 * (stride(ROW_BYTES, 1) + stride(SPECIAL_BYTES, 1))


def test_a_compressed_chunk_is_read_whole_every_time():
    found = advice(spacing=4, store={"compression": "zstd"})
    assert found.present.disk_bytes == found.present.first_bytes
    assert found.present.disk_bytes > 4 * found.proposed.disk_bytes


def test_of_a_crop_its_rows_of_patches_are_read():
    crop = advice(crop="[4, 7]")
    assert crop.present.disk_bytes == 16 * ((3 * 14 + 7) * TOKEN_BYTES + SPECIAL_BYTES)
    assert crop.present.first_bytes == advice().present.first_bytes  # chunks are compared whole
    # Places here and there, and rows of patches that are few less, are rows of whole frames.
    for windows in ({"keep_tokens": 0.25}, {"crop": "[9, 14]"}):
        assert advice(**windows).present.disk_bytes == advice().present.disk_bytes


def test_an_object_store_gives_blocks():
    found = advice()
    # 2.4 MB lie in three or four blocks of 1 MiB, special tokens in one, seldom two.
    assert 4 * MB <= found.present.object_bytes <= 5.1 * MB
    assert found.present.object_requests == pytest.approx(2.0)
    far = advice(spacing=32)
    assert far.present.object_requests > 16


def test_a_shard_holds_many_windows_but_is_no_larger_than_a_store():
    found = advice(store={"shard_mb": 8, "chunk_frames": 2})
    assert found.sets == ["store.shard_mb=25"]
    assert found.present.files == pytest.approx(2 * (1 + 15 / 52))
    assert found.proposed.files < 2.2
    assert advice(store={"shard_mb": 8, "store_mb": 12, "chunk_frames": 2}).sets == [
        "store.shard_mb=12"
    ]


@pytest.mark.parametrize("windows", [{}, {"crop": "[4, 7]"}])
def test_what_is_foretold_is_what_a_reader_reads(tmp_path, monkeypatch, windows):
    """Of rows that are not in memory; at their first read, chunks come before them."""
    from pipeline.train.windows.index import WindowRef
    from pipeline.train.windows.kept import kept_patches

    frames = 160
    (tmp_path / "store").mkdir()
    writer = StoreWriter(
        tmp_path / "store", {"layer_11": ((196, 384), np.dtype("float16"))}, 8, frames
    )
    writer.append({"layer_11": np.zeros((frames, 196, 384), "float16")})
    writer.finish({}, {})
    reader = StoreReader(LocalFolder(tmp_path), "store")
    kept_P = kept_patches(WindowRef(0, 0.0, number=0), (14, 14), recipe(**windows).windows)
    tokens = 196 if kept_P is None else int(kept_P.sum())
    out, counted = np.empty((16, tokens, 384), "float16"), [0]
    preadv = os.preadv

    def noted(handle, buffers, offset) -> int:
        counted[0] += (got := preadv(handle, buffers, offset))
        return got

    reader.read_into("layer_11", np.arange(1), np.empty((1, 196, 384), "float16"))  # its index
    monkeypatch.setattr("os.preadv", noted)
    monkeypatch.setattr(shard_reader, "copy_resident", lambda *_: False)
    monkeypatch.setattr(shard_reader, "resident", lambda *_: None)
    monkeypatch.setattr(store, "copy_mapped", lambda *_: False)
    monkeypatch.setattr(store, "mapped", lambda *_: None)
    foretold = advice(**windows).present
    special = 16 * SPECIAL_BYTES
    means = []
    for _ in range(2):
        counted[0] = 0
        for start in range(16, 16 + 8):
            reader._vouched.pop("layer_11", None) if not means else None
            reader.read_into("layer_11", np.arange(start, start + 16), out, kept_P)
        means.append(counted[0] / 8)
    of_chunks = (2 + 7 * 3) / 8 * (8 * ROW_BYTES + 4)
    blocks = 2 * 4096  # at most, around what is read past the page cache
    wanted_bytes = foretold.disk_bytes - special
    assert wanted_bytes <= means[1] <= wanted_bytes + blocks
    assert means[0] == pytest.approx(of_chunks + wanted_bytes)
