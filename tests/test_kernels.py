"""The fused kernels against their plain specifications: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from builders import attention_inputs
from on_kernels import DEVICE, NEEDS_KERNELS, UNREAD_PADDING
from torch import Tensor

from fnabench.attention.base import AttentionShape
from fnabench.attention.cells import nearest_landmark
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.landmarks import farthest_points
from fnabench.bench.sinks import plant
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.kernels import reference
from fnabench.kernels.farthest_points import sample_farthest_points
from fnabench.kernels.proof import BOUND
from fnabench.kernels.refined_attention import refined_attention

pytestmark = [NEEDS_KERNELS, UNREAD_PADDING]


def features(batch: int = 3, tokens: int = 40, width: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def some_allowed(batch: int, tokens: int, num_allowed: int) -> Tensor:
    """The same number of tokens allowed in each image, spread over it and from its first on."""
    order = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(1))
    order[:, 0] = -1
    return (order.argsort(-1).argsort(-1) < num_allowed).to(DEVICE)


class TestFarthestPoints:
    """Landmarks as the plain sampling chooses them, and cells by brute force."""

    @pytest.mark.parametrize("num_prefix", [0, 1, 5])
    @pytest.mark.parametrize("num_allowed", [40, 20, 6])
    def test_the_landmarks_are_those_of_the_plain_form(self, num_prefix: int, num_allowed: int) -> None:
        x, allowed = features(), some_allowed(3, 40, num_allowed) if num_allowed < 40 else None
        sampled = sample_farthest_points(x, 12, num_prefix, allowed)
        assert torch.equal(sampled.index, farthest_points(x, 12, num_prefix, allowed).index)

    @pytest.mark.parametrize("tokens", [9, 128, 129, 300])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_any_number_of_tokens_in_any_type(self, tokens: int, dtype: torch.dtype) -> None:
        x = features(2, tokens, 3).to(dtype)
        assert torch.equal(sample_farthest_points(x, 8, 1).index, farthest_points(x, 8, 1).index)

    @pytest.mark.parametrize("num_prefix", [0, 1, 5])
    def test_each_patch_belongs_to_its_nearest_patch_landmark_and_a_landmark_to_itself(self, num_prefix: int) -> None:
        x = features()
        sampled = sample_farthest_points(x, 12, num_prefix)
        landmarks = x.gather(1, sampled.index[..., None].expand(-1, -1, x.shape[-1]))
        nearest = torch.cdist(x, landmarks[:, num_prefix:]).argmin(-1) + num_prefix
        nearest.scatter_(1, sampled.index, torch.arange(12, device=DEVICE).expand(3, -1))
        assert torch.equal(sampled.cell_of, nearest)

    @pytest.mark.parametrize("num_prefix", [0, 1])
    @pytest.mark.parametrize("num_landmarks", [7, 20])
    @pytest.mark.parametrize("image", ["constant", "two points", "one huge token"])
    def test_no_token_is_chosen_twice(self, image: str, num_landmarks: int, num_prefix: int) -> None:
        x = features(2, 20)
        if image == "constant":
            x = x[:, :1].expand(-1, 20, -1)
        elif image == "two points":
            x = x[:, :2].repeat(1, 10, 1)
        else:
            x = x.index_fill(1, torch.tensor([7], device=DEVICE), 3e4)
        sampled = sample_farthest_points(x.bfloat16(), num_landmarks, num_prefix)
        assert all(len(set(row)) == num_landmarks for row in sampled.index.tolist())
        own = sampled.cell_of.gather(1, sampled.index)
        assert torch.equal(own, torch.arange(num_landmarks, device=DEVICE).expand(2, -1))

    @pytest.mark.parametrize("num_prefix", [0, 1])
    def test_tokens_that_are_no_numbers_give_tokens_still(self, num_prefix: int) -> None:
        x = features(2, 20)
        x[0, 7], x[1] = torch.inf, torch.nan
        sampled = sample_farthest_points(x, 12, num_prefix)
        assert all(len(set(row)) == 12 and set(row) <= set(range(20)) for row in sampled.index.tolist())
        assert set(sampled.cell_of.flatten().tolist()) <= set(range(12))

    def test_tokens_that_are_not_allowed_come_last_and_move_nothing(self) -> None:
        x, allowed = features(), some_allowed(3, 40, 9)
        sampled = sample_farthest_points(x, 12, 1, allowed)
        assert allowed.gather(1, sampled.index)[:, :9].all()
        assert (sampled.cell_of[allowed] < 9).all(), "no allowed token belongs to a landmark that is not"
        other = x.masked_fill(~allowed[..., None], 1000.0)
        moved = sample_farthest_points(other, 12, 1, allowed)
        assert torch.equal(sampled.index[:, :9], moved.index[:, :9])
        assert torch.equal(sampled.cell_of[allowed], moved.cell_of[allowed])

    def test_the_cells_may_belong_to_the_first_landmarks_only(self) -> None:
        x = features()
        few, many = sample_farthest_points(x, 6, 1), sample_farthest_points(x, 12, 1, num_cells=6)
        assert torch.equal(many.index[:, :6], few.index)
        assert torch.equal(many.cell_of, few.cell_of)

    @pytest.mark.parametrize("num_prefix", [0, 1, 5])
    @pytest.mark.parametrize("tokens", [23, 40, 129])
    @pytest.mark.parametrize("num_cells", [9, 12])
    def test_guaranteed_tokens_come_after_the_prefix_and_share_their_cells_with_none(
        self, tokens: int, num_prefix: int, num_cells: int
    ) -> None:
        x = features(3, tokens)
        guaranteed = torch.tensor([[20, 7], [num_prefix, 22], [13, 12]], device=DEVICE)
        for allowed in (None, some_allowed(3, tokens, 18)):
            plain = farthest_points(x, 12, num_prefix, allowed, guaranteed)
            own = plain.first(num_cells)
            sampled = sample_farthest_points(x, 12, num_prefix, allowed, num_cells, guaranteed)
            assert torch.equal(sampled.index, plain.index)
            assert torch.equal(sampled.index[:, num_prefix : num_prefix + 2], guaranteed)
            nearest = nearest_landmark(x, own, num_prefix + 2)
            counted = torch.ones_like(nearest, dtype=torch.bool) if allowed is None else allowed
            assert torch.equal(sampled.cell_of[counted], nearest[counted])

    def test_strided_guaranteed_tokens_are_read_as_such(self) -> None:
        x, guaranteed = features(2), torch.tensor([[30, 0, 8], [9, 0, 31]], device=DEVICE)
        expected = farthest_points(x, 8, 1, None, guaranteed[:, ::2])
        assert torch.equal(sample_farthest_points(x, 8, 1, guaranteed=guaranteed[:, ::2]).index, expected.index)

    def test_strided_features_give_the_same(self) -> None:
        x = features(2, 40, 6)
        strided = x.mT.contiguous().mT[:, ::2, 1::2]
        expected = sample_farthest_points(strided.contiguous(), 8, 1)
        assert torch.equal(sample_farthest_points(strided, 8, 1).index, expected.index)

    @pytest.mark.parametrize(("num_landmarks", "num_prefix"), [(0, 0), (5, 5), (41, 1)])
    def test_landmarks_that_do_not_fit_are_refused(self, num_landmarks: int, num_prefix: int) -> None:
        with pytest.raises(ImpossibleError, match=f"{num_landmarks} landmarks with .* do not fit 40"):
            sample_farthest_points(features(), num_landmarks, num_prefix)

    def test_more_patches_than_the_registers_hold_are_refused(self) -> None:
        with pytest.raises(ImpossibleError, match="at most 16384 patches"):
            sample_farthest_points(torch.zeros(1, 16386, 1, device=DEVICE), 4, 1)

    def test_the_operator_is_well_formed(self) -> None:
        allowed = some_allowed(2, 20, 15)
        operator = torch.ops.fnabench.farthest_points.default
        guaranteed = torch.tensor([[3], [7]], device=DEVICE)
        torch.library.opcheck(operator, (features(2, 20), 5, 4, 1, allowed, guaranteed))
        torch.library.opcheck(operator, (features(2, 20), 5, 4, 1, None, None))

    def test_the_compiler_sees_one_graph(self) -> None:
        torch.compiler.reset()
        compiled = torch.compile(sample_farthest_points, backend="aot_eager", fullgraph=True)
        x = features()
        assert torch.equal(compiled(x, 8, 1).index, sample_farthest_points(x, 8, 1).index)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What refined attention is given."""

    q: Tensor
    k: Tensor
    v: Tensor
    landmark_index: Tensor
    cell_of: Tensor
    scale: float
    ridge: float = 1e-3
    allowed: Tensor | None = None
    num_cells: int | None = None

    def fused(self) -> Tensor:
        return refined_attention(**vars(self))

    def plain(self) -> Tensor:
        """In fp32 from the same numbers."""
        wide = {name: each.float() for name, each in vars(self).items() if name in "qkv"}
        return reference.refined_attention(**vars(self) | wide)

    def error(self) -> float:
        """Of the fused form, relative to the plain one; NaN where anything is not finite."""
        plain = self.plain()
        return float((self.fused().float() - plain).norm() / plain.norm())


