"""What a student trains on: the embedded family's rendered scenes, as latents and embeddings that the teacher's own parts make."""

from collections.abc import Callable
from pathlib import Path

from distillation.recipe import Scenes
from sdbench.scenes.training.latents import Batch, LatentPool
from sdbench.scenes.training.pool import Pool


def scenes_pool(settings: Scenes, teacher: Path, work: Path) -> LatentPool:
    """The training pictures; drawn and encoded under `work` where they are not yet.

    Raises:
        UserError: the teacher's folder is not a whole pipeline.
    """
    return LatentPool(teacher, Pool(work / "pool", settings.pictures), work / "latents")


def batches(pool: LatentPool, settings: Scenes, device: str) -> Callable[[int], Batch]:
    """Number of a batch => the batch, the same in every run."""
    return lambda number: pool.batch(number, settings.batch, settings.seed, settings.drop, device)
