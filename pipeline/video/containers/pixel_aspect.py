"""The shape of a pixel, for each picture of a stream: broadcasts change it from programme to
programme.

What the container states counts for all its pictures. Otherwise it is what the stream itself says
at the packet from which a picture was decoded; a decoder that puts pictures into order has read on
by then, so that its own word at that moment may be that of a later picture.
"""

from __future__ import annotations

from fractions import Fraction

from av.video.stream import VideoStream

from pipeline.video.containers.track_header import TrackHeader


class PixelAspects:
    """Tells how wide a stored pixel of each picture is, its height being 1."""

    def __init__(self, stream: VideoStream, header: TrackHeader) -> None:
        at_first = stream.sample_aspect_ratio
        # libav gives the container's word where there is one, and does not say whose it is.
        is_stated = header.states_aspect or at_first != stream.codec_context.sample_aspect_ratio
        self.stated = at_first if is_stated else None

    def of(self, said: Fraction | None) -> float:
        """Width of a pixel of a picture, of which the stream says `said`; 1 where nobody says."""
        return float(self.stated or said or 1)
