"""Measure how often the gate errs, on pictures of embedded Vega under several noise seeds and on faults injected into it.

    python suites/calibrate_gate.py pool [--work DIR] [--student FAULT=FOLDER ...]
    python suites/calibrate_gate.py judge [--draws N]

`pool` generates the pictures (a killed run continues where it was) and stores their scores and features in
`results/calibration/pool.parquet`. `judge` draws prompts from it with replacement, as many as the suite has, builds two records from each
draw, and runs the gate on them. A question that was already answered, with the same pool, policy, records and code, is not asked
again. It writes `results/calibration/gate.json` and `gate.md`.

"No difference" compares the model with itself: of a prompt's pictures under several seeds, two are taken at random, in random order,
so that the expected difference is exactly 0. A loss "of a margin" is subtracted from the candidate of such a draw. Faults are
compared under the same noise, as the gate does. A loss on few prompts, where nothing else differs, needs no draws: the gate is run
once for each number of affected prompts, and binomial chances give the rest. Latency and memory have no pool. Their rounds come from the
committed records of suite `quality`, each divided by its record's median, so they show what a few runs on one machine show.

The committed pool has two students that `distillation run` made with a fault: "half of the training" by `--steps 1200`, "the middle's
tap lost" by the recipe without `mid_block` among its taps.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from calibration_pool import FOLDER, MODEL, POOL, PROMPTS, SCORES, make
from scipy.stats import binom

from sdbench import records, suites, tables
from sdbench.encoders.catalogue import ENCODERS
from sdbench.gate import compare, judging, looks, policy
from sdbench.gate.compare import Side
from sdbench.gate.policy import Policy
from sdbench.metrics import frechet
from sdbench.records import Value
from sdbench.reference import cards
from sdbench.run import until_verdict
from sdbench.run.until_verdict import sizes
from sdbench.stats import decisions, intervals, sequential, student_t

SUITE = "quality"
CODE = [
    Path(__file__),
    *(Path(room.__file__) for room in (decisions, compare, judging, looks, sequential, intervals, student_t, frechet, until_verdict)),
]


@dataclass(frozen=True)
class Pictures:
    """Scores and features of pictures, a row each."""

    scores: dict[str, np.ndarray]
    features: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Pictures":
        return Pictures({name: column[chosen] for name, column in self.scores.items()}, self.features[chosen])


class Judge:
    """Draws from the pool, as sides for the gate."""

    def __init__(self, work: Path, draws: int) -> None:
        table = pq.read_table(POOL)
        self.arms: dict[str, list[Pictures]] = {}
        arm, seed, units = np.array(table["arm"].to_pylist()), np.array(table["seed"]), json.loads(table.schema.metadata[b"units"])
        whole = Pictures(
            {name: np.array(table[name], np.float64) for name in SCORES},
            np.stack([np.array(table[name], np.float64) * unit for name, unit in units.items()], 1),
        )
        for name in dict.fromkeys(arm):
            self.arms[name] = [whole.rows(np.flatnonzero((arm == name) & (seed == each))) for each in np.unique(seed[arm == name])]
        self.accuracy = float(np.mean([run.scores["scene_accuracy"].mean() for run in self.arms["vega"]]))
        self.policy = policy.load(suites.find(suites.POLICY))
        self.rules = self.policy.rules(SUITE)
        self.reference, self.draws = cards.find("scenes", ENCODERS["scenes.features"], work).statistics, draws
        suite = suites.load(SUITE)
        assert suite.prompts
        assert suite.sampling
        self.n, self.batch = suite.prompts.n, suite.sampling.batch
        newest = [
            (folder, record)
            for folder, record in records.newest_per_model(Path("results"), "scenes")
            if record.suite.name == SUITE and record.model.architecture
        ]
        self.folders = [folder for folder, _ in newest]
        self.template = next(record for _, record in newest if record.model.name == MODEL)
        self.rounds = {
            name: [
                np.array(one) / value.value
                for _, record in newest
                if (value := record.value(name)) and value.value
                for one in value.samples or ()
            ]
            for name in ("latency.pipeline.p50", "memory.peak_rss")
        }

    def draw_itself(self, random: np.random.Generator) -> tuple[Pictures, Pictures]:
        """Draw prompts with replacement, and for each of them two of the model's pictures."""
        runs = self.arms["vega"]
        prompts = random.integers(PROMPTS, size=self.n)
        order = random.permuted(np.tile(np.arange(len(runs)), (self.n, 1)), axis=1)
        together = Pictures(
            {name: np.concatenate([run.scores[name] for run in runs]) for name in SCORES}, np.concatenate([run.features for run in runs])
        )
        return together.rows(order[:, 0] * PROMPTS + prompts), together.rows(order[:, 1] * PROMPTS + prompts)

    def draw_faulty(self, arm: str, random: np.random.Generator) -> tuple[Pictures, Pictures]:
        """Draw prompts with replacement, with the pictures of a faulty model and of the model itself under the same noise."""
        prompts = random.integers(PROMPTS, size=self.n)
        return self.arms[arm][0].rows(prompts), self.arms["vega"][0].rows(prompts)

    def with_rare_loss(self, hit: np.ndarray, rate: float) -> tuple[Pictures, Pictures]:
        """The same pictures twice, but the prompts that are hit, each at this rate, lose CLIP score: one margin on average over all prompts."""
        same = self.arms["vega"][0].rows(np.arange(self.n))
        loss = self.rules["clip_score.scenes"].margin / rate * hit
        return Pictures({**same.scores, "clip_score.scenes": same.scores["clip_score.scenes"] - loss}, same.features), same

    def make_side(self, pictures: Pictures, *, sets: bool = True, worse: float = 0.0, probes: Sequence[Value] = ()) -> Side:
        """A side of the gate with these pictures; `worse` is added to the Frechet distance."""
        n = len(pictures.features)
        values = [
            Value(name=name, kind="score", direction="higher", unit="1", value=float(column.mean()), n=n)
            for name, column in pictures.scores.items()
        ]
        columns = dict(pictures.scores)
        if sets:
            distance, columns["fd.scenes:influence"] = frechet.frechet(pictures.features, self.reference)
            values.append(Value(name="fd.scenes", kind="set", direction="lower", unit="distance", value=distance + worse, n=n))
        kept = [
            value for value in self.template.values if not value.is_picture_metric and value.name not in {probe.name for probe in probes}
        ]
        record = self.template.model_copy(update={"values": (*values, *kept, *probes), "n_images": n, "run": "one"})
        return Side(record, [(f"{row:05d}", 0) for row in range(n)], columns)

    def make_probe(self, name: str, slower: float, rounds: int, random: np.random.Generator) -> Value:
        """A probe with this number of rounds drawn from the stored ones, slower by a share."""
        samples = [tuple((1 + slower) * self.rounds[name][row]) for row in random.integers(len(self.rounds[name]), size=rounds)]
        middle = float(np.median(np.concatenate(samples)))
        return Value(name=name, kind="probe", direction="lower", unit="1", value=middle, n=rounds, samples=tuple(samples))


