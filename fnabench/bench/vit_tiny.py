"""The real ViT-Ti that attention is judged on: model=vit_tiny, data=imagenet_sample, by task=fidelity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.bench.inputs import CPU
from fnabench.bench.report import Table, compare_arms
from fnabench.configurations import CONF
from fnabench.cost import Probe, capture_inputs, core_arm
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

MODEL, DATA = "vit_tiny", "imagenet_sample"
KEPT = Path("results/.bench")
"""Where records are kept: a benchmark that was cut off goes on, and several processes share the work."""
FEWER_IMAGES = 100
"""At most so many where a table compares many variants."""
COST_COLUMNS = ("form", "M", "KL", "attention, ms", "attention, GMAC", "exact / form [95 %]")


def against_cost(forms: Mapping[str, Mapping[float, Attention]], num_images: int, num_rounds: int = 20) -> Table:
    """KL over the images of variants, each form by the number that sets it, and what the attention of blocks 6..11
    takes for one of them, side by side with exact attention."""
    measured = [
        (name, size, core, fidelity(core, 384, num_images).kl)
        for name, cores in forms.items()
        for size, core in cores.items()
    ]
    captured = real_inputs(num_images=1)
    arms = {"exact": core_arm(Exact(), captured)}
    arms |= {f"{name} {size}": core_arm(core, captured) for name, size, core, _ in measured}
    timings = interleave(arms, num_rounds, CPU)
    shapes = [layer.shape(captured[0].q.shape[2]) for layer in backbone(384).layers.select("6:")]
    lines: list[tuple[object, ...]] = []
    for name, size, core, kl in measured:
        row = compare_arms("", timings, "exact", f"{name} {size}")
        lines.append((name, size, kl, row.arm_ms, attention_macs(core, shapes) / 1e9, f"{row.ratio}"))
    lines.insert(0, ("exact", "", 0.0, row.baseline_ms, attention_macs(Exact(), shapes) / 1e9, ""))
    title = f"Error against cost: ViT-Ti, 384 px, blocks 6..11, {num_images} images"
    return Table(title=title, columns=COST_COLUMNS, lines=lines)


class Fidelity(NamedTuple):
    """One variant on the real model."""

    kl: float
    attention_error: float
    agreement: float
    top1: float
    top1_difference: str
    """To exact attention on the same images, in points, with its 95 % interval."""


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
