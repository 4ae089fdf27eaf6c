"""What is counted and noted of a video while it is decoded, for whoever must tell whether all of it
is there."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.video.damage import DamagedFrames, LostPicture
from pipeline.video.rgb import Picture


@dataclass
class FrameCounts:
    """Counts of what a video holds and of what its header promises, filled while it is decoded, and
    true however that ends."""

    decoded: int = 0
    """Pictures in the content, before sampling."""
    end_s: float = 0.0
    """Presentation time at which the last of them ends."""
    first_s: float | None = None
    """Presentation time of the first of them, or of the first image or packet where that one is
    lost; None before one is there."""
    header: int | None = None
    """Pictures by the header, those that an edit list hides included. None: it does not say."""
    header_s: float | None = None
    """Length by the header, in seconds."""
    damaged: list[DamagedFrames] = field(default_factory=list)
    """Which of the decoded pictures are damaged, in the order in which they are shown."""
    lost: list[LostPicture] = field(default_factory=list)
    """Pictures that the file should give and does not, in the order of decoding."""

    def restart(self) -> None:
        """Forgets what was decoded, as the video is decoded anew."""
        self.decoded, self.end_s, self.first_s = 0, 0.0, None
        self.damaged.clear()
        self.lost.clear()

    def promise(self, pictures: int | None, length_s: float | None) -> None:
        """Notes what the header says."""
        self.header, self.header_s = pictures, length_s

    def picture(self, time_s: float, end_s: float) -> None:
        """Counts one decoded picture, shown from `time_s` until `end_s`."""
        if not self.decoded:
            self.first_s = time_s if self.first_s is None else min(self.first_s, time_s)
        self.decoded += 1
        self.end_s = end_s

    def damage_text(self, is_kept: bool) -> str:
        """What is damaged or missing and what became of it, in a sentence; "" if nothing is."""
        if not self.damaged and not self.lost:
            return ""
        frames = sum(found.stop - found.start for found in self.damaged)
        begins = [(found.start_s, found.reason) for found in self.damaged]
        first_s, reason = min(begins + [(lost.time_s, lost.reason) for lost in self.lost])
        return (
            f"{frames} of {self.decoded} decoded frames are damaged and "
            f"{'kept' if is_kept else 'left out'}, {len(self.lost)} are missing, from "
            f"{first_s:.3f} s on: {reason}"
        )

    def is_damaged(self, time_s: float) -> bool:
        """Whether the decoded picture at a time is damaged."""
        return any(found.start_s <= time_s < found.stop_s for found in self.damaged)

    def damage(self, number: int, picture: Picture) -> None:
        """Notes that the decoded picture `number`, counted from 0, is damaged."""
        assert picture.damage is not None
        first = DamagedFrames(number, number, picture.time_s, picture.time_s, picture.damage)
        last = self.damaged[-1] if self.damaged else first
        if (last.stop, last.reason) == (number, picture.damage):
            first = last
            del self.damaged[-1:]
        self.damaged.append(first._replace(stop=number + 1, stop_s=picture.end_s))
