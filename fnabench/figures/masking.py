"""The picture of a masking sweep: the metric against the block from which on tokens are masked."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fnabench.errors import BadInputError
from fnabench.figures.style import BLACK, BLUE, FORMATS, GREEN, GREY, ORANGE, PURPLE, new_figure, save, tidy
from fnabench.identity import shown
from fnabench.record import Record
from fnabench.store import RECORD, read_record

LOOK = {"massive": (ORANGE, "^"), "artifact": (BLUE, "s"), "both": (GREEN, "D"), "none": (GREY, "v")}
"""Colour and marker of each T."""
Kind = tuple[str, str]
"""T, and the settings that tell its runs from others of the same T."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """The runs of one kind of attention, all compared with the same exact twin."""

    attention: str
    runs: dict[Kind, list[Record]]
    """In order of their start blocks."""
    beside: dict[str, Record]
    """What masking competes with: the same attention without it, and with test-time registers, by name."""


def draw(folder: Path, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the picture and the table of the masked runs in a folder of records; returns their paths."""
    panels = read_panels(folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / "masking.md").write_text(to_markdown(panels), encoding="utf-8")
    return [out / "masking.md", *save(against_start_block(panels), out, "masking", formats)]


def read_panels(folder: Path) -> list[Panel]:
    """The runs that share the exact twin of most masked runs; what others there are is told on stderr."""
    records = [read_record(path.parent) for path in sorted(folder.glob(f"*/{RECORD}"))]
    records = [record for record in records if record.comparison is not None]
    masked = [record for record in records if record.attention.endswith("_masked")]
    if not masked:
        raise BadInputError(
            f"{folder} holds no masked run; give the folder of one task, data and model, such as "
            "results/classification/imagenet_sample/vit_tiny"
        )
    twin = Counter(record.exact_key for record in masked).most_common(1)[0][0]
    if others := [record for record in masked if record.exact_key != twin]:
        print(f"{len(others)} masked runs are compared with another exact run and left out", file=sys.stderr)
    records = [record for record in records if record.exact_key == twin]
    return [_panel(name, records) for name in sorted({each.attention for each in masked if each.exact_key == twin})]


def to_markdown(panels: Sequence[Panel]) -> str:
    """One row a kind of attention and T, one column a start block; variant minus exact with its 95 % interval."""
    runs = [record for panel in panels for kind in panel.runs.values() for record in kind]
    blocks = sorted({start_block(record) for record in runs})
    lines = [
        f"# Masking on {runs[0].data} with {runs[0].model}: {runs[0].metric}, difference to exact\n",
        f"{runs[0].num_samples} images, {runs[0].num_tokens} tokens, {runs[0].num_layers} blocks; exact gives "
        f"{_exact(runs[0]):.2f}. In brackets the 95 % interval of the paired bootstrap.\n",
        "| attention | T | " + " | ".join(f"from block {block}" for block in blocks) + " |",
        "| --- " * (len(blocks) + 2) + "|",
    ]
    for panel in panels:
        for name, record in panel.beside.items():
            lines.append(f"| {name} | - | " + " | ".join([_cell(record)] + ["" for _ in blocks[1:]]) + " |")
        for kind, records in panel.runs.items():
            found = {start_block(each): each for each in records}
            cells = [_cell(found[block]) if block in found else "-" for block in blocks]
            lines.append(f"| {panel.attention} | {_named(kind)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against_start_block(panels: Sequence[Panel]) -> Any:
    """Differences to exact with their 95 % intervals, one panel a kind of attention."""
    figure = new_figure(4.6 * len(panels), 4.4)
    first = next(iter(panels[0].runs.values()))[0]
    labelled: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        blocks = sorted({start_block(record) for runs in panel.runs.values() for record in runs})
        labelled["exact attention"] = axes.axhline(0, color=BLACK, linewidth=1)
        for number, (kind, runs) in enumerate(panel.runs.items()):
            shift = 0.08 * (number - (len(panel.runs) - 1) / 2)
            differences = [_difference(run) for run in runs]
            colour, marker = LOOK[kind[0]]
            labelled[f"T = {_named(kind)}"] = axes.errorbar(
                [blocks.index(start_block(run)) + shift for run in runs],
                [value for value, _, _ in differences],
                yerr=[[value - low for value, low, _ in differences], [high - value for value, _, high in differences]],
                color=colour, marker=marker, markersize=5, capsize=3, linestyle="--" if kind[1] else "-",
            )  # fmt: skip
        for name, record in panel.beside.items():
            label, colour = ("test-time registers", PURPLE) if "registers" in name else ("without masking", GREY)
            labelled[label] = axes.axhline(_difference(record)[0], color=colour, linestyle=(0, (1, 1)), linewidth=2)
        axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
        axes.margins(x=0.12)
        tidy(axes, panel.attention, "block from which on T is masked", "")
    figure.axes[0].set_ylabel(f"{first.metric}, difference to exact ({first.units.get(first.metric, 'points')})")
    figure.suptitle(
        f"{first.num_samples} images of {first.data}, {first.model}: exact {_exact(first):.2f}; bars: 95 % intervals",
        fontsize=10,
    )
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def start_block(record: Record) -> int:
    """Where masking begins: the setting, or else the first block that is replaced."""
    given = record.identity["attention"]["start_block"]
    return record.layers[0] if given is None else int(given)


def _panel(name: str, records: Sequence[Record]) -> Panel:
    masked = sorted((record for record in records if record.attention == name), key=start_block)
    settings = [_other_settings(record) for record in masked]
    varying = [key for key in settings[0] if len({str(each.get(key)) for each in settings}) > 1]
    runs: dict[Kind, list[Record]] = {}
    for tokens in LOOK:
        for record, values in zip(masked, settings, strict=True):
            if record.identity["attention"]["tokens"] == tokens:
                told = ", ".join(f"{key}={values.get(key)}" for key in varying)
                runs.setdefault((tokens, told), []).append(record)
    inner = masked[0].identity["attention"]["inner"]
    beside = {
        record.attention: record for record in records
        if inner in (record.identity["attention"], record.identity["attention"].get("inner")) and record not in masked
        and record.layers == masked[0].layers
    }  # fmt: skip
    return Panel(attention=name, runs=runs, beside=beside)


def _other_settings(record: Record) -> dict[str, Any]:
    values = shown(record.identity["attention"]) | {"masks": (record.identity.get("masks") or "")[:8]}
    return {key: value for key, value in values.items() if key not in ("tokens", "start_block")}


def _named(kind: Kind) -> str:
    return f"{kind[0]} ({kind[1]})" if kind[1] else kind[0]


def _factor(record: Record) -> int:
    """Points where the metric is a fraction."""
    return 1 if record.metric in record.units else 100


def _exact(record: Record) -> float:
    """What exact attention gives."""
    if record.score is None:
        raise RuntimeError("only runs with scores are drawn")
    return _factor(record) * record.score.value - _difference(record)[0]


def _difference(record: Record) -> tuple[float, float, float]:
    """Value and ends of variant minus exact."""
    if record.comparison is None:
        raise RuntimeError("only runs with an exact twin are drawn")
    difference = record.comparison.difference.times(_factor(record))
    return difference.value, difference.low, difference.high


def _cell(record: Record) -> str:
    value, low, high = _difference(record)
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
