"""Questions whose true answers follow from how a scene was built, and annotators who sometimes err."""

from __future__ import annotations

from dataclasses import dataclass

from fnabench.data.base import Question
from fnabench.data.scenes.draw import Draw
from fnabench.data.scenes.world import COLOURS, RADII, SHAPES, Scene, direction, phrase

KINDS = ("exist", "count", "colour", "relation", "compare")
NUM_ANNOTATORS = 10

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_CONFUSED = {
    "red": "orange",
    "orange": "red",
    "yellow": "orange",
    "green": "cyan",
    "cyan": "blue",
    "blue": "purple",
    "purple": "blue",
    "pink": "purple",
}
"""The colour that a careless annotator takes a colour for."""

_NUM_DISSENTERS = (0, 0, 0, 0, 0, 0, 1, 1, 2, 3)
"""How many of ten answers are wrong: a draw from these; VQA accuracy still gives the truth 1.0."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with its one true answer."""

    kind: str
    text: str
    truth: str


def ask(scene: Scene, draw: Draw) -> tuple[Asked, ...]:
    """One question of each kind, in the order of KINDS."""
    return (
        _exist(scene, draw),
        _count(scene, draw),
        _colour(scene, draw),
        _relation(scene, draw),
        _compare(scene, draw),
    )


def annotate(asked: Asked, draw: Draw, *, name: str) -> Question:
    """The question with ten answers, at least seven of them true."""
    wrong = [_mistake(asked, draw) for _ in range(draw.choose(_NUM_DISSENTERS))]
    answers = draw.shuffled([*wrong, *[asked.truth] * (NUM_ANNOTATORS - len(wrong))])
    return Question(id=name, text=asked.text, kind=asked.kind, answers=tuple(answers))


def _exist(scene: Scene, draw: Draw) -> Asked:
    """Half of the questions name an absent thing, most of those with a colour and a shape that are there."""
    if draw.chance(50):
        return Asked(kind="exist", text=f"is there {draw.choose(scene.things).phrase}?", truth="yes")
    present = {thing.name for thing in scene.things}
    mixed = [
        phrase(a.colour, b.shape) for a in scene.things for b in scene.things if f"{a.colour} {b.shape}" not in present
    ]
    if not mixed or draw.chance(33):
        mixed = [phrase(colour, shape) for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in present]
    return Asked(kind="exist", text=f"is there {draw.choose(mixed)}?", truth="no")


def _count(scene: Scene, draw: Draw) -> Asked:
    """Of all things, of one shape, or of one colour; now and then of one that is absent."""
    form = draw.below(5)
    if form == 0:
        return Asked(kind="count", text="how many objects are there?", truth=str(len(scene.things)))
    if form <= 2:
        shape = draw.choose(SHAPES) if draw.chance(20) else draw.choose(scene.things).shape
        found = sum(thing.shape == shape for thing in scene.things)
        return Asked(kind="count", text=f"how many {plural(shape)} are there?", truth=str(found))
    colour = draw.choose(COLOURS) if draw.chance(20) else draw.choose(scene.things).colour
    found = sum(thing.colour == colour for thing in scene.things)
    return Asked(kind="count", text=f"how many {colour} objects are there?", truth=str(found))


def _colour(scene: Scene, draw: Draw) -> Asked:
    """Of a thing whose shape no other thing has, or of the large one."""
    shapes = [thing.shape for thing in scene.things]
    alone = [thing for thing in scene.things if shapes.count(thing.shape) == 1]
    if not alone or draw.chance(20):
        return Asked(kind="colour", text="what colour is the large object?", truth=scene.main.colour)
    thing = draw.choose(alone)
    return Asked(kind="colour", text=f"what colour is the {thing.shape}?", truth=thing.colour)


def _relation(scene: Scene, draw: Draw) -> Asked:
    """Along the longer of the two axes; a wrong statement names the opposite side."""
    subject, target = draw.shuffled(scene.things)[:2]
    stated, truth = direction(subject, target), "yes"
    if draw.chance(50):
        stated, truth = _OPPOSITE[stated], "no"
    return Asked(kind="relation", text=f"is the {subject.name} {stated} the {target.name}?", truth=truth)


def _compare(scene: Scene, draw: Draw) -> Asked:
    """Two things of different sizes, or the numbers of two shapes or colours that differ."""
    pairs = _unequal_counts(scene)
    if pairs and draw.chance(40):
        more, fewer = draw.choose(pairs)
        asked = f"are there more {more} than {fewer}?" if draw.chance(50) else f"are there more {fewer} than {more}?"
        return Asked(kind="compare", text=asked, truth="yes" if asked.startswith(f"are there more {more} ") else "no")
    sizes = list(RADII)
    bigger, smaller = draw.choose(
        [(a, b) for a in scene.things for b in scene.things if sizes.index(a.size) > sizes.index(b.size)]
    )
    if draw.chance(50):
        return Asked(kind="compare", text=f"is the {bigger.name} larger than the {smaller.name}?", truth="yes")
    return Asked(kind="compare", text=f"is the {smaller.name} larger than the {bigger.name}?", truth="no")


def _unequal_counts(scene: Scene) -> list[tuple[str, str]]:
    """Pairs of shapes, and of colours, in the scene of which the first has more things."""
    groups = (
        [plural(thing.shape) for thing in scene.things],
        [f"{thing.colour} objects" for thing in scene.things],
    )
    return [
        (a, b)
        for group in groups
        for a in sorted(set(group))
        for b in sorted(set(group))
        if group.count(a) > group.count(b)
    ]


def plural(shape: str) -> str:
    """The shape's name for more than one of it."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _mistake(asked: Asked, draw: Draw) -> str:
    if asked.kind == "count":
        return str(max(0, int(asked.truth) + (1 if draw.chance(50) or asked.truth == "0" else -1)))
    if asked.kind == "colour":
        return _CONFUSED[asked.truth]
    return "no" if asked.truth == "yes" else "yes"
