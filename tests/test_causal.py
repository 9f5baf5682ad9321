"""Landmark attention under a causal mask: nobody sees the future or padding, and what it approximates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import attention_inputs, on_meta, shape_of, softmax_attention
from torch.nn.functional import scaled_dot_product_attention

from fnabench.attention.causal import block_size, cells_per_block, choose_nearest
from fnabench.attention.cells import gather_cells
from fnabench.attention.fna import Fna
from fnabench.attention.fna_refined import FnaRefined
from fnabench.attention.selection import Selection
from fnabench.macs import count_macs

TOKENS = 50
FNA = Fna(num_landmarks=6)  # blocks of 12 tokens, the last of 2; one cell and a bit of the 6 for each


def inputs(tokens=TOKENS, **options):
    return attention_inputs(tokens=tokens, num_prefix=0, is_causal=True, **options)


def padded(given, count, row=1):
    """The same with the first tokens of one row marked as padding."""
    allowed = torch.ones(given.q.shape[0], given.q.shape[2], dtype=torch.bool)
    allowed[row, :count] = False
    return replace(given, mask=allowed[:, None, None])


def changed_from(given, position, until=None):
    """The same with every token from a position on replaced by another."""
    other = inputs(tokens=given.q.shape[2], seed=9)
    parts = {}
    for name in ("q", "k", "v", "x"):
        tensor = getattr(given, name).clone()
        tensor[..., position:until, :] = getattr(other, name)[..., position:until, :]
        parts[name] = tensor
    return replace(given, memo={}, **parts)


VARIANTS = (
    FNA,
    FnaRefined(num_landmarks=6),
    FnaRefined(num_landmarks=12, method="kmeans", features="k"),
    Fna(num_landmarks=12, features="qk_concat", per_head=True),
    Fna(num_landmarks=12, method="rpcholesky"),
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("position", range(1, TOKENS))
def test_no_token_sees_a_later_one(position, variant):
    before, after = variant(inputs()), variant(changed_from(inputs(), position))
    assert torch.equal(before[:, :, :position], after[:, :, :position])
    assert not torch.equal(before[:, :, position:], after[:, :, position:])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 5), (0, 12), (0, 13), (0, 30), (20, 27), (41, 50)])
def test_no_token_sees_padding(variant, start, stop):
    """Before the prompt, in it, after it."""
    given = inputs()
    allowed = torch.ones(2, TOKENS, dtype=torch.bool)
    allowed[1, start:stop] = False
    given = replace(given, mask=allowed[:, None, None])
    before, after = variant(given), variant(changed_from(given, start, stop))
    assert torch.equal(before[1][:, allowed[1]], after[1][:, allowed[1]])
    assert before.isfinite().all()


def test_a_padding_token_sees_no_block_but_its_own():
    allowed = torch.ones(2, TOKENS, dtype=torch.bool)
    allowed[1, 20:27] = False  # with blocks of other tokens before it
    given = replace(inputs(), mask=allowed[:, None, None])
    v = given.v.index_fill(2, torch.arange(12), 1e3)
    assert torch.equal(FNA(given)[1, :, 20:27], FNA(replace(given, v=v, memo={}))[1, :, 20:27])


def test_every_token_sees_each_earlier_one():
    """Through its cell at least: the gradient of the last token's output reaches all values."""
    given = inputs(batch=1)
    v = given.v.clone().requires_grad_()
    FNA(replace(given, v=v))[0, :, -1].sum().backward()
    assert (v.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("variant", [FNA, FnaRefined(num_landmarks=6, over=2)])
@pytest.mark.parametrize("tokens", [1, 5, 12])  # fewer than the landmarks, too
def test_a_sequence_of_one_block_is_exact(tokens, variant):
    given = inputs(tokens=tokens)
    variant.check(shape_of(given))
    lower = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    expected = softmax_attention(given.q, given.k, given.v, given.scale, lower)
    torch.testing.assert_close(variant(given).double(), expected, atol=1e-5, rtol=0)


def test_equal_keys_within_a_cell_are_exact():
    """A cell stands for its tokens without loss where they share their key: values are averaged as softmax would."""
    given = inputs()
    first = torch.arange(TOKENS) // 12 * 12
    k = given.k[:, :, first]
    exact = scaled_dot_product_attention(given.q, k, given.v, is_causal=True, scale=given.scale)
    torch.testing.assert_close(FNA(replace(given, k=k)), exact, atol=1e-5, rtol=1e-4)


def test_values_of_one_give_one():
    given = padded(inputs(), 7)
    torch.testing.assert_close(FNA(replace(given, v=torch.ones_like(given.v))), torch.ones_like(given.v))


def test_more_landmarks_come_nearer_to_exact():
    given = inputs(tokens=200, batch=4)
    exact = scaled_dot_product_attention(given.q, given.k, given.v, is_causal=True, scale=given.scale)
    errors = [float((Fna(num_landmarks=m)(replace(given, memo={})) - exact).norm()) for m in (4, 16, 64, 128)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def test_the_cells_of_the_past_share_the_landmarks():
    for tokens in (10, 100, 577, 4096):
        for landmarks in (8, 64):
            blocks = -(-tokens // block_size(landmarks))
            assert cells_per_block(tokens, landmarks) * max(1, blocks - 1) <= max(landmarks, blocks)


def test_cells_are_chosen_once_a_forward():
    variant = Fna(num_landmarks=12)
    first, later = inputs(), inputs(seed=3)
    variant(first)
    chosen = first.memo["causal nearest"]
    shared = variant(replace(later, memo=first.memo))
    assert first.memo["causal nearest"] is chosen
    assert not torch.equal(shared, variant(replace(later, memo={})))
    assert torch.equal(shared, variant(replace(later, memo={"causal nearest": chosen})))
    anew = replace(variant, resample="layer")
    assert torch.equal(anew(replace(later, memo=first.memo)), anew(replace(later, memo={})))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_layer_honours_padding_of_its_own(variant):
    outputs = []
    for given in (inputs(seed=3), changed_from(inputs(seed=3), 0, 5)):
        first = inputs()
        variant(first)
        outputs.append(variant(replace(padded(given, 5), memo=first.memo))[1, :, 5:])
    assert torch.equal(*outputs)


def test_a_guaranteed_sink_has_a_cell_of_its_own_in_each_block():
    num_cells = cells_per_block(TOKENS, 20)
    assert num_cells > 3
    cells = gather_cells(choose_nearest(inputs(), Selection(num_landmarks=20, features="q", num_sinks=2)), num_cells)
    assert (cells.size[:, :2] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_dtype_of_v_and_is_finite(dtype):
    output = FNA(padded(inputs(dtype=dtype), 20))
    assert output.dtype == dtype
    assert output.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"method": "kmeans"}, {"method": "grid"}, {"num_sinks": 2}, {"sketch": 5}])
@pytest.mark.parametrize("num_landmarks", [6, 20])  # with 6, of which each block has one, there is no room for sinks
def test_the_formula_counts_what_a_counter_counts(options, num_landmarks):
    given = inputs(batch=1)
    variant = Fna(num_landmarks=num_landmarks, **options)
    shape = shape_of(given)
    counted = count_macs(lambda: variant(on_meta(given)))
    blocks = -(-TOKENS // block_size(num_landmarks)) * block_size(num_landmarks)
    centring = 0 if variant.method == "grid" else blocks * min(8, variant.sketch or 8)  # seen, but no product
    assert variant.macs(shape, 1) == counted - centring
