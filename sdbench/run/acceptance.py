"""A suite's check of itself: whether a run reproduces what the protocol's makers accept, or what of it differs."""

from collections.abc import Sequence
from pathlib import Path

from sdbench.assets import prompts
from sdbench.records import Value
from sdbench.reference import cards
from sdbench.suites import Accept, Suite


def judged(values: Sequence[Value], suite: Suite, runs: Path) -> list[Value]:
    """The values, with a note where the suite states an accepted range: reproduced, outside, or only alike, and in what not."""
    if suite.accept is None:
        return list(values)
    differing = _differing(values, suite, suite.accept, runs)
    return [_noted(value, suite.accept, differing) for value in values]


def _noted(value: Value, accept: Accept, differing: Sequence[str]) -> Value:
    if value.name not in accept.ranges or value.value is None:
        return value
    low, high = accept.ranges[value.name]
    where = f"{'within' if low <= value.value <= high else 'outside'} {low}..{high}"
    if differing:
        verdict = f"{accept.name}-like: other {', '.join(differing)}; {where}"
    else:
        verdict = ("reproduces the reference" if low <= value.value <= high else f"{accept.name}'s protocol, not its result") + f": {where}"
    return value.model_copy(update={"note": "; ".join(filter(None, [value.note, verdict]))})


def _differing(values: Sequence[Value], suite: Suite, accept: Accept, runs: Path) -> list[str]:
    """What the run was fed that is not what the protocol's makers fed theirs."""
    latent = suite.noise.path()
    used = {value.reference for value in values if value.name in accept.ranges and value.kind == "set"}
    published = {card.digest for card in cards.list_cards(runs) if card.data.get("git") == accept.statistics}
    alike = {
        "settings": not suite.name.endswith("-custom"),
        "prompts": prompts.digest(list(suite.prompt_list().values())) == accept.prompts,
        "latent": latent is not None and prompts.file_digest(latent) == accept.noise,
        "statistics": bool(used) and used <= published,
    }
    return [what for what, same in alike.items() if not same]
