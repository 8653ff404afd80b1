"""The image wall: which images exist, which go into the page, and what happens to the rest."""

import base64
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from boards import MODELS, PROMPTS, make_model, png, write_board
from factories import make_record, make_scores, save_record, with_value
from PIL import Image
from scipy.stats import binomtest
from values import absent, score

from sdbench import records
from sdbench.errors import UserError
from sdbench.leaderboard import standings
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import Value
from sdbench.report import image_wall, sections, wins, worst


def read_section(results: Path) -> Section:
    (found,) = standings.sections(standings.read_rows(results))
    return found


def test_each_row_has_one_prompt_with_images_and_scores_of_all_models(tmp_path: Path) -> None:
    write_board(tmp_path)
    section = read_section(tmp_path)
    wall = image_wall.build_wall(sections.build_album(section), 10**7)
    assert wall.models == MODELS
    assert [shot.prompt for shot in wall.shots] == list(PROMPTS)
    assert wall.left == ()
    shot = wall.shots[4]
    assert [image.model for image in shot.images if image] == list(MODELS)
    image = shot.images[1]
    assert image is not None
    content = base64.b64decode(image.src.removeprefix("data:image/png;base64,"))
    assert content == (section.rows[1].folder / "images" / "p0004.png").read_bytes()
    assert f"clip_score.scenes {section.rows[1].scores.columns['clip_score.scenes'][8]:.2f}" in image.scores


@pytest.mark.parametrize(("reference", "shown"), [("w-teacher", True), ("w-older", False)])
def test_teachers_image_in_a_students_record_is_shown_if_it_is_of_this_teacher(tmp_path: Path, reference: str, shown: bool) -> None:
    for place, name in enumerate(MODELS[:2]):
        record, scores = make_model(place, name)
        compared = Value(name="agreement.ssim", kind="score", direction="higher", unit="SSIM", value=0.5, n=24, reference=reference)
        model = record.model.model_copy(update={"weights_digest": "w-teacher"})
        values = (*record.values, compared) if place else record.values
        images = {"p0003.png": png((place, 0, 0))} | ({"p0004.png": png((9, 9, 9)), "p0004.teacher.png": png((7, 7, 7))} if place else {})
        records.write(record.model_copy(update={"model": model, "values": values}), scores, images, tmp_path)
    album = sections.build_album(read_section(tmp_path))
    assert album.names == ["p0003", "p0004"]
    of_teacher, own = album.shot("p0004").images
    assert own is not None
    assert base64.b64decode(own.src.partition(",")[2]) == png((9, 9, 9))
    assert (of_teacher is not None) == shown
    assert of_teacher is None or base64.b64decode(of_teacher.src.partition(",")[2]) == png((7, 7, 7))


def test_full_page_lists_the_remaining_prompts_and_shows_worst_and_random_ones(tmp_path: Path) -> None:
    write_board(tmp_path)
    album = sections.build_album(read_section(tmp_path))
    one = album.shot("p0000").n_bytes
    wall = image_wall.build_wall(album, 6 * one + 5)
    assert len(wall.shots) in (5, 6, 7)
    assert {shot.worst for shot in wall.shots} == {True, False}
    assert sorted([*(shot.name for shot in wall.shots), *wall.left]) == album.names
    assert image_wall.build_wall(album, 6 * one + 5) == wall


def test_at_most_200_prompts_are_in_the_page(tmp_path: Path) -> None:
    prompts = tuple(f"prompt {n}" for n in range(320))
    for place in range(5):
        record, scores = make_model(place, f"scenes-{place}", prompts)
        images_by_name = {f"p{n:04d}.png": png((place, n % 256, 0)) for n in range(64 * place, 64 * place + 64)}
        records.write(record, scores, images_by_name, tmp_path)
    wall = image_wall.build_wall(sections.build_album(read_section(tmp_path)), 10**9)
    assert len(wall.shots) == 200
    assert len(wall.left) == 120


def test_remaining_images_are_copied_beside_the_page(tmp_path: Path) -> None:
    write_board(tmp_path / "results")
    album = sections.build_album(read_section(tmp_path / "results"))
    rest = image_wall.build_rest_wall(album, ["p0003", "p0005"], tmp_path / "report-images" / "s1")
    first = rest.shots[0].images[0]
    assert first is not None
    assert first.src == f"s1/scenes-teacher/{album.rows[0].folder.name}/p0003.png"
    assert (tmp_path / "report-images" / first.src).read_bytes() == (album.rows[0].folder / "images" / "p0003.png").read_bytes()


