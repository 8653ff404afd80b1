"""The Inception network and its four protocols against their reference libraries, on the same random weights and images."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from nets import on_gpu_and_cpu
from synthetic_images import mixed, photograph, save
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from sdbench.arrays import F32, F64, U8
from sdbench.assets import weights
from sdbench.encoders import inception
from sdbench.metrics.frechet import frechet_distance, gaussian

N, WIDTH = 3, 2  # images in each set, and features few enough for regular covariances, as the peers need
Features = F32 | F64
Peer = tuple[Callable[[list[U8]], F32], Callable[[Features, Features], float]]  # features of images, and the distance of two sets of them


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[U8], list[U8]]:
    """Two sets of images, read from PNG and JPEG."""
    folder = tmp_path_factory.mktemp("sets")
    return save(mixed(N), folder / "one"), save(mixed(N, seed=100)[::-1], folder / "other")


@pytest.fixture(autouse=True)
def _weights(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find", {inception.ASSET: inception_file}.__getitem__)


def moments(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def extract(images: list[U8], network: Callable[[Tensor], Tensor], prepare: Callable[[U8], Tensor]) -> F32:
    with torch.inference_mode():
        return np.concatenate([network(prepare(image)[None]).numpy().reshape(1, 2048) for image in images])


def byte_tensor(image: U8) -> Tensor:
    return torch.tensor(image).permute(2, 0, 1)


def cleanfid(file: Path) -> Peer:
    from cleanfid import fid, inception_pytorch, resize

    network, shrink = seitzer(inception_pytorch, file, resize_input=False, normalize_input=False), resize.build_resizer("clean")

    def features(images: list[U8]) -> F32:
        return extract(images, lambda x: network((x - 128) / 128)[0], lambda image: torch.tensor(shrink(image).transpose(2, 0, 1)))

    return features, lambda x, y: float(fid.frechet_distance(*moments(x), *moments(y)))


def pytorch_fid(file: Path) -> Peer:
    peer = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is in the dependency group `peers`")
    from pytorch_fid.fid_score import calculate_frechet_distance

    network = seitzer(peer, file)

    def distance(x: Features, y: Features) -> float:
        return float(calculate_frechet_distance(*moments(x), *moments(y)))

    return lambda images: extract(images, lambda x: network(x)[0], lambda image: to_tensor(image.copy())), distance


def seitzer(module: ModuleType, file: Path, **how: bool) -> Any:
    """The network of pytorch-fid, of which clean-fid has a copy, with local weights instead of a download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: torch.load(file, weights_only=True))
        return module.InceptionV3([3], **how).eval()


def torch_fidelity(file: Path) -> Peer:
    peer = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is in the dependency group `peers`")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    network = peer.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))

    def distance(x: Features, y: Features) -> float:
        statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y)]
        return float(fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"])

    return lambda images: extract(images, lambda x: network(x)[0], byte_tensor), distance


def torchmetrics(file: Path) -> Peer:
    pytest.importorskip("torch_fidelity", reason="torchmetrics' network is torch-fidelity's, in the dependency group `peers`")
    from torchmetrics.image import fid

    network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))

    def distance(x: Features, y: Features) -> float:
        return float(fid._compute_fid(*(torch.from_numpy(array).double() for array in (*moments(x), *moments(y)))))

    return lambda images: extract(images, network, byte_tensor), distance


@pytest.mark.parametrize(
    ("resize", "peer"), [("clean", cleanfid), ("mlperf", pytorch_fid), ("tf1", torch_fidelity), ("torchmetrics", torchmetrics)]
)
@pytest.mark.filterwarnings("ignore")  # the peers use deprecated arguments
def test_features_and_distance_match_the_reference_library(
    resize: str, peer: Callable[[Path], Peer], sets: tuple[list[U8], list[U8]], inception_file: Path
) -> None:
    theirs_of, their_distance = peer(inception_file)
    ours = [np.concatenate([inception.features(resize, image[None]) for image in images]) for images in sets]
    theirs = [theirs_of(images) for images in sets]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6 * np.abs(other).max())
    widest = theirs[0].std(axis=0).argsort()[-WIDTH:]
    (our_one, our_other), (their_one, their_other) = (
        [features[:, widest].astype(np.float64) for features in pair] for pair in (ours, theirs)
    )
    assert frechet_distance(gaussian(our_one), gaussian(our_other)) == pytest.approx(their_distance(their_one, their_other), rel=1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_features_hardly_depend_on_the_batch(dtype: torch.dtype, bound: float, inception_file: Path) -> None:
    """Bounds are relative to the largest feature. The images are small: this shortens the sums but does not change their kind."""
    network = copy.deepcopy(inception.network(inception_file)).to(dtype)
    images = torch.tensor(np.stack([photograph(seed, 75, 75) for seed in range(32)])).permute(0, 3, 1, 2).to(dtype) / 128 - 1
    with torch.inference_mode():
        one, seven = (torch.cat([network(part) for part in torch.split(images[:14], batch)]) for batch in (1, 7))
        all_at_once = network(images)[:14]
    for other in (one, seven):
        torch.testing.assert_close(other, all_at_once, rtol=0, atol=bound * float(all_at_once.abs().max()))


def test_features_are_the_last_pool_in_float32(inception_file: Path) -> None:
    features = inception.features("clean", np.stack([photograph(seed, 90, 120) for seed in range(2)]))
    assert features.shape == (2, 2048)
    assert features.dtype == np.float32
    assert {"fc.weight", "fc.bias"} <= torch.load(inception_file, weights_only=True).keys()
    assert isinstance(inception.network(inception_file).fc, torch.nn.Identity)


@pytest.mark.gpu
def test_gpu_features_match_the_cpu() -> None:
    images = np.stack([photograph(seed, 90, 120) for seed in range(2)])
    on_gpu, on_cpu = on_gpu_and_cpu(lambda: inception.features("clean", images))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max())


def test_file_of_another_network_is_rejected(tmp_path: Path) -> None:
    state = inception.build().state_dict()
    del state["Mixed_7c.branch_pool.conv.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*Mixed_7c\.branch_pool\.conv\.weight"):
        inception.network(tmp_path / "other.pth")


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"fc.bias": print}, tmp_path / "code.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        inception.network(tmp_path / "code.pth")
