"""Measurements on the command line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli._common import AsJson, Device, Sets, app, torch_device

bench_app = typer.Typer(
    help="Measure this machine: medians, and ratios against a reference in the same run.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")


@bench_app.command("extract")
def bench_extract(
    frames: Annotated[int, typer.Option(min=32, help="Frames to extract in each repeat.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode videos.")] = 1,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Extraction end to end against the bare encoder on frames already in memory.

    Example: stillframe bench extract --repeats 5
    """
    from pipeline import console
    from pipeline.bench import extract

    result = extract.extract_speed(frames, repeats, decoders, torch_device(device))
    if as_json:
        console.show_json(result)
    else:
        console.show_table(result["title"], ("", "frames/s, median", "min", "max"), result["rows"])
        console.show(f"extraction reaches {result['ratio']:.3f} of the bare encoder (median of {repeats} paired ratios)")


@bench_app.command("report")
def bench_report(
    runs: Annotated[int, typer.Option(min=2, help="Members of the sweep.")] = 100,
    as_json: AsJson = False,
) -> None:
    """The page of a large sweep: seconds and megabytes.

    Example: stillframe bench report --runs 100
    """
    from pipeline import console
    from pipeline.bench import report

    result = report.report_speed(runs)
    if as_json:
        console.show_json(result)
    else:
        console.show(f"the page of {runs} runs: {result['seconds']:.1f} s, {result['page_bytes'] / 1e6:.2f} MB")


@bench_app.command("scale")
def bench_scale(
    hours: Annotated[float, typer.Option(min=0.001, help="Length of the long video.")] = 2.0,
    videos: Annotated[int, typer.Option(min=10, help="Number of short videos.")] = 10_000,
    clips: Annotated[int, typer.Option(min=10, help="Clips of the manifest to begin and resume on.")] = 200_000,
    as_json: AsJson = False,
) -> None:
    """What must not grow: seconds to begin and to resume on many clips, memory over a long video and over many.

    Example: stillframe bench scale --hours 0.1 --videos 500 --clips 20000
    """
    from pipeline import console
    from pipeline.bench import scale

    starts, memory = scale.start_seconds(clips), scale.memory_over(hours, videos)
    if as_json:
        console.show_json({"start_s": dict(starts), "memory": memory})
        return
    console.show_table("From nothing to the first claimed store", ("", "seconds"), [(what, round(s, 2)) for what, s in starts])
    tenths = [f"{number + 1}/10" for number in range(10)]
    rows = [(result["title"], *result["megabytes"], result["growth"]) for result in memory]
    console.show_table("Memory in MB, the most in each tenth of the extraction", ("", *tenths, "last / second"), rows)


