"""Published results of exact attention, and the proofs that this machine meets them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fnabench.errors import BadInputError
from fnabench.identity import digest
from fnabench.record import Record

TABLE = Path(__file__).with_name("references.yaml")
FOLDER = "verified"
"""Where the proofs lie below the folder of records."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model must give with exact attention on a data set."""

    model: str
    data: str
    task: str
    settings: tuple[str, ...] = ()
    """Of the protocol, as one would type them."""
    expected: Mapping[str, float]
    """Metrics in percent."""
    tolerance: float
    """In points, for every metric."""
    source: str
    limit: int | None = None
    """So many of the first samples; None for all."""

    @property
    def name(self) -> str:
        """Short, and different for each reference of a model."""
        method = [
            value for option, _, value in (each.partition("=") for each in self.settings) if option == "task.method"
        ]
        return "-".join([self.data, self.task, *method, *(["quick"] if self.limit else [])])


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A reference beside what was measured."""

    reference: Reference
    measured: Mapping[str, float]
    """Metrics in percent."""
    passed: bool
    num_samples: int
    overrides: tuple[str, ...]
    """What the user set beside model and data."""
    model: str
    """Hash of the weights and of all settings but the image size."""
    code: str
    """Hash of fnabench's code."""
    dtype: str
    record: str
    """Key of the record that was compared."""
    created: str
    """UTC, ISO 8601."""

    def proves(self, record: Record) -> bool:
        """Whether it is about the model, the data by its name, the code and the dtype of a record."""
        mine = (self.model, self.reference.data, self.code, self.dtype)
        theirs = (record.identity.get(name) for name in ("code", "dtype"))
        return mine == (_digest_of_model(record), record.data, *theirs)


def read_references(path: Path = TABLE) -> list[Reference]:
    """The whole table, one entry a model and data set; those of a subset have a limit."""
    references = []
    for group in yaml.safe_load(path.read_text(encoding="utf-8")):
        for data in group["data"]:
            common = {name: group[name] for name in ("task", "source")} | {
                "data": data, "settings": tuple(group.get("settings", ())),
            }  # fmt: skip
            quick = group.get("quick", {})
            for model, expected in group["expected"].items():
                references.append(Reference(model=model, expected=expected, tolerance=group["tolerance"], **common))
                if quick:
                    known = quick.get("expected", {}).get(model, expected)
                    part = {"expected": known, "tolerance": quick["tolerance"], "limit": quick["limit"]}
                    references.append(Reference(model=model, **part, **common))
    return references


def judge(reference: Reference, record: Record, overrides: Iterable[str]) -> Verification:
    """Compare a record of exact attention with its reference."""
    measured = {metric: 100 * record.scores[metric].value for metric in reference.expected}
    near = (abs(measured[name] - value) <= reference.tolerance + 1e-9 for name, value in reference.expected.items())
    return Verification(
        reference=reference,
        measured=measured,
        passed=all(near),
        num_samples=record.num_samples,
        overrides=tuple(overrides),
        model=_digest_of_model(record),
        code=record.identity["code"],
        dtype=record.identity["dtype"],
        record=record.key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def save_verification(root: Path, verification: Verification) -> Path:
    """Write the proof to its place below the folder of records; a later one of the same reference replaces it."""
    reference = verification.reference
    path = root / FOLDER / reference.model / f"{reference.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = json.loads(_ADAPTER.dump_json(verification))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(body | {"digest": digest(body)}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read_verification(path: Path) -> Verification:
    """The proof in a file; BadInputError unless it is whole and unchanged."""
    try:
        body: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        given = body.pop("digest")
        if digest(body) != given:
            raise BadInputError(f"{path} was changed since it was written; run fnabench verify again")
        return _ADAPTER.validate_python(body)
    except (ValueError, TypeError, KeyError, ValidationError) as error:
        raise BadInputError(f"{path} is no whole verification; run fnabench verify again") from error


def _digest_of_model(record: Record) -> str:
    """What is proven at one image size holds at any other: only the position embedding is interpolated."""
    settings = record.identity.get("model", {})
    return digest({name: value for name, value in settings.items() if name != "image_size"})


_ADAPTER = TypeAdapter(Verification)
