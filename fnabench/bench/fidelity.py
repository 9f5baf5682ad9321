"""How near both FNA forms stay to exact attention: `python -m fnabench.bench.fidelity [folder] [number of images]`.

On the real ViT-Ti (model=vit_tiny, data=imagenet_sample), by task=fidelity: every ingredient of the refined form, both
forms at several sizes and numbers of landmarks, how few landmarks suffice, and error against cost, of which `fnabench
figures fidelity` makes a picture.
Planted sinks: that model's attention inputs, with one patch made to take a given share of the attention.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.inputs import CPU, core_arm, random_inputs
from fnabench.bench.report import Table, compare_arms, write
from fnabench.bench.sinks import planted_sinks
from fnabench.cost import Probe, capture_inputs
from fnabench.data.base import Source
from fnabench.experiment import Experiment
from fnabench.loader import Loader
from fnabench.macs import attention_macs
from fnabench.models.base import Backbone, Model
from fnabench.progress import stderr
from fnabench.run import run
from fnabench.scores import SampleScores
from fnabench.statistics import compare
from fnabench.store import Store, read_scores
from fnabench.timing import interleave

CONF = Path(__file__).parents[2] / "conf"
MODEL, DATA = "vit_tiny", "imagenet_sample"
KEPT = Path("results/.bench")
"""Where records are kept: a benchmark that was cut off goes on, and several processes share the work."""
NUM_IMAGES = 500
FEWER_IMAGES = 100
"""At most so many where a table compares many variants."""
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
COST_COLUMNS = ("form", "M", "KL", "attention, ms", "attention, GMAC", "exact / form [95 %]")


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


class Fidelity(NamedTuple):
    """One variant on the real model."""

    kl: float
    attention_error: float
    agreement: float
    top1: float
    top1_difference: str
    """To exact attention on the same images, in points, with its 95 % interval."""


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


def error_against_cost(num_images: int, num_rounds: int = 20) -> Table:
    """KL over the images, and what the attention of blocks 6..11 takes for one of them, side by side."""
    forms: dict[str, list[Fna | FnaRefined]] = {
        "fna": [Fna(num_landmarks=m) for m in (16, 32, 64, 128, 256)],
        "fna_refined": [FnaRefined(num_landmarks=m) for m in (16, 32, 64, 128, 256)],
    }
    measured = [(name, core, fidelity(core, 384, num_images).kl) for name, cores in forms.items() for core in cores]
    captured = real_inputs(num_images=1)
    arms = {"exact": core_arm(Exact(), captured)}
    arms |= {f"{name} {core.num_landmarks}": core_arm(core, captured) for name, core, _ in measured}
    timings = interleave(arms, num_rounds, CPU)
    shapes = [layer.shape(captured[0].q.shape[2]) for layer in backbone(384).layers.select("6:")]
    lines: list[tuple[object, ...]] = []
    for name, core, kl in measured:
        row = compare_arms("", timings, "exact", f"{name} {core.num_landmarks}")
        lines.append((name, core.num_landmarks, kl, row.arm_ms, attention_macs(core, shapes) / 1e9, f"{row.ratio}"))
    lines.insert(0, ("exact", "", 0.0, row.baseline_ms, attention_macs(Exact(), shapes) / 1e9, ""))
    title = f"Error against cost: ViT-Ti, 384 px, blocks 6..11, {num_images} images"
    return Table(title=title, columns=COST_COLUMNS, lines=lines)


def fidelity(core: Attention, edge: int, num_images: int, layers: str = "6:") -> Fidelity:
    """How near one variant stays to exact attention, from the record of task=fidelity or by running it now."""
    experiment = Experiment(
        task=get_class("fnabench.tasks.fidelity.Fidelity")(),
        source=images(num_images),
        model=_model(edge),
        attention=core,
        probe=Probe(num_rounds=0),
        layers=layers,
        device=CPU,
        dtype=torch.float32,
        batch_size=8,
        num_workers=0,
        seed=0,
        names={"task": "fidelity", "data": DATA, "model": MODEL, "attention": type(core).__module__.rpartition(".")[2]},
        config={},
    )
    store = Store(KEPT)
    outcome = run(experiment, store)
    metrics = {name: score.value for name, score in outcome.record.scores.items()}
    correct, exact = (_correct(store.folder(each), num_images) for each in (outcome.record, outcome.exact))
    stderr.print(f"{edge} px, blocks {layers}: KL {metrics['kl']:.5f} of {core}")
    return Fidelity(
        kl=metrics["kl"],
        attention_error=metrics["attention_error"],
        agreement=100 * metrics["top1_agreement"],
        top1=100 * correct.value,
        top1_difference=f"{compare(correct, exact).difference.times(100):.2f}",
    )


def _correct(folder: Path, num_images: int) -> SampleScores:
    """Whether a record's variant named the class, by image."""
    kl = read_scores(folder, "kl")
    assert kl.predictions is not None
    return SampleScores.mean_of((kl.predictions[:, 0] == _labels(num_images)).astype(np.float64), kl.ids)


@cache
def _labels(num_images: int) -> list[str]:
    """As predictions are stored."""
    source = images(num_images)
    return [str(source[index].label) for index in range(num_images)]


def _model(edge: int) -> Model:
    """The model at this size."""
    model: Model = instantiate(OmegaConf.load(CONF / "model" / f"{MODEL}.yaml"), image_size=edge, _convert_="all")
    return model


@cache
def backbone(edge: int) -> Backbone:
    """The model at this size, with its weights."""
    return _model(edge).load(CPU, torch.float32)


@cache
def images(num_images: int) -> Source:
    """So many images of the data."""
    source: Source = instantiate(OmegaConf.load(CONF / "data" / f"{DATA}.yaml"), limit=num_images)
    return source


def real_inputs(num_images: int = 8) -> list[AttentionInputs]:
    """Of blocks 6..11 at 384 px, for so many images."""
    made = backbone(384)
    loader = Loader(
        source=images(num_images), transform=made.transform, batch_size=8, num_workers=0, device=CPU,
        dtype=torch.float32,
    )  # fmt: skip
    batch = loader.first(num_images)
    return capture_inputs(made, made.layers.select("6:"), lambda model, given: model.encode_image(given.images), batch)


if __name__ == "__main__":
    main()