def test_rows_of_the_same_name_keep_their_own_images_beside_the_page(tmp_path: Path) -> None:
    for label in ("", "random weights"):
        record, scores = make_model(0, "scenes-teacher")
        model = record.model.model_copy(update={"label": label})
        records.write(record.model_copy(update={"model": model}), scores, {"p0000.png": png((200, len(label), 0))}, tmp_path)
    album = sections.build_album(read_section(tmp_path))
    (shot,) = image_wall.build_rest_wall(album, ["p0000"], tmp_path / "report-images" / "s1").shots
    contents = {(tmp_path / "report-images" / image.src).read_bytes() for image in shot.images if image}
    assert contents == {png((200, 0, 0)), png((200, 14, 0))}


def test_large_images_are_scaled_down_and_compressed(tmp_path: Path) -> None:
    record, scores = make_model(0, "scenes-teacher")
    noise = io.BytesIO()
    Image.effect_noise((512, 256), 90).convert("RGB").save(noise, "PNG")
    records.write(record, scores, {"p0000.png": noise.getvalue()}, tmp_path)
    (shot,) = image_wall.build_wall(sections.build_album(read_section(tmp_path)), 10**7).shots
    (image,) = shot.images
    assert image is not None
    assert (image.width, image.height) == (256, 128)
    assert image.src.startswith("data:image/webp;base64,")
    assert len(image.src) < len(noise.getvalue()) / 4


