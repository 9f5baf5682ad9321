"""FNA as published beside its refined form, on a CPU: `python -m fnabench.bench.fna [folder] [number of images]`.

Fidelity: the real ViT-Ti of conf/model/vit_tiny.yaml on images of conf/data/imagenet_sample.yaml, by task=fidelity.
Planted sinks: the attention inputs of that model, with one patch made to take a given share of the attention.
Timed on one thread, fp32: the attention operation with one selection for six layers, and the selection alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.report import Row, Table, compare_arms, write
from fnabench.cost import attach_alone, capture_inputs, run_cores
from fnabench.data.base import Source
from fnabench.loader import Loader
from fnabench.models.base import Backbone
from fnabench.progress import stderr
from fnabench.scores import SampleScores, Scores
from fnabench.statistics import compare, estimate
from fnabench.timing import Arm, interleave

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf"
NUM_IMAGES = 500
OFFICIAL = {"scatter": False, "inverse": "newton_schulz", "cells": False, "features": "q", "num_sinks": 0}
ABLATION: Mapping[str, dict[str, object]] = {
    "official": OFFICIAL,
    "+ scatter": OFFICIAL | {"scatter": True},
    "+ ridge": OFFICIAL | {"scatter": True, "inverse": "ridge"},
    "+ cells": {"features": "q", "num_sinks": 0},
    "+ input as features": {"num_sinks": 0},
    "+ two sinks (default)": {},
    "+ over": {"over": 2},
    "default, landmarks by k-means": {"method": "kmeans", "num_refinements": 1},
}
"""From the published form to the refined one, an ingredient at a time."""
TARGET_KL = 1e-2


def main() -> None:
    """Run all of it and write results/bench/fna.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    num_images = int(sys.argv[2]) if len(sys.argv) > 2 else NUM_IMAGES
    torch.set_num_threads(1)
    rows, tables = [], []
    with torch.inference_mode():
        for row in attention_operation():
            stderr.print(f"{row.what}: {row.arm} {row.ratio}")
            rows.append(row)
        for table in (ablation(num_images), *budgets(num_images), planted_sinks(), selection(rows)):
            stderr.print(table.text())
            tables.append(table)
    path = write(folder, "fna", "FNA as published and refined, on a CPU", rows, CPU, tables)
    print(path.read_text(encoding="utf-8"))


# Fidelity on the real model


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


def budgets(num_images: int) -> Iterator[Table]:
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
    yield Table(title=f"Both forms, {num_images} images", columns=("form", *COLUMNS), lines=lines)
    yield equal_fidelity(min(num_images, 100))


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
    captured = [random_inputs(577, layer) for layer in range(6)]
    arms = {name: _arm(core, captured) for name, core in reached.items()}
    row = compare_arms("", interleave(arms, 20, CPU), "fna", "fna_refined")
    lines.append(("time of the last fna / the last fna_refined", "", "", f"{row.ratio}"))
    title = f"Fewest landmarks for KL <= {TARGET_KL}: ViT-Ti, 384 px, blocks 6..11, {num_images} images"
    return Table(title=title, columns=("form", "M", "KL", "attention time, 12 heads"), lines=lines)


def fidelity(core: Attention, edge: int, num_images: int, layers: str = "6:") -> Fidelity:
    """How near one variant stays to exact attention."""
    source = images(num_images)
    scores, exact = (_scores(each, edge, num_images, layers) for each in (core, Exact()))
    correct = _correct(scores, source)
    difference = compare(correct, _correct(exact, source)).difference.times(100)
    metrics = {name: estimate(each).value for name, each in scores.metrics.items()}
    stderr.print(f"{edge} px, blocks {layers}: KL {metrics['kl']:.5f} of {core}")
    return Fidelity(
        kl=metrics["kl"],
        attention_error=metrics["attention_error"],
        agreement=100 * metrics["top1_agreement"],
        top1=100 * correct.value,
        top1_difference=f"{difference:.2f}",
    )


@cache
def _scores(core: Attention, edge: int, num_images: int, layers: str) -> Scores:
    made = backbone(edge)
    attach_alone(made, core, list(made.layers.select(layers)))
    task = get_class("fnabench.tasks.fidelity.Fidelity")()
    scores: Scores = task.evaluate(made, _loader(made, images(num_images)), {})
    return scores


def _correct(scores: Scores, source: Source) -> SampleScores:
    kl = scores.metrics["kl"]
    assert kl.predictions is not None
    labels = [str(source[index].label) for index in range(len(source))]
    return SampleScores.mean_of((kl.predictions[:, 0] == labels).astype(np.float64), kl.ids)


@cache
def backbone(edge: int) -> Backbone:
    """The model of conf/model/vit_tiny.yaml at this size."""
    config = OmegaConf.load(CONF / "model" / "vit_tiny.yaml")
    made: Backbone = instantiate(config, image_size=edge, _convert_="all").load(CPU, torch.float32)
    return made


