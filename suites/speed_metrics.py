"""The speed of set metrics from features to the number, compared with clean-fid and torchmetrics; `nox -s speed` prints the ratios.

Features are as wide as Inception's. Each library has the statistics of the reference computed, as all of them keep these. clean-fid and
torchmetrics compute KID over 100 random subsets of 1,000, their default, and sdbench once over all images.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from sdbench.arrays import F32
from sdbench.metrics.frechet import Gaussian, frechet_distance, gaussian
from sdbench.metrics.kid import kid

D, REFERENCE_N, KID_N = 2048, 6000, 2000
ROUNDS = 3
VERSIONS = ", ".join(f"{name} {version(name)}" for name in ("scipy", "numpy", "torch", "clean-fid", "torchmetrics"))


@cache
def drawn(n: int, seed: int) -> F32:
    """Features like Inception's, n x D: non-negative and correlated, with a falling spectrum."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(D, D)) * np.logspace(0, -1, D)[:, None] / np.sqrt(D)
    found: F32 = np.maximum(random.normal(size=(n, D)) @ mixing + 0.1 * seed / 10, 0).astype(np.float32)
    return found


@cache
def reference() -> Gaussian:
    made = gaussian(drawn(REFERENCE_N, 1))
    made.factor  # noqa: B018  # computed once, whatever is compared with it
    return made


class AsGiven(torch.nn.Module):
    """Stands in for torchmetrics' network: returns the features themselves."""

    num_features = D

    def forward(self, features: Tensor) -> Tensor:
        return features


def ours(features: F32) -> float:
    return frechet_distance(gaussian(features), reference())


def by_cleanfid(features: F32) -> float:
    """The distance as clean-fid's `fid_folder` computes it from features."""
    mean, covariance = np.mean(features, axis=0), np.cov(features, rowvar=False)
    return float(cleanfid.frechet_distance(mean, covariance, reference().mean, reference().covariance))


@cache
def with_reference() -> FrechetInceptionDistance:
    metric = FrechetInceptionDistance(AsGiven(), reset_real_features=False)
    metric.update(torch.from_numpy(drawn(REFERENCE_N, 1)), real=True)
    return metric


def by_torchmetrics(features: F32) -> float:
    metric = with_reference()
    metric.reset()
    metric.update(torch.from_numpy(features), real=False)
    return float(metric.compute())


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
@pytest.mark.parametrize("side", [ours, by_torchmetrics, by_cleanfid], ids=["sdbench", "torchmetrics", "clean-fid"])
@pytest.mark.parametrize("n", [1000, 5000])
def test_frechet_step(n: int, side: Callable[[F32], float], benchmark: Any) -> None:
    features = drawn(n, 2)
    reference(), with_reference()
    benchmark.group = f"Frechet step, n = {n}, d = {D} ({VERSIONS})"
    found = benchmark.pedantic(side, args=(features,), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(versions=VERSIONS, value=found)
    if n > D:
        assert found == pytest.approx(ours(features), rel=1e-4)


def kid_alone(x: F32, y: F32) -> float:
    return kid(x, y)[0]


def kid_by_torchmetrics(x: F32, y: F32) -> float:
    metric = KernelInceptionDistance(AsGiven())
    metric.update(torch.from_numpy(x), real=False)
    metric.update(torch.from_numpy(y), real=True)
    return float(metric.compute()[0])


@pytest.mark.parametrize("side", [kid_alone, kid_by_torchmetrics, cleanfid.kernel_distance], ids=["sdbench", "torchmetrics", "clean-fid"])
def test_kid(side: Callable[[F32, F32], Any], benchmark: Any) -> None:
    x, y = drawn(KID_N, 2), drawn(KID_N, 3)
    benchmark.group = f"KID, n = m = {KID_N}, d = {D} ({VERSIONS})"
    found = benchmark.pedantic(side, args=(x, y), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(versions=VERSIONS, value=found)
    assert found == pytest.approx(kid_alone(x, y), rel=0.1)
