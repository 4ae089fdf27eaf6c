"""A trained run leaves as files of another tool: one step of its model, and if wanted the encoder
before it.

Files are made aside, asked what the run is asked, and only then take their names: a file that says
something else is not left behind.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import pipeline
from pipeline.cache.cache import Cache
from pipeline.cache.layout import SPECIAL
from pipeline.config.cache_spec import FrameSettings
from pipeline.config.plugins import Settings
from pipeline.errors import BadInput
from pipeline.exchange.encoder import ASKED, EncoderStep, compared_tokens, without_rounding
from pipeline.exchange.formats import Format, exported, require_onnx, write_onnx, write_pt2
from pipeline.exchange.loaded import LoadedStep, OnnxStep, Pt2Step
from pipeline.exchange.parity import CheckFrames, Parity, compared_steps
from pipeline.exchange.step import SIZES, ModelStep, Tensors
from pipeline.models.tasks.contract import STREAMING
from pipeline.records import TokenShape
from pipeline.train.library.trained_model import shape_of_tokens
from pipeline.train.run import Run, load_model
from pipeline.train.stream import Stream

FORMAT_VERSION = 1
"""Of the names and meanings in exported files."""
FEW = 16
"""Frames whose tokens a check is made of."""
START = (
    "All states are zeros of their shapes before the first frame. `reset` is true for every stream "
    "that begins with a frame; its states are then not looked at. Each next_state_I is given back "
    "as state_I with the next frame."
)
"""How a stream begins and goes on."""
STEP, ENCODER = "step", "encoder"
"""Names of files, without their ends."""
NO_CACHE = "the run's cache is not where it was: the check was made of random tokens"


class ExportedFile(Settings):
    """One file that an export has made."""

    name: str
    path: str
    differences: dict[str, float]
    """Output -> the most that it differs from what PyTorch says."""
    torch_ms: float
    """Median milliseconds for a frame of one stream, by the run in PyTorch."""
    file_ms: float
    """The same, by the file."""


class Exported(Settings):
    """What an export has made."""

    files: tuple[ExportedFile, ...]
    notes: tuple[str, ...]
    """What is to be said of them, in sentences."""


def export(
    run: Run,
    folder: Path,
    file_format: Format,
    cache: Cache | None,
    checkpoint: str = "last",
    encoder: Mapping[str, Any] | None = None,
) -> Exported:
    """Writes one step of a run's model into a folder, and what is known of it as JSON beside it.
    `cache`: the one that the run was trained on, if it is there, of whose tokens the check is then
    made. `encoder`: also the encoder, with these keys of its table instead of the run's; None: the
    step alone.

    Raises BadInput where the run cannot follow a stream, or its encoder cannot leave;
    StillframeError where a file says something else than PyTorch, and nothing is written.
    """
    if file_format == "onnx":
        require_onnx("onnx", "onnxscript", "onnxruntime")
    if unlike := run.recipe.windows.unlike_a_stream:
        raise BadInput(
            f"run {run.path} cannot leave as one step of a stream: it was trained with "
            f"windows.{unlike}",
            "train a run with windows.fps or windows.every, without controls",
        )
    shape = shape_of(run, cache)
    step = step_of_run(run, shape, checkpoint)
    about = facts(run, step, shape, checkpoint)
    stages: list[Stage] = [Stage(STEP, step, step.example(), about)]
    before = None
    if encoder is not None:
        before = EncoderStep(Stream(run, torch.device("cpu"), encoder), step)
        stages.append(
            Stage(ENCODER, before, before.example(SIZES["B"]), encoder_facts(about, before))
        )
    files, notes = [], []
    with folder_aside(folder) as aside:
        for stage in stages:
            file = written(stage, aside, file_format)
            with opened(file, stage) as loaded:
                if isinstance(stage.module, EncoderStep):
                    parity = compared_tokens(stage.module, loaded)
                else:
                    parity = compared_steps(
                        step, CheckFrames(step, few_frames(step, cache)), loaded
                    )
            parity.require(f"the {stage.name} as {file_format}")
            files.append(_record(stage.name, folder / file.name, parity))
            notes += parity.notes()
        if cache is None:
            notes.append(NO_CACHE)
        if before is not None:
            notes.append(rounding_note(run, before, step))
        moved(aside, folder)
    return Exported(files=tuple(files), notes=tuple(notes))


class Stage(NamedTuple):
    """What becomes one file."""

    name: str
    module: ModelStep | EncoderStep
    example: Tensors
    about: dict[str, Any]


def step_of_run(run: Run, shape: TokenShape, checkpoint: str = "last") -> ModelStep:
    """One step of a run's model, on the CPU, without what a stream does not need. Raises BadInput
    where the run has no streaming form."""
    model, task = load_model(run, shape, checkpoint, torch.device("cpu"))
    _ = model.streaming  # without this form a run is refused now
    for form in [form for form in model.readouts if form != STREAMING]:
        del model.readouts[form]
    return ModelStep(model.requires_grad_(False), task.requires_grad_(False), shape).eval()


def written(stage: Stage, folder: Path, file_format: Format) -> Path:
    """The file of a stage, and the JSON beside it."""
    file = folder / f"{stage.name}.{file_format}"
    program = exported(stage.module, stage.example, stage.module.inputs)
    if file_format == "onnx":
        write_onnx(program, file, stage.module.inputs, stage.module.outputs, stage.about)
    else:
        write_pt2(program, file, stage.about)
    sidecar = json.dumps(stage.about, indent=1, ensure_ascii=False) + "\n"
    file.with_suffix(".json").write_text(sidecar, encoding="utf-8")
    return file


def opened(file: Path, stage: Stage) -> LoadedStep:
    """A file, to be asked frame by frame."""
    if file.suffix == ".onnx":
        return OnnxStep(file)
    return Pt2Step(file, stage.module.ports)


def rounding_note(run: Run, encoder: EncoderStep, step: ModelStep) -> str:
    """What it makes of answers that the encoder's file does not round as the codec does."""
    difference, largest = without_rounding(encoder, step)
    return (
        f"the encoder's file does not round tokens as codec '{run.header.cache.codec}' of the "
        f"cache does: over {ASKED} random squares answers of up to {largest:.3g} differ by up to "
        f"{difference:.2g} for it"
    )


