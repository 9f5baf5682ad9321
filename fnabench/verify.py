"""`fnabench verify model=... data=...`: does exact attention give here what was published for it?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fnabench.cli import compose, tell_mistakes
from fnabench.errors import BadInputError, MissingError, OutOfMemoryError
from fnabench.experiment import Experiment
from fnabench.references import Reference, Verification, judge, read_references, save_verification
from fnabench.run import run
from fnabench.store import Store

OURS = ("task", "attention", "probe", "layers", "data.limit")
"""What a reference fixes, with everything below it."""


def main() -> None:
    """The command line; exit code 0 where all references are met, 1 where one is not, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="fnabench verify", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fixed subset with its own, wider tolerance")
    parser.add_argument("overrides", nargs="*", help="model=... data=... and, for example, device=cuda data.root=...")
    given = parser.parse_args()
    passed: list[bool] = []
    tell_mistakes(lambda: passed.extend(each.passed for each in verify(given.overrides, quick=given.quick)))
    sys.exit(0 if all(passed) else 1)


def verify(overrides: Sequence[str], *, quick: bool) -> list[Verification]:
    """Run, compare, store and print every reference of the model on the data."""
    verifications = []
    for reference in find_references(overrides, quick=quick):
        settings = [f"task={reference.task}", "attention=exact", "probe=none", *reference.settings]
        limit = [f"data.limit={reference.limit}"] if reference.limit else []
        cfg, choices = compose([*settings, *limit, *overrides])
        outcome = run(Experiment.of(cfg, choices), Store(Path(cfg.results_dir)), rerun=cfg.rerun)
        if outcome.record.status != "complete":
            raise OutOfMemoryError(f"out of memory; recorded in {outcome.folder}; give a smaller loader.batch_size=...")
        verification = judge(reference, outcome.record, overrides)
        print_verification(verification, save_verification(Path(cfg.results_dir), verification))
        verifications.append(verification)
    return verifications


def find_references(overrides: Sequence[str], *, quick: bool) -> list[Reference]:
    """The references of the model and the data that the overrides name; says what is known where there is none."""
    given = {name.lstrip("+~"): value for name, _, value in (each.partition("=") for each in overrides)}
    if fixed := [name for name in given if name in OURS or name.startswith(("task.", "attention.", "probe."))]:
        raise BadInputError(
            f"verify does not take {fixed[0]}: it runs exact attention by the reference's own protocol; take it out"
        )
    model, data = given.get("model"), given.get("data")
    references = read_references()
    known = [each for each in references if each.model == model]
    found = [each for each in known if each.data == data and (each.limit is not None) == quick]
    if found:
        return found
    if quick and any(each.data == data for each in known):
        raise MissingError(f"no subset has a reference for model={model} data={data}; leave --quick out")
    if known:
        raise MissingError(
            f"no reference is known for model={model} data={data}; for this model there are: "
            f"{', '.join(f'data={name}' for name in sorted({each.data for each in known}))}"
        )
    raise MissingError(
        f"no reference is known for model={model} data={data}; give both, with one of these models: "
        f"{', '.join(sorted({each.model for each in references}))}"
    )


def print_verification(verification: Verification, path: Path) -> None:
    """The comparison as a table, and where its proof lies."""
    reference = verification.reference
    console = Console()
    if not console.is_terminal:
        console.width = 100
    part = f"the first {verification.num_samples} samples" if reference.limit else f"{verification.num_samples} samples"
    table = Table(title=f"{reference.model}, {reference.name}, exact attention, {part}", title_justify="left")
    for column in ("metric", "reference (%)", "here (%)", "difference", "tolerance", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right")
    for metric, expected in reference.expected.items():
        difference = verification.measured[metric] - expected
        table.add_row(
            metric,
            f"{expected:.2f}",
            f"{verification.measured[metric]:.2f}",
            f"{difference:+.2f}",
            f"{reference.tolerance:.2f}",
            "PASS" if abs(difference) <= reference.tolerance + 1e-9 else "FAIL",
        )
    console.print(table)
    console.print(f"{'PASS' if verification.passed else 'FAIL'}: {reference.source}; stored in {path}", soft_wrap=True)
