"""Decoding: counts, times, orientation, colour, sampling, failures. Files are made here."""

from __future__ import annotations

import re
import tracemalloc
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.context import Flags
from support.media import SHARED_CLIPS, decode, encode, grey, packet_spans, read

from pipeline.errors import BadVideo
from pipeline.video.decode import decode_at
from pipeline.video.probe import probe
from pipeline.video.sampling import TOLERANCE_S

LEVELS = [20 + 10 * k for k in range(20)]
GREYS = [grey(level) for level in LEVELS]


def which(frames: list[np.ndarray]) -> list[int]:
    """The number of every frame of GREYS, read from its level."""
    return [round((float(frame.mean()) - 20) / 10) for frame in frames]


# Times and sampling


def reference_sampling(times_s: list[float], end_s: float, fps: float) -> list[int]:
    """The sampling law said slowly: at every instant, the last frame whose time is not later."""
    kept, k = set(), 0
    while (instant_s := times_s[0] + k / fps + TOLERANCE_S) < end_s:
        kept.add(max(i for i, time_s in enumerate(times_s) if time_s <= instant_s))
        k += 1
    return sorted(kept)


def test_every_frame_with_its_own_time_through_a_gap(tmp_path):
    times_s = [0.5 + 0.1 * k + (0.35 if k > 7 else 0) for k in range(20)]
    for name in ("vfr.mp4", "vfr.mkv"):
        frames, found_s, reason = read(encode(tmp_path / name, GREYS, times_s=times_s))
        assert which(frames) == list(range(20))
        np.testing.assert_allclose(found_s, times_s, atol=1e-6)
        assert reason == ""


@pytest.mark.parametrize("fps", [1, 3, 10, 25, 7.5])
def test_sampled_frames_are_those_of_the_law(tmp_path, fps):
    times_s = [0.5 + 0.1 * k + (0.35 if k > 7 else 0) for k in range(20)]
    frames, found_s, _ = read(encode(tmp_path / "vfr.mkv", GREYS, times_s=times_s), fps)
    wanted = reference_sampling(times_s, times_s[-1] + 0.1, fps)
    assert which(frames) == wanted
    np.testing.assert_allclose(found_s, [times_s[i] for i in wanted], atol=1e-6)


def test_sampling_at_the_native_rate_keeps_all_in_spite_of_rounded_times(tmp_path):
    path = encode(tmp_path / "ms.mkv", GREYS, rate=30)
    _, times_s, _ = read(path)
    assert len(set(np.diff(times_s).round(4))) == 2  # 33 and 34 ms
    assert which(read(path, fps=30)[0]) == list(range(20))
    assert which(read(path, fps=60)[0]) == list(range(20))


def test_frames_a_millisecond_apart_are_sampled_from_the_first(tmp_path):
    path = encode(tmp_path / "fast.mp4", GREYS * 5, rate=1000, options={"bf": "0"})
    for fps, step in ((100, 10), (500, 2), (1000, 1)):
        _, times_s, _ = read(path, fps=fps)
        np.testing.assert_allclose(times_s, np.arange(0, 100, step) / 1000, atol=1e-6)


def test_avi_takes_decode_times(tmp_path):
    for b_frames in "02":
        options = {"bf": b_frames, "qmin": "1", "qmax": "2"}
        frames, times_s, _ = read(
            encode(tmp_path / "even.avi", GREYS, codec="mpeg4", options=options)
        )
        assert which(frames) == list(range(20))
        np.testing.assert_allclose(times_s, np.arange(20) / 10, atol=1e-9)


def test_avi_with_dropped_frames_keeps_time_and_is_not_called_truncated(tmp_path):
    wanted_s = [k / 10 if k < 5 else k / 10 + 3 for k in range(20)]
    path = encode(tmp_path / "drops.avi", GREYS, codec="mpeg4", times_s=wanted_s, ticks_per_s=10)
    _, times_s, reason = read(path)
    np.testing.assert_allclose(times_s, wanted_s, atol=1e-9)
    assert reason == ""


def test_a_stream_without_any_times_runs_at_its_rate(tmp_path):
    path = encode(tmp_path / "raw.h264", GREYS, rate=25)
    with av.open(str(path)) as container:
        assert {frame.pts for frame in container.decode(video=0)} == {None}
    frames, times_s, _ = read(path)
    assert which(frames) == list(range(20))
    np.testing.assert_allclose(times_s, np.arange(20) / 25)


# Pixels


