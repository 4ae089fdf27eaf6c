"""What tells a video from others in manifests that were made apart: two keys of 64 bits, of which
one that two videos share makes them the same.

By name: its id and what its header says of size and frames, whatever the data set is called, since
selections, other labels and splits, and `playback` of a folder keep ids. Videos that were rendered
are drawn by a seed, which counts too: the built-in world has the same names for every seed.

By place: where its file is, since ids are paths from a folder that somebody chose, and joined
manifests put a name before ids that clash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pipeline.records import Video
from pipeline.video.probe import Probe

KEY_BYTES = 8


def video_keys(
    videos: Iterable[Video], facts: Mapping[str, Probe | None], root: Path, seed: int | None
) -> np.ndarray:
    """(videos, 2) uint64: the key by name and the key by place of every video. `facts` say what
    headers say, `root` is the folder of the videos, and `seed` drew them if they were rendered."""
    folder = os.fspath(root)
    text = [
        part
        for video in videos
        for part in (
            f"name {seed} {_shape(facts.get(video.video_id))} {video.video_id}",
            f"place {os.path.normpath(f'{folder}/{video.source}')}",
        )
    ]
    data = b"".join(
        hashlib.blake2b(
            part.encode("utf-8", errors="surrogateescape"), digest_size=KEY_BYTES
        ).digest()
        for part in text
    )
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def _shape(facts: Probe | None) -> str:
    """Size and frames of a video as its header has them; "" where it is not known."""
    return "" if facts is None else f"{facts.width}x{facts.height}x{facts.frames_from_header}"
