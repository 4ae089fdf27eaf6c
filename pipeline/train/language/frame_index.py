"""Embeddings of all frames of a cache in one file, mapped into memory, which the first query makes.

It lies beside the cache, in `.search/NAME-KEY.f16`: float16 (F, D), then float64 (F,), the seconds
of each frame after the first one of its video, then int64 (V + 1,), where each video begins.
`NAME-KEY.json` is written last and says what it is. The key is a hash over all that the embeddings
are made of, such as the cache's fingerprint, its receipts and the weights of its model: a cache
that grew, or another one in its place, has another key. Several processes may make an index at
once: each writes a file of its own and renames it, and what they write is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import require_valid
from pipeline.cache.layout import TIMES
from pipeline.cache.storage.local import make_folder, written_whole
from pipeline.config.json_files import read_json, to_json
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput, count_text
from pipeline.train.language.frame_embeddings import FrameEmbeddings, image_head_of
from pipeline.train.language.places import folder_of, places

FORMAT_VERSION = 2
FOLDER = ".search"
"""Beside the cache."""
SLACK_S = 1e-6
"""Times are told apart from here on."""
FLOAT16, FLOAT64, INT64 = np.dtype("<f2"), np.dtype("<f8"), np.dtype("<i8")

OnFrames = Callable[[int, int], None]
"""Called with (frames done, frames to do)."""
Say = Callable[[str], object]
VideoEmbeddings = tuple[np.ndarray, np.ndarray]
"""(F, D) embeddings of the frames of a video, and (F,) their seconds after its first one."""


class IndexHeader(Settings):
    """The content of NAME-KEY.json."""

    format_version: int
    key: str
    frames: int
    """F."""
    width: int
    """D."""
    videos: int
    """V."""
    frame_s: float | None
    """As in `FrameIndex`."""


@dataclass(frozen=True)
class FrameIndex:
    """Embeddings of F frames of V videos, video after video, in the order of their times."""

    embeddings_FD: torch.Tensor
    """float16, of unit length but for rounding."""
    after_s_F: np.ndarray
    """float64: seconds after the first frame of the frame's own video."""
    videos: tuple[str, ...]
    starts_V: np.ndarray
    """int64 (V + 1,): frames [starts[v], starts[v + 1]) are those of video v."""
    frame_s: float | None = None
    """How long each is shown, in seconds; None: for the mean step of its video."""

    def __len__(self) -> int:
        return len(self.after_s_F)

    @cached_property
    def video_of_frame(self) -> np.ndarray:
        """int64 (F,): the number of its video."""
        return np.repeat(np.arange(len(self.videos)), np.diff(self.starts_V))

    @cached_property
    def _number(self) -> dict[str, int]:
        return {video: number for number, video in enumerate(self.videos)}

    def of_video(self, video: str) -> tuple[int, int]:
        """[start, stop): the frames of a video."""
        number = self._number[video]
        start, stop = map(int, self.starts_V[number : number + 2])
        return start, stop

    def frame_at(self, video: str, after_s: float) -> int:
        """The frame of a video that is on screen so many seconds after its first one."""
        start, stop = self.of_video(video)
        return start + on_screen(self.after_s_F[start:stop], after_s)


def seconds_of_frames(cache: Cache, video: str) -> np.ndarray:
    """(F,) float64: when the cached frames of a video are shown, in seconds after its first one."""
    at = cache.locations[video]
    time_s = cache.small_array(at.store, TIMES)[at.start : at.stop]
    return np.asarray(time_s, FLOAT64) - cache.first_s(video)


def on_screen(time_s_F: np.ndarray, second: float) -> int:
    """The frame that is shown then, of frames at these times; -1 before the first one."""
    return int(np.searchsorted(time_s_F, second + SLACK_S, side="right")) - 1


def open_index(
    cache: Cache,
    model: str | None,
    device: torch.device,
    on_frames: OnFrames = lambda _done, _total: None,
    say: Say = lambda _: None,
) -> FrameIndex:
    """The index of a cache, which is made where there is none that is valid. `model` says where the
    cache's image-text model is now, if it was moved; `say` is told where a new index lies.

    Raises BadInput where the cache has no frames, or tokens are missing or damaged.
    """
    if not cache.locations:
        raise BadInput(
            f"cache {cache} has no frames yet", f"see how far it is: stillframe status {cache}"
        )
    places = IndexPlaces(cache, "", index_key(cache))
    if index := places.find():
        return index
    require_valid(cache)
    source = FrameEmbeddings(cache, image_head_of(cache, model, device), device)
    if not source.is_exact:
        say(
            f"the codec '{cache.spec['codec']['name']}' of {cache} keeps a part of every token: "
            "scores are approximate"
        )

    def videos() -> Iterator[VideoEmbeddings]:
        done, total = 0, sum(at.stop - at.start for at in cache.locations.values())
        for video in cache.locations:
            embeddings_FD = source.of_video(video)
            yield embeddings_FD, seconds_of_frames(cache, video)
            done += len(embeddings_FD)
            on_frames(done, total)

    return places.make(videos, say)


