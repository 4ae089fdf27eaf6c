"""The command line: parsing and printing only. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import BadInput, StillframeError

if TYPE_CHECKING:
    import torch

    from pipeline.cache import Cache
    from pipeline.manifest import Manifest

FINISHED_WITH_FAILURES = 3
INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    name="stillframe",
    help="A frozen image model, a token cache and a small recurrent temporal module make a video model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(
    help="Measure this machine: medians, and ratios against a reference in the same run.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")

Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be given many times.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print plain JSON on stdout.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1. Default: cuda where there is one.")]
ManifestFolder = Annotated[Path | None, typer.Option("--manifest", help="Other clips or labels over the same videos.")]
AllowMissing = Annotated[bool, typer.Option(help="Leave out clips that the cache does not cover, and say how many.")]


@app.command()
def manifest(
    dataset: Annotated[str, typer.Argument(help="world, folder, playback, ... (see: stillframe list dataset)")],
    root: Annotated[Path | None, typer.Argument(help="Folder with the videos; not needed by world.")] = None,
    out: Annotated[Path, typer.Option(help="Where manifest.jsonl, targets.h5 and dataset.json go.")] = Path("data"),
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List the clips of a data set, with labels, splits and truth.

    Example: stillframe manifest folder my_videos --out data/mine
    """
    from pipeline import console
    from pipeline import manifest as module
    from pipeline.spec import override

    with console.progress(f"manifest {dataset}") as update:
        built = module.build(dataset, root, out, override({}, sets or []), lambda done, total: update(done, total, "videos"))
    counts = {split: len(built.split(split)) for split in built.splits}
    if as_json:
        facts = {"manifest": str(out), "clips": counts, "videos": len(built.videos), "labels": list(built.labels)}
        console.show_json(facts | {"rejected": built.rejected, "digest": built.digest})
    else:
        splits = ", ".join(f"{split} {count}" for split, count in counts.items())
        labels = f", {len(built.labels)} labels" if built.labels else ""
        console.show(f"{out}: {len(built.clips)} clips of {len(built.videos)} videos ({splits}){labels}")
        if built.rejected:
            console.show_table(f"{len(built.rejected)} files rejected", ("file", "reason"), list(built.rejected.items()))
    if built.rejected:
        raise typer.Exit(FINISHED_WITH_FAILURES)


