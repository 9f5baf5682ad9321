"""How near both FNA forms stay to exact attention: `python -m fnabench.bench.fidelity [folder] [number of images]`.

On the real ViT-Ti (model=vit_tiny, data=imagenet_sample), by task=fidelity: every ingredient of the refined form, both
forms at several sizes and numbers of landmarks, how few landmarks suffice, and error against cost, of which `fnabench
figures fidelity` makes a picture.
Planted sinks: that model's attention inputs, with one patch made to take a given share of the attention.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from fnabench.attention.base import Attention
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.inputs import CPU, random_inputs
from fnabench.bench.report import Table, compare_arms, write
from fnabench.bench.sinks import planted_sinks
from fnabench.bench.vit_tiny import FEWER_IMAGES, against_cost, fidelity, real_inputs
from fnabench.cost import core_arm
from fnabench.progress import stderr
from fnabench.timing import interleave

NUM_IMAGES = 500
OFFICIAL = {
    "scatter": False, "inverse": "newton_schulz", "cells": False, "features": "q", "num_sinks": 0, "sketch": 0,
}  # fmt: skip
ABLATION: Mapping[str, dict[str, object]] = {
    "official": OFFICIAL,
    "+ scatter": OFFICIAL | {"scatter": True},
    "+ ridge": OFFICIAL | {"scatter": True, "inverse": "ridge"},
    "+ cells": {"features": "q", "num_sinks": 0, "sketch": 0},
    "+ input as features": {"num_sinks": 0, "sketch": 0},
    "+ two sinks": {"sketch": 0},
    "+ sketch (default)": {},
    "+ over": {"over": 2},
    "default, correction shrunken": {"shrink": True},
    "default, landmarks by k-means": {"method": "kmeans", "num_refinements": 1},
}
"""From the published form to the refined one, an ingredient at a time."""
TARGET_KL = 1e-2
BUDGETS = (16, 32, 64, 128, 256)


def main() -> None:
    """Run all of it and write results/bench/fidelity.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    num_images = int(sys.argv[2]) if len(sys.argv) > 2 else NUM_IMAGES
    torch.set_num_threads(1)
    tables = []
    with torch.inference_mode():
        fewer = min(num_images, FEWER_IMAGES)
        for make in (
            partial(planted_sinks, real_inputs()),
            partial(equal_fidelity, fewer),
            partial(error_against_cost, fewer),
            partial(ablation, fewer),
            partial(budgets, num_images),
        ):
            tables.append(make())
            stderr.print(tables[-1].text())
    path = write(folder, "fidelity", "FNA as published and refined, beside exact attention", [], CPU, tables)
    print(path.read_text(encoding="utf-8"))


COLUMNS = ("KL", "attention error", "agreement %", "top-1 %", "top-1 less exact's [95 %]")


def ablation(num_images: int) -> Table:
    """The ladder of ingredients at 384 px, M=64, blocks 6..11."""
    lines = [(name, *fidelity(FnaRefined(**options), 384, num_images)) for name, options in ABLATION.items()]  # type: ignore[arg-type]
    return Table(title=f"Ablation: ViT-Ti, 384 px, M=64, blocks 6..11, {num_images} images", columns=("form", *COLUMNS),
                 lines=lines)  # fmt: skip


def budgets(num_images: int) -> Table:
    """Both forms with their default settings at other numbers of landmarks and sizes, and deeper into the model."""
    lines: list[tuple[object, ...]] = []
    for edge, m, layers in ((384, 32, "6:"), (384, 64, "6:"), (384, 128, "6:"), (512, 128, "6:"), (384, 128, "3:")):
        measured = {
            name: fidelity(core, edge, num_images, layers)
            for name, core in (("fna", Fna(num_landmarks=m)), ("fna_refined", FnaRefined(num_landmarks=m)))
        }
        theirs, ours = measured["fna"], measured["fna_refined"]
        kl, error = ours.kl / theirs.kl, ours.attention_error / theirs.attention_error
        lines += [(f"{edge} px, M={m}, blocks {layers} {name}", *values) for name, values in measured.items()]
        lines.append((f"{edge} px, M={m}, blocks {layers} refined / fna", kl, error, "", "", ""))
    over = fidelity(FnaRefined(num_landmarks=128, over=2), 384, num_images, "3:")
    lines.append(("384 px, M=128, blocks 3: fna_refined, over=2", *over))
    return Table(title=f"Both forms, {num_images} images", columns=("form", *COLUMNS), lines=lines)


def equal_fidelity(num_images: int) -> Table:
    """The fewest landmarks that reach the target KL, and what they take."""
    reached: dict[str, Attention] = {}
    lines: list[tuple[object, ...]] = []
    tried: dict[str, list[Fna | FnaRefined]] = {
        "fna": [Fna(num_landmarks=m) for m in (64, 96, 128, 192, 256)],
        "fna_refined": [FnaRefined(num_landmarks=m) for m in (8, 16, 24, 32, 48)],
    }
    for name, cores in tried.items():
        for core in cores:
            kl = fidelity(core, 384, num_images).kl
            lines.append((name, core.num_landmarks, kl, ""))
            reached[name] = core
            if kl <= TARGET_KL:
                break
        else:
            lines.append((name, f"> {core.num_landmarks}", "not reached", ""))
    captured = random_inputs(577, num_layers=6)
    arms = {name: core_arm(core, captured) for name, core in reached.items()}
    row = compare_arms("", interleave(arms, 20, CPU), "fna", "fna_refined")
    lines.append(("time of the last fna / the last fna_refined", "", "", f"{row.ratio}"))
    title = f"Fewest landmarks for KL <= {TARGET_KL}: ViT-Ti, 384 px, blocks 6..11, {num_images} images"
    return Table(title=title, columns=("form", "M", "KL", "attention time, 12 heads"), lines=lines)


def error_against_cost(num_images: int) -> Table:
    """Both forms with ever more landmarks."""
    forms: Mapping[str, Mapping[float, Attention]] = {
        "fna": {m: Fna(num_landmarks=m) for m in BUDGETS},
        "fna_refined": {m: FnaRefined(num_landmarks=m) for m in BUDGETS},
    }
    return against_cost(forms, num_images)


if __name__ == "__main__":
    main()
