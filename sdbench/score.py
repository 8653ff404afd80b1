"""Score images: values with intervals, and the per-image scores behind them.

A protocol that raises an error, or lacks its weights, gives a value that holds the reason in place of a number; the others continue.
"""

from collections.abc import Sequence

import torch

from sdbench.assets import catalogue, weights
from sdbench.encoders.inference import device, release_evaluators
from sdbench.errors import MissingError, UserError, describe_error, unknown_name
from sdbench.models.out_of_memory import explain_out_of_memory, is_out_of_memory
from sdbench.protocols import agreement, captions, diversity, sets, truth
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.records import Scores, Value

# In the order in which they are measured: a win rate needs the preference scores before it.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (*truth.PROTOCOLS, *sets.PROTOCOLS, *captions.PROTOCOLS, *agreement.PROTOCOLS, *diversity.PROTOCOLS)
}


def find_protocols(metrics: Sequence[str]) -> list[Protocol]:
    """The protocols of these names, in the order of `PROTOCOLS`.

    Raises:
        UserError: a metric is not known.
    """
    for name in metrics:
        if name not in PROTOCOLS:
            raise unknown_name("metric", name, PROTOCOLS)
    return [protocol for name, protocol in PROTOCOLS.items() if name in metrics]


def score(subject: Subject, metrics: Sequence[str]) -> tuple[list[Value], Scores]:
    """Measure these metrics of the images and return a value for each, in the order of `PROTOCOLS`, and the per-image scores.

    Raises:
        UserError: a metric is not known, an image, or one of the teacher's, cannot be read, or the GPU failed.
    """
    protocols = find_protocols(metrics)
    subject.store.verify(subject.image_ids)  # a damaged image ends the run here, before any metric
    if teacher := subject.teacher_images:
        teacher.store.verify(teacher.image_ids, f"delete it, and run {subject.teacher_name} again: only that image is made again")
    values = []
    for protocol in protocols:
        try:
            value, columns = _measure(subject, protocol)
        except MissingError as error:
            value, columns = protocol.without_value("missing", str(error))
        except Exception as error:  # noqa: BLE001  # a metric that fails loses only itself
            _check_gpu(protocol)
            value, columns = protocol.without_value("failed", f"{type(error).__name__}: {error}")
        if protocol.against_teacher and value.state == "ok":
            value = value.model_copy(update={"reference": subject.teacher_digest})
        subject.columns.update(columns)
        values.append(_note_unverified_weights(value))
    return values, Scores(subject.prompt_ids, subject.samples, subject.columns, subject.prompts)


def _measure(subject: Subject, protocol: Protocol) -> Result:
    """Measure one metric; where memory runs out, once more without the evaluators of those before it, which are still loaded."""
    try:
        return protocol.measure(subject, protocol)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    release_evaluators()  # out here, because the error held what the metric had on the device
    room = "free some of it and run again, which keeps the images"
    with explain_out_of_memory(str(device()), f"to measure {protocol.name}", [room]):
        return protocol.measure(subject, protocol)


def _check_gpu(protocol: Protocol) -> None:
    """Check, after a metric has failed, that it is not the GPU: one that has stays so until the process ends, whatever is measured next.

    Raises:
        UserError: it is.
    """
    if device().type == "cuda":
        try:
            torch.cuda.synchronize(device())
        except torch.AcceleratorError as error:
            raise UserError(
                f"the GPU failed while {protocol.name} was measured ({describe_error(error)}); run again, which keeps the images "
                "and the finished features"
            ) from error


def _note_unverified_weights(value: Value) -> Value:
    """Add a note to the value where no source states the digest of the weights behind it."""
    names = [asset.name for asset in catalogue.evaluators_for([value.name]) if weights.is_unverified(asset.name)]
    if value.state != "ok" or not names:
        return value
    return value.with_note(f"unverified weights: {', '.join(names)}")