@bench_app.command("temporal")
def bench_temporal(
    module: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this module; may be given many times.")] = None,
    mamba: Annotated[bool, typer.Option("--mamba", help="Only one Mamba layer against published implementations.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Windows at a time, B; 8 is the reference size.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a window, T.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a frame, N.")] = 201,
    width: Annotated[int, typer.Option(min=1, help="Width of a token, D.")] = 384,
    layers: Annotated[int, typer.Option(min=1, help="Layers of modules that have such a setting.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 3,
    stream_frames: Annotated[int, typer.Option(min=300, help="Frames of the long stream.")] = 2000,
    stream_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a frame of the long stream.")] = 16,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Temporal modules: time, FLOPs, memory, state and streaming; and Mamba against published implementations.

    Forward is eval mode without gradients, forward+backward (fwd+bwd) is training mode; weights are float32.
    --mamba --batch 8 runs nothing but the comparison of Mamba, at its reference size.

    Example: stillframe bench temporal --module gru --module mamba
    """
    from pipeline import console
    from pipeline.bench import temporal
    from pipeline.config import plugins

    names = list(dict.fromkeys(module or ([] if mamba else plugins.names("temporal"))))
    size = temporal.Size(batch, frames, tokens, width, layers)
    streams = temporal.Streams(stream_frames, stream_tokens)
    with console.progress("bench temporal") as update:
        result = temporal.measure(names, mamba or not module, size, streams, repeats, torch_device(device), update)
    if as_json:
        console.show_json(result)
        return
    console.show(_circumstances(result))
    if "modules" in result:
        _show_modules(result)
    if "mamba" in result:
        _show_mamba(result["mamba"])
    if "gated_mamba_mix" in result:
        _show_kernels(result["gated_mamba_mix"])


def _circumstances(result: dict[str, Any]) -> str:
    size, around = result["size"], result["surroundings"]
    return (
        f"B={size['batch']} T={size['frames']} N={size['tokens']} D={size['width']}, layers {size['layers']}, "
        f"{result['repeats']} repeats\n"
        f"{around['device']}, {around['threads']} threads, torch {around['torch']}, allocator: {around['allocator']}"
    )


PASS_NAMES = {"forward": "forward", "forward_backward": "fwd+bwd"}


def _show_modules(result: dict[str, Any]) -> None:
    from pipeline import console

    modules, streams = result["modules"], result["streams"]
    rows = [
        (name, *(cell for each in PASS_NAMES for cell in (*_times(facts[each]), f"{facts[each]['flop_per_s'] / 1e9:9.1f}")))
        for name, facts in modules.items()
    ]
    columns = ("module", *(column for name in PASS_NAMES.values() for column in (*_time_columns(name), "  GFLOP/s")))
    console.show_table("time: medians; GFLOP/s by formula, a backward pass counted as two forward", columns, rows)
    rows = [
        (
            name,
            f"{facts['parameters']:10,}",
            f"{facts['flops'] / 1e9:9.3f}",
            f"{facts['flops_measured'] / 1e9:9.3f}",
            _bytes(facts["state_bytes"]),
            *(_bytes(facts[each]["peak_bytes"]) for each in PASS_NAMES),
        )
        for name, facts in modules.items()
    ]
    columns = ("module", "parameters", "  formula", " measured", "       state", "peak forward", "peak fwd+bwd")
    console.show_table("size: GFLOP of a window, by formula and measured (products only); peak memory is extra", columns, rows)
    rows = []
    for name, facts in modules.items():
        stream = facts["stream"]
        ends = (f"{statistics.median(stream[key]) * 1e3:8.3f}" for key in ("first_s", "last_s"))
        speed, growth = f"{stream['frames_per_s']:9.1f}", f"{stream['last_over_first']:10.3f}"
        rows.append((name, speed, *ends, growth, f"{stream['grown_bytes']:11}"))
    columns = ("module", " frames/s", "first ms", " last ms", "last/first", "bytes grown")
    title = f"stream, N={result['size']['tokens']}; ends of {streams['frames']} frames, N={streams['tokens']}, in turn"
    console.show_table(title, columns, rows)


def _show_mamba(result: dict[str, Any]) -> None:
    from pipeline import console

    _show_comparison("one Mamba layer, float32", result, ("stillframe", "transformers"))
    console.show(
        f"largest difference: outputs {result['output_difference']:.1e}, gradients {result['gradient_difference']:.1e} "
        "of the largest number in each"
    )


def _show_kernels(result: dict[str, Any]) -> None:
    from pipeline import console

    names = [name for name in ("stillframe", "mamba_ssm") if name in result]
    _show_comparison("gated_mamba_mix, bfloat16 autocast", result, names)
    if "missing" in result:
        console.show(f"mamba_ssm cannot be used: {result['missing']}")
    else:
        console.show(f"largest difference: outputs {result['output_difference']:.1e}")
    for name in names:
        reached = ", ".join(
            f"{shown} {result[name][each]['flop_per_s'] / 1e12:.1f} TFLOP/s ({result[name][each]['share_of_matrix_peak']:.3f})"
            for each, shown in PASS_NAMES.items()
        )
        console.show(f"{name}: {reached} of a matrix peak of {result['matrix_peak_flop_per_s'] / 1e12:.1f} TFLOP/s, measured")


def _show_comparison(title: str, result: dict[str, Any], names: Sequence[str]) -> None:
    """One row for each implementation, and what the last costs over the first."""
    from pipeline import console

    columns = ("", *(column for name in PASS_NAMES.values() for column in (*_time_columns(name), "        peak")))
    rows = [
        (name, *(cell for facts in map(result[name].get, PASS_NAMES) for cell in (*_times(facts), _bytes(facts["peak_bytes"]))))
        for name in names
    ]
    console.show_table(title, columns, rows)
    for each, ratio in result.get("ratios", {}).items():
        peak = "not measured" if ratio["peak"] is None else f"{ratio['peak']:.2f}"
        console.show(f"{names[-1]} / {names[0]}, {PASS_NAMES[each]}: time {ratio['time']:.2f}, peak extra memory {peak}")


def _time_columns(name: str) -> tuple[str, ...]:
    return f"{name + ' ms':>10}", "      min", "      max"


def _times(figures: dict[str, Any]) -> tuple[str, ...]:
    median, low, high = (figures[key] * 1e3 for key in ("median_s", "min_s", "max_s"))
    return f"{median:10.2f}", f"{low:9.2f}", f"{high:9.2f}"


def _bytes(count: int | None) -> str:
    from pipeline import console

    return "not measured" if count is None else f"{console.bytes_text(count):>12}"


@bench_app.command("codecs")
def bench_codecs(
    spec: Annotated[Path, typer.Option(help="Whose encoder makes the tokens.")] = Path("cache_specs/demo.toml"),
    frames: Annotated[int, typer.Option(min=1, help="Frames whose tokens are compared; as many are fitted to.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    scores: Annotated[bool, typer.Option("--scores", help="Also train the demo's GRU through each codec (minutes).")] = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Codecs on the built-in world: bytes, closeness to the encoder's tokens, speed, and with --scores what a run scores.

    --set CODEC.KEY=VALUE gives a codec other settings than its defaults.

    Example: stillframe bench codecs --set pca.components=16
    """
    from pipeline import console
    from pipeline.bench import codecs
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.toml_tables import override

    loaded, where = load_spec(spec), torch_device(device)
    chosen = codecs.choices(override({}, sets or []))
    with console.progress("bench codecs") as update:
        result = codecs.codec_table(loaded, chosen, frames, repeats, where, update)
        if scores:
            result["scores"] = codecs.codec_scores(loaded, chosen, where, update)
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
        console.show_table(f"{codecs.RECIPE} trained through each codec", ("codec", "form", "score", "95 % interval"), rows)


def _show_codecs(result: dict[str, Any]) -> None:
    from pipeline import console

    rows = [
        (
            name,
            f"{facts['bytes_per_frame']:11,}",
            f"{facts['bytes_ratio']:7.3f}",
            *(f"{facts[key]:.6f}" for key in ("cosine_mean", "cosine_p1")),
            f"{facts['relative_error']:.5f}",
            *(f"{facts[way][key]:7.2f}" for way in ("encode", "decode") for key in ("gb_per_s", "speed_ratio")),
        )
        for name, facts in result["codecs"].items()
    ]
    title = (
        f"{result['frames']} frames, {result['tokens_per_frame']} tokens of {result['width']}, {result['device']}, "
        f"{result['threads']} threads; GB/s of float32, x: ratios to {result['reference']}"
    )
    columns = ("codec", "bytes/frame", "      x", "cosine", "1st perc.", "error", "enc GB/s", "      x", "dec GB/s", "      x")
    console.show_table(title, columns, rows)


Windows = Annotated[int, typer.Option(min=1, help="Windows of 16 x 201 x 384 float16 (2.5 MB) in a file.")]
Folder = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="On the disk to measure. Default: temporary.")]


@bench_app.command("read")
def bench_read(
    windows: Windows = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 7,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Random windows out of a store, in memory (hot) and from the disk (cold), against other readers of the same tokens.

    Other packages are measured where they are installed: pip install 'stillframe[bench]'.

    Example: stillframe bench read --folder /mnt/caches
    """
    from pipeline import console
    from pipeline.bench import read

    with console.progress("bench read") as update:
        result = read.read_speed(windows, repeats, folder, update)
    if as_json:
        console.show_json(result)
        return
    shape = " x ".join(map(str, result["window"]["shape"]))
    console.show(
        f"{windows} windows of {shape} {result['window']['dtype']}, store of {console.bytes_text(result['file_bytes'])}, "
        f"{repeats} rounds\n{result['machine']}"
    )
    hot, cold = result["readers"]["hot"], result["readers"]["cold"]
    rows = [
        (
            name,
            *(
                cell
                for of in (hot, cold)
                for cell in ((f"{of[name]['gb_per_s']:6.2f}", f"{of[name]['ratio']:6.3f}") if name in of else ("", ""))
            ),
        )
        for name in cold
    ]
    references = result["references"]
    columns = ("", "hot GB/s", f"x {references['hot']}", "cold GB/s", f"x {references['cold']}")
    console.show_table("medians; x: median of the ratios of every round", columns, rows)
    for name, command in result["missing"].items():
        console.show(f"{name}: not installed: {command}")


@bench_app.command("write")
def bench_write(
    windows: Windows = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 7,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """A store, with all checksums, against plain sequential writing of files of the same size; both synced.

    Example: stillframe bench write --folder /mnt/caches
    """
    from pipeline import console
    from pipeline.bench import write

    with console.progress("bench write") as update:
        result = write.write_speed(windows, repeats, folder, update)
    if as_json:
        console.show_json(result)
        return
    console.show(f"{console.bytes_text(result['file_bytes'])}, {repeats} rounds\n{result['machine']}")
    rows = [(way, f"{facts['gb_per_s']:6.2f}", f"{facts['ratio']:6.3f}") for way, facts in result["ways"].items()]
    console.show_table("medians; x: median of the ratios of every round", ("", "GB/s", "x plain"), rows)
    console.show(f"a store takes {_bytes(result['peak_bytes']).strip()} of memory beyond the tokens while it is written")


@bench_app.command("sweep")
def bench_sweep(
    cache: Annotated[str, typer.Argument(help="A cache on this machine's disk.")],
    recipe: Annotated[str, typer.Argument(help="What to train: a .toml file, or the name of a shipped recipe.")] = "demo_gru",
    members: Annotated[int, typer.Option(min=2, help="Runs, which differ in their seeds.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Runs side by side on one read against the same runs one by one.

    Example: stillframe bench sweep demo/caches/demo-0123456789ab
    """
    from pipeline import console
    from pipeline.bench import sweep
    from pipeline.cache.cache import Cache
    from pipeline.cli._common import recipe_file
    from pipeline.config.recipe import load_recipe

    loaded, on = load_recipe(recipe_file(recipe)), torch_device(device)
    with console.progress("bench sweep") as update:
        result = sweep.sweep_speed(Cache(cache), loaded, members, steps, repeats, on, lambda *state: update(*state))
    if as_json:
        console.show_json(result)
        return
    rows = [
        (case, f"{found['alone']['median_s']:.2f}", f"{found['together']['median_s']:.2f}", f"{found['ratio']:.3f}")
        for case, found in result["cases"].items()
    ]
    title = f"{members} runs of {steps} steps, median of {repeats}"
    console.show_table(title, ("case", "one by one, s", "side by side, s", "ratio"), rows)
