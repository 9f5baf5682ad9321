"""What a run is: the settings that change its result, told apart from where things lie."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

LOCATION: Mapping[str, Any] = {"is_location": True}
"""Metadata of a dataclass field that says where something lies; its content is hashed instead."""

RESULT_FOLDERS = ("attention", "models", "data", "tasks")
RESULT_FILES = ("contract.py", "cost.py", "loader.py", "macs.py", "memory.py", "run.py", "statistics.py", "timing.py")
"""Where the code stands that decides what a result is; the rest of the package only keeps and shows it."""


def settings(configured: object) -> dict[str, Any]:
    """The class and the fields of a configured dataclass, without those that only say where something lies."""
    if not is_dataclass(configured):
        raise TypeError(f"{type(configured).__qualname__} must be a dataclass: its fields are its settings")
    values = {f.name: getattr(configured, f.name) for f in fields(configured) if not f.metadata.get("is_location")}
    return {"class": f"{type(configured).__module__}.{type(configured).__qualname__}", **values}


def digest(value: object) -> str:
    """A hash of plain values: the same for equal values on any machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_code(configured: Iterable[object]) -> str:
    """A hash over the sources that decide a result: fnabench's own and the files of classes from elsewhere."""
    import fnabench.tasks

    package = Path(__file__).parent
    folders = [package / name for name in RESULT_FOLDERS[:-1]] + [Path(p) for p in fnabench.tasks.__path__]
    files = {path for folder in folders for path in folder.rglob("*.py")} | {package / name for name in RESULT_FILES}
    own = sorted(files, key=lambda path: (path.parent.name, path.name))
    foreign = sorted({Path(inspect.getfile(type(each))) for each in configured} - files)
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in own + foreign])


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be part of a key")
