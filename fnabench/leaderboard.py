"""results/LEADERBOARD.md, made from records alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from fnabench.errors import BadInputError
from fnabench.leaderboard_tables import SHORT_HASH, differing, not_replaced, settings_of, tables
from fnabench.record import CorruptRecordError, Record
from fnabench.references import FOLDER, Verification, read_verification
from fnabench.report import form_of
from fnabench.statistics import holm
from fnabench.store import Store, read_record

FILE = "LEADERBOARD.md"
COLUMNS = (
    "model", "px", "tokens", "attention", "blocks", "score ({unit})", "difference to exact", "agrees (%)",
    "end to end", "attention only", "ceiling", "peak MiB", "GMACs", "device", "verified", "record",
)  # fmt: skip
SIGNIFICANT = 0.05
HEAD = """# Leaderboard

Made by `fnabench leaderboard` from the records beside this file; do not edit.

Each row is one record. Differences are variant minus exact attention on the same samples, in points, with the 95 %
interval of the paired bootstrap; a star marks p < 0.05 by McNemar's test, by sign flips of whole images where samples
share one, after Holm's correction over the table; mIoU and VQA accuracy have no such test, their interval has to do.
Ratios are latency of exact over latency of the variant, measured side by side in one process: above 1 the variant is
faster; of exact attention beside itself they show what chance gives. The ceiling is what free attention in the same
blocks would give. A ~ before a ratio: the times still fell or rose when the warm-up ended. Verified is a backbone whose
exact attention gave the published result on this data with this code and dtype (`fnabench verify`); quick: on a part of
the data. A record whose settings were measured again later has no row, unless one that has was compared with it.
"""


def main() -> None:
    """The command line: `python -m fnabench.leaderboard [results]`."""
    parser = argparse.ArgumentParser(prog="fnabench leaderboard", description=__doc__)
    parser.add_argument("results", nargs="?", default="results", type=Path, help="the folder of records (results)")
    root = parser.parse_args().results
    if not root.is_dir():
        print(f"fnabench: {root} is not a folder; give the folder that holds the records", file=sys.stderr)
        sys.exit(2)
    records, problems = read_all(Store(root))
    verifications, unreadable = read_verifications(root)
    problems += unreadable
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    (root / FILE).write_text(to_markdown(records, problems, verifications), encoding="utf-8")
    print(f"{root / FILE}: {len(records)} record{'s' * (len(records) != 1)}, {len(problems)} skipped")


def read_all(store: Store) -> tuple[list[Record], list[str]]:
    """Every whole record, and one line for each that is not."""
    records, problems = [], []
    for folder in store.folders():
        try:
            records.append(read_record(folder))
        except CorruptRecordError as error:
            problems.append(str(error))
    return records, problems


def read_verifications(root: Path) -> tuple[list[Verification], list[str]]:
    """Every whole verification below the folder of records, and one line for each that is not."""
    verifications, problems = [], []
    for path in sorted((root / FOLDER).glob("*/*.json")):
        try:
            verifications.append(read_verification(path))
        except BadInputError as error:
            problems.append(str(error))
    return verifications, problems


def to_markdown(
    records: Iterable[Record], problems: Sequence[str] = (), verifications: Sequence[Verification] = ()
) -> str:
    """The whole page: one table a data set and task, each with its settings."""
    parts = [HEAD]
    ordered = sorted(
        not_replaced(list(records)),
        key=lambda r: (r.task, r.data, r.model, r.image_size, -r.num_samples, _rank(r), r.key),
    )
    for _, same_task in groupby(ordered, key=lambda record: (record.task, record.data)):
        for heading, group in tables(list(same_task)).items():
            scored = next((record for record in group if record.scores), group[0])  # the others name no unit
            unit, *_ = form_of(scored, scored.metric)
            columns = [name.format(unit=unit) for name in COLUMNS]
            settings, stars = _settings_to_show(group), _significant(group)
            lines = [_line(_cells(record, settings, record.key in stars, verifications)) for record in group]
            parts.append(f"## {heading}\n")
            parts.append("\n".join([_line(columns), _line(["---"] * len(columns)), *lines]) + "\n")
    if len(parts) == 1:
        parts.append("No record yet.\n")
    if problems:
        parts.append("## Skipped\n\n" + "\n".join(f"* {problem}" for problem in problems) + "\n")
    return "\n".join(parts)


def _cells(
    record: Record, settings: Mapping[str, Sequence[str]], is_significant: bool, verifications: Sequence[Verification]
) -> list[str]:
    cost, comparison = record.cost, record.comparison
    _, factor, form = form_of(record, record.metric)
    difference = agreement = "-"
    if comparison:
        difference = f"{comparison.difference.times(factor):+{form}}" + ("*" if is_significant else "")
        agreement = "-" if comparison.agreement is None else f"{100 * comparison.agreement:.1f}"
    drift = "~" if cost and not cost.settled else ""
    gpu = record.environment.gpu
    return [
        _named("model", record, settings),
        "x".join(str(edge) for edge in record.image_size),
        str(record.num_tokens),
        _named("attention", record, settings),
        f"{len(record.layers)}/{record.num_layers}",
        f"{factor * record.score.value:{form}} of {record.num_samples}" if record.score else record.status,
        difference,
        agreement,
        f"{drift}{cost.latency_ratio:.2f}" if cost else "-",
        f"{drift}{cost.attention_latency_ratio:.2f}" if cost and cost.attention_latency_ratio else "-",
        f"{drift}{cost.ceiling.value:.2f}" if cost else "-",
        f"{cost.memory.peak_mib:.0f}" if cost and cost.memory else "-",
        f"{cost.macs / 1e9:.2f}" if cost else "-",
        f"{gpu.name if gpu else record.environment.cpu}, {record.identity['dtype']}",
        _verified(record, verifications),
        record.key[:SHORT_HASH],
    ]


def _verified(record: Record, verifications: Sequence[Verification]) -> str:
    """Whether the record's backbone met its references: no if it failed one."""
    about = [each for each in verifications if each.proves(record)]
    if not all(each.passed for each in about):
        return "no"
    if any(each.reference.limit is None for each in about):
        return "yes"
    return "quick" if about else "-"


