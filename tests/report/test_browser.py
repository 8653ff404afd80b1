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


def open_wall(page: Any) -> None:
    page.get_by_text(f"{len(PROMPTS)} rows of images").click()


def names(page: Any) -> list[str]:
    found: list[str] = page.locator(".board tbody tr:visible th").evaluate_all("cells => cells.map((cell) => cell.dataset.sort)")
    return found


def prompts(page: Any) -> list[str]:
    found: list[str] = page.locator(".wall .shot:visible .prompt").evaluate_all("found => found.map((each) => each.textContent)")
    return found


def test_click_sorts_best_first_second_click_reverses_and_third_restores(page: Any) -> None:
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
    head.get_by_role("button").click()
    assert page.locator("th[aria-sort]").count() == 0
    assert names(page) == ["scenes-teacher", "scenes-ssd-1b", "scenes-vega"]


def test_lower_is_better_sorts_ascending_and_missing_values_stay_last(page: Any) -> None:
    head = page.locator(".board thead th", has_text="win_rate")
    head.get_by_role("button").click()
    assert names(page)[-1] == "scenes-teacher"
    head.get_by_role("button").click()
    assert names(page)[-1] == "scenes-teacher"
    latency = page.locator(".board thead th", has_text="latency")
    latency.get_by_role("button").click()
    assert latency.get_attribute("aria-sort") == "ascending"


def test_names_sort_by_the_numbers_in_them(browser: Any, tmp_path: Path) -> None:
    write_board(tmp_path, ("step-1000", "step-10000", "step-500"), ("red", "blue"))
    pages.write(tmp_path, tmp_path / "report.html", load(suites.find(suites.POLICY)))
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    head = page.locator(".board thead th").first
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert names(page) == ["step-500", "step-1000", "step-10000"]
    head.get_by_role("button").click()
    assert names(page) == ["step-10000", "step-1000", "step-500"]
    page.close()


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
    assert prompts(page) == [], "folded up, so that one can scroll past it"
    open_wall(page)
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
    open_wall(page)
    first = page.locator(".wall .zoom").first
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


@pytest.mark.parametrize("page", [{"viewport": PHONE, "has_touch": True, "is_mobile": True}], indirect=True)
def test_zoom_reaches_every_image_by_buttons_alone(page: Any) -> None:
    open_wall(page)
    page.locator(".wall .zoom").first.tap()
    title, text = page.locator("#zoom-title"), page.locator("#zoom .prompt")
    for button, expected in (
        ("Next prompt", ("scenes-teacher", RIGHT_TO_LEFT)),
        ("Next model", ("scenes-ssd-1b", RIGHT_TO_LEFT)),
        ("Previous prompt", ("scenes-ssd-1b", SCRIPT)),
        ("Previous model", ("scenes-teacher", SCRIPT)),
    ):
        page.get_by_role("button", name=button).tap()
        assert (title.text_content(), text.text_content()) == expected
    assert not page.get_by_text("Arrow keys").is_visible(), "there are none"


def test_worst_image_can_be_enlarged_while_the_wall_is_folded_up(page: Any) -> None:
    copy = page.locator(".cases .zoom").nth(1)
    prompt = copy.evaluate("button => button.closest('.cases > li').querySelector('.prompt').textContent")
    copy.click()
    title, text = page.locator("#zoom-title"), page.locator("#zoom .prompt")
    assert (title.text_content(), text.text_content()) == ("scenes-ssd-1b", prompt)
    assert page.locator("#zoom img").evaluate("image => image.naturalWidth") == 8
    page.keyboard.press("ArrowRight")
    assert (title.text_content(), text.text_content()) == ("scenes-vega", prompt)
    page.keyboard.press("Escape")
    assert copy.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_long_names_leave_room_for_the_values(browser: Any, size: dict[str, int], tmp_path: Path) -> None:
    write_board(tmp_path, ("scenes-teacher", "x" * 125, "sdxl-vega-kd-lr1e-5-bs64-step-100000"), PROMPTS[3:7])
    page_file, *_ = pages.write(tmp_path, tmp_path / "report.html", load(suites.find(suites.POLICY)))
    page = browser.new_page(viewport=size)
    page.goto(page_file.as_uri())
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    tables = page.locator("div.scroll")
    for table in tables.all():
        table.evaluate("area => { area.scrollLeft = area.scrollWidth; }")
        name, last, area = (
            table.locator(part).evaluate("element => { const { left, right } = element.getBoundingClientRect(); return [left, right]; }")
            for part in ("tbody tr:last-child > :first-child", "tbody tr:last-child > :last-child", "xpath=.")
        )
        assert name[0] == pytest.approx(area[0], abs=1), "in view beside the values"
        assert name[1] <= last[0] + 1, "covers none of the last"
        assert last[1] <= area[1] + 1
    assert tables.count() > 5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.parametrize("page", [{"viewport": {"width": 1440, "height": 200}}], indirect=True)
