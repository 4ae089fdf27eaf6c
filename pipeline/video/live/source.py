"""What a live source is: named by the user, opened by the process that decodes it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadInput, in_one_line

STDIN = "-"
PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls",
    "http": "http,tcp",
    "https": "https,http,tls,tcp,crypto",
    "tcp": "tcp",
    "udp": "udp",
}
"""Scheme of an address -> the protocols that libav may open for it, and for what a playlist there
names: never files."""
MOST_PX = 1 << 14
"""Of a side of a raw frame."""


@dataclass(frozen=True)
class RawFrames:
    """Frames without a container: rgb24, row by row, one after the other."""

    width: int
    height: int
    fps: float

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return 3 * self.width * self.height


@dataclass(frozen=True)
class LiveSource:
    """A camera, an address or standard input, as libav opens it."""

    name: str
    """For people; without user names and passwords."""
    url: str
    format: str | None = None
    """libav's input format; None: as it recognises it."""
    options: tuple[tuple[str, str], ...] = ()
    raw: RawFrames | None = None
    is_live: bool = True
    """Whether frames come when they are taken. Others come as fast as they are read, and are held
    to their own times."""

    @property
    def is_address(self) -> bool:
        """Whether a connection that was lost can be made again."""
        return scheme_of(self.url) is not None


def scheme_of(text: str) -> str | None:
    """The scheme of an address that can be followed; None for a path."""
    scheme, colon, _ = text.partition("://")
    return scheme.lower() if colon and scheme.lower() in PROTOCOLS else None


def is_live(text: str) -> bool:
    """Whether SOURCE on the command line is something else than a file or a folder."""
    return text == STDIN or scheme_of(text) is not None


def address(url: str) -> LiveSource:
    """What can be fetched from an address."""
    scheme = scheme_of(url)
    assert scheme is not None
    options = [("protocol_whitelist", PROTOCOLS[scheme])]
    if scheme.startswith("rtsp"):
        options.append(("rtsp_transport", "tcp"))  # nothing is lost, and firewalls let it through
    live = scheme in ("rtsp", "rtsps", "udp")
    bare = re.sub(r"://[^/@]*@", "://", url.partition("?")[0])
    return LiveSource(in_one_line(bare), url, options=tuple(options), is_live=live)


def standard_input(raw: RawFrames | None) -> LiveSource:
    """A container, or raw frames, on standard input."""
    options = (("protocol_whitelist", "pipe"),)
    return LiveSource("standard input", "pipe:0", options=options, raw=raw, is_live=False)


def camera(name: str) -> LiveSource:
    """A camera by its number or name, as the system has it. Raises BadInput where there is none."""
    if sys.platform == "darwin":
        # Without a rate libav asks for 29.97, which built-in cameras refuse.
        options = (("framerate", "30"),)
        return LiveSource(f"camera {name}", f"{name}:none", "avfoundation", options)
    if sys.platform == "win32":
        return LiveSource(f"camera {name}", f"video={name}", "dshow")
    path = Path(f"/dev/video{name}" if name.isdecimal() else name)
    if not path.exists():
        there = ", ".join(sorted(str(one) for one in Path("/dev").glob("video*")))
        raise BadInput(
            f"there is no camera {in_one_line(name)}: {path} does not exist",
            f"cameras that are there: {there or 'none'}",
        )
    return LiveSource(f"camera {name}", str(path), "v4l2", (("fflags", "nobuffer"),))


def raw_frames(size: str | None, fps: float | None) -> RawFrames | None:
    """Raw frames by their size, WIDTHxHEIGHT, and rate; None where neither is given. Raises
    BadInput where only one is, or a size is none."""
    if size is None and fps is None:
        return None
    if size is None or fps is None:
        raise BadInput(
            "raw frames have a size and a rate", "for example --raw-size 640x480 --raw-fps 30"
        )
    found = re.fullmatch(r"(\d+)x(\d+)", size)
    width, height = map(int, found.groups()) if found else (0, 0)
    if not (0 < width <= MOST_PX and 0 < height <= MOST_PX):
        raise BadInput(
            f"--raw-size wants WIDTHxHEIGHT in pixels, each from 1 to {MOST_PX}, found {size}",
            "for example --raw-size 640x480",
        )
    return RawFrames(width, height, fps)