def arguments(
    *,
    batch: int = 1,
    heads: int = 1,
    tokens: int = 67,
    width: int = 32,
    landmarks: int = 12,
    cells: int | None = None,
    per_head: bool = False,
    dtype: torch.dtype = torch.float32,
    num_allowed: int | None = None,
    seed: int = 0,
    gain: float = 1.0,
) -> Arguments:
    """Projections as timm's fused qkv gives them, with landmarks and cells sampled from the queries."""
    generator = torch.Generator().manual_seed(seed)
    qkv = gain * torch.randn(batch, tokens, 3, heads, width, generator=generator)
    q, k, v = qkv.to(DEVICE, dtype).permute(2, 0, 3, 1, 4)
    allowed = None if num_allowed is None else some_allowed(batch, tokens, num_allowed)
    points = q.flatten(0, 1) if per_head else q[:, 0]
    mask = allowed.repeat_interleave(heads, 0) if per_head and allowed is not None else allowed
    index = farthest_points(points, landmarks, 1, mask).index
    own = points.gather(1, index[:, :cells, None].expand(-1, -1, width)).float()
    cell_of = torch.cdist(points.float(), own).argmin(-1)
    if per_head:
        index, cell_of = index.view(batch, heads, -1), cell_of.view(batch, heads, -1)
    return Arguments(
        q=q, k=k, v=v, landmark_index=index, cell_of=cell_of, scale=width**-0.5, allowed=allowed, num_cells=cells
    )


