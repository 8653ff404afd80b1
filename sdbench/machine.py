"""Where a record was made: the machine, which latency and memory depend on, and the code and its packages."""

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from sdbench import __version__
from sdbench.errors import UserError
from sdbench.notes import print_note
from sdbench.records import Environment, Machine

# The packages that can change a number: those required by pyproject.toml, except those that only train, show, fetch or store.
PACKAGES = (
    "clean-fid",
    "datasets",
    "diffusers",
    "numpy",
    "nvidia-ml-py",
    "open-clip-torch",
    "peft",
    "pillow",
    "psutil",
    "pyarrow",
    "pydantic",
    "pytest-benchmark",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
)
_ROOT = Path(__file__).resolve().parents[1]  # of the checkout, if sdbench runs from one
_CPUINFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # in a container: microseconds of CPU time, or "max", in so many microseconds
# Environment variables that change how the same code computes, from PyTorch's documentation (its pages on CUDA's variables, on threads
# and on compiling) and NVIDIA's (the CUDA programming guide, and cuBLAS on emulated precision); not those that name places or devices.
_SWITCHES = re.compile(
    r"(OMP|MKL)_NUM_THREADS|PYTORCH_(CUDA_)?ALLOC_CONF|PYTORCH_NO_CUDA_MEMORY_CACHING|NVIDIA_TF32_OVERRIDE"
    r"|TORCH_(ALLOW_TF32_CUBLAS_OVERRIDE|BLAS_PREFER_\w+|CUBLAS_WORKSPACE_CACHE|CUDNN_\w+)|CUBLASLT_WORKSPACE_SIZE"
    r"|CUBLAS_(WORKSPACE_CONFIG|EMULAT\w+|FIXEDPOINT_EMULATION_\w+)"
    r"|CUDA_(LAUNCH_BLOCKING|MODULE_LOADING|DEVICE_MAX_CONNECTIONS|SCALE_LAUNCH_QUEUES|FORCE_PTX_JIT)|CUDNN_CONV_WSCAP_DBG"
    r"|TORCH_COMPILE_DISABLE|TORCHDYNAMO_\w+|TORCHINDUCTOR_(?!CACHE_DIR)\w+"
)


def choose_device(asked: str | None) -> str:
    """The device to run on, "cpu", "cuda" or "cuda:<index>": the one asked for, by default "cuda" where there is one.

    The first choice of the CPU beside a GPU that PyTorch cannot use comes with a note.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if asked is None and "cuda" in available:
        return "cuda"
    if asked is None:
        _tell_of_unusable_gpu()
        return "cpu"
    if asked not in available:
        raise UserError(f"no device {asked!r} here: torch {torch.__version__} sees {', '.join(available)}; name one of these with --device")
    return asked


def unusable_gpu() -> str:
    """What to do where PyTorch sees no CUDA device although there is an NVIDIA GPU, as with a PyTorch for the CPU alone; else ""."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        has_gpu = pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not has_gpu or visible in ("", "-1"):  # then it is hidden on purpose
        return ""
    otherwise = f"correct CUDA_VISIBLE_DEVICES, which is {visible!r}, or " if visible else ""
    return (
        f"there is an NVIDIA GPU with driver {_nvidia_driver()}, but torch {torch.__version__} cannot use it; {otherwise}install a PyTorch "
        "for it: remove the folder .nox and run `UV_TORCH_BACKEND=auto python -m nox -s benchmark`"
    )


@cache  # told once
def _tell_of_unusable_gpu() -> None:
    if note := unusable_gpu():
        print_note(note)


def is_slow(dtype: str, device: str) -> bool:
    """Whether PyTorch computes a dtype by plain loops: one of 16 bits on an x86 processor without AVX-512."""
    import torch

    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device == "cpu" and dtype != "float32" and is_x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")


def slow_dtype_note(dtype: str, device: str) -> str:
    """What to know before computing in a dtype that is slow here; else ""."""
    if not is_slow(dtype, device):
        return ""
    return f"this processor has no fast convolutions in {dtype}, which take up to 80 times as long as in float32: see --dtype and --setting"


