"""Where one can begin: the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import SpecOption, app, named_file
from pipeline.cli.show import show_scores
from pipeline.cli.talk import log_file

if TYPE_CHECKING:
    from pipeline.cli.console import Update


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
            on_step = _keeping_a_log(out, update)
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
        of_tasks = module.demo_tasks(out, file, names, _keeping_a_log(out, update), console.say)
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


def _keeping_a_log(out: Path, update: Update) -> Callable[[str, float, float], None]:
    """Takes (step, done, total), shows them, and keeps a log in the demo's folder once it is
    there."""

    def on_step(step: str, done: float, total: float) -> None:
        if out.is_dir():
            log_file.keep_log(out / log_file.RUN_LOG)
        update(done, total, step)

    return on_step
