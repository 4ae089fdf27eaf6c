"""What is known before anything is trained: the planner, and what a cache is worth by itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    AllowMissing,
    AsJson,
    Decoders,
    Device,
    ManifestFolder,
    RecipeArgument,
    Root,
    Sets,
    SpecArgument,
    app,
    named_file,
    other_manifest,
    torch_device,
)
from pipeline.cli.show import show_baselines
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from pipeline.config.cache_spec import CacheSpec
    from pipeline.config.recipe import Recipe
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.experiments.planning.layout import LayoutAdvice, WindowReads
    from pipeline.experiments.planning.measure import Throughput
    from pipeline.experiments.planning.plan import Operations, Plan

DEFAULT_FRAMES = 1_000_000
"""Frames of a plan that is told neither videos nor a length: a round number to multiply."""


@app.command()
def plan(
    spec: SpecArgument,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Folder with manifest.jsonl. Without one: --frames or --hours-of-video."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Argument(help="What to train: a .toml file, or the name of a shipped recipe."),
    ] = None,
    out: Annotated[
        str, typer.Option(help="Folder or URL for caches: where writing and reading are tried.")
    ] = "caches",
    root: Root = None,
    manifest_folder: ManifestFolder = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames to cache, where there is no manifest yet.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option("--hours-of-video", min=0.001, help="The same, for a spec with a rate."),
    ] = None,
    ablations: Annotated[int, typer.Option(min=1, help="Runs that will share the cache.")] = 8,
    measure_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to measure this machine for; 0: sizes and operations alone."
        ),
    ] = 30,
    probe_s: Annotated[
        float | None, typer.Option(min=0, hidden=True, help="--measure-s before 0.5.0.")
    ] = None,
    decoders: Decoders = 1,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Foretell what a cache and a training will take. It says whether caching pays, and writes
    nothing that stays.

    --set overrides keys of the spec. With --manifest the cache is that of DATA, and windows, epochs
    and memory are those of a training on other clips from it.

    Example: stillframe plan dinov2_small data/mine demo_gru --ablations 12
    """
    from pipeline.cli import console
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.recipe import load_recipe
    from pipeline.datasets.manifest.manifest import Manifest

    loaded_spec = load_spec(named_file("spec", spec), sets or [])
    if data is not None and recipe is None and not Path(data).is_dir():
        data, recipe = None, data  # told apart by what they are
    loaded_recipe = load_recipe(named_file("recipe", recipe)) if recipe else None
    videos = Manifest.load(Path(data), root) if data else None
    clips = _clips_to_train_on(videos, loaded_recipe, manifest_folder)
    count = _frame_count(loaded_spec, videos, frames, hours)
    from pipeline.device import chosen
    from pipeline.experiments.planning import plan as module
    from pipeline.experiments.planning.measure import measure_stages

    on_device = chosen(torch_device(device))
    module.require(loaded_spec, videos, loaded_recipe, clips)
    throughput, tried = None, clips or videos
    if seconds := measure_s if probe_s is None else probe_s:
        with console.progress("plan") as update:
            on_step = partial(update, 0, 0)  # a step has no length that is known beforehand
            throughput = measure_stages(
                loaded_spec, tried, loaded_recipe, out, on_device, decoders, seconds, on_step
            )
    planned = module.plan(
        loaded_spec, videos, count, loaded_recipe, ablations, throughput, decoders, clips
    )
    if as_json:
        console.show_json(planned.model_dump())
    else:
        show_plan(planned, out)


