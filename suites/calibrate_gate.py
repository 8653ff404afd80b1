"""How often the gate errs, on pictures of embedded Vega under several noise seeds and on faults injected into it.

    python suites/calibrate_gate.py pool [--work DIR] [--student FAULT=FOLDER ...]
    python suites/calibrate_gate.py judge [--draws N]

`pool` samples the pictures (a killed one goes on where it stood) and keeps their scores and features in
`results/calibration/pool.parquet`. `judge` draws prompts from it with replacement, as many as the suite has, builds two
records of each draw and asks the gate itself; a question that is answered already, for this pool, policy, these records and
this code, is not asked again. It writes `results/calibration/gate.json` and `gate.md`.

"No difference" is the model against itself: of a prompt's pictures under the seeds two are taken at random, in random order,
so that the expected difference is exactly 0. A loss "of a margin" is taken off the candidate of such a draw. Faults are
compared under the same noise, as the gate does. What few prompts lose, and nothing else differs, is asked for each number of
prompts, and binomial chances say the rest: no draws. Latency and memory have no pool: their rounds are those of the committed
records of suite `quality`, each over its record's median, so they hold what a few runs on one machine show.

The committed pool has two students that `distillation run` made wrong: "half of the training" by `--steps 1200`, "the middle's
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
    """Draws from the pool, and what the gate says of them."""

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
        self.right = float(np.mean([run.scores["scene_accuracy"].mean() for run in self.arms["vega"]]))
        self.policy = policy.load(suites.find(suites.POLICY))
        self.rules = self.policy.rules(SUITE)
        self.against, self.draws = cards.find("scenes", ENCODERS["scenes.features"], work).statistics, draws
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

    def itself(self, random: np.random.Generator) -> tuple[Pictures, Pictures]:
        """Prompts with replacement, and for each of them two of the model's pictures."""
        runs = self.arms["vega"]
        prompts = random.integers(PROMPTS, size=self.n)
        order = random.permuted(np.tile(np.arange(len(runs)), (self.n, 1)), axis=1)
        together = Pictures(
            {name: np.concatenate([run.scores[name] for run in runs]) for name in SCORES}, np.concatenate([run.features for run in runs])
        )
        return together.rows(order[:, 0] * PROMPTS + prompts), together.rows(order[:, 1] * PROMPTS + prompts)

    def faulty(self, arm: str, random: np.random.Generator) -> tuple[Pictures, Pictures]:
        """The same prompts and noise with a fault and without."""
        prompts = random.integers(PROMPTS, size=self.n)
        return self.arms[arm][0].rows(prompts), self.arms["vega"][0].rows(prompts)

    def rare(self, hit: np.ndarray, rate: float) -> tuple[Pictures, Pictures]:
        """The same pictures, but that prompts that are hit, each at this rate, lose CLIP score: one margin on average over all."""
        same = self.arms["vega"][0].rows(np.arange(self.n))
        loss = self.rules["clip_score.scenes"].margin / rate * hit
        return Pictures({**same.scores, "clip_score.scenes": same.scores["clip_score.scenes"] - loss}, same.features), same

    def side(self, pictures: Pictures, *, sets: bool = True, worse: float = 0.0, probes: Sequence[Value] = ()) -> Side:
        """A record of these pictures; `worse` is added to the Frechet distance."""
        n = len(pictures.features)
        values = [
            Value(name=name, kind="score", direction="higher", unit="1", value=float(column.mean()), n=n)
            for name, column in pictures.scores.items()
        ]
        columns = dict(pictures.scores)
        if sets:
            distance, columns["fd.scenes:influence"] = frechet.frechet(pictures.features, self.against)
            values.append(Value(name="fd.scenes", kind="set", direction="lower", unit="distance", value=distance + worse, n=n))
        kept = [
            value
            for value in self.template.values
            if value.kind in ("probe", "count") and value.name not in {probe.name for probe in probes}
        ]
        record = self.template.model_copy(update={"values": (*values, *kept, *probes), "n_images": n, "run": "one"})
        return Side(record, [(f"{row:05d}", 0) for row in range(n)], columns)

    def probe(self, name: str, slower: float, rounds: int, random: np.random.Generator) -> Value:
        """A probe of so many rounds of the stored ones, slower by a share."""
        samples = [tuple((1 + slower) * self.rounds[name][row]) for row in random.integers(len(self.rounds[name]), size=rounds)]
        middle = float(np.median(np.concatenate(samples)))
        return Value(name=name, kind="probe", direction="lower", unit="1", value=middle, n=rounds, samples=tuple(samples))


RARE, RATE = "a loss of one margin by one prompt in 40: clip_score.scenes", 1 / 40
FEW = (5, 60)  # prompts expected to be hit, over which the worst rate is sought


def lost(judge: Judge, pictures: Pictures, name: str, amount: float, random: np.random.Generator) -> Pictures:
    """The same with an expected loss of one score: right scenes turned wrong at random, each with the same chance, other scores lowered."""
    if name not in pictures.scores:
        return pictures
    column = pictures.scores[name]
    changed = column * (random.random(len(column)) >= amount / judge.right) if name == "scene_accuracy" else column - amount
    return Pictures({**pictures.scores, name: changed}, pictures.features)


