"""Reference statistics: what the features of real pictures look like, with the recipe that made them.

They are cached under the digest of that recipe (data, n, encoder), never under a name, so a changed encoder or renderer
cannot meet stale statistics.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdbench.encoders.catalogue import Encoder
from sdbench.errors import MissingError
from sdbench.metrics.frechet import Gaussian, gaussian
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render
from sdbench.store import F32, U8, digest, write_bytes

SCENES_N, SCENES_SEED = 4096, 77


@dataclass(frozen=True)
class Reference:
    """Gaussian statistics of real pictures' features, named by the digest of how they were made."""

    digest: str
    statistics: Gaussian
    features: F32 | None


def find(name: str | None, encoder: Encoder, runs: Path) -> Reference:
    """The reference of this name for this encoder.

    Raises:
        MissingError: the suite names none, or it was not built here.
    """
    if name is None:
        raise MissingError('reference: the suite names none; write `reference = "<name>"` into it')
    if name != "scenes":
        raise MissingError(f"reference: {name!r} is not here for encoder {encoder.name!r}")
    return _scenes(encoder, runs)


def _scenes(encoder: Encoder, runs: Path) -> Reference:
    """Statistics of 4,096 rendered scenes of the training split: none of them shares a layout with a benchmark prompt."""
    pictures = _rendered(8)
    recipe = {
        "source": "scenes",
        "split": "train",
        "seed": SCENES_SEED,
        "n": SCENES_N,
        "encoder": encoder.id(),
        "first": digest(pictures.tolist()),
    }
    path = runs / "references" / f"{digest(recipe)}.npz"
    if not path.exists():
        features = encoder.features(_rendered(SCENES_N))
        made = gaussian(features)
        buffer = io.BytesIO()
        np.savez(buffer, mean=made.mean, covariance=made.covariance, features=features)
        write_bytes(path, buffer.getvalue())
    kept = np.load(path)
    return Reference(digest(recipe), Gaussian(kept["mean"], kept["covariance"], SCENES_N), kept["features"])


def _rendered(n: int) -> U8:
    return render([scene_at(index, "train", SCENES_SEED) for index in range(n)], range(n), SCENES_SEED)