@app.command()
def extract(
    spec: Annotated[Path, typer.Argument(help="What to cache, a .toml file.")],
    data: Annotated[Path, typer.Argument(help="Folder with manifest.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder that holds caches; this one gets a name of its own in it.")] = Path(
        "caches"
    ),
    root: Annotated[Path | None, typer.Option(help="Where the videos are, if they were moved.")] = None,
    device: Device = None,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode videos.")] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Redo the stores that hold a failed video.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage one: encode every frame once and store its tokens. Run it again to go on after any stop.

    Example: stillframe extract cache_specs/dinov2_small.toml data/mine --out caches
    """
    from pipeline import console
    from pipeline.manifest import Manifest
    from pipeline.spec import load_spec

    loaded = load_spec(spec, sets or [])
    clips = Manifest.load(data, root)
    from pipeline import extract as module
    from pipeline.cache import siblings

    if dry_run:
        _show_plan(module.preview(loaded, clips), as_json)
        return
    with console.progress(f"extract {loaded.name}") as update:

        def on_progress(state: module.Progress) -> None:
            text = f"frames  {state.frames_per_s:.0f} frames/s  {console.bytes_text(state.store_bytes)}"
            slowest = state.slowest(decoders)
            update(state.frames, state.frames_planned, f"{text}  ETA {console.duration_text(state.eta_s)}  slowest: {slowest}")

        cache = module.extract(loaded, clips, out, _device(device), decoders, retry_failed, on_progress)
    for other, changed in siblings(cache).items():
        console.say(f"beside it lies {other.name}, which differs in (this / that): {'; '.join(changed)}")
    _show_status(cache, as_json)
    if cache.failures:
        console.say("to try these again, once they are mended: the same command with --retry-failed")
        raise typer.Exit(FINISHED_WITH_FAILURES)


@app.command()
def status(cache: Annotated[Path, typer.Argument(help="A cache folder.")], as_json: AsJson = False) -> None:
    """What a cache holds: coverage per split, failures with their reasons, bytes, speed.

    Example: stillframe status caches/demo-0123456789ab
    """
    from pipeline.cache import Cache

    _show_status(Cache(cache), as_json)


@app.command()
def verify(cache: Annotated[Path, typer.Argument(help="A cache folder.")], as_json: AsJson = False) -> None:
    """Compare every file of a cache with its checksum, and name what is damaged.

    Example: stillframe verify caches/demo-0123456789ab
    """
    from pipeline import console
    from pipeline.cache import Cache

    opened = Cache(cache)
    problems: dict[int, dict[str, str]] = {}
    missing = opened.missing_stores()
    finished = [store for store in opened.plan if store not in missing]
    with console.progress("verify") as update:
        for done, store in enumerate(finished, 1):
            if found := opened.check(store):
                problems[store] = found
            update(done, len(finished), "stores")
    if as_json:
        named = {opened.store_path(store).name: files for store, files in problems.items()}
        console.show_json({"cache": str(cache), "stores_checked": len(finished), "stores_missing": missing, "problems": named})
    else:
        rows = [
            (opened.store_path(store).name, file, what) for store, files in problems.items() for file, what in files.items()
        ]
        if rows:
            console.show_table(f"{len(problems)} damaged stores", ("store", "file", "problem"), rows)
        else:
            console.show(f"{cache}: {len(finished)} stores, every checksum holds")
        if missing:
            console.show(f"{len(missing)} of {len(opened.plan)} stores are not extracted yet: run extract again")
    if problems:
        receipts = " ".join(str(opened.receipt_path(store)) for store in problems)
        raise BadInput(
            f"{len(problems)} stores of {cache} are damaged", f"rm {receipts} and run extract again: only these are redone"
        )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train: a .toml file, or the name of a shipped recipe.")],
    cache: Annotated[Path, typer.Argument(help="A cache folder.")],
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<name of the recipe>.")] = None,
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Stage two: train a temporal module and a readout from a cache. Run it again to go on after any stop.

    Example: stillframe train demo_gru caches/demo-0123456789ab
    """
    from pipeline import console
    from pipeline.cache import Cache
    from pipeline.spec import load_recipe

    loaded = load_recipe(_recipe(recipe), sets or [])
    opened = Cache(cache)
    other = _manifest(manifest_folder)
    from pipeline import train as module

    folder = out or Path("runs") / loaded.name
    with console.progress(f"train {loaded.name}") as update:

        def on_progress(state: module.Progress) -> None:
            scores = "".join(f"  {form} {score:.3f}" for form, score in state.scores.items())
            update(state.step, state.steps, f"steps  loss {state.loss:.4f}  {state.windows_per_s:.0f} windows/s{scores}")

        run = module.train(loaded, opened, folder, other, _device(device), allow_missing, on_progress)
    notes = {
        "skipped": "were left out: the cache does not cover them",
        "padded": "are shorter than a window: their last frame repeats",
        "slower": "have fewer frames per second than a window: their frames repeat",
    }
    for what, note in notes.items():
        if count := run.header.clips[what]:
            console.say(f"{count} clips of split 'train' {note}")
    last = run.checkpoint("last")
    assert last is not None
    scores: dict[str, float] = next((line["val"] for line in reversed(module.read_metrics(folder)) if "val" in line), {})
    facts = {"run": str(folder), "steps": last.step, "parameters": run.header.parameters, "val": scores}
    if as_json:
        console.show_json(facts)
    else:
        text = ", ".join(f"{form} {score:.3f}" for form, score in scores.items())
        console.show(f"{folder}: {last.step} steps, {sum(run.header.parameters.values()):,} trained parameters, val {text}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    cache: Annotated[Path | None, typer.Option(help="The cache, if it is no longer where it was at training.")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    checkpoint: Annotated[str, typer.Option(help="last or best.")] = "last",
    manifest_folder: ManifestFolder = None,
    allow_missing: AllowMissing = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on a split, streaming and window-wide, with 95 % intervals.

    Example: stillframe evaluate runs/demo_gru
    """
    from pipeline import console
    from pipeline.cache import Cache
    from pipeline.errors import unknown_name

    if checkpoint not in ("last", "best"):
        raise unknown_name("checkpoint", checkpoint, ("last", "best"))
    from pipeline import evaluate as module
    from pipeline.train import Run

    opened = Run(run)
    place = cache or Path(opened.header.cache_path)
    folder = manifest_folder or (Path(path) if (path := opened.header.manifest_path) else None)
    result = module.evaluate(opened, Cache(place), split, checkpoint, _manifest(folder), _device(device), allow_missing)
    if as_json:
        console.show_json(result)
    else:
        _show_scores([result])


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, its pictures and the table as CSV.")] = Path("report"),
    split: Annotated[str, typer.Option(help="Split whose scores are shown.")] = "val",
) -> None:
    """Put runs side by side: scores with intervals, learning curves, confusions.

    Example: stillframe report runs/* --out report
    """
    from pipeline import console
    from pipeline import report as module
    from pipeline.train import Run

    page = module.report([Run(run) for run in runs], out, split)
    console.show(str(page))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    spec: Annotated[Path, typer.Option(help="What to cache.")] = Path("cache_specs/demo.toml"),
) -> None:
    """The whole path on the built-in world: videos, cache, three temporal modules, scores, report.

    Example: stillframe demo --out demo
    """
    from pipeline import console
    from pipeline import demo as module

    with console.progress("demo") as update:
        results, page = module.demo(out, spec, lambda step, done, total: update(done, total, step), console.say)
    _show_scores(results)
    console.show(f"report: {page}")


@app.command("list")
def list_plugins(
    kind: Annotated[str | None, typer.Argument(help="dataset, encoder, codec, temporal, task or recipe.")] = None,
    as_json: AsJson = False,
) -> None:
    """What can be named in a spec, a recipe or a command, with its settings.

    Example: stillframe list temporal
    """
    from pipeline import console, plugins
    from pipeline.errors import unknown_name
    from pipeline.spec import shipped_recipes

    kinds = [*plugins.FOLDERS, "recipe"]
    if kind is not None and kind not in kinds:
        raise unknown_name("kind", kind, kinds)
    rows = []
    for shown in kinds if kind is None else [kind]:
        if shown == "recipe":
            rows += [(shown, name, "", "") for name in shipped_recipes()]
        else:
            rows += [(shown, name, *plugins.describe(shown, name)) for name in plugins.names(shown)]
    if as_json:
        console.show_json([dict(zip(("kind", "name", "what", "settings"), row, strict=True)) for row in rows])
    else:
        console.show_table("", ("kind", "name", "what", "settings"), rows)


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
    from pipeline import bench, console

    result = bench.extract_speed(frames, repeats, decoders, _device(device))
    if as_json:
        console.show_json(result)
    else:
        console.show_table(result["title"], ("", "frames/s, median", "min", "max"), result["rows"])
        console.show(f"extraction reaches {result['ratio']:.3f} of the bare encoder (median of {repeats} paired ratios)")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 ok, 1 failed, 2 bad input, 3 finished with failures listed."""
    try:
        code = app(arguments, standalone_mode=False)
    except StillframeError as error:
        _say(f"error: {error.message}" + (f"; next: {error.hint}" if error.hint else ""))
        return error.exit_code
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _say(f"error: {what}; next: check the path, its rights and the free space")
        return 2
    except typer.Exit as stop:
        code = stop.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _say(_usage(error.format_message()))
        return 2
    if code == INTERRUPTED:
        _say("stopped; what was finished is kept, run the same command again to go on")
    return code if isinstance(code, int) else 0


def _usage(message: str) -> str:
    """typer's own words on a missing argument or an unknown option; the help itself where no command was given."""
    return message if message.startswith("Usage:") else f"error: {message.rstrip('.')}; next: stillframe --help"


def _say(text: str) -> None:
    from pipeline import console

    console.say(text)


def _device(name: str | None) -> torch.device | None:
    import torch

    if name is None:
        return None
    known = "cpu, cuda or cuda:1"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"no device called '{name}'", known) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device '{name}' asks for CUDA, which this machine or this torch does not have", "--device cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"device '{name}' cannot be used: {str(error).splitlines()[0]}", known) from error
    return device


def _manifest(folder: Path | None) -> Manifest | None:
    from pipeline.manifest import Manifest

    return None if folder is None else Manifest.load(folder)


def _recipe(name: str) -> Path:
    """A path as it is; otherwise a shipped recipe of that name."""
    from pipeline.errors import unknown_name
    from pipeline.spec import shipped_recipes

    if name.endswith(".toml") or "/" in name:
        return Path(name)
    shipped = shipped_recipes()
    if name not in shipped:
        raise unknown_name("recipe", name, shipped)
    return shipped[name]


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    from pipeline import console

    if as_json:
        console.show_json(plan)
    else:
        size = console.bytes_text(plan["store_bytes"])
        console.show(f"{plan['videos']} videos, about {plan['frames']} frames, {plan['stores']} stores, {size}")
        console.show(f"{plan['tokens_per_frame']} tokens and {plan['bytes_per_frame']:,} bytes per frame, grid {plan['grid']}")


def _show_status(cache: Cache, as_json: bool) -> None:
    from pipeline import console

    facts = cache.status()
    if as_json:
        console.show_json(facts)
        return
    stores, videos = facts["stores"], facts["videos"]
    console.show(
        f"{facts['cache']}: {stores['done']} of {stores['planned']} stores, {facts['frames']} frames, "
        f"{console.bytes_text(facts['store_bytes'])}, codec {facts['codec']}"
    )
    console.show(f"videos: {videos['stored']} of {videos['planned']} whole, {videos['failed']} failed")
    for split, counts in facts["splits"].items():
        console.show(f"split {split}: {counts['covered']} of {counts['clips']} clips covered")
    if facts["seconds"]:
        console.show("work: " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in facts["seconds"].items()))
    if facts["failures"]:
        console.show_table(f"{videos['failed']} videos failed", ("video", "reason"), list(facts["failures"].items()))


def _show_scores(results: list[dict[str, Any]]) -> None:
    from pipeline import console

    rows = [
        (result["run"], result["temporal"], form, f"{values['score']:.3f}", f"{values['low']:.3f} .. {values['high']:.3f}")
        for result in results
        for form, values in result["forms"].items()
    ]
    first = results[0]
    title = f"{first['metric']} on split {first['split']}: {first['clips_scored']} clips, chance {first['trivial']:.3f}"
    console.show_table(title, ("run", "temporal", "form", "score", "95 % interval"), rows)
    for result in results:
        if result["clips_skipped"]:
            console.say(f"{result['run']}: {result['clips_skipped']} clips left out: the cache does not cover them")


def entry() -> None:
    """The console script."""
    # Compute threads that spin while they wait steal the cores from the threads that read, decode and write.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())


if __name__ == "__main__":
    entry()
