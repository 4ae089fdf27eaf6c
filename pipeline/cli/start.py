"""Where one can begin, and how one leaves: the demo, what there is to choose from, released
checkpoints and features, and runs and tokens as files of other tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from pipeline.cli.options import (
    FINISHED_WITH_FAILURES,
    AsJson,
    CacheFolder,
    CachesFolder,
    Root,
    Sets,
    SpecOption,
    app,
    named_file,
)
from pipeline.cli.show import show_scores, show_status
from pipeline.errors import BadInput, unknown_name

SHIPPED = "stillframe"
BROKEN = "cannot be used:"
"""Beginning of what `list` says of a plug-in from outside that breaks its contract."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    spec: SpecOption = "demo",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="all, or some of classify,boxes,points,depth,pose: with and without time."
        ),
    ] = None,
) -> None:
    """Go the whole path on the built-in world. There are videos, cache, temporal modules, scores
    and report; and what a pre-training without labels is worth where labels are few.

    Example: stillframe demo --out demo
    """
    from pipeline.cli import console
    from pipeline.cli import demo as module
    from pipeline.errors import unknown_name

    file = named_file("spec", spec)
    if tasks is None:
        with console.progress("demo") as update:

            def on_step(step: str, done: float, total: float) -> None:
                update(done, total, step)

            results, page, cache = module.demo(out, file, on_step, console.say)
            few, gain = module.demo_few_labels(out, cache, on_step, console.say)
        show_scores(results)
        console.show(f"report: {page}")
        forecast, scratch, pretrained = few
        skill = forecast.forms["streaming"]["skill"]
        show_scores([scratch, pretrained])
        console.show(
            f"{forecast.run}, without labels: skill {skill.score:.3f} ({skill.span()}) over a copy "
            "of the present tokens"
        )
        console.show(
            f"{pretrained.run}, which goes on from there: {gain.score:+.3f} "
            f"({gain.span('{:+.3f}'.format)}) over {scratch.run}"
        )
        return
    names = module.TASKS if tasks == "all" else tuple(tasks.split(","))
    for name in names:
        if name not in module.TASKS:
            raise unknown_name("task of the demo", name, (*module.TASKS, "all"))
    with console.progress("demo") as update:
        of_tasks = module.demo_tasks(
            out, file, names, lambda step, done, total: update(done, total, step), console.say
        )
    for results, _ in of_tasks.values():
        show_scores(results)
    rows = []
    for task, ((without, with_time), gain) in of_tasks.items():
        metric = with_time.metrics[0].name
        scores = [
            f"{next(iter(result.forms.values()))[metric].score:.3f}"
            for result in (without, with_time)
        ]
        rows.append(
            (
                task,
                metric,
                f"{with_time.trivial[metric]:.3f}",
                *scores,
                gain.span("{:+.3f}".format),
            )
        )
    title = "better with time by (95 % interval, paired, videos resampled)"
    columns = ("task", "metric", "trivial", "identity", "temporal module", "better by")
    console.show_table(title, columns, rows, justify="llrrrl")


