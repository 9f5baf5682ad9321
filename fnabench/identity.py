"""What a run is: the settings that change its result, told apart from where things lie."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

LOCATION: Mapping[str, Any] = {"is_location": True}
"""Metadata of a dataclass field that says where something lies; its content is hashed instead."""

NOT_IN_KEY = (
    "__init__.py", "__main__.py", "cli.py", "configurations.py", "leaderboard.py", "leaderboard_tables.py",
    "progress.py", "references.py", "report.py", "setting_types.py", "store.py", "surgery.py", "tasks.py",
    "trackers.py", "verify.py", "bench", "figures", "train",
)  # fmt: skip
"""Files and folders of the package that start, keep and show results, or say where the configurations lie; all the
rest decides what a result is."""


def settings(configured: object) -> dict[str, Any]:
    """The class and the fields of a configured dataclass, those inside it too, but none that only says where something
    lies."""
    if not is_dataclass(configured):
        raise TypeError(f"{type(configured).__qualname__} must be a dataclass: its fields are its settings")
    values = {f.name: getattr(configured, f.name) for f in fields(configured) if not f.metadata.get("is_location")}
    values |= {name: settings(value) for name, value in values.items() if is_dataclass(value)}
    return {"class": f"{type(configured).__module__}.{type(configured).__qualname__}", **values}


def shown(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings for people: without the class, and those of what is inside by a dotted name."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= shown(value, f"{prefix}{name}.")
        elif name != "class":
            values[prefix + name] = value
    return values


def locations(configured: object) -> list[str]:
    """The fields of a configured dataclass that only say where something lies."""
    if not is_dataclass(configured):
        return []
    return [f.name for f in fields(configured) if f.metadata.get("is_location")]


def digest(value: object) -> str:
    """A hash of plain values: the same for equal values on any machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_code(configured: Iterable[object]) -> str:
    """A hash over the sources that decide a result: fnabench's own, word lists too, and those of foreign classes."""
    import fnabench.tasks

    package = Path(__file__).parent
    top = [path for path in package.iterdir() if path.name not in NOT_IN_KEY and path.name != "tasks"]
    top += [Path(path) for path in fnabench.tasks.__path__]
    inside = [path for each in top for path in ([each] if each.is_file() else each.rglob("*"))]
    files = {path for path in inside if path.suffix in (".py", ".txt")}
    own = sorted(files, key=lambda path: (path.parent.name, path.name))
    classes = {type(each) for part in configured for each in _with_inner(part)}
    foreign = sorted({path for each in classes for path in _sources(each)} - files)
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in own + foreign])


def _sources(configured: type) -> set[Path]:
    """What a foreign class may be made of: all of its package, or all modules beside its own where that is in none; of
    the classes that it stands on too, unless they are installed."""
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    paths: set[Path] = set()
    for each in configured.__mro__:
        top = sys.modules[each.__module__.partition(".")[0]]
        file = getattr(sys.modules[each.__module__], "__file__", None)
        if top.__name__ == "fnabench" or file is None:
            continue
        if each is configured or not any(Path(file).is_relative_to(folder) for folder in installed):
            folders = [Path(folder) for folder in getattr(top, "__path__", ())]
            paths |= {path for folder in folders for path in folder.rglob("*.py")}
            paths |= set() if folders else set(Path(file).parent.glob("*.py"))
    return paths


def _with_inner(configured: object) -> list[object]:
    """A configured object and, if it is a dataclass, those inside it."""
    inner = [getattr(configured, f.name) for f in fields(configured)] if is_dataclass(configured) else []
    return [configured, *(each for value in inner if is_dataclass(value) for each in _with_inner(value))]


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be part of a key")
