"""The wrappers give the values of the functions, over batches, dtypes and ranks."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import by_two
from torch import Tensor, nn
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from sdbench.metrics.frechet import frechet_distance, gaussian
from sdbench.metrics.kid import kid
from sdbench.torchmetrics import FeatureSetMetric, FrechetDistance

D = 6
RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal(size=(80, D)) + 1000  # far from 0, which must not cost precision
FEATURES = (1.3 * RANDOM.normal(size=(50, D)) + 1000.5).astype(np.float32)
BATCHES = np.split(FEATURES, [7, 8, 30])
REFERENCE = gaussian(REAL)


def make_metrics() -> list[FrechetDistance | FeatureSetMetric]:
    return [FrechetDistance(REFERENCE), FeatureSetMetric(kid, REAL)]


EXPECTED = [frechet_distance(gaussian(FEATURES), REFERENCE), kid(FEATURES, REAL)[0]]


def compute_on(metric: Any, batches: list[Any] = BATCHES) -> float:
    for batch in batches:
        metric.update(batch)
    return float(metric.compute())


@pytest.mark.parametrize("convert", [lambda batch: batch, torch.from_numpy], ids=["arrays", "tensors"])
def test_batches_give_the_same_value_as_all_data_at_once(convert: Callable[[Any], Any]) -> None:
    for metric, expected in zip(make_metrics(), EXPECTED, strict=True):
        assert compute_on(metric, [convert(batch) for batch in BATCHES]) == pytest.approx(expected, rel=1e-9)
        assert metric.compute().dtype == torch.float64
        metric.reset()
        assert compute_on(metric, [FEATURES]) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_fewer_images_than_dimensions() -> None:
    assert compute_on(FrechetDistance(REFERENCE), [FEATURES[:4]]) == pytest.approx(
        frechet_distance(gaussian(FEATURES[:4]), REFERENCE), rel=1e-6
    )


@pytest.mark.parametrize(
    "change",
    [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to("cpu", torch.float16), lambda m: m.type(torch.bfloat16)],
)
@pytest.mark.parametrize("when", ["before", "between"])
def test_dtype_of_a_parent_module_does_not_change_the_states(change: Callable[[nn.Module], nn.Module], when: str) -> None:
    for metric, expected in zip(make_metrics(), EXPECTED, strict=True):
        parent = nn.ModuleDict({"network": nn.Linear(2, 2), "metric": metric})
        if when == "between":
            metric.update(BATCHES[0])
        change(parent)
        assert next(parent["network"].parameters()).dtype in (torch.bfloat16, torch.float16)
        assert compute_on(metric, BATCHES if when == "before" else BATCHES[1:]) == pytest.approx(expected, rel=1e-9)
        metric.reset()
        assert compute_on(metric) == pytest.approx(expected, rel=1e-9)


def test_dtype_of_a_parent_module_does_not_change_a_computed_value() -> None:
    def both(x: Any, y: Any) -> dict[str, Any]:
        return {"kid": kid(x, y)}

    for metric, expected in (
        (FrechetDistance(REFERENCE), EXPECTED[0]),
        (FeatureSetMetric(kid, REAL), EXPECTED[1]),
        (FeatureSetMetric(both, REAL), EXPECTED[1]),
    ):
        metric.update(FEATURES)
        metric.compute()
        nn.ModuleDict({"metric": metric}).to(torch.bfloat16)
        found = metric.compute()
        found = found["kid"] if isinstance(found, dict) else found
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_states_move_to_another_device() -> None:
    metric = FrechetDistance(REFERENCE).to("meta")
    assert {metric.device.type, metric.n.device.type, metric.scatter.device.type} == {"meta"}
    kernel = FeatureSetMetric(kid, REAL)
    kernel.update(FEATURES)
    assert kernel.to("meta").features[0].device.type == "meta"


class MeanColours(nn.Module):
    """An extractor with a weight, which a parent's dtype must not round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.double() * self.weight.double()).flatten(2).mean(dim=2)


def test_extractor_is_neither_cast_nor_trained_nor_saved() -> None:
    images = torch.randint(0, 256, (20, D, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    metric, plain = FrechetDistance(REFERENCE, MeanColours()), MeanColours()
    parent = nn.ModuleDict({"metric": metric}).to(torch.bfloat16)
    assert list(parent.parameters()) == []
    assert parent.state_dict() == {}
    expected = frechet_distance(gaussian(plain(images).detach().numpy()), REFERENCE)
    assert compute_on(metric, [images[:8], images[8:]]) == pytest.approx(expected, rel=1e-9)


def test_function_may_return_several_values() -> None:
    def several(x: Any, y: Any) -> dict[str, Any]:
        return {"kid": kid(x, y), "value": kid(x, y)[0], "n": len(x)}

    metric = FeatureSetMetric(several, REAL)
    metric.update(FEATURES)
    value = pytest.approx(EXPECTED[1], rel=1e-9)
    assert {name: float(result) for name, result in metric.compute().items()} == {"kid": value, "value": value, "n": 50}


def test_copies_are_independent() -> None:
    for metric, expected in zip(make_metrics(), EXPECTED, strict=True):
        metric.update(BATCHES[0])
        for other in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
            assert compute_on(other, BATCHES[1:]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(D), r"n x d, found shape \(6,\)"),
        (np.zeros((3, 5)), "same dimension, found 5 and 6"),
        (np.array([[np.nan] * D, [1.0] * D]), "NaN or infinity in 1 of 2 rows"),
    ],
)
def test_invalid_features_are_rejected_and_leave_the_state_unchanged(bad: Any, message: str) -> None:
    for metric, expected in zip(make_metrics(), EXPECTED, strict=True):
        with pytest.raises(ValueError, match=message):
            metric.update(bad)
        assert compute_on(metric) == pytest.approx(expected, rel=1e-9)


def test_features_in_place_of_their_moments_are_rejected() -> None:
    with pytest.raises(TypeError, match="the reference is a ndarray; expected a Gaussian"):
        FrechetDistance(REAL)  # type: ignore[arg-type]  # what a notebook would not check


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_value_of_too_few_images_is_rejected() -> None:
    for metric in make_metrics():
        with pytest.raises(ValueError, match="at least 2 rows, found 0"):
            metric.compute()
        with pytest.raises(ValueError, match="at least 2 rows, found 1"):
            compute_on(metric, [FEATURES[:1]])


def test_a_second_sync_is_refused_as_torchmetrics_refuses_it() -> None:
    for metric in make_metrics():
        metric.update(FEATURES)
        as_of_two_ranks: dict[str, Any] = {"dist_sync_fn": lambda state, **_: [state, state], "distributed_available": lambda: True}
        metric.sync(**as_of_two_ranks)
        with pytest.raises(TorchMetricsUserError, match="already been synced"):
            metric.sync(**as_of_two_ranks)


def compute_on_rank(folder: Path) -> None:
    """Run one of two ranks: batches split between them, then all on the first; writes the values to a file."""
    torch.distributed.init_process_group("gloo")
    rank, found = torch.distributed.get_rank(), []
    for metric in make_metrics():
        metric.to(torch.bfloat16)
        for share in (BATCHES[rank::2], [BATCHES, []][rank]):
            found.append(compute_on(metric, share))
            metric.reset()
    (folder / f"found.{rank}").write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_two_processes_give_the_same_values_as_one(tmp_path: Path) -> None:
    assert by_two(compute_on_rank, tmp_path) == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"found.{rank}").read_text(encoding="utf-8"))
        assert found == pytest.approx([EXPECTED[0], EXPECTED[0], EXPECTED[1], EXPECTED[1]], rel=1e-9)
