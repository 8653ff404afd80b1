"""The noise floor: how much a model differs from itself under different noise. A policy's margins may not be below it.

`sdbench noise` writes one TOML file for each suite, model and machine class:
`results/noise/<family>/<suite>@<version>/<model>-<digest of the suite's digest and the machine class>.toml`.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import tomli_w
from pydantic import Field

from sdbench import records
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.gate import pairing
from sdbench.gate.pairing import Side
from sdbench.records import Direction, Record, SuiteId
from sdbench.records.names import is_probe
from sdbench.stats.decisions import BetweenRuns
from sdbench.validation import Table, read_toml

MARGIN = 4  # times the noise: under other noise, a model passes one metric with 99 %; with three times 91 %, and four of them 2 times in 3


class Spread(Table):
    """The noise of one metric.

    Attributes:
        noise: standard deviation of the difference between two runs. For scores and set metrics: the root mean square of the paired
            standard errors over all pairs of runs. For probes: sqrt(2) times the standard deviation of the logarithm over runs, a share.
            Where all images of a run share one latent, scores and set metrics take the larger of the two, because the spread over
            prompts does not show what the latent does to all images.
        values: the value of each run.
    """

    noise: float
    values: tuple[float, ...]
    unit: str


class Floor(Table):
    """A model's noise floor.

    Attributes:
        seeds: noise seed of each run.
        n: number of images in each run.
    """

    family: str
    suite: SuiteId
    model: str
    weights_digest: str | None = None  # TOML has no null
    machine_class: str
    seeds: Annotated[tuple[int, ...], Field(min_length=2)]
    n: int
    created: datetime
    metrics: dict[str, Spread]


def estimate(sides: Sequence[Side], seeds: Sequence[int], suite: SuiteId) -> Floor:
    """The noise floor from several runs of one model under a suite, with different noise in each run.

    These have no floor: a metric that any run lacks; counts, and values for which neither direction is better, since no policy weighs them;
    a set metric without influences, since its differences have no standard error; a probe at 0, since it has no logarithm.

    Raises:
        UserError: fewer than 2 runs.
    """
    if len(sides) < 2:
        raise UserError(f"a noise floor needs at least 2 runs under different seeds, found {len(sides)}")
    first = sides[0].record
    names = [value.name for value in first.values if value.kind != "count" and value.direction != "neither"]
    return Floor(
        family=first.family,
        suite=suite,
        model=first.model.name,
        weights_digest=first.model.weights_digest,
        machine_class=first.machine.machine_class,
        seeds=tuple(seeds),
        n=first.n_images,
        created=records.now(),
        metrics={name: spread for name in names if (spread := _estimate_spread(name, sides))},
    )


def write(floor: Floor, results: Path) -> Path:
    """Save under `results`, and return the path. Of an older floor from the same weights and seeds, metrics that this one lacks are kept.

    Raises:
        UserError: it cannot be written.
    """
    conditions = hashlib.sha256(f"{floor.suite.digest} {floor.machine_class}".encode()).hexdigest()[:8]
    path = _folder(floor.family, floor.suite, results) / f"{floor.model}-{conditions}.toml"
    with suppress(UserError):  # there is none, or it is damaged
        older = read(path)
        if (older.weights_digest, older.seeds) == (floor.weights_digest, floor.seeds):
            floor = floor.model_copy(update={"metrics": older.metrics | floor.metrics, "n": floor.n or older.n})
    return write_bytes(path, tomli_w.dumps(floor.model_dump(exclude_none=True)).encode())


def policy_table(floor: Floor, directions: Mapping[str, Direction]) -> str:
    """A table of a policy, as TOML: a rule for each image metric that has noise; "" where there is none.

    Latency and memory are left to the user: what separate runs differ by is no measure of what one may lose, and their margins are chosen.

    Args:
        directions: by metric.
    """
    rules = [
        f'"{name}" = {{ direction = "{directions[name]}", margin = {MARGIN * spread.noise:.3g}, noise = {spread.noise:.3g}, '
        "required = true }"
        for name, spread in floor.metrics.items()
        if spread.noise > 0 and not is_probe(name)
    ]
    return tomli_w.dumps({"suites": {floor.suite.name: {}}}) + "\n".join(rules) if rules else ""


def read(path: Path) -> Floor:
    """Load a floor.

    Raises:
        UserError: the file is not a noise floor.
    """
    try:
        return read_toml(Floor, path, f"noise floor {path}")
    except UserError as error:
        raise UserError(f"{error}; write it again with `sdbench noise`") from error


def between_runs(record: Record, results: Path) -> dict[str, BetweenRuns]:
    """How far two runs of one model lie apart under this record's suite and on its machine class, for each probe.

    Of several floors, the one with the most noise counts.

    Raises:
        UserError: see `read`.
        OSError: the folder of the floors cannot be read.
    """
    conditions = record.suite, record.machine.machine_class  # two suites of one name and version may have different settings
    folder = _folder(record.family, record.suite, results)
    files = folder.iterdir() if folder.exists() else ()  # `glob` would find nothing in a folder that cannot be read
    stored = map(read, sorted(path for path in files if path.suffix == ".toml"))
    alike = [floor for floor in stored if (floor.suite, floor.machine_class) == conditions]
    by_probe = {}
    for name in {value.name for value in record.values if value.kind == "probe"}:
        if floors := [floor for floor in alike if name in floor.metrics]:
            noisiest = max(floors, key=lambda floor: floor.metrics[name].noise)
            by_probe[name] = BetweenRuns(noisiest.metrics[name].noise, len(noisiest.seeds))
    return by_probe


def _folder(family: str, suite: SuiteId, results: Path) -> Path:
    return results / "noise" / family / suite.title


def _estimate_spread(name: str, sides: Sequence[Side]) -> Spread | None:
    """The noise of a metric; None where it has no floor."""
    found = [value for side in sides if (value := side.record.value(name)) and value.value is not None]
    values = [value.value for value in found if value.value is not None]
    if len(values) < len(sides):
        return None
    if found[0].kind == "probe":
        if min(values) <= 0:
            return None
        noise = math.sqrt(2) * float(np.log(values).std(ddof=1))
    else:
        pairs = [
            pairing.paired_bounds(found[i], found[j], sides[i], sides[j], 0.95) for i, j in itertools.combinations(range(len(sides)), 2)
        ]
        errors = [pair.standard_error for pair in pairs if not isinstance(pair, pairing.Obstacle)]
        if len(errors) < len(pairs):
            return None
        noise = math.sqrt(float(np.mean(np.square(errors))))
        if sides[0].record.noise.get("kind") == "fixed":
            noise = max(noise, math.sqrt(2) * float(np.std(values, ddof=1)))
    return Spread(noise=noise, values=tuple(values), unit=found[0].unit)
