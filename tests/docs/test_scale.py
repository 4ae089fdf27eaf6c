"""The page about scale follows from its constants: every line of its tables is made anew."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from support.manual import ROOT, read

from pipeline.cache.codecs.contract import make_codec
from pipeline.cache.corruption import CHECKERS
from pipeline.cache.layout import (
    bytes_per_frame,
    frames_per_shard,
    frames_per_store,
    required_files,
    small_arrays,
    stored_name,
    tokens_by_array,
)
from pipeline.cache.leases import EXPIRE_S, RENEW_S
from pipeline.cache.parts.summary import READERS
from pipeline.config import plugins
from pipeline.config.cache_spec import BASE, CacheSpec
from pipeline.config.json_files import sealed_json
from pipeline.datasets.manifest.manifest import MOST_BYTES
from pipeline.datasets.manifest.parts import Part, PartsIndex
from pipeline.records import TokenShape

PAGE = read(ROOT / "docs/scale.md")
CONSTANTS = {
    name: float(value.replace(",", ""))
    for name, value in re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", PAGE, re.MULTILINE)
}
LAST, FOUR = (23,), (5, 11, 17, 23)
CODECS = {
    "float16": {"name": "float16"},
    "int8": {"name": "int8"},
    "int4": {"name": "int4"},
    "pca": {"name": "pca", "components": 256},
}


class Plan:
    """The whole of it with one codec, some layers and one size of store."""

    def __init__(self, codec: str, layers: tuple[int, ...], store_mb: float = 512) -> None:
        of = CONSTANTS
        shape = TokenShape(1024, (14, 14), 5, layers)
        table = {
            "name": "large",
            "encoder": {"name": "address", "layers": list(layers), "width": 1024, "grid": 14},
            "frames": {"size_px": 224},
            "codec": CODECS[codec],
            "store": {"store_mb": store_mb},
        }
        spec = plugins.validate(CacheSpec, table, "test")
        self.frame_bytes = bytes_per_frame(spec, shape)
        self.frames = of["hours"] * 3600 * of["kept_fps"]
        self.petabytes = self.frames * self.frame_bytes / 1e15
        self.month_usd = self.petabytes * 1e6 * of["gb_month_usd"]
        clip_frames = of["clip_s"] * of["kept_fps"]
        self.clips_per_store = max(1, frames_per_store(spec, shape) // clip_frames)
        self.store_frames = self.clips_per_store * clip_frames
        self.stores = of["clips"] / self.clips_per_store
        names = [
            stored_name(name, key)
            for name in tokens_by_array(layers, 5, 196)
            for key in make_codec(spec.codec).layout(1024)
        ]
        shards = math.ceil(self.store_frames / frames_per_shard(spec, shape))
        files = required_files(dict.fromkeys(names, 1), shards, [BASE])
        self.files = len(files | set(small_arrays([BASE]).values()))
        self.objects = self.stores * (self.files + 1)
        puts = self.files + of["puts_beside"] + of["lists_per_store"]
        self.requests_usd = (
            self.stores
            / 1000
            * (puts * of["put_1000_usd"] + of["gets_per_store"] * of["get_1000_usd"])
        )
        self.node_out_gbit_s = of["gpus_of_a_node"] * speed_per_gpu() * self.frame_bytes * 8 / 1e9
        self.store_s = self.store_frames / speed_per_gpu()
        self.stores_per_s = of["gpus"] / self.store_s


def speed_per_gpu() -> float:
    """Kept frames a second: the slower of encoding and decoding."""
    of = CONSTANTS
    decoded = of["cores_of_a_gpu"] * of["decoded_fps_of_a_core"] * of["kept_fps"] / of["source_fps"]
    return min(of["encoded_fps_of_a_gpu"], decoded)


def text(value: float) -> str:
    """Three digits, in plain figures."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{float(f'{value:.3g}'):,.{digits}f}"


def bytes_lines() -> Iterator[str]:
    for codec in CODECS:
        one, four = Plan(codec, LAST), Plan(codec, FOUR)
        yield (
            f"| `{codec}` | {one.frame_bytes:,} | {text(one.petabytes)} | {text(one.month_usd)} "
            f"| {four.frame_bytes:,} | {text(four.petabytes)} | {text(four.month_usd)} |"
        )


def object_lines() -> Iterator[str]:
    for codec in ("float16", "int8", "int4"):
        for store_mb in (512, 8192):
            plan = Plan(codec, LAST, store_mb)
            yield (
                f"| `{codec}` | {store_mb} | {plan.store_frames:,.0f} | {text(plan.stores / 1e6)} "
                f"| {plan.files} | {text(plan.objects / 1e6)} | {text(plan.requests_usd)} |"
            )


