"""torchcodec in the place of the isolated decoder: frames of a video file, decoded by this very
process on the device of the encoder, where they stay.

Which frames are kept is decided here, from the times of the packets and by the rule of `sampling`;
torchcodec is then asked for these by number. It does not deinterlace, mirror or crop, takes the
times of packets for those of frames, and does not say which frames are damaged: a file in which one
of these is known to matter is refused, and one that it cannot decode to its end has failed.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.config.cache_spec import DEFAULT_DECODER
from pipeline.device import Uploads, is_out_of_memory
from pipeline.errors import BadInput, BadVideo
from pipeline.records import SAME_S, Rate
from pipeline.video import probe
from pipeline.video.containers.pixel_aspect import PixelAspects
from pipeline.video.containers.shortfall import missing_end
from pipeline.video.containers.track_header import TrackHeader
from pipeline.video.decode import BLOCK_BYTES, BLOCK_FRAMES
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.presentation_times import Stamp, presentation_times
from pipeline.video.rgb import display_matrix
from pipeline.video.sampling import Sampler
from pipeline.video.transforms import SentFrames

NAME = "torchcodec"
"""Of the package, of the extra that brings it, and of this decoder in a spec."""
PROGRESSIVE = (0, 1)
"""Orders of fields that libav gives pictures without any (AVFieldOrder); 0 stands for unknown."""
TO_THE_OTHER = 'it can be cached with frames.decoder = "pyav"'


def identity_of_decoder(decoder: str, device: torch.device) -> str:
    """What decides what a pixel is that a spec's `frames.decoder` decodes for an encoder on
    `device`; part of every cache's fingerprint. Raises BadInput where it cannot be used here."""
    if decoder == DEFAULT_DECODER:
        return probe.decoder_identity()
    package = _package(device)
    version, ffmpeg = package.__version__.partition("+")[0], package.ffmpeg_major_version
    return f"{NAME} {version} ffmpeg {ffmpeg} {_decodes_on(device).type}"


def _decodes_on(device: torch.device) -> torch.device:
    return device if device.type == "cuda" else torch.device("cpu")


def _package(device: torch.device) -> Any:
    """torchcodec, if it decodes on `device`."""
    asked = f'frames.decoder = "{NAME}"'
    try:
        package = importlib.import_module(NAME)
    except ImportError as error:
        raise BadInput(
            f"{asked} needs the package {NAME}, which is not installed",
            f"pip install 'stillframe[{NAME}]'",
        ) from error
    except (RuntimeError, OSError) as error:  # of its own libraries, which stand on FFmpeg's
        raise BadInput(
            f"{asked}: {NAME} cannot be loaded: {str(error).strip().partition('.')[0]}",
            "it wants FFmpeg 4 to 8 of the system, and the torch that it was built for",
        ) from error
    if _decodes_on(device).type == "cuda" and package.__version__.endswith("+cpu"):
        raise BadInput(
            f"{asked}: {NAME} {package.__version__} cannot decode on {device}",
            f"pip install --no-deps {NAME} --index-url https://download.pytorch.org/whl/cu130, "
            "or that of your CUDA",
        )
    return package


class KeptFrames(NamedTuple):
    """Consecutive decoded frames that at least one of R rates keeps."""

    frames: SentFrames
    kept_RF: np.ndarray
    """bool: which rate keeps which frame."""


class PacketIndex(NamedTuple):
    """What is known of a video file before any frame is asked for: F frames, in the order shown."""

    stream: int
    """Number of the stream that is the video."""
    time_s_F: np.ndarray
    end_s: float
    """Presentation time at which the last frame ends."""
    fps: float | None
    pixel_aspect: float
    """Width of a pixel over its height, once frames are upright."""
    frame_bytes: int
    shortfall: str | None
    """Why the end of the content is missing, if it is."""

    def kept_RF(self, rates: Sequence[Rate]) -> np.ndarray:
        """bool: which rate keeps which frame."""
        begin_s, times_s = float(self.time_s_F[0]), [*self.time_s_F.tolist(), self.end_s]
        samplers = [Sampler(rate, begin_s, begin_s, self.fps) for rate in rates]
        stays = list(pairwise(times_s))
        return np.array([[sampler.keeps(*stay) for stay in stays] for sampler in samplers])


