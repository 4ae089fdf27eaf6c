"""The truth about a window: targets of a clip, sampled at the times of the window's frames and
mapped into the model's square.

Per window, time first; what does not hold of a frame is zero and its mask False:

    label         ()         int64    index of the clip's label among the manifest's; -1 for none
    boxes         (T, O, 4)  float32  xyxy in the square, cut at its edges
    boxes_valid   (T, O)     bool     present and in the square
    points        (T, Q, 2)  float32  xy in the square
    points_valid  (T, Q)     bool     known at this time; in evaluation, of frames that repeat past
                                      the end of a short clip, the first alone
    visible       (T, Q)     bool     seen, and in the square
    depth_m       (T, H, W)  float32  metres, H = W = `dense_px`; 0 where unknown
    pose          (T, 4, 4)  float64  camera to world
    pose_valid    (T,)       bool     known at this time
    time_s        (T,)       float64  beside poses: when the frames are shown
    classes       (T, K)     bool     which of the manifest's K classes hold of the frame
    classes_valid (T,)       bool     known at this time; in evaluation, of frames that repeat the
                                      first alone
    tokens        (T, P, D)  float32  the cached patches of the frames themselves, as they left the
                                      codec; they come from the cache, after `prepare`
    captions      (K, E)     float32  embeddings of the clip's captions, of unit length; in training
                                      of one of them, drawn anew for every window
    words         (L,)       int64    in training alone, beside captions: the words of the drawn one
                                      as numbers of the table of all training captions
    question      (L, D)     float32  beside `label`: the tokens of the clip's question
    question_valid (L,)      bool     which of them are there
    is_answered   ()         bool     whether the right answer is known, as a label or not
    choices       (C, E)     float32  embeddings of the answers to choose from, of unit length; none
                                      where the question is open
    choice        ()         int64    which of the choices is right; -1 for none
    seen_s        (T,)       float64  beside tokens: seconds of window time at which the model sees
                                      the frames, from the first one on; never descending, and equal
                                      where a frame repeats
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from threading import Lock
from typing import Protocol

import h5py
import numpy as np

from pipeline.datasets.manifest.clip_targets import ClipTargets
from pipeline.datasets.manifest.manifest import REBUILD, TARGETS, Manifest
from pipeline.datasets.manifest.texts import ClipTexts, WordTable
from pipeline.errors import BadInput
from pipeline.records import Clip
from pipeline.video.sampling import TOLERANCE_S

Arrays = dict[str, np.ndarray]
CLIPS_IN_MEMORY = 1024
"""Clips whose boxes, points and poses are kept once read; depth is read frame by frame."""
TIE_PX = 1e-6
"""Places this close to the border of a pixel are on it."""
TOKENS = "tokens"
"""The truth that every cache holds of itself."""
CAPTIONS, WORDS = "captions", "words"
QUESTION, QUESTION_VALID, CHOICES = "question", "question_valid", "choices"
CLASSES, CLASSES_VALID = "classes", "classes_valid"
OF_CLIPS = ("label", TOKENS, CAPTIONS, WORDS, QUESTION)
"""Truth that holds of a whole clip, or of whatever frames are seen."""
LABELLED = ("label", QUESTION)
"""Truth that numbers the manifest's labels."""
NAMED = {
    "label": "a label",
    CAPTIONS: "captions",
    WORDS: "captions",
    QUESTION: "a question",
}
"""Truth that is no target of targets.h5 -> how users know it."""
STORED = {
    "boxes": ("boxes",),
    "points": ("points", "visible"),
    "depth_m": ("depth_m",),
    "pose": ("pose",),
    CLASSES: ("segments_s", "segment_class"),
}
"""target -> the arrays of targets.h5 that it is made of."""


class Wanted(Protocol):
    """Who asks for truth: a task."""

    needs: tuple[str, ...]
    """Names of targets."""

    @property
    def dense_px(self) -> int | None:
        """Side of dense targets in the square; None where none is needed."""

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """One window's targets as the task wants them; `rng` is there in training and None in
        evaluation."""


class EmbeddedTexts(Protocol):
    """Embeddings of all texts of a manifest."""

    def pooled(self, texts: Sequence[str]) -> np.ndarray:
        """(K, E) float32, of unit length."""

    def tokens(self, text: str) -> np.ndarray:
        """(L, D) float32."""


