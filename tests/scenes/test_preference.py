"""The preference model's training pictures."""

from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from sdbench.scenes.training import preference


def test_smears_that_a_kill_has_cut_off_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("LatentPool", "train_unet", "AutoencoderKL"):
        monkeypatch.setattr(preference, slow, MagicMock())
    monkeypatch.setattr(preference, "_predict_clean", lambda *_: np.ones((64, 1, 1, 3), np.uint8))
    save = np.save

    def killed(path: Path, pictures: np.ndarray) -> None:
        save(path, pictures[:1])
        raise KeyboardInterrupt

    def smears() -> np.ndarray:
        return preference._smeared_pictures(tmp_path / "smears.npy", tmp_path, MagicMock(), tmp_path)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            smears()
    assert smears().shape == (preference.N_SMEARED, 1, 1, 3)
