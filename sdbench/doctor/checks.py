"""Checks of this machine: what it can run, what is missing, whether the shipped files are intact, and whether the metrics behave."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from sdbench import machine
from sdbench.errors import UserError
from sdbench.machine import version
from sdbench.records import Value
from sdbench.run.profiles import FULL_SIZE_GIB
from sdbench.scenes import embedded
from sdbench.tables import format_number

MAX_RESIZE_LEVELS = 0.01  # of 255


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        is_fatal: if this check fails, the benchmark cannot run, or its numbers cannot be trusted.
    """

    is_ok: bool
    text: str
    is_fatal: bool = field(default=False, kw_only=True)


def examine(results: Path, runs: Path) -> Iterator[Finding]:
    """Check packages, device, compiler, weights, disk, folders, clean-fid's resize, the metrics on golden images, and published values."""
    yield from _packages()
    yield _device()
    yield _compiler()
    yield from _embedded()
    yield from _hub()
    yield _disk(runs)
    yield _writable(results, "--results")
    yield _writable(runs, "--runs")
    yield from _resize()
    yield from _metrics()
    yield from _published_values()


def _packages() -> Iterator[Finding]:
    try:
        required = metadata.requires("sdbench") or []
    except metadata.PackageNotFoundError:
        yield Finding(False, "packages: not checked, because sdbench is not installed but runs from a folder; install it: pip install -e .")
        return
    fitting = []
    for requirement in map(Requirement, required):
        installed = version(requirement.name)
        found = f"{requirement.name} {installed or 'is not installed'}"
        if installed is not None and requirement.specifier.contains(installed, prereleases=True):
            fitting.append(found)
        else:
            yield Finding(False, f"{found}, needed is {requirement}: pip install '{requirement}'", is_fatal=True)
    if fitting:
        yield Finding(True, f"packages: {', '.join(fitting)}", is_fatal=True)


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        if unusable := machine.unusable_gpu():
            return Finding(False, unusable)
        return Finding(False, f"no CUDA device: the embedded family runs on {os.cpu_count()} CPU cores; full-size suites need a GPU")
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    can_run = total >= FULL_SIZE_GIB
    advice = "full-size suites can run" if can_run else f"full-size suites draw four images at once, which takes about {FULL_SIZE_GIB:.0f}"
    return Finding(can_run, f"{torch.cuda.get_device_name()}, {free:.1f} of {total:.1f} GiB free: {advice}")


def _compiler() -> Finding:
    """What compiled settings need besides PyTorch: on a GPU, Triton builds Python extensions in C (triton/runtime/build.py)."""
    has_compiler = any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang"))))
    has_headers = (Path(sysconfig.get_path("include")) / "Python.h").exists()
    needs = {"a C compiler": has_compiler, "Python's headers, such as of the package python3-dev": has_headers}
    lacking = " and ".join(what for what, is_here in needs.items() if not is_here)
    return Finding(not lacking, f"compiled settings: they fail without {lacking}" if lacking else "compiled settings can be built")


def _embedded() -> Iterator[Finding]:
    try:
        damaged = embedded.changed_files()
    except UserError as error:
        yield Finding(False, str(error), is_fatal=True)
        return
    for name in damaged:
        text = f"embedded weights: {name} is missing or changed; reinstall sdbench, or check the file out again"
        yield Finding(False, text, is_fatal=True)
    if not damaged:
        yield Finding(True, f"embedded weights: {len(embedded.read_manifest()['files'])} files match their digests", is_fatal=True)


def _hub() -> Iterator[Finding]:
    from sdbench.assets.pipelines import is_cached
    from sdbench.models.catalogue import CATALOGUE
    from sdbench.models.resolve import resolve

    for name, entry in CATALOGUE.items():
        if entry.source == "hub":
            cached = is_cached(resolve(name), dtype="bfloat16")
            state = "cached" if cached else f"not cached, about {entry.download_gb:.1f} GB to fetch"
            yield Finding(cached, f"weights of {name} ({entry.location}): {state}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(_nearest_existing(folder)).free
    return Finding(free > 2e9, f"{free / 1e9:.0f} GB of disk free for {folder}")


def _writable(folder: Path, option: str) -> Finding:
    nearest = _nearest_existing(folder)
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    state = "can be written" if writable else f"cannot be written; name another with {option}"
    return Finding(writable, f"folder {folder} {state}", is_fatal=True)


def _nearest_existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _resize() -> Iterator[Finding]:
    """Our resize for `fid.clean` against clean-fid's own: ours uses PyTorch's filter, theirs Pillow's; a new version may change either."""
    installed = version("clean-fid")
    if installed is None:
        return  # a missing package is a finding of its own
    import numpy as np
    import torch
    from cleanfid.resize import build_resizer

    from sdbench.encoders import inference, resize

    image = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    pixels = torch.from_numpy(image)[None].to(inference.device())  # whose kernel runs
    ours = (resize.clean(pixels)[0] * 128 + 128).permute(1, 2, 0).cpu().numpy()
    levels = float(np.abs(ours - build_resizer("clean")(image)).max())
    is_ok = levels <= MAX_RESIZE_LEVELS
    advice = "" if is_ok else f", at most {MAX_RESIZE_LEVELS} is expected: fid.clean would not be comparable with clean-fid's"
    yield Finding(is_ok, f"the resize of fid.clean is within {levels:.1g} of 255 levels of clean-fid {installed}'s{advice}", is_fatal=True)


def _metrics() -> Iterator[Finding]:
    from sdbench.doctor import golden

    judgements = golden.judge_metrics()
    for one in judgements:
        if one.complaints:
            yield Finding(False, f"metric {one.name} misbehaves on golden images: {'; '.join(one.complaints)}", is_fatal=True)
        elif one.values is not None:
            numbers = ", ".join(f"{name} {_format(value)}" for name, value in one.values.items())
            yield Finding(True, f"metric {one.name} behaves on golden images: {numbers}", is_fatal=True)
    if not_tried := [one.name for one in judgements if one.values is None]:
        yield Finding(False, f"metrics not tried, because weights or a GPU are missing: {', '.join(not_tried)}")


def _format(value: Value) -> str:
    return value.state if value.value is None else format_number(round(value.value, 6))  # equal images are 1e-16 apart, not 0


def _published_values() -> Iterator[Finding]:
    from sdbench.assets import catalogue, weights
    from sdbench.doctor import golden, published

    try:
        with golden.offline():
            comparisons = list(published.compare())
    except UserError as error:
        yield Finding(False, f"known values of CLIP {published.BACKBONE}: {error}", is_fatal=True)
        return
    for value, found in comparisons:
        is_close = abs(found - value.expected) <= published.TOLERANCE
        what = f"CLIP score ({published.BACKBONE}) of {value.what}"
        advice = "" if is_close else "; weights or libraries are not the published ones: remove and fetch the weights again"
        text = f"known value: {what} is {found:.3f}, published {value.expected:.3f} ({published.SOURCE}){advice}"
        yield Finding(is_close, text, is_fatal=True)
    if not comparisons:
        text = f"known values of CLIP {published.BACKBONE}: not checked, because its weights are not on this machine ({published.SOURCE})"
        yield Finding(False, f"{text}. {weights.how_to_get(catalogue.get_asset(published.ASSET))}")
