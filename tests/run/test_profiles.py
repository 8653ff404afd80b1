"""The automatic profile chooses suites by what the machine has; the others are as named."""

from types import SimpleNamespace

import pytest
import torch

from sdbench.assets import pipelines
from sdbench.run import profiles


@pytest.mark.parametrize(
    ("card_gib", "has_weights", "expected"),
    [
        (None, False, [("quality", None, 5)]),
        (14.7, True, [("standard", None, 3)]),  # a T4 of 16 GB
        (11.9, True, [("quality", "quality", 5), ("efficiency", "probes", 4)]),
        (15.7, False, [("quality", "quality", 5), ("efficiency", "probes", 4)]),  # launch speed of narrow networks is not measured
    ],
)
def test_auto_profile_depends_on_the_card_and_the_cached_weights(
    card_gib: float | None, has_weights: bool, expected: list[tuple[str, str | None, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card_gib is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=(card_gib or 0) * 2**30))
    monkeypatch.setattr(pipelines, "is_cached", lambda *_, **__: has_weights)
    monkeypatch.setattr(pipelines, "required_files", lambda *_, **__: [])
    found = profiles.choose("auto")
    assert [(job.suite.name, job.only, len(job.specs)) for job in found.suite_runs] == expected


@pytest.mark.parametrize(
    ("name", "suite", "only"), [("scenes", "quality", None), ("sdxl", "standard", None), ("sdxl-random", "efficiency", "probes")]
)
def test_named_profile_is_as_asked(name: str, suite: str, only: str | None) -> None:
    found = profiles.choose(name)
    (job,) = found.suite_runs
    assert (found.name, job.suite.name, job.only) == (name, suite, only)
    assert found.why.endswith(", as asked.")
    assert {spec.label for spec in job.specs} == ({"random weights"} if only else {""})
