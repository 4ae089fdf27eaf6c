"""Live sources: standard input, addresses, what stalls, breaks off and comes back. Every source is a real one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from support.commands import Result, assert_refused, call
from support.rtsp_server import RtspCamera, rtp_packets

from pipeline.config import plugins
from pipeline.config.recipe import Recipe
from pipeline.errors import BadInput, BadVideo, count_text
from pipeline.models.encoders.address import paint
from pipeline.train.library.live import LiveAnswers
from pipeline.train.loop import train
from pipeline.train.stream import Stream
from pipeline.video.live import frames as live_frames
from pipeline.video.live.frames import LiveFrames
from pipeline.video.live.source import RawFrames, address, raw_frames, standard_input

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not there")


@pytest.fixture(scope="module")
def run(material, tmp_path_factory):
    table = {
        "name": "test",
        "task": {"name": "classify", "readout_width": 16, "heads": 2, "forms": ["streaming"]},
        "temporal": {"name": "gru", "layers": 1},
        "windows": {"frames": 4, "fps": 10},
        "model": {"width": 32},
        "training": {"steps": 1, "batch_size": 4},
    }
    recipe = plugins.validate(Recipe, table, "test")
    return train(recipe, material.cache, tmp_path_factory.mktemp("run"))


def frames_of(path: Path) -> list[tuple[np.ndarray, float]]:
    with av.open(path) as file:
        return [
            (frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in file.decode(video=0)
        ]


@contextlib.contextmanager
def stdin_of(descriptor: int) -> Iterator[None]:
    """What a descriptor gives, as the standard input of this process."""
    kept = os.dup(0)
    os.dup2(descriptor, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def piped(path: Path, *arguments: object) -> Result:
    """A command, with a file on its standard input."""
    with path.open("rb") as file, stdin_of(file.fileno()):
        return call(*arguments)


def ffmpeg(*arguments: object) -> subprocess.Popen[bytes]:
    command = ["ffmpeg", "-v", "error", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def closed(writer: subprocess.Popen[bytes]) -> int:
    """Its exit status, once it has ended."""
    assert writer.stdout is not None
    with writer.stdout:
        return writer.wait()


def lines_of(result: Result) -> list[dict[str, object]]:
    assert result.code == 0, result
    return [json.loads(line) for line in result.out.splitlines()]


def raw_file(path: Path, frames: list[np.ndarray]) -> Path:
    path.write_bytes(b"".join(frame.tobytes() for frame in frames))
    return path


def test_raw_frames_and_containers_on_standard_input_are_answered_as_step_does(
    material, run, tmp_path
):
    video = material.root / "a/v1.mp4"
    stream, frames = Stream(run), frames_of(video)
    expected = [stream.step(*frame).answer for frame in frames]
    raw = raw_file(tmp_path / "frames.rgb", [pixels for pixels, _ in frames])
    for path, source in [
        (raw, standard_input(RawFrames(64, 64, 10))),
        (video, standard_input(None)),
    ]:
        with path.open("rb") as file, stdin_of(file.fileno()):
            came = LiveFrames(source, every_frame=True)
            seen = list(LiveAnswers(Stream(run), came))
        assert (came.came, came.dropped) == (len(frames), 0)
        assert [one.time_s for one in seen] == pytest.approx([number / 10 for number in range(8)])
        for one, answer in zip(seen, expected, strict=True):
            np.testing.assert_array_equal(one.answer, answer)


def test_the_command_says_what_took_how_long_and_how_raw_bytes_end(material, run, tmp_path):
    frames = [pixels for pixels, _ in frames_of(material.root / "a/v1.mp4")]
    raw = raw_file(tmp_path / "frames.rgb", frames)
    options = ("stream", run.path, "-", "--raw-size", "64x64", "--raw-fps", 10, "--every-frame")
    result = piped(raw, *options)
    assert [line["time_s"] for line in lines_of(result)] == [number / 10 for number in range(8)]
    assert "8 answers, " in result.err and "medians: decode 0.0 ms, encode " in result.err
    raw.write_bytes(raw.read_bytes()[:-5])
    cut = piped(raw, *options)
    assert cut.code == 2 and len(cut.out.splitlines()) == 7
    assert cut.err.splitlines()[-1] == (
        "error: standard input: ends in frame 7, after 12283 of its 12288 bytes: not a whole number "
        "of frames of 64x64"
    )
    raw.write_bytes(b"")
    assert_refused(piped(raw, *options), "standard input: ends before its first frame")
    assert_refused(piped(raw, "stream", run.path, "-"), "standard input: cannot be opened: ")


def test_a_slow_step_answers_the_newest_frame_and_times_stay_true(run, tmp_path):
    """Ten answers a second are wanted of ten frames a second, of which most come too soon."""
    frames = [np.full((64, 64, 3), 3 * number, np.uint8) for number in range(20)]
    raw = raw_file(tmp_path / "frames.rgb", frames)
    with raw.open("rb") as file, stdin_of(file.fileno()):
        came = LiveFrames(standard_input(RawFrames(64, 64, 10)))
        answers = LiveAnswers(Stream(run), came)
        seen = []
        for one in answers:
            seen.append(one)
            if len(seen) == 2:  # somebody takes his time
                threading.Event().wait(0.75)
    assert came.came == 20 and came.dropped > 0 and answers.left_out > 0
    assert len(seen) == came.came - came.dropped
    for one in seen:  # a frame keeps its own time, whatever was dropped before it
        assert one.pixels_HWC[0, 0, 0] == 3 * round(one.time_s * 10)
    assert answers.summary()[0] == (
        f"{came.dropped} of 20 frames dropped, which came while a step was computing; "
        f"{count_text(answers.left_out, 'instant')} without an answer"
    )


def test_a_file_is_fetched_from_an_address(material, run):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

    folder = str(material.root / "a")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        lines = lines_of(call("stream", run.path, f"{url}/v1.mp4", "--every-frame"))
        gone = call("stream", run.path, f"http://me:secret@{url[7:]}/no.mp4?key=secret")
    finally:
        server.shutdown()
        server.server_close()
    assert lines == lines_of(call("stream", run.path, material.root / "a/v1.mp4"))
    assert_refused(gone, f"error: {url}/no.mp4: cannot be opened: Server returned 404 Not Found")
    refused = call("stream", run.path, url)
    assert_refused(refused, f"error: {url}: cannot be opened: Connection refused")


@needs_ffmpeg
def test_ffmpeg_pipes_a_transport_stream_or_listens(run):
    colours = ("-re", "-f", "lavfi", "-i", "testsrc=size=64x64:rate=25:duration=0.8")
    transport = ("-c:v", "mpeg2video", "-f", "mpegts")
    writer = ffmpeg(*colours, *transport, "-")
    assert writer.stdout is not None
    with stdin_of(writer.stdout.fileno()):
        piped_lines = lines_of(call("stream", run.path, "-", "--every-frame"))
    assert closed(writer) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    # The command listens and ffmpeg connects: nobody has to wait for the other.
    answers: list[Result] = []
    listening = threading.Thread(
        target=lambda: answers.append(call("stream", run.path, f"{url}?listen", "--every-frame"))
    )
    times = [line["time_s"] for line in piped_lines]
    assert times == pytest.approx([0, 0.12, 0.2, 0.32, 0.4, 0.52, 0.6, 0.72], abs=1e-4)
    listening.start()
    while True:
        if closed(ffmpeg(*colours[1:], *transport, url)) == 0:
            break
    listening.join()
    assert lines_of(answers[0]) == piped_lines


def test_a_camera_on_the_network_is_followed_from_its_first_frame(run):
    """Nothing is lost to the look at what it sends: later frames rest on the first one."""
    frames = [paint(3, number, 64) for number in range(20)]
    camera = RtspCamera(rtp_packets(frames, 10))
    try:
        came = list(LiveFrames(address(camera.url), every_frame=True))
        lines = lines_of(call("stream", run.path, camera.url, "--every-frame"))
    finally:
        camera.close()
    assert [frame.time_s for frame in came] == pytest.approx([n / 10 for n in range(20)], abs=1e-4)
    for frame, pixels_HWC in zip(came, frames, strict=True):
        assert np.abs(frame.pixels_HWC.astype(int) - pixels_HWC).mean() < 8
    assert camera.asked[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    assert [line["time_s"] for line in lines] == pytest.approx([frame.time_s for frame in came])


def test_a_socket_that_says_nothing_has_stalled(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        result = call("stream", run.path, url, "--timeout-s", 0.5)
    assert_refused(result, f"error: {url}: no frame for 0.5 s; next: wait longer: --timeout-s")


def test_a_lost_address_is_connected_again_and_its_clock_goes_on(material, run, monkeypatch):
    """The first connection gives a whole video and then stalls, the second one gives it again, and ends."""
    monkeypatch.setattr(live_frames, "BACK_OFF_S", (0.1,))
    said: list[str] = []
    path = material.root / "a/v1.mp4"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            first, _ = server.accept()
            first.sendall(y4m(path))
            again, _ = server.accept()
            with first, again:
                again.sendall(y4m(path))

        threading.Thread(target=serve, daemon=True).start()
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        frames = LiveFrames(address(url), every_frame=True, timeout_s=2, say=said.append)
        time_s = [frame.time_s for frame in frames]
    assert said == [f"{url}: no frame for 2 s; connecting again in 0.1 s"]
    assert time_s[:7] == pytest.approx([number / 10 for number in range(7)])
    assert time_s[-1] - time_s[-8] == pytest.approx(0.7)
    assert time_s[-8] - time_s[-9] > 2  # as long as nothing came
    assert len(time_s) in (15, 16)  # the last frame before a silence may still be in the demuxer


def y4m(path: Path) -> bytes:
    """A video as bytes of which every frame stands alone."""
    parts = [b"YUV4MPEG2 W64 H64 F10:1 Ip A1:1 C420jpeg\n"]
    with av.open(path) as file:
        for frame in file.decode(video=0):
            pixels = frame.reformat(format="yuv420p").to_ndarray()
            parts.append(b"FRAME\n" + pixels.tobytes())
    return b"".join(parts)


def test_bad_input_is_named(run, tmp_path):
    for arguments, message in [
        ((), "name one source to follow"),
        (("-", "--camera", "0"), "name one source to follow"),
        (("--camera", "97"), "there is no camera 97: /dev/video97 does not exist"),
        (("-", "--raw-size", "64x64"), "raw frames have a size and a rate"),
        (("-", "--raw-size", "64", "--raw-fps", 5), "wants WIDTHxHEIGHT in pixels"),
        (("-", "--from", 2), "--from and --image-fps are for files"),
        (("rtsp://x/y", "--raw-size", "8x8", "--raw-fps", 5), "raw frames come on standard input"),
        ((tmp_path / "no.mp4", "--every-frame"), "no.mp4 is no live source"),
    ]:
        assert_refused(call("stream", run.path, *arguments), message)
    with pytest.raises(BadInput, match="each from 1 to 16384, found 0x5"):
        raw_frames("0x5", 5)
    with pytest.raises(BadVideo, match="Connection refused"):
        list(LiveFrames(address("tcp://127.0.0.1:9")))
