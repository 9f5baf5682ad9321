"""How wrong FNA can be where landmarks know nothing of the others: `python -m fnabench.bench.bounds [folder]`.

The error of the attention output over that of the naive answer, the mean of the landmarks' values for every query: on
drawn tokens in groups and without any, with and without directions that fade by factors of up to 1e8.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING

import torch

from fnabench.attention.base import AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.bench.inputs import CPU, grouped_inputs, noise_inputs, with_fading_directions
from fnabench.bench.report import Table, write

if TYPE_CHECKING:
    from torch import Tensor

NUM_DRAWS = 200
NUM_LANDMARKS = 12
FORMS: Mapping[str, Fna | FnaRefined] = {
    "fna": Fna(num_landmarks=NUM_LANDMARKS),
    "fna_refined": FnaRefined(num_landmarks=NUM_LANDMARKS),
    "fna_refined, ridge=0.1": FnaRefined(num_landmarks=NUM_LANDMARKS, ridge=0.1),
    "fna_refined, shrink": FnaRefined(num_landmarks=NUM_LANDMARKS, shrink=True),
}
TOKENS: Mapping[str, Callable[[int, int], AttentionInputs]] = {
    "in groups": grouped_inputs,
    "in groups, fading directions": lambda seed, tokens: _fading(grouped_inputs(seed, tokens), seed),
    "noise": noise_inputs,
    "noise, fading directions": lambda seed, tokens: _fading(noise_inputs(seed, tokens), seed),
    "noise, sharp attention": partial(noise_inputs, sharpness=2.0),
}


def main() -> None:
    """Run all of it and write results/bench/bounds.{json,md}."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench")
    torch.set_num_threads(1)
    with torch.inference_mode():
        table = bounds(NUM_DRAWS)
    path = write(folder, "bounds", "How wrong FNA can be", [], CPU, [table])
    print(path.read_text(encoding="utf-8"))


def bounds(num_draws: int) -> Table:
    """Each form on each kind of tokens, so many draws of 24 to 120 tokens."""
    lines = []
    for kind, draw in TOKENS.items():
        drawn = [draw(seed, Random(seed).randint(24, 120)) for seed in range(num_draws)]
        for form, core in FORMS.items():
            ratios = [over_naive(core, inputs) for inputs in drawn]
            above = 100 * sum(ratio > 1 for ratio in ratios) / num_draws
            lines.append((kind, form, median(ratios), max(ratios), above))
    title = f"Error over that of the landmarks' mean value: {num_draws} draws, M={NUM_LANDMARKS}"
    return Table(title=title, columns=("tokens", "form", "median", "largest", "above 1, % of the draws"), lines=lines)


def over_naive(core: Fna | FnaRefined, inputs: AttentionInputs) -> float:
    """The error of the output over that of the mean of the landmarks' values, both against exact attention."""
    inputs = replace(inputs, memo={})
    output = core(inputs).double()
    naive = inputs.memo["landmarks"].gather(inputs.v).double().mean(2, keepdim=True)
    q, k, v = (each.double() for each in (inputs.q, inputs.k, inputs.v))
    exact = Exact()(replace(inputs, q=q, k=k, v=v))
    return _norm(output - exact) / _norm(naive - exact)


def _fading(inputs: AttentionInputs, seed: int) -> AttentionInputs:
    return with_fading_directions(inputs, 10 ** Random(seed).uniform(0, 8))


def _norm(error: Tensor) -> float:
    return float(torch.linalg.vector_norm(error))


if __name__ == "__main__":
    main()
