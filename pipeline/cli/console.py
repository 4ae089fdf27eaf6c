"""What a person sees. The only file that imports rich.

Talk goes to stderr and moves only on a terminal; in a log file it becomes one plain line now and
then. Results go to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.talk import log_file, loudness
from pipeline.errors import in_one_line, printable

LOG_EVERY_S = 30.0
"""Seconds between progress lines where stderr is not a terminal."""

LONGEST_S = 10 * 365 * 86400
"""Seconds from which a forecast is none."""
LEAST_BAR = 10
"""Characters of a line of progress that are left for the spinner, the bar and blanks."""
LOG_COLUMNS = 140
"""Width of tables in characters where stdout is no terminal and COLUMNS says nothing."""

talk = Console(stderr=True, highlight=False)
is_told_width = sys.stdout.isatty() or "COLUMNS" in os.environ
out = Console(highlight=False, width=None if is_told_width else LOG_COLUMNS)

Update = Callable[[float, float, str], None]
"""(done, total, what to say beside the bar)"""


@contextmanager
def progress(title: str) -> Iterator[Update]:
    """A bar on a terminal, a line every half minute elsewhere, and in the log; with --quiet in the
    log alone. How far it came at the end is in the log, too."""
    last = ""
    is_bar = talk.is_terminal and not loudness.is_quiet()
    tell = _now_and_then(log_file.note if is_bar else say)
    try:
        with _bar(title) if is_bar else nullcontext(lambda *_: None) as move:

            def update(done: float, total: float, note: str) -> None:
                nonlocal last
                last = f"{title} {done:g}/{total:g} {note}".rstrip()
                tell(last)
                move(done, total, note)

            yield update
    finally:
        if last:
            log_file.note(last)


@contextmanager
def _bar(title: str) -> Iterator[Update]:
    title = in_one_line(title)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        # What the others leave: on a narrow screen the bar shrinks, and no number does.
        BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=talk, transient=True, expand=True) as bars:
        task = bars.add_task(title, total=None, note="")

        def update(done: float, total: float, note: str) -> None:
            beside = f"{title} {done:g}/{total:g}"
            shown = _whole_parts(in_one_line(note), talk.width - len(beside) - LEAST_BAR)
            bars.update(task, completed=done, total=total, note=shown)

        yield update


def _whole_parts(note: str, width: int) -> str:
    """As many of a note's parts, which stand two blanks apart, as have room in `width`
    characters."""
    parts = note.split("  ")
    while len(parts) > 1 and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


def _now_and_then(tell: Callable[[str], object]) -> Callable[[str], None]:
    """Takes lines of progress, of which it tells one every half minute."""
    last = time.monotonic()

    def line(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            tell(text)

    return line


def say(text: str) -> None:
    """One line of talk; with --quiet it is in the log alone."""
    log_file.note(printable(text))
    if not loudness.is_quiet():
        print(printable(text), file=sys.stderr, flush=True)


def say_error(text: str) -> None:
    """One line on what went wrong, or on how a command was stopped."""
    log_file.note(printable(text))
    print(printable(text), file=sys.stderr, flush=True)


def show(text: str = "") -> None:
    """One line of result."""
    print(printable(text), flush=True)


def show_json(value: Any) -> None:
    show(json.dumps(value, indent=1))


def show_line(value: Any) -> None:
    """One JSON value on one line: what a script reads as it comes."""
    show(json.dumps(value))


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    justify: str = "",
    keys: int = 1,
    cut: int = 0,
    whole: int = 0,
) -> None:
    """A table on stdout. `justify` has one letter for each column, l or r; without it, columns that
    hold nothing but numbers stand to the right.

    Cells are folded where the screen is too narrow, but for those of the first `whole` columns. A
    table with a `cut` is shown as several instead: one of the columns before it, then those from it
    on, as many at a time as there is room for, each beginning with the first `keys` columns: a
    figure on two lines cannot be read.
    """
    if title:
        out.print(Text(printable(title)))  # apart from the table, or a narrow one would fold it
    parts: list[Sequence[int]] = [range(len(columns))]
    if cut and _least_width(columns, rows) > out.width:
        parts, left = [range(cut)], [*range(cut, len(columns))]
        while left:
            count = len(left)
            while count > 1 and _too_wide((*range(keys), *left[:count]), columns, rows):
                count -= 1
            parts.append((*range(keys), *left[:count]))
            left = left[count:]
    for part in parts:
        cells = [[row[index] for index in part] for row in rows]
        letters = "".join(justify[index] for index in part) if justify else ""
        unfolded = len(part) if len(parts) > 1 else whole
        out.print(_table([columns[index] for index in part], cells, letters, unfolded))


def _too_wide(
    part: Sequence[int], columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> bool:
    """Whether some columns of a table are wider than the screen, with cells that are whole."""
    of_part = [[row[index] for index in part] for row in rows]
    return _least_width([columns[index] for index in part], of_part) > out.width


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """The width in characters of a table whose cells are whole, with headings folded at blanks."""
    gap = 3
    return sum(
        gap + max(map(len, [*column.split(), *(str(row[index]) for row in rows)]), default=0)
        for index, column in enumerate(columns)
    )


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], justify: str, whole: int
) -> Table:
    """`whole`: how many columns have cells on one line, and headings that fold at blanks alone;
    there is room for it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        is_right = (
            justify[index] == "r"
            if justify
            else bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        )
        least = max(map(len, [*column.split(), *(str(row[index]) for row in rows)]), default=0)
        table.add_column(
            in_one_line(column),
            justify="right" if is_right else "left",
            overflow="fold",
            min_width=least if index < whole else None,
        )
    for row in rows:
        # Not markup: a file name may hold brackets.
        table.add_row(*[Text(in_one_line(str(cell))) for cell in row])
    return table


def bytes_text(count: float) -> str:
    """12.3 MB: decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration_text(seconds: float) -> str:
    """1:02:03 or 2:03; "unknown" from ten years on, as at a speed of nothing yet."""
    if not seconds < LONGEST_S:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def time_text(seconds: float) -> str:
    """12.3 ms, 4.5 s, 6.7 min or 8.9 h."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def flop_text(count: float) -> str:
    """1.234 GFLOP: floating point operations, four digits."""
    for unit in ("", "K", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.4g} {unit}FLOP"
        count /= 1000
    return f"{count:.4g} EFLOP"


def few_text(names: Sequence[str], most: int = 3) -> str:
    """a, b, c and 12 more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
