"""What is done to extractions. Every scenario checks after every blow that what is vouched for is sound, and in the end that the
cache is the undisturbed one; it returns what it cost.
"""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

from chaos.harness import IMPATIENT, OTHER_HOST, STILL, Child, Server, Site, Tally, wait_for

KILLED = -signal.SIGKILL
ONE_SENTENCE = re.compile(r"error: [^\n]+; next: [^\n]+\n")
TEN_YEARS_S = 3.2e8

Start = Callable[[Path, int], Child]
"""(folder of caches, number of the process) -> an extraction of the site."""


def killed_at_operations(site: Site, server: Server, operations: Iterable[int]) -> Tally:
    """An extraction dies before its n-th file operation, for each n that there is; another one goes on."""
    tally = Tally("killed before the n-th file operation")
    for operation in operations:
        out = site.new()
        child = site.extraction(server, out, timing=STILL, kill_at=operation)
        status = child.wait()
        if status == 0:  # it has fewer operations
            site.judge(out, tally)
            break
        assert status == KILLED, child.stderr.read_text()
        _sound(site, out, tally)
        tally.kills += 1
        tally.spare += site.cost_of_a_kill
        site.finish(server, out)
        site.judge(out, tally)
    return tally


def killed_at_random(
    site: Site,
    scenario: str,
    start: Start,
    kills: int,
    at_once: int,
    laid_out: bool = True,
    seed: int = 0,
) -> Tally:
    """Several processes at one cache; after every few stores one is killed and another one started."""
    tally, dice = Tally(scenario), random.Random(seed)
    while tally.kills < kills:
        out = site.new(laid_out)
        living = [start(out, number) for number in range(at_once)]
        while any(child.ended() is None for child in living):
            _some_more_stores(site, out, living, dice)
            number = dice.randrange(at_once)
            if tally.kills < kills and living[number].ended() is None and living[number].kill():
                tally.kills += 1
                tally.spare += site.cost_of_a_kill
                _sound(site, out, tally)
                living[number] = start(out, number)
        assert [child.ended() for child in living] == [0] * at_once, living[0].stderr.read_text()
        site.judge(out, tally)
    return tally


def all_killed(site: Site, server: Server, rounds: int, workers: int) -> Tally:
    """All workers of a cache die together, as on a machine that is switched off; then they are started again."""
    tally, dice = Tally(f"all of {workers} workers killed together"), random.Random(workers)
    for _ in range(rounds):
        out = site.new(laid_out=True)
        while True:
            living = [site.worker(server, out, number) for number in range(workers)]
            _some_more_stores(site, out, living, dice)
            victims = [child for child in living if child.ended() is None]
            if not victims:
                break
            kills = sum([child.kill() for child in victims])
            tally.kills += kills
            tally.spare += kills * site.cost_of_a_kill
            _sound(site, out, tally)
        site.judge(out, tally)
    return tally


def decoders_killed(site: Site, server: Server, kills: int) -> Tally:
    """The processes that decode die, each time over another video; the worker lives."""
    tally, dice = Tally("decoding processes killed"), random.Random(0)
    while tally.kills < kills:
        out = site.new(laid_out=True)
        child = site.worker(server, out, 0)
        seen = -1
        while child.ended() is None:
            done = len(site.stores_in(out))
            helpers = child.helpers()
            if helpers and done > seen and tally.kills < kills:
                time.sleep(dice.uniform(0, 0.1))
                if child.ended() is None and (helpers := child.helpers()):
                    os.kill(dice.choice(helpers), signal.SIGKILL)
                    tally.kills += 1
                    seen = done
                    _sound(site, out, tally)
            time.sleep(0.005)
        assert child.ended() == 0, child.stderr.read_text()
        site.judge(out, tally)
        if not tally.kills:
            tally.note = "videos are decoded in the worker itself"
            break
    return tally


def started_at_once(site: Site, server: Server, rounds: int, at_once: int) -> Tally:
    """Extractions of the same cache, started together: they share the work, and none is done twice."""
    tally = Tally(f"{at_once} extractions started at once")
    for _ in range(rounds):
        out = site.new()
        children = [site.extraction(server, out) for _ in range(at_once)]
        assert [child.wait() for child in children] == [0] * at_once, children[0].stderr.read_text()
        site.judge(out, tally)
    return tally


