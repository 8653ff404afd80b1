"""The grammar of the names in a record: those of values and those of prompts.

A value's name has parts, divided by points, from the general to the special: `clip_score.vit-l-14`, `latency.unet_step.p50`. An image
metric's name is its protocol; a win rate's also has the name of its judge, the score that decides who wins: `win_rate.pickscore.v1`. The
name of a probe that was measured in another setting than `base` ends in the setting's label: `latency.pipeline.p50@b8+compiled`.
"""

import hashlib
import re

BASE = "base"  # the label of the setting that names do not mention
STAGES = ("pipeline", "text_encoders", "unet_step", "scheduler", "vae_decode")  # the pipeline first: its first call is the cold start
# The first parts of the names of what is measured of the model and not of its images.
PROBES = frozenset(
    ("latency", "memory", "energy", "cold_start", "images_per_second", "ceiling", "share", "machine", "parameters", "flops", "bytes")
)
_WIN_RATE = "win_rate."


def first_part(name: str) -> str:
    """The first part of a name, without a setting."""
    return re.split(r"[.@]", name, maxsplit=1)[0]


def begins_with(name: str, start: str) -> bool:
    """Whether these are the first parts of a name, or all."""
    return name == start or name.startswith(f"{start}.")


def is_probe(name: str) -> bool:
    """Whether a value is of a model's speed, memory or size and not of its images, by its name alone: a record may lack it."""
    return first_part(name) in PROBES


def is_agreement(name: str) -> bool:
    """Whether a metric scores how near each image is to the teacher's of the same noise."""
    return first_part(name) == "agreement"


def is_against_images(name: str) -> bool:
    """Whether a metric compares with the teacher's images, one by one or as a set."""
    return is_agreement(name) or first_part(name) == "fd_to_teacher"


def win_rate_by(judge: str) -> str:
    """The name of the win rate by a score."""
    return f"{_WIN_RATE}{judge}"


def judge_of(name: str) -> str | None:
    """The score that decides a win rate; None for any other metric."""
    return name.removeprefix(_WIN_RATE) if name.startswith(_WIN_RATE) else None


def latency_of(stage: str, mark: str = "p50") -> str:
    """The name of a quantile of a stage's latency in `base`; the median by default."""
    return f"latency.{stage}.{mark}"


# In `base`, the probes of which more or less is better, so that a policy may weigh them; a machine and a model have some of these.
RATED_PROBES = frozenset(
    (
        *(latency_of(stage, mark) for stage in STAGES for mark in ("p50", "p90", "p99")),
        *(f"memory.peak_{what}" for what in ("rss", "data", "allocated", "reserved")),
        *(f"memory.{what}" for what in ("weights", "process", "context", "smallest_card")),
        *(f"cold_start.{what}" for what in ("load", "first_call", "first_call_compiling")),
        *(f"share.{limit}.{stage}" for limit in ("matmul", "roofline") for stage in STAGES if stage != "scheduler"),
        *(f"{what}.{stage}" for what in ("flops", "bytes") for stage in ("text_encoders", "unet_step", "vae_decode")),
        *("parameters.unet", "parameters.pipeline", "flops.unet"),
        *("images_per_second", "energy.pipeline", "ceiling.matmul", "ceiling.copy"),
    )
)


def with_setting(name: str, label: str) -> str:
    """The name of a value of `base` in the setting with this label."""
    return name if label == BASE else f"{name}@{label}"


def without_setting(name: str) -> str:
    """The name that a value has in `base`."""
    return name.partition("@")[0]


def setting_of(name: str) -> str:
    """The label of the setting that a value was measured in."""
    return name.partition("@")[2] or BASE


def natural_key(name: str) -> list[str | int]:
    """The parts of a name, text and numbers alternating, by which `step-500` comes before `step-1000`."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def id_of_prompt(place: int, text: str) -> str:
    """A prompt's id, made of its place in the suite, from 0, and its text: `00007-1b4f0e98`."""
    return f"{place:05d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def place_of_prompt(prompt_id: str) -> int:
    """A prompt's place in the suite, by its id."""
    return int(prompt_id.partition("-")[0])