@app.command("list")
def list_plugins(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="dataset, encoder, codec, engine, temporal, task, spec, recipe, sweep."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List all that can be named, with its settings. Names stand in a spec, a recipe, a sweep or a
    command; it says where each is from.

    Exit code 3 if a plug-in from outside is among it that cannot be used.

    Example: stillframe list temporal
    """
    from pipeline.cli import console
    from pipeline.config import plugins
    from pipeline.config.shipped import KINDS, first_sentence, shipped
    from pipeline.errors import unknown_name

    kinds = [*plugins.FOLDERS, *KINDS]
    if kind is not None and kind not in kinds:
        raise unknown_name("kind", kind, kinds)
    rows = []
    for shown in kinds if kind is None else [kind]:
        if shown in KINDS:
            rows += [
                (shown, name, first_sentence(path), "", SHIPPED)
                for name, path in shipped(shown).items()
            ]
        else:
            rows += [(shown, name, *_described(shown, name)) for name in plugins.names(shown)]
    columns = ("kind", "name", "what", "settings", "from")
    if as_json:
        console.show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        console.show_table("", columns, rows)
    if any(what.startswith(BROKEN) for _, _, what, _, _ in rows):
        raise typer.Exit(FINISHED_WITH_FAILURES)


def _described(kind: str, name: str) -> tuple[str, str, str]:
    """What a plug-in is, its settings, and where it is from; of one from outside that cannot be
    used, why."""
    from pipeline.config import plugins
    from pipeline.errors import BadInput

    try:
        found = plugins.from_outside(kind, name)
        return *plugins.describe(kind, name), str(found or SHIPPED)
    except BadInput as error:
        return f"{BROKEN} {error.with_hint}", "", "outside"


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A released Lightning .ckpt.")],
    recipe: Annotated[
        str,
        typer.Argument(
            help="What it was trained as: a .toml file, or the name of a shipped recipe."
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            help="A cache; or the spec of the tokens it reads, a .toml file or a shipped name."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/<name of the file>.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names in the order of its outputs: JSON name -> number, or one per line."
        ),
    ] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Turn a released checkpoint of the paper into a run. The run is one for evaluate and stream.

    Example: stillframe import-checkpoint gmm.ckpt ssv2
    caches/dinov3_vitl16-0123456789ab --labels labels.json
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.config.cache_spec import load_spec
    from pipeline.config.recipe import load_recipe
    from pipeline.config.shipped import shipped
    from pipeline.train.weights import import_checkpoint

    is_spec = source.endswith(".toml") or source in shipped("spec")
    read = load_spec(named_file("spec", source)) if is_spec else Cache(source)
    names = import_checkpoint.read_labels(labels) if labels else None
    run = import_checkpoint.import_checkpoint(
        file,
        load_recipe(named_file("recipe", recipe), sets or []),
        read,
        out or Path("runs") / file.stem,
        names,
        console.say,
    )
    if as_json:
        console.show_json(
            {
                "run": str(run.path),
                "parameters": run.header.parameters,
                "labels": len(run.header.labels),
            }
        )
    else:
        parts = ", ".join(f"{name} {count:,}" for name, count in run.header.parameters.items())
        console.show(f"{run.path}: parameters of {parts}")


@app.command("export")
def export_run(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    file_format: Annotated[
        str, typer.Option("--format", help="onnx, or pt2 (what torch.export saves).")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files. Default: RUN/export.")
    ] = None,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Also write the encoder: a square to its tokens.")
    ] = False,
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    cache: Annotated[
        str | None,
        typer.Option(help="The run's cache, if it was moved: the check is made of its tokens."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the encoder's table."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one step of a run as a file of another tool. Tokens of a frame and states go in, answer
    and states come out. It is asked 100 frames, and left behind only if it says what the run says.

    Example: stillframe export runs/demo_gru --format onnx
    """
    from pipeline.cli import console
    from pipeline.config.toml_tables import override
    from pipeline.errors import BadInput, unknown_name
    from pipeline.exchange.export import cache_of_run, export
    from pipeline.exchange.formats import FORMATS
    from pipeline.train.run import Run

    if file_format not in FORMATS:
        raise unknown_name("format", file_format, FORMATS)
    if checkpoint not in ("last", "best"):
        raise unknown_name("checkpoint", checkpoint, ("last", "best"))
    opened = Run(run)
    if text := opened.unvouched(checkpoint):
        console.say(text)
    if sets and not encoder:
        raise BadInput("--set is for the encoder, which does not leave", "add --encoder")
    made = export(
        opened,
        out or run / "export",
        file_format,
        cache_of_run(opened, cache),
        checkpoint,
        override({}, sets or []) if encoder else None,
    )
    for note in made.notes:
        console.say(note)
    if as_json:
        console.show_json(made.model_dump())
        return
    rows = [
        (one.name, output, f"{difference:.1e}")
        for one in made.files
        for output, difference in one.differences.items()
    ]
    console.show_table("", ("file", "output", "differs from PyTorch by up to"), rows)
    for one in made.files:
        console.show(
            f"{one.path}: {one.torch_ms:.2f} ms a frame in PyTorch, {one.file_ms:.2f} ms in the "
            "file"
        )


@app.command("import-features")
def import_features(
    folder: Annotated[
        Path, typer.Argument(help="Holds NAME.npy, NAME.npz or NAME.h5 for every video.")
    ],
    manifest: Annotated[
        Path, typer.Option("--manifest", help="The videos and their truth; no video need be there.")
    ],
    fps: Annotated[float, typer.Option(min=1e-3, max=1000, help="Features of a second.")],
    start: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="When the first one is: half of a snippet, for instance."
        ),
    ] = 0.0,
    layout: Annotated[
        str | None,
        typer.Option(
            help="TC, CT or TNC: T frames, N features of a frame, C numbers of a feature. Default: "
            "TC, or TNC with --grid."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="The array, where a file holds several.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(metavar="ROWSxCOLUMNS", help="How the N features of a frame lie in it."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the cache's name begins with.")] = "features",
    out: CachesFolder = "caches",
    root: Root = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Make a cache of features that others computed.

    There is one array for each video of a manifest. All files are looked at before anything is
    written. Run it again to go on after any stop.

    Example: stillframe import-features salads/features --manifest data/salads --fps 15 --layout CT
    """
    from pipeline.cli import console
    from pipeline.datasets.manifest.manifest import Manifest
    from pipeline.exchange import import_features as module
    from pipeline.exchange.feature_files import Layout

    chosen = None if layout is None else _one_of("layout", layout, get_args(Layout))
    reading = module.Reading(fps, start, chosen, key, _grid(grid))
    videos = Manifest.load(manifest, root)
    with console.progress("import features") as update:
        cache = module.import_features(
            folder,
            videos,
            out,
            reading,
            sets or [],
            name,
            lambda done, total: update(done, total, "files looked at"),
            lambda done, total: update(done, total, "frames"),
        )
    show_status(cache, as_json)


@app.command("export-features")
def export_features(
    cache: CacheFolder,
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    layer: Annotated[
        int | None, typer.Option(help="Recorded layer. Default: the last one.")
    ] = None,
    pool: Annotated[
        str, typer.Option(help="mean of a frame's patches, none (all of them), or cls.")
    ] = "mean",
    form: Annotated[
        str,
        typer.Option("--format", help="npy: a file for each video; parquet: one table of all."),
    ] = "npy",
    as_json: AsJson = False,
) -> None:
    """Write tokens of a cache as plain arrays.

    They are pooled or not, and their times are beside them.

    Example: stillframe export-features caches/demo-0123456789ab --out features --pool mean
    """
    from pipeline.cache.cache import Cache
    from pipeline.cli import console
    from pipeline.exchange import export_features as module

    opened = Cache(cache)
    with console.progress(f"export from {opened.name}") as update:
        module.export_features(
            opened,
            out,
            layer,
            _one_of("pool", pool, get_args(module.Pool)),
            _one_of("format", form, get_args(module.Format)),
            lambda done, total: update(done, total, "frames"),
        )
    frames = sum(where.stop - where.start for where in opened.locations.values())
    if as_json:
        videos = len(opened.locations)
        console.show_json({"folder": str(out), "videos": videos, "frames": frames})
    else:
        console.show(f"{out}: {frames} frames of {len(opened.locations)} videos")


def _one_of(what: str, name: str, known: Sequence[str]) -> Any:
    """The name. Raises BadInput where it is none of those that are known."""
    if name not in known:
        raise unknown_name(what, name, known)
    return name


def _grid(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text or "")
    if text is not None and match is None:
        raise BadInput(f"--grid: wanted ROWSxCOLUMNS, as 7x7, found '{text}'")
    return (int(match[1]), int(match[2])) if match else None
