"""Results of an ablation: its arms compared with the recipe, as a table and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from distillation.ablation.experiment import BASE, Outcome
from sdbench.stats.intervals import Estimate, mean_interval


@dataclass(frozen=True)
class Arm:
    """Mean accuracy of an arm over seeds, and its mean paired difference to the unchanged recipe; None if they have no seed in common."""

    name: str
    accuracy: Estimate
    difference: Estimate | None


def compare_arms(outcomes: Sequence[Outcome]) -> list[Arm]:
    """Summarise each arm; differences are paired by seed."""
    by_arm: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome.accuracy
    base = by_arm.get(BASE, {})
    arms = []
    for name, accuracies in by_arm.items():
        differences = [accuracies[seed] - base[seed] for seed in accuracies if seed in base]
        arms.append(Arm(name, mean_interval(list(accuracies.values())), mean_interval(differences) if differences else None))
    return arms


def markdown_table(arms: Sequence[Arm]) -> str:
    """The arms as a Markdown table."""
    rows = []
    for arm in arms:
        difference = "(the recipe)" if arm.name == BASE else _format(arm.difference, "+")
        rows.append(f"| {arm.name} | {arm.accuracy.n} | {_format(arm.accuracy)} | {difference} |")
    return "\n".join(["| arm | seeds | scene accuracy | difference to the recipe |", "|---|---:|---:|---:|", *rows])


def _format(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "the recipe has no student with these seeds"
    return f"{estimate.value:{sign}.3f} " + (f"± {_half_width(estimate):.3f}" if estimate.has_interval else "(one seed)")


def _half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def plot_arms(outcomes: Sequence[Outcome], path: Path) -> None:
    """Plot each arm's mean with its interval, each seed as a dot, and the unchanged recipe as a line, in the format of `path`'s suffix."""
    arms = compare_arms(outcomes)
    figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(arms)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for y, arm in enumerate(arms):
        accuracies = [outcome.accuracy for outcome in outcomes if outcome.arm == arm.name]
        axes.plot(accuracies, [y + 0.16] * len(accuracies), ".", color="#999999", zorder=1)
        mean, half = arm.accuracy.value, _half_width(arm.accuracy)
        axes.errorbar(mean, y, xerr=half, fmt="o", color="#d55e00" if arm.name == BASE else "#0072b2", capsize=3)  # Okabe and Ito
        if arm.name == BASE:
            axes.axvline(mean, color="#d55e00", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel("scene accuracy: mean and 95 % interval over seeds; grey: each seed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)
