"""What Weights & Biases has in the files of a run that is offline, by its own messages: the file is a log in LevelDB's framing, blocks of 32 KiB of records that may be cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2 as messages

BEGIN, BLOCK, HEADER = 7, 32_768, 7
WHOLE, LAST = 1, 4


class Offline(NamedTuple):
    """One of the folders `offline-run-*`."""

    id: str
    name: str
    project: str
    group: str
    config: dict[str, Any]
    steps: list[tuple[int, dict[str, float]]]
    """As they were written."""
    summary: dict[str, Any]
    exit_code: int | None


def offline_runs(folder: Path) -> list[Offline]:
    """All of a folder `wandb` that anything was written of, the oldest first."""
    files = folder.glob("offline-run-*/*.wandb")
    return [found for file in sorted(files) if (found := _read(file)) is not None]


def _read(file: Path) -> Offline | None:
    run, config, steps, summary, code = None, {}, [], {}, None
    for record in _records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or record.run
            config |= _values(record.run.config.update)
        elif kind == "config":
            config |= _values(record.config.update)
        elif kind == "history":
            steps.append((record.history.step.num, _values(record.history.item)))
        elif kind == "summary":
            summary |= _values(record.summary.update)
        elif kind == "exit":
            code = record.exit.exit_code
    return run and Offline(
        run.run_id, run.display_name, run.project, run.run_group, config, steps, summary, code
    )


def _records(data: bytes) -> Iterator[Any]:
    at, part = BEGIN, b""
    while at + HEADER <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            yield messages.Record.FromString(part)
            part = b""


def _values(items: Any) -> dict[str, Any]:
    """What the keys of items say, without what wandb adds itself."""
    named = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {key: value for key, value in named.items() if not key.startswith("_")}
