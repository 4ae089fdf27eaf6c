"""Where one can begin: the demo, and what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import FINISHED_WITH_FAILURES, AsJson, SpecOption, app, named_file
from pipeline.cli.show import show_scores

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
