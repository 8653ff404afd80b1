"""What the command line does, for Python: the same names, the same records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbench import records, standings, suites
from sdbench.errors import UserError
from sdbench.gate import Report, gate
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.spec import ModelSpec, resolve
from sdbench.policy import load as load_policy
from sdbench.records import Record, Scores, Value

FAMILY_SUITE = {"scenes": "quality", "sdxl": "standard"}


@dataclass(frozen=True)
class Places:
    """Where records, and the work behind them, are kept."""

    results: Path = Path("results")
    runs: Path = Path("results/runs")


@dataclass(frozen=True)
class Overrides:
    """Settings of a suite that a run may change; such a suite is named `<name>-custom`, so its rows stay apart.

    Attributes:
        n: number of prompts.
    """

    steps: int | None = None
    size_px: int | None = None
    batch: int | None = None
    dtype: str | None = None
    n: int | None = None

    def apply(self, suite: suites.Suite) -> suites.Suite:
        """The suite with these settings in place of its own."""
        changed = {name: value for name, value in vars(self).items() if value is not None}
        if not changed or suite.sampling is None or suite.prompts is None:
            return suite
        n = changed.pop("n", None)
        sampling = {**suite.sampling.model_dump(), **changed}
        prompts = {**suite.prompts.model_dump(), **({"n": n} if n else {})}
        content = {**suite.model_dump(), "name": f"{suite.name}-custom", "sampling": sampling, "prompts": prompts}
        return suites.validated(suites.Suite, content, f"suite {suite.name!r} with your settings")


def machine_device() -> str:
    """The device to run on: `cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run(
    specs: Sequence[ModelSpec], suite: suites.Suite, places: Places | None = None, *, device: str | None = None, only: str | None = None
) -> list[Path]:
    """Measure models under a suite => their record folders.

    Args:
        only: "quality" or "probes" for one half of the suite.
    """
    from sdbench import run as runner

    where = places or Places()
    return runner.run(specs, runner.bench(suite, device=device or machine_device(), results=where.results, runs=where.runs, only=only))


def score(images: Path, prompts: Path, places: Places | None = None) -> tuple[list[Value], Scores]:
    """Score pictures made elsewhere against a text file with a prompt a line, in the order of the sorted file names.

    Raises:
        UserError: the numbers of pictures and prompts differ, or a picture cannot be read.
    """
    from sdbench import run as runner
    from sdbench.score import score as scored
    from sdbench.store import read_images

    if not images.is_dir() or not prompts.exists() or prompts.is_dir():
        raise UserError(
            f"--images takes a folder and --prompts a text file; found {images} and {prompts}, of which one is missing or of the other kind"
        )
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    texts = [line.strip() for line in prompts.read_text().splitlines() if line.strip()]
    if not paths or len(paths) != len(texts):
        raise UserError(
            f"{images} holds {len(paths)} pictures and {prompts} {len(texts)} prompts; there must be a prompt for each picture, in the order of the file names"
        )
    subject = runner.external(paths, read_images(paths, "replace or remove it, and its prompt"), texts, (places or Places()).runs)
    metrics = [name for name in suites.load("quality").metrics["scenes"] if not name.startswith("win_rate")]
    return scored(subject, metrics)


def compare(candidate: str, baseline: str, policy: Path | None, places: Places | None = None, suite: str | None = None) -> Report:
    """Gate a candidate against a baseline, each a record folder, a catalogue name or a checkpoint; what has no record is run."""
    where = places or Places()
    chosen = load_policy(policy or suites.suites_folder() / "gate.toml")
    return gate(_record_of(candidate, where, suite), _record_of(baseline, where, suite), chosen)


def report(places: Places | None = None, out: Path | None = None, policy: Path | None = None) -> list[Path]:
    """Write the HTML page of all records => the page, and what lies beside it."""
    from sdbench.report import page

    where = places or Places()
    return page.write(where.results, out or where.results / page.FILE_NAME, load_policy(policy or suites.suites_folder() / "gate.toml"))


def card(folder: str, places: Places | None = None, base: str | None = None) -> Path:
    """Write the results of the model in a folder into its model card => the card.

    Raises:
        UserError: it is no model's folder, or no record is of its weights.
    """
    from sdbench.models.digest import weights_digest
    from sdbench.report import card as cards

    where = places or Places()
    spec = resolve(folder, base=base)
    board = standings.rows(where.results)
    dtypes = {row.record.sampling.get("dtype", "float32") for row in board if row.record.family == spec.family}
    digests = {weights_digest(spec, dtype=dtype) for dtype in dtypes}
    own = [row for row in board if row.record.model.weights_digest in digests]
    if spec.source not in ("folder", "unet-folder") or not own:
        raise UserError(f"no record under {where.results} is of the weights in {folder}; measure them first: sdbench run --model {folder}")
    return cards.write(Path(folder), board, own)


def _record_of(what: str, where: Places, suite: str | None) -> Path:
    if (Path(what) / "record.json").is_file():
        return Path(what)
    spec = resolve(what)
    chosen = suites.load(suite or FAMILY_SUITE.get(spec.family, "standard"))
    kept = [(record.created, path) for path, record in records.newest(where.results, spec.family) if _is(record, spec.name, chosen)]
    if kept and spec.name in CATALOGUE:
        return max(kept)[1]
    return run([spec], chosen, where)[0]


def _is(record: Record, name: str, suite: suites.Suite) -> bool:
    return record.model.name == name and record.suite == suite.id
