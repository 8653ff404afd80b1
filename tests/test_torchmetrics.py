"""The wrappers say what the functions say: over batches, dtypes and ranks."""

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

from sdbench.metrics.frechet import frechet_distance, gaussian
from sdbench.metrics.kid import kid
from sdbench.torchmetrics import Frechet, OfFeatures

D = 6
RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal(size=(80, D)) + 1000  # far from 0, as nothing in the sums may mind
FEATURES = (1.3 * RANDOM.normal(size=(50, D)) + 1000.5).astype(np.float32)
BATCHES = np.split(FEATURES, [7, 8, 30])
REFERENCE = gaussian(REAL)


def made() -> list[Frechet | OfFeatures]:
    return [Frechet(REFERENCE), OfFeatures(kid, REAL)]


EXPECTED = [frechet_distance(gaussian(FEATURES), REFERENCE), kid(FEATURES, REAL)[0]]


def fed(metric: Any, batches: list[Any] = BATCHES) -> float:
    for batch in batches:
        metric.update(batch)
    return float(metric.compute())


@pytest.mark.parametrize("as_given", [lambda batch: batch, torch.from_numpy], ids=["arrays", "tensors"])
def test_batches_give_what_the_whole_gives(as_given: Callable[[Any], Any]) -> None:
    for metric, expected in zip(made(), EXPECTED, strict=True):
        assert fed(metric, [as_given(batch) for batch in BATCHES]) == pytest.approx(expected, rel=1e-9)
        assert metric.compute().dtype == torch.float64
        metric.reset()
        assert fed(metric, [FEATURES]) == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_dimensions() -> None:
    assert fed(Frechet(REFERENCE), [FEATURES[:4]]) == pytest.approx(frechet_distance(gaussian(FEATURES[:4]), REFERENCE), rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to("cpu", torch.float16), lambda m: m.type(torch.bfloat16)],
)
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_parents_dtype_leaves_the_states_alone(change: Callable[[nn.Module], nn.Module], when: str) -> None:
    for metric, expected in zip(made(), EXPECTED, strict=True):
        parent = nn.ModuleDict({"network": nn.Linear(2, 2), "metric": metric})
        if when == "between":
            metric.update(BATCHES[0])
        change(parent)
        assert next(parent["network"].parameters()).dtype in (torch.bfloat16, torch.float16)
        assert fed(metric, BATCHES if when == "before" else BATCHES[1:]) == pytest.approx(expected, rel=1e-9)
        metric.reset()
        assert fed(metric) == pytest.approx(expected, rel=1e-9)


def test_a_parents_dtype_leaves_what_was_computed_alone() -> None:
    def both(x: Any, y: Any) -> dict[str, Any]:
        return {"kid": kid(x, y)}

    for metric, expected in (
        (Frechet(REFERENCE), EXPECTED[0]),
        (OfFeatures(kid, REAL), EXPECTED[1]),
        (OfFeatures(both, REAL), EXPECTED[1]),
    ):
        metric.update(FEATURES)
        metric.compute()
        nn.ModuleDict({"metric": metric}).to(torch.bfloat16)
        found = metric.compute()
        found = found["kid"] if isinstance(found, dict) else found
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_move_to_another_device_is_followed() -> None:
    metric = Frechet(REFERENCE).to("meta")
    assert {metric.device.type, metric.n.device.type, metric.scatter.device.type} == {"meta"}
    kernel = OfFeatures(kid, REAL)
    kernel.update(FEATURES)
    assert kernel.to("meta").features[0].device.type == "meta"


class Colours(nn.Module):
    """An extractor with weights, which a parent must not round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.double() * self.weight.double()).flatten(2).mean(dim=2)


def test_an_extractor_is_neither_changed_nor_trained_nor_saved() -> None:
    images = torch.randint(0, 256, (20, D, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    metric, plain = Frechet(REFERENCE, Colours()), Colours()
    parent = nn.ModuleDict({"metric": metric}).to(torch.bfloat16)
    assert list(parent.parameters()) == []
    assert parent.state_dict() == {}
    expected = frechet_distance(gaussian(plain(images).detach().numpy()), REFERENCE)
    assert fed(metric, [images[:8], images[8:]]) == pytest.approx(expected, rel=1e-9)


def test_a_function_may_say_several_things() -> None:
    def several(x: Any, y: Any) -> dict[str, Any]:
        return {"kid": kid(x, y), "value": kid(x, y)[0], "n": len(x)}

    found = OfFeatures(several, REAL)
    found.update(FEATURES)
    value = pytest.approx(EXPECTED[1], rel=1e-9)
    assert {name: float(found) for name, found in found.compute().items()} == {"kid": value, "value": value, "n": 50}


def test_copies_go_on_alone() -> None:
    for metric, expected in zip(made(), EXPECTED, strict=True):
        metric.update(BATCHES[0])
        for other in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
            assert fed(other, BATCHES[1:]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(D), r"n x d, found shape \(6,\)"),
        (np.zeros((3, 5)), "same dimension, found 5 and 6"),
        (np.array([[np.nan] * D, [1.0] * D]), "NaN or infinity in 1 of 2 rows"),
    ],
)
def test_bad_features_are_refused_and_leave_no_trace(bad: Any, message: str) -> None:
    for metric, expected in zip(made(), EXPECTED, strict=True):
        with pytest.raises(ValueError, match=message):
            metric.update(bad)
        assert fed(metric) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_a_distance_of_nothing_is_refused() -> None:
    for metric in made():
        with pytest.raises(ValueError, match="at least 2 rows, found 0"):
            metric.compute()
        with pytest.raises(ValueError, match="at least 2 rows, found 1"):
            fed(metric, [FEATURES[:1]])


def say(folder: Path) -> None:
    """One of two ranks: batches shared out, then all on the first and none on the second; what it finds goes to a file."""
    torch.distributed.init_process_group("gloo")
    rank, found = torch.distributed.get_rank(), []
    for metric in made():
        metric.to(torch.bfloat16)
        for share in (BATCHES[rank::2], [BATCHES, []][rank]):
            found.append(fed(metric, share))
            metric.reset()
    (folder / f"found.{rank}").write_text(json.dumps(found))


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    assert by_two(say, tmp_path) == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"found.{rank}").read_text())
        assert found == pytest.approx([EXPECTED[0], EXPECTED[0], EXPECTED[1], EXPECTED[1]], rel=1e-9)
