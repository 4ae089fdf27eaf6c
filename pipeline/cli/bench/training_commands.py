"""Measurements of stage two on the command line: modules, epochs, plans, sweeps and pages."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from pipeline.cli.bench.commands import bench_app, bytes_cell
from pipeline.cli.options import (
    AsJson,
    Decoders,
    Device,
    RecipeArgument,
    RecipeOption,
    Sets,
    SpecOption,
    named_file,
    torch_device,
)

EPOCH_ROWS = (("an epoch", "median_s"), ("a step", "step_s"))


@bench_app.command("report")
def bench_report(
    runs: Annotated[int, typer.Option(min=2, help="Members of the sweep.")] = 100,
    as_json: AsJson = False,
) -> None:
    """The page of a large sweep: seconds and megabytes.

    Example: stillframe bench report --runs 100
    """
    from pipeline.cli import console
    from pipeline.cli.bench import report

    result = report.report_speed(runs)
    if as_json:
        console.show_json(result)
    else:
        size = f"{result['page_bytes'] / 1e6:.2f} MB"
        console.show(f"the page of {runs} runs: {result['seconds']:.1f} s, {size}")


@bench_app.command("temporal")
def bench_temporal(
    module: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this module; may be given many times."),
    ] = None,
    mamba: Annotated[
        bool,
        typer.Option("--mamba", help="Only one Mamba layer against published implementations."),
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, help="Windows at a time, B; 8 is the reference size.")
    ] = 2,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a window, T.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a frame, N.")] = 201,
    width: Annotated[int, typer.Option(min=1, help="Width of a token, D.")] = 384,
    layers: Annotated[
        int, typer.Option(min=1, help="Layers of modules that have such a setting.")
    ] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 3,
    stream_frames: Annotated[int, typer.Option(min=300, help="Frames of the long stream.")] = 2000,
    stream_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a frame of the long stream.")
    ] = 16,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Temporal modules, and Mamba against published code. Time, FLOPs, memory, state and streaming.

    Forward is eval mode without gradients, forward+backward (fwd+bwd) is training mode; weights are
    float32. --mamba --batch 8 runs nothing but the comparison of Mamba, at its reference size.

    Example: stillframe bench temporal --module gru --module mamba
    """
    from pipeline.cli import console
    from pipeline.cli.bench import temporal
    from pipeline.config import plugins

    names = list(dict.fromkeys(module or ([] if mamba else plugins.names("temporal"))))
    size = temporal.Size(batch, frames, tokens, width, layers)
    streams = temporal.Streams(stream_frames, stream_tokens)
    with console.progress("bench temporal") as update:
        result = temporal.measure(
            names, mamba or not module, size, streams, repeats, torch_device(device), update
        )
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
    """Size of the windows, then machine and software, in two lines."""
    size, around = result["size"], result["surroundings"]
    return (
        f"B={size['batch']} T={size['frames']} N={size['tokens']} D={size['width']}, "
        f"layers {size['layers']}, {result['repeats']} repeats\n"
        f"{around['device']}, {around['threads']} threads, torch {around['torch']}, "
        f"allocator: {around['allocator']}"
    )


PASS_NAMES = {"forward": "forward", "forward_backward": "fwd+bwd"}
"""Passes in the data of a benchmark -> how columns call them."""


def _show_modules(result: dict[str, Any]) -> None:
    """Three tables with a row for each temporal module: time, size, streaming."""
    modules, streams = result["modules"], result["streams"]
    rows = [
        (
            name,
            *(
                cell
                for key in PASS_NAMES
                for cell in (*_time_cells(facts[key]), f"{facts[key]['flop_per_s'] / 1e9:.1f}")
            ),
        )
        for name, facts in modules.items()
    ]
    columns = (
        "module",
        *(column for name in PASS_NAMES.values() for column in (*_time_columns(name), "GFLOP/s")),
    )
    title = "time: medians; GFLOP/s by formula, a backward pass counted as two forward"
    _show_figures(title, columns, rows, cut=5)
    rows = [
        (
            name,
            f"{facts['parameters']:,}",
            f"{facts['flops'] / 1e9:.3f}",
            f"{facts['flops_measured'] / 1e9:.3f}",
            bytes_cell(facts["state_bytes"]),
            *(bytes_cell(facts[key]["peak_bytes"]) for key in PASS_NAMES),
        )
        for name, facts in modules.items()
    ]
    peaks = (f"peak {name}" for name in PASS_NAMES.values())
    title = "size: GFLOP of a window, by formula and measured (products only); peak memory is extra"
    _show_figures(title, ("module", "parameters", "formula", "measured", "state", *peaks), rows)
    rows = []
    for name, facts in modules.items():
        stream = facts["stream"]
        ends = (f"{statistics.median(stream[key]) * 1e3:.3f}" for key in ("first_s", "last_s"))
        speed, growth = f"{stream['frames_per_s']:.1f}", f"{stream['last_over_first']:.3f}"
        rows.append((name, speed, *ends, growth, f"{stream['grown_bytes']}"))
    columns = ("module", "frames/s", "first ms", "last ms", "last/first", "bytes grown")
    title = (
        f"stream, N={result['size']['tokens']}; ends of {streams['frames']} frames, "
        f"N={streams['tokens']}, in turn"
    )
    _show_figures(title, columns, rows)


