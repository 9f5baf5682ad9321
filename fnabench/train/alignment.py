"""The decoder's first lesson: what the projector makes of a patch resembles the words for what the patch shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fnabench.data.scenes.questions import plural
from fnabench.data.scenes.world import COLOURS, SHAPES, SIDE, Scene
from fnabench.models.bundled_towers import Tokenizer

NOTHING = -100
"""The target of a patch that shows no thing on at least half of its pixels."""


@dataclass(frozen=True, kw_only=True)
class PatchWords:
    """What patches show; V patches of each of B images."""

    shapes: Tensor
    """Index of the shape [B, V], or NOTHING."""
    colours: Tensor
    """Index of the colour [B, V], or NOTHING."""
    things: Tensor
    """Index of the thing [B, V], or NOTHING."""
    centres: Tensor
    """1 where a thing's centre is, else 0 [B, V]."""


def alignment_loss(visual: Tensor, words: PatchWords, table: Tensor, tokenizer: Tokenizer) -> Tensor:
    """How badly the projected patches [B, V, C] choose their words from the embedding table [words, C]."""
    lists = ((COLOURS, words.colours), (SHAPES, words.shapes), ([plural(shape) for shape in SHAPES], words.shapes))
    loss = torch.zeros(())
    for names, wanted in lists:
        vectors = table[[tokenizer.encode(name)[1] for name in names]]
        loss = loss + functional.cross_entropy((4 * visual @ vectors.T).flatten(0, 1), wanted.flatten())
    centre = 4 * visual @ table[tokenizer.encode("objects")[1]] - 3
    return loss + functional.binary_cross_entropy_with_logits(centre, words.centres, pos_weight=torch.tensor(4.0))


def find_centres(scenes: list[Scene], kept: Tensor, *, side: int) -> Tensor:
    """1 for each kept patch [B, V], numbered in a grid of side x side, that holds the centre of a thing."""
    found = torch.zeros(len(scenes), side * side)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            found[row, thing.y * side // SIDE * side + thing.x * side // SIDE] = 1
    return found.gather(1, kept)
