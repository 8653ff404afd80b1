"""Golden images: inputs with a known ranking, put through every metric that can run here.

Healthy images are rendered scenes that show what their captions ask for. Every metric must rate them better than black, gray, noise
and inverted images, which are the ways in which decoders and conversions fail, and better than a few images repeated over and
over. There are exceptions. Precision and density must tolerate repetition, or they have been mistaken for recall. Diversity, which
takes every eighth image for one of the same prompt, may like noise and inverted images. The aesthetic score, which sees no caption, may
rank all of them as it likes. Scoring the same images a second time must give the same value, or, for metrics that compare with a teacher,
the value of a perfect copy. Nothing is fetched.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from huggingface_hub import constants

from sdbench.arrays import U8
from sdbench.assets import catalogue
from sdbench.protocols.base import Protocol, Subject
from sdbench.records import Scores, Value
from sdbench.records.names import first_part, is_against_images, judge_of
from sdbench.run import external
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render
from sdbench.score import PROTOCOLS, score

N, KINDS, SEED = 64, 8, 5
SCENES = [scene_at(index, "heldout", SEED) for index in range(N)]
PROMPTS = [scene.caption for scene in SCENES]
UNRANKED = {"diversity": {"noise", "inverted"}, "aesthetic": {"black", "gray", "noise", "inverted", "collapsed"}}
TOLERATES_COLLAPSE = {"precision", "density"}
_NOT_TRIED = {"missing", "not_applicable"}
ValuesBySet = Mapping[str, Value]  # the values of one metric, by set of images


@dataclass(frozen=True)
class Judgement:
    """How a metric did on the golden images.

    Attributes:
        values: None where the metric was not tried because weights or a GPU were missing.
        complaints: what is wrong with the metric; empty where it behaves.
    """

    name: str
    values: ValuesBySet | None
    complaints: tuple[str, ...] = ()


def images() -> dict[str, U8]:
    """The sets of images by name, N x 64 x 64 x 3 uint8 RGB each."""
    healthy = render(SCENES, range(N), SEED)
    return {
        "healthy": healthy,
        "black": np.zeros_like(healthy),
        "gray": np.full_like(healthy, 128),
        "noise": np.random.default_rng(SEED).integers(0, 256, healthy.shape, np.uint8),
        "inverted": 255 - healthy,
        "collapsed": healthy[np.arange(N) % KINDS],
    }


def judge_metrics() -> list[Judgement]:
    """Judge every metric, in the order of `PROTOCOLS`; those of full-size networks only on a GPU, without which they take hours."""
    names = [name for name in PROTOCOLS if torch.cuda.is_available() or not catalogue.evaluators_for([name])]
    with offline(), TemporaryDirectory() as folder:
        runs, drawn, values = Path(folder), images(), dict[str, dict[str, Value]]()
        teacher = _subject(render(SCENES, range(N), SEED + 1), runs)
        _, teacher_scores = score(teacher, names)
        for name, of_name in drawn.items():
            values[name], scores = _score(_subject(of_name, runs), teacher_scores, teacher, names)
            if name == "healthy":
                healthy_scores, names = scores, [metric for metric, value in values[name].items() if value.state not in _NOT_TRIED]
        # In a store of its own, which has no features kept from the first time.
        again = replace(_subject(drawn["healthy"], runs / "twice"), runs=runs)
        values["twice"], _ = _score(again, healthy_scores, _subject(drawn["healthy"], runs), names)
    return [
        _judge(protocol, {name: by_metric[protocol.name] for name, by_metric in values.items()})
        if protocol.name in names
        else Judgement(protocol.name, None)
        for protocol in PROTOCOLS.values()
    ]


def complaints(protocol: Protocol, values: ValuesBySet) -> Iterator[str]:
    """What is wrong with a metric's values for the golden images; `healthy` must have a number."""
    numbers = {name: value.value for name, value in values.items() if value.value is not None}
    healthy, again = numbers["healthy"], numbers.get("twice", math.nan)
    sign = -1 if protocol.direction == "lower" else 1
    unranked = {"healthy", "twice"} | UNRANKED.get(first_part(protocol.name), set())
    for name in [name for name in numbers if name not in unranked]:
        tolerated = name == "collapsed" and protocol.name.rpartition(".")[2] in TOLERATES_COLLAPSE
        if tolerated and numbers[name] < healthy / 2:
            yield f"a few images over and over get {numbers[name]:.4g}, less than half of {healthy:.4g}"
        elif not tolerated and sign * numbers[name] >= sign * healthy:
            yield f"{name} images get {numbers[name]:.4g}, no worse than healthy ones with {healthy:.4g}"
    expected = _expected_value_again(protocol, healthy)
    if not math.isclose(again, expected, rel_tol=1e-4, abs_tol=1e-4):
        yield f"the same images a second time get {again:.6g}, expected {expected:.6g}"


def _expected_value_again(protocol: Protocol, healthy: float) -> float:
    """The value that healthy images must get when scored again, now compared with themselves as the teacher's."""
    if judge_of(protocol.name):
        return 0.5
    if is_against_images(protocol.name):
        return 1.0 if protocol.direction == "higher" else 0.0
    return healthy


def _judge(protocol: Protocol, values: ValuesBySet) -> Judgement:
    healthy = values["healthy"]
    if healthy.state != "ok":
        return Judgement(protocol.name, values, (f"healthy images are {healthy.state}: {healthy.reason}",))
    return Judgement(protocol.name, values, tuple(complaints(protocol, values)))


def _subject(drawn: U8, runs: Path) -> Subject:
    return replace(external.store_images(drawn, PROMPTS, runs), reference="scenes")


def _score(subject: Subject, teacher_scores: Scores, teacher: Subject, names: list[str]) -> tuple[dict[str, Value], Scores]:
    single = replace(subject, teacher_scores=teacher_scores, teacher_images=teacher)
    values, scores = score(single, [name for name in names if first_part(name) != "diversity"])
    several = replace(subject, prompt_ids=[str(row % KINDS) for row in range(N)], samples=[row // KINDS for row in range(N)])
    of_prompts, _ = score(several, [name for name in names if first_part(name) == "diversity"])
    return {value.name: value for value in (*values, *of_prompts)}, scores


@contextmanager
def offline() -> Iterator[None]:
    """Fetch nothing from the Hub, as under HF_HUB_OFFLINE=1."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