def this_machine(device: str) -> Machine:
    """This machine, running models on `device`: "cpu", "cuda" or "cuda:<index>", or for a pipeline in memory any that PyTorch has."""
    import torch

    on_cuda = device.startswith("cuda")
    return Machine(
        device=torch.cuda.get_device_name(device) if on_cuda else torch.device(device).type,
        driver=_nvidia_driver() if on_cuda else None,
        torch=str(torch.__version__),
        cuda=(torch.version.cuda or f"HIP {torch.version.hip}") if on_cuda else None,
        cpu=_cpu_name(),
        cores=_cores(),
        ram_gib=round(psutil.virtual_memory().total / 2**30, 1),
    )


def environment() -> Environment:
    """The versions of Python and of the packages that affect numbers, and the commit that sdbench is of, where that is known."""
    packages = {"sdbench": __version__} | {name: found for name in PACKAGES if (found := version(name))}
    commit, dirty = checkout_state()
    return Environment(python=platform.python_version(), packages=packages, variables=variables(), commit=commit, dirty=dirty)


def variables() -> dict[str, str]:
    """The environment variables set here that change the speed, the memory or the last digits of a network."""
    return {name: value for name, value in sorted(os.environ.items()) if _SWITCHES.fullmatch(name)}


def checkout_state(root: Path = _ROOT) -> tuple[str | None, bool | None]:
    """The commit of the code at `root`, and whether anything but its results differs from it; (None, None) where that is not known.

    The code is a checkout, or was installed from a repository, such as by `pip install "sdbench @ git+https://..."`.
    """
    if not (root / ".git").exists():
        commit = _installed_commit(root)
        return commit, None if commit is None else False
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None, None
    changes = _git(root, "--no-optional-locks", "status", "--porcelain", "--", ".", ":(exclude)results")
    return commit, None if changes is None else bool(changes)


@cache
def version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _installed_commit(root: Path) -> str | None:
    """The commit that the sdbench installed in the folder `root` was built from; None where an installer noted none (PEP 610)."""
    found = next(iter(metadata.distributions(name="sdbench", path=[str(root)])), None)
    origin = json.loads((found and found.read_text("direct_url.json")) or "{}")
    commit: str | None = origin.get("vcs_info", {}).get("commit_id")
    return commit


def _git(root: Path, *arguments: str) -> str | None:
    """The output of a git command; None where it fails or there is no git."""
    return _output("git", "-C", str(root), *arguments)


def _output(program: str, *arguments: str) -> str | None:
    """The output of a command; None where it fails or there is no such program."""
    path = shutil.which(program)
    if path is None:
        return None
    done = subprocess.run([path, *arguments], capture_output=True, encoding="utf-8", check=False)  # noqa: S603  # fixed arguments
    return done.stdout.strip() if done.returncode == 0 else None


def _cores() -> int:
    """The cores that this process may keep busy, by its affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, period = _CPU_MAX.read_text(encoding="utf-8").split() if _CPU_MAX.exists() else ("max", "")
    return cores if quota == "max" else min(cores, math.ceil(int(quota) / int(period)))


def _cpu_name() -> str:
    """The processor's name, or what tells it from others where that names no model.

    Clouds have "AMD EPYC" and "Intel(R) Xeon(R) CPU @ 2.20GHz"; Linux knows Arm's by numbers alone, and Python calls all of Apple's "arm".
    """
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    of_first = {key.strip(): entry.strip() for key, _, entry in (line.partition(":") for line in reversed(lines))}
    if "model name" not in of_first and "CPU part" in of_first:
        numbers = (f"{word} {of_first[key]}" for word in ("implementer", "part", "variant") if (key := f"CPU {word}") in of_first)
        return f"{platform.machine()} {' '.join(numbers)}"
    of_apple = _output("sysctl", "-n", "machdep.cpu.brand_string") if sys.platform == "darwin" else None
    name = of_first.get("model name") or of_apple or platform.processor() or platform.machine()
    if "cpu family" in of_first and not re.search(r"\d", name.partition("@")[0]):
        return f"{name} family {of_first['cpu family']} model {of_first['model']}"
    return name


def _nvidia_driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
