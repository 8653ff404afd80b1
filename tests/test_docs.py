"""Links in the documents lead somewhere, and their tables name every metric and probe, with the constants of the code."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from factories import make_request

from distillation.recipe import load_recipe
from sdbench import suites
from sdbench.encoders import perceptual
from sdbench.encoders.clip import BACKBONES
from sdbench.gate import looks, policy
from sdbench.leaderboard import ranks, truth
from sdbench.metrics import cmmd, frechet_infinity, prdc
from sdbench.models import activation_scale
from sdbench.probes import capacity, ceilings, conditions
from sdbench.probes.values import QUANTILES, values
from sdbench.probes.work import Load
from sdbench.protocols.base import small_sample_note
from sdbench.records.names import PROBES, without_setting
from sdbench.reference import cards
from sdbench.run import until_verdict
from sdbench.score import PROTOCOLS
from sdbench.stats import decisions, intervals, sequential

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{page}.md" for page in ("measuring", "gate", "distillation", "methods")),
    "results/findings.md",
    "results/calibration/gate.md",
]
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`\n]+)`", METHODS)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    """The relative links of a document that lead to no file, or to no heading of one."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    assert dead_links(ROOT / name) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "# The gate's rule\n[a](#the-gates-rule) [b](#rule) [c](page.md) [d](none.md) [e](https://example.org)", encoding="utf-8"
    )
    assert dead_links(document) == ["#rule", "none.md"]


def test_methods_name_every_metric_with_its_unit() -> None:
    rows: dict[str, str] = {}
    for line in re.findall(r"^\| `.*", METHODS, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
            rows.setdefault(name, line)  # the first; later tables are on intervals
    assert {name for name in PROTOCOLS if name not in rows} == set()
    assert {name for name, protocol in PROTOCOLS.items() if f" | {protocol.unit} | " not in rows[name]} == set()
    lower_scores = {name for name, protocol in PROTOCOLS.items() if protocol.kind == "score" and protocol.direction == "lower"}
    higher_sets = {name for name, protocol in PROTOCOLS.items() if protocol.kind == "set" and protocol.direction == "higher"}
    assert lower_scores == {name for name, row in rows.items() if "lower is better" in row}
    assert {name.partition(".")[0] for name in higher_sets} == {"prdc"}  # as the page says


def test_measuring_lists_every_metric_of_full_size_models() -> None:
    page = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    table = page.partition("\n## Metrics\n")[2].partition("\n### ")[0]
    patterns = [re.sub(r"<\w+>", "*", quoted) for quoted in re.findall(r"`([^`]+)`", table)]
    names = {name for name in PROTOCOLS if not name.endswith(".scenes")}
    assert {name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)} == set()


def test_methods_name_every_probe() -> None:
    patterns = [re.sub(r"<\w+>", "*", quoted) for quoted in QUOTED]
    loads = {stage: Load(1.0, 1.0) for stage in ("pipeline", "unet_step")}
    names = [value.name for compiled in (None, "whole") for value in values(make_request(device="cuda", compile=compiled), [], loads)]
    assert len(names) > 60
    assert {name for name in names if not any(fnmatchcase(without_setting(name), pattern) for pattern in patterns)} == set()
    assert {first for first in PROBES if not any(re.match(rf"{first}\b", quoted) for quoted in QUOTED)} == set()


