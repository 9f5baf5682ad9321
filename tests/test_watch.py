"""Looking into blocks: exact outcomes of every operator on a planted model, and nothing is left changed."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from builders import attention_inputs, random_images, softmax_attention, timm_model
from builders import watch as watched
from planted import (
    ARTIFACT,
    DETECT_BLOCK,
    GROWTH,
    GROWTH_BLOCK,
    MASSIVE,
    planted_backbone,
    planted_images,
    tokens,
)

from fnabench.attention.exact import Exact
from fnabench.attention.fna import Fna
from fnabench.attention.masked import Masked
from fnabench.errors import ImpossibleError
from fnabench.models.timm_layers import timm_layers
from fnabench.models.timm_vit import TimmBackbone
from fnabench.watch import Intervention, residual_norms, watch

PLAIN_SIZE, FREE_SIZE, ARTIFACT_SIZE = 0.5 * GROWTH, 1.5 * GROWTH, 0.7 * GROWTH
"""MASSIVE when it is suppressed and when it is not, and ARTIFACT when it is not."""


def sizes(**settings):
    """What MASSIVE and ARTIFACT have grown to under an intervention on MASSIVE."""
    backbone = planted_backbone()
    intervention = Intervention(tokens=tokens(MASSIVE), start_block=GROWTH_BLOCK, **settings)
    outputs = []
    backbone.module.blocks[GROWTH_BLOCK].register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.inference_mode(), watch(backbone.layers, intervention):
        backbone.encode_image(planted_images())
    return outputs[0][0, MASSIVE, 2].item(), outputs[0][0, ARTIFACT, 2].item()


@pytest.mark.parametrize(
    ("settings", "massive", "artifact"),
    [
        ({"operator": "mask", "pattern": "type1"}, FREE_SIZE, ARTIFACT_SIZE),
        ({"operator": "mask", "pattern": "type2"}, PLAIN_SIZE, ARTIFACT_SIZE),
        ({"operator": "sink", "pattern": "type1"}, FREE_SIZE, ARTIFACT_SIZE),
        ({"operator": "sink", "pattern": "type2"}, PLAIN_SIZE, ARTIFACT_SIZE),
        ({"operator": "zero"}, FREE_SIZE, ARTIFACT_SIZE),
    ],
)
def test_tokens_grow_as_the_weights_say(settings, massive, artifact):
    assert sizes(**settings) == pytest.approx((massive, artifact), abs=1e-3)


def test_blocks_below_the_start_are_left_alone():
    backbone = planted_backbone()
    late = Intervention(tokens=tokens(MASSIVE), start_block=GROWTH_BLOCK + 1)
    with torch.inference_mode(), watch(backbone.layers, late) as views:
        backbone.encode_image(planted_images())
    assert views[DETECT_BLOCK].norms[0, MASSIVE].item() == pytest.approx(sqrt(PLAIN_SIZE**2 + 3), abs=1e-3)


@pytest.mark.parametrize(("keep_bias", "drive"), [(True, 2.3), (False, 2.0)])
def test_without_attention_the_bias_stays_or_goes(keep_bias, drive):
    backbone = planted_backbone()
    backbone.module.blocks[GROWTH_BLOCK].attn.proj.bias[1] = 0.3
    nothing = Intervention(tokens=tokens(), start_block=GROWTH_BLOCK, operator="zero", keep_bias=keep_bias)
    with torch.inference_mode(), watch(backbone.layers, nothing) as views:
        backbone.encode_image(planted_images())
    size = GROWTH * (drive - 0.5)
    assert views[DETECT_BLOCK].norms[0, MASSIVE].item() == pytest.approx(sqrt(size**2 + drive**2 + 2), abs=1e-3)


@pytest.mark.parametrize("operator", ["mask", "sink"])
@pytest.mark.parametrize("pattern", ["type1", "type2"])
def test_a_whole_model_under_an_operator_is_what_written_out_probabilities_give(operator, pattern):
    module, images = timm_model(), random_images()
    backbone = TimmBackbone(module, lambda image: image)
    chosen = torch.zeros(2, 17, dtype=torch.bool)
    chosen[0, [3, 7]] = chosen[1, 16] = True
    hidden = chosen[:, None, None, :].expand(-1, -1, 17, -1).clone()
    if pattern == "type2":
        hidden.diagonal(dim1=2, dim2=3)[:] = False
    expected = []
    with torch.inference_mode():
        x = module.norm_pre(module._pos_embed(module.patch_embed(images)))
        for number, block in enumerate(module.blocks):
            q, k, v = block.attn.qkv(block.norm1(x)).reshape(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4).double()
            logits = 64**-0.5 * q @ k.mT
            weights = logits.softmax(-1)
            if number >= 2:
                masked = logits.masked_fill(hidden, -torch.inf).softmax(-1)
                weights = masked if operator == "mask" else weights.masked_fill(hidden, 0)
            x = x + block.attn.proj((weights @ v).float().transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
            expected.append(x)
        intervention = Intervention(tokens=chosen, start_block=2, operator=operator, pattern=pattern)
        with watch(backbone.layers, intervention) as views:
            features = module.forward_features(images)
    torch.testing.assert_close(features, module.norm(expected[-1]), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(views[3].norms, expected[2].norm(dim=-1), atol=1e-3, rtol=1e-3)
    norms = residual_norms(views)
    assert norms.shape == (2, 5, 17)
    torch.testing.assert_close(norms[:, -1], expected[3].norm(dim=-1), atol=1e-3, rtol=1e-3)


def test_the_suppression_matrix_is_the_mean_over_all_pairs_of_tokens():
    module = timm_model()
    backbone = TimmBackbone(module, lambda image: image)
    groups = torch.zeros(2, 2, 17, dtype=torch.bool)
    groups[:, 0, [1, 4, 9]] = groups[:, 1, [2, 3]] = True
    seen = watched(Exact())
    seen.attach([backbone.layers[1]])
    with torch.inference_mode(), watch(backbone.layers, groups=groups) as views:
        backbone.encode_image(random_images())
    inputs, weight = seen.seen[0], module.blocks[1].attn.proj.weight
    for head in range(3):
        written = inputs.v[:, head] @ weight[:, 64 * head : 64 * head + 64].T  # [B, N, C]
        pairs = torch.nn.functional.normalize(inputs.x, dim=-1) @ written.mT
        expected = pairs[:, [1, 4, 9]][:, :, [2, 3]].mean((1, 2))
        torch.testing.assert_close(views[1].groups.suppression[:, head, 0, 1], expected, atol=1e-5, rtol=1e-4)
    attended = softmax_attention(inputs.q, inputs.k, torch.eye(17).expand(2, 3, 17, 17), inputs.scale)
    expected = attended.mean((1, 2))[:, [2, 3]].mean(1).float()
    torch.testing.assert_close(views[1].groups.received[:, 1], expected, atol=1e-5, rtol=1e-4)


def test_watching_changes_nothing_and_the_layers_get_their_variants_back():
    module, fna = timm_model(), Fna(num_landmarks=5)
    backbone = TimmBackbone(module, lambda image: image)
    fna.attach(backbone.layers.select("half"))
    with torch.inference_mode():
        plain = backbone.encode_image(random_images())
        with watch(backbone.layers) as views:
            assert torch.equal(backbone.encode_image(random_images()), plain)
    assert sorted(views) == [0, 1, 2, 3]
    assert [layer.core for layer in backbone.layers] == [None, None, fna, fna]


@pytest.mark.parametrize("changes", [{"mask": torch.ones(1, 1, 1, 17, dtype=torch.bool)}, {"is_causal": True}])
def test_tokens_are_not_looked_for_under_a_mask(changes):
    with pytest.raises(ImpossibleError, match="no tokens are looked for under an attention mask"):
        Masked(inner=Exact())(attention_inputs(**changes))
    module = timm_model()
    with watch(timm_layers(module)), torch.inference_mode(), pytest.raises(ImpossibleError, match="under an attention"):
        module.forward_features(random_images(), attn_mask=torch.ones(1, 1, 1, 17, dtype=torch.bool))


def test_a_variant_is_masked_but_cannot_be_sunk():
    module, fna = timm_model(), Fna(num_landmarks=5)
    backbone = TimmBackbone(module, lambda image: image)
    fna.attach(backbone.layers)
    chosen = torch.zeros(2, 17, dtype=torch.bool)
    chosen[:, 3] = True
    with torch.inference_mode(), watch(backbone.layers, Intervention(tokens=chosen, start_block=1)):
        assert backbone.encode_image(random_images()).isfinite().all()
    with (
        torch.inference_mode(),
        watch(backbone.layers, Intervention(tokens=chosen, start_block=1, operator="sink")),
        pytest.raises(ImpossibleError, match=r"operator=sink .* use attention=exact"),
    ):
        backbone.encode_image(random_images())
    assert [layer.core for layer in backbone.layers] == [fna] * 4