@cache
def images(num_images: int) -> Source:
    """So many images of conf/data/imagenet_sample.yaml."""
    source: Source = instantiate(OmegaConf.load(CONF / "data" / "imagenet_sample.yaml"), limit=num_images)
    return source


def _loader(made: Backbone, source: Source) -> Loader:
    return Loader(source=source, transform=made.transform, batch_size=8, num_workers=0, device=CPU, dtype=torch.float32)


# Planted sinks


def planted_sinks() -> Table:
    """The error of the attention output where one patch takes a share of every head's attention."""
    made = backbone(384)
    batch = _loader(made, images(8)).first(8)
    layers = list(made.layers.select("6:"))
    captured = capture_inputs(made, layers, lambda model, given: model.encode_image(given.images), batch)
    forms = {"fna": Fna(), "refined": FnaRefined(), "refined, no guarantee": FnaRefined(num_sinks=0)}
    lines: list[tuple[object, ...]] = []
    for mass in (0.0, 0.3, 0.6, 0.9):
        inputs = [plant(each, mass) for each in captured] if mass else captured
        errors = {name: np.mean([_error(core, each) for each in inputs]) for name, core in forms.items()}
        lines.append((mass, *map(float, errors.values()), float(errors["refined"] / errors["fna"])))
    title = "Attention-output error with a planted sink: ViT-Ti, 384 px, M=64, 8 images, blocks 6..11"
    return Table(title=title, columns=("share of the mass", *forms, "refined / fna"), lines=lines)


def plant(inputs: AttentionInputs, mass: float) -> AttentionInputs:
    """One patch, another in each image, whose key lies along each head's mean query, as long as the share needs."""
    B, H, N, _ = inputs.q.shape
    sink = inputs.num_prefix + torch.randperm(N - inputs.num_prefix, generator=torch.Generator().manual_seed(0))[:B]
    direction = inputs.q.mean(2)  # [B, H, D]
    pull = inputs.scale * (inputs.q @ direction[..., None])[..., 0]  # [B, H, N], the logit of a key of length 1
    is_sink = torch.arange(N) == sink[:, None]
    logits = (inputs.scale * inputs.q @ inputs.k.mT).masked_fill(is_sink[:, None, None], -torch.inf)
    rest = logits.logsumexp(-1)  # [B, H, N]
    low, high = torch.zeros(B, H, 1), torch.full((B, H, 1), 1e4)
    for _ in range(60):  # the share grows with the length
        length = (low + high) / 2
        is_short = (length * pull - rest).sigmoid().mean(-1, keepdim=True) < mass
        low, high = torch.where(is_short, length, low), torch.where(is_short, high, length)
    k = inputs.k.clone()
    k[torch.arange(B), :, sink] = high * direction
    return replace(inputs, k=k, memo={})


def _error(core: Attention, inputs: AttentionInputs) -> float:
    exact = scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, scale=inputs.scale)
    off = core(replace(inputs, memo={})) - exact
    return float((off.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).mean())


# Time

GOALS = {(1025, "fna"): "at least 4.5", (1025, "fna_refined"): "at least 3.5", (4097, "fna"): "at least 20",
         (4097, "fna_refined"): "at least 16"}  # fmt: skip


def attention_operation() -> Iterator[Row]:
    """Fused exact attention beside both forms: 12 heads of width 64, fp32, one image, one selection for 6 layers."""
    for num_tokens, num_rounds in ((577, 30), (1025, 20), (4097, 6)):
        captured = [random_inputs(num_tokens, layer) for layer in range(6)]
        cores = {"exact": Exact(), "fna": Fna(), "fna_refined": FnaRefined()}
        arms = {name: _arm(core, captured) for name, core in cores.items()}
        arms["fna_refined, selection alone"] = Arm(prepare=lambda: None, run=partial(_choose, captured[0]))
        timings = interleave(arms, num_rounds, CPU)
        what = f"attention, N={num_tokens}, M=64, 6 layers a selection"
        for arm in arms:
            if arm != "exact":
                yield compare_arms(what, timings, "exact", arm, GOALS.get((num_tokens, arm), ""))


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


def random_inputs(num_tokens: int, layer: int) -> AttentionInputs:
    """Random projections, laid out as timm's fused qkv gives them."""
    generator = torch.Generator().manual_seed(layer)
    qkv = torch.randn(1, num_tokens, 3, 12, 64, generator=generator).permute(2, 0, 3, 1, 4)
    x = torch.randn(1, num_tokens, 768, generator=generator)
    return AttentionInputs(q=qkv[0], k=qkv[1], v=qkv[2], x=x, layer=layer, scale=0.125, num_prefix=1)


def _choose(inputs: AttentionInputs) -> None:
    FnaRefined().choose(replace(inputs, memo={}), None)


def _arm(core: Attention, captured: Sequence[AttentionInputs]) -> Arm:
    return Arm(prepare=lambda: None, run=partial(run_cores, core, captured))


if __name__ == "__main__":
    main()
