"""Decoding goes on after damage, and says which pictures are damaged or missing: compared with the
pictures of the sound file, and with PyAV's own going on."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.codec.context import Flags
from support.media import SHARED_CLIPS, encode, packet_spans
from support.paths import SHARED

from pipeline.config.cache_spec import FrameSettings
from pipeline.errors import BadVideo
from pipeline.records import Step, Video
from pipeline.video.containers.track_header import ASF_ENCRYPTION
from pipeline.video.containers.transport_stream import PACKET_BYTES, is_torn
from pipeline.video.damage import WITHOUT_KEY
from pipeline.video.decode import decode_at, decode_rates
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.isolated.sandbox import Decoder
from pipeline.video.reader import FrameReader

LENGTH, RATE = 48, 25


def picture(number: int) -> np.ndarray:
    """Waves that move, and noise in a corner: no two pictures are alike."""
    y, x = np.mgrid[:96, :128]
    waves = [x / 9 + number / 3, y / 7 - number / 4, (x + y) / 11 + number / 2]
    pixels = np.stack([127.5 + 120 * np.sin(wave) for wave in waves], axis=-1).astype(np.uint8)
    pixels[:32, :32] = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
    return pixels


PICTURES = [picture(number) for number in range(LENGTH)]
GROUPS = {"g": "12", "bf": "2", "x264-params": "keyint=12:min-keyint=12:scenecut=0"}


class Seen:
    """All that decoding says of a video."""

    def __init__(self, path: Path, image_fps: float | None = None) -> None:
        self.counted, self.reason = FrameCounts(), ""
        self.pixels: list[np.ndarray] = []
        self.times_s: list[float] = []
        self.damaged: list[bool] = []
        try:
            for block in decode_rates(path, [None], image_fps, self.counted):
                self.pixels += list(block.frames.pixels_FHWC)
                self.times_s += block.frames.time_s.tolist()
                self.damaged += block.damaged_F.tolist()
        except BadVideo as error:
            self.reason = error.message

    @property
    def is_whole(self) -> bool:
        return not (self.reason or any(self.damaged) or self.counted.lost)

    def passed_wrongly(self, sound: Seen) -> int:
        """Number of the frames that pass as sound and are none of a sound video's."""
        right = {pixels.tobytes() for pixels in sound.pixels}
        return sum(
            not damaged and pixels.tobytes() not in right
            for pixels, damaged in zip(self.pixels, self.damaged, strict=True)
        )


def plain_count(path: Path) -> int:
    """Number of the frames that PyAV gives if every packet is tried."""
    count = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                count += len(packet.decode())
            except av.FFmpegError:
                continue
    return count


def without_packet(source: Path, path: Path, dropped: set[int]) -> Path:
    """A copy of a video that lacks some packets."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(video=0)):
            if packet.size and number not in dropped:
                packet.stream = stream
                written.mux(packet)
    return path


def blank(path: Path, number: int, part: float = 0.5) -> Path:
    """Overwrites the last part of one packet."""
    data = bytearray(path.read_bytes())
    position, size = packet_spans(path)[number]
    begin = position + int(size * (1 - part))
    data[begin : position + size] = bytes(position + size - begin)
    path.write_bytes(data)
    return path


def fuzzed(data: bytes, seed: int) -> bytes:
    """A copy of which 1 to 60 bytes are random."""
    chance, copy = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 60)):
        copy[chance.randrange(len(copy))] = chance.randrange(256)
    return bytes(copy)


def test_a_sound_video_has_no_damage(tmp_path):
    seen = Seen(encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options=GROUPS))
    assert seen.is_whole and len(seen.pixels) == LENGTH


def test_damage_reaches_up_to_the_next_key_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options=GROUPS)
    sound = Seen(path)
    seen = Seen(blank(path, 13))
    assert len(seen.pixels) == LENGTH == plain_count(path) and not seen.reason
    assert seen.passed_wrongly(sound) == 0
    assert seen.damaged[:12] == [False] * 12 and seen.damaged[24:] == [False] * 24
    assert any(seen.damaged[12:24])
    (stretch,) = seen.counted.damaged
    assert (stretch.start, stretch.stop) == (seen.damaged.index(True), 24)
    assert stretch.start_s == stretch.start / RATE and stretch.stop_s == pytest.approx(24 / RATE)
    assert stretch.reason
    times_s = np.arange(20, 28) / RATE
    counted = FrameCounts()
    decode_at(path, times_s, None, counted)
    assert [counted.is_damaged(time_s) for time_s in times_s] == [True] * 4 + [False] * 4


# Packets that give no picture


SEI_ALONE = bytes([0, 0, 0, 21, 6, 5, 17, *range(17), 0x80])
"""A sample of H.264 in MP4 that holds a message of a user and nothing else."""


def with_packet(source: Path, path: Path, place: int, data: bytes) -> Path:
    """A copy of a video with one more packet, before its packet number `place`; the packets from
    there on are shown one frame later."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        late = 0
        for number, packet in enumerate(read.demux(video=0)):
            if not packet.size:
                continue
            if number == place:
                more = av.Packet(data)
                more.pts, more.dts, more.time_base = packet.pts, packet.dts, packet.time_base
                more.duration, more.stream, late = packet.duration, stream, packet.duration
                written.mux(more)
            packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, stream
            written.mux(packet)
    return path


