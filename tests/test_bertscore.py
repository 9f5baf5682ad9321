"""BERTScore and ROUGE-L: hand-made embeddings and texts with known answers, and an independent implementation."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from small_encoder import save_encoder

from fnabench.bertscore import TextEncoder, greedy_matching, inverse_document_frequencies, score_texts
from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.rouge import rouge_l

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]
NORTH_EAST = [0.6, 0.8]
CANDIDATES = ["two", "a red ball", "a blue ball lies there", "there is no dog in the picture"]
REFERENCES = ["a dog", "the red ball", "a blue ball lies there", "there are no two balls in the picture"]
"""From short to long: torchmetrics sorts texts by their length and does not find back."""


def match(candidate, reference, **weights):
    found = greedy_matching(torch.tensor(candidate), torch.tensor(reference), **weights)
    return found.precision, found.recall, found.f1


def test_equal_texts_match_in_full_in_any_order_and_of_any_length():
    assert match([EAST, NORTH], [NORTH, EAST]) == pytest.approx((1, 1, 1))
    assert match([[3.0, 0.0], NORTH], [EAST, [0.0, 0.5]]) == pytest.approx((1, 1, 1))


def test_precision_is_of_the_candidate_and_recall_of_the_reference():
    assert match([EAST], [EAST, NORTH]) == pytest.approx((1, 0.5, 2 / 3))
    assert match([EAST, NORTH], [EAST]) == pytest.approx((0.5, 1, 2 / 3))
    # candidate: max(0.6, 1) and max(0.8, 0); reference: max(0.6, 0.8) and 1
    assert match([EAST, NORTH], [NORTH_EAST, EAST]) == pytest.approx((0.9, 0.9, 0.9))
    precision, recall = (0.6 + 0.8) / 2, 0.8
    f1 = 2 * precision * recall / (precision + recall)
    assert match([EAST, NORTH], [NORTH_EAST]) == pytest.approx((precision, recall, f1))


def test_rare_tokens_count_by_their_weight():
    weights = {"candidate_weights": torch.tensor([3.0, 1.0]), "reference_weights": torch.tensor([1.0])}
    assert match([EAST, NORTH], [NORTH_EAST], **weights)[:2] == pytest.approx(((3 * 0.6 + 0.8) / 4, 0.8))


def test_opposite_and_empty_texts_match_in_nothing():
    assert match([EAST], [NORTH]) == (0, 0, 0)
    nothing = torch.zeros(0, 2)
    assert greedy_matching(nothing, torch.tensor([EAST])) == greedy_matching(torch.tensor([EAST]), nothing)
    assert greedy_matching(nothing, nothing).f1 == 0


def test_idf_is_smoothed_by_one_over_the_references():
    rarity = inverse_document_frequencies([[5, 5, 6], [5, 7], [5]])
    assert rarity[5] == 0
    assert rarity[6] == rarity[7] == pytest.approx(math.log(4 / 2))
    assert rarity[99] == pytest.approx(math.log(4))


@pytest.mark.parametrize("with_idf", [False, True])
@pytest.mark.parametrize("layer", [None, 0, 1])
def test_scores_are_those_of_an_independent_implementation(tmp_path, with_idf, layer):
    from torchmetrics.functional.text import bert_score
    from transformers import AutoModel, AutoTokenizer

    folder = save_encoder(tmp_path)
    found = score_texts(CANDIDATES, [[text] for text in REFERENCES], TextEncoder(str(folder), layer), with_idf=with_idf)
    module = AutoModel.from_pretrained(folder)
    theirs = bert_score(
        CANDIDATES, REFERENCES, model=module, user_tokenizer=AutoTokenizer.from_pretrained(folder), idf=with_idf,
        user_forward_fn=partial(hidden_states, layer=layer), max_length=32,
    )  # fmt: skip
    for part in ("precision", "recall", "f1"):
        ours = torch.tensor([getattr(score, part) for score in found])
        torch.testing.assert_close(ours, theirs[part].reshape(-1), atol=1e-4, rtol=1e-4)
    assert found[2].f1 == pytest.approx(1)
    assert len({score.f1 for score in found}) == 4


def hidden_states(module, batch, layer):
    states = module(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    return states[-1 if layer is None else layer]


def test_the_reference_that_matches_best_counts(tmp_path):
    encoder = TextEncoder(str(save_encoder(tmp_path)))
    (both,) = score_texts(["a red ball"], [["two", "a red ball"]], encoder)
    (one,) = score_texts(["a red ball"], [["two"]], encoder)
    assert both.f1 == pytest.approx(1)
    assert one.f1 < 0.99


def test_a_single_text_has_no_rare_token(tmp_path):
    with pytest.raises(BadInputError, match=r"task\.bertscore_idf=true needs more than one question"):
        score_texts(["two"], [["two"]], TextEncoder(str(tmp_path)), with_idf=True)


def test_a_text_does_not_depend_on_its_neighbours_and_is_cut_at_the_longest(tmp_path):
    encoder = TextEncoder(str(save_encoder(tmp_path)))
    alone, long = encoder.encode(["a red ball", "red " * 100])
    together = encoder.encode(["a red ball", *REFERENCES])[0]
    torch.testing.assert_close(alone.embeddings, together.embeddings, atol=1e-5, rtol=1e-5)
    assert len(alone.ids) == len(alone.embeddings) == 3, "without special tokens"
    assert len(long.ids) == 28, "30 positions for 2 special tokens and words"
    assert encoder.encode([""])[0].ids == ()


def test_an_encoder_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    with pytest.raises(MissingError, match=r"task\.bertscore=.*nowhere is not a folder; give the one"):
        TextEncoder(str(tmp_path / "nowhere")).check()
    with pytest.raises(BadInputError, match=r"task\.bertscore=hf-hub:a/b is not pinned; write hf-hub:owner/name@"):
        TextEncoder("hf-hub:a/b").check()
    with pytest.raises(MissingError, match=r"hf download a/b --include .* --revision 0123") as caught:
        TextEncoder("hf-hub:a/b@0123").check()
    assert "\n" not in str(caught.value)
    folder = save_encoder(tmp_path)
    TextEncoder(str(folder), 2).check()
    with pytest.raises(BadInputError, match=r"task\.bertscore_layer=3 is not there; this encoder has 0\.\.2"):
        TextEncoder(str(folder), 3).check()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ImpossibleError, match="is a t5, not an encoder of text"):
        TextEncoder(str(folder)).check()
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"lacks model\.safetensors"):
        TextEncoder(str(folder)).check()


@pytest.mark.parametrize(
    ("candidate", "reference", "f1"),
    [
        ("The cat sat.", "the cat sat", 1),
        ("the cat sat", "the black cat sat down", 2 * 1 * 0.6 / 1.6),
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("dog", "cat", 0),
        ("", "cat", 0),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(candidate, reference, f1):
    assert rouge_l(candidate, reference) == pytest.approx(f1)
    assert rouge_l(reference, candidate) == pytest.approx(f1)
