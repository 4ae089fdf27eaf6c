"""What Weights & Biases has written of a run that is offline. Its files are logs of messages in
LevelDB's framing: blocks of 32 KiB, records that may be cut at the end of one. A process that is
killed leaves the messages of its last seconds unwritten, so only the files know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MAGIC = b":W&B"
BEGIN = 7
"""Bytes before the first record: the magic number and a version."""
BLOCK, HEADER = 32_768, 7
"""Bytes of a block, and of what stands before each part of a record: a checksum, its length, and
whether it is whole or which part."""
WHOLE, LAST = 1, 4


def last_offline_step(folder: Path, run_id: str) -> int:
    """The last step in the files `offline-run-*-ID` of a folder; 0 where there is none."""
    from wandb.proto import wandb_internal_pb2 as messages

    last = 0
    for file in folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"):
        for data in _records(file.read_bytes()):
            record = messages.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                last = max(last, record.history.step.num)
    return last


def _records(data: bytes) -> Iterator[bytes]:
    """Whole records, up to where the file was cut."""
    if not data.startswith(MAGIC):
        return
    at, record = BEGIN, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if at > len(data):
            return
        if kind in (WHOLE, LAST):
            yield record
            record = b""
