"""What an attention variant costs and saves: latency, memory and multiply-accumulates against exact attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from fnabench.attention.base import Attention, AttentionInputs, AttentionShape
from fnabench.attention.exact import Exact
from fnabench.attention.free import Free
from fnabench.attention.layers import AttentionLayer
from fnabench.attention.native import Native
from fnabench.errors import BadInputError
from fnabench.loader import Batch
from fnabench.macs import attention_macs, count_macs, crossover_tokens
from fnabench.memory import Memory, peak_memory
from fnabench.models.base import Backbone
from fnabench.sdpa import fastest_backend, run_preferring, run_preferring_named
from fnabench.statistics import Estimate, median_ratio
from fnabench.timing import Arm, Timings, interleave

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention import SDPBackend

Forward = Callable[[Backbone, Batch], object]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How the cost is measured."""

    batch_size: int = 8
    num_rounds: int = 10
    """Each times every arm twice; 0 measures no cost at all."""
    memory: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_rounds < 0:
            raise BadInputError(
                f"probe.batch_size={self.batch_size} and probe.num_rounds={self.num_rounds} must be at least 1 and 0"
            )


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds for one batch."""

    median_ms: float
    p10_ms: float
    p90_ms: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Exact and variant, measured side by side. Ratios are exact over variant: above 1 the variant is better.

    The cost of exact itself is measured beside exact once more, so its ratios show what chance alone gives.
    """

    batch_size: int
    num_rounds: int
    num_warm_up_rounds: int
    settled: bool
    """Whether the times neither fell nor rose any more when the timing began."""
    sdpa_backend: str
    """The backend on which exact is fastest on this machine; every arm runs on it where it applies."""
    latency: Latency
    exact_latency: Latency
    attention_latency: Latency | None
    """The cores of the replaced layers alone, landmark selection included; None for native, which has no core."""
    exact_attention_latency: Latency
    part_latencies: dict[str, Latency] = field(default_factory=dict)
    """What of attention_latency the variant's named parts take, such as finding the tokens to mask."""
    latency_ratio: Estimate
    attention_latency_ratio: Estimate | None
    ceiling: Estimate
    """The end-to-end ratio if the replaced attention were free, measured with a core that does nothing."""
    memory: Memory | None
    exact_memory: Memory | None
    macs: int
    """For one image, attention included."""
    exact_macs: int
    ceiling_macs: float
    """exact_macs over what is left of them without the replaced attention."""
    crossover_tokens: int | None
    """From so many tokens on the variant always needs fewer multiply-accumulates; None where it does not."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The cost with every repeat behind it."""

    cost: Cost
    end_to_end: Timings
    attention: Timings


