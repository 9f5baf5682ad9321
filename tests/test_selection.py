"""Every way of choosing landmarks: distinct, prefix first, allowed only, the same in any batch; no sink is missed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import attention_inputs, key_mask, on_meta, shape_of, softmax_attention

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.cells import gather_cells, nearest_landmark
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.landmarks import Landmarks
from fnabench.attention.selection import FEATURES, METHODS, SINKS_BY, Selection, likely_sinks
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.macs import count_macs


def choose(inputs: AttentionInputs, num_landmarks: int = 9, **options: object) -> Landmarks:
    selection = Selection(num_landmarks=num_landmarks, **options)  # type: ignore[arg-type]
    return selection.choose(inputs, selection.points(inputs), inputs.key_mask())


def one_image(inputs: AttentionInputs, image: int) -> AttentionInputs:
    q, k, v, x = (each[image : image + 1] for each in (inputs.q, inputs.k, inputs.v, inputs.x))
    return replace(inputs, q=q, k=k, v=v, x=x, memo={})


def planted(mass: float, *, seed: int, tokens: int = 197, sink: int = 101, in_input: bool = True) -> AttentionInputs:
    """Inputs in which one patch takes about this share of every query's attention, in every head.

    Its key lies along the mean query; queries of a common direction are what real sinks live on. With `in_input` the
    block's input of the sink is large too, as in trained models.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = attention_inputs(batch=1, heads=3, tokens=tokens, head_dim=16, seed=seed)
    common = torch.randn(1, 3, 1, 16, generator=generator)
    common = 4 * common / common.norm(dim=-1, keepdim=True)
    q, k = 0.5 * inputs.q + common, 0.5 * inputs.k - 0.5 * inputs.q
    if mass:
        rest = (inputs.scale * q @ k.mT).exp().sum(-1).mean()
        logit = torch.log(mass / (1 - mass) * rest)
        k[:, :, sink] = logit / inputs.scale * common[:, :, 0] / 16
        if in_input:
            inputs.x[:, sink] *= 20
    return replace(inputs, q=q, k=k, memo={})


# Any method


