import json
import os
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commandline import ROOT, git

from sdbench import __version__, machine
from sdbench.doctor import checks
from sdbench.errors import UserError
from sdbench.machine import PACKAGES, checkout_state, choose_device, environment, slow_dtype_note, this_machine, variables


@pytest.mark.parametrize("wrong", ["gpu", "mps", "cuda:2", "CPU", "cuda:"])
def test_only_an_available_device_is_chosen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in (None, "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(UserError, match=rf"no device '{wrong}' here: torch .* sees cpu, cuda, cuda:0, cuda:1; name one"):
        choose_device(wrong)


def test_default_device_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None) == "cpu"
    with pytest.raises(UserError, match=r"no device 'cuda' here: torch .* sees cpu;"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("n_gpus", "visible", "advice"),
    [
        (2, None, "install"),
        (2, "GPU-0a1b", "correct CUDA_VISIBLE_DEVICES, which is 'GPU-0a1b', or install"),
        (2, "", ""),
        (0, None, ""),
        (None, None, ""),
    ],
)
def test_gpu_that_pytorch_cannot_use_is_told_of_once(
    n_gpus: int | None, visible: str | None, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as beside a PyTorch for the CPU alone; None is a machine without NVIDIA's driver."""

    class NVMLError(Exception):
        pass

    def init() -> None:
        if n_gpus is None:
            raise NVMLError

    nvml = {"nvmlInit": init, "nvmlDeviceGetCount": lambda: n_gpus, "nvmlSystemGetDriverVersion": lambda: "550.54.15"}
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, **nvml))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    machine._tell_of_unusable_gpu.cache_clear()
    assert [choose_device(asked) for asked in ("cpu", None, None)] == ["cpu"] * 3
    told = f"there is an NVIDIA GPU with driver 550.54.15, but torch {torch.__version__} cannot use it; {advice}"
    assert capsys.readouterr().err.count(told) == bool(advice)
    assert checks._device().text.startswith(told) == bool(advice)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "is_slow"),
    [
        ("cpu", "bfloat16", "AVX2", True),
        ("cpu", "float32", "AVX2", False),
        ("cuda", "bfloat16", "AVX2", False),
        ("cpu", "bfloat16", "AVX512", False),
        ("cpu", "float16", "DEFAULT", True),
        ("cpu", "float16", "a later one", False),
    ],
)
def test_sixteen_bits_are_slow_on_a_processor_without_avx512(
    device: str, dtype: str, capability: str, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert bool(slow_dtype_note(dtype, device)) == is_slow


def test_cpu_machine_has_no_driver_and_cuda_even_beside_a_gpu() -> None:
    machine = this_machine("cpu")
    assert (machine.device, machine.driver, machine.cuda) == ("cpu", None, None)
    assert machine.machine_class.startswith(f"{machine.cpu} ({machine.cores} cores), torch ")
    assert machine.cores >= 1
    assert machine.ram_gib > 0.1


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("AMD EPYC", "AMD EPYC family 25 model 17"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "Intel(R) Xeon(R) CPU @ 2.20GHz family 25 model 17"),
        ("AMD EPYC 9654 96-Core Processor", "AMD EPYC 9654 96-Core Processor"),
        ("Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz", "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz"),
    ],
)
def test_processor_whose_name_tells_no_model_is_told_apart_by_its_numbers(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clouds call a processor with AVX2 and one with AVX-512 alike."""
    cpuinfo = tmp_path / "cpuinfo"
    entry = f"vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\n\n"
    cpuinfo.write_text("".join(f"processor\t: {index}\n{entry}" for index in range(2)), encoding="utf-8")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    assert this_machine("cpu").cpu == found


def test_arm_processors_are_told_apart_by_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux gives them no name: Graviton 2 and 3 were one machine class."""
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    def name(part: str) -> str:
        entry = f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
        cpuinfo.write_text("".join(f"processor\t: {index}\nBogoMIPS\t: 2100.00\n{entry}" for index in range(2)), encoding="utf-8")
        return this_machine("cpu").cpu

    assert (name("0xd0c"), name("0xd40")) == (
        "aarch64 implementer 0x41 part 0xd0c variant 0x1",
        "aarch64 implementer 0x41 part 0xd40 variant 0x1",
    )


def test_apples_processors_are_told_apart_by_their_brand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysctl = tmp_path / "sysctl"
    sysctl.write_text('#!/bin/sh\n[ "$*" = "-n machdep.cpu.brand_string" ] && echo Apple M4 Pro\n', encoding="utf-8")
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert machine._cpu_name() == "Apple M4 Pro"
    monkeypatch.setenv("PATH", "")
    assert machine._cpu_name() == "arm"


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("200000 100000\n", 2), ("150000 100000\n", 2), ("6400000 100000\n", 8), ("max 100000\n", 8), (None, 8)]
)
def test_cores_are_those_that_the_quota_of_a_container_allows(
    cpu_max: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker run --cpus 2` leaves a process free to run on all cores, but not at once."""
    if cpu_max is not None:
        (tmp_path / "cpu.max").write_text(cpu_max, encoding="utf-8")
    monkeypatch.setattr(machine, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert this_machine("cpu").cores == cores


def test_driver_version_comes_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def raise_nvml_error() -> None:
        raise NVMLError

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setenv("PATH", "")  # nvidia-smi is not needed
    for init, driver in ((lambda: None, "550.54.15"), (raise_nvml_error, None)):
        nvml = SimpleNamespace(NVMLError=NVMLError, nvmlInit=init, nvmlSystemGetDriverVersion=lambda: "550.54.15")
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert this_machine("cuda").driver == driver


def test_gpu_is_never_classed_as_its_hosts_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    host = this_machine("cpu")
    for device in ("mps", "xpu:0"):
        other = this_machine(device)
        assert (other.device, other.cuda) == (device.partition(":")[0], None)
        assert other.machine_class.startswith(f"{other.device}, torch ")
        assert other.machine_class.endswith(f", {host.cpu}")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "AMD Instinct MI300X")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    of_rocm = this_machine("cuda")
    assert (of_rocm.device, of_rocm.cuda) == ("AMD Instinct MI300X", "HIP 6.4")
    assert re.fullmatch(r"AMD Instinct MI300X, driver \w+, torch \d+\.\d+, HIP 6\.4, .+", of_rocm.machine_class)


@pytest.mark.gpu
def test_cuda_machine_has_a_driver() -> None:
    machine = this_machine("cuda")
    assert machine.device == torch.cuda.get_device_name()
    assert re.fullmatch(r".+, driver \d+, torch \d+\.\d+, CUDA \d+\.\d+, .+", machine.machine_class)


def test_environment_has_every_required_package_that_affects_results() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {re.split(r"[<>=~!; ]", line)[0] for line in required}
    others = {
        "accelerate",
        "filelock",
        "huggingface-hub",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "packaging",
        "pyyaml",
        "rich",
        "tensorboardX",
        "tomli-w",
        "tqdm",
        "urllib3",
    }
    assert names - set(PACKAGES) == others, "these only train, show, fetch or write recipes; add any other new one to PACKAGES"
    assert set(PACKAGES) <= names
    found = environment().packages
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["sdbench"] == __version__


def test_environment_variables_that_switch_behaviour_are_recorded_and_paths_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = {
        **dict.fromkeys(("NVIDIA_TF32_OVERRIDE", "CUDA_LAUNCH_BLOCKING", "OMP_NUM_THREADS", "TORCHINDUCTOR_MAX_AUTOTUNE"), "1"),
        **dict.fromkeys(("CUBLAS_EMULATE_SINGLE_PRECISION", "CUBLAS_EMULATION_STRATEGY"), "1"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    others = (
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_HOME",
    )
    monkeypatch.setattr(os, "environ", {**switches, **dict.fromkeys(others, "0")})
    assert variables() == environment().variables == switches
    monkeypatch.setattr(os, "environ", {})
    assert "variables" not in environment().model_dump(), "without any, the record has no such key"


def test_checkout_is_dirty_for_changed_code_but_not_for_results(tmp_path: Path) -> None:
    assert checkout_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    assert checkout_state(tmp_path) == (None, None), "no commit yet"
    (tmp_path / "code.py").write_text("1\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert checkout_state(tmp_path) == (commit, False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "record.json").write_text("{}", encoding="utf-8")
    assert checkout_state(tmp_path) == (commit, False)
    (tmp_path / "code.py").write_text("2\n", encoding="utf-8")
    assert checkout_state(tmp_path) == (commit, True)
    assert checkout_state(tmp_path / "results") == (None, None), "a package in an environment within a checkout is not of its commit"


def test_commit_of_an_installed_package_is_the_one_its_installer_noted(tmp_path: Path) -> None:
    origins = {
        "from-git": {
            "url": "https://example.org/sdbench.git",
            "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "4ef1"},
        },
        "from-archive": {"url": "https://example.org/sdbench.zip", "archive_info": {}},
        "from-index": None,
    }
    for name, origin in origins.items():
        folder = tmp_path / name / "sdbench-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: sdbench\nVersion: 1.0\n", encoding="utf-8")
        if origin:
            (folder / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
    assert [checkout_state(tmp_path / name) for name in origins] == [("4ef1", False), (None, None), (None, None)]
    git(tmp_path / "from-git", "init", "-q")
    assert checkout_state(tmp_path / "from-git") == (None, None), "a checkout is never of the commit of an installed package"
