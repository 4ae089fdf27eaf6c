"""A dozen blows to extractions, of each kind one or two; `make chaos` deals hundreds, and at every operation."""

from __future__ import annotations

import pytest
from chaos import scenarios
from chaos.harness import Server, Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """Three stores."""
    return Site(tmp_path_factory.mktemp("chaos"), [9, 8, 10, 12], 20)


def sound(tally: scenarios.Tally, blows: int) -> None:
    assert tally.kills == blows
    assert tally.identical == tally.rounds > 0
    assert 0 <= tally.again <= tally.spare


def test_killed_while_laying_out_writing_and_committing(site, here):
    sound(scenarios.killed_at_operations(site, here, (7, 21, 45, 80)), 4)


def test_killed_at_random(site, here):
    tally = scenarios.killed_at_random(
        site, "two workers", lambda out, number: site.worker(here, out, number), 3, 2
    )
    sound(tally, 3)


def test_decoding_processes_killed(site, here):
    tally = scenarios.decoders_killed(site, here, 1)
    sound(tally, 0 if tally.note else 1)


def test_extractions_that_start_together_do_nothing_twice(site, here):
    tally = scenarios.started_at_once(site, here, 1, 3)
    sound(tally, 0)
    assert tally.again == 0


def test_one_that_seemed_dead_goes_on_and_harms_nothing(site, here):
    tally = scenarios.stopped_and_continued(site, here, (5,))
    assert 1 <= tally.kills <= 2 and tally.identical == 1
    sound(scenarios.taken_over_then_lost(site, here, (12,)), 2)


def test_a_disk_that_refuses_an_operation(site, here):
    sound(scenarios.refused_at_operations(site, here, (9, 50)), 2)


def test_power_cuts(here, tmp_path):
    tally = scenarios.power_cut(Site(tmp_path, [5], 20), here, every=50)
    sound(tally, tally.kills)
    assert tally.kills > 50


def test_wrong_clocks(site, here):
    sound(scenarios.wrong_clocks(site, here, (30, 50)), 2)


def test_a_host_that_cannot_be_seen(site, here):
    there = scenarios.other_host()
    if there is None:
        pytest.skip("no rights to make a name space for processes")
    sound(scenarios.on_two_hosts(site, here, there, 1), 1)
    there.close()


@pytest.mark.skipif(not scenarios.may_mount(), reason="no rights to mount")
def test_small_and_read_only_disks(site, here):
    sound(scenarios.on_small_disks(site, here, (40 * 4096,)), 1)
    sound(scenarios.on_a_read_only_disk(site, here, (40,)), 1)
