"""LAION's aesthetic predictor against its published layers, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clips import CAPTIONS, TINY, tiny
from PIL import Image
from synthetic_images import noises, photographs
from torch import Tensor, nn

from sdbench.assets import weights
from sdbench.encoders import aesthetic, clip
from sdbench.encoders.catalogue import TOWERS
from sdbench.encoders.pixels import resize_shortest_edge
from sdbench.errors import UserError
from sdbench.metrics.aesthetic import aesthetic_score
from sdbench.run import external
from sdbench.score import score


class Published(nn.Module):
    """The network of `simple_inference.py` in improved-aesthetic-predictor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        self.eval()

    @torch.no_grad()
    def forward(self, embedding: Tensor) -> Any:
        return self.layers(embedding / embedding.norm(dim=-1, keepdim=True)).squeeze(1)


def test_affine_map_matches_the_published_layers() -> None:
    network, embedding = Published(768), torch.randn(50, 768)
    head = aesthetic.fold(network.state_dict(), aesthetic.ASSET)
    found = aesthetic_score(embedding.numpy(), head.weight, head.bias)
    np.testing.assert_allclose(found, network.double()(embedding.double()).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found, network.float()(embedding).numpy(), rtol=0, atol=1e-5)


def test_score_of_images_needs_no_second_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images of several sizes, from the file to the value, beside the CLIP score of the same backbone."""
    model, network, passes = tiny(), Published(TINY["embed_dim"]), []

    def prepare(*inputs: Any) -> Tensor:
        passes.append(1)
        return resize_shortest_edge(*inputs)

    torch.save(network.state_dict(), tmp_path / "head.pth")
    monkeypatch.setattr(weights, "find", {aesthetic.ASSET: tmp_path / "head.pth"}.__getitem__)
    monkeypatch.setitem(TOWERS, "clip.vit-l-14", lambda: clip.towers(model, "clip.vit-l-14-0", prepare))
    images = np.concatenate([photographs(3, 97, 160), noises(2, 97, 160)])
    (of_clip, found), scores = score(external.store_images(images, CAPTIONS, tmp_path), ["clip_score.vit-l-14", "aesthetic.laion-v2"])
    assert (of_clip.state, found.state, found.n, found.unit) == ("ok", "ok", 5, "points")
    assert len(passes) == 1
    preprocess = open_clip.image_transform(TINY["vision_cfg"]["image_size"], is_train=False)
    with torch.no_grad():
        expected = network(model.encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images])))
    np.testing.assert_allclose(scores.columns["aesthetic.laion-v2"], expected.numpy(), rtol=0, atol=1e-5)


def test_file_with_other_layers_is_rejected() -> None:
    state = Published(8).state_dict()
    incomplete = {name: state[name] for name in state if name != "layers.6.bias"}
    for damaged in (incomplete, state | {"layers.2.weight": torch.ones(128, 9)}):
        with pytest.raises(UserError, match=r"^mine does not hold the five linear layers of its head \(.*fetch it again"):
            aesthetic.fold(damaged, "mine")
