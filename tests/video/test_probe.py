"""What a video says of itself, and the reasons for refusing one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.media import SHARED_CLIPS, encode, grey, tone

from pipeline.errors import BadVideo
from pipeline.video.probe import (
    IMAGE_SUFFIXES,
    MEDIA_SUFFIXES,
    Probe,
    decoder_identity,
    expected_frames,
    list_images,
    open_video,
    probe,
)

GREYS = [grey(100)] * 24


def test_a_video_file(tmp_path):
    assert probe(encode(tmp_path / "a.mp4", GREYS, rate=12)) == Probe(
        64, 48, 12.0, 0.0, 2.0, 24, "h264"
    )


def test_start_and_average_rate_of_uneven_times(tmp_path):
    times_s = [1.5 + k * 0.1 + (0.6 if k > 11 else 0) for k in range(24)]
    facts = probe(encode(tmp_path / "a.mp4", GREYS, times_s=times_s))
    assert facts.start_s == pytest.approx(1.5)
    assert facts.duration_s == pytest.approx(3.0)
    assert facts.fps == pytest.approx(24 / 3.0)
    assert [expected_frames(facts, fps) for fps in (None, 1, 2.5, 100)] == [24, 3, 8, 24]


def test_duration_is_read_from_the_packets_if_the_header_has_none(tmp_path):
    path = encode(
        tmp_path / "live.webm", GREYS, codec="libvpx", rate=12, container_options={"live": "1"}
    )
    with av.open(str(path)) as container:
        assert container.duration is None
    facts = probe(path)
    assert facts.duration_s == pytest.approx(2.0, abs=2e-3)
    assert facts.frames_from_header is None
    assert expected_frames(facts, None) == 24


@pytest.mark.parametrize("signed", [False, True])
def test_the_length_of_a_track_of_matroska_counts_from_its_first_frame_or_from_zero(
    tmp_path, signed
):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        if signed:
            stream.metadata["_STATISTICS_WRITING_APP"] = "mkvmerge"
        for number, pixels in enumerate(GREYS):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = 5 * 12 + number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert data.count(b"00:00:07.0") == 1
    if signed:
        path.write_bytes(data.replace(b"00:00:07.0", b"00:00:02.0"))
    facts = probe(path)
    assert facts.start_s == 5
    assert facts.duration_s == pytest.approx(2.0, abs=0.01)


def test_a_truncated_avi_still_promises_what_its_header_says(tmp_path):
    path = encode(tmp_path / "a.avi", [grey(10 * k) for k in range(24)], codec="mpeg4", rate=12)
    with av.open(str(path)) as container:
        cut = [packet.pos for packet in container.demux(video=0)][12]
    path.write_bytes(path.read_bytes()[:cut])
    assert expected_frames(probe(path), None) == 24


@pytest.mark.parametrize(
    ("duration_s", "rate", "header", "fps", "wanted"),
    [
        (10.0, 30.0, 300, None, 300),
        (10.0, 30.0, 300, 8, 80),
        (10.0, 30.0, 300, 60, 300),
        (10.01, 29.97, None, 4, 41),
        (2.0, 30.0, 300, None, 60),  # an edit list shows 2 of 10 seconds
        (None, None, 7, None, 7),
        (None, None, None, None, 1),
        (0.01, 30.0, None, 1, 1),
    ],
)
def test_expected_frames(duration_s, rate, header, fps, wanted):
    assert expected_frames(Probe(8, 8, rate, 0.0, duration_s, header, "h264"), fps) == wanted


# Reasons


def refusal(path: Path, image_fps: float | None = None) -> str:
    with pytest.raises(BadVideo) as caught:
        probe(path, image_fps)
    return caught.value.message


def test_files_that_are_no_videos(tmp_path):
    assert refusal(tmp_path / "gone.mp4") == f"gone.mp4: does not exist in {tmp_path}"
    (tmp_path / "empty.mp4").touch()
    assert refusal(tmp_path / "empty.mp4") == "empty.mp4: is empty (0 bytes)"
    (tmp_path / "text.mp4").write_text("these are words, not pictures " * 99)
    assert (
        refusal(tmp_path / "text.mp4")
        == "text.mp4: cannot be opened as media: Invalid data found when processing input"
    )
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 346345912\n"
    for name in ("lfs.mp4", "images/1.png", "images/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(pointer)
    told = "is a Git LFS pointer in place of the file; run: git lfs pull"
    assert refusal(tmp_path / "lfs.mp4") == f"lfs.mp4: {told}"
    assert refusal(tmp_path / "images", 10) == f"images/1.png: {told}"
    sound = tone(tmp_path / "tone.wav", "pcm_s16le")
    assert refusal(sound) == "tone.wav: no video stream (audio only)"


def test_a_codec_without_decoder(tmp_path):
    path = encode(tmp_path / "strange.mp4", GREYS)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    assert refusal(path) == "strange.mp4: no decoder for its video codec"


def test_names_that_libav_would_misread(tmp_path):
    for name in ("12:30.mp4", "100%03d.mp4"):
        encode(tmp_path / "plain.mp4", GREYS).rename(tmp_path / name)
        assert probe(tmp_path / name).frames_from_header == 24


# Image folders


def images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for level, name in enumerate(names):
        encode(folder / name, [grey(level)], codec="png", pix_fmt="rgb24")
    return folder


def test_image_folder_in_natural_order(tmp_path):
    names = ["f10.png", "f2.png", "f1.PNG", "f02.png"]
    folder = images(tmp_path, names)
    (folder / ".hidden.png").touch()
    (folder / "notes.md").touch()
    found, time_s, end_s = list_images(folder, 4)
    assert [image.name for image in found] == ["f1.PNG", "f02.png", "f2.png", "f10.png"]
    np.testing.assert_array_equal(time_s, [0, 0.25, 0.5, 0.75])
    assert end_s == 1.0
    facts = probe(folder, 4)
    assert facts == Probe(64, 48, 4.0, 0.0, 1.0, 4, "png")
    assert expected_frames(facts, 2) == 2


def test_image_folder_with_timestamps(tmp_path):
    folder = images(tmp_path, ["a.png", "b.png", "c.png"])
    (folder / "timestamps.txt").write_text("5.0\n5.5\n7.0\n")
    facts = probe(folder, image_fps=30)
    assert (facts.start_s, facts.duration_s, facts.fps) == (5.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0\n1\n", "holds 2 times for 3 images"),
        ("0\n2\n1\n", "times must be finite and strictly increasing"),
        ("0\n1\nnan\n", "times must be finite and strictly increasing"),
        ("0\n1\nlate\n", "wanted one number of seconds per line"),
    ],
)
def test_wrong_timestamps(tmp_path, text, reason):
    folder = images(tmp_path, ["a.png", "b.png", "c.png"])
    (folder / "timestamps.txt").write_text(text)
    assert f"{folder.name}/timestamps.txt: {reason}" in refusal(folder)


def test_image_folders_that_cannot_be_read(tmp_path):
    assert refusal(tmp_path, 10) == f"{tmp_path.name}: holds no images"
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert refusal(tmp_path) == f"{tmp_path.name}: its images have no times"
    assert "image_fps must be above 0" in refusal(tmp_path, 0)
    assert refusal(tmp_path, 10).startswith(f"{tmp_path.name}/a.png: cannot be opened as media")
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("gone.png")
    assert refusal(tmp_path, 10) == f"{tmp_path.name}/a.png: is a link to nothing in {tmp_path}"


def test_a_folder_with_the_name_of_an_image_is_none(tmp_path):
    folder = images(tmp_path, ["a.png", "c.png"])
    (folder / "b.png").mkdir()
    (folder / "d.png").symlink_to(
        "gone.png"
    )  # stays in its place: what is missing must not move the others in time
    assert [image.name for image in list_images(folder, 4)[0]] == ["a.png", "c.png", "d.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    folder = images(tmp_path / "frames", ["a.png"])
    (folder / "a.png").chmod(0)
    assert refusal(folder, 10) == "frames/a.png: cannot be read: Permission denied"
    folder.chmod(0)
    assert refusal(folder, 10) == "frames: cannot be read: Permission denied"
    folder.chmod(0o700)


# The module itself


def test_decoder_identity_names_major_versions():
    assert re.fullmatch(r"pyav \d+ libavcodec \d+ libswscale \d+", decoder_identity())


def test_suffixes():
    assert all(re.fullmatch(r"\.[a-z0-9]+", suffix) for suffix in MEDIA_SUFFIXES | IMAGE_SUFFIXES)
    assert not MEDIA_SUFFIXES & IMAGE_SUFFIXES
    assert {".mp4", ".gif", ".mp3", ".m4a"} <= MEDIA_SUFFIXES


def test_probing_needs_no_torch():
    code = "import sys, pipeline.video.probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real clips


def test_every_real_clip_opens_or_is_refused_with_a_reason():
    clips = [path for path in SHARED_CLIPS.glob("**/*.*") if path.suffix != ".md"]
    if not clips:
        pytest.skip("real clips are not here")
    refused = {}
    for path in clips:
        assert path.suffix in MEDIA_SUFFIXES
        try:
            container, stream = open_video(path)
        except BadVideo as error:
            refused[path.name] = error.message.partition(": ")[2]
        else:
            with container:
                assert stream.type == "video"
    assert refused == {
        "corner_audio_only.mp3": "no video stream (audio only)",
        "corner_mp3_cover_as_video.mp3": "no video stream, its only picture is cover art",
    }
