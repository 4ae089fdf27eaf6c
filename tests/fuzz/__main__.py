"""`make fuzz`: attempts with ever new seeds for some minutes. A failure prints the seed that makes it again: `make fuzz SEED=...`."""

from __future__ import annotations

import secrets
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from support.commands import digest
from support.material import LENGTHS, address_video

from fuzz.site import Site, attempt


def say(line: str) -> None:
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def main(seconds: float, seed: int | None) -> int:
    torch.set_num_threads(1)
    codes: Counter[int] = Counter()
    failed = attempts = 0
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name)
        for number, (source, frames) in enumerate(LENGTHS.items()):
            address_video(folder / "videos" / source, number, frames)
        (folder / "site").mkdir()
        site, begin = Site(folder / "site", folder / "videos"), time.monotonic()
        while attempts == 0 or (seed is None and time.monotonic() - begin < seconds):
            now = secrets.randbits(48) if seed is None else seed
            attempts += 1
            try:
                codes.update(result.code for result in attempt(site, folder / "attempt", now))
            except Exception:
                failed += 1
                say(f"SEED={now}\n{traceback.format_exc()}")
        if digest(site.folder) != site.before:
            failed += 1
            say("files beside what was damaged were changed")
    counts = ", ".join(f"{count} ended with {code}" for code, count in sorted(codes.items()))
    say(f"{attempts} attempts, {failed} failed; of the commands {counts}")
    return 1 if failed else 0


if __name__ == "__main__":
    given = sys.argv[2] if len(sys.argv) > 2 else ""
    sys.exit(main(float(sys.argv[1]), int(given) if given else None))
