"""A file that is damaged or forged is read, or refused in one line. A short form of `make fuzz`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz.site import Site, attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import digest


@pytest.fixture(scope="module")
def site(videos, tmp_path_factory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), videos)
    yield made
    assert digest(made.folder) == made.before


ENOUGH = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@settings(ENOUGH, max_examples=10)
@given(seed=st.integers(0, 2**48))
def test_a_few_damages(site, tmp_path_factory, seed):
    attempt(site, tmp_path_factory.getbasetemp() / "attempt", seed)


@pytest.mark.slow
@settings(ENOUGH, max_examples=60)
@given(seed=st.integers(2**48, 2**49))
def test_many_damages(site, tmp_path_factory, seed):
    attempt(site, tmp_path_factory.getbasetemp() / "attempt", seed)
