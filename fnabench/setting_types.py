"""What settings there are, and of which type: a mistake is told before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from inspect import get_annotations
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from fnabench.errors import BadInputError

PARTS = ("task", "data", "model", "attention", "budget", "probe", "tracker")
"""What is chosen by name and built from a class."""
RUN_TYPES: dict[str, Any] = {
    "device": str,
    "dtype": str,
    "seed": int,
    "loader": {"batch_size": int, "num_workers": int | None, "num_processes": int | None},
    "results_dir": str,
    "rerun": bool,
    "format": str,
}
"""Of the settings that no part's constructor takes."""
TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (a number in two kinds of quotes: \"'1'\")",
    NoneType: "null",
}


def check_settings(cfg: DictConfig) -> None:
    """Refuse a setting that nothing takes, and a value that is not of the type which its constructor names."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    _refuse_unknown(values, ["hydra", *PARTS, "layers", *RUN_TYPES])
    for name in PARTS:
        if name != "budget" and "_target_" not in (values.get(name) or ()):
            raise BadInputError(f"{name} names no class; choose one by {name}=..., or leave it out for the default")
    if not isinstance(values["loader"], Mapping):
        raise BadInputError(f"loader={values['loader']} must be {', '.join(RUN_TYPES['loader'])}: loader.batch_size=16")
    _refuse_unknown(values["loader"], RUN_TYPES["loader"], "loader.")
    for name, value, type_ in _typed(values, RUN_TYPES):
        if value != "???" and not _is_a(value, type_):
            raise BadInputError(f"{name}={value} must be {_in_words(type_)}")
    if cfg.seed < 0:
        raise BadInputError(f"seed={cfg.seed} must be at least 0")


def not_known(name: str, allowed: Iterable[str]) -> str:
    """A mistake in one line: a name, and those that there are."""
    shown = ", ".join(each for each in allowed if each not in ("hydra", "_target_"))
    return f"{name} is not known; allowed: {shown or 'none'}"


def _refuse_unknown(values: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
    """What + has added; without it Hydra refuses by itself."""
    for name in values:
        if name not in known:
            raise BadInputError(not_known(f"{prefix}{name}", known))


def _typed(values: Mapping[str, Any], types: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value whose type is known: its full name, itself, its type."""
    for name, value in values.items():
        inner = types.get(name)
        if isinstance(value, Mapping) and not _is_plain(inner):
            yield from _typed(value, inner if isinstance(inner, Mapping) else _types_of(value), f"{prefix}{name}.")
        elif name in types:
            yield f"{prefix}{name}", value, types[name]


def _types_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """What the annotations of a part's class say, but for names that are there for a type checker alone."""
    types: dict[str, Any] = {}
    module, _, name = part.get("_target_", "builtins.object").rpartition(".")
    with suppress(ImportError, AttributeError, ValueError):  # which Hydra tells when it builds the part
        for base in reversed(getattr(getattr(import_module(module), name), "__mro__", ())):
            known = vars(sys.modules[base.__module__])
            for name, annotation in get_annotations(base).items():
                with suppress(NameError):
                    types[name] = eval(annotation, known) if isinstance(annotation, str) else annotation
    return types


def _is_plain(type_: Any) -> bool:
    """Whether it is written in one word."""
    if isinstance(type_, UnionType):
        return all(map(_is_plain, get_args(type_)))
    return isinstance(type_, type) and type_ in TYPE_WORDS


def _is_a(value: Any, type_: Any) -> bool:
    if isinstance(type_, UnionType):
        return any(_is_a(value, each) for each in get_args(type_))
    if get_origin(type_) is tuple:
        types = get_args(type_)
        if not isinstance(value, list) or not (types[1:] == (...,) or len(value) == len(types)):
            return False
        return all(_is_a(each, types[0]) for each in value)
    if type_ not in TYPE_WORDS:
        return True
    if isinstance(value, bool):
        return type_ is bool
    return isinstance(value, (int, float) if type_ is float else type_)


def _in_words(type_: Any) -> str:
    if isinstance(type_, UnionType):
        return " or ".join(map(_in_words, get_args(type_)))
    if get_origin(type_) is tuple:
        types = get_args(type_)
        return f"a list of {'' if ... in types else f'{len(types)} times '}{_in_words(types[0])}"
    return TYPE_WORDS.get(type_, str(type_))