def _record(name: str, path: Path, parity: Parity) -> ExportedFile:
    return ExportedFile(
        name=name,
        path=str(path),
        differences={output: worst.difference for output, worst in parity.worst.items()},
        torch_ms=parity.torch_ms,
        file_ms=parity.file_ms,
    )


def cache_of_run(run: Run, named: str | None) -> Cache | None:
    """The cache that a run was trained on: the one that is named, or where it was then, if it is
    still there; None where it is not. Raises BadInput where it is another."""
    address = named
    if address is None:
        path = run.header.cache_path
        if path is None or "://" in path or not Path(path).is_dir():
            return None
        address = path
    cache = Cache(address)
    wanted = run.header.cache.fingerprint
    if cache.fingerprint != wanted:
        if named is None:
            return None
        raise BadInput(
            f"run {run.path} was trained on the cache with fingerprint {wanted}, {cache} has "
            f"{cache.fingerprint}",
            f"give the cache {run.header.cache.name}, or leave --cache out",
        )
    return cache


def shape_of(run: Run, cache: Cache | None) -> TokenShape:
    """What there is of one frame, as the cache or else the run or its encoder says it."""
    return shape_of_tokens(run) if cache is None else cache.shape


def few_frames(step: ModelStep, cache: Cache | None) -> Tensors:
    """A few frames, (F, ...), as the inputs of a step are named: evenly from the first video of a
    cache, as they leave its codec; what no cache holds is random."""
    few = step.example({"B": FEW, "Q": 1, "L": 1, "K": 1})
    few = {port.name: few[port.name] for port in step.ports.frame}
    if cache is None or not cache.locations:
        return few
    location = cache.locations[min(cache.locations)]
    rows = np.linspace(location.start, location.stop - 1, FEW).round().astype(np.int64)
    for name in few.keys() & {SPECIAL, *cache.token_arrays}:
        stored = cache.stored_rows(location.store, name, np.unique(rows))
        arrays = {key: torch.from_numpy(array) for key, array in stored.items()}
        decoded = cache.codecs[name].decode(arrays).float()
        few[name] = decoded[np.searchsorted(np.unique(rows), rows)]
    return few


