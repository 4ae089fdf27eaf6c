"""The encoder's squares of a video: the pixels of the decoder in this process, and every failure of
the decoder named."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.broken_media import hanging_video, images, memory_bomb, noise
from support.media import encode

from pipeline.config.cache_spec import BASE, FrameSettings, View
from pipeline.device import Uploads
from pipeline.errors import BadVideo
from pipeline.records import Step, Video
from pipeline.video.decode import decode_rates
from pipeline.video.isolated import sandbox
from pipeline.video.isolated.sandbox import DecodeLimits
from pipeline.video.reader import FrameReader
from pipeline.video.transforms import FrameTransforms

CPU = torch.device("cpu")
SETTINGS = FrameSettings(size_px=32, fps=5)
FLIP = View(name="flip", flip=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A video of 61 frames with few keyframes, and a folder of images."""
    folder = tmp_path_factory.mktemp("videos")
    encode(folder / "a.mp4", noise(61), options={"g": "20", "bf": "2"})
    images(folder / "images", noise(5))
    return folder


@pytest.fixture(scope="module")
def reader(root: Path) -> Iterator[FrameReader]:
    with FrameReader(root, CPU) as shared:
        yield shared


def expected(
    path: Path, fps: float | None, image_fps: float | None = None, view: View | None = None
) -> tuple[np.ndarray, torch.Tensor]:
    """Times and squares of all frames that a rate keeps, from the decoder in this process."""
    times, squares = [], []
    for block in decode_rates(path, [fps], image_fps):
        mask = np.ones(len(block.frames), bool)
        times.append(block.frames.time_s)
        squares.append(FrameTransforms(block.frames, Uploads(CPU)).squares(SETTINGS, mask, view)[0])
    return np.concatenate(times), torch.cat(squares)


def test_frames_by_number_are_those_of_the_rate(reader, root):
    numbers = np.array([0, 1, 7, 8, 9, 29])
    blocks = list(
        reader.numbered(Video("a", "a.mp4"), SETTINGS, numbers, {BASE: None, "flip": FLIP})
    )
    time_s, squares = expected(root / "a.mp4", 5)
    assert np.concatenate([block.time_s for block in blocks]).tolist() == time_s[numbers].tolist()
    assert torch.equal(torch.cat([block.views[BASE] for block in blocks]), squares[numbers])
    assert torch.equal(
        torch.cat([block.views["flip"] for block in blocks]), squares[numbers].flip(-1)
    )


@pytest.mark.parametrize(("source", "image_fps"), [("a.mp4", None), ("images", 10.0)])
def test_frames_by_time_come_in_the_order_they_are_asked_for(reader, root, source, image_fps):
    time_s, squares = expected(root / source, None, image_fps, FLIP)
    asked = [4, 2, 2, 3] if source == "images" else [55, 3, 3, 20, 54, *range(40)]
    seen = reader.at_times(Video("x", source, image_fps), SETTINGS, time_s[asked], FLIP)
    assert torch.equal(seen, squares[asked])


def test_more_times_than_fit_into_one_request(reader, root, monkeypatch):
    monkeypatch.setattr(sandbox, "TIMES_AT_ONCE", 7)
    time_s, squares = expected(root / "a.mp4", None)
    assert torch.equal(reader.at_times(Video("a", "a.mp4"), SETTINGS, time_s), squares)


def test_a_time_of_no_frame_is_named(reader):
    with pytest.raises(BadVideo, match="a.mp4: frames at 2 times from 0.050 s on cannot all be"):
        reader.at_times(Video("a", "a.mp4"), SETTINGS, np.array([0.05, 0.1]))


def test_frames_come_as_they_are_on_screen(reader, root):
    """a.mp4 has 10 frames a second, 5 of them are kept, and each stays for 2.5 of 12.5 instants."""
    frames, counts = zip(
        *reader.on_screen(Video("a", "a.mp4"), SETTINGS, Step(1 / 12.5)), strict=True
    )
    time_s, squares = expected(root / "a.mp4", 5)
    assert [frame.time_s.tolist() for frame in frames] == [[time] for time in time_s]
    assert torch.equal(torch.cat([frame.views[BASE] for frame in frames]), squares)
    assert counts[:4] == (3, 2, 3, 2)
    slow = [
        frame.time_s[0]
        for frame, _ in reader.on_screen(Video("a", "a.mp4"), SETTINGS, Step(0.5), 0.7)
    ]
    np.testing.assert_allclose(slow[:3], [0.6, 1.0, 1.6])


def test_frames_by_time_survive_a_decoder_that_is_killed(root):
    """The window is asked for again, from the first frame that was not handed over."""
    time_s, squares = expected(root / "a.mp4", None)
    with FrameReader(root, CPU) as reader:
        frames = reader.decoder.decode_at(root / "a.mp4", time_s)
        parts = [next(frames)]
        os.kill(reader.decoder.pid, signal.SIGKILL)
        parts += frames
    seen = [
        FrameTransforms(part, Uploads(CPU)).squares(SETTINGS, np.ones(len(part), bool), None)[0]
        for part in parts
    ]
    assert torch.equal(torch.cat(seen), squares)


TAKE: dict[str, Callable[[FrameReader, Video], object]] = {
    "blocks": lambda reader, video: list(reader.blocks(video, [None])),
    "numbered": lambda reader, video: list(
        reader.numbered(video, SETTINGS, np.array([0, 900]), {BASE: None})
    ),
    "at_times": lambda reader, video: reader.at_times(video, SETTINGS, np.array([0.0, 90.0])),
    "on_screen": lambda reader, video: list(reader.on_screen(video, SETTINGS, Step(0.1))),
}


@pytest.mark.parametrize("how", TAKE)
def test_a_video_that_hangs_or_eats_all_memory_is_named_and_the_next_is_read(tmp_path, root, how):
    (tmp_path / "a.mp4").symlink_to(root / "a.mp4")
    hanging_video(tmp_path / "hang.mkv")
    memory_bomb(tmp_path / "bomb")
    limits = DecodeLimits(stall_s=1, memory_mb=300)
    with FrameReader(tmp_path, CPU, limits) as reader:
        for source, reason in (
            ("hang.mkv", "hang.mkv: decoder made no progress for 1 s"),
            ("bomb", "bomb: decoding needs more than 300 MB"),
        ):
            with pytest.raises(BadVideo, match=reason):
                TAKE[how](reader, Video("x", source, 10.0 if source == "bomb" else None))
        assert len(list(reader.on_screen(Video("a", "a.mp4"), SETTINGS, Step(0.2)))) == 31
