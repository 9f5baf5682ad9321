"""Every model of conf/model at full size, without weights: what the seam finds, what its yaml says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
from seam import CONF, HUB, configured

from fnabench.errors import BadInputError, ImpossibleError, MissingError
from fnabench.models.timm_vit import TimmVit
from fnabench.models.weights_file import pinned

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
    unpinned = (
        r"is not pinned; .* or give model\.revision=<commit>; git ls-remote https://huggingface\.co/timm/\S+ main"
    )
    for revision in (None, "main"):
        with pytest.raises(BadInputError, match=unpinned) as caught:
            configured(name, revision=revision).check()
        assert "\n" not in str(caught.value)
    pin = configured(name).revision or "0123"
    with pytest.raises(MissingError, match=rf"hf download timm/.* --revision {pin}") as caught:
        configured(name, revision=pin).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in HUB if configured(name).revision is None])
def test_where_no_commit_is_known_the_line_names_the_original_file_if_there_is_one(name: str) -> None:
    original = timm.get_pretrained_cfg(configured(name).architecture).url
    expected = (
        rf"or download {re.escape(original)} and give it as model\.checkpoint=<file>" if original else "lists all$"
    )
    with pytest.raises(BadInputError, match=expected):
        configured(name).check()


def test_a_revision_is_added_where_a_hub_id_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pinned("hf-hub:a/b", "c") == "hf-hub:a/b@c"
    assert pinned("hf-hub:a/b@d", "c") == "hf-hub:a/b@d"
    assert pinned("weights.safetensors", "c") == "weights.safetensors"
    assert pinned("a/b", "c") == pinned("a/b@c", None) == pinned("a/b@c", "d") == "hf-hub:a/b@c"
    assert pinned("a/b", None) == "a/b", "a file or a folder"
    assert pinned("/a/b", "c") == "/a/b"
    assert pinned("weights/deit.pth", "c") == "weights/deit.pth", "a file, whatever the yaml pins"
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert pinned("a/b", "c") == "a/b"