def stopped_and_continued(
    site: Site, server: Server, operations: Iterable[int], seed: int = 0
) -> Tally:
    """A worker is stopped before its n-th file operation until another one has taken its stores over, which is stopped in its
    turn; then both go on, and both believe that the stores are theirs."""
    tally, dice = Tally("stopped, taken over, continued"), random.Random(seed)
    for out, stores, first in _stopped_workers(site, server, operations, tally):
        second = site.worker(
            server, out, 1, timing=IMPATIENT, root=stores, stop_at=dice.randrange(1, 60)
        )
        status = second.wait()
        tally.kills += 1 + (status == "stopped")
        _sound(site, out, tally)
        first.signal(signal.SIGCONT)
        if status == "stopped":
            time.sleep(dice.uniform(0, 0.1))
            second.signal(signal.SIGCONT)
            status = second.wait()
        assert (first.wait(), status) == (0, 0), first.stderr.read_text()
        _sound(site, out, tally)
        # Both stores that a worker has claimed, the one at work and the next, are taken over.
        tally.spare = 2 * tally.kills * site.cost_of_a_kill
        site.judge(out, tally)
    return tally


def taken_over_then_lost(
    site: Site, server: Server, operations: Iterable[int], seed: int = 0
) -> Tally:
    """As above, but whoever took over never goes on."""
    tally, dice = Tally("taken over by one that dies"), random.Random(seed)
    for out, stores, first in _stopped_workers(site, server, operations, tally):
        second = site.worker(
            server, out, 1, timing=IMPATIENT, root=stores, kill_at=dice.randrange(1, 60)
        )
        assert second.wait() in (0, KILLED)
        tally.kills += 2
        first.signal(signal.SIGCONT)
        assert first.wait() == 0, first.stderr.read_text()
        _sound(site, out, tally)
        tally.spare = tally.kills * site.cost_of_a_kill
        site.judge(out, tally)
    return tally


def on_two_hosts(site: Site, here: Server, there: Server, kills: int) -> Tally:
    """Workers of two hosts, of which one cannot see that those of the other are dead."""
    hosts = cycle((here, there))

    def start(out: Path, number: int) -> Child:
        return site.worker(next(hosts), out, number, timing=(0.02, 2.0, 0.02))

    return killed_at_random(site, "workers of two hosts killed", start, kills, at_once=2)


def refused_at_operations(site: Site, server: Server, operations: Iterable[int]) -> Tally:
    """The n-th file operation fails: one sentence that names the file, and a rerun goes on."""
    tally = Tally("disk full or broken at the n-th file operation")
    errors = cycle((errno.ENOSPC, errno.EIO, errno.EDQUOT))
    for operation in operations:
        out = site.new()
        child = site.extraction(
            server, out, timing=STILL, fail_at=operation, errno=(number := next(errors))
        )
        status = child.wait()
        if status == 0 and not _said(child):
            site.judge(out, tally)
            break
        _one_sentence(child, status, out, os.strerror(number))
        _sound(site, out, tally)
        tally.kills += 1
        tally.spare += site.cost_of_a_kill
        site.finish(server, out)
        site.judge(out, tally)
    return tally


def on_small_disks(site: Site, server: Server, sizes: Iterable[int]) -> Tally:
    """A disk of so many bytes is full before the cache is; then it is given room."""
    tally = Tally("small disks")
    for size in sizes:
        out = site.new() / "disk"
        with disk(out, size):
            child = site.extraction(server, out)
            status = child.wait()
            if status:
                _one_sentence(child, status, out, os.strerror(errno.ENOSPC))
                _sound(site, out, tally)
                tally.kills += 1
                tally.spare += site.cost_of_a_kill
                remount(out, "size=64m")
                site.finish(server, out)
            site.judge(out, tally)
    return tally


