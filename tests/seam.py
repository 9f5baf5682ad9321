"""What every backbone keeps: exact attention through the seam is native, a variant runs in each scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
HUB = [
    path.stem
    for path in sorted(CONF.glob("*.yaml"))
    if "checkpoint: hf-hub:" in path.read_text() and "HfLlava" not in path.read_text()
]
CPU = torch.device("cpu")
FNA = Fna(num_landmarks=8)
REVISION = "0123456789abcdef0123456789abcdef01234567"


def configured(name: str, **changes: object) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes), _convert_="all")


def lively(module: nn.Module) -> None:
    """Weights with which attention is far from uniform and no layer scale hides it."""
    for name, parameter in module.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() == 2 and ("blocks." in name or "resblocks." in name):
            nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)


def check_the_seam(backbone: Any, images: Tensor, num_patches: int, *, tolerance: float) -> None:
    """Exact is native to the tolerance in embedding and patch tokens; FNA runs in each scope and changes both."""

    def outputs() -> list[Tensor]:
        with torch.inference_mode():
            found = [backbone.encode_image(images), backbone.encode_patches(images)]
            if getattr(backbone.module, "num_classes", 0):
                found.append(backbone.classify(images))
        return found

    native = outputs()
    assert native[1].shape[:2] == (len(images), num_patches)
    assert backbone.patch_grid(images)[0] * backbone.patch_grid(images)[1] == num_patches
    Exact().attach(backbone.layers)
    for exact, untouched in zip(outputs(), native, strict=True):
        assert (exact - untouched).abs().max() <= tolerance * untouched.abs().max()
    backbone.layers.detach()
    for scope in ("half", "all", [0]):
        FNA.attach(backbone.layers.select(scope))
        for variant, untouched in zip(outputs(), native, strict=True):
            assert variant.isfinite().all()
            assert not torch.equal(variant, untouched)
        backbone.layers.detach()
    assert all(torch.equal(again, untouched) for again, untouched in zip(outputs(), native, strict=True))


def cached(folder: Path, repository: str, revision: str, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files where `hf download` puts those of a repository at a commit."""
    snapshot = folder / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for path in files:
        path.rename(snapshot / path.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
