"""Files whose end is missing, in every container that says so; and sound ones, which are never called
truncated: recordings that nobody finished, and those whose sound or subtitles go on."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from support.media import SHARED_CLIPS, encode, read
from support.paths import SHARED

from pipeline.errors import BadVideo
from pipeline.video.containers.torn_end import torn_end
from pipeline.video.probe import expected_frames, open_video, probe

NOISE = [np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8) for k in range(30)]


QUICK = {"deadline": "realtime", "cpu-used": "8"}


CONTAINERS: dict[str, dict] = {
    "a.mkv": {},
    "live.mkv": {"container_options": {"live": "1"}},
    "a.webm": {"codec": "libvpx", "options": QUICK},
    "fast.mp4": {"container_options": {"movflags": "faststart"}},
    "fragments.mp4": {
        "options": {"g": "5"},
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "a.avi": {},
    "a.flv": {"codec": "flv"},
    "a.wmv": {"codec": "wmv2"},
    "a.mxf": {"codec": "mpeg2video"},
    "a.ivf": {"codec": "libvpx", "options": QUICK},
    "a.ogv": {"codec": "libvpx", "options": QUICK},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.ts": {"codec": "mpeg2video"},
    "a.m2ts": {"codec": "mpeg2video", "container_options": {"mpegts_m2ts_mode": "1"}},
    "a.mpg": {"codec": "mpeg2video"},
    "a.vob": {"codec": "mpeg2video"},
    "a.y4m": {"codec": "wrapped_avframe"},
    "deep.y4m": {
        "codec": "wrapped_avframe",
        "pix_fmt": "yuv422p10le",
        "container_options": {"strict": "-1"},
    },
    "a.rm": {"codec": "rv10"},
    "a.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


@cache
def _content(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        options = {"codec": "mpeg4", **CONTAINERS[name]}
        return encode(Path(folder) / name, NOISE, rate=25, **options).read_bytes()


def made(path: Path) -> Path:
    """A whole file of 30 pictures, 25 a second, in the container that its name stands for."""
    path.write_bytes(_content(path.name))
    return path


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("share", [0.5, 0.93])
def test_a_file_that_was_cut_is_called_truncated(tmp_path, name, share):
    path = made(tmp_path / name)
    frames, _, reason = read(path)
    assert (len(frames), reason) == (30, "")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) | 1])
    frames, _, reason = read(path)
    assert 0 < len(frames) <= 30
    assert "truncated: " in reason or "decoding stopped" in reason
    container, stream = open_video(path)
    with container:
        assert torn_end(path, stream) or name == "fragments.mp4"


def test_a_cut_between_two_pictures_is_seen_where_the_header_counts(tmp_path):
    for name, counts in (("a.ivf", True), ("a.y4m", False), ("a.ts", False)):
        path = made(tmp_path / name)
        with av.open(str(path)) as container:
            end = [packet.pos for packet in container.demux(video=0) if packet.size][20]
        before = 6 if name == "a.y4m" else 0  # header of a frame
        path.write_bytes(path.read_bytes()[: end - before])
        frames, _, reason = read(path)
        assert len(frames) == 20
        assert reason == counts * (
            "a.ivf: truncated: its header counts 30, it holds 20, the content ends after 20 frames "
            "at 0.8 s"
        )


class Pipe:
    """A file that cannot be gone back in, as a recorder's pipe: headers stay as they began."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: bytes) -> int:
        return self.file.write(data)


@pytest.mark.parametrize("name", ["avi", "matroska", "flv", "asf", "ivf", "ogg", "mpegts", "mpeg"])
def test_recordings_through_a_pipe_are_whole_until_they_are_cut(tmp_path, name):
    codecs = {"flv": "flv", "asf": "wmv2", "ivf": "libvpx", "ogg": "libvpx"}
    codec = codecs.get(name, "mpeg2video")
    path = tmp_path / f"a.{name}"
    pipe = Pipe(path)
    with av.open(pipe, "w", format=name) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for pixels in NOISE:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    pipe.file.close()
    frames, _, reason = read(path)
    assert (len(frames), reason) == (30, "")
    if name not in ("avi", "asf"):  # whose sizes a recorder knows at the end alone
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 | 1])
        assert "truncated: " in read(path)[2]


def test_fragments_up_to_the_last_whole_one_are_a_whole_recording(tmp_path):
    path = made(tmp_path / "fragments.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moof") - 4])
    frames, _, reason = read(path)
    assert (len(frames), reason) == (29, "")


def test_a_file_that_lacks_only_its_index_is_whole(tmp_path):
    path = made(tmp_path / "a.mkv")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(bytes.fromhex("1C53BB6B")) + 6])
    frames, _, reason = read(path)
    assert (len(frames), reason) == (30, "")


def test_whatever_is_appended_or_malformed_says_nothing(tmp_path):
    for name in CONTAINERS:
        path = made(tmp_path / name)
        container, stream = open_video(path)
        with container:
            for tail in (b"\0" * 700, b"TAG" + b"x" * 125):
                longer = tmp_path / f"longer_{name}"
                longer.write_bytes(path.read_bytes() + tail)
                torn_end(longer, stream)
            head = bytearray(path.read_bytes()[:300])
            for place in range(0, 300, 11):
                odd = tmp_path / f"odd_{name}"
                odd.write_bytes(head[:place] + b"\xff\0\x01" + head[place:])
                torn_end(odd, stream)  # raises nothing


# Sound and subtitles that go on


