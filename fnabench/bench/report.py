"""What a benchmark leaves behind: one JSON file with every number, one table to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fnabench.environment import describe_environment
from fnabench.statistics import Estimate, median_ratio
from fnabench.timing import Timings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ratio: how many times faster `arm` is than `baseline`."""

    what: str
    baseline: str
    arm: str
    baseline_ms: float
    arm_ms: float
    ratio: Estimate
    """baseline_ms over arm_ms."""
    goal: str = ""
    """The bound that the ratio is meant to keep, such as "at least 4.5"."""

    @property
    def verdict(self) -> str:
        """Whether the goal is met or missed, or undecided where the interval contains it; empty without one."""
        if not self.goal:
            return ""
        bound = float(self.goal.removeprefix("at least "))
        if self.ratio.low > bound:
            return "met"
        return "missed" if self.ratio.high < bound else "undecided"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Whatever else was measured: text and numbers under named columns."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[object]]

    def text(self) -> str:
        """In Markdown, numbers to four digits."""
        cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line] for line in self.lines]
        rows = [self.columns, ["---"] * len(self.columns), *cells]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(row)} |" for row in rows)])


@dataclass(frozen=True, kw_only=True)
class Note:
    """A finding in words."""

    what: str
    finding: str
    is_failure: bool = False


def compare_arms(what: str, timings: Timings, baseline: str, arm: str, goal: str = "") -> Row:
    """The ratio of two arms that were timed in turn."""
    theirs, ours = timings.per_round(baseline), timings.per_round(arm)
    return Row(
        what=what,
        baseline=baseline,
        arm=arm,
        baseline_ms=float(np.median(theirs)),
        arm_ms=float(np.median(ours)),
        ratio=median_ratio(theirs, ours),
        goal=goal,
    )


def write(
    folder: Path,
    name: str,
    title: str,
    rows: Sequence[Row],
    device: torch.device,
    tables: Sequence[Table] = (),
    notes: Sequence[Note] = (),
) -> Path:
    """Write <name>.json and <name>.md into the folder; returns the path of the latter, where notes come last."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(device)
    content = {"title": title, "environment": asdict(environment), "rows": [asdict(row) for row in rows]}
    if tables:
        content["tables"] = [asdict(table) for table in tables]
    if notes:
        content["notes"] = [asdict(note) for note in notes]
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    gpu = environment.gpu
    machine = f"{gpu.name if gpu else environment.cpu}, {environment.num_threads} threads"
    libraries = ", ".join(f"{library} {version}" for library, version in environment.libraries.items())
    lines = [f"# {title}", "", f"{machine}; Python {environment.python}, {libraries}."]
    if rows:
        lines += ["", "| what | baseline | ms | compared | ms | baseline / compared [95 %] | goal |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        ours, theirs = f"{row.arm_ms:.2f}", f"{row.baseline_ms:.2f}"
        goal = f"{row.goal}: {row.verdict}" if row.goal else ""
        cells = (row.what, row.baseline, theirs, row.arm, ours, f"{row.ratio}", goal)
        lines.append(f"| {' | '.join(cells)} |")
    for table in tables:
        lines += ["", table.text()]
    if notes:
        lines += ["", *(f"* {note.what}: {note.finding}" for note in notes)]
    path = folder / f"{name}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