RARE, RATE = "a loss of one margin by one prompt in 40: clip_score.scenes", 1 / 40
FAULTS_EXPECTED = (5, 60)  # range of the expected number of hit prompts, over which the worst rate is sought


def with_loss(judge: Judge, pictures: Pictures, name: str, amount: float, random: np.random.Generator) -> Pictures:
    """The same pictures with an expected loss of one score: right scenes turn wrong at random with equal chances, other scores are lowered."""
    if name not in pictures.scores:
        return pictures
    column = pictures.scores[name]
    changed = column * (random.random(len(column)) >= amount / judge.accuracy) if name == "scene_accuracy" else column - amount
    return Pictures({**pictures.scores, name: changed}, pictures.features)


@dataclass(frozen=True)
class Question:
    """A question for the gate, asked `draws` times: a function of a random generator => the verdict, and the share of prompts used."""

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
    """A question that needs no draws: a function => the chance of each verdict."""

    name: str
    chances: Callable[[], dict[str, float]]

    def answer(self, _: int) -> dict[str, Any]:
        """The chance of each verdict, over no draws."""
        return {"draws": 0, "verdicts": self.chances(), "share_of_prompts": 1.0, "size_in_margins": None}


def questions(judge: Judge) -> Iterator[Question | Exact]:
    """All of them."""
    quality = [name for name in judge.rules if name in (*SCORES, "fd.scenes")]
    yield Question("no difference, other noise", lambda random: _judge_once(judge, *judge.draw_itself(random)))
    for name in quality:
        yield Question(f"a loss of one margin: {name}", lambda random, name=name: _judge_shifted(judge, name, 1, random))
    yield Question("no difference, other noise, 5 rounds of the same speed and memory", lambda random: _judge_with_probes(judge, random))
    yield Exact(RARE, lambda: rare_loss_chances(judge, RATE))
    worst = f"a loss of one margin by {FAULTS_EXPECTED[0]} to {FAULTS_EXPECTED[1]} prompts in {judge.n}, at the rate that passes most: clip_score.scenes"
    yield Exact(worst, lambda: max((rare_loss_chances(judge, rate) for rate in passing_rates(judge)), key=lambda chances: chances["pass"]))
    yield Question(
        f"until the verdict, {RARE}", lambda random: _judge_sequentially(judge, *judge.with_rare_loss(random.random(judge.n) < RATE, RATE))
    )
    for arm in [arm for arm in judge.arms if arm != "vega"]:
        yield Question(
            f"fault: {arm}", lambda random, arm=arm: _judge_once(judge, *judge.draw_faulty(arm, random)), _size_in_margins(judge, arm)
        )
    for name, what in (("latency.pipeline.p50", "slower"), ("memory.peak_rss", "more memory")):
        for rounds in (2, 5, 20):
            for slower in (0.0, 0.03, 0.05, 0.1):
                question = f"{100 * slower:g} % {what}, {rounds} rounds"
                yield Question(
                    question,
                    lambda random, probe=(name, slower, rounds): _judge_probe(judge, *probe, random),
                    {name: slower / judge.rules[name].margin},
                )
    for margins in (0, 1, 3):
        yield Question(
            f"until the verdict, a loss of {margins} margins: clip_score.scenes",
            lambda random, m=margins: _judge_shifted_sequentially(judge, "clip_score.scenes", m, random),
        )
    for name in [name for name in quality if name != "clip_score.scenes"]:
        yield Question(
            f"until the verdict, a loss of 1 margins: {name}", lambda random, name=name: _judge_shifted_sequentially(judge, name, 1, random)
        )