def _show_mamba(result: dict[str, Any]) -> None:
    from pipeline.cli import console

    _show_comparison("one Mamba layer, float32", result, ("stillframe", "transformers"))
    console.show(
        f"largest difference: outputs {result['output_difference']:.1e}, "
        f"gradients {result['gradient_difference']:.1e} of the largest number in each"
    )


def _show_kernels(result: dict[str, Any]) -> None:
    """The repository's kernels beside those of mamba_ssm, and what share of the device's matrix
    speed each reaches."""
    from pipeline.cli import console

    names = [name for name in ("stillframe", "mamba_ssm") if name in result]
    _show_comparison("gated_mamba_mix, bfloat16 autocast", result, names)
    if "missing" in result:
        console.show(f"mamba_ssm cannot be used: {result['missing']}")
    else:
        console.show(f"largest difference: outputs {result['output_difference']:.1e}")
    peak = result["matrix_peak_flop_per_s"] / 1e12
    for name in names:
        reached = ", ".join(
            f"{pass_name} {result[name][key]['flop_per_s'] / 1e12:.1f} TFLOP/s "
            f"({result[name][key]['share_of_matrix_peak']:.3f})"
            for key, pass_name in PASS_NAMES.items()
        )
        console.show(f"{name}: {reached} of a matrix peak of {peak:.1f} TFLOP/s, measured")


def _show_comparison(title: str, result: dict[str, Any], names: Sequence[str]) -> None:
    """One row for each implementation, and what the last costs over the first."""
    from pipeline.cli import console

    columns = (
        "",
        *(column for name in PASS_NAMES.values() for column in (*_time_columns(name), "peak")),
    )
    rows = [
        (
            name,
            *(
                cell
                for figures in map(result[name].get, PASS_NAMES)
                for cell in (*_time_cells(figures), bytes_cell(figures["peak_bytes"]))
            ),
        )
        for name in names
    ]
    _show_figures(title, columns, rows, cut=5)
    for key, ratio in result.get("ratios", {}).items():
        peak = "not measured" if ratio["peak"] is None else f"{ratio['peak']:.2f}"
        console.show(
            f"{names[-1]} / {names[0]}, {PASS_NAMES[key]}: time {ratio['time']:.2f}, "
            f"peak extra memory {peak}"
        )


def _show_figures(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], cut: int = 0
) -> None:
    """A table of names and figures, cut as in `show_table`."""
    from pipeline.cli import console

    console.show_table(title, columns, rows, "l" + "r" * (len(columns) - 1), cut=cut)


def _time_columns(name: str) -> tuple[str, str, str]:
    return f"{name} ms", "min", "max"


def _time_cells(figures: dict[str, Any]) -> tuple[str, str, str]:
    """Median, least and most milliseconds of one pass."""
    median, least, most = (figures[key] * 1e3 for key in ("median_s", "min_s", "max_s"))
    return f"{median:.2f}", f"{least:.2f}", f"{most:.2f}"


