"""Who takes the kernels and who may: chosen by device, proven once, refused in one line; interpreted without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import attention_inputs, timm_model
from on_kernels import DEVICE, NEEDS_KERNELS, UNREAD_PADDING
from torch import Tensor

from fnabench.attention import fna_refined, fused
from fnabench.attention.base import AttentionInputs, AttentionShape
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.landmarks import farthest_points
from fnabench.errors import ImpossibleError
from fnabench.kernels import proof
from fnabench.kernels.farthest_points import Sampled, sample_farthest_points
from fnabench.kernels.limits import is_supported
from fnabench.kernels.reference import sampling_shortfall
from fnabench.models.timm_layers import timm_layers

pytestmark = [NEEDS_KERNELS, UNREAD_PADDING]
AUTO = FnaRefined(num_landmarks=8)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[object]]:
    """A device that the kernels are meant for, on which nothing has been proven."""
    monkeypatch.setattr(fna_refined, "is_supported", lambda device: device.type == DEVICE.type)
    monkeypatch.setattr(proof, "_PROVEN", set())
    return proof._PROVEN


def inputs(tokens: int = 40, **options: object) -> AttentionInputs:
    made = attention_inputs(**({"tokens": tokens, "heads": 2, "head_dim": 16} | options))  # type: ignore[arg-type]
    moved = {name: getattr(made, name).to(DEVICE) for name in ("q", "k", "v", "x")}
    return replace(made, **moved)


def again(given: AttentionInputs) -> AttentionInputs:
    """The same at the start of a forward."""
    return replace(given, memo={})


def wrong(function: Callable[..., Tensor], where: tuple[object, ...], times: float) -> Callable[..., Tensor]:
    """The kernel, off at some of its outputs."""

    def run(*arguments: object) -> Tensor:
        output = function(*arguments).clone()
        output[where] *= times
        return output

    return run


# The choice


def test_where_the_kernels_apply_they_are_taken_and_give_what_demanding_them_gives(proofs) -> None:
    given = inputs()
    output = AUTO(given)
    assert torch.equal(output, replace(AUTO, fused=True)(again(given)))
    assert {kind[0] for kind in proofs} == {"farthest points", "attention"}
    plain = replace(AUTO, fused=False)
    assert plain.is_fused(given) is False
    assert not torch.equal(output, plain(again(given)))
    torch.testing.assert_close(output, plain(again(given)), atol=2e-4, rtol=1e-3)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="this machine has a CUDA device")
def test_without_a_cuda_device_nothing_is_tried() -> None:
    assert not is_supported(DEVICE)
    assert not AUTO.is_fused(inputs())


@pytest.mark.parametrize("options", [{"cells": False}, {"scatter": False}, {"inverse": "pinv"}, {"shrink": True}])
def test_settings_that_the_kernels_do_not_know_run_in_plain_pytorch(options: dict[str, object], proofs) -> None:
    given = inputs()
    variant = FnaRefined(num_landmarks=8, **options)  # type: ignore[arg-type]
    assert not variant.is_fused(given)
    assert torch.equal(variant(given), replace(variant, fused=False)(again(given)))
    assert not proofs


@pytest.mark.parametrize("limit", ["head_dim", "cells", "dtype", "types", "patches", "heads", "elements", "gradient"])
def test_beyond_the_limits_it_runs_in_plain_pytorch(limit: str, proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    given, variant = inputs(), AUTO
    if limit == "head_dim":
        q, k, v = (each.repeat(1, 1, 1, 9) for each in (given.q, given.k, given.v))  # 144
        given = replace(given, q=q, k=k, v=v)
    elif limit == "cells":
        given, variant = inputs(140), FnaRefined(num_landmarks=129)
    elif limit == "dtype":
        given = inputs(dtype=torch.float64)
    elif limit == "types":
        assert not AUTO.is_fused(replace(given, q=given.q.bfloat16()))
        return
    elif limit == "heads":
        monkeypatch.setattr("fnabench.kernels.limits.MOST_HEADS", 3)
    elif limit == "elements":
        monkeypatch.setattr("fnabench.kernels.limits.MOST_ELEMENTS", 39 * given.q.stride(2))
    elif limit == "patches":
        monkeypatch.setattr("fnabench.kernels.limits.MOST_PATCHES", 38)
        assert replace(AUTO, method="grid").is_fused(given), "no kernel samples there"
    else:
        given.v.requires_grad_()
        with torch.no_grad():
            assert AUTO.is_fused(given)
    assert not variant.is_fused(given)
    assert torch.equal(variant(given), replace(variant, fused=False)(again(given)))
    assert not proofs


def test_causal_layers_run_in_plain_pytorch_unless_kernels_are_demanded(proofs) -> None:
    given = inputs(is_causal=True)
    assert torch.equal(AUTO(given), replace(AUTO, fused=False)(again(given)))
    assert not proofs
    shape = AttentionShape(
        num_tokens=40, num_heads=3, head_dim=16, num_channels=48, num_prefix=0, is_causal=True,
    )  # fmt: skip
    AUTO.check(shape)
    demanding = replace(AUTO, fused=True)
    for refused in (lambda: demanding.check(shape), lambda: demanding(again(given))):
        with pytest.raises(ImpossibleError, match=r"cannot be had in causal layers.* attention\.fused=null.*=false"):
            refused()


# The proof


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"over": 2}, {"method": "grid"}, {"per_head": True, "features": "q"}])
@pytest.mark.parametrize("num_masked", [0, 5])
def test_right_kernels_pass(dtype: torch.dtype, options: dict[str, object], num_masked: int, proofs) -> None:
    given = inputs(dtype=dtype)
    if num_masked:
        mask = torch.arange(40, device=DEVICE) < 40 - num_masked
        given = replace(given, mask=mask[None, None, None].expand(2, -1, -1, -1))
    assert replace(AUTO, **options)(given).isfinite().all()  # type: ignore[arg-type]
    assert len(proofs) == (1 if "method" in options else 2)


@pytest.mark.parametrize("sharp", [1, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sharp_attention_is_no_reason_for_refusal(sharp: float, dtype: torch.dtype, proofs) -> None:
    given = inputs(dtype=dtype)
    AUTO(replace(given, q=sharp * given.q))
    assert len(proofs) == 2


@pytest.mark.parametrize(
    ("where", "times"),
    [((...,), 1.2), ((slice(None), 1), 0.5), ((1,), -1.0), ((0, 0, 39), torch.nan), ((..., slice(8, None)), 0.0)],
    ids=["scale", "one head", "one image", "one token", "half the channels"],
)
def test_a_kernel_that_disagrees_is_refused_with_the_size_of_the_difference(
    where: tuple[object, ...], times: float, proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "fused_attention", wrong(fused.fused_attention, where, times))
    for _ in range(2):  # it is no more believed the second time
        with pytest.raises(
            ImpossibleError, match=r"differ from the plain form by .*; attention\.fused=false"
        ) as caught:
            AUTO(inputs(dtype=torch.bfloat16))
        assert "\n" not in str(caught.value)
    assert "attention" not in {kind[0] for kind in proofs}


@pytest.mark.parametrize("kernel", ["fused_attention", "sample_farthest_points"])
def test_a_kernel_that_cannot_be_compiled_is_refused_in_one_line(
    kernel: str, proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("PassManager::run failed\nat line 3")

    monkeypatch.setattr(fused, kernel, fail)
    with pytest.raises(ImpossibleError, match=r"fail on this device \(RuntimeError: PassManager::run failed at line 3"):
        AUTO(inputs())


def test_a_device_without_memory_is_no_verdict_on_the_kernels(proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused, "fused_attention", fail)
    with pytest.raises(torch.OutOfMemoryError):
        AUTO(inputs())


def test_demanded_kernels_are_taken_at_their_word(proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fna_refined, "fused_attention", wrong(fna_refined.fused_attention, (...,), 2.0))
    given = inputs()
    assert not torch.allclose(replace(AUTO, fused=True)(given), replace(AUTO, fused=False)(again(given)), atol=0.1)
    assert not proofs


def test_the_plain_form_runs_once_for_each_kind_of_input(proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    plain = fused.refined_attention
    monkeypatch.setattr(fused, "refined_attention", lambda *a, **o: compared.append(a[0].shape) or plain(*a, **o))
    AUTO(inputs())
    assert compared == [(1, 2, 40, 16)] * 2, "image by image"
    AUTO(inputs(seed=1))
    AUTO(inputs(batch=1))
    assert len(compared) == 2
    for number, other in enumerate((inputs(41), inputs(dtype=torch.bfloat16), inputs(heads=1)), start=2):
        AUTO(other)
        assert len(compared) == 2 * number, "with another number of heads the same channels lie elsewhere"


def test_inside_a_graph_nothing_is_proven_and_nothing_unproven_is_taken(
    proofs, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(ImpossibleError, match="call the model once before it is compiled or captured"):
            AUTO(given)
    assert not proofs
    expected = AUTO(again(given))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(AUTO(again(given)), expected)


def test_after_the_proof_the_compiler_sees_one_graph(proofs) -> None:
    given = inputs()
    expected = AUTO(given)
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v, x: AUTO(replace(given, q=q, k=k, v=v, x=x, memo={})),
                             backend="aot_eager", fullgraph=True)  # fmt: skip
    assert torch.equal(compiled(given.q, given.k, given.v, given.x), expected)


# The comparison of landmarks


def sampled(*, num_masked: int = 0) -> tuple[Tensor, Sampled, Tensor | None, Tensor]:
    x = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    allowed = torch.arange(30, device=DEVICE).expand(2, -1) < 30 - num_masked if num_masked else None
    guaranteed = torch.tensor([[4], [9]], device=DEVICE)
    return x, sample_farthest_points(x, 12, 1, allowed, 8, guaranteed), allowed, guaranteed


def shortfall(x: Tensor, chosen: Sampled, allowed: Tensor | None, guaranteed: Tensor | None) -> float:
    return float(sampling_shortfall(x, chosen.index, chosen.cell_of, allowed, guaranteed, 1, 8))


@pytest.mark.parametrize("num_masked", [0, 7, 20, 25])
def test_farthest_points_and_nearest_landmarks_miss_nothing(num_masked: int) -> None:
    assert shortfall(*sampled(num_masked=num_masked)) < 1e-6
    x, _, allowed, _ = sampled(num_masked=num_masked)
    for same in (x * 0, x[:, :1].expand_as(x)):
        assert shortfall(same, sample_farthest_points(same, 12, 1, allowed, 8), allowed, None) == 0


def test_without_a_start_set_the_mean_is_the_start() -> None:
    x, *_ = sampled()
    plain = farthest_points(x, 12, 0).index
    cell_of = torch.cdist(x, x.gather(1, plain[:, :8, None].expand(-1, -1, 5))).argmin(-1)
    assert float(sampling_shortfall(x, plain, cell_of, None, None, 0, 8)) < 1e-6
    assert float(sampling_shortfall(x, plain.roll(1, 1), cell_of.add(1) % 8, None, None, 0, 8)) > 0.01


def test_two_equally_far_tokens_may_change_places() -> None:
    x, _, _, guaranteed = sampled()
    x[:, 28] = x[:, 29] = 50 * x[:, 20]
    x[:, 29, 0] += 1e-3
    first = sample_farthest_points(x, 12, 1, None, 8, guaranteed)
    x[:, 29, 0] -= 2e-3
    second = sample_farthest_points(x, 12, 1, None, 8, guaranteed)
    assert not torch.equal(first.index, second.index)
    assert max(shortfall(x, each, None, guaranteed) for each in (first, second)) < 1e-3


@pytest.mark.parametrize(
    "fault",
    ["order", "twice", "out of range", "prefix", "guaranteed", "cell", "own cell", "cell out of range", "alone"],
)
def test_what_is_no_such_sampling_falls_short(fault: str) -> None:
    x, chosen, allowed, guaranteed = sampled()
    index, cell_of = chosen.index.clone(), chosen.cell_of.clone()
    other = next(token for token in range(30) if token not in index[0].tolist())
    if fault == "order":
        index[0, 8:] = index[0, 8:].flip(0)
    elif fault == "twice":
        index[0, 11] = index[0, 10]
    elif fault == "out of range":
        index[1, 9] = 10**9
    elif fault == "prefix":
        index[0, 0] = other
    elif fault == "guaranteed":
        index[0, 1] = other
    elif fault == "own cell":
        cell_of[0, index[0, 3]] = 4
    else:
        cell_of[0, other] = {"cell": (int(cell_of[0, other]) - 1) % 6 + 2, "cell out of range": -3, "alone": 1}[fault]
    wrongly = Sampled(index=index, cell_of=cell_of)
    assert shortfall(x, wrongly, allowed, guaranteed) > 1e-2


def test_landmarks_that_disagree_are_refused(proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(*arguments: object) -> Sampled:
        right = sample_farthest_points(*arguments)  # type: ignore[arg-type]
        return replace(right, index=right.index.roll(1, 0))

    monkeypatch.setattr(fused, "sample_farthest_points", swap)
    with pytest.raises(ImpossibleError, match="differ from the plain form by inf"):
        AUTO(inputs())


# What a model shows of it


def test_the_layers_tell_which_of_them_kernels_computed(proofs) -> None:
    module = timm_model(depth=4).to(DEVICE)
    layers = timm_layers(module)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    outputs = {}
    for choice, expected in ((None, (2, 3)), (True, (2, 3)), (False, ()), (None, (2, 3))):
        layers.detach()
        replace(AUTO, fused=choice).attach(layers[2:])
        assert layers.fused == ()
        with torch.inference_mode():
            outputs[choice] = module(images)
        assert layers.fused == expected
    assert torch.equal(outputs[None], outputs[True])
    torch.testing.assert_close(outputs[None], outputs[False], atol=1e-3, rtol=1e-3)


def test_a_record_and_its_table_name_the_blocks_that_kernels_computed(
    proofs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra", reason="whole runs need hydra, the kernels do not")
    from small_world import SmallWorld

    world = SmallWorld(tmp_path, monkeypatch, capsys)
    for fused_option, by in (("null", "..5, all of them by fused kernels)"), ("false", "..5)")):
        settings = ("attention.num_landmarks=5", f"attention.fused={fused_option}", "layers=[4,5]", "format=json")
        code, out, err = world.run(*settings, attention="fna_refined")
        assert code == 0, err
        assert by in " ".join(err.split())
        summary = json.loads(out)
        kept = json.loads((world.folder / summary["record"] / "record.json").read_text())
        assert kept["fused_layers"] == summary["fused_layers"] == ([4, 5] if fused_option == "null" else [])
    line = world.refused(
        "attention.num_landmarks=5", "attention.cells=false", "attention.fused=true", attention="fna_refined"
    )
    assert "fused=true needs cells=true" in line
