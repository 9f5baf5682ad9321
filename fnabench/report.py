"""A run as people and scripts read it: one table of at most 100 columns, or one JSON object."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from fnabench.cost import Cost
from fnabench.identity import shown
from fnabench.record import Record
from fnabench.run import Outcome
from fnabench.statistics import Estimate

WIDTH = 100
"""Columns that every table fits."""
MISSING = "-"
UNIT = "%"
"""Of a score that names none."""
FORMS = {UNIT: (100, ".2f"), "tokens": (1, ".2f")}
"""Factor and format of a score by its unit; others are small numbers."""


def to_json(outcome: Outcome) -> str:
    """The run in one line for scripts; percentages as fractions, memory in MiB, MACs for one image."""
    record, exact, cost = outcome.record, outcome.exact, outcome.record.cost
    comparison = record.comparison
    values: dict[str, Any] = {
        "task": record.task,
        "data": record.data,
        "model": record.model,
        "attention": record.attention,
        "status": record.status,
        "metric": record.metric,
        "score": record.score and record.score.value,
        "exact": exact.score and exact.score.value,
        "difference": comparison and comparison.difference.value,
        "difference_ci": comparison and _ends(comparison.difference),
        "agreement": comparison and comparison.agreement,
        "latency_ratio": cost and cost.latency_ratio.value,
        "latency_ratio_ci": cost and _ends(cost.latency_ratio),
        "attention_latency_ratio": cost and cost.attention_latency_ratio and cost.attention_latency_ratio.value,
        "ceiling": cost and cost.ceiling.value,
        "peak_mib": cost and cost.memory and cost.memory.peak_mib,
        "exact_peak_mib": cost and cost.exact_memory and cost.exact_memory.peak_mib,
        "macs": cost and cost.macs,
        "exact_macs": cost and cost.exact_macs,
        "fused_layers": record.fused_layers,
        "num_samples": record.num_samples,
        "num_tokens": record.num_tokens,
        "choice": record.identity.get("choice"),
        "key": record.key,
        "exact_key": record.exact_key,
        "record": str(outcome.folder),
        "new": outcome.is_new,
    }
    return json.dumps(values)


def print_table(outcome: Outcome, *, to_stderr: bool) -> None:
    """The run beside its exact twin, and what lies between them."""
    console = Console(stderr=to_stderr)
    if not console.is_terminal:  # a pipe or a log file has no width of its own
        console.width = WIDTH
    record, exact = outcome.record, outcome.exact
    table = Table(title=_head(record), caption=_foot(outcome), title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("exact", justify="right")
    table.add_column(record.attention if record is not exact else "exact again", justify="right")
    table.add_column("difference or ratio [95 % interval]", justify="right", no_wrap=True)
    for row in _accuracy_rows(record, exact) + (_cost_rows(record.cost) if record.cost else []):
        table.add_row(*row)
    console.print(table)


def form_of(record: Record, metric: str) -> tuple[str, int, str]:
    """Unit, factor and format of a score."""
    unit = record.units.get(metric, UNIT)
    return unit, *FORMS.get(unit, (1, ".5f"))


def _accuracy_rows(record: Record, exact: Record) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, score in record.scores.items():
        unit, factor, form = form_of(record, name)
        comparison = record.comparisons.get(name)
        rows.append(
            (
                f"{name} ({unit})",
                _number(exact.scores.get(name), factor, form),
                _number(score, factor, form) if record is not exact else "",  # scored once, timed twice
                f"{comparison.difference.times(factor):+{form}}" if comparison else MISSING,
            )
        )
    if not record.scores:
        unit, factor, form = form_of(exact, record.metric)  # a run without scores names none
        rows.append((f"{record.metric} ({unit})", _number(exact.score, factor, form), record.status, MISSING))
    if record.comparison and record.comparison.agreement is not None:
        rows.append(("agreement with exact (%)", "", f"{100 * record.comparison.agreement:.1f}", ""))
    return rows


def _cost_rows(cost: Cost) -> list[tuple[str, str, str, str]]:
    attention = cost.attention_latency
    rows = [
        (
            "latency end to end (ms)",
            f"{cost.exact_latency.median_ms:.1f}",
            f"{cost.latency.median_ms:.1f}",
            f"x{cost.latency_ratio}",
        ),
        (
            "latency attention only (ms)",
            f"{cost.exact_attention_latency.median_ms:.1f}",
            f"{attention.median_ms:.1f}" if attention else MISSING,
            f"x{cost.attention_latency_ratio}" if cost.attention_latency_ratio else MISSING,
        ),
        *((f"  of which {name} (ms)", "", f"{part.median_ms:.1f}", "") for name, part in cost.part_latencies.items()),
        ("ceiling: attention for free", "", "", f"x{cost.ceiling}"),
    ]
    if cost.memory and cost.exact_memory:
        ours, theirs = cost.memory.peak_mib, cost.exact_memory.peak_mib
        rows.append(("peak memory (MiB)", f"{theirs:.1f}", f"{ours:.1f}", f"x{theirs / ours:.2f}" if ours else MISSING))
    ratio = cost.exact_macs / cost.macs
    rows.append(("GMACs an image", f"{cost.exact_macs / 1e9:.3f}", f"{cost.macs / 1e9:.3f}", f"x{ratio:.3f}"))
    return rows


def _head(record: Record) -> str:
    """What ran on what."""

    def named(kind: str) -> str:
        name, words = getattr(record, kind), record.descriptions.get(kind)
        return f"{name} ({words})" if words else name

    size = "x".join(str(edge) for edge in record.image_size)
    return (
        f"{record.task} of {named('data')} with {named('model')}\n"
        f"{record.num_samples} images of {size} px, {record.num_tokens} tokens, attention={record.attention} "
        f"{_settings(record)}in {_layers(record)}{_choice(record)}"
    )


def _settings(record: Record) -> str:
    values = shown(record.identity["attention"])
    return f"({', '.join(f'{name}={value}' for name, value in values.items())}) " if values else ""


def _choice(record: Record) -> str:
    """What a budget came to, on a line of its own."""
    if (choice := record.identity.get("choice")) is None:
        return ""
    return (
        f"\nbudget=auto chose {choice['num_landmarks']} landmarks and these blocks: {choice['measure']} "
        f"{choice['fidelity']:.3g} on {record.identity['budget']['num_images']} images, attention "
        f"x{choice['time_ratio']:.2f} faster"
    )


def _layers(record: Record) -> str:
    first, last = record.layers[0], record.layers[-1]
    whole = len(record.layers) == last - first + 1
    blocks = f"{first}..{last}" if whole else ", ".join(map(str, record.layers))
    number = len(record.fused_layers)
    by = f", {'all' if number == len(record.layers) else number} of them by fused kernels" if number else ""
    return f"{len(record.layers)} of {record.num_layers} blocks ({blocks}{by})"


def _foot(outcome: Outcome) -> str:
    record, cost = outcome.record, outcome.record.cost
    lines = []
    if cost:
        steady = "settled" if cost.settled else "NOT settled: read the times with care"
        crossover = f"{cost.crossover_tokens:,} tokens" if cost.crossover_tokens else "no number of tokens"
        lines.append(
            f"batch {cost.batch_size}, {cost.num_rounds} rounds of ABBA, warm-up {steady}, "
            f"exact by {cost.sdpa_backend}; fewer MACs than exact from {crossover}; x above 1: better than exact"
        )
    if record.calibration:
        found = record.calibration.items()
        numbers = ", ".join(f"{name}={value}" for name, value in found if not isinstance(value, list))
        lines.append(f"found before: {numbers}; all of it is in the record")
    gpu = record.environment.gpu
    lines.append(f"{gpu.name if gpu else record.environment.cpu}, {record.identity['dtype']}")
    lines.append(f"{'new record' if outcome.is_new else 'record exists, nothing was computed'}: {outcome.folder}")
    return "\n".join(lines)


def _number(score: Estimate | None, factor: int, form: str) -> str:
    return MISSING if score is None else f"{factor * score.value:{form}}"


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high
