"""Checked records of what a cache writes down about itself: `cache.json` (the plan) and the
receipt of every store.

Nothing read from disk is trusted: a file that is no JSON, or lacks a key, or holds another type is
refused by name.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config.plugins import Settings

MOST_LAYERS, MOST_SIDE, MOST_TOKENS = 1024, 4096, 1 << 20
"""Layers, patches on a side of the square, and special tokens or numbers of one token, that a cache
may claim: far more than any image model has, and few enough to be looked at one by one."""
TIME_BYTES = 8
"""Bytes that every frame takes in `time_s` alone, which is never compressed."""


def _inside(path: str) -> str:
    if path.startswith("/") or "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("wanted a path inside the store")
    return path


Number = Annotated[int, Field(ge=0, lt=2**48)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
FilePath = Annotated[str, AfterValidator(_inside)]


class TokenFacts(Settings):
    """The tokens of one frame, as JSON: a `TokenShape`."""

    width: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    grid_hw: tuple[Side, Side]
    special_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)]
    layers: Annotated[tuple[Number, ...], Field(min_length=1, max_length=MOST_LAYERS)]

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(layers)) < len(layers):
            raise ValueError("wanted each layer once")
        return layers


class Header(Settings):
    """The content of cache.json: what a cache is to hold."""

    format_version: int
    fingerprint: str
    spec: dict[str, Any]
    """The canonical spec: reading a cache needs no encoder."""
    encoder: dict[str, Any]
    """The encoder's identity."""
    decoder: str
    tokens: TokenFacts
    manifest: str
    """Digest of the manifest it is extracted from."""
    root: str
    """Folder of the videos when extraction began; they may be gone."""
    plan: dict[Number, dict[str, Number]]
    """store -> video_id -> frames expected from the header of its file."""
    derived_from: str | None = None
    """Fingerprint of the cache that the tokens come from; None: they come from the videos."""
    codec_sha256: str | None = None
    """SHA-256 of codec.safetensors, what a fitted codec has learnt; None: nothing is fitted."""
    manifest_files: dict[str, tuple[int, str]] = Field(default_factory=dict)
    """File of the manifest's copy -> bytes, sha256. Older caches have none."""
    checksum: str | None = None
    """SHA-256 of this file, see `sealed_json`. None: of a format without it."""

    @property
    def has_checksums(self) -> bool:
        """Whether the format is one in which this file, the receipts and the place of every chunk
        are under checksums."""
        return self.format_version >= 3

    @field_validator("spec")
    @classmethod
    def _whole(cls, spec: dict[str, Any]) -> dict[str, Any]:
        missing = [
            key for key in ("name", "encoder", "frames", "codec", "store") if not spec.get(key)
        ]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        tables = [spec[key] for key in ("encoder", "frames", "codec", "store")]
        views = spec.get("views", [])
        if not all(isinstance(table, dict) for table in tables) or not isinstance(views, list):
            raise ValueError("wanted encoder, frames, codec and store as tables, views as a list")
        if not all(isinstance(table.get("name"), str) for table in (spec, tables[0], tables[2])):
            raise ValueError("wanted a name for itself, the encoder and the codec")
        fps = spec["frames"].get("fps")
        if fps != "all" and not (type(fps) in (int, float) and 0 < fps <= 1000):
            raise ValueError(f"wanted frames.fps in (0, 1000] or 'all', found {str(fps)[:40]}")
        return spec


def header_digest(data: bytes) -> str:
    """SHA-256 over the canonical JSON of cache.json but for `root`, `manifest_files` and
    `checksum`: where the videos and their manifest came from may be said anew, while all that
    tokens depend on may not."""
    moved = {"root", "manifest_files", "checksum"}
    kept = {key: value for key, value in json.loads(data).items() if key not in moved}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class VideoFailure(Settings):
    """Why a video is not, or not wholly, in the cache."""

    reason: str
    frames_stored: int
    stored_until_s: float
    """Presentation time up to which the video is covered; 0 if nothing is."""


