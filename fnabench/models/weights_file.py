"""Where weights come from: a local file or folder, or what a pinned revision of a hub repository holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fnabench.errors import BadInputError, MissingError, reason_of
from fnabench.hub_access import is_pin, newest_commit, quiet_hub

HUB_PREFIX = "hf-hub:"
FILES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
"""How files of weights end."""
SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What a repository of transformers holds beside its weights."""


def is_hub_id(checkpoint: str) -> bool:
    """Whether a checkpoint names a hub repository rather than a local file."""
    return checkpoint.startswith(HUB_PREFIX)


def pinned(checkpoint: str, revision: str | None) -> str:
    """The checkpoint with its revision, where it is a hub id that has one; owner/name with a revision is a hub id too,
    unless it is or could be a file or folder here."""
    path, named = Path(checkpoint), checkpoint if "@" in checkpoint or not revision else f"{checkpoint}@{revision}"
    is_local = path.exists() or path.suffix in FILES
    if not is_local and re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+", named):
        return HUB_PREFIX + named
    return named if is_hub_id(checkpoint) else checkpoint


def find_weights(checkpoint: str, hub_file: str = "model.safetensors", original: str = "") -> Path:
    """The local path of a checkpoint: itself, or a file of a hub repository from the cache or the network.

    A hub id reads hf-hub:owner/name@revision; without a revision it is refused, since its content could change.
    `original` is the address of a file that will do too.
    """
    if is_hub_id(checkpoint):
        return _find_on_hub(checkpoint, hub_file, original)
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


def find_folder(checkpoint: str, needed: Sequence[Sequence[str]], option: str = "model.checkpoint") -> Path:
    """The folder of a checkpoint of many files: itself, or a hub revision from the cache or else the network.

    Of each group of names one file must be there, and all files that an index of weights lists.
    """
    if not is_hub_id(checkpoint):
        folder = Path(checkpoint).expanduser()
        if not folder.is_dir():
            raise MissingError(
                f"{option}={checkpoint} is not a folder; give the one that holds the checkpoint, or "
                f"{HUB_PREFIX}owner/name@<commit>"
            )
        if lacking := _lacking(folder, needed):
            raise MissingError(
                f"{option}={checkpoint} lacks {lacking}; complete it, or give {HUB_PREFIX}owner/name@<commit>"
            )
        return folder
    from huggingface_hub import snapshot_download

    repository, revision = _split(checkpoint, option)
    weights = ("*.safetensors",)
    wanted = SMALL_FILES + (weights if any("safetensors" in name for group in needed for name in group) else ())
    reason: Exception | None = None
    for in_cache in (True, False):  # what is there needs no network
        try:
            with quiet_hub():
                found = snapshot_download(
                    repository, revision=revision, allow_patterns=list(wanted), local_files_only=in_cache
                )
        except _unreachable() as error:
            reason = error
            continue
        if not (lacking := _lacking(Path(found), needed)):
            return Path(found)
        reason = FileNotFoundError(lacking)
    patterns = " ".join(f"'{kind}'" for kind in SMALL_FILES + weights)
    raise MissingError(
        f"{repository} at revision {revision} is not whole in the local cache and cannot be downloaded "
        f"({type(reason).__name__}); where there is a network, run: hf download {repository} --include {patterns} "
        f"--revision {revision}{_terms(reason, repository)}"
    ) from reason


def load_pretrained(kind: Any, folder: Path, *, optional: str | None = None, **options: Any) -> Any:
    """The module that an auto class of transformers reads from a folder, in eval mode; BadInputError where its weights
    cannot be read, or lack a parameter whose name does not hold `optional`."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is told by us, and what is optional by nobody
    try:
        module, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise BadInputError(f"the weights in {folder} cannot be read: {reason_of(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(name for name in found["missing_keys"] if optional is None or optional not in name)
    if missing:
        raise BadInputError(f"the weights in {folder} lack {len(missing)} parameters, the first is {missing[0]}")
    return module.eval()


def _lacking(folder: Path, needed: Sequence[Sequence[str]]) -> str:
    """The first of the needed files that a folder has not; empty where it has all."""
    for group in needed:
        there = [name for name in group if (folder / name).is_file()]
        if not there:
            return " or ".join(group)
        if there[0].endswith(".index.json"):
            parts: set[str] = set(json.loads((folder / there[0]).read_text(encoding="utf-8"))["weight_map"].values())
            if missing := sorted(part for part in parts if not (folder / part).is_file()):
                return missing[0]
    return ""


def _split(checkpoint: str, option: str, original: str = "") -> tuple[str, str]:
    """Repository and revision of a hub id; BadInputError where it is not pinned."""
    repository, _, revision = checkpoint.removeprefix(HUB_PREFIX).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or not is_pin(revision):
        other = option.replace("checkpoint", "revision")
        raise BadInputError(
            f"{option}={checkpoint} is not pinned; write {HUB_PREFIX}owner/name@<commit or tag>"
            + (f" or give {other}=<commit>" if other != option else "")
            + f"; {newest_commit(repository)}"
            + (f"; or download {original} and give it as {option}=<file>" if original else "")
        )
    return repository, revision


def _find_on_hub(checkpoint: str, hub_file: str, original: str) -> Path:
    from huggingface_hub import hf_hub_download

    repository, revision = _split(checkpoint, "model.checkpoint", original)
    try:
        with quiet_hub():
            return Path(hf_hub_download(repository, hub_file, revision=revision))
    except _unreachable() as error:
        raise MissingError(
            f"{hub_file} of {repository} at revision {revision} is not in the local cache and cannot be downloaded "
            f"({type(error).__name__}); where there is a network, run: hf download {repository} {hub_file} "
            f"--revision {revision}{_terms(error, repository)}"
        ) from error


def _unreachable() -> tuple[type[Exception], ...]:
    """What goes wrong where the hub has not what is asked for, or cannot be asked."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError


def _terms(error: Exception | None, repository: str) -> str:
    """What to do first where the owner of a repository asks for it."""
    from huggingface_hub.errors import GatedRepoError

    if not isinstance(error, GatedRepoError):
        return ""
    return f" after accepting its terms at https://huggingface.co/{repository} and: hf auth login"
