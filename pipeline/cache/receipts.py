"""Checked records of what a cache writes down about itself: `cache.json` (the plan) and the
receipt of every store.

Nothing read from disk is trusted: a file that is no JSON, or lacks a key, or holds another type is
refused by name.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.plugins import Settings


class TokenFacts(Settings):
    """The tokens of one frame, as JSON: a `TokenShape`."""

    width: int
    grid_hw: tuple[int, int]
    special_tokens: int
    layers: tuple[int, ...]


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
    plan: dict[int, dict[str, int]]
    """store -> video_id -> frames expected from the header of its file."""
    derived_from: str | None = None
    """Fingerprint of the cache that the tokens come from; None: they come from the videos."""
    codec_sha256: str | None = None
    """SHA-256 of codec.safetensors, what a fitted codec has learnt; None: nothing is fitted."""

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
        if missing or "fps" not in spec["frames"] or "name" not in spec["codec"]:
            raise ValueError(f"lacks {', '.join(missing) or 'frames.fps or codec.name'}")
        return spec


class VideoFailure(Settings):
    """Why a video is not, or not wholly, in the cache."""

    reason: str
    frames_stored: int
    stored_until_s: float
    """Presentation time up to which the video is covered; 0 if nothing is."""


class Content(Settings):
    """Numbers of frames of a video."""

    decoded: int
    """Frames that came out of the decoder, whether they are cached or not."""
    header: int | None
    """Frames that its header promises; None: it does not say."""


class Receipt(Settings):
    """The content of receipts/00017.json, which vouches for a store."""

    store: int
    fingerprint: str
    frames: int
    videos: dict[str, tuple[int, int]]
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
    files: dict[str, tuple[int, str]]
    """Path in the store -> bytes, sha256."""
    taken_from: dict[str, str] = Field(default_factory=dict)
    """Token array -> fingerprint of the cache that it was taken over from; all others were encoded
    for this store."""

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
        return self

    @property
    def store_bytes(self) -> int:
        """Size of all files of the store."""
        return sum(size for size, _ in self.files.values())
