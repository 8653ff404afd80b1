"""The process that measures one round: how it is started, how long it may take, and why it failed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.probes import meters, plugin
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, Request
from sdbench.probes.rounds import Round, collect_info
from sdbench.records.names import STAGES
from sdbench.suites import SHIPPED

BENCHMARK_FILE = SHIPPED / "bench_pipeline.py"  # not one of ./suites: of another version, it gives other numbers under the same names
ROUND_TIMEOUT_S = 3600
_TIMED_OUT = "timed out"
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "",
    "PYTEST_PLUGINS": "",
    "PYTHONDONTWRITEBYTECODE": "",  # else each process compiles the libraries, which takes 8 s and counts as its memory
    "PYTEST_XDIST_WORKER": "",  # set in tests that run in parallel; pytest-benchmark would measure nothing
}


@dataclass(frozen=True)
class Series:
    """The rounds of a model in a setting.

    Attributes:
        request: what each round measures.
        stem: start of the names of their files.
        work: the folder of their files, with logs, requests and compilers' caches.
    """

    request: Request
    stem: str
    work: Path

    def file(self, index: int) -> Path:
        """The file of a kept round; a file beside it says why stages failed."""
        return self.work / f"{self.stem}-{index}.json"

    def read(self, index: int) -> Round:
        """The kept round, perhaps incomplete; one without times where there is none."""
        file = self.file(index)
        return Round.read(file, _read_failures(file))

    def measure(self, index: int, done: Sequence[Round]) -> Round:
        """Measure a round, unless the first of those done says that it is in vain; if it has times, `keep` keeps it.

        Raises:
            UserError: the GPU fails in this new process too, so that it would in those of all other rounds; or a write fails.
        """
        if is_in_vain(done):
            return Round(failures=_fail_all(done[0].failures["pipeline"]))
        if not collect_info(done, "first_call_s"):
            shutil.rmtree(self._compiler_cache, ignore_errors=True)  # may be incomplete, of a process killed while compiling
        target = self._new_file(index)
        failures = self._run(self.request, target)
        if reason := next((each for each in failures.values() if each.startswith(plugin.GPU_FAILED)), ""):
            raise UserError(f"{reason}; run again when `nvidia-smi` shows that it works, which keeps the finished rounds")
        return Round.read(target, failures)

    def keep(self, index: int) -> None:
        """Keep the round that was just measured, in place of one kept before."""
        for ending in (plugin.FAILURES_SUFFIX, ""):  # in this order, so that no failed stage is ever taken for measured
            Path(f"{self._new_file(index)}{ending}").replace(f"{self.file(index)}{ending}")

    def write_profiles(self) -> dict[str, str]:
        """Write a profile of each stage beside the rounds, `<stem>.profile-<stage>.txt`, and return why stages failed, by stage.

        This takes a process of its own, since a profiler slows down what it observes.
        """
        target = self.work / f"{self.stem}.json"
        if all(target.with_suffix(f".profile-{stage}.txt").exists() for stage in STAGES):
            return {}
        return self._run(self.request.model_copy(update={"profile": True}), target)

    def _new_file(self, index: int) -> Path:
        return self.file(index).with_suffix(".partial.json")

    @property
    def _compiler_cache(self) -> Path:
        return self.work / "compiled" / self.stem

    def _run(self, request: Request, target: Path) -> dict[str, str]:
        """Run the measuring process, which writes `target`, and return why stages failed, by stage."""
        for stale in (target, Path(f"{target}{plugin.FAILURES_SUFFIX}")):
            stale.unlink(missing_ok=True)
        request_file = target.with_suffix(".request")
        write_bytes(request_file, request.model_dump_json(indent=1).encode())
        inherited = {
            **_environment(),
            meters.COMPILER_CACHE: str(self._compiler_cache),
            "TRITON_CACHE_DIR": str(self._compiler_cache / "triton"),  # as by default; a user's own would hold kernels of other rounds
            REQUEST_VARIABLE: str(request_file),
            plugin.DRIVER_VARIABLE: str(os.getpid()),
        }
        try:
            done = subprocess.run(  # noqa: S603  # our own arguments
                _command(target, self.work),
                env=inherited,
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # the process may write in another encoding
                timeout=ROUND_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _fail_all(f"{_TIMED_OUT} after {ROUND_TIMEOUT_S} s")
        write_bytes(target.with_suffix(".log"), f"{done.stdout}\n{done.stderr}".encode())
        failures = _read_failures(target)
        crashed_at_its_end = Round.read(target, {}).is_complete  # with everything written
        return failures if failures or not done.returncode or crashed_at_its_end else _fail_all(_exit_reason(done))


def is_in_vain(done: Sequence[Round]) -> bool:
    """Whether the first round failed in a way that another would not avoid."""
    reason = done[0].failures.get("pipeline", "") if done else ""
    return reason.startswith((meters.OUT_OF_MEMORY, meters.NOT_COMPILED, _TIMED_OUT))


def _read_failures(target: Path) -> dict[str, str]:
    """Why stages failed, by stage, as the measuring process wrote it beside the file of a round."""
    file = Path(f"{target}{plugin.FAILURES_SUFFIX}")
    failures: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return failures


def _fail_all(reason: str) -> dict[str, str]:
    """The failures, by stage, of a round that measured nothing."""
    return dict.fromkeys((*STAGES, *CEILINGS), reason)


def _command(target: Path, work: Path) -> list[str]:
    # An empty configuration, so that pytest does not read that of the current folder, and no conftest.py: it would run those of the current
    # folder's tests, and what they set, such as the number of threads, would decide the times. The file is found as a module, in a path
    # without the current folder (-P), since pytest refuses file names with brackets.
    config = write_bytes(work / "pytest.ini", b"[pytest]\n")
    plugins = ("no:cacheprovider", "pytest_benchmark.plugin", plugin.__name__)
    return [
        *(sys.executable, "-P", "-m", "pytest", "--pyargs", BENCHMARK_FILE.stem),
        *(argument for name in plugins for argument in ("-p", name)),
        *("-c", str(config), f"--rootdir={BENCHMARK_FILE.parent}", "--noconftest", "--import-mode=importlib", "--tb=short", "-q"),
        f"--benchmark-json={target}",
    ]


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, str(BENCHMARK_FILE.parent), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}


def _exit_reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended without naming failures: the signal, or the last line it wrote, preferably one of an error."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"killed by {name}" + (": most likely the machine ran out of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]  # as pytest marks them
    return f"exit code {done.returncode}: {(errors or lines or ['it wrote nothing'])[-1][:500]}"
