"""Recall at k on hand-made embeddings with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from fnabench.tasks.retrieval import Retrieval
from lookup import Lookup, Numbered, loader, samples

from fnabench.errors import BadInputError
from fnabench.neighbours import nearest


def recall(images, captions, ks=(1, 2), batch_size=2):
    source = Numbered(samples(captions=captions))
    return Retrieval(ks=ks).evaluate(Lookup(images), loader(source, batch_size), {})


def test_a_perfect_model_finds_everything():
    scores = recall(["left", "up", "right"], [("left",), ("up",), ("right",)])
    assert {name: metric.value for name, metric in scores.metrics.items()} == {
        "t2i_r1": 1.0, "t2i_r2": 1.0, "i2t_r1": 1.0, "i2t_r2": 1.0,
    }  # fmt: skip


def test_any_caption_of_an_image_counts_as_found():
    scores = recall(["left", "up"], [("right", "left"), ("up", "nearly left")])
    assert scores.metrics["i2t_r1"].value == 1.0  # "left" is first for the first image, "up" for the second


def test_each_caption_is_a_query_of_its_own_and_shares_its_image_as_cluster():
    scores = recall(["left", "up"], [("left", "up"), ("up",)])
    t2i = scores.metrics["t2i_r1"]
    assert t2i.numerator[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert t2i.clusters == ("image 0", "image 0", "image 1")
    assert len(set(t2i.ids)) == 3


def test_a_swapped_pair_is_found_at_2_and_not_at_1():
    scores = recall(["up", "left"], [("left",), ("up",)])
    assert scores.metrics["t2i_r1"].value == 0.0
    assert scores.metrics["t2i_r2"].value == 1.0


def test_the_result_does_not_depend_on_the_batch_size():
    arguments = (["left", "up", "right"], [("nearly left", "up"), ("left",), ("right",)])
    one, three = (recall(*arguments, batch_size=size) for size in (1, 3))
    for name, metric in one.metrics.items():
        np.testing.assert_array_equal(metric.numerator, three.metrics[name].numerator)


def test_nearest_agrees_with_a_full_sort():
    generator = np.random.default_rng(0)
    database, queries = (generator.standard_normal((n, 8)).astype(np.float32) for n in (50, 20))
    found, products = nearest(database, queries, 7)
    expected = np.argsort(-(queries @ database.T), axis=1)[:, :7]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(products, np.take_along_axis(queries @ database.T, expected, 1), rtol=1e-5)


def test_k_larger_than_the_database_is_cut():
    found, _ = nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), 10)
    assert found.shape == (3, 3)
    assert recall(["left", "up"], [("left",), ("up",)], ks=(1, 10)).metrics["t2i_r10"].value == pytest.approx(1.0)


@pytest.mark.parametrize("ks", [(), (0,), (1, -5)])
def test_no_k_and_one_below_1_are_refused(ks):
    with pytest.raises(BadInputError, match=r"task\.ks=\[.*\] must be one number or more, each at least 1"):
        Retrieval(ks=ks)


def test_equal_products_come_in_the_order_of_their_indices_whatever_k_is():
    generator = np.random.default_rng(0)
    few, queries = (generator.standard_normal((n, 64)).astype(np.float32) for n in (40, 300))
    copied = generator.integers(len(few), size=900)  # each of the rows about 22 times over, in no order
    database = few[copied]
    row_order = np.argsort(-(queries.astype(np.float64) @ few.T.astype(np.float64)), axis=1)
    expected = np.array([np.concatenate([np.flatnonzero(copied == row) for row in each]) for each in row_order])
    for k in (1, 5, 10, 21, 60, 900):
        found, products = nearest(database, queries, k)
        np.testing.assert_array_equal(found, expected[:, :k])
        alone, own = nearest(database, queries[7:8], k)  # which faiss computes in another way
        np.testing.assert_array_equal(alone, found[7:8])
        np.testing.assert_array_equal(own, products[7:8])


def test_products_that_are_equal_by_chance_come_in_the_order_of_their_indices():
    database = np.array([[0, 1], [1, 0], [-1, 0], [0, -1], [0.6, 0.8], [0.8, 0.6]], dtype=np.float32)
    queries = np.array([[1, 1], [-1, -1]], dtype=np.float32)
    assert nearest(database, queries, 6)[0].tolist() == [[4, 5, 0, 1, 2, 3], [2, 3, 0, 1, 4, 5]]
    assert nearest(database, queries, 3)[0].tolist() == [[4, 5, 0], [2, 3, 0]]


def test_recall_at_one_k_does_not_depend_on_the_others():
    same = ["left"] * 30
    given = {ks: recall(same, [("left",)] * 30, ks=ks).metrics for ks in ((1,), (1, 5), (1, 10), (1, 30), (30, 1))}
    for metrics in given.values():
        for way in ("t2i", "i2t"):
            assert metrics[f"{way}_r1"].numerator[:, 0].tolist() == [1.0] + [0.0] * 29  # the first of all equals
    assert given[1, 10]["i2t_r10"].numerator[:, 0].tolist() == [1.0] * 10 + [0.0] * 20


def test_embeddings_that_are_not_finite_have_no_neighbours():
    database = np.eye(3, dtype=np.float32)
    with pytest.raises(BadInputError, match="not finite"):
        nearest(database, np.array([[1, 0, 0], [np.nan, 0, 0]], dtype=np.float32), 2)
