"""Tables of a page: rows as plain values for scripts, and how a reader sees them."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.cache.status import FailureGroup, SplitCoverage
from pipeline.errors import printable
from pipeline.experiments.summary import PointSummary, ReferenceComparison, least_gain
from pipeline.report.source import ReportData
from pipeline.train.bootstrap import NO_INTERVAL, Interval
from pipeline.train.run import UNDER_TRAINED

Row = Mapping[str, Any]
"""Key -> plain value; None where there is none."""
FORMULA = ("=", "+", "-", "@", "\t")
"""How a text begins that a spreadsheet computes."""
MARKS = re.compile(r"[\\\[\]|]")
MINUS = "\N{MINUS SIGN}"


class Column(NamedTuple):
    """One column as a reader sees it."""

    title: str
    key: str
    """The value that it is sorted by."""
    show: Callable[[Row], str]
    about: str = ""
    unknown: str = ""
    """Shown where a row has the key, and no value for it."""


class Cell(NamedTuple):
    """One cell as a reader sees it."""

    text: str
    value: str
    """The key that the cell is sorted by: a number, or the text itself; empty cells come last."""
    is_number: bool


@dataclass(frozen=True)
class Table:
    """Rows that can be read by people and by scripts."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def has_numbers(self, index: int) -> bool:
        """Whether the column is sorted by numbers."""
        return any(row[index].is_number for row in self.cells)

    @cached_property
    def cells(self) -> list[list[Cell]]:
        """The cells of every row."""
        return [[_cell(column, row) for column in self.columns] for row in self.rows]

    def csv(self) -> str:
        """All keys and plain values, for scripts."""
        text = io.StringIO()
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: inert(row[key]) for key in row} for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """The columns as a reader sees them."""
        lines = [
            [column.title for column in self.columns],
            *([cell.text for cell in row] for row in self.cells),
        ]
        head, *body = ["| " + " | ".join(map(in_markdown, line)) + " |" for line in lines]
        return "\n".join([head, "|" + "---|" * len(self.columns), *body])


def inert(value: Any) -> Any:
    """A value of a CSV file. A text that a spreadsheet would take for a formula gets an apostrophe
    in front, by which it is text."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def in_markdown(text: str) -> str:
    """Text of others inside Markdown: no HTML, no link, no image and no cell of a table begins in
    it."""
    return MARKS.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def _cell(column: Column, row: Row) -> Cell:
    value = row.get(column.key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    unknown = column.unknown if column.key in row else ""
    text = unknown if value is None else column.show(row)
    return Cell(text, repr(value) if is_number else text, is_number)


# How values are shown


def plain(key: str) -> Callable[[Row], str]:
    """The value as text."""
    return lambda row: value_text(row[key])


def value_text(value: Any) -> str:
    """A value of an axis, as short as it can be told."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(part)}" for key, part in value.items())
    return ", ".join(map(value_text, value)) if isinstance(value, list | tuple) else str(value)


def number(key: str) -> Callable[[Row], str]:
    """The value as a number with three decimals."""
    return lambda row: number_text(row[key])


def number_text(value: float) -> str:
    """A number with three decimals."""
    return f"{value:.3f}".replace("-", MINUS)


def signed(key: str) -> Callable[[Row], str]:
    """The value with three decimals and its sign."""
    return lambda row: signed_text(row[key])


def signed_text(value: float) -> str:
    """A number with three decimals and its sign."""
    return f"{value:+.3f}".replace("-", MINUS)


def span(low: str, high: str, show: Callable[[float], str] = number_text) -> Callable[[Row], str]:
    """An interval, from the keys of its ends."""
    return lambda row: f"{show(row[low])} .. {show(row[high])}"


def scaled(key: str) -> Callable[[Row], str]:
    """The value with three digits and a prefix."""
    return lambda row: scaled_text(row[key])


def scaled_text(value: float, unit: str = "") -> str:
    """Up to three digits and a prefix: 1.24 M."""
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}{unit}".strip()


