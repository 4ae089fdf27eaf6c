"""torchcodec in the place of the isolated decoder: the same frames at the same times, to the bit on the CPU, or a sentence on
why not. Skipped where it cannot be used."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from av.codec.context import Flags
from support.broken_media import images, noise
from support.cropped_media import add_clap
from support.media import SHARED_CLIPS, encode, packet_spans

from pipeline.errors import BadInput, BadVideo
from pipeline.records import Rate, Stride, Video
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.on_device import identity_of_decoder
from pipeline.video.reader import FrameReader

CPU = torch.device("cpu")
RATES: list[Rate] = [None, 4.0, Stride(every=7)]
UNEVEN_S = [0.0, 0.1, 0.15, 0.4, 0.41, 0.9, 1.6, 1.7, 1.75, 2.0, 2.6]
FEW_KEYS = {"g": "20", "bf": "2"}
try:
    identity_of_decoder("torchcodec", CPU)
except BadInput as error:
    pytest.skip(error.with_hint, allow_module_level=True)


class Read:
    """What a decoder makes of a video."""

    def __init__(self, path: Path, decoder: str, rates: list[Rate]) -> None:
        self.counted, self.reason = FrameCounts(), ""
        self.pixels: list[torch.Tensor] = []
        self.shown: list[tuple[float, float, tuple[bool, ...], bool]] = []
        with FrameReader(path.parent, CPU) as reader:
            blocks = reader.blocks(Video("v", path.name), rates, self.counted, decoder)
            try:
                for block in blocks:
                    self.pixels += list(block.transforms._sent.on_device())
                    self.shown += [
                        (time_s, block.transforms.frames.pixel_aspect, kept, damaged)
                        for time_s, kept, damaged in zip(
                            block.time_s.tolist(),
                            zip(*block.kept.values(), strict=True),
                            block.damaged_F.tolist(),
                            strict=True,
                        )
                    ]
            except BadVideo as error:
                self.reason = error.with_hint


def assert_same(path: Path, rates: list[Rate]) -> None:
    ours, theirs = Read(path, "pyav", rates), Read(path, "torchcodec", rates)
    assert ours.reason == theirs.reason == ""
    assert theirs.shown == ours.shown and ours.shown
    assert all(map(torch.equal, theirs.pixels, ours.pixels))
    assert theirs.counted == ours.counted


MADE: dict[str, dict[str, Any]] = {
    "plain.mp4": {"options": FEW_KEYS},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp8.webm": {"codec": "libvpx"},
    "uneven.mp4": {"times_s": UNEVEN_S, "options": {"bf": "2"}},
    "late.mkv": {"times_s": [time_s + 7 for time_s in UNEVEN_S]},
    "turned.mp4": {"rotation": 90, "aspect": Fraction(4, 3)},
    "turned_back.mp4": {"rotation": 270},
    "upside_down.mp4": {"rotation": 180, "aspect": Fraction(4, 3)},
    "full_range.mp4": {"pix_fmt": "yuvj420p"},
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("rates", [RATES, RATES[1:]], ids=["all", "some"])
def test_frames_times_and_counts_are_those_of_the_isolated_decoder(tmp_path, name, rates):
    count = len(UNEVEN_S) if "times_s" in MADE[name] else 43
    assert_same(encode(tmp_path / name, noise(count), **MADE[name]), rates)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 48, 64), (2, 47, 63), (9, 15, 17)])
def test_short_videos_and_odd_sizes(tmp_path, count, height, width):
    frames = noise(count, height, width)
    assert_same(encode(tmp_path / "a.mkv", frames, codec="libvpx"), RATES)


@pytest.mark.parametrize(
    "name",
    [
        "ava_gym.mp4",
        "kinetics_clean_pool_part32f.mp4",  # pixels that are not square
        "kinetics_flipping_pancake.mkv",  # times in milliseconds
        "nasa_13013.mp4",  # two streams of video
        "ucf101_v_BaseballPitch_g01_c01.avi",
        "corner/corner_175x143_odd_vp8.ivf",
        "corner/corner_314x273_odd.gif",
        "corner/corner_3_frames.mp4",
        "corner/corner_av1_testpattern.mkv",
        "corner/corner_bad_audio.mp4",
        "corner/corner_noduration_vp9_vfr.webm",
        "corner/corner_phone_rot180_vfr.mp4",
        "corner/corner_rot90.mov",
        "corner/corner_rot270.mov",
    ],
)
def test_real_clips(name):
    if not (SHARED_CLIPS / name).is_file():
        pytest.skip("real clips are not here")
    assert_same(SHARED_CLIPS / name, [2.0, Stride(None, 11)])


def cut(path: Path) -> Path:
    """Without its last pictures, of which the header tells."""
    start, _ = packet_spans(path)[30]
    path.write_bytes(path.read_bytes()[:start])
    return path


def hurt(path: Path) -> Path:
    """With a packet in its middle that no decoder takes."""
    start, length = packet_spans(path)[20]
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(bytes(data))
    return path


FAST = {"movflags": "faststart"}
REFUSED = {
    "interlaced.mp4": (
        lambda path: encode(path, noise(5), codec="mpeg4", flags=Flags.interlaced_dct),
        "is interlaced, for which torchcodec does nothing",
    ),
    "mirrored.mp4": (
        lambda path: encode(path, noise(5), rotation=0, mirrored=True),
        "is mirrored, for which torchcodec does nothing",
    ),
    "cropped.mp4": (
        lambda path: add_clap(encode(path, noise(5)), 48, 1, 40, 1, 0, 1, 0, 1),
        "is cropped by its container, for which torchcodec does nothing",
    ),
    "four.mp4": (
        lambda path: encode(path, noise(5), pix_fmt="yuv444p"),
        "is H.264 in 4:4:4",
    ),
    "reordered.avi": (
        lambda path: encode(path, noise(9), codec="mpeg4", options={"bf": "2"}),
        "torchcodec gives its frame at 0.000 s the time 0.100 s",
    ),
    "images": (lambda path: images(path, noise(2)), "is no video file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_would_decode_otherwise_is_refused(tmp_path, name):
    make, reason = REFUSED[name]
    assert_refused(make(tmp_path / name), reason)


def assert_refused(path: Path, reason: str) -> None:
    read = Read(path, "torchcodec", RATES)
    assert read.pixels == [] and read.counted.decoded == 0
    assert read.reason.startswith(f"{path.name}: {reason}")
    assert read.reason.endswith('(it can be cached with frames.decoder = "pyav")')


def test_a_change_of_size_ends_it():
    clip = SHARED_CLIPS / "corner" / "corner_9_resolutions_vp8.mkv"
    if not clip.is_file():
        pytest.skip("real clips are not here")
    assert_refused(clip, "torchcodec cannot decode it: Expected pre-allocated tensor")


def test_a_cut_file_fails_and_is_never_silently_short(tmp_path):
    path = cut(encode(tmp_path / "a.mp4", noise(43), container_options=FAST))
    read = Read(path, "torchcodec", RATES)
    assert "truncated: " in read.reason and read.counted.decoded == 30 == len(read.pixels)


def test_a_file_that_it_cannot_decode_to_its_end_fails_after_what_came_before(tmp_path):
    path = hurt(encode(tmp_path / "a.mp4", noise(43)))
    ours, theirs = Read(path, "pyav", RATES), Read(path, "torchcodec", RATES)
    assert ours.reason == "" and len(ours.pixels) > 20
    assert "torchcodec cannot decode it: " in theirs.reason
    assert len(theirs.pixels) == 16 == theirs.counted.decoded
    assert all(map(torch.equal, theirs.pixels, ours.pixels[:16]))


def test_it_decodes_on_the_device_of_its_build_alone(monkeypatch):
    assert identity_of_decoder("torchcodec", CPU).endswith(" cpu")
    assert identity_of_decoder("torchcodec", torch.device("meta")) == identity_of_decoder(
        "torchcodec", CPU
    )
    monkeypatch.setattr("torchcodec.__version__", "0.13.0+cpu")
    with pytest.raises(BadInput, match=r"torchcodec 0\.13\.0\+cpu cannot decode on cuda:1"):
        identity_of_decoder("torchcodec", torch.device("cuda:1"))
    monkeypatch.setattr("torchcodec.__version__", "0.13.0+cu128")
    found = identity_of_decoder("torchcodec", torch.device("cuda:1"))
    assert found.startswith("torchcodec 0.13.0 ffmpeg ") and found.endswith(" cuda")
