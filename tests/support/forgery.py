"""Files of a cache or a run as somebody writes them who knows the format: damage that no checksum shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.json_files import CHECKSUM, NO_CHECKSUM, sealed


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the table of a JSON file; its own checksum fits again."""
    table = json.loads(file.read_text())
    change(table)
    if table.pop(CHECKSUM, None) is not None:
        file.write_bytes(sealed(json.dumps(table | {CHECKSUM: NO_CHECKSUM}).encode()))
    else:
        file.write_text(json.dumps(table))
