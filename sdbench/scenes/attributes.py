"""The attributes of a layout as class indices, and the heads that predict them.

A layout has an axis (single, row, column), a background, and one or two things, each with a size, a colour and a shape.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdbench.scenes.grammar import BACKGROUNDS, COLOURS, SHAPES, SIZES, Layout, Thing

AXES = ("single", "row", "column")
VOCABULARY: dict[str, tuple[str, ...]] = {
    "axis": AXES,
    "background": tuple(BACKGROUNDS),
    **{f"{kind}_{place}": words for place in (0, 1) for kind, words in (("size", SIZES), ("colour", tuple(COLOURS)), ("shape", SHAPES))},
}
IGNORED = -100  # label of a missing second thing, which torch's cross entropy ignores


def labels(layouts: Sequence[Layout]) -> dict[str, Tensor]:
    """The class indices of the layouts by attribute name, N int64 each; `IGNORED` if a layout has no second thing."""
    return {name: torch.tensor([_label(layout, name) for layout in layouts]) for name in VOCABULARY}


def _label(layout: Layout, name: str) -> int:
    if name in ("axis", "background"):
        return VOCABULARY[name].index(getattr(layout, name))
    kind, place = name.split("_")
    return VOCABULARY[name].index(getattr(layout.things[int(place)], kind)) if int(place) < len(layout.things) else IGNORED


class AttributeHeads(nn.Module):
    """A linear classifier for each attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in VOCABULARY.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Classify features, N x width; returns logits by attribute name, N x classes each."""
        return {name: head(features) for name, head in self.heads.items()}


def attribute_loss(logits: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    """The cross entropy, averaged over the attributes; `IGNORED` labels do not count."""
    return torch.stack([F.cross_entropy(logits[name], truth[name].to(logits[name].device)) for name in VOCABULARY]).mean()


def read_layouts(logits: dict[str, Tensor]) -> list[Layout]:
    """The most likely layout for each row of the logits."""
    chosen = {name: [VOCABULARY[name][k] for k in values.argmax(1).tolist()] for name, values in logits.items()}
    layouts = []
    for row, axis in enumerate(chosen["axis"]):
        places = (0,) if axis == "single" else (0, 1)
        things = tuple(Thing(*(chosen[f"{kind}_{place}"][row] for kind in ("size", "colour", "shape"))) for place in places)
        layouts.append(Layout(axis, things, chosen["background"][row]))
    return layouts
