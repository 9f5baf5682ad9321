"""The decoder's second lesson: naming words look at the patches that show the thing, the answer at those words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fnabench.data.scenes.questions import Asked, plural
from fnabench.data.scenes.world import COLOURS, RADII, SHAPES, SIDE, Scene
from fnabench.models.bundled_towers import split_words

NAMING_LAYER, ANSWER_LAYER, NUM_HEADS = 1, 2, 2
"""The decoder layers whose first heads are taught; the layer before joins a shape's word with its colour's."""

_SHAPE_OF = {name: shape for shape in SHAPES for name in (shape, plural(shape))}


def find_mentions(asked: Asked, scene: Scene) -> list[tuple[int, list[int]]]:
    """The places of the naming words of the question, and which things of the scene each names, if any."""
    words, found = split_words(asked.text), []
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word not in _SHAPE_OF and word not in ("object", "objects"):
            continue
        things = [
            number
            for number, thing in enumerate(scene.things)
            if _SHAPE_OF.get(word, thing.shape) == thing.shape
            and (before not in COLOURS or thing.colour == before)
            and (before != "large" or thing.size == "large")
        ]
        found.append((place, things))
    return found


def grounding_loss(attention: Tensor, asked: list[list[Asked]], scenes: list[Scene], shown: Tensor) -> Tensor:
    """Minus the logarithm of how much of their attention the naming words give to the patches of what they name.

    A word that names nothing in the scene is to look at the start token. attention [B, H, T, T] is the taught
    layer's, of rows of a start token, V patches and the questions, each as long as the longest; shown [B, V] is the
    thing that each patch shows, negative for none.
    """
    num_prefix = 1 + shown.shape[1]
    longest = (attention.shape[-1] - num_prefix) // len(asked[0])
    rows, places, wanted = [], [], []
    for row, (questions, scene) in enumerate(zip(asked, scenes, strict=True)):
        for number, question in enumerate(questions):
            for place, things in find_mentions(question, scene):
                patches = torch.isin(shown[row], torch.tensor(things, dtype=torch.long))
                if patches.any() or not things:
                    rows.append(row)
                    places.append(num_prefix + number * longest + place)
                    wanted.append(torch.cat((torch.tensor([not things]), patches)))
    looks = attention[rows, :NUM_HEADS, places, :num_prefix]  # [mentions, heads, 1 + V]
    given = (looks * torch.stack(wanted)[:, None]).sum(dim=-1)
    return -(given + 1e-6).log().mean()


def answering_loss(attention: Tensor, asked: list[list[Asked]], scenes: list[Scene], answers: Tensor) -> Tensor:
    """Minus the logarithm of how much of its attention the answer's token gives to the question's naming words.

    attention is as for grounding_loss; answers [B, Q * longest] says which text tokens are answer tokens.
    """
    num_prefix = attention.shape[-1] - answers.shape[1]
    longest = answers.shape[1] // len(asked[0])
    wanted = torch.zeros(answers.shape, dtype=torch.bool)  # naming words
    for row, (questions, scene) in enumerate(zip(asked, scenes, strict=True)):
        for number, question in enumerate(questions):
            for place, _ in find_mentions(question, scene):
                wanted[row, number * longest + place] = True
    rows, places = answers.nonzero(as_tuple=True)
    looks = attention[rows, :NUM_HEADS, num_prefix + places, num_prefix:]  # [answers, heads, Q * longest]
    given = (looks * wanted[rows][:, None]).sum(dim=-1)
    return -(given + 1e-6).log().mean()


class PlaceHead(nn.Module):
    """The training-only linear heads on naming words: column, row, size and number of what they name."""

    BINS = 8
    MOST = 6

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.Linear(width, 2 * self.BINS + len(RADII) + self.MOST)

    def forward(self, hidden: Tensor, asked: list[list[Asked]], scenes: list[Scene]) -> Tensor:
        """Cross entropy for the hidden states of the text [B, Q * longest, C]: places and sizes of lone things."""
        longest = hidden.shape[1] // len(asked[0])
        rows, places, wanted = [], [], []
        for row, (questions, scene) in enumerate(zip(asked, scenes, strict=True)):
            for number, question in enumerate(questions):
                for place, things in find_mentions(question, scene):
                    rows.append(row)
                    places.append(number * longest + place)
                    only = scene.things[things[0]] if len(things) == 1 else None
                    where = (only.x * self.BINS // SIDE, only.y * self.BINS // SIDE) if only else (-100, -100)
                    wanted.append((*where, list(RADII).index(only.size) if only else -100, len(things)))
        parts = self.heads(hidden[rows, places]).split((self.BINS, self.BINS, len(RADII), self.MOST), dim=-1)
        targets = torch.tensor(wanted).unbind(dim=1)
        losses = [functional.cross_entropy(part, target) for part, target in zip(parts, targets, strict=True)]
        return torch.stack(losses).sum()
