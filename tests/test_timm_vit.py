"""timm's Vision Transformers: which are taken apart, which are refused, and how they are loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from builders import random_images, saved_timm_vit, timm_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.data.folder import ImageFolder
from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.identity import settings
from fnabench.loader import Loader
from fnabench.models.timm_layers import timm_layers
from fnabench.models.timm_vit import TimmBackbone, TimmVit
from fnabench.models.weights_file import hash_file

CPU = torch.device("cpu")


# Attention that the seam does not understand


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("vit_base_patch16_rope_224", "timm.layers.attention.AttentionRope in block 0 of Eva is not understood"),
        ("beit_base_patch16_224", "timm.models.beit.Attention in block 0 of Beit is not understood"),
        ("vit_relpos_base_patch16_rpn_224", "RelPosAttention in block 0"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer is not a timm Vision Transformer"),
        ("samvit_base_patch16", "VisionTransformerSAM is not a timm Vision Transformer"),
        ("resnet18", "ResNet is not a timm Vision Transformer"),
    ],
)
def test_other_attention_is_refused_by_name(architecture: str, reason: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(architecture)
    with pytest.raises(ImpossibleError, match=reason):
        timm_layers(module)


@pytest.mark.parametrize("block", ["ParallelScalingBlock", "ParallelThingsBlock", "DiffParallelScalingBlock"])
def test_parallel_blocks_are_refused_by_name(block: str) -> None:
    kind = getattr(timm.models.vision_transformer, block)
    with torch.device("meta"):
        module = timm.models.vision_transformer.VisionTransformer(
            img_size=32, embed_dim=48, depth=2, num_heads=3, block_fn=kind
        )
    with pytest.raises(ImpossibleError, match=f"inside {block} in block 0 of VisionTransformer is not understood"):
        timm_layers(module)


def test_a_subclass_of_timms_attention_is_refused() -> None:
    class Biased(timm.layers.attention.Attention):
        pass

    module = timm_model()
    module.blocks[2].attn.__class__ = Biased
    with pytest.raises(ImpossibleError, match="Biased in block 2"):
        timm_layers(module)


def test_a_model_that_is_not_timms_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="Linear is not a timm Vision Transformer"):
        timm_layers(nn.Linear(2, 2))


# Loading


def test_the_loaded_weights_are_those_of_the_file(tmp_path: Path) -> None:
    model = saved_timm_vit(tmp_path)
    backbone = model.load(CPU, torch.float32)
    saved = load_file(model.checkpoint)
    assert all(torch.equal(value, saved[name]) for name, value in backbone.module.state_dict().items())
    assert not backbone.module.training
    assert len(backbone.layers) == len(model.blueprint().shapes) == 12


def test_dinov2s_own_file_gives_what_timms_gives(tmp_path: Path) -> None:
    """The file that an unpinned model offers instead: other names, and the class token apart from its position."""
    settings = {"architecture": "vit_small_patch14_reg4_dinov2", "image_size": 56}
    module = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=0)
    nn.init.normal_(module.reg_token)
    nn.init.constant_(module.cls_token, 0.25)
    weights = module.state_dict()
    save_file(weights, tmp_path / "timm.safetensors")
    position = torch.randn_like(weights["cls_token"]).mul(64).round() / 64  # adds up without rounding
    theirs = {name: value for name, value in weights.items() if name not in ("reg_token", "pos_embed", "cls_token")}
    theirs |= {
        "register_tokens": weights["reg_token"], "mask_token": torch.zeros(1, 384),
        "cls_token": weights["cls_token"] - position, "pos_embed": torch.cat([position, weights["pos_embed"]], 1),
    }  # fmt: skip
    torch.save(theirs, tmp_path / "dinov2.pth")
    one, other = (
        TimmVit(checkpoint=str(tmp_path / name), **settings).load(CPU, torch.float32)  # type: ignore[arg-type]
        for name in ("timm.safetensors", "dinov2.pth")
    )
    with torch.inference_mode():
        images = random_images(2, 56)
        assert torch.equal(other.encode_image(images), one.encode_image(images))


def test_the_blueprint_agrees_with_what_the_layers_see(tmp_path: Path) -> None:
    model = saved_timm_vit(tmp_path)
    shape = model.blueprint().shapes[0]
    assert (shape.num_tokens, shape.num_heads, shape.head_dim, shape.num_channels, shape.num_prefix) == (
        17,
        3,
        64,
        192,
        1,
    )
    assert model.blueprint().image_size == (64, 64)
    assert model.blueprint().num_classes == 10


def test_the_backbone_gives_logits_embedding_and_patches(tmp_path: Path) -> None:
    backbone = saved_timm_vit(tmp_path).load(CPU, torch.float32)
    images = random_images(3)
    with torch.inference_mode():
        assert torch.equal(backbone.classify(images), backbone.module(images))
        assert backbone.encode_image(images).shape == (3, 192)
        assert torch.equal(backbone.encode_patches(images), backbone.module.forward_features(images)[:, 1:])
    for cannot in (lambda: backbone.encode_text(["a cat"]), lambda: backbone.generate(images, [["what?"]])):
        with pytest.raises(NotImplementedError, match="TimmBackbone has no"):
            cannot()


def test_a_model_without_a_head_offers_no_classification(tmp_path: Path) -> None:
    model = saved_timm_vit(tmp_path)
    assert model.offers == {"classify", "embed", "patches"}
    assert saved_timm_vit(tmp_path, num_classes=0).offers == {"embed", "patches"}


@pytest.mark.parametrize(("image_size", "num_tokens"), [(96, 37), ((64, 96), 25)])
def test_at_another_size_the_position_embedding_is_interpolated(
    tmp_path: Path, image_size: int | tuple[int, int], num_tokens: int
) -> None:
    model = saved_timm_vit(tmp_path, image_size=image_size)
    assert {shape.num_tokens for shape in model.blueprint().shapes} == {num_tokens}
    backbone = model.load(CPU, torch.float32)
    image = backbone.transform(Image.new("RGB", (300, 200)))
    assert image.shape == (3, *model.size)
    with torch.inference_mode():
        assert backbone.encode_patches(image[None]).shape == (1, num_tokens - 1, 192)


@pytest.mark.parametrize(("image_size", "nearest"), [(65, "64x64"), (8, "16x16"), ((64, 90), "64x96")])
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(
    tmp_path: Path, image_size: int | tuple[int, int], nearest: str
) -> None:
    with pytest.raises(ImpossibleError, match=f"no multiple of the 16x16 patch; the nearest is {nearest}"):
        saved_timm_vit(tmp_path, image_size=image_size).blueprint()


def test_the_given_preprocessing_is_used(tmp_path: Path) -> None:
    backbone = saved_timm_vit(tmp_path, mean=(0.0, 0.25, 0.5), std=(0.25, 0.25, 0.25), crop_pct=1.0).load(
        CPU, torch.float32
    )
    white = backbone.transform(Image.new("RGB", (80, 80), "white"))
    torch.testing.assert_close(white, torch.tensor([4.0, 3.0, 2.0])[:, None, None].expand(3, 64, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_have_the_asked_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    backbone = saved_timm_vit(tmp_path).load(CPU, dtype)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {dtype}
    with torch.inference_mode():
        assert backbone.classify(random_images().to(dtype)).dtype == dtype


# Refusals


def test_a_missing_checkpoint_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    model = TimmVit(checkpoint=str(tmp_path / "none.safetensors"), architecture="vit_tiny_patch16_224")
    with pytest.raises(MissingError, match="is not a file"):
        model.check()


def test_an_unpinned_hub_id_is_refused() -> None:
    with pytest.raises(BadInputError, match="is not pinned; write hf-hub:owner/name@"):
        TimmVit(checkpoint="hf-hub:timm/vit_tiny_patch16_224").check()


def test_a_name_of_timms_is_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = TimmVit(checkpoint="vit_tiny_patch16_224.augreg_in21k_ft_in1k", revision="v1")
    assert model.blueprint().shapes[0].num_tokens == 197
    assert model.settings["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(MissingError, match=r"hf download timm/vit_tiny_patch16_224\.augreg_in21k_ft_in1k model\.saf"):
        model.check()
    with pytest.raises(BadInputError, match=r"is not pinned; .* or download https://storage.*\.npz and give it as"):
        replace(model, revision=None).check()
    with pytest.raises(BadInputError, match=r"_224\.none is not one of timm's weights; allowed: .*_224\.augreg_in21k"):
        replace(model, architecture="vit_tiny_patch16_224.none").blueprint()


def test_a_hub_id_that_cannot_be_had_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="hf download fnabench/none"):
        TimmVit(checkpoint="hf-hub:fnabench/none@v1").check()


def test_an_unknown_architecture_is_refused_with_close_names(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="vit_tiny_patch99 is not one of timm's models; close names: vit_tiny"):
        saved_timm_vit(tmp_path, architecture="vit_tiny_patch99").blueprint()


def test_an_architecture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImpossibleError, match="cannot be built as a Vision Transformer"):
        saved_timm_vit(tmp_path, architecture="resnet18").blueprint()


@pytest.mark.parametrize("damage", ["other shapes", "other names", "no weights file"])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    model = saved_timm_vit(tmp_path)
    path, weights = Path(model.checkpoint), load_file(model.checkpoint)
    if damage == "other shapes":
        save_file(weights | {"norm.weight": torch.ones(7)}, path)
    elif damage == "other names":
        save_file({f"other.{name}": value for name, value in weights.items()}, path)
    else:
        path.write_bytes(b"these are no weights")
    with pytest.raises(BadInputError, match="do not fit vit_tiny_patch16_224") as caught:
        model.load(CPU, torch.float32)
    assert "\n" not in str(caught.value)


# Identity


def test_the_place_of_the_weights_is_no_part_of_the_settings_but_their_content_is(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    one, other = saved_timm_vit(here), saved_timm_vit(there)
    assert settings(one) == settings(other)
    assert one.weights_hash() == other.weights_hash() == hash_file(Path(one.checkpoint))
    save_file(load_file(other.checkpoint) | {"norm.weight": torch.full((192,), 0.5)}, other.checkpoint)
    assert one.weights_hash() != replace(other).weights_hash()
    assert one.weights_hash() == other.weights_hash(), "weights are hashed once"
    assert settings(one) != settings(saved_timm_vit(here, crop_pct=0.8))


# The real weights


@pytest.fixture(scope="module")
def vit_tiny(assets: Path) -> TimmBackbone:
    return TimmVit(
        checkpoint=str(assets / "vit_tiny_augreg_fp16.safetensors"),
        architecture="vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        crop_pct=0.9,
    ).load(CPU, torch.float32)


@pytest.fixture(scope="module")
def hundred(assets: Path, vit_tiny: TimmBackbone) -> Loader:
    return Loader(
        source=ImageFolder(root=str(assets / "imagenet_sample"), limit=100), transform=vit_tiny.transform,
        batch_size=50, num_workers=0, device=CPU, dtype=torch.float32,
    )  # fmt: skip


@pytest.mark.assets
def test_the_real_model_recognises_real_images(vit_tiny: TimmBackbone, hundred: Loader) -> None:
    right = []
    with torch.inference_mode():
        for batch in hundred:
            predicted = vit_tiny.classify(batch.images).argmax(-1)
            right += [int(guess) == sample.label for guess, sample in zip(predicted, batch.samples, strict=True)]
    assert len(right) == 100
    assert 0.75 < np.mean(right) < 0.95, "83 % on all 500 images; 50 % with the wrong mean and std"


@pytest.mark.assets
def test_exact_is_bit_equal_to_the_real_model_and_fna_near_it(vit_tiny: TimmBackbone, hundred: Loader) -> None:
    images = hundred.first(8).images
    with torch.inference_mode():
        native = vit_tiny.classify(images)
        Exact().attach(vit_tiny.layers)
        exact = vit_tiny.classify(images)
        vit_tiny.layers.detach()
        Fna(num_landmarks=64).attach(vit_tiny.layers.select("half"))
        approximate = vit_tiny.classify(images)
        vit_tiny.layers.detach()
    assert torch.equal(exact, native)
    assert not torch.equal(approximate, native)
    divergence = torch.nn.functional.kl_div(
        approximate.log_softmax(-1), native.log_softmax(-1), log_target=True, reduction="none"
    )
    assert 0 < divergence.sum(-1).mean() < 0.5