def phrases() -> list[str]:
    """What the page says of constants, with the values that they have in the code."""
    standard, quality = (suites.load(name).probes for name in ("standard", "quality"))
    assert standard
    assert quality
    low, high = activation_scale.OUTPUT_STD_RANGE
    few_calls = [round(1 / (1 - QUANTILES[mark])) for mark in ("p90", "p99")]
    weights = load_recipe("vega").loss
    rules = policy.load(suites.find(suites.POLICY))
    return [
        *(f"`{name}` {n:,}" for name in ("standard", "hpdv2", "coco-30k", "mlperf-sdxl") if (n := number_of_prompts(name))),
        f"{number_of_prompts('quality')} captions",
        f"at most {cards.MAX_FEATURES:,}, spread evenly",
        f"{cards.SCENES_N:,} rendered scenes",
        f"{frechet_infinity.LEAST_PER_DIMENSION} d = {frechet_infinity.LEAST_PER_DIMENSION * 2048:,.0f}",
        f"k = {prdc.K}",
        f"k + 2 = {prdc.K + 2}",
        f"times {cmmd.SCALE:.0f}, and",
        f"sigma = {cmmd.SIGMA:.0f} ",
        f"window of {2 * perceptual.RADIUS + 1} px, sigma {perceptual.SIGMA}",
        ", ".join(f"`clip_score.{backbone}`" for backbone in BACKBONES),
        f"alpha = {rules.alpha}",
        f"correction to {100 * ranks.ALPHA:.0f} % per metric",
        f"{truth._DRAWS:,} resamples of prompts",
        f"{intervals.DRAWS:,} resamples of whole rounds",
        f"fewer than {decisions._FEW_ROUNDS} rounds",
        f"{100 * decisions.POWER:.0f} % probability",
        f"$`\\log {1 + rules.suites['quality']['latency.pipeline.p50'].margin:g}`$",
        f"at most {until_verdict.LOOKS} times",
        f"{sequential.nominal_levels(tuple(look / 16 for look in range(1, 17)), 0.05)[-1] / 0.05:.2f} alpha at the last",
        {0.5: "from half of the prompts on"}[looks.EARLIEST_PASS],
        f"chance below {100 * sequential._LOW_CHANCE:.0f} %",
        (
            f"{quality.rounds}, {quality.calls} and {quality.warmup} in `quality`, "
            f"{standard.rounds}, {standard.calls} and {standard.warmup} in `standard`"
        ),
        "fewer than {} and {} calls".format(*few_calls),
        f"smallest of {', '.join(map(str, capacity.CARDS_GB))} GB",
        "two {0} x {0} matrices (CPU: {1} x {1}".format(*ceilings.MATMUL_SIDE.values()),
        f"in float16, and in bfloat16 without AVX-512, {ceilings.SLOW_SIDE} x {ceilings.SLOW_SIDE}",
        f"copy of {ceilings.COPY_BYTES['cuda'] // 2**30} GiB (CPU: {ceilings.COPY_BYTES['cpu'] // 2**20} MiB)",
        f"drift from {100 * conditions.DRIFT:.0f} % on, {conditions.FOREIGN_CORES} foreign cores",
        f"over {conditions.HOST_BOUND} of a step",
        f"of {activation_scale.BRANCH_STD} where it ends a residual branch",
        f"in {low}..{high}",
        f"weights {weights.task:g}, {weights.output:g}, {weights.feature:g}",
    ]


def number_of_prompts(suite: str) -> int:
    prompts = suites.load(suite).prompts
    return prompts.n


def test_methods_quote_the_constants_of_the_code() -> None:
    assert [phrase for phrase in phrases() if phrase not in METHODS] == []


@pytest.mark.parametrize("width", [64, 1024, 2048])
def test_frechet_distances_are_descriptive_below_the_n_that_methods_state(width: int) -> None:
    assert "Below n = 5 d (10,240 for Inception, 5,120 for DINOv2)" in METHODS
    assert small_sample_note(width, 5 * width - 1)
    assert not small_sample_note(width, 5 * width)


def test_methods_quote_the_error_rates_of_the_calibration() -> None:
    answers = json.loads((ROOT / "results" / "calibration" / "gate.json").read_text(encoding="utf-8"))["answers"]
    clip = "clip_score.scenes"
    margins = [f"a loss of one margin: {name}" for name in ("fd.scenes", clip, "preference.scenes", "scene_accuracy")]
    sequential_clip = [f"until the verdict, a loss of {margin} margins: {clip}" for margin in (0, 1, 3)]
    rows = [
        ["no difference, other noise"],
        ["no difference, other noise, 5 rounds of the same speed and memory"],
        margins,
        [f"a loss of one margin by 5 to 60 prompts in 512, at the rate that passes most: {clip}"],
        ["fault: half of the training", "fault: guidance 1.5 for 3"],
        ["10 % slower, 5 rounds", "10 % slower, 20 rounds"],
        sequential_clip,
    ]
    for names in rows:
        chosen = [answers[name] for name in names]
        cells = [
            ", ".join(f"{100 * answer['verdicts'].get(verdict, 0) / (answer['draws'] or 1):.1f}" for answer in chosen)
            for verdict in ("pass", "regressed")
        ]
        assert f"| {cells[0]} % | {cells[1]} % |" in METHODS
    shares = ", ".join(f"{answers[name]['share_of_prompts']:.2f}" for name in sequential_clip)
    assert f"({shares} of the prompts)" in METHODS
