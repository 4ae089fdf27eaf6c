"""Contract of a task: its truth, readout, loss, metric and drawing, which change together and
therefore live in one file.

A readout has up to two forms, trained side by side on the same temporal outputs: `streaming` sees
one frame's tokens at a time, `window` sees all T frames at once. Some tasks tell the model what to
follow: a *query*, taken from the targets. Predictions and targets are time first: (B, T, O, 4)
boxes, (B, T, Q, ...) points, (B, T, H, W) depth.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from pipeline.config import plugins
from pipeline.config.cache_spec import Choice
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe, WindowSettings
from pipeline.datasets.manifest.manifest import Manifest
from pipeline.datasets.manifest.targets import CLASSES, Arrays
from pipeline.errors import BadInput
from pipeline.records import TokenShape

STREAMING, WINDOW = "streaming", "window"
PATCHES = "patches"
"""Name in the query of the frames' own patch tokens, for tasks that see them."""
FRAME_EMBEDDINGS = "frame_embeddings"
"""Name in the query of the frames' embeddings by the cache's own image-text model, (B, T, E), of
unit length, for tasks that compare them with texts."""
BY_FRAME = (PATCHES, FRAME_EMBEDDINGS)
"""Names in the query of what there is of every frame, (B, T, ...)."""
Query = dict[str, torch.Tensor]
"""A query is what the readout is told beside the temporal outputs: name -> (B, ...). It is empty
for most tasks."""
Baseline = Callable[[torch.Tensor, Query, Arrays], torch.Tensor]
"""A baseline looks at tokens and learns nothing: patch tokens (B, T, h, w, D) of one layer, in rows
and columns of the patch grid, the query, and what `TaskPlugin.statistics` has gathered -> what
`TaskPlugin.answer` gives."""


class Metric(NamedTuple):
    name: str
    higher_is_better: bool
    perfect: float
    """The score of a perfect prediction; none scores better."""
    unit: str = ""
    worst: float | None = None
    """No prediction scores worse; None: there is no such end."""
    at: str = ""
    """The place on an axis where it is measured, such as a horizon, with which its name then ends,
    behind a comma; "" for one number about all of it."""
    is_median: bool = False
    """Whether it is the median of its values over windows, and not their mean. `score` may then
    give several of a window, (B, K), of which those count whose weights, (B, K), are above 0."""

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest score there is."""
        if self.higher_is_better:
            return -math.inf if self.worst is None else self.worst, self.perfect
        return self.perfect, math.inf if self.worst is None else self.worst


class WantedTexts(NamedTuple):
    """What a task asks for in words."""

    tower: Choice | None
    """The text tower that is to read them; None: the text half of the cache's own model."""
    model: str | None = None
    """Where the cache's own model is now, if it was moved."""
    manifest: bool = True
    """Whether the manifest's texts are read."""
    own: tuple[str, ...] = ()
    """Texts of the task itself, such as names of classes."""
    tokens: bool = False
    """Whether the tokens of texts are read, and not one vector of each alone."""
    frames: bool = False
    """Whether texts are compared with the embeddings of frames by the cache's own model: then the
    tower must be the other half of it."""
    width: int | None = None
    """The width that embeddings of texts must have; None: any will do."""
    text_width: int | None = None
    """The width that embeddings of tokens must have; None: any will do."""
    choices: bool = False
    """Whether the manifest's questions have answers to choose from, which are read."""


class StreamingReadout(nn.Module, ABC):
    """Reads frame after frame. `forward` over a window equals `start` and T times `step`."""

    def forward(self, x_BTND: torch.Tensor, query: Query) -> torch.Tensor:
        """Tokens of T frames, the first of a stream -> predictions (B, T, ...)."""
        told = {name: tensor for name, tensor in query.items() if name not in BY_FRAME}
        seen = {name: tensor for name, tensor in query.items() if name in BY_FRAME}
        state, predictions = self.start(told), []
        for time, x_BND in enumerate(x_BTND.unbind(1)):
            now = {name: tensor[:, time] for name, tensor in seen.items()}
            prediction, state = self.step(x_BND, state | now)
            predictions.append(prediction)
        return torch.stack(predictions, dim=1)

    def start(self, query: Query) -> Query:
        """Returns what the readout remembers before the first frame: the query, unless it says
        otherwise."""
        return query

    @abstractmethod
    def step(self, x_BND: torch.Tensor, state: Query) -> tuple[torch.Tensor, Query]:
        """One frame's tokens -> its prediction (B, ...), and what to remember for the next. What
        the query has of every frame (`BY_FRAME`), `state` has of this one; it need not be left out
        of what is remembered."""


