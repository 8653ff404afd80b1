"""The page in a real browser: what a reader does with it, with a mouse, with keys only, without JavaScript, and on paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import LONG, PROMPTS, RIGHT_TO_LEFT, SCRIPT, board
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
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    results = tmp_path_factory.mktemp("results")
    board(results)
    pages.write(results, results / "report.html", load(suites.find(suites.POLICY)))
    return (results / "report.html").as_uri()


@pytest.fixture
def opened(browser: Any, written: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, in a fresh profile; whatever it complains of or asks the network for is an error."""
    options = {"viewport": WIDE, "color_scheme": "light", **getattr(request, "param", {})}
    context = browser.new_context(**options)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda asked: trouble.append(asked.url) if not asked.url.startswith(("data:", written)) else None)
    page.goto(written)
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    assert trouble == []


def names(page: Any) -> list[str]:
    return page.locator(".board tbody tr:visible th").evaluate_all("cells => cells.map((cell) => cell.dataset.sort)")


def prompts(page: Any) -> list[str]:
    return page.locator(".wall .shot:visible .prompt").evaluate_all("found => found.map((each) => each.textContent)")


def test_a_click_sorts_best_first_and_another_turns_it_round(opened: Any) -> None:
    head = opened.locator(".board thead th", has_text="clip_score.scenes").first
    column = head.evaluate("cell => cell.cellIndex")
    for way, reverse in (("descending", True), ("ascending", False)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == way
        cells = opened.locator(f".board tbody tr > :nth-child({column + 1})")
        found = cells.evaluate_all("cells => cells.map((cell) => Number(cell.dataset.sort))")
        assert found == sorted(found, reverse=reverse)
    assert opened.locator("th[aria-sort]").count() == 1
    assert "ascending" in opened.locator("#live").text_content()


def test_less_is_better_is_sorted_the_other_way_and_what_is_missing_stays_last(opened: Any) -> None:
    head = opened.locator(".board thead th", has_text="win_rate")
    head.get_by_role("button").click()
    assert names(opened)[-1] == "scenes-teacher"
    head.get_by_role("button").click()
    assert names(opened)[-1] == "scenes-teacher"
    latency = opened.locator(".board thead th", has_text="latency")
    latency.get_by_role("button").click()
    assert latency.get_attribute("aria-sort") == "ascending"


def test_keys_alone_do_it(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"
    button = opened.locator(".board thead button").first
    button.focus()
    opened.keyboard.press("Enter")
    assert names(opened) == ["scenes-ssd-1b", "scenes-teacher", "scenes-vega"]
    opened.keyboard.press("Space")
    assert names(opened) == ["scenes-vega", "scenes-teacher", "scenes-ssd-1b"]


def test_models_are_filtered_by_name(opened: Any) -> None:
    opened.get_by_label("Model contains").fill("VEGA")
    assert names(opened) == ["scenes-vega"]
    assert opened.get_by_text("1 of 3 models").is_visible()


def test_charts_are_shown_one_metric_at_a_time(opened: Any) -> None:
    shown = opened.locator(".charts figure:visible")
    assert shown.count() == 2
    opened.get_by_label("Metric").select_option("scene_accuracy")
    assert set(shown.evaluate_all("all => all.map((figure) => figure.dataset.metric)")) == {"scene_accuracy"}
    assert shown.first.get_by_role("img").get_attribute("aria-label").startswith("scene_accuracy")


def test_the_wall_is_filtered_ordered_and_narrowed(opened: Any) -> None:
    assert len(prompts(opened)) == len(PROMPTS)
    opened.get_by_label("Prompt contains").fill("RED circle")
    assert prompts(opened) == [text for text in PROMPTS if "red circle" in text]
    assert opened.get_by_text(f"7 of {len(PROMPTS)} prompts").is_visible()
    opened.get_by_label("Prompt contains").fill("")
    opened.get_by_label("Show").select_option("worst")
    worst = set(prompts(opened))
    opened.get_by_label("Show").select_option("random")
    assert worst
    assert worst.isdisjoint(prompts(opened))
    opened.get_by_label("Show").select_option("")
    opened.get_by_label("Order").select_option("loss")
    losses = opened.locator(".shot").evaluate_all("all => all.map((shot) => Number(shot.dataset.loss))")
    assert losses == sorted(losses)
    assert losses[0] < 0
    opened.get_by_label("scenes-vega", exact=True).uncheck()
    assert opened.locator('.wall [data-model="2"]:visible').count() == 0
    assert opened.locator('.wall [data-model="1"]:visible').count() == len(PROMPTS)


def test_zoom_walks_over_models_and_prompts_and_gives_the_focus_back(opened: Any) -> None:
    first = opened.locator(".zoom").first
    first.focus()
    opened.keyboard.press("Enter")
    title, text = opened.locator("#zoom-title"), opened.locator("#zoom .prompt")
    assert (title.text_content(), text.text_content()) == ("scenes-teacher", SCRIPT)
    opened.keyboard.press("ArrowRight")
    assert title.text_content() == "scenes-ssd-1b"
    opened.keyboard.press("ArrowDown")
    assert (title.text_content(), text.text_content()) == ("scenes-ssd-1b", RIGHT_TO_LEFT)
    opened.keyboard.press("ArrowLeft")
    opened.keyboard.press("ArrowUp")
    assert "clip_score.scenes" in opened.locator("#zoom .numbers").text_content()
    assert opened.locator("#zoom img").evaluate("image => image.naturalWidth") == 8
    opened.keyboard.press("Escape")
    assert not opened.locator("#zoom").is_visible()
    assert first.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("opened", [{"viewport": WIDE}, {"viewport": PHONE}], indirect=True)
def test_hostile_prompts_are_text_and_break_no_layout(opened: Any) -> None:
    assert [text for text in prompts(opened) if text in (SCRIPT, RIGHT_TO_LEFT, LONG)] == [SCRIPT, RIGHT_TO_LEFT, LONG]
    assert opened.locator(".prompt").locator("script, img, b").count() == 0
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(height < 100 for height in opened.locator(".wall .prompt").evaluate_all("all => all.map((each) => each.clientHeight)"))


@pytest.mark.parametrize(
    "opened", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": PHONE, "color_scheme": "dark"}], indirect=True
)
def test_axe_finds_no_serious_fault(opened: Any) -> None:
    def serious() -> list[tuple[str, str]]:
        found = axe.Axe().run(opened).response["violations"]
        return [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]

    opened.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert serious() == []
    opened.locator(".zoom").first.click()
    assert serious() == []


def test_without_javascript_all_of_it_is_there(browser: Any, written: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written)
    assert page.locator(".board tbody tr:visible").count() == 3
    assert page.locator(".shot:visible").count() == len(PROMPTS)
    assert page.locator(".charts figure:visible").count() == page.locator(".charts figure").count() == 8
    assert page.locator(".controls:visible").count() == 0
    context.close()


def test_on_paper_there_are_no_controls_and_every_detail_is_open(opened: Any) -> None:
    opened.emulate_media(media="print", color_scheme="dark")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.locator(".controls:visible, nav:visible").count() == 0
    assert opened.locator("details:not([open])").count() == 0
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_what_has_no_room_lies_beside_the_page_and_opens_from_there(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board(tmp_path)
    monkeypatch.setattr("sdbench.report.pictures.PAGE_BYTES", 3000)
    page_file, beside = pages.write(tmp_path, tmp_path / "report.html", load(suites.find(suites.POLICY)))
    page = browser.new_page()
    page.goto(page_file.as_uri())
    shown = page.locator(".shot").count()
    page.get_by_role("link", name="The rest is on a page beside this one").click()
    assert page.url == beside.as_uri()
    assert shown > 0
    assert shown + page.locator(".shot").count() == len(PROMPTS)
    page.locator(".zoom").last.scroll_into_view_if_needed()
    sync_api.expect(page.locator(".zoom img").last).to_have_js_property("naturalWidth", 8)
    page.close()
