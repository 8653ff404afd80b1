"""Set metrics as `torchmetrics.Metric`, for other people's training loops: batches in, one number over all batches and ranks.

    distance = Frechet(gaussian(real_features), extractor)     float64 sums, d x d whatever n is
    kernel = OfFeatures(kid, real_features, extractor)         every feature is kept and gathered: n x d x 4 bytes a rank

`update` takes what the extractor takes, or features (n x d) where there is none. Call `update` for each batch and `compute` at the
end, not the metric itself: a distance of one batch means little and costs as much.

The extractor is held apart from the metric's submodules, and the states keep their precision: a parent module's
`.to(torch.bfloat16)` would otherwise change the protocol that the number is named by. Devices are followed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from sdbench.arrays import F64
from sdbench.metrics.frechet import Gaussian, frechet_distance
from sdbench.metrics.inputs import at_least, matrix, same_width

Extractor = Callable[[Any], Tensor | npt.NDArray[Any]]  # pictures => features, n x d


class _SetMetric(Metric):
    """What the two share: features from what is given, and states whose dtype nobody else changes."""

    full_state_update = False
    is_differentiable = False

    def __init__(self, width: int, extractor: Extractor | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._width = width
        self._extractor = (extractor,)  # in a tuple, for a bare module would become a submodule

    def _features(self, given: Any) -> Tensor:
        (extractor,) = self._extractor
        features = torch.as_tensor(given if extractor is None else extractor(given)).detach().to(self.device)
        if features.ndim != 2:
            raise ValueError(f"features must be n x d, found shape {tuple(features.shape)}")
        same_width(features.shape[1], self._width, "features and reference")
        if bad := int((~features.isfinite()).any(dim=1).sum()):
            raise ValueError(f"features must be finite, found NaN or infinity in {bad} of {len(features)} rows")
        return features

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> "_SetMetric":
        """Follow a move to another device, but no other dtype."""
        kept = {name: getattr(self, name) for name in (*self._defaults, "_computed", "_forward_cache")}
        super()._apply(fn, exclude_state=[*exclude_state, *self._defaults])
        for name, value in kept.items():
            setattr(self, name, _move(value, self.device))
        self._defaults = _move(self._defaults, self.device)
        return self


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _move(part, device) for name, part in value.items()}
    if isinstance(value, list):
        return [_move(part, device) for part in value]
    return value.to(device) if isinstance(value, Tensor) else value


class Frechet(_SetMetric):
    """Frechet distance to a reference, `metrics.frechet.frechet_distance`; lower is better.

    The states are sums over x - m and (x - m)(x - m)^T with m the reference's mean, so that they add up over ranks and an
    offset common to all features costs no digits.

    Args:
        reference: moments of the real features; give all metrics the same one: its factor is taken once.
        extractor: pictures => features, n x d; None where `update` is given features.
        settings: torchmetrics' own, such as `sync_on_compute`.
    """

    higher_is_better = False
    n: Tensor
    total: Tensor
    scatter: Tensor

    def __init__(self, reference: Gaussian, extractor: Extractor | None = None, **settings: Any) -> None:
        d = len(reference.mean)
        super().__init__(d, extractor, **settings)
        self.reference = reference
        for name, shape in (("n", ()), ("total", (d,)), ("scatter", (d, d))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, given: Any) -> None:
        """Take in a batch.

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
        at_least(n, 2, "features")
        shift, scatter = self.total.cpu().numpy() / n, self.scatter.cpu().numpy()
        covariance = (scatter - n * np.outer(shift, shift)) / (n - 1)
        found = Gaussian(self.reference.mean + shift, covariance, n)
        return torch.tensor(frechet_distance(found, self.reference), dtype=torch.float64, device=self.device)


class OfFeatures(_SetMetric):
    """Any function of two sets of features, generated first: `kid`, `cmmd`, `prdc`.

    Args:
        function: (n x d, m x d) => a number, a number and its influence column, or either by name.
        reference: real features, m x d.
        extractor: as for `Frechet`.
        settings: torchmetrics' own.

    Raises:
        ValueError: a reference that is not m x d, or not finite.
    """

    features: list[Tensor]

    def __init__(
        self, function: Callable[[Any, Any], Any], reference: npt.ArrayLike, extractor: Extractor | None = None, **settings: Any
    ) -> None:
        self.reference: F64 = matrix(reference, "reference")
        super().__init__(self.reference.shape[1], extractor, **settings)
        self.function = function
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, given: Any) -> None:
        """Take in a batch; half precision is kept as float32.

        Raises:
            ValueError: features that are not n x d, not finite, or of another d than the reference.
        """
        self.features.append(self._features(given).float())

    def sync(self, *words: Any, **settings: Any) -> None:
        """Gather the features of all ranks; one without any takes part with none, of the right width."""
        if not self.features:
            self.features.append(self._none())
        super().sync(*words, **settings)

    def compute(self) -> Any:
        """What the function says, float64 tensors in place of its numbers.

        Raises:
            ValueError: too few rows for the function.
        """
        parts = self.features if isinstance(self.features, list) else [self.features]  # after a sync they are one tensor
        rows = torch.cat([self._none(), *parts]).cpu().numpy()
        return self._tensors(self.function(rows, self.reference))

    def _none(self) -> Tensor:
        return torch.empty(0, self._width, dtype=torch.float32, device=self.device)

    def _tensors(self, found: Any) -> Any:
        if isinstance(found, Mapping):
            return {name: self._tensors(value) for name, value in found.items()}
        value = found[0] if isinstance(found, tuple) else found
        return torch.tensor(float(value), dtype=torch.float64, device=self.device)
