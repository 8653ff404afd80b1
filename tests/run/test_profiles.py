"""The automatic profile chooses suites by what the machine has; the others are as named."""

from types import SimpleNamespace

import pytest
import torch

from sdbench.assets import pipelines
from sdbench.errors import UserError
from sdbench.run import profiles

FULL, WITHOUT_WEIGHTS = [("standard", None, 3)], [("quality", "quality", 5), ("efficiency", "probes", 4)]


@pytest.mark.parametrize(
    ("card_gib", "is_cached", "on_the_hub", "expected"),
    [
        (None, False, [], [("quality", None, 5)]),
        (14.7, True, [], FULL),  # a T4 of 16 GB
        (11.9, True, [], WITHOUT_WEIGHTS),
        (15.7, False, [], WITHOUT_WEIGHTS),  # launch speed of narrow networks is not measured
        (15.7, False, ["unet/diffusion_pytorch_model.fp16.safetensors"], FULL),
        (15.7, False, None, WITHOUT_WEIGHTS),
    ],
)
def test_auto_profile_depends_on_the_card_and_on_weights_that_are_cached_or_reachable(
    card_gib: float | None,
    is_cached: bool,
    on_the_hub: list[str] | None,
    expected: list[tuple[str, str | None, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def required_files(*_: object, **__: object) -> list[str]:
        if on_the_hub is None:
            raise UserError("the Hub cannot be reached")
        return on_the_hub

    monkeypatch.setattr(torch.cuda, "is_available", lambda: card_gib is not None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=(card_gib or 0) * 2**30))
    monkeypatch.setattr(pipelines, "is_cached", lambda *_, **__: is_cached)
    monkeypatch.setattr(pipelines, "required_files", required_files)
    found = profiles.choose("auto")
    assert [(job.suite.name, job.only, len(job.specs)) for job in found.suite_runs] == expected


@pytest.mark.parametrize(
    ("name", "suite", "only", "settings"),
    [
        ("scenes", "quality", None, []),
        ("sdxl", "standard", None, []),
        ("sdxl-random", "efficiency", "probes", ["base", "b8", "compiled", "b8+compiled"]),
    ],
)
def test_named_profile_is_as_asked(name: str, suite: str, only: str | None, settings: list[str]) -> None:
    found = profiles.choose(name)
    (job,) = found.suite_runs
    assert (found.name, job.suite.name, job.only, [*job.settings]) == (name, suite, only, settings)
    assert job.suite.probes
    assert set(settings) <= job.suite.probes.select().keys()
    assert found.why.endswith(", as asked.")
    assert {spec.label for spec in job.specs} == ({"random weights"} if only else {""})