def _judge_once(judge: Judge, new: Pictures, old: Pictures, worse: float = 0.0) -> tuple[str, float]:
    return judging.judge(judge.make_side(new, worse=worse), judge.make_side(old), judge.policy, {}).verdict, 1.0


def rare_loss_chances(judge: Judge, rate: float) -> dict[str, float]:
    """Chance of each verdict where every prompt is hit at this rate and the hits together cost one margin of CLIP score on average."""
    chances, found = binom.pmf(np.arange(judge.n + 1), judge.n, rate), Counter[str]()
    for hits in np.flatnonzero(chances > 1e-6):
        found[_judge_once(judge, *judge.with_rare_loss(np.arange(judge.n) < hits, rate))[0]] += chances[hits]
    return {verdict: float(chance) for verdict, chance in found.items()}


def passing_rates(judge: Judge) -> list[float]:
    """Rates just above those from which one more hit passes: there the chance of a pass is highest."""
    hits = [np.repeat([-1.0, 0.0], [each, judge.n - each]) for each in range(1, FAULTS_EXPECTED[1])]
    rates = [-decisions.paired_mean_bounds(each, 1 - judge.policy.alpha).low * (1 + 1e-9) for each in hits]
    return [rate for rate in rates if FAULTS_EXPECTED[0] <= rate * judge.n <= FAULTS_EXPECTED[1]]


