"""The HTML page about runs, opened in a real browser: what is on it, and how it looks on a phone and on a desk."""

from pathlib import Path
from typing import Any

import pytest
from example_results import example
from selenium import webdriver

from artsy_ext.learner.page import report_page
from artsy_ext.learner.report import summary

METHODS = ("finetune", "artsy", "<b>bold</b>")
NAME = "runs/<script>console.error('run')</script>"


def a_run(tasks: int, **settings: Any) -> dict[str, Any]:
    results = example(tasks, 2, METHODS)
    results["arguments"] = {
        "run": {"data": "digits", "sizes": []},
        "config": {"rank": 8, "consolidate": True, **settings},
    }
    return results


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    return {NAME: a_run(5), "runs/second": a_run(20, epochs=3)}


def opened(browser: webdriver.Chrome, page: str, width: int, path: Path) -> None:
    path.write_text(page, encoding="utf-8")
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(path.as_uri())


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_in_a_browser(
    browser: webdriver.Chrome, runs: dict[str, dict[str, Any]], width: int, tmp_path: Path
) -> None:
    opened(browser, report_page(runs), width, tmp_path / "page.html")
    assert browser.get_log("browser") == []
    assert browser.title == "Artsy: 2 runs"
    # Nothing sticks out: what is too wide scrolls by itself.
    root = "document.documentElement"
    seen, room, needed = browser.execute_script(f"return [innerWidth, {root}.clientWidth, {root}.scrollWidth]")
    assert seen == width
    assert needed == room > width - 20  # a scroll bar

    rows = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(t => [t.className, t.rows.length, t.offsetHeight > 0])"
    )
    settings, versions = 4, len(runs[NAME]["versions"])
    assert rows == [
        ["numbers comparison", 1 + len(METHODS), True],
        ["differences", 1 + 1, True],  # epochs
        ["numbers methods", 1 + len(METHODS), True],
        ["numbers curves", 1 + 5, True],
        ["settings", 1 + settings, True],
        ["environment", versions, True],
        ["numbers methods", 1 + len(METHODS), True],
        ["numbers curves", 1 + 20, True],
        ["settings", 1 + settings + 1, True],
        ["environment", versions, True],
    ]
    cells = browser.execute_script(
        """return [...document.querySelectorAll('#run1 .methods tbody tr')].map(
            row => [...row.cells].map(cell => cell.textContent))"""
    )
    assert cells == [[name, *row] for name, row in summary(runs[NAME])[1].items()]

    pictures = browser.execute_script(
        """return [...document.images].map(image => {
            const {left, right, height} = image.getBoundingClientRect()
            return [image.alt.length > 20, image.complete && image.naturalWidth > 100, height > 100,
                    left >= 0 && right <= innerWidth]
        })"""
    )
    one_run = 1 + len(METHODS) + 2 + 1  # curves, matrices, recall and number, the routing of artsy
    assert pictures == 2 * one_run * [[True] * 4]
    narrow = browser.execute_script("const i = document.images[0]; return i.currentSrc != i.src")
    assert narrow == (width == 360)


def test_the_browser_tells_what_is_wrong(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = "<!DOCTYPE html><p style='width: 500px'>wide<script>nonsense()</script>"
    opened(browser, page, 360, tmp_path / "page.html")
    assert "nonsense is not defined" in browser.get_log("browser")[0]["message"]
    assert browser.execute_script("return document.documentElement.scrollWidth") > 360


def test_the_page_is_one_file_and_always_the_same(runs: dict[str, dict[str, Any]]) -> None:
    page = report_page({"run": runs[NAME]})
    assert page == report_page({"run": runs[NAME]})
    assert "<h1>Artsy: the stream &#39;digits&#39; (5 tasks, mean of 2 seeds)</h1>" in page
    assert "<script" not in page
    assert page.count("src") == page.count("data:image/svg+xml") > 0
    assert '<tr class="changed"><td><code>rank</code></td><td>8</td>' in page
    assert "<tr><td><code>consolidate</code></td><td>yes</td>" in page


def test_no_synapses_no_pictures_of_them() -> None:
    page = report_page({"run": example(methods=("finetune", "joint"))})
    assert "What the synapses choose" not in page
