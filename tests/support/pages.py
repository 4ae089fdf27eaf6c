"""A small sweep of real runs on a real cache, and its page. Loaded by conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.bench.report import made_up_sweep
from pipeline.report.report import report

MODULES = ("gru", "identity", "min_gru")
RUNS = 18
"""Three modules, three learning rates, two seeds; the last run was stopped."""


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """Read only."""
    return made_up_sweep(tmp_path_factory.mktemp("sweep"), RUNS, MODULES)


@pytest.fixture(scope="session")
def page(sweep, tmp_path_factory) -> Path:
    """Read only."""
    (page,) = report(sweep, tmp_path_factory.mktemp("report"))
    return page