def test_blocks_are_consecutive_and_of_one_size(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (height, width) in enumerate([(8, 12)] * 5 + [(12, 8)] * 2 + [(8, 12)]):
        encode(
            folder / f"{number}.png",
            [grey(LEVELS[number], height, width)],
            codec="png",
            pix_fmt="rgb24",
        )
    blocks = list(decode(folder, None, image_fps=5, block_frames=3))
    assert [block.pixels_FHWC.shape[:3] for block in blocks] == [
        (3, 8, 12),
        (2, 8, 12),
        (2, 12, 8),
        (1, 8, 12),
    ]
    np.testing.assert_allclose(np.concatenate([block.time_s for block in blocks]), np.arange(8) / 5)
    assert which([frame for block in blocks for frame in block.pixels_FHWC]) == list(range(8))


def test_memory_is_bounded_by_a_block(tmp_path):
    path = encode(
        tmp_path / "long.mp4",
        (grey(k % 200, 96, 128) for k in range(1200)),
        rate=30,
        options={"preset": "ultrafast"},
    )
    held: list[weakref.ref] = []
    most = 0
    tracemalloc.start()
    for block in decode(path, None, block_frames=4):
        held = [ref for ref in held if ref() is not None] + [weakref.ref(block.pixels_FHWC)]
        most = max(most, len(held))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= 2  # the one in hand and the one it replaces
    assert peak_bytes < 20 * grey(0, 96, 128).nbytes


CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = (
    (220, 30, 30),
    (30, 220, 30),
    (30, 30, 220),
)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_display_matrix_is_applied(tmp_path, turns, mirrored):
    turned = {"rotation": 90 * turns, "mirrored": mirrored, "aspect": Fraction(4, 3)}
    (block,) = decode(
        encode(tmp_path / "turned.mp4", [CORNERS] * 2, pix_fmt="yuv444p", **turned), None
    )
    wanted = np.rot90(CORNERS, turns)
    wanted = wanted[:, ::-1] if mirrored else wanted
    assert block.pixels_FHWC.shape[1:] == wanted.shape
    assert np.abs(block.pixels_FHWC[1].astype(int) - wanted).mean() < 4
    assert block.pixel_aspect == pytest.approx(3 / 4 if turns % 2 else 4 / 3)


def jpeg(path: Path, orientation: int | None = None) -> Path:
    """A JPEG of CORNERS, with an EXIF orientation if one is given."""
    # Written under a plain name, since libav takes a "%" for a pattern.
    encode(
        path.parent / "plain.jpg",
        [CORNERS],
        codec="mjpeg",
        pix_fmt="yuvj444p",
        options={"qmin": "1", "qmax": "1"},
    )
    (path.parent / "plain.jpg").rename(path)
    if orientation is not None:
        entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\0\0"
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
        data = path.read_bytes()
        path.write_bytes(
            data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
        )
    return path


@pytest.mark.parametrize(
    ("orientation", "turns"),
    [(None, 0), (1, 0), (3, 2), (6, -1), (8, 1)],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turns):
    upright = np.rot90(CORNERS, turns)
    jpeg(tmp_path / "photo 100%03d.jpg", orientation)
    (block,) = decode(tmp_path, None, image_fps=1)
    assert block.pixels_FHWC.shape[1:] == upright.shape
    assert np.abs(block.pixels_FHWC[0].astype(int) - upright).mean() < 6


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("matrix", [1, 5], ids=["bt709", "bt601"])
@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
def test_colour_matrix_and_range_are_honoured(tmp_path, pix_fmt, matrix, color_range):
    colours = np.array(
        [(200, 40, 40), (40, 200, 40), (40, 40, 200), (230, 230, 230), (20, 20, 20)], np.uint8
    )
    frames = [np.tile(colour, (32, 32, 1)) for colour in colours]
    path = encode(
        tmp_path / "c.mp4",
        frames,
        pix_fmt=pix_fmt,
        colorspace=matrix,
        color_range=color_range,
        options={"crf": "1"},
    )
    found, _, _ = read(path)
    assert np.abs(np.stack(found)[:, 16, 16].astype(int) - colours).max() <= 4


def test_grey_alpha_palette_and_odd_sizes(tmp_path):
    picture = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    with_alpha = np.concatenate([picture, np.full((7, 9, 1), 9, np.uint8)], axis=2)
    for name, frame, pix_fmt in (("rgb", picture, "rgb24"), ("alpha", with_alpha, "rgba")):
        found, _, _ = read(
            encode(tmp_path / f"{name}.mov", [frame] * 2, codec="png", pix_fmt=pix_fmt)
        )
        np.testing.assert_array_equal(found[1], picture)
    (found, _, _) = read(
        encode(tmp_path / "grey.mkv", [grey(77, 7, 9)], codec="ffv1", pix_fmt="gray")
    )
    np.testing.assert_array_equal(found[0], grey(77, 7, 9))
    black_and_red = np.zeros((5, 3, 3), np.uint8)
    black_and_red[2:, :, 0] = 252  # the palette's own red
    found, times_s, _ = read(
        encode(
            tmp_path / "a.gif",
            [black_and_red, black_and_red[::-1]] * 2,
            codec="gif",
            pix_fmt="rgb8",
        )
    )
    np.testing.assert_array_equal(found[3], black_and_red[::-1])
    np.testing.assert_allclose(times_s, [0, 0.1, 0.2, 0.3])


def test_interlaced_frames_lose_their_combs_and_keep_count_and_times(tmp_path):
    def fields(number: int) -> np.ndarray:
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[0::2, 4 * number : 4 * number + 12] = frame[
            1::2, 4 * number + 6 : 4 * number + 18
        ] = 220
        return frame

    frames = [fields(number) for number in range(10)]
    flags = Flags.interlaced_dct | Flags.interlaced_me
    found, times_s, _ = read(
        encode(tmp_path / "i.mp4", frames, codec="mpeg4", pix_fmt="yuv420p", rate=25, flags=flags)
    )
    np.testing.assert_allclose(times_s, np.arange(10) / 25)

    def combs(frame: np.ndarray) -> float:
        return float(np.abs(np.diff(frame[..., 1].astype(float), axis=0)).mean())

    assert min(map(combs, frames)) > 35
    assert max(map(combs, found)) < 12
    centres = [(frame[..., 1].sum(0) @ np.arange(64)) / frame[..., 1].sum() for frame in found]
    np.testing.assert_allclose(np.diff(centres), 4, atol=0.7)


def test_interlaced_frames_too_small_for_the_filter(tmp_path):
    path = encode(
        tmp_path / "i.mp4", [grey(9, 4, 4)] * 2, codec="mpeg4", flags=Flags.interlaced_dct
    )
    assert (
        read(path)[2]
        == "i.mp4: its frames cannot be deinterlaced or converted to RGB: Invalid argument"
    )


# Failures: the good frames first, then the reason


def damage(path: Path, first: int) -> Path:
    """Overwrites every packet from number `first` on."""
    data = bytearray(path.read_bytes())
    for position, size in packet_spans(path)[first:]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    return path


INTRA = {"g": "1", "bf": "0"}


def test_the_frames_before_damage_keep_their_times(tmp_path):
    path = damage(encode(tmp_path / "torn.mp4", GREYS, options=INTRA), 13)
    frames, times_s, reason = read(path, block_frames=4)
    assert which(frames) == list(range(13)) and reason == ""
    np.testing.assert_allclose(times_s, np.arange(13) / 10)
    assert which(read(path, fps=5)[0]) == [0, 2, 4, 6, 8, 10, 12]


def test_nothing_can_be_decoded(tmp_path):
    _, _, reason = read(damage(encode(tmp_path / "void.mp4", GREYS, options=INTRA), 0))
    assert (
        reason == "void.mp4: header promises 20 frames, none could be decoded: Invalid data "
        "found when processing input"
    )


@pytest.mark.parametrize(("name", "codec"), [("cut.mkv", "libx264"), ("cut.avi", "mpeg4")])
def test_a_truncated_file_does_not_look_complete(tmp_path, name, codec):
    path = encode(
        tmp_path / name, [grey(level) for level in LEVELS * 4], codec=codec, options={"g": "1"}
    )
    assert read(path)[2] == ""
    whole = path.read_bytes()
    position, _ = packet_spans(path)[50]
    path.write_bytes(whole[:position])
    frames, _, reason = read(path)
    assert len(frames) in (49, 50)
    assert re.search(
        r"truncated: the header promises 8\.0 s, the content ends after (49|50) frames at "
        r"(4\.9|5\.0) s",
        reason,
    )


def test_a_longer_sound_track_is_no_truncation(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        video, sound = (
            container.add_stream("ffv1", rate=10),
            container.add_stream("pcm_s16le", rate=8000, layout="mono"),
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for k in range(80):
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 800), np.int16), format="s16", layout="mono"
            )
            samples.sample_rate, samples.pts = 8000, 800 * k
            container.mux(sound.encode(samples))
            if k < 20:
                container.mux(video.encode(av.VideoFrame.from_ndarray(GREYS[k], format="rgb24")))
        container.mux(video.encode())
    assert probe(path).duration_s == pytest.approx(2)
    frames, _, reason = read(path)
    assert which(frames) == list(range(20))
    assert reason == ""