@pytest.mark.parametrize("content", [b"", b"no image", png((1, 2, 3), 64)[:-20], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_unreadable_image_is_an_error(content: bytes, tmp_path: Path) -> None:
    record, scores = make_model(0, "scenes-teacher")
    records.write(record, scores, {"p0000.png": content}, tmp_path)
    with pytest.raises(UserError, match=r"p0000\.png cannot be read .*; restore it, or delete it"):
        image_wall.build_wall(sections.build_album(read_section(tmp_path)), 10**7)


def test_wall_without_images_is_empty(tmp_path: Path) -> None:
    records.write(*make_model(0, "scenes-teacher"), {}, tmp_path)
    assert image_wall.build_wall(sections.build_album(read_section(tmp_path)), 10**7).shots == ()


def test_worst_cases_are_the_largest_losses_and_influences(tmp_path: Path) -> None:
    write_board(tmp_path)
    section = read_section(tmp_path)
    teacher, student = section.rows[0].scores, section.rows[2].scores
    difference = student.columns["clip_score.scenes"] - teacher.columns["clip_score.scenes"]
    images = worst.find(section, ["clip_score.scenes", "preference.scenes"])
    found = next(group for group in images.regressions if (group.model, group.metric) == ("scenes-vega", "clip_score.scenes"))
    assert [case.amount for case in found.cases] == pytest.approx(sorted(difference)[: worst.MAX_CASES])
    assert all(
        case.own is not None and case.teacher is not None and case.own - case.teacher == pytest.approx(case.amount) for case in found.cases
    )
    by_model = [row.scores.columns["clip_score.scenes"] - teacher.columns["clip_score.scenes"] for row in section.rows]
    lost = dict(zip(student.image_names, np.min(by_model, axis=0).tolist(), strict=True))
    assert images.losses == pytest.approx({name: loss for name, loss in lost.items() if loss < 0}), "of any model, by the first judge"
    assert {group.metric for group in images.regressions} == {"clip_score.scenes", "preference.scenes"}
    costliest = next(group for group in images.costliest if group.model == "scenes-vega")
    influence = student.columns["fd.scenes:influence"]
    assert [case.amount for case in costliest.cases] == pytest.approx(sorted(influence / len(influence), reverse=True)[: worst.MAX_CASES])
    assert costliest.cases[0].prompt == PROMPTS[int(influence.argmax()) // 2]
    student.columns["clip_score.scenes"] = teacher.columns["clip_score.scenes"] + np.where(np.arange(len(difference)) == 3, -1, 1)
    (found, *_) = (group for group in worst.find(section, ["clip_score.scenes"]).regressions if group.model == "scenes-vega")
    assert [case.amount for case in found.cases] == pytest.approx([-1]), "the others are better than the teacher's"


def test_win_rates_are_counted_per_prompt_and_are_symmetric(tmp_path: Path) -> None:
    write_board(tmp_path)
    section = read_section(tmp_path)
    assert wins.judges(section) == ["clip_score.scenes"]
    matrix = wins.matrix(section, "clip_score.scenes")
    assert matrix is not None
    by_prompt = [row.scores.columns["clip_score.scenes"].reshape(-1, 2).mean(1) for row in section.rows]
    win, loss = matrix.rows[0][2], matrix.rows[2][0]
    assert win is not None
    assert loss is not None
    assert win.share == (by_prompt[0] > by_prompt[2]).mean()
    assert (loss.share, loss.low, loss.high) == pytest.approx((1 - win.share, 1 - win.high, 1 - win.low))
    assert win.sure
    assert loss.sure
    assert matrix.rows[0][0] is None
    assert wins.matrix(section, "no.such") is None


def test_model_that_always_wins_leaves_a_share_that_is_not_negative(tmp_path: Path) -> None:
    n = 9  # for which rounding puts the ends of the interval outside 0 to 1
    for name, value in (("scenes-teacher", 1.0), ("scenes-vega", 0.0)):
        save_record(
            (
                make_record(name, (score("clip_score.scenes", "100 cos", value, value, value),)),
                make_scores(n, 1, **{"clip_score.scenes": np.full(n, value)}),
            ),
            tmp_path,
        )
    matrix = wins.matrix(read_section(tmp_path), "clip_score.scenes")
    assert matrix is not None
    loss = matrix.rows[1][0]
    assert loss is not None
    assert f"{100 * loss.low:.0f}" == "0"


def test_wins_are_sure_by_sign_tests_with_holms_correction_over_all_pairs(tmp_path: Path) -> None:
    """Of scores in few whole numbers, so that many prompts tie."""
    n, random = 60, np.random.default_rng(1)
    columns = [random.integers(0, 4, n) + (random.random(n) < share) for share in (0, 0.3, 0.5, 0.7, 1)]
    for place, column in enumerate(columns):
        record = make_record(f"model-{place}", (score("clip_score.scenes", "100 cos", float(column.mean()), 0.0, 9.0),), n_images=n)
        save_record((record, make_scores(n, 1, **{"clip_score.scenes": column.astype(float)})), tmp_path)
    matrix = wins.matrix(read_section(tmp_path), "clip_score.scenes")
    assert matrix is not None
    order = {name: place for place, name in enumerate(matrix.models)}
    pairs = list(itertools.combinations(range(len(columns)), 2))
    p_values = [binomtest(int((columns[a] > columns[b]).sum()), int((columns[a] != columns[b]).sum())).pvalue for a, b in pairs]
    expected: set[tuple[int, int]] = set()
    for p, pair in sorted(zip(p_values, pairs, strict=True)):
        if p > 0.05 / (len(pairs) - len(expected)):
            break
        expected.add(pair)
    alone, by_bonferroni = (sum(p <= 0.05 / tests for p in p_values) for tests in (1, len(pairs)))
    assert by_bonferroni < len(expected) < alone, "the correction matters, and that it is Holm's"
    for a, b in pairs:
        win, loss = (matrix.rows[order[f"model-{one}"]][order[f"model-{other}"]] for one, other in ((a, b), (b, a)))
        assert win is not None
        assert loss is not None
        assert win.sure == loss.sure == ((a, b) in expected)
        assert win.share == pytest.approx((np.sign(columns[a] - columns[b]).mean() + 1) / 2), "a tie counts half"


@pytest.mark.parametrize("missing", [("clip_score.scenes", "win_rate.clip_score.scenes"), ("clip_score.scenes",)])
def test_first_score_that_was_measured_judges_where_the_suites_judge_is_missing(missing: tuple[str, ...], tmp_path: Path) -> None:
    for place, name in enumerate(MODELS):
        measurement = make_model(place, name)
        for metric in missing:
            measurement = with_value(measurement, metric, state="missing", reason="not fetched", value=None, low=None, high=None)
            measurement[1].columns.pop(metric, None)
        save_record(measurement, tmp_path)
    section = read_section(tmp_path)
    assert wins.judges(section) == ["preference.scenes"]
    assert {found.metric for found in worst.find(section, wins.judges(section)).regressions} == {"preference.scenes"}


def test_suites_judge_decides_wins_where_no_model_has_a_win_rate() -> None:
    win_rate = absent("win_rate.preference.scenes", "score", "share", "missing", "no teacher", direction="higher")
    values = *(score(name, "1", 2.0, 1.0, 3.0) for name in ("clip_score.scenes", "preference.scenes")), win_rate
    section = Section("scenes", "a section", (Row(Path("a"), make_record("a", values)),))
    assert wins.judges(section) == ["preference.scenes"]
