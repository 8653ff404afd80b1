"""Per-image scores of a record."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sdbench.arrays import F64


class Scores:
    """Per-image columns of a record, (images,) each: `prompt_id`, `sample`, the `prompt` where it was kept, a float64 for each metric."""

    def __init__(
        self, prompt_ids: Sequence[str], samples: Sequence[int], columns: Mapping[str, F64], prompts: Sequence[str] | None = None
    ) -> None:
        self.prompt_ids, self.samples, self.columns = tuple(prompt_ids), tuple(samples), dict(columns)
        self.prompts = None if prompts is None else tuple(prompts)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(prompt id, sample index) of each row."""
        return list(zip(self.prompt_ids, self.samples, strict=True))

    @property
    def image_names(self) -> list[str]:
        """What each row's image is called in the record: its prompt's id, with the sample index behind it from the second sample on."""
        return [f"{prompt_id}.{sample}" if sample else prompt_id for prompt_id, sample in self.keys]

    @property
    def prompt_texts(self) -> list[str]:
        """The prompt of each row, or its id where the record lacks the text; from the second sample on, with the sample's number."""
        texts = zip(self.prompts or self.prompt_ids, self.samples, strict=True)
        return [f"{text} (sample {sample + 1})" if sample else text for text, sample in texts]

    def column_for(self, keys: Sequence[tuple[str, int]], name: str) -> F64:
        """A column in the order of these keys, (keys,), to be paired with another record's.

        Raises:
            KeyError: there is no such column, or no row of a key.
        """
        by_key = dict(zip(self.keys, self.columns[name].tolist(), strict=True))
        return np.array([by_key[key] for key in keys], np.float64)

    def write(self, path: Path) -> None:
        """Save as Parquet.

        Raises:
            OSError: it cannot be written.
        """
        table = {
            "prompt_id": self.prompt_ids,
            "sample": self.samples,
            **({} if self.prompts is None else {"prompt": self.prompts}),
            **{name: np.asarray(self.columns[name]) for name in sorted(self.columns)},
        }
        pq.write_table(pa.table(table), path)

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Load from Parquet.

        Raises:
            ValueError: a column is missing or of another type than `write` gives it, or the file is damaged.
            OSError: it cannot be read.
        """
        with pq.ParquetFile(path) as file:  # pq.read_table and to_numpy would import pandas, which takes a second
            _check_columns(file, path.name)
            table = file.read().to_pydict()
        ids, samples, prompts = table.pop("prompt_id"), table.pop("sample"), table.pop("prompt", None)
        return cls(ids, samples, {name: np.array(column, np.float64) for name, column in table.items()}, prompts)


def _check_columns(file: pq.ParquetFile, name: str) -> None:
    text, numbers = (pa.types.is_string, "text"), (pa.types.is_floating, "floating-point numbers")
    expected = {"prompt_id": text, "prompt": text, "sample": (pa.types.is_integer, "whole numbers")}
    if missing := {"prompt_id", "sample"}.difference(file.schema_arrow.names):
        raise ValueError(f"{name} has no column {min(missing)!r}")
    for field in file.schema_arrow:
        is_right, kind = expected.get(field.name, numbers)
        if file.metadata.num_rows and not is_right(field.type):  # columns without rows have no type
            raise ValueError(f"column {field.name!r} of {name} holds {field.type}, expected {kind}")


def mean_per_prompt(prompt_ids: Sequence[str], values: F64) -> tuple[npt.NDArray[np.str_], F64]:
    """The prompt ids, sorted and each once, and the mean value of each prompt's samples, (prompts,) both.

    Statistics over prompts start from these means, because the samples of one prompt are not independent.
    """
    prompts, row = np.unique(np.asarray(prompt_ids), return_inverse=True)
    return prompts, np.bincount(row, values) / np.bincount(row)