def hash_of(meaning: dict[str, Any]) -> str:
    """12 hexadecimal digits over what embeddings are made of."""
    meaning = {"format": FORMAT_VERSION, **meaning}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def content_of(cache: Cache) -> dict[str, Any]:
    """What identifies the tokens that a cache holds now."""
    return {
        "fingerprint": cache.fingerprint,
        "weights": cache.header.encoder.get("weights"),
        "receipts": {
            store: hashlib.sha256(to_json(receipt)).hexdigest()
            for store, receipt in sorted(cache.receipts.items())
        },
    }


def index_key(cache: Cache) -> str:
    """The key under which the index of a cache's frames is kept."""
    return hash_of(content_of(cache))


@dataclass(frozen=True)
class IndexPlaces:
    """Where an index of the videos of a cache is kept."""

    cache: Cache
    of: str
    """Whose embeddings they are: "" for those of frames, else the name of a run."""
    key: str

    @property
    def _prefix(self) -> str:
        # A dash ends it, and a dot stands before a run's name: what one index leaves behind when
        # the cache has grown is told apart from all others.
        return (self.cache.name.strip(".") or "cache") + (f".{self.of}" if self.of else "") + "-"

    @property
    def _files(self) -> list[Path]:
        name = f"{self._prefix}{self.key}.f16"
        return [folder / name for folder in places(folder_of(self.cache), FOLDER)]

    def find(self) -> FrameIndex | None:
        """The index that is kept; None where there is none that is valid."""
        return next(filter(None, map(self._mapped, self._files)), None)

    def make(
        self,
        videos: Callable[[], Iterable[VideoEmbeddings]],
        say: Say,
        frame_s: float | None = None,
    ) -> FrameIndex:
        """The index of the cache's videos, one after the other, which is kept from now on. `say`
        is told where it lies."""
        for data in self._files:
            try:
                index = self._written(data, videos(), frame_s)
            except OSError as error:
                say(f"no index can be written into {data.parent}: {error.strerror}")
                continue
            size = data.stat().st_size
            what = count_text(len(index), "window" if self.of else "frame")
            say(f"index: {data}, {what}, {size:,} bytes")
            return index
        say("the index is made in memory, and again by the next search")
        memory = io.BytesIO()
        header = self._write(memory, videos(), frame_s)
        return self._index(np.frombuffer(bytearray(memory.getbuffer()), np.uint8), header)

    def _mapped(self, data: Path) -> FrameIndex | None:
        """The index in a file; None where there is none, or it is not what it should be."""
        with suppress(OSError, BadInput, ValueError):
            versions = range(FORMAT_VERSION, FORMAT_VERSION + 1)
            header = read_json(IndexHeader, data.with_suffix(".json"), "", versions)
            # Private to this process: torch wants memory that it may write to.
            content = np.memmap(data, np.uint8, "c")
            if header.key == self.key and header.videos == len(self.cache.locations):
                return self._index(content, header)
        return None

    def _index(self, content: np.ndarray, header: IndexHeader) -> FrameIndex:
        """The content of a file as an index. Raises ValueError where its size is another, or videos
        begin where none can."""
        frames, width = header.frames, header.width
        ends = np.cumsum([frames * width * FLOAT16.itemsize, frames * FLOAT64.itemsize])
        embeddings, after, starts = np.split(content, ends)
        starts_V = np.array(starts.view(INT64).reshape(header.videos + 1))
        if starts_V[0] != 0 or starts_V[-1] != frames or (np.diff(starts_V) < 0).any():
            raise ValueError("videos begin elsewhere")
        return FrameIndex(
            torch.from_numpy(embeddings.view(FLOAT16).reshape(frames, width)),
            np.array(after.view(FLOAT64).reshape(frames)),
            tuple(self.cache.locations),
            starts_V,
            header.frame_s,
        )

    def _written(
        self, data: Path, videos: Iterable[VideoEmbeddings], frame_s: float | None
    ) -> FrameIndex:
        """Makes the index in a file. Raises OSError where it cannot be written."""
        base, folder = data.parent.parent, data.parent.name
        make_folder(base)
        with written_whole(base, f"{folder}/{data.name}") as file:
            header = self._write(file, videos, frame_s)
        content = np.memmap(data, np.uint8, "c")
        with written_whole(base, f"{folder}/{data.with_suffix('.json').name}") as file:
            file.write(to_json(header))
        for path in data.parent.iterdir():
            if path.name.startswith(self._prefix) and path.stem != data.stem:
                # Of an earlier state of the cache. Who has it mapped goes on with it.
                path.unlink(missing_ok=True)
        return self._index(content, header)

    def _write(
        self, file: Any, videos: Iterable[VideoEmbeddings], frame_s: float | None
    ) -> IndexHeader:
        """Writes embeddings and times of all frames, and where each video begins."""
        times, counts, width = [np.zeros(0, FLOAT64)], [0], 0
        for embeddings_FD, after_s_F in videos:
            file.write(embeddings_FD.astype(FLOAT16).tobytes())
            times.append(after_s_F.astype(FLOAT64))
            counts.append(len(after_s_F))
            width = embeddings_FD.shape[1]
        file.write(np.concatenate(times).tobytes())
        file.write(np.cumsum(counts).astype(INT64).tobytes())
        return IndexHeader(
            format_version=FORMAT_VERSION,
            key=self.key,
            frames=sum(counts),
            width=width,
            videos=len(counts) - 1,
            frame_s=frame_s,
        )