@pytest.mark.parametrize("place", [0, 12, 30])
def test_a_packet_that_holds_a_message_alone_is_no_damage(tmp_path, place):
    """As `ffmpeg` and PyAV's own going on, which give all pictures."""
    source = encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options={"g": "12", "bf": "0"})
    path = with_packet(source, tmp_path / "b.mp4", place, SEI_ALONE)
    seen = Seen(path)
    assert len(seen.pixels) == LENGTH == plain_count(path)
    assert seen.is_whole and seen.passed_wrongly(Seen(source)) == 0
    assert seen.counted.header == LENGTH + 1


def test_an_empty_packet_is_no_damage(tmp_path):
    source = encode(tmp_path / "a.avi", PICTURES, codec="mpeg4", rate=RATE, options={"g": "12"})
    path = with_packet(source, tmp_path / "b.avi", 20, b"")
    seen = Seen(path)
    assert len(seen.pixels) == LENGTH and seen.is_whole


def test_a_lost_picture_ends_no_video_and_is_listed(tmp_path):
    """Packets of pictures that stand alone: the others are sound, each at its own time."""
    path = encode(tmp_path / "a.mov", PICTURES, codec="mjpeg", pix_fmt="yuvj420p", rate=RATE)
    sound = Seen(path)
    data = bytearray(path.read_bytes())
    for number in (5, 6, 30):
        position, size = packet_spans(path)[number]
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    seen = Seen(path)
    assert len(seen.pixels) == LENGTH - 3 == plain_count(path) and not any(seen.damaged)
    assert seen.passed_wrongly(sound) == 0
    assert seen.times_s == [time_s for n, time_s in enumerate(sound.times_s) if n not in (5, 6, 30)]
    assert [round(lost.time_s * RATE) for lost in seen.counted.lost] == [5, 6, 30]
    assert all(lost.end_s - lost.time_s == pytest.approx(1 / RATE) for lost in seen.counted.lost)


def test_what_the_decoder_holds_at_the_end_of_a_torn_file_is_shown(tmp_path):
    path = encode(
        tmp_path / "a.mp4",
        PICTURES,
        rate=RATE,
        options=GROUPS,
        container_options={"movflags": "faststart"},
    )
    sound = Seen(path)
    position, size = packet_spans(path)[30]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    seen = Seen(path)
    assert 28 <= len(seen.pixels) == plain_count(path)
    assert seen.passed_wrongly(sound) == 0 and not seen.is_whole


# What rests on what is missing


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_nothing_passes_after_a_packet_that_is_missing(tmp_path, codec):
    """Every picture that differs from the sound one is damaged, and the next group is sound.
    Pictures of MPEG-2, MPEG-4 and VP9 do not name what they rest on: nobody can know."""
    options = GROUPS | {"x265-params": "log-level=none:keyint=12:scenecut=0:bframes=2"}
    source = encode(tmp_path / "a.mkv", PICTURES, codec=codec, rate=RATE, options=options)
    sound = Seen(source)
    keys = [number for number, key in enumerate(key_packets(source)) if key]
    path = without_packet(source, tmp_path / "b.mkv", {keys[1] + 1})
    seen = Seen(path)
    assert seen.passed_wrongly(sound) == 0
    lost = LENGTH - 1 - len(seen.pixels)
    assert any(seen.damaged) or len(seen.counted.lost) == lost > 0
    assert not any(seen.damaged[: keys[1] - 3]) and not any(seen.damaged[keys[2] + 3 :])


