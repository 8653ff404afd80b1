"""What the profile that looks at the machine asks of it."""

import pytest
import torch

from sdbench.assets import pipelines
from sdbench.run import profiles


@pytest.mark.parametrize(
    ("card", "weights", "expected"),
    [
        (False, False, [("quality", None, 5)]),
        (True, True, [("standard", None, 3)]),
        (
            True,
            False,
            [("quality", "quality", 5), ("efficiency", "probes", 4)],
        ),  # how fast a card launches narrow networks is asked of none
    ],
)
def test_the_machine_says_what_is_measured(
    card: bool, weights: bool, expected: list[tuple[str, str | None, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(pipelines, "is_cached", lambda *_, **__: weights)
    monkeypatch.setattr(pipelines, "required_files", lambda *_, **__: [])
    found = profiles.choose("auto")
    assert [(job.suite.name, job.only, len(job.specs)) for job in found.suite_runs] == expected
