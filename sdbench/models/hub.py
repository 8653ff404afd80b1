"""Looks into the Hub's cache on this disk. Nothing here touches the network; `sdbench.assets` downloads."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError


def cached_snapshot(repository: str, revision: str | None = None, kind: str = "model") -> Path | None:
    """The folder of a downloaded snapshot of a repository, by default the newest, complete or not; None if there is none.

    Args:
        kind: "model" or "dataset".
    """
    try:
        return Path(snapshot_download(repository, revision=revision, repo_type=kind, local_files_only=True))
    except LocalEntryNotFoundError as error:
        incomplete = getattr(error, "snapshot_path", None)  # a snapshot without some files, such as those that were never requested
        return Path(incomplete) if incomplete else None
    except HFValidationError:
        return None
