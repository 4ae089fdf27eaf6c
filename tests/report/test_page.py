"""The page of a report in a real browser: it loads in silence, tables sort and filter, videos play, nothing overflows."""

from __future__ import annotations

import itertools
import re
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page):
    """Opens the page at a width and in a colour scheme, and sees to it that the browser had nothing to say."""
    contexts, said = [], []

    def opened(width: int = 1280, scheme: str = "light"):
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
            )
        )
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on(
            "request",
            lambda request: said.append(request.url) if request.url.startswith("http") else None,
        )
        tab.goto(page.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert said == []


@pytest.mark.parametrize(("width", "scheme"), [*itertools.product((1280, 390), ("light", "dark"))])
def test_it_loads_and_nothing_overflows(opened, width, scheme):
    tab = opened(width, scheme)
    assert tab.title() == "bench · stillframe"
    headings = tab.locator("main > section:visible > h2").all_inner_texts()
    assert headings == [
        "Along the axes", "Scores", "Costs", "Learning", "Answers", "Videos", "Tokens over time", "Cache", "Provenance",
    ]  # fmt: skip
    assert tab.locator("nav a").all_inner_texts() == headings
    for element in tab.locator("details").all():
        element.evaluate("details => details.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    wide = tab.evaluate(
        """width => [...document.querySelectorAll("body *")]
        .filter(one => !one.closest(".scroll, pre, nav, svg, .hidden") && one.getBoundingClientRect().right > width + 1)
        .map(one => one.outerHTML.slice(0, 80))""",
        width,
    )
    assert wide == []


def test_plots_and_text_follow_the_colour_scheme(opened):
    light, dark = opened(scheme="light"), opened(scheme="dark")
    colour = "selector => getComputedStyle(document.querySelector(selector)).{}"
    for selector, what in (
        ("body", "color"),
        ("body", "backgroundColor"),
        (".plot svg text", "fill"),
    ):
        assert light.evaluate(colour.format(what), selector) != dark.evaluate(
            colour.format(what), selector
        )
    assert dark.evaluate(colour.format("fill"), ".plot svg text") in (
        "rgb(152, 161, 171)",
        "rgb(228, 230, 232)",
    )


def cells(tab, table: str, column: int) -> list[str]:
    return tab.locator(f"#{table} tbody tr td:nth-child({column + 1})").all_text_contents()


@pytest.mark.parametrize("table", ["table-scores", "table-runs", "table-coverage"])
def test_every_column_sorts_both_ways(opened, table):
    tab = opened()
    buttons = tab.locator(f"#{table} th button")
    assert buttons.count() == tab.locator(f"#{table} th").count() >= 4
    for column in range(buttons.count()):
        before, ways = sorted(cells(tab, table, column)), set()
        for _ in range(2):
            buttons.nth(column).click()
            shown, found, sorts = tab.evaluate(COLUMN, [table, column])
            way = sorts.pop(column)
            assert found == sorted(found, key=_as_read, reverse=way == "descending")
            assert sorted(shown) == before
            assert set(sorts) == {"none"}
            ways.add(way)
        assert ways == {"ascending", "descending"}


COLUMN = """([table, column]) => {
    const all = [...document.querySelectorAll(`#${table} tbody tr`)].map(row => row.cells[column])
    const value = cell => cell.classList.contains("number") ? Number(cell.dataset.value ?? cell.textContent) : cell.textContent
    return [
        all.map(cell => cell.textContent),
        all.filter(cell => cell.textContent.trim()).map(value),
        [...document.querySelectorAll(`#${table} th`)].map(heading => heading.getAttribute("aria-sort")),
    ]
}"""
"""What a column shows, its values where it has any, and how every column says that it is sorted."""


def _as_read(value: object) -> object:
    """Words in the order of the alphabet, with numbers in them as numbers."""
    if isinstance(value, int | float):
        return value
    return [
        (not part.isdigit(), int(part) if part.isdigit() else part)
        for part in re.split(r"(\d+)", value.lower())
        if part
    ]


def test_numbers_sort_as_numbers_and_empty_cells_stay_last(opened):
    tab = opened()
    gain = tab.locator("#table-scores th button", has_text="gain").first
    for _ in range(2):
        gain.click()
        column = tab.locator("#table-scores th").evaluate_all(
            "all => all.findIndex(one => one.ariaSort != 'none')"
        )
        shown = cells(tab, "table-scores", column)
        # The reference has no gain over itself: two rows, one for each form.
        assert shown[-2:] == ["", ""] and "" not in shown[:-2]


def test_the_keyboard_sorts_too(opened):
    tab = opened()
    heading = tab.locator("#table-runs th").first
    heading.locator("button").focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    names = cells(tab, "table-runs", 0)
    assert names[0].startswith("gru") and names[-1].startswith("min_gru")
    tab.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending" and cells(tab, "table-runs", 0)[
        0
    ].startswith("min_gru")


def test_words_filter_rows(opened):
    tab = opened()
    rows, field = tab.locator("#table-runs tbody tr:visible"), tab.locator("#table-runs input")
    assert rows.count() == 18
    field.fill("min_gru s1")
    assert rows.count() == 3 and all("min_gru" in text for text in rows.all_inner_texts())
    field.fill("no such words")
    assert rows.count() == 0 and tab.locator("#table-runs .none").is_visible()
    field.fill("")
    assert rows.count() == 18 and not tab.locator("#table-runs .none").is_visible()


def test_videos_play(opened):
    tab = opened()
    assert tab.locator("video").count() == 6
    for video in tab.locator("video").all():
        facts = video.evaluate(
            "v => [v.muted, v.loop, v.controls, v.hasAttribute('playsinline'), v.src.slice(0, 15)]"
        )
        assert facts == [True, True, True, True, "data:video/mp4;"]
    button = tab.locator("button.together")
    button.click()
    tab.wait_for_function(
        "[...document.querySelectorAll('video')].every(v => v.readyState >= 2 && v.currentTime > 0 && !v.paused)"
    )
    # 320 high, of which a caption has its part: the square above is narrower.
    assert tab.locator("video").first.evaluate("v => [v.videoWidth, v.videoHeight]") == [302, 320]
    button.click()
    assert tab.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")


def test_a_dot_says_what_it_is(opened):
    titles = opened().locator("#scores svg .tip title").all_text_contents()
    assert any(title.startswith("gru, learning_rate 0.003, streaming: 0.") for title in titles)


def test_it_prints_without_what_only_a_screen_needs(opened):
    tab = opened()
    tab.emulate_media(media="print")
    for selector in ("nav", ".tools input", "button.together"):
        assert not tab.locator(selector).first.is_visible()
    assert tab.locator("#table-scores").is_visible()
