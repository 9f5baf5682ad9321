"""Every model of conf/model: what the seam finds in it at full size, and small ones of the same classes through it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from builders import random_images
from fnabench.tasks.classification import Classification
from fnabench.tasks.retrieval import Retrieval
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.data.base import Sample, Source
from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.loader import Loader
from fnabench.models.base import Model
from fnabench.models.open_clip_vit import OpenClipBackbone, OpenClipVit
from fnabench.models.timm_vit import TimmBackbone, TimmVit
from fnabench.models.weights_file import pinned

CONF = Path(__file__).resolve().parent.parent / "conf" / "model"
CPU = torch.device("cpu")
FNA = Fna(num_landmarks=8)
SEAM = 3e-6
"""How near exact attention comes to torch's own kernel for nn.MultiheadAttention, of the largest output."""

FOUND = {  # layers, tokens at the size of the yaml, heads, prefix tokens, classes
    "clip_b16": (12, 197, 12, 1, 0), "clip_b32": (12, 50, 12, 1, 0), "clip_l14": (24, 257, 16, 1, 0),
    "clip_l14_336": (24, 577, 16, 1, 0), "deit3_b": (12, 197, 12, 1, 1000), "deit_base": (12, 197, 12, 1, 1000),
    "deit_small": (12, 197, 6, 1, 1000), "deit_tiny": (12, 197, 3, 1, 1000), "dinov2_b": (12, 257, 12, 1, 0),
    "dinov2_b_reg": (12, 261, 12, 5, 0), "dinov2_g": (40, 257, 24, 1, 0), "dinov2_g_reg": (40, 261, 24, 5, 0),
    "dinov2_l": (24, 257, 16, 1, 0), "dinov2_l_reg": (24, 261, 16, 5, 0), "dinov2_s": (12, 257, 6, 1, 0),
    "dinov2_s_reg": (12, 261, 6, 5, 0), "dinov3_b": (12, 261, 12, 5, 0), "dinov3_l": (24, 261, 16, 5, 0),
    "dinov3_s": (12, 261, 6, 5, 0), "eva02_b": (12, 1025, 12, 1, 1000), "eva02_s": (12, 577, 6, 1, 1000),
    "mae_b": (12, 197, 12, 1, 0), "mae_l": (24, 197, 16, 1, 0), "siglip2_b16": (12, 196, 12, 0, 0),
    "siglip_b16": (12, 196, 12, 0, 0), "siglip_so400m": (27, 729, 16, 0, 0), "vit_base": (12, 197, 12, 1, 1000),
    "vit_large": (24, 197, 16, 1, 1000), "vit_small": (12, 197, 6, 1, 1000),
}  # fmt: skip
HUB = [
    path.stem
    for path in sorted(CONF.glob("*.yaml"))
    if "checkpoint: hf-hub:" in path.read_text() and "HfLlava" not in path.read_text()
]


def configured(name: str, **changes: object) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes), _convert_="all")


# Full size, without weights


def test_every_model_of_the_hub_is_in_the_table() -> None:
    assert sorted(FOUND) == HUB


@pytest.mark.parametrize("name", HUB)
def test_the_seam_finds_the_layers_of_the_full_model(name: str) -> None:
    blueprint = configured(name).blueprint()
    shape = blueprint.shapes[0]
    assert set(blueprint.shapes) == {shape}
    found = (len(blueprint.shapes), shape.num_tokens, shape.num_heads, shape.num_prefix, blueprint.num_classes)
    assert found == FOUND[name]
    assert shape.num_heads * shape.head_dim == shape.num_channels


