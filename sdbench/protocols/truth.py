"""Whether a picture shows what its caption asks; only scenes, whose truth is known, have it."""

import numpy as np

from sdbench.encoders import scenes
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.scenes.grammar import parse
from sdbench.stats import intervals


def _scene_accuracy(subject: Subject, protocol: Protocol) -> Result:
    seen = [layout for block in subject.blocks() for layout in scenes.layouts(block)]
    right = [layout == parse(prompt).layout for layout, prompt in zip(seen, subject.prompts, strict=True)]
    return protocol.value(intervals.proportion_interval(sum(right), len(right))), {protocol.name: np.asarray(right, np.float64)}


PROTOCOLS = (Protocol("scene_accuracy", "score", "higher", "share", _scene_accuracy),)
