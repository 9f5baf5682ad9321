"""The cost probe on a tiny model: finite numbers, the right arms, and a model left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from builders import random_images, timm_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.free import Free
from fnabench.attention.masked import Masked
from fnabench.attention.native import Native
from fnabench.cost import Measurement, Probe, attach_alone, capture_inputs, measure_cost, run_cores
from fnabench.data.base import Sample
from fnabench.errors import BadInputError
from fnabench.loader import Batch
from fnabench.macs import attention_macs, count_macs
from fnabench.memory import Memory
from fnabench.models.timm_layers import timm_layers
from fnabench.models.timm_vit import TimmBackbone
from fnabench.sdpa import run_preferring_named
from fnabench.statistics import median_ratio
from fnabench.timing import Arm, Timings, interleave

FNA = Fna(num_landmarks=8)
NUM_ROUNDS = 3


def classify(backbone: TimmBackbone, batch: Batch) -> Tensor:
    return backbone.classify(batch.images)


def backbone_of(module: nn.Module) -> TimmBackbone:
    return TimmBackbone(module, transform=None)  # type: ignore[arg-type]


def batch_of(size: int = 2) -> Batch:
    return Batch(images=random_images(size), samples=tuple(Sample(id=str(i), image=None) for i in range(size)))


def measure(
    attention: Attention, *, memory: bool = False, steps: list[int] | None = None
) -> tuple[Measurement, TimmBackbone]:
    backbone = backbone_of(timm_model())
    probe = Probe(batch_size=2, num_rounds=NUM_ROUNDS, memory=memory)
    measured = measure_cost(
        backbone, attention, backbone.layers.select("half"), classify, batch_of(), probe,
        on_step=lambda: steps.append(1) if steps is not None else None,
    )  # fmt: skip
    return measured, backbone


@cache
def measured(attention: Attention) -> tuple[Measurement, TimmBackbone]:
    return measure(attention)


ALL = pytest.mark.parametrize("attention", [FNA, Exact(), Native()], ids=["fna", "exact", "native"])


@ALL
def test_every_number_is_finite_and_every_interval_holds_its_value(attention: Attention) -> None:
    cost = measured(attention)[0].cost
    latencies = [cost.latency, cost.exact_latency, cost.attention_latency, cost.exact_attention_latency]
    for latency in filter(None, latencies):
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms < math.inf
    for ratio in filter(None, [cost.latency_ratio, cost.attention_latency_ratio, cost.ceiling]):
        assert 0 < ratio.low <= ratio.high < math.inf
        assert ratio.value > 0
    assert (cost.batch_size, cost.num_rounds) == (2, NUM_ROUNDS)
    assert cost.sdpa_backend in ("flash_attention", "math")
    assert cost.num_warm_up_rounds >= 3


def assert_detached(backbone: TimmBackbone) -> None:
    assert all("forward" not in each.__dict__ and not each._forward_pre_hooks for each in backbone.module.modules())
    assert all(layer.core is None for layer in backbone.layers)


@ALL
def test_the_model_is_left_detached(attention: Attention) -> None:
    backbone = measured(attention)[1]
    assert_detached(backbone)
    with torch.no_grad():
        assert torch.equal(backbone.classify(random_images()), timm_model()(random_images()))


@ALL
def test_exact_variant_and_ceiling_are_timed_side_by_side(attention: Attention) -> None:
    measurement = measured(attention)[0]
    variant = "exact again" if attention == Exact() else "variant"
    arms = {"exact", variant, "free"}
    assert {repeat.arm for repeat in measurement.end_to_end.repeats} == arms
    for arm in arms:
        assert len(measurement.end_to_end.per_round(arm)) == NUM_ROUNDS
    assert len(measurement.end_to_end.repeats) == len(arms) * 2 * NUM_ROUNDS
    cores = arms - {"free"} - ({"variant"} if attention == Native() else set())
    assert {repeat.arm for repeat in measurement.attention.repeats} == cores
    assert all(len(measurement.attention.per_round(arm)) == NUM_ROUNDS for arm in cores)


def test_exact_attention_is_measured_beside_itself() -> None:
    """Two arms of the same show what chance alone gives: no ratio of exactly 1 without an interval."""
    measurement = measured(Exact())[0]
    cost = measurement.cost
    for timings, ratio in (
        (measurement.end_to_end, cost.latency_ratio),
        (measurement.attention, cost.attention_latency_ratio),
    ):
        assert ratio == median_ratio(timings.per_round("exact"), timings.per_round("exact again"))
        assert ratio.low < ratio.high
    assert cost.latency != cost.exact_latency
    assert cost.attention_latency != cost.exact_attention_latency


@dataclass(frozen=True, kw_only=True)
class SeesBackend(Free):
    """Writes down whether the flash backend is allowed where it runs."""

    seen: list[bool]

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        self.seen.append(torch.backends.cuda.flash_sdp_enabled())  # of a CPU too
        return super().__call__(inputs)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("native", [False, True], ids=["variant", "native"])
def test_what_is_not_replaced_runs_on_the_same_backend_in_every_arm(
    native: bool, backend: SDPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    found: list[dict[str, set[bool]]] = []

    def forward(backbone: TimmBackbone, batch: Batch) -> Tensor:
        seen.append(torch.backends.cuda.flash_sdp_enabled())
        return classify(backbone, batch)

    def spy(arms: Mapping[str, Arm], *options: Any) -> Timings:
        found.append({})
        for name, arm in arms.items():
            seen.clear()
            arm.prepare()
            arm.run()
            found[-1][name] = set(seen)
        return interleave(arms, *options)

    def peak(call: Callable[[], object], warm_up: Callable[[], object], _: torch.device) -> Memory:
        for each in (call, warm_up):
            seen.clear()
            each()
            found.append({"memory": set(seen)})
        return Memory(peak_mib=1.0, reserved_mib=None, method="none")

    monkeypatch.setattr("fnabench.cost.fastest_backend", lambda *_: backend)
    monkeypatch.setattr("fnabench.cost.interleave", spy)
    monkeypatch.setattr("fnabench.cost.peak_memory", peak)
    backbone, variant = backbone_of(timm_model()), Native() if native else SeesBackend(seen=seen)
    probe = Probe(batch_size=2, num_rounds=1)
    measure_cost(backbone, variant, backbone.layers.select([3]), forward, batch_of(), probe)
    whole, cores, *memories = found
    expected = {backend is SDPBackend.FLASH_ATTENTION}
    assert whole == dict.fromkeys(("exact", "variant", "free"), expected)
    assert cores == {"exact": set()} | ({} if native else {"variant": expected})
    assert memories == 4 * [{"memory": expected}]


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_attention_that_a_backend_does_not_take_runs_on_another(backend: SDPBackend) -> None:
    q = torch.randn(3, 17, 8)  # without heads, which no fused kernel of a CPU takes
    outputs: list[Tensor] = []
    run_preferring_named(backend.name, lambda: outputs.append(scaled_dot_product_attention(q, q, q)))
    torch.testing.assert_close(outputs[0], (q @ q.mT / 8**0.5).softmax(-1) @ q)


def test_a_part_of_the_core_is_timed_in_the_same_rounds_and_takes_less_than_the_whole() -> None:
    measurement, _ = measured(Masked(tokens="both", inner=FNA))
    (part,) = measurement.cost.part_latencies.values()
    assert {repeat.arm for repeat in measurement.attention.repeats} == {"exact", "variant", "token detection"}
    assert measurement.cost.attention_latency is not None
    assert 0 < part.median_ms < measurement.cost.attention_latency.median_ms
    assert measured(FNA)[0].cost.part_latencies == {}


def test_native_has_no_attention_time_of_its_own() -> None:
    cost = measured(Native())[0].cost
    assert cost.attention_latency is None
    assert cost.attention_latency_ratio is None
    assert cost.exact_attention_latency.median_ms > 0


def test_exact_costs_what_exact_costs() -> None:
    cost = measured(Exact())[0].cost
    assert cost.macs == cost.exact_macs
    assert 1 / 3 < cost.latency_ratio.value < 3
    assert cost.crossover_tokens is None


def test_the_cores_alone_take_less_than_the_whole_model() -> None:
    cost = measured(FNA)[0].cost
    assert cost.attention_latency is not None
    assert cost.attention_latency.median_ms < cost.latency.median_ms
    assert cost.exact_attention_latency.median_ms < cost.exact_latency.median_ms


def test_the_macs_are_those_of_the_untouched_model_and_of_the_formula() -> None:
    cost = measured(FNA)[0].cost
    module = timm_model()
    shapes = [layer.shape(17) for layer in timm_layers(module).select("half")]
    with torch.no_grad():
        whole = count_macs(lambda: module(random_images(1)))
    assert cost.exact_macs == whole
    assert cost.macs == whole - attention_macs(Exact(), shapes) + attention_macs(FNA, shapes)
    assert cost.ceiling_macs == pytest.approx(whole / (whole - attention_macs(Exact(), shapes)))
    assert cost.ceiling_macs > 1


def test_memory_is_measured_in_a_pass_of_its_own() -> None:
    steps: list[int] = []
    measurement, backbone = measure(FNA, memory=True, steps=steps)
    cost = measurement.cost
    assert_detached(backbone)
    assert cost.memory is not None
    assert cost.exact_memory is not None
    assert 0 <= cost.memory.peak_mib < 200
    assert cost.memory.method.startswith("fresh process")
    rounds = measurement.end_to_end.num_warm_up_rounds + measurement.attention.num_warm_up_rounds + 2 * NUM_ROUNDS
    assert len(steps) == rounds


def test_without_a_memory_pass_there_is_no_memory() -> None:
    cost = measured(FNA)[0].cost
    assert cost.memory is None
    assert cost.exact_memory is None


def test_attaching_alone_detaches_every_other_layer() -> None:
    backbone = backbone_of(timm_model())
    FNA.attach(backbone.layers)
    attach_alone(backbone, Exact(), backbone.layers.select([1]))
    assert [layer.core for layer in backbone.layers] == [None, Exact(), None, None]


@torch.no_grad()
def test_the_cores_run_on_captured_inputs_as_in_a_forward() -> None:
    backbone = backbone_of(timm_model())
    layers = backbone.layers.select("half")
    captured = capture_inputs(backbone, layers, classify, batch_of())
    assert [inputs.layer for inputs in captured] == [2, 3]
    assert all(layer.core is None for layer in backbone.layers)
    for variant in (FNA, replace(FNA, resample="layer")):
        memo: dict[str, object] = {}
        expected = [variant(replace(inputs, memo=memo)) for inputs in captured][-1]
        assert torch.equal(run_cores(variant, captured), expected)
    assert torch.equal(run_cores(FNA, captured), run_cores(FNA, captured)), "each run begins with an empty memo"
    assert all(inputs.memo == {} for inputs in captured)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_rounds": -1}])
def test_a_probe_that_cannot_be_run_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(BadInputError, match=r"probe\.batch_size=.* and probe\.num_rounds="):
        Probe(**options)