class DamagedStretch(Settings):
    """Consecutive frames of a video that are damaged for one reason, or a picture that is missing
    for it."""

    frames: tuple[int, int] | None
    """Decoded frames [start, stop), counted from 0 in the order in which they are shown. None: a
    picture that the file should give and does not."""
    time_s: tuple[float, float]
    """When the first of them is shown and when the last of them ends, in seconds of the file's own
    clock."""
    left_out: int
    """Frames that would be in this store and are not. 0 where they are kept, or where the rate
    keeps none of them."""
    reason: str


class Content(Settings):
    """Numbers of frames of a video."""

    decoded: int
    """Frames that came out of the decoder, whether they are cached or not."""
    header: int | None
    """Frames that its header promises; None: it does not say."""
    first_s: float | None = None
    """Presentation time of the first one that came out of the decoder, or of the first image or
    packet where that one is missing. None: there is none, or the receipt is of a format below 3."""
    damaged: tuple[DamagedStretch, ...] = ()
    """Its frames that are damaged or missing, in the order in which they are shown."""

    @property
    def left_out(self) -> list[DamagedStretch]:
        """Stretches of which frames are left out."""
        return [stretch for stretch in self.damaged if stretch.left_out]

    @property
    def damage_text(self) -> str:
        """What is left out and why, in a few words; "" where nothing is."""
        if not self.left_out:
            return ""
        count, first = sum(stretch.left_out for stretch in self.left_out), self.left_out[0]
        frames = "frame is" if count == 1 else "frames are"
        return (
            f"{count} {frames} left out as damaged or missing, from {first.time_s[0]:.3f} s on: "
            f"{first.reason}"
        )


class Receipt(Settings):
    """The content of receipts/00017.json, which vouches for a store."""

    store: Number
    fingerprint: str
    frames: Number
    videos: dict[str, tuple[Number, Number]]
    """video_id -> rows [start, stop)."""
    failures: dict[str, VideoFailure]
    content: dict[str, Content] = Field(default_factory=dict)
    """video_id -> its frames, of every video that was decoded for this store."""
    seconds: dict[str, float]
    """Step -> seconds of work."""
    device: str
    """Device on which the encoder ran: devices differ in the last bits."""
    versions: dict[str, str]
    """Versions of the tools that wrote the store."""
    finished_s: float | None = None
    """When it was vouched for, in seconds since 1970 by the writer's clock. Serves to estimate
    speed and nothing else."""
    files: dict[FilePath, tuple[Number, str]]
    """Path in the store -> bytes, sha256."""
    taken_from: dict[str, str] = Field(default_factory=dict)
    """Token array -> fingerprint of the cache that it was taken over from; all others were encoded
    for this store."""
    header_sha256: str | None = None
    """What the store was written for, see `header_digest`. None: of a format without it."""
    checksum: str | None = None
    """SHA-256 of this file, see `sealed_json`. None: of a format without it."""

    @model_validator(mode="after")
    def _rows_follow_each_other(self) -> Self:
        expected_start = 0
        for video_id, (start, stop) in self.videos.items():
            if start != expected_start or stop < start:
                raise ValueError(
                    f"rows of video {video_id} are [{start}, {stop}), wanted a start of "
                    f"{expected_start}"
                )
            expected_start = stop
        if expected_start != self.frames:
            raise ValueError(f"rows end at {expected_start}, frames are {self.frames}")
        if self.frames * TIME_BYTES > self.store_bytes:
            raise ValueError(f"{self.frames} frames do not fit into {self.store_bytes} bytes")
        return self

    @property
    def incomplete(self) -> dict[str, VideoFailure]:
        """video_id -> why it is not, or not wholly, in the store: what ended its decoding, and what
        is left out as damaged."""
        found = dict(self.failures)
        for video_id, content in self.content.items():
            if text := content.damage_text:
                start, stop = self.videos.get(video_id, (0, 0))
                failure = found.get(video_id)
                reason = f"{failure.reason}; {text}" if failure else text
                found[video_id] = VideoFailure(
                    reason=reason,
                    frames_stored=stop - start,
                    stored_until_s=failure.stored_until_s
                    if failure
                    else content.left_out[0].time_s[0],
                )
        return found

    @property
    def store_bytes(self) -> int:
        """Size of all files of the store."""
        return sum(size for size, _ in self.files.values())
