"""The code is in the package `pipeline`, which lies beside this one. Where another package of this
common name lies in the working directory, Python by itself takes that one."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder in which this package and `pipeline` are: of installed packages, or a checkout."""


def import_own_code() -> None:
    """Makes `pipeline` in this process the package beside this one, whatever comes first on
    sys.path. Raises ImportError where another one has been imported before."""
    there = sys.modules.get("pipeline")
    if there is not None:
        found = Path(getattr(there, "__file__", None) or "nowhere")
        if found.resolve() != HOME / "pipeline" / "__init__.py":
            raise ImportError(
                f"stillframe needs the name 'pipeline' for its own code, and {found} has been "
                "imported under it; import stillframe before it, or give that package another name"
            )
        return
    spec = PathFinder.find_spec("pipeline", [str(HOME)])
    if spec is None or spec.loader is None:
        raise ImportError(f"no package 'pipeline' in {HOME}: stillframe is not installed whole")
    module = sys.modules["pipeline"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["pipeline"]
        raise
