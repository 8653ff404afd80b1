"""Plot of a sensitivity: blocks from left to right in the order in which they run, timesteps upwards."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from distillation.cut import MIDDLE_ATTENTION
from distillation.sensitivity.removal import WHOLE_MIDDLE, Sensitivity

GAP = 1.5  # between attentions, in blocks
INK, GREY, PALE = "#222222", "#555555", "#dddddd"


def plot_sensitivity(sensitivity: Sensitivity, path: Path) -> None:
    """Write a PNG: above, the mean loss without each block with its standard error; below, the loss in each bin of timesteps."""
    figure = Figure(figsize=(15, 5.6), dpi=110, layout="constrained")
    means, heat = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    positions = list(_part_positions(sensitivity))
    _draw_means(means, sensitivity, positions)
    losses = np.concatenate([rows.ravel() for rows in sensitivity.by_bin.values()])
    norm = LogNorm(losses[losses > 0].min(), losses.max())
    edges = [0, *(last + 1 for _, last in sensitivity.timesteps)]
    for part, start in positions:
        rows = sensitivity.by_bin[part].T  # bins x blocks
        mesh = heat.pcolormesh(np.arange(rows.shape[1] + 1) + start - 0.5, edges, rows, norm=norm, cmap="viridis")
    figure.colorbar(mesh, ax=heat, label="loss in the bin", pad=0.01, aspect=12)
    _label(heat, sensitivity, positions, edges)
    figure.savefig(path, metadata={"Software": None})


def _part_positions(sensitivity: Sensitivity) -> Iterator[tuple[str, float]]:
    """Parts in the order in which the UNet runs them, each with the x of its first block; the whole middle follows its blocks."""
    sides = ("down", "mid", "up")
    start = 0.0
    for part in sorted(sensitivity.losses, key=lambda part: (sides.index(part.split("_")[0]), part == WHOLE_MIDDLE)):
        yield part, start
        start += len(sensitivity.losses[part]) + (GAP / 2 if part == MIDDLE_ATTENTION else GAP)


def _draw_means(axes: Axes, sensitivity: Sensitivity, positions: list[tuple[str, float]]) -> None:
    for part, start in positions:
        mean, error = sensitivity.mean[part], sensitivity.error[part]
        axes.errorbar(
            np.arange(len(mean)) + start,
            mean,
            np.minimum(error, 0.999 * mean),
            fmt="D" if part == WHOLE_MIDDLE else "o",
            markersize=4,
            color=INK,
            elinewidth=1,
            capsize=2,
        )
    axes.set_yscale("log")
    axes.set_ylabel("mean loss ± s.e.")
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    whole = "; all: without the middle's whole attention and second resnet" if WHOLE_MIDDLE in sensitivity.losses else ""
    title = f"What the output of {sensitivity.teacher} loses without one transformer block"
    axes.set_title(title, loc="left", fontsize=13, pad=26)
    axes.text(
        0, 1.06, f"mean squared change of the UNet's output, {sensitivity.n_images} images{whole}", transform=axes.transAxes, color=GREY
    )


def _label(axes: Axes, sensitivity: Sensitivity, positions: list[tuple[str, float]], edges: list[int]) -> None:
    axes.set_ylabel("training timestep\n(clean → noise)")
    axes.set_yticks([edge for number, edge in enumerate(edges) if number % max(1, len(edges) // 5) == 0])
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="both", length=0)
    numbers = {
        start + block: "all" if part == WHOLE_MIDDLE else str(block)
        for part, start in positions
        for block in range(len(sensitivity.losses[part]))
    }
    axes.set_xticks(list(numbers), list(numbers.values()), fontsize=7.5)
    for part, start in positions:
        if part != WHOLE_MIDDLE:
            middle = start + (len(sensitivity.losses[part]) - 1) / 2
            axes.text(
                middle, -0.11, _short_name(part), transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8.5, color=INK
            )
    axes.set_xlim(-0.6, positions[-1][1] + len(sensitivity.losses[positions[-1][0]]) - 0.4)


def _short_name(part: str) -> str:
    """Shorten `down_blocks.1.attentions.0` to `down 1` and `attn 0`, on two lines."""
    side, *numbers = part.replace("_blocks", "").replace("_block", "").replace(".attentions", "").split(".")
    return f"{side} {numbers[0]}\nattn {numbers[1]}" if len(numbers) > 1 else f"{side}\nattn {numbers[0]}"
