"""What this machine can run, what is missing, whether what was shipped is intact, and whether the metrics behave."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from sdbench.errors import UserError
from sdbench.machine import version
from sdbench.scenes import embedded


@dataclass(frozen=True)
class Finding:
    """One thing looked at; a fatal one that is not fine keeps the benchmark from running, or its numbers from being trusted."""

    fine: bool
    fatal: bool
    text: str


def examine(results: Path, runs: Path) -> Iterator[Finding]:
    """Look at packages, device, embedded weights, the Hub's cache, disk, the folders of results and runs, metrics of golden pictures, and known values."""
    yield from _packages()
    yield _device()
    yield from _embedded()
    yield from _hub()
    yield _disk(runs)
    yield _writable(results, "--results")
    yield _writable(runs, "--runs")
    yield from _metrics()
    yield from _known()


def _packages() -> Iterator[Finding]:
    try:
        required = metadata.requires("sdbench") or []
    except metadata.PackageNotFoundError:
        yield Finding(False, False, "packages: not looked at, since sdbench runs from a folder; install it: pip install -e .")
        return
    for requirement in map(Requirement, required):
        found = version(requirement.name)
        fine = found is not None and requirement.specifier.contains(found, prereleases=True)
        way_out = "" if fine else f", needed is {requirement}; install sdbench again: pip install --force-reinstall sdbench"
        yield Finding(fine, True, f"{requirement.name} {found or 'is not installed'}{way_out}")


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(False, False, f"no CUDA device: the embedded family runs on {os.cpu_count()} CPU cores; full-size suites need a GPU")
    free, total = torch.cuda.mem_get_info()
    return Finding(
        True, False, f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free: full-size suites can run"
    )


def _embedded() -> list[Finding]:
    if not embedded.MANIFEST.exists():
        return [
            Finding(
                False, True, f"embedded weights: no manifest at {embedded.MANIFEST}; reinstall sdbench, or train them: sdbench scenes train"
            )
        ]
    try:
        bad = embedded.changed_files()
    except UserError as error:
        return [Finding(False, True, str(error))]
    if bad:
        return [
            Finding(False, True, f"embedded weights: {name} is missing or changed; reinstall sdbench, or check the file out again")
            for name in bad
        ]
    return [Finding(True, True, f"embedded weights: {len(embedded.read_manifest()['files'])} files fit their digests")]


def _hub() -> list[Finding]:
    from sdbench.assets.pipelines import is_cached
    from sdbench.models.catalogue import CATALOGUE
    from sdbench.models.spec import resolve

    findings = []
    for name, entry in CATALOGUE.items():
        if entry.source == "hub":
            there = is_cached(resolve(name), dtype="bfloat16")
            text = f"weights of {name} ({entry.location}): " + (
                "cached" if there else f"not cached, about {entry.download_gb:.1f} GB to fetch"
            )
            findings.append(Finding(there, False, text))
    return findings


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(_nearest(folder)).free
    return Finding(free > 2e9, False, f"{free / 1e9:.0f} GB of disk free for {folder}")


def _writable(folder: Path, option: str) -> Finding:
    writable = os.access(_nearest(folder), os.W_OK)
    return Finding(
        writable, True, f"folder {folder} " + ("can be written" if writable else f"cannot be written; name another with {option}")
    )


def _nearest(folder: Path) -> Path:
    """The folder, or the one that it would be made in."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _metrics() -> Iterator[Finding]:
    from sdbench.doctor import golden

    judged = golden.judge()
    for one in judged:
        if one.complaints:
            yield Finding(False, True, f"metric {one.name} misbehaves on golden pictures: {'; '.join(one.complaints)}")
        elif one.seen is not None:
            numbers = [f"{name} {value.state if value.value is None else f'{value.value:.4g}'}" for name, value in one.seen.items()]
            yield Finding(True, True, f"metric {one.name} behaves on golden pictures: {', '.join(numbers)}")
    if away := [one.name for one in judged if one.seen is None]:
        yield Finding(False, False, f"metrics not tried, for want of weights or of a GPU: {', '.join(away)}")


def _known() -> Iterator[Finding]:
    from sdbench.doctor import golden, published

    try:
        with golden.offline():
            compared = list(published.compare())
    except UserError as error:
        yield Finding(False, True, f"known values of CLIP {published.BACKBONE}: {error}")
        return
    for one in compared:
        said = f"{one.what} is {one.found:.3f}, published {one.expected:.3f} ({published.SOURCE})"
        way_out = "" if one.fits else "; weights or libraries are not the published ones: remove and fetch the weights again"
        yield Finding(one.fits, True, f"known value: {said}{way_out}")
    if not compared:
        yield Finding(
            False, False, f"known values of CLIP {published.BACKBONE}: not checked, its weights are not at hand ({published.SOURCE})"
        )
