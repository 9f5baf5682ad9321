"""The picture of a masking sweep: the metric against the block from which on tokens are masked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fnabench.errors import BadInputError
from fnabench.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, new_figure, save, tidy
from fnabench.record import Record
from fnabench.store import RECORD, read_record

LOOK = {"massive": (ORANGE, "^"), "artifact": (BLUE, "s"), "both": (GREEN, "D"), "none": (GREY, "v")}
"""Colour and marker of each T."""


def draw(folder: Path, out: Path) -> list[Path]:
    """Write the picture and the table of the masked runs in a folder of records; returns their paths."""
    records = [read_record(path.parent) for path in sorted(folder.glob(f"*_masked-*/{RECORD}"))]
    records = [record for record in records if record.comparison is not None]
    if not records:
        raise BadInputError(
            f"{folder} holds no masked run; give the folder of one task, data and model, such as "
            "results/classification/imagenet_sample/vit_tiny"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "masking.md").write_text(to_markdown(records), encoding="utf-8")
    return [out / "masking.md", *save(against_start_block(records), out, "masking")]


def to_markdown(records: Sequence[Record]) -> str:
    """One row a kind of attention and T, one column a start block; variant minus exact with its 95 % interval."""
    blocks = sorted({start_block(record) for record in records})
    lines = [
        f"# Masking on {records[0].data} with {records[0].model}: {records[0].metric}, difference to exact\n",
        "| attention | T | " + " | ".join(f"from block {block}" for block in blocks) + " |",
        "| --- " * (len(blocks) + 2) + "|",
    ]
    for attention, tokens in _kinds(records):
        found = {start_block(each): each for each in _of(records, attention, tokens)}
        cells = [_cell(found[block]) if block in found else "-" for block in blocks]
        lines.append(f"| {attention} | {tokens} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against_start_block(records: Sequence[Record]) -> Any:
    """Differences to exact with their 95 % intervals; side by side where several T start at the same block."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    kinds = _kinds(records)
    for number, (attention, tokens) in enumerate(kinds):
        shift = 0.08 * (number - (len(kinds) - 1) / 2)
        runs = sorted(_of(records, attention, tokens), key=start_block)
        differences = [_difference(run) for run in runs]
        colour, marker = LOOK[tokens]
        axes.errorbar(
            [start_block(run) + shift for run in runs],
            [value for value, _, _ in differences],
            yerr=[[value - low for value, low, _ in differences], [high - value for value, _, high in differences]],
            color=colour, marker=marker, capsize=3, label=f"{attention}, {tokens}",
            linestyle="-" if attention == "exact_masked" else "--",
        )  # fmt: skip
    axes.axhline(0, color=BLACK, linewidth=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    unit = records[0].units.get(records[0].metric, "points")
    title = f"{records[0].data} with {records[0].model}: masked minus exact, 95 % intervals"
    tidy(axes, title, "block from which on tokens are masked", f"{records[0].metric} ({unit})")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def start_block(record: Record) -> int:
    """Where masking begins: the setting, or else the first block that is replaced."""
    given = record.identity["attention"]["start_block"]
    return record.layers[0] if given is None else int(given)


def _kinds(records: Sequence[Record]) -> list[tuple[str, str]]:
    order = list(LOOK)
    kinds = {(record.attention, str(record.identity["attention"]["tokens"])) for record in records}
    return sorted(kinds, key=lambda kind: (kind[0], order.index(kind[1])))


def _of(records: Sequence[Record], attention: str, tokens: str) -> list[Record]:
    return [each for each in records if (each.attention, each.identity["attention"]["tokens"]) == (attention, tokens)]


def _difference(record: Record) -> tuple[float, float, float]:
    """Value and ends, in points where the metric is a fraction."""
    if record.comparison is None:
        raise RuntimeError("only runs with an exact twin are drawn")
    difference = record.comparison.difference.times(1 if record.metric in record.units else 100)
    return difference.value, difference.low, difference.high


def _cell(record: Record) -> str:
    value, low, high = _difference(record)
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
