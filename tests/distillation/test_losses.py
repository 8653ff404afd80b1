from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler

from distillation.losses import feature_loss, min_snr_weights, mse, weighted_terms
from distillation.recipe_tables import LossWeights
from distillation.taps import Tap


def test_terms_are_weighted_means_and_features_are_summed_over_taps() -> None:
    taps = [Tap("a", "a", (1, 1)), Tap("b", "c", (1, 4))]
    student, feature = torch.tensor([[1.0, 3.0]], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    found = weighted_terms(
        LossWeights(task=1, output=0.5, feature=0.25, scale="none"),
        taps,
        sample_weights=torch.ones(1),
        target=torch.tensor([[1.0, 1.0]]),
        student=student,
        teacher=torch.tensor([[0.0, 0.0]]),
        student_features={"a": feature, "b": torch.tensor([1.0, 1.0, 1.0, 1.0])},
        teacher_features={"a": torch.tensor([0.0]), "c": torch.tensor([1.0, 1.0, 1.0, 5.0])},
    )
    # task ((1-1)^2 + (3-1)^2) / 2; output 0.5 (1 + 9) / 2; feature 0.25 (4 + 16 / 4)
    assert {name: term.item() for name, term in found.items()} == {"task": 2.0, "output": 2.5, "feature": 2.0}
    gradients = {"task": (student, [[0.0, 2.0]]), "output": (student, [[0.5, 1.5]]), "feature": (feature, [1.0])}
    for name, (of, expected) in gradients.items():
        assert torch.autograd.grad(found[name], of)[0].tolist() == expected, f"{name} alone can teach"


def test_half_precision_is_compared_in_float32() -> None:
    x, y = torch.full((2,), 300.0, dtype=torch.float16), torch.zeros(2, dtype=torch.float16)
    assert mse(x, y).item() == 90_000  # beyond float16's largest number


def test_the_gradient_of_mse_matches_autograd() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    (mse(x, y) * 0.7).backward()  # type: ignore[no-untyped-call]  # torch's
    (expected,) = torch.autograd.grad(0.7 * (x - y).square().mean(), x)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)
    half = x.detach().bfloat16().requires_grad_()
    (mse(half, y) * 0.7).backward()  # type: ignore[no-untyped-call]  # torch's
    torch.testing.assert_close(half.grad, expected.bfloat16(), rtol=2**-6, atol=2**-10)


def test_scaling_by_the_teacher_makes_taps_independent_of_their_size() -> None:
    taps = [Tap("a", "a", (1, 1)), Tap("b", "b", (1, 2))]
    taught = {"a": torch.tensor([2.0]), "b": torch.tensor([3.0, 4.0])}
    learned = {"a": torch.tensor([1.0]), "b": torch.tensor([3.0, -1.0])}
    assert feature_loss(taps, dict(learned), dict(taught), "teacher").item() == pytest.approx(1 / 4 + 12.5 / 12.5)
    assert feature_loss(taps, dict(learned), dict(taught), "none").item() == pytest.approx(1 + 12.5)
    loud_learned, loud_taught = ({name: 1000 * value for name, value in side.items()} for side in (learned, taught))
    assert feature_loss(taps, loud_learned, loud_taught, "teacher").item() == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("kind", "expected"), [("epsilon", lambda snr: min(snr, 5) / snr), ("v_prediction", lambda snr: min(snr, 5) / (snr + 1))]
)
def test_min_snr_weights_only_the_task_term(kind: str, expected: Callable[[float], float]) -> None:
    scheduler = DDIMScheduler(prediction_type=kind)
    timesteps = torch.tensor([0, 100, 500, 999])
    signal = scheduler.alphas_cumprod[timesteps].double()
    wanted = torch.tensor([expected(snr.item()) for snr in signal / (1 - signal)])
    torch.testing.assert_close(min_snr_weights(scheduler, timesteps, 5.0), wanted, rtol=1e-5, atol=0)
    assert min_snr_weights(scheduler, timesteps, None).tolist() == [1] * 4
    found = weighted_terms(
        LossWeights(task=1, output=1, feature=1, scale="none", snr_gamma=5),
        [Tap("a", "a", (1, 1))],
        sample_weights=torch.tensor([0.5, 0.0]),
        target=torch.zeros(2, 1),
        student=torch.tensor([[2.0], [4.0]]),
        teacher=torch.zeros(2, 1),
        student_features={"a": torch.tensor([3.0])},
        teacher_features={"a": torch.tensor([1.0])},
    )
    assert {name: term.item() for name, term in found.items()} == {"task": 1.0, "output": 10.0, "feature": 4.0}


def test_min_snr_is_finite_for_pure_noise() -> None:
    for kind, weight in (("epsilon", 1.0), ("v_prediction", 0.0)):
        scheduler = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
        assert min_snr_weights(scheduler, torch.tensor([999]), 5.0).item() == pytest.approx(weight, abs=1e-6)
