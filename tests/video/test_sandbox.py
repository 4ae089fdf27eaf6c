"""The decoding process: the same blocks as in this process, and every way to hang or die listed,
survived and cleaned up."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.broken_media import hanging_video, images, memory_bomb, noise
from support.media import encode, grey

from pipeline.errors import BadVideo
from pipeline.video.decode import FrameBlock, decode_rates
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.isolated import decode_process
from pipeline.video.isolated.sandbox import DecodeLimits, Decoder

LEVELS = [20 + 10 * k for k in range(20)]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as shared:
        yield shared


def outcome(blocks: Iterator[FrameBlock]) -> tuple[list[tuple], str]:
    """Everything that decoding gives, in a form that compares, and why it ended."""
    found = []
    try:
        for block in blocks:
            frames = block.frames
            found.append(
                (
                    frames.pixels_FHWC.shape,
                    frames.pixels_FHWC.tobytes(),
                    frames.time_s.tolist(),
                    frames.pixel_aspect,
                    block.kept_RF.tolist(),
                )
            )
    except BadVideo as error:
        return found, error.message
    return found, ""


def vfr(folder: Path) -> Path:
    times_s = [0.5 + 0.1 * k + (0.35 if k > 7 else 0) for k in range(20)]
    return encode(folder / "vfr.mkv", noise(20), codec="mpeg4", times_s=times_s)


def torn(folder: Path) -> Path:
    path = encode(folder / "torn.mkv", noise(60), codec="mpeg4", options={"g": "1"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def garbage(folder: Path) -> Path:
    path = encode(folder / "garbage.mp4", noise(30), options={"g": "1", "bf": "0"})
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    return path


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "h264": lambda folder: encode(folder / "h264.mp4", noise(21), options={"bf": "2"}),
    "turned": lambda folder: encode(folder / "turned.mp4", noise(9), rotation=90, mirrored=True),
    "vp9": lambda folder: encode(
        folder / "vp9.webm", noise(9), codec="libvpx-vp9", options={"deadline": "realtime"}
    ),
    "avi": lambda folder: encode(folder / "mpeg4.avi", noise(20), codec="mpeg4"),
    "vfr": vfr,
    "images": lambda folder: images(folder / "images", noise(5)),
    "size change": lambda folder: images(
        folder / "sizes", [*noise(3), *noise(2, 64, 48), *noise(4)]
    ),
    "torn": torn,
    "garbage": garbage,
    "empty": empty,
    "missing": lambda folder: folder / "missing.mp4",
}


@pytest.mark.parametrize("source", SOURCES)
def test_blocks_failures_and_counts_are_those_of_this_process(decoder, tmp_path, source):
    path = SOURCES[source](tmp_path)
    image_fps = 5.0 if path.is_dir() else None
    for rates in ([None], [3.0, 7.5, None], [2.0, 1.0]):
        here, there = FrameCounts(), FrameCounts()
        assert outcome(decoder.decode(path, rates, image_fps, there)) == outcome(
            decode_rates(path, rates, image_fps, here)
        )
        assert there == here


def test_several_rates_keep_what_each_alone_keeps(tmp_path):
    path = vfr(tmp_path)
    rates = [None, 3.0, 7.5, 1.0]
    blocks = list(decode_rates(path, rates, block_frames=3))
    kept_RF = np.concatenate([block.kept_RF for block in blocks], axis=1)
    pixels = np.concatenate([block.frames.pixels_FHWC for block in blocks])
    times_s = np.concatenate([block.frames.time_s for block in blocks])
    assert kept_RF.dtype == bool
    assert kept_RF.any(axis=0).all()
    for rate, kept_F in zip(rates, kept_RF, strict=True):
        alone = [block.frames for block in decode_rates(path, [rate])]
        np.testing.assert_array_equal(
            times_s[kept_F], np.concatenate([frames.time_s for frames in alone])
        )
        np.testing.assert_array_equal(
            pixels[kept_F], np.concatenate([frames.pixels_FHWC for frames in alone])
        )
    assert (
        sum(len(block.frames) for block in decode_rates(path, [1.0, 2.0])) < 20
    )  # others are not even converted


def test_blocks_are_bounded_in_bytes_and_can_be_skipped_to(tmp_path):
    path = encode(tmp_path / "a.mp4", noise(11), options={"bf": "0"})
    frame_bytes = grey(0).nbytes
    lengths = [
        len(block.frames) for block in decode_rates(path, [None], block_bytes=3 * frame_bytes)
    ]
    assert lengths == [3, 3, 3, 2]
    assert [len(block.frames) for block in decode_rates(path, [None], block_bytes=1)] == [1] * 11
    assert outcome(decode_rates(path, [None], skip=8)) == (
        outcome(decode_rates(path, [None]))[0][1:],
        "",
    )


def test_the_count_is_of_the_content_whatever_the_header_says(tmp_path):
    counted = FrameCounts()
    list(decode_rates(encode(tmp_path / "a.mp4", noise(30)), [1.0], counted=counted))
    assert counted == FrameCounts(decoded=30, end_s=3.0, first_s=0.0, header=30, header_s=3.0)
    path, counted = garbage(tmp_path), FrameCounts()
    list(decode_rates(path, [1.0], counted=counted))
    assert 0 < counted.decoded < counted.header == 30
    assert counted.decoded + len(counted.lost) == 30


# Hangs


def test_a_scan_without_end_is_a_listed_hang(tmp_path):
    """A damaged Matroska file, a terabyte of zeros after its last good frame: libav looks for the
    next one, byte by byte."""
    path = hanging_video(tmp_path / "hang.mkv")
    counted = FrameCounts()
    with Decoder(DecodeLimits(stall_s=1)) as decoder:
        found, reason = outcome(decoder.decode(path, [None], None, counted))
        assert (
            reason == "hang.mkv: decoder made no progress for 1 s, stopped after "
            f"{counted.decoded} frames at 1.8 s"
        )
        # Of the last two, one waits for the next packet, which may take it along in its damage, and
        # one for the time of the next frame.
        assert counted.decoded == 18
        assert len(found) == 2  # of three blocks; the third was not full
        (tmp_path / "good.mp4").symlink_to(encode(tmp_path / "h264.mp4", noise(3)))
        assert len(outcome(decoder.decode(tmp_path / "good.mp4", [None]))[0]) == 1


def test_a_process_that_stands_still_is_a_listed_hang(tmp_path):
    path = encode(tmp_path / "a.mp4", noise(200), options={"preset": "ultrafast"})
    with Decoder(DecodeLimits(stall_s=1)) as decoder:
        blocks = decoder.decode(path, [None])
        next(blocks)
        os.kill(decoder.pid, signal.SIGSTOP)
        _, reason = outcome(blocks)
        assert "a.mp4: decoder made no progress for 1 s, stopped after " in reason
        assert outcome(decoder.decode(path, [1.0])) == outcome(decode_rates(path, [1.0]))


def test_a_video_that_takes_too_long_is_given_up(tmp_path):
    folder = images(tmp_path / "many", noise(1, 480, 640))
    for number in range(1, 5000):
        (folder / f"{number}.png").symlink_to("0.png")
    with (
        Decoder(DecodeLimits(video_s=0.5)) as decoder,
        pytest.raises(BadVideo, match=r"^many: decoding took more than 0.5 s"),
    ):
        list(decoder.decode(folder, [0.001], 5.0))


def test_the_reader_may_take_all_the_time_it_wants(tmp_path):
    path = encode(tmp_path / "a.mp4", noise(100))
    with Decoder(DecodeLimits(stall_s=0.3, video_s=5)) as decoder:
        blocks = decoder.decode(path, [None])
        next(blocks)
        time.sleep(0.8)
        assert sum(len(block.frames) for block in blocks) == 92


# Memory


def test_a_memory_bomb_is_listed(tmp_path):
    """A picture whose header promises 16000 x 16000 pixels: 768 MB."""
    folder = memory_bomb(tmp_path / "bomb")
    with Decoder(DecodeLimits(memory_mb=300)) as decoder:
        _, reason = outcome(decoder.decode(folder, [None], 5.0))
        assert reason == "bomb: decoding needs more than 300 MB, stopped after 2 frames at 0.4 s"
        (folder / "2.png").unlink()
        assert outcome(decoder.decode(folder, [None], 5.0)) == outcome(
            decode_rates(folder, [None], 5.0)
        )


def test_frames_larger_than_a_block_go_one_by_one(decoder, tmp_path):
    """A frame of 36 MB needs a larger buffer than others; the next video is read as ever."""
    folder = tmp_path / "large"
    folder.mkdir()
    for level in (50, 90):
        encode(folder / f"{level}.bmp", [grey(level, 3000, 4000)], codec="bmp", pix_fmt="bgr24")
    found, reason = outcome(decoder.decode(folder, [None], 5.0))
    assert [shape for shape, *_ in found] == [(1, 3000, 4000, 3)] * 2
    assert [pixels[:3] + pixels[-3:] for _, pixels, *_ in found] == [
        bytes([50] * 6),
        bytes([90] * 6),
    ]
    assert reason == ""
    path = encode(tmp_path / "a.mp4", noise(9))
    assert outcome(decoder.decode(path, [None])) == outcome(decode_rates(path, [None]))


def test_flow_control_bounds_memory(tmp_path):
    """The process waits for its reader: it decodes no further, and uses the buffers again that the
    reader has let go of."""
    path = encode(tmp_path / "a.mkv", (grey(k % 200, 96, 128) for k in range(800)), codec="mpeg4")
    counted = FrameCounts()
    with Decoder() as decoder:
        blocks = decoder.decode(path, [None], None, counted)
        next(blocks)
        ahead = (decode_process.BLOCKS_AHEAD + 3) * 8
        before = -1
        while before != (before := decode_process.read_count(decoder._process.count).decoded):
            time.sleep(0.3)
        assert before <= ahead
        assert sum(len(block.frames) for block in blocks) == 792
        assert len(decoder._process.buffers) <= decode_process.BLOCKS_AHEAD + 4
    assert counted.decoded == 800


def test_pixels_stay_as_long_as_any_view_of_them(tmp_path):
    """A buffer is filled again only when nobody looks at it, nor after the process has ended."""
    path = encode(tmp_path / "a.mkv", noise(160), codec="mpeg4")
    with Decoder() as decoder:
        kept = [block.frames.pixels_FHWC[3:5, ::2] for block in decoder.decode(path, [None])]
        outcome(decoder.decode(path, [None]))
    for view, block in zip(kept, decode_rates(path, [None]), strict=True):
        np.testing.assert_array_equal(view, block.frames.pixels_FHWC[3:5, ::2])


# Deaths


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> tuple[Path, tuple[list[tuple], str]]:
    """A video of 30 blocks, and what decoding it gives."""
    path = encode(
        tmp_path_factory.mktemp("long") / "long.mp4",
        noise(240),
        options={"preset": "ultrafast", "bf": "2"},
    )
    return path, outcome(decode_rates(path, [None, 5.0]))


def killing(
    decoder: Decoder, path: Path, kill: signal.Signals, blocks_between: list[int]
) -> Iterator[FrameBlock]:
    """Decodes, and sends a signal to the process after so many more blocks each time."""
    until = blocks_between.copy()
    for block in decoder.decode(path, [None, 5.0]):
        if until:
            until[0] -= 1
            if until[0] == 0:
                os.kill(decoder.pid, kill)
                until.pop(0)
        yield block


@pytest.mark.parametrize(
    ("kill", "after", "reason"),
    [
        (signal.SIGKILL, [9], ""),
        (signal.SIGKILL, [1, 12], ""),
        (
            signal.SIGKILL,
            [3, 3, 8],
            "long.mp4: decoder died 3 times, killed by SIGKILL, stopped after ",
        ),
        (signal.SIGSEGV, [8], ""),
        (
            signal.SIGSEGV,
            [3, 9],
            "long.mp4: decoder died 2 times, killed by SIGSEGV, stopped after ",
        ),
        (
            signal.SIGABRT,
            [3, 9],
            "long.mp4: decoder died 2 times, killed by SIGABRT, stopped after ",
        ),
    ],
)
def test_a_process_that_dies_is_replaced_and_the_result_is_the_same(long, kill, after, reason):
    path, (wanted, _) = long
    with Decoder() as decoder:
        found, why = outcome(killing(decoder, path, kill, after))
        assert why.startswith(reason) and bool(why) == bool(reason)
        assert found == (wanted[: len(found)] if reason else wanted)
        assert len(found) >= sum(after)
        assert outcome(decoder.decode(path, [None, 5.0])) == long[1]


def test_a_process_that_died_between_videos_is_replaced(long):
    path, wanted = long
    with Decoder() as decoder:
        assert outcome(decoder.decode(path, [None, 5.0])) == wanted
        first = decoder.pid
        os.kill(first, signal.SIGKILL)
        assert outcome(decoder.decode(path, [None, 5.0])) == wanted
        assert decoder.pid != first


def test_the_process_starts_without_what_it_does_not_need():
    code = (
        "import sys, pipeline.video.isolated.decode_process; print(sorted({'torch', 'pydantic', "
        "'zarr', 'pandas'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "[]\n"


def test_a_decoder_that_cannot_start_is_no_fault_of_the_video(long, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Decoder() as decoder,
        pytest.raises(OSError, match="the decoding process did not start: with exit code 1"),
    ):
        list(decoder.decode(long[0], [None]))


def test_an_unreadable_disk_is_no_fault_of_the_video(decoder, tmp_path):
    folder = images(tmp_path / "images", noise(2))
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to("/proc/self/mem")  # a regular file that answers EIO
    good = images(tmp_path / "good", noise(3))
    wanted = outcome(decode_rates(good, [None], 5.0))
    assert outcome(decoder.decode(good, [None], 5.0)) == wanted
    opened = len(list(Path(f"/proc/{decoder.pid}/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            outcome(decoder.decode(folder, [None], 5.0))
    assert outcome(decoder.decode(good, [None], 5.0)) == wanted
    assert len(list(Path(f"/proc/{decoder.pid}/fd").iterdir())) <= opened


FAILING_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
/* Reading a file whose name ends in "bad.video" fails beyond its first 40000 bytes. */
ssize_t read(int fd, void *data, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = (ssize_t (*)(int, void *, size_t)) dlsym(RTLD_NEXT, "read");
    char link[64], name[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length > 9 && !strcmp(name + length - 9, "bad.video") && lseek(fd, 0, SEEK_CUR) > 40000) {
        errno = EIO;
        return -1;
    }
    return real(fd, data, size);
}
"""


