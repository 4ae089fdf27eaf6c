"""Decoding of real clips with real defects. Skipped where the clips are not there."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from support.media import SHARED_CLIPS, decode, read

from pipeline.video.probe import expected_frames, probe

COUNTS = {
    "ava_gym.mp4": 300,
    "chaplin.mp4": 241,
    "kinetics_arm_wrestling.mp4": 280,
    "kinetics_clean_pool_part32f.mp4": 32,
    "kinetics_flipping_pancake.mkv": 310,
    "nasa_13013.mp4": 390,  # of its two streams the larger, 480x270
    "ntu_two_person_1080p.mp4": 72,
    "sleap_small_robot.mp4": 166,
    "testpattern_burned_clock.mp4": 400,
    "ucf101_v_ApplyEyeMakeup_g01_c01.avi": 164,
    "ucf101_v_BaseballPitch_g01_c01.avi": 107,
    "corner/corner_175x143_odd_vp8.ivf": 48,
    "corner/corner_1x1_1fps.mp4": 5,
    "corner/corner_314x273_odd.gif": 30,
    "corner/corner_3_frames.mp4": 3,
    "corner/corner_9_resolutions_vp8.mkv": 300,
    "corner/corner_av1_testpattern.mkv": 125,
    "corner/corner_bad_audio.mp4": 280,
    "corner/corner_first_pts_5s.mp4": 100,
    "corner/corner_full_range_yuvj420p.mp4": 30,
    "corner/corner_h264_10bit.mp4": 30,
    "corner/corner_h264_interlaced.mp4": 126,
    "corner/corner_metadata_not_utf8.mov": 10,
    "corner/corner_noduration_vp9_vfr.webm": 74,
    "corner/corner_phone_rot180_vfr.mp4": 25,
    "corner/corner_rot0.mov": 3,
    "corner/corner_rot90.mov": 3,
    "corner/corner_vp9_alpha.webm": 150,
}


def clip(name: str) -> Path:
    path = SHARED_CLIPS / name
    if not path.is_file():
        pytest.skip("real clips are not here")
    return path


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_real_clip_is_read_whole_and_in_order(name, count):
    times_s = np.concatenate([block.time_s for block in decode(clip(name), None)])
    assert len(times_s) == count
    assert (np.diff(times_s) > 0).all()
    assert abs(expected_frames(probe(clip(name)), None) - count) <= 1


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ntu_A001_drink_water.avi", 7),
        ("sam2_bedroom.mp4", 14),
        ("sam2_dog.mp4", 20),
        ("sleap_dance.mp4", 30),
    ],
)
def test_real_clip_sampled(name, count):
    _, times_s, reason = read(clip(name), fps=2)
    assert reason == ""
    assert len(times_s) == count == expected_frames(probe(clip(name)), 2)
    np.testing.assert_allclose(times_s, np.arange(count) / 2, atol=1 / 24)


@pytest.mark.parametrize(
    ("name", "count", "reason"),
    [
        (
            "header_133445_zero_decoded.mp4",
            0,
            "header promises 133445 frames, none could be decoded",
        ),
        ("audio_only.mp3", 0, "no video stream (audio only)"),
        ("mp3_cover_as_video.mp3", 0, "no video stream, its only picture is cover art"),
    ],
)
def test_real_clip_fails_with_the_true_reason(name, count, reason):
    path = clip(f"corner/corner_{name}")
    frames, _, found = read(path)
    assert len(frames) == count
    assert found == f"{path.name}: {reason}"


def test_real_times():
    assert read(clip("corner/corner_first_pts_5s.mp4"))[1][0] == 5.0
    np.testing.assert_allclose(
        read(clip("ucf101_v_ApplyEyeMakeup_g01_c01.avi"))[1], np.arange(164) / 25
    )
    steps_s = np.diff(read(clip("corner/corner_phone_rot180_vfr.mp4"))[1])
    assert len(set(steps_s.round(4))) > 3


@pytest.mark.parametrize(
    ("name", "rotation"), [("rot0", 0), ("rot90", -90), ("rot180", -180), ("rot270", 90)]
)
def test_real_rotations(name, rotation):
    path = clip(f"corner/corner_{name}.mov")
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        assert stored.rotation == rotation
        pixels_HWC = stored.to_ndarray(format="rgb24")
    np.testing.assert_array_equal(read(path)[0][0], np.rot90(pixels_HWC, rotation // 90))


def test_real_frame_sizes_change_within_one_stream():
    shapes = [
        block.pixels_FHWC.shape[1:3]
        for block in decode(clip("corner/corner_9_resolutions_vp8.mkv"), 10)
    ]
    assert len(set(shapes)) == 9


def test_real_pixel_aspect():
    (block, *_) = decode(clip("kinetics_arm_wrestling.mp4"), 1)
    assert block.pixel_aspect == pytest.approx(64 / 51)
