"""TensorBoard events that a training wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def drawn(folder: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value."""
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    found = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    assert all(len(dict(points)) == len(points) for points in found.values())  # no step twice
    return {tag: dict(points) for tag, points in found.items()}


def drawn_by(lines: list[dict]) -> dict[str, dict[int, float]]:
    """What these lines of metrics should look like."""
    wanted: dict[str, dict[int, float]] = {}
    for line in lines:
        values = {name: line[name] for name in ("loss", "learning_rate", "gradient_norm")}
        values |= {f"losses/{form}": loss for form, loss in line["losses"].items()}
        values |= {f"val/{form}": score for form, score in line.get("val", {}).items()}
        for tag, value in values.items():
            wanted.setdefault(tag, {})[line["step"]] = pytest.approx(value, rel=1e-6)
    return wanted
