"""The folder of a run: what decides the run, what each segment left in it, and the student that is written from it, finished or not.

Its name has a digest of the identity, which is all that decides the weights. Each segment (one stage under one teacher) has a
folder of its own in it. A finished segment holds a UNet in safetensors with its losses beside it; an unfinished one holds the
checkpoints to continue from. Both name the environments that they were trained in: a run may be resumed after an upgrade.
"""

import glob
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from distillation.export import export_student
from distillation.provenance import Environment, Provenance, SegmentResult, Unfinished
from distillation.prune import student_config
from distillation.recipe import Recipe
from distillation.run_plan import RunPlan, plan_run
from distillation.start import Start
from sdbench.disk import digest, read_json, write_json
from sdbench.errors import UserError
from sdbench.models.architectures import Family
from sdbench.models.checks import check_finite
from sdbench.models.loading import build_on_meta, read_part
from sdbench.notes import print_note
from sdbench.training.checkpoints import STEP, read_newest_network

IDENTITY, REQUEST, STUDENT, LOSSES, ENVIRONMENTS = "identity.json", "request.json", "student", "losses.json", "environments.json"


def run_folder(work: Path, name: str, identity: dict[str, Any]) -> Path:
    """The folder of the run with this identity. If it is new, say how earlier runs of the same recipe differ."""
    run = work / f"{name}-{digest(identity)[:12]}"
    if not (run / IDENTITY).exists():
        for other in sorted(work.glob(f"{name}-{'?' * 12}/{IDENTITY}")):
            differences = ", ".join(read_json(other, lambda earlier: _differences(earlier, identity)))
            print_note(f"starting a new run in {run}; the run in {other.parent} differs in: {differences}")
        write_json(run / IDENTITY, identity)
    return run


def segment_folders(folder: Path, plan: RunPlan) -> list[Path]:
    """One folder per segment in the folder of a run."""
    stages = plan.recipe.stages
    return [folder / f"{number}-{stages[segment.stage].name}" for number, segment in enumerate(plan.segments, 1)]


def step_folder(out: Path, step: int) -> Path:
    """The folder of the student after `step` steps, beside that of the run's last student."""
    out = out.resolve()  # "." has no name of its own
    return out.with_name(f"{out.name}-{STEP.format(step)}")


def check_steps(out: Path, run: Path) -> None:
    """Check that no student of a step beside `out` is another run's: it would be taken for one of the run in the folder `run`.

    Raises:
        UserError: one is of another run, or its provenance is damaged.
    """
    out = out.resolve()
    for provenance in sorted(out.parent.glob(f"{glob.escape(out.name)}-step-*/provenance.json")):
        if read_json(provenance).get("run") != run.name:
            raise UserError(f"{provenance.parent} is not of this run, {run.name}. Move it away, or name another folder with --out")


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*other, *one]) if one.get(key) != other.get(key)]


