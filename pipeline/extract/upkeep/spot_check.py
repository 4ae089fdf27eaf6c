"""Cached frames encoded again on this machine, and how far the stored tokens are from the fresh
ones.

A cosine of 1 means that a token is what the encoder gives today. How much less a codec may cause
follows from the bound that it puts on its own error; what falls below that, rounding of the
encoder's arithmetic allowed for, has drifted: other pixels, other weights, or a cache that was not
what it said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.cache import Cache, Location
from pipeline.cache.layout import TIMES
from pipeline.config.cache_spec import CacheSpec, choice
from pipeline.device import chosen
from pipeline.errors import BadInput, BadVideo
from pipeline.extract.derive import OnFrames
from pipeline.extract.encode import named_tokens
from pipeline.extract.worker import load_encoder
from pipeline.models.encoders.contract import EncoderPlugin, make_encoder
from pipeline.records import Video
from pipeline.video.reader import FrameReader

FRAMES_OF_A_VIDEO = 8
"""Frames sampled of each video: all before them must be decoded too."""
ROUNDING = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Deviation of a token, relative to its length, that another device or another batch may cause in
the encoder's arithmetic."""
BINS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Edges of the histogram, in 1 - cosine."""
WORST = 5
"""The number of frames with the least cosine that are named."""
TIME_S = 1e-6
"""Presentation times that differ by less are the same."""


@dataclass(frozen=True)
class VideoCheck:
    """Some frames of a video: stored against fresh, token by token."""

    video_id: str
    time_s: np.ndarray
    """Presentation times (F,) as stored."""
    mismatch_s: np.ndarray
    """Distance (F,) of the fresh times from the stored ones."""
    cosine: dict[str, np.ndarray]
    """Token array -> cosine (F, N) of stored and fresh tokens."""
    allowed: dict[str, np.ndarray]
    """Token array -> the least cosine (F, N) that codec and rounding allow."""


@dataclass(frozen=True)
class ArrayAgreement:
    """How near the stored tokens of one array are to fresh ones, over all frames of the sample."""

    tokens: int
    min: float
    """The least cosine of a token; `percentile_1` and `median` are cosines, too."""
    percentile_1: float
    median: float
    allowed: float | None
    """The least cosine that codec and rounding allow any token; None: the cache is not judged."""
    below: int | None
    """The number of tokens that are further off than they are allowed."""
    histogram: list[int]
    """The number of tokens in every bin of 1 - cosine."""


@dataclass(frozen=True)
class FrameAgreement:
    """The token of a frame that is furthest from its fresh one."""

    video: str
    time_s: float
    array: str
    cosine: float
    drifted: bool


@dataclass(frozen=True)
class SpotCheck:
    """The outcome of a spot check. As JSON it is what `stillframe spot-check --json` prints."""

    cache: str
    seed: int
    judged: bool
    """Whether tokens can be called drifted: in a derived cache, and in another precision, they
    cannot."""
    arrays: dict[str, ArrayAgreement]
    bins: list[float]
    """Edges of the histograms, in 1 - cosine."""
    worst: list[FrameAgreement]
    """The frames with the least cosines, the least first."""
    drifted: list[str]
    """Videos with a token that is further off than it is allowed."""
    mismatch_s: float
    """The largest distance of a fresh presentation time from the stored one."""
    shifted: list[str]
    """Videos with frames at other times than stored."""
    changed: dict[str, str]
    """Videos that are gone or can no longer be read as they were cached -> the reason."""
    frames_sampled: int
    videos_sampled: int

    @property
    def is_sound(self) -> bool:
        return not (self.drifted or self.shifted or self.changed)


def spot_check(
    cache: Cache,
    fraction: float,
    root: Path | None = None,
    device: torch.device | None = None,
    seed: int = 0,
    on_frames: OnFrames | None = None,
    precision: str | None = None,
) -> SpotCheck:
    """Encodes about `fraction` of the cached frames again; the sample follows from `seed`.

    `root`: where the videos are now. `precision`: the encoder computes in this one, such as
    "float32", and not in the cache's own; then nothing is held against the cache. Raises BadInput
    where nothing is stored, or the encoder is not the cache's.
    """
    folder, device = root or Path(cache.header.root), chosen(device)
    if not folder.is_dir():
        raise BadInput(
            f"the folder of the videos {folder} is not here", "say where they are: --root DIR"
        )
    sample = sample_frames(cache.locations, fraction, seed)
    if not sample:
        raise BadInput(f"cache {cache} holds no frames", "see: stillframe status")
    encoder = load_encoder(cache, device)
    if precision is not None:
        encoder = make_encoder(_in_precision(cache.cache_spec, precision), device)
    encoder.prepare(cache.cache_spec.store.batch_frames)
    videos = {video.video_id: video for video in cache.manifest.videos}
    total, done = sum(map(len, sample.values())), 0
    checks, changed = [], {}
    with FrameReader(folder, device) as reader:
        for video_id, numbers in sample.items():
            try:
                checks.append(_check_video(cache, encoder, reader, videos[video_id], numbers))
            except BadVideo as error:
                changed[video_id] = error.message
            done += len(numbers)
            if on_frames:
                on_frames(done, total)
    # How much the codec of its source lost is not in a derived cache, so nothing can be held
    # against it.
    judged = cache.header.derived_from is None and precision is None
    return _summarise(cache, checks, changed, seed, sample, judged)


def _in_precision(spec: CacheSpec, precision: str) -> CacheSpec:
    table = spec.encoder.table() | {"precision": precision}
    return spec.model_copy(update={"encoder": choice("encoder", table)})


def sample_frames(
    locations: dict[str, Location], fraction: float, seed: int
) -> dict[str, np.ndarray]:
    """video_id -> ascending numbers of its sampled frames, counted from its first: few videos, some
    frames of each."""
    rng = np.random.default_rng(seed)
    lengths = {video_id: location.stop - location.start for video_id, location in locations.items()}
    frames_left, of_each = int(np.ceil(fraction * sum(lengths.values()))), FRAMES_OF_A_VIDEO
    while sum(min(of_each, length) for length in lengths.values()) < frames_left:
        of_each *= 2
    sample: dict[str, np.ndarray] = {}
    names = list(lengths)
    for number in rng.permutation(len(names)):
        count = min(of_each, lengths[names[number]], frames_left)
        if count:
            sample[names[number]] = np.sort(
                rng.choice(lengths[names[number]], count, replace=False)
            )
            frames_left -= count
    return sample


def least_cosine(error: torch.Tensor, tokens: torch.Tensor, rounding: float) -> torch.Tensor:
    """The least cosine (...) between tokens (..., D) and tokens that are off by at most `error`
    (..., D) and a part `rounding` of their length.

    An error of length e turns a vector of length x by at most arcsin(e / x).
    """
    length = tokens.norm(dim=-1).clamp(min=torch.finfo(tokens.dtype).tiny)
    angle = torch.asin((error.norm(dim=-1) / length).clamp(max=1)) + float(np.arcsin(rounding))
    return torch.cos(angle.clamp(max=torch.pi))


def _check_video(
    cache: Cache,
    encoder: EncoderPlugin,
    reader: FrameReader,
    video: Video,
    numbers: np.ndarray,
) -> VideoCheck:
    location = cache.locations[video.video_id]
    rows = location.start + numbers
    stored_s = cache.small_array(location.store, TIMES)[rows]
    squares: dict[str, list[torch.Tensor]] = {view: [] for view in cache.views}
    fresh_s: list[float] = []
    for block in reader.numbered(video, cache.cache_spec.frames, numbers, cache.views):
        for view, squares_FCHW in block.views.items():
            squares[view].append(squares_FCHW)
        fresh_s += block.time_s.tolist()
    if len(fresh_s) < len(numbers):
        at_s = stored_s[len(fresh_s)]
        raise BadVideo(
            f"{video.source}: its content ends before the frame that was cached at {at_s:.3f} s"
        )
    cosine: dict[str, list[torch.Tensor]] = {}
    allowed: dict[str, list[torch.Tensor]] = {}
    batch_frames = cache.cache_spec.store.batch_frames
    for view, parts in squares.items():
        for number, batch in enumerate(torch.cat(parts).split(batch_frames)):
            with torch.inference_mode():
                tokens = named_tokens(encoder(batch), view)
            of_batch = rows[number * batch_frames :][: len(batch)]
            for name, encoded_FND in tokens.items():
                codec, fresh_FND = cache.codecs[name], encoded_FND.double().cpu()
                stored = cache.stored_rows(location.store, name, of_batch)
                stored_FND = codec.decode(
                    {key: torch.from_numpy(array) for key, array in stored.items()}
                ).double()
                error_FND = codec.max_error(encoded_FND.float().cpu()).double()
                cosine.setdefault(name, []).append(_cosine(stored_FND, fresh_FND))
                allowed.setdefault(name, []).append(
                    least_cosine(error_FND, fresh_FND, ROUNDING[encoded_FND.dtype])
                )
    joined = (
        {name: torch.cat(parts).numpy() for name, parts in batches_of.items()}
        for batches_of in (cosine, allowed)
    )
    return VideoCheck(video.video_id, stored_s, np.abs(np.array(fresh_s) - stored_s), *joined)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine (...) between vectors (..., D); that of two zeros is 1."""
    return torch.where((a == b).all(-1), 1.0, torch.cosine_similarity(a, b, dim=-1))


