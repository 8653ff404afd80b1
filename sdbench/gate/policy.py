"""The gate's policy file: which metrics it weighs, in which direction, and how much loss of each it accepts."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from sdbench.errors import UserError
from sdbench.records import Record
from sdbench.suites import base_name
from sdbench.validation import Table, read_toml


class Rule(Table):
    """How the gate weighs one metric.

    Attributes:
        direction: which direction is better; must agree with the records.
        margin: the acceptable loss, in the metric's unit for scores and set metrics, as a share of the baseline for probes and
            counts (0.05 = 5 %).
        required: False lets the gate skip a probe that cannot be compared because the machines are of different classes or do not
            have it; the report says so. A value that is missing, NaN or failed is never skipped.
        noise: the noise floor behind the margin, measured by `sdbench noise` or scaled from a published figure: the standard deviation
            of the difference between two runs of one model under different noise.
    """

    direction: Literal["higher", "lower"]
    margin: float = Field(ge=0, allow_inf_nan=False)
    required: bool
    noise: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_margin(self) -> Self:
        if self.noise is not None and self.margin < self.noise:
            raise ValueError(
                f"margin {self.margin:g} is below the noise floor {self.noise:g}: a model would lose more than that against itself"
            )
        return self


class Policy(Table):
    """The content of `gate.toml`.

    Attributes:
        alpha: chance of a wrong verdict: of each one-sided bound and, after Holm's correction, of any wrong "regressed".
        suites: the rules, by name of the suite and of the metric.
    """

    alpha: float = Field(gt=0, lt=0.5)
    suites: dict[str, dict[str, Rule]]
    _file: Path | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        """The policy's file, or that it was made in Python."""
        return str(self._file or "made in Python")

    def with_file(self, path: Path) -> Self:
        """Remember the file that the policy was read from, and return the policy."""
        self._file = path
        return self

    def table_name(self, suite: str) -> str:
        """The table that weighs a suite: its own, or for `<name>-custom` and `<name>-sequential` that of the suite it was made from."""
        return suite if suite in self.suites else base_name(suite)

    def rules(self, suite: str) -> dict[str, Rule]:
        """The rules for a suite, by metric.

        Raises:
            UserError: the policy has no rules for it.
        """
        if (table := self.table_name(suite)) not in self.suites:
            raise UserError(
                f"policy {self.name} has no table [suites.{table}], so it weighs no metric of suite {suite!r} (it has "
                f"{', '.join(sorted(self.suites))}); add one, there or in a file of your own: --policy FILE, or ./suites/gate.toml"
            )
        if not self.suites[table]:
            raise UserError(f"policy {self.name} names no metric in [suites.{table}], so every candidate would pass; name at least one")
        return self.suites[table]

    def absent_from(self, record: Record) -> list[str]:
        """The metrics that are required under a record's suite and have no value in the record.

        Raises:
            UserError: see `rules`.
        """
        required = (name for name, rule in self.rules(record.suite.name).items() if rule.required)
        return [name for name in required if not ((value := record.value(name)) and value.state == "ok")]


def load(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        UserError: unreadable, not TOML, or with a key or value that a policy cannot have.
    """
    return read_toml(Policy, path, f"policy {path}").with_file(path)
