"""The fused kernels on an NVIDIA GPU: `python -m fnabench.bench.gpu [folder]` tests, profiles and times them, offline.

Timed: the attention of 12 layers side by side in one process, landmark selection included, once a forward; exact
attention on its fastest backend, FNA as published, refined FNA in plain PyTorch, and the kernels, launched one by one
and as one CUDA graph, on landmarks by the head mean of q; the plain form is given the cells. Besides them the variant:
attention=fna_refined with its default settings, sinks and a sketch of the block's input, fused=true and fused=false.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fnabench.attention.base import AttentionInputs
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.landmarks import farthest_points
from fnabench.bench.report import Row, compare_arms, write
from fnabench.errors import FnabenchError, MissingError
from fnabench.kernels import reference
from fnabench.kernels.farthest_points import Sampled, sample_farthest_points
from fnabench.kernels.limits import require_triton
from fnabench.kernels.refined_attention import refined_attention
from fnabench.sdpa import fastest_backend, run_preferring
from fnabench.timing import Arm, interleave

GOALS = {1025: 4, 2305: 9, 4097: 16, 9217: 35}
"""Tokens, and how many times faster than exact attention the kernels are meant to be."""
RIDGE = 1e-3
ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/test_kernels.py", "tests/test_fused.py")


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
    """Run all of it and write results/bench/gpu.{json,md}; 2 where this machine cannot, 1 where a test fails."""
    folder, device = Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench"), torch.device("cuda")
    try:
        if not torch.cuda.is_available():
            raise MissingError("bench-gpu needs an NVIDIA GPU, and torch finds no CUDA device on this machine")
        require_triton(device)
    except FnabenchError as error:
        print(error, file=sys.stderr)
        return 2
    tests = run_tests()
    if tests is None:
        return 1
    rows, notes = [], {"the kernels' tests on this device": tests}
    with torch.inference_mode():
        for num_tokens in GOALS:
            case = Case(num_tokens=num_tokens, device=device)
            notes |= profile_kernels(case)
            for row in compare_forms(case, num_rounds=20):
                print(f"{row.what}: {row.arm} {row.ratio}", file=sys.stderr)
                rows.append(row)
    title = "Refined attention on a GPU: bf16, batch 16, 16 heads of 64 channels, 64 landmarks, 12 layers a selection"
    print(write(folder, "gpu", title, rows, device, notes=notes).read_text(encoding="utf-8"))
    return 0


def run_tests() -> str | None:
    """The last line of the kernels' tests on this device; None where one fails."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, file=sys.stderr)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else None


def compare_forms(case: Case, num_rounds: int) -> Iterator[Row]:
    """Exact attention beside each approximation, and the kernels beside the plain form."""
    inputs = case.inputs()
    sampled = _sample(inputs, case)
    forms: dict[str, Callable[[], object]] = {
        "exact": _layers(case, partial(_exact, inputs)),
        "fna": partial(_fna, inputs, case),
        "plain": partial(_plain, inputs, case, sampled),
        "fused": partial(_fused, inputs, case),
        "fused, selection alone": partial(_sample, inputs, case),
        "variant": partial(_variant, inputs, case, fused=True),
        "variant, not fused": partial(_variant, inputs, case, fused=False),
        "variant, selection alone": partial(_select, inputs, case),
    }
    if case.device.type == "cuda":
        forms["fused, one graph"] = capture(forms["fused"])
        forms["variant, one graph"] = capture(forms["variant"])
    backend = fastest_backend(inputs, case.device)
    forms["exact"] = partial(run_preferring, backend, forms["exact"])
    arms = {name: Arm(run=run) for name, run in forms.items()}
    timings = interleave(arms, num_rounds, case.device)
    what = f"attention, N={case.num_tokens}, exact by {backend.name.lower()}"
    for arm in forms:
        if arm != "exact":
            fused = arm.removesuffix(", one graph") in ("fused", "variant") and case.num_tokens in GOALS
            goal = f"at least {GOALS[case.num_tokens]}" if fused else ""
            yield compare_arms(what, timings, "exact", arm, goal)
    yield compare_arms(what, timings, "plain", "fused")
    yield compare_arms(what, timings, "variant, not fused", "variant")


def profile_kernels(case: Case) -> dict[str, str]:
    """What the kernels launch, that nothing waits for the device, and how far they are from the plain form."""
    inputs = case.inputs()
    sampled = _sample(inputs, case)
    steps: Mapping[str, Callable[[], object]] = {
        "selection": partial(_sample, inputs, case),
        "the variant's selection": partial(_select, inputs, case),
        "a layer": partial(_attend, inputs, sampled),
    }
    notes = {}
    for name, step in steps.items():
        step()
        with refusing_syncs(case.device):
            step()
        launched = launches(step)
        listed = ", ".join(launched) or "none seen"
        notes[f"N={case.num_tokens}, {name}"] = f"{len(launched)} launches, no wait for the device: {listed}"
    plain = _reference(inputs, sampled)
    error = float((_attend(inputs, sampled).float() - plain.float()).norm() / plain.float().norm())
    notes[f"N={case.num_tokens}, fused against plain"] = f"relative difference {error:.1e}"
    return notes


@contextmanager
def refusing_syncs(device: torch.device) -> Iterator[None]:
    """Whatever makes the host wait for a CUDA device raises."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def launches(step: Callable[[], object]) -> list[str]:
    """The names of what one call runs on a CUDA device, copies included."""
    if not torch.cuda.is_available():
        return []
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return [event.name for event in profiler.events() if event.device_type.name == "CUDA"]


def capture(run: Callable[[], object]) -> Callable[[], object]:
    """The call as one CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


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
