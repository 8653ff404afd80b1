"""What an ablation found: arms against the recipe, as a table and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from distillation.ablation.experiment import BASE, Outcome


@dataclass(frozen=True)
class Arm:
    """A line of the table: mean accuracy over seeds, and the mean paired difference to the recipe as it is, with 95 % half widths."""

    name: str
    seeds: int
    accuracy: float
    accuracy_half: float
    difference: float
    difference_half: float


def table(outcomes: Sequence[Outcome]) -> list[Arm]:
    """One line an arm; differences are paired by seed."""
    by_arm: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome.accuracy
    base = by_arm.get(BASE, {})
    lines = []
    for name, found in by_arm.items():
        differences = [found[seed] - base[seed] for seed in found if seed in base]
        lines.append(Arm(name, len(found), *_interval(list(found.values())), *_interval(differences)))
    return lines


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and the half width of its 95 % t interval; NaN where there are too few values."""
    if not values:
        return float("nan"), float("nan")
    n = len(values)
    half = student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return float(np.mean(values)), float(half)


def markdown(lines: Sequence[Arm]) -> str:
    """The arms as a table."""
    rows = []
    for arm in lines:
        difference = "(the recipe)" if arm.name == BASE else _said(arm.difference, arm.difference_half, "+")
        rows.append(f"| {arm.name} | {arm.seeds} | {_said(arm.accuracy, arm.accuracy_half, '')} | {difference} |")
    return "\n".join(["| arm | seeds | scene accuracy | difference to the recipe |", "|---|---:|---:|---:|", *rows])


def _said(value: float, half: float, sign: str) -> str:
    if np.isnan(value):
        return "no student of the recipe with these seeds"
    return f"{value:{sign}.3f}" + (" (one seed)" if np.isnan(half) else f" ± {half:.3f}")


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Each arm's mean with its interval, each seed's student as a dot, and the recipe as it is as a line; a PNG, or what the suffix says."""
    lines = table(outcomes)
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(lines)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(lines):
        seeds = [outcome.accuracy for outcome in outcomes if outcome.arm == arm.name]
        axes.plot(seeds, [place + 0.16] * len(seeds), ".", color="#999999", zorder=1)
        half = 0.0 if np.isnan(arm.accuracy_half) else arm.accuracy_half
        axes.errorbar(
            arm.accuracy, place, xerr=half, fmt="o", color="#d55e00" if arm.name == BASE else "#0072b2", capsize=3
        )  # Okabe and Ito
        if arm.name == BASE:
            axes.axvline(arm.accuracy, color="#d55e00", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(lines)), [arm.name for arm in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel("scene accuracy: mean and 95 % interval over seeds; grey: each seed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)
