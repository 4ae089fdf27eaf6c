"""A trained run on a video as it comes: decode -> encode -> a step of the model at every instant.

Frames are those that a window over the run's cache has, see `pipeline.video.sampling`; tokens pass
through the codec of that cache, so that a stream sees what training saw. Time and memory per frame
do not depend on how many frames have gone by.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.cache.codec_parameters import codecs_of, read_learnt
from pipeline.cache.layout import MANIFEST, tokens_by_array
from pipeline.cache.storage.open import open_storage
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, fingerprint
from pipeline.config.plugins import Settings
from pipeline.datasets.manifest.manifest import read_origin
from pipeline.datasets.manifest.targets import MAPPED, Arrays, collate
from pipeline.device import Uploads, chosen
from pipeline.errors import BadInput
from pipeline.models.encoders.contract import make_encoder, token_shape, without_network
from pipeline.models.tasks.contract import STREAMING, Query
from pipeline.models.tasks.parts.canvas import with_caption
from pipeline.models.video_model import array_of_answer
from pipeline.records import Video
from pipeline.train.language.streamed import (
    asked_texts,
    embedding_of_frame,
    head_of_stream,
    tower_of_stream,
)
from pipeline.train.library.frame_encoder import checked_frames, through_codec, with_encoder
from pipeline.train.run import Run, load_model
from pipeline.video.frame_counts import FrameCounts
from pipeline.video.probe import probe
from pipeline.video.reader import FrameReader
from pipeline.video.sampling import DRIFT, TOLERANCE_S
from pipeline.video.transforms import FrameTransforms

UNKNOWN_FPS = 25.0


def trained_image_fps(run: Run) -> float | None:
    """The frame rate of folders of images in the data set that a run was trained on; None where its
    manifest is no longer there, or has no such setting."""
    try:
        if run.header.manifest_path is not None:
            folder = Path(run.header.manifest_path)
        elif run.cache_path is not None:
            folder = Path(run.cache_path, MANIFEST)
        else:
            return None
        rate = read_origin(folder).settings.get("image_fps")
    except BadInput:
        return None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < math.inf else None


class AskedBoxes(Settings):
    """Boxes to follow from the first frame on, in the source frame, in [0, 1]."""

    boxes: tuple[tuple[float, float, float, float], ...]
    """Corners of each: x0, y0, x1, y1."""


class AskedPoints(Settings):
    """Points to follow from the first frame on, in the source frame, in [0, 1]."""

    points: tuple[tuple[float, float], ...]
    """x, y of each."""


ASKED: dict[str, type[Settings]] = {"boxes": AskedBoxes, "points": AskedPoints}


@dataclass(frozen=True)
class Seen:
    """One frame and the answer to it."""

    time_s: float
    pixels_HWC: np.ndarray
    """uint8, the square that the encoder saw, rounded to whole levels."""
    affine_23: np.ndarray
    """Source frame to square."""
    answer: np.ndarray
    """As the task's `answer` gives it for a window of this one frame, without the batch axis."""
    told: Arrays
    """What is followed from this frame on, as truth of a window of this one frame; empty but for
    the first frame of tasks that are told."""
    ahead: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Seconds, in letters -> the answer that is told for so long after this frame, as `answer`;
    empty where nobody forecasts, see `ahead.stream`."""


class _Look(NamedTuple):
    """One frame as the model gets it."""

    time_s: float
    pixels_HWC: np.ndarray
    affine_23: np.ndarray
    special_1SD: torch.Tensor
    patches: Mapping[int, torch.Tensor]
    """layer -> (1, P, D)."""


class Stream:
    """A run that answers about a video frame by frame: `follow` reads a file or a folder of images,
    `step` takes frames of one's own, from a camera, a simulator or an array.

    A copy (`copy.copy`) shares the models and goes on by itself from where the original is: one
    for each of several cameras.
    """

    def __init__(
        self,
        run: Run,
        device: torch.device | None = None,
        encoder: Mapping[str, Any] | None = None,
        ask: Sequence[str] = (),
        choices: Sequence[str] = (),
    ) -> None:
        """`encoder` are keys of the spec's [encoder] table to use instead, such as where its
        weights are now. `ask`: captions that every answer is compared with, for tasks that are
        `asked_in_words`; or the question, for those that are told one, with its `choices`, where
        the run chooses among some.

        Raises BadInput: an encoder that is not the one the run was trained on, a run without the
        streaming form, or of windows that no stream can be.
        """
        windows, step = run.recipe.windows, run.recipe.windows.step()
        if step is None or windows.unlike_a_stream:
            raise BadInput(
                f"run {run.path} cannot follow a stream: it was trained with "
                f"windows.{windows.unlike_a_stream}",
                "train a run with windows.fps or windows.every, without controls",
            )
        self.device = chosen(device)
        self.spec = with_encoder(run.header.spec, encoder or {}, str(run.path / "run.json"))
        with self._may_fetch(encoder):
            self.encoder = make_encoder(self.spec, self.device)
            self.shape = token_shape(self.spec)
        # The decoder is left out: a newer libav may follow a stream.
        if fingerprint(self.spec, self.encoder.identity, "") != fingerprint(
            run.spec, run.header.encoder, ""
        ):
            raise BadInput(
                f"run {run.path} was trained on other tokens: encoder "
                f"'{self.spec.encoder.name}' has other weights, layers or "
                f"another configuration than in cache {run.header.cache.name}",
                "name the encoder it was trained on: --set KEY=VALUE, "
                "for example --set model=FOLDER",
            )
        names = tokens_by_array(
            self.shape.layers, self.shape.special_tokens, self.shape.patch_tokens
        )
        self.codecs = codecs_of(
            self.spec.codec,
            names,
            read_learnt(open_storage(run.path), run.header.cache.codec_sha256),
            self.shape.width,
        )
        self.model, self.task = load_model(run, self.shape, device=self.device)
        self.task_name = run.recipe.task.name
        self.layers = self.model.layers
        """Layers whose patches are taken from the encoder."""
        table = self.spec.encoder.table()
        with self._may_fetch(encoder):
            self.image_head = head_of_stream(table, self.task, self.device)
        if self.image_head is not None and not self.image_head.reads_cls:
            self.layers = tuple(sorted({*self.layers, self.image_head.last_layer}))
        self.note = ""
        """What is to be said of what was asked, or ""."""
        self._question: Arrays = {}
        if ask:
            with self._may_fetch(encoder):
                tower = tower_of_stream(run, table, self.task, self.device)
            asked, self.note = asked_texts(tower, self.task, ask, choices)
            if self.task.asked_in_words or choices:
                self.task.take_words(choices or ask, self._batch_of(asked))
            if not self.task.asked_in_words:
                self._question = self.task.prepare(asked, None)
        self.pace = step
        """From one answer to the next."""
        self.damage = ""
        """What is damaged in the video that was followed last, in a sentence; "" if nothing is."""
        # Of the frames that `step` was given:
        self.encode_s = self.step_s = 0.0  # seconds of the last one: to tokens, to the answer
        self._state: Any = None
        self._last_s: float | None = None
        self._due_s = -math.inf
        self._asked: Mapping[str, Any] = {}
        self._source_fps: float | None = None
        _ = self.model.streaming  # without this form a run is refused now, not at the first frame

    def follow(
        self,
        path: Path,
        asked: Mapping[str, Any] | None = None,
        start_s: float = 0.0,
        image_fps: float | None = None,
    ) -> Iterator[Seen]:
        """The model's answers about the video at `path`, one at every instant of the rate of the
        run's windows, each about the frame that is on screen then among those that the run's cache
        keeps. A frame that stays on screen is encoded once and answered again. There is no answer
        while a damaged frame is on screen that the cache leaves out; `damage` then says so.

        The stream begins with the frame on screen `start_s` seconds after the first one: with the
        first frame of a window, its answers are those of the window. `asked`: what to follow, for
        tasks that want to be told (see `ASKED`). `image_fps`: frame rate of a folder of images that
        has no times. Raises BadInput where what is asked is missing or wrong, or the video is over
        before `start_s`; NotFinite where an answer holds NaN; BadVideo, after the frames before
        that, where the video ends badly or its decoder hangs or dies.
        """
        if not start_s >= 0:
            raise BadInput(f"a stream begins at 0 s or later, found {start_s:g}", "--from SECONDS")
        state, counted = None, FrameCounts()
        video = Video(path.name, path.name, image_fps)
        with FrameReader(path.parent, self.device) as reader:
            frames = reader.on_screen(video, self.spec.frames, self.pace, start_s, counted)
            for frame, instants in frames:
                look = self._look(frame.views[BASE], frame.affine_23, float(frame.time_s[0]))
                for _ in range(instants):
                    seen, state = self._advance(look, state, asked or {})
                    yield seen
        self.damage = counted.damage_text(is_kept=self.spec.frames.damaged == "keep")

    def step(self, pixels_HWC: np.ndarray, time_s: float, pixel_aspect: float = 1.0) -> Seen:
        """The answer about one frame, after all those that were given since the last `reset`; it is
        remembered for the next one.

        `pixels_HWC`: uint8 RGB, upright, of any size: the squares that the encoder sees are cut
        from it as extraction cuts them. `time_s`: when it was taken, in seconds of any clock,
        ascending; the answer carries it. `pixel_aspect`: width of a pixel over its height. Every
        call is one step of the model, which has learnt frames that are `pace` apart: whoever has
        more of them gives those that are due, see `is_due`.

        Raises BadInput: an array of another kind, a time that is not after the last one, or less
        than half a step after it; a query that is missing or wrong, see `reset`. NotFinite where
        the answer holds NaN.
        """
        if not math.isfinite(time_s):
            raise BadInput(f"a frame has a time in seconds, found {time_s}")
        pixels_1HWC, times = np.asarray(pixels_HWC)[None], np.array([time_s], np.float64)
        frames = checked_frames(pixels_1HWC, pixel_aspect, times)
        self._require_pace(time_s)
        begin_s, whole = time.perf_counter(), np.ones(1, bool)
        transforms = FrameTransforms(frames, Uploads(self.device))
        look = self._look(*transforms.squares(self.spec.frames, whole, None), float(time_s))
        if self._state is None:
            self._begin(1 / self.answers_per_second(self._source_fps))
        encoded_s = time.perf_counter()  # what was computed lies in plain memory by now
        seen, self._state = self._advance(look, self._state, self._asked)
        self.encode_s, self.step_s = encoded_s - begin_s, time.perf_counter() - encoded_s
        self._last_s = float(time_s)
        if not self.pace.in_rows:
            is_late = time_s >= self._due_s + self.pace.size  # frames were left out, or it begins
            self._due_s = (time_s if is_late else self._due_s) + self.pace.size
        return seen

    def is_due(self, time_s: float) -> bool:
        """Whether a frame taken then is the next one to `step`, for sources with more frames than
        the run has learnt: it is the first at or after an instant of its pace. Every frame is where
        the run counts frames."""
        return self.pace.in_rows or time_s >= self._due_s - DRIFT * self.pace.size - TOLERANCE_S

    def reset(self, asked: Mapping[str, Any] | None = None, fps: float | None = None) -> None:
        """Forgets every frame that `step` was given: the next one is the first of a new stream.

        `asked`: what to follow from that frame on, as `follow` takes it. `fps`: frames a second of
        the source; only a run whose windows count frames (windows.every) and that tells ahead asks
        for it.
        """
        self._state = self._last_s = None
        self._due_s = -math.inf
        self._asked, self._source_fps = dict(asked or {}), fps

    def fps_of(self, path: Path, image_fps: float | None = None) -> float:
        """Answers per second about the video at `path`, as its header has it where the run counts
        frames; 25 frames a second where nobody knows."""
        is_asked = self.pace.in_rows and not self.spec.frames.rate
        return self.answers_per_second(probe(path, image_fps).fps if is_asked else None)

    def answers_per_second(self, source_fps: float | None = None) -> float:
        """Answers per second about a source of `source_fps` frames a second, which matters only
        where the run counts frames; 25 where nobody knows."""
        if not self.pace.in_rows:
            return 1 / self.pace.size
        frames = self.spec.frames
        return (frames.rate or (source_fps or UNKNOWN_FPS) / frames.every) / self.pace.size

    def plain(self, answer: np.ndarray, seen: Seen) -> dict[str, Any]:
        """An answer of a frame as plain data, in coordinates of the source."""
        return self.task.plain(answer, seen.affine_23)

    def drawn(self, seen: Seen) -> np.ndarray:
        """The frame with its answer drawn over it, and its time below, uint8 (H, W, 3)."""
        pixels: np.ndarray = self.task.draw(seen.pixels_HWC[None], seen.answer, seen.told)[0]
        return with_caption(pixels, f"{seen.time_s:.2f} s")

    @property
    def state_bytes(self) -> int:
        """Bytes that are remembered between two frames, beside the query."""
        return self.model.temporal.state_bytes(self.model.tokens_per_frame)

    def _look(self, square_1CHW: torch.Tensor, affine_23: np.ndarray, time_s: float) -> _Look:
        """One frame through the encoder and the codec."""
        with torch.inference_mode():
            special_1SD, patches = self._tokens(square_1CHW)
        square_HWC = square_1CHW[0].float().round().byte().permute(1, 2, 0).cpu().numpy()
        return _Look(time_s, square_HWC, affine_23, special_1SD, patches)

    def _advance(self, look: _Look, state: Any, asked: Mapping[str, Any]) -> tuple[Seen, Any]:
        """The answer about a frame, and the state after it; `state` None is that before the first
        frame, from which on the model follows what is `asked`."""
        told: Arrays = {}
        with torch.inference_mode():
            if state is None:
                told = self._told(asked, look.affine_23)
                state = self._start(self._query(told))
            prediction, ahead, state = self._step(look.special_1SD, look.patches, state)
            array, *later = map(self._answer, (prediction, *ahead.values()))
        told_ahead = dict(zip(ahead, later, strict=True))
        return Seen(look.time_s, look.pixels_HWC, look.affine_23, array, told, told_ahead), state

    def _require_pace(self, time_s: float) -> None:
        """Raises BadInput where a frame comes too soon after the last one."""
        if self._last_s is None:
            return
        after_s = time_s - self._last_s
        if not after_s > 0:
            raise BadInput(
                f"the frame at {time_s:g} s does not come after the last one, at "
                f"{self._last_s:g} s",
                "begin a new stream: stream.reset()",
            )
        if not self.pace.in_rows and after_s < self.pace.size / 2:
            raise BadInput(
                f"the frame at {time_s:g} s comes {after_s:.3g} s after the last one; this run "
                f"has learnt {1 / self.pace.size:.3g} frames a second",
                "give those for which stream.is_due(time_s)",
            )

    def _begin(self, step_s: float) -> None:
        """Called before the first frame of a stream whose answers are so many seconds apart."""

    def _start(self, query: Query) -> Any:
        """The state before the first frame."""
        return self.model.start(1, query)

    def _step(
        self, special_1SD: torch.Tensor, patches: Mapping[int, torch.Tensor], state: Any
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor], Any]:
        """One frame: the prediction for it, those that are told ahead (see `Seen.ahead`), and the
        state after it."""
        read = [patches[layer] for layer in self.model.layers]
        seen = (
            {}
            if self.image_head is None
            else embedding_of_frame(self.image_head, special_1SD, patches)
        )
        prediction, state = self.model.step(special_1SD, read, state, seen)
        return prediction, {}, state

    def _answer(self, prediction: torch.Tensor) -> np.ndarray:
        answer = self.task.answer(STREAMING, prediction.unsqueeze(1))
        array: np.ndarray = array_of_answer(STREAMING, answer)[0]
        return array

    def _tokens(self, square_1CHW: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """special (1, S, D) and layer -> patches (1, P, D), after a trip through the codec."""
        tokens = through_codec(self.encoder(square_1CHW), self.codecs, self.layers)
        return tokens.special_NSD, tokens.patches_NPD

    def _told(self, asked: Mapping[str, Any], affine_23: np.ndarray) -> Arrays:
        """What is asked at the first frame, as truth of a window of that frame; empty for tasks
        that are told nothing."""
        name = self.task.asks
        if name is None:
            if asked:
                raise BadInput(
                    f"this task follows nothing that could be named, found {', '.join(asked)}",
                    "leave --query out",
                )
            return {}
        if self._question:
            return self._question
        if name not in ASKED:
            raise BadInput(
                f"task '{self.task_name}' is told a {name} in words, and is not told any",
                '--ask "what is it doing?"',
            )
        checked = plugins.validate(
            ASKED[name], asked, f"query of task '{self.task_name}'"
        ).model_dump()[name]
        # Truth of a window of one frame: (Q, 1, 4) boxes, or (Q, 1, 2) points.
        xy_Q1C = np.array(checked, np.float32).reshape(len(checked), 1, -1)
        if not len(xy_Q1C):
            raise BadInput(f"query of task '{self.task_name}': name at least one of {name}")
        source: Arrays = {name: xy_Q1C, "visible": np.ones((len(xy_Q1C), 1), bool)}
        first = np.zeros(1, np.int64)
        truth = MAPPED[name](source, first, np.ones(1, bool), affine_23[None])
        lost = int((~truth[f"{name}_valid" if name == "boxes" else "visible"]).sum())
        if lost:
            raise BadInput(
                f"query of task '{self.task_name}': {lost} of {len(xy_Q1C)} {name} lie outside of "
                "what the model sees",
                "the frame is cropped to a square around its centre "
                "(frames.fit in the cache's spec)",
            )
        return self.task.prepare(truth, None)

    def _query(self, told: Arrays) -> Query:
        """The query that the readout gets at the first frame."""
        if not told:
            return {}
        return self.task.query(self._batch_of(told))

    def _batch_of(self, told: Arrays) -> dict[str, torch.Tensor]:
        """Truth of one window as that of a batch."""
        targets = collate([told])
        return {name: torch.from_numpy(array).to(self.device) for name, array in targets.items()}

    @staticmethod
    def _may_fetch(encoder: Mapping[str, Any] | None) -> AbstractContextManager[Any]:
        """Within it a model is fetched that the user has named, and none that the run alone
        names."""
        return nullcontext() if encoder else without_network()
