"""Small models of every timm class in conf/model through the seam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from builders import random_images
from seam import CPU, HUB, REVISION, cached, check_the_seam, configured, lively

from fnabench.models.timm_vit import TimmBackbone, TimmVit

ONE_OF_EACH = ["dinov2_b", "dinov2_b_reg", "deit_base", "deit3_b", "mae_b", "vit_base", "dinov3_b", "eva02_b"]
TIMM = [name for name in HUB if not name.startswith(("clip", "siglip"))]


def small_timm(name: str, image_size: int) -> TimmBackbone:
    """The architecture of a yaml with two narrow blocks, through the backbone that the yaml would give."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"embed_dim": 96, "num_heads": 3, "depth": 2, "img_size": image_size}
    if name.startswith("eva02"):
        options |= {"mlp_ratio": 2.0}
    if name.startswith(("dinov3", "eva02")):
        options |= {"head_init_scale": 1.0}
    module = timm.create_model(configured(name).architecture.split(".")[0], **options)
    lively(module)
    return TimmBackbone(module.eval().requires_grad_(False), transform=lambda image: image)


@pytest.mark.parametrize("name", TIMM)
def test_exact_through_the_seam_is_bit_equal_and_fna_runs(name: str) -> None:
    patch = 14 if "14" in configured(name).architecture else 16
    backbone, images = small_timm(name, 4 * patch), random_images(2, 4 * patch)
    check_the_seam(backbone, images, 16, tolerance=0.0)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_another_size_interpolates_the_position_embedding(name: str) -> None:
    patch = 14 if "14" in configured(name).architecture else 16
    backbone = small_timm(name, 4 * patch)
    with torch.inference_mode():
        before = backbone.encode_patches(random_images(1, 4 * patch))
        backbone.module.set_input_size(img_size=6 * patch)
        check_the_seam(backbone, random_images(2, 6 * patch), 36, tolerance=0.0)
    assert before.shape[1] == 16


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_bfloat16_runs(name: str) -> None:
    patch = 14 if "14" in configured(name).architecture else 16
    backbone = small_timm(name, 4 * patch)
    backbone.module.bfloat16()
    check_the_seam(backbone, random_images(2, 4 * patch).bfloat16(), 16, tolerance=0.0)


def test_a_pinned_timm_model_is_loaded_from_the_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = timm.create_model("eva02_tiny_patch14_224", img_size=56, num_classes=10).eval()
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    cached(tmp_path / "hub", "timm/small", REVISION, [tmp_path / "model.safetensors"], monkeypatch)
    model = TimmVit(
        checkpoint="hf-hub:timm/small", revision=REVISION, architecture="eva02_tiny_patch14_224", image_size=56,
        num_classes=10,
    )  # fmt: skip
    model.check()
    images = random_images(2, 56)
    with torch.inference_mode():
        assert torch.equal(model.load(CPU, torch.float32).classify(images), module(images))

    def unreachable(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", unreachable)
    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    model.check()
