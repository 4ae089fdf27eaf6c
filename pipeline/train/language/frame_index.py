"""Embeddings of all frames of a cache in one file, mapped into memory, which the first query makes.

It lies beside the cache, in `.search/NAME-KEY.f16`: float16 (F, D), then float64 (F,), the seconds
of each frame after the first one of its video. `NAME-KEY.json` is written last and says what it is.
The key is a hash over the cache's fingerprint, its receipts and the weights of its model: a cache
that grew, or another one in its place, has another key. Several processes may make an index at
once: each writes a file of its own and renames it, and what they write is the same.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
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

FORMAT_VERSION = 1
FOLDER = ".search"
"""Beside the cache."""
SLACK_S = 1e-6
"""Times are told apart from here on."""
FLOAT16, FLOAT64 = np.dtype("<f2"), np.dtype("<f8")

OnFrames = Callable[[int, int], None]
"""Called with (frames done, frames to do)."""
Say = Callable[[str], object]


class IndexHeader(Settings):
    """The content of NAME-KEY.json."""

    format_version: int
    fingerprint: str
    """Of the cache."""
    key: str
    frames: int
    width: int


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
    key = index_key(cache)
    name = f"{cache.name.strip('.') or 'cache'}-{key}.f16"
    where = [folder / name for folder in places(folder_of(cache), FOLDER)]
    for data in where:
        if index := _mapped(cache, data, key):
            return index
    require_valid(cache)
    source = FrameEmbeddings(cache, image_head_of(cache, model, device), device)
    if not source.is_exact:
        say(
            f"the codec '{cache.spec['codec']['name']}' of {cache} keeps a part of every token: "
            "scores are approximate"
        )
    for data in where:
        try:
            index = _written(source, data, key, on_frames)
        except OSError as error:
            say(f"no index can be written into {data.parent}: {error.strerror}")
            continue
        size = index.embeddings_FD.nbytes + index.after_s_F.nbytes
        say(f"index: {data}, {count_text(len(index), 'frame')}, {size:,} bytes")
        return index
    say("the index is made in memory, and again by the next search")
    memory = io.BytesIO()
    header = _write(source, memory, key, on_frames)
    return _index(cache, np.frombuffer(bytearray(memory.getbuffer()), np.uint8), header)


def index_key(cache: Cache) -> str:
    """12 hexadecimal digits over all that the embeddings of a cache's frames depend on."""
    meaning = {
        "format": FORMAT_VERSION,
        "fingerprint": cache.fingerprint,
        "weights": cache.header.encoder.get("weights"),
        "receipts": {
            store: hashlib.sha256(to_json(receipt)).hexdigest()
            for store, receipt in sorted(cache.receipts.items())
        },
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def _mapped(cache: Cache, data: Path, key: str) -> FrameIndex | None:
    """The index in a file; None where there is none, or it is not what it should be."""
    with suppress(OSError, BadInput, ValueError):
        versions = range(FORMAT_VERSION, FORMAT_VERSION + 1)
        header = read_json(IndexHeader, data.with_suffix(".json"), "", versions)
        # Private to this process: torch wants memory that it may write to.
        content = np.memmap(data, np.uint8, "c")
        if header.key == key and header.frames == _frames(cache):
            return _index(cache, content, header)
    return None


def _frames(cache: Cache) -> int:
    return sum(at.stop - at.start for at in cache.locations.values())


def _index(cache: Cache, content: np.ndarray, header: IndexHeader) -> FrameIndex:
    """The content of a file as an index. Raises ValueError where its size is another."""
    split = header.frames * header.width * FLOAT16.itemsize
    embeddings_FD = content[:split].view(FLOAT16).reshape(header.frames, header.width)
    after_s_F = np.array(content[split:].view(FLOAT64).reshape(header.frames))
    lengths = [at.stop - at.start for at in cache.locations.values()]
    starts_V = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return FrameIndex(torch.from_numpy(embeddings_FD), after_s_F, tuple(cache.locations), starts_V)


def _written(source: FrameEmbeddings, data: Path, key: str, on_frames: OnFrames) -> FrameIndex:
    """Makes the index in a file. Raises OSError where it cannot be written."""
    base, folder = data.parent.parent, data.parent.name
    make_folder(base)
    with written_whole(base, f"{folder}/{data.name}") as file:
        header = _write(source, file, key, on_frames)
    content = np.memmap(data, np.uint8, "c")
    with written_whole(base, f"{folder}/{data.with_suffix('.json').name}") as file:
        file.write(to_json(header))
    for path in data.parent.iterdir():
        if path.name.startswith(data.name.removesuffix(f"{key}.f16")) and path.stem != data.stem:
            # Of an earlier state of the cache. Who has it mapped goes on with it.
            path.unlink(missing_ok=True)
    return _index(source.cache, content, header)


def _write(source: FrameEmbeddings, file: Any, key: str, on_frames: OnFrames) -> IndexHeader:
    """Writes embeddings and times of all frames."""
    cache, times, done, width = source.cache, [], 0, 0
    for video in cache.locations:
        embeddings_FD = source.of_video(video)
        file.write(embeddings_FD.astype(FLOAT16).tobytes())
        times.append(seconds_of_frames(cache, video))
        done, width = done + len(embeddings_FD), embeddings_FD.shape[1]
        on_frames(done, _frames(cache))
    file.write(np.concatenate(times).tobytes())
    return IndexHeader(
        format_version=FORMAT_VERSION,
        fingerprint=cache.fingerprint,
        key=key,
        frames=done,
        width=width,
    )
