"""The fused kernels on an NVIDIA GPU: `python -m fnabench.bench.gpu [folder]` tests, profiles and times them, offline.

Takes less than nine minutes. What fails is noted, the rest goes on, and each step writes what there is so far.

Timed: the attention of 12 layers side by side in one process, landmark selection included, once a forward; exact
attention on its fastest backend, FNA as published, refined FNA in plain PyTorch, and the kernels, launched one by one
and as one CUDA graph, on landmarks by the head mean of q; the plain form is given the cells. Besides them the variant:
attention=fna_refined with its default settings, sinks and a sketch of the block's input, fused=true and fused=false.
And memory alone: queries, keys and values read once and as much written, which no form can be faster than.
Last the forward of a whole ViT-L with that variant in half of its layers, beside attention for free.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fnabench.attention.base import AttentionInputs
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.fused import sample_proven
from fnabench.attention.landmarks import farthest_points
from fnabench.bench.attempts import Report, failure
from fnabench.bench.forwards import compare_forwards
from fnabench.bench.kernel_tests import run_tests
from fnabench.bench.launches import capture, launches, refusing_syncs
from fnabench.bench.report import Note, Row, compare_arms
from fnabench.errors import BadInputError, FnabenchError, MissingError
from fnabench.kernels import reference
from fnabench.kernels.farthest_points import Sampled, sample_farthest_points
from fnabench.kernels.limits import require_triton
from fnabench.kernels.proof import BOUND
from fnabench.kernels.refined_attention import refined_attention
from fnabench.sdpa import fastest_backend, run_preferring
from fnabench.timing import Arm, interleave

GOALS = {1025: 4, 2305: 9, 4097: 16, 9217: 35}
"""Tokens, and how many times faster than exact attention the kernels are meant to be."""
IMAGE_SIZES = (512, 1024)
"""Of the whole ViT-L: 1,025 and 4,097 tokens."""
RIDGE = 1e-3
NUM_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of one comparison; by default a ViT-L's."""

    num_tokens: int
    device: torch.device
    batch: int = 16
    num_heads: int = 16
    head_dim: int = 64
    num_landmarks: int = 64
    num_layers: int = 12
    dtype: torch.dtype = torch.bfloat16

    def inputs(self) -> AttentionInputs:
        """Random projections, laid out as timm's fused qkv gives them; every layer reads the same ones."""
        generator = torch.Generator(self.device).manual_seed(self.num_tokens)
        shape = (self.batch, self.num_tokens, 3, self.num_heads, self.head_dim)
        qkv = torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype).permute(2, 0, 3, 1, 4)
        x = qkv[0].transpose(1, 2).flatten(2)
        return AttentionInputs(q=qkv[0], k=qkv[1], v=qkv[2], x=x, layer=0, scale=self.head_dim**-0.5, num_prefix=1)


def main() -> int:
    """Run all of it and write results/bench/gpu.{json,md}; 2 where this machine cannot, 1 where a step fails."""
    folder, device = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench"), torch.device("cuda")
    try:
        if not torch.cuda.is_available():
            raise MissingError("bench-gpu needs an NVIDIA GPU, and torch finds no CUDA device on this machine")
        if os.environ.get("TRITON_INTERPRET"):
            raise BadInputError("bench-gpu times compiled kernels, not interpreted ones; type unset TRITON_INTERPRET")
        require_triton(device)
    except FnabenchError as error:
        print(error, file=sys.stderr)
        return 2
    title = "Refined attention on a GPU: bf16, batch 16, 16 heads of 64 channels, 64 landmarks, 12 layers a selection"
    report = Report(folder=folder, name="gpu", title=title, device=device)
    report.attempt("the kernels' tests on this device", run_tests)
    with torch.inference_mode():
        for num_tokens in GOALS:
            case = Case(num_tokens=num_tokens, device=device)
            report.attempt(f"N={num_tokens}, profile", partial(profile_kernels, case))
            report.attempt(f"N={num_tokens}, timing", partial(compare_forms, case, NUM_ROUNDS))
        for size in IMAGE_SIZES:
            step = partial(compare_models, "vit_large_patch16_224", size, case, NUM_ROUNDS)
            report.attempt(f"ViT-L, {size} px", step)
    print(report.write().read_text(encoding="utf-8"))
    return 1 if any(note.is_failure for note in report.notes) else 0