def _settings_to_show(records: Sequence[Record]) -> dict[str, list[str]]:
    """For each model and attention the settings that tell its rows apart, but the image size, which has a column; of
    an attention always its first setting, which is its main one."""
    chosen: dict[str, list[str]] = {}
    for kind in ("model", "attention"):
        for name in {getattr(record, kind) for record in records}:
            settings = [settings_of(kind, record) for record in records if getattr(record, kind) == name]
            main = list(settings[0])[:1] if kind == "attention" else []
            telling = (each for each in differing(settings) if each != "image_size")
            chosen[f"{kind}={name}"] = list(dict.fromkeys([*main, *telling]))
    return chosen


def _named(kind: str, record: Record, to_show: Mapping[str, Sequence[str]]) -> str:
    """A record's model or attention with the settings to show."""
    name, values = getattr(record, kind), settings_of(kind, record)
    return " ".join([name, *(f"{each}={values.get(each)}" for each in to_show[f"{kind}={name}"])])


def _significant(records: Sequence[Record]) -> set[str]:
    """Keys of the records that differ from exact after correction for all tests of the table."""
    tested = [(r.key, r.comparison.p_value) for r in records if r.comparison and r.comparison.p_value is not None]
    corrected = holm([p_value for _, p_value in tested])
    return {key for (key, _), p_value in zip(tested, corrected, strict=True) if p_value < SIGNIFICANT}


def _rank(record: Record) -> tuple[int, str]:
    """Exact first, then native, then the variants by name."""
    order = {"exact": 0, "native": 1}
    return order.get(record.attention, 2), str(record.identity["attention"])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
