"""Rank correlation of the metrics with the scene accuracy: closed forms, and which metrics are left out."""

import itertools

import numpy as np
from factories import make_record, make_scores, with_value

from sdbench.leaderboard import truth
from sdbench.records import Model, Record, Scores, Value
from sdbench.tables import Cell


def measure(name: str, accuracy: float, fd: float, clip: float, spread: float = 0.0) -> tuple[Record, Scores]:
    rng = np.random.default_rng(int(1000 * accuracy))
    right = (np.arange(100) < 100 * accuracy).astype(float)
    columns = {"scene_accuracy": right, "clip_score.scenes": clip + spread * rng.normal(size=100), "fd.scenes:influence": np.zeros(100)}

    def value(metric: str, kind: str, direction: str, number: float) -> Value:
        return Value.model_validate({"name": metric, "kind": kind, "direction": direction, "unit": "1", "value": number, "n": 100})

    values = (
        value("fd.scenes", "set", "lower", fd),
        value("clip_score.scenes", "score", "higher", clip),
        value("scene_accuracy", "score", "higher", accuracy),
    )
    model = Model(name=name, architecture="sdxl", source="embedded", weights_digest="3e16")
    return make_record(name, values, model=model), make_scores(50, 2, **columns)


def test_metric_with_the_true_order_has_correlation_1_whatever_its_direction() -> None:
    models = [measure(f"m{k}", 0.1 + 0.2 * k, fd=500 - 100 * k, clip=k) for k in range(4)]
    found = truth.grid(models)
    assert found is not None
    assert [row[:2] for row in found.rows] == [("fd.scenes", "4"), ("clip_score.scenes", "4")]
    assert all(str(row[2]).startswith("1.00") for row in found.rows)
    assert truth.grid(models[:3]) is None


def test_note_says_how_often_four_models_agree_by_chance() -> None:
    ranks = np.arange(4)
    correlations = [np.corrcoef(ranks, order)[0, 1] for order in itertools.permutations(ranks)]
    four, five = (truth.grid([measure(f"m{k}", 0.1 + 0.2 * k, fd=500 - 100 * k, clip=k) for k in range(n)]) for n in (4, 5))
    assert four is not None
    assert five is not None
    often = f"{sum(np.array(correlations) > 0.8 - 1e-9)} of {len(correlations)} cases"
    assert four.header[1] == Cell("models", f"4 models in random order have a rank correlation of 0.8 or more in {often}")
    assert five.header[1] == Cell("models")


def test_metrics_missing_from_a_model_or_with_another_reference_are_left_out() -> None:
    models = [measure(f"m{k}", 0.1 + 0.2 * k, fd=100 * k, clip=k) for k in range(4)]
    more_images = make_scores(60, 2, **{name: np.resize(column, 120) for name, column in models[3][1].columns.items()})
    assert truth.grid([*models[:3], (models[3][0], more_images)]) is None
    reversed_order = truth.grid(models)
    assert reversed_order is not None
    assert reversed_order.rows[0][:2] == ("fd.scenes", "4")
    assert str(reversed_order.rows[0][2]).startswith("-1")
    record, scores = models[2]
    models[2] = (record, Scores(scores.prompt_ids, scores.samples, {k: v for k, v in scores.columns.items() if k != "clip_score.scenes"}))
    found = truth.grid(models)
    assert found is not None
    assert [row[0] for row in found.rows] == ["fd.scenes"]
    models[2] = with_value((record, scores), "fd.scenes", reference="another")
    found = truth.grid(models)
    assert found is not None
    assert [row[0] for row in found.rows] == ["clip_score.scenes"]


def test_equal_models_have_no_rank_correlation() -> None:
    found = truth.grid([measure(f"m{k}", 0.5, fd=100 * k, clip=k) for k in range(4)])
    assert found is not None
    assert {row[2] for row in found.rows} == {"not applicable: all models are equal"}


def test_resamples_draw_prompts_and_not_their_images() -> None:
    def measure_copies(k: int, samples: int) -> tuple[Record, Scores]:
        record, scores = measure(f"m{k}", 0.2 + 0.1 * k, fd=500, clip=0)
        columns = {name: np.repeat(column, samples) for name, column in scores.columns.items()}
        columns["clip_score.scenes"] = np.repeat(k + 8 * np.random.default_rng(k).normal(size=100), samples)
        values = tuple(
            value.model_copy(update={"value": float(columns[value.column].mean())}) for value in record.values if value.kind == "score"
        )
        return record.model_copy(update={"values": values}), make_scores(100, samples, **columns)

    one, four = (truth.grid([measure_copies(k, samples) for k in range(6)]) for samples in (1, 4))
    assert one == four