@pytest.mark.parametrize("num_prefix", [0, 1, 4])
@pytest.mark.parametrize("num_sinks", [0, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image", ["random", "constant", "zero", "huge", "copies"])
def test_landmarks_are_distinct_and_begin_with_prefix_and_sinks(
    method: str, num_sinks: int, num_prefix: int, image: str
) -> None:
    inputs = attention_inputs(tokens=20, num_prefix=num_prefix)
    if image == "huge":
        inputs.x[:, 7] *= 1e4
    elif image == "copies":
        inputs = replace(inputs, x=inputs.x[:, torch.arange(20) // 3])
    elif image != "random":
        inputs = replace(inputs, x=torch.full_like(inputs.x, float(image == "constant")))
    for num_landmarks in (9, 20):
        index = choose(inputs, num_landmarks, method=method, num_sinks=num_sinks).index
        assert all(len(set(row)) == num_landmarks for row in index.tolist())
        assert ((index >= 0) & (index < 20)).all()
        assert torch.equal(index[:, :num_prefix], torch.arange(num_prefix).expand(2, -1))
        if num_sinks:
            sinks = likely_sinks(inputs, num_sinks, "mass")
            assert torch.equal(index[:, num_prefix : num_prefix + num_sinks], sinks)


@pytest.mark.parametrize("num_sinks", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_masked_tokens_are_no_landmarks_until_the_others_run_out(method: str, num_sinks: int) -> None:
    few, many = [0, 2, 5, 11], [0, *range(3, 17)]
    inputs = attention_inputs(mask=key_mask(few, many))
    inputs.x[:, 1] *= 100
    inputs.k[:, :, 1] *= 100
    landmarks = choose(inputs, 8, method=method, num_sinks=num_sinks)
    assert landmarks.valid is not None
    for row, valid, allowed in zip(landmarks.index, landmarks.valid, (few, many), strict=True):
        assert len(set(row.tolist())) == 8
        assert set(row[valid].tolist()) <= set(allowed)
        assert not set(row[~valid].tolist()) & set(allowed)
        assert int(valid.sum()) == min(8, len(allowed))


@pytest.mark.parametrize("method", METHODS)
def test_a_selection_is_repeatable_and_does_not_depend_on_the_batch(method: str) -> None:
    inputs = attention_inputs(batch=3, tokens=40)
    together = choose(inputs, method=method, num_sinks=1).index
    assert torch.equal(together, choose(inputs, method=method, num_sinks=1).index)
    for image in range(3):
        alone = choose(one_image(inputs, image), method=method, num_sinks=1).index
        assert torch.equal(together[image], alone[0])


@pytest.mark.parametrize("method", ["random", "rpcholesky"])
def test_a_draw_depends_on_the_seed_and_on_the_layer(method: str) -> None:
    inputs = attention_inputs(tokens=80)
    first = choose(inputs, method=method).index
    assert not torch.equal(first, choose(inputs, method=method, seed=1).index)
    assert not torch.equal(first, choose(replace(inputs, layer=3), method=method).index)


def test_a_grid_is_even() -> None:
    inputs = attention_inputs(tokens=101)
    for num_landmarks in (11, 21, 51):
        index = choose(inputs, num_landmarks, method="grid").index[0, 1:].sort().values
        gaps = index.diff()
        assert gaps.max() <= 2.7 * 100 / (num_landmarks - 1)
        assert len(set(gaps.tolist())) <= 3  # the three-gap theorem


def test_kmeans_brings_the_tokens_nearer_to_the_means_of_their_cells() -> None:
    inputs = attention_inputs(tokens=200, num_prefix=1)
    inputs.x[..., 2:] = 0  # a plane: in many dimensions noise has no cells to speak of
    spread = []
    for num_refinements in (0, 1, 3):
        landmarks = choose(inputs, 20, method="kmeans", num_refinements=num_refinements)
        nearest = nearest_landmark(inputs.x, landmarks, 1)
        means = gather_cells(nearest, 20).mean(inputs.x[:, None])[:, 0]
        off = inputs.x - means.gather(1, nearest[..., None].expand(-1, -1, 24))
        spread.append(float(off.square().sum()))
    assert spread[2] < spread[1] < 0.9 * spread[0]


def test_kmeans_without_refinement_is_farthest_points() -> None:
    inputs = attention_inputs(tokens=40)
    plain = choose(inputs)
    assert torch.equal(choose(inputs, method="kmeans", num_refinements=0).index, plain.index)
    assert not torch.equal(choose(inputs, method="kmeans", num_refinements=2).index, plain.index)


def test_random_pivots_are_drawn_by_what_is_left_of_the_kernel() -> None:
    """In float64, the whole Schur complement written out; the draws are the same."""
    inputs = attention_inputs(batch=1, tokens=30)
    x = inputs.x[0].double()
    width = (x - x.mean(0)).square().sum(-1).mean()
    left = (-torch.cdist(x, x).square() / (2 * width)).exp()
    draws = torch.rand(12, generator=torch.Generator().manual_seed(0))
    chosen: list[int] = []
    for draw in draws:
        chance = left.diagonal().clamp_min(0).cumsum(0)
        chosen.append(int((chance > draw * chance[-1]).nonzero()[0]) if chosen else 0)  # the prefix comes first
        column = left[:, chosen[-1]]
        left = left - column[:, None] * column / column[chosen[-1]]
    assert choose(inputs, 12, method="rpcholesky").index[0].tolist() == chosen


def test_random_pivots_explain_a_kernel_better_than_random_tokens() -> None:
    """The trace that a Nystrom approximation of the kernel leaves, in float64."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(10, 24, generator=generator)
    group = (10 * torch.rand(150, generator=generator) ** 3).long()
    inputs = replace(attention_inputs(batch=1, tokens=150), x=centres[group][None] + 0.1 * torch.randn(1, 150, 24))
    left = {}
    for method in ("random", "rpcholesky"):
        traces = []
        for seed in range(8):
            index = choose(inputs, 10, method=method, seed=seed).index[0]
            x = inputs.x[0].double()
            x = x - x.mean(0)
            kernel = (-torch.cdist(x, x).square() / (2 * x.square().sum(-1).mean())).exp()
            explained = kernel[:, index] @ torch.linalg.pinv(kernel[index][:, index]) @ kernel[index]
            traces.append(float((kernel - explained).trace()))
        left[method] = sum(traces)
    assert left["rpcholesky"] < 0.7 * left["random"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_sinks", [0, 2])
@pytest.mark.parametrize("sketch", [0, 10])
@pytest.mark.parametrize("by", SINKS_BY)
def test_its_macs_are_those_that_a_counter_sees(method: str, num_sinks: int, sketch: int, by: str) -> None:
    inputs = attention_inputs(tokens=41)
    selection = Selection(num_landmarks=9, method=method, num_sinks=num_sinks, sketch=sketch, sinks_by=by)
    given = on_meta(inputs)
    counted = count_macs(lambda: selection.choose(given, selection.points(given), None))
    assert selection.macs(shape_of(inputs)) == counted


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("num_landmarks", "num_sinks"), [(18, 0), (3, 2)])
def test_landmarks_that_do_not_fit_these_inputs_are_refused(method: str, num_landmarks: int, num_sinks: int) -> None:
    with pytest.raises(ImpossibleError, match=f"num_landmarks={num_landmarks} does not fit 17 tokens"):
        choose(attention_inputs(), num_landmarks, method=method, num_sinks=num_sinks)


# Sketches


def test_a_sketch_keeps_distances_up_to_one_factor() -> None:
    inputs = attention_inputs(heads=12, head_dim=64, tokens=50)
    full, sketch = (torch.cdist(*[Selection(num_landmarks=9, sketch=width).points(inputs)[0]] * 2) for width in (0, 64))
    ratio = sketch[full > 0] / full[full > 0]
    assert float(ratio.std() / ratio.mean()) < 1.5 / 128**0.5  # a chi distribution's
    assert float(ratio.mean()) == pytest.approx((64 / 768) ** 0.5, rel=0.02)


def test_a_sketch_is_the_same_for_a_seed_and_leaves_narrower_features_alone() -> None:
    inputs = attention_inputs(heads=2, head_dim=8)
    narrow, wide = Selection(num_landmarks=9, sketch=10), Selection(num_landmarks=9, sketch=16)
    assert torch.equal(narrow.points(inputs), narrow.points(replace(inputs, memo={})))
    assert not torch.allclose(narrow.points(inputs), replace(narrow, seed=1).points(inputs))
    assert narrow.points(inputs).shape[-1] == narrow.num_features(shape_of(inputs)) == 10
    assert torch.equal(wide.points(inputs), inputs.x)
    assert wide.num_features(shape_of(inputs)) == 16


# Sinks


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.9])
def test_the_planted_sink_takes_the_mass_that_it_should(mass: float) -> None:
    inputs = planted(mass, seed=0)
    share = (inputs.scale * inputs.q @ inputs.k.mT).softmax(-1)[..., 101]
    assert float(share.mean()) == pytest.approx(mass, abs=0.1)


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", SINKS_BY)
def test_a_guaranteed_sink_is_never_missed(mass: float, method: str, by: str) -> None:
    for seed in range(10):
        inputs = planted(mass, seed=seed)
        index = choose(inputs, 8, method=method, num_sinks=1, sinks_by=by, features="q").index
        assert 101 in index[0]


def test_mass_is_the_attention_of_each_head_s_mean_query() -> None:
    inputs = attention_inputs(tokens=40)
    logits = inputs.scale * inputs.q.double().mean(2, keepdim=True) @ inputs.k.double().mT
    mass = logits.softmax(-1).mean(1)[:, 0, 1:]
    assert torch.equal(likely_sinks(inputs, 39, "mass"), 1 + mass.argsort(1, descending=True))


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5])
def test_a_sample_of_queries_finds_a_sink_that_most_of_them_face_away_from(share: float) -> None:
    for seed in range(10):
        inputs = attention_inputs(tokens=197, seed=seed)
        facing = torch.rand(197, generator=torch.Generator().manual_seed(seed)) < share
        direction = torch.randn(2, 3, 1, 8, generator=torch.Generator().manual_seed(seed))
        inputs = replace(inputs, q=torch.where(facing[:, None], 4.0, -4.0) * direction, k=0.1 * inputs.k)
        inputs.k[:, :, 101] = 9 * direction[:, :, 0]
        assert (likely_sinks(inputs, 1, "sample") == 101).all()
        if share < 0.5:
            assert not (likely_sinks(inputs, 1, "mass") == 101).any(), "the mean query faces away"


def test_a_sample_is_that_of_evenly_spaced_tokens_and_of_all_where_they_are_few() -> None:
    inputs = attention_inputs(tokens=30)
    mass = (inputs.scale * inputs.q.double() @ inputs.k.double().mT).softmax(-1).mean((1, 2))[:, 1:]
    assert torch.equal(likely_sinks(inputs, 29, "sample"), 1 + mass.argsort(1, descending=True))


def test_a_sink_has_a_cell_of_its_own() -> None:
    inputs = attention_inputs(tokens=60)
    FnaRefined(num_landmarks=8, num_sinks=2)(inputs)
    assert (inputs.memo["cells"].size[:, :3] == 1).all(), "as the prefix token"


@pytest.mark.parametrize("part", ["q", "k"])
@pytest.mark.parametrize("by", ["mass", "sample"])
def test_masked_tokens_move_no_sink(part: str, by: str) -> None:
    kept = [0, *range(5, 17)]
    inputs = attention_inputs(mask=key_mask(kept, kept))
    changed = getattr(inputs, part).clone()
    changed[:, 0, 1:5] = -30 * inputs.q[:, 0].mean(1, keepdim=True)
    changed[:, 1, 1:5] = 30 * inputs.q[:, 1].mean(1, keepdim=True)
    other = replace(inputs, **{part: changed})  # type: ignore[arg-type]
    assert torch.equal(*(likely_sinks(each, 9, by, each.key_mask()) for each in (inputs, other)))


def test_without_the_guarantee_the_paper_s_features_miss_sinks() -> None:
    missed = [101 not in choose(planted(0.6, seed=seed), 8, features="q").index[0] for seed in range(10)]
    assert sum(missed) >= 5


@pytest.mark.parametrize("mass", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("features", FEATURES)
def test_with_the_guarantee_a_sink_of_any_mass_does_no_harm(mass: float, features: str) -> None:
    variant = FnaRefined(num_landmarks=32, features=features, num_sinks=1)
    errors = []
    for seed in range(5):
        inputs = planted(mass, seed=seed, in_input=False)
        exact = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale)
        errors.append(float((variant(inputs).double() - exact).norm() / exact.norm()))
    assert sum(errors) / 5 < {0.0: 1.0, 0.3: 0.4, 0.6: 0.2, 0.9: 0.1}[mass]


# Through the variants


@pytest.mark.parametrize("variant", [Fna(num_landmarks=7), FnaRefined(num_landmarks=7)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("features", FEATURES)
def test_both_variants_take_every_selection(variant: Attention, method: str, features: str) -> None:
    inputs = attention_inputs(tokens=33)
    output = replace(variant, method=method, features=features, num_sinks=2)(inputs)  # type: ignore[call-arg]
    assert output.isfinite().all()
    chosen = choose(inputs, 7, method=method, features=features, num_sinks=2)
    assert torch.equal(inputs.memo["landmarks"].index, chosen.index)


@pytest.mark.parametrize("variant", [Fna(num_landmarks=7), FnaRefined(num_landmarks=7)])
@pytest.mark.parametrize("features", ["q", "k", "qk_concat"])
def test_per_head_every_head_is_treated_as_if_it_were_alone(variant: Fna | FnaRefined, features: str) -> None:
    variant, shared = (replace(variant, features=features, per_head=each) for each in (True, False))
    kept = [0, *range(4, 33)]
    for mask in (None, key_mask(kept, list(range(33)), tokens=33), key_mask(kept, tokens=33)):
        inputs = attention_inputs(tokens=33, mask=mask)
        output = variant(inputs)
        for head in range(3):
            q, k, v = (each[:, head : head + 1] for each in (inputs.q, inputs.k, inputs.v))
            alone = shared(replace(inputs, q=q, k=k, v=v, memo={}))
            torch.testing.assert_close(output[:, head : head + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", [Fna(num_landmarks=7), FnaRefined(num_landmarks=7)])
@pytest.mark.parametrize("method", METHODS)
def test_per_head_macs_are_those_that_a_counter_sees(variant: Fna | FnaRefined, method: str) -> None:
    inputs = attention_inputs(tokens=41)
    variant = replace(variant, per_head=True, features="q", inverse="newton_schulz", method=method, num_sinks=1)
    assert variant.macs(shape_of(inputs), 1) == count_macs(lambda: variant(on_meta(inputs)))


@pytest.mark.parametrize("variant", [Fna, FnaRefined])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method=best is not known; allowed: fps, random, grid, kmeans, rpcholesky"),
        ({"num_sinks": -1}, "num_sinks=-1 must be at least 0"),
        ({"num_refinements": -1}, "num_refinements=-1 must be at least 0"),
        ({"sinks_by": "size"}, "sinks_by=size is not known; allowed: mass, sample, norm"),
        ({"per_head": True, "features": "input"}, "the block's input is the same for all"),
        ({"per_head": True, "features": "q", "num_sinks": 1, "sinks_by": "norm"}, "per_head=true needs what differs"),
    ],
)
def test_settings_out_of_range_are_refused(
    variant: type[Fna | FnaRefined], options: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        variant(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", [Fna, FnaRefined])
def test_prefix_and_sinks_must_fit_into_the_landmarks(variant: type[Fna | FnaRefined]) -> None:
    shape = shape_of(attention_inputs(num_prefix=5))
    variant(num_landmarks=8, num_sinks=2).check(shape)
    with pytest.raises(ImpossibleError, match=r"5 are prefix tokens and 3 sinks; choose 9\.\.17"):
        variant(num_landmarks=8, num_sinks=3).check(shape)