@bench_app.command("sweep")
def bench_sweep(
    cache: Annotated[str, typer.Argument(help="A cache on this machine's disk.")],
    recipe: RecipeArgument = "demo_gru",
    members: Annotated[int, typer.Option(min=2, help="Runs, which differ in their seeds.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats; medians are shown.")] = 5,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Runs side by side on one read against one by one. The runs are the same.

    Example: stillframe bench sweep demo/caches/demo-0123456789ab
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.cli.bench.training import sweep
    from pipeline.config.recipe import load_recipe

    loaded_recipe = load_recipe(named_file("recipe", recipe))
    on_device = torch_device(device)
    with console.progress("bench sweep") as update:
        result = sweep.sweep_speed(
            Cache(cache), loaded_recipe, members, steps, repeats, on_device, update
        )
    if as_json:
        console.show_json(result)
        return
    rows = [
        (
            case,
            f"{figures['alone']['median_s']:.2f}",
            f"{figures['together']['median_s']:.2f}",
            f"{figures['ratio']:.3f}",
        )
        for case, figures in result["cases"].items()
    ]
    title = f"{members} runs of {steps} steps, median of {repeats}"
    _show_figures(title, ("case", "one by one, s", "side by side, s", "ratio"), rows)


MeasureSeconds = Annotated[
    float, typer.Option(min=0.1, help="Seconds that each plan measures this machine for.")
]


@bench_app.command("plan")
def bench_plan(
    spec: SpecOption = "demo",
    recipe: RecipeOption = "demo_gru",
    clips: Annotated[
        list[int] | None, typer.Option(min=2, help="Clips of each class; give it for every size.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    measure_s: MeasureSeconds = 30,
    probe_s: Annotated[
        float | None, typer.Option(min=0.1, hidden=True, help="--measure-s before 0.5.0.")
    ] = None,
    decoders: Decoders = 1,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Compare what `plan` foretells with what happens. It is done on the built-in world in several
    sizes.

    --set overrides keys of the recipe.

    Example: stillframe bench plan --clips 8 --clips 16 --clips 32
    """
    from pipeline.cli import console
    from pipeline.cli.bench import plan as module
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.recipe import load_recipe

    seconds = measure_s if probe_s is None else probe_s
    with console.progress("bench plan") as update:
        result = module.foretold(
            load_spec(named_file("spec", spec)),
            load_recipe(named_file("recipe", recipe), sets or []),
            sorted(set(clips or (8, 16, 32))),
            repeats,
            seconds,
            decoders,
            torch_device(device),
            update,
        )
    if as_json:
        console.show_json(result)
        return
    rows = []
    for facts in result["sizes"].values():
        for key in module.FORETOLD:
            text = console.bytes_text if key == "disk_bytes" else console.time_text
            ratios = facts[key]["ratios"]
            rows.append(
                (
                    f"{facts['frames']:,}",
                    key.removesuffix("_s").replace("_", " "),
                    text(statistics.median(facts[key]["planned"])),
                    text(statistics.median(facts[key]["measured"])),
                    f"{facts[key]['ratio']:.3f}",
                    f"{min(ratios):.3f} .. {max(ratios):.3f}",
                )
            )
    title = (
        f"{result['device']}, {result['processors']} processors; medians of {repeats} rounds, "
        f"each measured for {seconds:g} s"
    )
    columns = ("frames", "", "planned", "measured", "planned / measured", "least .. most")
    console.show_table(title, columns, rows, justify="rlrrrl")


@bench_app.command("epoch")
def bench_epoch(
    spec: SpecOption = "demo",
    recipe: RecipeOption = "demo_gru",
    clips: Annotated[int, typer.Option(min=2, help="Clips of each class.")] = 16,
    ablations: Annotated[
        int, typer.Option(min=1, help="Runs, each of one epoch and a seed of its own.")
    ] = 8,
    decoders: Decoders = 1,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """An epoch with the encoder against one from the cache. Part by part; and all runs, one by one
    and as a sweep.

    --set overrides keys of the recipe.

    Example: stillframe bench epoch --ablations 8 --decoders 2
    """
    from pipeline.cli import console
    from pipeline.cli.bench.training import epoch as module
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.recipe import load_recipe

    with console.progress("bench epoch") as update:
        result = module.epoch_speed(
            load_spec(named_file("spec", spec)),
            load_recipe(named_file("recipe", recipe), sets or []),
            clips,
            ablations,
            decoders,
            torch_device(device),
            update,
        )
    if as_json:
        console.show_json(result)
        return
    _show_epochs(result, ablations)
    console.show(
        f"an epoch with the encoder takes {result['ratio']:.2f} times as long "
        f"(median of {ablations} paired ratios)"
    )
    console.show(f"the extraction took {console.time_text(result['extract_s'])}")


def _show_epochs(result: dict[str, Any], ablations: int) -> None:
    """One table: an epoch, a step and its parts, and all runs, for each way of training."""
    from pipeline.cli import console
    from pipeline.cli.bench.training import epoch as module

    def row(name: str, seconds: Iterable[float | None]) -> tuple[str, ...]:
        return (name, *("" if s is None else console.time_text(s) for s in seconds))

    size, ways, parts = result["size"], module.WAYS, result["parts_of_a_step"]
    rows = [row(name, (result["epochs"][way][key] for way in ways)) for name, key in EPOCH_ROWS]
    for part in dict.fromkeys(part for way in ways for part in parts[way]):
        beside = ", beside the others" if part in module.BESIDE else ""
        rows.append(row(f"of a step: {part}{beside}", (parts[way].get(part) for way in ways)))
    runs = f"{ablations} runs of one epoch, extraction included"
    rows.append(row(runs, (result["runs"][way] for way in ways)))
    rows.append(row("the same as one sweep, from one read", (result["runs"]["sweep"], None)))
    title = (
        f"{size['frames']:,} frames, {size['tokens']}, batches of {size['windows']}, "
        f"{size['steps']} steps an epoch\n"
        f"{size['device']}, decoders: {size['decoders']}; medians of {ablations} runs"
    )
    _show_figures(title, ("", "from the cache", "with the encoder"), rows)