def fall_text(fall: float) -> str:
    """The share by which a training loss fell, and what it says where that is little."""
    return f"{fall:.0%}".replace("-", MINUS) + (", under-trained" if fall < UNDER_TRAINED else "")


def p_text(p: float) -> str:
    """A p value with three decimals, or four where three would be zero."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.4f}"


def seconds_text(seconds: float) -> str:
    """Three digits in the largest unit of which there are at least one and a half."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


# Which tables there are


def scores(data: ReportData) -> Table:
    """A row for each point and form, best first; points without a score stand last, with their
    reason."""
    ranked = data.ranked()
    unscored = [point for point in data.summary.settings if not point.intervals]
    rows = [_score_row(data, point, form) for point in ranked for form in point.intervals]
    rows += [_point_row(data, point) for point in unscored]
    columns = [
        Column("setting", "setting", plain("setting")),
        *_score_columns(data),
        *_comparison_columns(data),
        *_gain_columns("over no training", "untrained", "over the best such answer", "its 95 %"),
        *_metric_columns(rows),
        Column("seeds", "seeds", plain("seeds")),
        *_cost_columns(),
        *(Column(axis, f"axis {axis}", plain(f"axis {axis}")) for axis in data.summary.axes),
        Column("failed", "failed", plain("failed")),
    ]
    return Table(
        "scores",
        [column for column in columns if _is_told(column, rows)],
        rows,
    )


def _is_told(column: Column, rows: Sequence[Row]) -> bool:
    """Whether a column has anything to show."""
    told = (row for row in rows if column.key in row)
    return any(row[column.key] is not None or column.unknown for row in told)


def _score_columns(data: ReportData) -> list[Column]:
    return [
        Column(
            "form",
            "form",
            plain("form"),
            "streaming answers frame by frame; window sees all frames at once",
        ),
        Column(data.metric.name, "score", number("score"), _direction(data)),
        Column(
            "95 % interval",
            "low",
            span("low", "high"),
            "over seeds and videos" if data.path else "over videos",
            NO_INTERVAL,
        ),
    ]


def _comparison_columns(data: ReportData) -> list[Column]:
    over = f"over {one_reference(data)}, on the same clips; positive is better"
    columns = [
        *_gain_columns("gain", "gain", over),
        _p_column("two-sided, Holm-adjusted over all settings"),
        Column("over", "reference", plain("reference"), "its reference"),
        Column(
            "win / tie / loss",
            "wins",
            lambda row: f"{row['wins']} / {row['ties']} / {row['losses']}",
            "clips",
        ),
    ]
    if len(data.references) == 1:  # the column of the gain names it
        columns = [column for column in columns if column.title != "over"]
    return columns


def _gain_columns(title: str, key: str, about: str, interval: str = "its interval") -> list[Column]:
    """A gain and its interval, which the row has under `key` with `_low` and `_high`."""
    told = "95 %, paired; a dash: one video, or all clips are even"
    ends = span(f"{key}_low", f"{key}_high", signed_text)
    both = Column(interval, f"{key}_low", ends, told, NO_INTERVAL)
    return [Column(title, key, signed(key), about), both]


def _p_column(about: str) -> Column:
    return Column("adjusted p", "p_adjusted", lambda row: p_text(row["p_adjusted"]), about)


