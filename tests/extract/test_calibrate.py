"""What a fitted codec is fitted to: the same frames whoever asks, decoded in the sandbox."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from support.broken_media import hanging_video, impatient, memory_bomb, noise
from support.material import Material, address_spec

from pipeline.config.cache_spec import CacheSpec
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import StillframeError
from pipeline.extract import extract
from pipeline.extract.calibrate import calibration_tokens
from pipeline.extract.execution import Execution
from pipeline.models.encoders.contract import make_encoder
from pipeline.video.isolated.sandbox import DecodeLimits

CPU = torch.device("cpu")
FITTED = {"name": "pca", "components": 4}

LIMITS = DecodeLimits()


@pytest.fixture
def own(material: Material, tmp_path: Path) -> Manifest:
    """The manifest over a copy of the videos."""
    shutil.copytree(material.root, tmp_path / "videos")
    return dataclasses.replace(material.manifest, root=tmp_path / "videos")


def sampled(spec: CacheSpec, videos: Manifest, limits: DecodeLimits = LIMITS) -> tuple:
    """Tokens of 12 frames, two of each video, and what was said."""
    told: list[str] = []
    plan = {0: {video.video_id: 5 for video in videos.videos}}
    encoder, how = make_encoder(spec, CPU), Execution(CPU, limits=limits, say=told.append)
    tokens = calibration_tokens(spec, encoder, videos, plan, 12, how)
    return tokens["layer_5"], told


@pytest.mark.parametrize("kind", ["hang", "bomb", "gone"])
def test_a_video_that_cannot_be_decoded_costs_itself_alone(own, kind):
    """Its frames are left out, those of the others are as ever, and it is named with the reason."""
    spec = address_spec(codec=FITTED)
    whole, told = sampled(spec, own)
    assert len(whole) == 12 and not told
    index = next(i for i, video in enumerate(own.videos) if video.source == "b/v3.mp4")
    path, limits = own.root / "b/v3.mp4", DecodeLimits(stall_s=1, memory_mb=300)
    path.unlink()
    if kind == "hang":
        hanging_video(path, noise(2))
        reason = "v3.mp4: decoder made no progress for 1 s"
    elif kind == "bomb":
        memory_bomb(path)
        (path / "timestamps.txt").write_text("0.0 0.1 0.2")
        (path / "0.png").unlink()
        (path / "0.png").symlink_to("2.png")
        reason = "v3.mp4: decoding needs more than 300 MB"
    else:
        reason = "v3.mp4: does not exist"
    tokens, (line,) = sampled(spec, own, limits)
    assert line.startswith("codec 'pca' is fitted without what is left of ") and reason in line
    others = [frame for frame in range(12) if frame // 2 != index]
    assert torch.equal(tokens, whole[others])


def test_extraction_says_what_its_codec_could_not_see(own, tmp_path):
    path = own.root / "b/v3.mp4"
    hanging_video(path, noise(2))
    told: list[str] = []
    (cache,) = extract.extract_all(
        [address_spec(codec=FITTED)],
        own,
        tmp_path / "caches",
        Execution(limits=DecodeLimits(stall_s=1), say=told.append),
    )
    assert "v3.mp4: decoder made no progress for 1 s" in told[0]
    assert cache.missing_stores() == []
    (failure,) = cache.failures.values()
    assert failure.reason.startswith("v3.mp4: decoder made no progress for 1 s")


def test_where_no_frame_can_be_had_the_reason_is_said(own, monkeypatch):
    impatient(monkeypatch)
    for video in own.videos:
        (own.root / video.source).write_bytes(b"")
    with pytest.raises(StillframeError, match=r"none of 6 sampled videos .*: v5.mp4: is empty"):
        sampled(address_spec(codec=FITTED), own)
