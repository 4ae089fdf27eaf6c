"""`make chaos`: every scenario at length, and a table."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch

from chaos import scenarios
from chaos.harness import Server, Site, Tally

COLUMNS = "{:<50} {:>5} {:>6} {:>7} {:>14} {:>8} {:>10} {:>5}  {}"
HEAD = ("scenario", "blows", "rounds", "frames", "encoded again", "allowed", "identical", "s", "")


def tallies(tiny: Site, small: Site, here: Server) -> Iterator[Callable[[], Tally]]:
    """`tiny`: two stores, for what is done at every operation; `small`: 24 stores, for blows at random."""
    yield lambda: scenarios.killed_at_operations(tiny, here, count(1))
    for workers in (1, 2, 4):
        yield lambda n=workers: scenarios.killed_at_random(
            small,
            f"{n} workers, one killed at random",
            lambda out, number: small.worker(here, out, number),
            20,
            n,
        )
    for at_once in (1, 2):
        yield lambda n=at_once: scenarios.killed_at_random(
            small,
            f"{n} extract, one killed at random",
            lambda out, _: small.extraction(here, out),
            20,
            n,
            laid_out=False,
        )
    yield lambda: scenarios.all_killed(small, here, rounds=1, workers=3)
    yield lambda: scenarios.decoders_killed(small, here, 20)
    for at_once in (2, 5):
        yield lambda n=at_once: scenarios.started_at_once(small, here, 1, n)
    yield lambda: scenarios.stopped_and_continued(tiny, here, range(1, 60, 5))
    yield lambda: scenarios.taken_over_then_lost(tiny, here, range(2, 60, 5))
    yield lambda: scenarios.refused_at_operations(tiny, here, count(1, 3))
    yield lambda: scenarios.power_cut(tiny, here, every=6)
    yield lambda: scenarios.wrong_clocks(tiny, here, range(10, 70, 10))
    if there := scenarios.other_host():
        yield lambda: scenarios.on_two_hosts(small, here, there, 6)
        there.close()
    if scenarios.may_mount():
        yield lambda: scenarios.on_small_disks(tiny, here, range(4096, 60 * 4096, 6 * 4096))
        yield lambda: scenarios.on_a_read_only_disk(tiny, here, range(1, 80, 13))


def say(line: str) -> None:
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def main() -> int:
    torch.set_num_threads(2)
    kills, bad, begin_s = 0, 0, time.monotonic()
    say(COLUMNS.format(*HEAD))
    with tempfile.TemporaryDirectory() as folder:
        here = Server()
        tiny = Site(Path(folder) / "tiny", [9, 8, 10], 20)
        small = Site(Path(folder) / "small", [22 + number % 7 for number in range(24)], 30)
        for run in tallies(tiny, small, here):
            at_s = time.monotonic()
            tally = run()
            kills += tally.kills
            bad += tally.again > tally.spare or tally.identical < tally.rounds
            facts = (tally.kills, tally.rounds, tally.wanted.total(), tally.again, tally.spare)
            identical = "yes" if tally.identical == tally.rounds else "NO"
            say(
                COLUMNS.format(
                    tally.scenario, *facts, identical, round(time.monotonic() - at_s), tally.note
                )
            )
        here.close()
    say(f"{kills} blows, {bad} scenarios above what is allowed, {time.monotonic() - begin_s:.0f} s")
    return 1 if bad or kills < 200 else 0


if __name__ == "__main__":
    sys.exit(main())
