"""Decoding goes on after damage, and says which pictures are damaged or missing: compared with the
pictures of the sound file, and with PyAV's own going on."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest
from support.media import encode, packet_spans

from pipeline.errors import BadVideo
from pipeline.video.decode import decode_at, decode_rates
from pipeline.video.frame_counts import FrameCounts

LENGTH, RATE = 48, 25


def picture(number: int) -> np.ndarray:
    """Waves that move, and noise in a corner: no two pictures are alike."""
    y, x = np.mgrid[:96, :128]
    waves = [x / 9 + number / 3, y / 7 - number / 4, (x + y) / 11 + number / 2]
    pixels = np.stack([127.5 + 120 * np.sin(wave) for wave in waves], axis=-1).astype(np.uint8)
    pixels[:32, :32] = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    return pixels


PICTURES = [picture(number) for number in range(LENGTH)]
GROUPS = {"g": "12", "bf": "2", "x264-params": "keyint=12:min-keyint=12:scenecut=0"}


class Seen:
    """All that decoding says of a video."""

    def __init__(self, path: Path, image_fps: float | None = None) -> None:
        self.counted, self.reason = FrameCounts(), ""
        self.pixels: list[np.ndarray] = []
        self.times_s: list[float] = []
        self.damaged: list[bool] = []
        try:
            for block in decode_rates(path, [None], image_fps, self.counted):
                self.pixels += list(block.frames.pixels_FHWC)
                self.times_s += block.frames.time_s.tolist()
                self.damaged += block.damaged_F.tolist()
        except BadVideo as error:
            self.reason = error.message

    @property
    def is_whole(self) -> bool:
        return not (self.reason or any(self.damaged) or self.counted.lost)

    def passed_wrongly(self, sound: Seen) -> int:
        """Number of the frames that pass as sound and are none of a sound video's."""
        right = {pixels.tobytes() for pixels in sound.pixels}
        return sum(
            not damaged and pixels.tobytes() not in right
            for pixels, damaged in zip(self.pixels, self.damaged, strict=True)
        )


def plain_count(path: Path) -> int:
    """Number of the frames that PyAV gives if every packet is tried."""
    count = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                count += len(packet.decode())
            except av.FFmpegError:
                continue
    return count


def without_packet(source: Path, path: Path, dropped: set[int]) -> Path:
    """A copy of a video that lacks some packets."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(video=0)):
            if packet.size and number not in dropped:
                packet.stream = stream
                written.mux(packet)
    return path


def blank(path: Path, number: int, part: float = 0.5) -> Path:
    """Overwrites the last part of one packet."""
    data = bytearray(path.read_bytes())
    position, size = packet_spans(path)[number]
    begin = position + int(size * (1 - part))
    data[begin : position + size] = bytes(position + size - begin)
    path.write_bytes(data)
    return path


def fuzzed(data: bytes, seed: int) -> bytes:
    """A copy of which 1 to 60 bytes are random."""
    chance, copy = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 60)):
        copy[chance.randrange(len(copy))] = chance.randrange(256)
    return bytes(copy)


def test_a_sound_video_has_no_damage(tmp_path):
    seen = Seen(encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options=GROUPS))
    assert seen.is_whole and len(seen.pixels) == LENGTH


def test_damage_reaches_up_to_the_next_key_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options=GROUPS)
    sound = Seen(path)
    seen = Seen(blank(path, 13))
    assert len(seen.pixels) == LENGTH == plain_count(path) and not seen.reason
    assert seen.passed_wrongly(sound) == 0
    assert seen.damaged[:12] == [False] * 12 and seen.damaged[24:] == [False] * 24
    assert any(seen.damaged[12:24])
    (stretch,) = seen.counted.damaged
    assert (stretch.start, stretch.stop) == (seen.damaged.index(True), 24)
    assert stretch.start_s == stretch.start / RATE and stretch.stop_s == pytest.approx(24 / RATE)
    assert stretch.reason
    times_s = np.arange(20, 28) / RATE
    counted = FrameCounts()
    decode_at(path, times_s, None, counted)
    assert [counted.is_damaged(time_s) for time_s in times_s] == [True] * 4 + [False] * 4
