"""The picture of error against cost: of the published and the refined form, of their peers, beside exact attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fnabench.errors import BadInputError
from fnabench.figures.style import BLACK, BLUE, FORMATS, GREEN, GREY, ORANGE, PURPLE, log_scale, new_figure, save, tidy

LOOK = {
    "fna": ("published (fna)", ORANGE, "^", (6, 5, "left")),
    "fna_refined": ("refined (fna_refined)", BLUE, "s", (-6, -13, "right")),
    "nystromformer": ("Nystromformer", GREEN, "v", (6, 5, "left")),
    "performer": ("Performer", PURPLE, "D", (6, 5, "left")),
    "tome": ("token merging (tome)", GREY, "o", (6, 5, "left")),
}
"""Label, colour and marker of each form that a table may have, and where the numbers stand beside its points."""
COSTS = {"attention, ms": "time of the attention, ms", "attention, GMAC": "multiply-accumulates of the attention, 10⁹"}
"""Columns that are drawn against the KL, and their labels."""


def draw(path: Path, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the picture of a fidelity.json or peers.json, which is named as that is; returns its paths."""
    return save(error_against_cost(read_table(path)), out, path.stem, formats)


def read_table(path: Path) -> Mapping[str, Any]:
    """The table of costs in such a file, as bench.report.Table wrote it."""
    if path.is_file():
        for table in json.loads(path.read_text(encoding="utf-8")).get("tables", []):
            if {"form", "M", "KL", *COSTS} <= set(table["columns"]):
                return dict(table)
    raise BadInputError(
        f"{path} holds no table of error against cost; give the fidelity.json or peers.json that python -m "
        "fnabench.bench.fidelity or fnabench.bench.peers writes"
    )


def error_against_cost(table: Mapping[str, Any]) -> Any:
    """KL to exact attention against time and against multiply-accumulates, at each point the number that sets it."""
    lines = [dict(zip(table["columns"], line, strict=True)) for line in table["lines"]]
    exact = next(line for line in lines if line["form"] == "exact")
    figure = new_figure(8.4, 3.9)
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True), COSTS.items(), strict=True):
        axes.set_xscale("log")
        for form, (name, colour, marker, (right, up, side)) in LOOK.items():
            points = [line for line in lines if line["form"] == form]
            if not points:
                continue
            axes.plot([each[cost] for each in points], [each["KL"] for each in points], color=colour, marker=marker,
                      markersize=6, label=name)  # fmt: skip
            for each in points:
                axes.annotate(
                    str(each["M"]), (each[cost], each["KL"]), textcoords="offset points", xytext=(right, up), ha=side,
                    fontsize=8, color=colour, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )  # fmt: skip
        axes.axvline(exact[cost], color=BLACK, linestyle="--", linewidth=1.2, label="exact (KL 0)")
        axes.margins(x=0.12, y=0.12)
        tidy(axes, "", label, "")
        _plain_numbers(axes)
    figure.axes[0].set_ylabel("KL to exact attention, nats")
    log_scale(figure.axes[0])
    figure.suptitle(f"{table['title']}; numbers are M", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _plain_numbers(axes: Any) -> None:
    """Along the logarithmic x axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
