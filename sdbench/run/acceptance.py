"""A suite's check of itself: whether a run reproduces the range that the protocol's makers accept, or how it differs."""

from collections.abc import Sequence
from pathlib import Path

from sdbench.assets.prompts import prompts_digest
from sdbench.disk import file_digest
from sdbench.records import Value
from sdbench.reference import cards
from sdbench.suites import Accept, Suite, base_name


def add_verdicts(values: Sequence[Value], suite: Suite, runs: Path) -> list[Value]:
    """The values; where the suite states an accepted range, a note says whether it was reproduced, or which inputs differ."""
    if suite.accept is None:
        return list(values)
    differing = _differences(values, suite, suite.accept, runs)
    return [_add_verdict(value, suite.accept, differing) for value in values]


def _add_verdict(value: Value, accept: Accept, differing: Sequence[str]) -> Value:
    if value.name not in accept.ranges or value.value is None:
        return value
    low, high = accept.ranges[value.name]
    where = f"{'within' if low <= value.value <= high else 'outside'} {low}..{high}"
    if differing:
        verdict = f"{accept.name}-like: other {', '.join(differing)}; {where}"
    else:
        verdict = ("reproduces the reference" if low <= value.value <= high else f"{accept.name}'s protocol, not its result") + f": {where}"
    return value.with_note(verdict)


def _differences(values: Sequence[Value], suite: Suite, accept: Accept, runs: Path) -> list[str]:
    """The inputs of the run that differ from those of the protocol's makers."""
    latent = suite.noise.path()
    references = {value.reference for value in values if value.name in accept.ranges and value.kind == "set"}
    published = {card.digest for card in cards.list_cards(runs) if card.data.get("git") == accept.statistics}
    is_same = {
        "settings": base_name(suite.name) == suite.name.removesuffix("-sequential"),
        "prompts": prompts_digest(list(suite.prompt_list().values())) == accept.prompts,
        "latent": latent is not None and file_digest(latent) == accept.noise,
        "statistics": bool(references) and references <= published,
    }
    return [name for name, same in is_same.items() if not same]