def decode_on_device(
    path: Path, rates: Sequence[Rate], uploads: Uploads, counted: FrameCounts
) -> Iterator[KeptFrames]:
    """Decodes once for several rates, as `decode_rates` does, on the device of `uploads`. `counted`
    is filled, without damage.

    Raises BadVideo for a file that is refused and, after the frames before it have been yielded,
    where torchcodec raises an error or the end of the content is missing; OSError or MemoryError
    for what is no fault of the video.
    """
    if path.is_dir():
        raise BadVideo(f"{path.name}: is no video file, and {NAME} reads no others", TO_THE_OTHER)
    index = index_packets(path, counted)
    kept_RF = index.kept_RF(rates)
    with _blamed(path):
        decoder = _package(uploads.device).decoders.VideoDecoder(
            str(path.absolute()),
            stream_index=index.stream,
            dimension_order="NHWC",
            device=str(_decodes_on(uploads.device)),
        )
    if len(decoder) != len(index.time_s_F):
        raise BadVideo(
            f"{path.name}: {NAME} finds {len(decoder)} frames in it, and not {len(index.time_s_F)}",
            TO_THE_OTHER,
        )
    numbers = np.flatnonzero(kept_RF.any(axis=0))
    step = max(1, min(BLOCK_FRAMES, BLOCK_BYTES // index.frame_bytes))
    ends_s = [*index.time_s_F[1:].tolist(), index.end_s]
    for block in np.split(numbers, range(step, len(numbers), step)):
        frames = _sent(path, decoder, index, block, uploads)
        for number in range(counted.decoded, int(block[-1]) + 1):
            counted.picture(float(index.time_s_F[number]), ends_s[number])
        yield KeptFrames(frames, kept_RF[:, block])
    for number in range(counted.decoded, len(ends_s)):
        counted.picture(float(index.time_s_F[number]), ends_s[number])
    if index.shortfall is not None:
        raise BadVideo(
            f"{path.name}: truncated: {index.shortfall}, "
            f"the content ends after {counted.decoded} frames at {counted.end_s:.1f} s"
        )


def _sent(
    path: Path, decoder: Any, index: PacketIndex, numbers: np.ndarray, uploads: Uploads
) -> SentFrames:
    """The frames of these numbers. Raises BadVideo where they are shown at other times."""
    time_s = index.time_s_F[numbers]

    def pixels_FHWC() -> torch.Tensor:
        batch = decoder.get_frames_at(numbers.tolist())
        found_s = batch.pts_seconds.numpy()
        wrong = np.flatnonzero(np.abs(found_s - time_s) > SAME_S)
        if len(wrong):
            raise BadVideo(
                f"{path.name}: {NAME} gives its frame at {time_s[wrong[0]]:.3f} s the time "
                f"{found_s[wrong[0]]:.3f} s",
                TO_THE_OTHER,
            )
        return batch.data.to(uploads.device)

    with _blamed(path):
        return SentFrames(uploads.made(pixels_FHWC), time_s, index.pixel_aspect)


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Makes what torchcodec raises a fault of the video, unless the machine is at fault."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        probe.require_readable(path, 0)
        # Where in its source it was raised comes first.
        reason = str(error).strip().partition("\n")[0].rpartition(".cpp:")[2].partition(", ")
        text = reason[2] or reason[0]
        raise BadVideo(f"{path.name}: {NAME} cannot decode it: {text}", TO_THE_OTHER) from error


def index_packets(path: Path, counted: FrameCounts) -> PacketIndex:
    """Reads all packets of a video file, and decodes none but those of its first picture. What the
    header promises is noted in `counted`.

    Raises BadVideo where the file cannot be opened, and where torchcodec would decode it otherwise
    than `decode_rates` does.
    """
    container, stream, header = probe.open_video_track(path)
    with container:
        end_s = probe.header_end_s(container, stream)
        counted.promise(
            probe.header_frames(stream),
            None if end_s is None else end_s - probe.first_frame_s(stream),
        )
        interval_s = 1 / (probe.frame_rate(stream) or 25)
        try:
            packets, first = _packets(path, container, stream)
        except av.FFmpegError as error:
            reason = probe.reason_of(error, path)
            raise BadVideo(f"{path.name}: cannot be read: {reason}") from error
        if not packets or first is None:
            raise BadVideo(f"{path.name}: no frame could be decoded")
        times_s = [packet.shown_s for packet in packets]
        stamps = enumerate(Stamp(packet.shown_s, packet.decoded_s) for packet in packets)
        a, b, c, d = display_matrix(first)
        if a * d < b * c:
            raise _refusal(path, "is mirrored")
        if reason := _unlike(stream, header, first):
            raise _refusal(path, reason)
        if [time_s for _, time_s in presentation_times(stamps, interval_s)] != times_s:
            raise _refusal(path, "has times that cannot be right")
        end_s = times_s[-1] + (packets[-1].length_s or interval_s)
        aspect = PixelAspects(stream, header).of(stream.codec_context.sample_aspect_ratio)
        return PacketIndex(
            stream=stream.index,
            time_s_F=np.array(times_s),
            end_s=end_s,
            fps=probe.frame_rate(stream),
            pixel_aspect=1 / aspect if abs(b) + abs(c) > abs(a) + abs(d) else aspect,
            frame_bytes=3 * first.width * first.height,
            shortfall=missing_end(path, container, stream, end_s),
        )


def _refusal(path: Path, reason: str) -> BadVideo:
    return BadVideo(f"{path.name}: {reason}, for which {NAME} does nothing", TO_THE_OTHER)


def _unlike(stream: VideoStream, header: TrackHeader, first: VideoFrame) -> str:
    """What `decode_rates` minds in such a video and torchcodec does not; "" if nothing is known."""
    if first.interlaced_frame or stream.codec_context.field_order not in PROGRESSIVE:
        return "is interlaced"
    if stream.codec_context.name == "h264" and "444" in (stream.codec_context.pix_fmt or ""):
        return "is H.264 in 4:4:4, of which x264 once wrote some wrong"
    return "is cropped by its container" if header.crop is not None else ""


class _Packet(NamedTuple):
    """What a packet says of its frame."""

    shown_s: float
    decoded_s: float | None
    length_s: float
    """0: it does not say."""


def _packets(
    path: Path, container: InputContainer, stream: VideoStream
) -> tuple[list[_Packet], VideoFrame | None]:
    """All packets that give a frame, in the order in which it is shown, and the first picture."""
    assert stream.time_base is not None
    is_avi, tick_s = container.format.name == "avi", stream.time_base
    found, first = [], None
    for packet in container.demux(stream):
        if first is None:
            with suppress(av.FFmpegError):
                first = next(iter(packet.decode()), None)
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise _refusal(path, "is damaged")
        # AVI has decode times alone, and those of its frames in order, unless frames are reordered.
        shown = packet.dts if is_avi or packet.pts is None else packet.pts
        if shown is None:
            raise _refusal(path, "has frames without a time")
        decoded_s = None if is_avi or packet.dts is None else float(packet.dts * tick_s)
        length_s = float((packet.duration or 0) * tick_s)
        found.append(_Packet(float(shown * tick_s), decoded_s, length_s))
    return sorted(found, key=lambda packet: packet.shown_s), first
