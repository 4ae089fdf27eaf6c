"""Measurements of stage one and of the store on the command line."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import AsJson, Device, HelpAlone, Sets, app, named_file, torch_device

if TYPE_CHECKING:
    import torch

    from pipeline.config.cache_spec import CacheSpec

bench_app = typer.Typer(
    help="Measure this machine. Medians, and ratios against a reference in the same run.",
    cls=HelpAlone,
)
app.add_typer(bench_app, name="bench")


def bytes_cell(count: int | None) -> str:
    """An amount of memory, or that it could not be measured on this device."""
    from pipeline.cli import console

    return "not measured" if count is None else console.bytes_text(count)


@bench_app.command("extract")
def bench_extract(
    frames: Annotated[int, typer.Option(min=32, help="Frames to extract in each repeat.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode videos.")] = 1,
    spec: Annotated[
        str | None,
        typer.Option(
            help="What to cache: a .toml file, or the name of a shipped spec. Default: a ViT-S/16 "
            "with random weights at 224 px."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Measure the spec with this key overridden, too, in turn; may be given many "
            "times.",
        ),
    ] = None,
    parts: Annotated[
        bool,
        typer.Option(
            "--parts", help="Measure what each part costs the processor instead, one by one."
        ),
    ] = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Extraction end to end against the bare encoder. The encoder has its frames in memory already.

    --set overrides keys of the spec.

    Example: stillframe bench extract --against encoder.precision=bfloat16
    """
    from pipeline.cli import console
    from pipeline.cli.bench import extract
    from pipeline.config import plugins
    from pipeline.config.cache_spec import CacheSpec, load_spec
    from pipeline.config.toml_tables import override

    def loaded(overrides: list[str]) -> CacheSpec:
        if spec is not None:
            return load_spec(named_file("spec", spec), overrides)
        table = override(copy.deepcopy(extract.SPEC), overrides)
        return plugins.validate(CacheSpec, table, "bench")

    sets = sets or []
    if parts:
        _show_parts(loaded(sets), frames, torch_device(device), as_json)
        return
    result = extract.extract_speed(
        loaded(sets),
        frames,
        repeats,
        decoders,
        torch_device(device),
        loaded([*sets, *against]) if against else None,
    )
    if as_json:
        console.show_json(result)
        return
    of = f"of {repeats} paired ratios"
    columns = ("", "frames/s, median", "min", "max")
    console.show_table(result["title"], columns, result["rows"])
    console.show(f"extraction reaches {result['ratio']:.3f} of the bare encoder (median {of})")
    if against:
        other = result["against"]
        console.show_table(f"with {', '.join(against)}", columns, other["rows"])
        console.show(
            f"extraction reaches {other['ratio']:.3f} of the bare encoder (median {of})\n"
            f"and is {other['times']:.2f} times as fast as the first (median {of})"
        )


def _show_parts(spec: CacheSpec, frames: int, device: torch.device | None, as_json: bool) -> None:
    from pipeline.cli import console
    from pipeline.cli.bench.extract import short_videos
    from pipeline.cli.bench.parts import extraction_parts

    with tempfile.TemporaryDirectory() as folder:
        found = extraction_parts(spec, short_videos(frames, Path(folder)), device)
    if as_json:
        console.show_json(asdict(found))
        return
    rows = [(part, f"{core_ms:.3f}") for part, core_ms in found.core_ms.items()]
    console.show_table("Every part alone", ("", "core-milliseconds a frame"), rows)
    console.show(
        f"a decoding process takes {found.start_core_ms:.0f} core-milliseconds to start\n"
        f"a worker that did nothing but write would write {found.written_per_s:.0f} frames/s\n"
        f"a frame: {console.bytes_text(found.source_bytes)} decoded, "
        f"{console.bytes_text(found.stored_bytes)} stored, {found.flops / 1e9:.1f} GFLOP to encode"
    )


