"""The commands as Python functions, which make the same records.

What is measured or compared comes first, then the suite; everything else is named. `places` is the folder of results, or `Places` where
that of the runs is not within it.
"""

from sdbench.api.evaluation import Evaluation, evaluate, load_pipeline
from sdbench.api.gating import compare, gate, noise, until_verdict
from sdbench.api.measuring import draw, record_images, run, score
from sdbench.api.overrides import Overrides
from sdbench.api.places import Places
from sdbench.api.showing import card, leaderboard, report

__all__ = [
    "Evaluation",
    "Overrides",
    "Places",
    "card",
    "compare",
    "draw",
    "evaluate",
    "gate",
    "leaderboard",
    "load_pipeline",
    "noise",
    "record_images",
    "report",
    "run",
    "score",
    "until_verdict",
]
