"""How different a model's images of one prompt are.

Neither direction is better: a model that collapsed has less than its teacher, one that errs has more. In the embedded family, the rendered
truth has least, and the students have more than their teacher.
"""

from functools import partial

from sdbench.metrics.diversity import mean_distance_within
from sdbench.protocols.agreement import features
from sdbench.protocols.base import Protocol, Result, Subject


def _diversity(encoder: str, subject: Subject, protocol: Protocol) -> Result:
    if not subject.has_several_samples:
        return protocol.without_value("not_applicable", "there is one image of each prompt; with --samples-per-prompt 4 there are four")
    return protocol.mean(subject, mean_distance_within(features(encoder, subject), subject.prompt_ids))


PROTOCOLS = (
    Protocol("diversity.clip.scenes",     "score", "neither", "1 - cos", partial(_diversity, "clip.scenes")),
    Protocol("diversity.features.scenes", "score", "neither", "1 - cos", partial(_diversity, "scenes.features")),
    Protocol("diversity.clip.vit-l-14",   "score", "neither", "1 - cos", partial(_diversity, "clip.vit-l-14")),
    Protocol("diversity.dinov2",          "score", "neither", "1 - cos", partial(_diversity, "dinov2.vit-l-14")),
)  # fmt: skip  # a table
