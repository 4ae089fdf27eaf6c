"""A run on disk: what was trained, from what, and its checkpoints.

    run.json               recipe, cache spec and fingerprint, labels, versions
    videos.json            keys of the videos that its weights were trained on
    metrics.jsonl          one line per step
    training.json          only while a process trains it
    tracker-*              which run of a tracker it is, see `pipeline.train.trackers`
    last.json, best.json   each names a safetensors file with weights, and optimiser state in `last`

The JSON of a checkpoint is replaced last and atomically, so a kill at any moment leaves a whole
one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save
from torch import nn

from pipeline.cache.cache import Cache
from pipeline.cache.receipts import TokenFacts
from pipeline.cache.storage.local import write_atomically
from pipeline.cache.storage.processes import is_running
from pipeline.config import plugins
from pipeline.config.cache_spec import CacheSpec
from pipeline.config.json_files import OTHER_CONTENT, json_value, read_json, sealed_json, to_json
from pipeline.config.plugins import Settings
from pipeline.config.recipe import Recipe
from pipeline.config.regular_files import read_regular
from pipeline.config.tensor_files import load_tensors
from pipeline.device import out_of_memory_kills
from pipeline.errors import BadInput
from pipeline.models.step_memory import gigabytes
from pipeline.models.tasks.contract import TaskPlugin, make_task
from pipeline.models.video_model import VideoModel
from pipeline.records import TokenShape

log = logging.getLogger(__name__)

RUN_FORMAT = 3
"""Format of the runs that are written. Format 2 can be read, but not gone on with: there one seed
drew both weights and windows."""


UNDER_TRAINED = 0.1
"""A training loss that has fallen by a smaller share has hardly moved: the run is under-trained, or
what it sees says nothing of the truth."""
MIN_STEPS = 20
"""Steps from which it is asked whether a loss has moved."""
FIRST_STEPS = 5
"""Steps whose mean loss is that of a model that has learned nothing."""
LARGE = 16_384
"""Numbers of a recipe above which a model is compared with its checkpoint before memory is taken
for it: a run may come from a stranger."""


class CacheFacts(Settings):
    """The facts about the cache that a run was trained on."""

    name: str
    fingerprint: str
    codec: str
    codec_sha256: str | None = None
    """Digest of codec.safetensors, which holds what a fitted codec has learnt; the run has a
    copy."""

    @classmethod
    def of(cls, cache: Cache) -> CacheFacts:
        return cls(
            name=cache.name,
            fingerprint=cache.fingerprint,
            codec=cache.spec["codec"]["name"],
            codec_sha256=cache.header.codec_sha256,
        )


class InitFacts(Settings):
    """The weights of another run that a run began with."""

    run: str
    """Folder in which that run was."""
    checkpoint: str
    step: int
    """Steps that the checkpoint has."""
    parts: tuple[str, ...]
    """Parts of the model that were taken over."""
    sha256: str
    """Over the tensors that were taken over, see `weights.initial`."""
    init: InitFacts | None = None
    """The weights that that run began with itself."""


class RunHeader(Settings):
    """The content of run.json. The first five fields, and the digest of the weights that the run
    began with, say what it is made from; it goes on only where they are the same."""

    format_version: int
    recipe: dict[str, Any]
    cache: CacheFacts
    manifest: str | None
    """Digest; None for an imported run, which knows no manifest."""
    labels: tuple[str, ...]
    spec: dict[str, Any]
    """The spec of the cache; with `encoder`, the encoder's identity, it is needed to encode frames
    that are in no cache."""
    encoder: dict[str, Any]
    cache_path: str | None
    """Where the cache was at training; None if there was none."""
    manifest_path: str | None
    """Where a manifest other than the cache's own was."""
    parameters: dict[str, int]
    """Trained parameters of each part."""
    clips: dict[str, int]
    """Used for training, how many of these are shorter or slower than their window, and how many
    the cache does not cover; where clips count by length, also the windows of an epoch."""
    versions: dict[str, str]
    """Tool -> its version when the run was made."""
    init: InitFacts | None = None
    """None: all weights were drawn."""
    tokens: TokenFacts | None = None
    """What a frame's tokens look like. None: not written down, and the cache or the encoder
    tells."""
    text: dict[str, Any] | None = None
    """Identity of the text tower that its texts went through; None: it was told nothing in
    words."""
    videos_sha256: str | None = None
    """SHA-256 of videos.json, see `weights.seen_videos`. None: there is no such file, in an
    imported run, or one that a version before 0.5.0 wrote."""
    checksum: str | None = None
    """SHA-256 of this file, see `sealed_json`. None: written by a version before 0.5.0."""

    def identity(self) -> dict[str, Any]:
        """Everything that the run is made from, as plain JSON."""
        table = self.model_dump(
            mode="json", include={"format_version", "recipe", "cache", "manifest", "labels"}
        )
        return table | {"init_sha256": self.init and self.init.sha256}


def tool_versions() -> dict[str, str]:
    """Tool -> its version that is installed now."""
    return {tool: version(tool) for tool in ("stillframe", "torch", "numpy")}


