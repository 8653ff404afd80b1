"""The preference model's training images."""

from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from sdbench.scenes.training import preference


def test_smears_cut_off_by_a_kill_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("LatentPool", "train_unet", "AutoencoderKL"):
        monkeypatch.setattr(preference, slow, MagicMock())
    monkeypatch.setattr(preference, "_predict_clean", lambda *_: np.ones((64, 1, 1, 3), np.uint8))
    save = np.save

    def save_part_and_interrupt(path: Path, images: np.ndarray) -> None:
        save(path, images[:1])
        raise KeyboardInterrupt

    def smeared_images() -> np.ndarray:
        return preference._smeared_images(tmp_path / "smears.npy", tmp_path, MagicMock(), tmp_path)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", save_part_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            smeared_images()
    assert smeared_images().shape == (preference.N_SMEARED, 1, 1, 3)
