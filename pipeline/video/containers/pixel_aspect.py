"""The shape of a pixel, for each picture of a stream: broadcasts change it from programme to
programme.

What the container states counts for all its pictures. Otherwise it is what the stream itself says
at the packet from which a picture was decoded; a decoder that puts pictures into order has read on
by then, so that its own word at that moment may be that of a later picture.
"""

from __future__ import annotations

from fractions import Fraction
from typing import cast

from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.video.containers.track_header import TrackHeader


class PixelAspects:
    """Decodes the packets of one stream, and tells how wide a stored pixel of each picture is, its
    height being 1."""

    def __init__(self, stream: VideoStream, header: TrackHeader) -> None:
        self.context = stream.codec_context
        at_first = stream.sample_aspect_ratio
        # libav gives the container's word where there is one, and does not say whose it is.
        is_stated = header.states_aspect or at_first != self.context.sample_aspect_ratio
        self.stated = at_first if is_stated else None
        if not self.stated:
            self.context.copy_opaque = True

    def decode(self, packet: Packet) -> list[VideoFrame]:
        """The pictures that a packet brings to light, which may be of earlier packets."""
        if self.stated:
            return packet.decode()
        said: list[Fraction | None] = []
        packet.opaque = said  # which libav hands on to the picture of this very packet
        try:
            return packet.decode()
        finally:
            said.append(self.context.sample_aspect_ratio)

    def of(self, picture: VideoFrame) -> float:
        """Width of a pixel of a picture that `decode` returned; 1 where nobody says."""
        said = cast(list[Fraction | None], picture.opaque) or [self.context.sample_aspect_ratio]
        return float(self.stated or said[0] or 1)
