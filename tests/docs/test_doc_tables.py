"""The tables of the guide name what there is, with the numbers that the code gives."""

from __future__ import annotations

import re
import tomllib

import pytest
from support.manual import ROOT, code_in_prose, read

from pipeline.config import plugins
from pipeline.config.shipped import shipped

GUIDE = ROOT / "docs/guide"
TOLD = [
    ("videos", "dataset"),
    ("extract", "codec"),
    ("extract", "spec"),
    ("train", "temporal"),
    ("train", "task"),
    ("sweep", "sweep"),
]
"""Page -> the kind of which it tells all there are."""


@pytest.mark.parametrize(("page", "kind"), TOLD)
def test_pages_name_all_there_are(page, kind):
    names = shipped(kind) if kind in ("spec", "sweep") else plugins.names(kind)
    assert set(names) - set(code_in_prose(GUIDE / f"{page}.md")) == set()


def test_sizes_of_temporal_modules_are_those_of_the_reference():
    def rows(text: str) -> dict[str, list[str]]:
        numbers = r"([\d.]+) M \| ([\d.]+) G \| ([\d.]+)(?: MB)? \|"
        found = re.findall(
            rf"^\| \[?`(\w+)`[^\n]*\| {numbers}", text.replace("&nbsp;", " "), re.MULTILINE
        )
        return {name: [float(one) for one in sizes] for name, *sizes in found}

    ours = rows(read(GUIDE / "train.md"))
    assert ours == rows(read(ROOT / "docs/reference/plugins.md"))
    assert ours.keys() == set(plugins.names("temporal"))


def test_every_dependency_has_a_reason():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[\[>=]", one)[0] for one in wanted} - {project["name"]}
    table = read(ROOT / "docs/architecture.md").partition("## Dependencies")[2]
    told = {
        word
        for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
        for word in re.findall(r"[\w-]+", row)
    }
    assert names - told == set()


def test_every_extra_is_in_the_installation():
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert set(re.findall(r"stillframe\[(\w+)\]", read(GUIDE / "install.md"))) == extras.keys() - {
        "dev"
    }
