"""Examples in the docstrings of public names run as they stand."""

from __future__ import annotations

import doctest
import inspect

import pytest

import stillframe

EXAMPLES = {
    name: inspect.getdoc(getattr(stillframe, name)) or ""
    for name in stillframe.__all__
    if ">>> " in (inspect.getdoc(getattr(stillframe, name)) or "")
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(
        EXAMPLES[name], {"stillframe": stillframe}, name, None, None
    )
    said: list[str] = []
    failed, tried = doctest.DocTestRunner().run(example, out=said.append)
    assert tried and not failed, "".join(said)


def test_there_are_examples():
    assert {"load_recipe", "load_spec", "make_manifest"} <= EXAMPLES.keys()