class TaskPlugin(nn.Module, ABC):
    """Base of every `Task`. A module, since a loss may have learned weights: they are trained along
    and kept with the run."""

    Settings: ClassVar[type[Settings]]
    needs: tuple[str, ...]
    """Names of the targets it reads (`datasets/manifest/targets`): `label`, `captions` and `words`
    are from the manifest, `tokens` are those of the cache, in the last layer that the model reads,
    and all others are from targets.h5. Settings may add to those of the class."""
    metrics: tuple[Metric, ...]
    """The first decides which checkpoint is best and is shown first."""
    keeps_answers: ClassVar[bool] = True
    """Whether evaluation writes the answers to disk; False where they are large."""
    truth_settings: ClassVar[tuple[str, ...]] = ()
    """The settings that its truth depends on, through `dense_px` and `prepare`: runs that are alike
    in these share it."""
    asks: ClassVar[str | None] = None
    """The target that the query is taken from, which a user must name to follow a video; None where
    there is no query."""
    asked_in_words: ClassVar[bool] = False
    """Whether a stream may be asked for captions: `take_words` is then told of them."""
    sees_patches: bool = False
    """Whether the query holds, beside what `query` gives, the cached patch tokens of the frames
    themselves, as they left the codec: `PATCHES`, of the last layer that the model reads,
    (B, T, P, D of the encoder) for a window."""
    drops_patches: ClassVar[bool] = False
    """Whether training may leave patch tokens out (`windows.keep_tokens`, `windows.crop`): True
    where readout, loss and truth ask for no place, and N may be another number in training than
    afterwards."""
    by_frame: ClassVar[tuple[str, ...] | None] = None
    """What lets answers about some frames of a window be scored alone, as those told ahead are:
    names of the targets (B, T, ...) whose zeros in a frame say that nothing is known of it; ()
    where the truth is of the whole clip, and so of each of its frames; None: no answer is about a
    single frame."""
    tells_tokens: ClassVar[bool] = False
    """Whether its streaming readout tells patch tokens of later frames, which other models can read
    in the place of those that will come: a `forecasts.readout.ForecastReadout`."""
    reads_any_length: ClassVar[bool] = False
    """Whether its window form reads windows of another length than those it is trained on."""
    scores_together: ClassVar[bool] = False
    """Whether the score of a window depends on the other windows: `score` and the weights are then
    given all windows of a split at once."""
    mirrorable: ClassVar[bool] = True
    """Whether its truth, mapped by the affine, holds of a mirrored view."""
    published: ClassVar[str] = ""
    """Prefix that the published checkpoints (arXiv 2605.19137) put before the names of the
    streaming readout's parameters."""

    def __init__(self, settings: Any, labels: tuple[str, ...]) -> None:
        """`labels` are the names that its answers number, see `labels_of`; empty where the manifest
        has none."""
        super().__init__()
        self.settings = settings
        self.labels = labels

    @property
    @abstractmethod
    def forms(self) -> tuple[str, ...]:
        """The forms of the readout, `streaming`, `window` or both, that this run trains."""

    @property
    def aids(self) -> tuple[str, ...]:
        """Readouts beside the forms that training alone uses, each with a loss of its own: what
        they tell is never scored."""
        return ()

    @property
    def dense_px(self) -> int | None:
        """Side of dense targets in the square, for tasks that need such."""
        return None

    @property
    def wanted_texts(self) -> WantedTexts | None:
        """What it asks for in words; None: nothing."""
        return None

    def take_texts(self, own_ND: np.ndarray) -> None:
        """Takes in, before training, the embeddings of its own texts (`WantedTexts.own`), float32
        of unit length. They are kept with its weights."""

    def example_texts(self, frames: int) -> Arrays:
        """Targets of one window that texts make, by which memory and operations are counted: right
        in shape and type, and zero. Empty where it reads none."""
        return {}

    def require_windows(self, windows: WindowSettings, step_s: float | None) -> None:
        """Raises BadInput where windows cannot hold what the task asks for. `step_s`: seconds of
        window time from one frame to the next, None where they depend on the video."""

    def prepare(self, targets: Arrays, rng: np.random.Generator | None) -> Arrays:
        """One window's targets, without the batch axis, as the rest of the task wants them, such as
        objects chosen. `rng` in training, else None.

        What comes back is side by side with other windows from then on: shapes differ from window
        to window only where zeros at the end of an axis mean nothing.
        """
        return targets

    def query(self, targets: dict[str, torch.Tensor]) -> Query:
        """Takes from the targets of a batch what the model is told."""
        return {}

    def reorder(
        self,
        weights: dict[str, torch.Tensor],
        order: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """Weights of a readout trained for the labels in another order; `order` has the old place
        of each of `self.labels`."""
        return weights

    @abstractmethod
    def readout(self, form: str, width: int, frames: int, shape: TokenShape) -> nn.Module:
        """Module of one form, called with temporal outputs (B, T, N, `width`) and a query; `shape`
        is what the cache holds of one frame. A `StreamingReadout` gives (B, T, ...); the window
        form gives what the task likes, (B, ...)."""

    @abstractmethod
    def loss(
        self, form: str, prediction: torch.Tensor, targets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Scalar; finite, also where nothing in the batch is valid."""

    def terms(self, targets: Arrays) -> float:
        """Counts the terms that the loss over these windows is a mean of, so that the losses of
        parts of a batch add up to the loss of the batch."""
        return float(len(next(iter(targets.values()))))

    @abstractmethod
    def answer(self, form: str, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction that is scored: (B, ...), in one form for both."""

    def for_scoring(self, targets: Arrays) -> Arrays:
        """The targets of a batch, and beside them what takes long to find and is the same whatever
        the answer is, so that it is found once for all answers to the batch. `score` and the
        weights are the same without it."""
        return targets

    @abstractmethod
    def score(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """metric -> one value per window, (B,) float64. A metric is their mean weighted by
        `weight`, so that parts merge and intervals can be bootstrapped.

        An answer that is NaN is never right: a metric with a worst score takes it for wrong, and
        an error, which has no worst, is NaN itself.
        """

    def ceiling(self, noise: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """metric -> the best score of every window that is within reach where the truth is tokens,
        as `score` gives it. `noise` (B, T, P) is the mean square of the codec's rounding that is to
        be expected in each of them, which nobody can foresee. Empty where nobody knows it."""
        return {}

    def weight(self, targets: Arrays) -> np.ndarray:
        """(B,) float64: what each window counts; 0 where there is nothing to score.

        Targets that are zero throughout say that nothing is known. Where 0 is a value, as in a
        count, `prepare` gives a mask beside it, which is False where nothing is known.
        """
        return np.ones(len(next(iter(targets.values()))))

    def metric_weights(self, targets: Arrays) -> dict[str, np.ndarray]:
        """metric -> what each window counts in it; (B,) float64."""
        return dict.fromkeys((metric.name for metric in self.metrics), self.weight(targets))

    def answer_weights(self, answer: np.ndarray, targets: Arrays) -> dict[str, np.ndarray]:
        """metric -> what each window counts in it, (B,) float64, for those metrics but the first
        where that depends on what was said too, as in a share of all that was found. There, a
        weight of `metric_weights` above 0 says that a window has something to score."""
        return {}

    def of_frames(self, targets: Arrays, from_BT: np.ndarray) -> Arrays:
        """Targets that know of those frames alone that were told ahead, for `score` and its
        weights: `from_BT` (B, T) is the frame after which each was told, -1 where none was. For
        tasks that have said `by_frame`."""
        assert self.by_frame is not None
        is_told_BT = from_BT >= 0
        known = {}
        for name in self.by_frame:
            axes = targets[name].ndim - is_told_BT.ndim
            known[name] = targets[name] * is_told_BT.reshape(*is_told_BT.shape, *[1] * axes)
        return targets | known

    def look_ahead(self, ahead_s: Sequence[float]) -> None:
        """From now on a stream is told what comes in so many seconds, in the place of what the
        settings ask for. Raises BadInput where a task tells nothing ahead."""
        name = type(self).__module__.rsplit(".", 1)[-1]
        raise BadInput(
            f"task '{name}' tells nothing ahead by itself",
            "name a run that forecasts the tokens it reads: --forecaster RUN",
        )

    def of_texts(self, text_NE: torch.Tensor) -> torch.Tensor:
        """Embeddings of texts by the tower -> their vectors, of unit length, which answers are
        compared with. For tasks that are `asked_in_words`."""
        return text_NE

    def take_words(self, words: Sequence[str], targets: dict[str, torch.Tensor]) -> None:
        """From now on answers are told beside these captions, whose embeddings `targets` has, (1,
        K, E), for tasks that are `asked_in_words`; or by these choices, for those that are told a
        question with some."""

    def use_dual_softmax(self) -> None:
        """From now on scores are multiplied by their softmax over a split, and names of metrics say
        so. Raises BadInput where a task does not compare all that a split holds."""
        name = type(self).__module__.rsplit(".", 1)[-1]
        raise BadInput(
            f"task '{name}' does not look for anything among a split",
            "leave --dual-softmax out: it is for runs of retrieve",
        )

    def statistics(self, targets: Iterable[Arrays]) -> Arrays:
        """Gathers what the trivial answer knows of the training targets."""
        return {}

    def fit(self, statistics: Arrays) -> None:
        """Takes in, before training, what `statistics` has gathered of the training truth, for a
        loss that is measured by it. It is kept with the weights of the readout. Called only where
        the truth is tokens."""

    def trivial_loss(self, statistics: Arrays) -> float | None:
        """The training loss, summed over forms, of the best answer that does not look at the video;
        None where nobody knows it."""
        return None

    @abstractmethod
    def trivial(self, targets: Arrays, statistics: Arrays) -> np.ndarray:
        """The answer of a baseline that does not look at the video, of the shape that `answer`
        gives."""

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """Answers from tokens alone, by name: what the cache is worth before anything is trained.
        Their constants are chosen once, on other data."""
        return {}

    @abstractmethod
    def plain(self, answer: np.ndarray, affine_23: np.ndarray) -> dict[str, Any]:
        """The answer for a window of one frame, without the batch axis, as plain data for a person
        or a script.

        `affine_23` maps the source frame to the square: coordinates are given back in the source
        frame.
        """

    def draw(self, pixels_THWC: np.ndarray, answer: np.ndarray, targets: Arrays) -> np.ndarray:
        """One window's frames, uint8 squares, with prediction and truth drawn over them; arrays
        without the batch axis.

        Any size may come back. `targets` may be empty: then the prediction alone is drawn. Raises
        BadInput where the task defines none: its answers are then not drawn.
        """
        name = type(self).__module__.rsplit(".", 1)[-1]
        raise BadInput(f"task '{name}' does not draw its answers", f"define `draw` in {name}.py")


def task_class(recipe: Recipe) -> type[TaskPlugin]:
    """The task that a recipe names, which says what truth it needs before it is made."""
    plugin: type[TaskPlugin] = plugins.load("task", recipe.task.name)
    return plugin


def labels_of(recipe: Recipe, manifest: Manifest) -> tuple[str, ...]:
    """The names that a recipe's task numbers, in order: those of the manifest's classes where it
    answers with what happens when, else those of the labels of clips."""
    return manifest.classes if CLASSES in task_class(recipe).needs else manifest.labels


def make_task(recipe: Recipe, labels: tuple[str, ...]) -> TaskPlugin:
    """The task that a recipe names, with its settings. `labels` are those of `labels_of`.
    Raises BadInput where settings and labels do not go together, or where training would leave out
    patches that the task needs."""
    plugin = task_class(recipe)
    dropping = recipe.windows.dropping
    if dropping is not None and not plugin.drops_patches:
        raise BadInput(
            f"recipe '{recipe.name}': windows.{dropping} leaves patches out, and task "
            f"'{recipe.task.name}' needs those of every place",
            f"leave windows.{dropping.split()[0]} out, or choose a task that asks for no place, as "
            "classify",
        )
    return plugin(recipe.task.settings, labels)