def test_a_folder_of_torn_images(tmp_path):
    for number in range(4):
        jpeg(tmp_path / f"{number}.jpg")
        data = (tmp_path / f"{number}.jpg").read_bytes()
        (tmp_path / f"{number}.jpg").write_bytes(data[:30])
    frames, _, reason = read(tmp_path, image_fps=4)
    assert not frames
    assert (
        reason
        == f"{tmp_path.name}/0.jpg: cannot be decoded: Invalid data found when processing input"
    )


# The frames of one window


MADE = {
    "b_frames.mp4": {"codec": "libx264", "options": {"g": "6", "bf": "3"}},
    "open_groups.mkv": {
        "codec": "libx264",
        "options": {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"},
    },
    "uneven.mkv": {
        "codec": "libx264",
        "times_s": [0.5 + 0.07 * k + (0.4 if k > 14 else 0) for k in range(40)],
        "options": {"g": "5"},
    },
    "lossless.mp4": {"codec": "libx264", "pix_fmt": "yuv444p", "options": {"g": "6"}},
    "late.ts": {"codec": "mpeg2video", "rate": 25, "options": {"g": "6", "bf": "2"}},
    "interlaced.ts": {
        "codec": "mpeg2video",
        "rate": 25,
        "options": {"g": "6", "bf": "2"},
        "flags": Flags.interlaced_dct | Flags.interlaced_me,
    },
    "counted.avi": {"codec": "mpeg4", "options": {"g": "6", "bf": "2"}},
    "no_times.h264": {"codec": "libx264", "options": {"g": "6"}},
    "vp9.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuv420p", "options": {"g": "6"}},
}