def _metric_columns(rows: Sequence[Row]) -> list[Column]:
    """The metrics of the task beside the one that counts."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("metric "))
    return [Column(key.removeprefix("metric "), key, number(key)) for key in keys]


def _cost_columns() -> list[Column]:
    return [
        Column("parameters", "parameters", scaled("parameters"), "trained"),
        Column("FLOPs", "flops", scaled("flops"), "of the trained part, one window forward"),
        Column(
            "training", "training_s", lambda row: seconds_text(row["training_s"]), "mean over seeds"
        ),
        Column(
            "latency",
            "latency_ms",
            lambda row: f"{row['latency_ms']:.2f} ms",
            "one streaming step after the encoder",
        ),
        Column(
            "state",
            "state_bytes",
            lambda row: scaled_text(row["state_bytes"], "B"),
            "of one stream",
        ),
    ]


def one_reference(data: ReportData) -> str:
    """The words for what gains are over: points may have a reference each."""
    return "its reference" if len(data.references) > 1 else data.summary.reference


def _direction(data: ReportData) -> str:
    return "higher is better" if data.metric.higher_is_better else "lower is better"


def _point_row(data: ReportData, point: PointSummary) -> dict[str, Any]:
    """The cells that the rows of a point have in common in every form."""
    row: dict[str, Any] = {"setting": point.name} | {
        f"axis {axis}": value for axis, value in point.values.items()
    }
    row |= {"seeds": len(point.runs) - len(point.failed)}
    row |= point.cost.model_dump(include=None if data.has_costs else {"parameters"})
    failed = "; ".join(f"{name}: {reason}" for name, reason in point.failed.items())
    return row | {
        "training_s": point.training_s,
        "is_reference": point.name in data.references,
        "failed": failed or None,
    }


def _score_row(data: ReportData, point: PointSummary, form: str) -> dict[str, Any]:
    row = _point_row(data, point) | {"form": form} | _interval(point.intervals[form])
    if form in point.comparisons:
        comparison = point.comparisons[form]
        row["reference"] = point.reference
        row |= _interval(comparison.gain, "gain", "gain_low", "gain_high")
        row |= comparison.model_dump(exclude={"gain"})
    if (best := data.baseline(point)) is not None:
        row["best_untrained"] = best
        gain = point.baselines[best].gains[form]
        row |= _interval(gain, "untrained", "untrained_low", "untrained_high")
    if form in point.pareto and data.has_costs:
        row["pareto"] = point.pareto[form]
    return row | _other_metrics(data, point.metrics[form])


def _other_metrics(data: ReportData, metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {f"metric {key}": value for key, value in metrics.items() if key != data.metric.name}


def baselines(data: ReportData) -> Table:
    """A row for each answer that needs no training, best first, and the gain over it of the best
    setting that was scored on the same clips of its cache."""
    rows: dict[tuple[str, str, float], Row] = {}
    for point in data.ranked():
        cache = data.evaluations[data.scored_runs(point)[0]].cache.name
        for name, each in point.baselines.items():
            row: dict[str, Any] = {"answer": name, "cache": cache, "best": point.name}
            row |= _interval(each.interval) | _other_metrics(data, each.metrics)
            row |= _interval(each.gains[data.form], "gain", "gain_low", "gain_high")
            rows.setdefault((cache, name, each.interval.score), row)
    sign = -1 if data.metric.higher_is_better else 1
    ordered = sorted(rows.values(), key=lambda row: sign * row["score"])
    columns = [
        Column("answer", "answer", plain("answer"), "learns nothing; trivial looks at nothing"),
        Column(data.metric.name, "score", number("score"), _direction(data)),
        Column("95 % interval", "low", span("low", "high"), "over videos", NO_INTERVAL),
        *_metric_columns(ordered),
        *_gain_columns("gain of the best", "gain", f"{data.form}; positive is better"),
        Column("best setting", "best", plain("best")),
    ]
    return Table("baselines", columns, ordered)


def controls(data: ReportData) -> Table:
    """A row for each point and form that is compared with controls, the largest of the least gains
    first: what holds over each control is due to what none of them sees."""
    rows = [
        _control_row(point, form, over)
        for point in data.ranked()
        for form, over in point.controls.items()
    ]
    rows.sort(key=lambda row: -row["gain"])
    columns = [
        Column("setting", "setting", plain("setting")),
        Column("form", "form", plain("form")),
        Column(
            "controls beaten",
            "beaten",
            lambda row: f"{row['beaten']} of {row['controls']}",
            "those over which the whole interval of the gain is above 0",
        ),
        *_gain_columns("least gain", "gain", "on the same clips; positive is better"),
        Column("over", "over", plain("over"), "the control over which the gain is least"),
        _p_column("two-sided, Holm-adjusted over all that are compared with this control"),
    ]
    return Table("controls", columns, rows)


def _control_row(
    point: PointSummary, form: str, over: Mapping[str, ReferenceComparison]
) -> dict[str, Any]:
    hardest, least = least_gain(over)
    row: dict[str, Any] = {"setting": point.name, "form": form, "controls": len(over)}
    row |= {"beaten": sum(each.gain.ends[0] > 0 for each in over.values()), "over": hardest}
    row |= _interval(least.gain, "gain", "gain_low", "gain_high")
    row |= least.model_dump(exclude={"gain"})
    for name, each in over.items():
        ends = f"gain over {name}", f"low over {name}", f"high over {name}"
        row |= _interval(each.gain, *ends)
    return row


def _interval(interval: Interval, *names: str) -> dict[str, float | None]:
    names = names or ("score", "low", "high")
    return dict(zip(names, (interval.score, interval.low, interval.high), strict=True))


def runs(data: ReportData) -> Table:
    """A row for each run, those that were stopped included."""
    rows = [_run_row(data, point, name) for point in data.summary.settings for name in point.runs]
    forms = dict.fromkeys(form for each in data.evaluations.values() for form in each.forms)
    columns = [
        Column("run", "run", plain("run")),
        Column("temporal", "temporal", plain("temporal")),
        *(
            Column(f"{data.metric.name}, {form}", f"score {form}", number(f"score {form}"))
            for form in forms
        ),
        Column("seed", "seed", plain("seed")),
        Column("steps", "steps", lambda row: f"{row['steps']:,}"),
        Column(
            "loss fell by",
            "loss_fall",
            lambda row: fall_text(row["loss_fall"]),
            "the training loss, as a share of that of the answer that does not look, or else of "
            "the first steps",
        ),
        Column("parameters", "parameters", scaled("parameters"), "trained"),
        Column("clips", "clips", plain("clips"), "scored"),
        Column("skipped", "skipped", plain("skipped"), "clips that the cache does not cover"),
        Column("stopped because", "failed", plain("failed")),
    ]
    return Table(
        "runs",
        [column for column in columns if _is_told(column, rows)],
        rows,
    )


def _run_row(data: ReportData, point: PointSummary, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run": name, "setting": point.name, "failed": point.failed.get(name)}
    if name not in data.evaluations:
        return row
    result, header = data.evaluations[name], data.runs[name].header
    row |= {
        "temporal": result.temporal,
        "seed": header.recipe["training"]["seed"],
        "steps": result.checkpoint.step,
        "loss_fall": result.loss_fall,
    }
    row |= {
        "parameters": sum(header.parameters.values()),
        "clips": result.clips_scored,
        "skipped": result.clips_skipped,
    }
    return row | {
        f"score {form}": scores[data.metric.name].score for form, scores in result.forms.items()
    }


def coverage(splits: Mapping[str, SplitCoverage]) -> Table:
    """A row for each split of a cache, from `pipeline.cache.status`."""
    facts = {split: counts.model_dump(exclude={"first_hole"}) for split, counts in splits.items()}
    rows = [{"split": split, **counts} for split, counts in facts.items()]

    def of(done: str, planned: str) -> Callable[[Row], str]:
        return lambda row: f"{row[done]:,} of {row[planned]:,}"

    columns = [
        Column("split", "split", plain("split")),
        Column("clips", "covered", of("covered", "clips"), "that can be read whole"),
        Column("videos", "whole", of("whole", "videos"), "stored whole"),
        Column(
            "frames",
            "frames",
            of("frames", "expected"),
            "stored, of those that the files' headers promise",
        ),
    ]
    return Table("coverage", columns, rows)


def failures(groups: Sequence[FailureGroup]) -> Table:
    """Videos of a cache that are not, or not wholly, stored, by reason."""
    rows = [
        {
            "count": len(group.videos),
            "reason": group.reason,
            "videos": ", ".join(group.videos),
        }
        for group in groups
    ]
    columns = [
        Column("videos", "count", plain("count")),
        Column("reason", "reason", plain("reason")),
        Column(
            "which",
            "videos",
            lambda row: row["videos"] if len(row["videos"]) < 90 else row["videos"][:90] + " ...",
        ),
    ]
    return Table("failures", columns, rows)
