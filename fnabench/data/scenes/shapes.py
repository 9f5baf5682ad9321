"""Which points lie inside a shape: comparisons of polynomials, which every platform rounds alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[np.float32]
    Inside = NDArray[np.bool_]

_STAR_EDGES = (
    (0.0, 1.0),
    (0.951057, 0.309017),
    (0.587785, -0.809017),
    (-0.587785, -0.809017),
    (-0.951057, 0.309017),
)
"""Outward normals of the five lines of a pentagram: (sin, cos) of multiples of 72 degrees."""


def inside(shape: str, u: Points, v: Points) -> Inside:
    """Which of the points (u to the right, v down, in units of the radius, upright) belong to the shape."""
    return _INSIDE[shape](u, v)


def _circle(u: Points, v: Points) -> Inside:
    return u * u + v * v <= 0.9


def _square(u: Points, v: Points) -> Inside:
    return np.maximum(np.abs(u), np.abs(v)) <= 0.82


def _triangle(u: Points, v: Points) -> Inside:
    return (v <= 0.75) & (np.abs(u) <= (v + 1.0) * 0.56)


def _diamond(u: Points, v: Points) -> Inside:
    return np.abs(u) * 1.4 + np.abs(v) <= 1.0


def _star(u: Points, v: Points) -> Inside:
    """A point is in a pentagram when it is on the inner side of at least four of its five lines."""
    count = np.zeros(u.shape, dtype=np.uint8)
    for across, down in _STAR_EDGES:
        count += u * across + v * down <= 0.31
    return count >= 4


def _cross(u: Points, v: Points) -> Inside:
    a, b = np.abs(u), np.abs(v)
    return (np.minimum(a, b) <= 0.3) & (np.maximum(a, b) <= 0.95)


def _ring(u: Points, v: Points) -> Inside:
    square = u * u + v * v
    return (square <= 0.95) & (square >= 0.28)


def _heart(u: Points, v: Points) -> Inside:
    a = np.abs(u)
    lobes = (a - 0.45) * (a - 0.45) + (v + 0.35) * (v + 0.35) <= 0.25
    tip = (v >= -0.2) & (a <= 0.93 - (v + 0.2) * 0.85)
    return lobes | tip


def _moon(u: Points, v: Points) -> Inside:
    bitten: Inside = (u - 0.5) * (u - 0.5) + v * v >= 0.6
    return (u * u + v * v <= 0.95) & bitten


def _arrow(u: Points, v: Points) -> Inside:
    a = np.abs(u)
    head = (v >= -1.0) & (v <= 0.05) & (a <= (v + 1.0) * 0.85)
    shaft = (v >= 0.0) & (v <= 0.92) & (a <= 0.3)
    return head | shaft


_INSIDE: dict[str, Callable[[Points, Points], Inside]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
}
