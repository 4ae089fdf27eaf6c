"""The style of plots: one palette for paper and screen, and a figure as SVG whose colours follow
the page.

A plot is drawn once, in the colours of a light page. In the page every colour becomes a CSS
variable of the same name, which page.css defines for light and dark; the PNG file keeps the colours
it was drawn in.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.models.tasks.parts.fonts import readable
from pipeline.report.source import ReportData

SERIES = (
    "#3465c8",
    "#e0662c",
    "#2a9455",
    "#9a58d6",
    "#cf9400",
    "#d94a8c",
    "#138e9e",
    "#8a5a3c",
    "#c63c3c",
    "#6f8f1d",
    "#5a5fd0",
    "#b06a9b",
)
"""Colours of points; points beyond the last are grey."""
COLOURS = {
    "ink": "#1c2127",
    "muted": "#66707c",
    "line": "#d9dde2",
    "rest": "#aab1b9",
    "paper": "#fdfdfc",
    "accent": "#3465c9",
    **{f"s{index}": colour for index, colour in enumerate(SERIES)},
}
"""Name of a CSS variable -> its value on a light page. No two are equal."""
NAMES = {colour: name for name, colour in COLOURS.items()}
FONT = "DejaVu Sans"
STYLE: Any = {
    "font.family": FONT,
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "stillframe",
    "axes.edgecolor": COLOURS["rest"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["rest"],
    "ytick.color": COLOURS["rest"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.minor.visible": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
LETTERS_PER_INCH, KEY_LETTERS, LINE_INCHES = 13, 6, 0.19
"""Letters of a legend in an inch, those that its sign takes, and the height of a line."""
HALF_INCHES, FULL_INCHES = 5.4, 11.0
"""Widths of plots: two of them side by side, or one alone. Text has its natural size at these."""


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """One empty plot, its size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def colours_of(data: ReportData) -> dict[str, str]:
    """Point -> its colour in every plot. Where there are more points than colours, the best and
    their reference have one."""
    points = data.summary.settings
    names = [point.name for point in points]
    if len(names) > len(SERIES):
        ranked = data.ranked()
        reference = ranked[0].reference
        best = [point.name for point in ranked if point.name != reference]
        chosen = {*best[: len(SERIES) - 1], reference}
        names = [name for name in names if name in chosen]
    colour_of = dict(zip(names, SERIES, strict=False))
    return {point.name: colour_of.get(point.name, COLOURS["rest"]) for point in points}


def named(artist: Any, text: str) -> Any:
    """The artist, which shows `text` when a reader points at it."""
    artist.set_gid(f"tip:{text}")
    return artist


def legend(figure: Figure, axes: Axes) -> None:
    """Puts the legend below the plot, in as many columns as names allow; the figure becomes higher
    by what it takes."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        across = int(figure.get_figwidth() * LETTERS_PER_INCH)
        labels = shortened(labels, across - KEY_LETTERS)
        columns = max(1, min(len(labels), across // (max(map(len, labels)) + KEY_LETTERS)))
        figure.set_figheight(
            figure.get_figheight() + LINE_INCHES * math.ceil(len(labels) / columns)
        )
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=columns,
            handlelength=1.4,
            columnspacing=1.4,
        )


def view(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that shows all values, with a margin on both sides."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def save_png(figure: Figure, path: Path) -> None:
    """Writes a figure for papers, on white. This settles its layout."""
    figure.savefig(path, dpi=160, facecolor="white", metadata={"Software": None})
    figure.set_layout_engine(None)  # "none" would have the figure drawn once more by every `svg`


def svg(figure: Figure, title: str) -> str:
    """The figure for the page: an inline SVG that scales, without a background; colours are CSS
    variables, and text is text."""
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="tip:(.*?)">', r'<g class="tip"><title>\1</title>', text)
    text = re.sub(r'<g id="[a-zA-Z0-9._]*_\d+">', "<g>", text)
    text = re.sub(
        r"#[0-9a-f]{6}",
        lambda match: f"var(--{NAMES[match[0]]})" if match[0] in NAMES else match[0],
        text,
    )
    text = re.sub(rf"'?{FONT}'?[^;\"]*", "var(--sans)", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Readable names of at most `most` letters. Where one is longer, all lose the parts between
    commas that all have, and those that are still too long are cut in the middle."""
    texts = [readable(name) for name in names]
    parts_of = [parts for text in texts if len(parts := text.split(", ")) > 1]
    if len(parts_of) > 1 and max(map(len, texts)) > most:
        common = set(parts_of[0]).intersection(*parts_of)
        texts = [
            ", ".join(part for part in text.split(", ") if part not in common) or text
            for text in texts
        ]
    return [
        text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"
        for text in texts
    ]