@dataclass(frozen=True)
class Run:
    """A run that has a folder.

    Attributes:
        data_digest: of the training images and captions.
        images: number of images that it trains on.
    """

    folder: Path
    plan: RunPlan
    data_digest: str
    images: int

    @property
    def segment_folders(self) -> list[Path]:
        """See `segment_folders`."""
        return segment_folders(self.folder, self.plan)

    def save(self) -> None:
        """Write what `open_run` reads: recipe, teachers' folders on this machine, and the like.

        Raises:
            UserError: the folder cannot be written.
        """
        plan = self.plan
        request = {
            "recipe": plan.recipe.model_dump(mode="json"),
            "family": plan.family,
            "teachers": [str(teacher.folder.absolute()) for teacher in plan.teachers],
            "steps": plan.segments[-1].end,
            "start": plan.start and asdict(plan.start) | {"folder": str(plan.start.folder)},
            "images": self.images,
        }
        write_json(self.folder / REQUEST, request)

    def export(self, out: Path, *, unet_only: bool = False) -> Path:
        """Write the newest student that the run has, and return `out`; of an unfinished run, say which one it is.

        Args:
            out: new or empty folder.
            unet_only: write the UNet alone instead of a complete pipeline.

        Raises:
            UserError: there is neither a finished stage nor a checkpoint, none can be read, or see `export_student`.
        """
        number, taken, student, unfinished = self._newest_student()
        if unfinished:
            print_note(f"the run is not finished; its student is {unfinished.describe()}")
        return self._write(number, taken, student, unfinished, out, unet_only=unet_only)

    def export_step(self, number: int, taken: int, network: nn.Module, out: Path) -> None:
        """Write the UNet alone of a network that is being trained, as `export` would from its checkpoint, unless `out` is there already.

        Args:
            number: of the segment.
            taken: number of steps taken in that.
            network: the one to keep; it stays as it is.

        Raises:
            UserError: a weight is not finite, or see `export_student`.
        """
        if out.exists():
            return
        student = self._build(number, {name: tensor.cpu() for name, tensor in network.state_dict().items()})
        unfinished = self._unfinished(number, taken, is_average=self.plan.settings.ema > 0)
        self._write(number, taken, student, unfinished, out, unet_only=True)
        print_note(f"the student in {out} is {unfinished.describe()}")

    def _write(
        self, number: int, taken: int, student: UNet2DConditionModel, unfinished: Unfinished | None, out: Path, *, unet_only: bool
    ) -> Path:
        plan, folders = self.plan, self.segment_folders
        steps = [*(segment.end - segment.start for segment in plan.segments[:number]), taken]
        provenance = Provenance.from_run(
            plan.recipe,
            plan.teachers,
            student,
            plan.settings,
            [self._result(index, n) for index, n in enumerate(steps)],
            self.data_digest,
            self.images,
            start=plan.start,
            unfinished=unfinished,
            run=self.folder.name,
        )
        logs = {folder.name: folder / "log.jsonl" for folder in folders[: number + 1]}
        return export_student(student, out, plan.teachers[0], provenance, logs=logs, unet_only=unet_only)

    def _newest_student(self) -> tuple[int, int, UNet2DConditionModel, Unfinished | None]:
        """Number of the newest student's segment, steps taken in that, the student, and where the run is if it is not finished."""
        plan = self.plan
        for number, (segment, folder) in reversed([*enumerate(zip(plan.segments, self.segment_folders, strict=True))]):
            if (folder / STUDENT).exists():
                student, taken, is_average = load_student(folder), segment.end - segment.start, plan.settings.ema > 0
                if number == len(plan.segments) - 1:
                    return number, taken, student, None
            elif checkpoint := read_newest_network(folder):
                taken, is_average, tensors = checkpoint
                student = self._build(number, tensors)
            else:
                continue
            return number, taken, student, self._unfinished(number, taken, is_average=is_average)
        raise UserError(f"the run in {self.folder} has neither a finished stage nor a checkpoint yet; the first one comes after a minute")

    def _build(self, number: int, tensors: Mapping[str, Tensor]) -> UNet2DConditionModel:
        """The student of a segment that has these weights."""
        plan = self.plan
        student = build_on_meta("unet", student_config(plan.teachers[0].config, plan.recipe.cuts[plan.segments[number].stage]))
        student.load_state_dict(tensors, assign=True)
        check_finite(student, "unet", self.segment_folders[number])
        return student

    def _unfinished(self, number: int, taken: int, *, is_average: bool) -> Unfinished:
        """Where the run is after `taken` steps of a segment."""
        segments = self.plan.segments
        stage, step = self.plan.recipe.stages[segments[number].stage].name, segments[number].start + taken
        return Unfinished(stage, step, segments[-1].end, "moving average" if is_average else "last step")

    def _result(self, number: int, steps: int) -> SegmentResult:
        segment, folder = self.plan.segments[number], self.segment_folders[number]
        losses = folder / STUDENT / LOSSES
        return SegmentResult(
            self.plan.recipe.stages[segment.stage].name,
            self.plan.teachers[segment.teacher].digest,
            steps,
            read_json(losses, lambda rows: {name: float(loss) for name, loss in rows.items()}) if (folder / STUDENT).exists() else {},
            environments(folder),
        )


def open_run(folder: Path) -> Run:
    """The run in a folder, which may be going on. Reads the teachers' weights, to check that they are those that taught.

    Raises:
        UserError: there is none, a file is damaged, or a teacher is not complete or was changed since.
    """
    if not (folder / REQUEST).is_file():
        raise UserError(
            f"no run that trains in {folder}: it has no {REQUEST}. Expected the folder of a run, such as "
            "results/runs/distillation/vega-0123456789ab, which `distillation run` makes under --work"
        )
    arguments, images = read_json(folder / REQUEST, _parse_request, part=folder / REQUEST)
    plan = plan_run(*arguments)
    identity = read_json(folder / IDENTITY, lambda found: {key: found[key] for key in (*found, "data", "device", "deterministic")})
    now = plan.identity(identity["data"], identity["device"]) | {"deterministic": identity["deterministic"]}
    if changed := _differences(identity, now):
        raise UserError(
            f"what the run in {folder} was trained with is not what is there now; it differs in: {', '.join(changed)}. "
            f"The teacher has to be in {plan.teachers[0].folder}, as it was"
        )
    return Run(folder, plan, identity["data"], images)


def _parse_request(request: dict[str, Any]) -> tuple[tuple[Recipe, Family, list[Path], int, Start | None], int]:
    """The arguments of `plan_run`, and the number of images."""
    recipe, start = Recipe.model_validate(request["recipe"]), request["start"]
    start = start and Start(**start | {"folder": Path(start["folder"])})
    return (recipe, request["family"], [*map(Path, request["teachers"])], request["steps"], start), request["images"]


def load_student(folder: Path) -> UNet2DConditionModel:
    """The student of a finished segment, in float32 on the CPU.

    Raises:
        UserError: it is damaged.
    """
    path = folder / STUDENT
    try:
        student = read_part("unet", path, torch.float32)
        check_finite(student, "unet", path)
    except UserError as error:
        raise UserError(f"the student of a finished stage is damaged: {error} Move {path} away to train that stage again") from error
    return student


def add_environment(folder: Path, environment: Environment) -> None:
    """Add an environment to those of a segment that is about to be trained; without a checkpoint, nothing made in earlier ones is left."""
    earlier = environments(folder) if any(folder.glob("step-*")) else []
    if environment not in earlier:
        write_json(folder / ENVIRONMENTS, [asdict(each) for each in (*earlier, environment)])


def environments(folder: Path) -> list[Environment]:
    """The environments that a segment was trained in, in order.

    Raises:
        UserError: their file is damaged.
    """
    found: list[Environment] = read_json(folder / ENVIRONMENTS, lambda rows: [Environment(**row) for row in rows])
    return found
