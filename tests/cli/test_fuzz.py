"""A file that is damaged or forged is read, or refused in one line. A short form of `make fuzz`."""

from __future__ import annotations

import pytest
from fuzz.site import Site, attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def site(videos, tmp_path_factory) -> Site:
    return Site(tmp_path_factory.mktemp("site"), videos)


ENOUGH = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@settings(ENOUGH, max_examples=12)
@given(seed=st.integers(0, 2**48))
def test_a_few_damages(site, tmp_path_factory, seed):
    attempt(site, tmp_path_factory.getbasetemp() / "attempt", seed)


@pytest.mark.slow
@settings(ENOUGH, max_examples=200)
@given(seed=st.integers(2**48, 2**49))
def test_many_damages(site, tmp_path_factory, seed):
    attempt(site, tmp_path_factory.getbasetemp() / "attempt", seed)
