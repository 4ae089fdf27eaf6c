"""A Ray cluster of this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.paths import ROOT


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """With two cores. Its workers find the package as those of an installed one do."""
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield ray
    ray.shutdown()