class Targets:
    """Reads the truth of windows. Safe in threads."""

    def __init__(
        self, manifest: Manifest, wanted: Wanted, texts: EmbeddedTexts | None = None
    ) -> None:
        """`texts` are there where `wanted` needs what is said or asked."""
        self.manifest, self.wanted, self.texts = manifest, wanted, texts
        self.number = {label: number for number, label in enumerate(manifest.labels)}
        self._file: h5py.File | None = None
        self._lock = Lock()
        self._small = lru_cache(CLIPS_IN_MEMORY)(self._read_small)

    def check(self, clips: Sequence[Clip], split: str) -> None:
        """Raises BadInput where clips lack what is needed, naming how many and the first."""
        for name in self.wanted.needs:
            lacking = [clip.clip_id for clip in clips if not self.has(clip, name)]
            if lacking:
                what = NAMED.get(name, f"the target '{name}'")
                raise BadInput(
                    f"the task needs {what}, {len(lacking)} of {len(clips)} clips of split "
                    f"'{split}' have none, "
                    f"first {lacking[0]}",
                    "build the manifest from a data set that knows it (see: stillframe list "
                    "dataset)",
                )

    def window(
        self,
        clip: Clip,
        time_s_T: np.ndarray,
        affine_T23: np.ndarray,
        step_s: float,
        rng: np.random.Generator | None,
    ) -> Arrays:
        """The targets of one window whose frames lie `step_s` apart, at times that count from the
        clip's second 0; `rng` (training) may thin them out."""
        sampled: Arrays = {}
        for name in self.wanted.needs:
            if name == "label":
                sampled["label"] = self._label(clip)
            elif name == TOKENS:
                sampled["seen_s"] = seen_s(time_s_T, clip.speed)
            elif name == CAPTIONS:
                sampled |= self._captions(clip, rng)
            elif name == QUESTION:
                sampled |= self._question(clip)
            elif name == WORDS:
                pass  # of the same caption, beside it
            elif name == CLASSES:
                sampled |= self._classes(clip, time_s_T)
                if rng is None:
                    sampled[CLASSES_VALID][1:] &= np.diff(time_s_T) != 0
            elif name == "depth_m":
                assert self.wanted.dense_px is not None
                sampled["depth_m"] = self._depth(
                    clip, time_s_T, affine_T23, step_s, self.wanted.dense_px
                )
            else:
                arrays = self._small(clip.clip_id)
                rows, has_truth_T = nearest_truth(arrays[f"{name}_time_s"], time_s_T, step_s)
                if name == "points" and rng is None:
                    # A frame that stands for what lies past the end of a short clip is scored once.
                    has_truth_T[1:] &= np.diff(time_s_T) != 0
                sampled |= MAPPED[name](arrays, rows, has_truth_T, affine_T23)
                if name == "pose":  # a motion is over the time between two of them
                    sampled["time_s"] = time_s_T
        return self.wanted.prepare(sampled, rng)

    def _label(self, clip: Clip) -> np.ndarray:
        return np.array(self.number.get(clip.label or "", -1), np.int64)

    def _question(self, clip: Clip) -> Arrays:
        texts = self.manifest.texts[clip.clip_id]
        assert self.texts is not None and texts.question is not None
        tokens_LD = self.texts.tokens(texts.question)
        is_choice = texts.answer in texts.choices
        return {
            QUESTION: tokens_LD,
            QUESTION_VALID: np.ones(len(tokens_LD), bool),
            "label": self._label(clip),
            "is_answered": np.array(texts.answer is not None),
            CHOICES: self.texts.pooled(texts.choices),
            "choice": np.array(texts.choices.index(texts.answer) if is_choice else -1, np.int64),
        }

    def _captions(self, clip: Clip, rng: np.random.Generator | None) -> Arrays:
        """What is said of a clip; in training one caption, and its words where they are needed."""
        captions = self.manifest.texts[clip.clip_id].captions
        words: Arrays = {}
        if rng is not None:
            captions = (captions[int(rng.integers(len(captions)))],)
            if WORDS in self.wanted.needs:
                words[WORDS] = self._words.numbers(captions[0])
        assert self.texts is not None
        return {CAPTIONS: self.texts.pooled(captions)} | words

    @cached_property
    def _words(self) -> WordTable:
        """The words of all training captions."""
        clips = [clip.clip_id for clip in self.manifest.clips if clip.split == "train"]
        said = self.manifest.texts
        return WordTable(text for clip in clips if clip in said for text in said[clip].captions)

    def _classes(self, clip: Clip, time_s_T: np.ndarray) -> Arrays:
        arrays, count = self._small(clip.clip_id), len(self.manifest.classes)
        number_S = arrays["segment_class"]
        if (
            len(number_S) != len(arrays["segments_s"])
            or ((number_S < -1) | (number_S >= count)).any()
        ):
            raise BadInput(
                f"{self.manifest.folder / TARGETS}: clip '{clip.clip_id}' has segments without a "
                f"class among the {count} of the manifest",
                REBUILD,
            )
        return sample_classes(arrays["segments_s"], number_S, count, time_s_T)

    def _depth(
        self, clip: Clip, time_s_T: np.ndarray, affine_T23: np.ndarray, step_s: float, side: int
    ) -> np.ndarray:
        with self._reading() as file:
            stored = ClipTargets(file, clip.clip_id)
            rows, has_truth_T = nearest_truth(stored.read("depth_m_time_s"), time_s_T, step_s)
            order, back = np.unique(rows, return_inverse=True)
            depth = stored.read("depth_m", order)[back]
        return map_depth(depth, has_truth_T, affine_T23, side)

    def _read_small(self, clip_id: str) -> Arrays:
        names = [
            part
            for name in self.wanted.needs
            if name not in (*OF_CLIPS, "depth_m")
            for part in STORED[name]
        ]
        with self._reading() as file:
            stored = ClipTargets(file, clip_id)
            return {
                key: stored.read(key)
                for name in names
                for key in (name, f"{name}_time_s")
                if key in stored
            }

    def has(self, clip: Clip, name: str) -> bool:
        """Whether the truth of that name is known of a clip."""
        if name == "label":
            return clip.label is not None
        if name == TOKENS:
            return True
        if name in (CAPTIONS, WORDS):
            return bool(self.manifest.texts.get(clip.clip_id, ClipTexts()).captions)
        if name == QUESTION:
            return self.manifest.texts.get(clip.clip_id, ClipTexts()).question is not None
        if not self.manifest.has_targets:
            return False
        with self._reading() as file:
            stored = ClipTargets(file, clip.clip_id)
            return all(part in stored for part in STORED[name])

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """targets.h5, for one thread at a time. Raises BadInput where it cannot be read."""
        with self._lock:
            try:
                if self._file is None:
                    self._file = self.manifest.open_targets()
                yield self._file
            except OSError as error:
                path = self.manifest.folder / TARGETS
                raise BadInput(f"{path} cannot be read: {error}", REBUILD) from error


