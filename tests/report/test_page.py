"""The page as a file: safe, complete, of bounded size, and the same for the same records."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from boards import LONG, MODELS, make_model, png, write_board
from factories import GPU, make_measurement, make_record, save_record, with_value

from sdbench import api, cli, records
from sdbench.errors import UserError
from sdbench.gate import floors
from sdbench.gate.pairing import Side
from sdbench.gate.verdicts import Report
from sdbench.leaderboard import MAX_MODELS, grids, published, speed, standings
from sdbench.records import Model, Scores, SuiteId, Value
from sdbench.report import image_wall, sections
from sdbench.report.page import COLUMNS
from sdbench.report.worst import Case, Worst


class Tags(HTMLParser):
    """A parser that collects every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    write_board(results)
    return results


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    assert cli.main(["report", "--results", str(results)]) == 0
    return (results / "report.html").read_text(encoding="utf-8")


def test_page_has_no_external_links_and_only_its_own_script(page: str) -> None:
    tags = Tags(page).found
    assert [tag for tag, _ in tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    found = {value or "" for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "xlink:href", "action")}
    sources = {claim.url for claim in published.load_claims()}
    assert sources < found
    assert all(link.startswith(("#", "data:")) for link in found - sources)
    policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'; img-src data:; ")
    assert "unsafe-eval" not in (policy or "")
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", policy or "")


def test_ids_are_unique_and_internal_links_have_targets(page: str) -> None:
    tags = Tags(page).found
    ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for tag, a in tags if tag == "a" and (a.get("href") or "").startswith("#")} <= set(ids)


def test_images_are_linked_if_none_fits_into_the_page(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_wall, "PAGE_BYTES", 0)
    page, *rest_files = api.report(places=api.Places(results), out=tmp_path / "report #1.html", policy=None)
    tags = Tags(page.read_text(encoding="utf-8")).found
    links = [attributes["href"] or "" for tag, attributes in tags if tag == "a" and "images/" in (attributes["href"] or "")]
    assert [page.parent / unquote(urlsplit(link).path) for link in links] == rest_files
    assert len(rest_files) == 1


def test_page_is_not_written_over_a_folder(results: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^{tmp_path} is a folder; name the file of the page with --out, such as {tmp_path}/report\.html$"
    ):
        api.report(places=api.Places(results), out=tmp_path)


def test_hostile_text_is_escaped_everywhere(page: str) -> None:
    assert "<script>window.hacked" not in page
    assert "<img src=" not in page.replace('<img src="data:', "")
    assert LONG in page


