"""Runs, a sweep or a cache -> one HTML page that needs nothing else, the same as Markdown, and PNG, CSV and JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from pipeline.cache import Cache
from pipeline.places.folder import write_atomically
from pipeline.report.contents import STRIPS, as_json, page_of_cache, page_of_subject
from pipeline.report.page import Page, render
from pipeline.report.style import STYLE
from pipeline.report.subject import Subject, of_runs, of_sweep
from pipeline.run import Run


def report(source: Sequence[Run] | Path | Cache, out: Path, split: str = "val") -> Path:
    """Writes `report.html`, `report.md`, `report.json`, tables as CSV and plots as PNG into `out`; returns the page's path.

    `source`: evaluated runs of one task, the folder of a finished sweep, or a cache. Raises BadInput for runs that have not
    been evaluated on `split`, runs of several tasks, and a sweep that is not finished or was scored on another split.
    """
    about: Subject | Cache
    if isinstance(source, Cache):
        about = source
    else:
        about = of_sweep(source, split) if isinstance(source, Path) else of_runs(source, split)
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        page = page_of_cache(about, out) if isinstance(about, Cache) else page_of_subject(about, out)
    for table in (page.scores, page.runs, page.coverage, page.failures):
        if table and table.rows:
            (out / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
    (out / "report.json").write_text(
        json.dumps(as_json(page, None if isinstance(about, Cache) else about.summary), indent=1) + "\n", encoding="utf-8"
    )
    (out / "report.md").write_text(_markdown(page), encoding="utf-8")
    file = out / "report.html"
    write_atomically(file, render(page).encode())
    return file


def _markdown(page: Page) -> str:
    parts = [f"# {page.title}", page.result, page.caution]
    parts += [table.markdown() for table in (page.scores, page.coverage, page.failures) if table and table.rows]
    parts += [f"![{plot.title}]({plot.name}.png)" for plots in page.plots.values() for plot in plots]
    parts += [f"![Tokens over time]({STRIPS}.png)"] if page.films else []
    return "\n\n".join(part for part in parts if part) + "\n"
