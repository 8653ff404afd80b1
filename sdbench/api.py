"""What the command line does, for Python: the same names, the same records."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbench import machine, records, suites
from sdbench.assets.prompts import read_lines
from sdbench.errors import UserError
from sdbench.gate import floors, lookup
from sdbench.gate.compare import Side
from sdbench.gate.judging import gate
from sdbench.gate.policy import Policy
from sdbench.gate.policy import load as load_policy
from sdbench.gate.verdicts import Inputs, Report
from sdbench.records import Record, Scores, Value
from sdbench.validation import validate

if TYPE_CHECKING:
    from sdbench.models.spec import ModelSpec


@dataclass(frozen=True)
class Places:
    """Where records, and the work behind them, are kept.

    Attributes:
        runs: folder of pictures, features and rounds; by default `runs` within that of results.
    """

    results: Path = Path("results")
    runs: Path | None = None

    @property
    def work(self) -> Path:
        """The folder of pictures, features and rounds."""
        return self.runs or self.results / "runs"


@dataclass(frozen=True)
class Overrides:
    """Settings of a suite that a run may change; such a suite is named `<name>-custom`, so its rows stay apart.

    Attributes:
        timesteps: by default of `steps`, as many as there are of them.
        n: number of prompts.
        prompts: text file with a prompt a line, all of which are taken where `n` does not say otherwise.
        reference: name of the reference that distances are to.
        rounds, calls: processes of each model and setting, and timed calls of each stage in one.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    timestep_spacing: str | None = None
    timesteps: Sequence[int] | None = None
    eta: float | None = None
    size_px: int | None = None
    batch: int | None = None
    dtype: str | None = None
    n: int | None = None
    prompts: Path | None = None
    reference: str | None = None
    rounds: int | None = None
    calls: int | None = None

    def apply(self, suite: suites.Suite) -> suites.Suite:
        """The suite with these settings in place of its own.

        Raises:
            UserError: a value is out of range, the prompts cannot be read, or there are no probes whose rounds could be others.
        """
        changed = {name: value for name, value in vars(self).items() if value is not None}
        if not changed or suite.sampling is None or suite.prompts is None:
            return suite
        n, own, reference = (changed.pop(name, None) for name in ("n", "prompts", "reference"))
        timing: dict[str, int] = {name: changed.pop(name) for name in ("rounds", "calls") if name in changed}
        changed = {"steps": len(self.timesteps), **changed} if self.timesteps else changed
        sampling = {**suite.sampling.model_dump(), **changed}
        listed = {"source": "file", "file": str(own), "n": len(read_lines(own))} if own else suite.prompts.model_dump()
        prompts = {**listed, **({} if n is None else {"n": n, "digest": None})}
        content = {**suite.model_dump(), "name": f"{suite.name}-custom", "sampling": sampling, "prompts": prompts}
        content |= {"reference": reference or suite.reference, "probes": _timed(suite, timing) if timing else content["probes"]}
        return validate(suites.Suite, content, f"suite {suite.name!r} with your settings")


def _timed(suite: suites.Suite, timing: dict[str, int]) -> dict[str, Any]:
    """The probes of a suite with other numbers of rounds and calls, which no setting then has for itself."""
    if suite.probes is None:
        raise UserError(f"suite {suite.name!r} has no probes, so nothing to take in {' and '.join(timing)}; leave that out")
    content = {**suite.probes.model_dump(), **timing}
    if "calls" in timing:
        content["settings"] = [{**setting, "calls": None} for setting in content.get("settings", ())]
    return content


def run(
    specs: "Sequence[ModelSpec]",
    suite: suites.Suite,
    places: Places = Places(),
    *,
    device: str | None = None,
    only: str | None = None,
    settings: Sequence[str] = (),
    profile: bool = False,
) -> list[Path]:
    """Measure models under a suite => their record folders.

    Args:
        only: "quality" or "probes" for one half of the suite.
        settings: labels of the probes' settings to measure; all by default.
        profile: the probes also write what holds the time of each stage.
    """
    from sdbench.run import runner
    from sdbench.run.context import bench

    choice: dict[str, Any] = {"only": only, "settings": settings, "profile": profile}
    return runner.run(specs, bench(suite, device=machine.chosen_device(device), results=places.results, runs=places.work, **choice))