@pytest.mark.parametrize("name", HUB)
def test_a_yaml_says_its_source_and_its_licence_and_gives_what_its_library_would(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    model = configured(name)
    assert "Weights: " in text.splitlines()[0]
    assert f"model={name}" in text.splitlines()[1]
    assert model.description
    assert ("model.revision=<commit>" in text) == (model.revision is None)
    assert model.revision is None or len(model.revision) == 40, "a full commit hash or none"
    if isinstance(model, TimmVit):
        own = timm.get_pretrained_cfg(model.architecture)
        assert model.checkpoint == f"hf-hub:{own.hf_hub_id}"
        assert (tuple(model.mean), tuple(model.std), model.interpolation) == (own.mean, own.std, own.interpolation)
        assert (model.crop_mode or "center") == own.crop_mode
    else:
        import open_clip

        tag = "openai" if name.startswith("clip") else "webli"
        architecture = f"{model.architecture}-quickgelu" if tag == "openai" else model.architecture
        own = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
        assert model.checkpoint == f"hf-hub:{own['hf_hub']}".rstrip("/")
        assert (tuple(model.mean), tuple(model.std)) == (tuple(own["mean"]), tuple(own["std"]))
        assert model.quick_gelu == own.get("quick_gelu", False)
        assert model.squash == (own.get("resize_mode") == "squash")


@pytest.mark.parametrize("name", ["dinov2_b", "clip_b32", "siglip_b16", "eva02_s", "dinov3_s"])
def test_another_size_is_counted_and_a_wrong_one_refused(name: str) -> None:
    patch = {"dinov2_b": 14, "clip_b32": 32, "eva02_s": 14}.get(name, 16)
    shape = configured(name, image_size=10 * patch).blueprint().shapes[0]
    assert shape.num_tokens == 100 + shape.num_prefix
    with pytest.raises(ImpossibleError, match=f"no multiple of the {patch}x{patch} patch"):
        configured(name, image_size=10 * patch + 1).blueprint()


@pytest.mark.parametrize("name", HUB)
def test_weights_that_are_not_there_are_told_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if configured(name).revision is None:
        with pytest.raises(BadInputError, match=r"is not pinned; .* or give model\.revision=<commit>, one of those at"):
            configured(name).check()
    with pytest.raises(MissingError, match=r"hf download timm/.* --revision 0123") as caught:
        configured(name, revision="0123").check()
    assert "\n" not in str(caught.value)


def test_a_revision_is_added_where_a_hub_id_has_none() -> None:
    assert pinned("hf-hub:a/b", "c") == "hf-hub:a/b@c"
    assert pinned("hf-hub:a/b@d", "c") == "hf-hub:a/b@d"
    assert pinned("weights.safetensors", "c") == "weights.safetensors"


# timm: small models of the same classes


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


def lively(module: nn.Module) -> None:
    """Weights with which attention is far from uniform and no layer scale hides it."""
    for name, parameter in module.named_parameters():
        if name.endswith(("ls1.gamma", "ls2.gamma", "gamma_1", "gamma_2")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() == 2 and ("blocks." in name or "resblocks." in name):
            nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)


TIMM = [name for name in HUB if not name.startswith(("clip", "siglip"))]


@pytest.mark.parametrize("name", TIMM)
def test_exact_through_the_seam_is_bit_equal_and_fna_runs(name: str) -> None:
    patch = 14 if "14" in configured(name).architecture else 16
    backbone, images = small_timm(name, 4 * patch), random_images(2, 4 * patch)
    check_the_seam(backbone, images, 16, tolerance=0.0)


@pytest.mark.parametrize("name", ["dinov2_b", "dinov2_b_reg", "deit_base", "deit3_b", "mae_b", "dinov3_b", "eva02_b"])
def test_another_size_interpolates_the_position_embedding(name: str) -> None:
    patch = 14 if "14" in configured(name).architecture else 16
    backbone = small_timm(name, 4 * patch)
    with torch.inference_mode():
        before = backbone.encode_patches(random_images(1, 4 * patch))
        backbone.module.set_input_size(img_size=6 * patch)
        check_the_seam(backbone, random_images(2, 6 * patch), 36, tolerance=0.0)
    assert before.shape[1] == 16


@pytest.mark.parametrize("name", ["dinov2_b_reg", "deit_base", "dinov3_b", "eva02_b"])
def test_bfloat16_runs(name: str) -> None:
    patch = 14 if "14" in configured(name).architecture else 16
    backbone = small_timm(name, 4 * patch)
    backbone.module.bfloat16()
    check_the_seam(backbone, random_images(2, 4 * patch).bfloat16(), 16, tolerance=0.0)


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


# open_clip: small models of the same classes, through the real loading code


CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SIGLIP_CONFIG = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224, "timm_model_name": "vit_test_siglip", "timm_model_pretrained": False, "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 64, "hf_tokenizer_name": "not/asked", "width": 192, "heads": 2, "layers": 2,
        "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip


@timm.models.register_model
def vit_test_siglip(pretrained: bool = False, **options: Any) -> nn.Module:
    """SigLIP's image tower with three narrow blocks."""
    narrow = {"embed_dim": 192, "depth": 3, "num_heads": 3}
    return timm.create_model("vit_base_patch16_siglip_224", pretrained=False, **(narrow | options))


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


def save_open_clip(folder: Path, architecture: str, **options: Any) -> OpenClipVit:
    """A small model with its weights and tokenizer in the folder."""
    from safetensors.torch import save_file

    is_clip = architecture == "small-CLIP"
    settings: dict[str, Any] = {
        "architecture": architecture, "checkpoint": str(folder / "open_clip_model.safetensors"), "quick_gelu": is_clip,
        "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "squash": not is_clip,
    }  # fmt: skip
    model = OpenClipVit(**(settings | options))
    torch.manual_seed(0)
    module = OpenClipVit(**settings)._build()
    lively(module.visual)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, model.checkpoint)
    if not is_clip:
        write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A word tokenizer in the three files of a hub repository."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "square", "small", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text("{}")


def load(model: Model, dtype: torch.dtype = torch.float32) -> OpenClipBackbone:
    model.check()
    backbone = model.load(CPU, dtype)
    assert isinstance(backbone, OpenClipBackbone)
    return backbone


def size_of(model: OpenClipVit) -> int:
    return model.blueprint().image_size[0]


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
    assert model.weights_hash() != before


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


# The hub's cache


def cached(folder: Path, repository: str, revision: str, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files where `hf download` puts those of a repository at a commit."""
    snapshot = folder / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for path in files:
        path.rename(snapshot / path.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


REVISION = "0123456789abcdef0123456789abcdef01234567"


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
