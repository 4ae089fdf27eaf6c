"""Windows of videos as a trained run of retrieve sees them, in the place of single frames.

Every video is cut end to end into windows of the run, at its own pace; each becomes the vector that
the run makes of it. They take the place of frames in an index, so that moments are found in them as
in those: a moment's score is the mean over the windows that begin in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from pipeline.cache.cache import Cache
from pipeline.cache.corruption import require_valid
from pipeline.errors import BadInput
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, STREAMING, TaskPlugin
from pipeline.models.video_model import VideoModel
from pipeline.records import Clip
from pipeline.train.language.frame_index import (
    FrameIndex,
    IndexPlaces,
    Say,
    VideoEmbeddings,
    content_of,
    hash_of,
)
from pipeline.train.run import Run, load_model
from pipeline.train.windows.windows import Windows

BATCH_WINDOWS = 16


def model_of_search(run: Run, cache: Cache, device: torch.device) -> tuple[VideoModel, TaskPlugin]:
    """The model and the task of a run that videos of a cache can be searched by. Raises BadInput
    for another task, other tokens, or windows that are no stretch of a video."""
    windows = run.recipe.windows
    if windows.step() is None or windows.unlike_a_stream:
        raise BadInput(
            f"run {run.path} cannot search within videos: it was trained with "
            f"windows.{windows.unlike_a_stream}",
            "train a run with windows.fps or windows.every, without controls",
        )
    if cache.fingerprint != run.header.cache.fingerprint:
        raise BadInput(
            f"run {run.path} was trained on the cache with fingerprint "
            f"{run.header.cache.fingerprint}, {cache} has {cache.fingerprint}",
            "search a cache of the same spec and encoder",
        )
    model, task = load_model(run, cache.shape, device=device)
    if not task.asked_in_words:
        raise BadInput(
            f"run {run.path} is of task '{run.recipe.task.name}', which compares no videos with "
            "words",
            "name a run of retrieve",
        )
    return model, task


def index_by_run(
    run: Run,
    loaded: tuple[VideoModel, TaskPlugin],
    cache: Cache,
    frames: FrameIndex | None,
    device: torch.device,
    on_windows: Callable[[int, int], None] = lambda _done, _total: None,
    say: Say = lambda _: None,
) -> FrameIndex:
    """The vectors of all windows of all videos, which the first search by a run makes and keeps as
    those of frames; `frames` are embeddings of the cache's frames, where the task begins with them.
    Raises BadInput where tokens are missing or damaged."""
    checkpoint = run.checkpoint("last")
    assert checkpoint is not None, "its model has been loaded"
    weights = hashlib.sha256((run.path / checkpoint.file).read_bytes()).hexdigest()
    made_of = {"run": weights, "recipe": run.recipe.canonical(), **content_of(cache)}
    places = IndexPlaces(cache, run.path.name, hash_of(made_of))
    if kept := places.find():
        return kept
    require_valid(cache)
    index = _read_windows(run, loaded, cache, frames, device, on_windows)

    def videos() -> Iterator[VideoEmbeddings]:
        for video in index.videos:
            start, stop = index.of_video(video)
            yield index.embeddings_FD[start:stop].numpy(), index.after_s_F[start:stop]

    return places.make(videos, say, index.frame_s)


def _read_windows(
    run: Run,
    loaded: tuple[VideoModel, TaskPlugin],
    cache: Cache,
    frames: FrameIndex | None,
    device: torch.device,
    on_windows: Callable[[int, int], None],
) -> FrameIndex:
    """All windows of all videos, as vectors in memory."""
    model, task = loaded
    form = STREAMING if STREAMING in task.forms else task.forms[0]
    source = {clip.video_id: clip for clip in reversed(cache.manifest.clips)}
    clips = tuple(
        Clip(video, video, source[video].source, "val", image_fps=source[video].image_fps)
        for video in cache.locations
    )
    settings = run.recipe.windows.model_copy(update={"per_clip": "length", "eval_windows": 1})
    videos = replace(cache.manifest, clips=clips)
    windows = Windows(cache, videos, "val", settings, layers=model.layers)
    refs = list(windows.order.evaluation())
    vectors, after_s, counts, steps_s = [], [], np.zeros(len(clips), np.int64), [0.0]
    for start in range(0, len(refs), BATCH_WINDOWS):
        some = refs[start : start + BATCH_WINDOWS]
        batch = windows.read(some)
        device_batch = windows.on_device(batch, device)
        if frames is not None:
            seen = [
                windows.embeddings(windows.locate(ref), clips[ref.clip].video_id, frames)
                for ref in some
            ]
            device_batch.targets[FRAME_EMBEDDINGS] = torch.from_numpy(np.stack(seen)).to(device)
        vectors.append(torch.from_numpy(model.answers(device_batch, task)[form]))
        first_s_B = np.array([windows.index.clip_rows[ref.clip].first_s for ref in some])
        after_s.append(batch.time_s_BT[:, 0] - first_s_B)
        steps_s += np.diff(batch.time_s_BT).ravel().tolist()
        np.add.at(counts, batch.clip_index, 1)
        on_windows(start + len(some), len(refs))
    return FrameIndex(
        torch.cat(vectors).half(),
        np.concatenate(after_s),
        tuple(cache.locations),
        np.concatenate([[0], np.cumsum(counts)]),
        frame_s=settings.frames * float(np.median(steps_s)),
    )


def reads_embeddings(task: TaskPlugin) -> bool:
    """Whether a task begins with embeddings of frames."""
    return FRAME_EMBEDDINGS in task.example_texts(1)
