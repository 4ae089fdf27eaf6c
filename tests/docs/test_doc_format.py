"""The page of the cache format says what the records on disk are."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from support.manual import ROOT, read

from pipeline.cache.layout import frames_per_shard
from pipeline.cache.leases import EXPIRE_S, RENEW_S, Holder
from pipeline.cache.parts.parted import PartSummary
from pipeline.cache.receipts import (
    Content,
    DamagedStretch,
    Header,
    Receipt,
    TokenFacts,
    VideoFailure,
)
from pipeline.cache.shard.format import ShardLayout
from pipeline.config.cache_spec import FORMAT_VERSION, load_spec
from pipeline.datasets.manifest.parts import Part, PartsIndex
from pipeline.records import TokenShape

PAGE = read(ROOT / "docs/format.md")
FLOWING = " ".join(PAGE.split())
"""The same, whatever its line breaks."""
RECORDS = {
    record.__name__: record
    for record in (
        Header,
        TokenFacts,
        Receipt,
        VideoFailure,
        Content,
        DamagedStretch,
        PartsIndex,
        Part,
        PartSummary,
        Holder,
    )
}
BLOCK = re.compile(r"<!-- fields:(\w+) -->\n(.*?)<!-- fields:end -->", re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)


def in_words(kind: Any) -> str:
    """A type as the page says it."""
    inner = [part for part in get_args(kind) if part is not NoneType]
    if NoneType in get_args(kind):
        return f"{in_words(inner[0])} or null"
    if get_origin(kind) is tuple:
        items = f"{in_words(inner[0])}s"
        return f"two {items}" if len(inner) == 2 and Ellipsis not in inner else items
    if get_origin(kind) is dict or (isinstance(kind, type) and hasattr(kind, "model_fields")):
        return "object"
    return {int: "integer", str: "string", float: "number"}[kind]


def test_every_record_has_a_table():
    assert [found for found, _ in BLOCK.findall(PAGE)] == list(RECORDS)


@pytest.mark.parametrize("record", RECORDS)
def test_tables_of_fields_are_the_records(record):
    (table,) = [text for found, text in BLOCK.findall(PAGE) if found == record]
    kinds = get_type_hints(RECORDS[record])
    kept = (
        [field.name for field in fields(RECORDS[record])]
        if is_dataclass(RECORDS[record])
        else RECORDS[record].model_fields
    )
    assert ROW.findall(table) == [(key, in_words(kinds[key])) for key in kept]


def test_numbers_of_the_page_are_those_of_the_code():
    assert PAGE.startswith(f"# Cache format, version {FORMAT_VERSION}\n")
    assert f"rewritten every {RENEW_S:.0f} seconds" in FLOWING
    assert f"not changed for {EXPIRE_S:.0f} seconds" in FLOWING


def test_the_worked_example_is_what_a_shard_takes():
    """P = 49, D = 64, float16, 8 frames a chunk, shards of 1 MB."""
    spec = load_spec(ROOT / "cache_specs/demo.toml")
    shape = TokenShape(64, (7, 7), 1, (1,))
    frames = frames_per_shard(spec, shape)
    layout = ShardLayout((49, 64), np.dtype(np.float16), spec.store.chunk_frames, frames)
    assert (frames, layout.row_bytes, layout.chunks, layout.index_bytes) == (152, 6272, 19, 308)
    assert all(
        text in FLOWING
        for text in ("6,272 bytes", "152 frames", "19 chunks", "308 bytes", "954,868 bytes")
    )
    chunk = -(-(8 * layout.row_bytes + 4) // 64) * 64
    assert (chunk, layout.chunks * chunk + layout.index_bytes) == (50240, 954868)
