"""Names are taken apart as they were put together, and odd ones are nothing special."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbench import suites
from sdbench.records import names
from sdbench.score import PROTOCOLS
from sdbench.settings import Setting

VALUE_NAMES = st.from_regex(r"[a-z_]+(\.[a-z0-9_-]+){0,3}", fullmatch=True)
LABELS = st.builds(Setting, batch=st.integers(1, 9), compile=st.sampled_from((None, "blocks")), vae=st.sampled_from(("full", "tiny"))).map(
    lambda setting: setting.label
)


@given(VALUE_NAMES, LABELS)
def test_settings_are_read_back(name: str, label: str) -> None:
    labelled = names.with_setting(name, label)
    assert (names.without_setting(labelled), names.setting_of(labelled)) == (name, label)
    assert names.first_part(labelled) == names.first_part(name)
    assert names.is_probe(labelled) == names.is_probe(name)


@given(VALUE_NAMES)
def test_judges_are_read_back(judge: str) -> None:
    assert names.judge_of(names.win_rate_by(judge)) == judge
    assert names.judge_of(names.win_rate_by(names.win_rate_by(judge))) == names.win_rate_by(judge)


@given(st.integers(0, 10**6), st.text())
def test_places_of_prompts_are_read_back(place: int, text: str) -> None:
    prompt_id = names.id_of_prompt(place, text)
    assert names.place_of_prompt(prompt_id) == place
    assert re.fullmatch(r"\d{5,7}-[0-9a-f]{8}", prompt_id)


def test_prompts_of_a_suite_have_these_ids() -> None:
    prompts = suites.load("quality").prompt_list()
    assert [names.place_of_prompt(prompt_id) for prompt_id in prompts] == [*range(len(prompts))]
    assert names.id_of_prompt(7, "a cat") == "00007-51e46741"


def test_what_the_names_of_metrics_say() -> None:
    judges = {name: judge for name in PROTOCOLS if (judge := names.judge_of(name))}
    assert judges
    assert set(judges.values()) < PROTOCOLS.keys()
    compared = {name for name, protocol in PROTOCOLS.items() if protocol.against_teacher}
    assert {name for name in PROTOCOLS if names.is_against_images(name)} == compared - judges.keys()
    scores = {name for name in compared - judges.keys() if PROTOCOLS[name].kind == "score"}
    assert {name for name in PROTOCOLS if names.is_agreement(name)} == scores


@pytest.mark.parametrize(
    "name", ["", "win_rate", "win_rates.pickscore.v1", "my.win_rate.pickscore.v1", "agreements.ssim", "latencies.p50", "@b8"]
)
def test_odd_names_are_nothing_special(name: str) -> None:
    special = (names.judge_of(name), names.is_agreement(name), names.is_against_images(name), names.is_probe(name))
    assert special == (None, False, False, False)


@pytest.mark.parametrize(("name", "first"), [("images_per_second@b8", "images_per_second"), ("scene_accuracy", "scene_accuracy"), ("", "")])
def test_names_of_one_part_are_their_own_first_part(name: str, first: str) -> None:
    assert names.first_part(name) == first


@pytest.mark.parametrize(
    ("start", "expected"), [("fd", False), ("fd_to_teacher", True), ("fd_to_teacher.clean", True), ("clean", False), ("", False)]
)
def test_names_begin_with_whole_parts(start: str, expected: bool) -> None:
    assert names.begins_with("fd_to_teacher.clean", start) == expected


def test_latencies_are_of_stages() -> None:
    assert [names.latency_of(stage) for stage in names.STAGES[:2]] == ["latency.pipeline.p50", "latency.text_encoders.p50"]
    assert names.latency_of("unet_step", "p99") == "latency.unet_step.p99"
