"""Validation of the TOML tables that people write: a misspelt key is an error that suggests the nearest known one."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from sdbench.errors import UserError, unknown_name


class Table(BaseModel):
    """Base of all tables: immutable; an unknown key is an error, as are NaN and infinity, which TOML and JSON readers accept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


T = TypeVar("T", bound=Table)


def validate(kind: type[T], content: dict[str, Any], where: str, internal: Mapping[str, set[str]] = MappingProxyType({})) -> T:
    """Validate the content of a file and return it as a table.

    Args:
        where: name of the file, for errors.
        internal: nested table -> its keys that only the program writes; here they are unknown.

    Raises:
        UserError: a key is misspelt, internal or missing, or a value is out of range or of another type.
    """
    for table, keys in internal.items():
        if isinstance(nested := content.get(table), dict) and (stated := keys & nested.keys()):
            raise _unknown_key(kind, [table], min(stated), where, internal)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a misspelt key before the one missing because of it
        *parents, key = first["loc"] or ("",)
        if first["type"] == "extra_forbidden":
            raise _unknown_key(kind, parents, str(key), where, internal) from error
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            known = re.findall(r"'(.*?)'", first["ctx"]["expected"])
            raise UserError(f"{where}: {'.'.join(map(str, first['loc']))}: {unknown_name('value', first['input'], known)}") from error
        found = "" if isinstance(first["input"], dict) else f" (found {first['input']!r})"  # a whole table would be too long
        raise UserError(f"{where}: {_message(first)}{found}") from error


def read_toml(kind: type[T], path: Path, where: str) -> T:
    """Read a TOML file and validate its content; see `validate`.

    Raises:
        UserError: the file cannot be read, is not valid TOML, or is not valid as this table.
    """
    return validate(kind, parse_toml(path, where), where)


def parse_toml(path: Path, where: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        UserError: the file cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # drops the byte order mark that some editors write
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise UserError(f"{where} is not valid TOML: {error}") from error


def error_message(error: Exception) -> str:
    """The message of an error; of pydantic's several findings only the first, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    return _message(error.errors()[0])


def _message(finding: Mapping[str, Any]) -> str:
    """A finding of pydantic, without what it adds: types in the path, and `Value error, ` before the messages of our validators."""
    path = ".".join(str(key) for key in finding["loc"] if "[" not in str(key))  # such as `tuple[int, ...]`
    return ": ".join(filter(None, [path, finding["msg"].removeprefix("Value error, ")]))


def _unknown_key(kind: type[Table], parents: Sequence[str | int], key: str, where: str, internal: Mapping[str, set[str]]) -> UserError:
    path = ".".join(map(str, parents))
    known = {*_known_keys(kind, parents)} - internal.get(path, set())
    return UserError(f"{where}: {unknown_name(f'key in [{path}]' if path else 'key', key, known)}")


def _known_keys(kind: Any, parents: Sequence[str | int]) -> list[str]:
    """The keys of the table nested in `kind` at the path `parents`, which consists of field names, dictionary keys and list indices."""
    for parent in parents:
        kind = kind.model_fields[parent].annotation if hasattr(kind, "model_fields") else get_args(kind)[isinstance(parent, str)]
        kind = get_args(kind)[0] if type(None) in get_args(kind) else kind  # `X | None`
    return list(kind.model_fields)
