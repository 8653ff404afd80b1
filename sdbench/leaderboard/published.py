"""Numbers published elsewhere (`published.toml`, each with its source), shown beside measured numbers and never in their place."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from sdbench.tables import Grid
from sdbench.validation import Table

_DATA = Path(__file__).with_name("published.toml")
Name = Literal["sdxl", "ssd-1b", "vega"]
_COLUMNS: dict[Name, str] = {"sdxl": "SDXL", "ssd-1b": "SSD-1B", "vega": "Vega"}
_Text = Annotated[str, StringConstraints(min_length=1)]


class Claim(Table):
    """One published quantity.

    Attributes:
        what: the quantity.
        protocol: hardware, data and settings, as far as the source states them.
        source: who published it, and where.
        url: of that place.
        values: the number of each model as printed there, with its unit.
        numbers: for ratios, the number of each model, by our nearest probe. The inner table is empty where only words were published;
            the outer one where nothing of the kind is measured here, or there is no number of SDXL.
    """

    what: _Text
    protocol: _Text
    source: _Text
    url: Annotated[str, StringConstraints(pattern=r"^https://\S+$")]
    values: dict[Name, _Text]
    numbers: dict[str, dict[Name, float]] = Field(default_factory=dict)


def load_claims() -> list[Claim]:
    """Load all published quantities, in the order of the file."""
    return [Claim.model_validate(claim) for claim in tomllib.loads(_DATA.read_text(encoding="utf-8"))["claim"]]


def grid(link: Callable[[Claim], str]) -> Grid:
    """The published numbers as a table; "not found" where a source has none for that model.

    Args:
        link: makes the cell of a claim's source.
    """
    header = ("what", *_COLUMNS.values(), "protocol", "source")
    lines = [
        (claim.what, *(claim.values.get(name, "not found") for name in _COLUMNS), claim.protocol, link(claim)) for claim in load_claims()
    ]
    return Grid(header, tuple(lines))