@dataclass(frozen=True)
class Question:
    """What is asked of the gate `draws` times: a function of a random generator => its report, and the share of prompts used."""

    name: str
    ask: Callable[[np.random.Generator], tuple[str, float]]
    size_in_margins: dict[str, float] | None = None

    def answer(self, draws: int) -> dict[str, Any]:
        """How many draws gave each verdict."""
        random = np.random.default_rng(int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16))
        said = [self.ask(random) for _ in range(draws)]
        return {
            "draws": draws,
            "verdicts": dict(Counter(verdict for verdict, _ in said)),
            "share_of_prompts": mean(share for _, share in said),
            "size_in_margins": self.size_in_margins,
        }


@dataclass(frozen=True)
class Exact:
    """What needs no draws: a function => the chance of each verdict."""

    name: str
    chances: Callable[[], dict[str, float]]

    def answer(self, _: int) -> dict[str, Any]:
        """The chance of each verdict, over no draws."""
        return {"draws": 0, "verdicts": self.chances(), "share_of_prompts": 1.0, "size_in_margins": None}


def questions(judge: Judge) -> Iterator[Question | Exact]:
    """All of them."""
    quality = [name for name in judge.rules if name in (*SCORES, "fd.scenes")]
    yield Question("no difference, other noise", lambda random: _once(judge, *judge.itself(random)))
    for name in quality:
        yield Question(f"a loss of one margin: {name}", lambda random, name=name: _shifted(judge, name, 1, random))
    yield Question("no difference, other noise, 5 rounds of the same speed and memory", lambda random: _whole(judge, random))
    yield Exact(RARE, lambda: rarely(judge, RATE))
    worst = f"a loss of one margin by {FEW[0]} to {FEW[1]} prompts in {judge.n}, at the rate that passes most: clip_score.scenes"
    yield Exact(worst, lambda: max((rarely(judge, rate) for rate in passing_rates(judge)), key=lambda chances: chances["pass"]))
    yield Question(f"until the verdict, {RARE}", lambda random: _sequential(judge, *judge.rare(random.random(judge.n) < RATE, RATE)))
    for arm in [arm for arm in judge.arms if arm != "vega"]:
        yield Question(f"fault: {arm}", lambda random, arm=arm: _once(judge, *judge.faulty(arm, random)), _size(judge, arm))
    for name, what in (("latency.pipeline.p50", "slower"), ("memory.peak_rss", "more memory")):
        for rounds in (2, 5, 20):
            for slower in (0.0, 0.03, 0.05, 0.1):
                question = f"{100 * slower:g} % {what}, {rounds} rounds"
                yield Question(
                    question,
                    lambda random, probe=(name, slower, rounds): _probed(judge, *probe, random),
                    {name: slower / judge.rules[name].margin},
                )
    for margins in (0, 1, 3):
        yield Question(
            f"until the verdict, a loss of {margins} margins: clip_score.scenes",
            lambda random, m=margins: _shifted_sequential(judge, "clip_score.scenes", m, random),
        )
    for name in [name for name in quality if name != "clip_score.scenes"]:
        yield Question(
            f"until the verdict, a loss of 1 margins: {name}", lambda random, name=name: _shifted_sequential(judge, name, 1, random)
        )


def _once(judge: Judge, new: Pictures, old: Pictures, worse: float = 0.0) -> tuple[str, float]:
    return judging.judge(judge.side(new, worse=worse), judge.side(old), judge.policy, {}).verdict, 1.0


def rarely(judge: Judge, rate: float) -> dict[str, float]:
    """Chance of each verdict where every prompt is hit at this rate and the hits together cost one margin of CLIP score on average."""
    chances, found = binom.pmf(np.arange(judge.n + 1), judge.n, rate), Counter[str]()
    for hits in np.flatnonzero(chances > 1e-6):
        found[_once(judge, *judge.rare(np.arange(judge.n) < hits, rate))[0]] += chances[hits]
    return {verdict: float(chance) for verdict, chance in found.items()}


def passing_rates(judge: Judge) -> list[float]:
    """Just above the rates from which another number of hits passes: where the chance of a pass is highest."""
    hits = [np.repeat([-1.0, 0.0], [each, judge.n - each]) for each in range(1, FEW[1])]
    rates = [-decisions.paired_mean_bounds(each, 1 - judge.policy.alpha).low * (1 + 1e-9) for each in hits]
    return [rate for rate in rates if FEW[0] <= rate * judge.n <= FEW[1]]


def _shifted(judge: Judge, name: str, margins: float, random: np.random.Generator) -> tuple[str, float]:
    new, old = judge.itself(random)
    amount = margins * judge.rules[name].margin
    return _once(judge, lost(judge, new, name, amount, random), old, amount if name == "fd.scenes" else 0.0)


