"""The names of `import stillframe`: what is public is listed, lazily imported, and typed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

import stillframe

TREE = ast.parse(Path(stillframe.__file__).read_text(encoding="utf-8"))


def typed_names() -> dict[str, str]:
    """What a type checker sees: public name -> its module."""
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_what_is_listed_is_what_is_there_and_what_type_checkers_see():
    assert typed_names() == stillframe._MODULES
    assert dir(stillframe) == stillframe.__all__ == sorted(stillframe.__all__)
    assert set(stillframe.__all__) == {*stillframe._MODULES, "__version__"}
    for name, module in stillframe._MODULES.items():
        value = getattr(stillframe, name)
        assert value is getattr(importlib.import_module(module), name)
        assert value.__module__ == module and len(value.__doc__) > 30
    with pytest.raises(AttributeError, match="module 'stillframe' has no attribute 'Cash'"):
        _ = stillframe.Cash


@pytest.mark.parametrize("package", ["stillframe", "pipeline"])
def test_types_are_for_others_too(package):
    assert (ROOT / package / "py.typed").read_text() == ""


def test_importing_it_imports_nothing_heavy(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import stillframe; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"numpy", "torch", "pydantic", "zarr", "transformers"} == set()
