"""The folders that a command reads and writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where records, and the work behind them, are kept.

    Attributes:
        results: folder of records.
        runs: folder of images, features and rounds; by default `runs` within `results`.
    """

    results: Path = Path("results")
    runs: Path | None = None

    @property
    def work(self) -> Path:
        """The folder of images, features and rounds."""
        return self.runs or self.results / "runs"
