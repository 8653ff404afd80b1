"""How the numbers of a section were made: suite, sampling, references, machine, software, records."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from sdbench import tables
from sdbench.leaderboard import speed
from sdbench.leaderboard.standings import Section
from sdbench.records import Record

_PACKAGES = ("torch", "diffusers", "transformers", "sdbench")


def footer_lines(section: Section) -> list[str]:
    """How the numbers were made; a line names models only where they differ, and is left out where no record has it."""

    def line(what: str, describe: Callable[[Record], str]) -> str:
        models: dict[str, list[str]] = {}
        for record in section.records:
            models.setdefault(describe(record) or "not in the record", []).append(record.model.title)
        if len(models) == 1:
            return f"{what}: {next(iter(models))}"
        return f"{what}: " + "; ".join(f"{description} ({tables.join_words(names)})" for description, names in models.items())

    about: dict[str, Callable[[Record], str]] = {
        "suite digest": lambda record: record.suite.digest,
        "prompts": lambda record: record.prompts,
        "sampling": lambda record: _format_settings(record.sampling) or f"unknown, made elsewhere ({record.model.source})",
        "scheduler": lambda record: _format_settings(record.scheduler),
        "noise": lambda record: _format_settings(record.noise),
        "references": _references,
        "rounds x calls of each stage": _timing,
        "device": _device,
        "versions": _versions,
        "commit": lambda record: (
            (record.environment.commit or "unknown") + (" with uncommitted changes" if record.environment.dirty else "")
        ),
    }
    lines = [line(what, describe) for what, describe in about.items() if any(map(describe, section.records))]
    return [
        *lines,
        "records: " + ", ".join(f"{row.name} {row.folder.name} ({row.record.created:%Y-%m-%d})" for row in section.rows),
    ]


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(settings.items()))


def _references(record: Record) -> str:
    names: dict[str, list[str]] = {}
    for value in record.values:
        if value.reference:
            names.setdefault(value.reference, []).append(value.name)
    return "; ".join(f"{tables.join_words(of_reference)} against {reference}" for reference, of_reference in names.items()) or "none"


def _timing(record: Record) -> str:
    """Rounds x calls behind each median latency; several where settings differ, as after a round that failed."""
    rounds = [value.samples for value in speed.latencies(record) if value.samples]
    return ", ".join(dict.fromkeys(f"{len(calls)} x {len(calls[0])}" for calls in rounds))


def _device(record: Record) -> str:
    machine = record.machine
    gpu = f"driver {machine.driver or 'unknown'}, {machine.runtime}, " if machine.runtime else ""
    return f"{machine.device}, {gpu}{machine.cpu}, {machine.cores} cores, {machine.ram_gib:.0f} GiB"


def _versions(record: Record) -> str:
    packages = record.environment.packages
    return f"python {record.environment.python}, " + ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