def compare_forms(case: Case, num_rounds: int) -> Iterator[Row | Note]:
    """Exact attention beside each approximation, and the kernels beside the plain form; a form that fails is noted."""
    inputs = case.inputs()
    what = f"attention, N={case.num_tokens}"
    forms: dict[str, Callable[[], object]] = {
        "exact": _layers(case, partial(_exact, inputs)),
        "fna": partial(_fna, inputs, case),
        "plain": partial(_plain, inputs, case, _sample(inputs, case)),
        "fused": partial(_fused, inputs, case),
        "fused, selection alone": partial(_sample, inputs, case),
        "variant": partial(_variant, inputs, case, fused=True),
        "variant, not fused": partial(_variant, inputs, case, fused=False),
        "variant, selection alone": partial(_select, inputs, case),
        "memory alone": _layers(case, partial(torch.addcmul, inputs.q, inputs.k, inputs.v)),
    }
    ready = {name: partial(_once, form) for name, form in forms.items()}
    if case.device.type == "cuda":
        ready |= {f"{name}, one graph": partial(capture, forms[name]) for name in ("fused", "variant")}
    forms = {}
    for name, make in ready.items():
        try:
            forms[name] = make()
        except Exception as error:  # noqa: BLE001  whatever it is, the other forms may do without
            yield failure(f"{what}: {name}", error)
    backend = fastest_backend(inputs, case.device)
    forms["exact"] = partial(run_preferring, backend, forms["exact"])
    arms = {name: Arm(run=run) for name, run in forms.items()}
    timings = interleave(arms, num_rounds, case.device)
    what += f", exact by {backend.name.lower()}"
    for arm in forms:
        if arm != "exact":
            fused = arm.removesuffix(", one graph") in ("fused", "variant") and case.num_tokens in GOALS
            goal = f"at least {GOALS[case.num_tokens]}" if fused else ""
            yield compare_arms(what, timings, "exact", arm, goal)
    for baseline, arm in (("plain", "fused"), ("variant, not fused", "variant")):
        if baseline in forms and arm in forms:
            yield compare_arms(what, timings, baseline, arm)


def compare_models(architecture: str, image_size: int, case: Case, num_rounds: int) -> Iterator[Row]:
    """What of the ceiling the variant reaches in a whole model, as a user gets it: kernels where they apply."""
    images = torch.rand(case.batch, 3, image_size, image_size, device=case.device, dtype=case.dtype)
    what = f"forward, {architecture}, {image_size} px, half of the layers, M=64"
    return compare_forwards(what, architecture, images, {"variant": FnaRefined()}, num_rounds, "at least 0.95")


def profile_kernels(case: Case) -> Iterator[Note]:
    """What the kernels launch, that nothing waits for the device, and how far they are from the plain form.

    ImpossibleError where landmarks are not the farthest at this size, or cells not the nearest.
    """
    inputs = case.inputs()
    sampled = sample_proven(inputs.q.mean(1), case.num_landmarks, inputs.num_prefix, None, case.num_landmarks, None)
    steps: Mapping[str, Callable[[], object]] = {
        "selection": partial(_sample, inputs, case),
        "the variant's selection": partial(_select, inputs, case),
        "a layer": partial(_attend, inputs, sampled),
    }
    for name, step in steps.items():
        step()
        with refusing_syncs(case.device):
            step()
        names = launches(step)
        seen = "launches not seen" if names is None else f"{len(names)} launches: {', '.join(names)}"
        yield Note(what=f"N={case.num_tokens}, {name}", finding=f"no wait for the device; {seen}")
    plain = _reference(inputs, sampled)
    error = float((_attend(inputs, sampled).float() - plain.float()).norm() / plain.float().norm())
    bound = BOUND[case.dtype]
    yield Note(
        what=f"N={case.num_tokens}, fused against plain",
        finding=f"relative difference {error:.1e}, allowed {bound:.0e}",
        is_failure=not error <= bound,
    )


def _once(run: Callable[[], object]) -> Callable[[], object]:
    """The call, once it has been seen to work."""
    run()
    return run


def _layers(case: Case, layer: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(case.num_layers):
            layer()

    return run


def _exact(inputs: AttentionInputs) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, scale=inputs.scale)


def _fna(inputs: AttentionInputs, case: Case) -> None:
    inputs.memo.clear()
    _layers(case, partial(Fna(num_landmarks=case.num_landmarks), inputs))()


def _plain(inputs: AttentionInputs, case: Case, sampled: Sampled) -> None:
    index = farthest_points(inputs.q.mean(1, dtype=torch.float32), case.num_landmarks, inputs.num_prefix).index
    _layers(case, partial(_reference, inputs, Sampled(index=index, cell_of=sampled.cell_of)))()


def _fused(inputs: AttentionInputs, case: Case) -> None:
    _layers(case, partial(_attend, inputs, _sample(inputs, case)))()


def _variant(inputs: AttentionInputs, case: Case, fused: bool) -> None:
    inputs.memo.clear()
    _layers(case, partial(FnaRefined(num_landmarks=case.num_landmarks, fused=fused), inputs))()


def _select(inputs: AttentionInputs, case: Case) -> Sampled:
    variant = FnaRefined(num_landmarks=case.num_landmarks, fused=True)
    return variant.sample(replace(inputs, memo={}), None)


def _sample(inputs: AttentionInputs, case: Case) -> Sampled:
    return sample_farthest_points(inputs.q.mean(1), case.num_landmarks, inputs.num_prefix)


def _attend(inputs: AttentionInputs, sampled: Sampled) -> Tensor:
    return refined_attention(inputs.q, inputs.k, inputs.v, sampled.index, sampled.cell_of, inputs.scale, RIDGE)


def _reference(inputs: AttentionInputs, sampled: Sampled) -> Tensor:
    return reference.refined_attention(
        inputs.q, inputs.k, inputs.v, sampled.index, sampled.cell_of, inputs.scale, RIDGE
    )


if __name__ == "__main__":
    sys.exit(main())
