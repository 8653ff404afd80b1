"""Set metrics as `torchmetrics.Metric`, for any training loop: batches in, one number over all batches and ranks.

    distance = FrechetDistance(gaussian(real_features), extractor)      float64 sums, d x d for any n
    kernel = FeatureSetMetric(kid, real_features, extractor)            keeps and gathers all features: n x d x 4 bytes per rank

`update` takes what the extractor takes, or features (n x d) where there is no extractor. Call `update` for each batch and `compute` at
the end; do not call the metric itself, since the distance of a single batch means little and costs as much.

The extractor is not a submodule of the metric, and the states keep their precision. Otherwise `.to(torch.bfloat16)` on a parent
module would change the protocol behind the metric's name. Moves to another device are followed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from sdbench.arrays import F64
from sdbench.metrics.frechet import Gaussian, frechet_distance
from sdbench.metrics.inputs import as_matrix, check_at_least, check_same_width

Extractor = Callable[[Any], Tensor | npt.NDArray[Any]]  # takes images; returns features, n x d


class _SetMetric(Metric):
    """Base class: extracts features, and keeps the dtype of the states."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, width: int, extractor: Extractor | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._width = width
        self._extractor = (extractor,)  # in a tuple, because a bare module would become a submodule

    def _features(self, given: Any) -> Tensor:
        (extractor,) = self._extractor
        features = torch.as_tensor(given if extractor is None else extractor(given)).detach().to(self.device)
        if features.ndim != 2:
            raise ValueError(f"features must be n x d, found shape {tuple(features.shape)}")
        check_same_width(features.shape[1], self._width, "features and reference")
        if bad := int((~features.isfinite()).any(dim=1).sum()):
            raise ValueError(f"features must be finite, found NaN or infinity in {bad} of {len(features)} rows")
        return features

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> nn.Module:
        """Follow a move to another device, but keep the dtype."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)


class FrechetDistance(_SetMetric):
    """The Frechet distance to a reference, `metrics.frechet.frechet_distance`; lower is better.

    The states are sums over x - m and (x - m)(x - m)^T, where m is the reference's mean. So they add up over ranks, and an offset
    common to all features costs no precision.

    Args:
        reference: moments of the real features; pass the same object to all metrics, so that it is factorised only once.
        extractor: takes images and returns features, n x d; None where `update` gets features.
        settings: options of torchmetrics, such as `sync_on_compute`.

    Raises:
        TypeError: `reference` is features, not their moments.
    """

    higher_is_better = False
    n: Tensor
    total: Tensor
    scatter: Tensor

    def __init__(self, reference: Gaussian, extractor: Extractor | None = None, **settings: Any) -> None:
        if not isinstance(reference, Gaussian):
            kind = type(reference).__name__
            raise TypeError(f"the reference is a {kind}; expected a Gaussian, made from features by sdbench.metrics.frechet.gaussian")
        d = len(reference.mean)
        super().__init__(d, extractor, **settings)
        self.reference = reference
        for name, shape in (("n", ()), ("total", (d,)), ("scatter", (d, d))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, given: Any) -> None:
        """Add a batch.

        Raises:
            ValueError: features that are not n x d, not finite, or of another d than the reference.
        """
        features = self._features(given).double()
        centred = features - torch.from_numpy(self.reference.mean).to(features.device)
        self.n += len(centred)
        self.total += centred.sum(dim=0)
        self.scatter += centred.T @ centred

    def compute(self) -> Tensor:
        """The distance, float64.

        Raises:
            ValueError: fewer than 2 rows so far.
        """
        n = int(self.n)
        check_at_least(n, 2, "features")
        shift, scatter = self.total.cpu().numpy() / n, self.scatter.cpu().numpy()
        covariance = (scatter - n * np.outer(shift, shift)) / (n - 1)
        generated = Gaussian(self.reference.mean + shift, covariance, n)
        return torch.tensor(frechet_distance(generated, self.reference), dtype=torch.float64, device=self.device)


class FeatureSetMetric(_SetMetric):
    """Any function of two sets of features, the generated ones first: `kid`, `cmmd`, `prdc`.

    Args:
        function: takes features n x d and m x d; returns a number, a number with its influence column, or a mapping of names to either.
        reference: real features, m x d.
        extractor: see `FrechetDistance`.
        settings: options of torchmetrics.

    Raises:
        ValueError: a reference that is not m x d, or not finite.
    """

    features: list[Tensor]

    def __init__(
        self, function: Callable[[Any, Any], Any], reference: npt.ArrayLike, extractor: Extractor | None = None, **settings: Any
    ) -> None:
        self.reference: F64 = as_matrix(reference, "reference")
        super().__init__(self.reference.shape[1], extractor, **settings)
        self.function = function
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, given: Any) -> None:
        """Add a batch; its features are kept as float32.

        Raises:
            ValueError: features that are not n x d, not finite, or of another d than the reference.
        """
        self.features.append(self._features(given).float())

    def sync(self, *words: Any, **settings: Any) -> None:
        """Gather the features of all ranks; a rank without any takes part with an empty tensor of the right width."""
        if isinstance(self.features, list) and not self.features:  # after a sync they are one tensor
            self.features.append(self._no_rows())
        super().sync(*words, **settings)

    def compute(self) -> Any:
        """The function's result, with float64 tensors in place of numbers.

        Raises:
            ValueError: too few rows for the function.
        """
        parts = self.features if isinstance(self.features, list) else [self.features]  # after a sync they are one tensor
        rows = torch.cat([self._no_rows(), *parts]).cpu().numpy()
        return self._tensors(self.function(rows, self.reference))

    def _no_rows(self) -> Tensor:
        return torch.empty(0, self._width, dtype=torch.float32, device=self.device)

    def _tensors(self, result: Any) -> Any:
        if isinstance(result, Mapping):
            return {name: self._tensors(value) for name, value in result.items()}
        value = result[0] if isinstance(result, tuple) else result
        return torch.tensor(float(value), dtype=torch.float64, device=self.device)
