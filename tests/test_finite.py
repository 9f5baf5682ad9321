"""Models and variants whose outputs are no numbers: refused with the sample that shows it, and never scored."""

from __future__ import annotations

import pytest
import torch
from lookup import Lookup
from small_llava import PROMPTS
from small_world import RUNS, SCENES, SmallWorld
from torch import nn

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.divergence import kl_divergence
from fnabench.errors import ImpossibleError
from fnabench.finite import only_finite
from fnabench.models.bundled_clip import BundledClipBackbone
from fnabench.models.bundled_llava import BundledLlava
from fnabench.models.timm_vit import TimmBackbone
from fnabench.store import read_record

CLIP = SCENES | {"model": "clip"}
KINDS = RUNS | {
    "knn": CLIP | {"task.method": "knn"},
    "linear": CLIP | {"task.method": "linear"},
    "zeroshot": CLIP,
    "fidelity": CLIP | {"task": "fidelity"},
    "fidelity of logits": {"task": "fidelity"},
    "tokens": CLIP | {"task": "tokens"},
    "decoder": SCENES | {"task": "vqa", "model": "llava", "model.scope": "decoder"},
    "processes": {"loader.batch_size": "4", "loader.num_processes": "2", "loader.num_workers": "0"},
}
"""A run of every task, and of every way in which one gets at outputs."""


@pytest.fixture
def world(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fnabench.data.scenes.source.NUM_TRAINING", 10)
    return SmallWorld(tmp_path, monkeypatch, capsys)


def spoil(monkeypatch, variant, value=torch.nan):
    """Let a variant give a value that is no number for the last image of each batch."""
    plain = variant.__call__

    def spoilt(self, inputs):
        output = plain(self, inputs).clone()
        output[-1] = value
        return output

    monkeypatch.setattr(variant, "__call__", spoilt)


@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_that_gives_nan_is_refused_by_every_task_and_its_twin_is_kept(world, monkeypatch, kind):
    spoil(monkeypatch, Fna)
    told = world.refused(**KINDS[kind])
    assert "attention=fna in float32 gives values that are not finite for sample " in told
    assert "; give other layers=... or another setting of attention=" in told
    assert "dtype=float32" not in told
    assert [read_record(folder).attention for folder in world.records()] == ["exact"]


def test_the_sample_that_shows_it_is_named(world, monkeypatch):
    spoil(monkeypatch, Fna, torch.inf)
    assert "for sample 5.png;" in world.refused(loader__batch_size="6")
    assert "for sample 2.png;" in world.refused(loader__batch_size="3")


@pytest.mark.parametrize("kind", ["classification", "retrieval", "segmentation", "knn", "vqa", "fidelity"])
def test_exact_attention_that_gives_nan_is_refused_too(world, monkeypatch, kind):
    spoil(monkeypatch, Exact)
    told = world.refused(**KINDS[kind] | {"attention": "exact"})
    assert "attention=exact in float32 gives values that are not finite for sample " in told
    assert "give another model=" in told
    assert not world.records()


def test_what_is_fitted_is_fitted_on_numbers(world, monkeypatch):
    plain = BundledClipBackbone.encode_image
    monkeypatch.setattr(BundledClipBackbone, "encode_image", lambda self, images: plain(self, images) * torch.nan)
    for method in ("knn", "linear"):
        told = world.refused(**CLIP, task__method=method)
        assert "attention=exact in float32 gives values that are not finite for sample train-0-0;" in told
    assert not list(world.results.glob(".fitted/*.safetensors"))


def test_half_precision_is_told_that_there_is_a_wider_one(world, monkeypatch):
    spoil(monkeypatch, Fna)
    assert "give dtype=float32 or other layers=..." in world.refused(dtype="bfloat16")


def test_the_timed_forward_is_the_model_s_own(world, monkeypatch):
    seen = set()
    plain = TimmBackbone.classify

    def classify(self, images):
        seen.add("classify" in vars(self))
        return plain(self, images)

    monkeypatch.setattr(TimmBackbone, "classify", classify)
    assert world.run()[0] == 0
    assert seen == {True}
    seen.clear()
    timed = {"probe": "default", "probe__num_rounds": "1", "probe__memory": "false", "probe__batch_size": "2"}
    assert world.run(attention="exact", **timed)[0] == 0
    assert seen == {True, False}


class Told(Lookup):
    """Gives whatever it is told to."""

    def __init__(self, given):
        self.given = given
        self.layers = _Images(["a", "b"])

    def classify(self, images):
        return self.given

    def encode_image(self, images):
        return self.given

    def encode_text(self, texts):
        return self.given


class _Images(list):
    @property
    def ids(self):
        return list(self)


def asked(given, method, of=None):
    backbone = Told(torch.tensor(given))
    with only_finite(backbone, "fna", torch.float32):
        getattr(backbone, method)(of)
    assert method not in vars(backbone)


def test_a_class_that_cannot_be_is_no_mistake():
    asked([[-torch.inf, 0.0], [1.0, -torch.inf]], "classify")
    exact = torch.tensor([[-torch.inf, 0.0, 1.0]])
    assert kl_divergence(exact, exact).tolist() == [0.0]
    half = torch.tensor([[-torch.inf, 0.0, 0.0]])
    sure = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    torch.testing.assert_close(kl_divergence(sure, half), torch.tensor([2.0]).log())
    assert kl_divergence(half, sure).tolist() == [torch.inf]


@pytest.mark.parametrize("row", [[-torch.inf, -torch.inf], [torch.inf, 0.0], [torch.nan, 0.0]])
def test_logits_without_a_largest_are_one(row):
    with pytest.raises(
        ImpossibleError, match="attention=fna in float32 gives values that are not finite for sample b; give"
    ):
        asked([[0.0, 1.0], row], "classify")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_embedding_holds_numbers_only(value):
    with pytest.raises(
        ImpossibleError, match="attention=fna in float32 gives values that are not finite for sample a; give"
    ):
        asked([[0.0, value], [1.0, 1.0]], "encode_image")


def test_a_text_is_no_matter_of_attention():
    with pytest.raises(
        ImpossibleError, match=r"^the model in float32 gives .* for the text 'two'; give another model="
    ):
        asked([[0.0], [torch.nan]], "encode_text", ["one", "two"])


def test_the_words_of_an_answer_are_chosen_among_numbers():
    backbone = BundledLlava(scope="vision").load(torch.device("cpu"), torch.float32)
    images = torch.zeros(3, 3, 128, 128)
    backbone.layers.tell(["a", "b", "c"])
    before = backbone.generate(images, PROMPTS, 2)
    head = backbone.decoder_head
    assert isinstance(head, nn.Module)
    with torch.inference_mode(), only_finite(backbone, "fna", torch.float32):
        assert backbone.generate(images, PROMPTS, 2) == before
        images[1] = torch.nan
        with pytest.raises(ImpossibleError, match="not finite for sample b;"):
            backbone.generate(images, PROMPTS, 2)
    assert not head._forward_hooks
    assert not {"generate", "encode_image"} & set(vars(backbone))
