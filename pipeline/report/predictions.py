"""The answers of the best point and its reference are drawn: confusion matrices, or how the scores
of clips are spread."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pipeline.config.tensor_files import load_tensors
from pipeline.errors import BadInput
from pipeline.experiments.summary import PointSummary
from pipeline.models.tasks.parts.fonts import readable
from pipeline.report.source import ReportData
from pipeline.report.style import COLOURS, HALF_INCHES, colours_of, legend, panel
from pipeline.train.evaluation import Evaluation
from pipeline.train.run import Run

NUMBERS, NAMES = 12, 40
"""Classes up to which a confusion matrix has numbers, and names."""
BINS = 30


def answers(data: ReportData) -> dict[str, Figure]:
    """Name -> figure: confusion matrices of the best point and its reference for a classification,
    else how clips score in both."""
    shown = data.compared()
    if data.summary.task == "classify":
        names = ["confusion", "confusion_reference"]
        return {name: confusion(data, point) for name, point in zip(names, shown, strict=False)}
    figures = {"clips": histogram(data, shown)}
    return figures | ({"clip_by_clip": pairs(data, *shown)} if len(shown) == 2 else {})


def confusion(data: ReportData, point: PointSummary) -> Figure:
    """Truth down, answer across, all seeds together; rows sum to one."""
    runs = data.scored_runs(point)
    labels = data.runs[runs[0]].header.labels
    counts = np.sum(
        [_counts(data.runs[name], data.evaluations[name], data.form, labels) for name in runs],
        axis=0,
    )
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure, axes = panel(HALF_INCHES, 4.9)
    # One ink, more or less of it: right on any background.
    cells = np.dstack(
        [np.broadcast_to(to_rgb(COLOURS["accent"]), (*shares.shape, 3)), 0.06 + 0.94 * shares]
    )
    axes.imshow(cells, interpolation="nearest", aspect="equal")
    if len(labels) <= NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                ink = "white" if share > 0.5 else COLOURS["ink"]
                axes.text(
                    column, row, f"{share:.2f}", ha="center", va="center", fontsize=8, color=ink
                )
    if len(labels) <= NAMES:
        names, size = list(map(readable, labels)), 8.5 if len(labels) <= NUMBERS else 6
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    else:
        axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(title=f"{readable(point.name)}, {data.form}", xlabel="answer", ylabel="truth")
    return figure


def _counts(run: Run, result: Evaluation, form: str, labels: tuple[str, ...]) -> np.ndarray:
    """(K, K) numbers of windows of K classes: truth down, answer across. Raises BadInput where the
    answers are damaged."""
    file = run.path / f"answers-{result.split}.safetensors"
    again = f"stillframe evaluate {run.path} --split {result.split}"
    answers = load_tensors(file, "the file of answers", again).get(form)
    truth = [labels.index(clip.label) for clip in result.clips.values() if clip.label in labels]
    windows = [round(clip.weight) for clip in result.clips.values()]  # each weighs 1
    if (
        answers is None
        or answers.ndim != 2
        or answers.shape[1] != len(labels)
        or not truth
        or len(truth) != len(result.clips)
        or len(answers) != sum(windows)
    ):
        raise BadInput(f"{file} does not hold the answers for the clips of the evaluation", again)
    class_of_answer = answers.argmax(-1).numpy()
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (np.repeat(truth, windows), class_of_answer), 1)
    return counts


def histogram(data: ReportData, shown: list[PointSummary]) -> Figure:
    """A histogram of the scores of clips, each the mean over seeds."""
    figure, axes = panel(HALF_INCHES, 3.7)
    colours = colours_of(data)
    scores = {point.name: clip_scores(data, point) for point in shown}
    everything = np.concatenate(list(scores.values()))
    edges = np.linspace(everything.min(), everything.max(), BINS + 1).tolist()
    for name, values in scores.items():
        axes.hist(values, edges, histtype="stepfilled", color=colours[name], alpha=0.22)
        axes.hist(values, edges, histtype="step", color=colours[name], linewidth=1.6, label=name)
        axes.axvline(float(np.median(values)), color=colours[name], linewidth=1, linestyle="--")
    axes.set(xlabel=f"{data.metric.name} of a clip, {data.form}; dashed: median", ylabel="clips")
    legend(figure, axes)
    return figure


def pairs(data: ReportData, best: PointSummary, reference: PointSummary) -> Figure:
    """Every clip's score in both, on the mean over seeds: what lies off the diagonal is where they
    differ."""
    figure, axes = panel(HALF_INCHES, 3.95)
    x, y = clip_scores(data, reference), clip_scores(data, best)
    axes.axline(
        (float(x[0]), float(x[0])), slope=1, color=COLOURS["muted"], linewidth=1, linestyle="--"
    )
    colour = colours_of(data)[best.name]
    axes.plot(
        x,
        y,
        "o",
        color=colour,
        markersize=4,
        alpha=max(0.15, min(0.7, 60 / len(x))),
        markeredgewidth=0,
    )
    names = (f"{readable(point.name)}, {data.metric.name} of a clip" for point in (reference, best))
    axes.set(**dict(zip(("xlabel", "ylabel"), names, strict=True)))
    return figure


def clip_scores(data: ReportData, point: PointSummary) -> np.ndarray:
    """(C,) score of every clip, mean over seeds."""
    tables = [data.evaluations[name].clips.values() for name in data.scored_runs(point)]
    rows = [[clip.scores[data.form] for clip in table] for table in tables]
    scores: np.ndarray = np.mean(rows, axis=0)
    return scores
