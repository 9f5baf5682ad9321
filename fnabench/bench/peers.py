"""FNA beside what else replaces attention without training: `python -m fnabench.bench.peers [folder]`.

KL to exact attention on 100 images against the time and the multiply-accumulates of the attention, on the real ViT-Ti;
`fnabench figures fidelity results/bench/peers.json` makes a picture of it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from fnabench.attention.base import Attention
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.nystromformer import Nystromformer
from fnabench.attention.performer import Performer
from fnabench.attention.tome import Tome
from fnabench.bench.inputs import CPU
from fnabench.bench.report import Note, write
from fnabench.bench.vit_tiny import FEWER_IMAGES, against_cost

LANDMARKS = (16, 32, 64, 128)
FORMS: Mapping[str, Mapping[float, Attention]] = {
    "fna": {m: Fna(num_landmarks=m) for m in LANDMARKS},
    "fna_refined": {m: FnaRefined(num_landmarks=m) for m in LANDMARKS},
    "nystromformer": {m: Nystromformer(num_landmarks=m) for m in LANDMARKS},
    "performer": {f: Performer(num_features=f) for f in (64, 256, 1024)},
    "tome": {ratio: Tome(ratio=ratio) for ratio in (0.5, 0.3, 0.1)},
}
"""By the number that sets the cost: landmarks, random features, or the share of patches that is merged."""


def main() -> None:
    """Run all of it and write results/bench/peers.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    torch.set_num_threads(1)
    with torch.inference_mode():
        table = against_cost(FORMS, FEWER_IMAGES)
    sizes = "landmarks of fna, fna_refined and nystromformer, random features of performer, merged share of tome"
    note = Note(what="M", finding=sizes)
    path = write(folder, "peers", "FNA beside other training-free replacements", [], CPU, [table], [note])
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
