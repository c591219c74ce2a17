"""The report as people open it: headless Chromium on a desk and on a phone, in light and in dark."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from tests.made_products import shared_run

pytestmark = pytest.mark.browser

DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_run(tmp_path_factory.getbasetemp())[0] / "report.html"


def show(browser: Any, page: Path, size: tuple[int, int] = DESK, scheme: str = "light", scripts: bool = True) -> None:
    """Open the page at a size (CSS pixels) with the reader's colour scheme, and forget earlier logs."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())


@pytest.fixture
def window(chromium: Any) -> Iterator[Any]:
    yield chromium
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def requests(window: Any) -> list[str]:
    """Addresses that the page asked for since it was opened."""
    messages = (json.loads(entry["message"])["message"] for entry in window.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def brightness(element: Any) -> float:
    """Median brightness (0 to 1) of an element on the screen."""
    pixels = matplotlib.image.imread(io.BytesIO(element.screenshot_as_png))
    return float(np.median(pixels[..., :3]))


def test_no_request_leaves_the_page_and_the_console_is_silent(window: Any, page: Path) -> None:
    show(window, page)
    asked = requests(window)
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", page.as_uri()))] == []
    assert window.get_log("browser") == []


def test_every_figure_is_drawn(window: Any, page: Path) -> None:
    show(window, page)
    sizes = window.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.width, i.alt])")
    assert len(sizes) > 3 * 18
    for complete, natural, width, alt in sizes:
        assert complete, alt
        assert natural > 0, alt
        assert width > 100, alt


def test_verdict_is_seen_first(window: Any, page: Path) -> None:
    for size in (DESK, PHONE):
        show(window, page, size)
        badge = window.find_element("css selector", ".verdict .badge")
        assert badge.is_displayed()
        assert badge.rect["y"] + badge.rect["height"] < size[1] / 2
        sentence = window.find_element("css selector", ".verdict li")
        assert sentence.rect["y"] + sentence.rect["height"] < size[1]
        assert window.find_element("css selector", "img").rect["y"] > badge.rect["y"]


@pytest.mark.parametrize("folded", [True, False])
def test_phone_never_scrolls_sideways_and_text_stays_readable(window: Any, page: Path, folded: bool) -> None:
    show(window, page, PHONE)
    if not folded:
        window.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert window.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    beyond = window.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4,p,li,figure,img,summary,.scroll,pre')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + e.textContent.slice(0, 40))"
    )
    assert beyond == []
    sizes = window.execute_script(
        "return [...document.querySelectorAll('p,li,figcaption,td,th,dd,dt,summary')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    # text in a figure shrinks with it: its smallest, 7.5 pt, must stay above 8 CSS pixels
    scales = window.execute_script("return [...document.images].map(i => i.width / i.getAttribute('width'))")
    assert min(scales) * 7.5 * 96 / 72 > 8


def test_reader_in_the_dark_gets_dark_figures(window: Any, page: Path) -> None:
    show(window, page, scheme="light")
    curve = "img[alt^='Information gain']"
    assert brightness(window.find_element("css selector", curve)) > 0.9
    assert brightness(window.find_element("css selector", ".verdict")) > 0.9
    show(window, page, scheme="dark")
    assert brightness(window.find_element("css selector", curve)) < 0.25
    assert brightness(window.find_element("css selector", ".verdict")) < 0.25


def test_page_is_whole_without_scripts(window: Any, page: Path) -> None:
    show(window, page)
    with_scripts = window.find_element("tag name", "body").rect["height"]
    show(window, page, scripts=False)
    assert window.find_element("tag name", "body").rect["height"] == with_scripts
    table = window.find_element("css selector", "details:not([open])")
    table.find_element("tag name", "summary").click()
    assert table.get_attribute("open") is not None
    assert table.find_element("css selector", "table, pre").is_displayed()


def test_tables_can_be_scrolled_by_keyboard(window: Any, page: Path) -> None:
    show(window, page, PHONE)
    window.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
    wide = window.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        ".map(e => [e.tabIndex, e.getAttribute('aria-label')])"
    )
    assert wide
    assert all(index == 0 and label for index, label in wide)


def test_print_shows_what_is_folded(window: Any, page: Path) -> None:
    show(window, page)
    seen = "return [...document.querySelectorAll('details:not([open]) table')].map(t => t.checkVisibility())"
    on_screen = window.execute_script(seen)
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    printed = window.execute_script(seen)
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert not any(on_screen)
    assert all(printed)
