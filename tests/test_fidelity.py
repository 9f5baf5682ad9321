"""Fidelity to exact attention: known answers, and what is asked of the layers on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import attention_inputs, random_images, softmax_attention, timm_model, watch
from fnabench.tasks.fidelity import Fidelity
from lookup import Numbered, samples

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.native import Native
from fnabench.beside import _Beside
from fnabench.errors import BadInputError
from fnabench.loader import Loader
from fnabench.models.timm_vit import TimmBackbone

NUM_IMAGES = 7
IMAGES = random_images(NUM_IMAGES, seed=5)


def loader():
    """Seven noise images, by their number, in batches of three."""
    return Loader(
        source=Numbered(samples(label=range(NUM_IMAGES))),
        transform=lambda image: IMAGES[np.array(image)[0, 0, 0]],
        batch_size=3, num_workers=0, device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip


def backbone(core, layers="half", **options):
    made = TimmBackbone(timm_model(**options), lambda image: image)
    core.attach(made.layers.select(layers))
    return made


@torch.inference_mode()
def evaluate(made, **settings):
    return Fidelity(**settings).evaluate(made, loader(), {}).metrics


@pytest.mark.parametrize("core", [Exact(), Native()])
def test_exact_attention_is_wholly_faithful(core):
    metrics = evaluate(backbone(core))
    ones = {"cosine", "neighbour_overlap", "top1_agreement"}
    for name, scores in metrics.items():
        assert scores.value == pytest.approx(float(name in ones), abs=1e-6), name
    assert ones | {"kl"} <= set(metrics)


def test_every_metric_is_what_its_name_says():
    fna = Fna(num_landmarks=3)
    made = backbone(fna)
    metrics = evaluate(made, num_neighbours=2)
    with torch.inference_mode():
        variant = [each.double() for each in made.embed_and_classify(IMAGES)]
        made.layers.detach()
        exact = [each.double() for each in made.embed_and_classify(IMAGES)]
    dots = (variant[0] * exact[0]).sum(-1) / (variant[0].norm(dim=-1) * exact[0].norm(dim=-1))
    assert metrics["cosine"].value == pytest.approx(float(dots.mean()), abs=1e-6)
    p, q = (each[1].softmax(-1) for each in (exact, variant))
    assert metrics["kl"].value == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    agree = (p.argmax(-1) == q.argmax(-1)).double()
    assert metrics["top1_agreement"].value == pytest.approx(float(agree.mean()))
    assert metrics["kl"].value > 0
    shared = []
    near = [neighbours(each[0], 2) for each in (exact, variant)]
    for ours, theirs in zip(*near, strict=True):
        shared.append(len(ours & theirs) / 2)
    assert metrics["neighbour_overlap"].value == pytest.approx(np.mean(shared))


def neighbours(embeddings, k):
    cosines = torch.nn.functional.normalize(embeddings, dim=-1)
    cosines = cosines @ cosines.mT
    cosines.fill_diagonal_(-2)
    return [set(row.tolist()) for row in cosines.topk(k).indices]


def test_a_layer_is_compared_on_the_inputs_of_the_exact_forward():
    """The first replaced layer's error must not be carried into the inputs of the next."""
    made = backbone(Fna(num_landmarks=4, resample="layer"))
    metrics = evaluate(made)
    seen = watch(Exact())
    seen.attach(made.layers.select("half"))
    with torch.inference_mode():
        made.encode_image(IMAGES)
    wanted = []
    for inputs in seen.seen:
        exact = softmax_attention(inputs.q, inputs.k, inputs.v, inputs.scale)
        off = Fna(num_landmarks=4, resample="layer")(inputs).double() - exact
        wanted.append(off.flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1))
    for layer, error in zip((2, 3), wanted, strict=True):
        assert metrics[f"attention_error_{layer:02d}"].value == pytest.approx(float(error.mean()), rel=1e-3)
    assert metrics["attention_error"].value == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-3)


def test_the_variant_is_back_in_place_afterwards():
    fna = Fna(num_landmarks=3)
    made = backbone(fna, layers=[1, 3])
    evaluate(made)
    assert [layer.core for layer in made.layers] == [None, fna, None, fna]


def test_a_model_without_a_head_has_no_class_metrics():
    metrics = evaluate(backbone(Fna(num_landmarks=3), num_classes=0))
    assert not {"kl", "top1_agreement"} & set(metrics)
    assert metrics["cosine"].predictions is None


def test_the_neighbours_must_be_at_least_one():
    with pytest.raises(BadInputError, match=r"task\.num_neighbours=0 must be at least 1"):
        Fidelity(num_neighbours=0)


def test_a_layer_without_any_output_has_no_error():
    inputs = attention_inputs()
    silent = replace(inputs, v=torch.zeros_like(inputs.v))
    errors = {}
    _Beside(variant=Fna(num_landmarks=3), errors=errors)(silent)
    assert errors[inputs.layer].tolist() == [0.0] * len(inputs.q)