def test_same_records_make_the_same_page(page: str, results: Path, tmp_path: Path) -> None:
    (again,) = api.report(places=api.Places(results), out=tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == page


def test_scores_by_group_are_shown_where_the_prompts_have_groups(page: str, tmp_path: Path) -> None:
    record, scores = make_model(0, "scenes-teacher")
    numbered = Scores([prompt_id.removeprefix("p") for prompt_id in scores.prompt_ids], scores.samples, scores.columns, scores.prompts)
    records.write(record.model_copy(update={"groups": {"anime": 12, "photo": 12}}), numbered, {}, tmp_path)
    (grouped,) = api.report(places=api.Places(tmp_path), out=tmp_path / "report.html")
    text = grouped.read_text(encoding="utf-8")
    assert "anime (n = 12)" in text[text.index('id="s1-groups"') :]
    assert "s1-groups" not in page


def test_page_has_every_part(page: str) -> None:
    for part in ("table", "trade", "stages", "wins", "gate", "worst", "images", "made"):
        assert f'id="s1-{part}"' in page
    assert re.search(r'<span class="chip regressed">regressed</span> scenes-vega', page)
    assert "Published elsewhere" in page
    assert "23.4805" in page[page.index('id="published"') :]
    assert "23.4805" not in page[: page.index('id="published"')]
    assert "hold 24 of 48 such rows; 24 are shown here" in page


def test_section_says_what_its_rows_are_of_and_where_the_methods_are(page: str, tmp_path: Path) -> None:
    record, scores = make_measurement("sdxl", family="sdxl")
    save_record((record.model_copy(update={"n_images": 0}), scores), tmp_path)
    (path,) = api.report(places=api.Places(tmp_path))
    timed = path.read_text(encoding="utf-8")
    assert standings.ABOUT["scenes"] in html.unescape(page)
    assert standings.ABOUT["scenes"] not in html.unescape(timed)
    assert all(grids.METHODS in text for text in (page, timed))
    assert [re.findall('<span class="note">(.*?)</span>', text) for text in (page, timed)] == [
        ["48 images, the teacher", "48 images", "48 images"],
        ["the teacher"],
    ]
    assert "another run has no interval" not in page, "all models took turns"


def test_reasons_and_notes_are_below_every_table_once(tmp_path: Path) -> None:
    for place, name in enumerate(MODELS):
        record, scores = make_model(place, name)
        failed = Value(name="latency.pipeline.p90", kind="probe", direction="lower", unit="s", state="failed", reason="CUDA out of memory")
        records.write(record.model_copy(update={"values": (*record.values, failed)}), scores, {}, tmp_path)
    (path,) = api.report(places=api.Places(tmp_path))
    text = path.read_text(encoding="utf-8")
    assert text.count("CUDA out of memory") == 1
    assert text.count("<td>failed ¹</td>") == len(MODELS)


def test_columns_of_words_are_those_of_tables_on_the_page() -> None:
    teacher, student = (make_measurement(name)[0] for name in ("scenes-teacher", "scenes-vega"))
    verdict = Report("incomparable", "no records", "scenes-vega", "scenes-teacher")
    shown = [verdict.grid(), published.grid(lambda claim: claim.url), *speed.grids([teacher, student], teacher).values()]
    assert {title for grid in shown for title in grid.header} >= COLUMNS.keys()


def test_verdicts_use_the_noise_between_runs(tmp_path: Path) -> None:
    teacher = save_record(make_measurement("scenes-teacher", seed=1, run="one"), tmp_path)
    student = save_record(make_measurement("scenes-vega", seed=2, run="other", worse="latency.pipeline.p50", by=0.2), tmp_path)

    def first_verdict() -> str:
        (path,) = api.report(places=api.Places(tmp_path))
        text = path.read_text(encoding="utf-8")
        assert '<span class="interval">separate runs</span>' in text, "in the cell of the speed-up"
        assert "another run has no interval" in text
        verdict: str = re.findall(r'<span class="chip (\w+)">', text)[0]
        return verdict

    assert first_verdict() == "regressed"
    floor = floors.estimate([Side.read(teacher), Side.read(student)], (1, 2), records.read_record(teacher).suite)
    spread = floors.Spread(noise=0.25, values=(0.4, 0.6), unit="s")
    floors.write(floor.model_copy(update={"metrics": {"latency.pipeline.p50": spread}}), tmp_path)
    assert first_verdict() == "inconclusive" == api.gate(str(student), str(teacher), places=api.Places(tmp_path)).verdict


@pytest.mark.parametrize("source", ["embedded", "rendered"])
def test_verdicts_are_those_of_the_gate_with_its_notes(source: str, tmp_path: Path) -> None:
    suite = SuiteId(name="quality-custom", version=1, digest="c5")
    record, scores = make_measurement("scenes-teacher", seed=1, n_prompts=32, suite=suite, run="one")
    if source == "rendered":
        values = tuple(value for value in record.values if value.kind != "probe")
        record = record.model_copy(update={"model": record.model.model_copy(update={"source": source}), "values": values})
    student = make_measurement("scenes-vega", seed=2, n_prompts=32, suite=suite, run="other", sampling={"steps": 4})
    teacher, candidate = save_record((record, scores), tmp_path), save_record(student, tmp_path)
    report = api.gate(candidate, teacher, places=api.Places(tmp_path))
    (path,) = api.report(places=api.Places(tmp_path))
    shown = path.read_text(encoding="utf-8").partition('id="s1-gate"')[2].partition("<h3")[0]
    assert re.findall(r'<span class="chip (\w+)">', shown) == [report.verdict]
    assert [html.unescape(note) for note in re.findall("<li>(.*?)</li>", shown)] == [*report.notes]
    assert {"embedded": "separate runs", "rendered": "not measured, so not weighed"}[source] in shown
    assert "judged by the margins of the suite it was derived from" in shown


def test_page_has_no_verdicts_where_nothing_is_weighed_against_images_alone(tmp_path: Path) -> None:
    record, scores = make_measurement("scenes-teacher")
    values = tuple(value for value in record.values if value.kind != "probe")
    images = record.model_copy(update={"model": record.model.model_copy(update={"source": "rendered"}), "values": values})
    save_record((images, scores), tmp_path)
    save_record(make_measurement("scenes-vega"), tmp_path)
    (tmp_path / "own.toml").write_text(
        'alpha = 0.05\n[suites.quality]\n"latency.pipeline.p50" = { direction = "lower", margin = 1, required = true }\n', encoding="utf-8"
    )
    (path,) = api.report(places=api.Places(tmp_path), policy=tmp_path / "own.toml")
    assert 'id="s1-gate"' not in path.read_text(encoding="utf-8")


def test_nan_score_is_shown_as_nan(tmp_path: Path) -> None:
    for place, name in enumerate(MODELS):
        record, scores = make_model(place, name)
        scores.columns["preference.scenes"][0] = np.nan
        records.write(record, scores, {"p0000.png": png((place, 0, 0))}, tmp_path)
    (path,) = api.report(places=api.Places(tmp_path))
    assert "preference.scenes nan" in path.read_text(encoding="utf-8")


def test_models_without_images_scores_or_a_policy_have_a_page(tmp_path: Path) -> None:
    suite = SuiteId(name="efficiency", version=1, digest="e44")
    random = Model(name="sdxl", architecture="sdxl", source="random", weights_digest=None, label="random weights")
    odd = random.model_copy(update={"name": "odd", "source": "folder:odd", "label": '"><b>'})
    for model in (random, odd):
        records.write(make_record(family="sdxl", suite=suite, machine=GPU, n_images=0, model=model), Scores([], [], {}), {}, tmp_path)
    (path,) = api.report(places=api.Places(tmp_path))
    text = path.read_text(encoding="utf-8")
    assert "sdxl (random weights)" in text
    assert 'id="s1-made"' in text
    assert 'id="s1-gate"' not in text, "the policy has no rules for this suite"
    assert "&#34;&gt;&lt;b&gt;" in text


def test_given_policy_without_the_suite_is_an_error(tmp_path: Path) -> None:
    write_board(tmp_path)
    (tmp_path / "own.toml").write_text(
        'alpha = 0.05\n[suites.qualty]\nx = { direction = "lower", margin = 1, required = true }\n', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"own\.toml has no table \[suites\.quality\].*\(it has qualty\)"):
        api.report(places=api.Places(tmp_path), policy=tmp_path / "own.toml")
    assert not (tmp_path / "report.html").exists()


def test_unwritable_place_and_missing_policy_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_board(tmp_path)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        api.report(places=api.Places(tmp_path), out=tmp_path / "file" / "report.html")
    assert cli.main(["report", "--results", str(tmp_path), "--policy", "nowhere.toml"]) == 2
    assert "nowhere.toml" in capsys.readouterr().err


def test_table_has_quality_and_cost_first_and_reasons_below(tmp_path: Path) -> None:
    record, scores = make_model(0, "scenes-teacher")
    agreement = Value(name="agreement.ssim", kind="score", direction="higher", unit="SSIM", state="missing", reason="no <teacher> here")
    records.write(record.model_copy(update={"values": (agreement, *record.values)}), scores, {}, tmp_path)
    (path,) = api.report(places=api.Places(tmp_path))
    table, below = path.read_text(encoding="utf-8").partition('<table class="board"')[2].split("</table>")[:2]
    titles = [re.sub("<wbr>", "", title) for title in re.findall('<span class="title">(.*?)</span>', table)]
    assert titles[0] == "model"
    assert titles.index("clip_score.scenes") < titles.index("latency.pipeline.p50") < titles.index("agreement.ssim") == len(titles) - 1
    assert "clip_<wbr>score.<wbr>scenes" in table
    assert re.findall('<td class="absent">(.*?)</td>', table)[-1] == "missing ²"
    assert below.index("¹ the teacher is what the others are compared with; ² no &lt;teacher&gt; here") < below.index("<h3")


def test_cells_against_another_reference_than_most_are_marked(tmp_path: Path) -> None:
    for place, name in enumerate(MODELS):
        of = {"reference": "rebuilt" if place == 2 else "first"}
        measurement = with_value(with_value(make_model(place, name), "fd.scenes", **of), "win_rate.clip_score.scenes", **of, note="5 wins")
        save_record(measurement, tmp_path)
    (section,) = standings.sections(standings.read_rows(tmp_path))
    notes = {column.title: [cell.note for cell in column.cells] for column in sections._columns(section)}
    assert notes["Frechet: fd.scenes"] == ["", "", standings.OTHER_REFERENCE]
    assert notes["win_rate.clip_score.scenes"][2] == standings.OTHER_REFERENCE, "two of the same age: the first"
    assert "fd.scenes" in section.ranks


@pytest.mark.parametrize("n", [MAX_MODELS, MAX_MODELS + 1])
def test_limit_of_models_is_said_once_in_a_section_that_has_more(n: int, tmp_path: Path) -> None:
    write_board(tmp_path, ("scenes-teacher", *(f"a{number:02d}" for number in range(n - 1))), ("a red circle", "a blue circle"))
    (path,) = api.report(places=api.Places(tmp_path))
    text = path.read_text(encoding="utf-8")
    assert text.count(f"at most {MAX_MODELS} models") == (n > MAX_MODELS)
    assert f"first {MAX_MODELS}" not in text
    header = text.partition('id="s1-wins"')[2].partition("</thead>")[0]
    assert header.count('<th scope="col">') == MAX_MODELS


def test_worst_image_is_shown_beside_the_teachers_and_the_teachers_not_alone(results: Path) -> None:
    (section,) = standings.sections(standings.read_rows(results))
    keys = {("scenes-vega", "a"): "own", ("scenes-teacher", "a"): "teachers", ("scenes-vega", "b"): "own-b", ("scenes-teacher", "c"): "c"}
    worst = Worst("scenes-vega", "clip_score.scenes", tuple(Case(prompt_id, prompt_id, -1.0, 2.0, 3.0) for prompt_id in "abc"))
    cases = sections._worst_view(worst, keys, section.teacher)["cases"]
    assert [case["images"] for case in cases] == [[("scenes-teacher", "teachers"), ("scenes-vega", "own")], [("scenes-vega", "own-b")], []]


def test_numbers_are_aligned_at_the_decimal_point(results: Path) -> None:
    (section,) = standings.sections(standings.read_rows(results))
    for column in sections._columns(section):
        digits_after_point = [
            len(cell.text) - (cell.text.index(".") if "." in cell.text else len(cell.text))
            for cell in column.cells
            if cell.text[-1].isdigit()
        ]
        assert len(set(digits_after_point)) <= 1, column
    cells = sections._align([sections.PageCell("52", 52.0), sections.PageCell("63.6", 63.6), sections.PageCell("no model")])
    assert [cell.text for cell in cells] == ["52\u2008\u2007", "63.6", "no model"]