@bench_app.command("scale", hidden=True)  # its name before 0.5.0
@bench_app.command("startup")
def bench_startup(
    hours: Annotated[float, typer.Option(min=0.001, help="Length of the long video.")] = 2.0,
    videos: Annotated[int, typer.Option(min=10, help="Number of short videos.")] = 10_000,
    clips: Annotated[
        int, typer.Option(min=10, help="Clips of the manifest to begin and resume on.")
    ] = 200_000,
    part_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only measure manifests in parts of so many clips: of a hundredth and of a tenth "
            "of --clips, and of all.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin, resume and memory, which must not grow. Seconds to begin and to resume on many clips,
    memory over a long video and over many; or, over manifests in parts of three sizes, seconds and
    memory of what begins there.

    Example: stillframe bench startup --hours 0.1 --videos 500 --clips 20000
    """
    from pipeline.cli import console
    from pipeline.cli.bench.scale import startup

    if part_rows is not None:
        _start_in_parts(clips, part_rows, as_json)
        return
    starts, memory = startup.start_seconds(clips), startup.memory_over(hours, videos)
    if as_json:
        console.show_json({"start_s": dict(starts), "memory": memory})
        return
    console.show_table(
        "From nothing to the first claimed store",
        ("", "seconds"),
        [(what, round(s, 2)) for what, s in starts],
    )
    tenths = [f"{number + 1}/10" for number in range(10)]
    rows = [(result["title"], *result["megabytes"], result["growth"]) for result in memory]
    console.show_table(
        "Memory in MB, the most in each tenth of the extraction",
        ("", *tenths, "last / second"),
        rows,
    )


def _start_in_parts(clips: int, rows: int, as_json: bool) -> None:
    from pipeline.cli import console
    from pipeline.cli.bench.scale.parts import start_in_parts

    sizes = sorted({max(10, clips // share) for share in (100, 10, 1)})
    starts = [start for size in sizes for start in start_in_parts(size, rows)]
    if as_json:
        console.show_json([start._asdict() for start in starts])
        return
    rows_shown = [
        (
            what,
            f"{size:,}",
            f"{parts:,}",
            round(seconds, 2),
            "" if megabytes is None else round(megabytes),
        )
        for what, size, parts, seconds, megabytes in sorted(starts, key=lambda start: start.what)
    ]
    console.show_table(
        f"From nothing, in parts of {rows:,} clips",
        ("", "clips", "parts", "seconds", "MB"),
        rows_shown,
        justify="lrrrr",
    )


@bench_app.command("leases")
def bench_leases(
    where: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A folder or URL, where caches would lie.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Leases, and receipts.")] = 500,
    receipt_kb: Annotated[float, typer.Option(min=0, help="Size of a receipt.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Tell how often a second workers can meet. That is in leases and receipts, of one process, in
    a folder or an object store.

    Example: stillframe bench leases s3://bucket/caches
    """
    from pipeline.cli import console
    from pipeline.cli.bench.scale.leases import lease_speed

    rows = lease_speed(where, count, round(receipt_kb * 1000))
    if as_json:
        console.show_json(dict(rows))
        return
    console.show_table(
        f"One process in {where}", ("", "a second"), [(what, round(speed)) for what, speed in rows]
    )


@bench_app.command("codecs")
def bench_codecs(
    spec: Annotated[
        str,
        typer.Option(
            help="Whose encoder makes the tokens: a .toml file, or the name of a shipped spec."
        ),
    ] = "demo",
    frames: Annotated[
        int, typer.Option(min=1, help="Frames whose tokens are compared; as many are fitted to.")
    ] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Also train the demo's GRU through each codec (minutes)."),
    ] = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Codecs on the built-in world. Bytes, closeness to the encoder's tokens, speed, and with
    --scores what a run scores.

    --set CODEC.KEY=VALUE gives a codec other settings than its defaults.

    Example: stillframe bench codecs --set pca.components=16
    """
    from pipeline.cli import console
    from pipeline.cli.bench.store import codecs
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.toml_tables import override

    loaded_spec, on_device = load_spec(named_file("spec", spec)), torch_device(device)
    chosen = codecs.choices(override({}, sets or []))
    with console.progress("bench codecs") as update:
        result = codecs.codec_table(loaded_spec, chosen, frames, repeats, on_device, update)
        if scores:
            result["scores"] = codecs.codec_scores(loaded_spec, chosen, on_device, update)
    if as_json:
        console.show_json(result)
        return
    _show_codecs(result)
    if "scores" in result:
        rows = [
            (codec, form, f"{facts['score']:.3f}", f"{facts['low']:.3f} .. {facts['high']:.3f}")
            for codec, forms in result["scores"].items()
            for form, facts in forms.items()
        ]
        console.show_table(
            f"{codecs.RECIPE} trained through each codec",
            ("codec", "form", "score", "95 % interval"),
            rows,
            justify="llrl",
        )


def _show_codecs(result: dict[str, Any]) -> None:
    from pipeline.cli import console

    rows = [
        (
            name,
            f"{facts['bytes_per_frame']:,}",
            f"{facts['bytes_ratio']:.3f}",
            *(f"{facts[key]:.6f}" for key in ("cosine_mean", "cosine_p1")),
            f"{facts['relative_error']:.5f}",
            *(
                f"{facts[way][key]:.2f}"
                for way in ("encode", "decode")
                for key in ("gb_per_s", "speed_ratio")
            ),
        )
        for name, facts in result["codecs"].items()
    ]
    title = (
        f"{result['frames']} frames, {result['tokens_per_frame']} tokens of {result['width']}, "
        f"{result['device']}, "
        f"{result['threads']} threads; GB/s of float32, x: ratios to {result['reference']}"
    )
    columns = (
        "codec",
        "bytes/frame",
        "x",
        "cosine",
        "1st perc.",
        "error",
        "enc GB/s",
        "x",
        "dec GB/s",
        "x",
    )
    console.show_table(title, columns, rows, justify="l" + "r" * (len(columns) - 1), cut=6)


StoreWindows = Annotated[
    int, typer.Option(min=1, help="Windows of 16 x 201 x 384 float16 (2.5 MB) in a file.")
]
DiskFolder = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="On the disk to measure. Default: temporary."),
]


@bench_app.command("read")
def bench_read(
    windows: StoreWindows = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 7,
    folder: DiskFolder = None,
    as_json: AsJson = False,
) -> None:
    """Random windows out of a store against other readers. They come from memory (hot) and from the
    disk (cold).

    Other packages are measured where they are installed: pip install 'stillframe[bench]'.

    Example: stillframe bench read --folder /mnt/caches
    """
    from pipeline.cli import console
    from pipeline.cli.bench.store import read

    with console.progress("bench read") as update:
        result = read.read_speed(windows, repeats, folder, update)
    if as_json:
        console.show_json(result)
        return
    shape = " x ".join(map(str, result["window"]["shape"]))
    size = console.bytes_text(result["file_bytes"])
    console.show(
        f"{windows} windows of {shape} {result['window']['dtype']}, store of {size}, "
        f"{repeats} rounds\n{result['machine']}"
    )
    hot, cold = result["readers"]["hot"], result["readers"]["cold"]
    rows = [(name, *_speed_cells(hot.get(name)), *_speed_cells(cold[name])) for name in cold]
    references = result["references"]
    columns = ("", "hot GB/s", f"x {references['hot']}", "cold GB/s", f"x {references['cold']}")
    title = "medians; x: median of the ratios of every round"
    console.show_table(title, columns, rows, justify="lrrrr")
    for name, command in result["missing"].items():
        console.show(f"{name}: not installed: {command}")


def _speed_cells(speed: dict[str, float] | None) -> tuple[str, str]:
    """GB/s and the ratio to the reference; blanks where a reader was not measured."""
    return (f"{speed['gb_per_s']:.2f}", f"{speed['ratio']:.3f}") if speed else ("", "")


@bench_app.command("write")
def bench_write(
    windows: StoreWindows = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 7,
    folder: DiskFolder = None,
    as_json: AsJson = False,
) -> None:
    """A store against plain sequential writing. The store has all checksums, the files are of the
    same size, and both are synced.

    Example: stillframe bench write --folder /mnt/caches
    """
    from pipeline.cli import console
    from pipeline.cli.bench.store import write

    with console.progress("bench write") as update:
        result = write.write_speed(windows, repeats, folder, update)
    if as_json:
        console.show_json(result)
        return
    console.show(
        f"{console.bytes_text(result['file_bytes'])}, {repeats} rounds\n{result['machine']}"
    )
    rows = [(way, *_speed_cells(speed)) for way, speed in result["ways"].items()]
    title = "medians; x: median of the ratios of every round"
    console.show_table(title, ("", "GB/s", "x plain"), rows, justify="lrr")
    console.show(
        f"a store takes {bytes_cell(result['peak_bytes'])} of memory beyond the tokens while it is "
        "written"
    )


@bench_app.command("search")
def bench_search(
    frames: Annotated[int, typer.Option(min=1, help="Frames of all videos.")] = 1_000_000,
    width: Annotated[int, typer.Option(min=1, help="Numbers of an embedding.")] = 512,
    queries: Annotated[int, typer.Option(min=1, help="Queries at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 7,
    folder: DiskFolder = None,
    as_json: AsJson = False,
) -> None:
    """A search of a warm index of many frames. It stands against a plain product of matrices of all
    frames in memory.

    Example: stillframe bench search --frames 1000000 --width 512
    """
    from pipeline.cli import console
    from pipeline.cli.bench import search

    with console.progress("bench search") as update:
        result = search.search_speed(frames, width, queries, repeats, folder, update)
    if as_json:
        console.show_json(result)
        return
    size = console.bytes_text(result["index_bytes"])
    console.show(
        f"{frames:,} frames of {width} numbers, index of {size}, queries at once: {queries}, "
        f"{repeats} rounds\n{result['machine']}, {result['threads']} threads"
    )
    rows = [
        (way, console.time_text(facts["median_s"]), f"{facts['ratio']:.2f}")
        for way, facts in result["ways"].items()
    ]
    title = f"medians; x: median of the ratios of every round to: {result['reference']}"
    console.show_table(title, ("", "time", "x"), rows, justify="lrr")
