"""The shape of a pixel of each picture, also where it changes in mid-stream."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from support.media import decode, encode
from support.paths import SHARED

from pipeline.video.decode import decode_at
from pipeline.video.transforms import resize_and_crop

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
NOISE = [np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8) for k in range(12)]


def aspects(path: Path) -> list[float]:
    """Of every picture; those of windows are the same."""
    blocks = list(decode(path, None))
    found = [block.pixel_aspect for block in blocks for _ in block.time_s]
    times_s = np.concatenate([block.time_s for block in blocks])
    windows = decode_at(path, times_s[8:18])
    assert [block.pixel_aspect for block in windows for _ in block.time_s] == found[8:18]
    return found


def runs(values: list[float]) -> list[tuple[float, int]]:
    return [(round(value, 3), len(list(group))) for value, group in itertools.groupby(values)]


def ffprobe(path: Path) -> list[float]:
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries"]
    command += ["frame=sample_aspect_ratio", "-of", "json", str(path)]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["frames"]
    return [float(Fraction(frame["sample_aspect_ratio"].replace(":", "/"))) for frame in said]


CODECS = {
    "libx264": {"g": "6", "bf": "0"},
    "libx264 with reordering": {"g": "12", "bf": "3"},
    "libx265 with reordering": {"x265-params": "log-level=none:bframes=3"},
    "mpeg4 with reordering": {"bf": "2"},
    "mpeg2video with reordering": {"bf": "2"},
}


@pytest.mark.parametrize("name", CODECS)
def test_a_change_counts_from_the_first_picture_of_its_own(tmp_path, name):
    codec = name.partition(" ")[0]
    wide = Fraction(4, 3) if codec == "mpeg2video" else Fraction(64, 45)
    for number, aspect in enumerate((Fraction(1), wide)):
        encode(
            tmp_path / f"{number}.ts",
            NOISE,
            codec=codec,
            rate=25,
            aspect=aspect,
            options=CODECS[name],
        )
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join((tmp_path / f"{number}.ts").read_bytes() for number in (0, 1)))
    assert runs(aspects(path)) == [(1.0, 12), (round(float(wide), 3), 12)]


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("container", "stated"), [("4:3", 1.0), ("16:9", 4 / 3)])
def test_the_word_of_the_container_comes_before_that_of_the_stream(
    tmp_path, suffix, container, stated
):
    """Also where both say the same at first, and the stream changes its mind."""
    parts = []
    for number, aspect in enumerate((Fraction(1), Fraction(64, 45))):
        options = {"g": "6", "bf": "2"}
        parts.append(
            encode(tmp_path / f"{number}.ts", NOISE, rate=25, aspect=aspect, options=options)
        )
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    path = tmp_path / f"a.{suffix}"
    command = ["ffmpeg", "-v", "error", "-i", str(both), "-c", "copy", "-aspect", container]
    subprocess.run([*command, str(path)], check=True)
    found = aspects(path)
    assert found == pytest.approx(ffprobe(path))
    if suffix == "mkv" or container == "16:9":
        assert runs(found) == [(round(stated, 3), len(found))]


FOUND = SHARED / "found" / "inputs_public" / "sar_changes.ts"


@pytest.mark.skipif(not FOUND.is_file(), reason="the files of public reports are not here")
def test_the_square_of_a_broadcast_whose_aspect_changes():
    scales = []
    for block in decode(FOUND, None):
        pixels = torch.from_numpy(block.pixels_FHWC)
        _, affine_23 = resize_and_crop(pixels, 224, "crop", "bilinear", block.pixel_aspect)
        scales += [round(float(affine_23[0, 0]), 3)] * len(block)
    assert runs(scales) == [(1.335, 25), (1.897, 25)]
