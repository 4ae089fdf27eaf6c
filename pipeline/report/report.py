"""Runs, a sweep or a cache -> one HTML page that needs nothing else, the same as Markdown, and PNG,
CSV and JSON files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import matplotlib

from pipeline.cache.cache import Cache
from pipeline.cache.storage.local import write_atomically
from pipeline.experiments.summary import Summary
from pipeline.models.tasks.parts import fonts
from pipeline.report.page import Page, render_page
from pipeline.report.sections import FOUND, STRIPS, as_json, page_of_cache, page_of_data
from pipeline.report.source import ReportData, read_runs, read_sweep
from pipeline.report.style import STYLE
from pipeline.report.tables import in_markdown
from pipeline.train.run import Run


def report(
    source: Sequence[Run] | Path | Cache,
    out: Path,
    split: str = "val",
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Writes `report.html`, `report.md`, `report.json`, tables as CSV and plots as PNG into `out`;
    returns the pages' paths.

    `source`: evaluated runs of one task, the folder of a finished sweep, or a cache. A sweep of
    several tasks gets a page, and a folder in `out`, for each. `say` is told of runs that
    have not been evaluated on `split`, which are left out, and of letters of labels and runs that
    no font has. Raises BadInput where no run has been evaluated, for runs of several tasks, and for
    a sweep that is not finished or was scored on another split.
    """
    if isinstance(source, Cache):
        return [_write_page(partial(page_of_cache, source, out), None, out)]
    data_of_tasks = (
        read_sweep(source, split) if isinstance(source, Path) else [read_runs(source, split, say)]
    )
    folders = [
        out if len(data_of_tasks) == 1 else out / data.summary.task for data in data_of_tasks
    ]
    words = [word for data in data_of_tasks for word in _words(data)]
    if missing := fonts.missing_letters(words):
        say(missing)
    return [
        _write_page(partial(page_of_data, data, folder), data.summary, folder, words)
        for data, folder in zip(data_of_tasks, folders, strict=True)
    ]


def _words(data: ReportData) -> list[str]:
    """Names of points and labels, which plots show."""
    labels = {label for run in data.runs.values() for label in run.header.labels}
    return [point.name for point in data.summary.settings] + sorted(labels)


def _write_page(
    make: Callable[[], Page], summary: Summary | None, out: Path, words: Sequence[str] = ()
) -> Path:
    """Makes a page in the page's own style, with fonts for `words`, and writes all its files;
    returns the HTML file."""
    out.mkdir(parents=True, exist_ok=True)
    style = STYLE | {"font.family": fonts.families(words)}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Said once already, and without lines of source code.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        page = make()
    for table in page.tables:
        if table.rows:
            _write_text(out / f"{table.name}.csv", table.csv())
    _write_text(out / "report.json", json.dumps(as_json(page, summary), indent=1) + "\n")
    _write_text(out / "report.md", _markdown(page))
    return _write_text(out / "report.html", render_page(page))


def _write_text(path: Path, text: str) -> Path:
    """Writes UTF-8, in which bytes of file names that are no UTF-8 are spelled out (`\\udce9`)."""
    write_atomically(path, text.encode("utf-8", errors="backslashreplace"))
    return path


def _markdown(page: Page) -> str:
    """The sentences, tables and plots of a page."""
    sentences = [in_markdown(text or "") for text in (page.result, page.caution)]
    parts = [f"# {in_markdown(page.title)}", *sentences]
    parts += [table.markdown() for table in page.tables if table.rows and table is not page.runs]
    parts += [
        f"![{in_markdown(plot.title)}]({quote(plot.name)}.png)"
        for plots in page.plots.values()
        for plot in plots
    ]
    parts += [f"- {in_markdown(film.clip)} ({in_markdown(film.label)})" for film in page.found]
    parts += [f"![What words have found]({FOUND}.png)"] if page.found else []
    parts += [f"![Tokens over time]({STRIPS}.png)"] if page.films else []
    return "\n\n".join(part for part in parts if part) + "\n"