def seen_s(time_s_T: np.ndarray, speed: float) -> np.ndarray:
    """(T,) seconds of window time at which a model sees frames of the source times `time_s_T`, in a
    clip that is played `speed` times as fast: from 0 on, also of frames that are read backwards.
    Shuffled frames are seen at the times of the frames in order."""
    steps_s = np.diff(time_s_T)
    in_order_T = time_s_T if (steps_s >= 0).all() or (steps_s <= 0).all() else np.sort(time_s_T)
    seconds_T: np.ndarray = np.abs(in_order_T - in_order_T[0]) / speed
    return seconds_T


def nearest_truth(
    time_s_F: np.ndarray, wanted_s_T: np.ndarray, step_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, has_truth_T), (T,) each: the truth nearest in time to every frame, and whether it is
    near enough to speak of it.

    Near enough is half a step of the window or half a step of the truth, whichever is less: sparse
    truth is not smeared over frames that nobody annotated.
    """
    if len(time_s_F) == 0:
        return np.zeros(len(wanted_s_T), np.int64), np.zeros(len(wanted_s_T), bool)
    after = np.clip(np.searchsorted(time_s_F, wanted_s_T), 0, len(time_s_F) - 1)
    before = np.maximum(after - 1, 0)
    rows = np.where(
        np.abs(wanted_s_T - time_s_F[before]) <= np.abs(time_s_F[after] - wanted_s_T), before, after
    )
    own_step_s = float(np.median(np.diff(time_s_F))) if len(time_s_F) > 1 else step_s
    near = np.abs(time_s_F[rows] - wanted_s_T) <= 0.5 * min(step_s, own_step_s) + 1e-6
    return rows, near


def map_xy(xy_T: np.ndarray, affine_T23: np.ndarray) -> np.ndarray:
    """Places (T, ..., 2) of the source frame -> places in the square."""
    spread = (slice(None), *[None] * (xy_T.ndim - 2))
    return (affine_T23[:, :, :2][spread] @ xy_T[..., None])[..., 0] + affine_T23[:, :, 2][spread]


def unmap_xy(xy: np.ndarray, affine_23: np.ndarray) -> np.ndarray:
    """Places (..., 2) of the square -> places in the source frame."""
    back: np.ndarray = (xy - affine_23[:, 2]) @ np.linalg.inv(affine_23[:, :2]).T
    return back


def map_boxes(
    arrays: Mapping[str, np.ndarray],
    rows: np.ndarray,
    has_truth_T: np.ndarray,
    affine_T23: np.ndarray,
) -> Arrays:
    boxes_TO4 = arrays["boxes"][:, rows].transpose(1, 0, 2).astype(np.float64)
    corners = map_xy(boxes_TO4.reshape(*boxes_TO4.shape[:2], 2, 2), affine_T23).clip(0, 1)
    boxes_TO4 = np.concatenate([corners.min(2), corners.max(2)], axis=-1)
    with np.errstate(invalid="ignore"):
        inside = (boxes_TO4[..., 2:] > boxes_TO4[..., :2]).all(-1)
    valid = np.isfinite(boxes_TO4).all(-1) & inside & has_truth_T[:, None]
    return {
        "boxes": np.where(valid[..., None], boxes_TO4, 0).astype(np.float32),
        "boxes_valid": valid,
    }


def map_points(
    arrays: Mapping[str, np.ndarray],
    rows: np.ndarray,
    has_truth_T: np.ndarray,
    affine_T23: np.ndarray,
) -> Arrays:
    points_TQ2 = map_xy(arrays["points"][:, rows].transpose(1, 0, 2).astype(np.float64), affine_T23)
    valid = np.isfinite(points_TQ2).all(-1) & has_truth_T[:, None]
    points_TQ2 = np.where(valid[..., None], points_TQ2, 0)
    inside = ((points_TQ2 >= 0) & (points_TQ2 <= 1)).all(-1)
    visible = arrays["visible"][:, rows].T & valid & inside
    return {"points": points_TQ2.astype(np.float32), "points_valid": valid, "visible": visible}


def map_pose(
    arrays: Mapping[str, np.ndarray],
    rows: np.ndarray,
    has_truth_T: np.ndarray,
    affine_T23: np.ndarray,  # noqa: ARG001
) -> Arrays:
    pose_T44 = arrays["pose"][rows].astype(np.float64)
    valid = np.isfinite(pose_T44).all((1, 2)) & has_truth_T
    return {"pose": np.where(valid[:, None, None], pose_T44, 0), "pose_valid": valid}


def map_depth(
    depth_THW: np.ndarray, has_truth_T: np.ndarray, affine_T23: np.ndarray, side: int
) -> np.ndarray:
    """Depth of the source at the centres of the square's `side` x `side` cells, by the nearest
    source pixel; 0 outside of it.

    Nearest, since a mean over an edge is the depth of nothing. The affine scales (in a mirror by
    less than 0) and shifts, x and y apart. A cell whose centre is on the border of two pixels takes
    the same one in a mirror, whatever the rounding.
    """
    frames, height, width = depth_THW.shape
    centre = (np.arange(side) + 0.5) / side
    scale, shift = affine_T23[:, [0, 1], [0, 1]], affine_T23[:, :, 2]
    source = (centre[None, :, None] - shift[:, None, :]) / scale[:, None, :]  # (T, side, xy)
    pixel = np.floor(source * [width, height] + TIE_PX).astype(np.int64)
    inside = (pixel >= 0) & (pixel < [width, height])
    pixel = pixel.clip(0, np.array([width, height]) - 1)
    depth = depth_THW[
        np.arange(frames)[:, None, None], pixel[:, :, None, 1], pixel[:, None, :, 0]
    ].astype(np.float32)
    valid = (
        inside[:, :, None, 1]
        & inside[:, None, :, 0]
        & has_truth_T[:, None, None]
        & np.isfinite(depth)
        & (depth > 0)
    )
    return np.where(valid, depth, np.float32(0))


def sample_classes(
    segments_s_S2: np.ndarray, class_S: np.ndarray, count: int, time_s_T: np.ndarray
) -> Arrays:
    """Which of `count` classes hold at every time: those whose segment holds it."""
    time_s_T1 = time_s_T[:, None] + TOLERANCE_S  # containers round times
    holds_TS = (segments_s_S2[:, 0] <= time_s_T1) & (time_s_T1 < segments_s_S2[:, 1])
    classes_TK = np.zeros((len(time_s_T), count), bool)
    for segment in np.flatnonzero(class_S >= 0):
        classes_TK[:, class_S[segment]] |= holds_TS[:, segment]
    valid_T = ~np.asarray(holds_TS[:, class_S < 0].any(axis=1))
    return {CLASSES: classes_TK & valid_T[:, None], CLASSES_VALID: valid_T}


MAPPED = {"boxes": map_boxes, "points": map_points, "pose": map_pose}


def collate(windows: Sequence[Arrays]) -> Arrays:
    """Windows side by side; where they hold different numbers of objects or points, the fewer are
    filled up with zeros."""
    return {name: _stack([window[name] for window in windows]) for name in windows[0]}


def joined(batches: Sequence[Arrays]) -> Arrays:
    """Batches (B, ...) one after the other; where they hold different numbers of objects, points or
    texts, the fewer are filled up with zeros. Batches without arrays are left out."""
    filled = [batch for batch in batches if batch]
    return {
        name: _stack([row for batch in filled for row in batch[name]])
        for name in (filled[0] if filled else {})
    }


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1:
        return np.stack(arrays)
    largest = np.max([array.shape for array in arrays], axis=0)
    out = np.zeros((len(arrays), *largest), arrays[0].dtype)
    for window, array in enumerate(arrays):
        out[window][tuple(slice(size) for size in array.shape)] = array
    return out
