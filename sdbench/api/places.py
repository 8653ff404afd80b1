"""The folders that a command reads and writes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, init=False)
class Places:
    """Where records, and the work behind them, are kept; strings become paths.

    Attributes:
        results: folder of records.
        runs: folder of images, features and rounds; by default `runs` within `results`.
    """

    results: Path
    runs: Path | None

    def __init__(self, results: str | Path = "results", runs: str | Path | None = None) -> None:
        object.__setattr__(self, "results", Path(results))
        object.__setattr__(self, "runs", Path(runs) if runs else None)

    @property
    def work(self) -> Path:
        """The folder of images, features and rounds."""
        return self.runs or self.results / "runs"


NamedPlaces = Places | str | Path  # text or a path is the folder of results


def as_places(named: NamedPlaces) -> Places:
    """The places themselves, where only the folder of results may have been named."""
    return named if isinstance(named, Places) else Places(named)
