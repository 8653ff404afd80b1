"""What of the Hub lies on this disk. Nothing here touches the network: `sdbench.assets` fetches."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError


def cached(repository: str, revision: str | None = None, kind: str = "model") -> Path | None:
    """Folder of the newest fetched snapshot of a repository ("model" or "dataset"), complete or not; None where there is none."""
    try:
        return Path(snapshot_download(repository, revision=revision, repo_type=kind, local_files_only=True))
    except LocalEntryNotFoundError as error:
        found = getattr(error, "snapshot_path", None)  # of a snapshot that lacks files, such as those nobody asked for
        return Path(found) if found else None
    except HFValidationError:
        return None
