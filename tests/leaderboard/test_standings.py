"""Which rows share a section, in which order, and with which teacher."""

from pathlib import Path

from factories import GPU, LAPTOP, make_record
from values import count, probe, score, speeds

from sdbench.leaderboard import standings
from sdbench.leaderboard.standings import Row
from sdbench.records import Model, NamedTeacher, Record, SuiteId
from sdbench.score import PROTOCOLS


def test_machines_suite_versions_digests_and_families_never_share_a_table() -> None:
    def make(**changes: object) -> Record:
        return make_record("scenes-teacher", (score("scene_accuracy", "share", 0.5, 0.4, 0.6),), **changes)

    others = [
        make(),
        make(machine=GPU),
        make(machine=LAPTOP.model_copy(update={"torch": "2.12.0"})),
        make(family="sdxl"),
        make(suite=SuiteId(name="quality", version=2, digest="5017e")),
        make(suite=SuiteId(name="quality", version=1, digest="07e4")),
        make(suite=SuiteId(name="standard", version=1, digest="5017e")),
    ]
    found = standings.sections([Row(Path("0"), record) for record in others])
    assert [len(section.rows) for section in found] == [1] * len(others)
    titles = [section.title for section in found]
    speed_alone = Row(Path("1"), make(suite=SuiteId(name="efficiency", version=1, digest="e44"), n_images=0))
    with_speed = [section.title for section in standings.sections([speed_alone, *(Row(Path("0"), record) for record in others)])]
    (title,) = set(with_speed) - set(titles)
    assert title.startswith("scenes: efficiency@1")
    assert with_speed.index(title) == sum(record.family == "scenes" for record in others), "after all sections with images"
    few = Row(Path("2"), make(suite=SuiteId(name="few", version=1, digest="fe3")))
    with_few = [section.title for section in standings.sections([few, Row(Path("0"), others[0])])]
    assert [title.partition("@")[0] for title in with_few] == ["scenes: quality", "scenes: few"], "the family's default suite comes first"
    assert len(set(titles)) == len(others), "sections of one suite and machine differ by their digest"
    assert [title for title in titles if "digest" in title] == [
        "scenes: quality@1 (digest 07e4) on Some CPU 3000 (8 cores), torch 2.11",
        "scenes: quality@1 (digest 5017e) on Some CPU 3000 (8 cores), torch 2.11",
    ]


def test_teacher_of_a_section_is_the_one_with_real_weights() -> None:
    def row(label: str) -> Row:
        model = Model(name="scenes-teacher", architecture="sdxl", source="embedded", weights_digest=None, label=label)
        return Row(Path("0"), make_record(values=speeds(2.0), model=model))

    real, random, student = row(""), row("random weights"), Row(Path("0"), make_record("scenes-vega", speeds(1.0)))
    for rows in ([real, random, student], [student, random, real]):
        (section,) = standings.sections(rows)
        assert section.teacher == real
        assert {row.name for row in section.rows} == {"scenes-teacher", "scenes-teacher (random weights)", "scenes-vega"}
    (section,) = standings.sections([student, random])
    assert section.teacher == random
    assert standings.sections([student])[0].teacher is None


def test_teacher_named_by_the_suite_is_the_teacher_of_its_section() -> None:
    own = SuiteId(name="mine", version=1, digest="a")
    records = [
        make_record(name, speeds(1.0), suite=own, teacher=NamedTeacher(model="big", suite=own)) for name in ("big", "scenes-teacher")
    ]
    (section,) = standings.sections([Row(Path(str(number)), record) for number, record in enumerate(records)])
    assert section.teacher
    assert section.teacher.name == "big"


def test_models_are_ordered_from_rendered_images_and_teacher_to_the_smallest_and_unknown() -> None:
    def row(name: str, parameters: float | None, source: str = "folder:x") -> Row:
        values = (count("parameters.unet", "parameters", parameters),) if parameters else ()
        return Row(
            Path("0"), make_record(name, values, model=Model(name=name, architecture="custom", source=source, weights_digest="3e16"))
        )

    shuffled = [
        row("a-small", 1e6),
        row("finetune", 7e6),
        row("an-unknown", None),
        row("scenes-rendered", None, "rendered"),
        row("scenes-teacher", 7e6),
    ]
    (section,) = standings.sections(shuffled)
    assert [record.model.name for record in section.records] == ["scenes-rendered", "scenes-teacher", "finetune", "a-small", "an-unknown"]


def test_checkpoints_of_one_training_are_ordered_by_their_steps() -> None:
    steps = [make_record(f"step-{step}", speeds(1.0)) for step in (10000, 500, 2000, 1000)]
    (section,) = standings.sections([Row(Path("0"), record) for record in steps])
    assert [row.name for row in section.rows] == ["step-500", "step-1000", "step-2000", "step-10000"]


def test_every_metric_has_a_title_and_a_place_among_the_columns() -> None:
    assert [name for name in PROTOCOLS if standings.title_rank(name, tuple(standings.TITLES)) == len(standings.TITLES)] == []


def test_other_settings_and_quantiles_of_stages_are_not_among_the_efficiency_lines() -> None:
    other = probe("latency.pipeline.p90@b8", "s", 2.0)
    (section,) = standings.sections([Row(Path("0"), make_record(values=(*speeds(1.0), other)))])
    assert [value.name for value in standings.probes(section)] == [
        "latency.pipeline.p90",
        "latency.pipeline.p99",
        "latency.unet_step.p50",
        "images_per_second",
        "memory.peak_rss",
    ]
