"""The page in a real browser: with a mouse, with the keyboard only, without JavaScript, and in print."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import LONG, PROMPTS, RIGHT_TO_LEFT, SCRIPT, write_board
from browsers import CHROMIUM, chromium

from sdbench import suites
from sdbench.gate.policy import load
from sdbench.report import page as pages

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the dependency group web")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python, of the dependency group web")
WIDE, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    results = tmp_path_factory.mktemp("results")
    write_board(results)
    pages.write(results, results / "report.html", load(suites.find(suites.POLICY)))
    return (results / "report.html").as_uri()


@pytest.fixture
def page(browser: Any, page_url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in a fresh profile; console messages, errors and network requests fail the test."""
    options = {"viewport": WIDE, "color_scheme": "light", **getattr(request, "param", {})}
    context = browser.new_context(**options)
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: problems.append(sent.url) if not sent.url.startswith(("data:", page_url)) else None)
    page.goto(page_url)
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    assert problems == []


def names(page: Any) -> list[str]:
    found: list[str] = page.locator(".board tbody tr:visible th").evaluate_all("cells => cells.map((cell) => cell.dataset.sort)")
    return found


def prompts(page: Any) -> list[str]:
    found: list[str] = page.locator(".wall .shot:visible .prompt").evaluate_all("found => found.map((each) => each.textContent)")
    return found


def test_click_sorts_best_first_and_second_click_reverses(page: Any) -> None:
    head = page.locator(".board thead th", has_text="clip_score.scenes").first
    column = head.evaluate("cell => cell.cellIndex")
    for order, reverse in (("descending", True), ("ascending", False)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        cells = page.locator(f".board tbody tr > :nth-child({column + 1})")
        found = cells.evaluate_all("cells => cells.map((cell) => Number(cell.dataset.sort))")
        assert found == sorted(found, reverse=reverse)
    assert page.locator("th[aria-sort]").count() == 1
    assert "ascending" in page.locator("#live").text_content()


def test_lower_is_better_sorts_ascending_and_missing_values_stay_last(page: Any) -> None:
    head = page.locator(".board thead th", has_text="win_rate")
    head.get_by_role("button").click()
    assert names(page)[-1] == "scenes-teacher"
    head.get_by_role("button").click()
    assert names(page)[-1] == "scenes-teacher"
    latency = page.locator(".board thead th", has_text="latency")
    latency.get_by_role("button").click()
    assert latency.get_attribute("aria-sort") == "ascending"


def test_keyboard_alone_sorts_and_skips_to_the_content(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    button = page.locator(".board thead button").first
    button.focus()
    page.keyboard.press("Enter")
    assert names(page) == ["scenes-ssd-1b", "scenes-teacher", "scenes-vega"]
    page.keyboard.press("Space")
    assert names(page) == ["scenes-vega", "scenes-teacher", "scenes-ssd-1b"]


def test_models_are_filtered_by_name(page: Any) -> None:
    page.get_by_label("Model contains").fill("VEGA")
    assert names(page) == ["scenes-vega"]
    assert page.get_by_text("1 of 3 models").is_visible()


def test_charts_show_one_metric_at_a_time(page: Any) -> None:
    figures = page.locator(".charts figure:visible")
    assert figures.count() == 2
    page.get_by_label("Metric").select_option("scene_accuracy")
    assert set(figures.evaluate_all("all => all.map((figure) => figure.dataset.metric)")) == {"scene_accuracy"}
    assert figures.first.get_by_role("img").get_attribute("aria-label").startswith("scene_accuracy")


def test_image_wall_can_be_filtered_ordered_and_limited_to_models(page: Any) -> None:
    assert len(prompts(page)) == len(PROMPTS)
    page.get_by_label("Prompt contains").fill("RED circle")
    assert prompts(page) == [text for text in PROMPTS if "red circle" in text]
    assert page.get_by_text(f"7 of {len(PROMPTS)} rows").is_visible()
    page.get_by_label("Prompt contains").fill("")
    page.get_by_label("Show").select_option("worst")
    worst = set(prompts(page))
    page.get_by_label("Show").select_option("random")
    assert worst
    assert worst.isdisjoint(prompts(page))
    page.get_by_label("Show").select_option("")
    page.get_by_label("Order").select_option("loss")
    losses = page.locator(".shot").evaluate_all("all => all.map((shot) => Number(shot.dataset.loss))")
    assert losses == sorted(losses)
    assert losses[0] < 0
    page.get_by_label("scenes-vega", exact=True).uncheck()
    assert page.locator('.wall [data-model="2"]:visible').count() == 0
    assert page.locator('.wall [data-model="1"]:visible').count() == len(PROMPTS)


def test_zoom_moves_between_models_and_prompts_and_restores_the_focus(page: Any) -> None:
    first = page.locator(".zoom").first
    first.focus()
    page.keyboard.press("Enter")
    title, text = page.locator("#zoom-title"), page.locator("#zoom .prompt")
    assert (title.text_content(), text.text_content()) == ("scenes-teacher", SCRIPT)
    page.keyboard.press("ArrowRight")
    assert title.text_content() == "scenes-ssd-1b"
    page.keyboard.press("ArrowDown")
    assert (title.text_content(), text.text_content()) == ("scenes-ssd-1b", RIGHT_TO_LEFT)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert "clip_score.scenes" in page.locator("#zoom .numbers").text_content()
    assert page.locator("#zoom img").evaluate("image => image.naturalWidth") == 8
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()
    assert first.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("page", [{"viewport": WIDE}, {"viewport": PHONE}], indirect=True)
def test_hostile_prompts_are_shown_as_text_and_keep_the_layout(page: Any) -> None:
    assert [text for text in prompts(page) if text in (SCRIPT, RIGHT_TO_LEFT, LONG)] == [SCRIPT, RIGHT_TO_LEFT, LONG]
    assert page.locator(".prompt").locator("script, img, b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(height < 100 for height in page.locator(".wall .prompt").evaluate_all("all => all.map((each) => each.clientHeight)"))


@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": PHONE, "color_scheme": "dark"}], indirect=True
)
def test_axe_finds_no_serious_violation(page: Any) -> None:
    def serious_violations() -> list[tuple[str, str]]:
        found = axe.Axe().run(page).response["violations"]
        return [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]

    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert serious_violations() == []
    page.locator(".zoom").first.click()
    assert serious_violations() == []


def test_everything_is_visible_without_javascript(browser: Any, page_url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_url)
    assert page.locator(".board tbody tr:visible").count() == 3
    assert page.locator(".shot:visible").count() == len(PROMPTS)
    assert page.locator(".charts figure:visible").count() == page.locator(".charts figure").count() == 8
    assert page.locator(".controls:visible").count() == 0
    context.close()


def test_print_has_no_controls_and_open_details(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".controls:visible, nav:visible").count() == 0
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_images_that_do_not_fit_are_on_a_linked_second_page(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_board(tmp_path)
    monkeypatch.setattr("sdbench.report.image_wall.PAGE_BYTES", 3000)
    page_file, rest_file = pages.write(tmp_path, tmp_path / "report.html", load(suites.find(suites.POLICY)))
    page = browser.new_page()
    page.goto(page_file.as_uri())
    n_shown = page.locator(".shot").count()
    page.get_by_role("link", name="The rest are on a separate page").click()
    assert page.url == rest_file.as_uri()
    assert n_shown > 0
    assert n_shown + page.locator(".shot").count() == len(PROMPTS)
    page.locator(".zoom").last.scroll_into_view_if_needed()
    sync_api.expect(page.locator(".zoom img").last).to_have_js_property("naturalWidth", 8)
    page.close()
