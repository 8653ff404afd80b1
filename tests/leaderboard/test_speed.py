"""Speed-ups over the teacher, and tables by setting: values that must not share a table do not."""

import math

import numpy as np
import pytest
from factories import GPU, make_record

from sdbench import tables
from sdbench.leaderboard import published, speed
from sdbench.records import Model, Record, Value
from sdbench.stats.decisions import ratio_bounds
from sdbench.tables import Cell


def probe(name: str, rounds: list[list[float]], unit: str = "s", direction: str = "lower") -> Value:
    value = float(np.median(rounds))
    samples = tuple(map(tuple, rounds))
    return Value.model_validate(
        {"name": name, "kind": "probe", "direction": direction, "unit": unit, "value": value, "n": 9, "samples": samples}
    )


def failed_probe(name: str, reason: str) -> Value:
    return Value(name=name, kind="probe", direction="lower", unit="s", state="failed", reason=reason)


def full_size_record(name: str, *values: Value) -> Record:
    model = Model(name=name, architecture=name, source="random", weights_digest=None, label="random weights")
    return make_record(name, values, family="sdxl", machine=GPU, n_images=0, model=model)


TEACHER = [[2.0, 2.1, 2.0], [2.2, 2.3, 2.2], [2.0, 2.0, 2.1]]
STUDENT = [[1.0, 1.1, 1.0], [1.1, 1.1, 1.2], [1.0, 1.0, 1.0]]


def test_speed_up_has_the_interval_of_its_rounds() -> None:
    teacher, student = full_size_record("sdxl", probe(speed.P50, TEACHER)), full_size_record("vega", probe(speed.P50, STUDENT))
    bounds = ratio_bounds(STUDENT, TEACHER, 0.975)
    low, high = math.exp(-bounds.high), math.exp(-bounds.low)
    found = speed.speed_up(student, teacher, speed.P50)
    assert isinstance(found, speed.SpeedUp)
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((2.1, low, high)), "medians of all calls"
    assert speed.ratio_cell(found) == Cell(tables.format_estimate(2.1, low, high).replace(" ", "x ", 1))
    assert low < 2.1 < high
    assert speed.ratio_cell(speed.speed_up(teacher, teacher, speed.P50)) == Cell("1.00x")


@pytest.mark.parametrize("runs", [("a", "b"), ("", "")])
def test_speed_up_between_two_runs_has_no_interval_and_is_marked(runs: tuple[str, str]) -> None:
    records = full_size_record("sdxl", probe(speed.P50, TEACHER)), full_size_record("vega", probe(speed.P50, STUDENT))
    teacher, student = (record.model_copy(update={"run": run}) for record, run in zip(records, runs, strict=True))
    assert speed.ratio_cell(speed.speed_up(student, teacher, speed.P50)) == Cell("2.10x (separate runs)")
    assert speed.grids([teacher, student], teacher)["Speed-up over sdxl (random weights) by stage"].rows == (
        ("pipeline", "base", Cell("2.10x (separate runs)")),
    )


def test_speed_up_of_one_round_has_no_interval_and_a_failure_shows_its_reason() -> None:
    teacher, student = full_size_record("sdxl", probe(speed.P50, [[2.0]])), full_size_record("vega", probe(speed.P50, [[1.0]]))
    assert speed.ratio_cell(speed.speed_up(student, teacher, speed.P50)) == Cell("2.000x")
    without_rounds = full_size_record("sdxl", probe(speed.P50, TEACHER).model_copy(update={"samples": None}))
    assert speed.ratio_cell(speed.speed_up(student, without_rounds, speed.P50)) == Cell("2.10x")
    broken = full_size_record("vega", failed_probe(speed.P50, "out of memory at batch 8; batch 4 fits"))
    assert speed.ratio_cell(speed.speed_up(broken, teacher, speed.P50)) == Cell("failed", "out of memory at batch 8; batch 4 fits")
    assert speed.ratio_cell(speed.speed_up(student, broken, speed.P50)) == Cell("missing", "the teacher has no value to compare with")


def test_each_setting_has_a_row_and_the_tiny_vae_its_own_table() -> None:
    names = (speed.P50, f"{speed.P50}@b8", f"{speed.P50}@tiny-vae", f"{speed.P50}@b8+tiny-vae")
    teacher = full_size_record("sdxl", *(probe(name, TEACHER) for name in names))
    student = full_size_record(
        "vega", probe(names[0], STUDENT), failed_probe(names[1], "out of memory"), *(probe(name, STUDENT) for name in names[2:])
    )
    found = speed.grids([teacher, student], teacher)
    assert list(found) == ["Speed-up over sdxl (random weights) by stage", "By setting", "With the tiny VAE"]
    assert [row[1] for row in found["By setting"].rows] == ["base", "b8"]
    assert found["By setting"].rows[1][3] == Cell("failed", "out of memory")
    assert [row[1] for row in found["With the tiny VAE"].rows] == ["tiny-vae", "b8+tiny-vae"]
    assert found["By setting"].header == ("probe", "setting", "sdxl (random weights)", "vega (random weights)")
    assert [row[:2] for row in found["Speed-up over sdxl (random weights) by stage"].rows] == [("pipeline", "base"), ("pipeline", "b8")]


