"""What a page was made from: enough to make it again, and to see in what runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.experiments.sweep import SWEEP_FILE
from pipeline.experiments.sweep_spec import CACHE, GIVEN
from pipeline.report.source import Subject
from pipeline.train.run import tool_versions


def of_runs(subject: Subject) -> dict[str, Any]:
    """Title -> facts: what all runs have in common, what is each one's own, and the sweep as it was
    given."""
    headers = {name: run.header.model_dump(mode="json") for name, run in subject.runs.items()}
    flat = {name: _flat(header) for name, header in headers.items()}
    common = common_part(list(flat.values()))
    checkpoints = {name: result["checkpoint"] for name, result in subject.evaluations.items()}
    own = {
        name: {key: value for key, value in keys.items() if key not in common}
        | {"checkpoint": checkpoints[name]}
        for name, keys in flat.items()
    }
    found: dict[str, Any] = {}
    if subject.path is not None:
        found["The sweep as it was given"] = json.loads(
            (subject.path / SWEEP_FILE).read_text(encoding="utf-8")
        )
    if len(headers) == 1:
        found["The run: recipe, cache, labels, versions"] = next(iter(headers.values()))
    else:
        found["What all runs have in common: recipe, cache, labels, versions"] = _nested(common)
        found["What is each run's own"] = {name: _nested(keys) for name, keys in own.items()}
    return found | {"This page": tool_versions()}


def of_cache(cache: Cache) -> dict[str, Any]:
    header = cache.header.model_dump(mode="json", exclude={"plan"})
    receipts = [receipt for _, receipt in sorted(cache.receipts.items())]
    found: dict[str, Any] = {"The cache: spec, encoder, decoder, fingerprints": header}
    if receipts:
        found["Tools and devices that wrote it"] = _written_by(receipts)
    return found | {"This page": tool_versions()}


def _written_by(receipts: Sequence[Any]) -> list[dict[str, Any]]:
    """Device and versions of the stores, each combination once."""
    made = [{"device": receipt.device, "versions": receipt.versions} for receipt in receipts]
    return list({json.dumps(each, sort_keys=True): each for each in made}.values())


def commands(subject: Subject) -> list[str]:
    """What makes the page again, the recipes being those below. A sweep is made from its own file:
    what was laid over it on the command line is in there."""
    if subject.path is not None:
        given = [
            setting for setting in subject.ranked() if setting.values.get(CACHE, GIVEN) == GIVEN
        ]
        cache = subject.shown(given[0])[0].header.cache_path if given else None
        return [
            f"stillframe sweep {subject.path / SWEEP_FILE} {cache or 'CACHE'} --out {subject.path}",
            f"stillframe report {subject.path} --split {subject.summary.split}",
        ]
    runs, split, lines = list(subject.runs.values()), subject.summary.split, []
    for run in runs:
        lines.append(
            f"stillframe train {run.header.recipe['name']} {run.header.cache_path or 'CACHE'} --out {run.path}"
        )
        lines.append(f"stillframe evaluate {run.path} --split {split}")
    return [*lines, f"stillframe report {' '.join(str(run.path) for run in runs)} --split {split}"]


def common_part(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that have the same value in all tables."""
    first, *others = tables
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and value
        found |= _flat(value, f"{before}{key}\0") if inner else {f"{before}{key}": value}
    return found


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split("\0")
        place = table
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return table
