"""Encoder 'address': bar codes sent through real H.264, resized, and read back as tokens."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipeline.cache.codecs.float16 import Codec as Float16
from pipeline.config import plugins
from pipeline.errors import BadInput
from pipeline.models.encoders import address
from pipeline.records import Tokens


def address_encoder(size_px: int, **table: Any) -> Any:
    settings = plugins.settings(
        "encoder", "address", {"layers": [2, 7]} | table, "[encoder] address"
    )
    return plugins.load("encoder", "address")(settings, size_px, torch.device("cpu"))


def through_h264(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Encodes hard (about 60 times fewer bytes than pixels) and decodes again."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "32"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("read_px", [32, 96, 111, 224])
def test_addresses_survive_video_and_resizing(read_px: int) -> None:
    wanted = [
        (0, 0),
        (1, 1),
        (2047, 2**20 - 1),
        (5, 1023),
        (5, 1024),
        (1024, 77_777),
        *((9, frame) for frame in range(40)),
    ]
    decoded = through_h264([address.paint(video, frame, 96) for video, frame in wanted])
    pixels_NCHW = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float()
    resized = (
        torch.nn.functional.interpolate(pixels_NCHW, size=read_px, mode="bicubic", antialias=True)
        .round()
        .clamp(0, 255)
    )
    tokens = address_encoder(read_px, grid=5, special_tokens=3, width=9)(resized.byte())
    stored = address.read(
        Float16(None).decode(
            {"": torch.from_numpy(Float16(None).encode(tokens.patches_NPD[2])[""])}
        )
    )
    for read, layer, special in (
        (stored, 2, False),
        (address.read(tokens.patches_NPD[7]), 7, False),
        (address.read(tokens.special_NSD.numpy()), 7, True),
    ):
        count = 3 if special else 25
        assert np.array_equal(
            read.video, np.repeat([[video] for video, _ in wanted], count, axis=1)
        )
        assert np.array_equal(
            read.frame, np.repeat([[frame] for _, frame in wanted], count, axis=1)
        )
        assert np.array_equal(read.token, np.tile(np.arange(count), (len(wanted), 1)))
        assert (read.layer == layer).all() and (read.special == special).all()


@pytest.mark.parametrize("size_px", [16, 17, 23, 50, 112, 225])
def test_every_size_has_a_bar_code(size_px: int) -> None:
    picture = address.paint(1234, 567_890, size_px)
    assert (
        picture.shape == (size_px, size_px, 3)
        and picture.dtype == np.uint8
        and set(np.unique(picture)) == {0, 255}
    )
    read = address.read(
        address_encoder(size_px)(torch.from_numpy(picture).permute(2, 0, 1)[None]).special_NSD
    )
    assert (read.video.item(), read.frame.item()) == (1234, 567_890)


def test_a_spoilt_bar_code_is_loud() -> None:
    good = torch.from_numpy(address.paint(3, 4, 64)).permute(2, 0, 1)
    flipped = [good.clone() for _ in range(64)]
    for block, picture in enumerate(flipped):
        place = picture[:, block // 8 * 8 : block // 8 * 8 + 8, block % 8 * 8 : block % 8 * 8 + 8]
        place.copy_(255 - place)
    noise = torch.randint(
        0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    flat = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (0, 128, 255)]
    turned = [good.flip(1), good.flip(2), good.transpose(1, 2), noise]
    tokens = address_encoder(64)(torch.stack([*flipped, *flat, *turned, good]))
    read = address.read(tokens.patches_NPD[2])
    assert (read.video[:-1] == address.UNREADABLE).all() and (read.frame[:-1] == 0).all()
    assert (read.video[-1] == 3).all() and (read.frame[-1] == 4).all()


def test_address_tokens_fill_their_width_and_say_what_they_are() -> None:
    encoder = address_encoder(64, width=15)
    tokens: Tokens = encoder(torch.from_numpy(address.paint(3, 4100, 64)).permute(2, 0, 1)[None])
    assert tokens.patches_NPD[7][0, 9].tolist() == [3, 4, 4, 7, 9, 1, 3, 4, 4, 7, 9, 1, 3, 4, 4]
    assert tokens.special_NSD[0, 0].tolist() == [3, 4, 4, 7, 0, 2, 3, 4, 4, 7, 0, 2, 3, 4, 4]
    assert encoder.identity != address_encoder(64, width=14).identity
    assert encoder.identity == address_encoder(128, width=15).identity
    for layers in ([], [3, 2], [-1], [2048]):
        with pytest.raises(BadInput, match="layers must be ascending numbers from 0 to 2047"):
            address_encoder(64, layers=layers)
    with pytest.raises(BadInput, match="from 16 px up, found size_px = 15"):
        address_encoder(15)