@pytest.mark.parametrize("container", ["mkv", "mp4", "avi", "ts"])
def test_a_disk_that_fails_in_the_middle_of_a_video_is_no_truncation(
    tmp_path, monkeypatch, container
):
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    (tmp_path / "disk.c").write_text(FAILING_DISK)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", tmp_path / "disk.so", tmp_path / "disk.c", "-ldl"],
        check=True,
    )
    codec, front = (
        ("mpeg2video" if container == "ts" else "libx264"),
        {"movflags": "faststart"} if container == "mp4" else {},
    )
    whole = encode(
        tmp_path / f"whole.{container}",
        noise(90),
        codec=codec,
        rate=25,
        options={"g": "1"},
        container_options=front,
    )
    path = whole.rename(tmp_path / "bad.video")
    assert outcome(decode_rates(path, [None]))[1] == ""
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "disk.so"))
    with Decoder() as decoder, pytest.raises(OSError, match="Input/output error"):
        outcome(decoder.decode(path, [None]))


def test_too_many_open_files_are_no_fault_of_the_video(long):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            outcome(decode_rates(long[0], [None]))
        with Decoder() as decoder, pytest.raises(OSError, match="Too many open files"):
            outcome(decoder.decode(long[0], [None]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


PARENT = """
import os, sys
from pathlib import Path
from pipeline.video.isolated.sandbox import Decoder
decoder = Decoder()
blocks = decoder.decode(Path(sys.argv[1]), [None])
next(blocks)
print(decoder.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_process_ends_with_its_parent(long, stopped):
    """Also one that stands still and would notice nothing by itself."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(long[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None and parent.stdin is not None
    with parent:
        child = int(parent.stdout.readline())
        if stopped:
            os.kill(child, signal.SIGSTOP)
        parent.kill()
    while running(child):
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_close_from_another_thread_ends_a_wait(long):
    decoder = Decoder()
    blocks = decoder.decode(long[0], [None])
    next(blocks)
    os.kill(decoder.pid, signal.SIGSTOP)
    threading.Timer(0.3, decoder.close).start()
    with pytest.raises(OSError, match="cancelled"):
        list(blocks)
    assert not running(decoder.pid)
    with pytest.raises(OSError, match="closed"):
        list(decoder.decode(long[0], [None]))


def test_a_reader_that_stops_early_leaves_the_decoder_usable(decoder, long):
    path, wanted = long
    blocks = decoder.decode(path, [None, 5.0])
    next(blocks)
    blocks.close()
    assert outcome(decoder.decode(path, [None, 5.0])) == wanted


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_videos_through_one_process_leave_no_descriptor(tmp_path):
    paths = [encode(tmp_path / f"{k}.mkv", [grey(40 + 5 * k)] * 9, codec="mpeg4") for k in range(4)]
    before = descriptors()
    with Decoder() as decoder:
        wanted = [outcome(decode_rates(path, [None])) for path in paths]
        assert [outcome(decoder.decode(path, [None])) for path in paths] == wanted
        pid, busy = decoder.pid, descriptors()
        for _ in range(49):
            assert [outcome(decoder.decode(path, [None])) for path in paths] == wanted
        assert decoder.pid == pid
        assert descriptors() <= busy + decode_process.BLOCKS_AHEAD
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 32
        os.kill(pid, signal.SIGKILL)
        assert outcome(decoder.decode(paths[0], [None])) == wanted[0]
    assert descriptors() == before
