"""A benchmark of several steps of which each may fail: the others are tried, and what is found is kept at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fnabench.bench.report import Note, Row, write
from fnabench.errors import reason_of

MOST_SECONDS = 450
"""Of the whole: after so long no other step begins."""


Step = Callable[[], Iterator[Row | Note]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found so far, in <folder>/<name>.{json,md} after each step."""

    folder: Path
    name: str
    title: str
    device: torch.device
    begin: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def attempt(self, what: str, step: Step) -> None:
        """What the step finds, until it fails; then that it failed, and why."""
        self._tell(f"{what} ...")
        try:
            if time.monotonic() - self.begin > MOST_SECONDS:
                raise TimeoutError(f"not begun after {MOST_SECONDS} seconds")
            for finding in step():
                self._take(finding)
        except Exception as error:  # noqa: BLE001  whatever it is, the other steps may do without
            self._take(failure(what, error))
        self.write()

    def write(self) -> Path:
        """The path of the table."""
        return write(self.folder, self.name, self.title, self.rows, self.device, notes=self.notes)

    def _take(self, finding: Row | Note) -> None:
        if isinstance(finding, Row):
            self.rows.append(finding)
            self._tell(f"{finding.what}: {finding.arm} {finding.ratio}")
        else:
            self.notes.append(finding)
            self._tell(f"{finding.what}: {finding.finding}")

    def _tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.begin:3.0f} s] {line}", file=sys.stderr, flush=True)


def failure(what: str, error: Exception) -> Note:
    """That it failed, and why."""
    return Note(what=what, finding=f"FAILED: {type(error).__name__}: {reason_of(error)}", is_failure=True)