def measure_cost(
    backbone: Backbone,
    attention: Attention,
    layers: Sequence[AttentionLayer],
    forward: Forward,
    batch: Batch,
    probe: Probe,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Measurement:
    """Probe a variant on these layers of the backbone against exact attention on the same layers."""
    exact, free = Exact(), Free()
    device = batch.images.device
    one = Batch(images=batch.images[:1], samples=batch.samples[:1])
    with torch.inference_mode():
        captured = capture_inputs(backbone, layers, forward, batch)
        own = captured  # what the variant's cores are given
        if attention.around(free) is not free:
            own = capture_inputs(backbone, layers, forward, batch, attention.around)
        backend = fastest_backend(captured[0], device)
        variant = "exact again" if attention == exact else "variant"
        compared = {"exact": exact, variant: attention}
        arms = forward_arms(backbone, layers, compared | {"free": free}, partial(forward, backbone, batch), backend)
        whole = interleave(arms, probe.num_rounds, device, seed, on_step)
        has_core = not isinstance(attention, Native)
        own_parts = ({variant: attention} if has_core else {}) | dict(attention.parts)
        arms = {"exact": core_arm(exact, captured, backend)}
        arms |= {name: core_arm(part, own, backend) for name, part in own_parts.items()}
        cores = interleave(arms, probe.num_rounds, device, seed, on_step)
        sequences = _sequences_of_one(backbone, layers, forward, one)
        macs_without = _macs_without_attention(backbone, layers, forward, one, free)
        own_macs_without = _macs_without_attention(backbone, layers, forward, one, attention.around(free))
    exact_macs = macs_without + sum(attention_macs(exact, shapes) for shapes in sequences)
    memories: dict[str, Memory] = {}
    for name, core in compared.items() if probe.memory else ():
        attach_alone(backbone, core, layers)
        call, warm_up = (
            partial(run_preferring_named, backend.name, partial(forward, backbone, each)) for each in (batch, one)
        )
        memories[name] = peak_memory(call, warm_up, device)
    backbone.layers.detach()
    exact_times = whole.per_round("exact")
    cost = Cost(
        batch_size=probe.batch_size,
        num_rounds=probe.num_rounds,
        num_warm_up_rounds=whole.num_warm_up_rounds,
        settled=whole.settled and cores.settled,
        sdpa_backend=backend.name.lower(),
        latency=_latency(whole, variant),
        exact_latency=_latency(whole, "exact"),
        attention_latency=_latency(cores, variant) if has_core else None,
        exact_attention_latency=_latency(cores, "exact"),
        part_latencies={name: _latency(cores, name) for name in attention.parts},
        latency_ratio=median_ratio(exact_times, whole.per_round(variant), seed),
        attention_latency_ratio=median_ratio(cores.per_round("exact"), cores.per_round(variant), seed)
        if has_core
        else None,
        ceiling=median_ratio(exact_times, whole.per_round("free"), seed),
        memory=memories.get(variant),
        exact_memory=memories.get("exact"),
        macs=own_macs_without + sum(attention_macs(attention, shapes) for shapes in sequences),
        exact_macs=exact_macs,
        ceiling_macs=exact_macs / macs_without,
        crossover_tokens=crossover_tokens(attention, exact, sequences[0]),
    )
    return Measurement(cost=cost, end_to_end=whole, attention=cores)


def attach_alone(backbone: Backbone, core: Attention, layers: Sequence[AttentionLayer]) -> None:
    """Attach a variant to these layers and leave every other layer native."""
    backbone.layers.detach()
    core.attach(layers)


def forward_arms(
    backbone: Backbone,
    layers: Sequence[AttentionLayer],
    cores: Mapping[str, Attention],
    forward: Callable[[], object],
    backend: SDPBackend,
) -> dict[str, Arm]:
    """A forward with each of these variants in the layers; all that is not replaced runs on one backend in all."""
    run = partial(run_preferring, backend, forward)
    return {name: Arm(prepare=partial(attach_alone, backbone, core, layers), run=run) for name, core in cores.items()}


def capture_inputs(
    backbone: Backbone,
    layers: Sequence[AttentionLayer],
    forward: Forward,
    batch: Batch,
    around: Callable[[Attention], Attention] = lambda core: core,
) -> list[AttentionInputs]:
    """What the cores of these layers are given in one forward with exact attention, in a variant's surroundings."""
    recorder = _Recorder(captured=[])
    attach_alone(backbone, around(recorder), layers)
    forward(backbone, batch)
    backbone.layers.detach()
    return recorder.captured


def run_cores(core: Callable[[AttentionInputs], object], captured: Sequence[AttentionInputs]) -> object:
    """Run a variant, or a part of one, on captured inputs as one forward would: a memo a tower, empty at first."""
    memos: dict[int, dict[str, object]] = {}
    for inputs in captured:
        output = core(replace(inputs, memo=memos.setdefault(id(inputs.memo), {})))
    return output


def core_arm(
    core: Callable[[AttentionInputs], object],
    captured: Sequence[AttentionInputs],
    backend: SDPBackend | None = None,
) -> Arm:
    """A variant, or a part of one, on captured inputs as one forward would run it."""
    return Arm(run=partial(run_preferring, backend, partial(run_cores, core, captured)))


@dataclass(frozen=True, kw_only=True)
class _Recorder(Exact):
    captured: list[AttentionInputs]

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        self.captured.append(inputs)
        return super().__call__(inputs)


def _sequences_of_one(
    backbone: Backbone, layers: Sequence[AttentionLayer], forward: Forward, one: Batch
) -> list[list[AttentionShape]]:
    """What the cores of these layers see of one image: a list of their shapes for each sequence, which a tower that
    reads an image in tiles has several of."""
    captured = list(zip(layers, capture_inputs(backbone, layers, forward, one), strict=True))
    return [
        [layer.shape(inputs.q.shape[2]) for layer, inputs in captured if len(inputs.q) > number]
        for number in range(max(len(inputs.q) for _, inputs in captured))
    ]


def _macs_without_attention(
    backbone: Backbone, layers: Sequence[AttentionLayer], forward: Forward, one: Batch, free: Attention
) -> int:
    """For one image: everything but the cores of these layers."""
    attach_alone(backbone, free, layers)
    macs = count_macs(partial(forward, backbone, one))
    backbone.layers.detach()
    return macs


def _latency(timings: Timings, arm: str) -> Latency:
    times = [repeat.wall_ms for repeat in timings.repeats if repeat.arm == arm]
    p10, median, p90 = np.quantile(times, [0.1, 0.5, 0.9])
    return Latency(median_ms=float(median), p10_ms=float(p10), p90_ms=float(p90))
