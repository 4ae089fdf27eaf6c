"""What is run, in the order of how much it matters: the tests marked `cuda`, then the benches at the sizes of a ViT-S and a
ViT-L."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from support.paths import ROOT

from pipeline.config import plugins

HERE = Path(__file__).parent
MARKS = ("pytest.mark.cuda", "import BOTH")
"""What a file with tests for a device has: the mark, or the parameters that bear it."""
TEST_LIMIT_S, BENCH_LIMIT_S = 150.0, 75.0
"""Seconds of one part; on a quiet machine few come near."""
ROOMS = ("models", "cache", "train", "extract", "experiments", "video")
"""Rooms of tests, those first whose failure would make what comes after them worthless."""
OPTIONS = (
    "encoder.compile=true",
    *(["frames.decoder=torchcodec"] if find_spec("torchcodec") else []),
)
"""Of an extraction, each of which is measured against none."""
CLI = ("-m", "pipeline.cli")
CACHE = "{cache}"
"""Stands for the cache that an earlier part has made."""


@dataclass(frozen=True)
class Part:
    """One process, which costs the others nothing but its time."""

    name: str
    arguments: tuple[str, ...]
    """What follows the interpreter."""
    limit_s: float
    says: Literal["json", "tests", "text"]
    """What it leaves: a bench its figures on stdout, tests their outcomes, or lines to read."""


def test_files() -> list[Path]:
    """Those with tests for a device: found on disk, in the order of `ROOMS`, then any others."""
    files = [
        file
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if any(mark in file.read_text(encoding="utf-8") for mark in MARKS)
    ]
    place = {room: number for number, room in enumerate(ROOMS)}
    return sorted(files, key=lambda file: (place.get(file.parent.name, len(ROOMS)), file.name))


def tests(file: Path) -> Part:
    # Warnings are no errors here: those of a machine's own libraries would hide what is looked for.
    options = ("-m", "cuda", "-p", "gpu.outcomes", "-p", "no:cacheprovider", "-W", "default")
    place = str(file.relative_to(ROOT))
    arguments = ("-m", "pytest", "-q", "-rs", *options, place)
    return Part(f"tests of {place.removeprefix('tests/')}", arguments, TEST_LIMIT_S, "tests")


def bench(name: str, *options: object, called: str = "") -> Part:
    said = tuple(map(str, options))
    return Part(
        f"bench {name}{called and f', {called}'}",
        (*CLI, "bench", name, *said, "--json"),
        BENCH_LIMIT_S,
        "json",
    )


def everything(device: str, small: bool, scratch: Path) -> list[Part]:
    """All parts. `small`: at sizes that a CPU does in seconds."""
    every = test_files()
    first = [tests(file) for file in every if file.parent.name in ROOMS[:3]]
    rest = [tests(file) for file in every if file.parent.name not in ROOMS[:3]]
    benches = small_benches(device, scratch) if small else large_benches(device, scratch)
    found = [*first, *benches[:4], *rest, *benches[4:]]
    # A try without a GPU may be on a machine that is busy with other things.
    return [replace(part, limit_s=3 * part.limit_s) for part in found] if small else found


def cache_parts(spec: str, device: str, scratch: Path, *world: str) -> list[Part]:
    """A cache for what trains on one: the built-in world through a spec."""
    data, caches = str(scratch / "world"), str(scratch / "caches")
    sets = tuple(word for dial in world for word in ("--set", dial))
    return [
        Part("a world", (*CLI, "manifest", "world", "--out", data, *sets), BENCH_LIMIT_S, "text"),
        Part(
            "its cache",
            (*CLI, "extract", spec, data, "--out", caches, "--device", device),
            BENCH_LIMIT_S,
            "text",
        ),
    ]


def large_benches(device: str, scratch: Path) -> list[Part]:
    small_vit, large_vit = (str(HERE / f"vit_{size}.toml") for size in ("small", "large"))
    decoders = max(1, min(8, (os.cpu_count() or 1) // 2))
    on = ("--device", device)
    modules = [word for name in plugins.names("temporal") for word in ("--module", name)]
    extraction = ("--repeats", 3, "--decoders", decoders, *on)
    windows = ("--batch", 8, "--repeats", 5, "--stream-frames", 400)
    wide = ("--tokens", 201, "--width", 1024)
    return [
        bench("extract", "--spec", small_vit, "--frames", 4096, *extraction, called="ViT-S"),
        bench("temporal", "--mamba", *windows, *on, called="Mamba at ViT-S"),
        bench("temporal", *modules, *windows, *on, called="modules at ViT-S"),
        bench("extract", "--spec", large_vit, "--frames", 4096, *extraction, called="ViT-L"),
        bench("step", "--grid", 14, "--width", 384, *on, called="ViT-S"),
        bench("epoch", "--spec", small_vit, "--clips", 6, "--ablations", 3, *on, called="ViT-S"),
        bench("temporal", *modules, *windows, *wide, *on, called="modules at ViT-L"),
        bench("forecast", "--grid", 14, "--width", 384, *on, called="ViT-S"),
        bench("forecast", "--grid", 14, "--width", 1024, *on, called="ViT-L"),
        *cache_parts(small_vit, device, scratch, "clips_per_class=4"),
        bench("sweep", CACHE, "--members", 4, "--steps", 30, "--repeats", 2, *on),
        bench("plan", "--clips", 4, "--repeats", 1, "--measure-s", 10, *on),
        bench("read", "--windows", 256, "--repeats", 3),
        bench("codecs", "--spec", small_vit, "--repeats", 3, *on, called="ViT-S"),
        bench(
            *("extract", "--spec", small_vit, "--set", "encoder.precision=float32"),
            *("--frames", 2048, *extraction),
            called="ViT-S in float32",
        ),
        bench("temporal", "--mamba", *windows, *wide, *on, called="Mamba at ViT-L"),
        *(
            bench(
                *("extract", "--spec", small_vit, "--against", option),
                *("--frames", 2048, *extraction),
                called=f"ViT-S with {option}",
            )
            for option in OPTIONS
        ),
    ]


def small_benches(device: str, scratch: Path) -> list[Part]:
    on = ("--device", device)
    tiny = ("--batch", 1, "--frames", 3, "--tokens", 5, "--width", 32, "--repeats", 1)
    stream = ("--stream-frames", 300, "--stream-tokens", 2)
    few = ("--set", "windows.frames=4", "--set", "training.batch_size=4")
    return [
        bench("extract", "--spec", "demo", "--frames", 32, "--repeats", 1, *on),
        bench("temporal", "--mamba", *tiny, *stream, *on, called="Mamba"),
        bench("temporal", "--module", "gru", *tiny, *stream, *on, called="modules"),
        bench("forecast", "--grid", 3, "--width", 16, "--repeats", 1, *few, *on),
        bench("step", "--grid", 2, "--steps", 2, "--repeats", 1, *few, *on),
        bench("epoch", "--clips", 2, "--ablations", 1, *few, *on),
        *cache_parts("demo", device, scratch, "clips_per_class=2"),
        bench("sweep", CACHE, "--members", 2, "--steps", 2, "--repeats", 1, *on),
        bench("read", "--windows", 2, "--repeats", 1),
        bench("plan", "--clips", 2, "--repeats", 1, "--measure-s", 0.5, *few, *on),
    ]
