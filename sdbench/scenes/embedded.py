"""The shipped weights of the embedded family, and the manifest of their digests and of how they were made."""

import json
from pathlib import Path
from typing import Any

from sdbench.disk import file_digest
from sdbench.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = WEIGHTS / "manifest.json"


def read_manifest() -> dict[str, Any]:
    """Read the manifest: digests of the files, schedule and scores of each network, and the commit and versions that made them.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    try:
        loaded: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
        loaded["files"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"embedded weights: {MANIFEST} is not a manifest ({type(error).__name__}: {error}); reinstall sdbench, or check out the file "
            "again"
        ) from error
    return loaded


def changed_files(within: str = "") -> list[str]:
    """The names of the shipped files that are missing or changed: of all, or of the file or folder `within`.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    files = {name: expected for name, expected in read_manifest()["files"].items() if not within or f"{name}/".startswith(f"{within}/")}
    return [name for name, expected in files.items() if not (WEIGHTS / name).is_file() or file_digest(WEIGHTS / name) != expected]


def verified_path(name: str) -> Path:
    """Check the digests of a shipped file or folder, and return its path.

    Raises:
        UserError: a file is missing or was changed, or the manifest is missing or damaged.
    """
    if changed := changed_files(name):
        raise UserError(f"embedded weights {WEIGHTS / changed[0]} are missing or changed; reinstall sdbench, or check out the file again")
    return WEIGHTS / name
