"""The channel of the decoding process where sockets keep borders, and where they do not, as on macOS."""

from __future__ import annotations

import mmap
import os
import threading

import numpy as np
import pytest
from support.material import address_video

from pipeline.video.isolated import packets
from pipeline.video.isolated.packets import PACKET_BYTES, Packets
from pipeline.video.isolated.sandbox import DecodeLimits, Decoder


@pytest.fixture(params=[True, False], ids=["borders", "no borders"])
def system(request, monkeypatch):
    if request.param and not packets.KEEPS_BORDERS:
        pytest.skip("this system's sockets keep no borders")
    monkeypatch.setattr(packets, "KEEPS_BORDERS", request.param)
    return request.param


def test_packets_arrive_whole_and_in_order(system):
    ours, theirs = Packets.pair()
    rng = np.random.default_rng(0)
    sent = [rng.bytes(int(size)) for size in rng.integers(1, PACKET_BYTES + 1, 200)]

    def send() -> None:
        for packet in sent:
            ours.send(packet)
        ours.close()

    thread = threading.Thread(target=send)
    thread.start()
    got = []
    while packet := theirs.receive()[0]:
        got.append(packet)
    thread.join()
    assert got == sent
    assert theirs.receive() == (b"", [])
    theirs.close()


def test_nothing_is_waited_for_unless_it_is_asked_for(system):
    ours, theirs = Packets.pair()
    with pytest.raises(BlockingIOError):
        theirs.receive(wait=False)
    ours.send(b"one")
    ours.send(b"two")
    assert [theirs.receive(wait=False)[0] for _ in range(2)] == [b"one", b"two"]
    theirs.close()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ours.send(b"three")
    ours.close()


def test_memory_is_shared_and_has_no_name(system):
    ours, theirs = Packets.pair()
    fd = ours.new_memory("stillframe-test", 4096)
    with mmap.mmap(fd, 4096) as written:
        written[:5] = b"hello"
        ours.send(b"look", [fd])
        packet, (came,) = theirs.receive()
        with mmap.mmap(came, 4096) as read:
            assert (packet, read[:6]) == (b"look", b"hello\0")
    links = os.fstat(fd).st_nlink
    assert links == 0 or system
    for each in (fd, came):
        os.close(each)
    ours.close()
    theirs.close()


def test_decoding_is_the_same_over_either_channel(monkeypatch, tmp_path):
    path = address_video(tmp_path / "a.mp4", 3, 70)
    found = []
    for keeps_borders in {packets.KEEPS_BORDERS, False}:
        monkeypatch.setattr(packets, "KEEPS_BORDERS", keeps_borders)
        with Decoder(DecodeLimits()) as decoder:
            blocks = list(decoder.decode(path, [10.0], block_frames=8))
            again = list(decoder.decode_at(path, np.array([0.0, 0.5])))
        found.append(
            [
                *(block.frames.pixels_FHWC.tobytes() for block in blocks),
                *(frames.pixels_FHWC.tobytes() for frames in again),
                *(block.frames.time_s.tobytes() for block in blocks),
            ]
        )
    assert len(found[0]) > 6 and all(each == found[0] for each in found)
