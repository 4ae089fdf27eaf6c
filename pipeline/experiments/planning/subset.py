"""A small manifest in the place of a large one: a subset of its videos, chosen by the frames they
give, and of long ones the beginning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from pipeline.config.cache_spec import CacheSpec
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.datasets.contract import DatasetPlugin
from pipeline.datasets.manifest import manifest
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.errors import BadVideo, StillframeError
from pipeline.records import Clip, Rate, Video
from pipeline.video.isolated.sandbox import Decoder
from pipeline.video.probe import TIMESTAMPS, Probe, expected_frames, list_images, open_video

MIN_HEAD_FRAMES = 64
"""Frames of a long video that are taken at least."""
CHECKED_VIDEOS = 4
"""Chosen videos up to which each is opened first: of few, one that cannot be decoded matters."""
SKIP_HINT = "--measure-s 0 plans without looking at any"
MISSING_HINT = f"--root says where they are; {SKIP_HINT}"
HELD_OUT = 2
"""Videos that are also there as evaluation split, which training wants to see."""


class _SubsetDataset(DatasetPlugin):
    """Some videos of a manifest, linked or cut short, with their clips and truth; the first few
    also as evaluation split."""

    Settings = Settings

    def __init__(
        self, root: Path, videos: Manifest, chosen: list[Video], head_s: float | None
    ) -> None:
        """Puts the `chosen` videos into `root`, each cut after `head_s` where that is given."""
        super().__init__(root, Settings())
        self.all, self.head_s, self.clock = videos, head_s, videos.origin.clock
        self.original_clip: dict[str, str] = {}
        """Clip of this data set -> clip of the manifest."""
        self.linked: dict[str, list[tuple[str, str]]] = {}
        """Video of the manifest -> (split, file in `root`)."""
        for number, video in enumerate(chosen):
            for split in ("train", "val") if number < HELD_OUT else ("train",):
                link = root / f"{split}-{number}{Path(video.source).suffix}"
                name = _link_head(videos.root / video.source, link, video.image_fps, head_s)
                if name is not None:
                    self.linked.setdefault(video.video_id, []).append((split, name))

    def clips(self) -> Iterator[Clip]:
        """The clips that begin within the head of their video; of a video without such a clip the
        first one, from the start of the video."""
        with_clip: set[str] = set()
        for clip in self.all.clips:
            if self.head_s is not None and clip.start_s >= self.head_s:
                if clip.video_id in with_clip:
                    continue
                clip = replace(clip, start_s=0.0, stop_s=None)
            with_clip.add(clip.video_id)
            for split, source in self.linked.get(clip.video_id, ()):
                clip_id = f"{split} {clip.clip_id}"
                self.original_clip[clip_id] = clip.clip_id
                yield replace(clip, clip_id=clip_id, video_id=source, source=source, split=split)

    def targets(self, clip: Clip) -> dict[str, np.ndarray]:
        return self.all.targets(self.original_clip[clip.clip_id])


def write_synthetic(spec: CacheSpec, recipe: Recipe | None, folder: Path) -> Manifest:
    """Renders small videos with every kind of truth into `folder`, for a plan without videos."""
    fps = math.ceil(max(12, spec.frames.rate or 0, (recipe and recipe.windows.fps) or 0))
    settings = {"scene": "room", "clips_per_class": 1, "frames": 48, "fps": fps, "size_px": 160}
    return manifest.build("world", None, folder, settings)


def write_subset(videos: Manifest, spec: CacheSpec, frames: int, folder: Path) -> Manifest:
    """A manifest in `folder` of videos that give about `frames` frames, in the same proportions of
    sizes as all of them.

    Raises StillframeError if none of them can be opened.
    """
    facts = videos.facts
    usable = [video for video in videos.videos if facts.get(video.video_id) is not None]
    candidates = [(video, facts.get(video.video_id)) for video in usable or videos.videos]
    candidates.sort(key=lambda pair: pair[1].width * pair[1].height if pair[1] else 0)
    num_usable = len(candidates)
    chosen, head, longest = _choose(candidates, spec.frames.kept, frames)
    # Headers that promise too much are chosen first: what holds nothing is chosen no more.
    while len(chosen) <= CHECKED_VIDEOS and (
        empty := [video for video in chosen if not _has_frames(videos.root / video.source, video)]
    ):
        candidates = [pair for pair in candidates if pair[0] not in empty]
        if not candidates:
            raise StillframeError(
                f"none of {num_usable} videos of {videos.folder} can be opened", MISSING_HINT
            )
        chosen, head, longest = _choose(candidates, spec.frames.kept, frames)
    fps = spec.frames.rate or median_fps(videos) / spec.frames.every
    head_s = head / fps if longest > head else None
    root = folder / "videos"
    root.mkdir(parents=True)
    dataset = _SubsetDataset(root, videos, chosen, head_s)
    if not dataset.linked:
        raise StillframeError(
            f"none of {len(chosen)} sampled videos of {videos.folder} can be opened", MISSING_HINT
        )
    return manifest.write("sample", dataset, folder)


def _choose(
    candidates: Sequence[tuple[Video, Probe | None]], rate: Rate, frames: int
) -> tuple[list[Video], int, int]:
    """Videos whose heads give about `frames` frames, at even distances along all frames of the
    candidates; frames of a head; and frames of the longest candidate."""
    frames_K = np.array([expected_frames(fact, rate) if fact else 1 for _, fact in candidates])
    head = max(MIN_HEAD_FRAMES, frames // 8)
    mean_head = float(np.minimum(frames_K, head).mean())
    count = min(len(candidates), max(1, round(frames / mean_head)))
    places = (np.arange(count) + 0.5) / count * frames_K.sum()
    indices = np.unique(np.searchsorted(frames_K.cumsum(), places))
    return [candidates[index][0] for index in indices], head, int(frames_K.max())


def _has_frames(path: Path, video: Video) -> bool:
    """Whether anything of a video can be decoded."""
    try:
        with Decoder() as decoder:
            return next(decoder.decode(path, [None], video.image_fps), None) is not None
    except (BadVideo, OSError):
        return False


def median_fps(videos: Manifest) -> float:
    """Median frame rate of the videos in frames per second; 25 where headers do not say."""
    return statistics.median(
        [fact.fps for fact in videos.facts.values() if fact and fact.fps] or [25.0]
    )


def _link_head(path: Path, link: Path, image_fps: float | None, head_s: float | None) -> str | None:
    """Puts a video beside `link`, cut after `head_s` if it is longer. Returns its name, or None if
    it cannot be opened."""
    try:
        if path.is_dir():
            _link_images(path, link, image_fps, head_s)
            return link.name
        if head_s is None or not _cut(path, link.with_suffix(".mkv"), head_s):
            link.symlink_to(path)
            return link.name
        return link.with_suffix(".mkv").name
    # The last two: what cannot be put into a file of another kind.
    except (BadVideo, OSError, ValueError, av.FFmpegError):
        return None


def _link_images(path: Path, link: Path, image_fps: float | None, head_s: float | None) -> None:
    """Makes `link` a folder of the images of the first `head_s`, two at least, with their times if
    they have any."""
    images, time_s, _ = list_images(path, image_fps)
    if head_s is not None:
        images = images[: max(2, int(np.searchsorted(time_s - time_s[0], head_s)))]
    link.mkdir()
    for image in images:
        (link / image.name).symlink_to(image)
    if (path / TIMESTAMPS).is_file():
        lines = [f"{time!r}\n" for time in time_s[: len(images)].tolist()]
        (link / TIMESTAMPS).write_text("".join(lines), encoding="utf-8")


def _cut(path: Path, out: Path, head_s: float) -> bool:
    """Writes the packets of the first `head_s` as a file of its own; False, and no file, if the
    video is shorter."""
    container, stream = open_video(path)
    with container, av.open(str(out), "w") as cut:
        copied = cut.add_stream_from_template(stream)
        start_s = None
        for packet in container.demux(stream):
            if packet.dts is None:
                continue
            time_s = float(packet.dts * packet.time_base)
            start_s = time_s if start_s is None else start_s
            if time_s - start_s > head_s:
                return True
            packet.stream = copied
            cut.mux(packet)
    out.unlink()
    return False
