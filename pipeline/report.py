"""Runs side by side: one HTML page that needs nothing else, the same table as Markdown and CSV, and the plots as PNG files."""

from __future__ import annotations

import base64
import csv
import html
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.errors import BadInput
from pipeline.evaluate import read_evaluation
from pipeline.run import Run, read_metrics

COLUMNS = ("run", "temporal", "trained parameters", "steps", "form", "score", "95 % interval", "clips", "skipped")
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
"""


def report(runs: Sequence[Run], out: Path, split: str = "val") -> Path:
    """Writes `report.html`, `report.md`, `scores.csv` and the plots into `out`; returns the path of the page.

    Raises BadInput for runs that have not been evaluated on `split`.
    """
    results = [read_evaluation(run.path, split) for run in runs]
    missing = [str(run.path) for run, result in zip(runs, results, strict=True) if result is None]
    if missing or not runs:
        raise BadInput(f"not evaluated on split '{split}': {', '.join(missing)}", f"stillframe evaluate RUN --split {split}")
    done = [result for result in results if result is not None]
    out.mkdir(parents=True, exist_ok=True)
    figures = {"scores": plot_scores(done), "learning": plot_learning(runs)}
    labels = runs[0].header.labels
    if labels and all(result["task"] == "classify" for result in done):
        figures["confusion"] = plot_confusions(runs, done, labels)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=130, bbox_inches="tight")
        plt.close(figure)
    rows = [row for run, result in zip(runs, done, strict=True) for row in table(run, result)]
    _write_csv(out / "scores.csv", rows)
    metric = done[0]["metrics"][0]["name"]
    title = f"{metric} on split '{split}', trivial answer {done[0]['trivial'][metric]:.3f}"
    (out / "report.md").write_text(_markdown(title, rows, list(figures)), encoding="utf-8")
    page = out / "report.html"
    page.write_text(_html(title, rows, {name: (out / f"{name}.png").read_bytes() for name in figures}, runs), encoding="utf-8")
    return page


def table(run: Run, result: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per form, cells as text, in the order of COLUMNS."""
    parameters = sum(run.header.parameters.values())
    return [
        (
            result["run"],
            result["temporal"],
            f"{parameters:,}",
            str(result["checkpoint"]["step"]),
            form,
            f"{values['score']:.3f}",
            f"{values['low']:.3f} .. {values['high']:.3f}",
            str(result["clips_scored"]),
            str(result["clips_skipped"]),
        )
        for form, values in of_first_metric(result).items()
    ]


def of_first_metric(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """form -> score and interval of the metric that counts."""
    name = result["metrics"][0]["name"]
    return {form: scores[name] for form, scores in result["forms"].items()}


def plot_scores(results: Sequence[dict[str, Any]]) -> Figure:
    """Score and interval of every run and form, against the trivial score."""
    figure, axes = plt.subplots(figsize=(7, 1 + 0.45 * sum(len(result["forms"]) for result in results)))
    names: list[str] = []
    for result in results:
        for form, values in of_first_metric(result).items():
            colour = "tab:blue" if form == "streaming" else "tab:orange"
            axes.plot(
                [values["low"], values["high"]], [len(names)] * 2, color=colour, linewidth=5, alpha=0.35, solid_capstyle="round"
            )
            axes.plot(values["score"], len(names), "o", color=colour)
            names.append(f"{result['run']}, {form}")
    metric = results[0]["metrics"][0]["name"]
    axes.axvline(results[0]["trivial"][metric], color="grey", linestyle=":", label="trivial answer")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}, 95 % interval over videos")
    axes.legend(loc="best")
    return figure


def plot_learning(runs: Sequence[Run]) -> Figure:
    """Loss of every run over its steps, and the scores measured on the way."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for run in runs:
        lines = read_metrics(run.path)
        if not lines:
            continue
        steps = [line["step"] for line in lines]
        smooth = max(1, len(lines) // 50)
        losses = np.convolve([line["loss"] for line in lines], np.ones(smooth) / smooth, "valid")
        (drawn,) = left.plot(steps[smooth - 1 :], losses, label=run.path.name)
        scored = [line for line in lines if "val" in line]
        for form, style in (("streaming", "-o"), ("window", "--s")):
            points = [(line["step"], line["val"][form]) for line in scored if form in line["val"]]
            if points:
                right.plot(
                    *zip(*points, strict=True), style, color=drawn.get_color(), markersize=3, label=f"{run.path.name}, {form}"
                )
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="score on val")
    for axes in (left, right):
        if axes.lines:
            axes.legend(fontsize="x-small")
    return figure


def plot_confusions(runs: Sequence[Run], results: Sequence[dict[str, Any]], labels: Sequence[str]) -> Figure:
    """Confusion matrix of every run in its first form: truth down, answer across, rows sum to one; recalls are written in."""
    size = min(12, 1.6 + 0.32 * len(labels))
    figure, grid = plt.subplots(1, len(runs), figsize=(size * len(runs), size), squeeze=False, sharey=True)
    for axes, run, result in zip(grid[0], runs, results, strict=True):
        form = next(iter(result["forms"]))
        truth = [labels.index(clip["label"]) for clip in result["clips"].values()]
        file = run.path / f"answers-{result['split']}.safetensors"
        try:
            answers = load_file(file)[form].argmax(-1)
        except (OSError, SafetensorError, KeyError) as error:
            raise BadInput(
                f"{file} is damaged: {error}", f"stillframe evaluate {run.path} --split {result['split']}"
            ) from error
        truth_repeated = np.repeat(truth, len(answers) // len(truth))
        counts = np.zeros((len(labels), len(labels)))
        np.add.at(counts, (truth_repeated, answers), 1)
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for place, recall in enumerate(shares.diagonal()):
            ink = "white" if recall > 0.5 else "black"
            axes.text(place, place, f"{recall:.2f}", ha="center", va="center", fontsize="x-small", color=ink)
        axes.set_title(f"{result['run']}\n{form}", fontsize="small")
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize="small")
        axes.set_yticks(range(len(labels)), labels, fontsize="small")
    grid[0][0].set_ylabel("truth")
    return figure


def _write_csv(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def _markdown(title: str, rows: Sequence[tuple[str, ...]], figures: Sequence[str]) -> str:
    lines = [f"# {title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += itertools.chain.from_iterable(("", f"![{name}]({name}.png)") for name in figures)
    return "\n".join(lines) + "\n"


def _html(title: str, rows: Sequence[tuple[str, ...]], figures: dict[str, bytes], runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    pictures = "".join(
        f'<h2>{name.capitalize()}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in figures.items()
    )
    first = runs[0].header
    facts = [f"cache {first.cache.name}", f"codec {first.cache.codec}"]
    facts += [f"{tool} {found}" for tool, found in first.versions.items()]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>stillframe</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{pictures}'
        f"<h2>Provenance</h2><p>{html.escape(', '.join(facts))}</p></html>\n"
    )
