"""The gate's policy file: which metrics it weighs, in which direction, and how much loss of each is acceptable."""

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from sdbench.errors import UserError
from sdbench.validation import Table, validate


class Rule(Table):
    """How the gate weighs one metric.

    Attributes:
        direction: where better lies; the records must say the same.
        margin: the loss one is ready to accept: in the metric's unit for scores and set metrics, a share of the
            baseline for probes and counts (0.05 = 5 %).
        required: False lets the gate skip, and say so, a probe that cannot be compared because the machines are of
            another class or do not have it. A value that is missing, NaN or failed is never skipped.
        noise: the floor that the margin stands on, as `sdbench noise` found it or scaled from a published one: the standard
            deviation of the difference between two runs of one model under other noise.
    """

    direction: Literal["higher", "lower"]
    margin: float = Field(ge=0, allow_inf_nan=False)
    required: bool
    noise: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _above_the_floor(self) -> Self:
        if self.noise is not None and self.margin < self.noise:
            raise ValueError(f"margin {self.margin:g} lies below the noise floor {self.noise:g}: a model would lose more against itself")
        return self


class Policy(Table):
    """`gate.toml`.

    Attributes:
        alpha: chance of a wrong verdict, of each one-sided bound and, after Holm, of any wrong "regressed".
        suites: suite name -> metric name -> rule.
    """

    alpha: float = Field(gt=0, lt=0.5)
    suites: dict[str, dict[str, Rule]]
    _file: Path | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        """Its file; one made in Python has none."""
        return str(self._file or "made in Python")

    def of_file(self, path: Path) -> Self:
        """The policy, which knows its file from now on."""
        self._file = path
        return self

    def table(self, suite: str) -> str:
        """The suite by whose table this one is weighed: itself, or what it was made from, `<name>-custom` or `<name>-sequential`."""
        return suite if suite in self.suites else suite.removesuffix("-sequential").removesuffix("-custom")

    def rules(self, suite: str) -> dict[str, Rule]:
        """What is weighed for this suite.

        Raises:
            UserError: nothing is.
        """
        if (own := self.table(suite)) not in self.suites:
            raise UserError(
                f"policy {self.name} has no table [suites.{own}], so it weighs nothing of suite {suite!r} (it has {', '.join(sorted(self.suites))}); write "
                "one, there or in a file of your own: --policy FILE, or ./suites/gate.toml"
            )
        if not self.suites[own]:
            raise UserError(
                f"policy {self.name} names no metric in [suites.{own}], so it could only wave that suite through; name at least one"
            )
        return self.suites[own]


def load(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        UserError: unreadable, not TOML, or with a key or value that a policy cannot have.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the gate's policy {path}: {error}") from error
    return validate(Policy, content, f"policy {path}").of_file(path)