@app.command()
def baselines(
    recipe: RecipeArgument,
    caches: Annotated[
        list[str], typer.Argument(help="Caches to put side by side: their folders or URLs.")
    ],
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Score what needs no training, layer by layer. That is the trivial answer to a recipe's task,
    and trackers that follow the tokens most alike. Writes nothing.

    Example: stillframe baselines demo_boxes caches/demo-0123456789ab
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.config.recipe import load_recipe
    from pipeline.experiments.baselines import evaluate_baselines
    from pipeline.train.setup import RunContext

    loaded = load_recipe(named_file("recipe", recipe), sets or [])
    manifest, chosen_device = other_manifest(manifest_folder), torch_device(device)
    results = []
    for name in caches:
        context = RunContext.of(Cache(name), manifest, chosen_device, allow_missing)
        if context.cache.unvouched:
            console.say(context.cache.unvouched)
        results.append(evaluate_baselines(loaded, context, split))
    if as_json:
        console.show_json([result.model_dump() for result in results])
    else:
        show_baselines(results)


def _clips_to_train_on(
    videos: Manifest | None, recipe: Recipe | None, folder: Path | None
) -> Manifest | None:
    """The manifest that --manifest names. Raises BadInput where there is nothing to train, or
    nothing that is cached for it."""
    if folder is None:
        return None
    if videos is None or recipe is None:
        raise BadInput(
            "--manifest names the clips that a recipe trains on, from a cache of other clips: it "
            "wants both",
            "stillframe plan SPEC DATA RECIPE --manifest DIR, or DIR as DATA",
        )
    clips = other_manifest(folder)
    assert clips is not None
    clips.require_videos_in(
        {video.video_id for video in videos.videos},
        f"manifest {videos.folder}",
        "give as DATA what is or will be cached, or leave --manifest out and give its folder",
    )
    return clips


@app.command()
def predictability(
    cache: Annotated[str, typer.Argument(help="Cache: its folder or URL.")],
    split: Annotated[str, typer.Option(help="Split to look at.")] = "val",
    ahead: Annotated[
        list[float] | None, typer.Option(help="Seconds ahead, ascending; may be given again.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second, by default those of the cache.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of each clip.")] = 1,
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Tell how predictable videos are to an encoder. Nothing is trained by steps: it says what
    forecasts that learn little score above a copy of the present tokens, for every layer and
    horizon of a cache. Writes nothing.

    Example: stillframe predictability caches/demo-0123456789ab --ahead 0.5 --ahead 1
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.experiments import predictability as module
    from pipeline.train.setup import RunContext

    manifest, chosen_device = other_manifest(manifest_folder), torch_device(device)
    context = RunContext.of(Cache(cache), manifest, chosen_device, allow_missing)
    if context.cache.unvouched:
        console.say(context.cache.unvouched)
    found = module.predictability(context, split, ahead or (), fps, windows)
    if as_json:
        console.show_json(found.model_dump())
    else:
        show_baselines([found])


def _frame_count(
    spec: CacheSpec, videos: Manifest | None, frames: int | None, hours: float | None
) -> int:
    """The number of frames to plan for where no manifest says it: --frames, --hours-of-video at
    the rate of the spec, or a round number. Raises BadInput where these contradict each other."""
    if videos and (frames or hours):
        raise BadInput(
            "a manifest says how many frames there are", "leave --frames and --hours-of-video out"
        )
    if hours is None:
        return frames or DEFAULT_FRAMES
    if frames is not None or spec.frames.rate is None:
        raise BadInput(
            "--hours-of-video wants a spec with a rate, and no --frames", "--set frames.fps=12"
        )
    return round(hours * 3600 * spec.frames.rate)


def show_plan(planned: Plan, out: str) -> None:
    """Tables, and what they say in words."""
    from pipeline.cli import console

    scale, operations = planned.scale, planned.operations
    rows = [
        ("frames", f"{scale.frames:,}"),
        ("tokens", f"{scale.tokens:,}"),
        ("stores", f"{scale.stores:,}"),
        ("files", f"{scale.files:,}"),
    ]
    if scale.videos is not None:
        rows.insert(0, ("videos, clips", f"{scale.videos:,}, {scale.clips:,}"))
    if scale.hours is not None:
        rows.insert(0, ("hours of video", f"{scale.hours:,.2f} h"))
    rows += [
        (
            "operations of the encoder",
            f"{console.flop_text(operations.encoder_frame)} a frame, "
            f"{console.flop_text(operations.extraction)} in all",
        )
    ]
    console.show_table("", (f"cache '{planned.spec}'", ""), rows)
    sizes = [
        (
            f"{name} (the spec's)" if name == planned.codec else name,
            *(
                (f"{codec.bytes_per_frame:,} B", console.bytes_text(codec.disk_bytes))
                if codec
                else ("cannot hold these tokens", "")
            ),
        )
        for name, codec in scale.codecs.items()
    ]
    console.show_table("", ("on disk, before compression", "a frame", "all stores"), sizes)
    if planned.training:
        _show_training(planned)
    if planned.layout:
        _show_layout(planned.layout)
    if planned.speed:
        _show_speed(planned, planned.speed)
    for line in verdict(planned, out):
        console.show(line)


def _show_training(planned: Plan) -> None:
    from pipeline.cli import console

    operations, training = planned.operations, planned.training
    assert training and operations.cached_step and operations.uncached_step
    parts = ", ".join(
        f"{name} {console.flop_text(getattr(operations, name) or 0)}"
        for name in ("mixer", "temporal", "readout")
    )
    memory_bytes = training.memory_bytes
    rows = [
        (
            "an epoch",
            f"{training.windows:,} windows, {training.steps_per_epoch:,.1f} steps; "
            f"{training.epochs:,.1f} epochs",
        ),
        (
            "a step",
            f"{training.step_frames:,} frames, {console.bytes_text(training.step_bytes)} read",
        ),
        (
            "memory at its peak, on a CPU",
            "unknown" if memory_bytes is None else console.bytes_text(memory_bytes),
        ),
        ("operations of a window, forward", parts),
        ("operations of a step, cached", console.flop_text(operations.cached_step)),
        (
            "operations of a step, un-cached",
            f"{console.flop_text(operations.uncached_step)}, {_ratio(operations)} times as many",
        ),
    ]
    if planned.manifest:
        console.show(f"trained on the clips of manifest {planned.manifest}:")
    console.show_table("", (f"training '{planned.recipe}'", ""), rows)


def _show_layout(layout: LayoutAdvice) -> None:
    from pipeline.cli import console

    def cells(reads: WindowReads) -> list[str]:
        return [
            f"{reads.chunk_frames} frames",
            f"{reads.shard_mb:g} MB",
            console.bytes_text(reads.first_bytes),
            console.bytes_text(reads.disk_bytes),
            f"{console.bytes_text(reads.object_bytes)}, {reads.object_requests:.1f} requests",
            f"{reads.files:.1f}",
        ]

    names = (
        "chunks",
        "shards",
        "read the first time, to compare chunks",
        "read afterwards, from a disk",
        "read afterwards, from an object store",
        "files that it lies in",
    )
    columns = ["a window, by the layout", "the spec's"]
    found = [names, cells(layout.present)]
    if layout.sets:
        columns.append("better for it")
        found.append(cells(layout.proposed))
    console.show_table("", columns, list(zip(*found, strict=True)))
    if layout.sets:
        words = " ".join(f"--set {word}" for word in layout.sets)
        console.show(f"these windows want another layout: {words}")


def _ratio(operations: Operations) -> str:
    assert operations.cached_step and operations.uncached_step
    return f"{operations.uncached_step / operations.cached_step:.2f}"


def _show_speed(planned: Plan, throughput: Throughput) -> None:
    from pipeline.cli import console

    times = planned.times
    assert times

    def rate(count: float) -> str:
        return f"{console.bytes_text(count)}/s"

    rows = [
        ("decoding, one process", f"{1 / throughput.decode_s:,.1f} frames/s", ""),
        ("resizing and encoding", f"{1 / throughput.encode_s:,.1f} frames/s", ""),
        (
            "codec, checksums and writing",
            rate(throughput.frame_bytes / throughput.write_s),
            f"needed {rate(times.write_bytes_per_s)}",
        ),
        (
            "extraction, overlapping",
            f"{1 / throughput.frame_s:,.1f} frames/s",
            f"all: {console.time_text(times.extract_s)}, {times.slowest} sets the pace",
        ),
    ]
    needed = f"needed {rate(times.read_bytes_per_s)}" if times.read_bytes_per_s else ""
    cold = throughput.read_cold_bytes_per_s
    rows += [
        (
            "reading windows, from memory",
            rate(throughput.read_hot_bytes_per_s),
            needed if times.fits_memory else "",
        )
    ]
    rows += [
        (
            "reading windows, from the disk",
            rate(cold) if cold else "not tried",
            "" if times.fits_memory else needed,
        )
    ]
    if (
        times.cached_step_s
        and times.uncached_step_s
        and times.cached_epoch_s
        and times.uncached_epoch_s
    ):
        rows += [
            (
                "training step, cached",
                console.time_text(times.cached_step_s),
                f"an epoch: {console.time_text(times.cached_epoch_s)}",
            ),
            (
                "training step, un-cached",
                console.time_text(times.uncached_step_s),
                f"an epoch: {console.time_text(times.uncached_epoch_s)}",
            ),
        ]
    console.show_table(
        "",
        (
            f"on this machine, from {throughput.frames:,} frames of {throughput.videos} videos",
            "",
            "",
        ),
        rows,
    )


def verdict(planned: Plan, out: str) -> list[str]:
    """Whether caching pays, in words; and what the plan leaves out."""
    from pipeline.cli import console

    lines, training, times = [], planned.training, planned.times
    if planned.scale.videos is None:
        tried = (
            "" if planned.speed is None else "; tried with videos of the built-in world, not yours"
        )
        lines += [f"no manifest: an epoch is taken to see every frame once{tried}"]
    if planned.speed is None:
        lines += ["not measured on this machine (--measure-s 0): seconds and rates are left out"]
    if planned.uneven:
        lines += [planned.uneven]
    if training is None:
        return [*lines, "no recipe: what training takes, and whether caching pays, is left out"]
    if training.memory_warning:
        lines += [training.memory_warning]
    epochs = planned.runs * training.epochs
    runs = (
        f"{planned.runs} {'run' if planned.runs == 1 else 'runs'} of {training.epochs:,.1f} epochs"
    )
    if times is None or times.cached_epoch_s is None or times.uncached_epoch_s is None:
        after = planned.operations.break_even
        if after is None:
            return [*lines, "by operations alone, caching never pays: the encoder has none"]
        does = "pays" if epochs > after else "does not pay"
        return [
            *lines,
            f"by operations alone, caching {does} for {runs}: it does from {after:,.1f} epochs "
            "on, over all runs",
        ]
    cached_s = times.extract_s + epochs * times.cached_epoch_s
    uncached_s = epochs * times.uncached_epoch_s
    both = (
        f"{runs} take {console.time_text(cached_s)} with the cache, extraction included, "
        f"and {console.time_text(uncached_s)} without"
    )
    gain = f"{times.uncached_epoch_s / times.cached_epoch_s:.2f} times as fast"
    if times.break_even is None:
        return [*lines, f"caching never pays here: {both}; an epoch from the cache is {gain}"]
    does = "pays" if cached_s < uncached_s else "does not pay for this"
    codec = planned.scale.codecs[planned.codec]
    assert codec
    disk = f"the price is {console.bytes_text(codec.disk_bytes)} of disk at {out}"
    if cached_s < uncached_s:
        hours_saved = (uncached_s - cached_s) / 3600
        disk += f": {console.bytes_text(codec.disk_bytes / hours_saved)} for every hour saved"
    return [
        *lines,
        f"caching {does}: {both}; it pays from {times.break_even:,.1f} epochs on, counted over all "
        "runs",
        f"an epoch from the cache is {gain}; it would be {_ratio(planned.operations)} by "
        "operations alone; decoding, reading and waiting make the difference",
        disk,
    ]