def speed_lines() -> Iterator[str]:
    of = CONSTANTS
    plan, large = Plan("float16", LAST), Plan("float16", LAST, 8192)
    speed, gpus = speed_per_gpu(), of["gpus"]
    part_stores = of["rows"] / plan.clips_per_store
    puts = plan.stores_per_s * (plan.files + of["puts_beside"] + of["lists_per_store"])
    facts = {
        "kept frames a second of one GPU": speed,
        "cores that would keep one GPU busy": of["encoded_fps_of_a_gpu"]
        * of["source_fps"]
        / of["kept_fps"]
        / of["decoded_fps_of_a_core"],
        "hours of the extraction": plan.frames / gpus / speed / 3600,
        "hours of it, were decoding free": plan.frames / gpus / of["encoded_fps_of_a_gpu"] / 3600,
        "leases, and receipts, a second, all workers": plan.stores_per_s,
        "the same with stores of 8192 MB": large.stores_per_s,
        "seconds that one worker is at a store": plan.store_s,
        "PUT and LIST a second, all workers": puts,
        "of these in one part, whose worker is alone there": puts / gpus,
        "stores, and receipts, of one part": part_stores,
        "parts": of["clips"] / of["rows"],
        "Gbit/s out of a node, `float16`": plan.node_out_gbit_s,
        "Gbit/s out of a node, `int4`": Plan("int4", LAST).node_out_gbit_s,
        "Gbit/s of video into a node": of["gpus_of_a_node"]
        * speed
        / of["kept_fps"]
        * of["video_mbit_s"]
        / 1000,
        "USD a day of renewals, were every worker always at a store": gpus
        * 86_400
        / of["renew_s"]
        * (of["put_1000_usd"] + of["get_1000_usd"])
        / 1000,
        "failures a day": gpus * 24 / of["gpu_hours_per_failure"],
        "frames that one costs": plan.store_frames + 3 * 32,
        "seconds of one GPU for them": (plan.store_frames + 3 * 32) / speed,
    }
    yield from (f"| {what} | {text(value)} |" for what, value in facts.items())


def epoch_lines() -> Iterator[str]:
    of = CONSTANTS
    plan, large = Plan("int8", LAST), Plan("int8", LAST, 8192)
    windows = of["clips"] * of["share"]
    read = windows * of["window_frames"] * plan.frame_bytes

    def touched(stores: Plan) -> float:
        return stores.stores * (1 - (1 - of["share"]) ** stores.clips_per_store)

    def hours(stores: float) -> float:
        return stores * of["gets_to_open_a_store"] * of["request_s"] / CHECKERS / 3600

    facts = {
        "million windows of an epoch": windows / 1e6,
        "TB read in it": read / 1e12,
        "minutes of it, by the network of one node": read * 8 / of["node_gbit_s"] / 1e9 / 60,
        "million requests of it": windows * of["gets_per_window"] / 1e6,
        "USD of them": windows * of["gets_per_window"] / 1000 * of["get_1000_usd"],
        "million stores that hold a clip of the share": touched(plan) / 1e6,
        "hours to open them": hours(touched(plan)),
        "the same with stores of 8192 MB": hours(touched(large)),
        "the same where the share is whole parts": hours(plan.stores * of["share"]),
        "of these, with stores of 8192 MB": hours(large.stores * of["share"]),
    }
    yield from (f"| {what} | {text(value)} |" for what, value in facts.items())


def index_megabytes() -> float:
    """Of parts.json, of which every part has all labels; as large as a hundredth of the parts say."""
    of = CONSTANTS
    parts, labels = round(of["clips"] / of["rows"]), round(of["labels"])
    part = Part(
        clips=round(of["rows"]),
        videos=round(of["rows"]),
        splits={"train": round(of["rows"] * 0.9), "val": round(of["rows"] * 0.1)},
        labels=tuple(range(labels)),
        digest="0" * 64,
    )
    index = PartsIndex(
        format_version=1, labels=(), classes=(), parts=(part,) * (parts // 100), checksum=""
    )
    return len(sealed_json(index)) * 100 / 1e6


def limit_lines() -> Iterator[str]:
    of = CONSTANTS
    plan = Plan("float16", LAST)
    listed = plan.stores / 1000
    facts = {
        "GB of `cache.json` without parts": of["plan_bytes_per_clip"] * of["clips"] / 1e9,
        "GB of `manifest.jsonl` without parts": of["row_bytes"] * of["clips"] / 1e9,
        "million clips at which `manifest.jsonl` is refused": MOST_BYTES / of["row_bytes"] / 1e6,
        "GB of memory of every worker without parts": of["mb_of_a_million_clips"]
        * of["clips"]
        / 1e9,
        "minutes until a worker begins without parts": of["s_of_a_million_clips"]
        * of["clips"]
        / 1e6
        / 60,
        "LIST of all stores of a cache without parts, at every lease": listed,
        "MB of `parts.json`": index_megabytes(),
        "seconds of `status` of a finished cache": of["clips"]
        / of["rows"]
        * of["request_s"]
        / READERS,
        "minutes to read the plans of all parts for a training": of["open_part_s"]
        * of["clips"]
        / of["rows"]
        / 60,
        "minutes of `manifest select` over all clips": of["select_row_us"] * of["clips"] / 1e6 / 60,
    }
    yield from (f"| {what} | {text(value)} |" for what, value in facts.items())


TABLES = {
    "bytes": bytes_lines,
    "objects": object_lines,
    "speed": speed_lines,
    "epoch": epoch_lines,
    "limits": limit_lines,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_line_of_a_table_follows_from_the_constants(name):
    (table,) = re.findall(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", PAGE, re.DOTALL)
    assert table.splitlines()[2:] == list(TABLES[name]())


def test_leases_are_renewed_and_void_as_the_page_says():
    assert (CONSTANTS["renew_s"], CONSTANTS["expire_s"]) == (RENEW_S, EXPIRE_S)
    assert CONSTANTS["clips"] * CONSTANTS["clip_s"] == CONSTANTS["hours"] * 3600