class Checkpoint(Settings):
    """The content of last.json or best.json."""

    file: Annotated[str, Field(pattern=r"^(last|best)-[0-9]+\.safetensors$")]
    step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    best: float | None
    """Best score on the way, in the task's first form."""
    seconds: float = 0.0
    """Time spent so far on steps, evaluations and checkpoints, and this run's share of what it had
    together with others."""
    sha256: str | None = None
    """Of the file. None: written by a version before 0.5.0."""
    checksum: str | None = None
    """SHA-256 of this JSON, see `sealed_json`."""

    @model_validator(mode="after")
    def _is_on_the_way(self) -> Self:
        if self.step > self.steps:
            raise ValueError(f"step is {self.step}, of {self.steps}")
        return self


class InTraining(Settings):
    """The content of training.json, which is there while a process trains the run: where that was
    killed, the next one finds it."""

    host: str
    pid: int
    peak_bytes: int | None
    """Memory that training takes at its peak; None where there was plenty."""
    out_of_memory_kills: int | None
    """Processes that the host had killed for want of memory before, since it started."""


class Run:
    """A training run on disk. Opening it reads `run.json` only; raises BadInput where there is
    none."""

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        file = path / "run.json"
        if not file.is_file():
            if path.parts[:1] == ("hf:",):
                raise BadInput(
                    f"hf://{'/'.join(path.parts[1:])} is not a folder of this machine",
                    f"fetch it first: stillframe pull hf://{'/'.join(path.parts[1:])} --out RUN",
                )
            raise BadInput(
                f"{path} is not a run: it has no run.json",
                "make one with: stillframe train RECIPE CACHE",
            )
        self.header = read_json(
            RunHeader, file, "train again into another --out", range(2, RUN_FORMAT + 1)
        )

    def __repr__(self) -> str:
        return f"Run('{self.path}', recipe '{self.header.recipe.get('name')}')"

    @property
    def cache_path(self) -> str | None:
        """The folder in which the cache was at training; None if there was no cache. A run may come
        from a stranger, so nothing is asked over a network because a run says so: raises BadInput
        for a URL."""
        path = self.header.cache_path
        if path is not None and "://" in path:
            raise BadInput(
                f"run {self.path} says that its cache is at a URL, which is opened only if you "
                "name it yourself",
                "if you know it: --cache URL, see cache_path in run.json",
            )
        return path

    @property
    def recipe(self) -> Recipe:
        recorded = plugins.as_recorded(self.header.recipe)
        return plugins.validate(Recipe, recorded, str(self.path / "run.json"))

    @property
    def spec(self) -> CacheSpec:
        recorded = plugins.as_recorded(self.header.spec)
        return plugins.validate(CacheSpec, recorded, str(self.path / "run.json"))

    def checkpoint(self, which: str) -> Checkpoint | None:
        """The content of `last.json` or `best.json`, or None if there is none yet."""
        file = self.path / f"{which}.json"
        return (
            read_json(Checkpoint, file, "train again into another --out")
            if file.is_file()
            else None
        )

    def tensors(self, which: str) -> dict[str, torch.Tensor]:
        """All tensors of a checkpoint: `model.*`, and `optimizer.*` in `last`."""
        checkpoint = self.checkpoint(which)
        if checkpoint is None:
            raise BadInput(f"run {self.path} has no {which} checkpoint yet", "train it first")
        file = self.path / checkpoint.file
        again = "train again into another --out"
        tensors = load_tensors(file, "checkpoint", again)
        if checkpoint.sha256 is not None:
            with file.open("rb") as data:
                sha256 = hashlib.file_digest(data, "sha256").hexdigest()
            if sha256 != checkpoint.sha256:
                raise BadInput(f"checkpoint {file} is damaged: {OTHER_CONTENT}", again)
        return tensors

    def unvouched(self, which: str) -> str:
        """What a run of an older version cannot vouch for, in a sentence; "" for today's."""
        checkpoint = self.checkpoint(which)
        if checkpoint is None or checkpoint.sha256 is not None:
            return ""
        return (
            f"run {self.path} was written before 0.5.0: its {which} checkpoint has no checksum, "
            "and a changed weight would not be noticed"
        )

    def save(
        self,
        which: str,
        tensors: dict[str, torch.Tensor],
        step: int,
        steps: int,
        best: float | None,
        seconds: float = 0.0,
    ) -> None:
        """Writes a checkpoint: tensors first, then the JSON that names them, then older files go,
        so that a kill at any moment leaves a whole one."""
        name = f"{which}-{step:06d}.safetensors"
        data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        write_atomically(self.path / name, data)
        checkpoint = Checkpoint(
            file=name,
            step=step,
            steps=steps,
            best=best,
            seconds=seconds,
            sha256=hashlib.sha256(data).hexdigest(),
        )
        write_atomically(self.path / f"{which}.json", sealed_json(checkpoint))
        for old in self.path.glob(f"{which}-*.safetensors"):
            if old.name != name:
                old.unlink()

    @contextmanager
    def in_training(self, peak_bytes: int | None, say: Callable[[str], object]) -> Iterator[None]:
        """While this process trains the run, a file says so, which a kill leaves behind. `say` is
        told where the last training was killed, and whether for want of memory, as far as the
        system tells.

        `peak_bytes`: memory that training takes at its peak, if it is known.
        """
        file = self.path / "training.json"
        now = InTraining(
            host=socket.gethostname(),
            pid=os.getpid(),
            peak_bytes=peak_bytes,
            out_of_memory_kills=out_of_memory_kills(),
        )
        if file.is_file():
            with suppress(BadInput):
                self._say_killed(read_json(InTraining, file, ""), now, say)
        write_atomically(file, to_json(now))
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

    def _say_killed(
        self, before: InTraining, now: InTraining, say: Callable[[str], object]
    ) -> None:
        is_here = before.host == now.host
        # In a container that was started again, this process may have the number of the last one.
        if is_here and before.pid != now.pid and is_running(before.pid):
            return  # another process trains it at this moment
        checkpoint = self.checkpoint("last")
        step = checkpoint.step if checkpoint else 0
        kills = [each.out_of_memory_kills for each in (before, now)]
        by_memory = is_here and None not in kills and kills[0] != kills[1]
        cause = (
            f"for want of memory: {before.host} has killed a process for that since it began"
            if by_memory
            else f"on {before.host}, for want of memory perhaps"
        )
        need = f"; it takes about {gigabytes(now.peak_bytes)}" if now.peak_bytes else ""
        say(
            f"the last training of {self.path} was killed {cause}{need}; it goes on from step "
            f"{step}; where it is killed again: raise training.accumulate, or lower windows.frames "
            "or model.width"
        )