def _judge_shifted(judge: Judge, name: str, margins: float, random: np.random.Generator) -> tuple[str, float]:
    new, old = judge.draw_itself(random)
    amount = margins * judge.rules[name].margin
    return _judge_once(judge, with_loss(judge, new, name, amount, random), old, amount if name == "fd.scenes" else 0.0)


def _judge_probe(judge: Judge, name: str, slower: float, rounds: int, random: np.random.Generator) -> tuple[str, float]:
    rules = Policy(alpha=judge.policy.alpha, suites={SUITE: {name: judge.rules[name]}})
    new, old = (judge.make_side(NO_PICTURES, sets=False, probes=[judge.make_probe(name, share, rounds, random)]) for share in (slower, 0.0))
    return judging.judge(new, old, rules, {}).verdict, 1.0


def _judge_with_probes(judge: Judge, random: np.random.Generator) -> tuple[str, float]:
    """Judge with latency and memory drawn for both sides, as one run of both models would measure them."""
    sides = [
        judge.make_side(pictures, probes=[judge.make_probe(name, 0.0, 5, random) for name in judge.rounds])
        for pictures in judge.draw_itself(random)
    ]
    return judging.judge(sides[0], sides[1], judge.policy, {}).verdict, 1.0


def _judge_shifted_sequentially(judge: Judge, name: str, margins: float, random: np.random.Generator) -> tuple[str, float]:
    new, old = judge.draw_itself(random)
    amount = margins * judge.rules[name].margin
    return _judge_sequentially(judge, with_loss(judge, new, name, amount, random), old, amount if name == "fd.scenes" else 0.0)


def _judge_sequentially(judge: Judge, new: Pictures, old: Pictures, worse: float = 0.0) -> tuple[str, float]:
    rules = looks.LookRules(judge.policy, SUITE, ["fd.scenes"], {})
    shares: tuple[float, ...] = ()
    for size in sizes(judge.n, judge.batch):
        shares, rows = (*shares, size / judge.n), np.arange(size)

        def sides(sets: bool, rows: np.ndarray = rows) -> tuple[Side, Side]:
            return judge.make_side(new.rows(rows), sets=sets, worse=worse), judge.make_side(old.rows(rows), sets=sets)

        if report := looks.verdict_at(shares, sides, rules):
            return report.verdict, shares[-1]
    raise AssertionError


NO_PICTURES = Pictures({}, np.zeros((2, 1)))


def _size_in_margins(judge: Judge, arm: str) -> dict[str, float]:
    """How much worse the fault is in the whole pool, in margins (plus = worse)."""
    bad, good = judge.arms[arm][0], judge.arms["vega"][0]
    sizes = {name: float((good.scores[name] - bad.scores[name]).mean()) / judge.rules[name].margin for name in SCORES}
    distances = [frechet.frechet(side.features, judge.reference)[0] for side in (bad, good)]
    return {**sizes, "fd.scenes": (distances[0] - distances[1]) / judge.rules["fd.scenes"].margin}


def unpaired_ratios(judge: Judge) -> dict[str, dict[str, float]]:
    """For each fault and for other noise: how many times as many prompts an unpaired test needs as the paired one."""
    random = np.random.default_rng(0)
    pairs = {"other noise": judge.draw_itself(random)} | {
        arm: (runs[0], judge.arms["vega"][0]) for arm, runs in judge.arms.items() if arm != "vega"
    }
    found = {}
    for arm, (new, old) in pairs.items():
        columns = {name: (new.scores[name], old.scores[name]) for name in SCORES}
        columns["fd.scenes"] = tuple(frechet.frechet(side.features, judge.reference)[1] for side in (new, old))
        found[arm] = {
            name: float((a.var() + b.var()) / (a - b).var()) if (a != b).any() else float("inf") for name, (a, b) in columns.items()
        }
    return found


