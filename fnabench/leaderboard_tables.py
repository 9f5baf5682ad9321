"""Which records stand in the leaderboard, and in which of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from fnabench.identity import digest, shown
from fnabench.record import Record

UNTOLD = ("_target_", "cache", "description", "name", "obtain", "root", "streaming", "training_root")
"""Settings of the data that no heading tells: where it lies, how it is read, and words about it."""
SHORT_HASH = 12
"""So many digits of a hash are shown."""


def not_replaced(records: Sequence[Record]) -> list[Record]:
    """Without those whose settings a later record has too, if it holds all that they do and no other record that is
    left was compared with them."""
    same: dict[str, list[Record]] = {}
    for record in records:
        settings = {name: value for name, value in record.identity.items() if name not in ("choice", "code", "probe")}
        same.setdefault(digest([settings, _content(record)]), []).append(record)
    replaced = {each.key for alike in same.values() for each in alike if any(_replaces(other, each) for other in alike)}
    twins = {record.exact_key for record in records if record.key not in replaced}
    return [record for record in records if record.key not in replaced or record.key in twins]


def _replaces(later: Record, record: Record) -> bool:
    return (
        later.created > record.created
        and (bool(later.scores) or not record.scores)
        and (record.cost is None or (later.cost is not None and later.identity["probe"] == record.identity["probe"]))
    )


def tables(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of one task and data set by a heading, which names the settings of both that tell tables apart."""
    data = _data_settings(records)
    settings = [settings_of("task", record) | data[_content(record)] | _fitted_on(record) for record in records]
    fitted = {values["fitted_on"] for values in settings} - {None}
    names = [name for name in differing(settings) if name != "fitted_on" or len(fitted) > 1]
    found: dict[str, list[Record]] = {}
    for record, values in zip(records, settings, strict=True):
        words = record.descriptions.get("data")
        on = f"{record.task} on {record.data}{f' ({words})' if words else ''}: {record.metric}"
        found.setdefault(", ".join([on, *(f"{name}={values.get(name)}" for name in names)]), []).append(record)
    return found


def _data_settings(records: Iterable[Record]) -> dict[str, dict[str, object]]:
    """How each content of a data set is asked for: the same samples may be all of them or the first 500. Contents that
    differ in nothing but where they lie are told apart by a hash."""
    asked: dict[str, dict[str, object]] = {}
    for record in records:
        asked.setdefault(_content(record), _told(record))
    if any(not differing(pair) for pair in combinations(asked.values(), 2)):
        return {content: told | {"data.content": digest(content)[:SHORT_HASH]} for content, told in asked.items()}
    return asked


def _fitted_on(record: Record) -> dict[str, object]:
    """A hash of the training split that a head was fitted on; None where none was."""
    content = record.identity.get("fitted_on")
    return {"fitted_on": content and digest(content)[:SHORT_HASH]}


def _content(record: Record) -> str:
    """The same for the same samples: their fingerprint, or what was asked for where a record has none."""
    return str(record.identity.get("data") or _told(record))


def _told(record: Record) -> dict[str, object]:
    """The settings of a record's data that a heading may tell."""
    values: Mapping[str, object] = record.config.get("data", {})
    return shown({name: value for name, value in values.items() if name not in UNTOLD}, "data.")


def differing(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """The names whose value is not the same everywhere."""
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if len({str(each.get(name)) for each in settings}) > 1]


def settings_of(kind: str, record: Record) -> dict[str, object]:
    """Those of a record's task, data, model or attention; a hash of weights is short."""
    values = shown(record.identity.get(kind, {}))
    return {name: str(value)[:SHORT_HASH] if name == "weights" else value for name, value in values.items()}
