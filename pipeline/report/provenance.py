"""The facts about what a page was made from: enough to make it again, and to see how its runs
differ."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.receipts import Receipt
from pipeline.config.recipe import RUN_FILE
from pipeline.experiments.sweep import SWEEP_FILE
from pipeline.experiments.sweep_spec import CACHE, GIVEN
from pipeline.report.source import ReportData
from pipeline.train.run import Run, tool_versions


def runs_provenance(data: ReportData) -> dict[str, Any]:
    """Title -> facts: what all runs have in common, what is each run's own, and the sweep as it was
    given."""
    headers = {name: run.header.model_dump(mode="json") for name, run in data.runs.items()}
    flat = {name: _flatten(header) for name, header in headers.items()}
    common = common_part(list(flat.values()))
    own = {
        name: {key: value for key, value in keys.items() if key not in common}
        | {"checkpoint": data.evaluations[name].checkpoint.model_dump(mode="json")}
        for name, keys in flat.items()
    }
    facts: dict[str, Any] = {}
    if data.path is not None:
        facts["The sweep as it was given"] = json.loads(
            (data.path / SWEEP_FILE).read_text(encoding="utf-8")
        )
    if len(headers) == 1:
        facts["The run: recipe, cache, labels, versions"] = next(iter(headers.values()))
    else:
        facts["What all runs have in common: recipe, cache, labels, versions"] = _unflatten(common)
        facts["What is each run's own"] = {name: _unflatten(keys) for name, keys in own.items()}
    return facts | {"This page": tool_versions()}


def cache_provenance(cache: Cache) -> dict[str, Any]:
    """Title -> facts: the header of a cache, and what wrote it."""
    header = cache.header.model_dump(mode="json", exclude={"plan"})
    receipts = [receipt for _, receipt in sorted(cache.receipts.items())]
    facts: dict[str, Any] = {"The cache: spec, encoder, decoder, fingerprints": header}
    if receipts:
        facts["Tools and devices that wrote it"] = _writers(receipts)
    return facts | {"This page": tool_versions()}


def _writers(receipts: Sequence[Receipt]) -> list[dict[str, Any]]:
    """Device and versions that stores were written with, each combination once."""
    writers: list[dict[str, Any]] = []
    for receipt in receipts:
        writer = {"device": receipt.device, "versions": receipt.versions}
        if writer not in writers:
            writers.append(writer)
    return writers


def commands(data: ReportData) -> list[str]:
    """The commands that make the page again. A run is made from its run.json, and a sweep from its
    own file: they hold what was changed on the command line."""
    split = data.summary.split
    if data.path is not None:
        on_given = [point for point in data.ranked() if point.values.get(CACHE, GIVEN) == GIVEN]
        cache = data.shown(on_given[0])[0].header.cache_path if on_given else None
        words = [data.path / SWEEP_FILE, cache or "CACHE", "--out", data.path]
        return [
            _command("sweep", *words),
            _command("report", data.path, "--split", split),
        ]
    lines = []
    for name, run in data.runs.items():
        lines.append(_command("train", run.path / RUN_FILE, *_trained_on(run), "--out", run.path))
        which = data.evaluations[name].checkpoint.which
        chosen = ["--checkpoint", which] if which != "last" else []
        lines.append(_command("evaluate", run.path, "--split", split, *chosen, *_leave_out(run)))
    paths = [run.path for run in data.runs.values()]
    return [*lines, _command("report", *paths, "--split", split)]


def _command(*words: object) -> str:
    return shlex.join(["stillframe", *map(str, words)])


def _trained_on(run: Run) -> list[str]:
    """The cache that a run was trained on, and what else `train` has to be told about clips."""
    manifest = run.header.manifest_path
    others = ["--manifest", manifest] if manifest else []
    return [run.header.cache_path or "CACHE", *others, *_leave_out(run)]


def _leave_out(run: Run) -> list[str]:
    """The flag without which a cache with holes is refused, where the run's had some."""
    return ["--allow-missing"] if run.header.clips.get("skipped") else []


def common_part(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that have the same value in all tables."""
    first, *rest = tables
    return {
        key: value
        for key, value in first.items()
        if all(key in table and table[key] == value for table in rest)
    }


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, their keys joined by a NUL, which is in no key."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}\0")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested tables that `_flatten` made one of."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split("\0")
        table = nested
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return nested
