"""What `nox -s benchmark` measures: a named profile, or the one that fits this machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdbench import suites
from sdbench.errors import UserError, unknown_name
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.spec import ModelSpec, resolve
from sdbench.suites import Suite

FULL_SIZE = ("sdxl", "ssd-1b", "vega")
ARCHITECTURES = (*FULL_SIZE, "koala-700m")  # random weights serve them all
QUOTED = ("base", "b8", "compiled", "b8+compiled")  # of the suite's settings, those that take an hour and not a day
NAMES = ("auto", "scenes", "sdxl", "sdxl-random")


@dataclass(frozen=True)
class Job:
    """Models to measure under a suite; `only` names half of it, `settings` some of its probes'."""

    specs: Sequence[ModelSpec]
    suite: Suite
    only: Literal["quality", "probes"] | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Jobs, and why they were chosen."""

    name: str
    why: str
    jobs: tuple[Job, ...]


def choose(name: str) -> Profile:
    """The jobs of a profile; `auto` looks at the machine and says what it saw.

    Raises:
        UserError: no such profile.
    """
    if name not in NAMES:
        raise unknown_name("profile", name, NAMES)
    if name == "scenes":
        return Profile(name, "the embedded family, as asked.", (_scenes(),))
    if name == "sdxl":
        return Profile(name, "the full-size family with its weights, as asked.", (_full_size(random=False),))
    if name == "sdxl-random":
        return Profile(name, "latency and memory of the full-size family with random weights, as asked.", (_full_size(random=True),))
    return _auto()


def _auto() -> Profile:
    import torch

    from sdbench.assets.pipelines import is_cached, required_files

    if not torch.cuda.is_available():
        return Profile("auto", "no CUDA device here, so the embedded family 'scenes' on the CPU.", (_scenes(),))

    def at_hand(name: str) -> bool:
        spec = resolve(name)
        try:
            return is_cached(spec, dtype="bfloat16") or bool(required_files(spec, dtype="bfloat16"))
        except UserError:  # the Hub does not answer
            return False

    if all(map(at_hand, FULL_SIZE)):
        return Profile(
            "auto",
            f"a CUDA device, and the weights of {', '.join(FULL_SIZE)} cached or reachable: the full-size family.",
            (_full_size(random=False),),
        )
    why = "a CUDA device, but the full-size weights are neither cached nor reachable: quality on the embedded family, latency and memory of the full-size architectures with random weights."
    return Profile("auto", why, (replace(_scenes(), only="quality"), _full_size(random=True)))


def _scenes() -> Job:
    return Job([resolve(name) for name, entry in CATALOGUE.items() if entry.family == "scenes"], suites.load("quality"))


def _full_size(*, random: bool) -> Job:
    if random:
        return Job([resolve(name, random=True) for name in ARCHITECTURES], suites.load("efficiency"), "probes", QUOTED)
    return Job([resolve(name) for name in FULL_SIZE], suites.load("standard"))
