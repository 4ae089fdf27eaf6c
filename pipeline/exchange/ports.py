"""Names, shapes and meanings of what goes into an exported step and comes out of it: they do not
change from one version to the next.

    special, layer_N      tokens of one frame, named as in a cache
    frame_embedding       embedding of the frame by an image-text model, for runs that see it
    box, point, ...       what a stream is told, the same at every frame of it
    reset                 streams that begin with this frame
    state_I               what is remembered of the frames before: zeros, until it is given back
    answer                what the task says of the frame
    likeness              how much the video so far is like each caption
    features              outputs of the temporal module
    next_state_I          to be given back as state_I with the next frame
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.plugins import Settings

RESET, ANSWER, LIKENESS, FEATURES = "reset", "answer", "likeness", "features"
CAPTIONS = "captions"
FRAME_EMBEDDING = "frame_embedding"
FREE_AXES = {
    "box": "Q",
    "point": "Q",
    "question": "L",
    "question_valid": "L",
    CAPTIONS: "K",
}
"""Part of a query -> letter of its second axis, which may be of any size. That of `choices` may
not: of how many the likeliest are told depends on it."""
TOLD_IN = {"frame": "point"}
"""Whole numbers of a query that say in which frame of a stream a part of it is told: always its
first one, as in `stillframe stream`."""
MEANINGS = {
    "special": "special tokens (CLS, then registers) of the last recorded layer",
    FRAME_EMBEDDING: "embedding of the frame by the image-text model of the cache, of unit length",
    "box": "boxes to follow, in the first frame of the stream: cx, cy, w, h in the square, 0 to 1",
    "point": "points to follow, in the first frame of the stream: x, y in the square, 0 to 1",
    "question": "tokens of the question by the text tower",
    "question_valid": "which of the question's tokens there are",
    "choices": "embeddings by the text tower of the answers to choose from; zeros: none",
    CAPTIONS: "embeddings of captions by the text tower, of unit length",
    RESET: "streams that begin with this frame: their states are not looked at",
    LIKENESS: "cosine of the video so far and each caption",
    FEATURES: "outputs of the temporal module: special tokens, then patches",
}


class Port(Settings):
    """One input or output."""

    name: str
    dtype: str
    """As numpy calls it."""
    shape: tuple[int | str, ...]
    """A letter stands for an axis of any size, the same wherever it stands."""
    meaning: str = ""


class StatePort(Settings):
    """One part of what is remembered between two frames."""

    input: str
    output: str
    dtype: str
    shape: tuple[int | str, ...]
    of: str
    """What remembers it."""


class Ports(Settings):
    """Everything that goes in and comes out, in the order of the file."""

    frame: tuple[Port, ...]
    """What there is of every frame."""
    told: tuple[Port, ...]
    """What a stream is told."""
    states: tuple[StatePort, ...]
    outputs: tuple[Port, ...]
    """But for the states."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """All inputs."""
        reset = Port(name=RESET, dtype="bool", shape=("B",), meaning=MEANINGS[RESET])
        states = tuple(
            Port(name=each.input, dtype=each.dtype, shape=each.shape, meaning=f"state of {each.of}")
            for each in self.states
        )
        return (*self.frame, *self.told, *((reset,) if states else ()), *states)

    @property
    def all_outputs(self) -> tuple[Port, ...]:
        """All outputs, the states last."""
        states = tuple(
            Port(
                name=each.output, dtype=each.dtype, shape=each.shape, meaning=f"state of {each.of}"
            )
            for each in self.states
        )
        return (*self.outputs, *states)


def with_letters(
    shape: Sequence[int], other: Sequence[int], letters: dict[int, str]
) -> tuple[int | str, ...]:
    """A shape whose axes that differ in `other`, which was made with other sizes, are free.
    `letters`: size of a free axis in `shape` -> its letter."""
    assert len(shape) == len(other)
    return tuple(
        size if size == second else letters[size] for size, second in zip(shape, other, strict=True)
    )