def score(
    images: Path, prompts: Path, places: Places = Places(), suite: str = "standard", *, device: str | None = None
) -> tuple[list[Value], Scores]:
    """Score pictures made elsewhere by a suite's metrics, but for those that compare with the teacher.

    Args:
        images: folder of PNG, JPEG or WebP pictures of one size.
        prompts: text file with a prompt a line, in the order of the sorted file names.
        places: where the work is kept.
        suite: name or path of a suite, which says the family: one of `scenes` takes 64 x 64 px and the grammar's captions.
        device: where the evaluators run.

    Raises:
        UserError: the numbers of pictures and prompts differ, one of the files cannot be read, the family has no such pictures, or there is
            no such device.
    """
    from sdbench.encoders.memory import evaluators_on
    from sdbench.run import external
    from sdbench.score import PROTOCOLS
    from sdbench.score import score as scored

    chosen = suites.load(suite)
    subject = external.subject(images, prompts, chosen, places.work)
    with evaluators_on(machine.chosen_device(device)):
        return scored(subject, [name for name in chosen.own_metrics if not PROTOCOLS[name].against_teacher])


def record_pictures(
    images: Path, prompts: Path, name: str, places: Places = Places(), suite: str = "standard", *, device: str | None = None
) -> Path:
    """Score pictures made elsewhere, as `score`, and write a record, which leaderboard and gate read => its folder.

    It is of the suite itself where the prompts are the suite's, so that its row stands beside the models'; of `<name>-custom` else. Agreement
    with the teacher on the same noise does not apply to it; win rates over the teacher do.

    Args:
        name: what tables call the pictures.
        images, prompts, places, suite, device: as of `score`.

    Raises:
        UserError: as `score`, or the name is a model's of the catalogue.
    """
    from sdbench.run import external
    from sdbench.run.context import bench

    chosen = suites.load(suite)
    if read_lines(prompts) != tuple(chosen.prompt_list().values()):
        chosen = Overrides(prompts=prompts).apply(chosen)
    setting = bench(chosen, device=machine.chosen_device(device), results=places.results, runs=places.work, only="quality")
    return external.record(images, prompts, name, setting)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        folder: where the record lies, for the gate, the leaderboard and the report.
        scores: its per-image columns.
        report: of the gate, where there was a baseline.
    """

    folder: Path
    record: Record
    scores: Scores
    report: Report | None


def evaluate(
    model: Any,
    suite: str | suites.Suite | None = None,
    baseline: str | Path | None = None,
    *,
    name: str | None = None,
    only: str | None = None,
    places: Places = Places(),
    device: str | None = None,
) -> Evaluation:
    """Measure a model, from a notebook or in the middle of a training loop => the record that the command line would make.

    A pipeline in memory is left as it was: device, dtype, scheduler, train or eval mode, and the state of the random
    generators. Its networks are copied where the suite computes in another dtype. Latency and memory need a process of
    their own, so a pipeline in memory has none: save it and name the folder. In several processes, call it in one.

        >>> import sdbench
        >>> from sdbench.api import Overrides
        >>> from sdbench.suites import load
        >>> few = Overrides(n=4, steps=2).apply(load("quality"))  # whole suites by their name: suite="quality"
        >>> teacher = sdbench.evaluate("scenes-teacher", few, only="quality")  # once: win rates and agreement are against it
        >>> found = sdbench.evaluate(pipeline, few, baseline="scenes-vega", name="step-1000")
        >>> found.record.value("clip_score.scenes").n
        4
        >>> found.report.verdict in ("pass", "regressed", "inconclusive")
        True

    Args:
        model: a `StableDiffusionXLPipeline`, or what `sdbench run --model` takes: a folder, a file, a name.
        suite: a name, the path of a suite file, or a suite; by default the family's.
        baseline: a record folder or what `--baseline` of the gate takes; what has no record is run first.
        name: what tables call the model.
        only: "quality" or "probes" for one half of the suite.
        places: where records and the work behind them are kept.
        device: for a model that is not in memory, and its baseline.

    Raises:
        UserError: bad input, as from the command line.
    """
    in_memory = not isinstance(model, str | Path)
    if in_memory and only == "probes":
        raise UserError("latency and memory are measured in processes of their own; save the pipeline and name its folder")
    spec, only = _described(model, name), "quality" if in_memory else only
    device = str(model.unet.device) if in_memory else device
    chosen, policy, old = _suite(suite, spec), _policy(None), None
    if baseline is not None:  # before the model, which may take hours, is run for a misspelt name
        policy.rules(chosen.name)
        old = _opponent(str(baseline), chosen, places, device, only)
    (folder,) = _run_in_memory(model, spec, chosen, places) if in_memory else run([spec], chosen, places, device=device, only=only)
    record, scores = records.read(folder)
    if old is None:
        return Evaluation(folder, record, scores, None)
    return Evaluation(folder, record, scores, _judged(folder, old, policy, places, str(baseline), only=only))


def _described(model: Any, name: str | None) -> "ModelSpec":
    if isinstance(model, str | Path):
        from sdbench.models.spec import resolve

        return resolve(str(model), name=name)
    from sdbench.models import in_memory

    return in_memory.describe(model, name or "pipeline")


def _run_in_memory(pipeline: Any, spec: "ModelSpec", suite: suites.Suite, places: Places) -> list[Path]:
    from sdbench.generate import DTYPES
    from sdbench.models import in_memory
    from sdbench.run import runner
    from sdbench.run.context import bench

    setting = bench(suite, device=str(pipeline.unet.device), results=places.results, runs=places.work, only="quality")
    with in_memory.sampling_copy(pipeline, DTYPES[setting.sampling.dtype]) as sampler:
        return runner.run([spec], replace(setting, loaded={spec.name: sampler}))


def _suite(suite: str | suites.Suite | None, spec: "ModelSpec") -> suites.Suite:
    if suite is None:
        return lookup.default_suite(spec)
    return suite if isinstance(suite, suites.Suite) else suites.load(suite)


def _without_probes(record: Record, policy: Policy) -> tuple[Policy, list[str]]:
    """The policy for a record of pictures alone, and the names of what it does not weigh then."""
    names, rules = {value.name for value in record.values}, policy.rules(record.suite.name)
    skipped = [name for name in rules if name.partition(".")[0] in ("latency", "memory") and name not in names]
    kept = {name: rule for name, rule in rules.items() if name not in skipped}
    return policy.model_copy(update={"suites": {policy.table_name(record.suite.name): kept}}), skipped


def compare(
    candidate: str,
    baseline: str,
    policy: Path | None,
    places: Places = Places(),
    suite: str | None = None,
    *,
    base: str | None = None,
    lora: str | None = None,
    name: str | None = None,
    device: str | None = None,
) -> Report:
    """Gate a candidate against a baseline, each a record folder, a catalogue name or a checkpoint; what has no record is run.

    The baseline may also be one of the names in `baselines.toml`, which comes before all else.

    Args:
        suite: name or path of the suite to run where a record is missing; by default the baseline's.
        base, lora, name: of a candidate that is run, as of `sdbench run`.
        device: for what is run.

    Raises:
        UserError: bad input, as from the command line.
    """
    chosen = _policy(policy)
    given = suites.load(suite) if suite else None
    theirs = lookup.find_baseline(baseline, places.results)
    ours = lookup.find_candidate(candidate, base=base, lora=lora, name=name)
    new, old = lookup.find_or_run_pair(
        ours, theirs, given, chosen, places.results, lambda specs, suite: run(specs, suite, places, device=device)
    )
    return _judged(new, old, chosen, places, baseline)


def _judged(new: Path, old: Path, policy: Policy, places: Places, asked: str, only: str | None = None) -> Report:
    """The verdict; latency and memory are not weighed for a run of the quality `only`, nor where one side has no model to time."""
    ours, theirs = records.read_record(new), records.read_record(old)
    alone = next((side for side in (ours, theirs) if side.model.is_pictures_only), ours if only == "quality" else None)
    weighed, skipped = _without_probes(alone, policy) if alone else (policy, [])
    report = gate(new, old, weighed, floors.between_runs(theirs, places.results))
    notes = (f"not measured, so not weighed: {', '.join(skipped)}",) if skipped else ()
    return _signed(replace(report, notes=(*report.notes, *notes)), new, old, policy, asked)


def _signed(report: Report, new: Path, old: Path, policy: Policy, asked: str) -> Report:
    """The report, which says what it is of."""
    suite = records.read_record(old).suite
    return replace(report, inputs=Inputs(str(new), str(old), asked, suite.title_with_digest, policy.name, policy.alpha))


def report(places: Places = Places(), out: Path | None = None, policy: Path | None = None) -> list[Path]:
    """Write the HTML page of all records => the page, and what lies beside it.

    Raises:
        UserError: there are no records, or none that the `policy` which is given weighs.
    """
    from sdbench.leaderboard import standings
    from sdbench.report import page

    chosen = _policy(policy)
    shown = sorted({row.record.suite.name for row in standings.read_rows(places.results)}) if policy else []
    if shown and not any(chosen.suites.get(chosen.table_name(name)) for name in shown):
        chosen.rules(shown[0])
    return page.write(places.results, out or places.results / page.FILE_NAME, chosen)


def card(folder: str, places: Places = Places(), base: str | None = None) -> Path:
    """Write the results of the model in a folder into its model card => the card.

    Raises:
        UserError: it is no model's folder, or no record is of its weights.
    """
    from sdbench.leaderboard import standings
    from sdbench.models.digest import weights_digest
    from sdbench.models.spec import resolve
    from sdbench.report import card as cards

    spec = resolve(folder, base=base)
    if spec.source not in ("folder", "unet-folder"):
        raise UserError(f"a card is written into the folder of a pipeline or UNet, and {folder!r} is none ({spec.origin}); name one")
    board = standings.read_rows(places.results)
    dtypes = {row.record.sampling.get("dtype", "float32") for row in board if row.record.family == spec.family}
    digests = {weights_digest(spec, dtype=dtype) for dtype in dtypes}
    own = [row for row in board if row.record.model.weights_digest in digests]
    if not own:
        command = f"sdbench run --model {folder}{f' --base {base}' if base else ''}"
        raise UserError(f"no record under {places.results} is of the weights in {folder}; measure them first: {command}")
    return cards.write(Path(folder), board, own)


def until_verdict(
    spec: "ModelSpec", suite: suites.Suite, baseline: str, policy: Path | None, places: Places = Places(), device: str | None = None
) -> tuple[Path, Report]:
    """Measure a model until it is sure whether it is as good as the baseline => its record, the verdict."""
    from sdbench.encoders.memory import evaluators_on
    from sdbench.run.context import bench, check_models
    from sdbench.run.until_verdict import Question, run_until_verdict

    chosen = _policy(policy)
    chosen.rules(suite.name)  # a policy that weighs nothing here ends the run before it begins
    check_models([spec], suite)
    old = _opponent(baseline, suite, places, device)
    setting = bench(suite, device=machine.chosen_device(device), results=places.results, runs=places.work)
    with evaluators_on(setting.device):
        path, report = run_until_verdict(
            Question(spec, setting, old, chosen, floors.between_runs(records.read_record(old), places.results))
        )
    return path, _signed(report, path, old, chosen, baseline)


def noise(
    spec: "ModelSpec", suite: suites.Suite, seeds: int, places: Places = Places(), device: str | None = None, only: str | None = None
) -> tuple[Path, floors.Floor]:
    """Run a model under several noise seeds, each time anew, and write how far it lies from itself => file, floor.

    Its records and pictures stay in the folder of runs: they are of no use to a leaderboard.

    Raises:
        UserError: fewer than 2 seeds, or a suite whose noise is a file, the same under every seed.
    """
    if seeds < 2:
        raise UserError(f"a noise floor needs at least 2 seeds, found {seeds}")
    if suite.noise.file:
        raise UserError(
            f"suite {suite.name!r} takes its latent from {suite.noise.file}, whatever the seed: its runs would not differ, and the floor would be 0. "
            "Use a suite whose noise is drawn from a seed"
        )
    found = []
    numbers = [suite.noise.seed + index for index in range(seeds)]
    for seed in numbers:
        seeded = suite.model_copy(update={"noise": suite.noise.model_copy(update={"seed": seed}), "teacher": None})  # who drew other noise
        folder = places.work / "noise" / str(seed)  # probes are kept by what they measure: each run needs a place of its own
        (record,) = run([spec], seeded, Places(folder / "records", folder), device=device, only=only)
        found.append(Side.read(record))
    floor = floors.estimate(found, numbers, suite.id)
    written = floors.write(floor, places.results)
    for seed in numbers:  # the next floor is measured anew; until here, what was killed goes on
        shutil.rmtree(places.work / "noise" / str(seed) / "probes", ignore_errors=True)
    return written, floor


def _policy(path: Path | None) -> Policy:
    return load_policy(path or suites.find(suites.POLICY))


def _opponent(baseline: str, suite: suites.Suite, places: Places, device: str | None, only: str | None = None) -> Path:
    """The record that a model which is run here is compared with; run too, where this machine class has none."""
    found = lookup.find_baseline(baseline, places.results)
    if isinstance(found, Path):
        lookup.check_suite(found, suite.id)
        return found
    here = machine.this_machine(machine.chosen_device(device)).machine_class
    return lookup.find_or_run(found, suite, here, places.results, lambda specs, suite: run(specs, suite, places, device=device, only=only))
