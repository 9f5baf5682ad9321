"""Masked variants: exact outcomes on a planted model, the inner variant where nothing is masked, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import attention_inputs, random_images, shape_of, softmax_attention, timm_model, watch
from planted import ARTIFACT, DETECT_BLOCK, MASSIVE, planted_images, planted_vit, tokens

from fnabench.attention.base import Attention, AttentionInputs
from fnabench.attention.detectors import (
    MIN_GAP,
    RATIO,
    above_cls,
    above_gap,
    cls_attention,
    cls_logits,
    taking_over,
)
from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.masked import Masked
from fnabench.attention.masks import attend_masked, attend_sunk, without_keys
from fnabench.attention.nystromformer import Nystromformer
from fnabench.attention.registers import Registers
from fnabench.attention.tome import Tome
from fnabench.errors import BadInputError, ImpossibleError
from fnabench.identity import digest, shown
from fnabench.identity import settings as settings_of
from fnabench.macs import count_macs
from fnabench.models.timm_layers import timm_layers

INNER = (Exact(), Fna(num_landmarks=6))


def some_tokens(inputs: AttentionInputs) -> torch.Tensor:
    chosen = torch.zeros(inputs.q.shape[0], inputs.q.shape[2], dtype=torch.bool)
    chosen[0, [3, 7]] = True
    chosen[1, [16]] = True
    return chosen


def block_inputs(block: int) -> AttentionInputs:
    """What a block of the planted model is given."""
    module, watched = planted_vit(), watch(Exact())
    watched.attach(timm_layers(module))
    module(planted_images())
    return watched.seen[block]


# The operators against probabilities that are written out


@pytest.mark.parametrize("pattern", ["type1", "type2"])
@pytest.mark.parametrize("with_padding", [False, True])
def test_mask_and_sink_are_what_written_out_probabilities_give(pattern: str, with_padding: bool) -> None:
    keys = torch.ones(2, 1, 1, 17, dtype=torch.bool)
    keys[..., 14:] = not with_padding
    inputs = attention_inputs(mask=keys if with_padding else None)
    chosen = some_tokens(inputs)
    seen = torch.ones(2, 1, 17, 17, dtype=torch.bool) & keys
    hidden = chosen[:, None, None, :].expand(-1, -1, 17, -1).clone()
    if pattern == "type2":
        for token in range(17):
            hidden[:, :, token, token] = False
    masked = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale, seen & ~hidden)
    torch.testing.assert_close(attend_masked(inputs, chosen, pattern).double(), masked.nan_to_num(), atol=1e-5, rtol=0)
    logits = inputs.scale * inputs.q.double() @ inputs.k.double().mT
    probabilities = logits.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(hidden, 0)
    sunk = probabilities @ inputs.v.double()
    torch.testing.assert_close(attend_sunk(inputs, chosen, pattern).double(), sunk, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attend", [attend_masked, attend_sunk])
def test_the_operators_refuse_a_causal_mask(attend) -> None:
    inputs = attention_inputs(is_causal=True)
    with pytest.raises(ImpossibleError, match="causal"):
        attend(inputs, some_tokens(inputs), "type1")


# The detectors on the planted model


def test_both_detectors_find_the_massive_token_and_it_alone() -> None:
    inputs = block_inputs(DETECT_BLOCK)
    logits = cls_logits(inputs.q, inputs.k, inputs.scale)
    assert torch.equal(above_gap(inputs.x.norm(dim=-1), 1, MIN_GAP), tokens(MASSIVE))
    assert torch.equal(above_cls(cls_attention(logits), 1, RATIO), tokens(MASSIVE))


def test_nothing_is_massive_before_it_has_grown() -> None:
    inputs = block_inputs(DETECT_BLOCK - 1)
    assert not above_gap(inputs.x.norm(dim=-1), 1, MIN_GAP).any()


def test_the_artifact_takes_over_once_the_massive_token_is_masked() -> None:
    inputs = block_inputs(DETECT_BLOCK)
    logits = cls_logits(inputs.q, inputs.k, inputs.scale)
    assert torch.equal(taking_over(logits, tokens(MASSIVE), 1), tokens(ARTIFACT))
    assert not taking_over(logits, tokens(MASSIVE), 1, rounds=0).any()
    given = cls_attention(logits, tokens(MASSIVE))[0]
    assert given[MASSIVE] == 0
    assert given[ARTIFACT] == pytest.approx(0.5 + 0.5 / (9 * 9 + 8), abs=1e-4)
    assert given.sum() == pytest.approx(1)


def test_only_a_gap_with_few_tokens_above_it_counts() -> None:
    few, many = torch.full((1, 9), 10.0), torch.full((1, 9), 10.0)
    few[0, [2, 5]] = 100
    many[0, [2, 5]] = 1  # the gap is as large, but most tokens are above it
    assert above_gap(few, 1, MIN_GAP).nonzero()[:, 1].tolist() == [2, 5]
    assert not above_gap(many, 1, MIN_GAP).any()
    assert not above_gap(few, 1, 2.4).any()
    assert not above_gap(torch.zeros(1, 9), 1, MIN_GAP).any()


def test_prefix_tokens_are_never_found() -> None:
    norms = torch.full((1, 9), 10.0)
    norms[0, [0, 3]] = 1000
    assert above_gap(norms, 1, MIN_GAP).nonzero()[:, 1].tolist() == [3]
    assert above_gap(norms, 4, MIN_GAP).sum() == 0
    assert above_cls(norms, 4, RATIO).sum() == 0


# The variant


@pytest.mark.parametrize(
    "settings", [{}, {"detector": "cls"}, {"detect_block": 2}, {"detect_block": 2, "start_block": 3}]
)
def test_the_tokens_found_are_masked_from_the_start_block_on(settings: dict[str, object]) -> None:
    module, inner = planted_vit(), watch(Exact())
    Masked(tokens="both", inner=inner, **settings).attach(timm_layers(module).select([2, 3]))
    module(planted_images())
    for inputs in inner.seen:
        expected = None if inputs.layer < settings.get("start_block", 0) else ~tokens(MASSIVE, ARTIFACT)[:, None, None]
        assert (inputs.mask is None) if expected is None else torch.equal(inputs.mask, expected)


@pytest.mark.parametrize(("chosen", "found"), [("massive", [MASSIVE]), ("artifact", [ARTIFACT]), ("none", [])])
def test_the_setting_says_which_tokens(chosen: str, found: list[int]) -> None:
    expected = tokens(*found) if found else None
    actual = Masked(tokens=chosen, inner=Exact()).find(block_inputs(DETECT_BLOCK))
    assert (actual is None) if expected is None else torch.equal(actual, expected)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("chosen", ["none", "massive"])
def test_without_tokens_to_mask_it_is_bit_equal_to_the_inner_variant(inner, chosen: str) -> None:
    inputs = attention_inputs()
    masked = Masked(tokens=chosen, inner=inner)
    assert torch.equal(masked(inputs), inner(replace(inputs, memo={})))
    module = timm_model()
    inner.attach(timm_layers(module))
    plain = module(random_images())
    masked.attach(timm_layers(module))
    assert torch.equal(module(random_images()), plain)


def test_masked_tokens_are_no_landmarks() -> None:
    inputs = attention_inputs(tokens=40)
    chosen = torch.zeros(2, 40, dtype=torch.bool)
    chosen[:, 30:] = True
    Fna(num_landmarks=12)(without_keys(inputs, chosen))
    assert (inputs.memo["landmarks"].index < 30).all()


def test_landmarks_that_were_chosen_before_they_were_masked_are_dropped() -> None:
    inputs = attention_inputs()
    fna = Fna(num_landmarks=9)
    fna(inputs)
    chosen = torch.zeros(2, 17, dtype=torch.bool)
    chosen[0, inputs.memo["landmarks"].index[0, 4]] = True
    k, v = inputs.k.clone(), inputs.v.clone()
    k[chosen[:, None].expand(-1, 3, -1)] = 9
    v[chosen[:, None].expand(-1, 3, -1)] = 1e4
    masked, poisoned = (without_keys(each, chosen) for each in (inputs, replace(inputs, k=k, v=v)))
    assert torch.equal(fna(masked), fna(poisoned))


def test_a_key_mask_of_the_model_stays_in_force() -> None:
    keys = torch.ones(1, 1, 1, 17, dtype=torch.bool)
    keys[..., 12:] = False
    inputs = attention_inputs(mask=keys)
    chosen = some_tokens(inputs)
    assert torch.equal(without_keys(inputs, chosen).mask, keys & ~chosen[:, None, None])


def test_blocks_are_counted_from_the_end_too():
    found = Registers(inner=Masked(detect_block=-4, start_block=-1, inner=Exact())).in_model(12).inner
    assert (found.detect_block, found.start_block) == (8, 11)
    assert found.in_model(12) == found
    assert Masked(inner=Fna(num_landmarks=6)).in_model(12) == Masked(inner=Fna(num_landmarks=6))
    for detect, start in ((-1, -2), (3, 2)):
        with pytest.raises(BadInputError, match="only later"):
            Masked(detect_block=detect, start_block=start, inner=Exact())
    with pytest.raises(BadInputError, match="only later"):
        Masked(detect_block=9, start_block=-4, inner=Exact()).in_model(12)
    with pytest.raises(ImpossibleError, match=r"start_block=-1 is not among"):
        Masked(start_block=-13, inner=Exact()).in_model(12).check_layers([10, 11])


# Refusals and cost


@pytest.mark.parametrize(
    ("settings", "named"), [({"detector": "cls"}, "detector=cls"), ({"tokens": "artifact"}, "tokens=artifact")]
)
def test_without_a_cls_token_the_cls_detectors_are_refused_and_the_norm_is_offered(settings, named: str) -> None:
    shape = shape_of(attention_inputs(num_prefix=0))
    with pytest.raises(
        ImpossibleError, match=rf"attention\.{named} .* use attention\.tokens=massive attention\.detector=norm"
    ):
        Masked(inner=Exact(), **settings).check(shape)
    Masked(inner=Exact(), tokens="massive", detector="norm").check(shape)


@pytest.mark.parametrize("name", ["detect_block", "start_block"])
def test_a_block_that_is_not_replaced_is_refused(name: str) -> None:
    stack = timm_layers(timm_model())
    with pytest.raises(ImpossibleError, match=rf"attention\.{name}=9 is not among .* choose one of 2, 3"):
        Masked(inner=Exact(), **{name: 9}).attach(stack.select("half"))
    assert all(layer.core is None for layer in stack)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": "all"}, "attention.tokens=all is not known; allowed: none, massive, artifact, both"),
        ({"detector": "magic"}, "attention.detector=magic is not known; allowed: norm, cls"),
        ({"ratio": 0}, "must be above 0"),
        ({"detect_block": 3, "start_block": 2}, "choose a start_block of at least 3"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        Masked(inner=Exact(), **settings)


@pytest.mark.parametrize("inner", [Tome(), Registers(neurons=(), inner=Nystromformer(num_landmarks=7))])
def test_an_inner_variant_that_honours_no_key_mask_is_refused_before_anything_runs(inner: Attention) -> None:
    shape = replace(shape_of(attention_inputs()), num_neurons=8)
    with pytest.raises(ImpossibleError, match=r"attention\.inner=\w+ honours no key mask"):
        Masked(inner=inner).check(shape)
    Masked(inner=inner, tokens="none").check(shape)


@pytest.mark.parametrize(
    "settings", [{"tokens": "none"}, {"tokens": "massive"}, {"tokens": "both"}, {"tokens": "both", "detect_block": 0}]
)
def test_the_macs_are_those_that_a_counter_sees(settings: dict[str, object]) -> None:
    inputs = attention_inputs(batch=1, tokens=41)
    variant, memo = Masked(inner=Exact(), **settings), {}
    counted = count_macs(lambda: [variant(replace(inputs, memo=memo, layer=layer)) for layer in range(3)])
    assert variant.macs(shape_of(inputs), 3) == counted


def test_the_settings_of_the_inner_variant_are_part_of_the_key_and_are_shown() -> None:
    one, other = (settings_of(Masked(inner=Fna(num_landmarks=landmarks))) for landmarks in (5, 6))
    assert digest(one) != digest(other)
    assert settings_of(Masked(inner=Exact()))["inner"] == {"class": "fnabench.attention.exact.Exact"}
    assert (shown(one)["tokens"], shown(one)["inner.num_landmarks"]) == ("massive", 5)
    assert not any("class" in name for name in shown(one))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    inputs = attention_inputs(dtype=dtype)
    inputs.x[0, 4] *= 50
    masked = Masked(tokens="both", inner=Exact())
    assert masked.find(replace(inputs, memo={}))[0, 4]
    assert masked(inputs).dtype == dtype
    assert masked(inputs).isfinite().all()


def test_finding_the_tokens_is_a_part_with_a_latency_of_its_own() -> None:
    inputs = block_inputs(DETECT_BLOCK)
    (name, find), *_ = Masked(inner=Exact()).parts.items()
    assert name == "token detection"
    assert torch.equal(find(inputs), tokens(MASSIVE))
