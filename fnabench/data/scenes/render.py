"""From a scene to pixels and masks, in elementwise IEEE arithmetic: the same bytes on every platform."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fnabench.data.base import IGNORE_INDEX
from fnabench.data.scenes.draw import Draw
from fnabench.data.scenes.shapes import inside
from fnabench.data.scenes.world import ROTATIONS, SHAPES, SIDE, Scene, Thing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Canvas = NDArray[np.float32]

_RGB = {
    "red": (212, 38, 38),
    "orange": (238, 138, 28),
    "yellow": (236, 222, 64),
    "green": (48, 160, 66),
    "cyan": (62, 205, 214),
    "blue": (44, 72, 205),
    "purple": (128, 52, 168),
    "pink": (244, 128, 184),
}
_NO_THING = 255
_BORDER_UNITS = 16
"""Half the width of the ignored border: 2 px at 128 px."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A rendered scene."""

    pixels: NDArray[np.uint8]
    """RGB [height, width, 3]."""
    owner: NDArray[np.uint8]
    """Which thing of the scene each pixel shows [height, width]; 255 for the ground."""
    mask: NDArray[np.uint8]
    """0 for the ground, 1 + the index of the shape, IGNORE_INDEX along every outline [height, width]."""


def render(scene: Scene, draw: Draw, image_size: int) -> Picture:
    """The scene at image_size x image_size pixels; a larger picture shows the same world in more detail."""
    canvas = _paint_ground(scene.ground, draw, image_size)
    for _ in range(draw.between(5, 9)):
        _paint_clutter(canvas, draw)
    owner = np.full((image_size, image_size), _NO_THING, dtype=np.uint8)
    for number, thing in enumerate(scene.things):
        _paint_thing(canvas, owner, thing, number)
    canvas *= _smooth_noise(draw.bytes(1, 3, 3), image_size) * np.float32(0.3 / 255) + np.float32(0.82)
    canvas += _smooth_noise(draw.bytes(1, 65, 65), image_size) * np.float32(28 / 255) - np.float32(13.5)
    pixels = np.clip(canvas, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    return Picture(pixels=pixels, owner=owner, mask=_label(owner, scene, image_size))


def _paint_ground(ground: str, draw: Draw, size: int) -> Canvas:
    """A muted colour with a pattern of a second one and slow changes of both [3, size, size]."""
    level = draw.between(70, 190)
    base = np.array([level + draw.between(-14, 14) for _ in range(3)], dtype=np.float32)
    contrast = draw.between(14, 34) * (1 if draw.chance(50) else -1)
    canvas = _smooth_noise(draw.bytes(3, 6, 6), size) * np.float32(50 / 255)
    canvas += (base - np.float32(25))[:, None, None]
    if ground != "smooth":
        canvas += np.float32(contrast) * _pattern(ground, draw, size)
    return canvas


def _pattern(ground: str, draw: Draw, size: int) -> Canvas:
    """Where the second colour of the ground is: 0 or 1 per pixel [size, size]."""
    period = np.float32(draw.between(56, 112))
    x, y = _turn(_centres(0, size, size), _centres(0, size, size), draw.choose(ROTATIONS))
    column, row = np.floor(x / period), np.floor(y / period)
    if ground == "lined":
        return np.asarray(column % 2, dtype=np.float32)
    if ground == "checked":
        return np.asarray((column + row) % 2, dtype=np.float32)
    across, down = x / period - column - np.float32(0.5), y / period - row - np.float32(0.5)
    return np.asarray(across * across + down * down <= 0.08, dtype=np.float32)


def _paint_clutter(canvas: Canvas, draw: Draw) -> None:
    """A short grey bar or blob that belongs to no class."""
    size = canvas.shape[1]
    x, y = draw.between(0, SIDE), draw.between(0, SIDE)
    half_length, half_width = draw.between(16, 90), draw.between(8, 20)
    colour = np.array([draw.between(60, 200)] * 3, dtype=np.float32) + np.array(
        [draw.between(-18, 18) for _ in range(3)], dtype=np.float32
    )
    rows, columns = _window(y, half_length + half_width, size), _window(x, half_length + half_width, size)
    cosine, sine, whole = draw.choose(ROTATIONS)
    if draw.chance(50):
        cosine, sine = sine, cosine
    u, v = _turn(
        _centres(columns.start, columns.stop, size) - np.float32(x),
        _centres(rows.start, rows.stop, size) - np.float32(y),
        (cosine, sine, whole),
    )
    hit = (np.abs(u) <= half_length) & (np.abs(v) <= half_width)
    canvas[:, rows, columns][:, hit] = colour[:, None]


def _paint_thing(canvas: Canvas, owner: NDArray[np.uint8], thing: Thing, number: int) -> None:
    """Blend the thing into the canvas, with 2 x 2 samples a pixel, and claim the pixels it mostly covers."""
    size = canvas.shape[1]
    rows, columns = _window(thing.y, thing.radius, size), _window(thing.x, thing.radius, size)
    u, v = _turn(
        _centres(columns.start * 2, columns.stop * 2, size * 2) - np.float32(thing.x),
        _centres(rows.start * 2, rows.stop * 2, size * 2) - np.float32(thing.y),
        thing.rotation,
    )
    radius = np.float32(thing.radius)
    covered = inside(thing.shape, u / radius, v / radius)
    colour = np.array(_RGB[thing.colour], dtype=np.float32) + np.array(thing.tint, dtype=np.float32)
    coverage = _pool(covered)
    bright = coverage
    if thing.fill != "plain":
        bright = coverage - _pool(covered & _fill(thing.fill, u, v)) * np.float32(0.5)
    part = canvas[:, rows, columns]
    part *= np.float32(1) - coverage
    part += bright * colour[:, None, None]
    owner[rows, columns][coverage >= 0.5] = number


def _fill(fill: str, u: Canvas, v: Canvas) -> NDArray[np.bool_]:
    """Where the darker half of a pattern is, in world units from the thing's centre."""
    if fill == "striped":
        period = np.float32(56)
        return np.asarray(v / period - np.floor(v / period) < 0.45)
    period = np.float32(60)
    across = u / period - np.floor(u / period) - np.float32(0.5)
    down = v / period - np.floor(v / period) - np.float32(0.5)
    return np.asarray(across * across + down * down <= 0.1)


def _label(owner: NDArray[np.uint8], scene: Scene, size: int) -> NDArray[np.uint8]:
    classes = np.zeros(256, dtype=np.uint8)
    for number, thing in enumerate(scene.things):
        classes[number] = 1 + SHAPES.index(thing.shape)
    mask = classes[owner]
    reach = max(1, (_BORDER_UNITS * size + SIDE // 2) // SIDE)
    mask[_spread(owner, reach, np.maximum) != _spread(owner, reach, np.minimum)] = IGNORE_INDEX
    return mask


def _spread(values: NDArray[np.uint8], reach: int, pick: np.ufunc) -> NDArray[np.uint8]:
    """The highest or lowest value within a square of `reach` pixels around each pixel."""
    for axis in (0, 1):
        for _ in range(reach):
            spread = values.copy()
            ahead = [slice(None), slice(None)]
            behind = [slice(None), slice(None)]
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            pick(spread[tuple(ahead)], values[tuple(behind)], out=spread[tuple(ahead)])
            pick(spread[tuple(behind)], values[tuple(ahead)], out=spread[tuple(behind)])
            values = spread
    return values


def _window(centre: int, reach: int, size: int) -> slice:
    """The pixels that [centre - reach, centre + reach] touches."""
    first = max(0, (centre - reach) * size // SIDE - 1)
    last = min(size, (centre + reach) * size // SIDE + 2)
    return slice(first, last)


def _centres(first: int, last: int, size: int) -> Canvas:
    """World coordinates of the centres of pixels [first, last) of an image of `size` pixels."""
    return (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) * np.float32(SIDE / size)


def _turn(x: Canvas, y: Canvas, rotation: tuple[int, int, int]) -> tuple[Canvas, Canvas]:
    """The grid of points (x, y), turned: two arrays [len(y), len(x)]."""
    cosine, sine = np.float32(rotation[0] / rotation[2]), np.float32(rotation[1] / rotation[2])
    return (x * cosine)[None, :] + (y * sine)[:, None], (y * cosine)[:, None] - (x * sine)[None, :]


def _pool(covered: NDArray[np.bool_]) -> Canvas:
    """The covered share of each pixel, from its 2 x 2 samples."""
    counts = covered.view(np.uint8)
    rows = counts[0::2] + counts[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _smooth_noise(values: NDArray[np.uint8], size: int) -> Canvas:
    """A lattice of random bytes [channels, n, n], linearly interpolated to [channels, size, size]."""
    before, weight = _lattice(values.shape[-1], size)
    lattice = values.astype(np.float32)
    step = lattice[:, 1:] - lattice[:, :-1]
    tall = lattice[:, before] + step[:, before] * weight[:, None]
    step = tall[:, :, 1:] - tall[:, :, :-1]
    return np.asarray(np.take(tall, before, axis=2) + np.take(step, before, axis=2) * weight, dtype=np.float32)


@lru_cache(maxsize=32)
def _lattice(points: int, size: int) -> tuple[NDArray[np.intp], Canvas]:
    """For each pixel of a row: the lattice point before it and how far it is towards the next."""
    position = (np.arange(size) * 2 + 1) * (points - 1)
    before = position // (2 * size)
    weight = ((position - before * (2 * size)) / (2 * size)).astype(np.float32)
    return before, weight
