"""Small CLIP and SigLIP models of open_clip through the seam, zero-shot, retrieval and the hub's cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import random_images
from fnabench.tasks.classification import Classification
from fnabench.tasks.retrieval import Retrieval
from PIL import Image
from seam import CPU, FNA, REVISION, cached, check_the_seam
from small_open_clip import CLIP_CONFIG, SIGLIP_CONFIG, load, save_open_clip, size_of

from fnabench.attention.exact import Exact
from fnabench.data.base import Sample, Source
from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.loader import Loader
from fnabench.models.open_clip_vit import OpenClipBackbone, OpenClipVit

SEAM = 3e-6
"""How near exact attention comes to torch's own kernel for nn.MultiheadAttention, of the largest output."""


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """open_clip knows the two small models."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in (("small-CLIP", CLIP_CONFIG), ("small-SigLIP", SIGLIP_CONFIG)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(params=["small-CLIP", "small-SigLIP"])
def saved(request: pytest.FixtureRequest, tmp_path: Path, architectures: None) -> OpenClipVit:
    return save_open_clip(tmp_path, request.param)


def test_open_clip_exact_is_native_and_fna_runs(saved: OpenClipVit) -> None:
    backbone = load(saved)
    assert len(backbone.layers) == len(saved.blueprint().shapes) == 3
    num_prefix = saved.blueprint().shapes[0].num_prefix
    tolerance = SEAM if saved.architecture == "small-CLIP" else 0.0
    num_patches = saved.blueprint().shapes[0].num_tokens - num_prefix
    assert num_prefix == (1 if saved.architecture == "small-CLIP" else 0)
    check_the_seam(backbone, random_images(2, size_of(saved)), num_patches, tolerance=tolerance)


def test_open_clip_gives_what_the_library_itself_gives(saved: OpenClipVit) -> None:
    import open_clip

    library = open_clip.create_model(
        saved.architecture, pretrained=saved.checkpoint, force_quick_gelu=saved.quick_gelu, pretrained_image=False
    ).eval()
    backbone, images = load(saved), random_images(2, size_of(saved))
    with torch.inference_mode():
        assert torch.equal(backbone.encode_image(images), library.encode_image(images))
        tokens = backbone.tokenizer(["a small red square"])
        assert torch.equal(backbone.encode_text(["a small red square"]), library.encode_text(tokens, normalize=True))


def test_open_clip_texts_have_unit_embeddings_that_differ(saved: OpenClipVit) -> None:
    with torch.inference_mode():
        embedded = load(saved).encode_text(["a red square", "a photo of a small blue square", "a red square"])
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(embedded[0], embedded[2])
    assert not torch.allclose(embedded[0], embedded[1], atol=1e-3)


def test_open_clip_runs_in_bfloat16(saved: OpenClipVit) -> None:
    backbone = load(saved, torch.bfloat16)
    images = random_images(2, size_of(saved)).bfloat16()
    shape = saved.blueprint().shapes[0]
    check_the_seam(backbone, images, shape.num_tokens - shape.num_prefix, tolerance=0.05)
    with torch.inference_mode():
        assert backbone.encode_text(["a red square"]).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["small-CLIP", "small-SigLIP"])
def test_open_clip_at_another_size(architecture: str, tmp_path: Path, architectures: None) -> None:
    model = save_open_clip(tmp_path, architecture, image_size=96)
    assert model.blueprint().image_size == (96, 96)
    check_the_seam(load(model), random_images(2, 96), 36, tolerance=SEAM if architecture == "small-CLIP" else 0.0)


def test_the_text_tower_is_never_wrapped(saved: OpenClipVit) -> None:
    backbone = load(saved)
    FNA.attach(backbone.layers)
    wrapped = [name for name, part in backbone.module.named_modules() if "forward" in part.__dict__]
    assert len(wrapped) == 3
    assert all(name.startswith("visual.") for name in wrapped)


def test_another_tokenizer_is_another_model(tmp_path: Path, architectures: None) -> None:
    model = save_open_clip(tmp_path, "small-SigLIP")
    before = model.weights_hash()
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert replace(model).weights_hash() != before
    assert model.weights_hash() == before, "weights are hashed once"


def test_the_prompts_are_the_eighty_of_clip(saved: OpenClipVit) -> None:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    assert load(saved).templates == tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    assert len(load(saved).templates) == 80


class Pictures(Source):
    """Sixteen plain images of as many colours with two captions each, and five class names."""

    name = "pictures"
    provides = frozenset({"label", "captions"})
    class_names = ("red square", "blue", "photo", "small", "of of of")

    def check(self) -> None:
        pass

    def fingerprint(self) -> str:
        return "pictures"

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Sample:
        colour = np.random.default_rng(index).integers(256, size=3, dtype=np.uint8)
        pixels = np.broadcast_to(colour, (70, 90, 3)) // np.array([1, 1 + index % 3, 1], dtype=np.uint8)
        captions = (f"a photo of a red square {index}", f"small blue {index}")
        return Sample(id=str(index), image=Image.fromarray(pixels), label=index % 5, captions=captions)


def loader_for(backbone: OpenClipBackbone) -> Loader:
    return Loader(
        source=Pictures(), transform=backbone.transform, batch_size=3, num_workers=0, device=CPU, dtype=torch.float32
    )


def test_zero_shot_is_what_the_library_computes(saved: OpenClipVit) -> None:
    import open_clip

    backbone = load(saved)
    images = torch.stack([backbone.transform(Pictures()[index].image) for index in range(16)])  # type: ignore[arg-type]
    with torch.inference_mode():
        classifier = open_clip.build_zero_shot_classifier(
            backbone.module, backbone.tokenizer, Pictures.class_names, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        expected = (backbone.module.encode_image(images, normalize=True) @ classifier).argmax(-1)
        scores = Classification(method="zeroshot").evaluate(backbone, loader_for(backbone), {})
    assert len(set(expected.tolist())) > 1
    assert scores.metrics["top1"].predictions[:, 0].tolist() == list(map(str, expected.tolist()))  # type: ignore[index]


def test_retrieval_runs_in_both_directions(saved: OpenClipVit) -> None:
    backbone = load(saved)
    with torch.inference_mode():
        exact = Retrieval(ks=(1, 16)).evaluate(backbone, loader_for(backbone), {})
        FNA.attach(backbone.layers.select("half"))
        variant = Retrieval(ks=(1, 16)).evaluate(backbone, loader_for(backbone), {})
    assert len(exact.metrics["t2i_r1"].ids) == 32
    assert exact.metrics["t2i_r16"].value == 1, "sixteen images, sixteen places"
    assert 0 <= variant.metrics["i2t_r1"].value <= 1


def test_images_are_cropped_for_clip_and_squashed_for_siglip(saved: OpenClipVit) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None], (200, 400, 3))
    backbone = load(saved)
    image = backbone.transform(Image.fromarray(np.ascontiguousarray(ramp)))
    assert image.shape == (3, size_of(saved), size_of(saved))
    left, right = float(image[0, 0, 0]), float(image[0, 0, -1])
    if saved.squash:
        assert left < -0.95
        assert right > 0.95
    else:
        assert -0.6 < left < -0.4
        assert 0.4 < right < 0.6


def test_images_are_prepared_as_the_library_prepares_them(saved: OpenClipVit) -> None:
    from open_clip.transform import image_transform

    theirs = image_transform(
        size_of(saved), is_train=False, mean=saved.mean, std=saved.std, interpolation="bicubic",
        resize_mode="squash" if saved.squash else "shortest",
    )  # fmt: skip
    ours = load(saved).transform
    pixels = np.random.default_rng(0).integers(256, size=(300, 411, 3), dtype=np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).resize((37, 50)), Pictures()[0].image):
        torch.testing.assert_close(ours(image), theirs(image), atol=1e-6, rtol=0)


def test_the_wrong_activation_changes_the_embedding_and_is_refused(tmp_path: Path, architectures: None) -> None:
    right = save_open_clip(tmp_path, "small-CLIP")
    wrong = save_open_clip(tmp_path, "small-CLIP", quick_gelu=False)
    images = random_images(2, 64)
    with torch.inference_mode():
        difference = load(right).encode_image(images) - load(wrong).encode_image(images)
    assert difference.abs().max() > 1e-3
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP_CONFIG | {"quick_gelu": True}}))
    right.check()
    with pytest.raises(BadInputError, match="these weights were trained with quick_gelu=True"):
        wrong.check()


def test_a_tokenizer_that_is_not_there_is_asked_for(tmp_path: Path, architectures: None) -> None:
    model = save_open_clip(tmp_path, "small-SigLIP")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match=r"tokenizer\.json is missing; put .* beside its weights"):
        model.check()


def test_other_weights_and_architectures_are_refused(tmp_path: Path, architectures: None) -> None:
    model = save_open_clip(tmp_path, "small-CLIP")
    Path(model.checkpoint).write_bytes(b"these are no weights")
    with pytest.raises(BadInputError, match="do not fit small-CLIP"):
        model.load(CPU, torch.float32)
    for architecture, error, reason in (
        ("ViT-B-33", BadInputError, "close names: ViT-B-32"),
        ("RN50", ImpossibleError, "is not a Vision Transformer of open_clip"),
        ("coca_ViT-B-32", ImpossibleError, "text tower of another kind"),
    ):
        other = replace(model, architecture=architecture)
        with pytest.raises(error, match=reason):
            other.blueprint()


def test_a_mask_or_weights_cannot_be_had_from_a_replaced_layer(tmp_path: Path, architectures: None) -> None:
    backbone = load(save_open_clip(tmp_path, "small-CLIP"))
    Exact().attach(backbone.layers)
    native, x = backbone.layers[0].native, torch.zeros(1, 17, 128)
    with pytest.raises(ImpossibleError, match="need_weights cannot be honoured"):
        native(x, x, x)
    with pytest.raises(ImpossibleError, match="attn_mask cannot be honoured"):
        native(x, x, x, need_weights=False, attn_mask=torch.zeros(17, 17))
    with pytest.raises(ImpossibleError, match="cross-attention"):
        native(x, x + 1, x, need_weights=False)


@pytest.mark.parametrize("architecture", ["small-CLIP", "small-SigLIP"])
def test_a_pinned_open_clip_is_loaded_from_the_cache_without_a_network(
    architecture: str, tmp_path: Path, architectures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = save_open_clip(tmp_path, architecture)
    images = random_images(2, size_of(local))
    with torch.inference_mode():
        expected = load(local).encode_image(images)
    config = {"model_cfg": {"quick_gelu": local.quick_gelu}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    cached(tmp_path / "hub", "timm/small", REVISION, files, monkeypatch)
    pinned_model = replace(local, checkpoint="hf-hub:timm/small", revision=REVISION)
    with torch.inference_mode():
        assert torch.equal(load(pinned_model).encode_image(images), expected)
    assert len(pinned_model.weights_hash()) == 64
    with pytest.raises(MissingError, match=r"hf download timm/small open_clip_model\.safetensors --revision f00"):
        replace(pinned_model, revision="f00").check()