class TestRefinedAttention:
    """The three launches against the plain form in fp32."""

    @pytest.mark.parametrize("dtype", list(BOUND), ids=str)
    @pytest.mark.parametrize("width", [32, 64, 80, 128] if DEVICE.type == "cuda" else [32, 80])
    def test_each_type_and_width_of_head(self, width: int, dtype: torch.dtype) -> None:
        given = arguments(width=width, dtype=dtype)
        assert given.fused().dtype == dtype
        assert given.error() < BOUND[dtype]

    @pytest.mark.parametrize(("tokens", "landmarks"), [(17, 1), (129, 16), (200, 33), (140, 130)])
    def test_any_number_of_tokens_and_landmarks(self, tokens: int, landmarks: int) -> None:
        assert arguments(tokens=tokens, landmarks=landmarks, cells=min(landmarks, 100)).error() < 1e-4

    @pytest.mark.parametrize(
        ("num_allowed", "cells", "per_head"),
        [(40, None, False), (7, None, True), (None, 5, False), (None, None, True), (7, 5, False)],
    )
    def test_masks_more_landmarks_than_cells_and_landmarks_of_each_head(
        self, num_allowed: int | None, cells: int | None, per_head: bool
    ) -> None:
        given = arguments(heads=2, num_allowed=num_allowed, cells=cells, per_head=per_head)
        assert given.error() < 1e-4

    def test_what_is_not_allowed_changes_nothing(self) -> None:
        given = arguments(num_allowed=40)
        assert given.allowed is not None
        hidden = ~given.allowed[:, None, :, None]
        k, v = (each.masked_fill(hidden, torch.nan) for each in (given.k, given.v))
        assert torch.equal(Arguments(**vars(given) | {"k": k, "v": v}).fused(), given.fused())

    def test_the_splits_of_a_long_sequence_add_up(self) -> None:
        from fnabench.kernels.programs import landmark_pass

        assert [landmark_pass.count_splits(tokens, 16, 132) for tokens in (100, 1025, 100_000)] == [1, 4, 17]
        given = arguments(tokens=150, heads=2)
        heads = (each[:, None].expand(-1, 2, -1) for each in (given.landmark_index, given.cell_of))
        index, cell_of = heads
        parts = [
            landmark_pass.launch(given.q, given.k, given.v, index, cell_of, None, 0.2, 12, num_splits)
            for num_splits in (1, 3, 9)  # of nine, the last are empty
        ]
        for sums, counts in parts[1:]:
            weight = (counts[0] - counts[0].amax(0)).exp2()
            torch.testing.assert_close((sums[0] * weight[..., None]).sum(0), parts[0][0][0, 0])
            torch.testing.assert_close((counts[1] * weight).sum(0), parts[0][1][1, 0])
            torch.testing.assert_close(sums[1:].sum(1), parts[0][0][1:, 0])
            assert torch.equal(counts[2].sum(0), parts[0][1][2, 0])

    def test_every_token_a_landmark_is_exact_attention(self) -> None:
        given = arguments(tokens=33, landmarks=33)
        exact = torch.nn.functional.scaled_dot_product_attention(given.q, given.k, given.v, scale=given.scale)
        torch.testing.assert_close(given.fused(), exact, atol=5e-5, rtol=1e-5)

    @pytest.mark.parametrize("memory", ["joined", "heads first", "every second channel"])
    def test_any_strides(self, memory: str) -> None:
        given = arguments()
        if memory == "every second channel":
            q, k, v = (torch.repeat_interleave(each, 2, -1)[..., ::2] for each in (given.q, given.k, given.v))
        else:
            q, k, v = (each.contiguous() for each in (given.q, given.k, given.v))
            if memory == "joined":
                q, k, v = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (q, k, v))
        assert q.stride() != given.q.stride()
        output = Arguments(**vars(given) | {"q": q, "k": k, "v": v}).fused()
        torch.testing.assert_close(output, given.fused(), atol=1e-5, rtol=1e-5)  # of a program compiled for others
        assert output.transpose(1, 2).is_contiguous()

    @pytest.mark.parametrize("batch", [1, 64] if DEVICE.type == "cuda" else [1])
    def test_an_image_does_not_depend_on_its_batch(self, batch: int) -> None:
        given = arguments(batch=batch + 2, landmarks=4)
        some = {name: each[:batch] for name, each in vars(given).items() if isinstance(each, Tensor)}
        torch.testing.assert_close(Arguments(**vars(given) | some).fused(), given.fused()[:batch])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    @pytest.mark.parametrize("kind", ["constant", "zero", "duplicates", "sink", "huge"])
    def test_hard_inputs_stay_finite_and_the_same(self, kind: str, dtype: torch.dtype) -> None:
        given = arguments(gain=40.0 if kind == "huge" else 1.0, dtype=dtype)
        q, k, v = given.q.clone(), given.k.clone(), given.v.clone()
        if kind in ("constant", "zero"):
            q, k, v = (each[:, :, :1].expand_as(each) * (kind == "constant") for each in (q, k, v))
        elif kind == "duplicates":
            q, k, v = (each[:, :, :3].repeat(1, 1, 23, 1)[:, :, :67] for each in (q, k, v))
        elif kind == "sink":
            k[:, :, 0] = 8 * q.mean(2)
        hard = Arguments(**vars(given) | {"q": q, "k": k, "v": v})
        output = hard.fused()
        assert output.isfinite().all()
        assert torch.equal(output, hard.fused())
        if kind != "huge":  # where the softmax is a choice of one, a difference in rounding is another choice
            torch.testing.assert_close(output.float(), hard.plain(), atol=20 * BOUND[dtype], rtol=20 * BOUND[dtype])

    def test_an_image_without_any_allowed_token_gives_zeros(self) -> None:
        given = arguments(batch=2, num_allowed=40)
        given.allowed[1] = False
        assert not given.fused()[1].any()
        assert not given.plain()[1].any()
        assert given.error() < 1e-4

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"cells": 129, "landmarks": 130, "tokens": 140}, "1..128 cells of"),
            ({"cells": 65, "landmarks": 65, "width": 128}, "1..64 cells of heads of 128 channels in torch.float32"),
            ({"width": 136}, "at most 128 channels, not 136"),
            ({"dtype": torch.float64}, "not torch.float64"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change: dict[str, object], reason: str) -> None:
        with pytest.raises(ImpossibleError, match=reason):
            arguments(**change).fused()

    def test_mixed_types_and_no_ridge_are_refused(self) -> None:
        given = arguments()
        with pytest.raises(ImpossibleError, match="of one type"):
            Arguments(**vars(given) | {"k": given.k.half()}).fused()
        with pytest.raises(ImpossibleError, match="positive ridge"):
            Arguments(**vars(given) | {"ridge": 0.0}).fused()

    def test_the_operator_is_well_formed(self) -> None:
        given = arguments(tokens=20, landmarks=4, num_allowed=15)
        values = [*vars(given).values()][:-1]
        torch.library.opcheck(torch.ops.fnabench.refined_attention.default, (*values, 4))

    def test_the_compiler_sees_one_graph(self) -> None:
        torch.compiler.reset()
        given = arguments(tokens=20, landmarks=4)
        compiled = torch.compile(refined_attention, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(**vars(given)), given.fused())


