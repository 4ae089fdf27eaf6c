"""What a container crops is not seen: `clap` of MP4 and QuickTime, PixelCrop of Matroska, against
the `crop` filter of the `ffmpeg` program with the same numbers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.context import Flags
from support.cropped_media import add_clap, add_pixel_crop, add_to_sample_entry
from support.media import decode, encode, read
from support.paths import SHARED

from pipeline.video.containers import track_header
from pipeline.video.containers.track_header import TrackHeader, read_track_header
from pipeline.video.decode import decode_at
from pipeline.video.probe import open_video, probe

HEIGHT, WIDTH = 72, 96
NOISE = [np.random.default_rng(k).integers(0, 256, (72, 96, 3), np.uint8) for k in range(4)]


def centred(left: int, right: int, top: int, bottom: int) -> tuple[int, ...]:
    """The numbers of a `clap` box that leaves so much out: the centre moves in halves of a
    pixel."""
    width, height = WIDTH - left - right, HEIGHT - top - bottom
    return width, 1, height, 1, left - right, 2, top - bottom, 2


def ffmpeg(path: Path, filters: str, height: int, width: int) -> np.ndarray:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(path)]
    command += ["-fps_mode", "passthrough", "-vf", f"{filters}:flags=bicubic,format=rgb24"]
    written = subprocess.run(
        [*command, "-f", "rawvideo", "-"], check=True, capture_output=True
    ).stdout
    return np.frombuffer(written, np.uint8).reshape(-1, height, width, 3)


def shown(path: Path) -> np.ndarray:
    """All pictures, which the header, the whole decode and a window agree about."""
    frames, times_s, reason = read(path)
    assert reason == ""
    pixels_FHWC = np.stack(frames)
    facts = probe(path)
    assert {facts.height, facts.width} == {*pixels_FHWC.shape[1:3]}
    (window,) = decode_at(path, times_s[1:3])
    np.testing.assert_array_equal(window.pixels_FHWC, pixels_FHWC[1:3])
    return pixels_FHWC


LAYOUTS = {
    "yuv420p": "libx264",
    "yuv422p": "libx264",
    "yuv444p": "libx264",
    "yuv420p10le": "libx264",
    "yuv422p10le": "prores_ks",
    "gray": "libx264",
    "yuvj420p": "mjpeg",
}
ENTRIES = {"prores_ks": b"apch", "mjpeg": b"jpeg"}


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
@pytest.mark.parametrize("sides", [(8, 4, 6, 2), (9, 9, 0, 0), (5, 2, 3, 10), (0, 1, 0, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_those_of_the_crop_filter(tmp_path, layout, sides):
    """Where samples of colour are shared, odd numbers are rounded as the program rounds them."""
    codec = LAYOUTS[layout]
    path = encode(tmp_path / "a.mov", NOISE, codec=codec, pix_fmt=layout)
    add_clap(path, *centred(*sides), entry=ENTRIES.get(codec, b"avc1"))
    left, right, top, bottom = sides
    height, width = shown(path).shape[1:3]
    assert 0 <= WIDTH - left - right - width <= 1
    assert 0 <= HEIGHT - top - bottom - height <= 1
    crop = f"crop=iw-{left + right}:ih-{top + bottom}:{left}:{top}"
    # Where samples of colour lie, which the program must be told above 8 bits (`test_ffmpeg`), and
    # where the number of rows is odd.
    must_be_told = layout == "yuv420p10le" or (layout == "yuv422p" and height % 2)
    siting = "in_h_chr_pos=0" if must_be_told else "in_h_chr_pos=-513"
    wanted = ffmpeg(path, f"{crop},scale={siting}", height, width)
    np.testing.assert_array_equal(shown(path), wanted)


RED_RIM = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
RED_RIM[..., 0] = 220
RED_RIM[8:56, 16:80] = (0, 200, 0)
RED_RIM[8:16, 16:24] = (20, 20, 200)


def has_no_rim(path: Path, turns: int = 0) -> None:
    for pixels_HWC in shown(path):
        upright = np.rot90(pixels_HWC, -turns).astype(int)
        assert upright.shape == (48, 64, 3)
        assert np.abs(upright - RED_RIM[8:56, 16:80]).mean() < 6
        assert np.abs(upright[2, 2] - (20, 20, 200)).max() < 40


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_matroska(tmp_path, suffix):
    codec = {"mkv": "libx264", "webm": "libvpx"}[suffix]
    path = encode(
        tmp_path / f"a.{suffix}", [RED_RIM] * 4, codec=codec, container_options={"live": "1"}
    )
    has_no_rim(add_pixel_crop(path, 16, 16, 8, 16))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_what_is_cropped_is_the_stored_picture_before_it_is_turned(tmp_path, turns):
    path = encode(tmp_path / "a.mp4", [RED_RIM] * 4, rotation=90 * turns, pix_fmt="yuv444p")
    has_no_rim(add_clap(path, *centred(16, 16, 8, 16)), turns)


def test_interlaced_pictures_keep_their_fields_apart(tmp_path):
    rows = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rows[0::2] = 200
    path = encode(
        tmp_path / "a.mov",
        [rows] * 4,
        codec="prores_ks",
        pix_fmt="yuv422p10le",
        flags=Flags.interlaced_dct,
    )
    whole = np.stack(read(path)[0])
    cut = shown(add_clap(path, *centred(2, 2, 3, 4), entry=b"apch"))
    np.testing.assert_array_equal(cut, whole[:, 3:-4, 2:-2])


def test_the_track_that_is_read_is_the_one_whose_header_counts(tmp_path):
    """A cover with a clean aperture of its own before the video, which has none."""
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    cover = encode(tmp_path / "cover.mkv", NOISE[:1], codec="mjpeg", pix_fmt="yuvj420p")
    video = encode(tmp_path / "video.mkv", NOISE)
    command = ["ffmpeg", "-v", "error", "-i", str(cover), "-i", str(video), "-map", "0"]
    command += ["-map", "1", "-c", "copy", str(tmp_path / "a.mov")]
    subprocess.run(command, check=True)
    add_clap(tmp_path / "a.mov", *centred(16, 16, 8, 16), entry=b"jpeg")
    assert shown(tmp_path / "a.mov").shape == (4, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "numbers",
    [
        (WIDTH, 1, HEIGHT, 1, 0, 1, 0, 1),  # all of it
        (80, 1, 60, 1, 40, 1, 0, 1),  # reaches outside
        (200, 1, 60, 1, 0, 1, 0, 1),  # larger than the picture
        (80, 0, 60, 1, 0, 1, 0, 1),  # no number
        (0, 1, 60, 1, 0, 1, 0, 1),  # nothing is left
        (-80, 1, 60, 1, 0, 1, 0, 1),
    ],
)
def test_a_crop_that_makes_no_sense_is_ignored(tmp_path, numbers):
    path = add_clap(encode(tmp_path / "a.mp4", NOISE), *numbers)
    assert shown(path).shape == (4, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "box",
    [
        struct.pack(">I4s3i", 20, b"clap", 40, 1, 30),
        struct.pack(">I4s", 4, b"clap"),
        struct.pack(">I4s", 0xFFFFFFF0, b"free"),
        b"\0\0\0\0",
    ],
)
def test_torn_boxes_say_nothing(tmp_path, box):
    path = add_to_sample_entry(encode(tmp_path / "a.mp4", NOISE), box)
    assert shown(path).shape == (4, HEIGHT, WIDTH, 3)


def test_a_header_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    """A thousand tracks of a thousand boxes each, as nobody but an attacker writes them."""
    path = encode(tmp_path / "a.mp4", NOISE)
    junk = struct.pack(">I4s", 8, b"free") * 1000
    track = struct.pack(">I4s", 8 + len(junk), b"trak") + junk
    moov = struct.pack(">I4s", 8 + 200 * len(track), b"moov") + track * 200
    hostile = tmp_path / "hostile.mp4"
    hostile.write_bytes(moov + path.read_bytes())
    monkeypatch.setattr(track_header._HeaderReader, "reads_left", 5000)
    container, stream = open_video(path)
    with container:
        assert read_track_header(hostile, container, stream) == TrackHeader()


def test_pictures_of_another_size_than_the_header_says_are_cropped_if_anything_is_left(tmp_path):
    sizes = [(72, 96), (40, 50), (12, 16)]
    frames = [np.full((*size, 3), 90, np.uint8) for size in sizes]
    path = tmp_path / "a.mkv"
    parts = [encode(tmp_path / f"{k}.mkv", [frame], codec="mjpeg", pix_fmt="yuvj444p")
             for k, frame in enumerate(frames)]  # fmt: skip
    with av.open(str(path), "w", options={"live": "1"}) as joined:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as container:
                stream = stream or joined.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = number * 100
                        packet.stream = stream
                        joined.mux(packet)
    add_pixel_crop(path, 8, 8, 4, 8)
    found = [block.pixels_FHWC.shape[1:3] for block in decode(path, None)]
    assert found == [(60, 80), (28, 34), (12, 16)]


FOUND = SHARED / "found" / "inputs_public"


@pytest.mark.skipif(not FOUND.is_dir(), reason="the files of public reports are not here")
@pytest.mark.parametrize("name", ["clap.mp4", "pixelcrop.mkv"])
def test_files_of_public_reports(name):
    pixels_FHWC = shown(FOUND / name)
    assert pixels_FHWC.shape == (12, 160, 240, 3)
    assert pixels_FHWC[:, :, :, 0].mean() < 60  # no red rim
