"""Decoded frames against the `ffmpeg` and `ffprobe` programs: count, times, codec, pixel format,
turns and every pixel.

Pixels are equal, with no tolerance. For that `ffmpeg` is told to convert as the module does:
`flags=bicubic` without accuracy flags, `bwdif` for frames flagged as interlaced, and for more than
8 bits `in_h_chr_pos=0`: there libswscale 9, which PyAV ships, honours that chroma samples lie on
the left pixel of two, and programs before ffmpeg 8 must be asked to. At 8 bits both take the same
path, which repeats chroma. One frame is excepted: the first of an interlaced video has no frame
before it, and versions of `bwdif` differ in what they take instead. Times are equal within the
microsecond that `ffprobe` prints, except where a container gives none or one that goes back, which
the module replaces.

`STILLFRAME_CLIPS` names a folder of real clips; `STILLFRAME_ALL_CLIPS=1` takes the long ones too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.codec.context import Flags
from support.media import SHARED_CLIPS, encode

from pipeline.errors import BadVideo
from pipeline.video.decode import decode_rates
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.probe import open_video

pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg is not installed"
)

CLIPS = Path(os.environ.get("STILLFRAME_CLIPS", SHARED_CLIPS))
QUICK_BYTES = 600_000
TIME_S = 1.01e-6


def ffprobe(path: Path, *arguments: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "quiet", "-of", "json", *arguments, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def ffmpeg_frames(
    path: Path, stream: int, pix_fmt: str, interlaced: bool, shapes: Iterator[tuple[int, ...]]
) -> Iterator[np.ndarray]:
    """RGB frames as the program writes them, cut to the given shapes; at the end it must have no
    more."""
    siting = "in_h_chr_pos=0:" if "420p1" in pix_fmt else ""
    filters = (
        "bwdif=mode=send_frame:deint=interlaced," * interlaced
        + f"scale={siting}flags=bicubic,format=rgb24"
    )
    command = [
        "ffmpeg",
        "-v",
        "quiet",
        "-nostdin",
        "-threads",
        "1",
        "-i",
        str(path),
        "-map",
        f"0:{stream}",
    ]
    command += [
        "-fps_mode",
        "passthrough",
        "-autoscale",
        "0",
        "-vf",
        filters,
        "-f",
        "rawvideo",
        "-",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        for shape in shapes:
            yield np.frombuffer(program.stdout.read(int(np.prod(shape))), np.uint8).reshape(shape)
        assert program.stdout.read() == b""


def compare(path: Path, whole: bool = True) -> int:
    """Compares a video, or as much as could be decoded of it, and says how many frames that
    were."""
    container, stream = open_video(path)
    with container:
        index, codec, is_avi = (
            stream.index,
            stream.codec_context.codec.canonical_name,
            container.format.name == "avi",
        )
        first = next(container.decode(stream))
    entries = (
        "stream=codec_name,sample_aspect_ratio:"
        "frame=best_effort_timestamp_time,interlaced_frame,pix_fmt,width,height:packet=dts_time"
    )
    said = ffprobe(
        path,
        "-select_streams",
        str(index),
        "-show_entries",
        entries,
        "-show_packets",
        "-show_frames",
    )
    pictures = [item for item in said["packets_and_frames"] if item["type"] == "frame"]
    packets = [item for item in said["packets_and_frames"] if item["type"] == "packet"]
    assert codec == said["streams"][0]["codec_name"]
    assert (first.format.name, first.width, first.height) == tuple(
        pictures[0][key] for key in ("pix_fmt", "width", "height")
    )

    counted, blocks = FrameCounts(), []
    try:
        for block in decode_rates(path, [None], counted=counted):
            blocks.append(block.frames)  # noqa: PERF401  what came before a failure counts
    except BadVideo:
        assert not whole
    times_s = np.concatenate([frames.time_s for frames in blocks])
    assert counted.decoded == len(times_s)
    assert not whole or len(times_s) == len(pictures)
    wanted = (
        [item["dts_time"] for item in packets]
        if is_avi
        else [item.get("best_effort_timestamp_time") for item in pictures]
    )
    wanted_s = np.array(wanted[: len(times_s)], float)
    # A time that is missing or goes back is replaced.
    sound = ~(wanted_s <= np.fmax.accumulate([-np.inf, *wanted_s[:-1]])) & ~np.isnan(wanted_s)
    np.testing.assert_allclose(times_s[sound], wanted_s[sound], atol=TIME_S, rtol=0)
    assert (~sound).sum() <= 2
    assert (np.diff(times_s) > 0).all()

    interlaced = any(item["interlaced_frame"] for item in pictures)
    ours = (pixels for frames in blocks for pixels in frames.pixels_FHWC)
    shapes = (pixels.shape for frames in blocks for pixels in frames.pixels_FHWC)
    theirs = ffmpeg_frames(path, index, first.format.name, interlaced, shapes)
    for number, pixels in enumerate(ours):
        if interlaced and number == 0:
            assert np.abs(pixels.astype(int) - next(theirs)).mean() < 1
        else:
            np.testing.assert_array_equal(pixels, next(theirs), err_msg=f"frame {number}")
    assert not whole or next(theirs, None) is None
    return len(times_s)


# Clips made here


def picture(number: int, height: int = 72, width: int = 96) -> np.ndarray:
    """Waves of all colours that move, and noise in a corner."""
    y, x = np.mgrid[:height, :width]
    waves = [x / 9 + number / 3, y / 7 - number / 4, (x + y) / 11 + number / 2]
    pixels = np.stack([127.5 + 120 * np.sin(wave) for wave in waves], axis=-1).astype(np.uint8)
    pixels[:16, :16] = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    return pixels


PICTURES = [picture(number) for number in range(24)]
UNEVEN_S = [0.5 + 0.04 * k + (0.35 if k > 7 else 0) for k in range(24)]


def made(name: str, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: encode(folder / name, PICTURES, **options)


def cut(folder: Path) -> Path:
    """An edit list hides the frames between the key frame and the cut."""
    whole = encode(folder / "whole.mp4", PICTURES, options={"g": "24", "bf": "2"})
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-ss",
        "0.75",
        "-i",
        str(whole),
        "-c",
        "copy",
        str(folder / "cut.mp4"),
    ]
    subprocess.run(command, check=True)
    return folder / "cut.mp4"


def delayed(folder: Path) -> Path:
    """An empty edit: the first frame is shown after 5 s."""
    whole = encode(folder / "whole.mp4", PICTURES)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-itsoffset",
        "5",
        "-i",
        str(whole),
        "-c",
        "copy",
        str(folder / "delayed.mp4"),
    ]
    subprocess.run(command, check=True)
    return folder / "delayed.mp4"


QUIET_X265 = {"x265-params": "log-level=none"}
MADE: dict[str, Callable[[Path], Path]] = {
    "h264 without B-frames": made("a.mp4", options={"bf": "0"}),
    "h264 with B-frames": made("a.mp4", options={"bf": "3"}),
    "h264 yuv444p": made("a.mp4", pix_fmt="yuv444p"),
    "h264 yuv422p": made("a.mkv", pix_fmt="yuv422p"),
    "h264 full range": made("a.mp4", pix_fmt="yuvj420p", color_range=2),
    "h264 BT.709": made("a.mp4", colorspace=1),
    "h264 10 bit": made("a.mp4", pix_fmt="yuv420p10le"),
    "mpeg4 interlaced": made(
        "a.mp4", codec="mpeg4", flags=Flags.interlaced_dct | Flags.interlaced_me
    ),
    "h264 in MPEG-TS": made("a.ts", rate=25),
    "hevc": made("a.mp4", codec="libx265", options=QUIET_X265),
    "hevc 10 bit": made("a.mkv", codec="libx265", pix_fmt="yuv420p10le", options=QUIET_X265),
    "av1": made("a.mkv", codec="libsvtav1", options={"preset": "12"}),
    "vp9": made("a.webm", codec="libvpx-vp9", options={"deadline": "realtime"}),
    "vp8": made("a.webm", codec="libvpx", options={"deadline": "realtime"}),
    "mpeg4 in AVI": made("a.avi", codec="mpeg4"),
    "mpeg4 in AVI with B-frames": made("a.avi", codec="mpeg4", options={"bf": "2"}),
    "mpeg2": made("a.mpg", codec="mpeg2video", rate=25),
    "prores": made("a.mov", codec="prores_ks", pix_fmt="yuv422p10le"),
    "ffv1 rgb": made("a.mkv", codec="ffv1", pix_fmt="bgr0"),
    "turned 90": made("a.mp4", rotation=90),
    "turned 180": made("a.mp4", rotation=180),
    "turned 270": made("a.mov", rotation=270),
    "turned 90 and mirrored": made("a.mp4", rotation=90, mirrored=True),
    "variable rate": made("a.mp4", times_s=UNEVEN_S),
    "variable rate in Matroska": made("a.mkv", times_s=UNEVEN_S),
    "cut by an edit list": cut,
    "delayed by an edit list": delayed,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_made_clips(tmp_path, name):
    assert compare(MADE[name](tmp_path)) == (16 if name == "cut by an edit list" else 24)


def test_the_comparison_sees_a_difference(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", PICTURES)
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: real(
            [part.replace("bicubic", "accurate_rnd") for part in command], **options
        ),
    )
    with pytest.raises(AssertionError, match="frame 0"):
        compare(path)


# Real clips

PARTLY = {"corner_corrupt_28of50.mp4"}
WITHOUT_PICTURES = {
    "corner_audio_only.mp3",
    "corner_mp3_cover_as_video.mp3",
    "corner_header_133445_zero_decoded.mp4",
}


def real_clips() -> list[Path]:
    files = [
        file for file in [*CLIPS.glob("*.*"), *CLIPS.glob("corner/*.*")] if file.suffix != ".md"
    ]
    short = [
        file
        for file in files
        if os.environ.get("STILLFRAME_ALL_CLIPS") or file.stat().st_size < QUICK_BYTES
    ]
    return sorted(file for file in short if file.name not in WITHOUT_PICTURES)


@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.name)
def test_real_clips(path):
    assert compare(path, whole=path.name not in PARTLY) > 0