def _probed(judge: Judge, name: str, slower: float, rounds: int, random: np.random.Generator) -> tuple[str, float]:
    rules = Policy(alpha=judge.policy.alpha, suites={SUITE: {name: judge.rules[name]}})
    new, old = (judge.side(NOBODY, sets=False, probes=[judge.probe(name, share, rounds, random)]) for share in (slower, 0.0))
    return judging.judge(new, old, rules, {}).verdict, 1.0


def _whole(judge: Judge, random: np.random.Generator) -> tuple[str, float]:
    """With latency and memory drawn for both sides, as one run of both models takes them."""
    sides = [judge.side(pictures, probes=[judge.probe(name, 0.0, 5, random) for name in judge.rounds]) for pictures in judge.itself(random)]
    return judging.judge(sides[0], sides[1], judge.policy, {}).verdict, 1.0


def _shifted_sequential(judge: Judge, name: str, margins: float, random: np.random.Generator) -> tuple[str, float]:
    new, old = judge.itself(random)
    amount = margins * judge.rules[name].margin
    return _sequential(judge, lost(judge, new, name, amount, random), old, amount if name == "fd.scenes" else 0.0)


def _sequential(judge: Judge, new: Pictures, old: Pictures, worse: float = 0.0) -> tuple[str, float]:
    rules = looks.LookRules(judge.policy, SUITE, ["fd.scenes"], {})
    shares: tuple[float, ...] = ()
    for size in sizes(judge.n, judge.batch):
        shares, rows = (*shares, size / judge.n), np.arange(size)

        def sides(sets: bool, rows: np.ndarray = rows) -> tuple[Side, Side]:
            return judge.side(new.rows(rows), sets=sets, worse=worse), judge.side(old.rows(rows), sets=sets)

        if report := looks.verdict_at(shares, sides, rules):
            return report.verdict, shares[-1]
    raise AssertionError


NOBODY = Pictures({}, np.zeros((2, 1)))


def _size(judge: Judge, arm: str) -> dict[str, float]:
    """How much worse the fault is in the whole pool, in margins (plus = worse)."""
    bad, good = judge.arms[arm][0], judge.arms["vega"][0]
    sizes = {name: float((good.scores[name] - bad.scores[name]).mean()) / judge.rules[name].margin for name in SCORES}
    distances = [frechet.frechet(side.features, judge.against)[0] for side in (bad, good)]
    return {**sizes, "fd.scenes": (distances[0] - distances[1]) / judge.rules["fd.scenes"].margin}


def unpaired(judge: Judge) -> dict[str, dict[str, float]]:
    """For each fault and the model itself: prompts that a test of two independent sets needs over those that the paired one needs."""
    random = np.random.default_rng(0)
    pairs = {"other noise": judge.itself(random)} | {
        arm: (runs[0], judge.arms["vega"][0]) for arm, runs in judge.arms.items() if arm != "vega"
    }
    found = {}
    for arm, (new, old) in pairs.items():
        columns = {name: (new.scores[name], old.scores[name]) for name in SCORES}
        columns["fd.scenes"] = tuple(frechet.frechet(side.features, judge.against)[1] for side in (new, old))
        found[arm] = {
            name: float((a.var() + b.var()) / (a - b).var()) if (a != b).any() else float("inf") for name, (a, b) in columns.items()
        }
    return found


def digest_of(judge: Judge) -> str:
    """Of all that answers depend on: draws, pool, the suite's part of the policy, records, and the code that draws and judges."""
    policy_json = judge.policy.model_copy(update={"suites": {SUITE: judge.rules}}).model_dump_json()
    asked = [str(judge.draws), policy_json, *map(records.digest_of, judge.folders)]
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (POOL, *CODE)]
    return hashlib.sha256("\n".join([*asked, *files]).encode()).hexdigest()[:16]


def ask_all(judge: Judge) -> None:
    """Every question that is not answered yet => `gate.json`, `gate.md`."""
    digest = digest_of(judge)
    path = FOLDER / "gate.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    answers = kept["answers"] if kept.get("digest") == digest else {}
    for question in questions(judge):
        if question.name in answers:
            continue
        answers[question.name] = answer = question.answer(judge.draws)
        path.write_text(
            json.dumps(
                {
                    "digest": digest,
                    "margins": {name: rule.margin for name, rule in judge.rules.items()},
                    "unpaired": unpaired(judge),
                    "answers": answers,
                },
                indent=1,
            )
            + "\n"
        )
        print(question.name, answer["verdicts"], f"{answer['share_of_prompts']:.2f}", flush=True)
    (FOLDER / "gate.md").write_text(table(json.loads(path.read_text())))


def table(content: dict[str, Any]) -> str:
    """The answers as Markdown; shares of draws have 95 % intervals."""
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
    """Run a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("pool", "judge"))
    parser.add_argument("--work", type=Path, default=Path("results/runs/calibration"))
    parser.add_argument("--student", action="append", default=[], metavar="FAULT=FOLDER", help="a UNet, and what is wrong with it")
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.step == "pool":
        make(arguments.work, {fault: Path(folder) for fault, _, folder in (one.partition("=") for one in arguments.student)})
    else:
        ask_all(Judge(arguments.work, arguments.draws))


if __name__ == "__main__":
    main()
