"""Videos in, the encoder's squares out: every frame that this project looks at comes through here,
decoded in the sandbox and resized by `transforms`.

Whoever wants squares says which: blocks at several rates (extraction), frames by number
(calibration, spot checks), frames by time (windows without a cache, drawings), or one frame after
the other as it comes on screen (streams).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch

from pipeline.config.cache_spec import BASE, DEFAULT_DECODER, FrameSettings, View
from pipeline.device import Uploads
from pipeline.errors import BadInput, BadVideo
from pipeline.records import Rate, Step, Video
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.isolated.sandbox import DecodeLimits, Decoder
from pipeline.video.on_device import decode_on_device
from pipeline.video.sampling import StreamClock
from pipeline.video.transforms import FrameTransforms


@dataclass(frozen=True)
class ReadBlock:
    """Consecutive decoded frames of one size, to be turned into squares by whoever wants them."""

    transforms: FrameTransforms
    kept: Mapping[Rate, np.ndarray]
    """Rate -> (F,) bool, which frames it keeps."""
    damaged_F: np.ndarray
    """bool: which frames are damaged."""

    def wanted(self, settings: FrameSettings) -> np.ndarray:
        """(F,) bool: which frames a cache of these settings holds."""
        kept: np.ndarray = self.kept[settings.kept]
        return kept if settings.damaged == "keep" else kept & ~self.damaged_F

    @property
    def time_s(self) -> np.ndarray:
        """(F,) presentation times."""
        return self.transforms.frames.time_s


class Squares(NamedTuple):
    """Consecutive frames as the encoder sees them."""

    time_s: np.ndarray
    """(F,) presentation times."""
    views: dict[str, torch.Tensor]
    """Name of a view -> levels (F, 3, size_px, size_px), see `FrameTransforms.squares`."""
    affine_23: np.ndarray
    """Source frame to the square of the base."""


class FrameReader:
    """Reads the videos below `root`, one at a time, in a decoding process of its own, and makes
    squares on `device`.

    A context manager, to be used by one thread at a time; `close` may be called by any. All methods
    raise BadVideo, with the video's name and the reason, where a video cannot be decoded, hangs,
    kills its decoder or exceeds `limits`, after its good frames have been yielded; OSError for what
    is no fault of the video.
    """

    def __init__(
        self, root: Path, device: torch.device, limits: DecodeLimits | None = None
    ) -> None:
        self.root, self.uploads = root, Uploads(device)
        self.decoder = Decoder(limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoding process; a wait for it then ends with OSError."""
        self.decoder.close()

    def blocks(
        self,
        video: Video,
        rates: Sequence[Rate],
        counted: FrameCounts | None = None,
        decoder: str = DEFAULT_DECODER,
    ) -> Iterator[ReadBlock]:
        """Decodes a video once for several rates. Frames are sent to the device right away, and not
        resized before that is asked for, so that another thread can do it. `counted` is filled at
        the end. `decoder`: as a spec names it; torchcodec decodes in this process."""
        path = self.root / video.source
        if decoder != DEFAULT_DECODER:
            for part in decode_on_device(path, rates, self.uploads, counted or FrameCounts()):
                of_rate = dict(zip(rates, part.kept_RF, strict=True))
                none_F = np.zeros(len(part.frames.time_s), bool)
                yield ReadBlock(FrameTransforms(part.frames, self.uploads), of_rate, none_F)
            return
        for block in self.decoder.decode(path, rates, video.image_fps, counted):
            kept = dict(zip(rates, block.kept_RF, strict=True))
            yield ReadBlock(FrameTransforms(block.frames, self.uploads), kept, block.damaged_F)

    def numbered(
        self,
        video: Video,
        settings: FrameSettings,
        numbers: np.ndarray,
        views: Mapping[str, View | None],
    ) -> Iterator[Squares]:
        """The frames `numbers`, ascending, of those that a cache of these settings holds, counted
        from the first; decodes up to the last of them."""
        first = 0
        for block in self.blocks(video, [settings.kept], decoder=settings.decoder):
            kept = np.flatnonzero(block.wanted(settings))
            inside = kept[numbers[(numbers >= first) & (numbers < first + len(kept))] - first]
            if len(inside):
                mask = np.isin(np.arange(len(block.time_s)), inside)
                yield _squares(block.transforms, settings, mask, views)
            first += len(kept)
            if first > numbers[-1]:
                return

    def at_times(
        self, video: Video, settings: FrameSettings, time_s_T: np.ndarray, view: View | None = None
    ) -> torch.Tensor:
        """Levels (T, 3, size_px, size_px): the frames that have these presentation times, in any
        order and as often as they are named; decodes from the keyframe before the first of them.

        Raises BadVideo also where a time is that of no frame, or of a damaged one that a cache of
        these settings would leave out.
        """
        time_s, index_T = np.unique(time_s_T, return_inverse=True)
        parts = []
        path = self.root / video.source
        counted = FrameCounts()
        for frames in self.decoder.decode_at(path, time_s, video.image_fps, counted):
            damaged_s = [asked_s for asked_s in frames.time_s if counted.is_damaged(asked_s)]
            if settings.damaged == "list" and damaged_s:
                raise BadVideo(
                    f"{path.name}: its frame at {damaged_s[0]:.3f} s is damaged, and left out",
                    'to have such frames: frames.damaged = "keep"',
                )
            whole = np.ones(len(frames), bool)
            parts.append(FrameTransforms(frames, self.uploads).squares(settings, whole, view)[0])
        return torch.cat(parts)[index_T]

    def on_screen(
        self,
        video: Video,
        settings: FrameSettings,
        step: Step,
        start_s: float = 0.0,
        counted: FrameCounts | None = None,
    ) -> Iterator[tuple[Squares, int]]:
        """What a stream sees whose instants are a `step` apart: of the frames that `settings`
        caches, those that are on screen at an instant, and at how many each is, as soon as the next
        frame is decoded. The first instant is that of the frame on screen `start_s` seconds after
        the first one, see `StreamClock`. At instants at which a damaged frame is on screen that
        `settings` leaves out, nothing is seen. Times count from the first frame. `counted` is
        filled.

        Raises BadInput where the video is over by then.
        """
        clock, counted = StreamClock(step, settings.kept, start_s), counted or FrameCounts()
        path, failure, held = self.root / video.source, None, None

        def seen(frame: FrameTransforms) -> Squares:
            assert counted.first_s is not None
            squares = _squares(frame, settings, np.ones(1, bool), {BASE: None})
            return squares._replace(time_s=squares.time_s - counted.first_s)

        blocks = self.decoder.decode(path, [settings.kept], video.image_fps, counted, 1)
        try:
            for block in blocks:
                assert counted.first_s is not None
                count = clock.frame(float(block.frames.time_s[0]), counted.first_s)
                if count and held is not None:
                    yield seen(held), count
                is_seen = settings.damaged == "keep" or not block.damaged_F.any()
                held = FrameTransforms(block.frames, self.uploads) if is_seen else None
        except BadVideo as error:
            failure = error
        count = clock.end(counted.end_s)
        if count and held is not None:
            # Where decoding broke off, nobody knows what would have come on screen next, and when.
            count = 1 if failure else count
            yield seen(held), count
        if failure:
            raise failure
        if not clock.has_begun:
            raise BadInput(
                f"{video.source} ends before {start_s:g} s, where the stream is to begin",
                "let it begin earlier",
            )


def _squares(
    transforms: FrameTransforms,
    settings: FrameSettings,
    mask_F: np.ndarray,
    views: Mapping[str, View | None],
) -> Squares:
    seen = {name: transforms.squares(settings, mask_F, view) for name, view in views.items()}
    squares = {name: squares_FCHW for name, (squares_FCHW, _) in seen.items()}
    _, affine_23 = transforms.squares(settings, mask_F, None)
    return Squares(transforms.frames.time_s[mask_F], squares, affine_23)
