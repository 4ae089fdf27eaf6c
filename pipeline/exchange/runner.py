"""An exported step is run, frame by frame, with numpy and onnxruntime alone. Nothing else of this
package is needed: copy the file into a program of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class StepRunner:
    """Follows as many streams at once as the arrays have rows, and keeps their states."""

    def __init__(self, file: str | Path, threads: int = 0) -> None:
        """`threads`: as many compute; 0: onnxruntime chooses."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.about = self.session.get_modelmeta().custom_metadata_map
        self.states = json.loads(self.about["states"])
        self.axes = {port.name: port.shape for port in self.session.get_inputs()}
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.state: dict[str, Any] = {}

    def __call__(self, reset: np.ndarray | None = None, **frame: np.ndarray) -> dict[str, Any]:
        """One frame of every stream, as the file names its inputs, (B, ...) -> answers, (B, ...).
        `reset` (B,) bool: streams that begin with this frame; all do at the first call."""
        sizes = {
            axis: size
            for name, array in frame.items()
            for axis, size in zip(self.axes[name], array.shape, strict=True)
        }
        if not self.state:
            reset = np.ones(sizes["B"], bool)
            self.state = {
                each["input"]: np.zeros([sizes.get(n, n) for n in each["shape"]], each["dtype"])
                for each in self.states
            }
        if self.states:
            frame["reset"] = np.zeros(sizes["B"], bool) if reset is None else reset
        said = self.session.run(self.outputs, frame | self.state)
        answers = dict(zip(self.outputs, said, strict=True))
        self.state = {each["input"]: answers.pop(each["output"]) for each in self.states}
        return answers
