"""The pages: their size, their links, and what they say of the rooms."""

from __future__ import annotations

import re

import pytest
from support.manual import (
    FENCE,
    LINK,
    PAGES,
    README,
    ROOT,
    anchors,
    code_in_prose,
    name,
    prose,
    read,
)


def test_readme_is_short():
    text = read(README)
    assert len(text.splitlines()) <= 200
    written = text.partition("<!-- rooms:begin -->")[0] + text.partition("<!-- rooms:end -->")[2]
    assert [line for line in written.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize(
    "page", [README, *(ROOT / "docs").glob("guide/*.md"), ROOT / "docs/architecture.md"], ids=name
)
def test_blocks_fit_a_rendered_page(page):
    """A forge shows some hundred columns of a block; what is beyond must be scrolled to."""
    assert [
        line
        for _, block in FENCE.findall(read(page))
        for line in block.splitlines()
        if len(line) > 98
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    broken = []
    for _, target in LINK.findall(prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            broken.append(target)
        elif anchor and anchor not in anchors(there):
            broken.append(f"{target}: no such heading")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pictures_say_what_they_show(page):
    assert [found for found in re.findall(r"!\[([^\]]*)\]", prose(page)) if len(found) < 20] == []


def test_every_page_and_picture_can_be_reached_from_the_readme():
    reached, left = {README}, [README]
    while left:
        page = left.pop()
        for _, target in LINK.findall(prose(page)):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.is_file() and there not in reached:
                reached.add(there)
                left += [there] if there.suffix == ".md" else []
    wanted = {file for file in (ROOT / "docs").rglob("*") if file.suffix in (".md", ".png")}
    assert {name(file) for file in wanted - reached} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extending.md"], ids=name)
def test_files_that_pages_name_exist(page):
    """Paths of the repository in inline code; names in capitals are the reader's, and extending.md names files to be written."""
    rooms = "|".join(folder.parent.name for folder in (ROOT / "pipeline").glob("*/__init__.py"))
    named = re.compile(rf"(pipeline|tests|docs|cache_specs|{rooms})/[\w./-]*(\.\w+|/)")
    found = {text for text in code_in_prose(page) if named.fullmatch(text)}
    # Files of the package and their tests may be named from their room on.
    known = {
        text
        for text in found
        for folder in ("", "pipeline", "tests")
        if (ROOT / folder / text).exists()
    }
    assert {path for path in found - known if "NAME" not in path} == set()


def test_readme_lists_the_rooms():
    block = read(README).partition("<!-- rooms:begin -->")[2].partition("<!-- rooms:end -->")[0]
    rooms = {folder.parent.name for folder in (ROOT / "pipeline").glob("*/__init__.py")}
    assert set(re.findall(r"`(\w+)/`", block)) == rooms
