"""One step of a model, or an encoder, as a file of another tool: ONNX, or what `torch.export`
saves.

Everything that is known of it is in the file itself, as JSON texts under the names that the JSON
beside it has them.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch._dynamo.exc import UserError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from pipeline.errors import StillframeError
from pipeline.exchange.ports import Port

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
TALKERS = ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")
"""Loggers of exporters; the second writes down every operation for whoever listens to all."""


def exported(
    module: nn.Module, example: Mapping[str, torch.Tensor], inputs: tuple[Port, ...]
) -> torch.export.ExportedProgram:
    """The graph of a module that takes and gives a dictionary of tensors, with free axes. Raises
    StillframeError where part of it fixes one."""
    letters = sorted({axis for port in inputs for axis in port.shape if isinstance(axis, str)})
    dims = {letter: torch.export.Dim(letter) for letter in letters}
    free = {
        port.name: {
            place: dims[axis] for place, axis in enumerate(port.shape) if isinstance(axis, str)
        }
        for port in inputs
    }
    try:
        with torch.no_grad(), without_talk():
            return torch.export.export(
                module, (dict(example),), dynamic_shapes={"inputs": free}, strict=False
            )
    except (UserError, GuardOnDataDependentSymNode) as error:
        raise StillframeError(
            "this model fixes the size of an axis that must be free, or looks at numbers to decide "
            f"what to do: {_in_short(error)}",
            "in its plug-ins, take x.shape[0] where there is len(x), and torch.where where there "
            "is an if",
        ) from error


def write_onnx(
    program: torch.export.ExportedProgram,
    file: Path,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    about: Mapping[str, Any],
) -> None:
    """Writes an ONNX file. Raises StillframeError where a package is not there that it takes."""
    require_onnx("onnx", "onnxscript")
    import onnx_ir

    names = [port.name for port in inputs], [port.name for port in outputs]
    try:
        with without_talk():
            made = torch.onnx.export(
                program,
                input_names=names[0],
                output_names=names[1],
                dynamo=True,
                verbose=False,
                custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise StillframeError(
            f"this model has no form in ONNX: {_in_short(cause)}",
            "--format pt2, or other operators in its plug-ins",
        ) from error
    assert made is not None
    graph = made.model.graph
    assert [value.name for value in graph.inputs] == names[0]
    for ports, values in ((inputs, graph.inputs), (outputs, graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.shape = onnx_ir.Shape(port.shape)
            value.doc_string = port.meaning
    made.model.metadata_props.update({key: json.dumps(value) for key, value in about.items()})
    made.model.producer_name, made.model.producer_version = "stillframe", about["stillframe"]
    made.save(str(file))


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _stable_sort(x: Any, *, stable: bool, descending: bool, dim: int = -1) -> Any:  # noqa: ARG001
    """TopK of all there are: of equal numbers it takes the first, as a stable sort does."""
    from onnxscript import opset18 as op

    size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def write_pt2(program: torch.export.ExportedProgram, file: Path, about: Mapping[str, Any]) -> None:
    """Writes what `torch.export.load` reads."""
    texts = {key: json.dumps(value) for key, value in about.items()}
    with without_talk():
        torch.export.save(program, file, extra_files=texts)


def require_onnx(*packages: str) -> None:
    """Raises StillframeError where a package of the extra `export` is not installed."""
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise StillframeError(
                f"ONNX files need the package '{package}', which is not installed",
                "pip install 'stillframe[export]'; --format pt2 needs nothing more",
            )


@contextmanager
def without_talk() -> Iterator[None]:
    """Within it exporters do not talk of their own deprecations."""
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
