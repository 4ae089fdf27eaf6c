"""The two files of results, written anew after every part: all of it as JSON, and what one reads as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu import tables

JSON, MARKDOWN = "gpu.json", "gpu.md"


def write(report: dict[str, Any], out: Path) -> None:
    """Whoever is killed leaves the files of the part before."""
    for name, text in ((JSON, json.dumps(report, indent=1)), (MARKDOWN, markdown(report))):
        aside = out / f".{name}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(out / name)


def markdown(report: dict[str, Any]) -> str:
    facts, parts = report["machine"], report["parts"]
    title = facts.get("GPU", facts.get("processor", "a machine"))
    small = ", at small sizes" if report["small"] else ""
    lines = [f"# stillframe on {title}", ""]
    lines += [
        f"{report['date']}, device {report['device']}{small}. mamba_ssm: {report['kernels']}."
    ]
    lines += ["", *table(("machine", ""), facts.items())]
    lines += ["", "## Parts", ""]
    lines += table(
        ("part", "ended", "rc", "s", "says"),
        [
            (
                part["part"],
                part["outcome"],
                "" if part["rc"] is None else part["rc"],
                part["seconds"],
                _headline(part),
            )
            for part in parts
        ],
    )
    for section in (_tests, _benches, _failures):
        lines += section(parts)
    return "\n".join(lines) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table of Markdown; numbers as they are, words with nothing that would break it."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(columns), line(["---"] * len(columns)), *map(line, rows)]


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _headline(part: dict[str, Any]) -> str:
    if "tests" in part:
        counts, worst = part["tests"]["counts"], part["tests"]["worst"]
        said = ", ".join(f"{count} {how}" for how, count in counts.items()) or "no test ended"
        return said + (f"; largest difference {worst['difference']:.1e}" if worst else "")
    return tables.headline(part) if "figures" in part else ""


def _tests(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is not as it should be, and what was left out and why."""
    lines = [line for part in parts for line in part.get("tests", {}).get("every", ())]
    if not lines:
        return
    failed = [line for line in lines if line["outcome"] == "failed"]
    skipped: dict[str, int] = {}
    for line in lines:
        if line["outcome"] == "skipped":
            skipped[line.get("reason", "")] = skipped.get(line.get("reason", ""), 0) + 1
    differences = [line for line in lines if line.get("difference", 0) > 0]
    differences.sort(key=lambda line: -float(line["difference"]))
    yield from ("", "## Tests", "")
    yield f"{len(lines)} ended, {len(failed)} failed, {sum(skipped.values())} were skipped."
    if failed:
        yield from ("", *table(("failed", "why"), [(e["test"], e["reason"]) for e in failed]))
    if skipped:
        yield from ("", *table(("skipped, because", "tests"), skipped.items()))
    if differences:
        rows = [(line["test"], f"{line['difference']:.1e}") for line in differences[:10]]
        yield from ("", *table(("largest differences from the CPU", "of the largest number"), rows))


def _benches(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        if "figures" not in part:
            continue
        yield from ("", f"## {part['part']}", "", f"`{part['command']}`")
        for columns, rows in tables.of(part):
            yield from ("", *table(columns, rows))


def _failures(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        if "tail" in part:
            yield from ("", f"## {part['outcome']}: {part['part']}", "", f"`{part['command']}`")
            yield from ("", "```text", *(part["tail"] or ["(it said nothing)"]), "```")
