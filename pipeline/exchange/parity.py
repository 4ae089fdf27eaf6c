"""An exported step says what the run says: a hundred frames, its states fed back from its own
outputs, against the run's stream and its windows.

Two streams go through the file in one batch, which is of another size than the one that it was
written down with; each of them is begun anew on the way, at different frames. A third one, alone
in its batch, goes in between. Where a readout magnifies rounding from frame to frame, so that no
two ways of computing it agree for long (the run itself does not, on frames that differ by as much
as rounding), what it says is left out from there on, and frames are asked one by one, after the
states of the run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.cache.layout import layer_name
from pipeline.errors import StillframeError
from pipeline.exchange.loaded import Arrays, LoadedStep
from pipeline.exchange.ports import ANSWER, CAPTIONS, FEATURES, FRAME_EMBEDDING, LIKENESS, RESET
from pipeline.exchange.step import SIZES, ModelStep, Tensors
from pipeline.models.tasks.contract import FRAME_EMBEDDINGS, PATCHES
from pipeline.models.video_model import StreamState

FRAMES = 100
BEGINS = ((0, 57), (0, 31))
"""Frames with which each of the two streams begins, and begins anew."""
TOLERANCE = 1e-4
"""What an output may differ by, where its numbers are up to 1; larger ones by as much more."""
NUDGE, MAGNIFIED, NUDGES = 2.0**-22, 10.0, 3
"""Share by which numbers are changed to see what rounding does, how many times as much of what
comes of it a file may do, and how often it is tried."""
AFTER_RUN = 20
"""Frames that are asked after the states of the run, where rounding is magnified."""
AFTER = ", after states of the run"
"""End of the name of an output at such frames."""
STATES_EVERY = 10
"""Frames between two at which states are compared."""


@dataclass
class Worst:
    """The largest difference of one output."""

    difference: float = 0.0
    allowed: float = TOLERANCE
    frame: int = 0

    def see(self, difference: float, allowed: float, frame: int) -> None:
        """Takes in one more frame; what is not a number is larger than any."""
        if not difference / allowed <= self.difference / self.allowed:
            self.difference, self.allowed, self.frame = difference, allowed, frame

    @property
    def is_within(self) -> bool:
        return self.difference <= self.allowed


@dataclass
class Parity:
    """What has come out of the comparison."""

    worst: dict[str, Worst] = field(default_factory=dict)
    """Output -> its largest difference."""
    left_out: int = 0
    """Frames at which what the readout says was not compared, since it magnifies rounding."""
    torch_ms: float = 0.0
    """Median time of one frame of one stream by the run."""
    file_ms: float = 0.0
    """The same, by the file."""

    def see(
        self, name: str, said: np.ndarray, wanted: np.ndarray, at: int, beyond: float = 0.0
    ) -> None:
        """Takes in one output at one frame; `beyond`: what is allowed beyond the tolerance."""
        if said.shape != wanted.shape:
            difference = float("inf")
        elif wanted.dtype.kind == "f":
            difference = float(np.abs(said - wanted).max(initial=0))
        else:
            difference = float((said != wanted).any())
        self.worst.setdefault(name, Worst()).see(difference, _allowed(wanted) + beyond, at)

    def notes(self) -> list[str]:
        """What is to be said of readouts that magnify rounding."""
        if not self.left_out:
            return []
        asked = len(BEGINS) * FRAMES
        return [
            "this readout magnifies rounding from frame to frame, so that PyTorch does not agree "
            f"with itself on frames that differ by as much: of {asked} frames its answers to "
            f"{self.left_out} were left out, and {AFTER_RUN - 1} were compared one by one, after "
            "the states of the run"
        ]

    def require(self, what: str) -> None:
        """Raises StillframeError where an output differs by more than is allowed."""
        name, worst = max(
            self.worst.items(),
            key=lambda item: np.nan_to_num(item[1].difference / item[1].allowed, nan=np.inf),
        )
        if not worst.is_within:
            raise StillframeError(
                f"{what} does not say what PyTorch says: output '{name}' differs by up to "
                f"{worst.difference:.2g}, at frame {worst.frame}, where {worst.allowed:.2g} is "
                "allowed; nothing was written",
                "take another version of torch, onnxscript or onnxruntime, or the other --format",
            )


class RunFollower:
    """One stream through the run itself, frame by frame as `stillframe stream` does it."""

    def __init__(self, step: ModelStep, told: Tensors) -> None:
        self._step, self._told = step, told
        self._state: StreamState | None = None

    def __call__(self, frame: Tensors) -> Arrays:
        """Answer, likeness and states, for a batch of one."""
        step, model = self._step, self._step.model
        if self._state is None:
            self._state = model.start(1, step.query(self._told))
        patches = [frame[layer_name(layer)] for layer in model.layers]
        embedding = frame.get(FRAME_EMBEDDING)
        seen = {} if embedding is None else {FRAME_EMBEDDINGS: embedding}
        special = frame.get("special", patches[-1][:, :0])
        prediction, self._state = model.step(special, patches, self._state, seen)
        return self.said(prediction) | self.states(self._state)

    def said(self, prediction: torch.Tensor) -> Arrays:
        """What the task makes of a prediction."""
        answer = self._step.answer(prediction)
        said = {ANSWER: answer.numpy()}
        if CAPTIONS in self._told:
            texts = self._step.task.of_texts(self._told[CAPTIONS])
            said[LIKENESS] = torch.einsum("bke,be->bk", texts, answer).numpy()
        return said

    def states(self, state: StreamState) -> Arrays:
        """States as the file names them."""
        parts = (*state.temporal, *(state.readout[name] for name in self._step.memory))
        return {f"next_state_{i}": part.numpy() for i, part in enumerate(parts)}


class CheckFrames:
    """Tokens of the frames of a check, drawn from a few that are real or random."""

    def __init__(self, step: ModelStep, few: Mapping[str, torch.Tensor], seed: int = 0) -> None:
        """`few`: the tokens of some frames, (F, ...), as the inputs of the file are named."""
        self._few, generator = few, torch.Generator().manual_seed(seed)
        count = len(next(iter(few.values())))
        self._picked = torch.randint(count, (len(BEGINS), FRAMES), generator=generator)
        sizes = SIZES | {"B": len(BEGINS)}
        self.told = {
            name: part
            for name, part in step.example(sizes, seed).items()
            if name in {port.name for port in step.told}
        }

    def of_stream(self, stream: int, times: slice, nudged: bool = False) -> Tensors:
        """Frames of one stream, (T, ...); `nudged` by as much as rounding."""
        tokens = {name: part[self._picked[stream, times]] for name, part in self._few.items()}
        return _nudged(tokens, stream) if nudged else tokens

    def told_to(self, stream: int) -> Tensors:
        """What one stream is told, a batch of one."""
        return {name: part[stream : stream + 1] for name, part in self.told.items()}


def stretches() -> Iterator[tuple[int, slice]]:
    """(stream, its frames from one beginning to the next)."""
    for stream, begins in enumerate(BEGINS):
        for begin, end in zip(begins, (*begins[1:], FRAMES), strict=True):
            yield stream, slice(begin, end)


@dataclass
class Reference:
    """What the run says of the frames of one stream."""

    said: list[Arrays] = field(default_factory=list)
    """Of every frame: answer, features and, now and then, states."""
    by_window: list[Arrays] = field(default_factory=list)
    """Of every frame the answers, where all frames since the beginning are taken at once."""
    magnified: list[float] = field(default_factory=list)
    """Of every frame the most that what the readout says has differed since the beginning, on
    frames that differ by rounding, as a share of what is allowed for a file."""

    def add(self, step: ModelStep, frames: CheckFrames, stream: int, times: slice) -> None:
        """One stretch of the stream."""
        told, tokens = frames.told_to(stream), frames.of_stream(stream, times)
        windows, y_TND = by_window(step, told, tokens)
        self.by_window += windows
        pair = [tokens, frames.of_stream(stream, times, nudged=True)]
        follow, most = [RunFollower(step, told) for _ in pair], 0.0
        of_readout = outputs_of_readout(step)
        for place in range(times.stop - times.start):
            one, other = (
                each({name: part[place : place + 1] for name, part in of.items()})
                for each, of in zip(follow, pair, strict=True)
            )
            shares = (
                _difference(one[name], other[name]) / _allowed(one[name])
                for name in of_readout & one.keys()
            )
            most = max(most, *shares)
            self.magnified.append(most)
            if len(self.said) % STATES_EVERY:
                one = {name: part for name, part in one.items() if not name.startswith("next_")}
            self.said.append(one | {FEATURES: y_TND[place : place + 1].numpy()})


def outputs_of_readout(step: ModelStep) -> set[str]:
    """Names of what the readout says and remembers."""
    return {ANSWER, LIKENESS, *(f"next_state_{place}" for place in step.memory.values())}


def by_window(step: ModelStep, told: Tensors, tokens: Tensors) -> tuple[list[Arrays], torch.Tensor]:
    """Answers to frames that are taken as one window, and outputs of the temporal module,
    (T, N, width)."""
    model = step.model
    patches = [tokens[layer_name(layer)].unsqueeze(0) for layer in model.layers]
    special = tokens["special"].unsqueeze(0) if "special" in tokens else patches[-1][:, :, :0]
    y_1TND = model.features(special, patches)
    query = step.query(told)
    if model.sees_patches:
        query[PATCHES] = patches[-1]
    if FRAME_EMBEDDING in tokens:
        query[FRAME_EMBEDDINGS] = tokens[FRAME_EMBEDDING].unsqueeze(0)
    prediction = step.streaming(y_1TND, query)
    follower = RunFollower(step, told)
    return [follower.said(part) for part in prediction.unbind(1)], y_1TND[0]


@torch.no_grad()
def compared_steps(step: ModelStep, frames: CheckFrames, file: LoadedStep) -> Parity:
    """Takes the frames through the run and through the file, and compares what both say."""
    runs, parity = [Reference() for _ in BEGINS], Parity()
    of_readout = outputs_of_readout(step)
    for stream, times in stretches():
        runs[stream].add(step, frames, stream, times)
    last = BEGINS[0][-1]
    alone, torch_s, file_s = RunFollower(step, frames.told_to(0)), [], []
    for at in range(FRAMES):
        rows = [frames.of_stream(stream, slice(at, at + 1)) for stream in range(len(BEGINS))]
        both = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        reset = (
            {RESET: torch.tensor([at in begins for begins in BEGINS])} if step.ports.states else {}
        )
        want_states = at % STATES_EVERY == 0
        said, _ = file("both", as_arrays(frames.told | both | reset), want_states)
        for stream, run in enumerate(runs):
            row = {name: part[stream : stream + 1] for name, part in said.items()}
            _see(parity, row, run, at, of_readout)
        if at >= last:  # as the first of the two since it was begun anew, alone
            begin = time.perf_counter()
            alone(rows[0])
            torch_s.append(time.perf_counter() - begin)
            said, seconds = file("alone", as_arrays(frames.told_to(0) | rows[0]), want_states)
            file_s.append(seconds)
            _see(parity, said, runs[0], at, of_readout)
    parity.torch_ms, parity.file_ms = (
        1000 * statistics.median(times) for times in (torch_s, file_s)
    )
    shares = [share for run in runs for share in run.magnified]
    parity.left_out = sum(MAGNIFIED * share > 1 for share in shares)
    if parity.left_out:
        _after_the_run(parity, step, frames, file)
    return parity


def _see(parity: Parity, said: Arrays, run: Reference, at: int, of_readout: set[str]) -> None:
    """Compares what a file says of one frame with what the run says of it, `of_readout` only while
    that does not magnify rounding."""
    is_magnified = MAGNIFIED * run.magnified[at] > 1
    for name, array in said.items():
        if is_magnified and name in of_readout:
            continue
        parity.see(name, array, run.said[at][name], at)
        if name in run.by_window[at]:
            parity.see(name, array, run.by_window[at][name], at)


def _after_the_run(parity: Parity, step: ModelStep, frames: CheckFrames, file: LoadedStep) -> None:
    """Compares single frames after the run's own states."""
    told = frames.told_to(0)
    inputs = {name: part[:1] for name, part in step.example().items()} | told
    state = {each.input: torch.zeros_like(inputs[each.input]) for each in step.ports.states}
    for at in range(AFTER_RUN):
        frame = frames.of_stream(0, slice(at, at + 1))
        asked = told | frame | {RESET: torch.tensor([at == 0])} | state
        wanted = step(asked)
        if at:  # a runner knows the first frame of a stream by itself
            others = [step(_nudged(asked, seed)) for seed in range(NUDGES)]
            said, _ = file("after", as_arrays(asked), True)
            for name, array in said.items():
                one = wanted[name].numpy()
                spread = max(_difference(one, other[name].numpy()) for other in others)
                parity.see(name + AFTER, array, one, at, MAGNIFIED * spread)
        state = {each.input: wanted[each.output] for each in step.ports.states}


def _nudged(inputs: Tensors, seed: int) -> Tensors:
    """Inputs that differ by as much as rounding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: part * (1 + NUDGE * torch.randn(part.shape, generator=generator))
        if part.is_floating_point()
        else part
        for name, part in inputs.items()
    }


def _allowed(wanted: np.ndarray) -> float:
    """What an output may differ by."""
    return TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0)))


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    if one.dtype.kind != "f":
        return 0.0
    return float(np.abs(one - other).max(initial=0))


def as_arrays(tensors: Tensors) -> Arrays:
    """Tensors as numpy has them."""
    return {name: part.numpy() for name, part in tensors.items()}
