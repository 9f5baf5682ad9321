"""How the hub is asked: for what is pinned, and without its library's warnings."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

BRANCHES = ("main", "master", "HEAD")


def is_pin(revision: str | None) -> bool:
    """Whether a revision can be a commit or a tag; what moves on is none."""
    return revision is not None and revision not in BRANCHES and re.fullmatch(r"[\w.-]+", revision) is not None


def newest_commit(repository: str) -> str:
    """How to find the commit that a repository is at; those of data sets begin with datasets/."""
    address = f"https://huggingface.co/{repository}"
    return f"git ls-remote {address} main prints the newest commit, {address}/commits/main lists all"


@contextmanager
def quiet_hub() -> Iterator[None]:
    """huggingface_hub tells nothing but errors: that it tries again without a network is no news."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    verbosity = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(verbosity)