def test_pictures_that_vanish_near_damage_are_lost(tmp_path):
    """A container that loses its way in the middle gives nothing for packets with B pictures, and
    says nothing of them. Those that vanish before the first damage that is noticed cannot be told
    from a gap in the recording."""
    options = {"x265-params": "log-level=none:keyint=12:bframes=3"}
    path = encode(tmp_path / "a.mkv", PICTURES, codec="libx265", rate=RATE, options=options)
    sound, data = Seen(path), path.read_bytes()
    vanished = 0
    for place in range(12, 36):
        position, size = packet_spans(path)[place]
        torn = path.with_name(f"{place}.mkv")
        torn.write_bytes(
            data[: position + size // 2] + bytes(300) + data[position + size // 2 + 300 :]
        )
        seen = Seen(torn)
        told = [(found.start_s, found.stop_s) for found in seen.counted.damaged]
        told += [(lost.time_s, lost.end_s) for lost in seen.counted.lost]
        gone = [time_s for time_s in sound.times_s if time_s not in seen.times_s]
        first_s = min(told)[0] if told else math.inf
        for time_s in [time_s for time_s in gone if first_s <= time_s < seen.times_s[-1]]:
            vanished += 1
            assert any(start_s - 1e-3 <= time_s < stop_s for start_s, stop_s in told), place
    assert vanished > 50


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_the_packet_at_which_a_container_loses_its_way_is_damaged(tmp_path, codec):
    """Its end, and what follows, is taken from where it does not belong, and the decoders of VP8
    and VP9 do not notice."""
    options = {"g": "12", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0"}
    path = encode(tmp_path / "a.webm", PICTURES, codec=codec, rate=RATE, options=options)
    sound, data = Seen(path), path.read_bytes()
    position, size = packet_spans(path)[16]
    path.write_bytes(data[: position + size // 2] + data[position + size + 40 :])
    seen = Seen(path)
    assert seen.passed_wrongly(sound) == 0
    assert seen.damaged[:16] == [False] * 16 and seen.damaged[16]


def test_a_decoder_that_takes_a_picture_for_a_key_picture_after_damage(tmp_path):
    """Of a torn AV1 key picture it makes up others, and calls some of them key pictures. Where the
    file flags those, its word counts, up to the next one."""
    path = encode(
        tmp_path / "a.mkv",
        PICTURES[:36],
        codec="libsvtav1",
        rate=RATE,
        options={"g": "12", "preset": "12"},
    )
    sound, data = Seen(path), path.read_bytes()
    right = {pixels.tobytes() for pixels in sound.pixels}
    position, _ = packet_spans(path)[12]
    for byte in range(48, 54):
        broken = bytearray(data)
        broken[position + byte] ^= 0x10
        path.write_bytes(broken)
        seen = Seen(path)
        noticed_s = min((lost.time_s for lost in seen.counted.lost), default=1e9)
        passed = [
            time_s
            for pixels, time_s, damaged in zip(seen.pixels, seen.times_s, seen.damaged, strict=True)
            if not damaged and time_s > noticed_s and pixels.tobytes() not in right
        ]
        assert not passed
        assert not any(seen.damaged[-12:])


def key_packets(path: Path) -> list[bool]:
    with av.open(str(path)) as container:
        return [packet.is_keyframe for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(
    ("codec", "name"),
    [("libx264", "b.mkv"), ("libx264", "b.ts"), ("mpeg4", "b.avi"), ("mpeg2video", "b.mkv")],
)
def test_nothing_passes_that_was_cut_without_its_key_frame(tmp_path, codec, name):
    source = encode(
        tmp_path / f"a{Path(name).suffix}", PICTURES, codec=codec, rate=RATE, options=GROUPS
    )
    sound = Seen(source)
    seen = Seen(without_packet(source, tmp_path / name, set(range(4))))
    assert seen.passed_wrongly(sound) == 0
    assert sum(not damaged for damaged in seen.damaged) >= 34
    assert {stretch.reason for stretch in seen.counted.damaged} <= {
        WITHOUT_KEY,
        "warning: first frame is no keyframe",
    }


def test_open_groups_that_begin_in_the_middle(tmp_path):
    """The first pictures shown rest on the group that was cut off; those after the key frame do
    not, and all groups after it are sound."""
    options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
    source = encode(tmp_path / "a.mkv", PICTURES, rate=RATE, options=options)
    sound = Seen(source)
    assert sound.is_whole
    second = [n for n, is_key in enumerate(key_packets(source)) if is_key][1]
    seen = Seen(without_packet(source, tmp_path / "b.mkv", set(range(second))))
    assert seen.passed_wrongly(sound) == 0
    assert sum(not damaged for damaged in seen.damaged) >= LENGTH - 12 - 4
    blank(source, 5)
    torn = Seen(source)
    assert torn.passed_wrongly(sound) == 0 and not any(torn.damaged[13:])


def test_damage_of_pictures_that_stand_alone_reaches_no_other(tmp_path):
    jpeg = encode(tmp_path / "a.avi", PICTURES, codec="mjpeg", pix_fmt="yuvj420p", rate=RATE)
    sound = Seen(jpeg)
    seen = Seen(blank(jpeg, 20, 0.4))
    assert [n for n, damaged in enumerate(seen.damaged) if damaged] == [20]
    assert seen.passed_wrongly(sound) == 0 and len(seen.pixels) == LENGTH


def test_deinterlacing_mixes_damage_into_both_neighbours(tmp_path):
    path = encode(
        tmp_path / "i.mp4",
        PICTURES,
        codec="mpeg4",
        rate=RATE,
        flags=Flags.interlaced_dct | Flags.interlaced_me,
        options={"g": "1"},
    )
    sound = Seen(path)
    seen = Seen(blank(path, 20, 0.6))
    assert [n for n, damaged in enumerate(seen.damaged) if damaged] == [19, 20, 21]
    assert seen.passed_wrongly(sound) == 0


def test_checksums_of_pictures_are_compared(tmp_path):
    """HEVC may carry an MD5 of every picture, with which no damage is missed."""
    params = "log-level=none:keyint=12:scenecut=0:hash=1"
    path = encode(
        tmp_path / "a.mp4", PICTURES, codec="libx265", rate=RATE, options={"x265-params": params}
    )
    sound, data = Seen(path), path.read_bytes()
    assert sound.is_whole
    for seed in range(6):
        path.write_bytes(fuzzed(data, seed))
        assert Seen(path).passed_wrongly(sound) == 0


# Transport streams


def transport_stream(folder: Path, codec: str = "libx264") -> Path:
    options = GROUPS | {"x265-params": "log-level=none:keyint=12:scenecut=0"}
    return encode(folder / "a.ts", PICTURES, codec=codec, rate=RATE, options=options)


def pid_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].id


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_packets_that_a_receiver_lost(tmp_path, codec):
    """The HEVC decoder says nothing of most of them; the counters of the container do."""
    path = transport_stream(tmp_path, codec)
    sound, data = Seen(path), path.read_bytes()
    assert sound.is_whole and not is_torn(path, pid_of(path))
    for lost in range(20, len(data) // PACKET_BYTES, 41):
        path.write_bytes(data[: lost * PACKET_BYTES] + data[(lost + 1) * PACKET_BYTES :])
        assert Seen(path).passed_wrongly(sound) == 0, lost


def test_recordings_that_are_joined_are_whole(tmp_path):
    path = transport_stream(tmp_path)
    sound, data = Seen(path), path.read_bytes()
    path.write_bytes(data + data)
    seen = Seen(path)
    assert len(seen.pixels) == 2 * LENGTH and seen.is_whole and not is_torn(path, pid_of(path))
    assert seen.passed_wrongly(sound) == 0
    path.write_bytes(data + data[: -7 * PACKET_BYTES] + data)
    assert Seen(path).passed_wrongly(sound) == 0


def test_a_recording_that_begins_torn_is_sound_later_also_after_a_seek(tmp_path):
    path = transport_stream(tmp_path)
    pid, data = pid_of(path), path.read_bytes()
    packets = [data[at : at + PACKET_BYTES] for at in range(0, len(data), PACKET_BYTES)]
    of_video = [
        at
        for at, packet in enumerate(packets)
        if int.from_bytes(packet[1:3], "big") & 0x1FFF == pid
    ]
    path.write_bytes(b"".join(packets[: of_video[1]] + packets[of_video[1] + 1 :]))
    seen = Seen(path)
    assert seen.damaged[0] and not any(seen.damaged[12:])
    for first in (13, 25, 37):  # soon after a key frame, to which a seek leads
        counted, times_s = FrameCounts(), np.array(seen.times_s[first : first + 3])
        (frames,) = decode_at(path, times_s, None, counted)
        assert [counted.is_damaged(time_s) for time_s in frames.time_s] == [False] * 3


def test_m2ts_is_read_by_its_own_steps(tmp_path):
    plain = transport_stream(tmp_path)
    data = plain.read_bytes()
    packets = [data[at : at + PACKET_BYTES] for at in range(0, len(data), PACKET_BYTES)]
    path = tmp_path / "a.m2ts"
    path.write_bytes(b"".join(bytes(4) + packet for packet in packets))
    assert not is_torn(path, pid_of(plain))
    path.write_bytes(b"".join(bytes(4) + packet for packet in packets[:40] + packets[41:]))
    assert is_torn(path, pid_of(plain))
    path.write_bytes(b"no transport stream")
    assert is_torn(path, pid_of(plain))


# Images


def test_a_torn_image_of_a_folder_is_alone(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        encode(
            folder / f"{number}.jpg", [PICTURES[number]], codec="mjpeg", pix_fmt="yuvj420p", rate=1
        )
    sound = Seen(folder, image_fps=10)
    data = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(data[: len(data) // 2])
    (folder / "4.jpg").write_bytes(b"no image")
    seen = Seen(folder, image_fps=10)
    assert seen.times_s == [0.0, 0.1, 0.2, 0.3, 0.5] and seen.reason == ""
    assert seen.damaged == [False, False, True, False, False]
    assert seen.passed_wrongly(sound) == 0
    (stretch,), (lost,) = seen.counted.damaged, seen.counted.lost
    assert (stretch.start, stretch.stop, stretch.start_s) == (2, 3, 0.2)
    assert stretch.reason == "2.jpg: overread 8"
    assert lost.time_s == 0.4 and "images/4.jpg" in lost.reason


def test_seconds_of_a_folder_count_from_its_first_image_also_where_that_is_lost(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        encode(
            folder / f"{number}.jpg", [PICTURES[number]], codec="mjpeg", pix_fmt="yuvj420p", rate=1
        )
    (folder / "0.jpg").write_bytes(b"no image")
    counted, settings = FrameCounts(), FrameSettings(size_px=32, fps=5)
    video = Video("a", "images", image_fps=10)
    blocks = list(decode_rates(folder, [settings.kept], 10, counted))
    times_s = np.concatenate([block.frames.time_s for block in blocks])
    assert counted.first_s == 0.0
    assert times_s == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    with FrameReader(tmp_path, torch.device("cpu")) as reader:
        seen = [
            (float(squares.time_s[0]), count)
            for squares, count in reader.on_screen(video, settings, Step(0.2))
        ]
    assert seen == [(pytest.approx(time_s), 1) for time_s in times_s]


# Encryption


def encrypted_mp4(folder: Path) -> Path:
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    return encode(folder / "a.mp4", PICTURES[:12], rate=RATE, container_options=options)


def encrypted_wmv(folder: Path) -> Path:
    """One that says it is."""
    path = encode(folder / "a.wmv", PICTURES[:12], codec="wmv2", rate=RATE)
    codecs = uuid.UUID("86d15240-311d-11d0-a3a4-00a0c90348f6").bytes_le
    data = path.read_bytes()
    assert codecs in data
    at = data.index(codecs) + 16
    size = int.from_bytes(data[at : at + 8], "little") - 24
    path.write_bytes(
        data[: at - 16]
        + ASF_ENCRYPTION[0]
        + data[at : at + 8]
        + bytes(size)
        + data[at + 8 + size :]
    )
    return path


def encrypted_mkv(folder: Path) -> Path:
    """One whose track says that it is: in the place of its void elements and padding."""
    path = encode(folder / "a.mkv", PICTURES[:12], rate=RATE)
    data = path.read_bytes()
    at = data.index(b"\x22\xb5\x9c")  # the language of the track, as long as what replaces it
    size = 4 + (data[at + 3] & 0x7F)
    inner = b"\x62\x40" + bytes([0x80 | 3]) + b"\x50\x35\x80"
    whole = b"\x6d\x80" + bytes([0x80 | len(inner)]) + inner
    if size - len(whole) not in (0, *range(2, 10)):
        pytest.skip("the muxer writes the language otherwise")
    rest = size - len(whole)
    path.write_bytes(
        data[:at]
        + whole
        + (b"\xec" + bytes([0x80 | (rest - 2)]) + bytes(rest - 2) if rest else b"")
        + data[at + size :]
    )
    return path


@pytest.mark.parametrize("make", [encrypted_mp4, encrypted_wmv, encrypted_mkv])
def test_encrypted_videos_are_refused(tmp_path, make: Callable[[Path], Path]):
    path = make(tmp_path)
    seen = Seen(path)
    assert seen.reason == f"{path.name}: is encrypted" and not seen.pixels


# Random damage


@pytest.fixture(scope="module")
def sound_h264(tmp_path_factory) -> tuple[Seen, bytes]:
    path = encode(
        tmp_path_factory.mktemp("sound") / "a.mp4",
        PICTURES,
        rate=RATE,
        options={"g": "250", "bf": "2"},
    )
    return Seen(path), path.read_bytes()


def survivors(sound: Seen, data: bytes, path: Path, seeds: range) -> list[int]:
    """Seeds of the fuzzed copies that pass as whole with wrong pictures."""
    passed = []
    for seed in seeds:
        path.write_bytes(fuzzed(data, seed))
        seen = Seen(path)
        if seen.is_whole and seen.passed_wrongly(sound):
            passed.append(seed)
    return passed


def test_of_forty_fuzzed_copies_none_passes_as_whole_with_wrong_pictures(sound_h264, tmp_path):
    sound, data = sound_h264
    assert survivors(sound, data, tmp_path / "b.mp4", range(40)) == []


LONG: dict[str, tuple[dict[str, object], int]] = {
    "h264.ts": ({"options": GROUPS}, 0),
    "hevc.mp4": ({"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}}, 16),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}, 0),
    "mpeg2.mpg": ({"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}, 0),
    "mjpeg.avi": ({"codec": "mjpeg", "pix_fmt": "yuvj420p"}, 4),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"deadline": "realtime", "g": "12"}}, 34),
    "ffv1.mkv": ({"codec": "ffv1", "options": {"level": "3", "slicecrc": "1"}}, 0),
}
"""Name -> how it is made, and how many of 40 fuzzed copies may pass whole: libav says nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_fuzzed_copies_of_other_codecs(tmp_path, name):
    made, allowed = LONG[name]
    path = encode(tmp_path / name, PICTURES, rate=RATE, **made)
    passed = survivors(Seen(path), path.read_bytes(), tmp_path / f"b{path.suffix}", range(40))
    assert len(passed) <= allowed, f"{len(passed)} of 40 copies pass as whole"


FOUND = SHARED / "found"


@pytest.mark.skipif(not FOUND.is_dir(), reason="the inputs are not here")
@pytest.mark.parametrize(
    ("name", "frames", "damaged", "lost"),
    [
        ("inputs_public/sei_only_middle.mp4", 60, 0, 0),
        ("inputs_public/sar_changes.ts", 50, 0, 0),
        ("inputs_public/nokey.avi", 60, 0, 0),
        ("inputs_reliability/plain.mp4", 50, 0, 0),
        ("inputs_reliability/fuzz02.mp4", 50, 50, 0),
        ("inputs_reliability/mpeg4_demo.mp4", 45, 1, 0),
        ("inputs_reliability/trunc_faststart.mp4", 25, 0, 1),
        ("inputs_reliability/halfneg.ts", 100, 0, 0),
    ],
)
def test_files_of_public_reports(name, frames, damaged, lost):
    path = FOUND / name
    if not path.is_file():
        pytest.skip("this input is not here")
    seen = Seen(path)
    assert len(seen.pixels) == frames == plain_count(path)
    assert (sum(seen.damaged), len(seen.counted.lost)) == (damaged, lost)


@pytest.mark.skipif(not (FOUND / "inputs_reliability/plain.mp4").is_file(), reason="not here")
def test_fuzzed_copies_of_a_file_of_a_public_report(tmp_path):
    """Of 120 copies one passes: libav says nothing of it at any level."""
    path = FOUND / "inputs_reliability/plain.mp4"
    sound, data = Seen(path), path.read_bytes()
    assert survivors(sound, data, tmp_path / "b.mp4", range(40)) == [31]


# Sound real clips

DAMAGED_CLIPS = {
    "corner_corrupt_28of50.mp4": 20,
    # Made by a version of x264 that erred in 4:4:4 and, without its name, is decoded wrongly.
    "corner_first_pts_5s.mp4": 100,
}


@pytest.mark.skipif(not SHARED_CLIPS.is_dir(), reason="the clips are not here")
def test_no_picture_of_a_sound_real_clip_is_called_damaged():
    for path in sorted([*SHARED_CLIPS.glob("*.*"), *SHARED_CLIPS.glob("corner/*.*")]):
        if path.suffix == ".md" or path.stat().st_size > 400_000:
            continue
        seen = Seen(path)
        assert sum(seen.damaged) == DAMAGED_CLIPS.get(path.name, 0), path.name
        assert len(seen.counted.lost) == (path.name == "corner_corrupt_28of50.mp4"), path.name


def test_what_is_damaged_comes_through_the_sandbox(tmp_path):
    path = encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options=GROUPS)
    for number in (13, 30):
        blank(path, number)
    seen, counted, marks = Seen(path), FrameCounts(), []
    with Decoder() as decoder:
        for block in decoder.decode(path, [None], None, counted):
            marks += block.damaged_F.tolist()
        assert marks == seen.damaged and counted == seen.counted and counted.damaged
        times_s = np.array(seen.times_s[20:28])
        counted = FrameCounts()
        assert sum(len(frames) for frames in decoder.decode_at(path, times_s, None, counted)) == 8
        assert [counted.is_damaged(time_s) for time_s in times_s] == seen.damaged[20:28]


def test_frames_by_time_that_are_damaged_are_refused_or_kept(tmp_path):
    path = encode(tmp_path / "a.mp4", PICTURES, rate=RATE, options=GROUPS)
    seen = Seen(blank(path, 13))
    settings, video = FrameSettings(size_px=32), Video("a", "a.mp4")
    keep = settings.model_copy(update={"damaged": "keep"})
    times_s = np.array(seen.times_s[20:22])
    with FrameReader(tmp_path, torch.device("cpu")) as reader:
        with pytest.raises(BadVideo, match=r"^a\.mp4: its frame at 0\.800 s is damaged, and left"):
            reader.at_times(video, settings, times_s)
        assert len(reader.at_times(video, keep, times_s)) == 2
        counted = FrameCounts()
        instants = [
            count for _, count in reader.on_screen(video, settings, Step(1 / RATE), counted=counted)
        ]
        assert sum(instants) == LENGTH - sum(seen.damaged)
        assert counted.damage_text(is_kept=False).startswith(
            f"{sum(seen.damaged)} of {LENGTH} decoded frames are damaged and left out, 0 are missing"
        )


def test_a_stream_that_begins_in_damage_is_not_over(tmp_path):
    path = encode(tmp_path / "a.mp4", PICTURES[:12], rate=RATE, options=GROUPS)
    seen = Seen(blank(path, 0))
    assert all(seen.damaged) and not seen.reason
    with FrameReader(tmp_path, torch.device("cpu")) as reader:
        video, settings = Video("a", "a.mp4"), FrameSettings(size_px=32)
        assert list(reader.on_screen(video, settings, Step(1 / RATE), seen.times_s[-1])) == []
