"""Stage one on another device: its tokens are those of the CPU within rounding, and what it waits for is its own work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.media import encode as encode_video
from support.on_device import CPU, differ
from support.views import vit_spec

from pipeline.cache.cache import Cache
from pipeline.cache.layout import layer_name, stored_name
from pipeline.datasets.manifest import manifest
from pipeline.errors import BadInput
from pipeline.extract import encode, extract
from pipeline.extract.execution import Execution
from pipeline.extract.progress import Progress
from pipeline.extract.upkeep.spot_check import spot_check
from pipeline.models.encoders.contract import make_encoder
from pipeline.records import Tokens
from pipeline.video.on_device import identity_of_decoder
from pipeline.video.reader import FrameReader

SQUARES_DIFFER = 0.1
"""Tokens of noise-like squares, whose levels each device rounds in its own order: see `resize_and_crop`."""


def rows_of(cache: Cache, store: int, name: str) -> torch.Tensor:
    """All rows of an array of a store, as float32."""
    shape, dtype = cache.arrays[name]
    count = cache.receipts[store].frames
    into = np.empty((count, *shape), dtype)
    cache.reader(store).read_into(name, np.arange(count), into, None)
    return torch.from_numpy(into.astype(np.float32))


@pytest.mark.cuda
def test_tokens_of_a_cache_are_those_of_the_cpu(built, tmp_path, device, record_property):
    spec = vit_spec([0, 2], codec={"name": "float16"})
    here = extract.extract(spec, built, tmp_path / "cpu", CPU)
    there = extract.extract(spec, built, tmp_path / "there", device)
    assert not there.missing_stores() and there.locations == here.locations
    assert {receipt.device for receipt in there.receipts.values()} == {str(device)}
    worst = max(
        differ(rows_of(there, store, name), rows_of(here, store, name))
        for store in range(len(here.plan))
        for name in here.arrays
    )
    record_property("difference", worst)
    assert worst < SQUARES_DIFFER
    assert spot_check(there, 1.0, device=device).is_sound


def test_the_event_of_a_batch_is_of_the_stream_that_computes_it(monkeypatch):
    """A worker's device need not be the current one."""
    recorded: list[Any] = []
    event = SimpleNamespace(record=recorded.append)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"side stream of {device}")
    second = torch.device("cuda:1")
    progress = Progress(frames_planned=2)
    working = encode.Extraction([], Path(), Execution(second), progress)
    tokens = Tokens(torch.zeros(2, 1, 4), {0: torch.zeros(2, 9, 4)})
    target = SimpleNamespace(encoder=lambda pixels_NCHW: tokens)
    store: Any = SimpleNamespace(target=target, builder=None, views=[""])
    batch = working._tokens(store, torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8))
    assert batch.done is event and recorded == ["stream of cuda:1"]
    assert batch.tokens == {"": tokens} and progress.frames == 2
    assert working.down == "side stream of cuda:1"


@pytest.mark.cuda
def test_overlapping_changes_no_byte_of_a_store(built, tmp_path, device):
    """Against each frame's tokens one after the other: sent, encoded, and fetched before the next."""
    spec = vit_spec([0, 2])
    cache = extract.extract(spec, built, tmp_path, device, decoders=2)
    encoder = make_encoder(spec, device)
    names = {layer_name(layer): layer for layer in (0, 2)}
    for store, videos in cache.plan.items():
        squares = []
        with FrameReader(built.root, device) as reader:
            for video in (video for video in built.videos if video.video_id in videos):
                for block in reader.blocks(video, [spec.frames.kept]):
                    whole = np.ones(len(block.time_s), bool)
                    squares.append(block.transforms.squares(spec.frames, whole, None)[0].clone())
        parts: dict[str, list[np.ndarray]] = {}
        for batch_NCHW in torch.cat(squares).split(spec.store.batch_frames):
            tokens = encoder(batch_NCHW)
            for name, layer in names.items():
                arrays = cache.codecs[name].encode(tokens.patches_NPD[layer])
                for key, array in arrays.items():
                    parts.setdefault(stored_name(name, key), []).append(array.copy())
        for stored, arrays_F in parts.items():
            shape, dtype = cache.arrays[stored]
            kept = np.empty((cache.receipts[store].frames, *shape), dtype)
            cache.reader(store).read_into(stored, np.arange(len(kept)), kept)
            np.testing.assert_array_equal(kept, np.concatenate(arrays_F))


def waves(path: Path, **options: int) -> None:
    """A video of colours that flow, which decoders and devices round alike but for a level or so."""
    y, x = np.mgrid[:128, :160]
    frames = []
    for number in range(24):
        phases = [x / 30 + number / 4, y / 25 - number / 5, (x + y) / 40 + number / 6]
        frames.append((127.5 + 100 * np.sin(np.stack(phases, -1))).astype(np.uint8))
    encode_video(path, frames, rate=12, options={"crf": "10"}, **options)


@pytest.mark.cuda
def test_tokens_of_frames_decoded_on_the_device_are_those_of_the_cpu(
    tmp_path, device, record_property
):
    try:
        identity_of_decoder("torchcodec", device)
    except BadInput as error:
        pytest.skip(error.with_hint)
    folder = tmp_path / "videos" / "a"
    folder.mkdir(parents=True)
    waves(folder / "plain.mp4")
    waves(folder / "turned.mp4", rotation=90)
    videos = manifest.build("folder", tmp_path / "videos", tmp_path / "data", {})
    frames = {"size_px": 32, "fps": 4, "decoder": "torchcodec"}
    here = extract.extract(vit_spec([0, 2]), videos, tmp_path / "cpu", CPU)
    there = extract.extract(vit_spec([0, 2], frames=frames), videos, tmp_path / "there", device, 2)
    assert there.header.decoder.endswith(f" {device.type}")
    assert not there.failures and there.locations == here.locations
    least = min(
        float(
            F.cosine_similarity(rows_of(there, store, name), rows_of(here, store, name), -1).min()
        )
        for store in range(len(here.plan))
        for name in map(layer_name, (0, 2))
    )
    record_property("least cosine", least)
    assert least > 0.99