def facts(run: Run, step: ModelStep, shape: TokenShape, checkpoint: str) -> dict[str, Any]:
    """Everything that is known of an exported step, as plain JSON."""
    header, recipe = run.header, run.recipe
    windows, kept = recipe.windows, run.checkpoint(checkpoint)
    assert kept is not None
    table = recipe.canonical()
    table.pop("init", None)  # where weights came from, on the machine that trained
    ports = step.ports
    return {
        "format_version": FORMAT_VERSION,
        "stillframe": pipeline.__version__,
        "torch": torch.__version__,
        "run": run.path.resolve().name,
        "checkpoint": checkpoint,
        "steps": kept.step,
        "task": recipe.task.name,
        "labels": list(header.labels),
        "temporal": recipe.temporal.name,
        "encoder": without_places(header.spec["encoder"]),
        "encoder_weights": header.encoder.get("weights"),
        "frames": header.spec["frames"],
        "frames_per_second": windows.fps,
        "every": windows.every,
        "cache": header.cache.model_dump(),
        "layers": list(step.model.layers),
        "grid_hw": list(shape.grid_hw),
        "special_tokens": shape.special_tokens,
        "width": shape.width,
        "inputs": [port.model_dump() for port in ports.inputs],
        "outputs": [port.model_dump() for port in ports.all_outputs],
        "states": [port.model_dump() for port in ports.states],
        "start": START,
        "recipe": without_places(table),
    }


def without_places(value: Any) -> Any:
    """Plain JSON in which paths of the machine that trained are the names of their last parts."""
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    is_place = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_place else value


def encoder_facts(about: Mapping[str, Any], encoder: EncoderStep) -> dict[str, Any]:
    """Everything that is known of an exported encoder, as plain JSON."""
    same = ("format_version", "stillframe", "torch", "encoder", "encoder_weights", "frames")
    codec = about["cache"]["codec"]
    return {name: about[name] for name in same} | {
        "layers": about["layers"],
        "grid_hw": about["grid_hw"],
        "special_tokens": about["special_tokens"],
        "width": about["width"],
        "inputs": [port.model_dump() for port in encoder.inputs],
        "outputs": [port.model_dump() for port in encoder.outputs],
        "states": [],
        "preprocessing": preprocessing(encoder.stream.spec.frames),
        "codec": f"The step was trained on tokens that codec '{codec}' had rounded. These are not "
        "rounded; what the codec cuts off is cut off.",
    }


def preprocessing(frames: FrameSettings) -> list[str]:
    """How a frame becomes the square that goes in, step by step."""
    shape = (
        "of pixels that are not square, stretch the width first"
        if frames.pixel_aspect
        else ("take all pixels as square")
    )
    sides = (
        f"resize the short side to {frames.size_px} px and cut out the centre"
        if frames.fit == "crop"
        else f"resize both sides to {frames.size_px} px"
    )
    kernel = "antialiased" if frames.antialias else "not antialiased, half-pixel centres"
    levels = "round to whole levels, 0 to 255" if frames.antialias else "keep levels as they are"
    return [
        "upright RGB as a player shows it, levels 0 to 255",
        shape,
        f"{sides}: {frames.resample}, {kernel}",
        levels,
        "float32, (B, 3, H, W); the file itself normalises",
    ]


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """A folder beside files that will be, which is gone afterwards; and so is `folder`, where it
    is new and nothing has come into it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", suffix=".partial", dir=folder) as aside:
            yield Path(aside)
    finally:
        if is_new:
            with suppress(OSError):  # something has come into it
                folder.rmdir()


def moved(aside: Path, folder: Path) -> list[Path]:
    """Files take their names in a folder, what says what they are last."""
    paths = sorted(aside.iterdir(), key=lambda path: path.suffix == ".json")
    return [path.replace(folder / path.name) for path in paths]
