"""The questions that the calibration asks the gate.

"No difference" compares the model with itself: of a prompt's images under several seeds, two are taken at random, in random order,
so that the expected difference is exactly 0. A loss "of a margin" is subtracted from the candidate of such a draw. Faults are
compared under the same noise, as the gate does. A loss on few prompts, where nothing else differs, needs no draws: the gate is run
once for each number of affected prompts, and binomial chances give the rest.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
from calibration_pool import SCORES
from calibration_sampler import NO_IMAGES, SUITE, Images, Sampler, with_loss
from scipy.stats import binom

from sdbench.gate import judging, looks
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.metrics import frechet
from sdbench.run.until_verdict import look_sizes
from sdbench.stats import decisions

RARE, RATE = "a loss of one margin by one prompt in 40: clip_score.scenes", 1 / 40
FAULTS_EXPECTED = (5, 60)  # range of the expected number of hit prompts, over which the worst rate is sought


@dataclass(frozen=True)
class Question:
    """A question for the gate, asked `draws` times; `ask` takes a random generator and returns verdict and share of prompts used."""

    name: str
    ask: Callable[[np.random.Generator], tuple[str, float]]
    size_in_margins: dict[str, float] | None = None

    def answer(self, draws: int) -> dict[str, Any]:
        """How many draws gave each verdict."""
        random = np.random.default_rng(int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16))
        verdicts = [self.ask(random) for _ in range(draws)]
        return {
            "draws": draws,
            "verdicts": dict(Counter(verdict for verdict, _ in verdicts)),
            "share_of_prompts": mean(share for _, share in verdicts),
            "size_in_margins": self.size_in_margins,
        }


@dataclass(frozen=True)
class Exact:
    """A question that needs no draws; `chances` returns the chance of each verdict."""

    name: str
    chances: Callable[[], dict[str, float]]

    def answer(self, _: int) -> dict[str, Any]:
        """The chance of each verdict, over no draws."""
        return {"draws": 0, "verdicts": self.chances(), "share_of_prompts": 1.0, "size_in_margins": None}


def questions(sampler: Sampler) -> Iterator[Question | Exact]:
    """All of them."""
    clip_score = "clip_score.scenes"
    quality = [name for name in sampler.rules if name in (*SCORES, "fd.scenes")]
    yield Question("no difference, other noise", partial(_judge_itself, sampler))
    for name in quality:
        yield Question(f"a loss of one margin: {name}", partial(_judge_shifted, sampler, name, 1))
    yield Question("no difference, other noise, 5 rounds of the same speed and memory", partial(_judge_with_probes, sampler))
    yield Exact(RARE, lambda: rare_loss_chances(sampler, RATE))
    worst = (
        f"a loss of one margin by {FAULTS_EXPECTED[0]} to {FAULTS_EXPECTED[1]} prompts in {sampler.n}, "
        f"at the rate that passes most: {clip_score}"
    )
    yield Exact(
        worst, lambda: max((rare_loss_chances(sampler, rate) for rate in passing_rates(sampler)), key=lambda chances: chances["pass"])
    )
    yield Question(f"until the verdict, {RARE}", partial(_judge_rare_loss_sequentially, sampler))
    for arm in [arm for arm in sampler.arms if arm != "vega"]:
        yield Question(f"fault: {arm}", partial(_judge_fault, sampler, arm), _size_in_margins(sampler, arm))
    for name, what in (("latency.pipeline.p50", "slower"), ("memory.peak_data", "more memory")):
        for rounds in (2, 5, 20):
            for slower in (0.0, 0.03, 0.05, 0.1):
                sizes = {name: slower / sampler.rules[name].margin}
                yield Question(f"{100 * slower:g} % {what}, {rounds} rounds", partial(_judge_probe, sampler, name, slower, rounds), sizes)
    for margins in (0, 1, 3):
        yield Question(
            f"until the verdict, a loss of {margins} margins: {clip_score}",
            partial(_judge_shifted_sequentially, sampler, clip_score, margins),
        )
    for name in [name for name in quality if name != clip_score]:
        yield Question(f"until the verdict, a loss of 1 margins: {name}", partial(_judge_shifted_sequentially, sampler, name, 1))


def _judge_once(sampler: Sampler, new: Images, old: Images, worse: float = 0.0) -> tuple[str, float]:
    return judging.judge(sampler.make_side(new, worse=worse), sampler.make_side(old), sampler.policy, {}).verdict, 1.0


def _judge_itself(sampler: Sampler, random: np.random.Generator) -> tuple[str, float]:
    return _judge_once(sampler, *sampler.draw_itself(random))


def _judge_fault(sampler: Sampler, arm: str, random: np.random.Generator) -> tuple[str, float]:
    return _judge_once(sampler, *sampler.draw_faulty(arm, random))


def rare_loss_chances(sampler: Sampler, rate: float) -> dict[str, float]:
    """Chance of each verdict where every prompt is hit at this rate and the hits together cost one margin of CLIP score on average."""
    chances, found = binom.pmf(np.arange(sampler.n + 1), sampler.n, rate), Counter[str]()
    for hits in np.flatnonzero(chances > 1e-6):
        found[_judge_once(sampler, *sampler.with_rare_loss(np.arange(sampler.n) < hits, rate))[0]] += chances[hits]
    return {verdict: float(chance) for verdict, chance in found.items()}


def passing_rates(sampler: Sampler) -> list[float]:
    """Rates just above those from which one more hit passes: there the chance of a pass is highest."""
    hits = [np.repeat([-1.0, 0.0], [each, sampler.n - each]) for each in range(1, FAULTS_EXPECTED[1])]
    rates = [-decisions.paired_mean_bounds(each, 1 - sampler.policy.alpha).low * (1 + 1e-9) for each in hits]
    return [rate for rate in rates if FAULTS_EXPECTED[0] <= rate * sampler.n <= FAULTS_EXPECTED[1]]


def _judge_shifted(sampler: Sampler, name: str, margins: float, random: np.random.Generator) -> tuple[str, float]:
    new, old = sampler.draw_itself(random)
    amount = margins * sampler.rules[name].margin
    return _judge_once(sampler, with_loss(sampler, new, name, amount, random), old, amount if name == "fd.scenes" else 0.0)


def _judge_probe(sampler: Sampler, name: str, slower: float, rounds: int, random: np.random.Generator) -> tuple[str, float]:
    rules = Policy(alpha=sampler.policy.alpha, suites={SUITE: {name: sampler.rules[name]}})
    new, old = (sampler.make_side(NO_IMAGES, sets=False, probes=[probe]) for probe in sampler.draw_probes(name, slower, rounds, random))
    return judging.judge(new, old, rules, {}).verdict, 1.0


def _judge_with_probes(sampler: Sampler, random: np.random.Generator) -> tuple[str, float]:
    """Judge with latency and memory drawn for both sides, as one run of both models would measure them."""
    probes = zip(*(sampler.draw_probes(name, 0.0, 5, random) for name in sampler.turns), strict=True)
    new, old = (sampler.make_side(images, probes=drawn) for images, drawn in zip(sampler.draw_itself(random), probes, strict=True))
    return judging.judge(new, old, sampler.policy, {}).verdict, 1.0


def _judge_shifted_sequentially(sampler: Sampler, name: str, margins: float, random: np.random.Generator) -> tuple[str, float]:
    new, old = sampler.draw_itself(random)
    amount = margins * sampler.rules[name].margin
    return _judge_sequentially(sampler, with_loss(sampler, new, name, amount, random), old, amount if name == "fd.scenes" else 0.0)


def _judge_rare_loss_sequentially(sampler: Sampler, random: np.random.Generator) -> tuple[str, float]:
    return _judge_sequentially(sampler, *sampler.with_rare_loss(random.random(sampler.n) < RATE, RATE))


def _judge_sequentially(sampler: Sampler, new: Images, old: Images, worse: float = 0.0) -> tuple[str, float]:
    rules = looks.LookRules(sampler.policy, SUITE, ["fd.scenes"], {})
    shares: tuple[float, ...] = ()
    for size in look_sizes(sampler.n, sampler.batch):
        shares, rows = (*shares, size / sampler.n), np.arange(size)

        def sides(sets: bool, rows: npt.NDArray[np.intp] = rows) -> tuple[Side, Side]:
            return sampler.make_side(new.rows(rows), sets=sets, worse=worse), sampler.make_side(old.rows(rows), sets=sets)

        if report := looks.verdict_at(shares, sides, rules):
            return report.verdict, shares[-1]
    raise AssertionError


def _size_in_margins(sampler: Sampler, arm: str) -> dict[str, float]:
    """How much worse the fault is in the whole pool, in margins (plus = worse)."""
    bad, good = sampler.arms[arm][0], sampler.arms["vega"][0]
    sizes = {name: float((good.scores[name] - bad.scores[name]).mean()) / sampler.rules[name].margin for name in SCORES}
    distances = [frechet.frechet(side.features, sampler.reference)[0] for side in (bad, good)]
    return {**sizes, "fd.scenes": (distances[0] - distances[1]) / sampler.rules["fd.scenes"].margin}


def unpaired_ratios(sampler: Sampler) -> dict[str, dict[str, float]]:
    """For each fault and for other noise: how many times as many prompts an unpaired test needs as the paired one."""
    random = np.random.default_rng(0)
    pairs = {"other noise": sampler.draw_itself(random)} | {
        arm: (runs[0], sampler.arms["vega"][0]) for arm, runs in sampler.arms.items() if arm != "vega"
    }
    found = {}
    for arm, (new, old) in pairs.items():
        influences = [frechet.frechet(side.features, sampler.reference)[1] for side in (new, old)]
        columns = {**{name: (new.scores[name], old.scores[name]) for name in SCORES}, "fd.scenes": (influences[0], influences[1])}
        found[arm] = {
            name: float((a.var() + b.var()) / (a - b).var()) if (a != b).any() else float("inf") for name, (a, b) in columns.items()
        }
    return found
