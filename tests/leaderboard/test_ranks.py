"""Ranks claim no more than paired tests support, and are consistent."""

from datetime import timedelta

import numpy as np
import pytest
from factories import make_measurement, with_value
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t, ttest_rel

from sdbench.leaderboard import ranks
from sdbench.records import Record, Scores
from sdbench.stats import decisions


def draw_scores(models: int, n: int, step: float, seed: int = 0) -> np.ndarray:
    """Scores, (models, n), of models whose means are `step` apart, on shared prompts, each with its own noise."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 5, n) + rng.normal(0, 1, (models, n)) + step * np.arange(models)[:, None]


def test_pairs_are_separated_as_by_scipys_paired_t_test_with_holm() -> None:
    values = draw_scores(4, 50, 0.4)
    pairs = [(one, other) for one in range(4) for other in range(one + 1, 4)]
    expected = decisions.holm([ttest_rel(values[one], values[other]).pvalue for one, other in pairs])
    found = ranks.surely_better(values)
    assert [bool(found[one, other] or found[other, one]) for one, other in pairs] == list(expected)
    assert {True, False} <= set(expected)
    assert not found[0].any()  # the worst beats nobody


@settings(max_examples=50, deadline=None)
@given(models=st.integers(2, 8), n=st.integers(2, 40), step=st.floats(0, 2), spread=st.floats(0, 3), seed=st.integers(0, 99))
def test_surely_better_is_a_partial_order_that_follows_the_means(models: int, n: int, step: float, spread: float, seed: int) -> None:
    """Also where models that are further apart differ more from prompt to prompt."""
    values = draw_scores(models, n, step, seed) + spread * np.outer(range(models), np.random.default_rng(100 + seed).normal(size=n))
    better = ranks.surely_better(values)
    assert not (better & better.T).any()
    assert ((better.astype(int) @ better.astype(int) > 0) <= better).all()
    means = values.mean(1)
    assert all(means[one] > means[other] for one, other in np.argwhere(better))
    places = 1 + better.sum(0)
    assert not any(better[one, other] for one in range(models) for other in range(models) if places[one] == places[other])


@pytest.mark.parametrize(("p", "separated"), [(0.049, True), (0.051, False)])
def test_two_models_are_separated_where_p_is_below_one_in_twenty(p: float, *, separated: bool) -> None:
    noise = np.random.default_rng(0).normal(size=30)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    better = noise + t.isf(p / 2, 29) / np.sqrt(30)
    assert ranks.surely_better(np.stack([np.zeros(30), better])).tolist() == [[False, False], [separated, False]]


def test_equal_models_are_separated_at_most_once_in_twenty_times() -> None:
    wrong = sum(ranks.surely_better(draw_scores(5, 30, 0, seed)).any() for seed in range(400))
    assert wrong <= 400 * 0.05 + 2 * np.sqrt(400 * 0.05 * 0.95)


def test_few_prompts_prove_nothing_even_with_equal_differences() -> None:
    assert not ranks.surely_better(np.array([[1.0, 2, 3], [2, 3, 4]])).any()
    assert ranks.surely_better(np.array([np.arange(9.0), np.arange(9.0) + 1]))[1, 0]
    assert not ranks.surely_better(np.array([np.arange(9.0), np.arange(9.0)])).any()


def test_models_that_differ_by_rounding_are_not_told_apart() -> None:
    """CLIP scores of some 85 have a spread of 7.5, and an embedding in float32 rounds them to 8e-6."""
    rng = np.random.default_rng(0)
    scores = rng.normal(85, 7.5, 512)
    assert not ranks.surely_better(np.stack([scores, scores + rng.normal(0, 3e-6, 512)])).any()
    assert ranks.surely_better(np.stack([scores, scores + rng.normal(0, 3e-6, 512) + 1e-3]))[1, 0]


def measure_models() -> list[tuple[Record, Scores]]:
    return [
        make_measurement("scenes-teacher", seed=1),
        make_measurement("same", seed=2),
        make_measurement("worse", seed=3, worse="clip_score.scenes", by=2.0),
        make_measurement("far", seed=4, worse="fd.scenes", by=300.0),
    ]


def test_models_that_cannot_be_separated_share_a_rank() -> None:
    found = ranks.ranks(measure_models(), ["clip_score.scenes", "fd.scenes", "no.such"])
    assert found == {"clip_score.scenes": (1, 1, 4, 1), "fd.scenes": (1, 1, 1, 4)}


def test_model_that_was_not_measured_like_the_others_has_no_rank() -> None:
    first, second, third, fourth = measure_models()
    columns = {**second[1].columns, "clip_score.scenes": np.full(200, np.nan)}
    with_nan = second[0], Scores(second[1].prompt_ids, second[1].samples, columns)
    other_prompts = third[0], Scores([f"q{name}" for name in third[1].prompt_ids], third[1].samples, third[1].columns)
    without_value = with_value(fourth, "clip_score.scenes", state="missing", reason="no weights", value=None, low=None, high=None)
    ranked = make_measurement("ranked", seed=5)
    assert ranks.ranks([first, with_nan, other_prompts, without_value, ranked], ["clip_score.scenes"]) == {
        "clip_score.scenes": (1, None, None, None, 1)
    }
    assert ranks.ranks([first, with_nan], ["clip_score.scenes"]) == {}
    assert ranks.ranks([make_measurement(n_prompts=1, seed=seed) for seed in (1, 2)], ["clip_score.scenes"]) == {}, "a single prompt"


@pytest.mark.parametrize("reference", ["another", None])  # older records do not name the teacher they were compared with
def test_models_with_the_reference_of_most_are_ranked(reference: str | None) -> None:
    first, second, *_, fourth = measure_models()
    other = with_value(second, "fd.scenes", reference=reference)
    assert ranks.ranks([first, other, fourth], ["fd.scenes"]) == {"fd.scenes": (1, None, 2)}
    assert ranks.ranks([other, first, fourth], ["fd.scenes"]) == {"fd.scenes": (None, 1, 2)}
    assert ranks.ranks([other, other], ["fd.scenes"]) == {"fd.scenes": (1, 1)}


def test_of_two_references_with_as_many_models_that_of_the_newest_record_is_ranked() -> None:
    first, second, *_ = measure_models()
    rebuilt = with_value(first, "fd.scenes", reference="rebuilt")
    newest = rebuilt[0].model_copy(update={"created": first[0].created + timedelta(days=1)}), rebuilt[1]
    assert ranks.ranks([first, second, rebuilt, newest], ["fd.scenes"]) == {"fd.scenes": (None, None, 1, 1)}
    assert ranks.ranks([rebuilt, newest, first, second], ["fd.scenes"]) == {"fd.scenes": (1, 1, None, None)}
    assert ranks.ranks([rebuilt, first, second, rebuilt], ["fd.scenes"]) == {"fd.scenes": (1, None, None, 1)}, "of the same age: the first"


def test_values_per_prompt_average_samples_and_are_signed_so_that_more_is_better() -> None:
    record, scores = make_measurement()
    order = np.random.default_rng(0).permutation(200)
    shuffled = Scores(
        [scores.prompt_ids[i] for i in order],
        [scores.samples[i] for i in order],
        {name: column[order] for name, column in scores.columns.items()},
    )
    for name, column, sign in (("clip_score.scenes", "clip_score.scenes", 1), ("fd.scenes", "fd.scenes:influence", -1)):
        found = ranks.values_per_prompt([(record, scores), (record, shuffled)], name)
        np.testing.assert_allclose(found[0], found[1])
        value = record.value(name)
        assert value is not None
        assert found[0].mean() == pytest.approx(sign * (value.value or 0))
        np.testing.assert_allclose(np.diff(found[0]), sign * np.diff(scores.columns[column].reshape(100, 2).mean(1)), atol=1e-9)
