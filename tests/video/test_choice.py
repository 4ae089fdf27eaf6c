"""Which stream of a file is its video: covers and renditions in every place and with every flag."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from support.media import decode, encode, grey
from support.paths import SHARED

from pipeline.errors import BadVideo
from pipeline.video.decode import decode_at
from pipeline.video.probe import open_video, probe

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")

PUBLIC = SHARED / "found" / "inputs_public"


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-y", "-v", "error", "-nostdin", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> dict[str, Path]:
    """Files of one track each."""
    folder = tmp_path_factory.mktemp("tracks")

    def track(name: str, count: int, height: int, width: int, **options) -> Path:
        levels = [grey(40 + 10 * k, height, width) for k in range(count)]
        return encode(folder / name, levels, **options)

    return {
        "cover": track("cover.mkv", 1, 96, 128, codec="mjpeg", pix_fmt="yuvj420p"),
        "still": track("still.mkv", 1, 96, 128, codec="mpeg2video", rate=25),
        "video": track("video.mkv", 8, 48, 64, codec="mpeg2video", rate=25),
        "large": track("large.mkv", 8, 72, 96, codec="mpeg2video", rate=25),
        "long": track("long.mkv", 16, 48, 64, codec="mpeg2video", rate=25),
    }


def joined(path: Path, tracks: list[Path], dispositions: list[str], *options: str) -> Path:
    inputs = itertools.chain.from_iterable(("-i", track) for track in tracks)
    maps = itertools.chain.from_iterable(("-map", str(k)) for k in range(len(tracks)))
    flags = itertools.chain.from_iterable(
        (f"-disposition:v:{k}", flag) for k, flag in enumerate(dispositions)
    )
    ffmpeg(*inputs, *maps, "-c", "copy", *flags, *options, path)
    return path


def taken(path: Path) -> int:
    """The index of the stream that is taken, by whoever reads: probe, the whole decode and a seek
    must agree."""
    container, stream = open_video(path)
    with container:
        index = stream.index
        size = stream.codec_context.height, stream.codec_context.width
    facts = probe(path)
    assert (facts.height, facts.width) == size
    blocks = list(decode(path, None))
    assert {block.pixels_FHWC.shape[1:3] for block in blocks} == {size}
    (block,) = decode_at(path, blocks[-1].time_s[-1:])
    assert block.pixels_FHWC.shape[1:3] == size
    return index


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "nut", "avi"])
def test_one_picture_beside_many_is_a_cover_whatever_its_flags(tmp_path, tracks, suffix):
    for place in (0, 1):
        order = [tracks["video"]]
        order.insert(place, tracks["still" if suffix == "ts" else "cover"])
        for flags in (["default", "0"], ["0", "default"]):
            path = joined(tmp_path / f"{place}{flags[0]}.{suffix}", order, flags)
            assert taken(path) == 1 - place, flags
            assert sum(len(block) for block in decode(path, None)) == 8


@needs_ffmpeg
def test_covers_of_fragmented_files_which_count_nothing_in_advance(tmp_path, tracks):
    path = joined(
        tmp_path / "live.mp4",
        [tracks["cover"], tracks["video"]],
        ["default", "0"],
        *("-movflags", "empty_moov+frag_keyframe"),
    )
    assert taken(path) == 1


@needs_ffmpeg
@pytest.mark.parametrize("flag", ["attached_pic", "timed_thumbnails+attached_pic"])
def test_pictures_that_are_flagged_as_covers(tmp_path, tracks, flag):
    path = joined(tmp_path / "a.mp4", [tracks["video"], tracks["cover"]], ["0", flag])
    assert taken(path) == 0


@needs_ffmpeg
def test_cover_in_a_matroska_attachment(tmp_path, tracks):
    ffmpeg("-i", tracks["cover"], "-frames:v", "1", tmp_path / "cover.jpg")
    ffmpeg(
        *("-i", tracks["video"], "-c", "copy", "-attach", tmp_path / "cover.jpg"),
        *("-metadata:s:t", "mimetype=image/jpeg", tmp_path / "a.mkv"),
    )
    assert taken(tmp_path / "a.mkv") == 0


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_larger_of_two_renditions(tmp_path, tracks, suffix):
    for place, flags in itertools.product((0, 1), [("default", "0"), ("0", "default")]):
        order = [tracks["long"]]
        order.insert(place, tracks["large"])
        path = joined(tmp_path / f"{place}{flags[0]}.{suffix}", order, list(flags))
        assert taken(path) == place, "the larger one, though the other is longer"


@needs_ffmpeg
def test_of_two_programmes_the_larger(tmp_path, tracks):
    path = joined(
        tmp_path / "a.ts",
        [tracks["video"], tracks["large"]],
        [],
        *("-program", "title=A:st=0", "-program", "title=B:st=1"),
    )
    assert taken(path) == 1


@needs_ffmpeg
def test_of_one_size_the_longer_then_the_default_one(tmp_path, tracks):
    path = joined(tmp_path / "a.mp4", [tracks["video"], tracks["long"]], ["default", "0"])
    assert taken(path) == 1
    path = joined(tmp_path / "b.mp4", [tracks["video"], tracks["video"]], ["0", "default"])
    assert taken(path) == 1
    path = joined(tmp_path / "c.mp4", [tracks["video"], tracks["video"]], ["0", "0"])
    assert taken(path) == 0


@needs_ffmpeg
def test_a_single_picture_that_is_the_only_track_is_a_video(tmp_path, tracks):
    path = joined(tmp_path / "a.mp4", [tracks["cover"]], ["default"])
    assert taken(path) == 0
    path = joined(tmp_path / "b.mp4", [tracks["cover"]], ["attached_pic"])
    with pytest.raises(BadVideo, match="its only picture is cover art"):
        open_video(path)


@needs_ffmpeg
def test_a_track_that_cannot_be_decoded_is_left_out(tmp_path, tracks):
    path = joined(tmp_path / "a.mov", [tracks["large"], tracks["video"]], ["default", "0"])
    data = path.read_bytes()
    assert data.count(b"m2v1") == 2
    path.write_bytes(data.replace(b"m2v1", b"zzz1", 1))
    assert taken(path) == 1


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the files of public reports are not here")
def test_a_cover_that_stands_before_a_video_of_4k():
    blocks = list(decode(PUBLIC / "cover_first_4k.mp4", None))
    assert [block.pixels_FHWC.shape for block in blocks] == [(1, 2160, 3840, 3)] * 5
