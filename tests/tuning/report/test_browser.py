"""The page in a real Chromium: at desktop and phone width, light and dark, without network."""

import re

import pytest

from tests.tuning.report.browsers import chromium
from tests.tuning.report.folders import write_comparison, write_trial
from tuning.report import page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("playwright")) as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Two workloads, long names, and files that are broken."""
    folder = tmp_path_factory.mktemp("report")
    write_comparison(folder / "in")
    name = "a_submission_with_a_rather_long_name_indeed"
    for index, values in enumerate(([0.1, 0.9], [0.2] * 10, [0.3, float("nan")]), start=1):
        place = folder / "in" / "more" / "ogbg_model_size_jax" / f"trial_{index}"
        write_trial(place, values, point={"learning_rate": 10.0**-index}, outcome={"submission": name})
    (folder / "in" / "more" / "ogbg_model_size_jax" / "trial_4").mkdir()
    page.write([folder / "in"], folder / "out", ["sgd"])
    return (folder / "out" / "index.html").as_uri()


@pytest.fixture(params=[(1280, 900, "light"), (1280, 900, "dark"), (360, 740, "light"), (360, 740, "dark")])
def tab(request, browser, address):
    width, height, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, is_mobile=width < 500
    )
    tab = context.new_page()
    tab.told = []
    tab.on("console", lambda message: tab.told.append(message.text))
    tab.on("pageerror", lambda error: tab.told.append(str(error)))
    tab.on("requestfailed", lambda request: tab.told.append(request.url))
    tab.goto(address)
    tab.width, tab.scheme = width, scheme
    yield tab
    context.close()


def test_no_error_and_no_overflow(tab):
    assert tab.told == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.width
    cut = """[...document.querySelectorAll('main > *, section > *, h1, h2, p, li')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert tab.evaluate(cut) == []


def test_the_figures_are_there(tab):
    boxes = [box.bounding_box() for box in tab.query_selector_all("figure svg")]
    assert len(boxes) == 7 and all(box["width"] >= 300 and box["height"] >= 80 for box in boxes)
    assert all(name for name in tab.evaluate("[...document.querySelectorAll('figure svg')].map(e => e.ariaLabel)"))


def test_text_stands_out_from_the_page(tab):
    """The ink and the paper, and the ink of a figure, by WCAG's contrast of 4.5."""
    ink, paper = tab.evaluate("(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
    assert _contrast(ink, paper) > 4.5
    assert (_luminance(paper) < 0.1) == (tab.scheme == "dark")
    drawn = "getComputedStyle(document.querySelector('figure svg [style*=\"currentColor\"]'))"
    assert ink in tab.evaluate(f"[{drawn}.fill, {drawn}.stroke]")


def test_a_click_sorts_a_table(tab):
    table = tab.locator("table.sortable").first
    names = table.locator("tbody th")
    before = names.all_inner_texts()
    head = table.locator("thead button", has_text=re.compile("^steps$"))
    head.click()
    assert names.all_inner_texts() == before == ["kfac", "sgd (reference)"]
    head.click()
    assert names.all_inner_texts() == before[::-1]
    assert table.locator("thead th[aria-sort=descending]").count() == 1


def _luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)
