"""What else the refined form could have been: `python -m fnabench.bench.alternatives [folder] [number of images]`.

Other features, other ways to choose landmarks, other sketches, on the real ViT-Ti by task=fidelity.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.fidelity import COLUMNS
from fnabench.bench.inputs import CPU
from fnabench.bench.report import Table, write
from fnabench.bench.vit_tiny import FEWER_IMAGES, fidelity

PLAIN = FnaRefined(num_sinks=0, sketch=0)
ALTERNATIVES: Mapping[str, FnaRefined] = {
    "default": FnaRefined(),
    "another sketch": FnaRefined(seed=1),
    "a third sketch": FnaRefined(seed=2),
    "M=32": FnaRefined(num_landmarks=32),
    "M=32, correction shrunken": FnaRefined(num_landmarks=32, shrink=True),
    "no sinks, no sketch": PLAIN,
    "q": replace(PLAIN, features="q"),
    "k": replace(PLAIN, features="k"),
    "q and k": replace(PLAIN, features="qk_concat"),
    "k-means, one step": replace(PLAIN, method="kmeans", num_refinements=1),
    "RPCholesky": replace(PLAIN, method="rpcholesky"),
    "random": replace(PLAIN, method="random"),
    "grid": replace(PLAIN, method="grid"),
    "new landmarks in each block": replace(PLAIN, resample="layer"),
}
"""Below the plain one, what differs from it."""


def main() -> None:
    """Run all of it and write results/bench/alternatives.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    num_images = int(sys.argv[2]) if len(sys.argv) > 2 else FEWER_IMAGES
    torch.set_num_threads(1)
    with torch.inference_mode():
        table = alternatives(num_images)
    path = write(folder, "alternatives", "Alternatives to the ingredients of the refined form", [], CPU, [table])
    print(path.read_text(encoding="utf-8"))


def alternatives(num_images: int) -> Table:
    """All of them at 384 px, M=64 where nothing else is said, blocks 6..11."""
    lines = [(name, *fidelity(core, 384, num_images)) for name, core in ALTERNATIVES.items()]
    return Table(title=f"ViT-Ti, 384 px, M=64, blocks 6..11, {num_images} images", columns=("form", *COLUMNS),
                 lines=lines)  # fmt: skip


if __name__ == "__main__":
    main()
