"""What the harness and the seam add, and what FNA saves on a CPU: `python -m fnabench.bench.harness [folder]`.

Timed: a whole accuracy pass through the harness beside a bare torch loop over the same batches; a forward with exact
attention through the seam beside the untouched model; the attention operation alone, landmark selection included. All
on one thread, so that the ratios do not depend on how many cores are free.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import timm
import torch
from hydra.utils import get_class
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fnabench.attention.base import Attention
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.bench.inputs import CPU, random_inputs, to_tensor
from fnabench.bench.report import Row, compare_arms, write
from fnabench.cost import attach_alone, core_arm
from fnabench.data.base import Sample, Source
from fnabench.loader import Loader
from fnabench.models.timm_vit import TimmBackbone
from fnabench.progress import stderr, steps
from fnabench.timing import Arm, interleave

NUM_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Noise(Source):
    """Images of noise: what is in them does not change the time."""

    num_images: int
    edge: int

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"label"})

    def check(self) -> None:
        pass

    def fingerprint(self) -> str:
        return f"noise {self.num_images} {self.edge}"

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(256, size=(self.edge, self.edge, 3), dtype=np.uint8)
        return Sample(id=str(index), image=Image.fromarray(pixels), label=index)


def main() -> None:
    """Run all of it and write results/bench/harness.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    torch.set_num_threads(1)
    rows = []
    with torch.inference_mode():
        for row in chain(accuracy_pass(), seam(), attention_operation()):
            stderr.print(f"{row.what}: {row.arm} {row.ratio}")
            rows.append(row)
    path = write(folder, "harness", "The harness, the seam and FNA as published, on a CPU", rows, CPU)
    print(path.read_text(encoding="utf-8"))


def accuracy_pass() -> Iterator[Row]:
    """The harness's accuracy pass beside a bare loop over the same transformed images."""
    backbone = TimmBackbone(timm.create_model("vit_tiny_patch16_224").eval(), to_tensor)
    source = Noise(num_images=NUM_IMAGES, edge=224)
    task = get_class("fnabench.tasks.classification.Classification")()

    def harness() -> None:
        with steps("harness", NUM_IMAGES) as advance:
            loader = Loader(
                source=source, transform=to_tensor, batch_size=NUM_IMAGES, num_workers=0, device=CPU,
                dtype=torch.float32, on_batch=advance,
            )  # fmt: skip
            task.evaluate(backbone, loader, {})

    def bare() -> None:
        correct = 0
        for images, labels in DataLoader(_Pairs(source), batch_size=NUM_IMAGES):
            correct += int((backbone.module(images).argmax(-1) == labels).sum())

    arms = {"bare torch loop": Arm(run=bare), "harness": Arm(run=harness)}
    timings = interleave(arms, 40, CPU)
    yield compare_arms(
        f"accuracy pass, ViT-Ti, {NUM_IMAGES} images", timings, "bare torch loop", "harness", "at least 0.97"
    )


def seam() -> Iterator[Row]:
    """Exact attention through the seam beside the untouched model, end to end."""
    for edge, num_rounds in ((224, 200), (384, 80)):
        backbone = TimmBackbone(timm.create_model("vit_tiny_patch16_224", img_size=edge).eval(), to_tensor)
        image = torch.rand(1, 3, edge, edge)
        every = list(backbone.layers)
        run = partial(backbone.classify, image)
        arms = {
            "native": Arm(prepare=backbone.layers.detach, run=run),
            "exact": Arm(prepare=partial(attach_alone, backbone, Exact(), every), run=run),
        }
        timings = interleave(arms, num_rounds, CPU)
        yield compare_arms(f"forward, ViT-Ti, {edge} px", timings, "native", "exact", "at least 0.98")


def attention_operation() -> Iterator[Row]:
    """Fused exact attention beside FNA: 12 heads of width 64, fp32, one image, 64 landmarks."""
    for num_tokens, num_rounds, goal in ((197, 60, ""), (577, 30, ""), (1025, 20, ""), (4097, 6, "at least 12")):
        for num_layers in (1, 6):
            captured = random_inputs(num_tokens, num_layers)
            arms = {name: core_arm(core, captured) for name, core in _variants().items()}
            timings = interleave(arms, num_rounds, CPU)
            what = f"attention, N={num_tokens}, {num_layers} layer{'s' if num_layers > 1 else ''} a selection"
            for arm in ("fna, q", "fna, input"):
                bound = goal if arm == "fna, q" else ""
                yield compare_arms(what, timings, "exact", arm, bound)


def _variants() -> dict[str, Attention]:
    return {"exact": Exact(), "fna, q": Fna(features="q"), "fna, input": Fna(features="input")}


class _Pairs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, source: Noise) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        sample = self.source[index]
        assert sample.image is not None
        return to_tensor(sample.image), index


if __name__ == "__main__":
    main()
