"""What the figures of each bench come to: tables of a few numbers, and one sentence."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Figures = dict[str, Any]
Table = tuple[Sequence[str], list[tuple[Any, ...]]]
PASSES = ("forward", "forward_backward")


def of(part: Figures) -> list[Table]:
    """The tables of a part; none of one that is not known here."""
    made = KINDS.get(_kind(part))
    return made[0](part["figures"]) if made else []


def headline(part: Figures) -> str:
    made = KINDS.get(_kind(part))
    return made[1](part["figures"]) if made else ""


def _kind(part: Figures) -> str:
    words = part["command"].split()
    return words[2] if words[:2] == ["stillframe", "bench"] else ""


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def _mb(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def _temporal(figures: Figures) -> list[Table]:
    made: list[Table] = []
    if modules := figures.get("modules"):
        columns = ("module", "forward, ms", "both, ms", "TFLOP/s forward", "peak forward, MB")
        columns += ("peak both, MB", "state, MB", "stream, frames/s", "last / first")
        rows = [
            (
                name,
                *(_ms(facts[key]["median_s"]) for key in PASSES),
                f"{facts['forward']['flop_per_s'] / 1e12:.3g}",
                *(_mb(facts[key]["peak_bytes"]) for key in PASSES),
                _mb(facts["state_bytes"]),
                f"{facts['stream']['frames_per_s']:.0f}",
                f"{facts['stream']['last_over_first']:.3f}",
            )
            for name, facts in modules.items()
        ]
        made.append((columns, rows))
    for name, others in (("mamba", "transformers"), ("gated_mamba_mix", "mamba_ssm")):
        if name in figures:
            made.append(_against(name, figures[name], others))
    return made


def _against(name: str, figures: Figures, others: str) -> Table:
    """A module of ours beside another implementation of it."""
    columns = (
        name,
        "forward, ms",
        "both, ms",
        "peak forward, MB",
        "peak both, MB",
        "of matrix peak",
    )
    rows: list[tuple[Any, ...]] = [
        (
            who,
            *(_ms(figures[who][key]["median_s"]) for key in PASSES),
            *(_mb(figures[who][key]["peak_bytes"]) for key in PASSES),
            ", ".join(
                f"{figures[who][key]['share_of_matrix_peak']:.3f}"
                for key in PASSES
                if "share_of_matrix_peak" in figures[who][key]
            ),
        )
        for who in ("stillframe", others)
        if who in figures
    ]
    if ratios := figures.get("ratios"):
        times, peaks = ([ratios[key][what] for key in PASSES] for what in ("time", "peak"))
        cells = (*times, *(peak or "" for peak in peaks), "")
        rows.append((f"{others} / stillframe", *cells))
    differences = [
        (f"{key.replace('_', ' ')}", f"{figures[key]:.1e}")
        for key in ("output_difference", "gradient_difference")
        if key in figures
    ]
    rows += [(*pair, "", "", "", "") for pair in differences]
    if "missing" in figures:
        rows.append((f"mamba_ssm cannot be used: {figures['missing']}", *[""] * 5))
    return columns, rows


def _temporal_headline(figures: Figures) -> str:
    if ratios := figures.get("mamba", {}).get("ratios"):
        times = " and ".join(f"{ratios[key]['time']:.1f}" for key in PASSES)
        return f"transformers takes {times} times as long, forward and both"
    fastest = max(figures["modules"].items(), key=lambda pair: pair[1]["stream"]["frames_per_s"])
    return f"{len(figures['modules'])} modules; streams up to {fastest[1]['stream']['frames_per_s']:.0f} frames/s"


def _extract(figures: Figures) -> list[Table]:
    return [(("frames/s", "median", "min", "max"), [tuple(row) for row in figures["rows"]])]


def _extract_headline(figures: Figures) -> str:
    whole = figures["rows"][1][1]
    return f"{figures['title']}: {whole} frames/s, {figures['ratio']:.3f} of the bare encoder"


def _epoch(figures: Figures) -> list[Table]:
    ways = ("cached", "uncached")
    rows: list[tuple[Any, ...]] = [
        ("an epoch, s", *(figures["epochs"][way]["median_s"] for way in ways)),
        ("a step, s", *(figures["epochs"][way]["step_s"] for way in ways)),
    ]
    parts = figures["parts_of_a_step"]
    rows += [
        (f"of a step: {name}, s", *(parts[way].get(name, "") for way in ways))
        for name in dict.fromkeys(name for way in ways for name in parts[way])
    ]
    rows.append(("all runs and the extraction, s", *(figures["runs"][way] for way in ways)))
    rows.append(("the same as one sweep, s", figures["runs"]["sweep"], ""))
    return [(("", "from the cache", "with the encoder"), rows)]


def _epoch_headline(figures: Figures) -> str:
    return f"an epoch with the encoder takes {figures['ratio']:.2f} times as long"


def _step(figures: Figures) -> list[Table]:
    ways = ("cached", "resident")
    rows: list[tuple[Any, ...]] = [
        ("a step, ms", *(_ms(figures["steps"][way]["median_s"]) for way in ways))
    ]
    rows += [
        (f"of it {part}, ms", *(_ms(figures["parts"][way][part]) for way in ways))
        for part in ("data", "tokens", "steps")
    ]
    return [(("", "from the cache", "resident"), rows)]


def _step_headline(figures: Figures) -> str:
    return f"a step from the cache takes {figures['ratio']:.3f} of one on resident tokens"


def _plan(figures: Figures) -> list[Table]:
    rows = [
        (
            facts["frames"],
            what,
            statistics.median(facts[what]["planned"]),
            statistics.median(facts[what]["measured"]),
            facts[what]["ratio"],
        )
        for facts in figures["sizes"].values()
        for what in ("extract_s", "disk_bytes", "cached_epoch_s", "uncached_epoch_s")
    ]
    return [(("frames", "", "planned", "measured", "planned / measured"), rows)]


def _plan_headline(figures: Figures) -> str:
    rows = _plan(figures)[0][1]
    return "planned / measured " + ", ".join(f"{row[4]:.2f}" for row in rows)


def _sweep(figures: Figures) -> list[Table]:
    rows = [
        (case, facts["together"]["median_s"], facts["alone"]["median_s"], facts["ratio"])
        for case, facts in figures["cases"].items()
    ]
    return [(("case", "side by side, s", "one by one, s", "ratio"), rows)]


def _sweep_headline(figures: Figures) -> str:
    return ", ".join(f"{case} {facts['ratio']:.2f}" for case, facts in figures["cases"].items())


def _forecast(figures: Figures) -> list[Table]:
    rows = [
        (name, _ms(step["median_s"]), step["ratio"], _mb(step["peak_bytes"]))
        for name, step in figures["steps"].items()
    ]
    return [(("step", "ms", "ratio", "peak, MB"), rows)]


def _forecast_headline(figures: Figures) -> str:
    return f"{figures['steps']['as in the recipe']['ratio']:.2f} of a classification"


def _read(figures: Figures) -> list[Table]:
    hot, cold = figures["readers"]["hot"], figures["readers"]["cold"]
    rows = [
        (name, hot[name]["gb_per_s"] if name in hot else "", facts["gb_per_s"], facts["ratio"])
        for name, facts in cold.items()
    ]
    return [(("", "hot GB/s", "cold GB/s", f"x {figures['references']['cold']}"), rows)]


def _read_headline(figures: Figures) -> str:
    ours = next(iter(figures["readers"]["cold"].values()))
    return f"cold {ours['gb_per_s']:.2f} GB/s"


def _codecs(figures: Figures) -> list[Table]:
    rows = [
        (
            name,
            facts["bytes_per_frame"],
            f"{facts['cosine_mean']:.6f}",
            facts["encode"]["gb_per_s"],
            facts["decode"]["gb_per_s"],
        )
        for name, facts in figures["codecs"].items()
    ]
    return [(("codec", "bytes/frame", "cosine", "encode GB/s", "decode GB/s"), rows)]


def _codecs_headline(figures: Figures) -> str:
    best = max(facts["decode"]["gb_per_s"] for facts in figures["codecs"].values())
    return f"decode up to {best:.1f} GB/s"


KINDS: dict[str, tuple[Callable[[Figures], list[Table]], Callable[[Figures], str]]] = {
    "temporal": (_temporal, _temporal_headline),
    "extract": (_extract, _extract_headline),
    "step": (_step, _step_headline),
    "epoch": (_epoch, _epoch_headline),
    "plan": (_plan, _plan_headline),
    "sweep": (_sweep, _sweep_headline),
    "forecast": (_forecast, _forecast_headline),
    "read": (_read, _read_headline),
    "codecs": (_codecs, _codecs_headline),
}
"""Word after `bench` -> its tables, and its sentence."""
