"""Which decoded pictures are right, and which are damaged or missing.

libav goes on after damage and shows what it can: grey, smeared, or of the wrong moment. It is
noticed at a *packet* of the file: the container lacks bytes of it, the decoder refuses it, or
complains in its log, or marks the picture as corrupt. From that packet on, in the order of
decoding, every picture may rest on the damage, up to the next key picture against which nothing
speaks. Pictures that are decoded after that key picture but shown before it may rest on what came
before it. Where every picture stands alone, the damage does too.

What libav does not notice is not noticed here: entropy codes of MJPEG, VP8 and VP9 seldom tell.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from pipeline.video.containers.transport_stream import is_torn

PREDICTED = {PictureType.P, PictureType.B, PictureType.S, PictureType.SP, PictureType.BI}
"""Kinds of pictures that rest on others."""
TELLING = ("Frame num gap",)
"""Beginnings of lines that tell of missing pictures and that libav takes for details at times."""
HARMLESS = (
    "mmco: unref short failure",
    "number of reference frames",
    "low_delay flag",
    "SEI type",
    "EXIF",
    "ICC",
    "APP",
)
"""Beginnings of complaints that say nothing of a picture: about references that are not used, or
about what accompanies pictures."""
NOTHING_INSIDE = {"no frame!"}
"""All that the H.264 decoder says of a packet without a picture, as of a message alone."""
INCOMPLETE = "the file lacks bytes of it"
WITHOUT_KEY = "there is no key frame before it"
REASON_LETTERS = 120
DRAIN_ATTEMPTS = 64
"""Errors at the end after which nothing more is expected of a decoder."""


class DamagedFrames(NamedTuple):
    """Consecutive decoded frames that are damaged for one reason."""

    start: int
    """Number of the first of them, counted from 0 in the order in which they are shown."""
    stop: int
    start_s: float
    """Presentation time of the first of them."""
    stop_s: float
    """When the last of them ends."""
    reason: str


class LostPicture(NamedTuple):
    """A picture that the file should give and does not."""

    time_s: float
    """Its presentation time."""
    end_s: float
    reason: str


class Blame(NamedTuple):
    """Damage that was noticed at a packet."""

    number: int
    pts: int | None
    """When the picture of the packet is shown."""
    reason: str


class PacketNote:
    """Travels with a packet, through the decoder, to the picture that is made from it."""

    __slots__ = ("dts", "duration", "is_key", "number", "pts", "said_aspect")

    def __init__(self, number: int, packet: Packet) -> None:
        self.number = number
        """In the order of decoding, from 0."""
        self.dts, self.pts, self.duration = packet.dts, packet.pts, packet.duration
        self.is_key = packet.is_keyframe
        """Whether the file says that its picture rests on no other."""
        self.said_aspect: Fraction | None = None
        """Shape of a pixel, as the decoder says it when it has read the packet."""


class CheckedFrame(NamedTuple):
    """A decoded frame."""

    frame: VideoFrame
    dts: int | None
    """Decode time of the packet that it is from."""
    damage: str | None
    """What speaks against it; None: nothing does."""
    said_aspect: Fraction | None
    """Shape of a pixel, as the stream says it at the packet that the frame is from."""


class LostPacket(NamedTuple):
    """A packet that should give a picture and did not."""

    note: PacketNote
    error: av.FFmpegError | None
    """What the decoder answered; None: it complained and gave nothing."""
    reason: str


class CheckedDecoder:
    """Decodes a stream in one thread, goes on after damage, and says what is damaged.

    Nothing that is set here changes a pixel of a sound file.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: Path) -> None:
        self.container, self.stream, self.path = container, stream, path
        context = stream.codec_context
        context.thread_count = 1
        context.copy_opaque = True
        # Checksums that a stream may hold for its pictures or chunks are compared.
        context.options = {"err_detect": "crccheck"}
        self.stands_alone = context.codec.intra_only
        self.is_transport_stream = container.format.name == "mpegts"
        self.at_byte = 0
        """Offset in the file of the last packet."""
        self.failure: av.FFmpegError | None = None
        """Why reading packets ended before the end of the file."""
        self.lost: list[LostPacket] = []
        self._doubted: dict[int, LostPacket] = {}
        """Number of a packet that the decoder complained of -> what it is if no picture comes."""
        self.damaged_at: int | None = None
        """Offset in the file of the first damage."""
        self._last = PacketNote(-1, Packet())
        self._blames: list[Blame] = []
        """One for each packet at which damage was noticed, in the order of decoding."""
        self._keys: list[tuple[int, int | None]] = []
        """Number of the packet, and presentation time, of every sound key picture."""
        self._begun = False
        self._flags_keys = True
        """Whether the file has flagged all key pictures so far."""
        av.logging.set_skip_repeated(False)

    def frames(self, *, from_start: bool = True) -> Iterator[CheckedFrame]:
        """All frames, in the order in which they are shown; `from_start`: of the whole file, and
        not from where a seek led."""
        # libav does not mark the first packet of a transport stream.
        is_from_first = from_start and self.is_transport_stream
        if is_from_first and is_torn(self.path, self.stream.id, first_only=True):
            self._blame(0, None, INCOMPLETE)
        for packet in self._packets():
            self.at_byte = packet.pos or self.at_byte
            self._last = note = PacketNote(self._last.number + 1, packet)
            packet.opaque = note
            if packet.is_corrupt:
                self._blame_incomplete(note.number)
            yield from self._checked(self._decoded(packet, note))
        for _ in range(DRAIN_ATTEMPTS):
            frames = self._drained()
            if frames is None:
                break
            yield from self._checked(frames)
        self.lost += self._doubted.values()

    def _packets(self) -> Iterator[Packet]:
        """Packets that hold anything: those that announce an end, and empty ones, by which some
        files say that a picture is shown for longer, would only confuse the decoder.

        Each is held back until the next one is read: where a container finds no header at the end
        of a packet, it is that packet that lacks bytes, or has too many.
        """
        packets = self.container.demux(self.stream)
        held: Packet | None = None
        while True:
            packet = None
            with _Listening() as complaints:
                try:
                    packet = next(packets, None)
                except av.FFmpegError as error:
                    self.failure = error
                except IndexError:  # PyAV, at the end, of a stream that appeared on the way
                    pass
            last_read = self._last.number + (held is not None)
            # The first ones are of the header.
            if last_read >= 0:
                for component, text in complaints:
                    if component == self.container.format.name:
                        self._blame(last_read, None, text)
                        self._blame(last_read + 1, None, text)
            if held is not None:
                yield held
            if packet is None:
                return
            held = packet if packet.size else None

    def _decoded(self, packet: Packet, note: PacketNote) -> list[VideoFrame]:
        frames: list[VideoFrame] = []
        refused: av.FFmpegError | None = None
        with _Listening() as complaints:
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                refused = error
        note.said_aspect = self.stream.codec_context.sample_aspect_ratio
        if isinstance(refused, MemoryError):  # the fault of the machine, or of its limits
            raise MemoryError(refused.strerror) from refused
        said = [text for _, text in complaints if not text.startswith(HARMLESS)]
        if refused is not None:
            if set(said) == NOTHING_INSIDE:
                return frames
            said = said or [str(refused.strerror)]
            self.lost.append(LostPacket(note, refused, said[0]))
        elif not all(text.startswith(TELLING) for text in said):
            self._doubted[note.number] = LostPacket(note, None, said[0])
        for text in said:
            pts = note.pts
            if packet.is_keyframe and pts is not None and text.startswith(TELLING):
                pts -= 1  # what is missing is before a key picture, which does not need it
            self._blame(note.number, pts, text)
        return frames

    def _drained(self) -> list[VideoFrame] | None:
        """What the decoder still holds; None where it says that this is all."""
        with _Listening() as complaints:
            try:
                frames = self.stream.codec_context.decode(None)
            except av.EOFError:
                return None
            except av.FFmpegError:
                frames = []
        for _, text in complaints:
            if not text.startswith(HARMLESS):
                self._blame(self._last.number, None, text)
        return frames

    def _checked(self, frames: list[VideoFrame]) -> Iterator[CheckedFrame]:
        for frame in frames:
            note = frame.opaque
            if not isinstance(note, PacketNote):  # some decoders lose it
                note = self._last
            self._doubted.pop(note.number, None)
            damage = self._damage(frame, note)
            yield CheckedFrame(frame, note.dts, damage, note.said_aspect)

    def _damage(self, frame: VideoFrame, note: PacketNote) -> str | None:
        """What speaks against the frame that was made from a packet, or against what it rests
        on."""
        number = note.number
        is_key = frame.key_frame and frame.pict_type not in PREDICTED
        if is_key and not note.is_key and not self._blames:
            self._flags_keys = False
        # After damage, a decoder may take for a key picture what is none.
        is_key &= note.is_key or not self._flags_keys
        self._begun |= frame.key_frame or frame.pict_type not in PREDICTED
        if frame.is_corrupt:
            self._blame(number, frame.pts, "the decoder marks it as corrupt")
        if not self._begun:
            self._blame(number, frame.pts, WITHOUT_KEY)
        since, key_pts = number, frame.pts if is_key else None
        if not self.stands_alone and not is_key:
            keys_before = bisect_right(self._keys, number, key=_first)
            since, key_pts = self._keys[keys_before - 1] if keys_before else (0, None)
        # The second field of a frame may have a packet of its own.
        until = number + 1 if frame.interlaced_frame else number
        for place in range(bisect_left(self._blames, since, key=_first), len(self._blames)):
            blame = self._blames[place]
            if blame.number > until:
                break
            # Pictures that are shown before the key picture may rest on what it does not hold, and
            # nothing that is shown after it rests on them.
            if blame.pts is None or key_pts is None or blame.pts >= key_pts:
                return blame.reason
        if is_key and (not self._keys or self._keys[-1][0] < number):
            self._keys.append((number, frame.pts))
        return None

    def _blame(self, number: int, pts: int | None, reason: str) -> None:
        """Notes the first thing that speaks against a packet."""
        place = bisect_left(self._blames, number, key=_first)
        if place == len(self._blames) or self._blames[place].number != number:
            if self.damaged_at is None:
                self.damaged_at = self.at_byte
            self._blames.insert(place, Blame(number, pts, reason[:REASON_LETTERS]))

    def _blame_incomplete(self, number: int) -> None:
        """Notes a packet of which the container lacks bytes. In a transport stream that is this one
        or the next, or nothing where two recordings are joined."""
        if self.is_transport_stream and not self._is_torn:
            return
        for blamed in range(number, number + 1 + self.is_transport_stream):
            self._blame(blamed, None, INCOMPLETE)

    @cached_property
    def _is_torn(self) -> bool:
        return is_torn(self.path, self.stream.id)


def _first(item: tuple[Any, ...]) -> Any:
    return item[0]


class _Listening:
    """What libav complains of meanwhile: names of components, and lines, complete when it ends.
    Made for every packet, hence no generator."""

    def __enter__(self) -> list[tuple[str, str]]:
        self._complaints: list[tuple[str, str]] = []
        self._capture = av.logging.Capture()
        av.logging.set_level(av.logging.DEBUG)
        self._logged = self._capture.__enter__()
        return self._complaints

    def __exit__(self, *error: object) -> None:
        self._capture.__exit__(None, None, None)
        av.logging.set_level(None)
        for level, component, text in self._logged:
            if level <= av.logging.ERROR or text.startswith(TELLING):
                self._complaints.append((component, text.strip()))