def load_model(
    run: Run, shape: TokenShape, checkpoint: str = "last", device: torch.device | None = None
) -> tuple[VideoModel, TaskPlugin]:
    """The trained model and its task, in eval mode, for tokens of `shape`."""
    recipe, tensors = run.recipe, run.tensors(checkpoint)
    sizes = [recipe.model.width, recipe.task.table(), recipe.temporal.table(), shape.width]
    if max(_whole_numbers(sizes)) > LARGE:
        try:
            with torch.device("meta"):  # which has shapes and takes no memory
                task = make_task(recipe, run.header.labels)
                parts = nn.ModuleDict({"model": VideoModel(recipe, shape, task), "task": task})
        except (TypeError, RuntimeError) as error:  # sizes that are no size of any tensor
            raise BadInput(
                f"run {run.path} says that its model has {max(_whole_numbers(sizes)):,} of "
                "something, which no tensor has",
                "its run.json is damaged: train again",
            ) from error
        for name, wanted in parts.state_dict().items():
            if name not in tensors or tensors[name].shape != wanted.shape:
                raise BadInput(
                    f"checkpoint does not fit the model: {name} should be {tuple(wanted.shape)}",
                    "train again",
                )
    task = make_task(recipe, run.header.labels)
    model = VideoModel(recipe, shape, task)
    load_weights(model, task, tensors)
    log.debug("read checkpoint %s of run %s", checkpoint, run.path)
    return model.to(device).eval(), task.to(device).eval()


def _whole_numbers(value: Any) -> Iterator[int]:
    """All whole numbers in nested tables, and 0."""
    yield 0
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in inner:
            yield from _whole_numbers(each)


def load_weights(model: VideoModel, task: TaskPlugin, tensors: dict[str, torch.Tensor]) -> None:
    """The `model.*` and `task.*` tensors of a checkpoint into a model and task made from the same
    recipe."""
    weights = {
        name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "task."))
    }
    try:
        nn.ModuleDict({"model": model, "task": task}).load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(
            f"checkpoint does not fit the model: {' '.join(str(error).split())}", "train again"
        ) from error


def loss_fall(path: Path, step: int, trivial_loss: float | None) -> float | None:
    """How far the training loss of the run in folder `path` had fallen after `step` steps, as a
    share of the loss of the best answer that does not look at the video; where nobody knows that
    one, of the loss of the first steps. The loss is a mean over the last tenth of the steps.

    None after fewer than `MIN_STEPS` steps, which nobody takes for a training, and where the loss
    is no positive number to begin with.
    """
    losses = [line["loss"] for line in read_metrics(path) if line["step"] <= step]
    if len(losses) < MIN_STEPS:
        return None
    start = fmean(losses[:FIRST_STEPS]) if trivial_loss is None else trivial_loss
    return 1 - fmean(losses[-max(1, len(losses) // 10) :]) / start if start > 0 else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to the first that is damaged: a kill may cut the last one
    short."""
    file = path / "metrics.jsonl"
    records = []
    for line in read_regular(file).splitlines() if file.is_file() else []:
        try:
            record = json_value(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not _are_metrics(record):
            break
        records.append(record)
    return records


def _are_metrics(record: dict[str, Any]) -> bool:
    """Whether a line has a step and a loss, and nothing but numbers, alone or by form."""
    values = [
        value
        for each in record.values()
        for value in (each.values() if isinstance(each, dict) else (each,))
    ]
    return {"step", "loss"} <= record.keys() and all(
        type(value) in (int, float) for value in values
    )