def moving(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames that all differ, and that no codec takes for copies."""
    rng = np.random.default_rng(0)
    far = rng.integers(0, 255, (height, width + 3 * count, 3), np.uint8)
    return [far[:, 3 * k : 3 * k + width] for k in range(count)]


def assert_windows_are_those_of_the_whole(
    path: Path, windows: int, image_fps: float | None = None
) -> None:
    pixels, times_s, _ = read(path, image_fps=image_fps)
    rng = np.random.default_rng(len(times_s))
    for number in range(windows):
        size = min(8, len(times_s))
        first = int(rng.integers(0, len(times_s) - size + 1))
        spread = np.sort(rng.choice(len(times_s), size, replace=False))
        wanted = spread if number % 3 == 2 else np.arange(first, first + size)
        found = decode_at(path, times_s[wanted], image_fps)
        assert np.concatenate([one.time_s for one in found]).tolist() == times_s[wanted].tolist()
        for ours, place in zip(
            (pixels_HWC for one in found for pixels_HWC in one.pixels_FHWC), wanted, strict=True
        ):
            assert (ours == pixels[place]).all(), f"{path.name}: frame {place}"


@pytest.mark.parametrize("name", MADE)
def test_a_window_has_the_pixels_of_the_whole_video(tmp_path, name):
    assert_windows_are_those_of_the_whole(encode(tmp_path / name, moving(40), **MADE[name]), 12)


def test_a_window_of_a_folder_of_images(tmp_path):
    (tmp_path / "images").mkdir()
    for number, level in enumerate(LEVELS):
        encode(
            tmp_path / "images" / f"{number:03}.png", [grey(level)], codec="png", pix_fmt="rgb24"
        )
    assert_windows_are_those_of_the_whole(tmp_path / "images", 6, image_fps=10)


@pytest.mark.skipif(not SHARED_CLIPS.is_dir(), reason="no real clips here")
def test_windows_of_real_clips():
    names = sorted(
        path for path in (SHARED_CLIPS / "corner").iterdir() if path.stat().st_size < 300_000
    )
    assert names
    for path in names:
        try:
            probe(path)
        except BadVideo:
            continue
        if len(read(path)[1]) > 1:
            assert_windows_are_those_of_the_whole(path, 3)


def test_decoding_stops_at_the_end_of_the_window(tmp_path, monkeypatch):
    path = encode(tmp_path / "long.mp4", moving(60), options={"g": "10", "bf": "0"})
    _, times_s, _ = read(path)
    seen = []
    monkeypatch.setattr(
        "pipeline.video.decode.FrameCounts.picture",
        lambda self, time_s, end_s: seen.append(end_s),
    )
    decode_at(path, times_s[34:38])
    assert (
        len(seen) <= 4 + 4 + 3
    )  # the window, what lies between the keyframe and it, and what is looked back at


def test_times_that_are_not_there_are_named(tmp_path):
    path = encode(tmp_path / "short.mp4", GREYS)
    with pytest.raises(
        BadVideo, match=r"short.mp4: frames at 2 times from 1.234 s on cannot all be found"
    ):
        decode_at(path, np.array([1.234, 1.3]))
