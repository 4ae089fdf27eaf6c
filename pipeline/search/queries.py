"""What is looked for: words, or a frame that serves as an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from pipeline.cache.cache import Cache
from pipeline.errors import BadInput, unknown_name
from pipeline.models.text.contract import TextPlugin
from pipeline.train.language.frame_index import SLACK_S, FrameIndex, on_screen, seconds_of_frames


class ExampleFrame(NamedTuple):
    """A frame of a video that serves as a query."""

    name: str
    """As the user wrote it."""
    video: str
    after_s: float
    """When the frame is shown, in seconds after the video's first one."""


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    name: str
    """As the user wrote it."""
    vector_D: torch.Tensor
    """float32: its cosine with a frame is the frame's score."""
    example: ExampleFrame | None = None
    """The frame that it is: a moment that holds it is not found."""


def text_queries(
    tower: TextPlugin,
    texts: Sequence[str],
    negatives: Sequence[str] = (),
    as_read: Callable[[torch.Tensor], torch.Tensor] = lambda vectors_ND: vectors_ND,
) -> tuple[list[Query], int]:
    """A query for each text, and how many texts were cut. `negatives` say what is not wanted, in
    any of them; `as_read` is what becomes of the tower's embeddings. Raises BadInput where a text
    is empty."""
    said = tower([*texts, *negatives])
    with torch.inference_mode():
        vectors_ND = as_read(said.pooled_ND).cpu()
    wanted_ND, unwanted_ND = vectors_ND[: len(texts)], vectors_ND[len(texts) :]
    if len(unwanted_ND):
        wanted_ND = wanted_ND - unwanted_ND.mean(0)
    return [
        Query(text, vector_D) for text, vector_D in zip(texts, wanted_ND, strict=True)
    ], said.cut


def example_of(cache: Cache, text: str) -> ExampleFrame:
    """The frame that `VIDEO@SECONDS` names: that on screen so many seconds after the first one.
    Raises BadInput where it names none."""
    video, _, after = text.rpartition("@")
    try:
        after_s = float(after)
    except ValueError:
        after_s = -1.0
    if not video or not 0 <= after_s < float("inf"):
        raise BadInput(
            f"--like wants a video and a second of it, found '{text}'",
            f"for example --like {next(iter(cache.locations), 'a.mp4')}@1.5",
        )
    if video not in cache.locations:
        raise unknown_name("video", video, cache.locations)
    time_s_F = seconds_of_frames(cache, video)
    frame = on_screen(time_s_F, after_s)
    step_s = (time_s_F[-1] - time_s_F[0]) / max(1, len(time_s_F) - 1)
    if frame < 0 or after_s > time_s_F[-1] + step_s + SLACK_S:
        raise BadInput(
            f"video {video} has no cached frame at {after_s:g} s: they are from {time_s_F[0]:g} to "
            f"{time_s_F[-1]:g} s",
            f"for example --like {video}@{time_s_F[len(time_s_F) // 2]:g}",
        )
    return ExampleFrame(text, video, float(time_s_F[frame]))


def query_like(
    index: FrameIndex,
    example: ExampleFrame,
    tower: TextPlugin | None = None,
    negatives: Sequence[str] = (),
) -> Query:
    """A query of the embedding of a frame; `negatives` say what is not wanted."""
    frame = index.frame_at(example.video, example.after_s)
    vector_D = functional.normalize(index.embeddings_FD[frame].float(), dim=0)
    if tower is not None and negatives:
        vector_D = vector_D - tower(negatives).pooled_ND.cpu().mean(0)
    return Query(example.name, vector_D, example)
