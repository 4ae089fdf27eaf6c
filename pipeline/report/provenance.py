"""What a page was made from: enough to make it again, and to see in what runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.experiments.sweep import SWEEP_FILE
from pipeline.experiments.sweep_spec import CACHE, GIVEN
from pipeline.report.source import ReportData
from pipeline.train.run import tool_versions


def runs_provenance(data: ReportData) -> dict[str, Any]:
    """Title -> facts: what all runs have in common, what is each one's own, and the sweep as it was
    given."""
    headers = {name: run.header.model_dump(mode="json") for name, run in data.runs.items()}
    flat = {name: _flatten(header) for name, header in headers.items()}
    common = common_part(list(flat.values()))
    checkpoints = {
        name: result.checkpoint.model_dump(mode="json") for name, result in data.evaluations.items()
    }
    own = {
        name: {key: value for key, value in keys.items() if key not in common}
        | {"checkpoint": checkpoints[name]}
        for name, keys in flat.items()
    }
    found: dict[str, Any] = {}
    if data.path is not None:
        found["The sweep as it was given"] = json.loads(
            (data.path / SWEEP_FILE).read_text(encoding="utf-8")
        )
    if len(headers) == 1:
        found["The run: recipe, cache, labels, versions"] = next(iter(headers.values()))
    else:
        found["What all runs have in common: recipe, cache, labels, versions"] = _unflatten(common)
        found["What is each run's own"] = {name: _unflatten(keys) for name, keys in own.items()}
    return found | {"This page": tool_versions()}


def cache_provenance(cache: Cache) -> dict[str, Any]:
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


def commands(data: ReportData) -> list[str]:
    """What makes the page again, the recipes being those below. A sweep is made from its own file:
    what was laid over it on the command line is in there."""
    if data.path is not None:
        given = [point for point in data.ranked() if point.values.get(CACHE, GIVEN) == GIVEN]
        cache = data.shown(given[0])[0].header.cache_path if given else None
        return [
            f"stillframe sweep {data.path / SWEEP_FILE} {cache or 'CACHE'} --out {data.path}",
            f"stillframe report {data.path} --split {data.summary.split}",
        ]
    runs, split, lines = list(data.runs.values()), data.summary.split, []
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


def _flatten(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and value
        found |= _flatten(value, f"{before}{key}\0") if inner else {f"{before}{key}": value}
    return found


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split("\0")
        place = table
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return table