def with_sound(
    path: Path, pictures: int, sound_s: float, codec: str = "libx264", sound: str = "aac", **options
) -> Path:
    """`pictures` pictures at 25 a second, and silence for `sound_s`."""
    with av.open(str(path), "w", **options) as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width, video.pix_fmt = 64, 64, "yuv420p"
        silence = container.add_stream(sound, rate=44100, layout="mono")
        packets = []
        for pixels in (NOISE * 9)[:pictures]:
            packets += video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        packets += video.encode()
        kind = "s16" if sound == "mp2" else "fltp"
        for start in range(0, int(44100 * sound_s), 1152):
            samples = np.zeros((1, 1152), np.int16 if kind == "s16" else np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
            frame.sample_rate, frame.pts = 44100, start
            packets += silence.encode(frame)
        packets += silence.encode()
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    return path


LONG_SOUND = {
    "a.mkv": {},
    "a.mp4": {},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.flv": {},
    "a.avi": {"codec": "mpeg4", "sound": "mp2"},
    "a.ts": {},
    "a.wmv": {"codec": "wmv2", "sound": "mp2"},
}


@pytest.mark.parametrize("name", LONG_SOUND)
def test_sound_that_is_longer_than_the_pictures_is_no_truncation(tmp_path, name):
    path = with_sound(tmp_path / name, 50, 12, **LONG_SOUND[name])
    frames, _, reason = read(path)
    assert (len(frames), reason) == (50, "")
    if name in ("a.mkv", "a.mp4", "a.avi"):  # whose headers speak of the pictures alone
        assert expected_frames(probe(path), None) == 50


def test_sound_that_is_longer_in_matroska_without_tags(tmp_path):
    """Only the packets tell then: the header speaks of the whole file."""
    path = with_sound(tmp_path / "a.mkv", 50, 12)
    data = path.read_bytes()
    assert data.count(b"DURATION") == 2
    path.write_bytes(data.replace(b"DURATION", b"DURATIUN"))
    frames, _, reason = read(path)
    assert (len(frames), reason) == (50, "")


def test_pictures_that_are_missing_under_a_longer_sound_are_noticed(tmp_path):
    """The header of the track promises more than it holds, though the sound reaches the end."""
    path = with_sound(tmp_path / "a.mkv", 50, 12)
    data = path.read_bytes()
    place = data.index(b"00:00:02.0")
    path.write_bytes(data[:place] + b"00:00:09.0" + data[place + 10 :])
    frames, _, reason = read(path)
    assert len(frames) == 50
    assert reason == (
        "a.mkv: truncated: the header promises 9.0 s, the content ends after 50 frames at 2.0 s"
    )


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "srt"), ("mp4", "mov_text")])
def test_subtitles_and_chapters_that_go_on(tmp_path, suffix, codec):
    video = made(tmp_path / "fast.mp4")
    (tmp_path / "a.srt").write_text("1\n00:00:00,500 --> 00:01:00,000\nwords\n")
    (tmp_path / "meta").write_text(
        ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=90\ntitle=all\n"
    )
    path = tmp_path / f"a.{suffix}"
    command = ["ffmpeg", "-v", "error", "-i", video, "-i", tmp_path / "a.srt"]
    command += ["-i", tmp_path / "meta", "-map_metadata", "2", "-map", "0", "-map", "1"]
    subprocess.run([*command, "-c:v", "copy", "-c:s", codec, path], check=True)
    frames, _, reason = read(path)
    assert (len(frames), reason) == (30, "")


def test_a_length_of_the_whole_file_that_is_out_of_proportion_is_no_promise(tmp_path):
    path = made(tmp_path / "a.mkv")
    data = path.read_bytes().replace(b"DURATION", b"DURATIUN")
    place = data.index(bytes.fromhex("448988")) + 3
    path.write_bytes(data[:place] + struct.pack(">d", 1e12) + data[place + 8 :])
    frames, _, reason = read(path)
    assert (len(frames), reason) == (30, "")
    path.write_bytes(path.read_bytes()[: len(data) // 2])
    assert "a.mkv: truncated: the header promises 1000000000.0 s" in read(path)[2]


def test_a_header_of_millions_of_frames_in_an_avi_is_no_promise(tmp_path):
    path = made(tmp_path / "a.avi")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 0xFFFFFFFE)
    path.write_bytes(data)
    frames, _, reason = read(path)
    assert (len(frames), reason) == (30, "")


# Real files


def real_files() -> list[Path]:
    folders = [SHARED_CLIPS, SHARED_CLIPS / "corner", *sorted((SHARED / "actions").glob("*/"))]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())]
    return [file for file in files if file.is_file() and file.suffix not in (".md", ".csv")]


def test_no_real_clip_is_called_torn():
    files = real_files()
    if not files:
        pytest.skip("real clips are not here")
    torn = {}
    for path in files[:80]:
        try:
            container, stream = open_video(path)
        except BadVideo:
            continue
        with container:
            if reason := torn_end(path, stream):
                torn[path.name] = reason
    assert torn == {
        "corner_header_133445_zero_decoded.mp4": (
            "133,445 of its 133,445 pictures lie beyond its end"
        )
    }


@pytest.mark.parametrize(
    ("name", "count", "reason"),
    [
        ("sound_longer_than_pictures.mkv", 50, ""),
        (
            "trunc.ts",
            27,
            "trunc.ts: truncated: it ends inside a packet, the content ends after 27 frames at "
            "2.6 s",
        ),
    ],
)
def test_files_that_were_tried(name, count, reason):
    path = SHARED / "found" / "inputs_reliability" / name
    if not path.is_file():
        pytest.skip("the files that were tried are not here")
    frames, _, found = read(path)
    assert len(frames) == count
    assert found == reason
