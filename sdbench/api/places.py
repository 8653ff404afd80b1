"""The folders that a command reads and writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Places:
    """Where records, and the work behind them, are kept; strings become paths.

    Attributes:
        results: folder of records.
        runs: folder of images, features and rounds; by default `runs` within `results`.
    """

    results: Path = Path("results")
    runs: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", Path(self.results))
        object.__setattr__(self, "runs", self.runs and Path(self.runs))

    @property
    def work(self) -> Path:
        """The folder of images, features and rounds."""
        return self.runs or self.results / "runs"
