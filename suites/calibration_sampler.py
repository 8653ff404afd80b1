"""Draws of prompts from the pool of images, as sides for the gate."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from calibration_pool import MODEL, POOL, PROMPTS, SCORES

from sdbench import records, suites
from sdbench.arrays import F64
from sdbench.encoders.catalogue import ENCODERS
from sdbench.gate import policy
from sdbench.gate.pairing import Side
from sdbench.metrics import frechet
from sdbench.records import Record, Value
from sdbench.reference import cards

SUITE = "quality"


@dataclass(frozen=True)
class Images:
    """Scores and features of images, a row each."""

    scores: dict[str, F64]
    features: F64

    def rows(self, chosen: npt.NDArray[np.intp]) -> "Images":
        return Images({name: column[chosen] for name, column in self.scores.items()}, self.features[chosen])


class Sampler:
    """Draws from the pool and, for latency and memory, from the rounds of committed records."""

    def __init__(self, work: Path) -> None:
        table = pq.read_table(POOL)
        self.arms: dict[str, list[Images]] = {}
        arm, seed, units = np.array(table["arm"].to_pylist()), np.array(table["seed"]), json.loads(table.schema.metadata[b"units"])
        whole = Images(
            {name: np.array(table[name], np.float64) for name in SCORES},
            np.stack([np.array(table[name], np.float64) * unit for name, unit in units.items()], 1),
        )
        for name in dict.fromkeys(arm):
            self.arms[name] = [whole.rows(np.flatnonzero((arm == name) & (seed == each))) for each in np.unique(seed[arm == name])]
        self.accuracy = float(np.mean([run.scores["scene_accuracy"].mean() for run in self.arms["vega"]]))
        self.policy = policy.load(suites.find(suites.POLICY))
        self.rules = self.policy.rules(SUITE)
        self.reference = cards.find("scenes", ENCODERS["scenes.features"], work).statistics
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
        self.turns = {name: _turns([record for _, record in newest], name) for name in ("latency.pipeline.p50", "memory.peak_data")}

    def draw_itself(self, random: np.random.Generator) -> tuple[Images, Images]:
        """Draw prompts with replacement, and for each of them two of the model's images."""
        runs = self.arms["vega"]
        prompts = random.integers(PROMPTS, size=self.n)
        order = random.permuted(np.tile(np.arange(len(runs)), (self.n, 1)), axis=1)
        together = Images(
            {name: np.concatenate([run.scores[name] for run in runs]) for name in SCORES}, np.concatenate([run.features for run in runs])
        )
        return together.rows(order[:, 0] * PROMPTS + prompts), together.rows(order[:, 1] * PROMPTS + prompts)

    def draw_faulty(self, arm: str, random: np.random.Generator) -> tuple[Images, Images]:
        """Draw prompts with replacement, with the images of a faulty model and of the model itself under the same noise."""
        prompts = random.integers(PROMPTS, size=self.n)
        return self.arms[arm][0].rows(prompts), self.arms["vega"][0].rows(prompts)

    def with_rare_loss(self, hit: npt.NDArray[np.bool_], rate: float) -> tuple[Images, Images]:
        """The same images twice, but the `hit` prompts, each at this rate, lose CLIP score: one margin on average over all prompts."""
        same = self.arms["vega"][0].rows(np.arange(self.n))
        loss = self.rules["clip_score.scenes"].margin / rate * hit
        return Images({**same.scores, "clip_score.scenes": same.scores["clip_score.scenes"] - loss}, same.features), same

    def make_side(self, images: Images, *, sets: bool = True, worse: float = 0.0, probes: Sequence[Value] = ()) -> Side:
        """A side of the gate with these images; `worse` is added to the Frechet distance."""
        n = len(images.features)
        values = [
            Value(name=name, kind="score", direction="higher", unit="1", value=float(column.mean()), n=n)
            for name, column in images.scores.items()
        ]
        columns = dict(images.scores)
        if sets:
            distance, columns["fd.scenes:influence"] = frechet.frechet(images.features, self.reference)
            values.append(Value(name="fd.scenes", kind="set", direction="lower", unit="distance", value=distance + worse, n=n))
        kept = [value for value in self.template.values if not value.is_image_metric and value.name not in {probe.name for probe in probes}]
        record = self.template.model_copy(update={"values": (*values, *kept, *probes), "n_images": n, "run": "one"})
        return Side(record, [(f"{row:05d}", 0) for row in range(n)], columns)

    def draw_probes(self, name: str, slower: float, rounds: int, random: np.random.Generator) -> tuple[Value, Value]:
        """A probe of two models that took turns, the first slower by a share: for each round, a stored turn and two of its models."""
        turns = self.turns[name]
        chosen = random.integers(len(turns), size=rounds)
        models = random.permuted(np.tile(np.arange(turns.shape[1]), (rounds, 1)), axis=1)
        return _probe(name, (1 + slower) * turns[chosen, models[:, 0]]), _probe(name, turns[chosen, models[:, 1]])


def _turns(measured: Sequence[Record], name: str) -> F64:
    """The rounds of models that took turns, each over its model's median, turns x models x calls."""
    assert len({record.run for record in measured}) == 1, f"the newest records of {SUITE} did not take turns in {name}"
    values = [value for record in measured if (value := record.value(name)) and value.value]
    return np.stack([np.array(value.samples) / value.value for value in values], axis=1)


def _probe(name: str, samples: F64) -> Value:
    middle = float(np.median(samples))
    return Value(name=name, kind="probe", direction="lower", unit="1", value=middle, n=len(samples), samples=tuple(map(tuple, samples)))


def with_loss(sampler: Sampler, images: Images, name: str, amount: float, random: np.random.Generator) -> Images:
    """The same images with an expected loss of one score: right scenes turn wrong with equal chances, other scores are lowered."""
    if name not in images.scores:
        return images
    column = images.scores[name]
    changed = column * (random.random(len(column)) >= amount / sampler.accuracy) if name == "scene_accuracy" else column - amount
    return Images({**images.scores, name: changed}, images.features)


NO_IMAGES = Images({}, np.zeros((2, 1)))
