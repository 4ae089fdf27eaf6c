"""Plans made from headers that promise what cannot be true."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.media import decode, encode
from support.paths import SHARED

from pipeline.video.containers import recount
from pipeline.video.probe import Probe, expected_frames, probe

NOISE = [np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8) for k in range(25)]


def joined(tmp_path: Path, *starts_s: float, suffix: str = "ts") -> Path:
    """Parts of 25 pictures, 25 a second, that begin at these times, end to end."""
    path = tmp_path / f"joined.{suffix}"
    parts = []
    for number, start_s in enumerate(starts_s):
        part = encode(
            tmp_path / f"{number}.{suffix}",
            NOISE,
            codec="mpeg2video",
            rate=25,
            container_options={"output_ts_offset": str(start_s)},
        )
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("starts_s", [(80_000, 0), (0, 80_000), (0, 40_000, 0)])
def test_a_clock_that_jumps_by_hours(tmp_path, starts_s, suffix):
    facts = probe(joined(tmp_path, *starts_s, suffix=suffix))
    for fps in (None, 2, 30):
        assert 1 <= expected_frames(facts, fps) <= 4 * 25 * len(starts_s)


def test_an_honest_transport_stream_keeps_its_word(tmp_path):
    facts = probe(encode(tmp_path / "a.ts", NOISE, codec="mpeg2video", rate=25))
    assert facts.duration_s == pytest.approx(1.0)
    assert (facts.fps, facts.frames_from_header) == (25, None)
    assert expected_frames(facts, None) == 25


def test_counts_that_a_recording_left_open(tmp_path):
    path = encode(tmp_path / "a.avi", NOISE, codec="mpeg4", rate=25)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"strh", 8 + 32), (b"avih", 8 + 16)):
        struct.pack_into("<I", data, data.index(mark) + place, 0xFFFFFFFE)
    path.write_bytes(data)
    facts = probe(path)
    assert [expected_frames(facts, fps) for fps in (None, 5)] == [25, 5]

    path = encode(tmp_path / "a.ivf", NOISE, codec="libvpx", rate=25)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 24, 0xFFFFFFFF)
    path.write_bytes(data)
    facts = probe(path)
    assert facts.duration_s == pytest.approx(1.0, abs=0.05)
    assert [expected_frames(facts, fps) for fps in (None, 5)] == [25, 5]


def test_a_rate_that_is_the_tick_of_a_clock(tmp_path):
    """Matroska's default duration of a frame, as some recorders write it: one tick of 90,000."""
    path = encode(tmp_path / "a.mkv", NOISE, codec="mpeg4", rate=25)
    data = path.read_bytes()
    written = bytes.fromhex("23E383") + b"\x84" + struct.pack(">I", 40_000_000)
    assert data.count(written) == 1
    tick = bytes.fromhex("23E383") + b"\x84" + struct.pack(">I", 11_111)
    path.write_bytes(data.replace(written, tick))
    facts = probe(path)
    assert facts.fps == pytest.approx(25, rel=0.1)
    assert expected_frames(facts, None) in (25, 26)


def test_times_that_are_stray(tmp_path):
    """One frame is stamped ten hours late, and the header was written from it."""
    times_s = [k / 25 for k in range(25)]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        packets = []
        for pixels in NOISE:
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        for packet, time_s in zip([*packets, *stream.encode()], times_s, strict=True):
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            packet.dts = packet.pts = round(time_s * 1000)
            if time_s == times_s[12]:
                packet.pts += 36_000_000
            container.mux(packet)
    facts = probe(path)
    assert facts.duration_s < 10
    assert expected_frames(facts, None) <= 4 * 25
    assert sum(len(block) for block in decode(path, None)) == 25  # and nothing is called missing


def test_a_video_in_which_nothing_moves_keeps_its_count(tmp_path):
    """Few bytes a frame are no lie: they are counted."""
    black = np.zeros((16, 16, 3), np.uint8)
    path = encode(tmp_path / "a.mp4", [black] * 3000, rate=1000, options={"g": "3000"})
    assert path.stat().st_size < 3000 * recount.FRAME_BYTES
    facts = probe(path)
    assert facts.frames_from_header == 3000
    assert facts.fps == pytest.approx(1000)


def test_only_the_beginning_of_a_file_is_counted(tmp_path, monkeypatch):
    path = joined(tmp_path, *[0] * 8, 80_000)
    monkeypatch.setattr(recount, "CLOCKED_BYTES", 1)
    monkeypatch.setattr(recount, "COUNT_BYTES", path.stat().st_size // 4)
    facts = probe(path)
    assert 50 <= expected_frames(facts, None) <= 1000


FOUND = SHARED / "found" / "inputs_public" / "dvr.mkv"
CORNER = SHARED / "clips" / "corner" / "corner_header_133445_zero_decoded.mp4"


@pytest.mark.parametrize(("path", "most"), [(FOUND, 4 * 120), (CORNER, 1)])
def test_real_lies(path, most):
    if not path.is_file():
        pytest.skip("the file is not here")
    facts = probe(path)
    assert max(expected_frames(facts, fps) for fps in (None, 2, 60)) <= most


def test_an_expectation_is_the_least_of_all_words():
    assert expected_frames(Probe(8, 8, 25.0, 0.0, 80_000.0, 50, "h264"), 2) == 50
