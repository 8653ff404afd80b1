"""Pictures -> values with intervals, and the per-image scores behind them.

A protocol that throws, or whose weights are not at hand, gives a value whose state says so; the others go on.
"""

from collections.abc import Sequence

from sdbench.assets import catalogue, weights
from sdbench.errors import MissingError, unknown_name
from sdbench.protocols import agreement, captions, sets, truth
from sdbench.protocols.base import Protocol, Subject
from sdbench.records import Scores, Value

# In the order in which they are taken: a win rate needs the preference scores before it.
PROTOCOLS = {protocol.name: protocol for protocol in (*truth.PROTOCOLS, *sets.PROTOCOLS, *captions.PROTOCOLS, *agreement.PROTOCOLS)}


def named(metrics: Sequence[str]) -> list[Protocol]:
    """The protocols of these names, in the order in which they are taken.

    Raises:
        UserError: a metric that is not known.
    """
    for name in metrics:
        if name not in PROTOCOLS:
            raise unknown_name("metric", name, PROTOCOLS)
    return [protocol for name, protocol in PROTOCOLS.items() if name in metrics]


def score(subject: Subject, metrics: Sequence[str]) -> tuple[list[Value], Scores]:
    """Every metric of the list, in the order of `PROTOCOLS`.

    Raises:
        UserError: a metric that is not known, or a picture that cannot be read.
    """
    protocols = named(metrics)
    for _ in subject.blocks():  # a picture that cannot be read ends the run here, before any metric
        pass
    values = []
    for protocol in protocols:
        try:
            value, columns = protocol.measure(subject, protocol)
        except MissingError as error:
            value, columns = protocol.without("missing", str(error)), {}
        except Exception as error:  # noqa: BLE001  # a metric that fails loses only itself
            value, columns = protocol.without("failed", f"{type(error).__name__}: {error}"), {}
        if protocol.against_teacher and value.state == "ok":
            value = value.model_copy(update={"reference": subject.original_digest})
        subject.columns.update(columns)
        values.append(_noted(value))
    return values, Scores(subject.prompt_ids, subject.samples, subject.columns, subject.prompts)


def _noted(value: Value) -> Value:
    """The value, with a note where no source states the digest of the weights behind it."""
    names = [asset.name for asset in catalogue.evaluators_for([value.name]) if weights.is_unverified(asset.name)]
    if value.state != "ok" or not names:
        return value
    return value.model_copy(update={"note": "; ".join(filter(None, [value.note, f"unverified weights: {', '.join(names)}"]))})
