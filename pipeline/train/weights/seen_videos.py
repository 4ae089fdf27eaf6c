"""The videos that weights have been trained on, in the folder of their run: pre-training must not
have seen a video that is held out now.

A run writes down its own videos and those of the runs that it began with, so the whole chain is
known from one file, also where those runs are gone. Of every video there are two keys of 8 bytes,
see `video_keys`: 200,000 videos take 4.3 MB.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from typing import Annotated, Self

import numpy as np
from pydantic import Field, field_validator

from pipeline.config.json_files import parse_json
from pipeline.config.plugins import Settings
from pipeline.config.regular_files import read_regular
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.video_keys import KEY_BYTES
from pipeline.errors import BadInput, count_text
from pipeline.records import Clip
from pipeline.train.run import Run

VIDEOS_FILE = "videos.json"
TRAIN = "train"
"""The split that is trained on; videos of all others are held out."""
AGAIN = "train that run again into another --out"


class SeenVideos(Settings):
    """The content of videos.json."""

    videos: Annotated[int, Field(ge=0)]
    """Videos of the run's own training split that it used."""
    keys: str
    """Base64 of all keys of these, and of those that the runs before it had seen: 8 bytes each,
    ascending."""
    unknown: tuple[str, ...] = ()
    """Folders of runs in the chain that do not say which videos they were trained on."""

    @field_validator("keys")
    @classmethod
    def _whole(cls, keys: str) -> str:
        if len(base64.b64decode(keys, validate=True)) % KEY_BYTES:
            raise ValueError(f"wanted {KEY_BYTES} bytes of each key")
        return keys

    @classmethod
    def of(cls, manifest: Manifest, clips: Iterable[Clip], before: SeenVideos | None) -> Self:
        """Those of the clips that are trained on, and those of the runs `before`."""
        used = {clip.video_id for clip in clips}
        own = manifest.video_keys[[video.video_id in used for video in manifest.videos]]
        keys = own if before is None else np.append(own, before.array)
        text = base64.b64encode(np.unique(keys).astype("<u8").tobytes()).decode()
        return cls(videos=len(used), keys=text, unknown=before.unknown if before else ())

    @classmethod
    def read(cls, run: Run) -> Self:
        """What a run has seen; of an imported run, or one that was made before there was such a
        file, it is unknown. Raises BadInput where the file is missing or damaged."""
        sha256, file = run.header.videos_sha256, run.path / VIDEOS_FILE
        if sha256 is None:
            return cls(videos=0, keys="", unknown=(str(run.path),))
        try:
            data = read_regular(file)
        except OSError as error:
            raise BadInput(f"{file} cannot be read: {error.strerror}", AGAIN) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadInput(f"{file} is damaged: its content differs from its checksum", AGAIN)
        return parse_json(cls, data, str(file), AGAIN)

    @property
    def array(self) -> np.ndarray:
        """All keys, uint64."""
        return np.frombuffer(base64.b64decode(self.keys), "<u8")

    def among(self, manifest: Manifest) -> list[str]:
        """ids of the videos of a manifest that are known to have been seen, in its order."""
        rows, _ = np.isin(manifest.video_keys, self.array).nonzero()
        return [manifest.videos[row].video_id for row in np.unique(rows)]

    def require_unseen(self, manifest: Manifest, source: Run) -> None:
        """Refuses weights of run `source`, which has seen these, where one of them is a video that
        the manifest holds out."""
        held_out = {
            clip.video_id: clip.split for clip in reversed(manifest.clips) if clip.split != TRAIN
        }
        seen = [video_id for video_id in self.among(manifest) if video_id in held_out]
        if seen:
            raise BadInput(
                f"run {source.path}, or one that it began with, was trained on "
                f"{count_text(len(seen), 'video')} of {len(held_out)} that {manifest.folder} "
                f"holds out, the first is {seen[0]} (split '{held_out[seen[0]]}')",
                "train on other videos first, or hold other ones out: stillframe manifest split",
            )

    @property
    def note(self) -> str:
        """What to say where it is not known which videos were seen; "" where it is."""
        if not self.unknown:
            return ""
        return (
            f"{', '.join(self.unknown)}: it is not known which videos these weights were trained "
            "on (the run was imported, or made before 0.5.0), so nothing tells whether one is held "
            "out now"
        )


def videos_seen(run: Run, manifest: Manifest, video_ids: Collection[str]) -> int | None:
    """How many of some videos of a manifest a run, or one that it began with, was trained on; None
    where nothing tells, also where the file is missing or damaged."""
    try:
        seen = SeenVideos.read(run)
    except BadInput:
        return None
    count = len(set(video_ids).intersection(seen.among(manifest)))
    return None if seen.unknown and not count else count
