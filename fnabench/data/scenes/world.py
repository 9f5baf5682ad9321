"""What a scene is made of: shapes on a cluttered ground, placed in units of 1/1024 of the image side."""

from __future__ import annotations

from dataclasses import dataclass

from fnabench.data.scenes.draw import Draw

SIDE = 1024
"""The side of the world; at 128 px one pixel is 8 units wide."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "moon", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
GROUNDS = ("smooth", "lined", "checked", "spotted")
RADII = {"small": (80, 96), "medium": (116, 136), "large": (176, 208)}
"""Lowest and highest radius of each size, in world units; the gaps make "larger than" a clear question."""

ROTATIONS = ((1, 0, 1), (180, 19, 181), (84, 13, 85), (60, 11, 61), (40, 9, 41), (24, 7, 25), (12, 5, 13))
"""Cosine, sine and common denominator of turns between 0 and 23 degrees: whole numbers, nothing to round."""

_APART = 108
_TOUCHING = 72
_OVERLAPPING = 62
"""Distances between centres in percent of the sum of the radii: clear of each other, half the side of the
square in which an overlapping thing is placed, and the nearest that two things ever come."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape of a scene; positions and radius in world units, y pointing down."""

    shape: str
    colour: str
    fill: str
    size: str
    x: int
    y: int
    radius: int
    rotation: tuple[int, int, int]
    tint: tuple[int, int, int]
    """What is added to the colour's red, green and blue."""

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle": unique within a scene."""
        return f"{self.colour} {self.shape}"

    @property
    def phrase(self) -> str:
        """The name with its article, such as "an orange star"."""
        return phrase(self.colour, self.shape)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The things of a scene, the largest first; later things lie in front of earlier ones."""

    ground: str
    things: tuple[Thing, ...]

    @property
    def main(self) -> Thing:
        """The only large thing: it gives the scene its class."""
        return self.things[0]


def phrase(colour: str, shape: str) -> str:
    """A thing of that colour and shape, with its article."""
    return f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"


def compose(draw: Draw) -> Scene:
    """A scene of one large thing and two to four smaller ones, none of them hidden by half."""
    things = [_make(draw, size="large", others=[])]
    for _ in range(draw.between(2, 4)):
        things.append(_make(draw, size=draw.choose(("small", "medium")), others=things))
    things.sort(key=lambda thing: -thing.radius)
    return Scene(ground=draw.choose(GROUNDS), things=tuple(things))


def direction(subject: Thing, target: Thing) -> str:
    """Where the subject is from the target: left of, right of, above or below, along the longer axis."""
    dx, dy = subject.x - target.x, subject.y - target.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def place(thing: Thing) -> str:
    """Where the thing's centre is in the image, in words: one of nine parts."""
    row = ("top", "", "bottom")[min(2, thing.y * 3 // SIDE)]
    column = ("left", "", "right")[min(2, thing.x * 3 // SIDE)]
    return " ".join(part for part in (row, column) if part) or "centre"


def _make(draw: Draw, *, size: str, others: list[Thing]) -> Thing:
    shape, colour = draw.choose(SHAPES), draw.choose(COLOURS)
    if others and draw.chance(30):
        shape = draw.choose(others).shape
    if others and draw.chance(25):
        colour = draw.choose(others).colour
    while any((shape, colour) == (other.shape, other.colour) for other in others):
        shape, colour = draw.choose(SHAPES), draw.choose(COLOURS)
    low, high = RADII[size]
    radius = draw.between(low, high)
    x, y = _free_position(draw, radius, others)
    cosine, sine, whole = draw.choose(ROTATIONS)
    return Thing(
        shape=shape,
        colour=colour,
        fill=draw.choose(("plain", "plain", "striped", "dotted")),
        size=size,
        x=x,
        y=y,
        radius=radius,
        rotation=(cosine, -sine if draw.chance(50) else sine, whole),
        tint=(draw.between(-16, 16), draw.between(-16, 16), draw.between(-16, 16)),
    )


def _free_position(draw: Draw, radius: int, others: list[Thing]) -> tuple[int, int]:
    """A centre clear of the others; two things in five overlap one of them, and all may if space runs out."""
    close = draw.choose(others) if others and draw.chance(40) else None
    tries = 0
    while True:
        x, y = draw.between(radius, SIDE - radius), draw.between(radius, SIDE - radius)
        if close is not None:
            x, y = _beside(draw, radius, close)
        crowded = close is not None or tries >= 64
        gaps = ((x - other.x) ** 2 + (y - other.y) ** 2 for other in others)
        needs = ((radius + other.radius) * (_OVERLAPPING if crowded else _APART) // 100 for other in others)
        if all(gap >= need * need for gap, need in zip(gaps, needs, strict=True)):
            return x, y
        tries += 1
        if tries == 64:
            close = None


def _beside(draw: Draw, radius: int, other: Thing) -> tuple[int, int]:
    """A centre in the square around another thing's in which the two may overlap, within the image."""
    reach = (radius + other.radius) * _TOUCHING // 100
    return (
        draw.between(max(radius, other.x - reach), min(SIDE - radius, other.x + reach)),
        draw.between(max(radius, other.y - reach), min(SIDE - radius, other.y + reach)),
    )
