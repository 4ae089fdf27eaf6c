"""`make gpu`: runs every part, each within its own time and all within theirs, and writes down what is known after each."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from support.paths import ROOT

from gpu import machine, parts, record, running, wheels

LEAST_S = 10.0
"""With less time left, no part begins."""


def say(line: str) -> None:
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def asked(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu tries every part without a GPU")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU does in seconds")
    parser.add_argument("--out", default=os.environ.get("OUT") or "gpu", help="folder of results")
    parser.add_argument("--only", default="", help="parts with this in their names")
    parser.add_argument("--wheels", default="", help="folder of wheels of mamba-ssm to try")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """0 where every part that had its time went well."""
    begin, given = time.monotonic(), asked(words)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "STILLFRAME_TEST_DEVICE": given.device,
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        ).rstrip(os.pathsep),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    with tempfile.TemporaryDirectory(prefix="gpu") as folder:
        scratch = Path(folder)
        kernels = wheels.tried(given.wheels, given.device, scratch, environment)
        report = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": given.device,
            "small": given.small,
            "seconds": given.seconds,
            "kernels": kernels,
            "machine": machine.facts(),
            "parts": [],
        }
        todo = [
            part
            for part in parts.everything(given.device, given.small, scratch)
            if given.only in part.name
        ]
        for number, part in enumerate(todo, 1):
            left_s = given.seconds - (time.monotonic() - begin)
            if left_s < LEAST_S:
                found = running.not_begun(part)
            else:
                found = running.run(part, min(part.limit_s, left_s), scratch, environment)
            report["parts"].append(found)
            record.write(report, out)
            say(
                f"{number:>2}/{len(todo)} {found['seconds']:>6.1f} s  {found['outcome']:<12}  {part.name}"
            )
        record.write(report, out)
    bad = [found for found in report["parts"] if found["outcome"] in ("failed", "out of time")]
    say(
        f"{len(todo)} parts, {len(bad)} went wrong; {out / record.MARKDOWN} and {out / record.JSON}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
