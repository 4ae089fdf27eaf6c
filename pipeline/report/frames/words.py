"""What a run makes of words, beside frames: the captions that find their videos best and worst, and
questions that it answers right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch

from pipeline.config.tensor_files import load_tensors
from pipeline.datasets.manifest.targets import CAPTIONS, QUESTION, Arrays
from pipeline.errors import BadInput, BadVideo, StillframeError
from pipeline.models.tasks.contract import TaskPlugin
from pipeline.models.tasks.matching.ranks import Places
from pipeline.records import Clip
from pipeline.report.frames.token_maps import Film, Strip
from pipeline.report.frames.videos import manifest_of
from pipeline.report.source import cache_of
from pipeline.train.evaluation import Evaluation
from pipeline.train.run import Run, load_model
from pipeline.train.setup import RunContext
from pipeline.train.visualize import drawing_reader, evenly_spaced, squares
from pipeline.train.windows.windows import Windows

EACH = 3
"""Texts that are shown of each kind: the best and the worst, or those right and wrong."""
MOMENTS = 4
"""Frames of a video."""
TILE_PX = 144
FramesOf = Callable[[Clip, np.ndarray], np.ndarray]
"""A clip, and presentation times -> uint8 (T, H, W, 3)."""
OWN, FIRST = "its video", "found first"


class _Retrieves(Protocol):
    """What a task that is told captions knows of its answers."""

    def places(self, answer: np.ndarray, targets: Arrays) -> Places: ...

    def vectors_of(self, texts: torch.Tensor) -> np.ndarray: ...


@dataclass(frozen=True)
class _Scored:
    """A run with its answers to all windows of a split, in their order."""

    run: Run
    windows: Windows
    task: TaskPlugin
    answers: np.ndarray
    evaluation: Evaluation


def films_of_words(
    run: Run, evaluation: Evaluation, checkpoint: str, form: str
) -> tuple[list[Film], str]:
    """A film for each of a few captions or questions, and a sentence on what is missing; none for
    runs that are told nothing in words."""
    needs: tuple[str, ...] = ()
    try:
        cache = cache_of(run)
        model, task = load_model(run, cache.shape, checkpoint)
        needs = task.needs
        if not {CAPTIONS, QUESTION} & set(needs):
            return [], ""
        context = RunContext.of(
            cache, manifest_of(run, cache), torch.device("cpu"), True, tower=run.header.text
        )
        windows = context.windows(evaluation.split, run.recipe, task, model.layers)
        file = run.path / f"answers-{evaluation.split}.safetensors"
        again = f"stillframe evaluate {run.path} --split {evaluation.split}"
        answers = load_tensors(file, "the file of answers", again).get(form)
        count = len(list(windows.order.evaluation()))
        if answers is None or len(answers) != count or count != len(windows):
            raise BadInput(f"{file} does not hold the answers for the clips of the split", again)
        scored = _Scored(run, windows, task, answers.numpy(), evaluation)
        with drawing_reader(windows.manifest.root) as reader:
            frames_of = partial(squares, reader, windows.cache)
            films = _retrieved if CAPTIONS in needs else _answered
            return list(films(scored, frames_of)), ""
    except (StillframeError, BadVideo) as error:
        return [], f"What words find cannot be shown: {error}."


def _retrieved(scored: _Scored, frames_of: FramesOf) -> Iterator[Film]:
    """The first captions that find their videos best, by how far they are ahead, then worst; and
    what the worst find in their place."""
    task, windows = cast(_Retrieves, scored.task), scored.windows
    truth = windows.truth(list(windows.order.evaluation()))
    place = task.places(scored.answers, truth).videos_VK
    rank_V, total = place.rank[:, 0], len(windows)
    text_VE = task.vectors_of(torch.from_numpy(truth[CAPTIONS][:, 0]))
    own_V = (text_VE * scored.answers).sum(1)
    order = np.lexsort((-own_V, rank_V)).tolist()
    few = min(EACH, total // 2)
    for index in [*order[:few], *order[::-1][:few]]:
        clip = windows.clip(index)
        text = windows.manifest.texts[clip.clip_id].captions[0]
        time_s, strip = _strip(scored, frames_of, index, OWN)
        strips = [strip]
        first = int((scored.answers @ text_VE[index]).argmax())
        if rank_V[index] > 1 and first != index:
            strips.append(_strip(scored, frames_of, first, FIRST)[1])
        yield Film(text, f"rank {rank_V[index]:g} of {total}", time_s, strips)


def _answered(scored: _Scored, frames_of: FramesOf) -> Iterator[Film]:
    """Questions that are answered right, then wrong, spread over the split."""
    windows, task = scored.windows, scored.task
    form = next(iter(scored.evaluation.forms))
    right, wrong = list[int](), list[int]()
    for index in range(len(windows)):
        clip = scored.evaluation.clips.get(windows.clip(index).clip_id)
        if clip is not None:
            (right if clip.scores[form] == 1 else wrong).append(index)
    for indices in (right, wrong):
        for place in evenly_spaced(len(indices), EACH) if indices else []:
            index = indices[place]
            texts = windows.manifest.texts[windows.clip(index).clip_id]
            said = task.plain(scored.answers[index], np.eye(2, 3))
            answer = said["label"] if "label" in said else texts.choices[said["choice"]]
            truth = "right" if indices is right else f"it is {texts.answer}"
            time_s, strip = _strip(scored, frames_of, index, "frame")
            yield Film(f"{texts.question}", f"{answer}: {truth}", time_s, [strip])


def _strip(
    scored: _Scored, frames_of: FramesOf, index: int, name: str
) -> tuple[list[float], Strip]:
    """Frames of one window, with their seconds after the first frame of the video."""
    windows, clip = scored.windows, scored.windows.clip(index)
    ref = list(windows.order.evaluation())[index]
    time_s_T = windows.locate(ref).time_s_T
    time_s = time_s_T[evenly_spaced(len(time_s_T), MOMENTS)]
    frames = frames_of(clip, time_s)
    step = max(1, frames.shape[1] // TILE_PX)
    tiles = [np.ascontiguousarray(pixels_HWC[::step, ::step]) for pixels_HWC in frames]
    after_s = time_s - windows.index.clip_rows[index].first_s
    return after_s.tolist(), Strip(name, clip.clip_id, tiles, is_grid=False)
