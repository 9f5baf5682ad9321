"""What both FNA forms save on a CPU: `python -m fnabench.bench.fna [folder]`.

Timed side by side on one thread, fp32: the attention operation with one selection for six layers, the selection alone,
and a whole ViT-S at 1024 px, half of its layers replaced, beside attention that costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from fnabench.attention.base import AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.forwards import compare_forwards
from fnabench.bench.inputs import CPU, random_inputs
from fnabench.bench.report import Row, Table, compare_arms, write
from fnabench.cost import core_arm
from fnabench.progress import stderr
from fnabench.timing import Arm, interleave

GOALS = {(1025, "fna"): "at least 4.5", (1025, "fna_refined"): "at least 3.5", (4097, "fna"): "at least 20",
         (4097, "fna_refined"): "at least 16"}  # fmt: skip


def attention_operation() -> Iterator[Row]:
    """Fused exact attention beside both forms: 12 heads of width 64, fp32, one image, one selection for 6 layers."""
    for num_tokens, num_rounds in ((577, 30), (1025, 20), (4097, 6)):
        captured = random_inputs(num_tokens, num_layers=6)
        cores = {"exact": Exact(), "fna": Fna(), "fna_refined": FnaRefined()}
        arms = {name: core_arm(core, captured) for name, core in cores.items()}
        arms["fna_refined, selection alone"] = Arm(run=partial(_choose, captured[0]))
        timings = interleave(arms, num_rounds, CPU)
        what = f"attention, N={num_tokens}, M=64, 6 layers a selection"
        for arm in arms:
            if arm != "exact":
                yield compare_arms(what, timings, "exact", arm, GOALS.get((num_tokens, arm), ""))


def _choose(inputs: AttentionInputs) -> None:
    FnaRefined().choose(replace(inputs, memo={}), None)


def selection(rows: Sequence[Row]) -> Table:
    """What choosing landmarks and cells takes of the time that the refined form saves."""
    lines = []
    for row in rows:
        whole = next(each for each in rows if each.what == row.what and each.arm == "fna_refined")
        if row.arm.endswith("selection alone"):
            saved = whole.baseline_ms - whole.arm_ms
            lines.append((row.what, row.arm_ms, saved, 100 * row.arm_ms / saved))
    return Table(
        title="Landmark selection", columns=("what", "selection, ms", "time saved, ms", "share %"), lines=lines
    )


def whole_model() -> Iterator[Row]:
    """A forward of a random ViT-S at 1024 px: attention for free over the variant is the share of the ceiling."""
    return compare_forwards(
        "forward, ViT-S, 1024 px, 6 of 12 layers, M=64",
        "vit_small_patch16_224",
        torch.rand(1, 3, 1024, 1024),
        {"fna": Fna(), "fna_refined": FnaRefined()},
        num_rounds=6,
        goal="at least 0.97",
    )


def main() -> None:
    """Run all of it and write results/bench/fna.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    torch.set_num_threads(1)
    rows = []
    with torch.inference_mode():
        for row in chain(attention_operation(), whole_model()):
            stderr.print(f"{row.what}: {row.arm} {row.ratio}")
            rows.append(row)
    path = write(folder, "fna", "FNA as published and refined, on a CPU", rows, CPU, [selection(rows)])
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