def test_suite_without_settings_or_speeds_has_no_tables() -> None:
    teacher = full_size_record("sdxl", probe(speed.P50, TEACHER))
    assert speed.grids([teacher], teacher) == {}
    assert speed.grids([make_record()], None) == {}


def test_published_ratios_are_listed_beside_measured_ones() -> None:
    teacher, student = full_size_record("sdxl", probe(speed.P50, TEACHER)), full_size_record("ssd-1b", probe(speed.P50, STUDENT))
    rows = speed.published_grid([teacher, student], teacher).rows
    by_claim = {row[0]: row for row in rows}
    koala = by_claim["latency and memory: RTX 4090, 1024 px"]
    assert koala[3:5] == (speed.P50, f"{3.23 / 2.09:.2f}x")
    assert koala[5] == speed.ratio_cell(speed.speed_up(student, teacher, speed.P50))
    words = next(row for row in rows if str(row[0]).startswith("speed-up over SDXL"))
    assert words[4] == '"up to 60 % faster"'
    assert all(row[2] == "ssd-1b (random weights)" for row in rows)
    assert speed.published_grid([student], None).rows == ()


def test_records_without_the_base_setting_have_the_tables_of_those_that_were_measured() -> None:
    """`sdbench run --setting channels-last` leaves `base` out, where decoding on a CPU can take three times as long."""
    name = f"{speed.P50}@channels-last"
    teacher, student = full_size_record("sdxl", probe(name, TEACHER)), full_size_record("vega", probe(name, STUDENT))
    ratio = speed.ratio_cell(speed.speed_up(student, teacher, name))
    found = speed.grids([teacher, student], teacher)
    assert found["Speed-up over sdxl (random weights) by stage"].rows == (("pipeline", "channels-last", ratio),)
    assert [row[:2] for row in found["By setting"].rows] == [(f"{speed.P50} (s) ↓", "channels-last")]
    assert {row[3:] for row in speed.published_grid([teacher, student], teacher).rows if str(row[1]).startswith("youngwanLEE")} == {
        (name, f"{3.23 / 1.49:.2f}x", ratio),
        (name, f"{9.65 / 4.52:.2f}x", ratio),
    }
    names = name, f"{speed.P50}@b8"
    teacher, student = (
        full_size_record(model, *(probe(each, rounds) for each in names)) for model, rounds in (("sdxl", TEACHER), ("ssd-1b", STUDENT))
    )
    assert speed.headline([teacher, student]) == name
    assert {row[3] for row in speed.published_grid([teacher, student], teacher).rows} == {*names}, "some were published at batch 8"


def test_published_numbers_are_beside_the_probe_of_what_their_source_measured() -> None:
    """open-muse's script reads `max_memory_allocated`, and decodes nothing at batch 8 on an RTX 4090; Vega's card times tiny VAEs."""
    memory = "memory.peak_allocated", "memory.peak_reserved"
    names = [f"{name}{setting}" for name in (speed.P50, *memory) for setting in ("", "@b8", "@tiny-vae")]
    teacher, *students = (full_size_record(model, *(probe(name, [[2.0]]) for name in names)) for model in ("sdxl", "ssd-1b", "vega"))
    rows = speed.published_grid([teacher, *students], teacher).rows
    assert not [row[0] for row in rows if "decoding" in str(row[0])]
    assert {(str(row[1]).partition(",")[0], str(row[2]).split()[0], row[3]) for row in rows} == {
        ("Segmind", "ssd-1b", speed.P50),
        ("Segmind", "vega", f"{speed.P50}@tiny-vae"),
        *(("youngwanLEE/sdxl-koala", model, name) for model in ("ssd-1b", "vega") for name in (speed.P50, "memory.peak_reserved")),
        *(("huggingface/open-muse", "ssd-1b", f"{name}{at}") for name in (speed.P50, "memory.peak_allocated") for at in ("", "@b8")),
    }


def test_numbers_of_published_claims_appear_in_their_text() -> None:
    for claim in published.load_claims():
        for probe_name, numbers in claim.numbers.items():
            for model, number in numbers.items():
                shown = claim.values[model]
                forms = {f"{number:g} s", f"{1000 * number:.0f} ms"} if probe_name.startswith("latency") else {f"{number:g} GB"}
                assert any(form in shown for form in forms), (claim.what, model, number, shown)