def _summarise(
    cache: Cache,
    checks: list[VideoCheck],
    changed: dict[str, str],
    seed: int,
    sample: dict[str, np.ndarray],
    judged: bool,
) -> SpotCheck:
    frames = [frame for check in checks for frame in _frames(check, judged)]
    return SpotCheck(
        cache=str(cache),
        seed=seed,
        judged=judged,
        arrays={name: _array(checks, name, judged) for name in cache.token_arrays if checks},
        bins=list(BINS),
        worst=sorted(frames, key=lambda frame: frame.cosine)[:WORST],
        drifted=sorted({frame.video for frame in frames if frame.drifted}),
        mismatch_s=max((float(check.mismatch_s.max()) for check in checks), default=0.0),
        shifted=[check.video_id for check in checks if check.mismatch_s.max() > TIME_S],
        changed=changed,
        frames_sampled=sum(map(len, sample.values())),
        videos_sampled=len(sample),
    )


def _array(checks: list[VideoCheck], name: str, judged: bool) -> ArrayAgreement:
    cosine = np.concatenate([check.cosine[name].ravel() for check in checks])
    allowed = np.concatenate([check.allowed[name].ravel() for check in checks])
    bin_of = np.searchsorted(BINS, 1 - cosine, side="right")
    return ArrayAgreement(
        tokens=len(cosine),
        min=float(cosine.min()),
        percentile_1=float(np.percentile(cosine, 1)),
        median=float(np.median(cosine)),
        allowed=float(allowed.min()) if judged else None,
        below=int((cosine < allowed).sum()) if judged else None,
        histogram=np.bincount(bin_of, minlength=len(BINS) + 1).tolist(),
    )


def _frames(check: VideoCheck, judged: bool) -> Iterator[FrameAgreement]:
    for frame, time_s in enumerate(check.time_s.tolist()):
        least = {name: float(cosine[frame].min()) for name, cosine in check.cosine.items()}
        name = min(least, key=lambda array: least[array])
        drifted = judged and any(
            bool((cosine[frame] < check.allowed[array][frame]).any())
            for array, cosine in check.cosine.items()
        )
        yield FrameAgreement(check.video_id, time_s, name, least[name], drifted)