def digest_of(judge: Judge) -> str:
    """Digest of all that answers depend on: draws, pool, the suite's part of the policy, records, and the code that draws and judges."""
    policy_json = judge.policy.model_copy(update={"suites": {SUITE: judge.rules}}).model_dump_json()
    inputs = [str(judge.draws), policy_json, *map(records.digest_of, judge.folders)]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (POOL, *CODE)]
    return hashlib.sha256("\n".join([*inputs, *files]).encode()).hexdigest()[:16]


def ask_all(judge: Judge) -> None:
    """Ask every question that is not answered yet, and write `gate.json` and `gate.md`."""
    digest = digest_of(judge)
    path = FOLDER / "gate.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    answers = stored["answers"] if stored.get("digest") == digest else {}
    for question in questions(judge):
        if question.name in answers:
            continue
        answers[question.name] = answer = question.answer(judge.draws)
        path.write_text(
            json.dumps(
                {
                    "digest": digest,
                    "margins": {name: rule.margin for name, rule in judge.rules.items()},
                    "unpaired": unpaired_ratios(judge),
                    "answers": answers,
                },
                indent=1,
            )
            + "\n"
        )
        print(question.name, answer["verdicts"], f"{answer['share_of_prompts']:.2f}", flush=True)
    (FOLDER / "gate.md").write_text(table(json.loads(path.read_text())))


def table(content: dict[str, Any]) -> str:
    """The answers as Markdown tables; shares of draws with 95 % intervals."""
    header = ("what the candidate is", "worst size in margins", "pass", "regressed", "inconclusive", "share of the prompts")
    rows = []
    for name, answer in content["answers"].items():
        found = [answer["verdicts"].get(verdict, 0) for verdict in ("pass", "regressed", "inconclusive")]
        sizes = answer["size_in_margins"] or {}
        worst = max(sizes, key=sizes.__getitem__) if sizes else ""
        cells = [_share(number, answer["draws"]) for number in found]
        rows.append((name, f"{sizes[worst]:.2f} ({worst})" if worst else "", *cells, f"{answer['share_of_prompts']:.2f}"))
    ratio_header = ("pairs", *next(iter(content["unpaired"].values())))
    ratios = [
        (arm, *("identical" if value == float("inf") else f"{value:.1f}" for value in found.values()))
        for arm, found in content["unpaired"].items()
    ]
    return (
        f"<!-- written by `python suites/calibrate_gate.py judge` -->\n\n{tables.markdown(tables.Grid(header, tuple(rows)))}\n\n"
        f"Prompts that an unpaired test of the same pictures needs, over those of the paired one:\n\n{tables.markdown(tables.Grid(ratio_header, tuple(ratios)))}\n"
    )


def _share(number: float, draws: int) -> str:
    if not draws:
        return f"{number:.4f} (exact)"
    share = intervals.proportion_interval(number, draws)
    return tables.format_estimate(share.value, share.low, share.high)


def main() -> None:
    """Run the step that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("pool", "judge"))
    parser.add_argument("--work", type=Path, default=Path("results/runs/calibration"))
    parser.add_argument(
        "--student",
        action="append",
        default=[],
        metavar="FAULT=FOLDER",
        help="folder of a faulty UNet, and the name of its fault; repeatable",
    )
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.step == "pool":
        make(arguments.work, {fault: Path(folder) for fault, _, folder in (one.partition("=") for one in arguments.student)})
    else:
        ask_all(Judge(arguments.work, arguments.draws))


if __name__ == "__main__":
    main()
