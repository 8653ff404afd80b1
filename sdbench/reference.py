"""Reference statistics: what the features of real pictures look like, with the recipe that made them.

They are cached under the digest of that recipe (data, n, encoder), never under a name, so a changed encoder or renderer
cannot meet stale statistics.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdbench.encoders import scenes as encoders
from sdbench.metrics.frechet import Gaussian, gaussian
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render
from sdbench.store import digest, write_bytes

SCENES_N, SCENES_SEED = 4096, 77


@dataclass(frozen=True)
class Reference:
    """Gaussian statistics of real pictures' features, named by the digest of how they were made."""

    digest: str
    statistics: Gaussian


def scenes(runs: Path) -> Reference:
    """Statistics of 4,096 rendered scenes of the training split: none of them shares a layout with a benchmark prompt."""
    pictures = _rendered(8)
    recipe = {
        "source": "scenes",
        "split": "train",
        "seed": SCENES_SEED,
        "n": SCENES_N,
        "encoder": encoders.encoder_id("features"),
        "first": digest(pictures.tolist()),
    }
    path = runs / "references" / f"{digest(recipe)}.npz"
    if not path.exists():
        made = gaussian(encoders.features(_rendered(SCENES_N)))
        buffer = io.BytesIO()
        np.savez(buffer, mean=made.mean, covariance=made.covariance)
        write_bytes(path, buffer.getvalue())
    kept = np.load(path)
    return Reference(digest(recipe), Gaussian(kept["mean"], kept["covariance"], SCENES_N))


def _rendered(n: int) -> encoders.U8:
    return render([scene_at(index, "train", SCENES_SEED) for index in range(n)], range(n), SCENES_SEED)