def test_on_a_cpu_the_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ImpossibleError, match="run on CUDA devices, not on cpu; use the plain form"):
        sample_farthest_points(features().cpu(), 4, 1)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="no CUDA device")
def test_nothing_waits_for_the_gpu_and_a_cuda_graph_replays_on_new_inputs() -> None:
    given = arguments(batch=2, tokens=300, landmarks=32, dtype=torch.bfloat16)

    def run() -> Tensor:
        sampled = sample_farthest_points(given.q.mean(1), 32, 1)
        return Arguments(**vars(given) | {"landmark_index": sampled.index, "cell_of": sampled.cell_of}).fused()

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    given.q.copy_(torch.randn_like(given.q))
    graph.replay()
    assert torch.equal(captured, run())


class TestVariant:
    """attention=fna_refined with fused=true is attention=fna_refined."""

    @pytest.mark.parametrize("options", [{}, {"over": 2}, {"per_head": True, "features": "q"}, {"method": "grid"}])
    @pytest.mark.parametrize("num_masked", [0, 5])
    def test_it_is_the_plain_variant(self, options: dict[str, object], num_masked: int) -> None:
        given = attention_inputs(tokens=40, head_dim=32)
        if num_masked:
            given = replace(given, mask=(torch.arange(40) < 40 - num_masked)[None, None, None].expand(2, -1, -1, -1))
        plain = FnaRefined(num_landmarks=8, **options)(given)  # type: ignore[arg-type]
        moved = {name: getattr(given, name).to(DEVICE) for name in ("q", "k", "v", "x")}
        moved["mask"] = None if given.mask is None else given.mask.to(DEVICE)
        fused = FnaRefined(num_landmarks=8, fused=True, **options)(replace(given, memo={}, **moved))  # type: ignore[arg-type]
        torch.testing.assert_close(fused.cpu(), plain, atol=2e-4, rtol=1e-3)

    @pytest.mark.parametrize("options", [{}, {"sketch": 0}, {"over": 2}, {"sinks_by": "norm"}, {"num_sinks": 0}])
    @pytest.mark.parametrize("mass", [0.3, 0.6, 0.9])
    def test_its_one_launch_chooses_the_plain_form_s_landmarks_sinks_first(
        self, mass: float, options: dict[str, object]
    ) -> None:
        given = attention_inputs(batch=3, tokens=41, head_dim=32)
        given = plant(replace(given, q=given.q + 1), mass)
        sinks = (given.k[:, 0] != attention_inputs(batch=3, tokens=41, head_dim=32).k[:, 0]).any(-1).nonzero()[:, 1]
        plain = FnaRefined(num_landmarks=9, **options)  # type: ignore[arg-type]
        landmarks, _ = plain.choose(given, None)
        moved = {name: getattr(given, name).to(DEVICE) for name in ("q", "k", "v", "x")}
        sampled = replace(plain, fused=True).sample(replace(given, memo={}, **moved), None)
        assert torch.equal(sampled.index.cpu(), landmarks.index)
        assert torch.equal(sampled.cell_of.cpu(), given.memo["nearest"])
        if plain.num_sinks and plain.sinks_by == "mass":
            assert (sampled.index.cpu()[:, 1:3] == sinks[:, None]).any(1).all()
            assert (sampled.cell_of.cpu().gather(1, sinks[:, None]) < 3).all()

    def test_it_chooses_on_the_sketch(self) -> None:
        given = attention_inputs(tokens=41, head_dim=32)
        moved = {name: getattr(given, name).to(DEVICE) for name in ("q", "k", "v", "x")}
        chosen = [
            FnaRefined(num_landmarks=9, sketch=sketch, fused=True).sample(replace(given, memo={}, **moved), None).index
            for sketch in (0, 8, 96)
        ]
        assert torch.equal(chosen[0], chosen[2]), "96 channels are not wider than the sketch"
        assert not torch.equal(chosen[0], chosen[1])

    def test_the_landmarks_serve_later_layers_with_masks_of_their_own(self) -> None:
        first, later = attention_inputs(tokens=41, head_dim=32), attention_inputs(tokens=41, head_dim=32, seed=1)
        later = replace(later, mask=(torch.arange(41) % 5 != 3)[None, None, None].expand(2, -1, -1, -1))
        for resample in ("forward", "layer"):
            outputs = []
            for fused in (False, True):
                variant, memo = FnaRefined(num_landmarks=9, resample=resample, fused=fused), {}
                for given in (first, later):
                    moved = {name: getattr(given, name).to(DEVICE) for name in ("q", "k", "v", "x")}
                    moved["mask"] = None if given.mask is None else given.mask.to(DEVICE)
                    output = variant(replace(given, memo=memo, **moved))
                outputs.append(output)
            torch.testing.assert_close(outputs[1], outputs[0], atol=2e-4, rtol=1e-3)

    @pytest.mark.parametrize(
        ("shape", "options", "reason"),
        [
            ({"head_dim": 160}, {}, "heads of at most 128 channels, not 160"),
            ({"num_tokens": 16387}, {}, "at most 16384 patches an image, not 16386"),
            ({}, {"num_landmarks": 129}, "1..128 cells of heads of 64 channels"),
        ],
    )
    def test_layers_that_the_kernels_cannot_take_are_refused_beforehand(
        self, shape: dict[str, int], options: dict[str, int], reason: str
    ) -> None:
        sizes = {"num_tokens": 577, "num_heads": 3, "head_dim": 64, "num_channels": 192, "num_prefix": 1} | shape
        FnaRefined(**options).check(AttentionShape(**sizes))
        with pytest.raises(ImpossibleError, match=reason):
            FnaRefined(fused=True, **options).check(AttentionShape(**sizes))

    @pytest.mark.parametrize("option", [{"cells": False}, {"scatter": False}, {"inverse": "pinv"}, {"shrink": True}])
    def test_what_the_kernels_do_not_do_is_refused(self, option: dict[str, object]) -> None:
        with pytest.raises(BadInputError, match="fused=true needs cells=true, scatter=true"):
            FnaRefined(fused=True, **option)  # type: ignore[arg-type]
