"""The record of one run: a value that says everything about itself and proves that nobody changed it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fnabench.cost import Cost
from fnabench.environment import Environment
from fnabench.errors import BadInputError, FnabenchError
from fnabench.identity import digest
from fnabench.statistics import Comparison, Estimate

SCHEMA = 1


class CorruptRecordError(FnabenchError):
    """A record that cannot be read as a result."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of a task on a data set with a model and an attention variant."""

    schema: int = SCHEMA
    key: str
    """Hash of everything that changes the result."""
    exact_key: str
    """Key of the exact twin: the run that differs in the attention only; its own for exact itself."""
    status: str
    """"complete", or "out of memory", which lacks its scores, its cost or both."""
    created: str
    """UTC, ISO 8601."""
    task: str
    data: str
    model: str
    attention: str
    descriptions: dict[str, str]
    """A few words each on the model and the data."""
    identity: dict[str, Any]
    """What the key is the hash of."""
    config: dict[str, Any]
    """The resolved configuration."""
    layers: tuple[int, ...]
    """Blocks whose attention was replaced."""
    fused_layers: tuple[int, ...] = ()
    """Those of them that fused kernels computed when the scores were taken; the others ran in plain PyTorch."""
    num_layers: int
    num_tokens: int
    image_size: tuple[int, int]
    num_samples: int
    metric: str
    scores: dict[str, Estimate]
    units: dict[str, str] = field(default_factory=dict)
    """Units of the scores that are no fraction."""
    comparisons: dict[str, Comparison]
    """With the exact twin, by metric; empty for exact itself."""
    cost: Cost | None
    environment: Environment
    fitted: str | None
    """SHA-256 of the head or feature bank that was fitted with exact attention, or of the file that a released head was
    read from; None where the task needs neither."""
    calibration: dict[str, Any] | None = None
    """What the variant knew before its first forward: what it found on calibration images, or whose masks it took."""
    files: dict[str, str]
    """SHA-256 of each file beside the record."""

    @property
    def score(self) -> Estimate | None:
        """The headline metric."""
        return self.scores.get(self.metric)

    @property
    def comparison(self) -> Comparison | None:
        """The headline metric against the exact twin's."""
        return self.comparisons.get(self.metric)


_ADAPTER = TypeAdapter(Record)


def to_json(record: Record) -> str:
    """The record as text, closed by a digest over all of it; BadInputError where it holds what is no number."""
    for name, value in _not_finite(_ADAPTER.dump_python(record)):
        raise BadInputError(f"{name} is {value}, which no record can hold; nothing was recorded")
    body = json.loads(_ADAPTER.dump_json(record))
    return json.dumps(body | {"digest": digest(body)}, indent=1) + "\n"


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """NaN and infinities, which JSON has not, with their dotted names."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, each in items:
        yield from _not_finite(each, f"{name}.{key}".lstrip("."))


def from_json(text: str) -> Record:
    """The record in a text; CorruptRecordError unless it is whole, unchanged and of this schema."""
    try:
        body = dict(json.loads(text))
        given = body.pop("digest")
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptRecordError(f"not a whole record ({type(error).__name__}: {error})") from error
    if body.get("schema") != SCHEMA:
        raise CorruptRecordError(f"schema {body.get('schema')}, this version reads {SCHEMA}")
    if digest(body) != given:
        raise CorruptRecordError("changed since it was written: its digest does not match")
    try:
        return _ADAPTER.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptRecordError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