def test_titles_stay_in_view_above_a_table_that_is_taller_than_the_screen(page: Any) -> None:
    table = page.get_by_role("region", name="Leaderboard")
    table.evaluate("area => { area.scrollTop = area.scrollHeight; }")
    tops = table.evaluate("area => [area, area.querySelector('thead th')].map((element) => element.getBoundingClientRect().top)")
    assert tops[1] == pytest.approx(tops[0], abs=1)
    assert table.evaluate("area => area.scrollTop") > 0


@pytest.mark.parametrize("page", [{"viewport": WIDE}, {"viewport": PHONE}], indirect=True)
def test_hostile_prompts_are_shown_as_text_and_keep_the_layout(page: Any) -> None:
    open_wall(page)
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
    page.locator(".wall .zoom").first.click()
    assert serious_violations() == []


def test_everything_is_visible_without_javascript(browser: Any, page_url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_url)
    assert page.locator(".board tbody tr:visible").count() == 3
    open_wall(page)
    assert page.locator(".shot:visible").count() == len(PROMPTS)
    assert page.locator(".charts figure:visible").count() == page.locator(".charts figure").count() == 8
    assert page.locator(".controls:visible").count() == 0
    style = "element => [getComputedStyle(element, '::after').content, getComputedStyle(element).cursor]"
    for dead in (page.locator(".board .title").first, page.locator(".wall .zoom").first):
        assert dead.evaluate(style) == ["none", "default"], "nothing offers what only a script can do"
    context.close()


def test_print_has_no_controls_and_open_details(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".controls:visible, nav:visible").count() == 0
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_print_has_all_columns_all_charts_and_no_small_print_larger_than_the_numbers(browser: Any, tmp_path: Path) -> None:
    """The committed records, on Letter, whose 279 mm less two margins of 8 mm are 995 px; A4 is wider."""
    page_file, *_ = pages.write(Path(__file__).parents[2] / "results", tmp_path / "report.html", load(suites.find(suites.POLICY)))
    page = browser.new_page(viewport={"width": 995, "height": 740})
    page.goto(page_file.as_uri())
    n_shown = page.locator(".charts figure:visible").count()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("table").evaluate_all("all => Math.max(...all.map((table) => table.getBoundingClientRect().right))") <= 995
    assert page.locator(".charts figure:visible").count() == page.locator(".charts figure").count() > n_shown
    sizes = "all => all.map((each) => parseFloat(getComputedStyle(each).fontSize))"
    small, numbers = (
        page.locator(kind).evaluate_all(sizes)
        for kind in (".interval, .unit, .note, .absent, .rank, .legend, .notes", "td:not(.absent), .number")
    )
    assert max(small) <= min(numbers)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".charts figure:visible").count() == n_shown
    page.close()


def test_images_that_do_not_fit_are_on_a_linked_second_page(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_board(tmp_path)
    monkeypatch.setattr("sdbench.report.image_wall.PAGE_BYTES", 3000)
    page_file, rest_file = pages.write(tmp_path, tmp_path / "report.html", load(suites.find(suites.POLICY)))
    page = browser.new_page()
    page.goto(page_file.as_uri())
    n_shown = page.locator(".shot").count()
    page.get_by_text(f"{n_shown} rows of images").click()
    page.get_by_role("link", name="The rest are on a separate page").click()
    assert page.url == rest_file.as_uri()
    assert n_shown > 0
    assert n_shown + page.locator(".shot").count() == len(PROMPTS)
    page.locator(".zoom").last.scroll_into_view_if_needed()
    sync_api.expect(page.locator(".zoom img").last).to_have_js_property("naturalWidth", 8)
    page.close()
