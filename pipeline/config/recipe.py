"""A TOML file that says what to train becomes a checked `Recipe`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, Choice, choice
from pipeline.config.json_files import json_value
from pipeline.config.plugins import Seed, Settings
from pipeline.config.regular_files import read_regular
from pipeline.config.toml_tables import override, read_own
from pipeline.errors import BadInput
from pipeline.records import Step

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""The file of a run that holds what it was made from."""
Part = Literal["mixer", "projection", "temporal"]
"""A part of the model whose weights do not depend on the task."""
PARTS: tuple[Part, ...] = get_args(Part)


class WindowSettings(Settings):
    """These settings say what one training example holds."""

    frames: int = Field(default=16, ge=1)
    """T, the frames of a window."""
    eval_frames: Annotated[int, Field(ge=1)] | Literal["clip"] | None = None
    """T of every split but the training split, for tasks that answer frame by frame alone; None:
    the same. "clip": a window is all of its clip, however long, so that every frame of it is scored
    once, as where videos are segmented."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second of window time; at most what the cache holds. Exactly one of fps, every and
    `span = "clip"` is given."""
    every: int | None = Field(default=None, ge=1)
    """k, where windows take every k-th cached frame, whenever it is shown."""
    uneven: Literal["warn", "refuse"] = "warn"
    """What training does where windows repeat a frame, or have steps that differ in length."""
    span: Literal["rate", "clip"] = "rate"
    """Time that a window covers. rate: `frames` at `fps`, or every k-th; clip: the whole clip,
    however long, so that its length is no cue: it is cut into as many equal parts as there are
    frames, and each gives one."""
    shuffle: bool = False
    """A control for what time is worth: the frames of every window come in an order drawn at
    random, in training and evaluation. For truth that holds of a whole clip, as a label does."""
    still: float | None = Field(default=None, ge=0, le=1)
    """A control for what time is worth: of every window one frame alone is shown, as often as it
    has frames; 0 is the first, 0.5 the middle and 1 the last one. For truth that holds of a whole
    clip, as a label does."""
    per_clip: Literal["one", "length"] = "one"
    """Windows that a clip has in an epoch. one: one, however long the clip is; length: as many as
    it holds end to end, rounded and at least one, so that clips count by their length; each lies at
    random in a part of the clip of its own."""
    eval_windows: int = Field(default=1, ge=1)
    """Windows in evaluation for each that a clip has in an epoch, spread evenly over the clip."""
    views: tuple[str, ...] = (BASE,)
    """Views of the cache that training draws from, one for each window; evaluation sees the
    base."""
    both_directions: bool = False
    """Training reads half of the windows backwards in time: more data for truth that holds in every
    frame alone, as boxes, points and depth do, and labels and motion do not."""
    keep_tokens: float | None = Field(default=None, gt=0, le=1)
    """Share of the patch tokens of a frame that training reads, for tasks that ask for no place, as
    `classify`: which ones is drawn for every window and holds in all of its frames. Special tokens
    stay. Evaluation and streams see all; None: training, too."""
    crop: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Rows and columns of patches that training reads, a rectangle of the patch grid, for the same
    tasks: where it lies is drawn for every window and holds in all of its frames. `keep_tokens` is
    then a share of it. Special tokens stay. Evaluation and streams see the whole grid; None:
    training, too."""
    train_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training videos that are used, of every label alike; a smaller share is part of
    every larger one."""
    seed: Seed = 0
    """Draws the order of the windows, their places and views, and which videos a share has."""

    @property
    def held_out_frames(self) -> int:
        """T of every split but the training split; that of training where windows are whole clips,
        which differ."""
        return self.eval_frames if isinstance(self.eval_frames, int) else self.frames

    def step(self, speed: float = 1.0) -> Step | None:
        """From one frame of a window to the next, in a clip that is played `speed` times as fast;
        None where that depends on how long the clip is."""
        if self.every is not None:
            return Step(self.every * speed, in_rows=True)
        return None if self.fps is None else Step(speed / self.fps)

    @property
    def dropping(self) -> str | None:
        """The setting by which training reads a part of the patch tokens of a frame, if there is
        one."""
        if self.crop is not None:
            return f"crop = {list(self.crop)}"
        is_share = self.keep_tokens is not None and self.keep_tokens < 1
        return f"keep_tokens = {self.keep_tokens:g}" if is_share else None

    def patches_kept(self, grid_hw: tuple[int, int]) -> int:
        """How many patch tokens of a frame of that grid training reads, in every window alike."""
        high, wide = self.crop or grid_hw
        if self.keep_tokens is None:
            return high * wide
        return max(1, round(self.keep_tokens * high * wide))

    @field_validator("crop", mode="wrap")
    @classmethod
    def _rows_and_columns(
        cls, crop: object, check: ValidatorFunctionWrapHandler
    ) -> tuple[int, int] | None:
        try:
            checked: tuple[int, int] | None = check(crop)
        except ValidationError as error:
            raise ValueError("wanted two whole numbers from 1 on, [rows, columns]") from error
        return checked

    @field_validator("views")
    @classmethod
    def _some(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if not views or len(set(views)) < len(views):
            raise ValueError("wanted at least one view, each once")
        return views

    @model_validator(mode="after")
    def _one_span_and_one_control(self) -> Self:
        if (self.fps is not None) + (self.every is not None) + (self.span == "clip") != 1:
            raise ValueError('wanted exactly one of fps, every and span = "clip"')
        if self.span == "clip" and self.per_clip == "length":
            raise ValueError('a window of span = "clip" is all of its clip: leave per_clip out')
        if self.eval_frames == "clip" and (self.span == "clip" or self.eval_windows > 1):
            raise ValueError(
                'eval_frames = "clip" wants fps or every, and one window of each clip: leave span '
                "and eval_windows out"
            )
        if self.shuffle and self.still is not None:
            raise ValueError("wanted either shuffle or still: one frame has no order")
        return self

    @property
    def unlike_a_stream(self) -> str | None:
        """The setting by which windows are what no stream can be, if there is one: a stream does
        not know when its clip ends, and shows every frame once, in order."""
        if self.span == "clip":
            return 'span = "clip"'
        if self.shuffle:
            return "shuffle = true"
        return None if self.still is None else f"still = {self.still:g}"


class ModelSettings(Settings):
    """These settings describe what lies between the cached tokens and the temporal module."""

    mixer: Literal["mlp", "last", "norm", "concat"] = "mlp"
    """The way the recorded layers become one. mlp: BatchNorm and MLP per layer, residual, mean over
    layers (the paper); last: the last recorded layer as it is; norm: the last recorded layer, each
    channel batch-normed, which learns faster where few channels are much larger than the rest;
    concat: all recorded layers side by side, and one linear layer back to the width."""
    width: int | None = Field(default=None, ge=1)
    """Project tokens to this width before the temporal module; None: keep the encoder's width."""
    tokens: Literal["all", "patches"] = "all"
    """Tokens that the model sees. all: special tokens and patches; patches: patches alone."""
    layers: tuple[int, ...] | None = None
    """The recorded layers that the mixer reads, ascending; None: all that the cache has, or the
    last one for the mixers "last" and "norm"."""

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and (not layers or list(layers) != sorted(set(layers))):
            raise ValueError("wanted at least one layer, ascending")
        return layers

    @model_validator(mode="after")
    def _one_for_last(self) -> Self:
        if self.reads_one_layer and self.layers is not None and len(self.layers) > 1:
            raise ValueError(f'mixer "{self.mixer}" reads one layer')
        return self

    @property
    def reads_one_layer(self) -> bool:
        return self.mixer in ("last", "norm")

    def layers_of(self, recorded: tuple[int, ...]) -> tuple[int, ...]:
        """The layers that the mixer reads where those in `recorded`, ascending, are there."""
        if self.layers is not None:
            return self.layers
        return recorded[-1:] if self.reads_one_layer else recorded


class InitSettings(Settings):
    """These settings say which weights of another run a training begins with. Without this table
    all weights are drawn."""

    run: str = Field(min_length=1)
    """Folder of the run whose weights are taken over."""
    checkpoint: Literal["last", "best"] = "last"
    """Checkpoint of that run."""
    parts: tuple[Part, ...] | None = None
    """Parts that are taken over; None: all that the recipe has weights for. Readouts are always
    drawn."""
    learning_rate_factor: float = Field(default=1.0, gt=0)
    """Factor of the learning rate for the parts that are taken over."""
    frozen: bool = False
    """Do not train the parts that are taken over: they stay as they are, batch norms included."""

    @model_validator(mode="after")
    def _some_parts_and_one_pace(self) -> Self:
        if self.parts is not None and (not self.parts or len(set(self.parts)) < len(self.parts)):
            raise ValueError("parts: wanted at least one part, each once")
        if self.frozen and self.learning_rate_factor != 1:
            raise ValueError("frozen parts are not trained: leave learning_rate_factor out")
        return self


class TrainingSettings(Settings):
    """These settings say how a model is trained: with AdamW, linear warm-up and cosine decay."""

    steps: int | None = Field(default=None, ge=0)
    """Optimiser steps; exactly one of steps and epochs is given. 0: the model as it begins, which
    is zero-shot for tasks that begin with an image-text model."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training clips; exactly one of steps and epochs is given."""
    batch_size: int = Field(default=32, ge=1)
    """Windows per step, over all ranks."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a rank's windows of a step are cut into, one after the other, to need less memory;
    changes no loss, but for which activations dropout takes."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Learning rate at the end of the warm-up, its peak."""
    min_learning_rate: float = Field(default=1e-7, ge=0)
    """Learning rate at the last step, where the cosine decay ends."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps over which the learning rate rises linearly to its peak."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decay of the weights per unit of learning rate; not applied to biases, norms and other
    one-dimensional parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's running means of the gradient and of its square."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Norm of all gradients together above which they are scaled down to it."""
    precision: Literal["auto", "native", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass. auto: bfloat16 autocast on CUDA, float32 on CPU; native:
    bfloat16 autocast where the device multiplies matrices of it in hardware, as newer CPUs do,
    float32 elsewhere. The run says which of the two native has become."""
    compile: bool = False
    """Compile the forward and backward pass of training with torch.compile, for which a CPU needs a
    C++ compiler. Sums may round otherwise, and dropout draws other numbers."""
    gradient_checkpointing: bool = False
    """Keep of the temporal module what it gives and remembers after every stretch of about the
    square root of a window's frames, and compute the rest again in the backward pass: less memory
    for long windows, more time. Gradients are equal to rounding; dropout draws other numbers."""
    seed: Seed = 0
    """Draws initial weights and dropout."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the evaluation split; None: at the end only."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("training wants exactly one of steps and epochs")
        return self


class Recipe(Settings):
    """A recipe says what to train on a cache."""

    name: str
    """Name of the run; None: the name of the file."""
    cache: str | None = None
    """If given, the fingerprint (or its beginning) that the cache must have."""
    task: Choice
    temporal: Choice
    windows: WindowSettings
    model: ModelSettings = ModelSettings()
    training: TrainingSettings
    init: InitSettings | None = None
    """None: all weights are drawn."""

    @model_validator(mode="before")
    @classmethod
    def _plugins(cls, table: Any) -> Any:
        return dict(table) | {
            kind: choice(kind, table[kind]) for kind in ("task", "temporal") if kind in table
        }

    def canonical(self) -> dict[str, Any]:
        """The whole recipe as plain JSON, defaults filled in; `init` if there is one."""
        left_out = {"task", "temporal", *(() if self.init else ("init",))}
        table = self.model_dump(mode="json", exclude=left_out)
        return table | {"task": self.task.table(), "temporal": self.temporal.table()}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a .toml file, or the one that a run was made from: its folder, or its
    `run.json`. A .toml file may name plug-ins by their files, relative to it. Raises BadInput for
    anything else, and for a key or value that no recipe has."""
    file = path / RUN_FILE if (path / RUN_FILE).is_file() else path
    table = _recipe_of_run(file) if file.suffix == ".json" else read_own(file, "recipe")
    return plugins.validate(Recipe, override(table, overrides), str(file))


def _recipe_of_run(file: Path) -> dict[str, Any]:
    """The recipe in a run.json, with every setting that its run was made with."""
    try:
        header = json_value(read_regular(file))
    except OSError as error:
        raise BadInput(f"recipe {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(f"recipe {file} is damaged: {error}") from error
    table = header.get("recipe") if isinstance(header, dict) else None
    if not isinstance(table, dict):
        raise BadInput(
            f"recipe {file} holds no recipe", f"name a .toml file, or the {RUN_FILE} of a run"
        )
    log.debug("read the recipe in %s", file)
    return plugins.as_recorded(table)
