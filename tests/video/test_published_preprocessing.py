"""What the released code of the paper makes of a video can be had: every n-th frame, resized as there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.broken_media import images, noise
from support.media import SHARED_CLIPS, encode, grey, read
from support.paths import SHARED
from transformers import ViTModel

from pipeline.config import plugins
from pipeline.config.cache_spec import load_spec
from pipeline.config.shipped import shipped
from pipeline.device import Uploads
from pipeline.models.encoders.contract import make_encoder
from pipeline.records import Frames, Stride
from pipeline.video.decode import decode_rates
from pipeline.video.probe import expected_frames, frame_rate, open_video, probe
from pipeline.video.transforms import FrameTransforms, resize_and_crop

CPU = torch.device("cpu")
PUBLISHED = load_spec(shipped("spec")["dinov3_vitl16_published"])
VIT = SHARED / "weights" / "vit_tiny_patch16_224"
CLIPS = [
    "kinetics_arm_wrestling.mp4",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("sam2_cups.mp4", "sleap_dance.mp4")),
]
"""Anamorphic; 720p, and portrait."""


def released_squares(pixels_FHWC: np.ndarray, size_px: int = 224) -> torch.Tensor:
    """Levels of the squares in plain torch, (F, 3, size_px, size_px) float32: the short side is
    resized bilinearly, and the centre cut out."""
    frames = torch.from_numpy(pixels_FHWC).permute(0, 3, 1, 2).float() / 255
    height, width = frames.shape[2:]
    scale = size_px / min(height, width)
    size_hw = (round(height * scale), round(width * scale))
    resized = F.interpolate(frames, size_hw, mode="bilinear", align_corners=False)
    top, left = ((side - size_px) // 2 for side in size_hw)
    return 255 * resized[:, :, top : top + size_px, left : left + size_px]


def our_squares(pixels_FHWC: np.ndarray, pixel_aspect: float = 1.0) -> torch.Tensor:
    frames = Frames(pixels_FHWC, np.arange(len(pixels_FHWC), dtype=float), pixel_aspect)
    whole = np.ones(len(pixels_FHWC), bool)
    return FrameTransforms(frames, Uploads(CPU)).squares(PUBLISHED.frames, whole, None)[0]


SIZES = [(720, 1280), (1280, 720), (240, 426), (256, 340), (143, 175), (90, 1400), (224, 224)]


@pytest.mark.parametrize(("height", "width"), [*SIZES, (100, 60), (37, 501), (301, 225)])
def test_squares_are_those_of_the_released_code(height, width):
    """Nothing is rounded, and the shape of a pixel plays no part."""
    (pixels,) = noise(1, height, width)
    wanted = released_squares(pixels[None])
    for pixel_aspect in (1.0, 1.25):
        torch.testing.assert_close(
            our_squares(pixels[None], pixel_aspect), wanted, atol=1e-3, rtol=0
        )


def test_sizes_of_resized_frames_are_those_of_the_released_code():
    """Above all where a side falls half way between two whole numbers."""
    halves = [
        (short, long)
        for short in range(21, 200)
        for long in range(short, 6 * short)
        if abs(32 * long / short % 1 - 0.5) < 1e-9
    ]
    assert len(halves) > 100
    for height, width in halves[::9]:
        pixels = torch.zeros(1, height, width, 3, dtype=torch.uint8)
        _, affine = resize_and_crop(pixels, 32, "crop", "bilinear", 1.0, False)
        assert affine[0, 0] * 32 == pytest.approx(round(width * (32 / height)))


@pytest.mark.parametrize("fps", [5, 6, 12, 29.97])
def test_every_nth_frame_is_kept(tmp_path, fps):
    """n is the rate of the video over that which is asked for, rounded, halves to the even one;
    times play no part."""
    greys = [grey(20 + 4 * k) for k in range(50)]
    uneven_s = np.cumsum(np.tile([0.01, 0.05], 25))
    evenly = {rate: encode(tmp_path / f"{rate}.mp4", greys, rate=rate) for rate in (5, 25, 28, 30)}
    for path in (*evenly.values(), encode(tmp_path / "vfr.mp4", greys, times_s=uneven_s.tolist())):
        with open_video(path)[0] as container:
            native_fps = float(container.streams.video[0].average_rate)
        apart = max(1, round(native_fps / fps))
        frames, times_s, _ = read(path, Stride(fps))
        kept = [round((float(frame.mean()) - 20) / 4) for frame in frames]
        assert kept == list(range(0, 50, apart))
        assert expected_frames(probe(path), Stride(fps)) == len(kept)
        assert times_s.tolist() == read(path)[1][::apart].tolist()
    (folder := tmp_path / "images").mkdir()
    still = images(folder / "i", greys[:20])
    assert len(read(still, Stride(fps), image_fps=30)[0]) == len(range(0, 20, round(30 / fps)))


def test_a_stride_beside_other_rates(tmp_path):
    path = encode(tmp_path / "a.mp4", noise(30), rate=30)
    blocks = list(decode_rates(path, [Stride(12), None, 12.0]))
    kept_RF = np.concatenate([block.kept_RF for block in blocks], axis=1)
    assert kept_RF.sum(axis=1).tolist() == [15, 30, 12]
    assert np.flatnonzero(kept_RF[0]).tolist() == list(range(0, 30, 2))


@pytest.mark.skipif(not (SHARED_CLIPS.is_dir() and VIT.is_dir()), reason="no real clips or weights")
@pytest.mark.parametrize("name", CLIPS)
def test_tokens_of_real_clips_are_those_of_the_released_code(name):
    """Frames decoded, squares and tokens, against plain torch and transformers on float pixels."""
    path: Path = SHARED_CLIPS / name
    frames = next(decode_rates(path, [Stride(5)], block_frames=4)).frames
    container, stream = open_video(path)
    with container:
        wanted = [
            f.to_ndarray(format="rgb24")
            for _, f in zip(range(40), container.decode(stream), strict=False)
        ]
        apart = max(1, round((frame_rate(stream) or 0) / 5))
    assert np.abs(np.stack(wanted[::apart][:4]).astype(int) - frames.pixels_FHWC).max() <= 1
    squares, levels = (
        our_squares(frames.pixels_FHWC),
        released_squares(np.stack(wanted[::apart][:4])),
    )
    assert (squares - levels).abs().max() <= 2
    table = {"encoder": {"name": "transformers", "model": str(VIT), "layers": [11]}}
    spec = plugins.validate(type(PUBLISHED), PUBLISHED.canonical() | table, "test")
    with torch.inference_mode():
        ours = make_encoder(spec, CPU)(squares).patches_NPD[11]
        vit = ViTModel.from_pretrained(VIT, add_pooling_layer=False).eval()
        theirs = vit(pixel_values=(levels / 255 - 0.5) / 0.5).last_hidden_state[:, 1:]
    assert F.cosine_similarity(ours, theirs, dim=-1).min() >= 0.99999
