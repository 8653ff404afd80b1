"""Scene accuracy: whether an image shows what its caption asks for. Only scenes have it, since only their truth is known.

What an image shows is read by a network, the attribute reader; all of the layout must be as the caption says.
"""

from itertools import chain

import numpy as np

from sdbench.encoders import scenes
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.scenes.grammar import parse


def _scene_accuracy(subject: Subject, protocol: Protocol) -> Result:
    layouts = chain.from_iterable(subject.map_blocks(scenes.layouts, protocol.name))
    correct = [layout == parse(prompt).layout for layout, prompt in zip(layouts, subject.prompts, strict=True)]
    return protocol.share(subject, np.asarray(correct, np.float64))


PROTOCOLS = (Protocol("scene_accuracy", "score", "higher", "share", _scene_accuracy),)
