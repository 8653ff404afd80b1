"""Tables of the files that people write, checked: a misspelt key is an error with the nearest right one."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from sdbench.errors import UserError, unknown


class Table(BaseModel):
    """A table that has no keys but its own, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


T = TypeVar("T", bound=Table)


def validated(kind: type[T], content: dict[str, Any], where: str) -> T:
    """`content` as `kind`.

    Args:
        kind: of table.
        content: what a file holds.
        where: which file, for errors.

    Raises:
        UserError: a key is misspelt or missing, or a value is out of range.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a misspelt key before what is missing for it
        *parents, key = first["loc"] or ("",)
        path = ".".join(map(str, parents))
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: {unknown(f'key in [{path}]' if path else 'key', str(key), _keys(kind, parents))}") from error
        found = "" if isinstance(first["input"], dict) else f" (found {first['input']!r})"  # not all of a table for what it lacks
        raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}{found}") from error


def said(error: Exception) -> str:
    """What an error says, on one line: of the several things that pydantic may find, the first."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def _keys(kind: Any, parents: Sequence[str | int]) -> list[str]:
    """Of the table at a place within another: by names of fields, keys of dictionaries, and numbers in lists."""
    for parent in parents:
        kind = kind.model_fields[parent].annotation if hasattr(kind, "model_fields") else get_args(kind)[isinstance(parent, str)]
        kind = get_args(kind)[0] if type(None) in get_args(kind) else kind  # `X | None`
    return list(kind.model_fields)
