"""Where weights come from: a local file, or a hub file pinned to a revision."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fnabench.errors import BadInputError, MissingError

HUB_PREFIX = "hf-hub:"


def is_hub_id(checkpoint: str) -> bool:
    """Whether a checkpoint names a hub repository rather than a local file."""
    return checkpoint.startswith(HUB_PREFIX)


def pinned(checkpoint: str, revision: str | None) -> str:
    """The checkpoint with its revision, where it is a hub id that has one."""
    return f"{checkpoint}@{revision}" if revision and is_hub_id(checkpoint) and "@" not in checkpoint else checkpoint


def find_weights(checkpoint: str, hub_file: str = "model.safetensors") -> Path:
    """The local path of a checkpoint: itself, or a file of a hub repository from the cache or the network.

    A hub id reads hf-hub:owner/name@revision; without a revision it is refused, since its content could change.
    """
    if is_hub_id(checkpoint):
        return _find_on_hub(checkpoint.removeprefix(HUB_PREFIX), hub_file)
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise MissingError(
            f"model.checkpoint={checkpoint} is not a file; put the weights there, or set FNABENCH_ASSETS to the folder "
            f"that holds them, or give {HUB_PREFIX}owner/name@revision"
        )
    return path


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_on_hub(hub_id: str, hub_file: str) -> Path:
    if not (match := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w.-]+)", hub_id)):
        raise BadInputError(
            f"model.checkpoint={HUB_PREFIX}{hub_id} is not pinned; write {HUB_PREFIX}owner/name@<commit or tag> "
            f"or give model.revision=<commit>, one of those at https://huggingface.co/{hub_id.partition('@')[0]}/commits/main"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, revision = match.groups()
    try:
        return Path(hf_hub_download(repository, hub_file, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise MissingError(
            f"{hub_file} of {repository} at revision {revision} is not in the local cache and cannot be downloaded "
            f"({type(error).__name__}); where there is a network, run: hf download {repository} {hub_file} "
            f"--revision {revision}{_terms(error, repository)}"
        ) from error


def _terms(error: Exception, repository: str) -> str:
    """What to do first where the owner of a repository asks for it."""
    from huggingface_hub.errors import GatedRepoError

    if not isinstance(error, GatedRepoError):
        return ""
    return f" after accepting its terms at https://huggingface.co/{repository} and: hf auth login"
