"""A video file that holds several recordings one after the other is cut into one file for each.

Packets are copied as they are, so nothing is decoded and no pixel changes. That needs recordings
that begin with a keyframe, as they do where files were joined.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import OutputContainer

from pipeline.errors import BadVideo


class Cut(NamedTuple):
    """Seconds [start, stop) of a file, and the file that they become."""

    start_s: float
    stop_s: float
    target: Path


def cut(source: Path, cuts: Sequence[Cut], fps: float) -> dict[Path, str]:
    """Writes the target of every cut; target -> why there is none, for those that cannot be made.
    Raises BadVideo where the file cannot be read at all."""
    cuts = sorted(cuts)
    starts = [part.start_s for part in cuts]
    problems: dict[Path, str] = {}
    writer = _Writer()
    try:
        with av.open(str(source)) as container:
            if not container.streams.video:
                raise BadVideo(f"{source.name}: holds no video")
            stream = container.streams.video[0]
            first = stream.start_time or 0
            for packet in container.demux(stream):
                if packet.pts is None or packet.dts is None or stream.time_base is None:
                    continue
                # By the middle of the frame: times of files are rounded.
                time_s = float((packet.pts - first) * stream.time_base) + 0.5 / fps
                number = bisect_right(starts, time_s) - 1
                if number < 0 or time_s >= cuts[number].stop_s:
                    continue
                target = cuts[number].target
                if target in problems:
                    continue
                if writer.target != target:
                    if not packet.is_keyframe:
                        at_s = cuts[number].start_s
                        problems[target] = (
                            f"does not begin with a keyframe at {at_s:.3f} s of {source.name}"
                        )
                        continue
                    writer.begin(target, stream, packet.pts)
                writer.write(packet)
            writer.end()
    except (av.FFmpegError, OSError) as error:
        writer.drop()
        raise BadVideo(f"{source.name}: cannot be cut: {error}") from error
    for part in cuts:
        if part.target not in problems and not part.target.is_file():
            problems[part.target] = f"{source.name} has no frame from {part.start_s:.3f} s on"
    return problems


class _Writer:
    """The file that is being written, aside until it is whole."""

    def __init__(self) -> None:
        self.target: Path | None = None
        self._container: OutputContainer | None = None
        self._stream: Any = None
        self._offset = 0

    def begin(self, target: Path, like: Any, offset: int) -> None:
        self.end()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.target, self._offset = target, offset
        aside = target.with_suffix(".partial")
        options = {"fflags": "+bitexact"}
        self._container = av.open(str(aside), "w", format="mp4", options=options)
        self._stream = self._container.add_stream_from_template(like)

    def write(self, packet: Any) -> None:
        assert self._container is not None
        packet.pts -= self._offset
        packet.dts -= self._offset
        packet.stream = self._stream
        self._container.mux(packet)

    def end(self) -> None:
        """Makes the file exist."""
        if self._container is not None and self.target is not None:
            self._container.close()
            self.target.with_suffix(".partial").replace(self.target)
        self.target = self._container = None

    def drop(self) -> None:
        """Leaves nothing of a file that is not whole."""
        if self._container is not None and self.target is not None:
            with suppress(av.FFmpegError, OSError):
                self._container.close()
            self.target.with_suffix(".partial").unlink(missing_ok=True)
        self.target = self._container = None
