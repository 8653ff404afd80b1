"""Profiles: what `nox -s benchmark` measures, by name or as it fits this machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdbench import suites
from sdbench.errors import UserError, unknown_name
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.probes.capacity import LEAST_SHARE
from sdbench.suites import Suite

FULL_SIZE = ("sdxl", "ssd-1b", "vega")
ARCHITECTURES = (*FULL_SIZE, "koala-700m")  # measured with random weights
FULL_SIZE_GIB = LEAST_SHARE * 16  # four images of SDXL at once in 16 bits are estimated at 13 GiB, half of them weights
QUICK_SETTINGS = ("base", "b8", "compiled", "b8+compiled")  # those of `efficiency` that take an hour, not a day


@dataclass(frozen=True)
class SuiteRun:
    """Models to measure under a suite, or under the half that `only` names, in some of its probes' settings."""

    specs: Sequence[ModelSpec]
    suite: Suite
    only: Literal["quality", "probes"] | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The runs of a profile, and the reason why it was chosen."""

    name: str
    why: str
    suite_runs: tuple[SuiteRun, ...]


def choose(name: str) -> Profile:
    """The profile of this name; `auto` chooses by what the machine has, and says what it found.

    Raises:
        UserError: there is no such profile.
    """
    if name == "auto":
        return _auto()
    if name not in _NAMED:
        raise unknown_name("profile", name, ("auto", *_NAMED))
    what, suite_run = _NAMED[name]
    return Profile(name, f"{what}, as asked.", (suite_run(),))


def _auto() -> Profile:
    import torch

    from sdbench.assets.pipelines import is_cached, required_files

    if not torch.cuda.is_available():
        return Profile("auto", "no CUDA device that PyTorch can use, so the embedded family 'scenes' on the CPU.", (_scenes(),))

    card_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    if card_gib < FULL_SIZE_GIB:
        return _without_weights(f"a CUDA device of {card_gib:.1f} GiB, which is too little to draw four images of SDXL at once")

    def is_available(name: str) -> bool:
        spec = resolve(name)
        try:
            return is_cached(spec, dtype="bfloat16") or bool(required_files(spec, dtype="bfloat16"))
        except UserError:  # the Hub cannot be reached
            return False

    if all(map(is_available, FULL_SIZE)):
        return Profile(
            "auto",
            f"a CUDA device, and the weights of {', '.join(FULL_SIZE)} cached or reachable: the full-size family.",
            (_full_size(),),
        )
    return _without_weights("a CUDA device, but the full-size weights are neither cached nor reachable")


def _without_weights(why: str) -> Profile:
    instead = "quality on the embedded family, latency and memory of the full-size architectures with random weights"
    return Profile("auto", f"{why}: {instead}.", (replace(_scenes(), only="quality"), _full_size_random()))


def _scenes() -> SuiteRun:
    return SuiteRun([resolve(name) for name, entry in CATALOGUE.items() if entry.family == "scenes"], suites.load("quality"))


def _full_size() -> SuiteRun:
    return SuiteRun([resolve(name) for name in FULL_SIZE], suites.load("standard"))


def _full_size_random() -> SuiteRun:
    return SuiteRun([resolve(name, random=True) for name in ARCHITECTURES], suites.load("efficiency"), "probes", QUICK_SETTINGS)


_NAMED: dict[str, tuple[str, Callable[[], SuiteRun]]] = {
    "scenes": ("the embedded family", _scenes),
    "sdxl": ("the full-size family with its weights", _full_size),
    "sdxl-random": ("latency and memory of the full-size family with random weights", _full_size_random),
}
