import math

import numpy as np
import pytest

from sdbench.metrics.preference import pickscore

IMAGE, TEXT = np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])


def test_logit_scale_times_cosine() -> None:
    np.testing.assert_allclose(pickscore(IMAGE, TEXT, logit_scale=100.0), [60, 100])


def test_softmax_over_two_images_of_one_prompt_prefers_the_nearer() -> None:
    far, near = pickscore(IMAGE, TEXT[[0, 0]] + TEXT[[1, 1]], logit_scale=10.0)
    assert far > near  # [3, 4] lies nearer to [1, 2] than [0, 1] does
    assert math.exp(far) / (math.exp(far) + math.exp(near)) > 0.7


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_no_factor_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="logit_scale must be positive"):
        pickscore(IMAGE, TEXT, scale)
