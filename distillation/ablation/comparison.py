"""Results of an ablation: its arms compared with the recipe, as a table and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from distillation.ablation.experiment import BASE, Outcome


@dataclass(frozen=True)
class Arm:
    """Mean accuracy of an arm over seeds, and its mean paired difference to the unchanged recipe, each with its 95 % half width."""

    name: str
    seeds: int
    accuracy: float
    accuracy_half: float
    difference: float
    difference_half: float


def compare_arms(outcomes: Sequence[Outcome]) -> list[Arm]:
    """Summarise each arm; differences are paired by seed."""
    by_arm: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome.accuracy
    base = by_arm.get(BASE, {})
    arms = []
    for name, accuracies in by_arm.items():
        differences = [accuracies[seed] - base[seed] for seed in accuracies if seed in base]
        arms.append(Arm(name, len(accuracies), *_t_interval(list(accuracies.values())), *_t_interval(differences)))
    return arms


def _t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % t interval; NaN if there are too few values."""
    if not values:
        return float("nan"), float("nan")
    n = len(values)
    half = student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return float(np.mean(values)), float(half)


def markdown_table(arms: Sequence[Arm]) -> str:
    """The arms as a Markdown table."""
    rows = []
    for arm in arms:
        difference = "(the recipe)" if arm.name == BASE else _format(arm.difference, arm.difference_half, "+")
        rows.append(f"| {arm.name} | {arm.seeds} | {_format(arm.accuracy, arm.accuracy_half, '')} | {difference} |")
    return "\n".join(["| arm | seeds | scene accuracy | difference to the recipe |", "|---|---:|---:|---:|", *rows])


def _format(value: float, half: float, sign: str) -> str:
    if np.isnan(value):
        return "the recipe has no student with these seeds"
    return f"{value:{sign}.3f}" + (" (one seed)" if np.isnan(half) else f" ± {half:.3f}")


def plot_arms(outcomes: Sequence[Outcome], path: Path) -> None:
    """Plot each arm's mean with its interval, each seed as a dot, and the unchanged recipe as a line, in the format of `path`'s suffix."""
    arms = compare_arms(outcomes)
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(arms)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for y, arm in enumerate(arms):
        accuracies = [outcome.accuracy for outcome in outcomes if outcome.arm == arm.name]
        axes.plot(accuracies, [y + 0.16] * len(accuracies), ".", color="#999999", zorder=1)
        half = 0.0 if np.isnan(arm.accuracy_half) else arm.accuracy_half
        axes.errorbar(arm.accuracy, y, xerr=half, fmt="o", color="#d55e00" if arm.name == BASE else "#0072b2", capsize=3)  # Okabe and Ito
        if arm.name == BASE:
            axes.axvline(arm.accuracy, color="#d55e00", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("scene accuracy: mean and 95 % interval over seeds; grey: each seed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)