def on_a_read_only_disk(site: Site, server: Server, operations: Iterable[int]) -> Tally:
    """A cache half done, on a disk that may then not be written; one that is whole is left as it is."""
    tally = Tally("read-only disk")
    for operation in operations:
        out = site.new() / "disk"
        with disk(out, 2**26):
            status = site.extraction(server, out, kill_at=operation).wait()
            if status:
                remount(out, "ro")
                child = site.extraction(server, out)
                _one_sentence(child, child.wait(), out, os.strerror(errno.EROFS))
                _sound(site, out, tally)
                tally.kills += 1
                tally.spare += site.cost_of_a_kill
                remount(out, "rw")
                site.finish(server, out)
            remount(out, "ro")
            site.finish(server, out)
            remount(out, "rw")
            site.judge(out, tally)
    return tally


def power_cut(site: Site, server: Server, every: int = 1) -> Tally:
    """What a disk may hold after a cut of power at any moment of an extraction; `every` n-th such state is gone on with."""
    tally = Tally("power cut")
    base = site.new()
    (base / "recorded").mkdir()
    child = site.extraction(server, base / "recorded", cuts=str(base / "cuts"))
    assert child.wait() == 0, child.stderr.read_text()
    for number, out in enumerate(sorted((base / "cuts").iterdir())):
        _sound(site, out, tally)
        tally.kills += 1
        if number % every == 0:
            had = site.stores_in(out)
            site.finish(server, out)
            site.judge(out, tally, had)
    return tally


def wrong_clocks(site: Site, server: Server, operations: Iterable[int]) -> Tally:
    """After a kill all files are ten years old, or of ten years to come, and so is the time of the machine that goes on."""
    tally = Tally("clocks ten years wrong")
    for operation, shift_s in zip(operations, cycle((TEN_YEARS_S, -TEN_YEARS_S))):
        out = site.new()
        assert site.extraction(server, out, kill_at=operation, clock_s=-shift_s).wait() == KILLED
        tally.kills += 1
        tally.spare += site.cost_of_a_kill
        for path in out.rglob("*"):
            os.utime(path, (time.time() + shift_s,) * 2)
        child = site.extraction(server, out, clock_s=-shift_s)
        assert child.wait() == 0, child.stderr.read_text()
        site.judge(out, tally)
    return tally


def other_host() -> Server | None:
    """A host whose processes cannot be seen from here; None where none can be made."""
    try:
        subprocess.run([*OTHER_HOST, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Server(OTHER_HOST)


def may_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(
            ["unshare", "--mount", "true"], check=False, capture_output=True
        ).returncode
        == 0
    )


@contextmanager
def disk(path: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def _stopped_workers(
    site: Site, server: Server, operations: Iterable[int], tally: Tally
) -> Iterator[tuple[Path, str, Child]]:
    """(folder of caches, its stores, a worker that is stopped before its n-th file operation), for each n that there is."""
    for operation in operations:
        out = site.new(laid_out=True)
        stores = str(
            site.cache_in(out) / "stores"
        )  # what it does to leases while it waits is not counted
        worker = site.worker(server, out, 0, timing=IMPATIENT, root=stores, stop_at=operation)
        if worker.wait() != "stopped":
            site.judge(out, tally)
            return
        yield out, stores, worker


def _some_more_stores(site: Site, out: Path, living: Sequence[Child], dice: random.Random) -> None:
    """Until up to four more stores are there, and then any moment; or until no process lives."""
    wanted = len(site.stores_in(out)) + dice.randrange(5)
    wait_for(
        lambda: (
            len(site.stores_in(out)) >= wanted or all(child.ended() is not None for child in living)
        )
    )
    time.sleep(dice.uniform(0, 0.2))


def _sound(site: Site, out: Path, tally: Tally) -> None:
    unsound = site.unsound(out)
    assert not unsound, (tally.scenario, out, unsound)


def _said(child: Child) -> str:
    return child.stderr.read_text()


def _one_sentence(child: Child, status: int | str, out: Path, reason: str) -> None:
    # That there is no log, where none can be kept, is said before.
    told = _said(child).splitlines(keepends=True)
    text = "".join(line for line in told if "no log is kept" not in line)
    assert status == 1 and ONE_SENTENCE.fullmatch(text), (status, text)
    assert str(out) in text and reason in text, text
    child.stderr.unlink()
