"""Who may work on a store: exactly one that lives, whatever clocks say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from pipeline.cache import leases as module
from pipeline.cache.cache import Cache
from pipeline.cache.commit import forget_store
from pipeline.cache.layout import receipt_name
from pipeline.cache.leases import CacheStore, Holder, Leases, claim_units, holders, lease_of
from pipeline.cache.storage.local import LocalFolder


@pytest.fixture
def storage(tmp_path) -> LocalFolder:
    return LocalFolder(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "RENEW_S", 0.02)
    monkeypatch.setattr(module, "EXPIRE_S", 0.5)
    monkeypatch.setattr(module, "LOOK_S", 0.02)


def leave(storage: LocalFolder, name: str, holder: Holder) -> None:
    """A lease of somebody who does nothing for it any more."""
    assert storage.create(f"leases/{name}.json", json.dumps(asdict(holder) | {"beat": 3}).encode())


def dead() -> Holder:
    """A process of this machine that is no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = replace(Holder.me(), worker="x", pid=process.pid, started=module.started(process.pid))
    assert not holder.is_gone
    process.communicate(b"\n")
    return holder


def until_claimed(ours: Leases, name: str) -> float:
    """Seconds."""
    begin_s = time.monotonic()
    while not ours.claim(name):
        time.sleep(0.01)
    return time.monotonic() - begin_s


def test_one_of_many_gets_it(storage):
    many = [Leases(storage) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for name in map(lease_of, range(20)):
            got = list(pool.map(lambda one, name=name: one.claim(name), many))
            assert sum(got) == 1
            assert [one.holds(name) for one in many] == got


def test_it_is_given_back(storage):
    with Leases(storage) as one:
        assert one.claim("a") and one.claim("b")
        one.release("a")
        assert Leases(storage).claim("a")
        assert set(holders(storage)) == {"a", "b"}
    assert set(holders(storage)) == {"a"}, "b was given back by leaving, a is another's"


def test_that_of_a_dead_process_of_this_machine_is_void_at_once(storage):
    leave(storage, "a", dead())
    assert Leases(storage).claim("a")


def test_a_process_number_that_is_used_again_keeps_nothing_alive(storage):
    mine = Holder.me()
    leave(storage, "a", replace(mine, worker="x", started=mine.started - 1))
    assert Leases(storage).claim("a")


def test_that_of_a_living_process_stands(storage, quick):
    with Leases(storage) as one:
        assert one.claim("a")
        other = Leases(storage)
        end_s = time.monotonic() + 4 * module.EXPIRE_S
        while time.monotonic() < end_s:
            assert not other.claim("a")
            time.sleep(0.01)
        assert one.holds("a") and not other.holds("a")


@pytest.mark.parametrize(
    "text",
    [None, b"", b"{", b"[]", b'{"worker": "x"}'],
    ids=["another machine", "empty", "torn", "list", "part"],
)
def test_what_nobody_can_judge_is_void_when_it_stands_still(storage, quick, text):
    leave(storage, "a", replace(Holder.me(), worker="x", machine="another"))
    if text is not None:
        (storage.path / "leases/a.json").write_bytes(text)
    ours = Leases(storage)
    assert not ours.claim("a")
    assert until_claimed(ours, "a") >= 0.8 * module.EXPIRE_S and ours.holds("a")


@pytest.mark.parametrize("years", [-10, 10])
def test_times_of_files_mean_nothing(storage, quick, years):
    leave(storage, "a", replace(Holder.me(), worker="x", machine="another"))
    leave(storage, "b", dead())
    for name in "ab":
        os.utime(storage.path / f"leases/{name}.json", (time.time() + years * 3.2e7,) * 2)
    ours = Leases(storage)
    assert not ours.claim("a") and ours.claim("b")
    assert until_claimed(ours, "a") >= 0.8 * module.EXPIRE_S


def test_one_that_was_taken_over_is_neither_held_nor_renewed_nor_removed(storage, quick):
    with Leases(storage) as slow:
        assert slow.claim("a")
        storage.remove("leases/a.json")
        other = Leases(storage)
        assert other.claim("a")
        time.sleep(5 * module.RENEW_S)
        assert other.holds("a") and not slow.holds("a")
        slow.release("a")
    assert other.holds("a")


def test_alone_waits_for_the_living_and_not_for_the_dead(storage, quick):
    leave(storage, "plan", dead())
    inside, most = [], []

    def enter() -> None:
        with Leases(storage) as one, one.alone("plan"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(enter) for _ in range(3)]:
            done.result()
    assert most == [1, 1, 1] and holders(storage) == {}


def test_claimed_hands_out_what_is_missing_and_free_and_waits_for_the_rest(
    material, tmp_path, quick
):
    cache = Cache(shutil.copytree(material.cache.path, tmp_path / "cache"))
    stores = list(cache.plan)
    for store in stores[1:]:
        forget_store(cache, store)
    with Leases(cache.storage) as ours, Leases(cache.storage) as theirs:
        assert theirs.claim(lease_of(stores[1]))
        units = [[CacheStore(cache, ours, store)] for store in stores]
        handed = claim_units(units, threading.Event())
        assert [next(handed) for _ in stores[2:]] == units[2:]
        theirs.release(lease_of(stores[1]))  # without having done it
        assert list(handed) == [units[1]]
        assert set(holders(cache.storage)) == {lease_of(store) for store in stores[1:]}


def test_claimed_ends_when_others_have_done_the_rest(material, tmp_path, quick):
    cache = Cache(shutil.copytree(material.cache.path, tmp_path / "cache"))
    receipt = cache.path / receipt_name(0)
    vouched = receipt.read_bytes()
    receipt.unlink()
    with Leases(cache.storage) as ours, Leases(cache.storage) as theirs:
        assert theirs.claim(lease_of(0))
        done = threading.Timer(0.2, receipt.write_bytes, [vouched])
        done.start()
        assert list(claim_units([[CacheStore(cache, ours, 0)]], threading.Event())) == []
        done.join()
        assert theirs.holds(lease_of(0)) and not ours.holds(lease_of(0))


def test_claimed_can_be_stopped_while_it_waits(material, tmp_path, quick):
    cache = Cache(shutil.copytree(material.cache.path, tmp_path / "cache"))
    forget_store(cache, 0)
    stop = threading.Event()
    with Leases(cache.storage) as ours, Leases(cache.storage) as theirs:
        assert theirs.claim(lease_of(0))
        threading.Timer(0.1, stop.set).start()
        assert list(claim_units([[CacheStore(cache, ours, 0)]], stop)) == []
        assert not cache.has(0)


def test_work_that_was_finished_meanwhile_is_not_claimed_and_its_lease_is_free(tmp_path):
    storage = LocalFolder(tmp_path)
    with Leases(storage) as ours, Leases(storage) as theirs:
        assert not ours.claim_unless("work", lambda: True)
        assert theirs.claim_unless("work", lambda: False)
        assert not ours.claim_unless("work", lambda: False)
