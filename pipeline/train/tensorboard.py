"""A run's metrics as TensorBoard event files, to watch it by: the same numbers as in metrics.jsonl,
and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput

FLUSH_S = 10
"""Seconds until an event is on disk."""

LogLine = Callable[[dict[str, Any]], None]
"""Takes one line of metrics.jsonl and writes its numbers as events."""


@contextmanager
def tensorboard(folder: Path) -> Iterator[LogLine]:
    """Writes lines of metrics as event files in `folder`.

    The first line hides what older files there say of its step and later ones: a run that goes on
    from a checkpoint does those steps again. Without a line nothing is written. Raises BadInput
    without the extra.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BadInput(
            "TensorBoard is not installed", "pip install 'stillframe[tensorboard]'"
        ) from error
    writer = None

    def log_line(line: dict[str, Any]) -> None:
        nonlocal writer
        step = line["step"]
        writer = writer or SummaryWriter(folder, purge_step=step, flush_secs=FLUSH_S)
        for tag, value in scalars(line).items():
            writer.add_scalar(tag, value, step)

    try:
        yield log_line
    finally:
        if writer:
            writer.close()


@contextmanager
def tensorboards(folder: Path) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Writes lines of metrics of many runs, each with the run's name, as event files in the folders
    of the runs, which are in `folder`."""
    with ExitStack() as stack:
        writers: dict[str, LogLine] = {}

        def log_line_of(run: str, line: dict[str, Any]) -> None:
            if run not in writers:
                writers[run] = stack.enter_context(tensorboard(folder / run))
            writers[run](line)

        yield log_line_of


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Tag -> value of a line: `loss`, `learning_rate`, `gradient_norm`, and by form `losses/...`
    and, if scored, `val/...`."""
    by_form = {
        f"{group}/{form}": value
        for group in ("losses", "val")
        for form, value in line.get(group, {}).items()
    }
    return {name: line[name] for name in ("loss", "learning_rate", "gradient_norm")} | by_form
